from typing import Any

import numpy as np
import pytest

from classicrl.reports.statistics import (
    bootstrap_interval,
    interquartile_mean,
    interval_from_std,
    probability_of_improvement,
    replay_interval,
    stratified_bootstrap,
)


def test_bootstrap_of_equal_and_of_single_values() -> None:
    assert [float(end) for end in bootstrap_interval([-21.0] * 5)] == [-21.0, -21.0]
    assert [float(end) for end in bootstrap_interval([3.5])] == [3.5, 3.5]
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_bootstrap_agrees_with_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(0).normal(5.0, 3.0, size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert float(low) == pytest.approx(values.mean() - half, abs=0.02)
    assert float(high) == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_works_along_the_first_axis() -> None:
    values = np.random.default_rng(1).normal(size=(7, 3, 2))
    low, high = bootstrap_interval(values)
    assert low.shape == high.shape == (3, 2)
    alone = bootstrap_interval(values[:, 2, 1])
    assert (low[2, 1], high[2, 1]) == pytest.approx((float(alone[0]), float(alone[1])))


def test_students_interval() -> None:
    low, high = interval_from_std(10.0, 3.0, 30)
    assert (high - low) / 2 == pytest.approx(2.0452 * 3 / np.sqrt(30), rel=0.01)
    assert interval_from_std(10.0, 0.0, 1) == (10.0, 10.0)


def test_a_replay_of_other_games_mostly_holds_and_another_agent_does_not() -> None:
    rng = np.random.default_rng(2)
    held = wrong = 0
    for _ in range(200):
        recorded, other = rng.normal(100.0, 40.0, size=(2, 30))
        mean = float(recorded.mean())
        low, high = bootstrap_interval(recorded)
        low, high = replay_interval(mean, (float(low), float(high)))
        held += low <= other.mean() <= high
        wrong += low <= other.mean() - 60 <= high
    assert held >= 180
    assert wrong <= 2


def test_games_that_ended_alike_leave_one_percent() -> None:
    assert replay_interval(-21.0, (-21.0, -21.0)) == pytest.approx((-21.21, -20.79))
    assert replay_interval(4.0, (3.0, 4.5)) == pytest.approx((4 - 2**0.5, 4 + 0.5 * 2**0.5))


# ----------------------------------------------------------------------------------- several tasks


def test_interquartile_mean_by_hand() -> None:
    assert float(interquartile_mean([7.0])) == 7.0
    assert float(interquartile_mean([1.0, 5.0])) == 3.0
    assert float(interquartile_mean([100.0, 2.0, -50.0, 4.0])) == pytest.approx(3.0)
    # Of five, the middle one counts 1 and its neighbours 3/4.
    assert float(interquartile_mean([9.0, 1.0, 3.0, 90.0, 4.0])) == pytest.approx(
        (0.75 * 3 + 4 + 0.75 * 9) / 2.5
    )
    assert float(interquartile_mean(np.arange(7.0))) == pytest.approx(3.0)
    # Of six, half of the second and of the fifth.
    assert float(interquartile_mean([0.0, 2.0, 3.0, 7.0, 20.0, 21.0])) == pytest.approx(
        (0.5 * 2 + 3 + 7 + 0.5 * 20) / 3
    )


def test_interquartile_mean_works_along_the_last_axis() -> None:
    values = np.random.default_rng(4).normal(size=(3, 2, 7))
    means = interquartile_mean(values)
    assert means.shape == (3, 2)
    assert means[2, 1] == pytest.approx(float(interquartile_mean(values[2, 1])))


def test_interquartile_mean_follows_shift_and_scale_and_no_order() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=11)
    mean = float(interquartile_mean(values))
    assert float(interquartile_mean(rng.permutation(values))) == pytest.approx(mean)
    assert float(interquartile_mean(values + 3)) == pytest.approx(mean + 3)
    assert float(interquartile_mean(-2 * values)) == pytest.approx(-2 * mean)
    values[values.argmax()] = 1e9  # far out, but in the same quarter
    assert float(interquartile_mean(values)) == pytest.approx(mean)


def test_a_weight_counts_as_so_many_values() -> None:
    repeated = [1.0, 2.0, 2.0, 2.0, 5.0, 5.0, 8.0]
    weighted = interquartile_mean([8.0, 2.0, 5.0, 1.0], weights=[1, 3, 2, 1])
    assert float(weighted) == pytest.approx(float(interquartile_mean(repeated)))
    ignored = interquartile_mean([8.0, 2.0, 5.0], weights=[0, 1, 1])
    assert float(ignored) == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([], None, "no values"),
        (3.0, None, "no values"),
        ([1.0, np.nan], None, "finite"),
        ([1.0, 2.0], [1.0], "as many weights"),
        ([1.0, 2.0], [1.0, -1.0], "not negative"),
        ([1.0, 2.0], [0.0, 0.0], "not all zero"),
    ],
)
def test_interquartile_mean_refuses(values: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interquartile_mean(values, weights=weights)


def test_one_task_is_the_plain_bootstrap() -> None:
    values = np.random.default_rng(6).normal(5.0, 3.0, size=23)
    low, high = stratified_bootstrap([values], lambda drawn: drawn.mean(axis=1))
    plain = bootstrap_interval(values)
    assert (low, high) == pytest.approx((float(plain[0]), float(plain[1])), abs=0.05)


def test_seeds_are_drawn_within_their_task() -> None:
    """Between tasks the scores differ, within them they do not: nothing is left to chance."""
    tasks = {"a": [1.0] * 3, "b": [10.0] * 5, "c": [4.0]}
    low, high = stratified_bootstrap(tasks, lambda drawn: drawn.mean(axis=1))
    assert (low, high) == pytest.approx((57 / 9, 57 / 9))
    drawn = []
    stratified_bootstrap(tasks, lambda d: drawn.append(d) or d[:, 0], num_resamples=6)
    assert drawn[0].tolist() == [[1.0] * 3 + [10.0] * 5 + [4.0]] * 6


def test_the_order_of_seeds_changes_no_interval_and_a_shift_shifts_it() -> None:
    rng = np.random.default_rng(7)
    tasks = [rng.normal(size=4), rng.normal(2.0, size=7)]
    interval = stratified_bootstrap(tasks, interquartile_mean)
    shuffled = [rng.permutation(scores) for scores in tasks]
    assert stratified_bootstrap(shuffled, interquartile_mean) == pytest.approx(interval)
    moved = stratified_bootstrap([2 * scores + 1 for scores in tasks], interquartile_mean)
    assert moved == pytest.approx((2 * interval[0] + 1, 2 * interval[1] + 1))
    assert stratified_bootstrap(tasks, interquartile_mean, seed=1) != interval


def test_the_stratified_interval_covers_the_mean_mostly() -> None:
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(200):
        tasks = [rng.normal(task, 1 + task, size=10) for task in range(3)]
        low, high = stratified_bootstrap(tasks, lambda d: d.mean(axis=1), num_resamples=400)
        covered += low <= 1.0 <= high
    assert 170 <= covered <= 198


@pytest.mark.parametrize(("num_seeds", "coverage"), [(3, 0.75), (5, 0.84), (10, 0.90), (30, 0.94)])
def test_few_seeds_make_the_interval_of_the_mean_too_narrow(
    num_seeds: int, coverage: float
) -> None:
    """docs/va_results.md quotes these figures."""
    values = np.random.default_rng(0).normal(size=(num_seeds, 3_000))
    low, high = bootstrap_interval(values[:, :1_000])
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(coverage, abs=0.03)


def test_probability_of_improvement_by_hand() -> None:
    # Pairs in which X is above: of 3 x 2, (5 > 1, 5 > 4, 2 > 1), and 4 = 4 and 4 > 1: 4.5 of 6.
    value, low, high = probability_of_improvement([[5.0, 2.0, 4.0]], [[1.0, 4.0]])
    assert value == pytest.approx(4.5 / 6)
    assert 0 < low < value < high == 1.0
    x = {"a": [3.0, 3.0, 3.0], "b": [0.0, 2.0]}
    y = {"b": [1.0], "a": [3.0, 3.0]}
    assert probability_of_improvement(x, y).value == pytest.approx((0.5 + 0.5) / 2)
    sure = probability_of_improvement([[3.0, 4.0], [9.0]], [[1.0], [2.0, 3.0, 8.0]])
    assert sure == (1.0, 1.0, 1.0)


def test_improvement_is_of_order_alone_and_of_both_sides() -> None:
    rng = np.random.default_rng(9)
    x = [rng.normal(1.5, size=4), rng.normal(1.5, size=6)]
    y = [rng.normal(size=5), rng.normal(size=3)]
    there, low, high = probability_of_improvement(x, y)
    assert 0.5 < there < 1 and low < there < high
    back = probability_of_improvement(y, x)
    assert back.value == pytest.approx(1 - there)
    assert (back.low, back.high) == pytest.approx((1 - high, 1 - low), abs=0.02)
    grown = probability_of_improvement([np.exp(s) for s in x], [np.exp(s) for s in y])
    assert grown == pytest.approx((there, low, high))
    shuffled = [rng.permutation(scores) for scores in x]
    assert probability_of_improvement(shuffled, y) == pytest.approx((there, low, high))


def test_the_interval_of_improvement_covers_mostly() -> None:
    rng = np.random.default_rng(10)
    truth = 0.7602  # of N(1, 1) above N(0, 1): the normal distribution's value at 1 / sqrt(2)
    covered = 0
    for _ in range(200):
        x, y = rng.normal(1.0, 1.0, size=(3, 12)), rng.normal(0.0, 1.0, size=(3, 9))
        estimate = probability_of_improvement(list(x), list(y), num_resamples=400)
        covered += estimate.low <= truth <= estimate.high
    assert 170 <= covered <= 199


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([], [], "no tasks"),
        ([[1.0]], [[]], "a task needs scores"),
        ([[[1.0]]], [[1.0]], "a task needs scores"),
        ([[1.0]], [[np.inf]], "finite"),
        ([[1.0]], [[1.0], [2.0]], "1 tasks in X, 2 in Y"),
        ({"a": [1.0]}, {"b": [1.0]}, "other tasks"),
        ({"a": [1.0]}, [[1.0]], "both or of neither"),
    ],
)
def test_comparisons_refuse(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probability_of_improvement(x, y)


def test_the_stratified_bootstrap_refuses() -> None:
    for tasks in ([], [[1.0], []], [[1.0, np.nan]]):
        with pytest.raises(ValueError, match=r"no tasks|needs scores|finite"):
            stratified_bootstrap(tasks, interquartile_mean)
    with pytest.raises(ValueError, match="the statistic must return"):
        stratified_bootstrap([[1.0, 2.0]], np.mean)
    with pytest.raises(ValueError, match="num_resamples"):
        stratified_bootstrap([[1.0, 2.0]], interquartile_mean, num_resamples=0)
