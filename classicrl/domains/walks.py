"""Random walks from the goal: states whose distance is known to be at most the steps taken."""

from typing import NamedTuple

import torch
from torch import Tensor

from classicrl.search.domain import Domain


class Walks(NamedTuple):
    """W walks of K steps.

    Attributes:
        states: after 0..K steps, [W, K + 1, S] uint8; ``states[:, 0]`` is the goal.
        actions: of each step, [W, K] int64.
    """

    states: Tensor
    actions: Tensor


def random_walks(
    domain: Domain,
    goal: Tensor,
    follows: Tensor,
    count: int,
    length: int,
    generator: torch.Generator,
) -> Walks:
    """Walks of uniformly drawn actions, as far as ``follows`` lets them.

    Args:
        goal: where they begin, [S] uint8.
        follows: may the action come after these two, [A + 1, A + 1, A] bool: the one before last,
            the last, the action; index A stands for none. At least one must be allowed.
        count, length: W and K.
        generator: on the device of ``goal``.
    """
    none = follows.shape[-1]
    last = before = torch.full((count,), none, device=goal.device)
    states, actions = [goal.repeat(count, 1)], []
    weights = follows.float()
    for _ in range(length):
        action = torch.multinomial(weights[before, last], 1, generator=generator)[:, 0]
        states.append(domain.apply(states[-1], action))
        actions.append(action)
        before, last = last, action
    return Walks(torch.stack(states, 1), torch.stack(actions, 1))


def no_undo(inverse: Tensor) -> Tensor:
    """``follows`` of walks that never take back the step before, [A + 1, A + 1, A] bool.

    Args:
        inverse: the action that undoes each one, [A] int64.
    """
    num_actions = len(inverse)
    follows = torch.ones(num_actions + 1, num_actions + 1, num_actions, dtype=torch.bool)
    follows[:, torch.arange(num_actions), inverse.cpu()] = False
    return follows.to(inverse.device)
