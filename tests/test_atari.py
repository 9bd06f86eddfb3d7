"""Both Atari environments: parity with each other, ends of games, seeds, saved state, refusals."""

import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from script_process import CI

pytest.importorskip("ale_py")

from classicrl.envs.atari import (
    PROTOCOLS,
    AtariProtocol,
    AtariSingle,
    AtariVector,
    atari_games,
    make_atari,
)
from classicrl.errors import UserError

CLASSIC = PROTOCOLS["classic"]
STICKY = PROTOCOLS["sticky"]
# Nothing is drawn at random here, so that two emulators with the same actions stay together.
PLAIN = dataclasses.replace(CLASSIC, noop_max=0, fire_reset=False)
BREAKOUT = "ALE/Breakout-v5"
FIRE = 1  # in Breakout


def vector(env_id: str, num_envs: int, protocol: AtariProtocol, seed: int = 3) -> AtariVector:
    env = make_atari(env_id, num_envs, protocol=protocol, seed=seed, num_threads=2)
    assert isinstance(env, AtariVector)
    return env


def single(env_id: str, protocol: AtariProtocol, seed: int = 3) -> AtariSingle:
    env = make_atari(env_id, 1, protocol=protocol, seed=seed)
    assert isinstance(env, AtariSingle)
    return env


def difference(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference of two uint8 arrays of one shape; 0 for empty ones."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(np.int16) - b).max(initial=0))


class GivenNoops:
    """In the place of a single environment's generator: the no-op counts that it is told."""

    def __init__(self) -> None:
        self.count = 0

    def integers(self, high: int) -> int:
        assert 0 <= self.count < high
        return self.count


def spy_on_infos(env: AtariVector) -> list[dict]:
    """Collect the infos of the C++ environment, whose no-op counts the interface hides."""
    infos: list[dict] = []
    emulators = env._envs
    reset, recv = emulators.reset, emulators.recv

    def spied_reset(*, seed):
        infos.append({"seeds": seed})
        obs, info = reset(seed=seed)
        infos.append(info)
        return obs, info

    def spied_recv():
        result = recv()
        infos.append(result[-1])
        return result

    emulators.reset, emulators.recv = spied_reset, spied_recv
    return infos


@pytest.mark.parametrize(
    ("game", "steps", "games_at_least", "scores", "loses_lives"),
    [
        pytest.param("Pong", 1500, 1, True, False, marks=CI),  # knows no lives
        pytest.param("Breakout", 900, 3, True, True, marks=CI),
        ("Seaquest", 900, 1, True, True),
        pytest.param("SpaceInvaders", 900, 1, True, True, marks=CI),
        pytest.param("MontezumaRevenge", 1300, 1, False, True, marks=CI),
        ("AirRaid", 300, 0, True, False),  # 250 lines instead of 210
    ],
)
def test_single_reproduces_vector(
    game: str, steps: int, games_at_least: int, scores: bool, loses_lives: bool
) -> None:
    watched = 1
    many, one = vector(f"ALE/{game}-v5", 3, PLAIN), single(f"ALE/{game}-v5", PLAIN, seed=8)
    assert many.action_meanings == one.action_meanings
    assert difference(many.reset()[[watched]], one.reset()) <= 1
    rng = np.random.default_rng(0)
    games, lost_lives, total_reward, unlike_pixels = 0, 0, 0.0, 0.0
    for _ in range(steps):
        actions = rng.integers(many.num_actions, size=3)
        a, b = many.step(actions), one.step(actions[[watched]])
        assert a.obs.shape == (3, 4, 84, 84) and a.reward.dtype == b.reward.dtype == np.float32
        for field in ("reward", "terminated", "ended"):
            assert getattr(a, field)[watched] == getattr(b, field)[0], field
        assert difference(a.obs[[watched]], b.obs) <= 1
        unlike_pixels += float((a.obs[watched] != b.obs[0]).mean())
        row = a.ended[:watched].sum()
        assert len(a.final_obs) == a.ended.sum()
        assert difference(a.final_obs[row : row + len(b.final_obs)], b.final_obs) <= 1
        assert not b.ended[0] or b.terminated[0]  # the cap is far away
        assert b.obs[0, -1].std() > 0 or b.ended[0]
        games += int(b.ended[0])
        lost_lives += int(b.terminated[0] and not b.ended[0])
        total_reward += abs(float(b.reward[0]))
    assert unlike_pixels / steps < 5e-3  # only sums that lie between two grey levels
    assert games >= games_at_least
    assert (total_reward > 0) == scores
    assert (lost_lives > 0) == loses_lives


@pytest.mark.parametrize("protocol", [CLASSIC, dataclasses.replace(STICKY, noop_max=30)])
def test_single_reproduces_random_starts_and_sticky_actions(protocol: AtariProtocol) -> None:
    protocol = dataclasses.replace(protocol, max_frames_per_episode=202)
    watched = 1
    many, one = vector(BREAKOUT, 2, protocol), single(BREAKOUT, protocol)
    infos = spy_on_infos(many)
    obs = many.reset()
    noops = GivenNoops()
    one._rng = noops  # type: ignore[assignment]
    # The same emulator seed: then the sticky draws, one for each frame, are the same too.
    from ale_py import roms

    one._ale.setInt("random_seed", int(infos[0]["seeds"][watched]))
    one._ale.loadROM(roms.get_rom_path("breakout"))
    noops.count = int(infos[1]["episode_frame_number"][watched])
    assert difference(obs[[watched]], one.reset()) <= 1
    rng = np.random.default_rng(4)
    starts = [noops.count]
    for _ in range(400):
        actions = rng.integers(4, size=2)
        a = many.step(actions)
        noops.count = int(infos[-1]["episode_frame_number"][watched])
        b = one.step(actions[[watched]])
        assert a.reward[watched] == b.reward[0]
        assert a.terminated[watched] == b.terminated[0] and a.ended[watched] == b.ended[0]
        assert difference(a.obs[[watched]], b.obs) <= 1
        if b.ended[0]:
            starts.append(noops.count)
    assert len(starts) >= 5 and len(set(starts)) > 2
    assert min(starts) >= int(protocol.fire_reset)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_lost_life_goes_on_with_the_game(num_envs: int) -> None:
    env = make_atari(BREAKOUT, num_envs, protocol=CLASSIC, seed=1, num_threads=1)
    previous = env.reset()
    assert (previous[:, :-1] == 0).all() and previous[:, -1].any()
    lost = 0
    for _ in range(100):
        step = env.step(np.full(num_envs, FIRE))
        assert not step.ended.any() and step.final_obs.shape == (0, 4, 84, 84)
        # The stack goes on across the lost life.
        assert (step.obs[:, :-1] == previous[:, 1:]).all()
        previous = step.obs
        lost += int(step.terminated[0])
        if isinstance(env, AtariSingle):
            assert env.lives == 5 - lost
    assert lost >= 2

    lasting = dataclasses.replace(CLASSIC, life_loss_terminates=False)
    env = make_atari(BREAKOUT, num_envs, protocol=lasting, seed=1, num_threads=1)
    env.reset()
    assert not any(env.step(np.full(num_envs, FIRE)).terminated.any() for _ in range(100))


def test_last_spare_life_is_no_end() -> None:
    # Turmoil counts the lives in reserve: at 0 the game goes on, and ale-py reports nothing.
    many, one = vector("ALE/Turmoil-v5", 2, PLAIN), single("ALE/Turmoil-v5", PLAIN)
    many.reset()
    one.reset()
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(520):
        before = one.lives
        actions = rng.integers(one.num_actions, size=1)
        a, b = many.step(np.repeat(actions, 2)), one.step(actions)
        assert (a.terminated == b.terminated).all() and (a.ended == b.ended).all()
        if one.lives < before:
            seen.append((before, one.lives, bool(b.terminated[0]), bool(b.ended[0])))
    assert (2, 1, True, False) in seen
    assert (1, 0, False, False) in seen


@pytest.mark.parametrize("num_envs", [1, 2])
def test_game_over_ends_once_after_the_last_life(num_envs: int) -> None:
    env = make_atari(BREAKOUT, num_envs, protocol=PLAIN, seed=1, num_threads=1)
    env.reset()
    previous = env.observation()
    terminated = 0
    for _ in range(600):
        step = env.step(np.full(num_envs, FIRE))
        terminated += int(step.terminated[0])
        if step.ended[0]:
            break
        previous = step.obs
    assert terminated == 5 and step.terminated[0]
    # The new game: one screen. The old one: its last screens, not uninitialised memory.
    assert (step.obs[0, :-1] == 0).all() and step.obs[0, -1].any()
    assert (step.final_obs[0, :-1] == previous[0, 1:]).all()


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("cap_frames", [40, 42])
def test_cap_truncates(num_envs: int, cap_frames: int) -> None:
    protocol = dataclasses.replace(PLAIN, max_frames_per_episode=cap_frames)
    env = make_atari("ALE/Seaquest-v5", num_envs, protocol=protocol, seed=1, num_threads=1)
    first = previous = env.reset()
    ends = []
    for t in range(35):
        step = env.step(np.full(num_envs, t % 5))
        assert not step.terminated.any()
        if step.ended.all():
            ends.append(t + 1)
            assert step.final_obs.shape == (num_envs, 4, 84, 84)
            assert (step.final_obs[:, :-1] == previous[:, 1:]).all()
            assert (step.obs == first).all()  # the game starts alike without random starts
            assert (step.final_obs != step.obs).any()
        else:
            assert not step.ended.any()
        previous = step.obs
    length = -(-cap_frames // 4)
    assert ends == [length, 2 * length, 3 * length]


@pytest.mark.parametrize("num_envs", [1, 2])
def test_life_lost_exactly_on_the_cap_is_terminated_and_ended(num_envs: int) -> None:
    def first_terminated(protocol: AtariProtocol) -> tuple[int, bool]:
        env = make_atari(BREAKOUT, num_envs, protocol=protocol, seed=1, num_threads=1)
        env.reset()
        for t in range(1, 200):
            step = env.step(np.full(num_envs, FIRE))
            if step.terminated[0]:
                assert len(step.final_obs) == step.ended.sum()
                return t, bool(step.ended[0])
        raise AssertionError("no life was lost")

    steps, ended = first_terminated(PLAIN)
    assert not ended
    at_cap = dataclasses.replace(PLAIN, max_frames_per_episode=4 * steps)
    assert first_terminated(at_cap) == (steps, True)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_invalid_actions_raise_before_they_are_sent(num_envs: int) -> None:
    env = make_atari(BREAKOUT, num_envs, protocol=STICKY, seed=1, num_threads=1)
    untouched = make_atari(BREAKOUT, num_envs, protocol=STICKY, seed=1, num_threads=1)
    assert (env.reset() == untouched.reset()).all()
    last = num_envs - 1
    for value in (-1, 4):
        actions = np.zeros(num_envs, dtype=np.int64)
        actions[last] = value
        with pytest.raises(ValueError, match=rf"action {value} of environment {last} .*\[0, 4\)"):
            env.send(actions)
    with pytest.raises(ValueError, match="integers"):
        env.send(np.zeros(num_envs))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="integers"):
        env.send(np.zeros(num_envs, dtype=bool))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        env.send(np.zeros(num_envs + 1, dtype=np.int64))
    with pytest.raises(ValueError, match="shape"):
        env.send(np.zeros((num_envs, 1), dtype=np.int64))
    for dtype in (np.uint8, np.int32, np.int64):
        a = env.step(np.full(num_envs, 2, dtype=dtype))
        b = untouched.step(np.full(num_envs, 2))
        assert (a.obs == b.obs).all() and (a.reward == b.reward).all()


@pytest.mark.parametrize("num_envs", [1, 2])
def test_calls_out_of_order_raise_instead_of_waiting_for_ever(num_envs: int) -> None:
    env = make_atari(BREAKOUT, num_envs, protocol=CLASSIC, seed=1, num_threads=1)
    actions = np.zeros(num_envs, dtype=np.int64)
    with pytest.raises(RuntimeError, match="before reset"):
        env.send(actions)
    with pytest.raises(RuntimeError, match="before reset"):
        env.observation()
    with pytest.raises(RuntimeError, match="without a send"):
        env.recv()
    env.reset()
    env.send(actions)
    with pytest.raises(RuntimeError, match="twice"):
        env.send(actions)
    with pytest.raises(RuntimeError, match="between send"):
        env.state_dict()
    first = env.reset()  # drops the step under way
    assert (first[:, :-1] == 0).all()
    with pytest.raises(RuntimeError, match="without a send"):
        env.recv()
    env.send(actions)
    env.close()
    env.close()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_send_then_recv_equals_step_and_arrays_belong_to_the_caller(num_envs: int) -> None:
    protocol = dataclasses.replace(CLASSIC, max_frames_per_episode=120)
    a, b = (make_atari(BREAKOUT, num_envs, protocol=protocol, seed=6) for _ in range(2))
    assert (a.reset() == b.reset()).all()
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(70):
        actions = rng.integers(4, size=num_envs)
        a.send(actions)
        first = a.recv()
        second = b.step(actions)
        for x, y in zip(first, second, strict=True):
            assert x.dtype == y.dtype and x.shape == y.shape and (x == y).all()
        assert (a.observation() == first.obs).all()
        kept.append((first, copy.deepcopy(first)))
        second.obs[:] = 77  # must not reach the environment
        assert (b.observation() == first.obs).all()
    for step, then in kept:
        assert all((x == y).all() for x, y in zip(step, then, strict=True))


def plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    return type(value) in (str, int, float, bool, bytes, np.ndarray)


@pytest.mark.parametrize("steps_before", [0, 5, 29, 30])
def test_single_state_round_trip_is_exact(steps_before: int) -> None:
    # Everything random at once, and a new game every 30 steps.
    protocol = dataclasses.replace(
        STICKY, noop_max=30, fire_reset=True, max_frames_per_episode=120, life_loss_terminates=True
    )
    rng = np.random.default_rng(2)
    env = single(BREAKOUT, protocol, seed=11)
    env.reset()
    for _ in range(steps_before):
        env.step(rng.integers(4, size=1))
    held = env.state_dict()
    state = copy.deepcopy(held)
    assert plain(state)
    other, unrestored = single(BREAKOUT, protocol, seed=12), single(BREAKOUT, protocol, seed=12)
    unrestored.reset()
    other.reset()
    other.step(np.array([2]))
    other.load_state_dict(copy.deepcopy(state))
    assert (other.observation() == env.observation()).all()
    assert other.lives == env.lives
    ends, differs = 0, False
    for _ in range(100):
        action = rng.integers(4, size=1)
        a, b, c = env.step(action), other.step(action), unrestored.step(action)
        assert all((x == y).all() for x, y in zip(a, b, strict=True))
        assert (env.ram() == other.ram()).all() and (env.render() == other.render()).all()
        ends += int(a.ended[0])
        differs = differs or bool((a.obs != c.obs).any())
    assert ends >= 3
    assert differs  # another seed plays otherwise, so the comparison above could have failed
    # Neither playing on nor loading has reached into the state.
    for key in ("screens", "stack"):
        assert (held[key] == state[key]).all()
    again = single(BREAKOUT, protocol, seed=13)
    again.load_state_dict(state)
    other.load_state_dict(state)
    assert (again.step(np.array([3])).obs == other.step(np.array([3])).obs).all()


def play(env: AtariVector | AtariSingle, first: np.ndarray, steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    views = [first] + [env.step(rng.integers(4, size=env.num_envs)).obs for _ in range(steps)]
    return np.stack(views)


def test_seeds_decide_the_games() -> None:
    protocol = dataclasses.replace(STICKY, noop_max=30)
    runs = []
    for seed, num_threads in ((5, 1), (5, 2), (6, 1)):
        env = make_atari(BREAKOUT, 3, protocol=protocol, seed=seed, num_threads=num_threads)
        runs.append(play(env, env.reset(), 60))
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any(axis=(0, 2, 3, 4)).all()

    # Every environment has its own stream: same actions, other games.
    env = vector(BREAKOUT, 3, STICKY)
    env.reset()
    obs = np.stack([env.step(np.full(3, 1 + t % 3)).obs for t in range(60)])
    assert (obs[:, 0] != obs[:, 1]).any() and (obs[:, 1] != obs[:, 2]).any()

    singles = [single(BREAKOUT, protocol, seed) for seed in (5, 5, 6)]
    alone = [play(env, env.reset(), 60) for env in singles]
    assert (alone[0] == alone[1]).all() and (alone[0] != alone[2]).any()


def test_vector_resumes_with_games_not_played_before() -> None:
    protocol = dataclasses.replace(STICKY, noop_max=30)
    env = vector(BREAKOUT, 2, protocol, seed=7)
    played = play(env, env.reset(), 60)
    state = env.state_dict()
    assert plain(state)

    resumed, resumed_again = vector(BREAKOUT, 2, protocol), vector(BREAKOUT, 2, protocol, seed=99)
    resumed.load_state_dict(state)
    first = resumed.observation()
    assert (first[:, :-1] == 0).all() and first[:, -1].any(axis=(1, 2)).all()
    after = play(resumed, first, 60)
    assert (after != played).any(axis=(0, 2, 3, 4)).all()
    # The boundary itself is reproducible, and the next one differs again.
    resumed_again.load_state_dict(state)
    assert (play(resumed_again, resumed_again.observation(), 60) == after).all()
    third = vector(BREAKOUT, 2, protocol)
    third.load_state_dict(resumed.state_dict())
    assert (play(third, third.observation(), 60) != after).any()
    # A second reset of one environment does not replay either.
    assert (play(env, env.reset(), 60) == after).all()


def test_saved_state_of_another_game_or_protocol_is_refused() -> None:
    with pytest.raises(UserError, match="Breakout"):
        single("ALE/Pong-v5", STICKY).load_state_dict(single(BREAKOUT, STICKY).state_dict())
    with pytest.raises(UserError, match="rules"):
        single(BREAKOUT, CLASSIC).load_state_dict(single(BREAKOUT, STICKY).state_dict())
    with pytest.raises(UserError, match="Breakout"):
        vector("ALE/Pong-v5", 2, STICKY).load_state_dict(vector(BREAKOUT, 2, STICKY).state_dict())


@pytest.mark.parametrize("num_envs", [1, 2])
def test_action_sets(num_envs: int) -> None:
    env = make_atari(BREAKOUT, num_envs, protocol=STICKY, seed=0)
    assert env.num_envs == num_envs and env.obs_shape == (4, 84, 84)
    assert env.action_meanings == ("NOOP", "FIRE", "RIGHT", "LEFT") and env.num_actions == 4
    full = dataclasses.replace(STICKY, full_action_space=True)
    env = make_atari(BREAKOUT, num_envs, protocol=full, seed=0)
    assert env.num_actions == len(set(env.action_meanings)) == 18
    env.reset()
    env.step(np.full(num_envs, 17))


def test_ram_and_screen() -> None:
    env = single("ALE/MontezumaRevenge-v5", STICKY)
    env.reset()
    assert env.ram().shape == (128,) and env.ram().dtype == np.uint8
    assert env.ram()[3] == 1  # the first room
    assert env.lives == 6
    screen = env.render()
    assert screen.shape == (210, 160, 3) and screen.dtype == np.uint8 and screen.std() > 0
    env.ram()[:] = 0
    assert env.ram()[3] == 1


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("ALE/Breakot-v5", "did you mean ALE/Breakout-v5"),
        ("MontezumasRevenge", "did you mean ALE/MontezumaRevenge-v5"),
        ("PongNoFrameskip-v4", "did you mean ALE/Pong-v5"),
        ("space_invaders", "did you mean ALE/SpaceInvaders-v5"),
        ("ALE/Joust-v5", "unknown Atari game"),  # its cartridge would end the process
        ("xyzzy", 'ids look like "ALE/Breakout-v5"'),
    ],
)
def test_unknown_game_names_the_nearest(env_id: str, hint: str) -> None:
    for num_envs in (1, 2):
        with pytest.raises(UserError) as caught:
            make_atari(env_id, num_envs, protocol=CLASSIC, seed=0)
        assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="num_envs"):
        make_atari(BREAKOUT, 0, protocol=CLASSIC, seed=0)
    with pytest.raises(UserError, match="seed"):
        make_atari(BREAKOUT, 1, protocol=CLASSIC, seed=-1)
    with pytest.raises(UserError, match="num_threads"):
        make_atari(BREAKOUT, 2, protocol=CLASSIC, seed=0, num_threads=-1)
    for field, value in (
        ("repeat_action_probability", 1.5), ("noop_max", -1), ("max_frames_per_episode", 0)
    ):  # fmt: skip
        with pytest.raises(UserError, match=field):
            dataclasses.replace(CLASSIC, **{field: value})


def test_missing_ale_py_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    for num_envs in (1, 2):
        with pytest.raises(UserError, match=r'pip install "classicrl\[atari\]"'):
            make_atari(BREAKOUT, num_envs, protocol=CLASSIC, seed=0)


def test_nothing_is_printed() -> None:
    # In a process of its own: the emulator prints its banner once, past Python's own streams.
    code = (
        "from classicrl.envs.atari import *\n"
        "for n in (1, 2):\n"
        "    make_atari('ALE/Pong-v5', n, protocol=PROTOCOLS['classic'], seed=0).reset()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ids_are_those_of_gymnasium() -> None:
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    registered = {env_id for env_id in gymnasium.registry if env_id.startswith("ALE/")}
    assert set(atari_games()) == registered
    assert len(registered) > 100
    for env_id in sorted(registered)[::30]:
        assert single(env_id, CLASSIC).reset()[0, -1].shape == (84, 84)


@pytest.mark.slow
def test_every_game_loads_and_plays() -> None:
    for env_id in atari_games():
        env = single(env_id, CLASSIC)
        env.reset()
        step = env.step(np.array([env.num_actions - 1]))
        assert step.obs.shape == (1, 4, 84, 84), env_id
