"""Faults of environments, named in one line before anything of them reaches a replay."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classicrl.errors import RunFailure


class EnvironmentFault(RunFailure):
    """An environment raised, or showed what it must not: not a number, or another shape."""


class Stepping:
    """Which of N environments is at work, and in which step.

    Attributes:
        at: index of the environment; -1 for all of them at once.
        steps: of every environment, over the whole run.

    Args:
        env_id: of all.
        seeds: of each.
    """

    def __init__(self, env_id: str, seeds: Sequence[int]) -> None:
        self.env_id = env_id
        self._seeds = list(seeds)
        self.at = -1
        self.steps = 0

    def __str__(self) -> str:
        which = f"environment {self.at}" if self.at >= 0 else f"{len(self._seeds)} environments"
        seeds = self._seeds[self.at : self.at + 1] if self.at >= 0 else self._seeds
        named = ", ".join(map(str, seeds[:4])) + (", ..." if len(seeds) > 4 else "")
        return f"{which} of {self.env_id} (seed {named}), step {self.steps:,}"

    def fault(self, reason: object, at: int | None = None) -> EnvironmentFault:
        """The error to raise; an exception's type is named.

        Args:
            reason: an exception, or words that follow the environment's name.
            at: index of the environment, where it is not the one at work.
        """
        if at is not None:
            self.at = at
        if isinstance(reason, BaseException):
            text = " ".join(f"failed: {type(reason).__name__}: {reason}".split())[:300]
        else:
            text = str(reason)
        return EnvironmentFault(
            f"{self} {text}; nothing of this step was stored, the last checkpoint stands"
        )

    def checked(self, obs: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An observation as an array.

        Raises:
            EnvironmentFault: if it has another shape, or numbers that do not fit.
        """
        array = np.asarray(obs)
        if array.shape != shape:
            raise self.fault(f"showed an array of shape {array.shape}, not {shape}")
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise self.fault(f"showed an array of {array.dtype}, which is not {dtype}")
        return array

    def require_finite(self, what: str, values: NDArray[Any], at: Sequence[int]) -> None:
        """Values ``[len(at), ...]`` of the environments ``at``.

        Raises:
            EnvironmentFault: if one is NaN or infinite.
        """
        finite = np.isfinite(values)
        if not finite.all():
            bad = int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))
            raise self.fault(f"showed {what} that is NaN or infinite", at[bad])
