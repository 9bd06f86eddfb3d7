"""Returns: pure functions of reward sequences."""

import numpy as np
from numpy.typing import NDArray


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
