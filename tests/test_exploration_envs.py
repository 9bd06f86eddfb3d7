"""The two environments with known answers: rules, shortest ways, gymnasium's checker."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from classicrl.envs import exploration
from classicrl.envs.exploration import ChainLock, KeyReturn

FORWARD = "030103300210003012011300133103112001202231012013020023110120"
BACK_DIGITS = "213232013102211323220221302211331110313003323132212132202331"
R, L, U, D = 3, 2, 0, 1
TO_THE_KEY = [*[R] * 4, *[D] * 2, *[L] * 4, *[D] * 2, *[R] * 4]
BACK = [*[L] * 4, *[U] * 2, *[R] * 4, *[U] * 2, *[L] * 4]


def play(env: Any, actions: list[int]) -> list[tuple[Any, float, bool, bool, dict[str, Any]]]:
    env.reset()
    results = []
    for action in actions:
        results.append(env.step(action))
        if results[-1][2] or results[-1][3]:
            break
    return results


@pytest.mark.parametrize("name", ["ChainLock40", "ChainLock60", "KeyReturn5"])
def test_gymnasium_accepts_it(name: str) -> None:
    exploration.register()
    exploration.register()
    env = gymnasium.make(f"classicrl/{name}-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("length", [40, 60])
class TestChainLock:
    def test_the_way_through(self, length: int) -> None:
        results = play(ChainLock(length), [int(digit) for digit in FORWARD])
        assert len(results) == length - 1
        obs, reward, terminated, truncated, info = results[-1]
        assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
        assert obs[-1] == 1.0
        assert all(reward == 0.0 for _, reward, *_ in results[:-1])

    @pytest.mark.parametrize(("action", "cell"), [(0, 1), (1, 0), (2, 0), (3, 0)])
    def test_one_action_for_ever(self, length: int, action: int, cell: int) -> None:
        results = play(ChainLock(length), [action] * 1000)
        assert len(results) == 5 * length // 2
        assert results[-1][2:4] == (False, True)
        assert int(np.argmax(results[-1][0])) == cell

    def test_what_each_action_does_in_each_cell(self, length: int) -> None:
        env = ChainLock(length)
        for cell in range(length - 1):
            for action in range(4):
                env.reset()
                env.cell = cell
                obs = env.step(np.int64(action))[0]
                change = (str(action) == FORWARD[cell]) - (str(action) == BACK_DIGITS[cell])
                assert int(np.argmax(obs)) == max(0, cell + change)

    def test_success_on_the_last_step_counts(self, length: int) -> None:
        env = ChainLock(length)
        env.reset()
        env.num_steps = env.max_steps - (length - 1)
        for digit in FORWARD[: length - 1]:
            result = env.step(np.int64(digit))
        assert result[1:4] == (1.0, True, False)


class TestKeyReturn:
    def test_there_and_back(self) -> None:
        results = play(KeyReturn(5), TO_THE_KEY + BACK)
        assert len(results) == 32
        assert results[-1][1:4] == (1.0, True, False)
        keys = [int(np.argmax(obs)) >= 25 for obs, *_ in results]
        assert keys == [False] * 15 + [True] * 17
        assert int(np.argmax(results[15][0])) == 25 + 4 * 5 + 4

    def test_without_the_key_the_entrance_is_nothing(self) -> None:
        results = play(KeyReturn(5), [R, L, U, L] * 40)
        assert len(results) == 85
        assert not any(reward for _, reward, *_ in results)
        assert results[-1][2:4] == (False, True)

    @pytest.mark.parametrize("width", [3, 5, 7, 9])
    def test_there_is_one_way(self, width: int) -> None:
        env = KeyReturn(width)
        ways = {cell: 0 for cell in zip(*np.nonzero(env._free), strict=True)}
        for y, x in ways:
            ways[y, x] = sum(
                (y + dy, x + dx) in ways for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
            )
        assert sorted(ways.values()) == [1, 1, *[2] * (len(ways) - 2)]  # a path
        assert ways[0, 0] == ways[env.key_cell] == 1
        assert env.max_steps == 5 * len(ways)


@pytest.mark.parametrize(
    ("make", "argument"), [(ChainLock, 1), (ChainLock, 61), (KeyReturn, 4), (KeyReturn, 1)]
)
def test_impossible_sizes(make: Any, argument: int) -> None:
    with pytest.raises(ValueError, match=str(argument)):
        make(argument)
