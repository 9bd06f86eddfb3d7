"""Sliding-tile puzzles: the 8-puzzle, the 15-puzzle, the 24-puzzle, boards that are not square."""

import torch
from torch import Tensor


class SlidingPuzzle:
    """A board as a search domain: n = width * height cells row by row, one byte each, 0 the blank.

    Actions 0..3 move the blank up, down, left, right, each costs 1; some leave the board and are
    not legal. Half of all arrangements can be solved, see :meth:`is_solvable`.

    Args:
        width: cells in a row, at least 2.
        height: cells in a column, at least 2; as many as ``width`` if not given. 256 cells at most.
        device: where its tables are; states must be there too.

    Attributes:
        goal: 1, 2, ..., n-1, 0, [n] uint8.

    Raises:
        ValueError: the board is too small or too large.
    """

    def __init__(
        self, width: int = 4, height: int | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        height = width if height is None else height
        # In a single row tiles cannot pass each other, and the parity rule would not suffice.
        if min(width, height) < 2 or width * height > 256:
            raise ValueError(
                f"a board has 2 or more cells on a side and at most 256, not {width}x{height}"
            )
        self.name = f"sliding-puzzle-{width}x{height}"
        self.width, self.height = width, height
        self.device = torch.device(device)
        cells = torch.arange(width * height, device=device)
        self._row, self._column = cells // width, cells % width
        row = self._row[:, None] + torch.tensor([-1, 1, 0, 0], device=device)  # [n, 4]
        column = self._column[:, None] + torch.tensor([0, 0, -1, 1], device=device)
        self._legal = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        self._neighbour = torch.where(self._legal, width * row + column, cells[:, None])
        self.goal = cells.roll(-1).to(torch.uint8)
        self.costs = torch.ones(4, device=device)
        self.inverse: Tensor | None = torch.tensor([1, 0, 3, 2], device=device)

    def apply(self, states: Tensor, actions: Tensor) -> Tensor:
        """States [B, n] uint8 and an action each [B] int64: the states after them [B, n].

        An action that is not legal changes nothing.
        """
        blank = states.argmin(1, keepdim=True)  # [B, 1]
        target = self._neighbour[blank[:, 0], actions][:, None]
        tile = states.gather(1, target)
        return states.scatter(1, blank, tile).scatter_(1, target, 0)

    def is_goal(self, states: Tensor) -> Tensor:
        """Which of the states [B, n] are solved, [B] bool."""
        return (states == self.goal).all(1)

    def legal(self, states: Tensor) -> Tensor:
        """Which actions keep the blank on the board, [B, 4] bool."""
        return self._legal[states.argmin(1)]

    def is_solvable(self, states: Tensor) -> Tensor:
        """Which of the states [B, n] can be solved, [B] bool.

        A move swaps the blank with a neighbour: it changes the parity of the permutation and that
        of the blank's taxicab distance from its goal cell. So the two are equal in all states that
        the goal can reach, and those are all such states (W. W. Johnson and W. E. Story, "Notes on
        the '15' Puzzle", American Journal of Mathematics 2, 1879).
        """
        num_cells = len(self.goal)
        cell_of_byte = (states.long() - 1) % num_cells  # where each belongs: the goal is 0..n-1
        is_inverted = cell_of_byte[:, :, None] > cell_of_byte[:, None, :]  # [B, n, n]
        inversions = is_inverted.triu(1).sum((1, 2))
        blank = states.argmin(1)
        up, left = self._row[-1] - self._row[blank], self._column[-1] - self._column[blank]
        return (inversions + up + left) % 2 == 0

    def random_states(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform over the solvable states, [count, n] uint8.

        Args:
            generator: on the CPU, so that all devices draw the same states.
        """
        # Doubles: single precision is coarse enough for ties, which would favour some orders.
        keys = torch.rand(count, len(self.goal), dtype=torch.float64, generator=generator)
        states = keys.argsort(1).to(self.device, torch.uint8)
        # Swapping tiles 1 and 2 pairs each unsolvable state with a solvable one.
        swapped = torch.where((states == 1) | (states == 2), 3 - states, states)
        return torch.where(self.is_solvable(states)[:, None], states, swapped)
