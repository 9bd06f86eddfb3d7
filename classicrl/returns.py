"""Returns: pure functions of reward sequences."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def n_step_return(
    reward: NDArray[np.float32],
    terminated: NDArray[np.bool_],
    ended: NDArray[np.bool_],
    gamma: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Discounted sum over at most n steps, cut where the episode stops inside the window.

        R = sum_{j<k} gamma^j r_j,    discount = gamma^k, or 0 if step k-1 terminated,

    where k is the first step that terminated or ended, counted from one, or n if none did
    (Sutton & Barto, 2nd edition, equation 7.1, with the bootstrap left to the caller).

    Args:
        reward: float32 ``[B, n]``.
        terminated: bool ``[B, n]``, the value stops after this step.
        ended: bool ``[B, n]``, the episode stops after this step (for a time limit: without
            ``terminated``, so the bootstrap remains).
        gamma: discount per step.

    Returns:
        The sum, float32 ``[B]``; the discount of the bootstrap value, float32 ``[B]``; and k,
        int64 ``[B]``.
    """
    if not reward.shape == terminated.shape == ended.shape or reward.ndim != 2:
        raise ValueError(
            "reward, terminated and ended must share one shape [B, n], got "
            f"{reward.shape}, {terminated.shape}, {ended.shape}"
        )
    n = reward.shape[1]
    if n == 1:  # what is left of the sum, at a fraction of its cost
        discount = np.where(terminated[:, 0], 0.0, gamma).astype(np.float32)
        return reward[:, 0].astype(np.float32), discount, np.ones(len(reward), dtype=np.int64)
    stopped = terminated | ended
    # Step j counts if no earlier step of the window stopped.
    counts = np.ones_like(stopped)
    counts[:, 1:] = ~np.logical_or.accumulate(stopped[:, :-1], axis=1)
    powers = np.power(gamma, np.arange(n + 1))
    k = counts.sum(axis=1)
    summed = (reward * counts * powers[:n]).sum(axis=1)
    bootstraps = ~(terminated & counts).any(axis=1)
    discount = powers[k] * bootstraps
    return summed.astype(np.float32), discount.astype(np.float32), k


def gae(reward: Tensor, discount: Tensor, value: Tensor, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, equation 16).

        delta_t = r_t + discount_t V(x_{t+1}) - V(x_t),    A_t = delta_t + discount_t lambda A_{t+1}

    A discount of 0 says that nothing follows: an episode that terminated. One that is never 0 makes
    a stream that knows no episodes, such as the intrinsic one of Burda et al. 2018.

    Args:
        reward: float ``[T, N]``.
        discount: float ``[T, N]``, gamma or 0.
        value: float ``[T + 1, N]``, the last row of what follows the last step.
        gae_lambda: lambda in [0, 1].

    Returns:
        Float ``[T, N]``; A + V is the value's target.

    >>> gae(torch.ones(3, 1), torch.tensor([[0.5], [0.5], [0.0]]), torch.zeros(4, 1), 1.0)[:, 0]
    tensor([1.7500, 1.5000, 1.0000])
    """
    if not reward.shape == discount.shape == value[1:].shape or reward.ndim != 2:
        raise ValueError(
            "reward and discount must be [T, N] and value [T + 1, N], got "
            f"{tuple(reward.shape)}, {tuple(discount.shape)}, {tuple(value.shape)}"
        )
    delta = reward + discount * value[1:] - value[:-1]
    decay = gae_lambda * discount
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        following = delta[t] + decay[t] * following
        advantage[t] = following
    return advantage


def discounted_filter(reward: Tensor, state: Tensor, gamma: float) -> Tensor:
    """Discounted sums of past rewards, ``f_t = gamma f_{t-1} + r_t``, over time, per environment.

    Burda et al. 2018 (arXiv 1810.12894, section 2.4) divide intrinsic rewards by the standard
    deviation of these sums.

    Args:
        reward: float ``[T, N]``, time first: the filter never runs over environments.
        state: float ``[N]``, f of the step before; the last row of the result continues it.
        gamma: discount per step.

    Returns:
        Float ``[T, N]``.

    >>> discounted_filter(torch.ones(3, 1), torch.zeros(1), gamma=0.5)[:, 0]
    tensor([1.0000, 1.5000, 1.7500])
    """
    if reward.ndim != 2 or state.shape != reward.shape[1:]:
        raise ValueError(
            f"expected rewards [T, N] and a state [N], got {tuple(reward.shape)}, "
            f"{tuple(state.shape)}"
        )
    sums = torch.empty_like(reward)
    for t, row in enumerate(reward):
        state = gamma * state + row
        sums[t] = state
    return sums
