"""Two small environments that nobody solves by chance, with known answers.

Both are deterministic with a fixed start: the seed changes nothing. The reward is 1 at success and
0 everywhere else, so that a learner without an intrinsic reward has nothing to go by. A success on
the last step counts as one.

    ChainLock   a combination lock: at each of L cells one action leads on and one leads back
    KeyReturn   a serpentine corridor: fetch the key at its end, carry it back to the entrance

:func:`register` makes them known to gymnasium, as ``classicrl/ChainLock40-v0``,
``classicrl/ChainLock60-v0`` and ``classicrl/KeyReturn5-v0``.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Observation = NDArray[np.float32]

# The digits of a lock of 60 cells; a shorter one takes its first ones.
_FORWARD = "030103300210003012011300133103112001202231012013020023110120"
_BACK = "213232013102211323220221302211331110313003323132212132202331"


class ChainLock(gymnasium.Env[Observation, np.int64]):
    """Walk a chain of L cells: one of 4 actions leads on, one back, two do nothing.

    Observation: the cell, one-hot float32 [L]. Action: 0..3. Reward: 1 on reaching the last cell,
    where the episode terminates. It is truncated after floor(2.5 L) steps. The shortest way takes
    L - 1 steps; a uniformly random policy succeeds in 3.6e-8 of episodes for L = 40.

    Args:
        length: L, from 2 to 60.

    Raises:
        ValueError: another length.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  gymnasium's own form

    def __init__(self, length: int = 40) -> None:
        if not 2 <= length <= len(_FORWARD):
            raise ValueError(f"length must be 2 to {len(_FORWARD)}, got {length}")
        self.length = length
        self.max_steps = 5 * length // 2
        self.observation_space = spaces.Box(0.0, 1.0, (length,), np.float32)
        self.action_space = spaces.Discrete(4)
        self.cell = 0
        self.num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Back to the first cell."""
        super().reset(seed=seed)
        self.cell = self.num_steps = 0
        return self._observation(), {"success": False}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One move."""
        digit = str(int(action))
        if digit == _FORWARD[self.cell]:
            self.cell += 1
        elif digit == _BACK[self.cell]:
            self.cell = max(0, self.cell - 1)
        self.num_steps += 1
        success = self.cell == self.length - 1
        truncated = not success and self.num_steps >= self.max_steps
        return self._observation(), float(success), success, truncated, {"success": success}

    def _observation(self) -> Observation:
        one_hot = np.zeros(self.length, dtype=np.float32)
        one_hot[self.cell] = 1.0
        return one_hot


class KeyReturn(gymnasium.Env[Observation, np.int64]):
    """Fetch the key at the end of a serpentine corridor and carry it back to the entrance.

    A grid of W x W cells: even rows are free, odd ones have one free cell, at the right and the
    left end in turn, so there is one way of P = (W + 1) (W + 1) / 2 - 1 cells, 17 for W = 5.

    Observation: cell and key, one-hot float32 [2 W W] at ``key * W * W + y * W + x``. Action: 0 up,
    1 down, 2 left, 3 right; walls stop a move. Reward: 1 for standing at (0, 0) with the key, where
    the episode terminates. It is truncated after 5 P steps. The shortest way takes 2 (P - 1) steps;
    a uniformly random policy succeeds in 1.5e-6 of episodes for W = 5.

    Args:
        width: W, odd, at least 3.

    Raises:
        ValueError: another width.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  gymnasium's own form

    def __init__(self, width: int = 5) -> None:
        if width < 3 or width % 2 == 0:
            raise ValueError(f"width must be odd and at least 3, got {width}")
        self.width = width
        self._free = np.zeros((width, width), dtype=np.bool_)
        self._free[::2] = True
        for row in range(1, width, 2):
            self._free[row, width - 1 if row % 4 == 1 else 0] = True
        self.key_cell = (width - 1, width - 1 if (width - 1) // 2 % 2 == 0 else 0)
        self.max_steps = 5 * int(self._free.sum())
        self.observation_space = spaces.Box(0.0, 1.0, (2 * width * width,), np.float32)
        self.action_space = spaces.Discrete(4)
        self.cell = (0, 0)
        self.has_key = False
        self.num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Back to the entrance, without the key."""
        super().reset(seed=seed)
        self.cell, self.has_key, self.num_steps = (0, 0), False, 0
        return self._observation(), {"success": False}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One move."""
        down, right = ((-1, 0), (1, 0), (0, -1), (0, 1))[int(action)]
        y, x = self.cell[0] + down, self.cell[1] + right
        if 0 <= y < self.width and 0 <= x < self.width and self._free[y, x]:
            self.cell = (y, x)
        success = self.has_key and self.cell == (0, 0)
        self.has_key = self.has_key or self.cell == self.key_cell
        self.num_steps += 1
        truncated = not success and self.num_steps >= self.max_steps
        return self._observation(), float(success), success, truncated, {"success": success}

    def _observation(self) -> Observation:
        one_hot = np.zeros(2 * self.width**2, dtype=np.float32)
        y, x = self.cell
        one_hot[self.has_key * self.width**2 + y * self.width + x] = 1.0
        return one_hot


def register() -> None:
    """Makes the environments known to :func:`gymnasium.make`; twice does no harm."""
    for name, kind, arguments in (
        ("ChainLock40", ChainLock, {"length": 40}),
        ("ChainLock60", ChainLock, {"length": 60}),
        ("KeyReturn5", KeyReturn, {"width": 5}),
    ):
        if f"classicrl/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"classicrl/{name}-v0",
                entry_point=f"{kind.__module__}:{kind.__name__}",
                kwargs=arguments,
            )
