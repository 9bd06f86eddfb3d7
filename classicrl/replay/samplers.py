"""Sampling distributions over a replay buffer, each a function of age alone.

A sampler is any callable of the shape of :class:`classicrl.types.Sampler`; the buffer asks it for
ages and knows nothing of the rule behind them.
"""

import numpy as np
from numpy.typing import NDArray


class UniformSampler:
    """Every stored row is equally likely."""

    def __call__(self, rng: np.random.Generator, num_stored: int, size: int) -> NDArray[np.int64]:
        """Ages, int64 ``[size]``, uniform over ``[0, num_stored)``, with replacement."""
        return rng.integers(num_stored, size=size)
