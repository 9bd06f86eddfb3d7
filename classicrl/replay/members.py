"""The replay buffers of several learners that are trained side by side, one each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.replay.buffer import ReplayBuffer
from classicrl.types import Transition


class MemberReplays:
    """K buffers of one kind; member k draws from the k-th alone.

    Environments come member by member: of K * N rows, the first N are member 0's.

    Args:
        buffers: K buffers with N environments each, with seeds of their own.
    """

    def __init__(self, buffers: Sequence[ReplayBuffer]) -> None:
        self.buffers = list(buffers)
        self._num_envs = self.buffers[0].num_envs

    def __len__(self) -> int:
        """Rows in the buffer that has the fewest."""
        return min(len(buffer) for buffer in self.buffers)

    def add(
        self,
        obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        final_obs: NDArray[Any],
    ) -> None:
        """One step of every environment; as :meth:`ReplayBuffer.add`, ``[K * N, ...]``."""
        last = 0
        for k, buffer in enumerate(self.buffers):
            envs = slice(k * self._num_envs, (k + 1) * self._num_envs)
            first, last = last, last + int(ended[envs].sum())
            buffer.add(
                obs[envs],
                action[envs],
                reward[envs],
                terminated[envs],
                ended[envs],
                final_obs[first:last],
            )

    def sample(self, batch_size: int, rng: np.random.Generator | None = None) -> Transition:
        """``batch_size`` transitions for every member, ``[K, B, ...]``; ``rng`` as in
        :meth:`ReplayBuffer.sample`."""
        batches = [buffer.sample(batch_size, rng) for buffer in self.buffers]
        return Transition(*(torch.stack(field) for field in zip(*batches, strict=True)))

    def break_streams(self) -> None:
        """As :meth:`ReplayBuffer.break_streams`, for all."""
        for buffer in self.buffers:
            buffer.break_streams()
