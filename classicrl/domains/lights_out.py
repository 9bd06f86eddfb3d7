"""Lights Out: a press toggles a cell and its neighbours; all lights must go out.

Presses commute and undo themselves, so a board is a sum of presses modulo 2 and solving it is
linear algebra over GF(2) (M. Anderson and T. Feil, "Turning Lights Out with Linear Algebra",
Mathematics Magazine 71, 1998). The 7x7 board is the one of F. Agostinelli et al., "Q* Search",
arXiv 2102.04518.
"""

import torch
from torch import Tensor


class LightsOut:
    """A square board as a search domain: n = size² cells, one byte each, 1 where the light is on.

    Action ``size * row + column`` presses that cell: it and its orthogonal neighbours are toggled.
    Every action costs 1 and undoes itself.

    Args:
        size: cells on a side, at least 1.
        device: where its tables are; states must be there too.

    Attributes:
        goal: all lights off, [n] uint8.
        presses: what each press toggles, [n, n] uint8; symmetric.

    Raises:
        ValueError: ``size`` is below 1.
    """

    def __init__(self, size: int = 7, *, device: torch.device | str = "cpu") -> None:
        if size < 1:
            raise ValueError(f"a board has at least 1 cell on a side, not {size}")
        self.name = f"lights-out-{size}x{size}"
        self.size = size
        self.device = torch.device(device)
        num_cells = size * size
        cells = torch.arange(num_cells)
        row, column = cells // size, cells % size
        taxicab = (row[:, None] - row).abs() + (column[:, None] - column).abs()  # [n, n]
        presses = (taxicab <= 1).to(torch.uint8)
        solution = _inverse_mod_2(presses)
        self.presses = presses.to(device)
        self._solution = None if solution is None else solution.to(device)
        self.goal = torch.zeros(num_cells, dtype=torch.uint8, device=device)
        self.costs = torch.ones(num_cells, device=device)
        self.inverse: Tensor | None = torch.arange(num_cells, device=device)

    def apply(self, states: Tensor, actions: Tensor) -> Tensor:
        """States [B, n] uint8 and an action each [B] int64: the states after them [B, n]."""
        return states ^ self.presses[actions]

    def is_goal(self, states: Tensor) -> Tensor:
        """Which of the states [B, n] have all lights off, [B] bool."""
        return (states == self.goal).all(1)

    def legal(self, states: Tensor) -> None:
        """Every cell can be pressed everywhere."""

    def optimal_presses(self, states: Tensor) -> Tensor:
        """Fewest presses that solve each state, ``[B, n] -> [B]`` int64.

        With full rank there is one set of cells to press, and its size is the answer.

        Raises:
            ValueError: the press matrix of this size is singular (4x4, 5x5, ...): some states have
                no solution, the others several.
        """
        if self._solution is None:
            raise ValueError(
                f"the presses of {self.name} are linearly dependent: its states do not have "
                "exactly one solution each"
            )
        return _product_mod_2(states, self._solution).sum(1)

    def random_states(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform over the solvable states, [count, n] uint8; at full rank those are all.

        Args:
            generator: on the CPU, so that all devices draw the same states.
        """
        # Each solvable state comes from equally many sets of presses.
        pressed = torch.randint(2, (count, len(self.goal)), generator=generator)
        return _product_mod_2(pressed.to(self.device), self.presses)

    def scrambled(self, num_presses: Tensor, generator: torch.Generator) -> Tensor:
        """The goal after random presses, each drawn uniformly from all cells, [B, n] uint8.

        Args:
            num_presses: of each state, [B] int64.
            generator: on the CPU, so that all devices draw the same states.
        """
        num_presses = num_presses.cpu()
        longest = max(num_presses.tolist(), default=0)
        cells = torch.randint(len(self.goal), (len(num_presses), longest), generator=generator)
        is_made = torch.arange(longest) < num_presses[:, None]  # [B, longest]
        # The order does not matter: counting how often each cell is pressed makes the walk.
        times = torch.zeros(len(num_presses), len(self.goal), dtype=torch.int64)
        times.scatter_add_(1, cells, is_made.long())
        return _product_mod_2(times.to(self.device), self.presses)


def _product_mod_2(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` over GF(2), ``[B, n], [n, n] -> [B, n]`` uint8."""
    # GPUs multiply no integer matrices. Floats are exact here, even where products are rounded
    # (TF32), because all factors are 0 or 1.
    return ((left % 2).float() @ right.float()).remainder(2).to(torch.uint8)


def _inverse_mod_2(matrix: Tensor) -> Tensor | None:
    """Inverse over GF(2) by Gauss-Jordan elimination, [n, n] uint8; None if there is none."""
    n = len(matrix)
    rows = torch.cat([matrix, torch.eye(n, dtype=torch.uint8)], 1)  # [n, 2n]
    for column in range(n):
        pivot = column + int(rows[column:, column].argmax())
        if rows[pivot, column] == 0:
            return None
        rows[[column, pivot]] = rows[[pivot, column]]
        others = rows[:, column].clone()
        others[column] = 0
        rows ^= others[:, None] * rows[column]
    return rows[:, n:]
