"""Beam search by Q: the widest look that a memory of fixed size allows.

Layer by layer, a beam keeps the W most promising states. With Q the network sees only those W, not
their children: the pairs of a state and an action are ranked by Q, and only the best are made.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from classicrl.search.domain import Domain
from classicrl.search.nodes import Nodes, Perimeter, first_of_equals
from classicrl.search.solution import (
    BYTES_PER_PAIR,
    Estimator,
    Progress,
    QFunction,
    Solution,
    Stopped,
    checked_path,
    require_state,
    rows_at_once,
)

_BYTES_PER_CHILD = 64  # beside its state, until it is stored or dropped


@torch.inference_mode()
def q_beam(
    domain: Domain,
    q_function: QFunction,
    start: Tensor,
    *,
    width: int = 4096,
    spread: int = 2,
    max_depth: int = 60,
    max_nodes: int = 3_000_000,
    max_seconds: float = math.inf,
    max_bytes: float = math.inf,
    perimeter: Perimeter | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """Beam search over pairs of a state and an action, for domains with actions of one cost.

    From a layer of up to W states the ``spread * W`` pairs of lowest Q are made into states, but
    none by the action that undoes the last. States of this or an earlier layer are dropped, and the
    best W of the rest, in the order of their pairs, are the next layer. The first layer with a goal
    ends the search; a beam gives no bound on the path it finds.

    Args:
        domain, q_function, start, max_nodes, max_seconds, perimeter, progress: as for
            :func:`classicrl.search.best_first.qstar`.
        width: W.
        spread: pairs made for each place in the next layer.
        max_depth: layers.
        max_bytes: of the states of all layers, which are kept, and of making and ranking one layer.

    Raises:
        ValueError: costs that differ, a start that is not one state, or a number out of its range.
    """
    if not bool((domain.costs == domain.costs[0]).all()):
        raise ValueError("a beam needs actions of equal cost")
    if min(width, spread, max_depth, max_nodes) < 1 or not (max_seconds > 0 and max_bytes > 0):
        raise ValueError(
            "width, spread, max_depth, max_nodes, max_seconds and max_bytes must be above zero"
        )
    require_state(start)
    began, device = time.perf_counter(), start.device
    estimate = Estimator(domain, q_function)
    num_actions, unit = len(domain.costs), float(domain.costs[0])
    # What is generated may pass the limit by one layer; a layer stores at most its width.
    num_nodes = min(max_nodes, width * max_depth) + width + 1
    portion = rows_at_once(num_actions, max_bytes)
    layer = min(width, portion) * num_actions * BYTES_PER_PAIR
    layer += spread * width * (len(start) + _BYTES_PER_CHILD)
    affordable = (max_bytes - layer) / Nodes.bytes_per_node(len(start))
    capacity = max(1, int(min(num_nodes, affordable)))
    nodes = Nodes(capacity, len(start), device)

    def q_of(node: Tensor) -> Tensor:
        """Q of the actions of some nodes, [w, A]; inf of those that undo the last."""
        q = estimate(nodes.states[node])
        if domain.inverse is not None:
            came = nodes.action[node].to(torch.int64)
            back = domain.inverse[came.clamp(min=0)]
            each = torch.arange(len(q), device=device)
            q[each, back] = torch.where(came >= 0, math.inf, q[each, back])
        return q

    def best_pairs(node: Tensor, count: int) -> Tensor:
        """Up to so many pairs of lowest Q, best first: action a of the i-th node is i A + a."""
        best, pairs = (
            torch.empty(0, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
        )
        for first in range(0, len(node), portion):
            q = q_of(node[first : first + portion]).flatten()
            value, pair = torch.topk(q, min(count, len(q)), largest=False, sorted=True)
            pair = pair + first * num_actions
            if first:  # the best so far, and these
                value, pair = torch.cat((best, value)), torch.cat((pairs, pair))
                value, order = torch.topk(value, min(count, len(value)), largest=False, sorted=True)
                pair = pair[order]
            best, pairs = value, pair
        return pairs[best < math.inf]

    states, hashes = start[None], nodes.hashes(start[None])
    nothing = torch.full((1,), -1, device=device)
    cost = torch.zeros(1, device=device)
    node = nodes.add(states, hashes, cost, nothing, nothing, *nodes.find(states, hashes))
    num_generated, peak = 1, 1
    path: list[int] | None = None
    if _first_goal(domain, perimeter, states, hashes) is not None:
        path = _tail(perimeter, states, hashes)
    stopped: Stopped = "solved" if path is not None else "max_depth"
    for depth in range(1, max_depth + 1):
        if path is not None:
            break
        pair = best_pairs(node, min(spread * width, len(node) * num_actions))
        parent, action = node[pair // num_actions], pair % num_actions
        states = domain.apply(nodes.states[parent], action)
        hashes = nodes.hashes(states)
        num_generated += len(states)
        goal = _first_goal(domain, perimeter, states, hashes)
        if goal is not None:
            way = [*nodes.path(int(parent[goal])), int(action[goal])]
            path = way + _tail(perimeter, states[goal : goal + 1], hashes[goal : goal + 1])
            stopped = "solved"
            break
        keep = first_of_equals(states, hashes, torch.zeros_like(hashes))
        known, place = nodes.find(states[keep], hashes[keep])
        new = (known < 0).nonzero()[:width, 0]
        if not len(new):
            stopped = "exhausted"
            break
        if nodes.size + len(new) > capacity:
            stopped = "max_bytes"
            break
        keep = keep[new]
        cost = torch.full((len(keep),), depth * unit, device=device)
        node = nodes.add(
            states[keep], hashes[keep], cost, parent[keep], action[keep], known[new], place[new]
        )
        peak = max(peak, len(node))
        seconds = time.perf_counter() - began
        if progress is not None:
            progress(Progress(num_generated, len(node), seconds, depth * unit, math.inf))
        if num_generated >= max_nodes or seconds >= max_seconds:
            stopped = "max_nodes" if num_generated >= max_nodes else "max_seconds"
            break
    return Solution(
        solved=path is not None,
        actions=path or [],
        path_cost=math.inf if path is None else checked_path(domain, start, path),
        stopped=stopped,
        lower_bound=0.0,
        num_generated=num_generated,
        num_evaluated=estimate.num_evaluated,
        num_stored=nodes.size,
        peak_open=peak,
        num_bytes=nodes.num_bytes(),
        row_bytes=0,
        seconds=time.perf_counter() - began,
        network_seconds=estimate.seconds,
    )


def _first_goal(
    domain: Domain, perimeter: Perimeter | None, states: Tensor, hashes: Tensor
) -> int | None:
    """The row that is a goal, or nearest to one of all that the perimeter knows."""
    if perimeter is None:
        found = domain.is_goal(states).nonzero()[:, 0]
        return int(found[0]) if len(found) else None
    if not len(states):
        return None
    rest = perimeter.distance(states, hashes)[0]
    best = int(rest.argmin())
    return best if float(rest[best]) < math.inf else None


def _tail(perimeter: Perimeter | None, states: Tensor, hashes: Tensor) -> list[int]:
    """Actions from the one state [1, S] that is known to be or lead to a goal."""
    if perimeter is None:
        return []
    return perimeter.tail(int(perimeter.distance(states, hashes)[1]))
