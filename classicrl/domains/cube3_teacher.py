"""Labels for sequences of turns on the cube, from a network that judges single turns.

Q of 12 actions says of every state how many quarter turns are left after each turn. Asked about the
state after all but the last turn of a sequence, it labels twelve sequences in one pass:

    Q(s, abc) -> 1 + (Q12(s after ab, c) - 1) / m        m: the most turns of an action

An action takes away at most m quarter turns, so d turns need at least d / m actions. The fraction
tells apart states that a whole number of actions would not.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from classicrl.domains.cube3 import Cube3
from classicrl.search.nodes import Perimeter
from classicrl.search.solution import QFunction

_TURNS = 12


class TaughtLabels(NamedTuple):
    """Costs to the solved cube by some actions of B states.

    Attributes:
        actions: [B, J] int64; -1 where there is none.
        labels: [B, J] float32.
        weights: of their squared errors, [B, J] float32.
    """

    actions: Tensor
    labels: Tensor
    weights: Tensor


class TurnTeacher:
    """Labels some actions of a state, and with each all that begin like it.

    Args:
        domain: whose actions get labels: sequences of up to two or three turns.
        q_of_turns: of the 12 quarter turns, [B, 20] -> [B, 12].
        ball: of quarter turns, where distances are known; None for none.
        generator: on the domain's device.

    Raises:
        ValueError: the domain's actions are single turns.
    """

    def __init__(
        self,
        domain: Cube3,
        q_of_turns: QFunction,
        ball: Perimeter | None,
        generator: torch.Generator,
    ) -> None:
        if domain.max_turns < 2:
            raise ValueError("sequences of turns are taught, not single turns")
        self._domain, self._q_of_turns = domain, q_of_turns
        self._ball, self._generator = ball, generator
        # Beginnings: nothing, and all sequences that are a turn shorter than the longest.
        self._shorter = Cube3(_TURNS if domain.max_turns == 2 else 156, device=domain.device)
        beginnings: list[tuple[int, ...]] = [(), *self._shorter.sequences]
        action_of = domain.action_of_turns().tolist()
        actions = []
        for beginning in beginnings:
            unused = [_TURNS] * (2 - len(beginning))
            rows = [[*beginning, turn, *unused] for turn in range(_TURNS)]
            actions.append([action_of[first][second][third] for first, second, third in rows])
        self._actions = torch.tensor(actions, device=domain.device)  # [P, 12], -1: does nothing
        # What is written with the fewest turns, and first among equals, begins with such, too.
        of_action = [beginnings.index(sequence[:-1]) for sequence in domain.sequences]
        self._beginning_of = torch.tensor(of_action, device=domain.device)

    def labels(self, states: Tensor, chosen: Tensor) -> TaughtLabels:
        """Labels of chosen actions, of those that differ in the last turn only, and of a random 12.

        The chosen ones weigh as much together as all labels do: a search believes the lowest of
        Q, so their errors do the harm. In the ball their labels are exact, beyond it at least its
        radius.

        Args:
            states: [B, 20] uint8.
            chosen: actions, [B, C] int64.

        Returns:
            J = 12 (C + 1) labels of each state.
        """
        B, C = chosen.shape
        m = self._domain.max_turns
        count = (B, 1)
        other = torch.randint(
            len(self._actions), count, generator=self._generator, device=states.device
        )
        beginning = torch.cat((self._beginning_of[chosen], other), 1)  # [B, C + 1]
        actions = self._actions[beginning]  # [B, C + 1, 12]

        begun = states[:, None].expand(B, C + 1, -1).flatten(0, 1)
        after = self._shorter.apply(begun, (beginning.flatten() - 1).clamp(min=0))
        begun = torch.where(beginning.view(-1, 1) > 0, after, begun)
        with torch.inference_mode():
            turns_left = (self._q_of_turns(begun) - 1.0).clamp(min=0.0)
        labels = 1.0 + turns_left.view_as(actions) / m

        is_chosen = actions[:, :C] == chosen[..., None]  # [B, C, 12]
        if self._ball is not None:
            before = states[:, None].expand(B, C, -1).flatten(0, 1)
            children = self._domain.apply(before, chosen.flatten())
            known = self._ball.distance(children, self._ball.hashes(children))[0].view(B, C, 1)
            taught = labels[:, :C]
            beyond = taught.clamp(min=1.0 + (self._ball.depth + 1) / m)
            exact = torch.where(known.isinf(), beyond, 1.0 + known / m)
            labels[:, :C] = torch.where(is_chosen, exact, taught)
        weights = torch.ones_like(labels)
        weights[:, :C] += is_chosen * (_TURNS * (C + 1) / C)
        return TaughtLabels(actions.flatten(1), labels.flatten(1), weights.flatten(1))
