"""C51 on classic control: a whole agent from classicrl's parts, explained in docs/new_agent.md.

    m_i = sum_j p-_j(x',a*) [1 - |clip(r + d z_j) - z_i| / dz]_0^1,   a* = argmax_a Q-(x',a)
    L   = - mean sum_i m_i log p_i(x,a),   Q(x,a) = sum_i z_i p_i(x,a)

It learns the distribution of returns over fixed atoms z_i, where DQN learns their mean: M. G.
Bellemare, W. Dabney, R. Munos, "A Distributional Perspective on Reinforcement Learning", ICML 2017
(arXiv 1707.06887), equation 7 and algorithm 1. The same command again continues the run.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from classicrl.command_line import exit_with, may_change, not_recorded, parse, require_positive


@dataclasses.dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # shows vectors of numbers, takes discrete actions
    total_steps: int = may_change(20_000)  # decisions of the agent to train for
    seed: int = 0  # of weights, environment, replay and exploration
    threads: int = may_change(0)  # of the CPU; 0: all that this process may use
    run_dir: Path | None = not_recorded(None)  # by default a directory under runs/
    overwrite: bool = not_recorded(False)  # delete what an earlier run left there
    value_bound: float = 200.0  # the 51 atoms lie within +-this: well above any return
    gamma: float = 0.99  # discount per step
    learning_rate: float = 1e-3  # of Adam
    batch_size: int = 64  # transitions per update
    first_update_steps: int = 1_000  # before the first update; then one every 2 steps
    target_period_steps: int = 100  # between copies into the target network
    epsilon_end: float = 0.05  # share of random actions, reached after 10,000 steps
    report_period_steps: int = may_change(1_000)  # between rows of metrics.csv, and checkpoints


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse({"default": Config()}, "default", __doc__ or "")

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from classicrl.algorithms.dqn import DQNLearner
from classicrl.console import TrainingProgress
from classicrl.envs.gym_vector import GymVector, gym_protocol
from classicrl.errors import UserError
from classicrl.evaluation import GymEvaluator, epsilon_greedy
from classicrl.experiment import Run, StopRequest, versions
from classicrl.loggers import EpisodeStatistics, MeanMetrics, MetricsLog
from classicrl.machine import describe, set_threads
from classicrl.networks import MLPTorso, QNetwork, init_fan_in_
from classicrl.replay import ReplayBuffer
from classicrl.schedules import linear
from classicrl.training_state import Counters, TrainingState
from classicrl.types import Transition


class C51Output(NamedTuple):
    """Action values, and the distributions whose means they are."""

    q: Tensor  # [B, A]
    log_probs: Tensor  # [B, A, N]


class C51Head(nn.Module):
    """Features ``[B, F]`` -> log-probabilities of ``atoms`` ``[N]`` for each of ``A`` actions."""

    def __init__(self, in_features: int, num_actions: int, atoms: Tensor) -> None:
        super().__init__()
        self.logits = nn.Linear(in_features, num_actions * len(atoms))
        self.register_buffer("atoms", atoms)

    def forward(self, features: Tensor) -> C51Output:
        log_probs = self.logits(features).unflatten(1, (-1, len(self.atoms))).log_softmax(dim=2)
        return C51Output(log_probs.exp() @ self.atoms, log_probs)


def project(atoms: Tensor, reward: Tensor, discount: Tensor, probs: Tensor) -> Tensor:
    """Equation 7: atoms ``[N]``, reward and discount ``[B]``, probs ``[B, N]`` -> m ``[B, N]``."""
    moved = (reward[:, None] + discount[:, None] * atoms).clamp(atoms[0], atoms[-1])  # [B, N]
    shares = 1.0 - (moved[:, :, None] - atoms).abs() / (atoms[1] - atoms[0])  # [B, from, to]
    return (probs[:, :, None] * shares.clamp(min=0.0)).sum(dim=1)


class C51Learner(DQNLearner):
    """DQN's learner, which reads nothing of a network but ``.q``, with an update of its own."""

    def update(self, batch: Transition) -> dict[str, Tensor]:
        """One step of the optimiser; its figures, each ``[1]``."""
        rows, atoms = torch.arange(len(batch.reward)), self.online.head.atoms
        with torch.no_grad():
            ahead = self.target(batch.next_obs)
            probs = ahead.log_probs[rows, ahead.q.argmax(dim=1)].exp()  # [B, N]
            m = project(atoms, batch.reward, batch.discount, probs)
        output = self.online(batch.obs)
        log_probs = output.log_probs[rows, batch.action]  # [B, N]
        loss = -(m * log_probs).sum(dim=1).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        q = output.q.detach()[rows, batch.action].mean()
        return {"loss": loss.detach()[None], "q": q[None]}


def main(config: Config) -> dict[str, Any]:
    """Trains, or continues, or reports a finished run; returns its summary."""
    require_positive(config, may_be_zero={"seed", "threads"}, at_most_one={"gamma", "epsilon_end"})
    place = config.run_dir or Path(f"runs/c51_classic_control/{config.env_id}/seed{config.seed}")
    with Run(place, overwrite=config.overwrite) as run, StopRequest() as stop:
        config = run.configure(config, lambda config: config)
        summary = run.summary
        if summary is None or summary["total_steps"] < config.total_steps:
            summary = train(config, run, stop)
        print(run.closing_lines(summary))
        return summary


def train(config: Config, run: Run, stop: StopRequest) -> dict[str, Any]:
    """The whole of the training, from nothing or from the last checkpoint; returns the summary."""
    # -- The parts -----------------------------------------------------------------------------
    set_threads(config.threads)
    envs, protocol = GymVector(config.env_id, 1, seeds=config.seed), gym_protocol(config.env_id)
    if len(envs.obs_shape) != 1:
        raise UserError(f"{config.env_id} shows arrays of shape {envs.obs_shape}, not vectors")
    torso = MLPTorso(envs.obs_shape[0], hidden=(128, 128))
    atoms = torch.linspace(-config.value_bound, config.value_bound, 51)
    network = QNetwork(torso, C51Head(torso.out_features, envs.num_actions, atoms))
    init_fan_in_(network, torch.Generator().manual_seed(config.seed))
    learner = C51Learner(network, learning_rate=config.learning_rate)
    replay = ReplayBuffer(
        20_000, envs.obs_shape, 1, gamma=config.gamma, obs_dtype=torch.float32, seed=config.seed
    )
    rng = np.random.default_rng([config.seed, 1])
    episodes, means, count = EpisodeStatistics(1), MeanMetrics(), Counters()
    progress = TrainingProgress(config.total_steps)
    say = progress.say

    def policy(obs: NDArray[Any]) -> NDArray[np.int64]:
        return learner.act(torch.from_numpy(obs)).numpy()

    # -- Where it stands: at nothing, or at the last checkpoint --------------------------------
    about = {"agent": "c51_classic_control", "env_id": config.env_id, "protocol": protocol.name}
    card, info = about | {"torso": "vector", "head": "c51"}, {"versions": versions()}
    saved = {"learner": learner, "envs": envs, "episodes": episodes, "means": means, "rng": rng}
    state = TrainingState(
        run.directory, count, saved, replay=replay, model=network, card=card, info=info, say=say
    )
    resumed = state.resume()
    obs = envs.observation() if resumed else envs.reset()
    if resumed and not envs.resumed_exactly:  # a new episode has begun: nothing spans the break
        replay.break_streams()
        episodes.begin_new_episodes()
    progress.begin_at(count.step)

    # -- The loop ------------------------------------------------------------------------------
    with progress, MetricsLog(run.directory, resume_step=count.step) as log:
        while count.step < config.total_steps and not stop:
            epsilon = linear(count.step, start=1.0, end=config.epsilon_end, duration_steps=10_000)
            action = epsilon_greedy(policy(obs), epsilon, envs.num_actions, rng)
            step = envs.step(action)
            replay.add(obs, action, step.reward, step.terminated, step.ended, step.final_obs)
            episodes.add(step.reward, step.ended)
            obs = step.obs
            count.step += 1
            if count.step >= config.first_update_steps and count.step % 2 == 0:
                means.add(learner.update(replay.sample(config.batch_size)))
            if count.step % config.target_period_steps == 0:
                learner.sync_target()
            if count.step % config.report_period_steps == 0 or count.step >= config.total_steps:
                mean = {"loss": math.nan, "q": math.nan} | means.pop()
                figures = {
                    "charts/episodic_return": episodes.recent_mean(),
                    "charts/episodes": episodes.num_episodes,
                    "charts/epsilon": epsilon,
                    "losses/td": mean["loss"],
                    "diagnostics/q": mean["q"],
                }
                log.write(count.step, figures)
                progress.update(count.step, {"return": episodes.recent_mean(), **mean})
                state.save()  # fails if a weight became NaN or infinite: the one before stands
        state.save(last=True)
        if stop:
            say(f"stopped at step {count.step:,}; the same command continues")
            raise SystemExit(stop.exit_code)

        # -- The end: episodes without exploration, the summary --------------------------------
        scores = GymEvaluator(policy, config.env_id, protocol, seed=config.seed).play(episodes=50)
        log.write_evaluation(count.step, scores.figures())
        summary = about | {"seed": config.seed, "total_steps": count.step, "eval": scores.record()}
        summary |= {"wall_seconds": state.seconds, "machine": describe(torch.device("cpu"))}
        run.finish(summary)
        return summary


if __name__ == "__main__":
    exit_with(main, command_line)
