"""Gymnasium environments with discrete actions, several in one process, behind the interface of the
Atari ones: ``reset``, ``send``, ``recv``, ``observation``, ``state_dict``.

For environments whose step costs microseconds: classic control, MinAtar (through the package
``minatar``), anything with a Box observation.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from classicrl.envs.gym_envs import GymEnvs, VectorStep
from classicrl.errors import UserError

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


class GymVector(GymEnvs):
    """N environments with discrete actions, as :class:`~classicrl.envs.gym_envs.GymEnvs`.

    Actions are integers ``[N]`` within [0, num_actions); observations uint8 where the environment
    shows truth values, else float32.

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
        super().__init__(env_id, num_envs, seeds=seeds, max_episode_steps=max_episode_steps)
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
        self._show(self.obs_shape, self.obs_dtype)

    def _checked_actions(self, actions: NDArray[np.integer[Any]]) -> NDArray[Any]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"expected {self.num_envs} integers, got {actions.dtype} of shape {actions.shape}"
            )
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise ValueError(f"actions must lie in [0, {self.num_actions}), got {actions}")
        return actions

    def _action_of(self, i: int, actions: NDArray[Any]) -> int:
        return int(actions[i])

    def recv(self) -> VectorStep:
        """Plays the sent actions and returns the step.

        Raises:
            EnvironmentFault: if one fails, or shows what is not finite or of another shape.
        """
        return self._play_pending()

    def step(self, actions: NDArray[np.integer[Any]]) -> VectorStep:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()
