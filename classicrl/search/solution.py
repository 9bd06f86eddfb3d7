"""What a search is told and what it answers."""

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from classicrl.search.domain import Domain

QFunction = Callable[[Tensor], Tensor]
"""States uint8 [B, S] -> estimated costs to the goal by each action, float32 [B, A]."""

Stopped = Literal["solved", "exhausted", "max_nodes", "max_seconds", "max_bytes", "max_depth"]


class Solution(NamedTuple):
    """The outcome of a search.

    Attributes:
        solved: a path was found, and replayed from the start to the goal.
        actions: of the path; empty if there is none.
        path_cost: sum of their costs; inf if there is none.
        stopped: why the search ended. ``solved`` by its stop rule; what a limit cut short may still
            have a path.
        lower_bound: the largest f that was lowest in the open list, or the path's cost if that is
            less. If no estimate of the network is too high, no path costs less; a learned network
            gives no such promise.
        num_generated: states made by applying an action, duplicates and the start included.
        num_evaluated: states whose row of Q was asked for.
        num_stored: nodes kept.
        peak_open: the longest the open list was.
        num_bytes: memory of nodes, rows of Q and open list at the end.
        row_bytes: of them in rows of Q.
        seconds: wall time.
        network_seconds: of them in the network.
    """

    solved: bool
    actions: list[int]
    path_cost: float
    stopped: Stopped
    lower_bound: float
    num_generated: int
    num_evaluated: int
    num_stored: int
    peak_open: int
    num_bytes: int
    row_bytes: int
    seconds: float
    network_seconds: float


CHUNK_SIZE = 4096  # states that a network is asked about together; what fits the cache is fastest
BYTES_PER_PAIR = 24  # of a state and an action, with all that ranking them makes
_PAIRS_AT_ONCE = 1 << 25


class Progress(NamedTuple):
    """Where a search stands: counts, seconds, the lowest f or the layer, the best path's cost."""

    num_generated: int
    num_open: int
    seconds: float
    best_f: float
    path_cost: float


class Estimator:
    """A Q-function with its limits: counts what it is asked, and how long that takes.

    Args:
        domain: says which actions are legal; the others get inf.
        q_function: the network.
        chunk_size: states at a time.
    """

    def __init__(self, domain: Domain, q_function: QFunction, chunk_size: int = CHUNK_SIZE) -> None:
        self._domain, self._q_function, self._chunk_size = domain, q_function, chunk_size
        self.num_evaluated, self.seconds = 0, 0.0

    @torch.inference_mode()
    def __call__(self, states: Tensor) -> Tensor:
        """[B, S] uint8 -> [B, A] float32, at least the cost of the action, inf where illegal.

        Raises:
            ValueError: the Q-function gives another shape.
        """
        begin = time.perf_counter()
        q = torch.cat([self._q_function(part) for part in torch.split(states, self._chunk_size)])
        require_rows(q, states, self._domain)
        # No path costs less than its first action.
        q = torch.maximum(q.to(torch.float32), self._domain.costs)
        if (legal := self._domain.legal(states)) is not None:
            q = torch.where(legal, q, torch.inf)
        if q.device.type == "cuda":
            torch.cuda.synchronize(q.device)
        self.num_evaluated += len(states)
        self.seconds += time.perf_counter() - begin
        return q


def rows_at_once(num_actions: int, max_bytes: float) -> int:
    """How many rows of Q to look at together: what is made of them takes a quarter of the memory.

    Rows beyond the chunk that a network is asked about come in whole chunks.
    """
    pairs = min(_PAIRS_AT_ONCE, max_bytes / 4 / BYTES_PER_PAIR)
    rows = max(1, int(pairs) // num_actions)
    return rows if rows < CHUNK_SIZE else rows // CHUNK_SIZE * CHUNK_SIZE


def require_state(start: Tensor) -> None:
    """Refuses what is not one state.

    Raises:
        ValueError: another type or shape than uint8 [S].
    """
    if start.dtype != torch.uint8 or start.dim() != 1:
        raise ValueError(
            f"the start is one state, uint8 [S], not {start.dtype} {list(start.shape)}"
        )


def require_rows(q: Tensor, states: Tensor, domain: Domain) -> None:
    """Refuses what is not a row of all actions for each state.

    Raises:
        ValueError: another shape than [B, A].
    """
    expected = [len(states), len(domain.costs)]
    if list(q.shape) != expected:
        raise ValueError(
            f"the Q-function gave {list(q.shape)} for {len(states)} states, not {expected}"
        )


def checked_path(domain: Domain, start: Tensor, actions: list[int]) -> float:
    """Replays a path; returns its cost.

    Raises:
        AssertionError: it does not end in a goal: a fault of the search or the domain.
    """
    states = start[None]
    for action in actions:
        states = domain.apply(states, torch.tensor([action], device=start.device))
    assert bool(domain.is_goal(states)), "the path does not lead to the goal"
    return float(sum(float(domain.costs[action]) for action in actions))
