"""How an episode ends x how it is reset x how an agent stores it: every transition by hand.

Episodes of three steps: observations 0 1 2 3 (3 is the last), rewards 1 2 4.
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tally import Tally

from classicrl.losses import td_target
from classicrl.replay import ReplayBuffer

GROUP = "ends x resets x agents"
GAMMA = 0.5
LENGTH = 3
REWARDS = (1.0, 2.0, 4.0)


class Counting(gymnasium.Env[Any, Any]):
    """Shows the step of the episode, and which episode it is."""

    observation_space = gymnasium.spaces.Box(0, 255, (2,), np.uint8)
    action_space = gymnasium.spaces.Discrete(7)

    def __init__(self, ends: str, first_length: int) -> None:
        self.ends, self.first_length = ends, first_length
        self.episode, self.at = 0, 0

    def _obs(self) -> Any:
        return np.array([self.at, self.episode], np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        reward = REWARDS[self.at]
        self.at += 1
        over = self.at == (self.first_length if self.episode == 1 else LENGTH)
        terminated = over and self.ends in ("terminated", "both")
        return self._obs(), reward, terminated, over and self.ends in ("truncated", "both"), {}


class Store(NamedTuple):
    """How an agent keeps what it sees."""

    stack: int | None
    n_steps: int
    dtype: torch.dtype


STORES = {
    "dueling_dqn_atari": Store(4, 1, torch.uint8),
    "dueling_dqn_atari, preset fast": Store(4, 3, torch.uint8),
    "va_classic_control": Store(None, 1, torch.float32),
    "va_minatar": Store(None, 1, torch.uint8),
}


def filled(store: Store, ends: str, mode: AutoresetMode) -> ReplayBuffer:
    """Two environments, out of step with each other, several episodes."""
    envs = SyncVectorEnv(
        [lambda: Counting(ends, LENGTH), lambda: Counting(ends, LENGTH - 1)], autoreset_mode=mode
    )
    replay = ReplayBuffer(
        200,
        (2,),
        2,
        stack=store.stack,
        n_steps=store.n_steps,
        gamma=GAMMA,
        obs_dtype=store.dtype,
    )
    obs, _ = envs.reset(seed=0)
    for step in range(17):
        action = np.array([step % 7, (step + 3) % 7])
        shown = obs.copy()
        obs, reward, terminated, truncated, info = envs.step(action)
        ended = terminated | truncated
        final_obs = None
        if mode == AutoresetMode.SAME_STEP:
            final_obs = obs[:0]
            if ended.any():
                final_obs = np.stack([last for last in info["final_obs"][ended]])
        elif mode == AutoresetMode.DISABLED:
            final_obs = obs[ended].copy()
            if ended.any():
                obs, _ = envs.reset(options={"reset_mask": ended})
        obs = obs.copy()
        replay.add(shown, action, reward.astype(np.float32), terminated, ended, final_obs)
    return replay


def by_hand(at: int, n_steps: int, ends: str) -> tuple[float, float, int]:
    """Return, discount, and the step whose observation is bootstrapped from."""
    last = min(at + n_steps, LENGTH)
    total = sum(GAMMA**j * REWARDS[at + j] for j in range(last - at))
    stops = last == LENGTH and ends in ("terminated", "both")
    return total, 0.0 if stops else GAMMA ** (last - at), last


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("agent", STORES)
def test_targets_by_hand_and_nothing_across_episodes(
    agent: str, mode: AutoresetMode, ends: str, tally: Tally
) -> None:
    store = STORES[agent]
    replay = filled(store, ends, mode)
    batch = replay.sample(600)
    obs, next_obs = batch.obs.numpy(), batch.next_obs.numpy()
    if store.stack is None:
        obs, next_obs = obs[:, None], next_obs[:, None]
    depth = obs.shape[1]
    seen = set()
    for i in range(len(obs)):
        at, episode = (int(x) for x in obs[i, -1])
        if episode == 1 and at + store.n_steps >= LENGTH - 1:
            continue  # the first episode of the second environment is a step shorter
        total, discount, last = by_hand(at, store.n_steps, ends)
        assert float(batch.reward[i]) == total and float(batch.discount[i]) == discount
        # Frames of this episode alone, nothing before its first.
        for frames, newest in ((obs[i], at), (next_obs[i], last)):
            for back in range(depth):
                expected = [newest - back, episode] if newest - back >= 0 else [0, 0]
                assert frames[depth - 1 - back].tolist() == expected
        seen.add((episode, at))
    assert {at for _, at in seen} == set(range(LENGTH)) and len(seen) >= 9
    value = torch.full((len(obs),), 10.0)
    target = td_target(batch.reward, batch.discount, value)
    torch.testing.assert_close(target, batch.reward + batch.discount * 10.0)
    tally.count(f"{mode.name}: targets by hand, none across episodes")


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_both_modes_of_ale_py_store_the_same(mode: str, tally: Tally) -> None:
    """Games of 15 steps without chance: in NEXT_STEP one dead step after each is no transition."""
    pytest.importorskip("ale_py")
    from ale_py.vector_env import AtariVectorEnv

    def transitions(mode: str, num_games: int) -> list[tuple[bytes, int, float, float, bytes]]:
        envs = AtariVectorEnv(
            "pong",
            1,
            max_num_frames_per_episode=60,
            repeat_action_probability=0.0,
            noop_max=0,
            use_fire_reset=False,
            episodic_life=False,
            reward_clipping=False,
            autoreset_mode=mode,
        )
        obs, _ = envs.reset(seed=np.array([1]))
        replay = ReplayBuffer(500, (84, 84), 1, stack=4, gamma=GAMMA)
        at = games = 0
        dead = False
        while games < num_games:
            action = np.array([at % 3])
            shown = obs[:, -1].copy()
            obs, reward, terminated, truncated, info = envs.step(action)
            ended = np.array([bool(terminated[0] or truncated[0])])
            same_step = mode == "SameStep"
            final = None
            if same_step:
                final = info["final_obs"][ended][:, -1] if ended.any() else obs[:0, -1]
            replay.add(shown, action, reward, terminated.astype(bool), ended & ~dead, final)
            games += int(dead if not same_step else ended[0])
            at = 0 if (dead or (same_step and ended[0])) else at + 1
            dead = bool(ended[0]) and not same_step
        rows = replay.rows(0, replay.next_id)
        return [
            (frame.tobytes(), int(action), float(reward), bool(ended), bool(source))
            for frame, action, reward, ended, source in zip(
                rows.obs, rows.action * rows.is_source, rows.reward, rows.ended, rows.is_source,
                strict=True,
            )
        ]  # fmt: skip

    found, expected = transitions(mode, 3), transitions("SameStep", 3)
    assert len(expected) == 3 * 16 and sum(row[3] for row in expected) == 3
    assert found == expected
    tally.count("ale-py: both modes store the same")
