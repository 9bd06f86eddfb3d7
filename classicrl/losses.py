"""Losses and targets: pure functions, one equation each.

B is the batch, A the number of actions. Losses are means over the last axis, the batch; leading
axes, if there are any, are networks side by side, each with a loss of its own.
"""

import math

import torch
from torch import Tensor


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """Bootstrapped target ``y = r + discount * v(x')``.

    All ``[..., B]`` float; ``discount`` is 0 where the episode terminated. No gradient flows into
    it.

    >>> td_target(torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.0]), torch.tensor([2.0, 2.0]))
    tensor([2.8000, 1.0000])
    """
    _same_shape(reward, discount, next_value)
    return (reward + discount * next_value).detach()


def max_q(next_q_target: Tensor) -> Tensor:
    """Plain Q-learning bootstrap ``max_a Q-(x', a)``; ``[..., B, A] -> [..., B]`` (Mnih et al.
    2015).

    >>> max_q(torch.tensor([[1.0, 3.0], [2.0, -1.0]]))
    tensor([3., 2.])
    """
    return next_q_target.amax(dim=-1)


def double_q(next_q_target: Tensor, next_q_online: Tensor) -> Tensor:
    """Double-Q bootstrap ``Q-(x', argmax_a Q(x', a))``; two ``[..., B, A]`` -> ``[..., B]``.

    The online network chooses, the target network judges (van Hasselt et al. 2016, equation 4).

    >>> double_q(torch.tensor([[1.0, 3.0]]), torch.tensor([[9.0, 8.0]]))  # online picks action 0
    tensor([1.])
    """
    _same_shape(next_q_target, next_q_online)
    return chosen(next_q_target, next_q_online.argmax(dim=-1))


def chosen(q: Tensor, action: Tensor) -> Tensor:
    """``Q(x, a)`` of the taken actions; ``[..., B, A]`` and int64 ``[..., B]`` -> ``[..., B]``.

    >>> chosen(torch.tensor([[1.0, 3.0], [2.0, -1.0]]), torch.tensor([1, 0]))
    tensor([3., 2.])
    """
    return q.gather(-1, action[..., None])[..., 0]


def squared(td_error: Tensor) -> Tensor:
    """``mean 1/2 e^2`` over ``[..., B]`` errors -> ``[...]``."""
    return 0.5 * td_error.square().mean(dim=-1)


def huber(td_error: Tensor) -> Tensor:
    """``mean (1/2 e^2 if |e| <= 1 else |e| - 1/2)`` over ``[..., B]`` errors -> ``[...]``.

    Its gradient is the TD error clipped to [-1, 1], as in Mnih et al. 2015.

    >>> huber(torch.tensor([0.5, 3.0]))  # the mean of 0.125 and 2.5
    tensor(1.3125)
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
        advantage: A(x,a) of the taken actions, centred by the behaviour policy, ``[..., B]``; or
            F(x,a), not centred, as in VA-learning's tables.
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


def fitted_centre(centre: Tensor, advantage: Tensor) -> Tensor:
    """``mean 1/2 (C(x) - F(x,a))^2``: C becomes the mean of F over the actions taken.

    With the advantage A(x,a) = F(x,a) - C(x) of the taken actions, ``[..., B]`` both -> ``[...]``.
    Only the centre gets a gradient. Least squares leave no mean of A that the features of C could
    tell, which a centre made of an estimated policy does (docs/va_and_dueling.md).
    """
    _same_shape(centre, advantage)
    return squared(centre - (advantage + centre).detach())


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


# -- Symphony (arXiv 2512.10477); docs/symphony.md has the provenance of each name -----------------


def smooth_huber(error: Tensor) -> Tensor:
    """``H(x) = x tanh(x/2)``, elementwise: near ``x^2 / 2`` for small ``x``, ``|x|`` for large.

    The regression loss of Symphony's critics ("Rectified Huber Symmetric Error").
    """
    return error * torch.tanh(0.5 * error)


def signed_smooth_huber(x: Tensor) -> Tensor:
    """``J(x) = |x| tanh(x/2)``, elementwise: odd, with the size of :func:`smooth_huber`.

    What Symphony's actor makes large ("Rectified Huber Asymmetric Error").
    """
    return x.abs() * torch.tanh(0.5 * x)


def value_baseline(next_value: Tensor, value_ema: Tensor, ema_decay: float) -> Tensor:
    """``base = a V + (1 - a) sg(Q')``: ``[B]`` and the running mean V, a scalar -> ``[B]``.

    The mean of the result is the next V. No gradient flows into it.
    """
    return ema_decay * value_ema + (1.0 - ema_decay) * next_value.detach()


def normalized_advantage(next_value: Tensor, baseline: Tensor, floor: float = 1e-3) -> Tensor:
    """``(Q' - base) / max(|base|, floor)``: two ``[B]`` -> ``[B]``; the gradient is Q' 's alone.

    Symphony's temporal advantage. Its authors have no floor: where values are near zero the
    quotient then grows without bound.
    """
    _same_shape(next_value, baseline)
    baseline = baseline.detach()
    return (next_value - baseline) / baseline.abs().clamp_min(floor)


def action_scale_regularizer(gain: Tensor, temperature: Tensor) -> Tensor:
    """``mean[ O(s^(1/sg b)) + b w(s) + O(b^2) ]`` over all elements -> scalar.

    Here ``O(x) = ln((1+x)/(1-x))`` and ``w(x) = x ln x``.

    Symphony's "Swaddling" regularisation: by itself it leads to s = 0.3639, b = 0.0920. The
    temperature b is detached in the first term only.

    Args:
        gain: s, in (0, 1).
        temperature: b, in (0, 1), of the same shape.
    """
    _same_shape(gain, temperature)
    sharpened = gain.pow(temperature.detach().reciprocal())
    # O(x) = 2 artanh(x)
    terms = 2.0 * (torch.atanh(sharpened) + torch.atanh(temperature.square()))
    return (terms + temperature * gain * gain.log()).mean()


def head_weights(num_heads: int) -> Tensor:
    """``w_k / sum w`` with ``w_k = tanh((pi (1 - k/n))^e)``, k = 0 .. n - 1: float64 ``[n]``.

    Flat over the lower half, then falling: a soft drop of the highest quarter.
    """
    k = torch.arange(num_heads, dtype=torch.float64)
    weights = torch.tanh((math.pi * (1.0 - k / num_heads)) ** math.e)
    return weights / weights.sum()


def soft_truncated_q(heads: Tensor, weights: Tensor) -> Tensor:
    """Heads, sorted ascending, times :func:`head_weights`: ``[B, n]``, ``[n]`` -> ``[B]``.

    The gradient of a head is the weight of its rank, so only the order is needed, not a sort that
    can be differentiated.
    """
    values = heads.detach()
    if values.device.type == "cpu":
        # NumPy's sort takes a quarter of the time of torch's.
        order = torch.from_numpy(values.numpy().argsort(axis=-1))
    else:
        order = values.argsort(dim=-1)
    by_head = torch.empty_like(values).scatter_(-1, order, weights.expand_as(values))
    return (heads * by_head).sum(dim=-1)


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) != 1:
        # Broadcasting [B] with [B, 1] would silently give a [B, B] loss.
        raise ValueError(f"shapes must be equal, got {sorted(shapes)}")
