"""The replay ring against a plain list of episodes, its samples' distribution, and its size."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plain_replay import EveryAge, PlainReplay, assert_same_transitions

from classicrl.errors import UserError
from classicrl.replay import MemberReplays, ReplayBuffer, UniformSampler, replay_nbytes

# -- random worlds ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class World:
    """What a random test plays: the buffer's settings, and how often what happens."""

    seed: int
    num_steps: int
    num_envs: int
    stack: int | None
    n_steps: int
    spare_rows: int
    final_obs_in_next_row: bool
    vectors: bool  # float32 observations and actions, or bytes and discrete actions
    life_loss_rate: float
    end_rate: float
    break_rate: float
    restore_rate: float

    @property
    def capacity(self) -> int:
        return 2 * self.num_envs * ((self.stack or 1) + self.n_steps) + self.spare_rows

    @property
    def obs_shape(self) -> tuple[int, ...]:
        return (5,) if self.vectors else (2, 4)

    def buffer(self) -> ReplayBuffer:
        vectors: dict[str, Any] = {
            "obs_dtype": torch.float32,
            "action_shape": (3,),
            "action_dtype": np.float32,
        }
        return ReplayBuffer(
            self.capacity,
            self.obs_shape,
            self.num_envs,
            stack=self.stack,
            n_steps=self.n_steps,
            gamma=0.9,
            sampler=EveryAge(),
            **(vectors if self.vectors else {}),
        )

    def model(self) -> PlainReplay:
        return PlainReplay(
            self.capacity, self.num_envs, stack=self.stack, n_steps=self.n_steps, gamma=0.9
        )


rates = st.sampled_from([0.0, 0.05, 0.2, 0.5])
worlds = st.builds(
    World,
    seed=st.integers(0, 2**32 - 1),
    num_steps=st.integers(1, 130),
    num_envs=st.integers(1, 4),
    stack=st.sampled_from([None, 1, 3, 4]),
    n_steps=st.integers(1, 4),
    spare_rows=st.integers(0, 9),
    final_obs_in_next_row=st.booleans(),
    vectors=st.booleans(),
    life_loss_rate=rates,
    end_rate=rates,
    break_rate=st.sampled_from([0.0, 0.03]),
    restore_rate=st.sampled_from([0.0, 0.05]),
)


class Frames:
    """Frames that never repeat, stacked as an environment would stack them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._count = 0
        shape = (world.num_envs, world.stack or 1, *world.obs_shape)
        self._stacks = np.zeros(shape, np.float32 if world.vectors else np.uint8)

    def forget(self, env: int) -> None:
        self._stacks[env] = 0

    def next(self, env: int) -> NDArray[Any]:
        """The next whole observation of one environment."""
        self._count += 1
        frame = np.full(self.world.obs_shape, 7, self._stacks.dtype)
        frame.flat[:4] = [self._count % 251, self._count // 251, env, 99]
        self._stacks[env] = np.concatenate([self._stacks[env, 1:], frame[None]])
        whole = self._stacks[env].copy()
        return whole if self.world.stack is not None else whole[0]


def newest(obs: NDArray[Any], world: World) -> NDArray[Any]:
    """What is handed to the buffer of whole observations ``[B, ...]``."""
    return obs if world.stack is None else obs[:, -1]


def play(world: World) -> list[bool]:
    """Plays buffer and model side by side; the checks, each with whether the ring had wrapped."""
    rng = np.random.default_rng(world.seed)
    buffer, model, frames = world.buffer(), world.model(), Frames(world)
    n = world.num_envs
    checks = []
    last_comes_next = np.zeros(n, dtype=np.bool_)
    obs = np.stack([frames.next(i) for i in range(n)])
    for t in range(world.num_steps):
        reward = rng.integers(-2, 3, size=n).astype(np.float32)
        shape = (n, 3) if world.vectors else (n,)
        action = rng.normal(size=shape).astype(np.float32)
        if not world.vectors:
            action = rng.integers(18, size=n)
        ended = rng.random(n) < world.end_rate
        # Over, cut, or a life lost; also a life lost on the very step of the cut.
        terminated = rng.random(n) < np.where(ended, 0.5, world.life_loss_rate)
        final_obs = None
        following = []
        lasts = []
        for i in range(n):
            if last_comes_next[i]:  # this row is the last observation; the next begins anew
                frames.forget(i)
                following.append(frames.next(i))
            elif ended[i] and not world.final_obs_in_next_row:
                lasts.append(frames.next(i))
                frames.forget(i)
                following.append(frames.next(i))
            else:
                following.append(frames.next(i))
        if not world.final_obs_in_next_row:
            final_obs = np.stack(lasts) if lasts else obs[:0]
        model.add(obs, action, reward, terminated, ended, final_obs)
        buffer.add(
            newest(obs, world),
            action,
            reward,
            terminated,
            ended,
            None if final_obs is None else newest(final_obs, world),
        )
        if world.final_obs_in_next_row:
            last_comes_next = ended & ~last_comes_next
        obs = np.stack(following)

        if rng.random() < world.break_rate:
            buffer.break_streams()
            model.break_streams()
            last_comes_next[:] = False
            for i in range(n):
                frames.forget(i)
            obs = np.stack([frames.next(i) for i in range(n)])
        if rng.random() < world.restore_rate:
            buffer = restored(buffer, world, rng)
        if rng.random() < 0.15 or t == world.num_steps - 1:
            assert_same_transitions(buffer, model)
            checks.append(buffer.oldest_id > 0)
    return checks


def restored(buffer: ReplayBuffer, world: World, rng: np.random.Generator) -> ReplayBuffer:
    """Another buffer with the same contents, handed over in pieces of random length."""
    other = world.buffer()
    other.load_state_dict(buffer.state_dict())
    first = buffer.oldest_id
    while first < buffer.next_id:
        end = min(buffer.next_id, first + int(rng.integers(1, 30)))
        other.restore(buffer.rows(first, end))
        first = end
    return other


@settings(max_examples=150)
@given(world=worlds)
def test_every_drawable_transition_is_the_models_and_no_other(world: World) -> None:
    assert play(world)


def test_the_random_worlds_do_wrap_around() -> None:
    world = World(
        seed=5,
        num_steps=130,
        num_envs=3,
        stack=4,
        n_steps=2,
        spare_rows=1,
        final_obs_in_next_row=False,
        vectors=False,
        life_loss_rate=0.2,
        end_rate=0.05,
        break_rate=0.03,
        restore_rate=0.05,
    )
    checks = play(world)
    assert sum(checks) >= 10 and not all(checks)
    assert 9 * world.capacity < world.num_steps * world.num_envs


# -- by hand ---------------------------------------------------------------------------------------


def frame(value: int) -> NDArray[np.uint8]:
    return np.full((1, 2, 3), value, dtype=np.uint8)


def add_frame(
    buffer: ReplayBuffer,
    value: int,
    *,
    terminated: bool = False,
    ended: bool = False,
    last: int | None = None,
) -> None:
    buffer.add(
        frame(value),
        np.array([value]),
        np.array([float(value)]),
        np.array([terminated]),
        np.array([ended]),
        frame(last) if last is not None else frame(0)[:0],
    )


def drawn(buffer: ReplayBuffer) -> list[tuple[list[int], int, float, float, list[int]]]:
    """All that can be drawn, oldest first: stack, action, reward, discount, next stack."""
    found = {}
    batch = buffer.sample(400, rng=np.random.default_rng(0))
    for obs, action, reward, discount, next_obs in zip(*batch, strict=True):
        row = (
            obs[:, 0, 0].tolist(),
            int(action),
            round(float(reward), 5),
            round(float(discount), 5),
            next_obs[:, 0, 0].tolist(),
        )
        found[str(row)] = row
    return sorted(found.values(), key=lambda row: row[1])


def test_stacks_time_limit_and_life_loss_by_hand() -> None:
    buffer = ReplayBuffer(30, (2, 3), 1, stack=2, n_steps=1, gamma=0.5)
    add_frame(buffer, 1)
    add_frame(buffer, 2, terminated=True)  # a life lost: the game and its stack go on
    add_frame(buffer, 3, ended=True, last=4)  # a time limit
    add_frame(buffer, 5, terminated=True, ended=True, last=6)
    add_frame(buffer, 7)  # its successor is not known yet
    assert drawn(buffer) == [
        ([0, 1], 1, 1.0, 0.5, [1, 2]),
        ([1, 2], 2, 2.0, 0.0, [2, 3]),
        ([2, 3], 3, 3.0, 0.5, [3, 4]),
        ([0, 5], 5, 5.0, 0.0, [5, 6]),
    ]


def test_windows_of_several_steps_by_hand() -> None:
    buffer = ReplayBuffer(30, (2, 3), 1, stack=2, n_steps=3, gamma=0.5)
    add_frame(buffer, 1)
    add_frame(buffer, 2)
    add_frame(buffer, 3, ended=True, last=4)  # a time limit
    add_frame(buffer, 5)
    add_frame(buffer, 6, terminated=True)  # a life lost
    add_frame(buffer, 7)
    add_frame(buffer, 8)
    add_frame(buffer, 9)
    add_frame(buffer, 10)  # 8, 9 and 10 have no three steps yet
    assert drawn(buffer) == [
        ([0, 1], 1, 1 + 2 / 2 + 3 / 4, 0.125, [3, 4]),
        ([1, 2], 2, 2 + 3 / 2, 0.25, [3, 4]),
        ([2, 3], 3, 3.0, 0.5, [3, 4]),
        ([0, 5], 5, 5 + 6 / 2, 0.0, [6, 7]),
        ([5, 6], 6, 6.0, 0.0, [6, 7]),
        ([6, 7], 7, 7 + 8 / 2 + 9 / 4, 0.125, [9, 10]),
    ]


def test_what_a_break_interrupts_is_never_drawn() -> None:
    buffer = ReplayBuffer(30, (2, 3), 1, stack=2, n_steps=1, gamma=0.5)
    add_frame(buffer, 1)
    add_frame(buffer, 2, terminated=True)
    buffer.break_streams()
    add_frame(buffer, 3)
    add_frame(buffer, 4)
    assert drawn(buffer) == [([0, 1], 1, 1.0, 0.5, [1, 2]), ([0, 3], 3, 3.0, 0.5, [3, 4])]


# -- what Atari gives ------------------------------------------------------------------------------


def test_stacks_are_those_of_the_atari_environment() -> None:
    pytest.importorskip("ale_py")
    from classicrl.envs.atari import PROTOCOLS, make_atari

    protocol = dataclasses.replace(PROTOCOLS["classic"], max_frames_per_episode=1200)
    env = make_atari("ALE/Breakout-v5", 5, protocol=protocol, seed=1, num_threads=1)
    settings: dict[str, Any] = {"stack": 4, "gamma": 0.9}
    pairs = [
        (
            ReplayBuffer(1000, (84, 84), 5, n_steps=n, sampler=EveryAge(), **settings),
            PlainReplay(1000, 5, n_steps=n, **settings),
        )
        for n in (1, 3)
    ]
    rng = np.random.default_rng(0)
    obs = env.reset()
    seen = {"life lost": 0, "over": 0, "cut": 0}
    for _ in range(320):
        action = rng.integers(env.num_actions, size=5)
        action[0] = 0  # never serves a second ball, so that its games last until they are cut
        step = env.step(action)
        reward = np.sign(step.reward)
        for buffer, model in pairs:
            model.add(obs, action, reward, step.terminated, step.ended, step.final_obs)
            buffer.add(
                obs[:, -1], action, reward, step.terminated, step.ended, step.final_obs[:, -1]
            )
        seen["life lost"] += int((step.terminated & ~step.ended).sum())
        seen["over"] += int((step.terminated & step.ended).sum())
        seen["cut"] += int((step.ended & ~step.terminated).sum())
        obs = step.obs
    env.close()
    assert all(seen.values()), seen
    for buffer, model in pairs:
        assert buffer.oldest_id > 0
        assert len(assert_same_transitions(buffer, model)) > 900


# -- the distribution of samples -------------------------------------------------------------------


def filled(seed: int = 0, sampler: Any = None) -> ReplayBuffer:
    """A wrapped ring of 60 rows of 3 environments; every frame tells its row."""
    rng = np.random.default_rng(1)
    buffer = ReplayBuffer(60, (2,), 3, n_steps=2, stack=2, seed=seed, sampler=sampler)
    for t in range(40):
        ended = rng.random(3) < 0.1
        rows = np.stack([np.full(3, t), np.arange(3)], axis=1).astype(np.uint8)
        lasts = np.full((int(ended.sum()), 2), 255, dtype=np.uint8)
        buffer.add(rows, np.zeros(3), np.zeros(3), ended, ended, lasts)
    return buffer


def counts(buffer: ReplayBuffer, num_draws: int) -> NDArray[np.int64]:
    """How often each row was drawn that was drawn at all."""
    rows = buffer.sample(num_draws).obs[:, -1].numpy().astype(np.int64) @ [256, 1]
    return np.unique(rows, return_counts=True)[1]


def chi_square(observed: NDArray[np.int64]) -> float:
    expected = observed.sum() / len(observed)
    return float(((observed - expected) ** 2 / expected).sum())


def test_all_drawable_rows_are_equally_likely() -> None:
    observed = counts(filled(), 40_000)
    freedom = len(observed) - 1
    assert freedom > 35
    assert chi_square(observed) < freedom + 4 * math.sqrt(2 * freedom)

    def prefers_new(rng: np.random.Generator, num_stored: int, size: int) -> NDArray[np.int64]:
        return (rng.random(size) ** 1.2 * num_stored).astype(np.int64)

    # The same bound notices a sampler that is only slightly uneven.
    uneven = counts(filled(sampler=prefers_new), 40_000)
    assert len(uneven) == len(observed)
    assert chi_square(uneven) > 2 * (freedom + 4 * math.sqrt(2 * freedom))


def test_a_batch_is_spread_over_the_ring_wherever_the_seed_points() -> None:
    # Redrawing must not favour what was drawn first: every position of the batch is uniform.
    firsts = [filled(seed).sample(3).obs[:, -1].numpy() @ np.array([1, 0]) for seed in range(150)]
    means = np.mean(firsts, axis=0)
    assert np.ptp(means) < 4 * np.std(firsts) / math.sqrt(150) * math.sqrt(2)


def test_uniform_sampler_covers_all_ages() -> None:
    ages = UniformSampler()(np.random.default_rng(0), 7, 500)
    assert ages.dtype == np.int64
    assert sorted(set(ages.tolist())) == list(range(7))


def assert_equal_batches(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_same_seed_same_samples() -> None:
    first, again, other = filled(3), filled(3), filled(4)
    differs = False
    for _ in range(3):
        batch = first.sample(16)
        assert_equal_batches(batch, again.sample(16))
        differs |= not torch.equal(batch.obs, other.sample(16).obs)
    assert differs


def test_a_look_with_another_generator_leaves_the_own_one_untouched() -> None:
    looked_at, undisturbed = filled(), filled()
    looks = [looked_at.sample(16, rng=np.random.default_rng(5)) for _ in range(2)]
    assert_equal_batches(*looks)
    assert_equal_batches(looked_at.sample(16), undisturbed.sample(16))


def test_a_restored_buffer_goes_on_drawing_the_same() -> None:
    buffer, other = filled(0), ReplayBuffer(60, (2,), 3, n_steps=2, stack=2, seed=99)
    buffer.sample(5)
    other.load_state_dict(buffer.state_dict())
    other.restore(buffer.rows(buffer.oldest_id, buffer.next_id))
    for _ in range(3):
        assert_equal_batches(buffer.sample(16), other.sample(16))


def test_older_rows_than_the_ring_holds_are_passed_over_by_restore() -> None:
    buffer, other = filled(), ReplayBuffer(60, (2,), 3, n_steps=2, stack=2)
    early = buffer.rows(buffer.oldest_id, buffer.oldest_id + 20)
    for value in range(10):  # ten steps later most of them are overwritten
        rows = np.full((3, 2), value, dtype=np.uint8)
        none = np.zeros(3, dtype=np.bool_)
        buffer.add(rows, np.zeros(3), np.zeros(3), none, none, rows[:0])
    other.load_state_dict(buffer.state_dict())
    other.restore(early)
    other.restore(buffer.rows(buffer.oldest_id, buffer.next_id))
    assert_equal_batches(buffer.sample(64), other.sample(64))


# -- buffers of several members --------------------------------------------------------------------


def add_random_step(
    replays: MemberReplays, alone: list[ReplayBuffer], rng: np.random.Generator, final_row: bool
) -> None:
    """One step of 3 environments for each member; the same to every buffer that stands alone."""
    rows = 3 * len(alone)
    obs = rng.integers(256, size=(rows, 2), dtype=np.uint8)
    action, reward = rng.integers(18, size=rows), rng.normal(size=rows).astype(np.float32)
    ended = rng.random(rows) < 0.2
    terminated = rng.random(rows) < 0.2
    final_obs = None if final_row else rng.integers(256, size=(ended.sum(), 2), dtype=np.uint8)
    replays.add(obs, action, reward, terminated, ended, final_obs)
    for k, buffer in enumerate(alone):
        own, before = slice(3 * k, 3 * k + 3), ended[: 3 * k].sum()
        last = None if final_obs is None else final_obs[before : before + ended[own].sum()]
        buffer.add(obs[own], action[own], reward[own], terminated[own], ended[own], last)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_members=st.integers(1, 4),
    stack=st.sampled_from([None, 2]),
    n_steps=st.integers(1, 3),
    spare_rows=st.integers(0, 9),
    final_row=st.booleans(),
    num_steps_alone=st.sampled_from([0, 7, 40]),
)
def test_members_draw_what_each_would_alone(
    seed: int,
    num_members: int,
    stack: int | None,
    n_steps: int,
    spare_rows: int,
    final_row: bool,
    num_steps_alone: int,
) -> None:
    def buffers() -> list[ReplayBuffer]:
        capacity = 2 * 3 * (2 + 3) + spare_rows
        return [
            ReplayBuffer(capacity, (2,), 3, stack=stack, n_steps=n_steps, gamma=0.9, seed=k)
            for k in range(num_members)
        ]

    rng = np.random.default_rng(seed)
    alone, joined = buffers(), buffers()
    for k in range(num_members):  # before they are joined: of unequal lengths
        for _ in range(num_steps_alone * k):
            obs = rng.integers(256, size=(3, 2), dtype=np.uint8)
            ended = rng.random(3) < 0.2
            for buffer in (alone[k], joined[k]):
                buffer.add(obs, np.ones(3), np.ones(3), ended, ended, obs[ended])
    replays = MemberReplays(joined)
    for t in range(30):
        add_random_step(replays, alone, rng, final_row)
        if t in (9, 21):
            replays.break_streams()
            for buffer in alone:
                buffer.break_streams()
        if t >= 5 and t % 3 == 0 and all(map(is_drawable, alone)):
            # So large that a first round of draws leaves some missing now and then.
            batch = replays.sample(5 + t)
            for k, buffer in enumerate(alone):
                expected = buffer.sample(5 + t)
                for name, field in batch._asdict().items():
                    assert torch.equal(field[k], getattr(expected, name)), name
    assert len(replays) == min(len(buffer) for buffer in alone)
    for buffer, own in zip(alone, joined, strict=True):  # what an archive keeps
        rows, expected_rows = (b.rows(b.oldest_id, b.next_id) for b in (own, buffer))
        for found, expected_field in zip(rows, expected_rows, strict=True):
            np.testing.assert_array_equal(found, expected_field)
        assert str(own.state_dict()) == str(buffer.state_dict())


def is_drawable(buffer: ReplayBuffer) -> bool:
    """Whether some transition is whole, without touching the buffer's generator."""
    stored = np.arange(buffer.oldest_id, buffer.next_id)
    return bool(buffer.rings.is_whole(stored[None]).any())


def test_a_look_at_all_members_leaves_their_generators_untouched() -> None:
    looked_at, undisturbed = (MemberReplays([filled(3), filled(4)]) for _ in range(2))
    looks = [looked_at.sample(16, rng=np.random.default_rng(5)) for _ in range(2)]
    assert_equal_batches(*looks)
    assert_equal_batches(looked_at.sample(16), undisturbed.sample(16))


@pytest.mark.parametrize(
    "other", [{"capacity": 61}, {"obs_shape": (3,)}, {"num_envs": 2}, {"gamma": 0.5}, {"stack": 2}]
)
def test_members_of_different_kinds_are_refused(other: dict[str, Any]) -> None:
    one: dict[str, Any] = {"capacity": 60, "obs_shape": (2,), "num_envs": 3}
    with pytest.raises(ValueError, match="one size, shape and device"):
        MemberReplays([ReplayBuffer(**one), ReplayBuffer(**{**one, **other})])


# -- sizes and refusals ----------------------------------------------------------------------------


def test_an_atari_transition_costs_its_frame_and_little_more() -> None:
    buffer = ReplayBuffer(300, (84, 84), 2, stack=4, n_steps=3)
    assert buffer.nbytes == replay_nbytes(300, (84, 84))
    assert 84 * 84 < buffer.nbytes / 300 <= 7_200


def test_size_with_vectors() -> None:
    buffer = ReplayBuffer(
        70,
        (17,),
        2,
        obs_dtype=torch.float32,
        action_shape=(6,),
        action_dtype=np.float32,
    )
    assert buffer.nbytes == replay_nbytes(70, (17,), obs_itemsize=4, action_nbytes=24)


@pytest.mark.parametrize(("capacity", "fits"), [(2 * 3 * (4 + 2), True), (35, False), (0, False)])
def test_a_ring_without_room_for_a_window_is_refused(capacity: int, fits: bool) -> None:
    if fits:
        ReplayBuffer(capacity, (2, 3), 3, stack=4, n_steps=2)
    else:
        with pytest.raises(UserError, match="at least 36"):
            ReplayBuffer(capacity, (2, 3), 3, stack=4, n_steps=2)


def test_nothing_can_be_drawn_before_a_step_is_whole() -> None:
    buffer = ReplayBuffer(30, (2, 3), 1, n_steps=2)
    for _ in range(2):
        with pytest.raises(UserError, match="no whole transition"):
            buffer.sample(4)
        add_frame(buffer, 1)
    with pytest.raises(UserError, match="no whole transition"):
        buffer.sample(4)
    add_frame(buffer, 2)
    assert buffer.sample(4).obs.shape == (4, 2, 3)


def test_wrong_numbers_of_environments_or_last_observations_are_refused() -> None:
    buffer = ReplayBuffer(60, (2,), 3)
    two, three = np.zeros((2, 2), np.uint8), np.zeros((3, 2), np.uint8)
    no, ends = np.zeros(3, dtype=np.bool_), np.array([True, False, True])
    with pytest.raises(ValueError, match="3 environments"):
        buffer.add(two, np.zeros(3), np.zeros(3), no, no, two[:0])
    with pytest.raises(ValueError, match="3 environments"):
        buffer.add(three, np.zeros(3), np.zeros(3), no, no[:2], two[:0])
    with pytest.raises(ValueError, match="2 episodes ended, but 1"):
        buffer.add(three, np.zeros(3), np.zeros(3), no, ends, two[:1])


def test_rows_that_are_not_stored_cannot_be_read() -> None:
    buffer = filled()
    for first, end in [
        (buffer.oldest_id - 1, buffer.next_id),
        (buffer.oldest_id, buffer.next_id + 1),
        (buffer.next_id, buffer.next_id),
    ]:
        with pytest.raises(ValueError, match="are not all in"):
            buffer.rows(first, end)


def test_actions_beyond_a_byte_come_back_whole() -> None:
    replay = ReplayBuffer(30, (2,), 1)
    for t in range(9):
        flags = np.zeros(1, np.bool_)
        replay.add(np.zeros((1, 2), np.uint8), np.array([1883 - t]), np.zeros(1), flags, flags)
    assert set(replay.sample(50).action.tolist()) <= set(range(1875, 1884))
    assert replay.sample(50).action.min() > 255
