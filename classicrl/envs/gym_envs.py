"""Gymnasium environments, several in one process: what discrete and continuous actions have in
common.

Seeds, episodes that follow one another, faults named in one line, a state that a checkpoint holds.
``gym_vector.py`` and ``continuous.py`` add the spaces, and what a step brings beyond this.
"""

import abc
import difflib
import os
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from classicrl import watch
from classicrl.envs import exploration
from classicrl.envs.faults import Stepping
from classicrl.envs.plain_state import plain_state_of, restore_plain_state
from classicrl.errors import UserError
from classicrl.types import NO_LIMIT

_BOOLEANS = (bool, np.bool_)


class VectorStep(NamedTuple):
    """What one step of N environments brought."""

    obs: NDArray[Any]  # [N, *obs_shape], what is acted on next: of the new episode where one ended
    reward: NDArray[np.float32]  # [N]
    terminated: NDArray[np.bool_]  # [N], no value follows this step
    ended: NDArray[np.bool_]  # [N], the episode is over, terminated or cut
    final_obs: NDArray[Any]  # [sum(ended), *obs_shape], last observations of the ended episodes


class GymEnvs(abc.ABC):
    """N environments of one kind, stepped one after the other in this process.

    An episode that ends is followed by a new one in the same step, and its true last observation is
    handed out, so a time limit can be bootstrapped through. A subclass looks at the spaces and
    calls :meth:`_show`.

    Args:
        env_id: a name that gymnasium knows, or ``MinAtar/<Game>-v1``.
        num_envs: N.
        seeds: one per environment, or one for all, from which theirs are derived.
        max_episode_steps: episodes are cut here; None for what the environment itself says.
        render_mode: ``rgb_array`` for pictures; None for none.

    Raises:
        UserError: for an unknown environment or a missing package.
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
        self.env_id = env_id
        self.num_envs = num_envs
        self._seeds = seeds
        self._starts = 0
        self._stepping = Stepping(env_id, seeds)
        self._envs = [make_gym(env_id, max_episode_steps, render_mode) for _ in range(num_envs)]
        spec = self._envs[0].spec
        limit = None if spec is None else spec.max_episode_steps
        self.max_episode_steps = limit or NO_LIMIT
        self.resumed_exactly = False
        self._started = False
        self._pending: NDArray[Any] | None = None
        self._obs: NDArray[Any]

    def _show(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Observations come in this shape and type from now on."""
        self._obs = np.zeros((self.num_envs, *shape), dtype=dtype)

    def reset(self) -> NDArray[Any]:
        """Begins a new episode everywhere; the first observations, ``[N, *obs_shape]``.

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
        self._stepping.at = i
        try:
            obs, _ = self._envs[i].reset(seed=seed)
        except Exception as error:
            raise self._stepping.fault(error) from error
        return self._stepping.checked(obs, self._obs.shape[1:], self._obs.dtype)

    def observation(self) -> NDArray[Any]:
        """What is acted on next, ``[N, *obs_shape]``."""
        if not self._started:
            raise RuntimeError("observation() before reset() or load_state_dict()")
        return self._obs.copy()

    def send(self, actions: NDArray[Any]) -> None:
        """Takes the next actions, one for each environment.

        Raises:
            ValueError: if they are not what the environments take.
        """
        if not self._started:
            raise RuntimeError("send() before reset() or load_state_dict()")
        if self._pending is not None:
            raise RuntimeError("send() twice without a recv() between")
        self._pending = self._checked_actions(actions)

    @abc.abstractmethod
    def _checked_actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        """The actions as they will be taken; ValueError for what cannot be."""

    def _play_pending(self) -> VectorStep:
        """Plays the sent actions."""
        if self._pending is None:
            raise RuntimeError("recv() without a send() before it")
        actions, self._pending = self._pending, None
        self._stepping.steps += 1
        watch.doing = self._stepping
        try:
            return self._play(actions)
        finally:
            watch.doing = None

    def _play(self, actions: NDArray[Any]) -> VectorStep:
        reward = np.zeros(self.num_envs, dtype=np.float32)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        ended = np.zeros(self.num_envs, dtype=np.bool_)
        shape, dtype = self._obs.shape[1:], self._obs.dtype
        final_obs = []
        stepping = self._stepping
        for i, env in enumerate(self._envs):
            stepping.at = i
            action = self._action_of(i, actions)
            try:
                obs, reward[i], over, truncated, info = env.step(action)
            except Exception as error:
                raise stepping.fault(error) from error
            if not isinstance(over, _BOOLEANS) or not isinstance(truncated, _BOOLEANS):
                raise stepping.fault(f"said terminated={over!r}, truncated={truncated!r}")
            terminated[i] = over
            obs = stepping.checked(obs, shape, dtype)
            self._look(i, info)
            if over or truncated:
                ended[i] = True
                final_obs.append(np.array(obs, dtype=dtype))
                obs = self._begin_episode(i)
            self._obs[i] = obs
        last = np.stack(final_obs) if final_obs else self._obs[:0].copy()
        everywhere = range(self.num_envs)
        stepping.require_finite("a reward", reward, everywhere)
        stepping.require_finite("an observation", self._obs, everywhere)
        if final_obs:
            stepping.require_finite("a last observation", last, np.flatnonzero(ended).tolist())
        return VectorStep(self.observation(), reward, terminated, ended, last)

    def _action_of(self, i: int, actions: NDArray[Any]) -> Any:
        """The action of environment i, which is about to be stepped."""
        return actions[i]

    def _look(self, i: int, info: dict[str, Any]) -> None:  # noqa: B027, there may be nothing to see
        """Environment i has been stepped; where its episode ended, it is still in the old one."""

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs:
            env.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs, as far as it is plain.

        An environment whose state is not (``plain_state.py``) is left out, and begins a new episode
        when it is loaded.
        """
        if self._pending is not None:
            raise RuntimeError("state_dict() between send() and recv(): receive the step first")
        return {
            "env_id": self.env_id,
            "starts": self._starts,
            "steps": self._stepping.steps,
            "obs": self._obs.copy(),
            "envs": [self._state_of(i) for i in range(self.num_envs)] if self._started else [],
        }

    def _state_of(self, i: int) -> Any:
        """Of one environment, for :meth:`_restore`; None if it cannot be saved."""
        return plain_state_of(self._envs[i])

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

    def _restore(self, i: int, saved: Any) -> bool:
        """Puts one environment back; False if it does not come out the same here."""
        restore_plain_state(self._envs[i], saved)
        return True


def make_gym(
    env_id: str, max_episode_steps: int | None, render_mode: str | None = None
) -> gymnasium.Env[Any, Any]:
    """An environment of gymnasium, or of MinAtar.

    Raises:
        UserError: for an unknown environment or a missing package.
    """
    if env_id.startswith("MinAtar/"):
        _register_minatar(env_id)
    exploration.register()
    if env_id not in gymnasium.registry:
        # Names of other packages would only be near by accident.
        known = [name for name in gymnasium.registry if "/" not in name or name[:8] == env_id[:8]]
        near = difflib.get_close_matches(env_id, known, n=3)
        hint = f": did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"gymnasium knows no environment {env_id!r}{hint}")
    # Not every environment knows the argument.
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gymnasium.make(
            env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **rendering
        )
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"{env_id} needs a package that is not installed: {error}") from error
    except (AttributeError, RuntimeError) as error:
        # MuJoCo loads the library for drawing when it is imported; one that is missing, or a name
        # that it does not know, ends there, whether anything shall be drawn or not.
        library = os.environ.get("MUJOCO_GL")
        if library is None:
            raise
        raise UserError(
            f"{env_id} cannot be made with MUJOCO_GL={library} ({error}): unset it, or name a "
            "library that is there, egl or osmesa"
        ) from error


def _register_minatar(env_id: str) -> None:
    if any(name.startswith("MinAtar/") for name in gymnasium.registry):
        return
    try:
        from minatar.gym import register_envs
    except ImportError as error:
        raise UserError(
            f"{env_id} needs the package minatar: pip install 'classicrl[minatar]'"
        ) from error
    register_envs()
