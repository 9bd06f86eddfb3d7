"""Value learners with an intrinsic stream, on small environments: an experiment.

    y_ext = r + discount q_ext-(x'),    y_int = i(x') / s + gamma_int q_int-(x')

with q- the double-Q values; act by the maximum of Q_ext + beta Q_int, evaluate by Q_ext. The bonus
i is that of random network distillation (Burda et al. 2018, arXiv 1810.12894), recomputed whenever
a transition is drawn, so that what is no longer new is no longer rewarded; s is its running scale.
The predictor learns once from what was just seen, not from the replay, which would show it
everything many times.

Both streams are learners of agents/va_classic_control.py, any member of the family, each with a
network of its own. No paper reports this combination, and here it is not reliable: docs/rnd.md says
what was seen. The same command again continues the run, exactly.
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
    member: Literal["dqn", "dueling", "dueling-behaviour", "va", "va-raw", "va-fitted", "rdq"] = (
        "dueling"
    )
    """Of both streams."""
    env_id: str = "classicrl/KeyReturn5-v0"
    """One of the package's, whose episodes all begin alike."""
    total_steps: int = may_change(150_000)
    """Steps to train for, of all environments together."""
    seed: int = 0
    """Of everything random."""
    num_envs: int = 16
    """Environments side by side."""
    threads: int = may_change(1)
    """CPU threads; 0: all that this process may use."""
    compile: bool = may_change(False)
    """Compile the networks with torch.compile: equal up to rounding, and not always faster
    (docs/performance.md)."""
    track: Literal["none", "wandb"] = may_change("none")
    """wandb: send the figures to Weights & Biases, too."""
    run_dir: Path | None = not_recorded(None)
    """Default: runs/dqn_rnd_small/<environment>-<member>-<bonus>/seed<seed>."""
    overwrite: bool = not_recorded(False)
    """Delete what an earlier run left in the run directory."""
    init_from: Path | None = None
    """Begin with the extrinsic stream of this run directory, model directory or model file; all
    else, the bonus too, begins anew. A run that has a checkpoint continues from that."""

    bonus: Literal["rnd", "none"] = "rnd"
    """none: the member alone, exploring by epsilon."""
    beta: float = 1.0
    """Weight of Q_int in acting."""
    gamma_ext: float = 0.99
    """Discount of the environment's rewards per step."""
    gamma_int: float = 0.95
    """Discount of the intrinsic rewards per step."""
    learning_rate: float = 1e-3
    """Of Adam, for all networks."""
    batch_size: int = 128
    """Transitions per update."""
    updates_per_round: int = 4
    """Updates of both streams after each step of all environments."""
    target_period_steps: int = 800
    """The target networks are copied every so many steps."""
    replay_capacity: int = 100_000
    """Observations kept."""
    first_update_steps: int = 1_600
    """Steps before the first update; actions are random until then."""
    epsilon: float = 0.02
    """Share of random actions afterwards."""

    log_period_steps: int = may_change(2_000)
    """Steps between rows of metrics.csv."""
    final_evaluation_episodes: int = may_change(100)
    """Episodes in the evaluation at the end."""
    checkpoint_period_steps: int = may_change(50_000)
    """Steps between checkpoints."""


PRESETS = {"small": Config()}


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse(PRESETS, "small", __doc__ or "")

import contextlib
import math

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.algorithms.dqn import FAMILY, DQNLearner
from classicrl.algorithms.rnd import RND, whole
from classicrl.console import TrainingProgress
from classicrl.envs.gym_vector import GymVector, gym_protocol
from classicrl.errors import UserError
from classicrl.evaluation import GymEvaluator, epsilon_greedy
from classicrl.experiment import Run, StopRequest, versions
from classicrl.initial_weights import require_initial_weights, take_initial_weights
from classicrl.loggers import EpisodeStatistics, MeanMetrics, MetricsLog
from classicrl.machine import compile_networks, describe, set_threads
from classicrl.networks import vector_q_network, vector_rnd_networks
from classicrl.replay import ReplayBuffer
from classicrl.schedules import crossings
from classicrl.tracking import require_tracker
from classicrl.training_state import Counters, TrainingState
from classicrl.types import Transition

AGENT = "dqn_rnd_small"
RECENT_EPISODES = 100


def main(config: Config) -> dict[str, Any]:
    """Trains, or continues, or reports a finished run; returns its summary."""
    require_positive(
        config,
        may_be_zero={"seed", "threads", "beta", "gamma_int", "epsilon"},
        at_most_one={"gamma_ext", "gamma_int", "epsilon"},
    )
    if not config.env_id.startswith("classicrl/"):
        raise UserError(
            f"{config.env_id}: after an episode the intrinsic stream goes on with the start of the "
            "next, which must always be the same one, as in classicrl/ChainLock40-v0 and "
            "classicrl/KeyReturn5-v0"
        )
    if config.first_update_steps <= config.num_envs:
        raise UserError(f"--first-update-steps must be above --num-envs, {config.num_envs}")
    name = config.env_id.replace("/", "-")
    directory = config.run_dir or Path(
        f"runs/{AGENT}/{name}-{config.member}-{config.bonus}/seed{config.seed}"
    )
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
        "agent": f"{AGENT}-{config.member}",
        "env_id": config.env_id,
        "protocol": gym_protocol(config.env_id).name,
        "torso": "vector",
        "head": FAMILY[config.member].head,
    }


def train(config: Config, run: Run, stop: StopRequest) -> dict[str, Any]:
    """The whole of the training, from nothing or from the last checkpoint; returns the summary."""
    set_threads(config.threads)
    protocol = gym_protocol(config.env_id)
    software = versions()
    N = config.num_envs

    # -- The parts -----------------------------------------------------------------------------
    envs = GymVector(
        config.env_id, N, seeds=config.seed, max_episode_steps=protocol.max_episode_steps
    )
    size, num_actions = envs.obs_shape[0], envs.num_actions
    recipe = FAMILY[config.member]

    def learner_of(seed: int) -> DQNLearner:
        return DQNLearner(
            vector_q_network(recipe.head, size, num_actions, seeds=seed),
            learning_rate=config.learning_rate,
            double=True,
            loss=recipe.loss,
            stream_penalty=recipe.stream_penalty,
        )

    extrinsic, intrinsic = learner_of(config.seed), learner_of(config.seed + 1)
    if config.compile:
        compile_networks(extrinsic.online, extrinsic.target, intrinsic.online, intrinsic.target)
    rnd = RND(
        *vector_rnd_networks(size, seed=config.seed),
        (size,),
        N,
        gamma=config.gamma_int,
        view=whole,
        min_var=1e-8,
    )
    predictor = Predictor(rnd, config.learning_rate)
    replay = ReplayBuffer(
        config.replay_capacity,
        envs.obs_shape,
        N,
        gamma=config.gamma_ext,
        obs_dtype=torch.float32,
        seed=config.seed,
    )
    explore_rng = np.random.default_rng([config.seed, 1])
    episodes = EpisodeStatistics(N, window_episodes=RECENT_EPISODES)
    means = MeanMetrics()
    with_bonus = config.bonus == "rnd"

    def greedy(obs: NDArray[Any]) -> NDArray[np.int64]:
        views = torch.from_numpy(obs)
        q = extrinsic.action_values(views)
        if with_bonus:
            q = q + config.beta * intrinsic.action_values(views)
        return q.argmax(dim=-1).numpy()

    # -- Where it stands: at nothing, or at the last checkpoint --------------------------------
    progress = TrainingProgress(config.total_steps)
    count = Counters()
    state = TrainingState(
        run.directory,
        count,
        parts={
            "extrinsic": extrinsic,
            "intrinsic": intrinsic,
            "predictor": predictor,
            "envs": envs,
            "episodes": episodes,
            "means": means,
            "explore_rng": explore_rng,
        },
        replay=replay,
        model=extrinsic.online,
        card=card_of(config),
        info={"versions": software},
        say=progress.say,
    )
    if state.resume():
        obs = envs.observation()
        if not envs.resumed_exactly:
            replay.break_streams()
            episodes.begin_new_episodes()
    else:
        obs = envs.reset()
        if config.init_from is not None:
            progress.say(take_initial_weights(extrinsic.online, config.init_from, card_of(config)))
            extrinsic.sync_target()
    # What follows the end of an episode in the intrinsic stream, which knows no ends: the start of
    # the next one. That of the environments here is always the same.
    start_obs = torch.from_numpy(obs[:1].copy()) if count.step == 0 else predictor.start_obs
    predictor.start_obs = start_obs
    progress.begin_at(count.step)
    log = MetricsLog(
        run.directory,
        resume_step=count.step,
        evaluated_at_step=count.evaluated_at_step,
        track=config.track,
    )

    # -- The loop ------------------------------------------------------------------------------
    with progress, log, contextlib.closing(envs):
        shown = {"return": math.nan, "bonus": math.nan}
        while count.step < config.total_steps and not stop:
            before, after = count.step, count.step + N
            epsilon = config.epsilon if before >= config.first_update_steps else 1.0
            action = epsilon_greedy(greedy(obs), epsilon, num_actions, explore_rng)
            result = envs.step(action)
            # A time limit is an end, too, as for PPO on these environments.
            replay.add(obs, action, result.reward, result.ended, result.ended, result.final_obs)
            if with_bonus:
                # The acting stream sets the scales, the order of calls as in algorithms/rnd.py.
                seen, arrived = torch.from_numpy(obs)[None], torch.from_numpy(result.obs)[None]
                bonus = rnd.bonus(arrived)  # [1, N]
                rnd.observe(seen)
                rnd.scaled(bonus)
                means.add({"bonus": bonus.mean()[None], "predictor": predictor.update(arrived[0])})
            obs = result.obs
            episodes.add(result.reward, result.ended)
            count.step = after

            if after >= config.first_update_steps:
                num_updates = config.updates_per_round
                batch = replay.sample(num_updates * config.batch_size)
                metrics = extrinsic.update(batch, num_updates=num_updates)
                means.add({f"{name}_ext": metrics[name] for name in ("loss", "max_q")})
                if with_bonus:
                    ended = (batch.discount == 0)[:, None]
                    successor = torch.where(ended, start_obs, batch.next_obs)
                    reward = rnd.bonus(successor) / rnd.reward_moments.std.float()
                    of_bonus = Transition(
                        batch.obs,
                        batch.action,
                        reward,
                        torch.full_like(batch.discount, config.gamma_int),
                        successor,
                    )
                    metrics = intrinsic.update(of_bonus, num_updates=num_updates)
                    means.add({f"{name}_int": metrics[name] for name in ("loss", "max_q")})
                count.updates += num_updates
            if crossings(before, after, config.target_period_steps):
                extrinsic.sync_target()
                intrinsic.sync_target()

            if crossings(before, after, config.log_period_steps) or after >= config.total_steps:
                state.require_finite(means.peek().values())
                mean = means.pop()
                recent = np.array(episodes.recent_returns)
                row = {
                    "charts/episodic_return": episodes.recent_mean(),
                    "charts/rewarded_episodes": (recent > 0).mean() if len(recent) else math.nan,
                    "charts/episodes": episodes.num_episodes,
                    "charts/updates": count.updates,
                    "charts/steps_per_second": progress.steps_per_second,
                    "charts/wall_seconds": state.seconds,
                }
                for name in ("loss_ext", "loss_int", "predictor"):
                    row[f"losses/{name}"] = mean.get(name, math.nan)
                for name in ("bonus", "max_q_ext", "max_q_int"):
                    row[f"diagnostics/{name}"] = mean.get(name, math.nan)
                log.write(after, row)
                shown = {
                    "return": row["charts/episodic_return"],
                    "bonus": row["diagnostics/bonus"],
                }
                progress.update(after, shown)
            if crossings(before, after, config.checkpoint_period_steps):
                state.require_finite(means.peek().values())
                state.save()

        state.require_finite(means.peek().values())
        state.save(last=True)
        log.flush()
        if stop:
            progress.say(f"stopped at step {count.step:,}; the same command continues")
            raise SystemExit(stop.exit_code)

        # -- The end: a last evaluation by Q_ext alone, the summary ----------------------------
        def by_extrinsic_value(obs: NDArray[Any]) -> NDArray[np.int64]:
            return extrinsic.act(torch.from_numpy(obs)).numpy()

        evaluator = GymEvaluator(
            by_extrinsic_value,
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
            "agent": f"{AGENT}-{config.member}",
            "env_id": config.env_id,
            "protocol": protocol.name,
            "seed": config.seed,
            "total_steps": count.step,
            "num_updates": count.updates,
            "rewarded_recently": float(np.mean(np.array(episodes.recent_returns) > 0))
            if episodes.num_episodes
            else None,
            "eval": scores.record(),
            "steps_per_second": count.step / state.seconds,
            "wall_seconds": state.seconds,
            "num_parameters": sum(p.numel() for p in extrinsic.parameters),
            "device": "cpu",
            "machine": describe(torch.device("cpu")),
            "versions": software,
        }
        run.finish(summary)
        return summary


class Predictor:
    """The bonus's predictor with an optimiser of its own.

    Args:
        rnd: whose predictor it is.
        learning_rate: of Adam.
    """

    def __init__(self, rnd: RND, learning_rate: float) -> None:
        self.rnd = rnd
        self.start_obs = torch.empty(0)  # saved with the rest
        self.optimizer = torch.optim.Adam(rnd.predictor.parameters(), lr=learning_rate)

    def update(self, obs: torch.Tensor) -> torch.Tensor:
        """One step on observations just seen, ``[N, *obs_shape]``; the loss ``[1]``."""
        kept = torch.ones(len(obs), dtype=torch.bool)
        loss = self.rnd.loss(obs, self.rnd.targets(obs), kept)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()[None]

    def state_dict(self) -> dict[str, Any]:
        """The bonus, its optimiser, the start of an episode."""
        return {
            "rnd": self.rnd.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "start_obs": self.start_obs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues."""
        self.rnd.load_state_dict(state["rnd"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.start_obs = state["start_obs"]


if __name__ == "__main__":
    exit_with(main, command_line)
