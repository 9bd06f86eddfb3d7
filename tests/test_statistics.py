import numpy as np
import pytest

from classicrl.reports.statistics import bootstrap_interval, interval_from_std, replay_interval


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
