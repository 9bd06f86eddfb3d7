"""PPO with random network distillation on small environments: exploration in seconds, on a CPU.

    i_t = mean_k (f_k(x_{t+1}) - g_k(x_{t+1}))^2,    A = 2 A_E + 1 A_I

The algorithm of agents/ppo_rnd_atari.py (Burda et al. 2018, arXiv 1810.12894) with small networks
and ten times the learning rate, for environments with vector observations and discrete actions.
Three with known answers are part of the package, and nobody solves them by chance:

    classicrl/ChainLock40-v0  classicrl/ChainLock60-v0  classicrl/KeyReturn5-v0

``--bonus none`` is plain PPO, for comparison. The same command again continues the run, exactly.
docs/rnd.md explains every figure logged.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from classicrl.command_line import exit_with, may_change, not_recorded, parse, require_positive


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one decision in one environment."""

    preset: Literal["small"] = "small"
    """Where the defaults come from."""
    env_id: str = "classicrl/ChainLock40-v0"
    """Any gymnasium environment with vector observations and discrete actions."""
    total_steps: int = may_change(150_000)
    """Steps to train for, of all environments together."""
    seed: int = 0
    """Of everything random."""
    num_envs: int = 32
    """Environments side by side."""
    device: Literal["auto", "cpu", "cuda"] = may_change("cpu")
    """The networks are too small to gain from a GPU."""
    threads: int = may_change(1)
    """CPU threads; 0: all that this process may use. The networks are too small for more than 1."""
    compile: bool = may_change(False)
    """Compile the networks with torch.compile: equal up to rounding, and not always faster
    (docs/performance.md)."""
    track: Literal["none", "wandb"] = may_change("none")
    """wandb: send the figures to Weights & Biases, too."""
    run_dir: Path | None = not_recorded(None)
    """Default: runs/ppo_rnd_small/<environment>-<bonus>/seed<seed>."""
    overwrite: bool = not_recorded(False)
    """Delete what an earlier run left in the run directory."""
    init_from: Path | None = None
    """Begin with the policy and values of this run directory, model directory or model file; all
    else, the bonus too, begins anew. A run that has a checkpoint continues from that."""

    bonus: Literal["rnd", "none"] = "rnd"
    """none: plain PPO, for comparison."""
    rollout_steps: int = 64
    """Steps of each environment between updates."""
    gamma_ext: float = 0.999
    """Discount of the environment's rewards per step."""
    gamma_int: float = 0.99
    """Discount of the intrinsic rewards per step."""
    gae_lambda: float = 0.95
    """Of both advantage estimates."""
    ext_coef: float = 2.0
    """Weight of the environment's advantages."""
    int_coef: float = 1.0
    """Weight of the intrinsic advantages."""
    learning_rate: float = 1e-3
    """Of Adam, for policy and predictor."""
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
    """Minibatches of single steps in random order instead of whole environments."""
    normalise_advantage: bool = False
    """Scale advantages in each minibatch."""
    max_grad_norm: float | None = None
    """Bound on the norm of the policy's gradient. Default: none."""
    warmup_steps: int = 50
    """Random steps of each environment that set the observations' statistics first."""

    log_period_steps: int = may_change(2_048)
    """Steps between rows of metrics.csv."""
    final_evaluation_episodes: int = may_change(100)
    """Episodes in the evaluation at the end."""
    checkpoint_period_steps: int = may_change(51_200)
    """Steps between checkpoints."""


PRESETS = {"small": Config()}


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse(PRESETS, "small", __doc__ or "")

import contextlib
import math

import numpy as np
import torch

from classicrl.algorithms.ppo import PPOLearner, SampledPolicy
from classicrl.algorithms.rnd import RND, whole
from classicrl.console import TrainingProgress
from classicrl.envs.gym_vector import GymVector, gym_protocol
from classicrl.errors import UserError
from classicrl.evaluation import GymEvaluator
from classicrl.experiment import Run, StopRequest, versions
from classicrl.initial_weights import require_initial_weights, take_initial_weights
from classicrl.loggers import EpisodeStatistics, MeanMetrics, MetricsLog
from classicrl.machine import choose_device, compile_networks, describe, set_threads
from classicrl.networks import vector_actor_critic, vector_rnd_networks
from classicrl.replay import Rollout
from classicrl.schedules import crossings
from classicrl.tracking import require_tracker
from classicrl.training_state import Counters, TrainingState

AGENT = "ppo_rnd_small"
LOSSES = ("policy", "value_ext", "value_int", "predictor")
RECENT_EPISODES = 100
REWARDED_SHARE = 0.9  # of the recent episodes; in the package's environments: solved


def main(config: Config) -> dict[str, Any]:
    """Trains, or continues, or reports a finished run; returns its summary."""
    require_positive(
        config,
        may_be_zero={
            *("seed", "threads", "int_coef", "ext_coef", "entropy_coef", "warmup_steps"),
            *("gamma_int", "gae_lambda"),
        },
        at_most_one={"gamma_ext", "gamma_int", "gae_lambda"},
    )
    items = config.num_envs * (config.rollout_steps if config.shuffle else 1)
    if items % config.num_minibatches:
        raise UserError(
            f"--num-minibatches {config.num_minibatches} does not divide {items} "
            f"{'steps' if config.shuffle else 'environments'}: choose a divisor"
        )
    name = config.env_id.replace("/", "-")
    directory = config.run_dir or Path(f"runs/{AGENT}/{name}-{config.bonus}/seed{config.seed}")
    require_tracker(config.track)
    require_initial_weights(
        config.init_from, directory, card_of(config), overwrite=config.overwrite
    )
    with Run(directory, overwrite=config.overwrite) as run, StopRequest() as stop:
        config = run.configure(config, lambda config: config)
        summary = run.summary
        if summary is None or summary["total_steps"] < config.total_steps:
            summary = train(config, run, stop)
        print(run.closing_lines(summary))
        return summary


def card_of(config: Config) -> dict[str, str]:
    """What a model file of the run says of itself."""
    return {
        "agent": f"{AGENT}-{config.bonus}",
        "env_id": config.env_id,
        "protocol": gym_protocol(config.env_id).name,
        "torso": "vector",
        "head": "actor-critic",
    }


def train(config: Config, run: Run, stop: StopRequest) -> dict[str, Any]:
    """The whole of the training, from nothing or from the last checkpoint; returns the summary."""
    device = choose_device(config.device)
    set_threads(config.threads)
    protocol = gym_protocol(config.env_id)
    software = versions()
    T, N = config.rollout_steps, config.num_envs

    # -- The parts -----------------------------------------------------------------------------
    envs = GymVector(
        config.env_id, N, seeds=config.seed, max_episode_steps=protocol.max_episode_steps
    )
    if len(envs.obs_shape) != 1:
        raise UserError(
            f"{config.env_id} shows arrays of shape {envs.obs_shape}; this script is for vectors "
            "of numbers (Atari: agents/ppo_rnd_atari.py)"
        )
    size, num_actions = envs.obs_shape[0], envs.num_actions
    network = vector_actor_critic(size, num_actions, seed=config.seed).to(device)
    rnd = None
    if config.bonus == "rnd":
        target, predictor = vector_rnd_networks(size, seed=config.seed)
        rnd = RND(
            target.to(device),
            predictor.to(device),
            (size,),
            N,
            gamma=config.gamma_int,
            view=whole,
            min_var=1e-8,
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
        num_minibatches=config.num_minibatches,
        shuffle=config.shuffle,
        normalise_advantage=config.normalise_advantage,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
    )
    if config.compile:
        compile_networks(network, *([] if rnd is None else [rnd.target, rnd.predictor]))
    rollout = Rollout(T, N, (size,), obs_dtype=torch.float32, device=device)
    episodes = EpisodeStatistics(N, window_episodes=RECENT_EPISODES)
    means = MeanMetrics()
    rewarded = RewardedAt()

    # -- Where it stands: at nothing, or at the last checkpoint --------------------------------
    progress = TrainingProgress(config.total_steps)
    count = Counters()
    state = TrainingState(
        run.directory,
        count,
        parts={
            "learner": learner,
            "rollout": rollout,
            "envs": envs,
            "episodes": episodes,
            "means": means,
            "rewarded": rewarded,
        },
        model=network,
        card=card_of(config),
        info={"versions": software},
        say=progress.say,
    )
    if state.resume():
        obs = torch.from_numpy(envs.observation()).to(device)
        if envs.resumed_exactly:
            rollout.obs[0] = obs
        else:
            rollout.begin_new_episodes(obs)
            episodes.begin_new_episodes()
    else:
        if config.init_from is not None:
            progress.say(take_initial_weights(network, config.init_from, card_of(config)))
        obs = torch.from_numpy(envs.reset())
        if rnd is not None:
            rng = np.random.default_rng([config.seed, 1])
            seen = []
            for _ in range(config.warmup_steps):
                seen.append(torch.from_numpy(envs.step(rng.integers(num_actions, size=N)).obs))
            if seen:
                rnd.observe(torch.stack(seen).to(device))
            obs = torch.from_numpy(envs.reset())
        rollout.begin_new_episodes(obs.to(device))
    progress.begin_at(count.step)
    log = MetricsLog(
        run.directory,
        resume_step=count.step,
        evaluated_at_step=count.evaluated_at_step,
        track=config.track,
    )

    def check_finite() -> None:
        figures = means.peek()
        state.require_finite(figures.get(name, 0.0) for name in LOSSES)

    # -- The loop ------------------------------------------------------------------------------
    reward = np.zeros((T, N), dtype=np.float32)
    discount = np.zeros((T, N), dtype=np.float32)
    with progress, log, contextlib.closing(envs):
        shown = {"return": math.nan, "bonus": math.nan}
        while count.step < config.total_steps and not stop:
            for t in range(T):
                acted = learner.act(rollout.obs[t], rollout.initial_state, rollout.starts[t])
                result = envs.step(acted.action.cpu().numpy())
                rollout.action[t], rollout.log_prob[t] = acted.action, acted.log_prob
                rollout.value_ext[t], rollout.value_int[t] = acted.value_ext, acted.value_int
                rollout.obs[t + 1] = torch.from_numpy(result.obs).to(device)
                rollout.starts[t + 1] = torch.from_numpy(result.ended).to(device)
                reward[t] = result.reward
                discount[t] = config.gamma_ext * ~result.ended  # a time limit is an end, too
                episodes.add(result.reward, result.ended)
            rollout.value_ext[T], rollout.value_int[T] = learner.values(
                rollout.obs[T], rollout.initial_state, rollout.starts[T]
            )
            rollout.reward.copy_(torch.from_numpy(reward))
            rollout.discount.copy_(torch.from_numpy(discount))
            metrics = learner.update(rollout)
            means.add({name: value[None] for name, value in metrics.items()})
            rollout.begin_next(rollout.initial_state)
            before, count.step = count.step, count.step + T * N
            count.updates += config.num_epochs * config.num_minibatches
            recent = np.array(episodes.recent_returns)
            share = float((recent > 0).mean()) if len(recent) else math.nan
            if len(recent) == RECENT_EPISODES and share >= REWARDED_SHARE:
                rewarded.at(count.step)

            last = count.step >= config.total_steps
            if last or crossings(before, count.step, config.log_period_steps):
                check_finite()
                mean = means.pop()
                row = {
                    "charts/episodic_return": episodes.recent_mean(),
                    "charts/rewarded_episodes": share,
                    "charts/episodes": episodes.num_episodes,
                    "charts/updates": count.updates,
                    "charts/steps_per_second": progress.steps_per_second,
                    "charts/wall_seconds": state.seconds,
                }
                for name in LOSSES:
                    row[f"losses/{name}"] = mean.pop(name)
                row |= {f"diagnostics/{name}": value for name, value in mean.items()}
                log.write(count.step, row)
                shown = {
                    "return": row["charts/episodic_return"],
                    "bonus": mean.get("bonus", math.nan),
                }
            progress.update(count.step, shown)
            if crossings(before, count.step, config.checkpoint_period_steps):
                check_finite()
                state.save()

        check_finite()
        state.save(last=True)
        log.flush()
        if stop:
            progress.say(f"stopped at step {count.step:,}; the same command continues")
            raise SystemExit(stop.exit_code)

        # -- The end: a last evaluation, the summary -------------------------------------------
        evaluator = GymEvaluator(
            SampledPolicy(network),
            config.env_id,
            protocol,
            seed=config.seed,
            should_stop=lambda: bool(stop),
        )
        progress.say(f"trained; now it plays {config.final_evaluation_episodes} games")
        scores = evaluator.play(config.final_evaluation_episodes)
        if scores is None:
            raise SystemExit(stop.exit_code)
        log.write_evaluation(count.step, scores.figures())
        summary = {
            "agent": f"{AGENT}-{config.bonus}",
            "env_id": config.env_id,
            "protocol": protocol.name,
            "seed": config.seed,
            "total_steps": count.step,
            "num_updates": count.updates,
            "rewarded_at_step": rewarded.step,
            "eval": scores.record(),
            "steps_per_second": count.step / state.seconds,
            "wall_seconds": state.seconds,
            "num_parameters": sum(p.numel() for p in learner.parameters),
            "device": str(device),
            "machine": describe(device),
            "versions": software,
        }
        run.finish(summary)
        return summary


class RewardedAt:
    """The first step at which nine of ten recent episodes had a return above 0."""

    def __init__(self) -> None:
        self.step: int | None = None

    def at(self, step: int) -> None:
        """They have now; only the first time counts."""
        self.step = self.step or step

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues."""
        self.step = state["step"]


if __name__ == "__main__":
    exit_with(main, command_line)
