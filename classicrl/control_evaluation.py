"""Playing a policy of continuous actions without learning: returns of whole episodes, how smooth
its actions are, and a picture of one episode."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classicrl.envs.continuous import ContinuousVector, ControlProtocol
from classicrl.evaluation import EVALUATION_SEED, Evaluation, write_gif
from classicrl.smoothness import SmoothnessMeter, normalised, spectrum

ControlPolicy = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Deterministic actions, as the environment counts them: ``[N, S]`` -> float32 ``[N, A]``."""

_GIF_FRAMES_PER_SECOND = 25
_GIF_MAX_WIDTH = 320


class ControlEvaluator:
    """Plays whole episodes with a policy, on seeds that no training uses.

    Args:
        policy: deterministic actions.
        env_id, protocol: the environment and where its episodes are cut.
        seed: the same seed plays the same episodes.
        should_stop: asked at every step; what is under way is then given up.
    """

    def __init__(
        self,
        policy: ControlPolicy,
        env_id: str,
        protocol: ControlProtocol,
        *,
        seed: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy = policy
        self.env_id = env_id
        self.protocol = protocol
        self.seed = seed + EVALUATION_SEED
        self.should_stop = should_stop

    def play(self, episodes: int) -> Evaluation | None:
        """The first episode of as many environments, side by side.

        Returns:
            The scores with the figures of ``smoothness.py``, ``mean_steps`` of an episode and
            ``action_spectrum``; None if it was stopped before the last episode was over.
        """
        env = self._make(episodes)
        meter = SmoothnessMeter(episodes, env.low, env.high, dt=env.dt, weight=env.weight)
        returns = np.zeros(episodes)
        num_steps = np.zeros(episodes, dtype=np.int64)
        playing = np.ones(episodes, dtype=np.bool_)
        taken: list[NDArray[np.float32]] = []
        obs = env.reset()
        try:
            while playing.any():
                if self.should_stop():
                    return None
                # Of all, so that the rounding of an episode does not depend on the others' ends.
                action = self.policy(obs)
                step = env.step(action)
                returns[playing] += step.reward[playing]
                num_steps[playing] += 1
                taken.append(normalised(action, env.low, env.high).astype(np.float32))
                meter.add(action, step.ended, step.power, step.position, counted=playing)
                playing &= ~step.ended
                obs = step.obs
        finally:
            env.close()
        figures = meter.figures()
        spectra = [
            spectrum(np.stack([x[i] for x in taken[:steps]]).astype(np.float64), env.dt)
            for i, steps in enumerate(num_steps)
        ]
        known = [value for value in spectra if not math.isnan(value)]
        figures["action_spectrum"] = float(np.mean(known)) if known else math.nan
        figures["mean_steps"] = float(num_steps.mean())
        return Evaluation(
            returns.tolist(), num_steps.tolist(), 0.0, env.max_episode_steps, figures, "steps"
        )

    def require_gif(self) -> None:
        """Refuses an environment of which this machine can draw no picture.

        Raises:
            UserError: saying why.
        """
        with contextlib.closing(self._make(1, render_mode="rgb_array")) as env:
            env.reset()
            env.picture()

    def record_gif(self, path: Path, max_seconds: float = 10.0) -> bool:
        """Plays one episode and writes it as a GIF, in real time; False if it was stopped.

        Raises:
            UserError: if this machine can draw no picture of it.
        """
        env = self._make(1, render_mode="rgb_array")
        dt = env.dt if math.isfinite(env.dt) else 1.0 / _GIF_FRAMES_PER_SECOND
        period = max(1, round(1.0 / (_GIF_FRAMES_PER_SECOND * dt)))  # steps per picture
        pictures: list[NDArray[np.uint8]] = []
        try:
            obs = env.reset()
            for step in range(round(max_seconds / dt)):
                if self.should_stop():
                    return False
                if step % period == 0:
                    pictures.append(_small(env.picture()))
                result = env.step(self.policy(obs))
                if result.ended[0]:
                    break
                obs = result.obs
        finally:
            env.close()
        write_gif(path, pictures, milliseconds=1000 * period * dt)
        return True

    def _make(self, num_envs: int, render_mode: str | None = None) -> ContinuousVector:
        return ContinuousVector(
            self.env_id,
            num_envs,
            seeds=self.seed,
            max_episode_steps=self.protocol.max_episode_steps,
            render_mode=render_mode,
        )


def _small(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    scale = max(1.0, width / _GIF_MAX_WIDTH)
    size = (round(width / scale), round(height / scale))
    return np.asarray(Image.fromarray(frame).resize(size))
