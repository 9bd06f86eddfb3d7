"""Losses and targets: pure functions, one equation each.

B is the batch, A the number of actions.
"""

import torch
from torch import Tensor


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """Bootstrapped target ``y = r + discount * v(x')``.

    All ``[B]`` float; ``discount`` is 0 where the episode terminated. No gradient flows into it.
    """
    _same_shape(reward, discount, next_value)
    return (reward + discount * next_value).detach()


def max_q(next_q_target: Tensor) -> Tensor:
    """Plain Q-learning bootstrap ``max_a Q-(x', a)``; ``[B, A] -> [B]`` (Mnih et al. 2015)."""
    return next_q_target.amax(dim=1)


def double_q(next_q_target: Tensor, next_q_online: Tensor) -> Tensor:
    """Double-Q bootstrap ``Q-(x', argmax_a Q(x', a))``; two ``[B, A]`` -> ``[B]``.

    The online network chooses, the target network judges (van Hasselt et al. 2016, equation 4).
    """
    _same_shape(next_q_target, next_q_online)
    return chosen(next_q_target, next_q_online.argmax(dim=1))


def chosen(q: Tensor, action: Tensor) -> Tensor:
    """``Q(x, a)`` of the taken actions; ``[B, A]`` and int64 ``[B]`` -> ``[B]``."""
    return q.gather(1, action[:, None])[:, 0]


def squared(td_error: Tensor) -> Tensor:
    """``mean 1/2 e^2`` over ``[B]`` errors, a scalar."""
    return 0.5 * td_error.square().mean()


def huber(td_error: Tensor) -> Tensor:
    """``mean (1/2 e^2 if |e| <= 1 else |e| - 1/2)`` over ``[B]`` errors, a scalar.

    Its gradient is the TD error clipped to [-1, 1], as in Mnih et al. 2015.
    """
    size = td_error.abs()
    return torch.where(size <= 1.0, 0.5 * td_error.square(), size - 0.5).mean()


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) != 1:
        # Broadcasting [B] with [B, 1] would silently give a [B, B] loss.
        raise ValueError(f"shapes must be equal, got {sorted(shapes)}")
