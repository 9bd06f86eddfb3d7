"""PPO with random network distillation on hard-exploration Atari games.

    i_t = mean_k (f_k(x_{t+1}) - g_k(x_{t+1}))^2,    A = 2 A_E + 1 A_I

Burda et al. 2018, "Exploration by Random Network Distillation" (arXiv 1810.12894): f is a fixed
random network, g learns to predict it, and where it cannot the agent has not been. The presets fix
everything; any flag given wins over its preset:

    paper   the authors' settings: 128 environments, 491.5M steps
    cpu     the same algorithm with 32 environments and 1M steps

``--bonus none`` is plain PPO. ``torchrun --nproc-per-node N agents/ppo_rnd_atari.py`` trains on N
processes, which share ``--num-envs``. The same command again continues the run. docs/rnd.md
explains every figure logged.
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

    preset: Literal["paper", "cpu"] = "paper"
    """Where the defaults come from."""
    env_id: str = "ALE/MontezumaRevenge-v5"
    """Any game of ale-py."""
    protocol: Literal["exploration", "sticky"] = "exploration"
    """exploration: sticky actions, games are cut after 18,000 frames. sticky: after 108,000."""
    total_steps: int = may_change(491_520_000)
    """Steps to train for, of all environments together."""
    seed: int = 0
    """Of everything random."""
    num_envs: int = 128
    """Games played side by side, over all processes; 1 makes resuming exact to the bit."""
    env_groups: int = 1
    """2: one half of the games is emulated while actions are found for the other half."""
    device: Literal["auto", "cpu", "cuda"] = may_change("auto")
    """auto: the GPU if there is one."""
    threads: int = may_change(0)
    """CPU threads of each process; 0: all that there are, shared by the processes."""
    compile: bool = may_change(False)
    """Compile the networks with torch.compile: equal up to rounding, and not always faster
    (docs/performance.md)."""
    track: Literal["none", "wandb"] = may_change("none")
    """wandb: send the figures to Weights & Biases, too."""
    run_dir: Path | None = not_recorded(None)
    """Default: runs/ppo_rnd_atari/<environment>-<bonus>/seed<seed>."""
    overwrite: bool = not_recorded(False)
    """Delete what an earlier run left in the run directory."""
    init_from: Path | None = None
    """Begin with the policy and values of this run directory, model directory or model file; all
    else, the bonus too, begins anew. A run that has a checkpoint continues from that."""

    policy: Literal["cnn", "gru"] = "cnn"
    """gru: with memory, as in the paper's headline results."""
    bonus: Literal["rnd", "none"] = "rnd"
    """none: plain PPO, for comparison."""
    rollout_steps: int = 128
    """Steps of each environment between updates."""
    gamma_ext: float = 0.999
    """Discount of the game's rewards per step."""
    gamma_int: float = 0.99
    """Discount of the intrinsic rewards per step."""
    gae_lambda: float = 0.95
    """Of both advantage estimates."""
    ext_coef: float = 2.0
    """Weight of the game's advantages."""
    int_coef: float = 1.0
    """Weight of the intrinsic advantages."""
    learning_rate: float = 1e-4
    """Of Adam, for policy and predictor."""
    anneal_learning_rate: bool = False
    """Let it fall to zero."""
    anneal_steps: int | None = None
    """Steps over which it falls. Default: the run."""
    adam_eps: float = 1e-8
    """Of Adam."""
    clip: float = 0.1
    """Bound on the change of the probability ratio."""
    entropy_coef: float = 0.001
    """Weight of the policy's entropy."""
    num_epochs: int = 4
    """Passes over a rollout."""
    num_minibatches: int = 4
    """Updates in each pass."""
    shuffle: bool = False
    """Minibatches of single steps in random order instead of whole environments (cnn only)."""
    normalise_advantage: bool = False
    """Scale advantages in each minibatch."""
    max_grad_norm: float | None = None
    """Bound on the norm of the policy's gradient. Default: none."""
    predictor_keep_prob: float | None = None
    """Share of frames that the predictor learns from. Default: 32 / num_envs, at most 1."""
    bootstrap_truncation: bool = False
    """Count the value of what would have followed a game that was cut; else it is an end."""
    warmup_rollouts: int = 50
    """Rollouts of random actions that set the frames' statistics first. Not counted as steps."""
    taylor_k: int | None = None
    """Weight the game's advantages over an episode by a Taylor expansion of the discount of this
    order (arXiv 2106.06170). Default: off."""
    taylor_gamma: float = 0.9999
    """The discount that it expands towards."""

    log_period_steps: int = may_change(65_536)
    """Steps between rows of metrics.csv."""
    evaluation_period_steps: int = may_change(10_000_000)
    """Steps between evaluations."""
    evaluation_episodes: int = may_change(8)
    """Games in each; rooms are counted in them."""
    final_evaluation_episodes: int = may_change(16)
    """Games in the last one."""
    checkpoint_period_steps: int = may_change(1_000_000)
    """Steps between checkpoints."""


PRESETS = {
    "paper": Config(),
    "cpu": Config(
        preset="cpu",
        total_steps=1_000_000,
        num_envs=32,
        log_period_steps=4_096,
        evaluation_period_steps=100_000,
        checkpoint_period_steps=50_000,
    ),
}


def resolve(config: Config) -> Config:
    """Fills in what depends on other fields."""
    keep = config.predictor_keep_prob
    return dataclasses.replace(
        config,
        predictor_keep_prob=min(1.0, 32 / config.num_envs) if keep is None else keep,
        anneal_steps=config.anneal_steps or config.total_steps,
    )


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse(PRESETS, "paper" if expects_gpu() else "cpu", __doc__ or "")

import contextlib
import math

import numpy as np
import torch

from classicrl.algorithms.ppo import PPOLearner, SampledPolicy
from classicrl.algorithms.rnd import RND
from classicrl.console import TrainingProgress
from classicrl.cpus import available_cpus
from classicrl.distributed import Ranks, join_ranks, local_size
from classicrl.envs.atari import PROTOCOLS, AtariSingle, make_atari
from classicrl.errors import RunFailure, UserError
from classicrl.experiment import Run, StopRequest, shared_run, versions
from classicrl.exploration_evaluation import ExplorationEvaluator
from classicrl.initial_weights import require_initial_weights, take_initial_weights
from classicrl.loggers import EpisodeStatistics, MeanMetrics, MetricsLog
from classicrl.machine import choose_device, compile_networks, describe, require_memory, set_threads
from classicrl.networks import atari_actor_critic, atari_rnd_networks
from classicrl.replay import Rollout, rollout_nbytes
from classicrl.schedules import crossings, linear
from classicrl.taylor import taylor_weights
from classicrl.tracking import require_tracker
from classicrl.training_state import Counters, TrainingState

AGENT = "ppo_rnd_atari"
LOSSES = ("policy", "value_ext", "value_int", "predictor")
RECENT_EPISODES = 100
MAX_ENVS = 4_096


def main(config: Config) -> dict[str, Any]:
    """Trains, or continues, or reports a finished run; returns its summary."""
    require_positive(
        config,
        may_be_zero={
            *("seed", "threads", "int_coef", "ext_coef", "entropy_coef", "warmup_rollouts"),
            *("gamma_int", "gae_lambda", "taylor_k"),
        },
        at_most_one={"gamma_ext", "gamma_int", "gae_lambda", "predictor_keep_prob"},
    )
    game = config.env_id.replace("/", "-")
    directory = config.run_dir or Path(f"runs/{AGENT}/{game}-{config.bonus}/seed{config.seed}")
    require_tracker(config.track)
    require_initial_weights(
        config.init_from, directory, card_of(config), overwrite=config.overwrite
    )
    device = choose_device(config.device)
    with (
        join_ranks(device.type) as ranks,
        # Every process keeps what is its own; what is written once is the first one's.
        shared_run(directory, ranks, overwrite=config.overwrite) as run,
        StopRequest() as stop,
    ):
        config = run.configure(config, resolve)
        check(config, ranks)
        summary = run.summary
        # Together, or not at all: one that has finished would leave the others waiting.
        if ranks.any(summary is None or summary["total_steps"] < config.total_steps):
            summary = train(config, run, stop, ranks)
        assert summary is not None
        if ranks.is_first:
            print(run.closing_lines(summary))
        return summary


def check(config: Config, ranks: Ranks) -> None:
    """Refuses what cannot be divided as asked, and more emulators than a process can hold."""
    if config.num_envs // ranks.size > MAX_ENVS:
        raise UserError(
            f"--num-envs {config.num_envs} is more than the {MAX_ENVS} of a process: lower it"
        )
    if config.num_envs % (ranks.size * config.env_groups):
        raise UserError(
            f"--num-envs {config.num_envs} cannot be shared equally by {ranks.size} processes with "
            f"--env-groups {config.env_groups}: choose a multiple of "
            f"{ranks.size * config.env_groups}"
        )
    if config.shuffle and config.policy == "gru":
        raise UserError("--policy gru needs its steps in order: leave --shuffle off")
    envs_or_steps = config.num_envs // ranks.size * (config.rollout_steps if config.shuffle else 1)
    if envs_or_steps % num_minibatches(config, ranks):
        raise UserError(
            f"--num-minibatches {config.num_minibatches} does not divide "
            f"{envs_or_steps} {'steps' if config.shuffle else 'environments'}: choose a divisor"
        )
    if config.taylor_k is not None and not config.gamma_ext < config.taylor_gamma < 1:
        raise UserError(
            f"--taylor-gamma must lie between --gamma-ext, {config.gamma_ext}, and 1, got "
            f"{config.taylor_gamma}"
        )


def num_minibatches(config: Config, ranks: Ranks) -> int:
    """Of each process. One with few environments has one for each, unless steps are shuffled."""
    if config.shuffle:
        return config.num_minibatches
    return min(config.num_minibatches, config.num_envs // ranks.size)


def card_of(config: Config) -> dict[str, str]:
    """What a model file of the run says of itself."""
    return {
        "agent": f"{AGENT}-{config.bonus}",
        "env_id": config.env_id,
        "protocol": config.protocol,
        "torso": config.policy,
        "head": "actor-critic",
    }


def train(config: Config, run: Run, stop: StopRequest, ranks: Ranks) -> dict[str, Any]:
    """The whole of the training, from nothing or from the last checkpoint; returns the summary."""
    device = ranks.device if ranks.size > 1 else choose_device(config.device)
    threads = set_threads(config.threads or max(1, available_cpus() // local_size()))
    protocol = PROTOCOLS[config.protocol]
    software = versions()
    T, N = config.rollout_steps, config.num_envs // ranks.size
    steps_per_rollout = T * config.num_envs

    # -- The parts -----------------------------------------------------------------------------
    groups = np.arange(N).reshape(config.env_groups, -1)  # the environments of each
    own = [slice(int(group[0]), int(group[-1]) + 1) for group in groups]
    envs = [
        make_atari(
            config.env_id,
            len(group),
            protocol=protocol,
            seed=config.seed + 1_000_003 * (ranks.rank * config.env_groups + g),
            num_threads=threads,
        )
        for g, group in enumerate(groups)
    ]
    obs_shape, num_actions = envs[0].obs_shape, envs[0].num_actions
    require_memory(
        rollout_nbytes(T, N, obs_shape),
        device,
        what=f"a rollout of {T} steps of {N} environments",
        flag="--rollout-steps or --num-envs",
    )
    network = atari_actor_critic(config.policy, num_actions, seed=config.seed).to(device)
    network.to(memory_format=torch.channels_last)
    rnd = None
    if config.bonus == "rnd":
        assert config.predictor_keep_prob is not None
        target, predictor = (
            part.to(device, memory_format=torch.channels_last)
            for part in atari_rnd_networks(seed=config.seed)
        )
        rnd = RND(
            target,
            predictor,
            (1, *obs_shape[1:]),
            N,
            gamma=config.gamma_int,
            keep_prob=config.predictor_keep_prob,
            ranks=ranks,
            device=device,
        )
    learner = PPOLearner(
        network,
        rnd,
        learning_rate=config.learning_rate,
        adam_eps=config.adam_eps,
        gamma_int=config.gamma_int,
        gae_lambda=config.gae_lambda,
        ext_coef=config.ext_coef,
        int_coef=config.int_coef,
        clip=config.clip,
        entropy_coef=config.entropy_coef,
        num_epochs=config.num_epochs,
        num_minibatches=num_minibatches(config, ranks),
        shuffle=config.shuffle,
        normalise_advantage=config.normalise_advantage,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        ranks=ranks,
    )
    if config.compile:
        compile_networks(network, *([] if rnd is None else [rnd.target, rnd.predictor]))
    rollout = Rollout(T, N, obs_shape, state_size=network.state_size, device=device)
    weights = None
    if config.taylor_k is not None:
        longest = protocol.max_frames_per_episode // 4 + 1
        by_age = taylor_weights(longest, config.taylor_k, config.gamma_ext, config.taylor_gamma)
        weights = torch.from_numpy(by_age).to(device, torch.float32)
    warmup_rng = np.random.default_rng([config.seed, ranks.rank, 1])
    episodes = EpisodeStatistics(N, window_episodes=RECENT_EPISODES)
    means = MeanMetrics()
    evaluator = ExplorationEvaluator(
        SampledPolicy(network),
        rnd,
        config.env_id,
        protocol,
        seed=config.seed,
        should_stop=lambda: bool(stop),
    )

    # -- Where it stands: at nothing, or at the last checkpoint --------------------------------
    progress = TrainingProgress(config.total_steps)
    say = progress.say if ranks.is_first else lambda line: None
    count = Counters()
    state = TrainingState(
        run.directory,
        count,
        parts={
            "learner": learner,
            "rollout": rollout,
            "episodes": episodes,
            "means": means,
            "rooms": evaluator.rooms,
            **{f"envs{g}": part for g, part in enumerate(envs)},
        },
        model=network,
        card=card_of(config),
        info={"versions": software},
        say=say,
        ranks=ranks,
    )

    def observations() -> torch.Tensor:
        return torch.from_numpy(np.concatenate([part.observation() for part in envs])).to(device)

    def warm_up() -> bool:
        """Random actions until the frames' statistics are of use; False if it was stopped."""
        assert rnd is not None
        for done in range(config.warmup_rollouts):
            if ranks.any(bool(stop)):
                return False
            for t in range(T):
                for part in envs:
                    part.send(warmup_rng.integers(num_actions, size=part.num_envs))
                for part, cut in zip(envs, own, strict=True):
                    rollout.obs[t, cut] = torch.from_numpy(part.recv().obs).to(device)
            rnd.observe(rollout.obs[:T])
            if (done + 1) % 10 == 0:
                say(f"frame statistics: {done + 1} of {config.warmup_rollouts} random rollouts")
        return True

    if state.resume():
        if N == 1:
            rollout.obs[0] = observations()
        else:
            # The C++ emulators cannot be saved: new games begin. The filter of intrinsic rewards
            # goes on, as it does from one game to the next.
            for part in envs:
                if isinstance(part, AtariSingle):  # groups of one
                    part.reset()
            rollout.begin_new_episodes(observations())
            episodes.begin_new_episodes()
    else:
        if config.init_from is not None:
            say(take_initial_weights(network, config.init_from, card_of(config)))
        for part in envs:
            part.reset()
        if rnd is not None:
            if not warm_up():
                raise SystemExit(stop.exit_code or 75)
            for part in envs:
                part.reset()
        rollout.begin_new_episodes(observations())
        state.save()  # the statistics are not to be gathered again
    progress.begin_at(count.step)
    if config.anneal_learning_rate and config.total_steps > (config.anneal_steps or 0):
        say(f"warning: from step {config.anneal_steps:,} on the learning rate is 0")
    log = None
    if ranks.is_first:
        log = MetricsLog(
            run.directory,
            resume_step=count.step,
            evaluated_at_step=count.evaluated_at_step,
            track=config.track,
        )

    def check_finite() -> None:
        figures = means.peek()
        state.require_finite(figures.get(name, 0.0) for name in LOSSES)

    score = np.zeros((T, N), dtype=np.float32)  # the game's own rewards
    ended = np.zeros((T, N), dtype=np.bool_)
    reward = np.zeros((T, N), dtype=np.float32)
    discount = np.zeros((T, N), dtype=np.float32)
    age = np.zeros((T, N), dtype=np.int64)  # steps since the episode began

    def receive(t: int, g: int) -> None:
        """What step t of a group of environments brought."""
        result, cut = envs[g].recv(), own[g]
        rollout.obs[t + 1, cut] = torch.from_numpy(result.obs).to(device)
        rollout.starts[t + 1, cut] = torch.from_numpy(result.ended).to(device)
        score[t, cut], ended[t, cut] = result.reward, result.ended
        reward[t, cut] = np.sign(result.reward)
        discount[t, cut] = config.gamma_ext * ~result.ended
        truncated = result.ended & ~result.terminated
        if config.bootstrap_truncation and truncated.any():
            # obs[t + 1] is another episode's: the value of what was cut off goes into the reward.
            last = torch.from_numpy(result.final_obs[truncated[result.ended]]).to(device)
            rows = cut.start + np.flatnonzero(truncated)
            goes_on = torch.zeros(len(rows), dtype=torch.bool, device=device)
            value, _ = learner.values(last, policy_state[rows], goes_on)
            reward[t, rows] += config.gamma_ext * value.cpu().numpy()

    # -- The loop ------------------------------------------------------------------------------
    with contextlib.ExitStack() as closing:
        if log is not None:  # of the first of the processes, which alone shows how far it is
            closing.enter_context(progress)
            closing.enter_context(log)
        for part in envs:
            closing.callback(part.close)
        shown = {"return": math.nan, "best": math.nan, "bonus": math.nan}
        while count.step < config.total_steps:
            if ranks.any(bool(stop)):
                break
            if crossings(count.evaluated_at_step, count.step, config.evaluation_period_steps):
                if log is not None:
                    scores = evaluator.play(config.evaluation_episodes, count.step)
                    if scores is not None:  # not stopped
                        log.write_evaluation(count.step, scores.figures() | evaluator.figures())
                        say(f"step {count.step:,}: evaluation {scores}, {evaluator}")
                if ranks.any(bool(stop)):  # the resumed run begins with this evaluation
                    break
                count.evaluated_at_step = count.step

            # -- T steps of every environment ------------------------------------------------
            policy_state = rollout.initial_state.clone()
            for t in range(T):
                for g, cut in enumerate(own):
                    if t > 0:
                        receive(t - 1, g)
                    acted = learner.act(
                        rollout.obs[t, cut], policy_state[cut], rollout.starts[t, cut]
                    )
                    envs[g].send(acted.action.cpu().numpy())
                    policy_state[cut] = acted.state
                    rollout.action[t, cut] = acted.action
                    rollout.log_prob[t, cut] = acted.log_prob
                    rollout.value_ext[t, cut] = acted.value_ext
                    rollout.value_int[t, cut] = acted.value_int
            for g in range(len(own)):
                receive(T - 1, g)
            for t in range(T):
                age[t] = episodes.running_steps
                episodes.add(score[t], ended[t])
            rollout.value_ext[T], rollout.value_int[T] = learner.values(
                rollout.obs[T], policy_state, rollout.starts[T]
            )
            rollout.reward.copy_(torch.from_numpy(reward))
            rollout.discount.copy_(torch.from_numpy(discount))
            if weights is not None:
                rollout.weight_ext.copy_(weights[torch.from_numpy(age).to(device)])

            # -- Learning ---------------------------------------------------------------------
            before, after = count.step, count.step + steps_per_rollout
            if config.anneal_learning_rate:
                assert config.anneal_steps is not None
                rate = linear(
                    before,
                    start=config.learning_rate,
                    end=0.0,
                    duration_steps=config.anneal_steps,
                )
                for group in learner.optimizer.param_groups:
                    group["lr"] = rate
            metrics = learner.update(rollout)
            means.add({name: value[None] for name, value in metrics.items()})
            rollout.begin_next(policy_state)
            count.step = after
            count.updates += config.num_epochs * learner.num_minibatches

            if crossings(before, after, config.log_period_steps) or after >= config.total_steps:
                check_finite()
                mean = means.pop()
                recent = np.array(episodes.recent_returns)
                row = {
                    "charts/episodic_return": episodes.recent_mean(),
                    "charts/best_return": episodes.best_return if len(recent) else math.nan,
                    "charts/rewarded_episodes": (recent > 0).mean() if len(recent) else math.nan,
                    "charts/episodes": episodes.num_episodes,
                    "charts/updates": count.updates,
                    "charts/steps_per_second": progress.steps_per_second,
                    "charts/wall_seconds": state.seconds,
                }
                for name in LOSSES:
                    row[f"losses/{name}"] = mean.pop(name)
                row |= {f"diagnostics/{name}": value for name, value in mean.items()}
                if log is not None:
                    log.write(after, row)
                shown = {
                    "return": row["charts/episodic_return"],
                    "best": row["charts/best_return"],
                    "bonus": mean.get("bonus", math.nan),
                }
            if ranks.is_first:
                progress.update(after, shown)
            if crossings(before, after, config.checkpoint_period_steps):
                check_finite()
                if not ranks.same_everywhere(learner.parameters):
                    raise RunFailure("the processes hold different parameters: please report it")
                state.save()

        check_finite()
        state.save(last=True)
        if log is not None:
            log.flush()
        if ranks.any(bool(stop)):
            say(f"stopped at step {count.step:,}; the same command continues")
            raise SystemExit(stop.exit_code or 75)

        # -- The end: a last evaluation, pictures of an episode, the summary -------------------
        summary: dict[str, Any] = {
            "agent": f"{AGENT}-{config.bonus}",
            "env_id": config.env_id,
            "protocol": config.protocol,
            "seed": config.seed,
            "total_steps": count.step,
            "num_updates": count.updates,
            "best_training_return": episodes.best_return if episodes.num_episodes else None,
            "steps_per_second": count.step / state.seconds,
            "wall_seconds": state.seconds,
            "num_parameters": sum(p.numel() for p in learner.parameters),
            "num_processes": ranks.size,
            "device": str(device),
            "machine": describe(device),
            "versions": software,
        }
        if log is not None:
            say(f"trained; now it plays {config.final_evaluation_episodes} games")
            scores = evaluator.play(config.final_evaluation_episodes, count.step)
            if scores is None or not evaluator.draw(run.directory):
                raise SystemExit(stop.exit_code)
            log.write_evaluation(count.step, scores.figures() | evaluator.figures())
            log.gif(count.step, "eval/game", run.directory / "video.gif")
            summary |= {"eval": scores.record(), "rooms": evaluator.rooms.record()}
        run.finish(summary)
        return summary


if __name__ == "__main__":
    exit_with(main, command_line)
