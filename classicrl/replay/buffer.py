"""A replay ring that stores every observation once.

Rows are written in the order in which they arrive, all environments into one ring, and each row
knows how far back its predecessor and how far ahead its successor in the same episode lie. Frame
stacks, n-step windows and next observations are found by following those links when a batch is
drawn, so an Atari transition costs one 84x84 frame (7,056 bytes) and 19 bytes of bookkeeping.

The bookkeeping stays in host memory: drawing a batch is a few vectorised NumPy operations on it and
a single gather of observations on the buffer's device.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classicrl.errors import UserError
from classicrl.replay.samplers import UniformSampler
from classicrl.returns import n_step_return
from classicrl.types import Sampler, Transition

_NO_ROW = -1


class Rows(NamedTuple):
    """Rows ``first_id .. first_id + M - 1`` of a buffer, as they are archived."""

    first_id: int
    obs: NDArray[Any]  # [M, *obs_shape]
    action: NDArray[Any]  # [M, *action_shape]
    reward: NDArray[np.float32]  # [M]
    terminated: NDArray[np.bool_]  # [M]
    ended: NDArray[np.bool_]  # [M]
    is_source: NDArray[np.bool_]  # [M]
    back: NDArray[np.int32]  # [M]


class ReplayBuffer:
    """Ring of observations with links, from which (n-step) transitions are drawn.

    A row is one observation with what was done there. Its id counts all rows ever added; it lies
    in slot ``id % capacity`` until the ring comes round. The last observation of an episode is a
    row too, from which no transition starts.

    Args:
        capacity: rows in the ring.
        obs_shape: of what is stored per row: one frame ``(84, 84)``, or a whole vector.
        num_envs: environments that add rows, N.
        stack: frames that make one observation, oldest first, zero-filled before an episode's
            first frame; None for observations that are complete in themselves.
        n_steps: steps summed into a transition's reward.
        gamma: discount per step.
        sampler: distribution over the ages of rows.
        obs_dtype: of the stored observations.
        action_shape: ``()`` for discrete actions.
        action_dtype: of the stored actions; discrete ones come back as int64.
        device: where the observations live and where batches are made.
        seed: of the sampling generator.

    Raises:
        UserError: if the ring is too short to hold one window of every environment.

    >>> replay = ReplayBuffer(100, (3,), num_envs=2, gamma=0.5, obs_dtype=torch.float32)
    >>> obs, action, never = np.zeros((2, 3), np.float32), np.array([0, 1]), np.zeros(2, bool)
    >>> for t in range(5):
    ...     replay.add(obs, action, np.ones(2), never, never)
    >>> batch = replay.sample(4)
    >>> batch.obs.shape, batch.discount
    (torch.Size([4, 3]), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """

    def __init__(
        self,
        capacity: int,
        obs_shape: tuple[int, ...],
        num_envs: int,
        *,
        stack: int | None = None,
        n_steps: int = 1,
        gamma: float = 0.99,
        sampler: Sampler | None = None,
        obs_dtype: torch.dtype = torch.uint8,
        action_shape: tuple[int, ...] = (),
        action_dtype: type[np.generic] = np.int32,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.capacity = capacity
        self.num_envs = num_envs
        self.stack = stack
        self.n_steps = n_steps
        self.gamma = gamma
        self.sampler: Sampler = UniformSampler() if sampler is None else sampler
        self.rng = np.random.default_rng(seed)
        self.device = torch.device(device)

        self._depth = 1 if stack is None else stack
        # Twice a window: one for every environment's running episode, one for last observations.
        needed = 2 * num_envs * (self._depth + n_steps)
        if capacity < needed:
            raise UserError(
                f"a replay of {capacity} rows is too short for {num_envs} environments with "
                f"stacks of {self._depth} and {n_steps}-step returns: make it at least {needed}"
            )
        # Not zeroed: untouched pages cost no memory, and no row is read before it is written.
        self._obs = torch.empty((capacity, *obs_shape), dtype=obs_dtype, device=self.device)
        self._action = np.zeros((capacity, *action_shape), dtype=action_dtype)
        self._reward = np.zeros(capacity, dtype=np.float32)
        self._terminated = np.zeros(capacity, dtype=np.bool_)
        self._ended = np.zeros(capacity, dtype=np.bool_)
        self._is_source = np.zeros(capacity, dtype=np.bool_)
        self._back = np.zeros(capacity, dtype=np.int32)  # 0: first row of an episode
        self._ahead = np.zeros(capacity, dtype=np.int32)  # 0: no successor (yet)

        self._next_id = 0
        self._last_id = np.full(num_envs, _NO_ROW, dtype=np.int64)
        self._final_is_next = np.zeros(num_envs, dtype=np.bool_)

    # -- sizes ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Rows stored now."""
        return self._next_id - self.oldest_id

    @property
    def next_id(self) -> int:
        """Id of the row that will be added next; the number of rows ever added."""
        return self._next_id

    @property
    def oldest_id(self) -> int:
        """Id of the oldest row that is still stored."""
        return max(0, self._next_id - self.capacity)

    @property
    def nbytes(self) -> int:
        """Memory of the whole ring, in bytes."""
        host = (
            self._action,
            self._reward,
            self._terminated,
            self._ended,
            self._is_source,
            self._back,
            self._ahead,
        )
        return int(self._obs.numel() * self._obs.element_size() + sum(a.nbytes for a in host))

    @property
    def obs_nbytes(self) -> int:
        """Bytes of one stored observation."""
        return self._obs[0].numel() * self._obs.element_size()

    # -- adding --------------------------------------------------------------------------------

    def add(
        self,
        obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        final_obs: NDArray[Any] | None = None,
    ) -> None:
        """Adds one step of every environment.

        Args:
            obs: ``[N, *obs_shape]``, what was acted on (with stacks: its newest frame only).
            action: ``[N, *action_shape]``.
            reward: ``[N]``, as it shall be learned from.
            terminated: bool ``[N]``, no value follows this step.
            ended: bool ``[N]``, the episode is over, whether it terminated or was cut.
            final_obs: ``[sum(ended), *obs_shape]``, last observations of the ended episodes, where
                the environment resets in the same step (or the caller resets it). None where
                ``obs`` of the next call is the last observation and that call's action is ignored
                (gymnasium's NEXT_STEP autoreset).
        """
        ended = np.asarray(ended, dtype=np.bool_)
        envs = np.arange(self.num_envs)
        if obs.shape[0] != self.num_envs or ended.shape != (self.num_envs,):
            raise ValueError(
                f"expected rows of {self.num_envs} environments, got obs {obs.shape} and "
                f"ended {ended.shape}"
            )
        acted = ~self._final_is_next
        self._append(
            envs,
            obs,
            action=action,
            reward=np.where(acted, reward, 0.0),
            terminated=terminated & acted,
            ended=ended & acted,
            is_source=acted,
        )
        self._final_is_next[:] = False
        if not ended.any():
            return
        if final_obs is None:
            self._final_is_next[:] = ended & acted
            return
        if len(final_obs) != ended.sum():
            raise ValueError(f"{ended.sum()} episodes ended, but {len(final_obs)} final_obs came")
        nothing = np.zeros(len(final_obs), dtype=np.bool_)
        self._append(
            envs[ended],
            final_obs,
            action=np.zeros((len(final_obs), *self._action.shape[1:])),
            reward=nothing,
            terminated=nothing,
            ended=nothing,
            is_source=nothing,
        )

    def break_streams(self) -> None:
        """Declares that the next rows begin new episodes, whatever came before.

        For a resume that cannot restore its environments: the interrupted steps are never drawn.
        """
        self._last_id[:] = _NO_ROW
        self._final_is_next[:] = False

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
        ids = self._next_id + np.arange(len(envs))
        slots = ids % self.capacity
        self._next_id += len(envs)

        last = self._last_id[envs]
        linked = last != _NO_ROW
        back = np.where(linked, ids - last, 0)
        self._write(slots, obs, action, reward, terminated, ended, is_source, back)
        stored = linked & (last >= self.oldest_id)
        self._ahead[last[stored] % self.capacity] = back[stored]
        self._last_id[envs] = np.where(is_source, ids, _NO_ROW)

    def _write(
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
        rows = torch.from_numpy(np.ascontiguousarray(obs))
        first, last = int(slots[0]), int(slots[-1]) + 1
        if last - first == len(slots):  # in one piece: a plain copy
            self._obs[first:last].copy_(rows)
        else:
            self._obs[torch.from_numpy(slots).to(self.device)] = rows.to(
                self.device, self._obs.dtype
            )
        self._action[slots] = action
        self._reward[slots] = reward
        self._terminated[slots] = terminated
        self._ended[slots] = ended
        self._is_source[slots] = is_source
        self._back[slots] = back
        self._ahead[slots] = 0

    # -- sampling ------------------------------------------------------------------------------

    def sample(self, batch_size: int, rng: np.random.Generator | None = None) -> Transition:
        """Draws ``batch_size`` transitions, independently, on the buffer's device.

        Args:
            batch_size: B.
            rng: draws with this generator, for a look that leaves the buffer's own as it is.

        Raises:
            UserError: if nothing can be drawn yet.
        """
        ids = self._draw(batch_size, self.rng if rng is None else rng)
        reward, discount, next_ids = self._look_ahead(ids)
        action = self._action[ids % self.capacity]
        if self.n_steps == 1:
            # obs and next_obs overlap in all frames but one: gather them once.
            window, blank = self._look_back(next_ids, self._depth + 1)
            frames = self._gather(window, blank)  # [B, depth + 1, *obs_shape]
            obs, next_obs = frames[:, :-1], frames[:, 1:]
        else:
            obs = self._gather(*self._look_back(ids, self._depth))
            next_obs = self._gather(*self._look_back(next_ids, self._depth))
        if self.stack is None:
            obs, next_obs = obs[:, 0], next_obs[:, 0]
        return Transition(
            obs,
            self._to_device(action.astype(np.int64) if action.ndim == 1 else action),
            self._to_device(reward),
            self._to_device(discount),
            next_obs,
        )

    def _draw(self, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Ids of rows from which a whole transition can be made, int64 ``[batch_size]``."""
        drawn: list[NDArray[np.int64]] = []
        missing, tries = batch_size, 0
        while missing > 0:
            # Draws that make no transition are thrown away and drawn again, which leaves the
            # sampler's distribution over the others as it is. They are few: the newest rows, last
            # observations, and the oldest rows, whose stacks are already overwritten.
            ages = self.sampler(rng, max(1, len(self)), missing + missing // 8 + 4)
            ids = self._next_id - 1 - ages
            ids = ids[self._is_whole(ids)][:missing]
            drawn.append(ids)
            missing -= len(ids)
            tries += 1
            if tries > 1000 and not sum(len(d) for d in drawn):
                raise UserError(
                    "the replay holds no whole transition yet: let the first update come after "
                    f"more than {self.n_steps} steps of every environment"
                )
        return np.concatenate(drawn) if len(drawn) > 1 else drawn[0]

    def _is_whole(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether everything that a transition from these rows needs is stored, bool ``[B]``."""
        if not len(self):
            return np.zeros(len(ids), dtype=np.bool_)
        whole = self._is_source.take(ids % self.capacity)
        # Backwards: the whole stack, unless the episode began inside it.
        at, oldest_id = ids, self.oldest_id
        for _ in range(self._depth - 1):
            at = at - self._back.take(at % self.capacity)
            whole = whole & (at >= oldest_id)
        # Forwards: a successor for every step up to the window's or the episode's end.
        at, going = ids, whole
        for steps_left in reversed(range(self.n_steps)):
            slots = at % self.capacity
            ahead = self._ahead.take(slots)
            whole = whole & (~going | (ahead > 0))
            if steps_left:
                stops = self._terminated.take(slots) | self._ended.take(slots)
                going = going & ~stops & (ahead > 0)
                at = at + ahead
        return whole

    def _look_ahead(
        self, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """n-step reward, discount of the bootstrap, and the id of the row to bootstrap from."""
        path = np.empty((len(ids), self.n_steps + 1), dtype=np.int64)
        path[:, 0] = ids
        for j in range(self.n_steps):  # past an episode's end the path stays on its last row
            path[:, j + 1] = path[:, j] + self._ahead.take(path[:, j] % self.capacity)
        slots = path[:, :-1] % self.capacity
        # take: for small batches twice as fast as indexing
        reward, discount, steps = n_step_return(
            self._reward.take(slots),
            self._terminated.take(slots),
            self._ended.take(slots),
            self.gamma,
        )
        return reward, discount, path[np.arange(len(ids)), steps]

    def _look_back(
        self, ids: NDArray[np.int64], depth: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Slots of each row and its predecessors, oldest first, ``[B, depth]``; and which of them
        lie before the episode's first row, bool ``[B, depth]``."""
        slots = np.empty((len(ids), depth), dtype=np.int64)
        blank = np.zeros((len(ids), depth), dtype=np.bool_)
        at, before_first = ids, np.zeros(len(ids), dtype=np.bool_)
        for j in reversed(range(depth)):
            slots[:, j] = here = at % self.capacity
            blank[:, j] = before_first
            back = self._back.take(here)
            before_first = before_first | (back == 0)
            at = at - back
        return slots, blank

    def _gather(self, slots: NDArray[np.int64], blank: NDArray[np.bool_]) -> Tensor:
        """Observations ``[B, depth, *obs_shape]``, zeros where ``blank``."""
        flat = self._obs.index_select(0, self._to_device(slots.ravel()))
        if blank.any():  # by index: a mask would go over the whole batch for a few frames
            flat.index_fill_(0, self._to_device(np.flatnonzero(blank)), 0)
        return flat.view(*slots.shape, *self._obs.shape[1:])

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # pinned, so that the copy need not wait for the GPU
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    # -- saving --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All but the rows themselves (see :meth:`rows`)."""
        return {
            "next_id": self._next_id,
            "last_id": self._last_id.copy(),
            "final_is_next": self._final_is_next.copy(),
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the place of all counters and of the generator; the rows follow by
        :meth:`restore`."""
        self._next_id = int(state["next_id"])
        self._last_id[:] = state["last_id"]
        self._final_is_next[:] = state["final_is_next"]
        self.rng.bit_generator.state = state["rng"]

    def rows(self, first_id: int, end_id: int) -> Rows:
        """Copies of the rows with ids in ``[first_id, end_id)``, all of which must be stored."""
        if not self.oldest_id <= first_id < end_id <= self._next_id:
            raise ValueError(
                f"rows [{first_id}, {end_id}) are not all in [{self.oldest_id}, {self._next_id})"
            )
        slots = np.arange(first_id, end_id) % self.capacity
        obs = self._obs.index_select(0, self._to_device(slots)).cpu().numpy()
        return Rows(
            first_id,
            obs,
            self._action[slots],
            self._reward[slots],
            self._terminated[slots],
            self._ended[slots],
            self._is_source[slots],
            self._back[slots],
        )

    def restore(self, rows: Rows) -> None:
        """Puts archived rows back, in the order of their ids; links ahead are made again.

        Raises:
            ValueError: if they are not rows of a buffer like this one.
        """
        for name, stored in (("obs", self._obs[:0].cpu().numpy()), ("action", self._action)):
            given = getattr(rows, name)
            if given.shape[1:] != stored.shape[1:] or given.dtype != stored.dtype:
                raise ValueError(
                    f"{name} is {given.dtype} {given.shape[1:]} per row, here it is "
                    f"{stored.dtype} {stored.shape[1:]}"
                )
        ids = rows.first_id + np.arange(len(rows.reward))
        kept = ids >= self.oldest_id
        if not kept.any():
            return
        ids = ids[kept]
        back = rows.back[kept]
        self._write(
            ids % self.capacity,
            rows.obs[kept],
            rows.action[kept],
            rows.reward[kept],
            rows.terminated[kept],
            rows.ended[kept],
            rows.is_source[kept],
            back,
        )
        linked = (back > 0) & (ids - back >= self.oldest_id)
        self._ahead[(ids - back)[linked] % self.capacity] = back[linked]


def replay_nbytes(
    capacity: int, obs_shape: tuple[int, ...], obs_itemsize: int = 1, action_nbytes: int = 4
) -> int:
    """Memory that a :class:`ReplayBuffer` will take, in bytes, before it is made."""
    bookkeeping = 4 + 3 * 1 + 2 * 4  # reward, three flags, two links
    return capacity * (int(np.prod(obs_shape)) * obs_itemsize + action_nbytes + bookkeeping)
