"""Scrambled cubes solved with the network that comes with the package, each solution replayed on a
model of the cube that shares no table with the solver's (tests/test_cube3.py)."""

import random
from functools import cache

import pytest
import torch
from tally import FULL, Tally, size
from test_cube3 import facelets_after

from classicrl.cube_solver import CubeSolver, SolveSettings, load_network, shipped_network
from classicrl.domains.cube3 import SOLVED, Cube3
from classicrl.search.nodes import Perimeter

GROUP = "verified scrambles"


@cache
def solver() -> CubeSolver:
    settings = SolveSettings(preset="fast", batch_size=512, perimeter=4)
    return CubeSolver(load_network(shipped_network(12)), settings)


@pytest.mark.timeout(7200 if FULL else 240)
def test_every_solution_solves_the_scramble(tally: Tally) -> None:
    rng = random.Random(5)
    domain = Cube3(12)
    for case in range(size(2, 1_000)):
        # One in ten from so far away that it is any cube at all.
        length = 60 if case % 10 == 9 else 1 + case % 18
        scramble = [rng.randrange(12) for _ in range(length)]
        solution = solver().solve(domain.after(scramble))
        assert solution.solved, (scramble, solution.stopped)
        assert facelets_after(scramble + solution.turns) == SOLVED, scramble
        assert len(solution.turns) <= 60
        tally.count("solved, replayed")


def test_exact_costs_give_shortest_solutions(tally: Tally) -> None:
    """Within the ball where all distances are known, A* with them finds that distance."""
    domain = Cube3(12)
    ball = Perimeter(domain, domain.goal, 5)
    rng = random.Random(6)
    for case in range(size(3, 50)):
        scramble = [rng.randrange(12) for _ in range(1 + case % 5)]
        state = domain.after(scramble)[None]
        distance = int(ball.distance(state, ball.hashes(state))[0])
        solution = solver().solve(state[0])
        assert facelets_after(scramble + solution.turns) == SOLVED
        if distance <= 4:  # the solver's own ball
            assert len(solution.turns) == distance
            tally.count("shortest, as breadth-first search says")
        else:
            tally.count("solved, replayed")
    assert torch.equal(domain.after([]), domain.goal)
