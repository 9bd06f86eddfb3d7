"""A replay ring that stores every observation once.

The rows of all environments lie in one ring, linked to their predecessors and successors
(``rings.py``): stacks, n-step windows and next observations are put together when a batch is drawn,
so an Atari transition costs one 84x84 frame (7,056 bytes) and 19 bytes of bookkeeping.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.errors import UserError
from classicrl.replay.rings import Rings
from classicrl.replay.samplers import UniformSampler
from classicrl.types import Sampler, Transition


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

        depth = 1 if stack is None else stack
        # Twice a window: one for every environment's running episode, one for last observations.
        needed = 2 * num_envs * (depth + n_steps)
        if capacity < needed:
            raise UserError(
                f"a replay of {capacity} rows is too short for {num_envs} environments with "
                f"stacks of {depth} and {n_steps}-step returns: make it at least {needed}"
            )
        self.rings = Rings.empty(
            1,
            capacity,
            obs_shape,
            num_envs,
            stack=stack,
            n_steps=n_steps,
            gamma=gamma,
            obs_dtype=obs_dtype,
            action_shape=action_shape,
            action_dtype=action_dtype,
            device=self.device,
        )

    # -- sizes ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Rows stored now."""
        return self.next_id - self.oldest_id

    @property
    def next_id(self) -> int:
        """Id of the row that will be added next; the number of rows ever added."""
        return int(self.rings.next_id[0])

    @property
    def oldest_id(self) -> int:
        """Id of the oldest row that is still stored."""
        return max(0, self.next_id - self.capacity)

    @property
    def nbytes(self) -> int:
        """Memory of the whole ring, in bytes."""
        return self.rings.nbytes

    @property
    def obs_nbytes(self) -> int:
        """Bytes of one stored observation."""
        return self.rings.obs[0].numel() * self.rings.obs.element_size()

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
        self.rings.add(obs, action, reward, terminated, ended, final_obs)

    def break_streams(self) -> None:
        """Declares that the next rows begin new episodes, whatever came before.

        For a resume that cannot restore its environments: the interrupted steps are never drawn.
        """
        self.rings.break_streams()

    # -- sampling ------------------------------------------------------------------------------

    def sample(self, batch_size: int, rng: np.random.Generator | None = None) -> Transition:
        """Draws ``batch_size`` transitions, independently, on the buffer's device.

        Args:
            batch_size: B.
            rng: draws with this generator, for a look that leaves the buffer's own as it is.

        Raises:
            UserError: if nothing can be drawn yet.
        """
        ids = self.draw(batch_size, self.rng if rng is None else rng)
        return self.rings.transitions(ids[None])

    def propose(self, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Ids of rows drawn to make ``batch_size`` transitions of, with some to spare for those
        that make none: the newest rows, last observations, and the oldest rows, whose stacks are
        already overwritten."""
        ages = self.sampler(rng, max(1, len(self)), batch_size + batch_size // 8 + 4)
        return self.next_id - 1 - ages

    def draw(self, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Ids of rows from which a whole transition can be made, int64 ``[batch_size]``.

        Raises:
            UserError: if there are none yet.
        """
        drawn: list[NDArray[np.int64]] = []
        missing, tries = batch_size, 0
        while missing > 0:
            # What makes no transition is thrown away and drawn again, which leaves the sampler's
            # distribution over the others as it is.
            ids = self.propose(missing, rng)
            ids = ids[self.rings.is_whole(ids[None])[0]][:missing]
            drawn.append(ids)
            missing -= len(ids)
            tries += 1
            if tries > 1000 and not sum(len(d) for d in drawn):
                raise UserError(
                    "the replay holds no whole transition yet: let the first update come after "
                    f"more than {self.n_steps} steps of every environment"
                )
        return np.concatenate(drawn) if len(drawn) > 1 else drawn[0]

    # -- saving --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All but the rows themselves (see :meth:`rows`)."""
        return {
            "next_id": self.next_id,
            "last_id": self.rings.last_id.copy(),
            "final_is_next": self.rings.final_is_next.copy(),
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the place of all counters and of the generator; the rows follow by
        :meth:`restore`."""
        self.rings.next_id[0] = state["next_id"]
        self.rings.last_id[:] = state["last_id"]
        self.rings.final_is_next[:] = state["final_is_next"]
        self.rng.bit_generator.state = state["rng"]

    def rows(self, first_id: int, end_id: int) -> Rows:
        """Copies of the rows with ids in ``[first_id, end_id)``, all of which must be stored."""
        if not self.oldest_id <= first_id < end_id <= self.next_id:
            raise ValueError(
                f"rows [{first_id}, {end_id}) are not all in [{self.oldest_id}, {self.next_id})"
            )
        slots = np.arange(first_id, end_id) % self.capacity
        obs = self.rings.obs[torch.from_numpy(slots).to(self.device)].cpu().numpy()
        return Rows(
            first_id,
            obs,
            self.rings.action[slots],
            self.rings.reward[slots],
            self.rings.terminated[slots],
            self.rings.ended[slots],
            self.rings.is_source[slots],
            self.rings.back[slots],
        )

    def restore(self, rows: Rows) -> None:
        """Puts archived rows back, in the order of their ids; links ahead are made again.

        Raises:
            ValueError: if they are not rows of a buffer like this one.
        """
        for name, stored in (
            ("obs", self.rings.obs[:0].cpu().numpy()),
            ("action", self.rings.action),
        ):
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
        self.rings.write(
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
        self.rings.ahead[(ids - back)[linked] % self.capacity] = back[linked]


def replay_nbytes(
    capacity: int, obs_shape: tuple[int, ...], obs_itemsize: int = 1, action_nbytes: int = 4
) -> int:
    """Memory that a :class:`ReplayBuffer` will take, in bytes, before it is made."""
    bookkeeping = 4 + 3 * 1 + 2 * 4  # reward, three flags, two links
    return capacity * (int(np.prod(obs_shape)) * obs_itemsize + action_nbytes + bookkeeping)
