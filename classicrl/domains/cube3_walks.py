"""Training data for Q on the cube: walks from the solved cube, and what they say of distances."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from classicrl.checkpoint import restore_generator
from classicrl.domains.cube3 import Cube3
from classicrl.domains.walks import random_walks
from classicrl.search.nodes import Perimeter


class WalkBatch(NamedTuple):
    """M states of walks, in random order.

    Attributes:
        states: [M, 20] uint8.
        steps: quarter turns along the walk, at least 1, [M] int64.
        actions: that lead along the walk, back and on, [M, J] int64; -1 where there is none.
        labels: cost to the solved cube by each, [M, J] float32.
        costs: from the state itself, [M] float32.
    """

    states: Tensor
    steps: Tensor
    actions: Tensor
    labels: Tensor
    costs: Tensor


class CubeWalks:
    """Draws labelled states.

    An action of up to m quarter turns that leads to the walk's state j costs 1 + ceil(d_j / m) to
    the goal, where d_j is at most j, and known within the ball.

    Args:
        domain: whose actions get labels.
        walk_length: the longest a state is along a walk, K.
        ball: of the quarter-turn domain; None for none.
        generator: on the domain's device.
    """

    def __init__(
        self,
        domain: Cube3,
        walk_length: int,
        ball: Perimeter | None,
        generator: torch.Generator,
    ) -> None:
        self._domain, self._length, self._ball = domain, walk_length, ball
        self._generator = generator
        self._turns = Cube3(12, device=domain.device)
        self._rule = self._turns.walk_rule()
        self._action_of = domain.action_of_turns()
        self._pool: WalkBatch | None = None
        self._pool_walks = self._used = 0
        self._before_pool = generator.get_state()

    def batch(self, size: int, walks_at_once: int = 2_000) -> WalkBatch:
        """The next ``size`` states, from a pool of many walks: few of them from the same walk."""
        if self._pool is None or self._used + size > len(self._pool.states):
            self._before_pool = self._generator.get_state()
            self._pool_walks = max(walks_at_once, -(-size // self._length))
            self._pool = self.draw(self._pool_walks)
            self._used = 0
        part = slice(self._used, self._used + size)
        self._used += size
        return WalkBatch(*(field[part] for field in self._pool))

    def draw(self, count: int) -> WalkBatch:
        """``count`` walks: ``count * walk_length`` states, 1..K steps along."""
        m, K = self._domain.max_turns, self._length
        goal = self._turns.goal
        walks = random_walks(self._turns, goal, self._rule, count, K + m, self._generator)
        distance = torch.arange(K + m + 1, device=goal.device).expand(count, -1)
        if self._ball is not None:
            distance = self._known(walks.states, distance)
        cost = torch.ceil(distance / m) + 1.0  # [count, K + m + 1]
        turns = walks.actions
        back = turns ^ 1  # the inverse of each turn
        at = torch.arange(1, K + 1, device=goal.device)
        none = 12
        actions, labels = [], []
        for j in range(1, m + 1):
            # State at -> at - j: undo turn at, at - 1, ..., at - j + 1 (turn i leads to state i).
            undone = [back[:, (at - i).clamp(min=1) - 1] for i in range(j)]
            made = [turns[:, at + i] for i in range(j)]
            for sequence, goal_index in ((undone, at - j), (made, at + j)):
                filled = sequence + [torch.full_like(sequence[0], none)] * (3 - j)
                action = self._action_of[filled[0], filled[1], filled[2]]
                actions.append(torch.where(goal_index >= 0, action, -1))
                labels.append(cost[:, goal_index.clamp(min=0)])
        order = torch.randperm(count * K, generator=self._generator, device=goal.device)
        return WalkBatch(
            walks.states[:, 1 : K + 1].reshape(-1, 20)[order],
            at.repeat(count)[order],
            torch.stack(actions, -1).reshape(count * K, -1)[order],
            torch.stack(labels, -1).reshape(count * K, -1)[order],
            (cost[:, at] - 1.0).reshape(-1)[order],
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers stand, before the pool and now; the pool is drawn again."""
        return {
            "before_pool": self._before_pool,
            "generator": self._generator.get_state(),
            "pool_walks": self._pool_walks,
            "used": self._used,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues there."""
        self._pool_walks, self._used = state["pool_walks"], state["used"]
        if self._pool_walks:
            restore_generator(self._generator, state["before_pool"])
            self._before_pool = self._generator.get_state()
            self._pool = self.draw(self._pool_walks)
        restore_generator(self._generator, state["generator"])

    def _known(self, states: Tensor, distance: Tensor) -> Tensor:
        """Distances [W, L] at most the steps taken; exact in the ball, beyond it outside."""
        assert self._ball is not None
        exact = self.distance(states.flatten(0, 1)).view_as(distance)
        beyond = torch.clamp(distance, min=self._ball.depth + 1)
        return torch.where(exact.isinf(), beyond.to(exact.dtype), exact)

    def distance(self, states: Tensor) -> Tensor:
        """Quarter turns to the solved cube [M] float32; inf outside the ball."""
        if self._ball is None:
            solved = self._turns.is_goal(states)
            return torch.where(solved, 0.0, torch.inf)
        return self._ball.distance(states, self._ball.hashes(states))[0]
