"""Gymnasium environments with discrete actions, several in one process, behind the interface of the
Atari ones: ``reset``, ``send``, ``recv``, ``observation``, ``state_dict``.

For environments whose step costs microseconds: classic control, MinAtar (through the package
``minatar``), anything with a Box observation. An episode that ends is followed by a new one in the
same step, and its true last observation is handed out, so a time limit can be bootstrapped through.
"""

import difflib
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from classicrl import watch
from classicrl.envs import exploration
from classicrl.envs.faults import Stepping
from classicrl.errors import UserError
from classicrl.types import NO_LIMIT

_BOOLEANS = (bool, np.bool_)
MINATAR_GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")


@dataclass(frozen=True)
class GymProtocol:
    """What is agreed on beside the environment.

    Attributes:
        name: how it is called in settings and in saved state.
        max_episode_steps: episodes are cut here; None for what the environment itself says.
        evaluation_epsilon: share of random actions in evaluation.
    """

    name: str
    max_episode_steps: int | None
    evaluation_epsilon: float


GYM_PROTOCOLS: dict[str, GymProtocol] = {
    # Young & Tian 2019: sticky actions 0.1, difficulty ramps; -v1 takes the minimal actions.
    "minatar": GymProtocol("minatar", max_episode_steps=10_000, evaluation_epsilon=0.01),
    "plain": GymProtocol("plain", max_episode_steps=None, evaluation_epsilon=0.0),
}


def gym_protocol(env_id: str) -> GymProtocol:
    """The protocol that an environment is played by."""
    return GYM_PROTOCOLS["minatar" if env_id.startswith("MinAtar/") else "plain"]


class VectorStep(NamedTuple):
    """What one step of N environments brought."""

    obs: NDArray[Any]  # [N, *obs_shape], what is acted on next: of the new episode where one ended
    reward: NDArray[np.float32]  # [N]
    terminated: NDArray[np.bool_]  # [N], no value follows this step
    ended: NDArray[np.bool_]  # [N], the episode is over, terminated or cut
    final_obs: NDArray[Any]  # [sum(ended), *obs_shape], last observations of the ended episodes


class GymVector:
    """N environments of one kind, stepped one after the other in this process.

    Args:
        env_id: a name that gymnasium knows, or ``MinAtar/<Game>-v1``.
        num_envs: N.
        seeds: one per environment, or one for all, from which theirs are derived.
        max_episode_steps: episodes are cut here; None for what the environment itself says.

    Raises:
        UserError: for an unknown environment, a missing package, an action that is not discrete, or
            an observation that is not an array.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seeds: int | list[int],
        max_episode_steps: int | None = None,
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
        self._envs = [make_gym(env_id, max_episode_steps) for _ in range(num_envs)]
        observation, action = self._envs[0].observation_space, self._envs[0].action_space
        if not isinstance(action, gymnasium.spaces.Discrete) or action.start != 0:
            raise UserError(f"{env_id} takes {action}; only discrete actions from 0 are supported")
        if not isinstance(observation, gymnasium.spaces.Box):
            raise UserError(f"{env_id} shows {observation}; only arrays (Box) are supported")
        self.num_actions = int(action.n)
        # Boards of truth values are kept as bytes.
        is_board = observation.dtype == np.bool_
        self.obs_dtype = np.dtype(np.uint8) if is_board else np.dtype(np.float32)
        self.obs_shape = observation.shape
        spec = self._envs[0].spec
        limit = None if spec is None else spec.max_episode_steps
        self.max_episode_steps = limit or NO_LIMIT
        self._obs = np.zeros((num_envs, *self.obs_shape), dtype=self.obs_dtype)
        self.resumed_exactly = False
        self._started = False
        self._pending: NDArray[np.integer[Any]] | None = None

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
        return self._stepping.checked(obs, self.obs_shape, self.obs_dtype)

    def observation(self) -> NDArray[Any]:
        """What is acted on next, ``[N, *obs_shape]``: uint8 for boards, else float32."""
        if not self._started:
            raise RuntimeError("observation() before reset() or load_state_dict()")
        return self._obs.copy()

    def send(self, actions: NDArray[np.integer[Any]]) -> None:
        """Takes the next actions, integers ``[N]`` within [0, num_actions); else ValueError."""
        if not self._started:
            raise RuntimeError("send() before reset() or load_state_dict()")
        if self._pending is not None:
            raise RuntimeError("send() twice without a recv() between")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"expected {self.num_envs} integers, got {actions.dtype} of shape {actions.shape}"
            )
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise ValueError(f"actions must lie in [0, {self.num_actions}), got {actions}")
        self._pending = actions

    def recv(self) -> VectorStep:
        """Plays the sent actions and returns the step.

        Raises:
            EnvironmentFault: if one fails, or shows what is not finite or of another shape.
        """
        if self._pending is None:
            raise RuntimeError("recv() without a send() before it")
        actions, self._pending = self._pending.tolist(), None
        self._stepping.steps += 1
        watch.doing = self._stepping
        try:
            return self._play(actions)
        finally:
            watch.doing = None

    def _play(self, actions: list[int]) -> VectorStep:
        reward = np.zeros(self.num_envs, dtype=np.float32)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        ended = np.zeros(self.num_envs, dtype=np.bool_)
        final_obs = []
        stepping = self._stepping
        for i, env in enumerate(self._envs):
            stepping.at = i
            try:
                obs, reward[i], over, truncated, _ = env.step(actions[i])
            except Exception as error:
                raise stepping.fault(error) from error
            if not isinstance(over, _BOOLEANS) or not isinstance(truncated, _BOOLEANS):
                raise stepping.fault(f"said terminated={over!r}, truncated={truncated!r}")
            terminated[i] = over
            obs = stepping.checked(obs, self.obs_shape, self.obs_dtype)
            if terminated[i] or truncated:
                ended[i] = True
                final_obs.append(np.array(obs, dtype=self.obs_dtype))
                obs = self._begin_episode(i)
            self._obs[i] = obs
        last = np.stack(final_obs) if final_obs else self._obs[:0].copy()
        everywhere = range(self.num_envs)
        stepping.require_finite("a reward", reward, everywhere)
        stepping.require_finite("an observation", self._obs, everywhere)
        if final_obs:
            stepping.require_finite("a last observation", last, np.flatnonzero(ended).tolist())
        return VectorStep(self.observation(), reward, terminated, ended, last)

    def step(self, actions: NDArray[np.integer[Any]]) -> VectorStep:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs:
            env.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs, as far as it is plain.

        An environment can be saved if all that changes in it is numbers, text, arrays, lists and
        random generators, as in classic control and MinAtar. One that holds anything else is left
        out, and begins a new episode when it is loaded.
        """
        if self._pending is not None:
            raise RuntimeError("state_dict() between send() and recv(): receive the step first")
        return {
            "env_id": self.env_id,
            "starts": self._starts,
            "steps": self._stepping.steps,
            "obs": self._obs.copy(),
            "envs": [plain_state_of(env) for env in self._envs] if self._started else [],
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
        for env, saved in zip(self._envs, state["envs"], strict=True):
            restore_plain_state(env, saved)
        self._starts = int(state["starts"])
        self._obs[:] = state["obs"]
        self.resumed_exactly = True


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


# -- the state of an environment as plain values ---------------------------------------------------

_RANDOM_STATE = "random_state"
_GENERATOR = "generator"


def plain_state_of(env: gymnasium.Env[Any, Any]) -> list[dict[str, Any]] | None:
    """Plain values of every layer, outermost first; None if something else than plain changes."""
    try:
        return [plain_attributes(layer) for layer in layers_of(env)]
    except TypeError:
        return None


def layers_of(env: Any) -> list[Any]:
    """The wrappers, the environment, and the game inside it where it is a MinAtar one."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    for inner in ("game", "env"):  # MinAtar: the environment holds an interface, that holds a game
        if type(layers[-1]).__module__.startswith("minatar."):
            layers.append(getattr(layers[-1], inner))
    return layers


# Set once when the environment is made, or never used without a window.
_FIXED = {"env", "game", "spec", "action_space", "observation_space", "metadata", "channels"}
_FIXED |= {"_action_space", "_observation_space", "_metadata", "_cached_spec", "_reward_range"}
_FIXED |= {"render_mode", "screen", "clock", "isopen", "action_set", "action_map", "_saved_kwargs"}


def plain_attributes(layer: Any, *, skip: bool = False) -> dict[str, Any]:
    """All attributes but the fixed ones; TypeError for one that is not plain, or ``skip`` them."""
    plain = {}
    for name, value in vars(layer).items():
        if name in _FIXED:
            continue
        try:
            plain[name] = to_plain(value)
        except TypeError:
            if not skip:
                raise
    return plain


def to_plain(value: Any) -> Any:
    """Raises TypeError for what is neither a number, text, array, list nor random generator."""
    if isinstance(value, np.generic):  # first: some are floats, too
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, np.random.RandomState):
        return {_RANDOM_STATE: dict(value.get_state(legacy=False))}
    if isinstance(value, np.random.Generator):
        return {_GENERATOR: dict(value.bit_generator.state)}
    raise TypeError(f"{type(value)} cannot be saved")


def restore_plain_state(env: gymnasium.Env[Any, Any], state: list[dict[str, Any]]) -> None:
    """Puts back what :func:`plain_state_of` took."""
    for layer, attributes in zip(layers_of(env), state, strict=True):
        restore_attributes(layer, attributes)


def restore_attributes(layer: Any, attributes: dict[str, Any]) -> None:
    """Sets plain values; random generators go on from the saved state."""
    for name, value in attributes.items():
        if isinstance(value, dict) and _RANDOM_STATE in value:
            getattr(layer, name).set_state(value[_RANDOM_STATE])
        elif isinstance(value, dict):
            getattr(layer, name).bit_generator.state = value[_GENERATOR]
        else:
            # A copy: the environment changes its arrays and lists in place.
            setattr(layer, name, to_plain(value))
