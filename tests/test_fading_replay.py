"""The fading replay: its distribution, the virtual ring against a literally tiled one, terminals,
saving."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from classicrl.errors import UserError
from classicrl.replay.buffer import ReplayBuffer
from classicrl.replay.fading import (
    FadingReplay,
    FadingSampler,
    age_probs,
    alias_table,
    fading_nbytes,
    mass_of_warmup,
)

S, A = 3, 2


def step(identity: float, terminated: bool = False, reward: float = 1.0) -> tuple[Any, ...]:
    """One transition whose observations say which one it is."""
    obs = np.full((1, S), identity, dtype=np.float32)
    action = np.full((1, A), 0.5, dtype=np.float32)
    return obs, action, np.array([reward]), np.array([terminated]), obs + 0.25


def filled(warmup: int, replication: int, terminal: Any = (), **settings: Any) -> FadingReplay:
    """After its warm-up, whose items are -1, -2, ..."""
    replay = FadingReplay(S, A, warmup_steps=warmup, replication=replication, **settings)
    for i in range(warmup):
        replay.add(*step(-1 - i, bool(len(terminal)) and bool(terminal[i])))
    replay.finish_warmup()
    return replay


def items_by_rank(replay: FadingReplay) -> NDArray[np.float32]:
    rows = replay.rows_of_ranks(torch.arange(replay.capacity))
    return replay._rows[rows.long(), 0].numpy()


class TiledRing:
    """The authors' way, with a ring in place of shifting: every copy is there."""

    def __init__(self, warmup: int, replication: int, terminal: NDArray[np.bool_]) -> None:
        self.item = np.tile(-1.0 - np.arange(warmup), replication)
        self.terminal = np.tile(terminal, replication)
        self.kept = np.zeros(len(self.item), dtype=bool)
        self.ptr = 0

    def write(self, identity: float, terminal: bool, keep: str) -> None:
        if keep == "once":
            while self.terminal[self.ptr] and not self.kept[self.ptr]:
                self.kept[self.ptr] = True
                self.ptr = (self.ptr + 1) % len(self.item)
        elif keep == "forever" and self.terminal[self.ptr]:
            self.ptr = (self.ptr + 1) % len(self.item)
        self.item[self.ptr], self.terminal[self.ptr] = identity, terminal
        self.kept[self.ptr] = False
        self.ptr = (self.ptr + 1) % len(self.item)

    def by_rank(self) -> NDArray[np.float64]:
        return np.roll(self.item, -self.ptr)


def test_nothing_is_drawn_before_the_ring_stands() -> None:
    replay = FadingReplay(S, A, warmup_steps=3, replication=2)
    with pytest.raises(ValueError, match="0 of 3 warm-up steps"):
        replay.sample(4)


def test_age_profile() -> None:
    expected = [0, 0.014380, 0.087152, 0.167431, 0.182462, 0.182857, 0.182859, 0.182859]
    np.testing.assert_allclose(age_probs(8), expected, atol=1e-6)
    probs = age_probs(512_000)
    n = len(probs)
    assert probs.max() * n == pytest.approx(1.34044, abs=1e-5)
    assert probs[n // 2 :].sum() == pytest.approx(0.6701, abs=1e-4)
    assert probs[: n // 3].sum() == pytest.approx(0.1181, abs=1e-4)
    assert probs[: n // 10].sum() == pytest.approx(0.00155, abs=1e-5)
    assert np.searchsorted(probs.cumsum(), 0.5) / n == pytest.approx(0.627, abs=1e-3)


def drawn_by(keep: NDArray[np.float64], alias: NDArray[np.int32]) -> NDArray[np.float64]:
    """The probabilities of what an alias table draws."""
    mass = keep.copy()
    np.add.at(mass, alias, 1.0 - keep)
    return mass / len(keep)


@pytest.mark.parametrize("n", [2, 3, 8, 500, 512_000])
def test_alias_table_draws_by_age(n: int) -> None:
    probs = age_probs(n)
    np.testing.assert_allclose(drawn_by(*alias_table(probs)), probs, rtol=1e-6, atol=1e-9 / n)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any))
def test_alias_table_draws_by_any_probabilities(weights: list[int]) -> None:
    probs = np.array(weights) / sum(weights)
    keep, alias = alias_table(probs)
    assert ((keep >= 0) & (keep <= 1)).all()
    assert ((alias >= 0) & (alias < len(probs))).all()
    np.testing.assert_allclose(drawn_by(keep, alias), probs, atol=1e-12)


@pytest.mark.parametrize(
    ("num_writes", "mass"),
    [(0, 1), (10_000, 0.9738), (100_000, 0.7382), (256_000, 0.3299), (400_000, 0.0280)],
)
def test_mass_of_the_warm_up(num_writes: int, mass: float) -> None:
    assert mass_of_warmup(num_writes, 512_000) == pytest.approx(mass, abs=5e-5)


def test_tiling_of_two_items_over_eight_slots() -> None:
    replay = filled(2, 4, terminal_keep="off")
    probs = age_probs(8)
    expected = {
        0: (0.452473, 0.547527),
        1: (0.364669, 0.452473),
        2: (0.269614, 0.364669),
        4: (0.087152, 0.181811),
        6: (0.0, 0.014380),
        7: (0.0, 0.0),
        8: (0.0, 0.0),
    }
    for t in range(9):
        if t in expected:
            items = items_by_rank(replay)
            of_warmup = [probs[items == -1 - i].sum() for i in range(2)]
            np.testing.assert_allclose(of_warmup, expected[t], atol=1e-5)
        replay.add(*step(t))


@settings(max_examples=25, deadline=None)
@given(
    warmup=st.integers(2, 7),
    replication=st.integers(1, 5),
    keep=st.sampled_from(["once", "forever", "off"]),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    seed=st.integers(0, 1_000),
)
def test_virtual_ring_equals_literal_tiling(
    warmup: int, replication: int, keep: Any, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    terminal = rng.random(warmup) < share
    replay = filled(warmup, replication, terminal, terminal_keep=keep)
    tiled = TiledRing(warmup, replication, terminal)
    np.testing.assert_array_equal(items_by_rank(replay), tiled.by_rank())
    for t in range(2 * replay.capacity + 5):
        is_terminal = bool(rng.random() < share)
        replay.add(*step(t, is_terminal))
        tiled.write(t, is_terminal, keep)
        np.testing.assert_array_equal(items_by_rank(replay), tiled.by_rank())


def test_a_new_write_is_the_youngest() -> None:
    replay = filled(3, 4)
    for t in range(30):
        replay.add(*step(t))
        assert items_by_rank(replay)[-1] == t


def test_a_terminal_survives_one_pass_and_two_neighbours_both() -> None:
    replay = filled(5, 1)
    for t in range(5):
        replay.add(*step(t, terminated=t in (1, 2)))
    passes = {1: 0, 2: 0}
    for t in range(5, 40):
        items = items_by_rank(replay)
        for item in passes:
            passes[item] += int(items[0] == item)  # it is the oldest: the next write would take it
        replay.add(*step(t))
    # Twice the oldest: passed over once, then overwritten. 2 hides behind 1 the first time.
    assert passes == {1: 2, 2: 1}
    assert not {1, 2} & set(items_by_rank(replay))
    survivors = filled(5, 1)
    for t in range(5):
        survivors.add(*step(t, terminated=t in (1, 2)))
    for t in range(5, 9):  # takes 0, passes 1 and 2 over, takes 3, 4 and the slot of 0 once more
        survivors.add(*step(t))
    assert {1, 2} <= set(items_by_rank(survivors))


def test_draws_follow_the_profile() -> None:
    stats = pytest.importorskip("scipy.stats")
    replay = FadingReplay(S, A, warmup_steps=500, replication=1, seed=3)
    ranks = replay.sample_ranks(1_000_000).numpy()
    expected = age_probs(500) * len(ranks)
    seen = np.bincount(ranks, minlength=500)
    assert seen[0] == 0
    # The oldest are rarely drawn: together, so that chi-square may be used.
    rare = expected < 20
    seen = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(seen, expected).pvalue > 0.001
    assert (ranks >= 250).mean() == pytest.approx(0.67, abs=0.003)


def test_sampler_of_a_growing_buffer_follows_the_profile() -> None:
    sampler, rng = FadingSampler(), np.random.default_rng(0)
    ages = sampler(rng, 40, 400_000)
    seen = np.bincount(39 - ages, minlength=40) / len(ages)
    np.testing.assert_allclose(seen, age_probs(40), atol=0.002)
    assert sampler(rng, 1, 5).tolist() == [0] * 5
    assert len(sampler(rng, 2, 7)) == 7


def test_sampler_serves_the_other_replay() -> None:
    buffer = ReplayBuffer(50, (1,), 1, sampler=FadingSampler(), obs_dtype=torch.float32)
    no = np.zeros(1, dtype=bool)
    for t in range(50):
        buffer.add(np.full((1, 1), t), np.zeros(1, dtype=np.int64), np.zeros(1), no, no)
    seen = buffer.sample(2_000).obs
    assert (seen > 25).float().mean() > 0.62 and seen.min() > 0


def test_what_is_stored_comes_back() -> None:
    replay = FadingReplay(S, A, warmup_steps=4, replication=1, gamma=0.9)
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, 4, S)).astype(np.float32)
    action = rng.uniform(-1, 1, (4, A)).astype(np.float32)
    reward, terminated = np.array([2.0, -6.0, 0.0, 4.0]), np.array([False, True, False, False])
    replay.add(obs[:2], action[:2], reward[:2], terminated[:2], next_obs[:2])
    replay.add(obs[2:], action[2:], reward[2:], terminated[2:], next_obs[2:])
    assert replay.finish_warmup() == 3.0
    batch = replay.sample(200)
    which = (batch.obs_action[:, None, :S] == torch.from_numpy(obs)).all(-1).float().argmax(1)
    assert set(which.tolist()) == {1, 2, 3}
    np.testing.assert_array_equal(batch.obs_action[:, S:], action[which])
    np.testing.assert_array_equal(batch.next_obs, next_obs[which])
    np.testing.assert_allclose(batch.reward, reward[which] / 3)
    np.testing.assert_allclose(batch.discount, np.where(terminated, 0, 0.9)[which], rtol=1e-6)


@pytest.mark.parametrize(("reward", "scale"), [(1e-9, 1.0), (0.0, 1.0), (-4.0, 4.0)])
def test_reward_scale(reward: float, scale: float) -> None:
    replay = FadingReplay(S, A, warmup_steps=3, replication=2)
    for i in range(3):
        replay.add(*step(i, reward=reward))
    assert replay.finish_warmup() == scale
    replay.add(*step(9, reward=8.0))
    assert replay._rows[replay.rows_of_ranks(torch.tensor([5])).long(), -2].item() == 8.0 / scale


@pytest.mark.parametrize("writes", [0, 3, 17])
def test_saved_and_loaded_goes_on_alike(writes: int) -> None:
    rng = np.random.default_rng(0)
    replay = filled(4, 3, rng.random(4) < 0.5, seed=7)
    for t in range(writes):
        replay.add(*step(t, bool(rng.random() < 0.4)))
    replay.sample(5)
    other = FadingReplay(S, A, warmup_steps=4, replication=3)
    other.load_state_dict(replay.state_dict())
    for t in range(9):
        for one in (replay, other):
            one.add(*step(100 + t, t % 3 == 0))
        for mine, theirs in zip(replay.sample(11), other.sample(11), strict=True):
            assert torch.equal(mine, theirs)
    assert other.num_writes == writes + 9
    with pytest.raises(UserError, match="the same settings"):
        FadingReplay(S, A, warmup_steps=4, replication=2).load_state_dict(replay.state_dict())


def test_without_rows_the_scale_stays_and_the_warm_up_begins_anew() -> None:
    replay = filled(4, 3, save_rows=False)
    replay.reward_scale = 2.5
    other = FadingReplay(S, A, warmup_steps=4, replication=3)
    other.load_state_dict(replay.state_dict())
    assert not other.warmup_done and len(other) == 0
    for i in range(4):
        other.add(*step(i))
    assert not other.warmup_done
    assert other.finish_warmup() == 2.5


def test_misuse_is_refused() -> None:
    replay = FadingReplay(S, A, warmup_steps=2, replication=2)
    with pytest.raises(ValueError, match="0 of 2"):
        replay.finish_warmup()
    replay.add(*step(0))
    replay.add(*step(1))
    with pytest.raises(ValueError, match="has 2 steps"):
        replay.add(*step(2))
    with pytest.raises(UserError, match="must be positive"):
        FadingReplay(S, A, warmup_steps=2, replication=0)


def test_the_paper_s_ring_takes_what_is_said() -> None:
    nbytes = fading_nbytes(376, 17, 10_240, 512_000)
    assert nbytes == pytest.approx(1.62e9, rel=0.02)
    assert math.isclose(FadingReplay(S, A, warmup_steps=2, replication=2).nbytes, 312)
