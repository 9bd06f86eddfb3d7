"""Schedules: values by hand, and crossings against the obvious count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classicrl.schedules import crossings, linear


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 1.0), (50, 0.775), (100, 0.55), (199, 0.1045), (200, 0.1), (201, 0.1), (10**9, 0.1)],
)
def test_linear_falls_to_its_end_and_stays_there(step: int, value: float) -> None:
    assert linear(step, start=1.0, end=0.1, duration_steps=200) == pytest.approx(value, abs=1e-12)


def test_linear_may_rise() -> None:
    assert linear(3, start=-1.0, end=5.0, duration_steps=4) == 3.5


def test_linear_ends_exactly() -> None:
    # 0.3 + (0.1 - 0.3) is not 0.1 in floating point.
    assert linear(7, start=0.3, end=0.1, duration_steps=7) == 0.1


@given(
    before=st.integers(0, 300),
    advance=st.integers(0, 100),
    period=st.integers(1, 40),
)
def test_crossings_counts_the_multiples_that_were_passed(
    before: int, advance: int, period: int
) -> None:
    after = before + advance
    passed = [step for step in range(before + 1, after + 1) if step % period == 0]
    assert crossings(before, after, period) == len(passed)


@given(steps=st.lists(st.integers(1, 13), max_size=30), period=st.integers(1, 17))
def test_no_crossing_is_lost_or_counted_twice_between_calls(steps: list[int], period: int) -> None:
    at = counted = 0
    for step in steps:
        counted += crossings(at, at + step, period)
        at += step
    assert counted == at // period
