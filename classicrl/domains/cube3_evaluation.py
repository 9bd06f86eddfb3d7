"""How well a Q-network knows the cube: by greedy play, by beam search, by known distances."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from classicrl.domains.cube3 import Cube3
from classicrl.domains.walks import random_walks
from classicrl.search.beam import q_beam
from classicrl.search.nodes import Perimeter

_SEED = 1_000_003  # of what is evaluated on; training draws from other generators
_GREEDY_LENGTH = 30
_FEWER_FOR_VALUES = 12  # greedy play with V: a state in so many times fewer as there are actions


class Scores(NamedTuple):
    """Of an evaluation.

    Attributes:
        cubes: full scrambles that a beam search was given.
        solved: of them.
        total_length: quarter turns of the solutions, summed.
        greedy: share of cubes up to 30 turns from solved that the best action each time solves.
        distance_error: mean of \\|V - d\\| over states of known distance d in actions.
        bias: mean of V - d over them.
    """

    cubes: int
    solved: int
    total_length: int
    greedy: float
    distance_error: float
    bias: float

    @property
    def mean_length(self) -> float:
        """Quarter turns of a solution; NaN if there is none."""
        return self.total_length / self.solved if self.solved else math.nan

    def better_than(self, other: "Scores") -> bool:
        """More solved, or as many and shorter, or as short and nearer to the known distances."""
        ours, theirs = (
            (
                of.solved,
                -of.total_length,
                0.0 if math.isnan(of.distance_error) else -of.distance_error,
            )
            for of in (self, other)
        )
        return ours > theirs

    def figures(self) -> dict[str, float]:
        """For a log."""
        return {
            "solved_share": self.solved / self.cubes,
            "mean_length": self.mean_length,
            "greedy_share": self.greedy,
            "distance_error": self.distance_error,
            "distance_bias": self.bias,
        }

    def as_json(self) -> dict[str, float | None]:
        """The fields and the mean length; None for what is not known."""
        fields = self._asdict() | {"mean_length": self.mean_length}
        return {k: None if math.isnan(v) else round(v, 6) for k, v in fields.items()}

    def __str__(self) -> str:
        return (
            f"beam solves {self.solved} of {self.cubes}, mean length {self.mean_length:.2f}; "
            f"greedy {self.greedy:.2f}; near the goal off by {self.distance_error:.2f}"
        )


class NetworkEvaluator:
    """The same cubes at every evaluation.

    Args:
        domain: the network's.
        ball: of quarter turns, where distances are known; None leaves those figures out.
        width: of the beam.
    """

    def __init__(self, domain: Cube3, ball: Perimeter | None, *, width: int) -> None:
        self.width = width
        self._domain, self._device = domain, domain.device
        turns = Cube3(12, device=domain.device)
        generator = torch.Generator(domain.device).manual_seed(_SEED)
        walks = random_walks(turns, turns.goal, turns.walk_rule(), 20, _GREEDY_LENGTH, generator)
        self._near = walks.states[:, 1:].flatten(0, 1)
        self._distance = None
        if ball is not None:
            near = self._near[: 20 * _GREEDY_LENGTH]
            known = ball.distance(near, ball.hashes(near))[0]
            self._known = near[~known.isinf()]
            self._distance = torch.ceil(known[~known.isinf()] / domain.max_turns)

    def evaluate(
        self,
        q_function: Callable[[Tensor], Tensor],
        cubes: int,
        value_function: Callable[[Tensor], Tensor] | None = None,
    ) -> Scores:
        """Scores of a network, ``[B, 20] -> [B, A]``.

        Args:
            q_function: what searches and greedy play follow.
            cubes: full scrambles.
            value_function: V, ``[B, 20] -> [B]``, where it is not min Q.
        """
        domain = self._domain
        starts = domain.random_states(cubes, torch.Generator().manual_seed(_SEED))
        solutions = [q_beam(domain, q_function, start, width=self.width) for start in starts]
        states = self._near
        if value_function is not None:  # its Q asks about all children
            states = states[:: max(1, len(domain.costs) // _FEWER_FOR_VALUES)]
        solved = domain.is_goal(states)
        for _ in range(_GREEDY_LENGTH + 10):
            left = (~solved).nonzero()[:, 0]
            if not len(left):
                break
            moved = domain.apply(states[left], q_function(states[left]).argmin(1))
            states = states.index_copy(0, left, moved)
            solved = domain.is_goal(states)
        error = bias = math.nan
        if self._distance is not None:
            known = self._known
            value = q_function(known).amin(1) if value_function is None else value_function(known)
            value = torch.where(domain.is_goal(self._known), 0.0, value)
            off = value - self._distance
            error, bias = float(off.abs().mean()), float(off.mean())
        return Scores(
            cubes,
            sum(solution.solved for solution in solutions),
            sum(len(domain.turns(solution.actions)) for solution in solutions),
            float(solved.float().mean()),
            error,
            bias,
        )
