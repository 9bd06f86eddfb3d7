"""Losses and targets: numbers by hand, gradients, and shapes that must not broadcast."""

import pytest
import torch
from torch import Tensor

from classicrl import losses


def f64(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Two states with three actions: the networks disagree about the best action of the first.
NEXT_Q_TARGET = f64([5.0, 1.0, 2.0], [-1.0, -4.0, -2.0])
NEXT_Q_ONLINE = f64([0.0, 7.0, 3.0], [6.0, 0.0, 0.0])


def test_plain_and_double_bootstrap() -> None:
    assert losses.max_q(NEXT_Q_TARGET).tolist() == [5.0, -1.0]
    assert losses.double_q(NEXT_Q_TARGET, NEXT_Q_ONLINE).tolist() == [1.0, -1.0]


def test_double_q_never_exceeds_max_q() -> None:
    generator = torch.Generator().manual_seed(0)
    target, online = torch.randn(2, 50, 4, generator=generator)
    double, plain = losses.double_q(target, online), losses.max_q(target)
    assert (double <= plain).all() and (double < plain).any()


def test_td_target() -> None:
    target = losses.td_target(f64(1.0, -2.0, 0.5), f64(0.9, 0.0, 0.81), f64(10.0, 1e6, -1.0))
    assert target.tolist() == pytest.approx([10.0, -2.0, -0.31], abs=1e-12)


def test_no_gradient_flows_into_the_target() -> None:
    next_value = f64(1.0, 2.0).requires_grad_()
    assert not losses.td_target(f64(0.0, 0.0), f64(0.9, 0.9), next_value).requires_grad


def test_chosen_picks_the_taken_actions_and_its_gradient_reaches_only_them() -> None:
    q = NEXT_Q_TARGET.clone().requires_grad_()
    picked = losses.chosen(q, torch.tensor([2, 0]))
    assert picked.tolist() == [2.0, -1.0]
    picked.sum().backward()
    assert q.grad is not None
    assert q.grad.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


def test_squared() -> None:
    errors = f64(3.0, -1.0, 0.0, 0.5).requires_grad_()
    loss = losses.squared(errors)
    assert loss.item() == pytest.approx((4.5 + 0.5 + 0.0 + 0.125) / 4)
    loss.backward()
    assert errors.grad is not None
    assert errors.grad.tolist() == [0.75, -0.25, 0.0, 0.125]  # e / B


def test_huber() -> None:
    errors = f64(3.0, -1.0, 0.5, -40.0, 0.0).requires_grad_()
    loss = losses.huber(errors)
    assert loss.item() == pytest.approx((2.5 + 0.5 + 0.125 + 39.5 + 0.0) / 5)
    loss.backward()
    assert errors.grad is not None
    # The TD error clipped to [-1, 1], over B.
    assert errors.grad.tolist() == pytest.approx([0.2, -0.2, 0.1, -0.2, 0.0])


def test_huber_is_torchs_own() -> None:
    errors = 3 * torch.randn(101, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros_like(errors)
    expected = torch.nn.functional.huber_loss(errors, zeros, delta=1.0)
    torch.testing.assert_close(losses.huber(errors), expected)


@pytest.mark.parametrize("wrong", [(5, 1), (1,), (4,), ()])
def test_td_target_refuses_to_broadcast(wrong: tuple[int, ...]) -> None:
    right = torch.zeros(5)
    for position in range(3):
        arguments = [right, right, right]
        arguments[position] = torch.zeros(wrong)
        with pytest.raises(ValueError, match="shapes must be equal"):
            losses.td_target(*arguments)


def test_double_q_refuses_different_shapes() -> None:
    with pytest.raises(ValueError, match="shapes must be equal"):
        losses.double_q(torch.zeros(5, 3), torch.zeros(5, 4))
