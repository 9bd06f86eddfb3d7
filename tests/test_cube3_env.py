import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from classicrl.cube3_env import Cube3Env
from classicrl.domains.cube3 import FACES, MOVES, to_facelets, turned


def test_it_passes_gymnasiums_checker() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Rewards and boxes of bytes are as they should be; no spec, as it is not registered.
        warnings.filterwarnings("ignore", message=".*spec.*")
        check_env(Cube3Env(scramble_turns=5, render_mode="ansi"))


def test_turning_back_solves_it() -> None:
    env = Cube3Env()
    first, _ = env.reset(seed=3, options={"scramble_turns": 1})
    (move,) = [
        a for a in range(12) if to_facelets(env.state) == turned("".join(f * 9 for f in FACES), a)
    ]
    obs, reward, terminated, truncated, _ = env.step(np.int64(move ^ 1))
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert obs.tolist() == sorted(obs.tolist()) and first.tolist() != obs.tolist()
    assert len(MOVES) == env.action_space.n


def test_scrambles_follow_the_seed() -> None:
    env = Cube3Env(scramble_turns=30)
    first, again, other = (env.reset(seed=seed)[0].tolist() for seed in (5, 5, 6))
    assert first == again != other
    assert env.reset()[0].tolist() != other
    with pytest.raises(ValueError, match="at least 1"):
        env.reset(options={"scramble_turns": 0})
