"""n-step returns: a table by hand, and a slow reference on random windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classicrl.returns import n_step_return

NO, YES = False, True


@pytest.mark.parametrize(
    ("reward", "terminated", "ended", "expected"),
    [
        # sum, discount of the bootstrap, steps; gamma = 0.5
        pytest.param([1, 2, 4], [NO, NO, NO], [NO, NO, NO], (3.0, 0.125, 3), id="whole window"),
        pytest.param([1, 2, 4], [YES, NO, NO], [YES, NO, NO], (1.0, 0.0, 1), id="over at once"),
        pytest.param([1, 2, 4], [NO, YES, NO], [NO, YES, NO], (2.0, 0.0, 2), id="over in it"),
        pytest.param([1, 2, 4], [NO, NO, YES], [NO, NO, YES], (3.0, 0.0, 3), id="over at its end"),
        pytest.param([1, 2, 4], [NO, NO, NO], [NO, YES, NO], (2.0, 0.25, 2), id="time limit"),
        pytest.param([1, 2, 4], [NO, NO, NO], [NO, NO, YES], (3.0, 0.125, 3), id="limit at end"),
        pytest.param([1, 2, 4], [NO, YES, NO], [NO, NO, NO], (2.0, 0.0, 2), id="life lost"),
        pytest.param([1, 2, 4], [NO, YES, NO], [YES, NO, NO], (1.0, 0.5, 1), id="limit, then more"),
        pytest.param([1, 2, 4], [NO, NO, YES], [NO, YES, YES], (2.0, 0.25, 2), id="two ends"),
        pytest.param([-3], [NO], [NO], (-3.0, 0.5, 1), id="one step"),
        pytest.param([-3], [YES], [NO], (-3.0, 0.0, 1), id="one step, over"),
    ],
)
def test_by_hand(
    reward: list[float],
    terminated: list[bool],
    ended: list[bool],
    expected: tuple[float, float, int],
) -> None:
    # The row of interest in the middle: its neighbours must not leak into it.
    n = len(reward)
    rewards = np.array([[9.0] * n, reward, [7.0] * n], dtype=np.float32)
    stops = np.array([[NO] * n, terminated, [YES] * n])
    ends = np.array([[NO] * n, ended, [YES] * n])
    summed, discount, steps = n_step_return(rewards, stops, ends, 0.5)
    assert (summed[1], discount[1], steps[1]) == expected
    assert (summed[2], discount[2], steps[2]) == (7.0, 0.0, 1)
    assert (summed.dtype, discount.dtype, steps.dtype) == (np.float32, np.float32, np.int64)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), gamma=st.sampled_from([0.0, 0.9, 1.0]))
def test_against_the_obvious_loop(seed: int, n: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(11, n)).astype(np.float32)
    terminated, ended = rng.random((2, 11, n)) < 0.2
    summed, discount, steps = n_step_return(reward, terminated, ended, gamma)
    for b in range(11):
        total, k = 0.0, 0
        while k < n:
            total += gamma**k * float(reward[b, k])
            k += 1
            if terminated[b, k - 1] or ended[b, k - 1]:
                break
        bootstrap = 0.0 if terminated[b, k - 1] else gamma**k
        assert steps[b] == k
        assert summed[b] == pytest.approx(total, abs=1e-5)
        assert discount[b] == np.float32(bootstrap)


def test_rewards_after_the_end_do_not_matter() -> None:
    huge = np.array([[1.0, 3e38]], dtype=np.float32)
    over = np.array([[True, False]])
    summed, discount, steps = n_step_return(huge, over, over, 0.9)
    assert (summed[0], discount[0], steps[0]) == (1.0, 0.0, 1)


@pytest.mark.parametrize(
    ("reward", "terminated", "ended"),
    [((4, 3), (4, 3), (4, 2)), ((4, 3), (4,), (4, 3)), ((4,), (4,), (4,))],
)
def test_shapes_that_do_not_fit_are_refused(
    reward: tuple[int, ...], terminated: tuple[int, ...], ended: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"\[B, n\]"):
        n_step_return(
            np.zeros(reward, np.float32), np.zeros(terminated, bool), np.zeros(ended, bool), 0.9
        )
