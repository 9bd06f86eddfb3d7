"""Whoever can be played again from a model file: agents of games, networks for the cube."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from classicrl.agent_file import evaluator_of, load_agent
from classicrl.checkpoint import load_model
from classicrl.cube_solver import CUBE_PROTOCOL, CubeEvaluator, load_network
from classicrl.errors import UserError
from classicrl.evaluation import Evaluation


class Player(NamedTuple):
    """A model file, ready to play.

    Attributes:
        agent, env_id, protocol, step: what the file says of itself.
        play: that many games; None if it was stopped.
    """

    agent: str
    env_id: str
    protocol: str
    step: int
    play: Callable[[int], Evaluation | None]


def player_of(
    path: Path,
    *,
    seed: int = 0,
    epsilon: float | None = None,
    max_frames: int | None = None,
    device: str = "cpu",
    num_threads: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Player:
    """The player of a model file; arguments as for :func:`classicrl.agent_file.evaluator_of`.

    Raises:
        UserError: the file is missing, damaged, or nothing that can be played.
    """
    if load_model(path)[1].get("domain") == "cube3":
        network = load_network(path, device)
        step = network.card.get("step", "")
        if not step.isdecimal():
            raise UserError(f"{path} names the training step {step!r}, not a number")
        play = CubeEvaluator(network, seed=seed, should_stop=should_stop).play
        agent = network.card.get("agent", "")
        return Player(agent, network.domain.name, CUBE_PROTOCOL, int(step), play)
    trained = load_agent(path, device)
    evaluator = evaluator_of(
        trained,
        seed=seed,
        epsilon=epsilon,
        max_frames=max_frames,
        num_threads=num_threads,
        should_stop=should_stop,
    )
    card = trained.card
    return Player(card.agent, card.env_id, card.protocol.name, card.step, evaluator.play)
