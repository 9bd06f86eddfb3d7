"""VA-learning and its kin on MinAtar games, several seeds in one process.

    Q(x,a) = V(x) + F(x,a) - sum_b c(b|x) F(x,b)

MinAtar (Young & Tian 2019, arXiv 1903.03176) keeps the mechanics of five Atari games on a 10x10
board. --member picks who learns: dqn, dueling (c uniform), dueling-behaviour and va (c the policy
that acted), va-fitted (the sum fitted as a whole), va-raw (c zero), rdq (c zero, both streams kept
small). Network and settings are those of the comparison in arXiv 2507.09523, but for what
docs/va_learning.md names; the equations are there, too.

VA-learning, V and A each learned from the bootstrapped target, is of Tang et al. 2023 (arXiv
2305.18161); we found no public code, and its loss, the head for mu and all settings are our
reconstruction (docs/va_learning.md).

--num-seeds networks are trained side by side as one (networks/linear.py): each has its own games,
replay and random numbers, and learns what it would learn alone, up to rounding. Each seed gets a
run directory of its own; what they share, the checkpoints, lies in one beside them.

The same command again continues the run.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from classicrl.command_line import (
    exit_with,
    may_change,
    not_recorded,
    parse,
    require_positive,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one agent decision in one environment. All counts are of one seed."""

    member: Literal["dqn", "dueling", "dueling-behaviour", "va", "va-raw", "va-fitted", "rdq"] = (
        "va"
    )
    """Of the family."""
    env_id: str = "MinAtar/Breakout-v1"
    """MinAtar/ and Asterix-v1, Breakout-v1, Freeway-v1, Seaquest-v1 or SpaceInvaders-v1."""
    total_steps: int = may_change(1_000_000)
    """Steps to train each seed for."""
    seed: int = 0
    """The first seed."""
    num_seeds: int = 5
    """Seeds trained side by side: seed, seed + 1, ..."""
    num_envs: int = 1
    """Games played side by side, for each seed. With four, runs of three members ended lower
    (docs/va_results.md)."""
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
    """Holds a directory per seed. Default: runs/va_minatar-<member>/<environment>-minatar."""
    overwrite: bool = not_recorded(False)
    """Delete what an earlier run of these seeds left there."""
    init_from: Path | None = None
    """Begin every seed with the weights of this model file, run or model directory, or, where that
    holds a seed<n> for each, each with its own; all else begins anew. A run that has a checkpoint
    continues from that."""

    behaviour_hidden: int = 64
    """Units of the layer of mu, or of va-fitted's centre; a stream has 128."""
    double: bool = False
    """Choose bootstrap actions with the online network."""
    n_steps: int = 1
    """Steps summed into a return."""
    gamma: float = 0.99
    """Discount per step."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    adam_eps: float = 3.125e-4
    """Of Adam."""
    batch_size: int = 32
    """Transitions per update."""
    replay_capacity: int = 100_000
    """Boards kept, for each seed."""
    update_period_steps: int = 4
    """One update every so many steps."""
    target_period_steps: int = 1_000
    """The target network is copied every so many steps."""
    first_update_steps: int = 1_000
    """Steps before the first update."""
    epsilon_end: float = 0.01
    """Share of random actions, from 1 down to this."""
    epsilon_decay_steps: int = 250_000
    """Steps over which it falls."""

    log_period_steps: int = may_change(5_000)
    """Steps between rows of metrics.csv."""
    evaluation_period_steps: int = may_change(100_000)
    """Steps between evaluations."""
    evaluation_episodes: int = may_change(20)
    """Games in each."""
    final_evaluation_episodes: int = may_change(100)
    """Games in the last one."""
    checkpoint_period_steps: int = may_change(100_000)
    """Steps between checkpoints."""
    checkpoint_replay: Literal["full", "none"] = may_change("full")
    """none: leave the replay out; a resume then refills it before it updates."""


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse({"default": Config()}, "default", __doc__ or "")

import contextlib
import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.algorithms.dqn import FAMILY, DQNLearner
from classicrl.console import TrainingProgress
from classicrl.envs.gym_vector import MINATAR_GAMES, GymVector, gym_protocol
from classicrl.errors import UserError
from classicrl.evaluation import Evaluation, GymEvaluator, members_epsilon_greedy, pooled
from classicrl.experiment import StopRequest, versions
from classicrl.initial_weights import require_initial_weights, take_initial_weights
from classicrl.loggers import EpisodeStatistics, MeanMetrics, MemberEpisodes, MetricsLog
from classicrl.machine import choose_device, compile_networks, describe, require_memory, set_threads
from classicrl.networks import QNetwork, member_state, minatar_q_network
from classicrl.replay import MemberReplays, ReplayBuffer, replay_nbytes
from classicrl.schedules import crossings, linear
from classicrl.seed_group import SeedGroup
from classicrl.tracking import require_tracker
from classicrl.training_state import Counters, TrainingState

AGENT = "va_minatar"
TORSO = "minatar"
PROGRESS_PERIOD_STEPS = 500


def main(config: Config) -> dict[str, Any]:
    """Trains, or continues, or reports a finished run; returns the summary of all seeds."""
    require_positive(
        config,
        may_be_zero={"seed", "threads", "epsilon_end"},
        at_most_one={"gamma", "epsilon_end"},
    )
    protocol = gym_protocol(config.env_id).name
    if protocol != "minatar":
        raise UserError(
            f"{config.env_id!r} is no MinAtar game: choose MinAtar/<game>-v1, the game one of "
            + ", ".join(MINATAR_GAMES)
        )
    if config.behaviour_hidden != Config.behaviour_hidden and not is_centred(config):
        raise UserError(
            f"--behaviour-hidden {config.behaviour_hidden}: {config.member} has no mu and no "
            "fitted centre; leave it out"
        )
    game = f"{config.env_id.replace('/', '-')}-{protocol}"
    parent = config.run_dir or Path(f"runs/{AGENT}-{config.member}/{game}")
    seeds = range(config.seed, config.seed + config.num_seeds)
    require_tracker(config.track)
    require_initial_weights(
        config.init_from,
        parent / f"seeds{seeds[0]}-{seeds[-1]}",
        card_of(config),
        overwrite=config.overwrite,
        seeds=seeds,
        network=lambda: network_of(config),
    )
    with SeedGroup(parent, seeds, overwrite=config.overwrite) as group, StopRequest() as stop:
        config = group.configure(config)
        summary = group.summary
        if summary is None or summary["total_steps"] < config.total_steps:
            summary = train(config, group, stop)
        print(group.closing_lines(summary))
        return summary


def card_of(config: Config) -> dict[str, str]:
    """What a model file of the run says of itself."""
    return {
        "agent": f"{AGENT}-{config.member}",
        "env_id": config.env_id,
        "protocol": gym_protocol(config.env_id).name,
        "torso": TORSO,
        "head": FAMILY[config.member].head,
    }


def is_centred(config: Config) -> bool:
    """Whether the member has a layer that ``behaviour_hidden`` is the width of."""
    return FAMILY[config.member].head in ("behaviour", "fitted")


def network_of(config: Config, seeds: int | Sequence[int] = 0) -> QNetwork:
    """The network of the member; of several seeds, one of so many members side by side."""
    env = GymVector(config.env_id, 1, seeds=0)
    return minatar_q_network(
        FAMILY[config.member].head,
        env.obs_shape[-1],
        env.num_actions,
        behaviour_hidden=config.behaviour_hidden,
        seeds=seeds,
    )


def train(config: Config, group: SeedGroup, stop: StopRequest) -> dict[str, Any]:
    """The whole of the training, from nothing or from the last checkpoint; returns the summary."""
    device = choose_device(config.device)
    set_threads(config.threads)
    protocol = gym_protocol(config.env_id)
    software = versions()
    seeds, K, N = group.seeds, config.num_seeds, config.num_envs
    if config.first_update_steps <= config.n_steps * N:
        raise UserError(
            f"--first-update-steps must be above --n-steps times --num-envs, {config.n_steps * N}: "
            "before that no transition is whole"
        )

    # -- The parts; those of a seed depend on that seed alone -----------------------------------
    envs = GymVector(
        config.env_id,
        K * N,
        seeds=[seed * 1_000 + n for seed in seeds for n in range(N)],
        max_episode_steps=protocol.max_episode_steps,
    )
    require_memory(
        K * replay_nbytes(config.replay_capacity, envs.obs_shape),
        device,
        what=f"a replay of {K} x {config.replay_capacity:,} boards",
        flag="--replay-capacity",
    )
    recipe = FAMILY[config.member]
    learner = DQNLearner(
        network_of(config, seeds).to(device),
        learning_rate=config.learning_rate,
        adam_eps=config.adam_eps,
        double=config.double,
        loss=recipe.loss,
        stream_penalty=recipe.stream_penalty,
        max_grad_norm=None,
    )
    if config.compile:
        compile_networks(learner.online, learner.target)
    replays = MemberReplays(
        [
            ReplayBuffer(
                config.replay_capacity,
                envs.obs_shape,
                N,
                n_steps=config.n_steps,
                gamma=config.gamma,
                device=device,
                seed=seed,
            )
            for seed in seeds
        ]
    )
    explore_rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
    episodes = MemberEpisodes([EpisodeStatistics(N) for _ in seeds])
    means = MeanMetrics()
    grad_norms: deque[torch.Tensor] = deque(maxlen=500)  # for the histograms only

    def policy(obs: NDArray[Any]) -> NDArray[np.int64]:
        """``[K * N, *obs_shape] -> [K * N]``."""
        boards = torch.from_numpy(obs).to(device)
        return learner.act(boards.unflatten(0, (K, -1))).flatten().cpu().numpy()

    def evaluator_of(k: int) -> GymEvaluator:
        """Plays with the present network of one seed."""
        alone = network_of(config).to(device)
        alone.load_state_dict(member_state(learner.online, k))

        @torch.no_grad()
        def policy_alone(obs: NDArray[Any]) -> NDArray[np.int64]:
            return alone(torch.from_numpy(obs).to(device)).q.argmax(dim=1).cpu().numpy()

        return GymEvaluator(
            policy_alone, config.env_id, protocol, seed=seeds[k], should_stop=lambda: bool(stop)
        )

    def evaluate(num_episodes: int) -> list[Evaluation] | None:
        """Of every seed; None if it was stopped."""
        scores: list[Evaluation] = []
        for k in range(K):
            played = evaluator_of(k).play(num_episodes)
            if played is None:
                return None
            scores.append(played)
        return scores

    # -- Where it stands: at nothing, or at the last checkpoint --------------------------------
    progress = TrainingProgress(K * config.total_steps)
    count = Counters()
    state = TrainingState(
        group.shared.directory,
        count,
        parts={
            "learner": learner,
            "envs": envs,
            "means": means,
            **{f"episodes{k}": part for k, part in enumerate(episodes.members)},
            **{f"explore_rng{k}": rng for k, rng in enumerate(explore_rngs)},
        },
        replay=replays,
        save_replay=config.checkpoint_replay == "full",
        model=learner.online,
        member_directories=group.directories,
        card=card_of(config),
        info={"versions": software},
        say=progress.say,
    )
    if state.resume():
        obs = envs.observation()
        if not envs.resumed_exactly:  # new episodes have begun, and nothing spans the break
            replays.break_streams()
            for of_seed in episodes.members:
                of_seed.begin_new_episodes()
        if len(replays) == 0:
            count.refill_left_steps = min(config.first_update_steps, count.step)
            progress.say(
                f"the checkpoint has no replay: {count.refill_left_steps:,} steps refill it first"
            )
    else:
        obs = envs.reset()
        if config.init_from is not None:
            progress.say(
                take_initial_weights(learner.online, config.init_from, card_of(config), seeds=seeds)
            )
            learner.sync_target()
    progress.begin_at(K * count.step)
    logs = [
        MetricsLog(
            directory,
            resume_step=count.step,
            evaluated_at_step=count.evaluated_at_step,
            track=config.track,
        )
        for directory in group.directories
    ]

    def check_finite() -> None:
        for k, seed in enumerate(seeds):
            state.require_finite(means.peek(k).values(), f"the loss of seed {seed}")

    # -- The loop ------------------------------------------------------------------------------
    with progress, contextlib.ExitStack() as closing:
        for log in logs:
            closing.enter_context(log)
        closing.callback(envs.close)
        shown = {"return": math.nan, "loss": math.nan}
        while count.step < config.total_steps and not stop:
            if crossings(count.evaluated_at_step, count.step, config.evaluation_period_steps):
                scores = evaluate(config.evaluation_episodes)
                if scores is None:  # stopped; the resumed run begins with this evaluation
                    break
                count.evaluated_at_step = count.step
                for log, of_seed in zip(logs, scores, strict=True):
                    log.write_evaluation(count.step, of_seed.figures())
                progress.say(
                    f"step {count.step:,}: evaluation {pooled(scores)}, by seed "
                    + " ".join(f"{s.mean_return:.1f}" for s in scores)
                )

            before, after = count.step, count.step + N
            epsilon = linear(
                before, start=1.0, end=config.epsilon_end, duration_steps=config.epsilon_decay_steps
            )
            greedy = policy(obs).reshape(K, N)
            action = members_epsilon_greedy(greedy, epsilon, envs.num_actions, explore_rngs)
            envs.send(action)
            result = envs.recv()
            replays.add(
                obs, action, result.reward, result.terminated, result.ended, result.final_obs
            )
            obs = result.obs
            episodes.add(result.reward, result.ended)
            # Steps of a refill make up for others that the run has counted already.
            if count.refill_left_steps:
                count.refill_left_steps = max(0, count.refill_left_steps - N)
                count.refill_steps += N
                continue

            count.step = after
            due = crossings(before, after, config.update_period_steps)
            if due and after >= config.first_update_steps:
                metrics = learner.update(replays.sample(due * config.batch_size), num_updates=due)
                means.add(metrics)
                grad_norms.append(metrics["grad_norm"])
                count.updates += due
            if crossings(before, after, config.target_period_steps):
                learner.sync_target()

            if crossings(before, after, config.log_period_steps) or after >= config.total_steps:
                check_finite()
                if grad_norms:
                    seen = replays.sample(128, rng=np.random.default_rng(after)).obs
                    q = learner.action_values(seen)  # [K, 128, A]
                for k, log in enumerate(logs):
                    mean = means.peek(k)
                    row = {
                        "charts/episodic_return": episodes.members[k].recent_mean(),
                        "charts/episodes": episodes.members[k].num_episodes,
                        "charts/updates": count.updates,
                        "charts/epsilon": epsilon,
                        "charts/steps_per_second": progress.steps_per_second / K,
                        "charts/wall_seconds": state.seconds,
                        "losses/td": mean.get("loss", math.nan),
                    }
                    for name in learner.metric_names[1:]:
                        row[f"diagnostics/{name}"] = mean.get(name, math.nan)
                    log.write(after, row)
                    if grad_norms:
                        norms = torch.cat([norm[:, k] for norm in grad_norms])
                        log.histogram(after, "histograms/grad_norm", norms)
                        log.histogram(after, "histograms/q", q[k])
                means.reset()
                returns = [part.recent_mean() for part in episodes.members]
                shown = {"return": float(np.mean(returns)), "loss": row["losses/td"]}
            if crossings(before, after, PROGRESS_PERIOD_STEPS) or after >= config.total_steps:
                progress.update(K * after, shown | {"epsilon": epsilon})
            if crossings(before, after, config.checkpoint_period_steps):
                check_finite()
                state.save()

        check_finite()
        state.save(last=True)
        for log in logs:
            log.flush()
        if stop:
            progress.say(f"stopped at step {count.step:,}; the same command continues")
            raise SystemExit(stop.exit_code)

        # -- The end: a last evaluation, videos, a summary for each seed and for all ------------
        progress.say(f"trained; now each seed plays {config.final_evaluation_episodes} games")
        scores = evaluate(config.final_evaluation_episodes)
        if scores is None:
            raise SystemExit(stop.exit_code)
        summary = {
            "agent": f"{AGENT}-{config.member}",
            "env_id": config.env_id,
            "protocol": protocol.name,
            "num_seeds": K,
            "total_steps": config.total_steps,
            "num_updates": count.updates,
            "steps_per_second": count.step / state.seconds,
            "wall_seconds": state.seconds,
            "refill_steps": count.refill_steps,
            "replay_compression": state.replay_compression,
            "num_parameters": sum(p.numel() for p in learner.parameters) // K,
            "device": str(device),
            "machine": describe(device),
            "versions": software,
        }
        for k, log in enumerate(logs):
            video = group.directories[k] / "video.gif"
            if not evaluator_of(k).record_gif(video):
                raise SystemExit(stop.exit_code)
            log.write_evaluation(count.step, scores[k].figures())
            log.gif(count.step, "eval/game", video)
        return group.finish(summary, scores)


if __name__ == "__main__":
    exit_with(main, command_line)
