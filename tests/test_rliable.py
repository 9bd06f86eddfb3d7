"""The statistics beside rliable's: one matrix of scores, figures of rliable 1.2.0.

Made once with rliable 1.2.0, arch 7.2.0, numpy 2.4.6 and pandas 2.3.3 (with pandas 3 arch does not
import), by `aggregate_iqm`, `get_interval_estimates` (50,000 resamples; 20,000 for the rest),
`create_performance_profile` and `probability_of_improvement`; matrices are [runs, tasks] there.
Intervals are of other random numbers than ours, so they agree up to the scatter of a percentile.

Where the number of scores is not a multiple of 4, rliable's interquartile mean cuts whole scores
and fewer; ours cuts a quarter of the weight at either end. Here it is a multiple.
"""

import numpy as np
import pytest

from classicrl.reports.statistics import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

X = [  # a row per task: 8 runs
    [1.0, 0.64, 1.02, 0.75, 1.04, 1.28, 0.24, 0.91],
    [0.59, 0.36, 0.9, 0.65, 0.22, 0.1, 0.11, 0.12],
    [1.75, 1.11, 1.56, 2.32, 1.97, 1.59, 0.34, 2.24],
]
Y = [  # 4 runs
    [0.88, 0.53, 0.03, 0.4],
    [0.56, 0.59, 0.5, 0.81],
    [-0.26, 1.58, 0.82, 0.93],
]
THRESHOLDS = [0.0, 0.5, 0.9, 1.5, 2.5]


@pytest.mark.parametrize(
    ("scores", "iqm", "interval"),
    [
        (X, 0.8541666666666666, (0.63916667, 1.04666667)),
        (Y, 0.635, (0.39833333, 0.79833333)),
    ],
    ids=["x", "y"],
)
def test_interquartile_mean_and_its_interval(
    scores: list[list[float]], iqm: float, interval: tuple[float, float]
) -> None:
    assert float(interquartile_mean(np.ravel(scores))) == pytest.approx(iqm, abs=1e-12)
    ours = stratified_bootstrap(scores, interquartile_mean, num_resamples=50_000)
    assert ours == pytest.approx(interval, abs=0.015)


@pytest.mark.parametrize(
    ("scores", "share", "low", "high"),
    [
        (
            X,
            [1.0, 0.70833333, 0.5, 0.25, 0.0],
            [1.0, 0.54166667, 0.375, 0.125, 0.0],
            [1.0, 0.875, 0.625, 0.33333333, 0.0],
        ),
        (
            Y,
            [0.91666667, 0.66666667, 0.16666667, 0.08333333, 0.0],
            [0.75, 0.41666667, 0.0, 0.0, 0.0],
            [1.0, 0.91666667, 0.33333333, 0.25, 0.0],
        ),
    ],
    ids=["x", "y"],
)
def test_performance_profile(
    scores: list[list[float]], share: list[float], low: list[float], high: list[float]
) -> None:
    ours = performance_profile(scores, THRESHOLDS, num_resamples=20_000)
    assert ours.share == pytest.approx(share, abs=1e-8)
    # Shares of 24 (12) runs: a percentile is one of few values, and may be the next one.
    step = 1 / np.size(scores) + 1e-8
    assert ours.low == pytest.approx(low, abs=step)
    assert ours.high == pytest.approx(high, abs=step)


def test_probability_of_improvement() -> None:
    ours = probability_of_improvement(X, Y, num_resamples=20_000)
    assert ours.value == pytest.approx(0.6614583333333334, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((0.51041667, 0.80208333), abs=0.012)
