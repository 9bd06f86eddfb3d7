"""The records and protocols that the components exchange."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

NO_LIMIT = 2**31 - 1
"""Length of an episode that is never cut."""


class Transition(NamedTuple):
    """A batch of (n-step) transitions, B of them.

    Termination travels as ``discount == 0``; a time limit leaves ``discount == gamma**k`` and
    ``next_obs`` the true last observation, so no target needs a ``1 - done``.
    """

    obs: Tensor  # [B, *obs_shape], the dtype that was stored
    action: Tensor  # [B] int64, or [B, *action_shape] float32
    reward: Tensor  # [B] float32, sum_{j<k} gamma^j r_{t+j}
    discount: Tensor  # [B] float32, gamma^k with k <= n the steps really summed; 0 iff terminated
    next_obs: Tensor  # [B, *obs_shape], observation k steps later


class ControlBatch(NamedTuple):
    """A batch of one-step transitions of continuous control, B of them.

    S is the size of an observation, A of an action. Observation and action lie side by side, as a
    critic takes them.
    """

    obs_action: Tensor  # [B, S + A] float32, the action in (-1, 1)
    next_obs: Tensor  # [B, S] float32
    reward: Tensor  # [B] float32, scaled
    discount: Tensor  # [B] float32, gamma; 0 iff terminated


class Sampler(Protocol):
    """Which stored rows to draw, as a function of their age alone."""

    def __call__(self, rng: np.random.Generator, num_stored: int, size: int) -> NDArray[np.int64]:
        """Ages, int64 ``[size]`` in ``[0, num_stored)``; 0 is the newest row."""
        ...


class Stateful(Protocol):
    """Whatever a checkpoint must hold."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue: dicts, lists, numbers, text, bytes, arrays, tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was taken."""
        ...
