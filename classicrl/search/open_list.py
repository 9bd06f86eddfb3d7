"""The open list: a priority queue of nodes that hands out batches."""

import heapq

import torch
from torch import Tensor

# Width of a bucket of keys. Sorting happens in one bucket at a time, so any width is right; with
# this one a search of millions of nodes has some tens of buckets.
_BUCKET = 0.5
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

    Three places: a sorted *front* with all that was in the lowest buckets when they were taken up;
    *aside*, unsorted, what came since with keys in the front's range; and *buckets* by f behind.
    A batch costs a sort of about its own size, a bucket is sorted once, and aside is merged into
    the front when it has grown to an eighth of it. So an entry's cost does not grow with the list.

    Args:
        device: of everything here.
    """

    def __init__(self, device: torch.device) -> None:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        self._front_key, self._front_node = empty, empty.to(torch.int32)
        self._aside: list[tuple[Tensor, Tensor]] = []
        self._num_aside = 0
        self._limit = -1  # the highest bucket that the front covers
        self._buckets: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._order: list[int] = []  # of the buckets, a heap
        self._size = self.peak = 0

    def __len__(self) -> int:
        return self._size

    def push(self, key: Tensor, node: Tensor) -> None:
        """Adds entries [B] int64 each."""
        node = node.to(torch.int32)
        self._size += len(key)
        self.peak = max(self.peak, self._size)
        bucket = torch.clamp(f_of_key(key) / _BUCKET, max=2.0**31).to(torch.int64)
        near = bucket <= self._limit
        if bool(near.any()):
            self._aside.append((key[near], node[near]))
            self._num_aside += len(self._aside[-1][0])
            far = ~near
            key, node, bucket = key[far], node[far], bucket[far]
        if not len(key):
            return
        order = torch.sort(bucket).indices
        numbers, counts = torch.unique_consecutive(bucket[order], return_counts=True)
        sizes = counts.tolist()
        parts = zip(torch.split(key[order], sizes), torch.split(node[order], sizes), strict=True)
        for number, part in zip(numbers.tolist(), parts, strict=True):
            if number not in self._buckets:
                self._buckets[number] = []
                heapq.heappush(self._order, number)
            self._buckets[number].append(part)

    def pop(self, count: int) -> tuple[Tensor, Tensor]:
        """Removes the ``count`` lowest entries, or all there are, in order: key, node."""
        while len(self._front_key) + self._num_aside < count and self._order:
            self._limit = heapq.heappop(self._order)
            key, node = _joined(self._buckets.pop(self._limit))
            order = order_of(key, node)
            self._front_key = torch.cat((self._front_key, key[order]))
            self._front_node = torch.cat((self._front_node, node[order]))
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
        if self._num_aside > max(8 * count, len(self._front_key) // 8):
            self._merge()
        self._size -= len(key)
        return key, node.to(torch.int64)

    def _merge(self) -> None:
        key, node = _joined([(self._front_key, self._front_node), *self._aside])
        order = order_of(key, node)
        self._front_key, self._front_node = key[order], node[order]
        self._aside, self._num_aside = [], 0

    def num_bytes(self) -> int:
        """Memory of the entries."""
        return 12 * self._size


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([key for key, _ in parts]), torch.cat([node for _, node in parts])
