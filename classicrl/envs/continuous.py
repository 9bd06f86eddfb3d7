"""Gymnasium environments with continuous actions, several in one process, behind the interface of
the others: ``reset``, ``send``, ``recv``, ``observation``, ``state_dict``.

MuJoCo, classic control (Pendulum), anything with Box observations and actions. An episode that ends
is followed by a new one in the same step, and its true last observation is handed out, so a time
limit can be bootstrapped through. MuJoCo simulations are saved and go on exactly.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from classicrl import watch
from classicrl.envs.faults import Stepping
from classicrl.envs.gym_vector import (
    layers_of,
    make_gym,
    plain_attributes,
    plain_state_of,
    restore_attributes,
    restore_plain_state,
)
from classicrl.errors import UserError
from classicrl.types import NO_LIMIT


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


class ContinuousVector:
    """N environments of one kind, stepped one after the other in this process.

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
        if num_envs < 1:
            raise UserError(f"num_envs is {num_envs}: choose 1 or more")
        if isinstance(seeds, int):
            words = np.random.SeedSequence(seeds).generate_state(num_envs)
            seeds = [int(word >> 1) for word in words]
        if len(seeds) != num_envs:
            raise ValueError(f"{len(seeds)} seeds for {num_envs} environments")
        if render_mode is not None and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
            # Gymnasium would try a window first, and take it without one.
            os.environ.setdefault("MUJOCO_GL", "egl")
        self.env_id = env_id
        self.num_envs = num_envs
        self._seeds = seeds
        self._starts = 0
        self._stepping = Stepping(env_id, seeds)
        self._envs = [make_gym(env_id, max_episode_steps, render_mode) for _ in range(num_envs)]
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
        limit = None if first.spec is None else first.spec.max_episode_steps
        self.max_episode_steps = limit or NO_LIMIT
        self._is_mujoco = _is_mujoco(first)
        self.dt = _control_period(first)
        self.weight = float("nan")
        if self._is_mujoco:
            model: Any = first.unwrapped.model  # type: ignore[attr-defined]
            gravity = float(np.linalg.norm(model.opt.gravity))
            self.weight = float(model.body_mass.sum()) * gravity
        self._obs = np.zeros((num_envs, self.obs_size), dtype=np.float32)
        self._last: list[_LastStep] = [None] * num_envs
        self._plain_states = not self._is_mujoco
        self.resumed_exactly = False
        self._started = False
        self._pending: NDArray[np.float32] | None = None

    @property
    def centre(self) -> NDArray[np.float32]:
        """Middle of the range of actions, ``[A]``."""
        return np.asarray((self.low + self.high) / 2, dtype=np.float32)

    @property
    def half_range(self) -> NDArray[np.float32]:
        """Half the width of the range of actions, ``[A]``."""
        return np.asarray((self.high - self.low) / 2, dtype=np.float32)

    def reset(self) -> NDArray[np.float32]:
        """Begins a new episode everywhere; the first observations, ``[N, S]``.

        Raises:
            EnvironmentFault: if one fails, or shows what is not finite or of another shape.
        """
        self._started, self._pending = True, None
        for i, seed in enumerate(self._seeds):
            # Another start, other episodes: a resumed run does not repeat those it has played.
            mixed = np.random.SeedSequence([seed, self._starts]).generate_state(1)[0]
            self._obs[i] = self._begin_episode(i, seed=int(mixed >> 1))
        self._stepping.require_finite("an observation", self._obs, range(self.num_envs))
        self._starts += 1
        return self.observation()

    def _begin_episode(self, i: int, seed: int | None = None) -> NDArray[Any]:
        self._stepping.at, self._last[i] = i, None
        try:
            obs, _ = self._envs[i].reset(seed=seed)
        except Exception as error:
            raise self._stepping.fault(error) from error
        return self._stepping.checked(obs, (self.obs_size,), self._obs.dtype)

    def observation(self) -> NDArray[np.float32]:
        """What is acted on next, ``[N, S]``."""
        if not self._started:
            raise RuntimeError("observation() before reset() or load_state_dict()")
        return self._obs.copy()

    def send(self, actions: NDArray[np.float32]) -> None:
        """Takes the next actions, ``[N, A]``, as the environment counts them; not clipped here."""
        if not self._started:
            raise RuntimeError("send() before reset() or load_state_dict()")
        if self._pending is not None:
            raise RuntimeError("send() twice without a recv() between")
        actions = np.asarray(actions, dtype=np.float32)
        if actions.shape != (self.num_envs, self.action_size):
            raise ValueError(
                f"expected actions {(self.num_envs, self.action_size)}, got {actions.shape}"
            )
        self._pending = actions.copy()

    def recv(self) -> ControlStep:
        """Plays the sent actions and returns the step.

        Raises:
            EnvironmentFault: if one fails, or shows what is not finite or of another shape.
        """
        if self._pending is None:
            raise RuntimeError("recv() without a send() before it")
        actions, self._pending = self._pending, None
        self._stepping.steps += 1
        watch.doing = self._stepping
        try:
            return self._play(actions)
        finally:
            watch.doing = None

    def _play(self, actions: NDArray[np.float32]) -> ControlStep:
        reward = np.zeros(self.num_envs, dtype=np.float32)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        ended = np.zeros(self.num_envs, dtype=np.bool_)
        power, position = np.full((2, self.num_envs), np.nan)
        final_obs = []
        for i, env in enumerate(self._envs):
            if self._is_mujoco:
                self._last[i] = (_physics_state(env), actions[i])
            self._stepping.at = i
            try:
                obs, value, terminated[i], truncated, info = env.step(actions[i])
                reward[i] = float(value)
            except Exception as error:
                raise self._stepping.fault(error) from error
            obs = self._stepping.checked(obs, (self.obs_size,), self._obs.dtype)
            if self._is_mujoco:
                data: Any = env.unwrapped.data  # type: ignore[attr-defined]
                power[i] = np.abs(data.qfrc_actuator * data.qvel).sum()
            position[i] = info.get("x_position", np.nan)
            if terminated[i] or truncated:
                ended[i] = True
                final_obs.append(np.array(obs, dtype=np.float32))
                obs = self._begin_episode(i)
            self._obs[i] = obs
        last = np.stack(final_obs) if final_obs else self._obs[:0].copy()
        everywhere = range(self.num_envs)
        self._stepping.require_finite("a reward", reward, everywhere)
        self._stepping.require_finite("an observation", self._obs, everywhere)
        if final_obs:
            ends = np.flatnonzero(ended).tolist()
            self._stepping.require_finite("a last observation", last, ends)
        return ControlStep(self.observation(), reward, terminated, ended, last, power, position)

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
                "OSMesa (set MUJOCO_GL=egl or osmesa), classic control needs pygame"
            ) from error
        if frame is None:
            raise UserError(f"{self.env_id} draws no pictures")
        return np.asarray(frame, dtype=np.uint8)

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs:
            env.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs, where that can be had.

        Of MuJoCo the physics state, that before the last step, the generators and the wrappers'
        counters; of others what :class:`~classicrl.envs.gym_vector.GymVector` saves.
        """
        if self._pending is not None:
            raise RuntimeError("state_dict() between send() and recv(): receive the step first")
        states: list[Any] = []
        if self._started:
            states = [self._state_of(i) for i in range(self.num_envs)]
        return {
            "env_id": self.env_id,
            "starts": self._starts,
            "steps": self._stepping.steps,
            "obs": self._obs.copy(),
            "envs": states,
        }

    def _state_of(self, index: int) -> Any:
        env, last = self._envs[index], self._last[index]
        if not self._is_mujoco:
            return plain_state_of(env)
        *wrappers, inner = layers_of(env)
        return {
            "layers": [*map(plain_attributes, wrappers), plain_attributes(inner, skip=True)],
            "physics": _physics_state(env),
            "before": None if last is None else {"physics": last[0], "action": last[1]},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken; no `reset` is needed.

        ``resumed_exactly`` then says whether every environment goes on exactly; if not, new
        episodes have begun in all.

        Raises:
            UserError: when the state is that of another environment.
        """
        if state["env_id"] != self.env_id or len(state["obs"]) != self.num_envs:
            raise UserError(
                f"the saved environments are {len(state['obs'])} of {state['env_id']}, here they "
                f"are {self.num_envs} of {self.env_id}: use the same"
            )
        self._starts = int(state["starts"])
        self._stepping.steps = int(state.get("steps", 0))  # not there in older checkpoints
        self.resumed_exactly = False
        self.reset()
        if not state["envs"] or any(saved is None for saved in state["envs"]):
            return
        for i, saved in enumerate(state["envs"]):
            if not self._restore(i, saved):
                self.reset()
                return
        self._starts = int(state["starts"])
        self._obs[:] = state["obs"]
        self.resumed_exactly = True

    def _restore(self, index: int, saved: Any) -> bool:
        """Puts one environment back; False if the simulation does not come out the same here."""
        env = self._envs[index]
        if not self._is_mujoco:
            restore_plain_state(env, saved)
            return True
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
        self._last[index] = (before["physics"], before["action"])
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
