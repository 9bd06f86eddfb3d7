"""A puzzle domain of your own, a network for it and Q* search: the example of docs/new_domain.md.

TopSpin: n numbered tokens on a ring. The ring can be shifted by one place either way, and the first
four tokens can be turned round. It is solved when the tokens stand in order from the first place
on.

    python docs/examples/top_spin.py --updates 1000
"""

import dataclasses

from classicrl.command_line import exit_with, parse, require_positive


@dataclasses.dataclass(frozen=True)
class Config:
    tokens: int = 8  # on the ring, 6 to 20
    updates: int = 1_000  # of the network
    puzzles: int = 5  # random ones to solve
    seed: int = 0  # of weights, walks and puzzles


if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    command_line = parse({"default": Config()}, "default", __doc__ or "")

import torch
from torch import Tensor

from classicrl.algorithms.q_iteration import QIterationLearner
from classicrl.domains import no_undo, random_walks
from classicrl.errors import UserError
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.search import Solution, qstar

TURNED = 4  # tokens that are turned round at once
LEFT, RIGHT, TURN = 0, 1, 2


class TopSpin:
    """Tokens 0..n-1 from the first place on, one byte each: states ``[B, n]`` uint8.

    Actions 0 and 1 shift the ring to the left and to the right, 2 turns the first four tokens
    round. Each costs 1. It fits the protocol ``classicrl.search.Domain``.

    Args:
        num_tokens: n, 6..20.

    Raises:
        ValueError: ``num_tokens`` is out of range.
    """

    def __init__(self, num_tokens: int = 8) -> None:
        if not 6 <= num_tokens <= 20:
            raise ValueError(f"a ring has 6 to 20 tokens, not {num_tokens}")
        place = torch.arange(num_tokens)
        # The token that stands at each place after an action stood at these places before, [A, n].
        self._source = torch.stack([place.roll(-1), place.roll(1), place])
        self._source[TURN, :TURNED] = place[:TURNED].flip(0)
        self.goal = place.to(torch.uint8)
        self.costs = torch.ones(3)
        self.inverse: Tensor | None = torch.tensor([RIGHT, LEFT, TURN])

    def apply(self, states: Tensor, actions: Tensor) -> Tensor:
        """States ``[B, n]`` and an action each ``[B]`` int64: the states after them ``[B, n]``."""
        return states.gather(1, self._source[actions])

    def is_goal(self, states: Tensor) -> Tensor:
        """Which of the states ``[B, n]`` are in order, ``[B]`` bool."""
        return (states == self.goal).all(1)

    def legal(self, states: Tensor) -> None:
        """Every action can be taken everywhere."""


def train(domain: TopSpin, num_updates: int, seed: int) -> QIterationLearner:
    """A network of Q, taught by random walks from the goal.

    After k steps of a walk the goal is at most k away: by the step back it costs at most k, by the
    step on at most k + 2.
    """
    n, generator = len(domain.goal), torch.Generator().manual_seed(seed)
    offsets = [place * n for place in range(n)]  # a row of the embedding for each token and place
    network = ByteQNetwork(
        offsets, n * n, 3, embedding_size=256, hidden_size=64, generator=generator
    )
    learner = QIterationLearner(network, learning_rate=1e-3)
    assert domain.inverse is not None
    follows = no_undo(domain.inverse)
    steps, count = 4 * n, 20
    for _ in range(num_updates):
        walks = random_walks(domain, domain.goal, follows, count, steps + 1, generator)
        states = walks.states[:, 1:-1].flatten(0, 1)  # [count * steps, n]
        back, on = domain.inverse[walks.actions[:, :-1]], walks.actions[:, 1:]
        k = torch.arange(1.0, steps + 1).repeat(count)
        actions = torch.stack([back.flatten(), on.flatten()], dim=1)
        learner.update_walk(states, actions, torch.stack([k, k + 2], dim=1))
    return learner


def solve(domain: TopSpin, learner: QIterationLearner, start: Tensor) -> Solution:
    """Q* search from one state ``[n]``; every path is replayed before it is returned."""
    return qstar(domain, learner.action_values, start, weight=0.8, batch_size=100)


def main(config: Config) -> None:
    """Trains, then solves random puzzles."""
    require_positive(config, may_be_zero={"seed"})
    try:
        domain = TopSpin(config.tokens)
    except ValueError as error:
        raise UserError(f"--tokens: {error}") from error
    torch.set_num_threads(1)
    learner = train(domain, config.updates, config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    # Walked to, not drawn: with an odd number of tokens half of all orders cannot be reached.
    follows = no_undo(torch.tensor([RIGHT, LEFT, TURN]))
    walks = random_walks(domain, domain.goal, follows, config.puzzles, 200, generator)
    for start in walks.states[:, -1]:
        found = solve(domain, learner, start)
        moves = "".join("<>T"[action] for action in found.actions)
        print(
            f"{start.tolist()}  {moves}  [{found.path_cost:.0f} moves, {found.num_generated} nodes]"
        )


if __name__ == "__main__":
    exit_with(main, command_line)
