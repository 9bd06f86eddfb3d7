"""Statistics of few values: games of an evaluation, seeds of an agent, seeds on several tasks.

Those over several tasks follow Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
statistical precipice" (arXiv 2108.13264).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NUM_RESAMPLES = 10_000
_RELATIVE_TOLERANCE = 0.01
_Z = 1.959964  # the normal distribution's 97.5% point

Array = NDArray[np.float64]
ScoresByTask = Mapping[str, ArrayLike] | Sequence[ArrayLike]
"""Scores ``[seeds]`` of each task, with its own number of seeds."""


class Estimate(NamedTuple):
    """A statistic with the ends of its 95% interval."""

    value: float
    low: float
    high: float


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


def interquartile_mean(values: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    """Mean of the middle half of the values (Agarwal et al. 2021, section 4.3).

    Where N is not a multiple of 4, a quarter of it is cut from either end all the same: the values
    on the edges count in part. With N = 5 the middle one counts 1, its neighbours 3/4 each. A value
    far out moves it no further than one just outside of the middle half.

    Args:
        values: ``[..., N]``, N at least 1.
        weights: ``[N]``, how much each value counts; then the quarters are quarters of the whole
            weight. None: all alike.

    Returns:
        ``[...]``.

    Raises:
        ValueError: for no values, values that are not finite, or weights that are negative, all
            zero or of another number.

    >>> interquartile_mean([1.0, 2.0, 3.0, 100.0])
    array(2.5)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError("no values have no interquartile mean")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite")
    count = array.shape[-1]
    weight = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != (count,):
        raise ValueError(f"{count} values need as many weights, not {weight.shape}")
    if not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() == 0:
        raise ValueError("weights must be finite, not negative and not all zero")
    order = np.argsort(array, axis=-1)
    share = weight[order] / weight.sum()  # [..., N]
    ends = np.cumsum(share, axis=-1)
    inside = np.minimum(ends, 0.75) - np.maximum(ends - share, 0.25)
    inside = np.maximum(inside, 0.0)
    total = (inside * np.take_along_axis(array, order, axis=-1)).sum(axis=-1)
    return np.asarray(total / inside.sum(axis=-1))


def stratified_bootstrap(
    scores_by_task: ScoresByTask,
    statistic: Callable[[Array], ArrayLike],
    *,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95% percentile interval of a statistic over several tasks (Agarwal et al. 2021, section 4.1).

    The seeds of each task are drawn anew among themselves; the tasks stay as they are. A task with
    a single seed does not vary, so the interval then says too little.

    Args:
        scores_by_task: ``[seeds]`` for each task.
        statistic: ``[R, N] -> [R]``, of all tasks' scores beside one another, in the order of the
            tasks; N is the number of all scores. It must not depend on the order of seeds.
        num_resamples: R.
        seed: of the resampling; the same scores give the same interval, in any order of seeds.

    Raises:
        ValueError: for no tasks, a task without scores, scores that are not finite, or a statistic
            of another shape.

    >>> stratified_bootstrap({"Pong": [1.0, 1.0], "Breakout": [3.0]}, lambda all: all.mean(axis=1))
    (1.6666666666666667, 1.6666666666666667)
    """
    tasks = _checked(scores_by_task)
    _require_resamples(num_resamples)
    rng = np.random.default_rng(seed)
    drawn = [scores[rng.integers(0, len(scores), (num_resamples, len(scores)))] for scores in tasks]
    values = np.asarray(statistic(np.concatenate(drawn, axis=1)), dtype=np.float64)
    if values.shape != (num_resamples,):
        raise ValueError(f"the statistic must return {(num_resamples,)}, not {values.shape}")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class Profile(NamedTuple):
    """Shares of runs above thresholds, with the ends of their 95% intervals, each ``[P]``."""

    share: Array
    low: Array
    high: Array


def performance_profile(
    scores_by_task: ScoresByTask,
    thresholds: ArrayLike,
    *,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> Profile:
    """Share of runs that score above each threshold (Agarwal et al. 2021, section 4.2).

    The mean over tasks of the share of a task's seeds, so that a task with more seeds counts no
    more than another; the intervals are those of a stratified bootstrap, point by point.

    Args:
        scores_by_task: ``[seeds]`` for each task, on one scale.
        thresholds: ``[P]``.
        num_resamples, seed: as in :func:`stratified_bootstrap`.

    Raises:
        ValueError: as :func:`stratified_bootstrap`.

    >>> performance_profile({"Pong": [1.0, 3.0], "Breakout": [2.0]}, [0.0, 1.5, 3.0]).share
    array([1.  , 0.75, 0.  ])
    """
    tasks = _checked(scores_by_task)
    _require_resamples(num_resamples)
    taus = np.asarray(thresholds, dtype=np.float64)
    rng = np.random.default_rng(seed)
    share, resampled = np.zeros(len(taus)), np.zeros((num_resamples, len(taus)))
    for scores in tasks:
        above = (scores[:, None] > taus).astype(np.float64)  # [seeds, P]
        even = np.full(len(scores), 1 / len(scores))
        counts = rng.multinomial(len(scores), even, num_resamples) / len(scores)
        share += above.mean(axis=0) / len(tasks)
        resampled += counts @ above / len(tasks)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return Profile(share, low, high)


def probability_of_improvement(
    x_by_task: ScoresByTask,
    y_by_task: ScoresByTask,
    *,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """How likely a run of X scores above one of Y, on a task drawn at random.

    Over the pairs of a seed of X and one of Y, the share in which X is above; a tie counts one
    half. The mean over tasks, with a stratified bootstrap interval in which the seeds of X and of Y
    are drawn apart (Agarwal et al. 2021). It says how often, not by how much.

    Args:
        x_by_task, y_by_task: ``[seeds]`` for each task; the same tasks, each with its own number of
            seeds. Mappings are matched by name, sequences by place.
        num_resamples, seed: as in :func:`stratified_bootstrap`.

    Raises:
        ValueError: for other tasks in X than in Y, no tasks, a task without scores, or scores that
            are not finite.

    >>> probability_of_improvement({"Pong": [2.0, 3.0]}, {"Pong": [1.0, 2.0]}).value
    0.875
    """
    if isinstance(x_by_task, Mapping) != isinstance(y_by_task, Mapping):
        raise ValueError("name the tasks of both or of neither")
    if isinstance(x_by_task, Mapping) and isinstance(y_by_task, Mapping):
        if set(x_by_task) != set(y_by_task):
            raise ValueError(f"other tasks in X {sorted(x_by_task)} than in Y {sorted(y_by_task)}")
        y_by_task = [y_by_task[task] for task in x_by_task]
    xs, ys = _checked(x_by_task), _checked(y_by_task)
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} tasks in X, {len(ys)} in Y")
    _require_resamples(num_resamples)
    rng = np.random.default_rng(seed)
    value, resampled = 0.0, np.zeros(num_resamples)
    for x, y in zip(xs, ys, strict=True):
        above = (np.sign(x[:, None] - y[None, :]) + 1) / 2  # [seeds of X, seeds of Y]
        # How often each seed is drawn is all that the mean over pairs needs.
        of_x, of_y = (
            rng.multinomial(len(s), np.full(len(s), 1 / len(s)), num_resamples) / len(s)
            for s in (x, y)
        )
        value += float(above.mean()) / len(xs)
        resampled += ((of_x @ above) * of_y).sum(axis=1) / len(xs)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _checked(scores_by_task: ScoresByTask) -> list[Array]:
    """Scores of each task, sorted: then the order of seeds does not change what is drawn."""
    given = scores_by_task.values() if isinstance(scores_by_task, Mapping) else scores_by_task
    tasks = [np.sort(np.asarray(scores, dtype=np.float64), axis=None) for scores in given]
    if not tasks:
        raise ValueError("no tasks to compare")
    for scores, raw in zip(tasks, given, strict=True):
        if np.ndim(raw) != 1 or len(scores) == 0:
            raise ValueError(f"a task needs scores [seeds], not {np.shape(raw)}")
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
    return tasks


def _require_resamples(count: int) -> None:
    if count < 1:
        raise ValueError(f"num_resamples must be positive, not {count}")
