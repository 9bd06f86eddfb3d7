"""Gymnasium environments with continuous actions, several in one process, behind the interface of
the others: ``reset``, ``send``, ``recv``, ``observation``, ``state_dict``.

MuJoCo, classic control (Pendulum), anything with Box observations and actions. MuJoCo simulations
are saved and go on exactly.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from classicrl.envs.gym_envs import GymEnvs
from classicrl.envs.plain_state import layers_of, plain_attributes, restore_attributes
from classicrl.errors import UserError


@dataclass(frozen=True)
class ControlProtocol:
    """What is agreed on beside the environment.

    Attributes:
        name: how it is called in settings and in saved state.
        max_episode_steps: episodes are cut here; None for what the environment itself says.
    """

    name: str
    max_episode_steps: int | None = None


CONTROL_PROTOCOLS: dict[str, ControlProtocol] = {"control": ControlProtocol("control")}


class ControlStep(NamedTuple):
    """What one step of N environments brought."""

    obs: NDArray[np.float32]  # [N, S], what is acted on next: of the new episode where one ended
    reward: NDArray[np.float32]  # [N]
    terminated: NDArray[np.bool_]  # [N], no value follows this step
    ended: NDArray[np.bool_]  # [N], the episode is over, terminated or cut
    final_obs: NDArray[np.float32]  # [sum(ended), S], last observations of the ended episodes
    power: NDArray[np.float64]  # [N] watts, sum of |actuator force * velocity|; NaN: not known
    position: NDArray[np.float64]  # [N] metres walked, as the environment says; NaN: not known


class ContinuousVector(GymEnvs):
    """N environments with continuous actions, as :class:`~classicrl.envs.gym_envs.GymEnvs`.

    Actions are float32 ``[N, A]``, as the environment counts them, and not clipped here;
    observations float32 ``[N, S]``.

    Args:
        env_id: a name that gymnasium knows.
        num_envs: N.
        seeds: one per environment, or one for all, from which theirs are derived.
        max_episode_steps: episodes are cut here; None for what the environment itself says.
        render_mode: ``rgb_array`` for pictures (see :meth:`picture`).

    Attributes:
        low, high: float32 ``[A]``, limits of the actions.
        dt: seconds between two actions; NaN if the environment does not say.
        weight: newtons, of all bodies; NaN if not known.

    Raises:
        UserError: for an unknown environment, a missing package, or spaces that are not vectors of
            numbers.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seeds: int | list[int],
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
            # Gymnasium would try a window first, and take it without one.
            os.environ.setdefault("MUJOCO_GL", "egl")
        super().__init__(
            env_id,
            num_envs,
            seeds=seeds,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
        first = self._envs[0]
        observation, action = first.observation_space, first.action_space
        if not isinstance(action, gymnasium.spaces.Box) or len(action.shape) != 1:
            raise UserError(
                f"{env_id} takes {action}; only vectors of numbers (Box) are supported here: for "
                "discrete actions there is agents/va_classic_control.py"
            )
        if not isinstance(observation, gymnasium.spaces.Box) or len(observation.shape) != 1:
            raise UserError(f"{env_id} shows {observation}; only vectors (Box) are supported")
        if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
            raise UserError(f"{env_id} takes actions without limits, {action}: not supported")
        self.low, self.high = action.low.astype(np.float32), action.high.astype(np.float32)
        self.obs_size, self.action_size = observation.shape[0], action.shape[0]
        self._show((self.obs_size,), np.dtype(np.float32))
        self._is_mujoco = _is_mujoco(first)
        self.dt = _control_period(first)
        self.weight = float("nan")
        if self._is_mujoco:
            model: Any = first.unwrapped.model  # type: ignore[attr-defined]
            gravity = float(np.linalg.norm(model.opt.gravity))
            self.weight = float(model.body_mass.sum()) * gravity
        self._last: list[_LastStep] = [None] * num_envs
        self._power, self._position = np.full((2, num_envs), np.nan)

    @property
    def centre(self) -> NDArray[np.float32]:
        """Middle of the range of actions, ``[A]``."""
        return np.asarray((self.low + self.high) / 2, dtype=np.float32)

    @property
    def half_range(self) -> NDArray[np.float32]:
        """Half the width of the range of actions, ``[A]``."""
        return np.asarray((self.high - self.low) / 2, dtype=np.float32)

    def _begin_episode(self, i: int, seed: int | None = None) -> NDArray[Any]:
        self._last[i] = None
        return super()._begin_episode(i, seed)

    def _checked_actions(self, actions: NDArray[np.float32]) -> NDArray[Any]:
        actions = np.asarray(actions, dtype=np.float32)
        if actions.shape != (self.num_envs, self.action_size):
            raise ValueError(
                f"expected actions {(self.num_envs, self.action_size)}, got {actions.shape}"
            )
        return actions.copy()

    def _action_of(self, i: int, actions: NDArray[Any]) -> Any:
        if self._is_mujoco:
            self._last[i] = (_physics_state(self._envs[i]), actions[i])
        return actions[i]

    def _look(self, i: int, info: dict[str, Any]) -> None:
        if self._is_mujoco:
            data: Any = self._envs[i].unwrapped.data  # type: ignore[attr-defined]
            self._power[i] = np.abs(data.qfrc_actuator * data.qvel).sum()
        self._position[i] = info.get("x_position", np.nan)

    def recv(self) -> ControlStep:
        """Plays the sent actions and returns the step.

        Raises:
            EnvironmentFault: if one fails, or shows what is not finite or of another shape.
        """
        step = self._play_pending()
        return ControlStep(*step, self._power.copy(), self._position.copy())

    def step(self, actions: NDArray[np.float32]) -> ControlStep:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def picture(self, index: int = 0) -> NDArray[np.uint8]:
        """The present state of one environment, uint8 ``[height, width, 3]``.

        Raises:
            UserError: if nothing can be drawn on this machine.
        """
        try:
            with warnings.catch_warnings():  # of the ways to draw that were tried in vain
                warnings.simplefilter("ignore")
                frame: Any = self._envs[index].render()
        # Whatever graphics drivers, GL libraries and gymnasium raise between them.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"no picture of {self.env_id} can be drawn here ({reason}): MuJoCo needs EGL or "
                "OSMesa (set MUJOCO_GL=egl or osmesa), classic control needs pygame "
                "(pip install pygame)"
            ) from error
        if frame is None:
            raise UserError(f"{self.env_id} draws no pictures")
        return np.asarray(frame, dtype=np.uint8)

    def _state_of(self, i: int) -> Any:
        """Of MuJoCo the physics state, that before the last step, the generators and the wrappers'
        counters."""
        env, last = self._envs[i], self._last[i]
        if not self._is_mujoco:
            return super()._state_of(i)
        *wrappers, inner = layers_of(env)
        return {
            "layers": [*map(plain_attributes, wrappers), plain_attributes(inner, skip=True)],
            "physics": _physics_state(env),
            "before": None if last is None else {"physics": last[0], "action": last[1]},
        }

    def _restore(self, i: int, saved: Any) -> bool:
        """Puts one environment back; False if the simulation does not come out the same here."""
        env = self._envs[i]
        if not self._is_mujoco:
            return super()._restore(i, saved)
        import mujoco

        for layer, attributes in zip(layers_of(env), saved["layers"], strict=True):
            restore_attributes(layer, attributes)
        inner: Any = env.unwrapped
        if len(saved["physics"]) != len(_physics_state(env)):  # another version of MuJoCo
            return False
        # Rewards and observations are made of derived quantities too, and those lag behind the
        # state. So the last step is simulated again.
        before = saved["before"]
        if before is None:
            _set_physics_state(env, saved["physics"])
            mujoco.mj_forward(inner.model, inner.data)
            _set_physics_state(env, saved["physics"])  # the solver's warm start, as it was
            return True
        _set_physics_state(env, before["physics"])
        inner.do_simulation(before["action"], inner.frame_skip)
        self._last[i] = (before["physics"], before["action"])
        return bool(np.array_equal(_physics_state(env), saved["physics"]))


_LastStep = tuple[NDArray[np.float64], NDArray[np.float32]] | None
"""The physics state before the last step of an episode, and the action; None before the first."""


def _is_mujoco(env: gymnasium.Env[Any, Any]) -> bool:
    inner: Any = env.unwrapped
    return type(getattr(inner, "data", None)).__name__ == "MjData" and hasattr(inner, "frame_skip")


def _physics_state(env: gymnasium.Env[Any, Any]) -> NDArray[np.float64]:
    import mujoco

    inner: Any = env.unwrapped
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(inner.model, kind))
    mujoco.mj_getState(inner.model, inner.data, state, kind)
    return state


def _set_physics_state(env: gymnasium.Env[Any, Any], state: NDArray[np.float64]) -> None:
    import mujoco

    inner: Any = env.unwrapped
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(inner.model, inner.data, state, kind)


def _control_period(env: gymnasium.Env[Any, Any]) -> float:
    """Seconds between two actions; NaN if the environment does not say."""
    period = getattr(env.unwrapped, "dt", None)  # MuJoCo, Pendulum
    if period is None:
        rate = env.unwrapped.metadata.get("render_fps")
        period = 1.0 / rate if rate else float("nan")
    return float(period)
