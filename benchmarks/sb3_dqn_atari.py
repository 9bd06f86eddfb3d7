"""Stable-Baselines3's own DQN on one Atari game: a peer for our learning curves.

Everything that learns or plays is SB3's: the algorithm, the replay buffer, the Atari wrappers, the
evaluation. This script only chooses the settings and writes the results down. Install with
`pip install -c constraints.txt -e '.[atari,bench]'`, or without classicrl, which it does not use:
`pip install -c constraints.txt stable-baselines3 ale-py opencv-python-headless tyro torch numpy`.

Where SB3 differs from the papers (Mnih et al. 2013, 2015), SB3's way is kept:

- The loss is smooth-L1 and the norm of the gradient is clipped at 10.
- The replay buffer stores every observation twice: 100,000 transitions are 5.6 GB once it is full.
- `target_update_interval` counts agent steps of all environments together, from the first step on,
  not updates. 1000 steps are 250 updates.
- Before `learning_starts`, all actions are random, whatever epsilon says.
- With several environments, one draw decides for all of them whether this step's actions are
  random.
- A game starts with 1 to 30 no-op frames, then FIRE and the action after it for one agent step
  each, where the game has FIRE; so does the next life after a lost one.

A step is one decision of the agent in one environment, four emulator frames. In training a lost
life ends the episode and rewards are clipped to their sign. Returns, in training and in
evaluation, are those of whole games with unclipped rewards, because SB3's Monitor sits beneath the
wrappers which do both. A game is cut after 108,000 frames.

Writes into the run directory:

- `metrics.csv`, a row per 5,000 steps: step; episodic_return, the mean of the last 20 training
  games; loss, the mean since the row before; steps_per_second since the row before, evaluations
  and saves not counted; wall_seconds since training began, all counted.
- `evaluations.csv`, a row per evaluation: step, mean_return, std_return (population), episodes,
  epsilon.
- `model.zip`, SB3's format, without the replay buffer. It contains pickles.
- `summary.json`, at the end. Its `eval` is the final evaluation; where the run was stopped,
  `completed` is false and `eval` is the last one that was finished, or null.

SIGTERM and SIGINT end the run within a step, without the final evaluation; all that was learned so
far is written. The exit codes are then 75 and 130. A run cannot be resumed.
"""

import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

try:
    import ale_py
    import cv2
    import gymnasium
    import numpy as np
    import torch
    import tyro
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
    from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage
except ImportError as error:
    print(f"{error}: pip install -c constraints.txt -e '.[atari,bench]'", file=sys.stderr)
    sys.exit(2)

METRICS_EVERY_STEPS = 5_000
RETURN_WINDOW_EPISODES = 20
MAX_FRAMES_PER_EPISODE = 108_000
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains Stable-Baselines3's DQN on one Atari game and writes learning curves."""

    run_dir: Path
    """Where the results go; must not hold a run already."""
    env_id: str = "ALE/Pong-v5"
    """Game, as ale-py names it. Sticky actions are off; the action set is the minimal one."""
    total_steps: int = 500_000
    """Agent steps, summed over environments (1 step = 4 frames)."""
    seed: int = 1
    torso: Literal["2013", "nature"] = "2013"
    """2013: conv 16 8x8/4, 32 4x4/2, linear 256. nature: SB3's NatureCNN, linear 512."""
    n_envs: int = 1
    """Environments, stepped one after the other. There is one update per 4 steps in any case."""
    threads: int = 1
    """CPU threads of torch and OpenCV."""
    device: str = "auto"
    """auto, cpu or cuda."""
    buffer_size: int = 100_000
    """Transitions; 56 kB each."""
    learning_starts_steps: int | None = None
    """Steps before the first update; by default min(80,000, 5% of the run)."""
    learning_rate: float = 1e-4
    batch_size: int = 32
    gamma: float = 0.99
    target_update_interval_steps: int = 1_000
    exploration_fraction: float = 0.1
    """Part of the run over which epsilon falls from 1 to its final value."""
    exploration_final_epsilon: float = 0.01
    eval_every_steps: int = 100_000
    eval_episodes: int = 10
    final_eval_episodes: int = 30
    eval_epsilon: float = 0.01
    save_every_steps: int = 100_000


class Torso2013(BaseFeaturesExtractor):
    """The torso of Mnih et al. 2013: [B, 4, 84, 84] in [0, 1] -> [B, 256]."""

    def __init__(self, observation_space: gymnasium.spaces.Box) -> None:
        super().__init__(observation_space, features_dim=256)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(observation_space.shape[0], 16, 8, stride=4),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 4, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(32 * 9 * 9, 256),
            torch.nn.ReLU(),
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


class Stopped(Exception):
    """A signal has asked the run to end while an evaluation was under way."""


class CsvFile:
    """A table that is complete on disk after every row."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._file = path.open("x", newline="")
        self._columns = columns
        self._writer = csv.writer(self._file)
        self._write(columns)

    def row(self, **values: object) -> None:
        """Appends one row; None becomes an empty cell."""
        self._write([values[column] for column in self._columns])

    def _write(self, cells: Any) -> None:
        self._writer.writerow(cells)
        self._file.flush()


class Recorder(BaseCallback):
    """Writes metrics, evaluations and saves at their steps, and ends the run on a signal.

    `stop_signal` is the signal received, or None; `last_eval` the last evaluation that was
    finished, or None; `training_seconds` the time spent apart from evaluations and saves.
    """

    def __init__(self, config: Config, eval_env: VecEnv) -> None:
        super().__init__()
        self._config = config
        self._eval_env = eval_env
        self._metrics = CsvFile(
            config.run_dir / "metrics.csv",
            ("step", "episodic_return", "loss", "steps_per_second", "wall_seconds"),
        )
        self._evaluations = CsvFile(
            config.run_dir / "evaluations.csv",
            ("step", "mean_return", "std_return", "episodes", "epsilon"),
        )
        self._losses: list[float] = []
        self._next_metrics_step = METRICS_EVERY_STEPS
        self._next_eval_step = config.eval_every_steps
        self._next_save_step = config.save_every_steps
        self._started = self._last_row_time = time.perf_counter()
        self._last_row_step = 0
        self._paused_seconds = 0.0
        self._paused_seconds_at_last_row = 0.0
        self.stop_signal: signal.Signals | None = None
        self.last_eval: dict[str, float] | None = None

    def request_stop(self, signal_number: int, _frame: object) -> None:
        """Signal handler: the run ends at the next step; a second signal ends it at once."""
        self.stop_signal = signal.Signals(signal_number)
        signal.signal(signal_number, signal.SIG_DFL)

    @property
    def wall_seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def training_seconds(self) -> float:
        return self.wall_seconds - self._paused_seconds

    def _on_training_start(self) -> None:
        self._started = self._last_row_time = time.perf_counter()

    def _on_rollout_start(self) -> None:
        # SB3 leaves the loss of each call of train() in its logger; taking it away counts it once.
        loss = self.logger.name_to_value.pop("train/loss", None)
        if loss is not None:
            self._losses.append(float(loss))

    def _on_step(self) -> bool:
        config, step = self._config, self.num_timesteps
        if step >= self._next_metrics_step:
            self.write_metrics()
            self._next_metrics_step += METRICS_EVERY_STEPS
        # At the last step the final evaluation and the final save take their place.
        if self._next_eval_step <= step < config.total_steps:
            try:
                self.evaluate(config.eval_episodes)
            except Stopped:
                return False
            self._next_eval_step += config.eval_every_steps
        if self._next_save_step <= step < config.total_steps:
            self.save()
            self._next_save_step += config.save_every_steps
        return self.stop_signal is None

    def _pausing(self, job: Callable[[], Any]) -> Any:
        """Does a job whose time does not count as training."""
        began = time.perf_counter()
        try:
            return job()
        finally:
            self._paused_seconds += time.perf_counter() - began

    def write_metrics(self) -> None:
        """Adds a row on the steps since the row before, if there were any, and prints it."""
        step, now = self.num_timesteps, time.perf_counter()
        steps = step - self._last_row_step
        if steps == 0:
            return
        paused = self._paused_seconds - self._paused_seconds_at_last_row
        steps_per_second = steps / (now - self._last_row_time - paused)
        games = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        episodic_return = float(np.mean(games)) if games else None
        loss = float(np.mean(self._losses)) if self._losses else None
        self._metrics.row(
            step=step,
            episodic_return=episodic_return,
            loss=loss,
            steps_per_second=round(steps_per_second, 2),
            wall_seconds=round(self.wall_seconds, 2),
        )
        eta_seconds = max(self._config.total_steps - step, 0) / steps_per_second
        print(
            f"step {step:,}/{self._config.total_steps:,}"
            f" | return {'-' if episodic_return is None else f'{episodic_return:.2f}'}"
            f" | loss {'-' if loss is None else f'{loss:.5f}'}"
            f" | {steps_per_second:.0f} steps/s"
            f" | ETA {datetime.timedelta(seconds=round(eta_seconds))} and evaluations",
            flush=True,
        )
        self._losses.clear()
        self._last_row_step, self._last_row_time = step, now
        self._paused_seconds_at_last_row = self._paused_seconds

    def evaluate(self, episodes: int) -> None:
        """Plays whole games with SB3's evaluate_policy. Raises Stopped if a signal comes."""
        returns = self._pausing(lambda: self._play(episodes))
        self.last_eval = {
            "mean_return": float(np.mean(returns)),
            "std_return": float(np.std(returns)),
            "episodes": episodes,
            "epsilon": self._config.eval_epsilon,
        }
        self._evaluations.row(step=self.num_timesteps, **self.last_eval)
        print(
            f"step {self.num_timesteps:,}: {episodes} games, mean return"
            f" {self.last_eval['mean_return']:.2f} +- {self.last_eval['std_return']:.2f}",
            flush=True,
        )

    def _play(self, episodes: int) -> list[float]:
        def stop_if_asked(_locals: object, _globals: object) -> None:
            if self.stop_signal is not None:
                raise Stopped

        # SB3's DQN explores with whatever `exploration_rate` is, and with numpy's global generator:
        # both are put back, so that evaluating changes training as little as possible.
        exploration_rate, random_state = self.model.exploration_rate, np.random.get_state()
        self.model.exploration_rate = self._config.eval_epsilon
        try:
            returns, _ = evaluate_policy(
                self.model,
                self._eval_env,
                n_eval_episodes=episodes,
                deterministic=False,
                callback=stop_if_asked,
                return_episode_rewards=True,
            )
        finally:
            self.model.exploration_rate = exploration_rate
            np.random.set_state(random_state)
        return returns

    def save(self) -> None:
        """Writes model.zip, without the replay buffer; a kill leaves the one before."""
        unfinished = self._config.run_dir / "model.unfinished.zip"
        self._pausing(lambda: self.model.save(unfinished))
        os.replace(unfinished, self._config.run_dir / "model.zip")


def make_env(config: Config, n_envs: int, seed: int) -> VecEnv:
    """SB3's Atari environments: observations [n_envs, 4, 84, 84] uint8, rewards clipped.

    Evaluation uses them too. SB3's evaluate_policy counts games and their unclipped returns by the
    Monitor beneath the wrappers, so lost lives do not end a game there, and FIRE is pressed for
    the agent at each new life as it was in training.
    """
    env = make_atari_env(
        config.env_id,
        n_envs=n_envs,
        seed=seed,
        env_kwargs={
            "frameskip": 1,
            "repeat_action_probability": 0.0,
            "full_action_space": False,
            "max_num_frames_per_episode": MAX_FRAMES_PER_EPISODE,
        },
        wrapper_kwargs={
            "noop_max": 30,
            "frame_skip": 4,
            "screen_size": 84,
            "terminal_on_life_loss": True,
            "clip_reward": True,
        },
    )
    return VecTransposeImage(VecFrameStack(env, n_stack=4))


def make_model(config: Config, env: VecEnv) -> DQN:
    """SB3's DQN with one update per four steps, whatever the number of environments."""
    learning_starts_steps = config.learning_starts_steps
    if learning_starts_steps is None:
        learning_starts_steps = min(80_000, config.total_steps // 20)
    # SB3's train_freq counts steps of the whole set of environments.
    common = math.gcd(4, config.n_envs)
    model = DQN(
        "CnnPolicy",
        env,
        learning_rate=config.learning_rate,
        buffer_size=config.buffer_size,
        learning_starts=learning_starts_steps,
        batch_size=config.batch_size,
        gamma=config.gamma,
        train_freq=4 // common,
        gradient_steps=config.n_envs // common,
        target_update_interval=config.target_update_interval_steps,
        exploration_fraction=config.exploration_fraction,
        exploration_initial_eps=1.0,
        exploration_final_eps=config.exploration_final_epsilon,
        stats_window_size=RETURN_WINDOW_EPISODES,
        policy_kwargs={
            "features_extractor_class": Torso2013 if config.torso == "2013" else NatureCNN,
            "net_arch": [],  # SB3 would put two layers of 64 units after a torso of ours
        },
        seed=config.seed,
        device=config.device,
    )
    # SB3's default logger would leave a directory in the system's temporary one at every run.
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def write_summary(config: Config, model: DQN, recorder: Recorder, completed: bool) -> None:
    packages = ("stable-baselines3", "torch", "gymnasium", "ale-py", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    summary = {
        "agent": "sb3-dqn",
        "env_id": config.env_id,
        "seed": config.seed,
        "completed": completed,
        "total_steps": model.num_timesteps,
        "num_updates": model._n_updates,
        "eval": recorder.last_eval,
        "steps_per_second": model.num_timesteps / recorder.training_seconds,
        "wall_seconds": recorder.wall_seconds,
        "device": str(model.device),
        "versions": {"python": platform.python_version(), "opencv": cv2.__version__, **versions},
        "config": {
            **dataclasses.asdict(config),
            "run_dir": config.run_dir.name,
            "learning_starts_steps": model.learning_starts,
            "train_every_env_steps": model.train_freq.frequency,
            "gradient_steps": model.gradient_steps,
            "max_grad_norm": model.max_grad_norm,
        },
        "num_parameters": sum(p.numel() for p in model.q_net.parameters()),
    }
    text = json.dumps(summary, indent=2) + "\n"
    (config.run_dir / "summary.json").write_text(text, encoding="utf-8")


def main(config: Config) -> int:
    gymnasium.register_envs(ale_py)
    try:
        gymnasium.spec(config.env_id)
    except gymnasium.error.Error as error:
        print(f"--env-id {config.env_id}: {error}", file=sys.stderr)
        return 2
    config.run_dir.mkdir(parents=True, exist_ok=True)
    if any(config.run_dir.iterdir()):
        print(f"{config.run_dir} is not empty: name a new --run-dir", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)  # as classicrl does; without it an update takes far longer
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(config.threads)

    env = make_env(config, config.n_envs, config.seed)
    # One environment, because SB3's exploring draws once for all of them.
    recorder = Recorder(config, make_env(config, 1, config.seed + 10_000))
    model = make_model(config, env)
    for signal_number in EXIT_CODES:
        signal.signal(signal_number, recorder.request_stop)

    model.learn(config.total_steps, callback=recorder, log_interval=None)
    recorder.write_metrics()
    recorder.save()
    # Before the final evaluation too, so that a kill during it loses nothing else.
    write_summary(config, model, recorder, completed=False)
    if recorder.stop_signal is None:
        # A signal during it: the summary written above stands.
        with contextlib.suppress(Stopped):
            recorder.evaluate(config.final_eval_episodes)
            write_summary(config, model, recorder, completed=True)
    if recorder.stop_signal is None:
        return 0
    print(
        f"stopped by {recorder.stop_signal.name} at step {model.num_timesteps:,};"
        f" what was learned is in {config.run_dir}",
        file=sys.stderr,
    )
    return EXIT_CODES[recorder.stop_signal]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
