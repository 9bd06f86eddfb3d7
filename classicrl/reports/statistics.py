"""Intervals of means over few values: games of an evaluation, seeds of an agent."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_RESAMPLES = 10_000
_RELATIVE_TOLERANCE = 0.01
_Z = 1.959964  # the normal distribution's 97.5% point


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64], *, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95% percentile-bootstrap interval of the mean over the first axis (Efron 1979).

    With a single value both ends are that value; with two or three they hardly reach beyond the
    smallest and the largest, so say how many there were wherever the interval is shown.

    Args:
        values: ``[N, ...]``, N at least 1.
        seed: of the resampling; the same values give the same interval.

    Returns:
        Lower and upper end, each ``[...]``.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape[0] == 0:
        raise ValueError("the mean of no values has no interval")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(
        array.shape[0], np.full(array.shape[0], 1 / array.shape[0]), _NUM_RESAMPLES
    )
    means = np.tensordot(counts, array, axes=1) / array.shape[0]  # [R, ...]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def interval_from_std(mean: float, std: float, count: int) -> tuple[float, float]:
    """95% interval of a mean of which only the standard deviation over ``count`` values is known.

    Student's interval, its quantile expanded to first order in 1/(count - 1).
    """
    if count < 2:
        return mean, mean
    half = (_Z + (_Z**3 + _Z) / (4 * (count - 1))) * std / math.sqrt(count)
    return mean - half, mean + half


def replay_interval(mean: float, interval: tuple[float, float]) -> tuple[float, float]:
    """Where the mean of as many other games is expected, given a mean and its 95% interval.

    Both means scatter, so their difference scatters sqrt(2) times as much as either: each half of
    the interval is stretched by that. Games that all ended alike say nothing of their scatter, so
    each half is at least 1% of the mean.
    """
    floor = _RELATIVE_TOLERANCE * abs(mean)
    low = mean - max(math.sqrt(2) * (mean - interval[0]), floor)
    high = mean + max(math.sqrt(2) * (interval[1] - mean), floor)
    return low, high
