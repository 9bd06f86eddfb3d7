"""The open list against a heap."""

import heapq
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from classicrl.search import OpenList
from classicrl.search.open_list import f_of_key, order_of, pack_key

CPU = torch.device("cpu")
floats = st.floats(0, math.inf, width=32)


def packed(pairs: list[tuple[float, float]]) -> torch.Tensor:
    f, h = torch.tensor(pairs, dtype=torch.float32).reshape(-1, 2).unbind(1)
    return pack_key(f.contiguous(), h.contiguous())


@given(pairs=st.lists(st.tuples(floats, floats), min_size=1, max_size=30))
def test_keys_order_as_pairs_do(pairs: list[tuple[float, float]]) -> None:
    key = packed(pairs)
    assert sorted(range(len(pairs)), key=lambda i: pairs[i]) == key.argsort(stable=True).tolist()
    assert f_of_key(key).tolist() == [f for f, _ in pairs]


@given(entries=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=40))
def test_order_by_key_then_node(entries: list[tuple[int, int]]) -> None:
    key, node = torch.tensor(entries, dtype=torch.int64).reshape(-1, 2).unbind(1)
    order = order_of(key, node).tolist()
    assert [entries[i] for i in order] == sorted(entries)


class Checked:
    """An open list and a heap that are told the same; counts merges and blocks.

    A small ``front`` makes blocks of a few entries, as a long search has them of thousands.
    """

    def __init__(self, front: int) -> None:
        self.list, self.heap, self.merges = OpenList(CPU), list[tuple[float, float, int]](), 0
        self.list._front_size = front
        self.peak = self.most_blocks = 0
        merge = self.list._merge

        def counted() -> None:
            self.merges += 1
            merge()

        self.list._merge = counted  # type: ignore[method-assign]

    def push(self, entries: list[tuple[float, float, int]]) -> None:
        nodes = torch.tensor([node for _, _, node in entries], dtype=torch.int64)
        self.list.push(packed([(f, h) for f, h, _ in entries]), nodes)
        for entry in entries:
            heapq.heappush(self.heap, entry)
        self.peak = max(self.peak, len(self.heap))
        self.check_size()

    def pop(self, count: int) -> None:
        expected = [heapq.heappop(self.heap) for _ in range(min(count, len(self.heap)))]
        key, node = self.list.pop(count)
        assert node.dtype == torch.int64
        assert node.tolist() == [n for _, _, n in expected]
        assert torch.equal(key, packed([(f, h) for f, h, _ in expected]))
        self.check_size()

    def check_size(self) -> None:
        self.most_blocks = max(self.most_blocks, len(self.list._blocks))
        assert len(self.list) == len(self.heap)
        assert self.list.peak == self.peak
        assert self.list.num_bytes() == 12 * len(self.heap)


# Few values make ties in f and in h; others lie far beyond the rest.
some_f = st.sampled_from([0.0, 0.25, 0.49999997, 0.5, 1.0, 1.25, 7.0, 7.75, 1e4, 3e38])
operation = st.one_of(
    st.lists(st.tuples(some_f, st.sampled_from([0.0, 1.0, 2.5])), max_size=12),
    st.integers(1, 9),
)


@given(operations=st.lists(operation, max_size=40), front=st.sampled_from([1, 7, 10_000]))
def test_random_pushes_and_pops(
    operations: list[list[tuple[float, float]] | int], front: int
) -> None:
    checked, node = Checked(front), 0
    for pushed_or_count in operations:
        if isinstance(pushed_or_count, int):
            checked.pop(pushed_or_count)
            continue
        # Later nodes do not come in ascending order.
        entries = [(f, h, (node + i) * 7919 % 10007) for i, (f, h) in enumerate(pushed_or_count)]
        node += len(entries)
        checked.push(entries)
    checked.pop(len(checked.heap) + 1)
    assert not checked.heap


@pytest.mark.parametrize("step", [0.5, 0.015625, 1e-4])
@pytest.mark.parametrize("most", [3, 40])
@pytest.mark.parametrize("front", [5, 10_000])
def test_a_long_search(step: float, most: int, front: int) -> None:
    """As a search does: batches leave and larger ones come back, near the lowest f and above."""
    checked, generator = Checked(front), random.Random(7)
    nodes, base = iter(generator.sample(range(10**6), 60_000)), 3.0
    checked.push([(base, 0.0, next(nodes))])
    for _ in range(500):
        entries = []
        for _ in range(generator.randrange(2 * most)):
            f = base + step * generator.randrange(round(4 / step))
            f = float(torch.tensor(f, dtype=torch.float32))
            entries.append((f, float(generator.randrange(4)), next(nodes)))
        checked.push(entries)
        checked.pop(generator.randrange(1, most))
        if generator.random() < 0.05:
            base += 0.25
    assert checked.merges > 0
    assert checked.peak > 100
    assert (checked.most_blocks > 3) == (front == 5)
    while checked.heap:
        checked.pop(100)


def test_entries_may_come_back_below_all_others() -> None:
    """Estimates that are not consistent let f fall."""
    checked = Checked(2)
    checked.push([(10.0 + i, 0.0, i) for i in range(9)])
    checked.pop(2)
    checked.push([(0.0, 3.0, 20), (0.0, 1.0, 21), (12.0, 0.0, 22), (11.75, 0.0, 23)])
    checked.pop(3)
    checked.pop(6)
    assert len(checked.heap) == 2
    checked.pop(9)


def test_an_empty_list() -> None:
    checked = Checked(10_000)
    checked.pop(3)
    checked.push([])
    checked.pop(1)


def test_a_front_of_equal_keys_stays_whole() -> None:
    """A block begins with the first of equal keys, so a front of nothing else cannot be cut."""
    checked = Checked(2)
    checked.push([(1.0, 0.0, 1), *((2.0, 0.0, node) for node in range(2, 60)), (3.0, 0.0, 60)])
    checked.pop(1)
    assert checked.most_blocks == 0
    checked.push([(2.0, 0.0, node) for node in range(100, 110)])
    checked.push([(2.0, 1.0, node) for node in range(110, 140)])
    while checked.heap:
        checked.pop(3)
    assert checked.most_blocks > 0
