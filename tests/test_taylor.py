"""Taylor expansion of discounts: numbers by hand, and each form against the matrix form."""

import re
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from classicrl import taylor

Array = NDArray[np.float64]
PAGE = Path(__file__).parent.parent / "docs" / "taylor_discounts.md"
EXAMPLES = re.findall(r"<!-- test: \w+ -->\n```python\n(.*?)```", PAGE.read_text(), re.S)

# (gamma, target_gamma), and V_0..V_3 of one state that pays 1 for ever.
PAIR = (0.9, 0.99)
ONE_STATE = [10.0, 19.0, 27.1, 34.39]
# No discounts for values, or no order between them.
WRONG_PAIRS = [(-0.1, 0.5), (0.9, 0.9), (0.9, 0.8), (0.9, 1.0), (float("nan"), 0.9), (0.5, np.nan)]


def f64(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Chain(NamedTuple):
    """A random process of 7 states that stops with a chance of 3% or so."""

    steps: Array  # [7, 8] transition probabilities, the last column for the end
    reward: Array  # [7, 8] on the way

    def P(self) -> Array:
        return self.steps[:, :-1]

    def mean_reward(self) -> Array:
        return np.asarray((self.steps * self.reward).sum(axis=1))

    def value(self, gamma: float) -> Array:
        return np.asarray(np.linalg.solve(np.eye(7) - gamma * self.P(), self.mean_reward()), float)

    def estimate(self, order: int, gamma: float, target_gamma: float) -> Array:
        """V_K by the matrix formula."""
        step = np.linalg.solve(np.eye(7) - gamma * self.P(), self.P())
        term = total = self.value(gamma)
        for _ in range(order):
            term = (target_gamma - gamma) * step @ term
            total = total + term
        return total


def random_chain(seed: int, stop: float = 0.03) -> Chain:
    rng = np.random.default_rng(seed)
    steps = rng.dirichlet(np.full(7, 0.3), size=7) * (1 - stop)
    return Chain(np.append(steps, np.full((7, 1), stop), axis=1), rng.normal(1.0, 2.0, (7, 8)))


def fixed_point(chain: Chain, order: int, gamma: float, sweeps: int = 2_000) -> Tensor:
    """The heads [7, K + 1] that are their own expected targets."""
    heads = torch.zeros(7, order + 1, dtype=torch.float64)
    reward, steps = torch.from_numpy(chain.reward), torch.from_numpy(chain.steps)
    discount = torch.full((7, 8), gamma, dtype=torch.float64)
    discount[:, -1] = 0.0
    for _ in range(sweeps):
        # What a network says of the terminal observation must not matter.
        after = torch.cat([heads, torch.full((1, order + 1), 1e3, dtype=torch.float64)])
        targets = taylor.taylor_targets(reward, discount, after.expand(7, 8, -1), gamma)
        assert targets.shape == (7, 8, order + 1)
        heads = (steps[..., None] * targets).sum(dim=1)
    return heads


# Weights


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (0, [1.0, 1.0, 1.0, 1.0]),
        (1, [0.9, 0.99, 0.99, 0.99]),
        (2, [0.81, 0.972, 0.9801, 0.9801]),
        (10, [0.348678, 0.697357, 0.854262, 0.896104]),
    ],
)
def test_weights_by_hand(t: int, expected: list[float]) -> None:
    weights = [taylor.taylor_weights(11, order, *PAIR)[t] for order in range(4)]
    assert weights == pytest.approx(expected, abs=5e-7)


def test_weights_go_from_one_discount_to_the_other() -> None:
    t = np.arange(40)
    zeroth, third, last = (taylor.taylor_weights(40, order, *PAIR) for order in (0, 3, 10**9))
    assert zeroth.shape == (40,) and zeroth.dtype == np.float64
    np.testing.assert_allclose(zeroth, 0.9**t, rtol=1e-13)
    np.testing.assert_allclose(last, 0.99**t, rtol=1e-13)
    np.testing.assert_allclose(third[:4], last[:4], rtol=1e-14)
    assert (zeroth[4:] < third[4:]).all() and (third[4:] < last[4:]).all()


@pytest.mark.parametrize("order", [0, 1, 5, 60])
def test_weights_of_late_steps_are_exact(order: int) -> None:
    # In whole numbers, with discounts of 990 / 1000 and 997 / 1000.
    weights = taylor.taylor_weights(6_001, order, 0.990, 0.997)
    for t in (0, 17, 1_000, 6_000):
        exact = sum(comb(t, k) * 7**k * 990 ** (t - k) for k in range(min(order, t) + 1))
        assert weights[t] == pytest.approx(exact / 1000**t, rel=1e-10)


def test_weights_from_a_discount_of_zero() -> None:
    # (I - gP)^-1 P is P: K + 1 rewards count, with the wanted discount.
    weights = taylor.taylor_weights(6, 2, 0.0, 0.5)
    assert weights.tolist() == [1.0, 0.5, 0.25, 0.0, 0.0, 0.0]
    assert taylor.taylor_weights(4, 10, 0.0, 0.5).tolist() == [1.0, 0.5, 0.25, 0.125]


def test_weights_sum_to_the_values() -> None:
    chain, (gamma, target_gamma) = random_chain(0), (0.8, 0.95)
    for order in (0, 1, 4):
        total, ahead = np.zeros(7), chain.mean_reward()
        for weight in taylor.taylor_weights(900, order, gamma, target_gamma):
            total += weight * ahead
            ahead = chain.P() @ ahead
        np.testing.assert_allclose(total, chain.estimate(order, gamma, target_gamma), rtol=1e-9)


def test_coefficients() -> None:
    coefficients = taylor.taylor_coefficients(3, *PAIR)
    assert coefficients.dtype == np.float64
    assert coefficients.tolist() == pytest.approx([1.0, 0.9, 0.81, 0.729])
    assert taylor.taylor_coefficients(0, 0.0, 0.5).tolist() == [1.0]


# The matrix form


@pytest.mark.parametrize("seed", range(5))
def test_the_error_keeps_its_bound_and_vanishes(seed: int) -> None:
    chain, (gamma, target_gamma) = random_chain(seed), (0.9, 0.97)
    wanted = chain.value(target_gamma)
    largest = np.abs(chain.mean_reward()).max() / (1 - target_gamma)
    # The coefficient of the term after the last.
    bounds = taylor.taylor_coefficients(101, gamma, target_gamma)[1:] * largest
    estimates = (chain.estimate(order, gamma, target_gamma) for order in range(101))
    errors = [np.abs(wanted - estimate).max() for estimate in estimates]
    assert (np.array(errors) <= bounds + 1e-10).all()
    assert errors[0] > 1.0 and errors[100] < 1e-10


# Heads


def test_heads_of_one_state() -> None:
    heads = f64(0.0, 0.0, 0.0, 0.0)
    for _ in range(1_000):
        heads = taylor.taylor_targets(f64(1.0)[0], f64(0.9)[0], heads, 0.9)
    unscaled = heads / 0.1 ** torch.arange(4)
    assert unscaled[:3].tolist() == pytest.approx([10.0, 100.0, 1000.0])
    assert heads.tolist() == pytest.approx([10.0] * 4)  # all on the scale of the first
    values = [float(taylor.combine(heads[: order + 1], *PAIR)) for order in range(4)]
    assert values == pytest.approx(ONE_STATE)
    assert float(taylor.combine(f64(*[10.0] * 11), *PAIR)) == pytest.approx(68.6189, abs=5e-5)


def test_targets_by_hand() -> None:
    reward, discount = f64(1.0, -2.0), f64(0.5, 0.0)
    next_heads = f64([4.0, 6.0, 8.0], [100.0, 100.0, 100.0])
    # (1 - g) / g is 1.
    targets = taylor.taylor_targets(reward, discount, next_heads, 0.5)
    assert targets.tolist() == [[3.0, 5.0, 7.0], [-2.0, 0.0, 0.0]]
    targets = taylor.taylor_targets(reward, discount, next_heads[:, :1], 0.5)
    assert targets.tolist() == [[3.0], [-2.0]]  # K = 0: the plain target


@pytest.mark.parametrize("stop", [0.0, 0.03, 1.0])
def test_the_fixed_point_of_the_targets_is_the_matrix_form(stop: float) -> None:
    chain, (gamma, target_gamma) = random_chain(1, stop), (0.8, 0.95)
    heads = fixed_point(chain, order=4, gamma=gamma)
    for order in range(5):
        estimate = taylor.combine(heads[:, : order + 1], gamma, target_gamma)
        expected = chain.estimate(order, gamma, target_gamma)
        np.testing.assert_allclose(estimate, expected, rtol=1e-9, atol=1e-9)
    if stop == 1.0:
        np.testing.assert_allclose(heads[:, 0], chain.mean_reward())
        assert not heads[:, 1:].any()


def test_combine_keeps_every_leading_dimension() -> None:
    heads = torch.randn(5, 3, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    combined = taylor.combine(heads, *PAIR)
    assert combined.shape == (5, 3, 2)
    coefficients = torch.from_numpy(taylor.taylor_coefficients(3, *PAIR))
    torch.testing.assert_close(combined, heads @ coefficients)
    assert taylor.combine(heads.float(), *PAIR).dtype == torch.float32


def test_gradients_flow_through_combine_and_not_into_targets() -> None:
    heads = f64([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]).requires_grad_()
    assert not taylor.taylor_targets(f64(0.0, 0.0), f64(0.9, 0.9), heads, 0.9).requires_grad
    taylor.combine(heads, *PAIR).sum().backward()
    assert heads.grad is not None
    assert heads.grad[1].tolist() == pytest.approx([1.0, 0.9, 0.81])


# Samples


def test_delays_are_geometric() -> None:
    delays = taylor.sample_delays(np.random.default_rng(0), (400, 250), 0.8)
    assert delays.shape == (400, 250) and delays.dtype == np.int64
    assert delays.min() == 1
    for t in range(1, 8):
        p = 0.2 * 0.8 ** (t - 1)
        assert abs((delays == t).mean() - p) < 4 * np.sqrt(p * (1 - p) / 100_000)
    assert abs(delays.mean() - 5.0) < 4 * np.sqrt(0.8 / 0.2**2 / 100_000)
    assert (taylor.sample_delays(np.random.default_rng(0), 9, 0.0) == 1).all()


def test_sampled_estimate_by_hand() -> None:
    # Two trajectories of 4 steps; the second terminated after 2. The ratio is 0.5.
    values = f64([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 0.0, 0.0, 0.0])
    delays = np.array([[1, 2], [1, 1]])
    estimate = taylor.sampled_estimate(values, delays, 0.5, 0.75)
    assert estimate.tolist() == [1.0 + 0.5 * 2.0 + 0.25 * 4.0, 6.0 + 0.5 * 7.0]
    # Past the end the last value stands.
    late = taylor.sampled_estimate(values, np.array([[1, 9], [8, 10**12]]), 0.5, 0.75)
    assert late.tolist() == [1.0 + 0.5 * 2.0 + 0.25 * 5.0, 6.0]
    none = taylor.sampled_estimate(values, np.zeros((2, 0), dtype=np.int64), 0.5, 0.75)
    assert none.tolist() == [1.0, 6.0]


def test_sampled_estimate_from_a_function_is_that_from_a_tensor() -> None:
    values = torch.randn(3, 2, 90, generator=torch.Generator().manual_seed(0))
    delays = taylor.sample_delays(np.random.default_rng(0), (3, 2, 4), 0.7)

    def look_up(offsets: Tensor) -> Tensor:
        assert offsets.shape == (3, 2, 5) and not offsets[..., 0].any()
        return values.gather(2, offsets)

    from_tensor = taylor.sampled_estimate(values, delays, 0.7, 0.9)
    assert from_tensor.shape == (3, 2) and from_tensor.dtype == torch.float32
    from_function = taylor.sampled_estimate(look_up, torch.from_numpy(delays), 0.7, 0.9)
    assert from_function.tolist() == from_tensor.tolist()


def trajectories(chain: Chain, first: NDArray[np.int64], length: int, seed: int) -> Array:
    """States int64 [B, length + 1] from ``first``; state 7 is the end."""
    rng = np.random.default_rng(seed)
    steps = np.append(chain.steps, np.eye(8)[7:], axis=0).cumsum(axis=1)
    states = [first]
    for _ in range(length):
        drawn = rng.random((len(first), 1)) > steps[states[-1]]
        states.append(drawn.sum(axis=1).clip(max=7))
    return np.stack(states, axis=1)


@pytest.mark.parametrize("order", [1, 2])
def test_the_mean_of_samples_is_the_matrix_form(order: int) -> None:
    chain, pair, repeats = random_chain(2), (0.7, 0.85), 6_000
    first = np.repeat(np.arange(7), repeats)
    states = trajectories(chain, first, length=80, seed=order)
    values = torch.from_numpy(np.append(chain.value(pair[0]), 0.0)[states])
    delays = taylor.sample_delays(np.random.default_rng(9), (len(first), order), pair[0])
    draws = taylor.sampled_estimate(values, delays, *pair).reshape(7, repeats)
    standard_error = draws.std(dim=1) / repeats**0.5
    off = (draws.mean(dim=1) - torch.from_numpy(chain.estimate(order, *pair))) / standard_error
    assert off.abs().max() < 4
    # The test would see a term left out.
    lower = torch.from_numpy(chain.estimate(order - 1, *pair))
    assert ((draws.mean(dim=1) - lower) / standard_error).abs().min() > 6


def test_the_mean_of_samples_of_actions() -> None:
    """Q_1(x, a) = Q_g(x, a) + ratio E V_g(x_tau), where the first step has its own law."""
    chain, (gamma, target_gamma), draws = random_chain(3), (0.7, 0.85), 30_000
    first_step, reward = np.array([0.4, 0, 0, 0.3, 0, 0.2, 0, 0.1]), -1.5
    value = chain.value(gamma)
    q = reward + gamma * first_step[:-1] @ value
    # By weights: the first reward, then those of the chain, each one step later.
    expected, ahead = reward, chain.mean_reward()
    for weight in taylor.taylor_weights(300, 1, gamma, target_gamma)[1:]:
        expected += weight * (first_step[:-1] @ ahead)
        ahead = chain.P() @ ahead
    rng = np.random.default_rng(0)
    states = trajectories(chain, rng.choice(8, size=draws, p=first_step), length=80, seed=1)
    after = np.append(value, 0.0)[states]
    values = torch.from_numpy(np.append(np.full((draws, 1), q), after, axis=1))
    delays = taylor.sample_delays(rng, (draws, 1), gamma)
    estimate = taylor.sampled_estimate(values, delays, gamma, target_gamma)
    assert abs(estimate.mean() - expected) < 4 * estimate.std() / draws**0.5
    assert abs(q - expected) > 20 * estimate.std() / draws**0.5


def test_gradients_reach_the_values_that_were_drawn() -> None:
    values = f64([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]).requires_grad_()
    taylor.sampled_estimate(values, np.array([[2, 1], [1, 1]]), 0.5, 0.75).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0, 0.5, 0.25], [1.0, 0.5, 0.25, 0.0]]


# What is refused


@pytest.mark.parametrize("pair", WRONG_PAIRS)
def test_discounts_that_do_not_fit(pair: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="target_gamma"):
        taylor.taylor_weights(5, 1, *pair)
    with pytest.raises(ValueError, match="target_gamma"):
        taylor.taylor_coefficients(1, *pair)
    with pytest.raises(ValueError, match="target_gamma"):
        taylor.combine(torch.zeros(3, 2), *pair)
    with pytest.raises(ValueError, match="target_gamma"):
        taylor.sampled_estimate(torch.zeros(3, 5), np.ones((3, 2), dtype=np.int64), *pair)


@pytest.mark.parametrize("gamma", [-0.1, 1.0, float("nan")])
def test_one_discount_that_does_not_fit(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        taylor.sample_delays(np.random.default_rng(0), 3, gamma)
    for wrong in (gamma, 0.0):  # with 0 every step would look like the last
        with pytest.raises(ValueError, match="gamma"):
            taylor.taylor_targets(torch.zeros(3), torch.zeros(3), torch.zeros(3, 2), wrong)


def test_counts_that_do_not_fit() -> None:
    for refuse in (
        lambda: taylor.taylor_weights(5, -1, *PAIR),
        lambda: taylor.taylor_coefficients(-1, *PAIR),
    ):
        with pytest.raises(ValueError, match="order"):
            refuse()
    with pytest.raises(ValueError, match="num_steps"):
        taylor.taylor_weights(0, 1, *PAIR)


@pytest.mark.parametrize(
    ("reward", "discount", "heads"),
    [
        ((5,), (5, 1), (5, 3)),
        ((5, 1), (5,), (5, 3)),
        ((1,), (1,), (5, 3)),
        ((5,), (5,), (5,)),
        ((5,), (5,), (4, 3)),
        ((5,), (5,), (5, 2, 3)),
        ((5,), (5,), (5, 0)),
        ((), (), ()),
    ],
)
def test_targets_refuse_to_broadcast(
    reward: tuple[int, ...], discount: tuple[int, ...], heads: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="next_value_heads"):
        taylor.taylor_targets(torch.zeros(reward), torch.zeros(discount), torch.zeros(heads), 0.9)


@pytest.mark.parametrize(
    ("values", "delays"), [((5, 9), (4, 2)), ((9,), (5, 2)), ((5, 0), (5, 2)), ((), (5, 2))]
)
def test_samples_refuse_shapes(values: tuple[int, ...], delays: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., T \+ 1\]"):
        taylor.sampled_estimate(torch.zeros(values), np.ones(delays, dtype=np.int64), *PAIR)


def test_samples_refuse_delays_and_functions() -> None:
    values = torch.zeros(3, 5)
    for delays in (torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int64), torch.tensor(1)):
        with pytest.raises(ValueError, match="delays must be int64"):
            taylor.sampled_estimate(values, delays, *PAIR)
    with pytest.raises(ValueError, match="keep the shape"):
        taylor.sampled_estimate(lambda offsets: values, np.ones((3, 2), dtype=np.int64), *PAIR)


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_combine_refuses_no_heads(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="heads"):
        taylor.combine(torch.zeros(shape), *PAIR)


# The page


def test_the_example_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLES) == PAGE.read_text().count("```python") == 1
    assert len(EXAMPLES[0].splitlines()) <= 20
    torch.manual_seed(0)
    exec(EXAMPLES[0], {"np": np, "torch": torch})
    printed = re.findall(r"\d\.\d*", capsys.readouterr().out)
    assert [float(number) for number in printed] == pytest.approx([3.0, 2.0, 3.0], abs=1e-3)
