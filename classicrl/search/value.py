"""Searches with a value function V(s) alone, in place of Q(s,a)."""

from collections.abc import Callable

import torch
from torch import Tensor

from classicrl.search.domain import Domain
from classicrl.search.solution import QFunction

ValueFunction = Callable[[Tensor], Tensor]
"""States uint8 [B, S] -> estimated costs to the goal, float32 [B]."""

_CHILDREN_AT_ONCE = 1 << 16


def value_of_every_action(domain: Domain, value_function: ValueFunction) -> QFunction:
    """V(s) in the place of every Q(s,a): what A* and deferred A* search with.

    They look at nothing but the least value of a row, which is V(s) then.
    """
    num_actions = len(domain.costs)

    def q_function(states: Tensor) -> Tensor:
        return _one_for_each(value_function, states)[:, None].expand(-1, num_actions)

    return q_function


def q_of_children(domain: Domain, value_function: ValueFunction) -> QFunction:
    """``Q(s,a) = c(s,a) + V(A(s,a))``, 0 in place of V at goals: for Q* and beams, and to act.

    It makes all children and asks V about each of them: that is what a network of Q saves. Searches
    count the parents as evaluated. Every action is applied, also those that are not legal; searches
    then leave these out.
    """
    costs = domain.costs
    at_once = max(1, _CHILDREN_AT_ONCE // len(costs))
    every = torch.arange(len(costs), device=costs.device)

    def q_function(states: Tensor) -> Tensor:
        rows = []
        for part in torch.split(states, at_once):
            parents = part.repeat_interleave(len(costs), 0)
            children = domain.apply(parents, every.repeat(len(part)))
            value = _one_for_each(value_function, children)
            value = torch.where(domain.is_goal(children), 0.0, value)
            rows.append(costs + value.view(len(part), len(costs)))
        return torch.cat(rows)

    return q_function


def _one_for_each(value_function: ValueFunction, states: Tensor) -> Tensor:
    """V of states [B, S]: [B].

    Raises:
        ValueError: it is of another shape, such as the [B, 1] of a network with one output.
    """
    value = value_function(states)
    if value.shape != states.shape[:1]:
        raise ValueError(
            f"the value function gave {list(value.shape)} for {len(states)} states, not "
            f"[{len(states)}]"
        )
    return value
