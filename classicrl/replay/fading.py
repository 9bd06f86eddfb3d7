"""Symphony's Fading Replay Buffer (arXiv 2512.10477, section 5), without its copies.

What is drawn fades with age: of n items the one of rank r (0 the oldest) has probability

    p_r = w(r / n) / sum w,     w(x) = tanh((pi x)^e),

so the newest half is drawn 67% of the time. The authors fill the whole buffer with K copies of the
exploration phase, so that its N0 steps weigh as much as K N0 at first and fade while new steps
take their place. Here those copies are virtual: a table says for each of the N = K N0 slots which
row it stands for. Drawing from it is exactly drawing from the tiled buffer, at every age.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classicrl.checkpoint import restore_generator
from classicrl.errors import UserError
from classicrl.types import ControlBatch

TerminalKeep = Literal["once", "forever", "off"]

_MIN_REWARD_SCALE = 1e-6


def age_weight(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """``w(x) = tanh((pi x)^e)`` of relative ranks in [0, 1): 0 for the oldest, flat near 1."""
    weight: NDArray[np.float64] = np.tanh((np.pi * x) ** np.e)
    return weight


def age_probs(num_stored: int) -> NDArray[np.float64]:
    """Probabilities of the ranks 0 (oldest) .. n - 1 (newest), float64 ``[n]``."""
    weight = age_weight(np.arange(num_stored) / num_stored)
    probs: NDArray[np.float64] = weight / weight.sum()
    return probs


def alias_table(probs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """A. J. Walker's alias table (1977): one look for a draw, however many ranks there are.

    A column i is drawn uniformly; it is rank i with probability ``keep[i]``, else rank
    ``alias[i]``. Ranks below the mean are filled up by those above it, one after another, so the
    filling is read off two running sums.

    Args:
        probs: ``[n]``, of sum 1.

    Returns:
        keep, float64 ``[n]``; alias, int32 ``[n]``.
    """
    scaled = probs * len(probs)
    small, large = np.flatnonzero(scaled < 1.0), np.flatnonzero(scaled >= 1.0)
    lacks = np.cumsum(1.0 - scaled[small])  # of the small ones up to and with each
    spare = np.cumsum(scaled[large] - 1.0)  # of the large ones
    keep, alias = np.ones(len(probs)), np.arange(len(probs), dtype=np.int32)
    last = len(large) - 1
    if not len(small):
        return keep, alias
    keep[small] = scaled[small]
    before = np.concatenate(([0.0], lacks[:-1]))
    alias[small] = large[np.searchsorted(spare, before, side="right").clip(max=last)]
    # A small one may ask for more than is left: the large one is then small, and the next fills it.
    asks = np.searchsorted(lacks, spare, side="right")[:last]
    emptied = np.flatnonzero(asks < len(small))
    emptied = emptied[before[asks[emptied]] < spare[emptied]]  # it had something left
    keep[large[emptied]] = 1.0 + spare[emptied] - lacks[asks[emptied]]
    alias[large[emptied]] = large[emptied + 1]
    return keep.clip(0.0, 1.0), alias


class FadingSampler:
    """The same fading for any replay buffer of this package, full or growing.

    Draws uniformly and keeps a draw of rank r with probability ``w(r / n)``, three quarters of
    them, so nothing has to be known of n beforehand, and no table to be kept.
    """

    def __call__(self, rng: np.random.Generator, num_stored: int, size: int) -> NDArray[np.int64]:
        """Ages, int64 ``[size]`` in ``[0, num_stored)``; 0 is the newest row."""
        if num_stored == 1:
            return np.zeros(size, dtype=np.int64)
        kept: list[NDArray[np.int64]] = []
        missing = size
        while missing > 0:
            rank = rng.integers(num_stored, size=missing + missing // 2 + 8)
            accepted = rank[rng.random(len(rank)) < age_weight(rank / num_stored)][:missing]
            kept.append(accepted)
            missing -= len(accepted)
        return num_stored - 1 - np.concatenate(kept)


class FadingReplay:
    """A virtual ring of ``replication * warmup_steps`` transitions, drawn by age.

    A row is ``[obs, action, next_obs, reward, discount]`` in float32: one write stores a
    transition, one gather makes a batch. Rows lie on the device, and so does all that a draw
    needs. The first ``warmup_steps`` rows are the warm-up's; the others are written as the ring
    goes round. They are reserved at once, at one place for good (a captured CUDA graph needs
    that); memory of a CPU that was not written to yet costs nothing.

    Args:
        obs_size: S.
        action_size: A.
        warmup_steps: N0, transitions of the warm-up.
        replication: K, how many copies of the warm-up the ring begins with.
        gamma: discount per step.
        terminal_keep: what happens to an episode's last transition that would be overwritten.
            ``once``: it is passed over the first time, and so is young again. ``forever``: every
            time, but at most one in a row is passed over (the authors' rule). ``off``: nothing.
        device: where the rows live and batches are made.
        seed: of the draws.
        save_rows: whether :meth:`state_dict` holds the rows. Without them a loaded buffer begins
            with an empty warm-up, and keeps its reward scale.

    Raises:
        UserError: for sizes that are not positive, or a ring of one slot.
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        *,
        warmup_steps: int,
        replication: int,
        gamma: float = 0.99,
        terminal_keep: TerminalKeep = "once",
        device: torch.device | str = "cpu",
        seed: int = 0,
        save_rows: bool = True,
    ) -> None:
        if min(warmup_steps, replication) < 1 or warmup_steps * replication < 2:
            raise UserError(
                f"a replay of {replication} times {warmup_steps} steps: both must be positive, and "
                "there must be 2 steps or more, for the oldest is never drawn"
            )
        self.obs_size = obs_size
        self.action_size = action_size
        self.warmup_steps = warmup_steps
        self.capacity = replication * warmup_steps
        self.gamma = gamma
        self.terminal_keep = terminal_keep
        self.device = torch.device(device)
        self.save_rows = save_rows
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.reward_scale: float | None = None
        """Mean absolute reward of the warm-up, by which all rewards are divided; None before."""
        self.warmup_done = False
        """Whether :meth:`finish_warmup` was called."""
        self.num_warmup = 0
        """Warm-up transitions stored so far."""
        self.num_writes = 0
        """Transitions stored after the warm-up."""

        self._width = 2 * obs_size + action_size + 2
        # Zeros, which cost a CPU no memory before they are written: rows that are passed over for a
        # terminal's sake are saved with the others, and must be numbers.
        self._rows = torch.zeros(warmup_steps + self.capacity, self._width, device=self.device)
        keep, alias = alias_table(age_probs(self.capacity))
        self._keep = torch.from_numpy(keep).to(self.device)
        self._alias = torch.from_numpy(alias).to(self.device)
        self._row_of_slot = torch.empty(self.capacity, dtype=torch.int32, device=self.device)
        self._ptr = torch.zeros((), dtype=torch.int64, device=self.device)
        self._host_ptr = 0  # the slot that is written next: that of the oldest item
        self._highest_slot = -1
        self._terminal = np.zeros(self.capacity, dtype=np.uint8)
        self._kept = np.zeros(self.capacity, dtype=np.uint8)
        self._warmup_terminal = np.zeros(warmup_steps, dtype=np.uint8)

    def __len__(self) -> int:
        """Items that can be drawn: those of the warm-up, or, once it is over, a full ring."""
        return self.capacity if self.warmup_done else self.num_warmup

    @property
    def nbytes(self) -> int:
        """Memory of a ring that has gone round once, in bytes."""
        return fading_nbytes(self.obs_size, self.action_size, self.warmup_steps, self.capacity)

    # -- writing -------------------------------------------------------------------------------

    def add(
        self,
        obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        next_obs: NDArray[Any],
    ) -> None:
        """Stores one transition of each of N environments, in their order.

        Args:
            obs, next_obs: ``[N, S]``; of an episode that ended, its true last observation.
            action: ``[N, A]``, in (-1, 1).
            reward: ``[N]``, as the environment gives it.
            terminated: bool ``[N]``; a time limit is none.

        Raises:
            ValueError: if the warm-up would get more than its number of steps.
        """
        count = len(reward)
        scale = self.reward_scale if self.warmup_done else None
        rows = np.empty((count, self._width), dtype=np.float32)
        split = self.obs_size + self.action_size
        rows[:, : self.obs_size] = obs
        rows[:, self.obs_size : split] = action
        rows[:, split : split + self.obs_size] = next_obs
        rows[:, -2] = reward if scale is None else reward / scale
        rows[:, -1] = np.where(terminated, 0.0, self.gamma)
        if not self.warmup_done:
            end = self.num_warmup + count
            if end > self.warmup_steps:
                raise ValueError(f"the warm-up has {self.warmup_steps} steps, got {end}")
            self._rows[self.num_warmup : end].copy_(torch.from_numpy(rows))
            self._warmup_terminal[self.num_warmup : end] = terminated
            self.num_warmup = end
            return
        sources = torch.from_numpy(rows)
        if self.device.type == "cuda":
            # Not pinned: a copy from ordinary memory is staged before the call returns.
            sources = sources.to(self.device, non_blocking=True)
        for i in range(count):
            self._write(sources[i], bool(terminated[i]))

    def _write(self, row: Tensor, terminal: bool) -> None:
        slot = self._slot_to_write()
        place = self.warmup_steps + slot
        self._rows[place].copy_(row)
        self._row_of_slot[slot].fill_(place)
        self._terminal[slot], self._kept[slot] = terminal, 0
        self._highest_slot = max(self._highest_slot, slot)
        self._host_ptr = (slot + 1) % self.capacity
        self._ptr.fill_(self._host_ptr)
        self.num_writes += 1

    def _slot_to_write(self) -> int:
        slot = self._host_ptr
        if self.terminal_keep == "forever":  # one at most: with terminals alone it would not end
            return (slot + 1) % self.capacity if self._terminal[slot] else slot
        if self.terminal_keep == "once":
            while self._terminal[slot] and not self._kept[slot]:
                self._kept[slot] = 1
                slot = (slot + 1) % self.capacity
        return slot

    def finish_warmup(self) -> float:
        """Ends the warm-up: rewards are divided by their mean absolute value, and the ring stands.

        A scale that a checkpoint brought is kept. Returns the scale, 1 where all rewards are zero.

        Raises:
            ValueError: if the warm-up is not complete, or was ended before.
        """
        if self.warmup_done or self.num_warmup < self.warmup_steps:
            raise ValueError(f"{self.num_warmup} of {self.warmup_steps} warm-up steps are stored")
        rewards = self._rows[: self.warmup_steps, -2]
        scale = float(rewards.abs().double().mean())
        if self.reward_scale is None:
            self.reward_scale = scale if scale >= _MIN_REWARD_SCALE else 1.0
        rewards.div_(self.reward_scale)
        self.warmup_done = True
        self._build_ring()
        return self.reward_scale

    def _build_ring(self) -> None:
        """Slot k stands for item k mod N0 of the warm-up, slot 0 the oldest."""
        slots = torch.arange(self.capacity, dtype=torch.int32, device=self.device)
        torch.remainder(slots, self.warmup_steps, out=self._row_of_slot)
        copies = self.capacity // self.warmup_steps
        self._terminal[:] = np.tile(self._warmup_terminal, copies)
        self._kept[:] = 0
        self._host_ptr, self._highest_slot = 0, -1
        self._ptr.zero_()

    def obs_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the warm-up's observations, each ``[S]``."""
        obs = self._rows[: self.num_warmup, : self.obs_size].double()
        return obs.mean(dim=0).float(), obs.std(dim=0).float()

    # -- drawing -------------------------------------------------------------------------------

    def sample(self, batch_size: int, *, generator: torch.Generator | None = None) -> ControlBatch:
        """Draws transitions with replacement, by age, on the device. No host synchronisation.

        Args:
            batch_size: B.
            generator: draws with this one, for a look that leaves the buffer's own as it is.

        Raises:
            ValueError: before :meth:`finish_warmup`.
        """
        if not self.warmup_done:
            raise ValueError(f"{self.num_warmup} of {self.warmup_steps} warm-up steps are stored")
        ranks = self.sample_ranks(batch_size, generator=generator)
        rows = self._rows.index_select(0, self.rows_of_ranks(ranks))
        split = self.obs_size + self.action_size
        return ControlBatch(
            rows[:, :split], rows[:, split : split + self.obs_size], rows[:, -2], rows[:, -1]
        )

    def sample_ranks(self, size: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Ranks by age, int64 ``[size]``, at a cost that does not depend on the capacity."""
        uniform = torch.rand(
            size,
            dtype=torch.float64,
            generator=self.generator if generator is None else generator,
            device=self.device,
        )
        # float64: its 53 bits choose a column and still have 34 left to choose in it.
        place = uniform.mul_(self.capacity)
        column = place.long()
        stays = place.frac_() < self._keep[column]
        return torch.where(stays, column, self._alias[column])

    def rows_of_ranks(self, ranks: Tensor) -> Tensor:
        """Where the items of these ranks are stored; int64 ``[B]`` -> int32 ``[B]``."""
        return self._row_of_slot.index_select(0, (ranks + self._ptr) % self.capacity)

    # -- saving --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs; the rows only with ``save_rows``."""
        state: dict[str, Any] = {
            "reward_scale": self.reward_scale,
            "generator": self.generator.get_state(),
        }
        if not self.save_rows:
            return state
        live = self.warmup_steps + self._highest_slot + 1
        used = live if self.warmup_done else self.num_warmup
        return state | {
            "num_warmup": self.num_warmup,
            "num_writes": self.num_writes,
            "ptr": self._host_ptr,
            "highest_slot": self._highest_slot,
            "warmup_terminal": self._warmup_terminal.copy(),
            "terminal": self._terminal.copy(),
            "kept": self._kept.copy(),
            "row_of_slot": self._row_of_slot.cpu().numpy().copy() if self.warmup_done else None,
            "rows": self._rows[:used].cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken; without rows, with an empty warm-up.

        Raises:
            UserError: if the state is that of another ring.
        """
        scale = state["reward_scale"]
        self.reward_scale = None if scale is None else float(scale)
        restore_generator(self.generator, state["generator"])
        self.num_warmup = self.num_writes = 0
        self.warmup_done = False
        if "rows" not in state:
            return
        rows = state["rows"]
        if rows.shape[1] != self._width or len(state["terminal"]) != self.capacity:
            raise UserError(
                f"the saved replay has {len(state['terminal']):,} slots of {rows.shape[1]} "
                f"numbers, here it has {self.capacity:,} of {self._width}: use the same settings"
            )
        self.num_warmup, self.num_writes = int(state["num_warmup"]), int(state["num_writes"])
        self._rows[: len(rows)].copy_(rows)
        self._warmup_terminal[:] = state["warmup_terminal"]
        if state["row_of_slot"] is None:
            return
        self.warmup_done = True
        self._row_of_slot.copy_(torch.from_numpy(state["row_of_slot"]))
        self._terminal[:] = state["terminal"]
        self._kept[:] = state["kept"]
        self._highest_slot = int(state["highest_slot"])
        self._host_ptr = int(state["ptr"])
        self._ptr.fill_(self._host_ptr)


def fading_nbytes(obs_size: int, action_size: int, warmup_steps: int, capacity: int) -> int:
    """Memory that a :class:`FadingReplay` takes once it has gone round, in bytes."""
    row = 4 * (2 * obs_size + action_size + 2)
    return (warmup_steps + capacity) * row + capacity * (8 + 4 + 4 + 2)


def mass_of_warmup(num_writes: int, capacity: int) -> float:
    """``M(t) = sum_{r < N - t} p_r``: how probable a draw of the warm-up is after t writes.

    For a ring of N slots that passes over no terminals.
    """
    left = max(0, capacity - num_writes)
    return math.fsum(age_probs(capacity)[:left])
