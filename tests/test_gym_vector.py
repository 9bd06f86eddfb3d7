"""Gymnasium environments behind the vector interface: episodes, true last observations, state that
goes on exactly, refusals."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from classicrl.checkpoint import CheckpointStore
from classicrl.envs.gym_vector import MINATAR_GAMES, GymVector, gym_protocol
from classicrl.envs.plain_state import plain_state_of, restore_plain_state
from classicrl.errors import UserError
from classicrl.evaluation import Evaluation
from classicrl.types import NO_LIMIT

HAS_MINATAR = importlib.util.find_spec("minatar") is not None
needs_minatar = pytest.mark.skipif(not HAS_MINATAR, reason="requires minatar")
CLASSIC = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"]
MINATAR = [
    pytest.param(f"MinAtar/{game}-v1", marks=needs_minatar, id=game) for game in MINATAR_GAMES
]


class Count(gymnasium.Env[Any, Any]):
    """Shows how many steps the episode has had; ends by itself after `length` of them."""

    observation_space = spaces.Box(0, 100, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, length: int = 4) -> None:
        self.length = length
        self.steps = 0
        self.helper = object()  # nothing that could be saved

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.array([0.0, 7.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        done = self.steps == self.length
        return np.array([self.steps, 7.0]), float(action), done, False, {}


for name, length in (("classicrl-test/Count-v0", 4), ("classicrl-test/Long-v0", 1_000)):
    gymnasium.register(name, entry_point=Count, kwargs={"length": length})


def roll(envs: GymVector, actions: np.ndarray[Any, Any]) -> list[Any]:
    return [field for row in actions for field in envs.step(row)]


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# -- episodes --------------------------------------------------------------------------------------


def test_an_ended_episode_shows_its_last_observation_and_a_new_one_begins() -> None:
    envs = GymVector("classicrl-test/Count-v0", 3, seeds=1)
    assert envs.reset().tolist() == [[0.0, 7.0]] * 3
    for t in range(1, 4):
        step = envs.step(np.array([0, 1, 2]))
        assert step.obs[:, 0].tolist() == [t] * 3 and step.reward.tolist() == [0, 1, 2]
        assert not step.ended.any() and step.final_obs.shape == (0, 2)
    step = envs.step(np.array([0, 1, 2]))
    assert step.terminated.all() and step.ended.all()
    assert step.final_obs[:, 0].tolist() == [4.0] * 3
    assert step.obs[:, 0].tolist() == [0.0] * 3
    assert step.obs.dtype == step.reward.dtype == np.float32


def test_a_cut_episode_ends_without_terminating() -> None:
    envs = GymVector("classicrl-test/Long-v0", 2, seeds=1, max_episode_steps=3)
    envs.reset()
    assert envs.max_episode_steps == 3
    for _ in range(2):
        assert not envs.step(np.zeros(2, dtype=int)).ended.any()
    step = envs.step(np.zeros(2, dtype=int))
    assert step.ended.all() and not step.terminated.any()
    assert step.final_obs[:, 0].tolist() == [3.0, 3.0]


def test_what_was_handed_out_stays_as_it_is() -> None:
    envs = GymVector("classicrl-test/Count-v0", 2, seeds=1)
    first = envs.reset()
    second = envs.step(np.zeros(2, dtype=int)).obs
    envs.step(np.zeros(2, dtype=int))
    assert first[:, 0].tolist() == [0.0, 0.0] and second[:, 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("env_id", ["CartPole-v1", *MINATAR])
def test_environments_follow_their_own_seeds(env_id: str) -> None:
    together = GymVector(env_id, 3, seeds=[5, 6, 7])
    alone = GymVector(env_id, 1, seeds=[6])
    actions = np.random.default_rng(0).integers(together.num_actions, size=(60, 3))
    obs, one = together.reset(), alone.reset()
    assert np.array_equal(obs[1], one[0])
    for row in actions:
        a, b = together.step(row), alone.step(row[1:2])
        assert np.array_equal(a.obs[1], b.obs[0]) and a.reward[1] == b.reward[0]
    rolls = [roll(GymVectorStarted(env_id, seed), actions[:, :2]) for seed in (1, 1, 2)]
    assert equal(rolls[0], rolls[1]) and not equal(rolls[0], rolls[2])


def GymVectorStarted(env_id: str, seed: int) -> GymVector:
    envs = GymVector(env_id, 2, seeds=seed)
    envs.reset()
    return envs


@needs_minatar
def test_minatar_is_played_by_its_rules() -> None:
    """Minimal actions, sticky ones with probability 0.1, ramps; boards as bytes."""
    for game, num_actions, channels in zip(
        MINATAR_GAMES, [5, 3, 3, 6, 4], [4, 4, 7, 10, 6], strict=True
    ):
        envs = GymVector(f"MinAtar/{game}-v1", 1, seeds=0)
        assert (envs.num_actions, envs.obs_shape) == (num_actions, (10, 10, channels))
        assert envs.reset().dtype == np.uint8
        interface: Any = envs._envs[0].unwrapped
        assert interface.game.sticky_action_prob == 0.1
        assert getattr(interface.game.env, "ramping", True)
    assert gym_protocol("MinAtar/Breakout-v1").evaluation_epsilon == 0.01
    assert gym_protocol("CartPole-v1").max_episode_steps is None


# -- state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [*CLASSIC, *MINATAR])
def test_saved_environments_go_on_exactly(env_id: str, tmp_path: Path) -> None:
    envs = GymVector(env_id, 3, seeds=4)
    envs.reset()
    actions = np.random.default_rng(1).integers(envs.num_actions, size=(260, 3))
    roll(envs, actions[:60])
    CheckpointStore(tmp_path, warn=pytest.fail).save(1, {"envs": envs.state_dict()})
    checkpoint = CheckpointStore(tmp_path, warn=pytest.fail).load_latest()
    assert checkpoint is not None
    saved = checkpoint.state["envs"]
    expected = roll(envs, actions[60:])
    other = GymVector(env_id, 3, seeds=9)
    other.load_state_dict(saved)
    assert other.resumed_exactly
    assert np.array_equal(other.observation(), saved["obs"])
    assert equal(roll(other, actions[60:]), expected)
    again = GymVector(env_id, 3, seeds=9)  # what was loaded first has not touched the saved state
    again.load_state_dict(saved)
    assert equal(roll(again, actions[60:]), expected)


def test_environments_that_cannot_be_saved_begin_other_episodes() -> None:
    envs = GymVector("classicrl-test/Count-v0", 2, seeds=4)
    envs.reset()
    envs.step(np.zeros(2, dtype=int))
    other = GymVector("classicrl-test/Count-v0", 2, seeds=4)
    other.load_state_dict(envs.state_dict())
    assert not other.resumed_exactly
    assert other.observation()[:, 0].tolist() == [0.0, 0.0]


def test_what_an_environment_counts_is_saved_whatever_its_name() -> None:
    """Names that elsewhere belong to a window are no reason to leave a number out."""

    class Clocked(gymnasium.Env[Any, Any]):
        def __init__(self) -> None:
            self.clock, self.screen = 5, object()

    env = Clocked()
    state = plain_state_of(env)
    assert state is not None and state[0]["clock"] == 5 and "screen" not in state[0]
    env.clock = 0
    restore_plain_state(env, state)
    assert env.clock == 5


def test_a_second_start_plays_other_episodes() -> None:
    envs = GymVector("CartPole-v1", 2, seeds=4)
    assert not np.array_equal(envs.reset(), envs.reset())


def test_state_of_other_environments_is_refused() -> None:
    saved = GymVectorStarted("CartPole-v1", 0).state_dict()
    for other in (GymVector("Acrobot-v1", 2, seeds=0), GymVector("CartPole-v1", 3, seeds=0)):
        with pytest.raises(UserError, match="use the same"):
            other.load_state_dict(saved)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPole-v9", "did you mean CartPole-v1"),
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("nothing like it", "knows no environment"),
        ("Pendulum-v1", "only discrete actions"),
        ("FrozenLake-v1", r"only arrays \(Box\)"),
        pytest.param("MinAtar/Breakut-v1", "did you mean MinAtar/Breakout-v1", marks=needs_minatar),
    ],
)
def test_environments_that_cannot_be_played_are_refused(env_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        GymVector(env_id, 1, seeds=0)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in gymnasium.registry if name.startswith("MinAtar/")]:
        monkeypatch.delitem(gymnasium.registry, name)
    monkeypatch.setitem(sys.modules, "minatar.gym", None)
    with pytest.raises(UserError, match=r"pip install 'classicrl\[minatar\]'"):
        GymVector("MinAtar/Breakout-v1", 1, seeds=0)


def test_numbers_of_environments_and_seeds() -> None:
    with pytest.raises(UserError, match="choose 1 or more"):
        GymVector("CartPole-v1", 0, seeds=0)
    with pytest.raises(ValueError, match="3 seeds for 2"):
        GymVector("CartPole-v1", 2, seeds=[1, 2, 3])


def test_actions_and_order_of_calls() -> None:
    envs = GymVector("CartPole-v1", 2, seeds=0)
    with pytest.raises(RuntimeError, match="before reset"):
        envs.observation()
    with pytest.raises(RuntimeError, match="before reset"):
        envs.send(np.zeros(2, dtype=int))
    envs.reset()
    with pytest.raises(RuntimeError, match="without a send"):
        envs.recv()
    for bad in (np.zeros(3, dtype=int), np.zeros(2), np.array([0, 2]), np.array([-1, 0])):
        with pytest.raises(ValueError, match=r"expected 2 integers|must lie in"):
            envs.send(bad)
    envs.send(np.zeros(2, dtype=int))
    with pytest.raises(RuntimeError, match="twice"):
        envs.send(np.zeros(2, dtype=int))
    with pytest.raises(RuntimeError, match="receive the step first"):
        envs.state_dict()
    envs.recv()
    envs.close()


def test_a_game_without_a_limit_has_none_in_its_figures() -> None:
    scores = Evaluation([1.0, 3.0], [5, 6], 0.0, NO_LIMIT, limit_unit="steps")
    assert math.isnan(scores.figures()["max_frames_per_episode"])
    assert scores.record()["max_frames_per_episode"] == NO_LIMIT  # which can be given again
    assert scores.record()["mean_return"] == scores.figures()["mean_return"] == 2.0
    assert scores._replace(max_frames_per_episode=500).figures()["max_frames_per_episode"] == 500
