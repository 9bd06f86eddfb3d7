"""What a search needs to know of a problem."""

from typing import Protocol

from torch import Tensor


class Domain(Protocol):
    """A deterministic shortest-path problem whose states are rows of bytes.

    All methods work on batches, on any device; actions are indices 0..A-1.

    Attributes:
        costs: what each action costs, [A] float32, above zero.
        inverse: the action that undoes each one, [A] int64, or None if some action has none.
    """

    @property
    def costs(self) -> Tensor: ...

    @property
    def inverse(self) -> Tensor | None: ...

    def apply(self, states: Tensor, actions: Tensor) -> Tensor:
        """States [B, S] uint8 and one legal action each [B] int64: the states after them [B, S]."""

    def is_goal(self, states: Tensor) -> Tensor:
        """Which of the states [B, S] are solved: [B] bool."""

    def legal(self, states: Tensor) -> Tensor | None:
        """Which actions can be taken: [B, A] bool. None: all of them, everywhere."""
