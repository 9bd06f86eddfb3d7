"""Dueling DQN on Atari games.

    Q(x,a) = V(x) + F(x,a) - mean_b F(x,b)

Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", on the training
loop of DQN (Mnih et al. 2015). The presets fix everything; any flag given wins over its preset:

    cpu   the small torso of 2013 and 1M steps
    fast  as cpu, with double Q and 3-step returns: learns in fewer steps
    gpu   the Nature torso, double Q as in the paper, 10M steps

The same command again continues the run. docs/dueling_dqn.md explains every figure logged.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from classicrl.command_line import (
    exit_with,
    expects_gpu,
    may_change,
    not_recorded,
    parse,
    require_positive,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one agent decision in one environment: 4 frames."""

    preset: Literal["cpu", "fast", "gpu"] = "cpu"
    """Where the defaults come from."""
    env_id: str = "ALE/Pong-v5"
    """Any game of ale-py."""
    protocol: Literal["classic", "sticky"] = "classic"
    """classic: no sticky actions, a lost life ends the bootstrapped episode. sticky: actions are
    repeated with probability 0.25 per frame, only the end of the game counts."""
    total_steps: int = may_change(1_000_000)
    """Steps to train for."""
    seed: int = 0
    """Of everything random."""
    num_envs: int = 8
    """Games played side by side; 1 makes resuming exact to the bit."""
    device: Literal["auto", "cpu", "cuda"] = may_change("auto")
    """auto: the GPU if there is one."""
    threads: int = may_change(0)
    """CPU threads; 0: all that this process may use."""
    compile: bool = may_change(False)
    """Compile the networks with torch.compile: equal up to rounding, and not always faster
    (docs/performance.md)."""
    track: Literal["none", "wandb"] = may_change("none")
    """wandb: send the figures to Weights & Biases, too."""
    run_dir: Path | None = not_recorded(None)
    """Default: runs/dueling_dqn_atari/<environment>-<protocol>/seed<seed>."""
    overwrite: bool = not_recorded(False)
    """Delete what an earlier run left in the run directory."""
    init_from: Path | None = None
    """Begin with the weights of this run directory, model directory or model file; all else
    begins anew. A run that has a checkpoint continues from that."""

    torso: Literal["nature", "small"] = "small"
    """nature: the convolutions of 2015. small: those of 2013, a third of the arithmetic."""
    double: bool = False
    """Choose bootstrap actions with the online network."""
    n_steps: int = 1
    """Steps summed into a return."""
    gamma: float = 0.99
    """Discount per step."""
    loss: Literal["squared", "huber"] = "squared"
    """Of the TD error."""
    learning_rate: float = 1e-4
    """Of Adam."""
    adam_eps: float = 1e-8
    """Of Adam."""
    max_grad_norm: float = 10.0
    """Bound on the norm of the gradient."""
    batch_size: int = 32
    """Transitions per update."""
    replay_capacity: int = 200_000
    """Frames kept; 7 kB each."""
    update_period_steps: int = 4
    """One update every so many steps."""
    target_period_steps: int = 1_000
    """The target network is copied every so many steps."""
    first_update_steps: int | None = None
    """Steps before the first update. Default: 5% of the run, at most 80,000."""
    epsilon_end: float = 0.01
    """Share of random actions, from 1 down to this."""
    epsilon_decay_steps: int | None = None
    """Steps over which it falls. Default: 10% of the run."""

    log_period_steps: int = may_change(2_000)
    """Steps between rows of metrics.csv."""
    evaluation_period_steps: int = may_change(100_000)
    """Steps between evaluations."""
    evaluation_episodes: int = may_change(10)
    """Games in each."""
    final_evaluation_episodes: int = may_change(30)
    """Games in the last one."""
    checkpoint_period_steps: int = may_change(50_000)
    """Steps between checkpoints."""
    checkpoint_replay: Literal["full", "none"] = may_change("full")
    """none: leave the replay out; a resume then refills it before it updates."""


PRESETS = {
    "cpu": Config(),
    "fast": Config(preset="fast", double=True, n_steps=3),
    "gpu": Config(
        preset="gpu",
        torso="nature",
        double=True,
        total_steps=10_000_000,
        num_envs=128,
        replay_capacity=1_000_000,
        checkpoint_period_steps=500_000,
        log_period_steps=10_000,
        evaluation_period_steps=500_000,
    ),
}


def resolve(config: Config) -> Config:
    """Fills in what depends on other fields."""
    return dataclasses.replace(
        config,
        first_update_steps=config.first_update_steps
        or max(config.n_steps * config.num_envs + 1, min(80_000, config.total_steps // 20)),
        epsilon_decay_steps=config.epsilon_decay_steps or max(1, config.total_steps // 10),
    )


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse(PRESETS, "gpu" if expects_gpu() else "cpu", __doc__ or "")

import contextlib
import math
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.algorithms.dqn import DQNLearner
from classicrl.console import TrainingProgress
from classicrl.envs.atari import PROTOCOLS, AtariVector, make_atari
from classicrl.evaluation import AtariEvaluator, epsilon_greedy
from classicrl.experiment import Run, StopRequest, versions
from classicrl.initial_weights import require_initial_weights, take_initial_weights
from classicrl.loggers import EpisodeStatistics, MeanMetrics, MetricsLog
from classicrl.machine import choose_device, compile_networks, describe, require_memory, set_threads
from classicrl.networks import atari_q_network
from classicrl.replay import ReplayBuffer, replay_nbytes
from classicrl.schedules import crossings, linear
from classicrl.tracking import require_tracker
from classicrl.training_state import Counters, TrainingState

AGENT = "dueling_dqn_atari"
PROGRESS_PERIOD_STEPS = 200


def main(config: Config) -> dict[str, Any]:
    """Trains, or continues, or reports a finished run; returns its summary."""
    require_positive(
        config,
        may_be_zero={"seed", "threads", "epsilon_end"},
        at_most_one={"gamma", "epsilon_end"},
    )
    game = config.env_id.replace("/", "-")
    directory = config.run_dir or Path(f"runs/{AGENT}/{game}-{config.protocol}/seed{config.seed}")
    require_tracker(config.track)
    require_initial_weights(
        config.init_from, directory, card_of(config), overwrite=config.overwrite
    )
    with Run(directory, overwrite=config.overwrite) as run, StopRequest() as stop:
        config = run.configure(config, resolve)
        summary = run.summary
        if summary is None or summary["total_steps"] < config.total_steps:
            summary = train(config, run, stop)
        print(run.closing_lines(summary))
        return summary


def card_of(config: Config) -> dict[str, str]:
    """What a model file of the run says of itself."""
    return {
        "agent": AGENT,
        "env_id": config.env_id,
        "protocol": config.protocol,
        "torso": config.torso,
        "head": "dueling",
    }


def train(config: Config, run: Run, stop: StopRequest) -> dict[str, Any]:
    """The whole of the training, from nothing or from the last checkpoint; returns the summary."""
    device = choose_device(config.device)
    threads = set_threads(config.threads)
    protocol = PROTOCOLS[config.protocol]
    software = versions()

    # -- The parts -----------------------------------------------------------------------------
    envs = make_atari(
        config.env_id, config.num_envs, protocol=protocol, seed=config.seed, num_threads=threads
    )
    stack, frame_shape = envs.obs_shape[0], envs.obs_shape[1:]
    require_memory(
        replay_nbytes(config.replay_capacity, frame_shape),
        device,
        what=f"a replay of {config.replay_capacity:,} frames",
        flag="--replay-capacity",
    )
    network = atari_q_network(config.torso, "dueling", envs.num_actions, seed=config.seed)
    learner = DQNLearner(
        network.to(device, memory_format=torch.channels_last),
        learning_rate=config.learning_rate,
        adam_eps=config.adam_eps,
        double=config.double,
        loss=config.loss,
        max_grad_norm=config.max_grad_norm,
    )
    if config.compile:
        compile_networks(learner.online, learner.target)
    replay = ReplayBuffer(
        config.replay_capacity,
        frame_shape,
        config.num_envs,
        stack=stack,
        n_steps=config.n_steps,
        gamma=config.gamma,
        device=device,
        seed=config.seed,
    )
    explore_rng = np.random.default_rng([config.seed, 1])
    episodes = EpisodeStatistics(config.num_envs)
    means = MeanMetrics()
    grad_norms: deque[torch.Tensor] = deque(maxlen=500)  # for the histogram only

    def policy(obs: NDArray[np.uint8]) -> NDArray[np.int64]:
        return learner.act(torch.from_numpy(obs).to(device)).cpu().numpy()

    evaluator = AtariEvaluator(
        policy,
        config.env_id,
        protocol,
        seed=config.seed,
        num_threads=threads,
        should_stop=lambda: bool(stop),
    )

    # -- Where it stands: at nothing, or at the last checkpoint --------------------------------
    progress = TrainingProgress(config.total_steps)
    count = Counters()
    state = TrainingState(
        run.directory,
        count,
        parts={
            "learner": learner,
            "envs": envs,
            "episodes": episodes,
            "means": means,
            "explore_rng": explore_rng,
        },
        replay=replay,
        save_replay=config.checkpoint_replay == "full",
        model=learner.online,
        card=card_of(config),
        info={"versions": software},
        say=progress.say,
    )
    if state.resume():
        obs = envs.observation()
        if isinstance(envs, AtariVector):
            # The C++ emulators cannot be saved: new games begin, and nothing spans the break.
            replay.break_streams()
            episodes.begin_new_episodes()
        if len(replay) == 0:
            count.refill_left_steps = min(config.first_update_steps, count.step)
            progress.say(
                f"the checkpoint has no replay: {count.refill_left_steps:,} steps refill it first"
            )
    else:
        obs = envs.reset()
        if config.init_from is not None:
            progress.say(take_initial_weights(learner.online, config.init_from, card_of(config)))
            learner.sync_target()
    progress.begin_at(count.step)
    log = MetricsLog(
        run.directory,
        resume_step=count.step,
        evaluated_at_step=count.evaluated_at_step,
        track=config.track,
    )

    # -- The loop ------------------------------------------------------------------------------
    with progress, log, contextlib.closing(envs):
        shown = {"return": math.nan, "loss": math.nan}
        while count.step < config.total_steps and not stop:
            if crossings(count.evaluated_at_step, count.step, config.evaluation_period_steps):
                scores = evaluator.play(config.evaluation_episodes)
                if scores is None:  # stopped; the resumed run begins with this evaluation
                    break
                count.evaluated_at_step = count.step
                log.write_evaluation(count.step, scores.figures())
                progress.say(f"step {count.step:,}: evaluation {scores}")

            before, after = count.step, count.step + config.num_envs
            epsilon = linear(
                before, start=1.0, end=config.epsilon_end, duration_steps=config.epsilon_decay_steps
            )
            action = epsilon_greedy(policy(obs), epsilon, envs.num_actions, explore_rng)
            envs.send(action)

            # While the emulators run, the learner learns from what is in the replay already.
            due = crossings(before, after, config.update_period_steps)
            if due and before >= config.first_update_steps and not count.refill_left_steps:
                metrics = learner.update(replay.sample(due * config.batch_size), num_updates=due)
                means.add(metrics)
                grad_norms.append(metrics["grad_norm"])
                count.updates += due

            result = envs.recv()
            replay.add(
                obs[:, -1],  # the newest frame of each stack: the replay makes stacks again
                action,
                np.sign(result.reward),
                result.terminated,
                result.ended,
                result.final_obs[:, -1],
            )
            obs = result.obs
            episodes.add(result.reward, result.ended)
            # Steps of a refill make up for others that the run has counted already.
            if count.refill_left_steps:
                count.refill_left_steps = max(0, count.refill_left_steps - config.num_envs)
                count.refill_steps += config.num_envs
                continue

            count.step = after
            if crossings(before, after, config.target_period_steps):
                learner.sync_target()

            if crossings(before, after, config.log_period_steps) or after >= config.total_steps:
                state.require_finite(means.peek().values())
                mean = means.pop()
                row = {
                    "charts/episodic_return": episodes.recent_mean(),
                    "charts/episodes": episodes.num_episodes,
                    "charts/updates": count.updates,
                    "charts/epsilon": epsilon,
                    "charts/steps_per_second": progress.steps_per_second,
                    "charts/wall_seconds": state.seconds,
                    "losses/td": mean.get("loss", math.nan),
                }
                for name in learner.metric_names[1:]:
                    row[f"diagnostics/{name}"] = mean.get(name, math.nan)
                log.write(after, row)
                shown = {"return": row["charts/episodic_return"], "loss": row["losses/td"]}
                if grad_norms:
                    log.histogram(after, "histograms/grad_norm", torch.cat(tuple(grad_norms)))
                    seen = replay.sample(128, rng=np.random.default_rng(after)).obs
                    log.histogram(after, "histograms/q", learner.action_values(seen))
            if crossings(before, after, PROGRESS_PERIOD_STEPS) or after >= config.total_steps:
                progress.update(after, shown | {"epsilon": epsilon})
            if crossings(before, after, config.checkpoint_period_steps):
                state.require_finite(means.peek().values())
                state.save()

        state.require_finite(means.peek().values())
        state.save(last=True)
        log.flush()
        if stop:
            progress.say(f"stopped at step {count.step:,}; the same command continues")
            raise SystemExit(stop.exit_code)

        # -- The end: a last evaluation, a video, the summary ----------------------------------
        progress.say(f"trained; now it plays {config.final_evaluation_episodes} games")
        scores = evaluator.play(config.final_evaluation_episodes)
        video = run.directory / "video.gif"
        if scores is None or not evaluator.record_gif(video):
            raise SystemExit(stop.exit_code)
        log.write_evaluation(count.step, scores.figures())
        log.gif(count.step, "eval/game", video)
        summary = {
            "agent": AGENT,
            "env_id": config.env_id,
            "protocol": config.protocol,
            "seed": config.seed,
            "total_steps": config.total_steps,
            "num_updates": count.updates,
            "eval": scores.record(),
            "steps_per_second": count.step / state.seconds,
            "wall_seconds": state.seconds,
            "refill_steps": count.refill_steps,
            "replay_compression": state.replay_compression,
            "num_parameters": sum(p.numel() for p in learner.parameters),
            "device": str(device),
            "machine": describe(device),
            "versions": software,
        }
        run.finish(summary)
        return summary


if __name__ == "__main__":
    exit_with(main, command_line)
