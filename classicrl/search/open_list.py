"""The open list: a priority queue of nodes that hands out batches."""

import itertools

import torch
from torch import Tensor

# The front holds some batches, so that its sorts are small, but enough that blocks are few.
_FRONT_BATCHES = 4
_MIN_FRONT = 10_000
# Parts of a block are longer than this on average: a part has a price of its own.
_MEAN_PART = 64
_NONE = 2**63 - 1


def pack_key(f: Tensor, h: Tensor) -> Tensor:
    """Keys int64 that order as (f, h) do: float32 of one shape, zero or above, inf allowed."""
    # The bits of floats that are not negative order as the floats do.
    return (f.view(torch.int32).to(torch.int64) << 32) | h.view(torch.int32)


def f_of_key(key: Tensor) -> Tensor:
    """The f of keys, float32."""
    return (key >> 32).to(torch.int32).view(torch.float32)


def order_of(key: Tensor, node: Tensor) -> Tensor:
    """Indices that sort by key, then by node."""
    by_node = torch.sort(node).indices
    return by_node[torch.sort(key[by_node], stable=True).indices]


class OpenList:
    """Entries (key, node), lowest first; a node is in it once at most.

    A sorted *front* has the lowest keys, *aside* lies unsorted what came since with keys in the
    front's range, and above that range are *blocks*, each a range of its own, unsorted. A block is
    sorted when the front has been used up; aside is merged into the front when it has grown to two
    batches; a front twice as long as it should be gives up its upper part as blocks. So sorts
    are of a few batches, but for the last block's, which is cut up then, and an entry costs as
    much in a list of millions, however close its keys. Only long runs of equal keys are not cut.

    Args:
        device: of everything here.
    """

    def __init__(self, device: torch.device) -> None:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        self._front_key, self._front_node = empty, empty.to(torch.int32)
        self._front_size = _MIN_FRONT  # as it should be
        self._aside: list[tuple[Tensor, Tensor]] = []
        self._num_aside = 0
        self._blocks: list[list[tuple[Tensor, Tensor]]] = []  # of ascending keys
        self._bounds = empty  # the lowest key of each block; below the first is the front's range
        self._above: list[tuple[Tensor, Tensor]] = []  # entries that no block has been found for
        self._num_above = 0
        self._size = self.peak = 0

    def __len__(self) -> int:
        return self._size

    def push(self, key: Tensor, node: Tensor) -> None:
        """Adds entries [B] int64 each."""
        self._size += len(key)
        self.peak = max(self.peak, self._size)
        self._put(key, node.to(torch.int32))

    def _put(self, key: Tensor, node: Tensor) -> None:
        if self._blocks:
            above = key >= self._bounds[0]
            self._above.append((key[above], node[above]))
            self._num_above += len(self._above[-1][0])
            if self._num_above > _MEAN_PART * len(self._blocks):
                self._fill_blocks()
            key, node = key[~above], node[~above]
        self._aside.append((key, node))
        self._num_aside += len(key)

    def _fill_blocks(self) -> None:
        if not self._num_above:
            return
        key, node = _joined(self._above)
        self._above, self._num_above = [], 0
        block = torch.searchsorted(self._bounds, key, right=True) - 1
        order = torch.sort(block).indices
        numbers, counts = torch.unique_consecutive(block[order], return_counts=True)
        sizes = counts.tolist()
        parts = zip(torch.split(key[order], sizes), torch.split(node[order], sizes), strict=True)
        for number, part in zip(numbers.tolist(), parts, strict=True):
            self._blocks[number].append(part)

    def pop(self, count: int) -> tuple[Tensor, Tensor]:
        """Removes the ``count`` lowest entries, or all there are, in order: key, node."""
        self._front_size = max(self._front_size, _FRONT_BATCHES * count)
        while len(self._front_key) + self._num_aside < count and self._blocks:
            self._fill_blocks()
            self._bounds = self._bounds[1:]
            key, node = _joined(self._blocks.pop(0))
            order = order_of(key, node)
            self._front_key = torch.cat((self._front_key, key[order]))
            self._front_node = torch.cat((self._front_node, node[order]))
            self._shorten()
        key, node = self._front_key[:count], self._front_node[:count]
        if self._num_aside:
            aside_key, aside_node = _joined(self._aside)
            # Nothing above the last of so many in front can be among the lowest.
            bound = int(key[-1]) if len(key) == count else _NONE
            low = aside_key <= bound
            key = torch.cat((key, aside_key[low]))
            node = torch.cat((node, aside_node[low]))
            order = order_of(key, node)
            key, node = key[order], node[order]
            high = ~low
            aside_key = torch.cat((key[count:], aside_key[high]))
            aside_node = torch.cat((node[count:], aside_node[high]))
            self._aside, self._num_aside = [(aside_key, aside_node)], len(aside_key)
            key, node = key[:count], node[:count]
        self._front_key, self._front_node = self._front_key[count:], self._front_node[count:]
        if self._num_aside > max(2 * count, len(self._front_key) // 8):
            self._merge()
            self._shorten()
        self._size -= len(key)
        return key, node.to(torch.int64)

    def _merge(self) -> None:
        key, node = _joined([(self._front_key, self._front_node), *self._aside])
        order = order_of(key, node)
        self._front_key, self._front_node = key[order], node[order]
        self._aside, self._num_aside = [], 0

    def _shorten(self) -> None:
        """If the front is twice as long as it should be, makes blocks of all beyond its size."""
        size, key, node = self._front_size, self._front_key, self._front_node
        if len(key) < 2 * size:
            return
        self._fill_blocks()
        # A block begins with the first of equal keys; if the front has hardly any other, it stays.
        bounds = torch.unique_consecutive(key[size::size])
        cuts = torch.searchsorted(key, bounds)
        bounds, cuts = bounds[cuts >= size // 2], cuts[cuts >= size // 2]
        if not len(cuts):
            return
        # Copies, so that the memory of the whole is free when one of them goes.
        parts = [
            (key[begin:end].clone(), node[begin:end].clone())
            for begin, end in itertools.pairwise([0, *cuts.tolist(), len(key)])
        ]
        self._front_key, self._front_node = parts[0]
        self._blocks[:0] = [[part] for part in parts[1:]]
        self._bounds = torch.cat((bounds, self._bounds))
        aside, self._aside, self._num_aside = self._aside, [], 0
        for part in aside:  # some of it lies above the front now
            self._put(*part)

    def num_bytes(self) -> int:
        """Memory of the entries."""
        return 12 * self._size


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([key for key, _ in parts]), torch.cat([node for _, node in parts])
