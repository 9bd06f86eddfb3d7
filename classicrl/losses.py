"""Losses and targets: pure functions, one equation each.

B is the batch, A the number of actions. Losses are means over the last axis, the batch; leading
axes, if there are any, are networks side by side, each with a loss of its own.
"""

import torch
from torch import Tensor


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """Bootstrapped target ``y = r + discount * v(x')``.

    All ``[..., B]`` float; ``discount`` is 0 where the episode terminated. No gradient flows into
    it.
    """
    _same_shape(reward, discount, next_value)
    return (reward + discount * next_value).detach()


def max_q(next_q_target: Tensor) -> Tensor:
    """Plain Q-learning bootstrap ``max_a Q-(x', a)``; ``[..., B, A] -> [..., B]`` (Mnih et al.
    2015)."""
    return next_q_target.amax(dim=-1)


def double_q(next_q_target: Tensor, next_q_online: Tensor) -> Tensor:
    """Double-Q bootstrap ``Q-(x', argmax_a Q(x', a))``; two ``[..., B, A]`` -> ``[..., B]``.

    The online network chooses, the target network judges (van Hasselt et al. 2016, equation 4).
    """
    _same_shape(next_q_target, next_q_online)
    return chosen(next_q_target, next_q_online.argmax(dim=-1))


def chosen(q: Tensor, action: Tensor) -> Tensor:
    """``Q(x, a)`` of the taken actions; ``[..., B, A]`` and int64 ``[..., B]`` -> ``[..., B]``."""
    return q.gather(-1, action[..., None])[..., 0]


def squared(td_error: Tensor) -> Tensor:
    """``mean 1/2 e^2`` over ``[..., B]`` errors -> ``[...]``."""
    return 0.5 * td_error.square().mean(dim=-1)


def huber(td_error: Tensor) -> Tensor:
    """``mean (1/2 e^2 if |e| <= 1 else |e| - 1/2)`` over ``[..., B]`` errors -> ``[...]``.

    Its gradient is the TD error clipped to [-1, 1], as in Mnih et al. 2015.
    """
    size = td_error.abs()
    return torch.where(size <= 1.0, 0.5 * td_error.square(), size - 0.5).mean(dim=-1)


def va(value: Tensor, advantage: Tensor, target: Tensor) -> Tensor:
    """``mean [ 1/2 (V(x) - y)^2 + 1/2 (A(x,a) - (y - sg V(x)))^2 ]`` -> ``[...]``.

    VA-learning (Tang et al. 2023, arXiv 2305.18161) learns V and A each from the target. So much
    says the paper's abstract; this form of the loss is our reconstruction. With A centred by the
    policy that acted, its gradient and that of ``squared(V + A - y)`` are equal in expectation over
    the actions; without the stop-gradient (sg) on V, the step of V would be doubled.

    Args:
        value: V(x), ``[..., B]``.
        advantage: A(x,a) of the taken actions, centred by the behaviour policy, ``[..., B]``.
        target: y, ``[..., B]``, without gradient.
    """
    _same_shape(value, advantage, target)
    return squared(value - target) + squared(advantage - (target - value.detach()))


def stream_penalty(value: Tensor, advantage: Tensor) -> Tensor:
    """``mean 1/2 [ V(x)^2 + sum_b F(x,b)^2 ]`` -> ``[...]``.

    Regularised dueling Q-learning (arXiv 2507.09523): with Q = V + F alone, V and F are not unique;
    at a given Q the smallest norm has V = sum_b Q(x,b) / (A + 1).

    Args:
        value: V(x), ``[..., B]``.
        advantage: F(x,.), not centred, ``[..., B, A]``.
    """
    _same_shape(value, advantage[..., 0])
    return 0.5 * (value.square() + advantage.square().sum(dim=-1)).mean(dim=-1)


def behaviour_nll(logits: Tensor, action: Tensor) -> Tensor:
    """``- mean log mu(a|x)``: maximum likelihood of the taken actions.

    ``[..., B, A]`` and int64 ``[..., B]`` -> ``[...]``. For uniformly random actions the least
    value is ln A.
    """
    return -chosen(logits.log_softmax(dim=-1), action).mean(dim=-1)


def behaviour_cross_entropy(logits: Tensor, acting: Tensor) -> Tensor:
    """``- mean sum_b m(b) log mu(b|x)``, with m the distribution that the action was drawn from.

    Same minimiser as :func:`behaviour_nll`, less noise. Two ``[..., B, A]`` -> ``[...]``.
    """
    _same_shape(logits, acting)
    return -(acting * logits.log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1)


def ppo_clip(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """``- mean min(ratio A, clip(ratio, 1 - c, 1 + c) A)``, ratio = pi(a|x) / pi_old(a|x).

    Schulman et al. 2017, arXiv 1707.06347, equation 7. Three ``[..., B]`` -> ``[...]``.
    """
    _same_shape(log_prob, old_log_prob, advantage)
    ratio = (log_prob - old_log_prob).exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """``mean - sum_b pi(b|x) log pi(b|x)``, in nats; ``[..., B, A] -> [...]``."""
    log_probs = logits.log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1).mean(dim=-1)


def distillation_error(predicted: Tensor, target: Tensor) -> Tensor:
    """``mean_k (predicted_k - target_k)^2`` of every item; two ``[..., B, F]`` -> ``[..., B]``.

    The error of random network distillation, and its intrinsic reward (Burda et al. 2018, arXiv
    1810.12894, section 2.2; there a squared norm, F times as large).
    """
    _same_shape(predicted, target)
    return (predicted - target).square().mean(dim=-1)


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) != 1:
        # Broadcasting [B] with [B, 1] would silently give a [B, B] loss.
        raise ValueError(f"shapes must be equal, got {sorted(shapes)}")
