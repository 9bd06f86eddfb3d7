"""The pancake problem: sort a stack by reversing its top part."""

import torch
from torch import Tensor


class Pancake:
    """A stack of n pancakes as a search domain: their sizes 0..n-1 from the top, one byte each.

    Action i reverses the first i + 2: n - 1 actions, each costs 1 and undoes itself. The stack of
    35 is the one of F. Agostinelli et al., "Q* Search", arXiv 2102.04518.

    Args:
        num_pancakes: n, 2..256.
        device: where its tables are; states must be there too.

    Attributes:
        goal: 0, 1, ..., n-1, [n] uint8.

    Raises:
        ValueError: ``num_pancakes`` is out of range.
    """

    def __init__(self, num_pancakes: int = 35, *, device: torch.device | str = "cpu") -> None:
        if not 2 <= num_pancakes <= 256:
            raise ValueError(f"a stack has 2 to 256 pancakes, not {num_pancakes}")
        self.name = f"pancake-{num_pancakes}"
        self.num_pancakes = num_pancakes
        self.device = torch.device(device)
        place = torch.arange(num_pancakes, device=device)
        last = place[1:, None]  # [A, 1], of those that the action reverses
        self._source = torch.where(place <= last, last - place, place)  # [A, n]
        self.goal = place.to(torch.uint8)
        self.costs = torch.ones(num_pancakes - 1, device=device)
        self.inverse: Tensor | None = torch.arange(num_pancakes - 1, device=device)

    def apply(self, states: Tensor, actions: Tensor) -> Tensor:
        """States [B, n] uint8 and an action each [B] int64: the states after them [B, n]."""
        return states.gather(1, self._source[actions])

    def is_goal(self, states: Tensor) -> Tensor:
        """Which of the states [B, n] are sorted, [B] bool."""
        return (states == self.goal).all(1)

    def legal(self, states: Tensor) -> None:
        """Every action can be taken everywhere."""

    def gap_heuristic(self, states: Tensor) -> Tensor:
        """Neighbours that do not belong together, ``[B, n] uint8 -> [B] int64``.

            h(s) = #{ i < n : |s_i - s_{i+1}| > 1 },    s_n = n, the plate

        A reversal separates one pair only, so h is admissible and consistent (M. Helmert,
        "Landmark Heuristics for the Pancake Problem", SoCS 2010).
        """
        sizes = states.short()  # bytes would wrap around
        plate = sizes.new_full((len(sizes), 1), self.num_pancakes)
        steps = torch.cat([sizes, plate], 1).diff(dim=1)  # [B, n]
        return (steps.abs() > 1).sum(1)

    def random_states(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniformly random stacks, [count, n] uint8.

        Args:
            generator: on the CPU, so that all devices draw the same stacks.
        """
        # Doubles: single precision is coarse enough for ties, which would favour some orders.
        keys = torch.rand(count, self.num_pancakes, dtype=torch.float64, generator=generator)
        return keys.argsort(1).to(self.device, torch.uint8)
