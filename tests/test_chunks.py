"""Replay contents on disk: round trips, files that never change, sizes, and files not to trust."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray

from classicrl.errors import UserError
from classicrl.replay import ReplayArchive, ReplayBuffer, Rows, chunks

NUM_ENVS = 3


def buffer(capacity: int = 100, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(capacity, (4, 5), NUM_ENVS, stack=3, n_steps=2, seed=seed)


def play(replay: ReplayBuffer, num_steps: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        ended = rng.random(NUM_ENVS) < 0.1
        terminated = rng.random(NUM_ENVS) < 0.1
        replay.add(
            rng.integers(256, size=(NUM_ENVS, 4, 5), dtype=np.uint8),
            rng.integers(18, size=NUM_ENVS),
            rng.normal(size=NUM_ENVS),
            terminated,
            ended,
            rng.integers(256, size=(int(ended.sum()), 4, 5), dtype=np.uint8),
        )


def restored(replay: ReplayBuffer, archive: ReplayArchive) -> ReplayBuffer:
    """What another process makes of the files and the two state dicts."""
    other, its_archive = buffer(replay.capacity, seed=9), ReplayArchive(archive.directory)
    other.load_state_dict(replay.state_dict())
    its_archive.load_state_dict(json.loads(json.dumps(archive.state_dict())))
    its_archive.load(other)
    return other


def assert_same_contents(a: ReplayBuffer, b: ReplayBuffer) -> None:
    assert (a.oldest_id, a.next_id) == (b.oldest_id, b.next_id)
    for name, x, y in zip(
        Rows._fields, a.rows(a.oldest_id, a.next_id), b.rows(b.oldest_id, b.next_id), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=name)
    for _ in range(3):
        for tensor, other in zip(a.sample(32), b.sample(32), strict=True):
            assert torch.equal(tensor, other)


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 20, 33, 200])
def test_what_was_saved_comes_back_and_goes_on(tmp_path: Path, num_steps: int) -> None:
    replay, archive = buffer(), ReplayArchive(tmp_path / "replay")
    play(replay, num_steps)
    archive.save(replay)
    other = restored(replay, archive)
    for both in (replay, other):
        play(both, 7, seed=1)
    assert_same_contents(replay, other)


@pytest.mark.parametrize("steps_between", [1, 5, 21, 40, 90])
def test_many_saves_while_the_ring_comes_round(tmp_path: Path, steps_between: int) -> None:
    replay, archive = buffer(), ReplayArchive(tmp_path)
    for save in range(9):
        play(replay, steps_between, seed=save)
        archive.save(replay)
        if replay.next_id > 20:
            other = restored(replay, archive)
            state = replay.rng.bit_generator.state
            assert_same_contents(replay, other)
            replay.rng.bit_generator.state = state
    assert archive.num_rows >= len(replay)
    # Rows that were overwritten before the last save are not kept for ever.
    assert archive.chunks[0].end_id > replay.oldest_id
    assert sum(path.stat().st_size for path in archive.save(replay)) == archive.nbytes


def test_floats_and_vectors_come_back(tmp_path: Path) -> None:
    def make() -> ReplayBuffer:
        return ReplayBuffer(
            40,
            (6,),
            2,
            obs_dtype=torch.float32,
            action_shape=(3,),
            action_dtype=np.float32,
        )

    replay, archive, rng = make(), ReplayArchive(tmp_path), np.random.default_rng(0)
    for _ in range(30):
        obs = rng.normal(size=(2, 6)).astype(np.float32)
        no = np.zeros(2, dtype=np.bool_)
        replay.add(obs, rng.normal(size=(2, 3)).astype(np.float32), obs[:, 0], no, no)
    archive.save(replay)
    other = make()
    other.load_state_dict(replay.state_dict())
    archive.load(other)
    for a, b in zip(replay.sample(20), other.sample(20), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


# -- append only -----------------------------------------------------------------------------------


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.iterdir()}


def test_later_saves_leave_earlier_files_as_they_are(tmp_path: Path) -> None:
    replay, archive = buffer(), ReplayArchive(tmp_path)
    before: dict[str, tuple[int, bytes]] = {}
    for save in range(6):
        play(replay, 25, seed=save)
        files = archive.save(replay)
        after = contents(tmp_path)
        assert len(after) == len(before) + 1
        assert {name: after[name] for name in before} == before
        assert all(path.exists() for path in files)
        before = after
    assert replay.oldest_id > 0 and len(archive.chunks) < 6


def test_a_save_without_new_rows_writes_nothing(tmp_path: Path) -> None:
    replay, archive = buffer(), ReplayArchive(tmp_path)
    assert archive.save(replay) == []
    play(replay, 10)
    files = archive.save(replay)
    before = contents(tmp_path)
    assert archive.save(replay) == files
    assert contents(tmp_path) == before


def test_chunks_follow_one_another_without_gap(tmp_path: Path) -> None:
    replay, archive = buffer(), ReplayArchive(tmp_path)
    for save in range(4):
        play(replay, 8, seed=save)
        archive.save(replay)
    ends = [chunk.end_id for chunk in archive.chunks]
    assert [chunk.first_id for chunk in archive.chunks] == [0, *ends[:-1]]
    assert ends[-1] == replay.next_id


# -- sizes -----------------------------------------------------------------------------------------


def test_incompressible_frames_are_split_below_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAX_CHUNK_BYTES", 4_000)
    replay, archive = buffer(400), ReplayArchive(tmp_path)
    play(replay, 130)
    files = archive.save(replay)
    assert len(files) >= 3
    assert all(path.stat().st_size <= 4_000 for path in files)
    assert_same_contents(replay, restored(replay, archive))


def test_incompressible_screens_stay_below_the_real_limit(tmp_path: Path) -> None:
    replay, archive = ReplayBuffer(2_600, (84, 84), 1), ReplayArchive(tmp_path)
    rng = np.random.default_rng(0)
    no = np.zeros(1, dtype=np.bool_)
    for _ in range(2_500):  # 17 MB
        screen = rng.integers(256, size=(1, 84, 84), dtype=np.uint8)
        replay.add(screen, np.zeros(1), np.zeros(1), no, no)
    files = archive.save(replay)
    assert len(files) > 1
    assert all(path.stat().st_size <= 15 * 2**20 for path in files)
    assert archive.num_rows == 2_500


def test_large_rows_are_split_by_what_they_inflate_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, archive = buffer(200), ReplayArchive(tmp_path)
    monkeypatch.setattr(chunks, "_MAX_INFLATED_BYTES", 50 * (replay.nbytes // replay.capacity))
    play(replay, 60)
    archive.save(replay)
    assert max(chunk.end_id - chunk.first_id for chunk in archive.chunks) == 50
    assert_same_contents(replay, restored(replay, archive))


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "ALE/Breakout-v5"])
def test_real_screens_shrink_fifty_times(tmp_path: Path, env_id: str) -> None:
    pytest.importorskip("ale_py")
    from classicrl.envs.atari import PROTOCOLS, make_atari

    env = make_atari(env_id, 4, protocol=PROTOCOLS["classic"], seed=0, num_threads=1)
    replay, archive = ReplayBuffer(2_200, (84, 84), 4, stack=4), ReplayArchive(tmp_path)
    rng = np.random.default_rng(0)
    obs = env.reset()
    for _ in range(500):
        action = rng.integers(env.num_actions, size=4)
        step = env.step(action)
        replay.add(
            obs[:, -1], action, step.reward, step.terminated, step.ended, step.final_obs[:, -1]
        )
        obs = step.obs
    env.close()
    archive.save(replay)
    assert archive.num_rows >= 2_000
    assert archive.num_rows * replay.obs_nbytes / archive.nbytes >= 50


# -- files that cannot be trusted ------------------------------------------------------------------


def one_chunk(directory: Path, replay: ReplayBuffer) -> tuple[ReplayArchive, Path]:
    archive = ReplayArchive(directory)
    [path] = archive.save(replay)
    return archive, path


def refused(archive: ReplayArchive, replay: ReplayBuffer, *, naming: str) -> None:
    other = buffer(replay.capacity)
    other.load_state_dict(replay.state_dict())
    with pytest.raises(UserError) as caught:
        archive.load(other)
    assert naming in str(caught.value) and "\n" not in str(caught.value)


def test_a_chunk_cut_short_is_refused(tmp_path: Path) -> None:
    replay = buffer()
    play(replay, 20)
    archive, path = one_chunk(tmp_path, replay)
    whole = path.read_bytes()
    for length in [0, 1, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(archive, replay, naming=path.name)
    path.unlink()
    refused(archive, replay, naming=path.name)


def test_flipped_bits_are_noticed_or_harmless(tmp_path: Path) -> None:
    """The manifest of a checkpoint has the file's hash; here the file must defend itself alone."""
    replay = buffer()
    play(replay, 20)
    _, path = one_chunk(tmp_path, replay)
    whole = path.read_bytes()
    rows = chunks.decode(path)
    rng = np.random.default_rng(0)
    noticed = 0
    for position in rng.choice(len(whole), size=150, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = chunks.decode(path)
        except UserError:
            noticed += 1
            continue
        for a, b in zip(rows[1:], found[1:], strict=True):
            np.testing.assert_array_equal(a, b)
    assert noticed > 130


def rewritten(path: Path, *, first_id: str | None = None, **fields: Any) -> None:
    """Writes the chunk anew with other compressed bytes, dtype or shape of some fields."""
    with safetensors.safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layout = json.loads(metadata["layout"])
    for name, (data, dtype, shape) in fields.items():
        if data is not None:
            tensors[name] = np.frombuffer(data, dtype=np.uint8)
        layout[name] = {"dtype": dtype, "shape": shape}
    metadata["layout"] = json.dumps(layout)
    metadata["first_id"] = metadata["first_id"] if first_id is None else first_id
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


BOMB = zlib.compress(bytes(96 * 2**20))  # in 0.1 MB


@pytest.mark.parametrize(
    "obs",
    [
        pytest.param((BOMB, "uint8", [20, 4, 5]), id="declared small"),
        pytest.param((BOMB, "uint8", [0]), id="declared empty"),
        pytest.param((BOMB, "uint8", [-1]), id="declared negative"),
        pytest.param((BOMB, "uint8", [-3, -5]), id="declared twice negative"),
        pytest.param((BOMB, "uint8", [2**62, 4]), id="64 bits overflow to nothing"),
        pytest.param((BOMB, "uint8", [300 * 2**20]), id="declared beyond the limit"),
        pytest.param((None, "uint8", [2**70, 4, 5]), id="declared beyond 64 bits"),
        pytest.param((None, "uint8", [2**40, 4, 5]), id="declared huge"),
        pytest.param((None, "uint8", ["4", 5]), id="text for a length"),
        pytest.param((None, "uint8", 5), id="no shape"),
        pytest.param((None, "O", [20, 4, 5]), id="objects"),
        pytest.param((None, "no dtype", [20, 4, 5]), id="unknown dtype"),
        pytest.param((None, None, [20, 4, 5]), id="no dtype"),
        pytest.param((b"not deflated", "uint8", [20, 4, 5]), id="not deflated"),
        pytest.param((zlib.compress(b""), "uint8", [0, 4, 5]), id="no rows"),
    ],
)
def test_hostile_sizes_are_refused_without_filling_the_memory(
    tmp_path: Path, obs: tuple[Any, ...]
) -> None:
    import resource

    replay = buffer()
    play(replay, 6)
    archive, path = one_chunk(tmp_path, replay)
    rewritten(path, obs=obs)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 48 * 2**20, limits[1]))
    try:
        refused(archive, replay, naming=path.name)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def packed(array: NDArray[Any]) -> tuple[bytes, str, list[int]]:
    return zlib.compress(array.tobytes()), array.dtype.name, list(array.shape)


def test_fields_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    replay = buffer()
    play(replay, 6)
    archive, path = one_chunk(tmp_path, replay)
    whole = path.read_bytes()
    rows = chunks.decode(path)
    m = len(rows.reward)
    other_fields: list[dict[str, Any]] = [
        {"reward": packed(rows.reward[:-1])},
        {"reward": packed(rows.reward.astype(np.float64))},
        {"reward": packed(rows.reward[:, None])},
        {"back": packed(rows.back.astype(np.float32))},
        {"back": packed(rows.back[:-2])},
        {"back": packed(-1 - rows.back)},
        {"terminated": packed(rows.terminated.view(np.uint8))},
        {"obs": packed(np.zeros((m, 4, 6), np.uint8))},
        {"obs": packed(np.zeros((m, 4, 5), np.float32))},
        {"action": packed(np.zeros((m, 2), np.uint8))},
        {"action": packed(np.zeros(m, np.int64))},
        {"first_id": "1"},
        {"first_id": "-5"},
        {"first_id": "one"},
    ]
    for fields in other_fields:
        path.write_bytes(whole)
        rewritten(path, **fields)
        refused(archive, replay, naming=path.name)
    path.write_bytes(whole)
    rewritten(path)  # unchanged, it is accepted
    assert_same_contents(replay, restored(replay, archive))


def test_metadata_that_is_not_a_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    deep = "[" * 100_000
    for metadata in ({}, {"layout": "{"}, {"layout": "[]"}, {"layout": "7"}, {"layout": deep}):
        path.write_bytes(safetensors.numpy.save({"obs": np.zeros(3, np.uint8)}, metadata))
        with pytest.raises(UserError, match="not a whole replay chunk"):
            chunks.decode(path)


def test_chunks_that_were_swapped_are_refused(tmp_path: Path) -> None:
    replay, archive = buffer(), ReplayArchive(tmp_path)
    play(replay, 10)
    archive.save(replay)
    play(replay, 10, seed=1)
    first, second = archive.save(replay)
    data = first.read_bytes(), second.read_bytes()
    first.write_bytes(data[1])
    second.write_bytes(data[0])
    refused(archive, replay, naming=first.name)
