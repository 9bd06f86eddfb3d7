"""Values of a long horizon from those of a short one: Taylor expansion of discount factors.

Y. Tang, M. Rowland, R. Munos, M. Valko, *Taylor Expansion of Discount Factors*, ICML 2021
(arXiv 2106.06170): objectives that interpolate the values of two discounts. That idea is the
paper's. The formulas here are derived for this package and not quoted from it, and the learned
heads are a design of this package.

Values are learned with the discount g, those of g' > g are wanted. With P the transitions under
the policy and V_g its values, the K-th order estimate is

    V_K = sum_{k=0}^K (g' - g)^k [(I - g P)^-1 P]^k V_g,    V_0 = V_g,    V_K -> V_g' for K -> inf,

    max |V_g' - V_K| <= ((g' - g) / (1 - g))^(K+1) max |r| / (1 - g').

K is ``order``, g ``gamma`` and g' ``target_gamma``, with 0 <= gamma < target_gamma < 1.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DEFAULT_ORDER = 1


def taylor_weights(
    num_steps: int, order: int, gamma: float, target_gamma: float
) -> NDArray[np.float64]:
    """The weight of each reward in the K-th order estimate, ``V_K = E sum_t w_K(t) r_t``.

        w_K(t) = sum_{k=0}^{min(K, t)} C(t, k) (g' - g)^k g^(t-k)

    It is g^t for K = 0, and g'^t as long as t <= K. It is summed without large binomials or
    cancellation: exact to rounding for any t.

    Returns:
        float64 ``[num_steps]``, t = 0 first.

    Raises:
        ValueError: ``num_steps < 1``, ``order < 0``, or discounts that do not fit.
    """
    _check_order(order)
    _check_discounts(gamma, target_gamma)
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    # The terms of one t, by Pascal's rule: s_k(t+1) = g s_k(t) + (g' - g) s_{k-1}(t).
    terms = np.zeros(min(order, num_steps - 1) + 1)
    terms[0] = 1.0
    weights = np.empty(num_steps)
    for t in range(num_steps):
        weights[t] = terms.sum()
        moved = (target_gamma - gamma) * terms[:-1]
        terms *= gamma
        terms[1:] += moved
    return weights


def taylor_coefficients(order: int, gamma: float, target_gamma: float) -> NDArray[np.float64]:
    """``((g' - g) / (1 - g))^k`` for k = 0..K, float64 ``[K + 1]``; all in (0, 1].

    What the k-th term is multiplied with, in ``combine`` and in ``sampled_estimate``.

    Raises:
        ValueError: ``order < 0``, or discounts that do not fit.
    """
    _check_order(order)
    return np.power(_ratio(gamma, target_gamma), np.arange(order + 1))


def sample_delays(
    rng: np.random.Generator, shape: int | tuple[int, ...], gamma: float
) -> NDArray[np.int64]:
    """Geometric delays in steps, ``P(tau = t) = (1 - g) g^(t-1)``, t >= 1; int64 ``shape``.

    Raises:
        ValueError: ``gamma`` is not in [0, 1).
    """
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"need 0 <= gamma < 1, got {gamma}")
    return rng.geometric(1.0 - gamma, size=shape).astype(np.int64, copy=False)


def sampled_estimate(
    values: Tensor | Callable[[Tensor], Tensor],
    delays: Tensor | NDArray[np.int64],
    gamma: float,
    target_gamma: float,
) -> Tensor:
    """The K-th order estimate from the values along one trajectory and K random delays.

        sum_{k=0}^K ((g' - g) / (1 - g))^k V_g(x_{tau_1 + ... + tau_k})

    Its mean over trajectories and delays is V_K(x_0). With Q_g(x_0, a_0) at offset 0, which only
    the first term reads, it is Q_K(x_0, a_0): Q_1 = Q_g + ((g' - g) / (1 - g)) E V_g(x_tau).

    Args:
        values: float ``[..., T + 1]``, the values of x_0..x_T, 0 from the terminal state on. The
            last stands for all that follow: exact after termination, and where the trajectory was
            cut off a bias, small if T is many times K / (1 - g). Or a function from offsets, int64
            ``[..., K + 1]``, to their values, a float tensor of that shape.
        delays: int64 ``[..., K]`` of ``sample_delays``, with the leading dimensions of ``values``.
        gamma: the discount of ``values`` and of the delays.
        target_gamma: the discount that is wanted.

    Returns:
        float ``[...]``; gradients flow into ``values``.

    Raises:
        ValueError: shapes or discounts that do not fit, or delays that are not integers >= 1.
    """
    _check_discounts(gamma, target_gamma)
    delays = torch.as_tensor(delays)
    if delays.ndim == 0 or delays.dtype != torch.int64 or bool((delays < 1).any()):
        raise ValueError(f"delays must be int64 [..., K], all >= 1, got {_described(delays)}")
    start = delays.new_zeros((*delays.shape[:-1], 1))
    offsets = torch.cat([start, delays.cumsum(-1)], dim=-1)
    if isinstance(values, Tensor):
        if values.ndim == 0 or values.shape[-1] == 0 or values.shape[:-1] != delays.shape[:-1]:
            raise ValueError(
                "values [..., T + 1] and delays [..., K] must share their leading dimensions, got "
                f"{tuple(values.shape)}, {tuple(delays.shape)}"
            )
        offsets = offsets.to(values.device).clamp(max=values.shape[-1] - 1)
        terms = values.gather(-1, offsets)
    else:
        terms = values(offsets)
        if terms.shape != offsets.shape:
            raise ValueError(
                f"values must keep the shape of the offsets, {tuple(offsets.shape)}, "
                f"got {tuple(terms.shape)}"
            )
    # Term k is one draw of head k.
    return combine(terms, gamma, target_gamma)


def taylor_targets(
    reward: Tensor, discount: Tensor, next_value_heads: Tensor, gamma: float
) -> Tensor:
    """One-step targets of the K + 1 heads whose ``combine`` is V_K.

    The heads are U_0 = V_g and U_k(x) = E[U_{k-1}(x') + g U_k(x')], so that V_K is the sum of
    (g' - g)^k U_k. U_k grows like (1 - g)^-(k+1), so what is stored and learned is
    W_k = (1 - g)^k U_k, all heads on the scale of V_g:

        y_0 = r + discount W_0(x'),    y_k = discount [W_k(x') + ((1 - g) / g) W_{k-1}(x')].

    A design of classicrl. The targets hold for the policy whose values ``next_value_heads`` are;
    in control take all heads at the greedy action of ``combine``.

    Args:
        reward: float ``[...]`` of one step.
        discount: float ``[...]``, ``gamma``, or 0 where the episode terminated, which cuts all
            heads. Not the gamma^n of n-step returns: the heads k > 0 would need the states between.
        next_value_heads: float ``[..., K + 1]``, W_k(x').
        gamma: the discount that is learned with; not 0, where ``discount`` cannot tell
            termination.

    Returns:
        float ``[..., K + 1]``; no gradient flows into it.

    Raises:
        ValueError: shapes that do not fit, or ``gamma`` not in (0, 1).
    """
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"need 0 < gamma < 1, got {gamma}")
    heads = next_value_heads
    if heads.ndim == 0 or heads.shape[-1] == 0:
        raise ValueError(f"next_value_heads must be [..., K + 1], got {tuple(heads.shape)}")
    if not reward.shape == discount.shape == heads.shape[:-1]:
        # Broadcasting would pair rewards with other rows' values.
        raise ValueError(
            "reward [...], discount [...] and next_value_heads [..., K + 1] must share their "
            f"leading dimensions, got {tuple(reward.shape)}, {tuple(discount.shape)}, "
            f"{tuple(heads.shape)}"
        )
    first = reward + discount * heads[..., 0]
    others = discount[..., None] * (heads[..., 1:] + (1.0 - gamma) / gamma * heads[..., :-1])
    return torch.cat([first[..., None], others], dim=-1).detach()


def combine(heads: Tensor, gamma: float, target_gamma: float) -> Tensor:
    """The K-th order estimate of the scaled heads; ``[..., K + 1] -> [...]``, gradients flow.

        V_K = sum_k (g' - g)^k U_k = sum_k ((g' - g) / (1 - g))^k W_k,    W_k = (1 - g)^k U_k

    Heads of actions, ``[B, A, K + 1]``, give the Q_K of each. The first heads alone give a lower
    order.

    Raises:
        ValueError: no heads, or discounts that do not fit.
    """
    ratio = _ratio(gamma, target_gamma)
    if heads.ndim == 0 or heads.shape[-1] == 0:
        raise ValueError(f"heads must be [..., K + 1], got {tuple(heads.shape)}")
    # Horner's rule: no tensor of coefficients, hence no copy to the device.
    total, *rest = reversed(heads.unbind(-1))
    for head in rest:
        total = head + ratio * total
    return total


def _ratio(gamma: float, target_gamma: float) -> float:
    _check_discounts(gamma, target_gamma)
    return (target_gamma - gamma) / (1.0 - gamma)


def _check_discounts(gamma: float, target_gamma: float) -> None:
    if not 0.0 <= gamma < target_gamma < 1.0:
        raise ValueError(f"need 0 <= gamma < target_gamma < 1, got {gamma}, {target_gamma}")


def _check_order(order: int) -> None:
    if order < 0:
        raise ValueError(f"order must be at least 0, got {order}")


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
