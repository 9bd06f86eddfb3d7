"""The Rubik's cube as a gymnasium environment, for agents that learn by acting."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from classicrl.domains.cube3 import FACES, Cube3, random_scrambles, to_facelets
from classicrl.views.cube3 import terminal_net

Observation = NDArray[np.uint8]


class Cube3Env(gymnasium.Env[Observation, np.int64]):
    """Solve a scrambled cube by quarter turns.

    Observation: the face that each facelet's colour belongs to, uint8 [54] in 0..5, faces and
    facelets in the order of ``classicrl/domains/cube3.py``. Action: 0..11, ``U U' R R' ...``.
    Reward: -1 for a turn. An episode terminates when the cube is solved.

    Args:
        scramble_turns: of a scramble, unless ``reset(options={"scramble_turns": n})`` says another
            number. Cubes that come out solved are scrambled again.
        render_mode: ``ansi`` for coloured letters.

    Raises:
        ValueError: fewer than one turn.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012  gymnasium's own form

    def __init__(self, scramble_turns: int = 100, render_mode: str | None = None) -> None:
        self.scramble_turns, self.render_mode = scramble_turns, render_mode
        self.observation_space = spaces.Box(0, 5, (54,), np.uint8)
        self.action_space = spaces.Discrete(12)
        self.domain = Cube3(12)
        self.state = self.domain.goal

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A newly scrambled cube."""
        super().reset(seed=seed)
        turns = int((options or {}).get("scramble_turns", self.scramble_turns))
        if turns < 1:
            raise ValueError(f"scramble_turns must be at least 1, got {turns}")
        self.state = self.domain.goal
        while bool(self.domain.is_goal(self.state[None])):
            generator = torch.Generator().manual_seed(int(self.np_random.integers(2**62)))
            scramble = random_scrambles(1, generator, min_turns=turns, max_turns=turns)[0]
            self.state = self.domain.after(scramble.tolist())
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One quarter turn."""
        self.state = self.domain.apply(self.state[None], torch.tensor([int(action)]))[0]
        solved = bool(self.domain.is_goal(self.state[None]))
        return self._observation(), -1.0, solved, False, {}

    def render(self) -> str | None:
        """The unfolded cube, if the mode is ``ansi``."""
        if self.render_mode == "ansi":
            return terminal_net(to_facelets(self.state), color=True)
        return None

    def _observation(self) -> Observation:
        return np.array([FACES.index(letter) for letter in to_facelets(self.state)], np.uint8)
