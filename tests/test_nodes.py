"""Nodes against a dictionary, also where all hashes collide; batches without doubles; the ball."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from classicrl.domains import Cube3, LightsOut, Pancake, SlidingPuzzle
from classicrl.search import Nodes, Perimeter
from classicrl.search.nodes import children, first_of_equals

CPU = torch.device("cpu")
SIZE = 3  # bytes of a state


def collide(nodes: Nodes, how: str) -> None:
    """Lets the hashes of all states be among a few numbers."""
    true_hashes = nodes.hashes
    if how == "all the same":
        nodes.hashes = lambda states: torch.full((len(states),), -3)  # type: ignore[method-assign]
    elif how == "the same marks":  # other places, so marks are compared only by chance
        nodes.hashes = lambda states: true_hashes(states) & 0xFFFFFFFF  # type: ignore[method-assign]
    elif how == "the same places":  # other marks
        nodes.hashes = lambda states: true_hashes(states) << 40  # type: ignore[method-assign]
    elif how == "few":
        nodes.hashes = lambda states: true_hashes(states) % 5 - 2  # type: ignore[method-assign]


collisions = pytest.mark.parametrize(
    "how", ["none", "all the same", "the same marks", "the same places", "few"]
)


def states_of(numbers: list[int]) -> Tensor:
    """A state for each number: its digits of base 6."""
    number = torch.tensor(numbers, dtype=torch.int64)
    return torch.stack([number // 6**i % 6 for i in range(SIZE)], 1).to(torch.uint8)


def add_all(nodes: Nodes, states: Tensor, cost: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Adds distinct states; returns what was known of them, and their new numbers."""
    hashes = nodes.hashes(states)
    known, place = nodes.find(states, hashes)
    cost = torch.zeros(len(states)) if cost is None else cost
    fields = (cost, torch.full_like(known, -1), torch.full_like(known, -1))
    return known, nodes.add(states, hashes, *fields, known, place)


batches = st.lists(
    st.lists(st.integers(0, 6**SIZE - 1), unique=True, max_size=60), min_size=1, max_size=8
)


@collisions
@given(batches=batches)
@settings(max_examples=25)
def test_against_a_dictionary(how: str, batches: list[list[int]]) -> None:
    """States are added and added again, as when a search re-opens them: the latest counts."""
    nodes, latest, rows = Nodes(1000, SIZE, CPU), dict[int, int](), list[int]()
    collide(nodes, how)
    for numbers in batches:
        known, node = add_all(nodes, states_of(numbers), torch.tensor(numbers) / 2)
        assert known.tolist() == [latest.get(number, -1) for number in numbers]
        assert node.tolist() == list(range(len(rows), len(rows) + len(numbers)))
        latest.update(zip(numbers, node.tolist(), strict=True))
        rows += numbers
        assert nodes.size == len(rows)
        assert nodes._in_table == len(latest)
    every = list(range(6**SIZE))
    found, _ = nodes.find(states_of(every), nodes.hashes(states_of(every)))
    assert found.tolist() == [latest.get(number, -1) for number in every]
    # What was replaced is still there, only not found.
    assert torch.equal(nodes.states[: nodes.size], states_of(rows))
    assert nodes.path_cost[: nodes.size].tolist() == [number / 2 for number in rows]


@collisions
def test_the_table_grows_many_times_in_one_add(how: str) -> None:
    count = 1200 if how in ("all the same", "few", "the same places") else 100_000
    nodes = Nodes(count + 5, 4, CPU)
    collide(nodes, how)
    nodes._slots = nodes._slots[:16].clone()  # small, so that it has to
    numbers = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    states = torch.stack([numbers >> (8 * i) & 255 for i in range(4)], 1).to(torch.uint8)
    few = states[:5]
    assert add_all(nodes, few)[1].tolist() == [0, 1, 2, 3, 4]
    before = len(nodes._slots)
    known, node = add_all(nodes, states)
    assert len(nodes._slots) >= 64 * before
    assert known.tolist() == [0, 1, 2, 3, 4] + [-1] * (count - 5)
    found, _ = nodes.find(states, nodes.hashes(states))
    assert torch.equal(found, node)
    others = states.clone()
    others[:, 3] = 9
    assert (nodes.find(others, nodes.hashes(others))[0] == -1).all()


def test_finding_adds_nothing() -> None:
    nodes = Nodes(10, SIZE, CPU)
    for _ in range(2):
        states = states_of([3, 1, 4])
        assert nodes.find(states, nodes.hashes(states))[0].tolist() == [-1] * 3
    assert nodes.size == 0


def test_hashes_depend_on_every_byte_and_its_place() -> None:
    nodes = Nodes(1, SIZE, CPU)
    states = states_of(list(range(6**SIZE)))
    assert len(nodes.hashes(states).unique()) == 6**SIZE
    # Nodes that were made apart agree.
    assert torch.equal(nodes.hashes(states), Nodes(9, SIZE, CPU).hashes(states))


def test_paths() -> None:
    nodes = Nodes(9, SIZE, CPU)
    parents, actions = [-1, 0, 0, 1, 3, 2], [-1, 5, 1883, 7, 5, 0]
    for number, (parent, action) in enumerate(zip(parents, actions, strict=True)):
        states = states_of([number])
        hashes = nodes.hashes(states)
        fields = torch.zeros(1), torch.tensor([parent]), torch.tensor([action])
        nodes.add(states, hashes, *fields, *nodes.find(states, hashes))
    paths = [[], [5], [1883], [5, 7], [5, 7, 5], [1883, 0]]
    assert [nodes.path(node) for node in range(6)] == paths


def test_more_than_fit() -> None:
    nodes = Nodes(4, SIZE, CPU)
    add_all(nodes, states_of([1, 2, 3]))
    with pytest.raises(OverflowError, match="4 nodes are full"):
        add_all(nodes, states_of([4, 5]))
    assert nodes.size == 3
    add_all(nodes, states_of([4]))
    assert nodes.size == 4


def test_bytes() -> None:
    nodes = Nodes(50_000, SIZE, CPU)
    empty = nodes.num_bytes()
    states = torch.tensor([[i & 255, i >> 8, 0] for i in range(40_000)], dtype=torch.uint8)
    for part in torch.split(states, 1000):
        add_all(nodes, part)
    assert len(nodes._slots) == 1 << 17  # 40,000 fill less than 0.6 of it, and more of its half
    row = SIZE + 4 + 4 + 2
    assert nodes.num_bytes() == 40_000 * row + nodes._slots.nbytes
    assert empty < nodes.num_bytes() <= 40_000 * Nodes.bytes_per_node(SIZE)


# Batches without doubles.


rows = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0, 1.5])), max_size=30)


def slow_first_of_equals(rows: list[tuple[int, float]]) -> list[int]:
    best: dict[int, int] = {}
    for i, (number, cost) in enumerate(rows):
        if number not in best or cost < rows[best[number]][1]:
            best[number] = i
    return sorted(best.values())


@given(rows=rows)
def test_first_of_equals(rows: list[tuple[int, float]]) -> None:
    states = states_of([number for number, _ in rows])
    cost = torch.tensor([cost for _, cost in rows], dtype=torch.float32)
    kept = first_of_equals(states, Nodes(1, SIZE, CPU).hashes(states), cost)
    assert kept.tolist() == slow_first_of_equals(rows)
    assert kept.dtype == torch.int64


@given(rows=rows)
def test_first_of_equals_drops_no_state_when_hashes_collide(rows: list[tuple[int, float]]) -> None:
    states = states_of([number for number, _ in rows])
    cost = torch.tensor([cost for _, cost in rows], dtype=torch.float32)
    kept = first_of_equals(states, torch.zeros(len(rows), dtype=torch.int64), cost).tolist()
    assert set(slow_first_of_equals(rows)) <= set(kept)


# Children and the ball around the goal.


def test_children_are_the_legal_pairs() -> None:
    domain = SlidingPuzzle(3, 2)
    states = domain.random_states(7, torch.Generator().manual_seed(0))
    parents, actions = children(domain, states)
    legal = domain.legal(states).tolist()
    expected = [(b, a) for b in range(7) for a in range(4) if legal[b][a]]
    assert list(zip(parents.tolist(), actions.tolist(), strict=True)) == expected
    parents, actions = children(Pancake(3), torch.zeros(2, 3, dtype=torch.uint8))
    assert (parents.tolist(), actions.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("domain", "depth", "layers"),
    [
        (Cube3(), 3, [1, 12, 114, 1068]),
        (Cube3(156), 1, [1, 126]),
        (Pancake(7), 10, [1, 6, 30, 149, 543, 1357, 1903, 1016, 35, 0, 0]),
        (SlidingPuzzle(4), 6, [1, 2, 4, 10, 24, 54, 107]),
        (LightsOut(2), 0, [1]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_perimeter_knows_the_way(
    domain: Cube3 | Pancake | SlidingPuzzle | LightsOut, depth: int, layers: list[int]
) -> None:
    ball = Perimeter(domain, domain.goal, depth)
    assert ball.layers == layers
    assert len(ball) == sum(layers)
    generator = torch.Generator().manual_seed(3)
    states = domain.goal.repeat(40, 1)
    hashes = Nodes(1, len(domain.goal), CPU).hashes
    for step in range(depth + 4):
        distance, node = ball.distance(states, hashes(states))
        assert (distance <= step).logical_or(torch.tensor(step > depth)).all()
        assert torch.equal(distance == 0, domain.is_goal(states))
        assert torch.equal(distance.isinf(), node < 0)
        for state, rest, number in zip(states, distance.tolist(), node.tolist(), strict=True):
            if number >= 0:
                way = ball.tail(number)
                assert len(way) == rest <= depth
                for action in way:
                    state = domain.apply(state[None], torch.tensor([action]))[0]
                assert domain.is_goal(state[None])
        legal = domain.legal(states)
        if legal is None:
            legal = torch.ones(len(states), len(domain.costs), dtype=torch.bool)
        actions = torch.multinomial(legal.float(), 1, generator=generator)[:, 0]
        states = domain.apply(states, actions)


def test_states_beyond_the_perimeter_are_unknown() -> None:
    domain = Pancake(7)
    every = Perimeter(domain, domain.goal, 8)
    ball = Perimeter(domain, domain.goal, 4)
    states = every._nodes.states[: len(every)]
    hashes = every._nodes.hashes(states)
    exact = every.distance(states, hashes)[0]
    expected = torch.where(exact <= 4, exact, torch.inf)
    assert torch.equal(ball.distance(states, hashes)[0], expected)
    assert exact.isfinite().all()


def test_a_perimeter_of_other_costs_or_without_inverses_is_refused() -> None:
    domain = Pancake(4)
    domain.costs = torch.tensor([1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="cost 1 that have inverses"):
        Perimeter(domain, domain.goal, 2)
    domain = Pancake(4)
    domain.inverse = None
    with pytest.raises(ValueError, match="cost 1 that have inverses"):
        Perimeter(domain, domain.goal, 2)


def test_a_perimeter_that_does_not_fit() -> None:
    domain = Cube3()
    with pytest.raises(OverflowError, match="100 nodes are full"):
        Perimeter(domain, domain.goal, 2, capacity=100)
