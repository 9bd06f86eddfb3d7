"""Rings of linked rows, several side by side in one memory: what replay buffers are made of.

Rows are written in the order in which they arrive, all environments of a ring into it, and each row
knows how far back its predecessor and how far ahead its successor in the same episode lie. Frame
stacks, n-step windows and next observations are found by following those links when a batch is
drawn.

The bookkeeping stays in host memory: drawing a batch, of one ring or of all, is a few vectorised
NumPy operations on it and a single gather of observations on the rings' device.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classicrl.returns import n_step_return
from classicrl.types import Transition

NO_ROW = -1


@dataclasses.dataclass(frozen=True)
class Rings:
    """R rings of ``capacity`` rows, each with N environments; the arrays are theirs together.

    Row ``i`` of ring r, counted since the beginning, lies in slot ``r * capacity + i % capacity``
    until the ring comes round. Environments come ring by ring.
    """

    capacity: int
    stack: int | None
    n_steps: int
    gamma: float
    obs: Tensor  # [R * capacity, *obs_shape]
    action: NDArray[Any]  # [R * capacity, *action_shape]
    reward: NDArray[np.float32]  # [R * capacity]
    terminated: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    is_source: NDArray[np.bool_]  # a transition may start here: not an episode's last observation
    back: NDArray[np.int32]  # 0: first row of an episode
    ahead: NDArray[np.int32]  # 0: no successor (yet)
    next_id: NDArray[np.int64]  # [R], rows ever added
    last_id: NDArray[np.int64]  # [R * N], of each environment
    final_is_next: NDArray[np.bool_]  # [R * N], the next row is an episode's last observation

    @classmethod
    def empty(
        cls,
        num_rings: int,
        capacity: int,
        obs_shape: tuple[int, ...],
        num_envs: int,
        *,
        stack: int | None,
        n_steps: int,
        gamma: float,
        obs_dtype: torch.dtype,
        action_shape: tuple[int, ...],
        action_dtype: type[np.generic] | np.dtype[Any],
        device: torch.device,
    ) -> "Rings":
        """Rings without rows; the arguments are those of ``ReplayBuffer``."""
        slots = num_rings * capacity
        return cls(
            capacity,
            stack,
            n_steps,
            gamma,
            # Not zeroed: untouched pages cost no memory, and no row is read before it is written.
            obs=torch.empty((slots, *obs_shape), dtype=obs_dtype, device=device),
            action=np.zeros((slots, *action_shape), dtype=action_dtype),
            reward=np.zeros(slots, dtype=np.float32),
            terminated=np.zeros(slots, dtype=np.bool_),
            ended=np.zeros(slots, dtype=np.bool_),
            is_source=np.zeros(slots, dtype=np.bool_),
            back=np.zeros(slots, dtype=np.int32),
            ahead=np.zeros(slots, dtype=np.int32),
            next_id=np.zeros(num_rings, dtype=np.int64),
            last_id=np.full(num_rings * num_envs, NO_ROW, dtype=np.int64),
            final_is_next=np.zeros(num_rings * num_envs, dtype=np.bool_),
        )

    def ring(self, r: int) -> "Rings":
        """Ring r alone, in the same memory: what one of the two writes, the other reads."""
        parts = {name: len(array) // len(self.next_id) for name, array in self._arrays().items()}
        views = {
            name: getattr(self, name)[r * length : (r + 1) * length]
            for name, length in parts.items()
        }
        return dataclasses.replace(self, **views)

    def copy_(self, other: "Rings") -> None:
        """Takes over all rows and counters of rings of the same shapes."""
        for name, array in other._arrays().items():
            getattr(self, name)[:] = array

    def layout(self) -> tuple[Any, ...]:
        """What two rings must share to lie side by side."""
        shapes = [(array.shape[1:], array.dtype) for array in self._arrays().values()]
        return (
            (self.capacity, self.stack, self.n_steps, self.gamma, len(self.last_id)),
            self.obs.device,
            *shapes,
        )

    def _arrays(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if hasattr(value, "shape")}

    @property
    def depth(self) -> int:
        """Rows that make one observation."""
        return 1 if self.stack is None else self.stack

    @property
    def oldest_id(self) -> NDArray[np.int64]:
        """Ids of the oldest rows that are still stored, ``[R]``."""
        return np.maximum(self.next_id - self.capacity, 0)

    @property
    def nbytes(self) -> int:
        """Memory of all rows, in bytes."""
        host = (self.action, self.reward, self.terminated, self.ended, self.is_source)
        links = (self.back, self.ahead)
        obs = self.obs.numel() * self.obs.element_size()
        return obs + sum(array.nbytes for array in (*host, *links))

    # -- adding --------------------------------------------------------------------------------

    def add(
        self,
        obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        final_obs: NDArray[Any] | None,
    ) -> None:
        """One step of every environment, ``[R * N, ...]``; as ``ReplayBuffer.add``."""
        ended = np.asarray(ended, dtype=np.bool_)
        envs = np.arange(len(self.last_id))
        if obs.shape[0] != len(envs) or ended.shape != envs.shape:
            raise ValueError(
                f"expected rows of {len(envs)} environments, got obs {obs.shape} and "
                f"ended {ended.shape}"
            )
        if final_obs is not None and len(final_obs) != ended.sum():
            raise ValueError(f"{ended.sum()} episodes ended, but {len(final_obs)} final_obs came")
        acted = ~self.final_is_next
        self._append(
            envs,
            obs,
            action=action,
            reward=np.where(acted, reward, 0.0),
            terminated=terminated & acted,
            ended=ended & acted,
            is_source=acted,
        )
        self.final_is_next[:] = False
        if not ended.any():
            return
        if final_obs is None:
            self.final_is_next[:] = ended & acted
            return
        nothing = np.zeros(len(final_obs), dtype=np.bool_)
        self._append(
            envs[ended],
            final_obs,
            action=np.zeros((len(final_obs), *self.action.shape[1:])),
            reward=nothing,
            terminated=nothing,
            ended=nothing,
            is_source=nothing,
        )

    def break_streams(self) -> None:
        """The next rows begin new episodes, whatever came before."""
        self.last_id[:] = NO_ROW
        self.final_is_next[:] = False

    def _append(
        self,
        envs: NDArray[np.int64],
        obs: NDArray[Any],
        *,
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        is_source: NDArray[np.bool_],
    ) -> None:
        if len(self.next_id) == 1:  # the same as below, at a fraction of its cost
            first_slot: NDArray[np.int64] | None = None
            first_id = int(self.next_id[0])
            ids = np.arange(first_id, first_id + len(envs))
            self.next_id[0] += len(envs)
            oldest_id: Any = first_id + len(envs) - self.capacity
        else:
            rings = envs // (len(self.last_id) // len(self.next_id))
            added = np.bincount(rings, minlength=len(self.next_id))
            # The place of each row among those of its own ring.
            rank = np.arange(len(envs)) - (added.cumsum() - added)[rings]
            ids = self.next_id[rings] + rank
            self.next_id[:] += added
            first_slot = rings * self.capacity
            oldest_id = self.oldest_id[rings]

        last = self.last_id[envs]
        linked = last != NO_ROW
        back = np.where(linked, ids - last, 0)
        slots = self._slots(ids, first_slot)
        self.write(slots, obs, action, reward, terminated, ended, is_source, back)
        stored = linked & (last >= oldest_id)
        self.ahead[self._slots(last, first_slot)[stored]] = back[stored]
        self.last_id[envs] = np.where(is_source, ids, NO_ROW)

    def write(
        self,
        slots: NDArray[np.int64],
        obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        is_source: NDArray[np.bool_],
        back: NDArray[Any],
    ) -> None:
        """Puts rows into slots; none has a successor yet."""
        rows = torch.from_numpy(np.ascontiguousarray(obs))
        first, last = int(slots[0]), int(slots[-1]) + 1
        if len(self.next_id) == 1 and last - first == len(slots):  # in one piece: a plain copy
            self.obs[first:last].copy_(rows)
        else:
            place = torch.from_numpy(slots).to(self.obs.device)
            self.obs[place] = rows.to(self.obs.device, self.obs.dtype)
        self.action[slots] = action
        self.reward[slots] = reward
        self.terminated[slots] = terminated
        self.ended[slots] = ended
        self.is_source[slots] = is_source
        self.back[slots] = back
        self.ahead[slots] = 0

    # -- looking up ----------------------------------------------------------------------------

    def is_whole(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether everything that a transition from these rows needs is stored.

        Args:
            ids: ``[R, B]``, of rows that are stored.
        """
        first_slot = self._first_slot()
        # take: for small batches twice as fast as indexing
        whole: NDArray[np.bool_] = self.is_source.take(self._slots(ids, first_slot))
        # Backwards: the whole stack, unless the episode began inside it.
        at = ids
        for _ in range(self.depth - 1):
            at = at - self.back.take(self._slots(at, first_slot))
            whole = whole & (at >= self.oldest_id[:, None])
        # Forwards: a successor for every step up to the window's or the episode's end.
        at, going = ids, whole
        for steps_left in reversed(range(self.n_steps)):
            slots = self._slots(at, first_slot)
            ahead = self.ahead.take(slots)
            whole = whole & (~going | (ahead > 0))
            if steps_left:
                stops = self.terminated.take(slots) | self.ended.take(slots)
                going = going & ~stops & (ahead > 0)
                at = at + ahead
        return whole

    def transitions(self, ids: NDArray[np.int64]) -> Transition:
        """The transitions that start at whole rows, ``[R, B] -> [R * B, ...]``."""
        first_slot = self._first_slot()
        if first_slot is not None:
            first_slot = first_slot.repeat(ids.shape[1], axis=1).ravel()  # [R * B]
        ids = ids.ravel()
        reward, discount, next_ids = self._look_ahead(ids, first_slot)
        action = self.action[self._slots(ids, first_slot)]
        if self.n_steps == 1:
            # obs and next_obs overlap in all frames but one: gather them once.
            frames = self._gather(next_ids, first_slot, self.depth + 1)
            obs, next_obs = frames[:, :-1], frames[:, 1:]
        else:
            obs = self._gather(ids, first_slot, self.depth)
            next_obs = self._gather(next_ids, first_slot, self.depth)
        if self.stack is None:
            obs, next_obs = obs[:, 0], next_obs[:, 0]
        return Transition(
            obs,
            self._to_device(action.astype(np.int64) if action.ndim == 1 else action),
            self._to_device(reward),
            self._to_device(discount),
            next_obs,
        )

    def _first_slot(self) -> NDArray[np.int64] | None:
        """Of each ring, ``[R, 1]``; of a single one None, which is cheaper than zeros."""
        rings = len(self.next_id)
        return None if rings == 1 else np.arange(rings)[:, None] * self.capacity

    def _slots(
        self, ids: NDArray[np.int64], first_slot: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        slots = ids % self.capacity
        return slots if first_slot is None else slots + first_slot

    def _look_ahead(
        self, ids: NDArray[np.int64], first_slot: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """n-step reward, discount of the bootstrap, and the id of the row to bootstrap from."""
        path = np.empty((len(ids), self.n_steps + 1), dtype=np.int64)
        slots = np.empty((len(ids), self.n_steps), dtype=np.int64)
        path[:, 0] = ids
        for j in range(self.n_steps):  # past an episode's end the path stays on its last row
            slots[:, j] = here = self._slots(path[:, j], first_slot)
            path[:, j + 1] = path[:, j] + self.ahead.take(here)
        reward, discount, steps = n_step_return(
            self.reward.take(slots), self.terminated.take(slots), self.ended.take(slots), self.gamma
        )
        return reward, discount, path[np.arange(len(ids)), steps]

    def _gather(
        self, ids: NDArray[np.int64], first_slot: NDArray[np.int64] | None, depth: int
    ) -> Tensor:
        """Observations of each row and its predecessors, oldest first, ``[B, depth, *obs_shape]``,
        zeros where they would lie before the episode's first row."""
        slots = np.empty((len(ids), depth), dtype=np.int64)
        blank = np.zeros((len(ids), depth), dtype=np.bool_)
        at, before_first = ids, np.zeros(len(ids), dtype=np.bool_)
        for j in reversed(range(depth)):
            slots[:, j] = here = self._slots(at, first_slot)
            blank[:, j] = before_first
            back = self.back.take(here)
            before_first = before_first | (back == 0)
            at = at - back
        flat = self.obs.index_select(0, self._to_device(slots.ravel()))
        if blank.any():  # by index: a mask would go over the whole batch for a few frames
            flat.index_fill_(0, self._to_device(np.flatnonzero(blank)), 0)
        return flat.view(*slots.shape, *self.obs.shape[1:])

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.obs.device.type == "cuda":  # pinned, so that the copy need not wait for the GPU
            return tensor.pin_memory().to(self.obs.device, non_blocking=True)
        return tensor
