"""What N environments did in T steps: the storage of on-policy agents."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Rollout:
    """Tensors, time first, written by the script and read by the learner.

    ``[T, N]`` is what was done in a step: ``action``, ``log_prob``, ``reward``, ``discount``,
    ``weight_ext``. ``[T + 1, N]`` is what was there before and after them: ``obs`` ``[T + 1, N,
    *obs_shape]``, ``starts``, ``value_ext``, ``value_int``.

    An episode that ended is followed by the next one's first observation in the same place:
    ``obs[t + 1]`` is what the environment showed after step t, be it the same episode or not.

    Args:
        num_steps: T.
        num_envs: N.
        obs_shape, obs_dtype: of an observation.
        state_size: H of a recurrent policy; 0 without memory.
        device: of all tensors.
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        *,
        obs_dtype: torch.dtype = torch.uint8,
        state_size: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        steps, after = (num_steps, num_envs), (num_steps + 1, num_envs)
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.obs = torch.zeros((*after, *obs_shape), dtype=obs_dtype, device=device)
        # Whether an observation begins an episode.
        self.starts = torch.zeros(after, dtype=torch.bool, device=device)
        self.action = torch.zeros(steps, dtype=torch.int64, device=device)
        self.log_prob = torch.zeros(steps, device=device)
        self.value_ext = torch.zeros(after, device=device)
        self.value_int = torch.zeros(after, device=device)
        self.reward = torch.zeros(steps, device=device)
        self.discount = torch.zeros(steps, device=device)  # gamma_ext; 0 where nothing follows
        self.weight_ext = torch.ones(steps, device=device)  # factor on the extrinsic advantage
        self.initial_state = torch.zeros((num_envs, state_size), device=device)

    def begin_next(self, state: torch.Tensor) -> None:
        """The last observation becomes the first one of the next T steps.

        Args:
            state: of the policy now, ``[N, H]``.
        """
        self.obs[0] = self.obs[-1]
        self.starts[0] = self.starts[-1]
        self.initial_state = state

    def begin_new_episodes(self, obs: Tensor) -> None:
        """All environments were reset: ``[N, *obs_shape]``."""
        self.obs[0] = obs
        self.starts[0] = True

    def state_dict(self) -> dict[str, Any]:
        """What goes over from one T steps to the next, the observation left to its environment."""
        return {"starts": self.starts[0].clone(), "state": self.initial_state.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues between two times T steps."""
        self.starts[0] = state["starts"].to(self.starts.device)
        self.initial_state = state["state"].to(self.starts.device).clone()


def rollout_nbytes(num_steps: int, num_envs: int, obs_shape: tuple[int, ...]) -> int:
    """Bytes that a :class:`Rollout` of bytes takes: its observations, and 33 bytes a step."""
    return (num_steps + 1) * num_envs * (math.prod(obs_shape) + 33)
