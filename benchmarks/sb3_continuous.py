"""SAC, TD3 and CrossQ as peers of Symphony's learning curves, on any gymnasium environment with
continuous actions.

SAC and TD3 are stable-baselines3's, CrossQ is sb3-contrib's; settings that are no flags here are
their defaults. Their policies play the same evaluation episodes as ours, through
:class:`classicrl.control_evaluation.ControlEvaluator`, so returns and the figures of smoothness
(``classicrl/smoothness.py``) mean the same on both sides. In training the figures are of the noisy
actions, as ours are.

    python benchmarks/sb3_continuous.py --algorithm sac --env-id Hopper-v5 --total-steps 50000 \\
        --run-dir runs/sb3-sac/Hopper-v5-control/seed0

TD3 explores with Gaussian noise of deviation 0.1 of the actions' range of [-1, 1]: without it, as
the library has it by default, it would not explore at all.

Writes what our agents write: ``metrics.csv``, ``evaluations.csv``, ``summary.json``. SIGTERM and
SIGINT end the run within a step, without a summary (exit codes 75 and 130); it cannot be resumed.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from classicrl.command_line import exit_with, require_positive
from classicrl.control_evaluation import ControlEvaluator
from classicrl.envs.continuous import CONTROL_PROTOCOLS, ContinuousVector
from classicrl.errors import UserError
from classicrl.evaluation import Evaluation
from classicrl.experiment import versions, write_json
from classicrl.loggers import CsvLog, EpisodeStatistics
from classicrl.machine import choose_device, describe, set_threads
from classicrl.smoothness import SmoothnessMeter

PROTOCOL = CONTROL_PROTOCOLS["control"]
TD3_NOISE_STD = 0.1
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a peer and writes learning curves; a step is one action."""

    run_dir: Path
    """Where the results go; must not hold a run already."""
    algorithm: Literal["sac", "td3", "crossq"] = "sac"
    """Of stable-baselines3; crossq: of sb3-contrib."""
    env_id: str = "Hopper-v5"
    """Any environment of gymnasium with continuous actions."""
    total_steps: int = 50_000
    """Steps to train for, random ones at the beginning among them."""
    seed: int = 0
    """Of everything random."""
    threads: int = 1
    """CPU threads of torch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    hidden: int | None = None
    """Units of the two layers of every network. Default: the library's."""
    learning_starts_steps: int | None = None
    """Random steps at the beginning. Default: the library's, 100."""
    log_period_steps: int = 1_000
    """Steps between rows of metrics.csv."""
    evaluation_period_steps: int = 5_000
    """Steps between evaluations."""
    evaluation_episodes: int = 10
    """Episodes in each."""
    final_evaluation_episodes: int = 25
    """Episodes in the last one."""


def main(config: Config) -> dict[str, Any]:
    """Trains and writes everything; returns the summary."""
    require_positive(config, may_be_zero={"seed", "threads", "learning_starts_steps"})
    try:
        from stable_baselines3 import SAC, TD3
        from stable_baselines3.common.callbacks import BaseCallback
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.noise import NormalActionNoise
    except ImportError as error:
        raise UserError(f"{error}: pip install -c constraints.txt -e '.[mujoco,bench]'") from error
    device = choose_device(config.device)
    set_threads(config.threads)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    if any(config.run_dir.iterdir()):
        raise UserError(f"{config.run_dir} is not empty: name a new --run-dir")

    # Our environment says what the smoothness needs; theirs is one of the same, wrapped by them.
    facts = ContinuousVector(config.env_id, 1, seeds=0)
    meter = SmoothnessMeter(1, facts.low, facts.high, dt=facts.dt, weight=facts.weight)
    episodes = EpisodeStatistics(1)
    evaluations = CsvLog(config.run_dir / "evaluations.csv")
    metrics = CsvLog(config.run_dir / "metrics.csv")

    algorithm: Any = {"sac": SAC, "td3": TD3}.get(config.algorithm)
    if algorithm is None:
        try:
            from sb3_contrib import CrossQ
        except ImportError as error:
            raise UserError(f"{error}: pip install -c constraints.txt sb3-contrib") from error
        algorithm = CrossQ
    settings: dict[str, Any] = {}
    if config.hidden is not None:
        settings["policy_kwargs"] = {"net_arch": [config.hidden, config.hidden]}
    if config.learning_starts_steps is not None:
        settings["learning_starts"] = config.learning_starts_steps
    if config.algorithm == "td3":
        zeros = np.zeros(facts.action_size)
        settings["action_noise"] = NormalActionNoise(zeros, zeros + TD3_NOISE_STD)
    model = algorithm("MlpPolicy", config.env_id, seed=config.seed, device=device, **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))

    def policy(obs: NDArray[Any]) -> NDArray[np.float32]:
        actions: NDArray[np.float32] = model.predict(obs, deterministic=True)[0]
        return actions

    stopped: list[int] = []
    for number in EXIT_CODES:
        signal.signal(number, lambda received, _: stopped.append(received))
    evaluator = ControlEvaluator(
        policy, config.env_id, PROTOCOL, seed=config.seed, should_stop=lambda: bool(stopped)
    )
    started = time.perf_counter()

    def evaluate(step: int, count: int) -> Evaluation | None:
        scores = evaluator.play(count)
        if scores is not None:
            evaluations.write(step, scores.figures())
            print(f"step {step:,}: evaluation {scores}", flush=True)
        return scores

    class Recorder(BaseCallback):  # type: ignore[misc, valid-type]
        """Rows and evaluations at their steps."""

        def _on_step(self) -> bool:
            step = self.num_timesteps
            ended, reward = self.locals["dones"], self.locals["rewards"]
            inner = self.training_env.envs[0].unwrapped
            data = getattr(inner, "data", None)
            power = math.nan
            # Where an episode ended, the simulation is at the beginning of the next one already.
            if data is not None and not ended[0]:
                power = float(np.abs(data.qfrc_actuator * data.qvel).sum())
            position = self.locals["infos"][0].get("x_position", math.nan)
            action = self.locals["actions"]
            meter.add(action, ended, np.array([0.0 if ended[0] else power]), np.array([position]))
            episodes.add(reward, ended)
            if step % config.log_period_steps == 0:
                row = {
                    "charts/episodic_return": episodes.recent_mean(),
                    "charts/episodes": episodes.num_episodes,
                    "charts/updates": self.model._n_updates,
                    "charts/wall_seconds": time.perf_counter() - started,
                    "losses/td": float(
                        self.logger.name_to_value.get("train/critic_loss", math.nan)
                    ),
                }
                row |= {f"smoothness/{name}": value for name, value in meter.pop().items()}
                metrics.write(step, row)
            if step % config.evaluation_period_steps == 0 and step < config.total_steps:
                evaluate(step, config.evaluation_episodes)
            return not stopped

    with contextlib.closing(metrics), contextlib.closing(evaluations):
        model.learn(config.total_steps, callback=Recorder(), log_interval=None)
        training_seconds = time.perf_counter() - started
        scores = None if stopped else evaluate(config.total_steps, config.final_evaluation_episodes)
    if scores is None:
        print(f"stopped at step {model.num_timesteps:,}", file=sys.stderr)
        raise SystemExit(EXIT_CODES[signal.Signals(stopped[0])])
    software = versions()
    for package in ("stable-baselines3", "sb3-contrib"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            software[package] = importlib.metadata.version(package)
    summary = {
        "agent": f"sb3-{config.algorithm}",
        "env_id": config.env_id,
        "protocol": PROTOCOL.name,
        "seed": config.seed,
        "total_steps": config.total_steps,
        "num_updates": model._n_updates,
        "eval": scores.record(),
        "steps_per_second": config.total_steps / training_seconds,
        "wall_seconds": time.perf_counter() - started,
        "num_parameters": sum(p.numel() for p in model.policy.parameters() if p.requires_grad),
        "device": str(device),
        "machine": describe(device),
        "versions": software,
        "config": {
            **{k: v for k, v in dataclasses.asdict(config).items() if k != "run_dir"},
            "batch_size": model.batch_size,
            "learning_rate": model.learning_rate,
            "learning_starts_steps": model.learning_starts,
            "gradient_steps": model.gradient_steps,
            "gamma": model.gamma,
        },
    }
    write_json(config.run_dir / "summary.json", summary)
    return summary


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    exit_with(main, tyro.cli(Config, description=__doc__))
