"""The searches: against a literal Q* and known distances, their limits, bounds and ends."""

import heapq
import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from script_process import CI
from torch import Tensor

from classicrl.domains import Cube3, LightsOut, Pancake, SlidingPuzzle
from classicrl.search import (
    Domain,
    Perimeter,
    Progress,
    QFunction,
    Solution,
    Stopped,
    astar,
    checked_path,
    deferred_astar,
    q_beam,
    q_of_children,
    qstar,
    value,
    value_of_every_action,
)
from classicrl.search.solution import rows_at_once

Search = Callable[..., Solution]
best_first = pytest.mark.parametrize("search", [qstar, astar, deferred_astar])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ones(num_actions: int) -> QFunction:
    """An estimate that says nothing: every goal is one action away."""
    return lambda states: torch.ones(len(states), num_actions)


class PricedPancake:
    """Pancakes whose reversals do not all cost the same."""

    def __init__(self, costs: list[float], *, names_inverses: bool = True) -> None:
        self._pancake = Pancake(len(costs) + 1)
        self.goal = self._pancake.goal
        self.inverse = self._pancake.inverse if names_inverses else None
        self.costs = torch.tensor(costs)

    def apply(self, states: Tensor, actions: Tensor) -> Tensor:
        return self._pancake.apply(states, actions)

    def is_goal(self, states: Tensor) -> Tensor:
        return self._pancake.is_goal(states)

    def legal(self, states: Tensor) -> None:
        return None


class Table(NamedTuple):
    """All states of a domain with their distances from the goal, [N, S] and [N], and Q, [N, A]."""

    states: Tensor
    distance: Tensor
    q: Tensor

    def function(self, q: Tensor | None = None) -> QFunction:
        """Looks rows up, of the exact Q or another."""
        values = self.q if q is None else q
        row_of = {bytes(state): i for i, state in enumerate(self.states.tolist())}

        def look_up(states: Tensor) -> Tensor:
            return values[[row_of[bytes(state)] for state in states.tolist()]]

        return look_up


def solved_table(domain: Any) -> Table:
    """By Dijkstra's algorithm from the goal; every action must undo itself or have an inverse."""
    costs, number = domain.costs.tolist(), len(domain.costs)
    goal = tuple(domain.goal.tolist())
    distance, heap = {goal: 0.0}, [(0.0, goal)]
    child_of: dict[tuple[int, ...], list[tuple[int, ...] | None]] = {}
    while heap:
        cost, state = heapq.heappop(heap)
        if state in child_of:
            continue
        rows = torch.tensor([state] * number, dtype=torch.uint8)
        legal = domain.legal(rows[:1])
        after = domain.apply(rows, torch.arange(number)).tolist()
        child_of[state] = [
            None if legal is not None and not legal[0, a] else tuple(after[a])
            for a in range(number)
        ]
        for action, child in enumerate(child_of[state]):
            if child is None:
                continue
            # From the child back here costs what the inverse costs.
            total = cost + costs[int(domain.inverse[action])]
            if total < distance.get(child, math.inf):
                distance[child] = total
                heapq.heappush(heap, (total, child))
    states = list(distance)
    q = [
        [costs[a] + distance[c] if c is not None else math.inf for a, c in enumerate(child_of[s])]
        for s in states
    ]
    return Table(
        torch.tensor(states, dtype=torch.uint8), torch.tensor([*distance.values()]), torch.tensor(q)
    )


PANCAKE = Pancake(7)


@cache
def pancakes() -> Table:
    return solved_table(PANCAKE)


PRICED = PricedPancake([1.0, 3.0, 2.0, 1.0, 2.0])


@cache
def priced_pancakes() -> Table:
    return solved_table(PRICED)


def noisy(q: Tensor, low: float, high: float, seed: int = 0) -> Tensor:
    """Q with noise U(low, high), no estimate below 1."""
    noise = torch.rand(q.shape, generator=seeded(seed))
    return (q + low + (high - low) * noise).clamp(min=1)


def some_rows(table: Table, count: int, seed: int = 0) -> list[int]:
    return torch.randperm(len(table.states), generator=seeded(seed))[:count].tolist()


def check_solution(domain: Domain, start: Tensor, solution: Solution) -> None:
    """It is a path, and the report is about it."""
    if not solution.solved:
        assert (solution.actions, solution.path_cost) == ([], math.inf)
        return
    assert solution.path_cost == pytest.approx(checked_path(domain, start, solution.actions))
    assert solution.path_cost == pytest.approx(
        sum(float(domain.costs[a]) for a in solution.actions)
    )


# The literal algorithm.


class Literal(NamedTuple):
    popped: list[tuple[int, int]]
    solved: bool
    cost: float
    generated: int
    lower_bound: float
    skipped: int


def literal_qstar(
    domain: Any,
    rows: dict[bytes, np.ndarray[Any, Any]],
    start: Tensor,
    weight: float,
    batch_size: int,
    max_nodes: int,
    prune: bool = False,
) -> Literal:
    """Q* as it is written down: the queue holds all pairs, states are looked up in a dictionary.

    ``prune`` skips the action that undoes the last, and pairs of a node whose state was reached
    at lower cost since.
    """
    costs, lam = domain.costs.numpy(), np.float32(weight)
    inverse = None if domain.inverse is None else domain.inverse.tolist()
    queue: list[tuple[float, float, int, int]] = []
    closed: dict[bytes, tuple[float, int]] = {}
    nodes: list[tuple[bytes, float]] = []
    popped: list[tuple[int, int]] = []
    best, bound, generated, skipped = math.inf, 0.0, 0, 0
    batch: list[tuple[bytes, float, int]] = [(bytes(start.tolist()), 0.0, -1)]
    while True:
        generated += len(batch)
        cheapest: dict[bytes, tuple[float, int, int]] = {}
        for order, (state, g, action) in enumerate(batch):
            if state == bytes(domain.goal.tolist()):
                best = min(best, g)
            elif state not in cheapest or g < cheapest[state][0]:
                cheapest[state] = (g, order, action)
        for state, (g, _, action) in sorted(cheapest.items(), key=lambda item: item[1][1]):
            if state in closed and g >= closed[state][0]:
                continue
            node = len(nodes)
            closed[state] = (g, node)
            nodes.append((state, g))
            for a, q in enumerate(rows[state]):
                undoes = inverse is not None and action >= 0 and a == inverse[action]
                if q < math.inf and not (prune and undoes):
                    h = np.float32(q) - costs[a]
                    f = lam * (np.float32(g) + costs[a]) + h
                    heapq.heappush(queue, (float(f), float(h), node, a))
        if best < math.inf and bound >= weight * best - 1e-6:
            break
        pairs: list[tuple[int, int]] = []
        first = math.nan
        while queue and len(pairs) < batch_size:
            if len(pairs) == 0 and generated >= max_nodes:
                break
            f, _, node, a = heapq.heappop(queue)
            state, g = nodes[node]
            if prune and closed[state][1] != node:
                skipped += 1
                continue
            first = f if not pairs else first
            pairs.append((node, a))
        if not pairs:
            break
        bound = max(bound, first)
        if best < math.inf and bound >= weight * best - 1e-6:
            break
        popped += pairs
        batch = []
        for node, a in pairs:
            state, g = nodes[node]
            after = domain.apply(torch.tensor([list(state)], dtype=torch.uint8), torch.tensor([a]))
            batch.append((bytes(after[0].tolist()), float(np.float32(g) + costs[a]), a))
    return Literal(popped, best < math.inf, best, generated, bound, skipped)


NOISE = {"exact": (0.0, 0.0), "low": (-0.5, 0.5), "noisy": (-3.0, 3.0), "wild": (-9.0, 9.0)}


@cache
def literal_rows(noise: str, priced: bool = False) -> tuple[QFunction, dict[bytes, Any]]:
    table = priced_pancakes() if priced else pancakes()
    costs = PRICED.costs if priced else PANCAKE.costs
    q = torch.maximum(table.q + noisy(torch.zeros_like(table.q) + 9, *NOISE[noise]) - 9, costs)
    stored = q.to(torch.float16).numpy()
    rows = {bytes(state): row for state, row in zip(table.states.tolist(), stored, strict=True)}
    return table.function(q), rows


@pytest.mark.parametrize("noise", ["exact", "low", "noisy"])
@pytest.mark.parametrize("weight", [1.0, 0.6, 0.2, 0.0])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("prune", [False, True])
def test_pops_are_those_of_the_literal_algorithm(
    noise: str, weight: float, batch_size: int, prune: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Often too few heads at first: the others follow.
    monkeypatch.setattr("classicrl.search.best_first._SPARE_HEADS", 0)
    function, rows = literal_rows(noise)
    for row in some_rows(pancakes(), 5, seed=batch_size):
        start, popped = pancakes().states[row], list[tuple[int, int]]()

        def note(node: Tensor, action: Tensor, popped: list[tuple[int, int]] = popped) -> None:
            popped += zip(node.tolist(), action.tolist(), strict=True)

        limit = {1: 120, 7: 600, 100: 2500}[batch_size]
        found = qstar(
            PANCAKE, function, start, weight=weight, batch_size=batch_size, max_nodes=limit,
            prune=prune, on_pop=note,
        )  # fmt: skip
        literal = literal_qstar(PANCAKE, rows, start, weight, batch_size, limit, prune)
        assert popped == literal.popped
        assert found.num_generated == literal.generated
        assert (found.solved, found.path_cost) == (literal.solved, literal.cost)
        assert found.lower_bound == min(literal.lower_bound, literal.cost)


@pytest.mark.parametrize("batch_size", [3, 50])
@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("names_inverses", [False, True])
def test_pops_with_costs_that_differ(batch_size: int, prune: bool, names_inverses: bool) -> None:
    """States are often reached again at lower cost here, and their first nodes are let be."""
    domain = PricedPancake(PRICED.costs.tolist(), names_inverses=names_inverses)
    function, rows = literal_rows("wild", priced=True)
    skipped = 0
    for row in some_rows(priced_pancakes(), 8, seed=1):
        start, popped = priced_pancakes().states[row], list[tuple[int, int]]()

        def note(node: Tensor, action: Tensor, popped: list[tuple[int, int]] = popped) -> None:
            popped += zip(node.tolist(), action.tolist(), strict=True)

        found = qstar(
            domain, function, start, weight=1.0, batch_size=batch_size, max_nodes=1500,
            prune=prune, on_pop=note,
        )  # fmt: skip
        literal = literal_qstar(domain, rows, start, 1.0, batch_size, 1500, prune)
        assert popped == literal.popped
        assert (found.path_cost, found.num_generated) == (literal.cost, literal.generated)
        skipped += literal.skipped
    assert prune == (skipped > 0)


@pytest.mark.parametrize("noise", ["low", "noisy"])
@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("batch_size", [1, 20])
def test_deferred_astar_is_the_literal_algorithm_with_what_children_inherit(
    noise: str, weight: float, batch_size: int
) -> None:
    function, _ = literal_rows(noise)
    table = pancakes()
    inherited = function(table.states).amin(1, keepdim=True) + PANCAKE.costs
    stored = inherited.to(torch.float16).numpy()
    rows = {bytes(state): row for state, row in zip(table.states.tolist(), stored, strict=True)}
    for row in some_rows(table, 8, seed=batch_size):
        start = table.states[row]
        found = deferred_astar(
            PANCAKE, function, start, weight=weight, batch_size=batch_size, max_nodes=900,
            prune=False,
        )  # fmt: skip
        literal = literal_qstar(PANCAKE, rows, start, weight, batch_size, 900)
        assert found.num_generated == literal.generated
        assert (found.solved, found.path_cost) == (literal.solved, literal.cost)
        assert found.lower_bound == min(literal.lower_bound, literal.cost)


def literal_astar(
    domain: Any, v: dict[bytes, float], start: Tensor, weight: float, batch_size: int
) -> tuple[float, int, float]:
    """A* as it is written down; cost, states generated, lower bound.

    A node is a goal when it is popped, and a batch that settles the search has no children.
    """
    costs, lam, goal = domain.costs.tolist(), np.float32(weight), bytes(domain.goal.tolist())
    closed = {bytes(start.tolist()): (0.0, 0)}
    nodes = [(bytes(start.tolist()), 0.0)]
    h = 0.0 if bytes(start.tolist()) == goal else v[bytes(start.tolist())]
    queue = [(h, h, 0)]
    best, bound, generated = math.inf, 0.0, 1
    while queue and not (best < math.inf and bound >= weight * best - 1e-6):
        batch = [heapq.heappop(queue) for _ in range(min(batch_size, len(queue)))]
        batch = [entry for entry in batch if closed[nodes[entry[2]][0]][1] == entry[2]]
        if not batch:
            continue
        bound = max(bound, batch[0][0])
        best = min([best, *(nodes[i][1] for *_, i in batch if nodes[i][0] == goal)])
        if best < math.inf and bound >= weight * best - 1e-6:
            break
        cheapest: dict[bytes, float] = {}
        for state, g in (nodes[i] for *_, i in batch if nodes[i][0] != goal):
            rows = torch.tensor([list(state)] * len(costs), dtype=torch.uint8)
            for action, after in enumerate(domain.apply(rows, torch.arange(len(costs))).tolist()):
                generated += 1
                child, cost = bytes(after), g + costs[action]
                cheapest[child] = min(cost, cheapest.get(child, math.inf))
        for child, cost in cheapest.items():
            if child not in closed or cost < closed[child][0]:
                closed[child] = (cost, len(nodes))
                h = 0.0 if child == goal else v[child]
                f = float(lam * np.float32(cost) + np.float32(h))
                heapq.heappush(queue, (f, h, len(nodes)))
                nodes.append((child, cost))
    return best, generated, bound


@pytest.mark.parametrize("weight", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_astar_is_the_literal_algorithm(weight: float, batch_size: int) -> None:
    table = priced_pancakes()
    v = torch.where(table.distance > 0, noisy(table.distance, -2.0, 2.0), 0.0)
    look_up = {bytes(s): float(x) for s, x in zip(table.states.tolist(), v, strict=True)}
    function = value_of_every_action(PRICED, table.function(v))
    for row in some_rows(table, 12, seed=batch_size):
        start = table.states[row]
        found = astar(PRICED, function, start, weight=weight, batch_size=batch_size)
        cost, generated, bound = literal_astar(PRICED, look_up, start, weight, batch_size)
        assert (found.path_cost, found.num_generated) == (cost, generated)
        assert found.lower_bound == pytest.approx(min(bound, cost), abs=1e-6)


# A value function alone.


@pytest.mark.parametrize("at_once", [1, 23, 1 << 16])  # children, at least those of a state
def test_a_value_function_says_q_of_the_children(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is wrong about goals, which cost nothing."""
    monkeypatch.setattr(value, "_CHILDREN_AT_ONCE", at_once)
    table = priced_pancakes()
    wrong_at_goals = torch.where(table.distance > 0, table.distance, 7.0)
    q = q_of_children(PRICED, table.function(wrong_at_goals))(table.states)
    assert torch.equal(q, table.q)


@pytest.mark.parametrize("search", [astar, deferred_astar])
@pytest.mark.parametrize("batch_size", [1, 30])
def test_astar_looks_at_nothing_of_a_row_but_its_least_value(
    search: Search, batch_size: int
) -> None:
    table = pancakes()
    v = noisy(table.distance, -2.0, 2.0)
    rows = v[:, None] + torch.rand(len(v), 6, generator=seeded(2))
    rows[torch.arange(len(v)), torch.randint(6, (len(v),), generator=seeded(3))] = v
    by_value = value_of_every_action(PANCAKE, table.function(v))
    for row in some_rows(table, 5):
        ours, theirs = (
            search(PANCAKE, function, table.states[row], weight=0.7, batch_size=batch_size)
            for function in (by_value, table.function(rows))
        )
        assert ours.actions == theirs.actions and ours.num_generated == theirs.num_generated


def test_a_value_function_of_another_shape_is_refused() -> None:
    def of_a_network(states: Tensor) -> Tensor:
        return torch.ones(len(states), 1)

    for adapter in (q_of_children, value_of_every_action):
        function = adapter(PANCAKE, of_a_network)
        with pytest.raises(ValueError, match=r"gave \[\d+, 1\] for"):
            function(pancakes().states[:3])
    assert q_of_children(PANCAKE, lambda s: s[:, 0].float())(pancakes().states[:0]).shape == (0, 6)


def test_exact_values_lead_every_search_along_a_shortest_path() -> None:
    table = pancakes()
    v = table.function(table.distance)
    of_children, of_state = q_of_children(PANCAKE, v), value_of_every_action(PANCAKE, v)
    for row in some_rows(table, 4):
        start, distance = table.states[row], float(table.distance[row])
        assert qstar(PANCAKE, of_children, start, weight=1.0).path_cost == distance
        assert q_beam(PANCAKE, of_children, start, width=1, max_depth=9).path_cost == distance
        found = astar(PANCAKE, of_state, start, weight=1.0, batch_size=1)
        assert found.path_cost == distance
        # A node at each step but the goal, each with 6 children, and the start.
        assert found.num_generated == 1 + 6 * distance


# Known answers.


def children_by(domain: Domain, distance: QFunction) -> QFunction:
    """Q of each action: its cost, and the distance of where it leads."""

    def function(states: Tensor) -> Tensor:
        each = torch.arange(len(domain.costs))
        after = domain.apply(states.repeat_interleave(len(each), 0), each.repeat(len(states)))
        return distance(after).float().view(len(states), -1) + domain.costs

    return function


def test_seven_by_seven_lights_out_with_exact_q() -> None:
    domain = LightsOut()
    function = children_by(domain, domain.optimal_presses)
    for start in domain.random_states(3, torch.Generator().manual_seed(4)):
        d = int(domain.optimal_presses(start[None]))
        found = qstar(domain, function, start, weight=1.0, batch_size=1)
        assert (found.num_generated, found.path_cost, found.stopped) == (d + 1, d, "solved")
        check_solution(domain, start, found)


@pytest.mark.slow
@pytest.mark.ci
def test_thirty_five_pancakes_by_their_gaps() -> None:
    """The heuristic is almost exact: few more nodes than the path has, and a proof that it is
    the shortest."""
    domain = Pancake()
    function = children_by(domain, domain.gap_heuristic)
    for start in domain.random_states(3, torch.Generator().manual_seed(5)):
        gap = int(domain.gap_heuristic(start[None]))
        found = qstar(domain, function, start, weight=1.0, batch_size=10, max_nodes=20_000)
        assert found.solved and gap <= found.path_cost <= gap + 1
        assert found.lower_bound == found.path_cost
        check_solution(domain, start, found)


def test_the_fifteen_puzzle_by_its_distances() -> None:
    """Sums of the tiles' distances never exceed the moves: all searches find the shortest path."""
    domain = SlidingPuzzle(4)
    side = torch.arange(16)
    apart = (side[:, None] // 4 - side // 4).abs() + (side[:, None] % 4 - side % 4).abs()

    def distance(states: Tensor) -> Tensor:
        place_of_tile = states.long().argsort(1)  # where a tile is
        goal_of_tile = domain.goal.long().argsort()
        moves = apart[place_of_tile, goal_of_tile.expand_as(place_of_tile)]
        return moves[:, 1:].sum(1)  # tile 0 is the blank

    function = children_by(domain, distance)
    generator = torch.Generator().manual_seed(6)
    for moves in (10, 17, 24):
        start, last = domain.goal, -1
        for _ in range(moves):
            legal = domain.legal(start[None])[0].clone()
            if last >= 0:
                legal[int(domain.inverse[last])] = False
            last = int(torch.multinomial(legal.float(), 1, generator=generator))
            start = domain.apply(start[None], torch.tensor([last]))[0]
        found = [
            search(domain, function, start, weight=1.0, batch_size=5)
            for search in (qstar, astar, deferred_astar)
        ]
        assert len({solution.path_cost for solution in found}) == 1
        assert int(distance(start[None])) <= found[0].path_cost <= moves
        assert found[0].path_cost % 2 == moves % 2
        check_solution(domain, start, found[0])


@pytest.mark.parametrize("prune", [True, False])
def test_exact_q_makes_the_states_of_the_path_and_no_more(prune: bool) -> None:
    function = pancakes().function()
    for row in some_rows(pancakes(), 40):
        start, d = pancakes().states[row], int(pancakes().distance[row])
        found = qstar(PANCAKE, function, start, weight=1.0, batch_size=1, prune=prune)
        assert (found.num_generated, found.path_cost, found.stopped) == (d + 1, d, "solved")
        assert found.num_evaluated == found.num_stored == d
        check_solution(PANCAKE, start, found)


@pytest.mark.parametrize("search", [qstar, astar, deferred_astar, q_beam])
@pytest.mark.parametrize("with_perimeter", [False, True])
def test_a_start_that_is_solved(search: Search, with_perimeter: bool) -> None:
    perimeter = Perimeter(PANCAKE, PANCAKE.goal, 2) if with_perimeter else None
    found = search(PANCAKE, ones(6), PANCAKE.goal, perimeter=perimeter)
    assert (found.solved, found.actions, found.path_cost) == (True, [], 0)
    assert found.stopped == "solved"
    if search is not astar:  # which tests a state when its turn comes
        assert found.num_generated == 1


@best_first
@pytest.mark.parametrize("batch_size", [1, 10, 1000])
def test_without_guidance_paths_are_shortest(search: Search, batch_size: int) -> None:
    # The table begins with the states that are nearest.
    for row in {1: [5, 80], 10: [30, 80, 300], 1000: [100, 1000, 3000, 5030]}[batch_size]:
        start, d = pancakes().states[row], float(pancakes().distance[row])
        found = search(PANCAKE, ones(6), start, weight=1.0, batch_size=batch_size)
        assert (found.path_cost, found.stopped) == (d, "solved")
        check_solution(PANCAKE, start, found)


@pytest.mark.parametrize("search", [qstar, astar])
@pytest.mark.parametrize("weight", [1.0, 0.8, 0.6, 0.4, 0.2])
@pytest.mark.parametrize("batch_size", [1, 10, 100])
def test_estimates_that_are_too_low_keep_the_bound(
    search: Search, weight: float, batch_size: int
) -> None:
    function = pancakes().function(noisy(pancakes().q, -3, 0))
    longer = 0
    for row in some_rows(pancakes(), 6, seed=int(10 * weight)):
        start, d = pancakes().states[row], float(pancakes().distance[row])
        seen: list[Progress] = []
        found = search(
            PANCAKE, function, start, weight=weight, batch_size=batch_size, progress=seen.append
        )
        check_solution(PANCAKE, start, found)
        assert found.stopped == "solved"
        assert d <= found.path_cost <= d / weight + 1e-4
        # Rounding of stored rows is at most 1/128 here.
        assert found.lower_bound <= d + 0.01
        assert all(p.best_f <= d + 0.01 for p in seen if p.path_cost > d)
        longer += found.path_cost > d
    assert weight < 1 or longer == 0


@pytest.mark.parametrize("search", [qstar, astar, deferred_astar])
@pytest.mark.parametrize("batch_size", [1, 30])
def test_greedy_search_ends(search: Search, batch_size: int) -> None:
    """At weight 0 the bound of a path not yet found would be 0 times infinity."""
    function = pancakes().function(noisy(pancakes().q, -1, 1))
    for row in some_rows(pancakes(), 6):
        start = pancakes().states[row]
        found = search(PANCAKE, function, start, weight=0.0, batch_size=batch_size)
        assert (found.solved, found.stopped) == (True, "solved")
        assert not math.isnan(found.lower_bound)
        check_solution(PANCAKE, start, found)


@pytest.mark.parametrize("search", [qstar, astar])
@pytest.mark.parametrize("batch_size", [1, 20])
def test_costs_that_differ_against_dijkstra(search: Search, batch_size: int) -> None:
    table = priced_pancakes()
    assert len(table.states) == 720
    function = table.function(noisy(table.q, -2, 0))
    for row in some_rows(table, 8):
        start, d = table.states[row], float(table.distance[row])
        for weight in (1.0, 0.5):
            found = search(PRICED, function, start, weight=weight, batch_size=batch_size)
            check_solution(PRICED, start, found)
            assert d <= found.path_cost <= d / weight + 1e-4


@pytest.mark.parametrize("search", [qstar, astar])
def test_costs_that_half_precision_rounds(search: Search) -> None:
    """Half precision rounds 1.1 down: what is left after the last action must not be negative."""
    domain = PricedPancake([1.1, 0.7, 2.3, 1.7])
    table = solved_table(domain)
    function = table.function()
    for start, d in zip(table.states, table.distance.tolist(), strict=True):
        found = search(domain, function, start, weight=1.0, batch_size=5)
        assert found.path_cost == pytest.approx(d, abs=0.02)
        assert found.stopped == "solved"
        assert d - 0.02 <= found.lower_bound <= d + 0.02


def test_rounding_below_the_cost_leaves_the_order_as_it_is() -> None:
    """Half precision rounds all of these down; with no guidance every estimate is its action's."""
    domain = PricedPancake([1.1, 2.2, 0.55, 1.1])
    assert (domain.costs.to(torch.float16).float() < domain.costs).all()
    start, popped = torch.tensor([2, 4, 1, 3, 0], dtype=torch.uint8), list[list[Tensor]]()
    for row_dtype in (torch.float16, torch.float32):
        pops: list[Tensor] = []
        found = qstar(
            domain, lambda states: torch.zeros(len(states), 4), start, weight=1.0, batch_size=3,
            row_dtype=row_dtype,
            on_pop=lambda node, action, pops=pops: pops.append(torch.stack([node, action])),
        )  # fmt: skip
        assert found.path_cost == found.lower_bound > 3
        popped.append(pops)
    assert torch.equal(torch.cat(popped[0], 1), torch.cat(popped[1], 1))


def test_rows_may_be_stored_in_full() -> None:
    """Above 64 half precision tells no costs apart that differ by less than 1/16."""
    domain = PricedPancake([100.0, 100.01, 100.02, 100.03])
    table = solved_table(domain)
    for start, d in zip(table.states, table.distance.tolist(), strict=True):
        found = qstar(
            domain, table.function(), start, weight=1.0, batch_size=1, row_dtype=torch.float32
        )
        assert found.path_cost == pytest.approx(d, abs=1e-3)
        assert found.row_bytes == 4 * 4 * found.num_stored


BOARD = SlidingPuzzle(3, 2)


@cache
def boards() -> Table:
    return solved_table(BOARD)


@best_first
def test_illegal_actions_are_never_taken(search: Search) -> None:
    assert len(boards().states) == 360
    for q in (torch.ones(360, 4), torch.where(boards().q < 1e9, boards().q, 0)):
        for row in some_rows(boards(), 10):
            start, d = boards().states[row], float(boards().distance[row])
            found = search(BOARD, boards().function(q), start, weight=1.0, batch_size=20)
            check_solution(BOARD, start, found)
            if search is not deferred_astar or bool((q == 1).all()):
                assert found.path_cost == d
            state = start
            for action in found.actions:
                legal = BOARD.legal(state[None])
                assert legal[0, action]
                state = BOARD.apply(state[None], torch.tensor([action]))[0]


def test_a_beam_takes_no_illegal_actions() -> None:
    for row in some_rows(boards(), 20):
        start, d = boards().states[row], float(boards().distance[row])
        found = q_beam(BOARD, boards().function(torch.zeros(360, 4)), start, width=400)
        assert found.path_cost == d
        state = start
        for action in found.actions:
            assert BOARD.legal(state[None])[0, action]
            state = BOARD.apply(state[None], torch.tensor([action]))[0]


def test_pruning_leaves_costs_as_they_are() -> None:
    generated = {True: 0, False: 0}
    for domain, table in ((PANCAKE, pancakes()), (PRICED, priced_pancakes())):
        function = table.function(noisy(table.q, -3, 0))
        for row in some_rows(table, 5):
            start = table.states[row]
            for prune in (True, False):
                for batch_size in (1, 10):
                    found = qstar(
                        domain, function, start, weight=1.0, batch_size=batch_size, prune=prune
                    )
                    assert found.path_cost == float(table.distance[row])
                    generated[prune] += found.num_generated if batch_size == 1 else 0
    assert generated[True] < generated[False]


def test_the_first_path_or_the_promised_one() -> None:
    function = pancakes().function(noisy(pancakes().q, -3, 3))
    generated = {"first": 0, "bound": 0}
    cost = {"first": 0.0, "bound": 0.0}
    for row in some_rows(pancakes(), 25):
        for stop in ("first", "bound"):
            found = qstar(
                PANCAKE, function, pancakes().states[row], weight=1.0, batch_size=5, stop=stop
            )
            assert (found.solved, found.stopped) == (True, "solved")
            generated[stop] += found.num_generated
            cost[stop] += found.path_cost
    assert generated["first"] < generated["bound"]
    assert cost["first"] > cost["bound"]


@best_first
def test_progress_and_report(search: Search) -> None:
    seen: list[Progress] = []
    start = pancakes().states[-1]
    found = search(PANCAKE, ones(6), start, weight=1.0, batch_size=500, progress=seen.append)
    assert len(seen) > 3
    counts = [progress.num_generated for progress in seen]
    assert counts == sorted(set(counts))
    assert [p.best_f for p in seen] == sorted(p.best_f for p in seen)
    assert all(progress.num_open <= found.peak_open for progress in seen)
    assert counts[-1] == found.num_generated
    assert 0 <= found.network_seconds <= found.seconds
    assert found.num_evaluated <= found.num_stored <= 5040
    assert found.row_bytes == (0 if search is astar else 12 * found.num_stored)
    assert found.num_bytes > found.row_bytes + found.num_stored * (7 + 10)


# Ends without a path, and limits.


def unsolvable(domain: SlidingPuzzle) -> Tensor:
    start = domain.goal.clone()
    start[0], start[1] = 2, 1
    return start


@best_first
@pytest.mark.parametrize("batch_size", [1, 1000])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_what_cannot_be_solved_is_searched_through(
    search: Search, batch_size: int, weight: float
) -> None:
    found = search(BOARD, ones(4), unsolvable(BOARD), weight=weight, batch_size=batch_size)
    assert (found.solved, found.actions, found.path_cost) == (False, [], math.inf)
    assert found.stopped == "exhausted"
    if weight == 1 or batch_size == 1000:
        assert found.num_stored >= 360
    if weight == 1 and batch_size == 1:
        assert found.num_stored == found.num_evaluated == 360


@pytest.mark.slow
@pytest.mark.parametrize("search", [qstar, astar])
def test_the_unsolvable_half_of_the_eight_puzzle(search: Search) -> None:
    domain = SlidingPuzzle(3)
    found = search(domain, ones(4), unsolvable(domain), weight=1.0, batch_size=1000)
    assert (found.solved, found.stopped, found.num_stored) == (False, "exhausted", 181_440)


HARD = Cube3().random_states(1, seeded(0))[0]
LIMITS: dict[Stopped, dict[str, float]] = {
    "max_nodes": {"max_nodes": 5000},
    "max_seconds": {"max_seconds": 0.2},
    "max_bytes": {"max_bytes": 2e6},
}


@best_first
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("with_perimeter", [False, True])
def test_limits_are_named(search: Search, limit: Stopped, with_perimeter: bool) -> None:
    domain = Cube3()
    perimeter = Perimeter(domain, domain.goal, 2) if with_perimeter else None
    number = len(domain.costs)
    found = search(
        domain, ones(number), HARD, weight=1.0, batch_size=100, perimeter=perimeter, **LIMITS[limit]
    )
    assert (found.solved, found.stopped, found.actions) == (False, limit, [])
    if limit == "max_nodes":
        assert 5000 <= found.num_generated <= 5000 + 100 * number
    elif limit == "max_seconds":
        assert found.seconds >= 0.2
    else:
        assert 1e6 < found.num_bytes <= 2e6


@best_first
@pytest.mark.parametrize("limits", [{"max_nodes": 1}, {"max_seconds": 1e-9}, {"max_bytes": 1.0}])
def test_limits_that_leave_room_for_the_start_only(
    search: Search, limits: dict[str, float]
) -> None:
    found = search(PANCAKE, ones(6), pancakes().states[-1], **limits)
    assert (found.solved, found.stopped) == (False, next(iter(limits)))


@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_batches_ranked_in_portions_are_those_ranked_at_once(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of many actions are ranked piece by piece, for a batch of them needs much memory."""
    function = pancakes().function(noisy(pancakes().q, -1, 1).round(decimals=1))  # with ties

    def orders() -> list[list[tuple[int, int]]]:
        found = []
        for row in some_rows(pancakes(), 6):
            order: list[tuple[int, int]] = []

            def note(nodes: Tensor, actions: Tensor, order: list[Any] = order) -> None:
                order.extend(zip(nodes.tolist(), actions.tolist(), strict=True))

            start = pancakes().states[row]
            qstar(PANCAKE, function, start, weight=1.0, batch_size=batch_size, on_pop=note)
            found.append(order)
        return found

    at_once = orders()
    assert sum(map(len, at_once)) > 30
    for size in (1, 17, 40):
        monkeypatch.setattr("classicrl.search.solution._PAIRS_AT_ONCE", size)
        assert orders() == at_once


def test_rows_are_looked_at_in_whole_chunks() -> None:
    assert rows_at_once(12, math.inf) == 682 * 4096  # of 33.5 million pairs
    assert rows_at_once(1884, math.inf) == 4 * 4096
    assert rows_at_once(1884, 4 * 24 * 1884 * 100.5) == 100
    assert rows_at_once(1884, 1.0) == 1


def test_a_limit_may_leave_a_path() -> None:
    """A path was found, only not the promise that none is shorter."""
    function, stopped = pancakes().function(noisy(pancakes().q, -3, 3)), set()
    for row in some_rows(pancakes(), 10):
        for limit in (20, 40, 80):
            start = pancakes().states[row]
            found = qstar(PANCAKE, function, start, weight=1.0, batch_size=5, max_nodes=limit)
            check_solution(PANCAKE, start, found)
            if found.solved:
                stopped.add(found.stopped)
    assert stopped == {"solved", "max_nodes"}


@best_first
@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": -0.1},
        {"weight": 1.1},
        {"weight": math.nan},
        {"batch_size": 0},
        {"max_nodes": 0},
        {"max_seconds": 0.0},
        {"max_seconds": math.nan},
        {"max_bytes": 0.0},
        {"max_bytes": math.nan},
    ],
    ids=str,
)
def test_numbers_out_of_range(search: Search, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        search(PANCAKE, ones(6), PANCAKE.goal, **wrong)


@pytest.mark.parametrize("search", [qstar, astar, deferred_astar, q_beam])
def test_a_start_of_another_shape_or_type(search: Search) -> None:
    for start, given in ((PANCAKE.goal[None], "torch.uint8"), (PANCAKE.goal.long(), "torch.int64")):
        with pytest.raises(ValueError, match=f"one state, uint8.*not {given}"):
            search(PANCAKE, ones(6), start)


@pytest.mark.parametrize("search", [qstar, astar, deferred_astar, q_beam])
@pytest.mark.parametrize("num_actions", [1, 5, 7])  # one column would be broadcast
def test_a_network_for_another_number_of_actions(search: Search, num_actions: int) -> None:
    start = some_rows(pancakes(), 2)[1]
    with pytest.raises(ValueError, match=rf"gave \[\d+, {num_actions}\] for"):
        search(PANCAKE, ones(num_actions), pancakes().states[start])


def test_a_path_that_leads_elsewhere_is_noticed() -> None:
    with pytest.raises(AssertionError, match="does not lead to the goal"):
        checked_path(PANCAKE, PANCAKE.goal, [3])
    assert checked_path(PRICED, PRICED.goal, [1, 1]) == 6


# The ball around the goal.


@best_first
@pytest.mark.parametrize("depth", [pytest.param(0, marks=CI), 1, 3])
def test_a_perimeter_leaves_costs_as_they_are(search: Search, depth: int) -> None:
    perimeter = Perimeter(PANCAKE, PANCAKE.goal, depth)
    generated = {True: 0, False: 0}
    function = ones(6) if search is deferred_astar else pancakes().function()
    for row in some_rows(pancakes(), 8):
        for given in (perimeter, None):
            start = pancakes().states[row]
            found = search(PANCAKE, function, start, weight=1.0, batch_size=100, perimeter=given)
            assert found.path_cost == float(pancakes().distance[row])
            check_solution(PANCAKE, start, found)
            generated[given is not None] += found.num_generated
    if depth == 3:
        assert generated[True] < generated[False]


def short_scrambles(domain: Cube3, count: int, length: int) -> list[list[int]]:
    follows, generator = domain.walk_rule(), seeded(length)
    scrambles = []
    for _ in range(count):
        turns = [12, 12]
        for _ in range(length):
            weights = follows[turns[-2], turns[-1]].float()
            turns.append(int(torch.multinomial(weights, 1, generator=generator)))
        scrambles.append(turns[2:])
    return scrambles


@pytest.mark.parametrize("length", [4, 5, 6])
@pytest.mark.parametrize("search", [qstar, astar, deferred_astar])
def test_short_scrambles_of_the_cube(search: Search, length: int) -> None:
    domain = Cube3()
    ball = Perimeter(domain, domain.goal, 3)
    for turns in short_scrambles(domain, 3, length):
        start = domain.after(turns)
        near = search(domain, ones(12), start, weight=1.0, batch_size=500, perimeter=ball)
        check_solution(domain, start, near)
        assert near.stopped == "solved"
        assert near.path_cost <= length
        assert near.path_cost % 2 == length % 2
        if length == 4:
            far = search(domain, ones(12), start, weight=1.0, batch_size=500)
            check_solution(domain, start, far)
            assert far.path_cost == near.path_cost == length  # the rule leaves no shorter way
            assert far.num_generated > near.num_generated


def test_pairs_of_turns_halve_the_path() -> None:
    domain = Cube3(156)
    for turns in short_scrambles(Cube3(), 3, 4):
        start = domain.after(turns)
        found = qstar(domain, ones(len(domain.costs)), start, weight=1.0)
        assert found.path_cost == 2
        assert len(domain.turns(found.actions)) == 4


# The beam.


@pytest.mark.parametrize("spread", [1, 2, 6])
def test_a_beam_of_one_follows_exact_q(spread: int) -> None:
    seen: list[Progress] = []
    for row in some_rows(pancakes(), 40):
        seen.clear()
        start, d = pancakes().states[row], int(pancakes().distance[row])
        found = q_beam(
            PANCAKE, pancakes().function(), start, width=1, spread=spread, progress=seen.append
        )
        assert (found.solved, found.stopped, found.path_cost) == (True, "solved", d)
        assert len(found.actions) == d
        assert len(seen) == max(0, d - 1)  # the last layer ends the search
        assert found.num_evaluated == found.num_stored - (d == 0) == max(d, 1) - (d == 0)
        check_solution(PANCAKE, start, found)


def test_a_wide_beam_is_breadth_first() -> None:
    """Nothing is left out, and no state is stored twice."""
    layers = [1, 12, 114, 1068]
    seen: list[Progress] = []
    found = q_beam(
        Cube3(), ones(12), HARD, width=2000, spread=12, max_depth=3, progress=seen.append
    )
    assert [progress.num_open for progress in seen] == layers[1:]
    assert (found.num_stored, found.stopped) == (sum(layers), "max_depth")
    assert found.num_generated == 1 + 12 + 12 * 11 + 114 * 11
    assert (found.solved, found.actions, found.path_cost) == (False, [], math.inf)
    assert found.peak_open == 1068


def test_pairs_ranked_in_portions_are_those_ranked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of many actions is ranked piece by piece, for its Q would not fit into memory."""
    q = noisy(pancakes().q, 0, 1)  # none below the cost of an action: no two are alike

    def beams() -> list[tuple[list[int], int, int]]:
        found = []
        for row in some_rows(pancakes(), 12):
            start = pancakes().states[row]
            beam = q_beam(PANCAKE, pancakes().function(q), start, width=7, spread=2, max_depth=9)
            found.append((beam.actions, beam.num_generated, beam.num_evaluated))
        return found

    at_once = beams()
    for size in (1, 17, 40):
        monkeypatch.setattr("classicrl.search.solution._PAIRS_AT_ONCE", size)
        assert beams() == at_once


def test_the_beam_keeps_its_width_and_the_best() -> None:
    q = noisy(pancakes().q, -1, 1)
    asked: list[Tensor] = []
    function = pancakes().function(q)

    def noted(states: Tensor) -> Tensor:
        asked.append(states.clone())
        return function(states)

    start = pancakes().states[-1]
    q_beam(PANCAKE, noted, start, width=3, spread=2, max_depth=8)
    earlier = {bytes(start.tolist())}
    undo: dict[bytes, int] = {}
    for layer, following in pairwise(asked):
        pairs = sorted(
            (float(value), row, action)
            for row, values in enumerate(torch.maximum(function(layer), PANCAKE.costs))
            for action, value in enumerate(values.tolist())
            if undo.get(bytes(layer[row].tolist())) != action
        )[:6]
        expected: list[bytes] = []
        arrived: dict[bytes, int] = {}
        for _, row, action in pairs:
            after = PANCAKE.apply(layer[row : row + 1], torch.tensor([action]))[0]
            child = bytes(after.tolist())
            if child not in earlier and child not in expected and len(expected) < 3:
                expected.append(child)
                arrived[child] = action
        assert [bytes(state) for state in following.tolist()] == expected
        earlier |= set(expected)
        undo = arrived
    assert len(asked) > 3


def test_a_beam_that_runs_out() -> None:
    found = q_beam(BOARD, ones(4), unsolvable(BOARD), width=400, spread=4)
    assert (found.solved, found.stopped, found.num_stored) == (False, "exhausted", 360)
    assert found.actions == []


@pytest.mark.parametrize(
    ("limits", "stopped"),
    [
        ({"max_depth": 2}, "max_depth"),
        ({"max_nodes": 20}, "max_nodes"),
        ({"max_nodes": 1}, "max_nodes"),
        ({"max_seconds": 1e-9}, "max_seconds"),
        ({"max_bytes": 1e4}, "max_bytes"),
    ],
)
def test_limits_of_a_beam(limits: dict[str, float], stopped: Stopped) -> None:
    found = q_beam(Cube3(), ones(12), HARD, width=10, **limits)  # type: ignore[arg-type]
    assert (found.solved, found.stopped) == (False, stopped)


def test_the_memory_of_a_beam_is_bounded() -> None:
    found = q_beam(Cube3(), ones(12), HARD, width=1000, spread=12, max_bytes=3e6)
    assert (found.solved, found.stopped, found.actions) == (False, "max_bytes", [])
    assert 1e5 < found.num_bytes <= 3e6 and found.num_stored > 1000


@pytest.mark.parametrize("length", [4, 5])
def test_a_beam_meets_the_perimeter(length: int) -> None:
    domain = Cube3()
    ball = Perimeter(domain, domain.goal, 3)
    for turns in short_scrambles(domain, 4, length):
        start = domain.after(turns)
        found = q_beam(domain, ones(12), start, width=200, spread=12, perimeter=ball)
        assert (found.solved, found.stopped) == (True, "solved")
        assert found.path_cost == len(found.actions) <= length
        assert found.path_cost % 2 == length % 2
        check_solution(domain, start, found)


class Corridor:
    """Cells 0..9 in a row, the goal at 9; actions left and right."""

    goal, inverse, costs = torch.tensor([9], dtype=torch.uint8), torch.tensor([1, 0]), torch.ones(2)

    def apply(self, states: Tensor, actions: Tensor) -> Tensor:
        return (states.long() + 2 * actions[:, None] - 1).to(torch.uint8)

    def is_goal(self, states: Tensor) -> Tensor:
        return (states == 9).all(1)

    def legal(self, states: Tensor) -> Tensor:
        return torch.cat([states > 0, states < 9], 1)


@pytest.mark.parametrize("with_perimeter", [False, True])
def test_dead_ends(with_perimeter: bool) -> None:
    """A beam that was sent the wrong way comes to where it could only go back."""
    domain = Corridor()
    perimeter = Perimeter(domain, domain.goal, 2) if with_perimeter else None
    start = torch.tensor([3], dtype=torch.uint8)

    def astray(states: Tensor) -> Tensor:
        return torch.tensor([1.0, 5.0]).expand(len(states), -1)

    found = q_beam(domain, astray, start, width=1, spread=1, perimeter=perimeter)
    assert (found.solved, found.stopped, found.num_stored) == (False, "exhausted", 4)
    for search in (qstar, astar, deferred_astar):
        found = search(domain, astray, start, weight=1.0, batch_size=3, perimeter=perimeter)
        assert found.actions == [1] * 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"spread": 0},
        {"max_depth": 0},
        {"max_nodes": 0},
        {"max_seconds": 0.0},
        {"max_seconds": math.nan},
        {"max_bytes": 0.0},
    ],
    ids=str,
)
def test_numbers_out_of_range_for_a_beam(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above zero"):
        q_beam(PANCAKE, ones(6), PANCAKE.goal, **wrong)  # type: ignore[arg-type]


def test_a_beam_needs_equal_costs() -> None:
    with pytest.raises(ValueError, match="equal cost"):
        q_beam(PRICED, ones(5), PRICED.goal)
    domain = PricedPancake([2.0, 2.0, 2.0])
    table = solved_table(domain)
    for start, d in zip(table.states, table.distance.tolist(), strict=True):
        assert q_beam(domain, table.function(), start, width=1).path_cost == d
