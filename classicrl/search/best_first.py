"""Best-first search in batches: Q*, A* and deferred A*.

F. Agostinelli et al., "Q* Search: Heuristic Search with Deep Q-Networks" (arXiv 2102.04518). A*
makes all children of a node and asks the network about each. Q* asks once about the node, gets an
estimate for every action, and makes a child only when its turn comes, so what it does for a node
hardly depends on how many actions there are. Deferred A* makes children as late as Q*, but they
all inherit their parent's estimate.

With ``f = weight * g + h``, costs above zero and estimates that are never too high, a path costs at
most ``1 / weight`` times the least possible. A learned network is sometimes too high.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from classicrl.search.domain import Domain
from classicrl.search.nodes import Nodes, Perimeter, children, first_of_equals
from classicrl.search.open_list import OpenList, f_of_key, pack_key
from classicrl.search.solution import (
    BYTES_PER_PAIR,
    Estimator,
    Progress,
    QFunction,
    Solution,
    Stopped,
    checked_path,
    require_rows,
    require_state,
    rows_at_once,
)

StopRule = Literal["bound", "first"]
_CHILDREN_AT_ONCE = 1 << 18  # of A*; bounds its memory between two looks at the clock


class _Search:
    """What the searches have in common: nodes, the best path so far, limits, the report."""

    def __init__(
        self,
        domain: Domain,
        q_function: QFunction,
        start: Tensor,
        *,
        weight: float,
        batch_size: int,
        stop: StopRule,
        max_nodes: int,
        max_seconds: float,
        perimeter: Perimeter | None,
        progress: Callable[[Progress], None] | None,
        bytes_per_row: int,
        max_bytes: float,
    ) -> None:
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight is in [0, 1], not {weight}")
        if min(batch_size, max_nodes) < 1 or not (max_seconds > 0 and max_bytes > 0):
            raise ValueError("batch_size, max_nodes, max_seconds and max_bytes must be above zero")
        require_state(start)
        self.began = time.perf_counter()
        self.domain, self.start, self.weight, self.batch_size = domain, start, weight, batch_size
        self.stop, self.max_nodes, self.max_seconds = stop, max_nodes, max_seconds
        self.perimeter, self.progress = perimeter, progress
        self.estimate = Estimator(domain, q_function)
        self.rows_at_once = rows_at_once(len(domain.costs), max_bytes)
        ranked = min(batch_size, self.rows_at_once) * len(domain.costs) * BYTES_PER_PAIR
        per_node = Nodes.bytes_per_node(len(start)) + bytes_per_row + 16
        num_nodes = (max_bytes - ranked) / per_node
        self.limit_is_memory = num_nodes < max_nodes
        self.capacity = max(1, int(min(max_nodes, num_nodes)))
        self.nodes = Nodes(self.capacity, len(start), start.device)
        self.open = OpenList(start.device)
        self.row_bytes = bytes_per_row
        self.num_generated = 0
        self.lower_bound = 0.0
        # The best path: its cost, the node before its last action, that action, the way on.
        self.best_cost = math.inf
        self._best: tuple[int, int, list[int]] = (-1, -1, [])

    def goals(
        self, states: Tensor, hashes: Tensor, cost: Tensor, parent: Tensor, action: Tensor
    ) -> Tensor:
        """Takes note of the states that are goals, or lead there as the perimeter knows.

        Returns:
            Which of them, [B] bool: they need no search.
        """
        if self.perimeter is None:
            found = self.domain.is_goal(states)
            total, entry = cost, None
        else:
            rest, entry = self.perimeter.distance(states, hashes)
            found, total = rest < math.inf, cost + rest
        if bool(found.any()):
            total = torch.where(found, total, math.inf)
            best = int(total.argmin())
            if float(total[best]) < self.best_cost:
                self.best_cost = float(total[best])
                tail: list[int] = []
                if self.perimeter is not None and entry is not None:
                    tail = self.perimeter.tail(int(entry[best]))
                self._best = (int(parent[best]), int(action[best]), tail)
        return found

    def rows_of(self, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of Q of states, as many at a time as there is memory for: which, and [b, A]."""
        for first in range(0, len(states), self.rows_at_once):
            part = slice(first, first + self.rows_at_once)
            yield part, self.estimate(states[part])

    def settled(self) -> bool:
        """Whether the path that the stop rule asks for is there."""
        # 0 * inf would be no number: the bound is compared only once there is a path.
        return self.best_cost < math.inf and (
            self.stop == "first" or self.lower_bound >= self.weight * self.best_cost - 1e-6
        )

    def over(self) -> Stopped | None:
        """Why to stop now, if there is a reason."""
        if self.settled():
            return "solved"
        if len(self.open) == 0:
            return "solved" if self.best_cost < math.inf else "exhausted"
        if self.num_generated >= self.max_nodes:
            return "max_nodes"
        if time.perf_counter() - self.began >= self.max_seconds:
            return "max_seconds"
        return None

    def room(self, count: int) -> bool:
        return self.nodes.size + count <= self.capacity

    def report(self) -> None:
        if self.progress is not None:
            seconds = time.perf_counter() - self.began
            self.progress(
                Progress(
                    self.num_generated, len(self.open), seconds, self.lower_bound, self.best_cost
                )
            )

    def full(self) -> Stopped:
        return "max_bytes" if self.limit_is_memory else "max_nodes"

    def solution(self, stopped: Stopped) -> Solution:
        actions: list[int] = []
        if solved := self.best_cost < math.inf:
            parent, last, tail = self._best
            before = [] if parent < 0 else [*self.nodes.path(parent), last]
            actions = before + tail
            self.best_cost = checked_path(self.domain, self.start, actions)
        rows = self.row_bytes * self.nodes.size
        return Solution(
            solved=solved,
            actions=actions,
            path_cost=self.best_cost,
            stopped=stopped,
            # Once the shortest path is found, what is left in the open list may well rank above it.
            lower_bound=min(self.lower_bound, self.best_cost),
            num_generated=self.num_generated,
            num_evaluated=self.estimate.num_evaluated,
            num_stored=self.nodes.size,
            peak_open=self.open.peak,
            num_bytes=self.nodes.num_bytes() + self.open.num_bytes() + rows + self.nodes.size,
            row_bytes=rows,
            seconds=time.perf_counter() - self.began,
            network_seconds=self.estimate.seconds,
        )


@torch.inference_mode()
def qstar(
    domain: Domain,
    q_function: QFunction,
    start: Tensor,
    *,
    weight: float = 0.6,
    batch_size: int = 1000,
    stop: StopRule = "bound",
    max_nodes: int = 3_000_000,
    max_seconds: float = math.inf,
    max_bytes: float = math.inf,
    perimeter: Perimeter | None = None,
    prune: bool = True,
    row_dtype: torch.dtype = torch.float16,
    progress: Callable[[Progress], None] | None = None,
    on_pop: Callable[[Tensor, Tensor], None] | None = None,
) -> Solution:
    """Q* search (arXiv 2102.04518, algorithm 1), in batches.

    A node keeps its row of Q. The open list holds one entry for each node, its best action that was
    not yet taken, ordered by (f, h, node, action). So 1,884 actions cost no more entries than 12.
    From the best heads everything that ranks with them is taken, which gives the very batches that
    an open list of all pairs would.

    Args:
        domain: whose states ``start`` is one of.
        q_function: states -> Q, [B, S] -> [B, A].
        start: [S] uint8; its device is the search's.
        weight: of the cost so far, in [0, 1]: 1 for the shortest path, 0 greedy.
        batch_size: pairs of a state and an action taken from the open list at a time.
        stop: ``bound`` goes on until no better path is promised within the weight; ``first`` ends
            with the first batch that has a goal.
        max_nodes: states to generate; may be passed by a batch.
        max_seconds: of wall time, looked at after every batch.
        max_bytes: of nodes, rows and open list.
        perimeter: states near the goal whose paths are known.
        prune: leave out the action that undoes the last, and nodes to whose state a cheaper way has
            been found. Neither can make a path longer.
        row_dtype: of stored Q. float16 is exact to 1/64 up to 32; take float32 above 64.
        progress: called after every batch.
        on_pop: called with the nodes and actions of every batch.

    Raises:
        ValueError: a number out of its range.
    """
    num_actions = len(domain.costs)
    row_bytes = num_actions * torch.empty(0, dtype=row_dtype).element_size()
    search = _Search(
        domain, q_function, start, weight=weight, batch_size=batch_size, stop=stop,
        max_nodes=max_nodes, max_seconds=max_seconds, perimeter=perimeter, progress=progress,
        bytes_per_row=row_bytes, max_bytes=max_bytes,
    )  # fmt: skip
    nodes, device = search.nodes, start.device
    # Q of the actions that were not yet taken; inf of the others.
    rows = torch.empty(search.capacity, num_actions, dtype=row_dtype, device=device)
    replaced = torch.zeros(search.capacity if prune else 0, dtype=torch.bool, device=device)
    inverse = domain.inverse if prune else None
    # Where all actions cost the same, those of a node rank by h alone, and one cost does for all.
    one_cost = bool((domain.costs == domain.costs[0]).all())
    costs = domain.costs[:1] if one_cost else domain.costs

    def h_of(q: Tensor) -> Tensor:
        """Costs to go after each action [B, A], from rows as they are stored; inf: taken."""
        # As stored, Q may have been rounded to just below the cost; keys need h >= 0.
        return (q.to(torch.float32) - costs).clamp_(min=0)

    def keys_of(node: Tensor, costs: Tensor, h: Tensor) -> Tensor:
        """Keys of pairs of a node and an action, all of one shape."""
        return pack_key(weight * (nodes.path_cost[node] + costs) + h, h)

    def keep(states: Tensor, cost: Tensor, parent: Tensor, action: Tensor) -> bool:
        """Steps 4, 5 and 7: notes goals, drops what is known, evaluates and queues the rest."""
        search.num_generated += len(states)
        hashes = nodes.hashes(states)
        done = search.goals(states, hashes, cost, parent, action)
        chosen = (~done).nonzero()[:, 0]
        chosen = chosen[first_of_equals(states[chosen], hashes[chosen], cost[chosen])]
        known, place = nodes.find(states[chosen], hashes[chosen])
        better = (known < 0) | (cost[chosen] < nodes.path_cost[known.clamp(min=0)])
        chosen, known, place = chosen[better], known[better], place[better]
        if not len(chosen):
            return True
        if not search.room(len(chosen)):
            return False
        states, action = states[chosen], action[chosen]
        fields = (states, hashes[chosen], cost[chosen], parent[chosen], action, known, place)
        node = nodes.add(*fields)
        if prune:
            replaced[known[known >= 0]] = True
        for part, q in search.rows_of(states):
            if inverse is not None:
                came = (action[part] >= 0).nonzero()[:, 0]
                q[came, inverse[action[part][came]]] = math.inf
            new = node[part]
            first, last = int(new[0]), int(new[-1]) + 1
            rows[first:last] = q
            queue(new, h_of(rows[first:last]))
        return True

    def queue(node: Tensor, h: Tensor) -> None:
        """Puts nodes into the open list by the lowest key of their actions, if it is finite."""
        if one_cost:
            key = keys_of(node, costs, h.amin(1))
        else:
            key = keys_of(node[:, None], costs, h).amin(1)
        there = key < _INFINITE
        search.open.push(key[there], node[there])

    def pop(count: int) -> tuple[Tensor, Tensor]:
        """So many heads, in order, or all there are; none that a cheaper way has replaced."""
        key, node = search.open.pop(count)
        if prune and bool((old := replaced[node]).any()):
            key, node = key[~old], node[~old]
            # Others take their places: fewer heads than asked for mean that there are no more.
            while len(node) < count and len(search.open):
                more_key, more = search.open.pop(count - len(node))
                current = ~replaced[more]
                key = torch.cat((key, more_key[current]))
                node = torch.cat((node, more[current]))
        return key, node

    def ranked(node: Tensor, h: Tensor, last: tuple[Tensor, Tensor, Tensor] | None) -> _Pairs:
        """The first ``batch_size`` pairs of nodes in ascending order, h [b, A], that do not rank
        behind the pair ``last``: key, node, action."""
        f = weight * (nodes.path_cost[node][:, None] + costs) + h
        low = f < math.inf if last is None else f <= f_of_key(last[0])
        row, action = low.nonzero(as_tuple=True)  # ascending by node, then action
        keys = keys_of(node[row], domain.costs[action], h[row, action])
        if last is not None:
            last_key, last_node, last_action = last
            near = node[row]
            before = (near < last_node) | ((near == last_node) & (action <= last_action))
            ranks = (keys < last_key) | ((keys == last_key) & before)
            row, action, keys = row[ranks], action[ranks], keys[ranks]
        order = torch.sort(keys, stable=True).indices[:batch_size]
        return _Pairs(keys[order], node[row[order]], action[order])

    def best_pairs(key: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs that an open list of all pairs would hand out, as far as these heads tell."""
        last = None
        if len(search.open):  # what ranks behind the last head may rank behind others' pairs
            last_key, last_node = key[-1], node[-1]
            row = keys_of(last_node[None, None], costs, h_of(rows[last_node][None]))[0]
            last = last_key, last_node, (row == last_key).nonzero()[0, 0]
        parts = torch.split(node.sort().values, search.rows_at_once)
        found = [ranked(part, h_of(rows[part]), last) for part in parts]
        if len(found) > 1:
            keys, parent, action = (torch.cat(field) for field in zip(*found, strict=True))
            order = torch.sort(keys, stable=True).indices[:batch_size]
            return parent[order], action[order]
        return found[0].node, found[0].action

    nothing = torch.full((1,), -1, device=device)
    keep(start[None], torch.zeros(1, device=device), nothing, nothing)
    stopped = search.over()
    num_heads = batch_size  # to begin a batch with; where a head has many pairs, fewer do
    while stopped is None:
        key, node = pop(num_heads)
        if not len(node):
            stopped = search.over()
            continue
        search.lower_bound = max(search.lower_bound, float(f_of_key(key[0])))
        if search.settled():  # an earlier path: none of these could better it
            break
        parent, action = best_pairs(key, node)
        if len(parent) < batch_size and len(search.open):
            # As many heads as pairs always do, since each has one at least.
            more_key, more = pop(batch_size - len(node))
            key, node = torch.cat((key, more_key)), torch.cat((node, more))
            parent, action = best_pairs(key, node)
        num_parents = len(torch.unique_consecutive(parent.sort().values))
        num_heads = min(batch_size, num_parents + num_parents // 4 + _SPARE_HEADS)
        if on_pop is not None:
            on_pop(parent, action)
        rows[parent, action] = math.inf
        for part in torch.split(node, search.rows_at_once):
            queue(part, h_of(rows[part]))
        states = domain.apply(nodes.states[parent], action)
        cost = nodes.path_cost[parent] + domain.costs[action]
        if not keep(states, cost, parent, action):
            stopped = search.full()
            break
        search.report()
        stopped = search.over()
    return search.solution(stopped or "solved")


_INFINITE = int(pack_key(torch.tensor([math.inf]), torch.tensor([0.0])))
_SPARE_HEADS = 16


class _Pairs(NamedTuple):
    """Pairs of a node and an action, ascending by key, node and action: [n] int64 each."""

    keys: Tensor
    node: Tensor
    action: Tensor


def deferred_astar(
    domain: Domain,
    q_function: QFunction,
    start: Tensor,
    *,
    weight: float = 0.6,
    batch_size: int = 1000,
    stop: StopRule = "bound",
    max_nodes: int = 3_000_000,
    max_seconds: float = math.inf,
    max_bytes: float = math.inf,
    perimeter: Perimeter | None = None,
    prune: bool = True,
    row_dtype: torch.dtype = torch.float16,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """Deferred A*: :func:`qstar`, but every child inherits its parent's estimate V = min_a Q.

    Arguments are those of :func:`qstar`.
    """

    def inherited(states: Tensor) -> Tensor:
        q = q_function(states)
        require_rows(q, states, domain)
        if (legal := domain.legal(states)) is not None:
            q = torch.where(legal, q, torch.inf)
        return q.amin(1, keepdim=True) + domain.costs

    return qstar(
        domain, inherited, start, weight=weight, batch_size=batch_size, stop=stop,
        max_nodes=max_nodes, max_seconds=max_seconds, max_bytes=max_bytes, perimeter=perimeter,
        prune=prune, row_dtype=row_dtype, progress=progress,
    )  # fmt: skip


@torch.inference_mode()
def astar(
    domain: Domain,
    q_function: QFunction,
    start: Tensor,
    *,
    weight: float = 0.6,
    batch_size: int = 1000,
    stop: StopRule = "bound",
    max_nodes: int = 3_000_000,
    max_seconds: float = math.inf,
    max_bytes: float = math.inf,
    perimeter: Perimeter | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """Weighted A* in batches, with V = min_a Q of the same network as its heuristic.

    Pops ``batch_size`` nodes, generates all their children, and asks the network about those that
    are new or cheaper. Arguments are those of :func:`qstar`.
    """
    search = _Search(
        domain, q_function, start, weight=weight, batch_size=batch_size, stop=stop,
        max_nodes=max_nodes, max_seconds=max_seconds, perimeter=perimeter, progress=progress,
        bytes_per_row=0, max_bytes=max_bytes,
    )  # fmt: skip
    nodes, device = search.nodes, start.device
    replaced = torch.zeros(search.capacity, dtype=torch.bool, device=device)

    def keep(states: Tensor, cost: Tensor, parent: Tensor, action: Tensor) -> bool:
        search.num_generated += len(states)
        hashes = nodes.hashes(states)
        chosen = torch.arange(len(states), device=device)
        if perimeter is not None:
            chosen = (~search.goals(states, hashes, cost, parent, action)).nonzero()[:, 0]
        chosen = chosen[first_of_equals(states[chosen], hashes[chosen], cost[chosen])]
        known, place = nodes.find(states[chosen], hashes[chosen])
        better = (known < 0) | (cost[chosen] < nodes.path_cost[known.clamp(min=0)])
        chosen, known, place = chosen[better], known[better], place[better]
        if not len(chosen):
            return True
        if not search.room(len(chosen)):
            return False
        states, cost = states[chosen], cost[chosen]
        fields = (states, hashes[chosen], cost, parent[chosen], action[chosen], known, place)
        node = nodes.add(*fields)
        replaced[known[known >= 0]] = True
        h = torch.cat([q.amin(1) for _, q in search.rows_of(states)])
        h = torch.where(domain.is_goal(states), 0.0, h)
        dead = h == math.inf  # no action can be taken
        search.open.push(pack_key(weight * cost + h, h)[~dead], node[~dead])
        return True

    nothing = torch.full((1,), -1, device=device)
    keep(start[None], torch.zeros(1, device=device), nothing, nothing)
    stopped = search.over()
    while stopped is None:
        key, node = search.open.pop(batch_size)
        current = ~replaced[node]
        key, node = key[current], node[current]
        if len(node):
            search.lower_bound = max(search.lower_bound, float(f_of_key(key[0])))
            if perimeter is None:
                states, cost = nodes.states[node], nodes.path_cost[node]
                parent, action = nodes.parent[node], nodes.action[node]
                node = node[~search.goals(states, key, cost, parent, action)]
            if search.settled():  # no child of the others could better it
                break
            for part in torch.split(node, max(1, _CHILDREN_AT_ONCE // len(domain.costs))):
                index, action = children(domain, nodes.states[part])
                parent = part[index]
                states = domain.apply(nodes.states[parent], action)
                cost = nodes.path_cost[parent] + domain.costs[action]
                if not keep(states, cost, parent, action):
                    return search.solution(search.full())
                search.report()
                if (stopped := search.over()) in ("max_nodes", "max_seconds"):
                    break
        stopped = search.over()
    return search.solution(stopped or "solved")
