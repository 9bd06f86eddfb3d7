"""The replay buffers of several learners that are trained side by side, one each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classicrl.replay.buffer import ReplayBuffer
from classicrl.replay.rings import Rings
from classicrl.types import Transition


class MemberReplays:
    """K buffers of one kind; member k draws from the k-th alone, by its sampler and generator.

    Their rows move into one memory, so that a step is added to all of them at once, and one gather
    draws the batches of all. Each buffer stays usable by itself.

    Environments come member by member: of K * N rows, the first N are member 0's.

    Args:
        buffers: K buffers with N environments each, with seeds of their own.

    Raises:
        ValueError: if the buffers differ in more than sampler, generator and contents.
    """

    def __init__(self, buffers: Sequence[ReplayBuffer]) -> None:
        self.buffers = list(buffers)
        first = self.buffers[0]
        if any(buffer.rings.layout() != first.rings.layout() for buffer in self.buffers):
            raise ValueError("the buffers of all members must be of one size, shape and device")
        self._rings = Rings.empty(
            len(self.buffers),
            first.capacity,
            tuple(first.rings.obs.shape[1:]),
            first.num_envs,
            stack=first.stack,
            n_steps=first.n_steps,
            gamma=first.gamma,
            obs_dtype=first.rings.obs.dtype,
            action_shape=first.rings.action.shape[1:],
            action_dtype=first.rings.action.dtype,
            device=first.device,
        )
        for k, buffer in enumerate(self.buffers):
            own = self._rings.ring(k)
            if len(buffer):  # untouched pages of empty ones cost no memory
                own.copy_(buffer.rings)
            buffer.rings = own

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
        final_obs: NDArray[Any] | None = None,
    ) -> None:
        """One step of every environment; as :meth:`ReplayBuffer.add`, ``[K * N, ...]``."""
        self._rings.add(obs, action, reward, terminated, ended, final_obs)

    def sample(self, batch_size: int, rng: np.random.Generator | None = None) -> Transition:
        """``batch_size`` transitions for every member, ``[K, B, ...]``; ``rng`` as in
        :meth:`ReplayBuffer.sample`."""
        rngs = [buffer.rng if rng is None else rng for buffer in self.buffers]
        proposed = [
            buffer.propose(batch_size, own) for buffer, own in zip(self.buffers, rngs, strict=True)
        ]
        whole = self._rings.is_whole(np.stack(proposed))  # [K, B and some to spare]
        drawn = np.empty((len(self.buffers), batch_size), dtype=np.int64)
        for k, buffer in enumerate(self.buffers):
            ids = proposed[k][whole[k]][:batch_size]
            drawn[k, : len(ids)] = ids
            if len(ids) < batch_size:
                drawn[k, len(ids) :] = buffer.draw(batch_size - len(ids), rngs[k])
        batch = self._rings.transitions(drawn)
        return Transition(*(field.view(*drawn.shape, *field.shape[1:]) for field in batch))

    def break_streams(self) -> None:
        """As :meth:`ReplayBuffer.break_streams`, for all."""
        self._rings.break_streams()
