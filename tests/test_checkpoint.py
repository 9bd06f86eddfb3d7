import errno
import hashlib
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import tempfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from classicrl.checkpoint import (
    Checkpoint,
    CheckpointCorrupt,
    CheckpointNotWritten,
    CheckpointStore,
    checkpoint_paths,
    codec,
    load_model,
    read_checkpoint,
    save_model,
    write_atomic,
)
from classicrl.checkpoint import files as files_module
from classicrl.checkpoint import store as store_module
from classicrl.errors import UserError


def no_warning(line: str) -> None:
    raise AssertionError(f"unexpected warning: {line}")


def same(a: Any, b: Any) -> bool:
    """Equal in type, order, dtype, shape and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        raw_a, raw_b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(raw_a, raw_b)
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return bool(a == b)


def round_trip(state: dict[Any, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        CheckpointStore(Path(directory), warn=no_warning).save(7, state)
        loaded = CheckpointStore(Path(directory), warn=no_warning).load_latest()
    assert loaded is not None
    return loaded.state


# ------------------------------------------------------------------------------------ round trip

TORCH_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
NUMPY_DTYPES = [
    "?",
    "u1",
    "<i2",
    ">i4",
    "u8",
    "f2",
    "<f4",
    ">f8",
    "c8",
    "c16",
    "U3",
    "S2",
    "M8[ms]",
]

shapes = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype, shape = draw(st.sampled_from(TORCH_DTYPES)), draw(shapes)
    size = math.prod(shape)
    if dtype == torch.bool:
        data = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        return torch.tensor(data, dtype=dtype).reshape(shape)
    raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype, shape = np.dtype(draw(st.sampled_from(NUMPY_DTYPES))), draw(shapes)
    size = math.prod(shape)
    if dtype.kind in "U?":  # not every bit pattern is a character or a boolean
        values = st.text("abé", max_size=3) if dtype.kind == "U" else st.booleans()
        data = draw(st.lists(values, min_size=size, max_size=size))
        return np.array(data, dtype).reshape(shape)
    raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    return np.frombuffer(raw, dtype).reshape(shape).copy()


texts = st.text(st.characters(codec=None), max_size=6)  # lone surrogates included
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    texts,
    st.binary(max_size=9),
    tensors(),
    arrays(),
)
keys = st.one_of(texts, st.integers(-(2**70), 2**70))


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(keys, children, max_size=4),
    )


states = st.dictionaries(keys, st.recursive(leaves, containers, max_leaves=12), max_size=4)


@settings(max_examples=250, deadline=None)
@given(states)
def test_any_state_comes_back_bit_for_bit(state: dict[Any, Any]) -> None:
    assert same(round_trip(state), state)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3), (1, 2, 5)], ids=str)
def test_every_tensor_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    assert same(round_trip({"t": tensor}), {"t": tensor})


@pytest.mark.parametrize("dtype", [*NUMPY_DTYPES, "m8[7s]", "<U1"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)], ids=str)
def test_every_array_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape)).reshape(shape).astype("i8").astype(dtype)
    assert same(round_trip({"a": array}), {"a": array})


def test_floats_and_integers_are_exact() -> None:
    floats = [0.0, -0.0, 5e-324, 0.1, 1e308, math.inf, -math.inf, math.nan, -math.nan]
    integers = [0, 2**53 - 1, 2**53, -(2**53) - 1, 2**63, 2**64, 2**128 - 1, -(10**5000), True]
    state = {"floats": floats, "integers": integers}
    assert same(round_trip(state), state)


def test_surrogate_halves_are_not_joined() -> None:
    state = {"\ud83d\ude00": ["\ud800", "\U0001f600"]}
    assert same(round_trip(state), state)


def test_views_and_shared_memory_are_saved_by_value() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    conjugate = torch.tensor([1 + 2j, 3 - 1j]).conj()
    state = {"whole": base, "view": base[1:3, ::2], "transposed": base.T, "conj": conjugate}
    loaded = round_trip({**state, "fortran": np.asfortranarray(base.numpy())})
    assert same(loaded["view"], torch.tensor([[6.0, 8.0, 10.0], [12.0, 14.0, 16.0]]))
    assert same(loaded["transposed"], base.T.contiguous())
    assert same(loaded["whole"], base)
    assert loaded["conj"].tolist() == [1 - 2j, 3 + 1j]
    assert np.array_equal(loaded["fortran"], base.numpy())
    loaded["view"].zero_()  # loaded tensors are writable and apart
    loaded["fortran"][:] = 0
    assert same(loaded["whole"], base)


def test_a_resumed_learner_continues_exactly() -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer, np.random.Generator]:
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2))
        return net, torch.optim.Adam(net.parameters(), lr=0.01), np.random.default_rng(11)

    def train(net: Any, optimiser: Any, rng: Any, updates: int) -> None:
        for _ in range(updates):
            batch = torch.from_numpy(rng.normal(size=(3, 5))).float() + torch.rand(3, 5)
            optimiser.zero_grad()
            net(batch).square().sum().backward()
            optimiser.step()

    net, optimiser, rng = make()
    train(net, optimiser, rng, 4)
    rng.integers(9, dtype=np.uint32)  # leaves half a draw behind: has_uint32 is set
    state = {
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "rng": rng.bit_generator.state,
        "torch_rng": torch.get_rng_state(),
        "python_rng": random.Random(5).getstate(),
    }
    loaded = round_trip(state)
    assert set(loaded["optimiser"]["state"]) == {0, 1, 2, 3}  # int keys stay int
    assert loaded["optimiser"]["param_groups"][0]["betas"] == (0.9, 0.999)
    random.Random().setstate(loaded["python_rng"])
    train(net, optimiser, rng, 3)

    other_net, other_optimiser, other_rng = make()
    other_net.load_state_dict(loaded["net"])
    other_optimiser.load_state_dict(loaded["optimiser"])
    other_rng.bit_generator.state = loaded["rng"]
    torch.set_rng_state(loaded["torch_rng"])
    train(other_net, other_optimiser, other_rng, 3)
    assert same(dict(other_net.state_dict()), dict(net.state_dict()))
    assert other_rng.integers(2**60) == rng.integers(2**60)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.0),
        np.int64(3),
        {1, 2},
        object(),
        Path("a"),
        bytearray(b"x"),
        1j,
        namedtuple("Pair", "a b")(1, 2),
        np.array([object()]),
        np.zeros(2, [("a", "i4")]),
        np.ma.zeros(3),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        {True: 1},
        {1.5: 1},
        {("a",): 1},
        {None: 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_unsupported_type_is_named_by_its_place(tmp_path: Path, value: Any) -> None:
    store = CheckpointStore(tmp_path, warn=no_warning)
    with pytest.raises(TypeError) as raised:
        store.save(1, {"learner": {3: [0, (value,)]}})
    assert "state['learner'][3][1][0]" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_split_over_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_MAX_TENSOR_FILE_BYTES", 1000)
    store = CheckpointStore(tmp_path, warn=no_warning)
    state = {str(n): torch.arange(float(n)) for n in (100, 150, 30, 400, 1)}  # 4 bytes each
    path = store.save(3, state)
    assert names(path) == [
        "manifest.json",
        "state.json",
        *(f"tensors-{number:03d}.safetensors" for number in range(4)),
    ]
    latest = store.load_latest()
    assert latest is not None
    for name, tensor in state.items():
        assert torch.equal(latest.state[name], tensor)
    (path / "tensors-001.safetensors").unlink()
    with pytest.raises(CheckpointCorrupt, match="tensors-001"):
        read_checkpoint(path)


def test_cyclic_and_oversized_states_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, warn=no_warning)
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="nested deeper"):
        store.save(1, {"cycle": cycle})
    monkeypatch.setattr(codec, "MAX_STATE_BYTES", 1000)
    with pytest.raises(ValueError, match="as arrays or tensors"):
        store.save(1, {"returns": [0.5] * 1000})
    store.save(1, {"returns": np.full(1000, 0.5)})


def test_the_deepest_state_that_is_saved_is_also_loaded() -> None:
    state: Any = 1
    for _ in range(codec._MAX_DEPTH):
        state = {"a": state}
    assert same(round_trip(state), state)


# ------------------------------------------------------------------------------------ the store


def state_of(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "weights": torch.rand(31, 17, generator=generator),
        "rng": np.random.default_rng(step).bit_generator.state,
        "counts": np.arange(step % 13),
    }


def chunk(directory: Path, number: int, age_seconds: int = 0) -> Path:
    """A replay chunk; `age_seconds` sets its time, as the clock is too coarse for a test."""
    path = directory / "replay" / f"chunk-{number:04d}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, random.Random(number).randbytes(300 + number))
    os.utime(path, ns=(0, 10**18 - age_seconds * 10**9))
    return path


def is_whole(loaded: Checkpoint | None, step: int) -> bool:
    return loaded is not None and loaded.step == step and same(loaded.state, state_of(step))


def names(directory: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


def test_save_and_load_latest(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "run"
    store = CheckpointStore(directory, warn=no_warning)
    assert store.load_latest() is None
    assert checkpoint_paths(tmp_path / "absent") == []
    info = {"config_sha256": "ab", "versions": {"torch": "2"}, "limits": [math.inf, 1, None]}
    store.save(5, state_of(5))
    path = store.save(12, state_of(12), info=info)
    assert path == directory / "ckpt-000000000012"
    loaded = store.load_latest()
    assert loaded is not None
    assert is_whole(loaded, 12)
    assert (loaded.info, loaded.path) == (info, path)
    assert is_whole(read_checkpoint(directory / "ckpt-000000000005"), 5)
    assert names(path) == ["manifest.json", "state.json", "tensors-000.safetensors"]
    shutil.copytree(path, tmp_path / "shared")  # any name will do for a copy
    assert is_whole(read_checkpoint(tmp_path / "shared"), 12)


def test_prune_keeps_the_newest_and_only_after_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=2, warn=no_warning)
    for step in (9, 10, 100):
        store.save(step, state_of(step))
    kept = ["ckpt-000000000010", "ckpt-000000000100"]
    assert names(tmp_path) == kept
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(1, os.fsync))
        with pytest.raises(CheckpointNotWritten):
            store.save(101, state_of(101))
    assert names(tmp_path) == kept
    store.save(101, state_of(101))
    assert names(tmp_path) == ["ckpt-000000000100", "ckpt-000000000101"]
    with pytest.raises(ValueError, match="keep"):
        CheckpointStore(tmp_path, keep=0, warn=no_warning)


def test_same_step_twice_replaces(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, warn=no_warning)
    store.save(4, {"version": "old"})
    store.save(4, {"version": "new"})
    assert names(tmp_path) == ["ckpt-000000000004"]
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.state == {"version": "new"}


def test_a_step_before_the_newest_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, warn=no_warning)
    store.save(20, state_of(20))
    for step in (-1, 19):
        with pytest.raises(ValueError, match="step"):
            store.save(step, state_of(19))
    assert is_whole(store.load_latest(), 20)


def test_leftovers_are_cleared_at_construction(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, warn=no_warning).save(3, state_of(3))
    shutil.copytree(path, tmp_path / "ckpt-000000000008.tmp-1")
    (tmp_path / "ckpt-000000000009.tmp-77").mkdir()
    (tmp_path / "ckpt-000000000003.tmp-5").symlink_to(path)
    (tmp_path / "notes.tmp-1").write_text("not ours")
    path.rename(tmp_path / "ckpt-000000000003.old")  # killed between two renames
    assert is_whole(CheckpointStore(tmp_path, warn=no_warning).load_latest(), 3)
    shutil.copytree(path, tmp_path / "ckpt-000000000003.old")  # killed after the second
    assert is_whole(CheckpointStore(tmp_path, warn=no_warning).load_latest(), 3)
    assert names(tmp_path) == ["ckpt-000000000003", "notes.tmp-1"]


def test_a_directory_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep checkpoints"):
        CheckpointStore(tmp_path / "file" / "run", warn=no_warning)


# --------------------------------------------------------------------------------- external files


def test_external_files_are_recorded_and_verified(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, warn=no_warning)
    first, second = chunk(tmp_path, 1), chunk(tmp_path, 2)
    sha256 = hashlib.sha256(second.read_bytes()).hexdigest()
    path = store.save(6, state_of(6), files=[first, second])
    external = json.loads((path / "manifest.json").read_text())["external"]
    assert external == {
        "replay/chunk-0001.bin": {
            "size": 301,
            "sha256": hashlib.sha256(first.read_bytes()).hexdigest(),
        },
        "replay/chunk-0002.bin": {"size": 302, "sha256": sha256},
    }
    assert is_whole(store.load_latest(), 6)
    first.unlink()
    assert is_whole(read_checkpoint(path), 6)  # the weights do not need the replay memory
    with pytest.raises(CheckpointNotWritten, match="chunk-0001"):
        store.save(7, state_of(7), files=[first])


def test_each_external_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    original = hashlib.file_digest

    def counting(file: Any, algorithm: str) -> Any:
        hashed.append(algorithm)
        return original(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    files = [chunk(tmp_path, number) for number in range(3)]
    store = CheckpointStore(tmp_path, warn=no_warning)
    for step in (1, 2):
        store.save(step, state_of(step), files=files)
    assert len(hashed) == 3
    files.append(chunk(tmp_path, 3))
    store.save(3, state_of(3), files=files)
    assert len(hashed) == 4
    resumed = CheckpointStore(tmp_path, warn=no_warning)
    assert is_whole(resumed.load_latest(), 3)  # verifies all four
    resumed.save(4, state_of(4), files=files)  # and remembers them
    assert len(hashed) == 8
    write_atomic(files[0], b"changed")
    resumed.save(5, state_of(5), files=files)
    assert len(hashed) == 9
    assert is_whole(resumed.load_latest(), 5)


def test_external_files_must_be_plain_files_below_the_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    store = CheckpointStore(run, warn=no_warning)
    outside = tmp_path / "outside"
    outside.write_text("x")
    link = run / "link"
    link.symlink_to(outside)
    for path in (outside, link, run / ".." / "outside", run):
        with pytest.raises(ValueError):
            store.save(1, state_of(1), files=[path])
    assert checkpoint_paths(run) == []


def test_unnamed_older_replay_files_are_collected(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, warn=no_warning)
    files = [chunk(tmp_path, number, age_seconds=100 - number) for number in range(6)]
    elsewhere = tmp_path / "videos" / "a.gif"
    elsewhere.parent.mkdir()
    elsewhere.write_text("")
    os.utime(elsewhere, (0, 0))

    def remaining() -> list[int]:
        return [int(name[6:10]) for name in names(tmp_path / "replay")]

    store.save(1, state_of(1), files=files[0:2])
    assert remaining() == [0, 1, 2, 3, 4, 5]  # newer than the named ones: about to be named
    store.save(2, state_of(2), files=files[1:3])
    assert remaining() == [0, 1, 2, 3, 4, 5]
    store.save(3, state_of(3), files=files[2:4])
    assert remaining() == [1, 2, 3, 4, 5]
    newer = chunk(tmp_path, 6, age_seconds=-(10**9))  # than the next checkpoint
    store.save(4, state_of(4))  # names no file: what the one before names stays
    assert remaining() == [2, 3, 6]
    store.save(5, state_of(5), files=[newer])
    assert remaining() == [6]
    assert elsewhere.exists()
    assert is_whole(store.load_latest(), 5)


def test_nothing_is_collected_beside_an_unreadable_manifest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, warn=no_warning)
    files = [chunk(tmp_path, number, age_seconds=100 - number) for number in range(3)]
    damaged = store.save(1, state_of(1), files=files[:1])
    (damaged / "manifest.json").write_text("{}")
    store.save(2, state_of(2), files=files[2:])
    assert len(names(tmp_path / "replay")) == 3


# ----------------------------------------------------------------------------------------- damage

OLD, NEW = 1234, 2345


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pristine")
    store = CheckpointStore(directory, warn=no_warning)
    chunks = [chunk(directory, number) for number in range(3)]
    store.save(OLD, state_of(OLD), files=chunks[:2], info={"config": "abc"})
    store.save(NEW, state_of(NEW), files=chunks[1:], info={"config": "abc"})
    return directory


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def new(run: Path) -> Path:
    return run / f"ckpt-{NEW:012d}"


def old(run: Path) -> Path:
    return run / f"ckpt-{OLD:012d}"


def forge(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as an attacker would: with a fitting hash."""
    document = json.loads((path / "manifest.json").read_text())
    edit(document)
    document["sha256"] = ""
    head = json.dumps(document, indent=1).encode()[:-3]
    data = head + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n'
    (path / "manifest.json").write_bytes(data)


def replace_file(path: Path, name: str, data: bytes) -> None:
    """Replace a file and forge the manifest accordingly."""
    (path / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(path, lambda document: document["files"].update({name: entry}))


def link_to_copy(path: Path) -> None:
    copy = path.rename(path.with_name("elsewhere"))
    path.symlink_to(copy)


def replace_by(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def swap(a: Path, b: Path) -> None:
    a.rename(a.with_name("swap"))
    b.rename(a)
    a.with_name("swap").rename(b)


def zero_page(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes(min(200, len(data))) + data[200:])


def rename_external(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        def edit(document: dict[str, Any]) -> None:
            document["external"][name] = document["external"].pop("replay/chunk-0002.bin")

        shutil.copy(run / "replay/chunk-0002.bin", run.parent / "secret")
        forge(new(run), edit)

    return damage


STATE, TENSORS, MANIFEST = "state.json", "tensors-000.safetensors", "manifest.json"
CHUNK = "replay/chunk-0002.bin"  # named by the new checkpoint only

DAMAGES: dict[str, Callable[[Path], object]] = {
    **{
        f"{kind} {name}": lambda run, name=name, damage=damage: damage(new(run) / name)
        for name in (STATE, TENSORS, MANIFEST, f"../{CHUNK}")
        for kind, damage in {
            "deleted": Path.unlink,
            "emptied": lambda path: path.write_bytes(b""),
            "appended to": lambda path: path.write_bytes(path.read_bytes() + b" "),
            "zeroed": zero_page,
            "linked": link_to_copy,
            "pipe for": lambda path: replace_by(path, os.mkfifo),
            "directory for": lambda path: replace_by(path, Path.mkdir),
        }.items()
    },
    "swapped state": lambda run: swap(new(run) / STATE, old(run) / STATE),
    "swapped tensors": lambda run: swap(new(run) / TENSORS, old(run) / TENSORS),
    "linked checkpoint": lambda run: link_to_copy(new(run)),
    "file for a checkpoint": lambda run: (shutil.rmtree(new(run)), new(run).write_text("")),
    "empty checkpoint": lambda run: (shutil.rmtree(new(run)), new(run).mkdir()),
    "wrong step": lambda run: forge(new(run), lambda d: d.update(step=NEW + 1)),
    "negative step": lambda run: forge(new(run), lambda d: d.update(step=-NEW)),
    "text as step": lambda run: forge(new(run), lambda d: d.update(step=str(NEW))),
    "version zero": lambda run: forge(new(run), lambda d: d.update(format_version=0)),
    "version true": lambda run: forge(new(run), lambda d: d.update(format_version=True)),
    "no version": lambda run: forge(new(run), lambda d: d.pop("format_version")),
    "list of files": lambda run: forge(new(run), lambda d: d.update(files=[])),
    "no files": lambda run: forge(new(run), lambda d: d.update(files={})),
    "missing hash": lambda run: forge(new(run), lambda d: d["files"][STATE].pop("sha256")),
    "number as hash": lambda run: forge(new(run), lambda d: d["files"][STATE].update(sha256=1)),
    "parent path": rename_external("../secret"),
    "hidden parent path": rename_external("replay/../../secret"),
    "dotted path": rename_external("./replay/chunk-0002.bin"),
    "absolute path": rename_external("/etc/hostname"),
    "root path": rename_external("/"),
    "empty path": rename_external(""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_put_aside_and_the_older_one_is_loaded(
    run: Path, damage: Callable[[Path], object]
) -> None:
    swapped = damage in (DAMAGES["swapped state"], DAMAGES["swapped tensors"])
    damage(run)
    warnings: list[str] = []
    store = CheckpointStore(run, warn=warnings.append)
    if swapped:  # hurts both
        with pytest.raises(UserError, match=r"no checkpoint in .* is valid"):
            store.load_latest()
        assert len(warnings) == 2
        return
    assert is_whole(store.load_latest(), OLD)
    assert len(warnings) == 1
    assert new(run).name in warnings[0] and "\n" not in warnings[0]
    assert names(run, "ckpt-*") == [old(run).name, f"{new(run).name}.bad"]
    assert is_whole(store.load_latest(), OLD)  # with no second warning
    assert len(warnings) == 1
    store.save(NEW, state_of(NEW))
    assert is_whole(store.load_latest(), NEW)


def test_swapped_checkpoints_are_detected(run: Path) -> None:
    swap(new(run), old(run))
    with pytest.raises(CheckpointCorrupt, match=f"belongs to step {OLD}"):
        read_checkpoint(new(run))


def test_a_linked_replay_directory_is_refused(run: Path) -> None:
    link_to_copy(run / "replay")
    with pytest.raises(UserError, match="no checkpoint"):
        CheckpointStore(run, warn=lambda line: None).load_latest()


@pytest.mark.parametrize("name", [STATE, TENSORS, MANIFEST])
def test_every_bit_flip_and_truncation_is_detected(run: Path, name: str) -> None:
    path = new(run) / name
    data = path.read_bytes()
    rng = random.Random(name)
    positions = range(len(data)) if name == MANIFEST else rng.sample(range(len(data)), 150)
    damaged = []
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [data[:length] for length in rng.sample(range(len(data)), 40)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointCorrupt):
            read_checkpoint(new(run))
    path.write_bytes(data)
    assert is_whole(read_checkpoint(new(run)), NEW)


def test_bit_flips_in_external_files_are_detected(pristine: Path, tmp_path: Path) -> None:
    data = (pristine / CHUNK).read_bytes()
    for case, position in enumerate(range(0, len(data), 11)):
        run = Path(shutil.copytree(pristine, tmp_path / str(case)))
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        (run / CHUNK).write_bytes(flipped)
        warnings: list[str] = []
        assert is_whole(CheckpointStore(run, warn=warnings.append).load_latest(), OLD)
        assert len(warnings) == 1 and CHUNK in warnings[0]


def test_if_none_is_valid_the_user_decides_and_nothing_is_deleted(run: Path) -> None:
    for path in (new(run), old(run)):
        (path / TENSORS).write_bytes(b"")
    warnings: list[str] = []
    for _ in range(2):  # a second start must not begin afresh either
        with pytest.raises(UserError, match="--overwrite") as raised:
            CheckpointStore(run, warn=warnings.append).load_latest()
        assert str(run) in str(raised.value)
    assert len(warnings) == 2
    for path in (new(run), old(run)):
        assert names(path.with_name(f"{path.name}.bad")) == [MANIFEST, STATE, TENSORS]


def test_quarantine_never_overwrites(run: Path) -> None:
    new(run).with_name(f"{new(run).name}.bad").mkdir()
    new(run).with_name(f"{new(run).name}.bad-2").symlink_to("nowhere")
    (new(run) / STATE).unlink()
    warnings: list[str] = []
    assert is_whole(CheckpointStore(run, warn=warnings.append).load_latest(), OLD)
    assert f"{new(run).name}.bad-3" in names(run)
    assert f"{new(run).name}.bad-3" in warnings[0]


def test_a_newer_format_version_is_left_alone(run: Path) -> None:
    forge(new(run), lambda document: document.update(format_version=2, files="unknown"))
    store = CheckpointStore(run, warn=no_warning)
    for read in (store.load_latest, lambda: read_checkpoint(new(run))):
        with pytest.raises(UserError, match=r"version 2.* up to 1") as raised:
            read()
        assert not isinstance(raised.value, CheckpointCorrupt)
        assert str(new(run) / MANIFEST) in str(raised.value)
    assert names(run, "ckpt-*") == [old(run).name, new(run).name]


# ------------------------------------------------------------------------------ malicious content


def safetensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one_tensor(**changes: Any) -> dict[str, Any]:
    return {"000000": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


HOSTILE_TENSORS = {
    "giant shape": safetensors_file(one_tensor(shape=[2**40]), bytes(8)),
    "giant shape and offsets": safetensors_file(
        one_tensor(shape=[2**40], data_offsets=[0, 2**42]), bytes(8)
    ),
    "overflowing shape": safetensors_file(one_tensor(shape=[2**62, 2**2, 2]), bytes(8)),
    "giant empty shape": safetensors_file(
        one_tensor(shape=[2**62, 2**62, 0], data_offsets=[0, 0]), b""
    ),
    "negative shape": safetensors_file(one_tensor(shape=[-2]), bytes(8)),
    "reversed offsets": safetensors_file(one_tensor(data_offsets=[8, 0]), bytes(8)),
    "giant header": safetensors_file(one_tensor(), bytes(8), length=2**62),
    "header beyond the end": safetensors_file(one_tensor(), bytes(8), length=1000),
    "hole": safetensors_file(one_tensor(data_offsets=[8, 16]), bytes(16)),
    "trailing data": safetensors_file(one_tensor(), bytes(1000)),
    "unknown dtype": safetensors_file(one_tensor(dtype="OBJECT"), bytes(8)),
    "deep header": safetensors_file(b"[" * 100_000),
    "pickle": pickle.dumps({"000000": [1.0, 2.0]}),
    "nothing": b"",
    "tensor without a place": safetensors_file(
        {
            **one_tensor(),
            "000001": {"dtype": "U8", "shape": [1], "data_offsets": [8, 9]},
        },
        bytes(9),
    ),
    "no tensor": safetensors_file({}),
}


@pytest.mark.parametrize("data", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS)
def test_hostile_tensor_files_are_refused_without_allocating(tmp_path: Path, data: bytes) -> None:
    path = CheckpointStore(tmp_path, warn=no_warning).save(1, {"t": torch.ones(2)})
    assert read_checkpoint(path).state["t"].tolist() == [1.0, 1.0]
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replace_file(path, TENSORS, data)
    with pytest.raises(CheckpointCorrupt, match="not a state"):
        read_checkpoint(path)
    model = tmp_path / "model.safetensors"
    model.write_bytes(data)
    if data not in (HOSTILE_TENSORS["tensor without a place"], HOSTILE_TENSORS["no tensor"]):
        with pytest.raises(UserError, match=r"model\.safetensors is not a valid"):
            load_model(model)
    after_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after_kib - before_kib < 200 * 1024


class Gadget:
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (13,)


HOSTILE_STATES = {
    "deep": b"[" * 1_000_000,
    "deep but valid": b'{"tuple":[' * 400 + b"]}" * 400,
    "not a dict": b"[1]",
    "foreign dict": b'{"a": 1}',
    "empty dict": b"{}",
    "extra key": b'{"dict": [["t", {"tensor": "000000"}]], "x": 1}',
    "tensor missing": b'{"dict": [["t", {"tensor": "000007"}]]}',
    "tensor used twice": b'{"dict": [["t", {"tensor": "000000"}], ["u", {"tensor": "000000"}]]}',
    "repeated key": b'{"dict": [["t", {"tensor": "000000"}], ["t", 1]]}',
    "list as key": b'{"dict": [[[1], {"tensor": "000000"}]]}',
    "boolean as key": b'{"dict": [[true, {"tensor": "000000"}]]}',
    "pairs of three": b'{"dict": [["t", {"tensor": "000000"}, 3]]}',
    "object array": b'{"dict": [["t", {"ndarray": "000000", "dtype": "|O", "shape": [1]}]]}',
    "record array": b'{"dict": [["t", {"ndarray": "000000", "dtype": "i4,O", "shape": [1]}]]}',
    "giant array": b'{"dict": [["t", {"ndarray": "000000", "dtype": "<f8", "shape": [1e15]}]]}',
    "giant shape": (
        b'{"dict": [["t", {"ndarray": "000000", "dtype": "<f8", "shape": [1000000000000]}]]}'
    ),
    "array smaller than its bytes": (
        b'{"dict": [["t", {"ndarray": "000000", "dtype": "<f4", "shape": [1]}]]}'
    ),
    "wide strings": (
        b'{"dict": [["t", {"ndarray": "000000", "dtype": "<U536870911", "shape": [1]}]]}'
    ),
    "negative shape": (b'{"dict": [["t", {"tensor": "000000", "dtype": "uint8", "shape": [-1]}]]}'),
    "function as dtype": (
        b'{"dict": [["t", {"tensor": "000000", "dtype": "load", "shape": [8]}]]}'
    ),
    "eval": b"__import__('os')._exit(13)",
    "yaml": b"!!python/object/apply:os._exit [13]",
    "pickle": pickle.dumps(Gadget()),
    "invalid text": b'"\xff\xfe"',
    "long number": b'{"dict": [["t", ' + b"9" * 10_000 + b"]]}",
}


@pytest.mark.parametrize("data", HOSTILE_STATES.values(), ids=HOSTILE_STATES)
def test_hostile_states_are_refused(tmp_path: Path, data: bytes) -> None:
    path = CheckpointStore(tmp_path, warn=no_warning).save(1, {"t": torch.ones(8).byte()})
    replace_file(path, STATE, data)
    with pytest.raises(CheckpointCorrupt, match="not a state") as raised:
        read_checkpoint(path)
    assert "\n" not in str(raised.value)


def test_oversized_json_is_refused_before_it_is_read(run: Path) -> None:
    for name, limit in ((STATE, 32 * 2**20), (MANIFEST, 16 * 2**20)):
        path = new(run) / name
        data = path.read_bytes()
        with open(path, "r+b") as file:
            file.truncate(limit + 1)  # sparse
        if name == STATE:
            forge(new(run), lambda d: d["files"][STATE].update(size=32 * 2**20 + 1))
        with pytest.raises(CheckpointCorrupt, match="more than the limit"):
            read_checkpoint(new(run))
        path.write_bytes(data)


# ------------------------------------------------------------------------------- kills and failures


def failing(at_call: int, function: Callable[..., Any], code: int = errno.ENOSPC) -> Any:
    """`function`, failing as a full disk does from its `at_call`-th call (counted from 1) once."""
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise OSError(code, os.strerror(code))
        return function(*args, **kwargs)

    return wrapper


def kill_at_call(k: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that gets SIGKILL instead of its k-th call that changes the disk.

    A forked child, as a fresh interpreter would import torch each time. Returns whether the child
    was killed, False when `action` needs fewer than k calls.
    """
    child = os.fork()
    if child == 0:
        calls = 0

        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == k:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapper

        def half_written(path: Path, data: bytes) -> None:
            nonlocal calls
            calls += 1
            if calls == k:
                path.write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write_and_sync(path, data)

        write_and_sync = store_module.write_and_sync
        for name in ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir"):
            setattr(os, name, wrap(getattr(os, name)))
        store_module.write_and_sync = half_written
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def save_new(run: Path, step: int, keep: int) -> None:
    store = CheckpointStore(run, keep=keep, warn=no_warning)
    files = [run / "replay" / f"chunk-{number:04d}.bin" for number in (2, 3)]
    store.save(step, {**state_of(step), "mark": "new"}, files=files)


def construct(run: Path, step: int, keep: int) -> None:
    CheckpointStore(run, keep=keep, warn=no_warning)


def leave_replacement_halfway(run: Path) -> None:
    path = new(run)
    shutil.copytree(path, run / f"{path.name}.tmp-1")
    path.rename(run / f"{path.name}.old")


def leave_replacement_done(run: Path) -> None:
    shutil.copytree(old(run), run / f"{new(run).name}.old")


@pytest.mark.parametrize(
    ("prepare", "action", "step", "keep", "outcomes"),
    [
        (lambda run: None, save_new, NEW + 5, 3, {"old", "new"}),
        (lambda run: None, save_new, NEW + 5, 1, {"old", "new"}),
        (lambda run: None, save_new, NEW, 3, {"old", "new"}),
        (lambda run: None, save_new, NEW, 1, {"old", "new"}),
        (leave_replacement_halfway, construct, NEW, 3, {"old"}),
        (leave_replacement_done, construct, NEW, 3, {"old"}),
        (leave_replacement_halfway, save_new, NEW, 1, {"old", "new"}),
    ],
    ids=[
        "next step",
        "next step, keep one",
        "same step",
        "same step, keep one",
        "recovery before the second rename",
        "recovery after the second rename",
        "recovery and same step",
    ],
)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_one_whole(
    pristine: Path,
    tmp_path: Path,
    prepare: Callable[[Path], None],
    action: Callable[[Path, int, int], None],
    step: int,
    keep: int,
    outcomes: set[str],
) -> None:
    seen = set()
    k = 0
    killed = True
    while killed:
        k += 1
        run = Path(shutil.copytree(pristine, tmp_path / str(k)))
        chunk(run, 3)
        prepare(run)
        killed = kill_at_call(k, lambda run=run: action(run, step, keep))
        store = CheckpointStore(run, keep=keep, warn=no_warning)
        loaded = store.load_latest()
        assert loaded is not None
        mark = loaded.state.pop("mark", "old")
        assert is_whole(loaded, step if mark == "new" else NEW)
        seen.add(mark)
        assert not [name for name in names(run, "ckpt-*") if not name[5:].isdigit()]
        save_new(run, NEW + 9, keep)  # and the run goes on
        loaded = store.load_latest()
        assert loaded is not None and loaded.step == NEW + 9
    assert seen == outcomes
    assert k > (10 if action is save_new else 2)


def test_a_kill_in_the_very_first_save_leaves_nothing_or_all(tmp_path: Path) -> None:
    seen = set()
    k = 0
    killed = True
    while killed:
        k += 1
        run = tmp_path / str(k)
        run.mkdir()
        killed = kill_at_call(
            k, lambda run=run: CheckpointStore(run, warn=no_warning).save(1, state_of(1))
        )
        loaded = CheckpointStore(run, warn=no_warning).load_latest()
        assert loaded is None or is_whole(loaded, 1)
        seen.add(loaded is None)
    assert seen == {True, False}


def test_everything_is_flushed_before_it_is_relied_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut loses what was not flushed; a kill does not, so it cannot show this."""
    synced: list[int] = []  # inodes, in order
    published: list[str] = []

    def recording_fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)

    def checking_replace(source: Path, target: Path) -> None:
        if target.name == f"ckpt-{NEW + 5:012d}":
            inodes = [(source / name).stat().st_ino for name in (STATE, TENSORS, MANIFEST)]
            assert synced == [*inodes, source.stat().st_ino]
        if not published:
            assert len(names(run, "ckpt-*")) == 3  # nothing was pruned before
        published.append(target.name)
        if len(published) == 2:
            assert synced[-1] == run.stat().st_ino  # pruning starts once the rename is flushed
        rename(source, target)

    rename = os.replace
    store = CheckpointStore(run, keep=1, warn=no_warning)
    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", checking_replace)
    store.save(NEW + 5, state_of(NEW + 5))
    assert published[0] == f"ckpt-{NEW + 5:012d}" and len(published) == 3


@pytest.mark.parametrize("name", ["fsync", "replace", "mkdir"])
@pytest.mark.parametrize("step", [NEW, NEW + 5])
def test_a_failure_of_any_call_keeps_the_old_checkpoint_and_a_retry_works(
    pristine: Path, tmp_path: Path, name: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    for k in range(1, 20):
        run = Path(shutil.copytree(pristine, tmp_path / str(k)))
        store = CheckpointStore(run, warn=no_warning)
        state = {**state_of(step), "mark": "new"}
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing(k, getattr(os, name)))
            try:
                store.save(step, state)
                break
            except CheckpointNotWritten as error:
                assert "No space left" in str(error) and "\n" not in str(error)
                failures += 1
        assert names(run, "*.tmp-*") == []
        loaded = store.load_latest()
        assert loaded is not None
        assert is_whole(loaded, NEW) or same(loaded.state, state)
        assert is_whole(read_checkpoint(old(run)), OLD)
        store.save(step, state)
        loaded = store.load_latest()
        assert loaded is not None and same(loaded.state, state)
        assert [name[5:].isdigit() for name in names(run, "ckpt-*")] == [True] * (
            2 if step == NEW else 3
        )
    assert failures >= {"fsync": 5, "replace": 1, "mkdir": 1}[name]


def test_too_little_free_space_is_noticed_before_writing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(run, warn=no_warning)
    size = sum(path.stat().st_size for path in new(run).iterdir())
    usage = namedtuple("usage", "total used free")
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, free))
    free = int(1.1 * size)
    opened: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_and_sync", lambda *args: opened.append(args))
        with pytest.raises(CheckpointNotWritten, match="bytes free"):
            store.save(NEW + 1, state_of(NEW + 1))
    assert opened == []
    free = int(1.3 * size)
    store.save(NEW + 1, state_of(NEW + 1))
    assert is_whole(store.load_latest(), NEW + 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name", [STATE, TENSORS, MANIFEST])
def test_a_device_that_is_full(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full(path: Any, *args: Any, **kwargs: Any) -> Any:
        full = isinstance(path, Path) and path.name == name and args == ("wb",)
        return open("/dev/full" if full else path, *args, **kwargs)

    store = CheckpointStore(run, warn=no_warning)
    before = names(run)
    with monkeypatch.context() as patch:
        patch.setattr(files_module, "open", open_full, raising=False)
        with pytest.raises(CheckpointNotWritten, match="No space left"):
            store.save(NEW + 1, state_of(NEW + 1))
    assert names(run) == before
    assert is_whole(store.load_latest(), NEW)
    store.save(NEW + 1, state_of(NEW + 1))


def test_a_file_size_limit(run: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store = CheckpointStore(run, warn=no_warning)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
            try:  # the tensors need 31 x 17 x 4 bytes
                store.save(NEW + 1, state_of(NEW + 1))
            except CheckpointNotWritten as error:
                whole = is_whole(store.load_latest(), NEW)
                code = 0 if whole and "too large" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert names(run, "ckpt-*") == [old(run).name, new(run).name]


def test_an_interrupt_in_mid_save_cleans_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    store = CheckpointStore(run, warn=no_warning)
    before = names(run)
    monkeypatch.setattr(store_module, "sync_directory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(NEW + 1, state_of(NEW + 1))
    assert names(run) == before


# ------------------------------------------------------------------------------------ model files


def test_model_files_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shared = torch.arange(6.0).reshape(2, 3)
    weights = OrderedDict(a=shared, tied=shared, t=shared.T, n=torch.tensor(3), e=torch.empty(0, 4))
    parameter = torch.nn.Parameter(torch.ones(5))
    save_model(path, {**weights, "p": parameter}, {"algorithm": "dqn", "ünï": "{}"})
    loaded, metadata = load_model(path)
    expected = {**{k: v.contiguous() for k, v in weights.items()}, "p": parameter.detach()}
    assert {k: same(loaded[k], v) for k, v in expected.items()} == dict.fromkeys(loaded, True)
    assert metadata == {"algorithm": "dqn", "ünï": "{}"}
    assert safetensors.torch.load_file(path).keys() == loaded.keys()  # readable by other tools
    save_model(path, {"b": torch.ones(1)}, {})
    assert load_model(path) == ({"b": torch.ones(1)}, {})
    assert names(tmp_path) == ["model.safetensors"]


def test_foreign_model_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, {"a": torch.ones(4, 3)}, {})
    data = path.read_bytes()
    contents = [data[:length] for length in range(0, len(data), 7)]
    contents += [data + b"x", b"text", pickle.dumps(Gadget())]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError) as raised:
            load_model(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    torch.save({"a": Gadget()}, path)
    with pytest.raises(UserError):
        load_model(path)
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="is not a file"):
            load_model(absent)


# ----------------------------------------------------------------------------------- write_atomic


def test_write_atomic_survives_a_kill_at_any_call(tmp_path: Path) -> None:
    seen = set()
    k = 0
    killed = True
    while killed:
        k += 1
        path = tmp_path / f"{k}.json"
        path.write_bytes(b"old content")
        killed = kill_at_call(k, lambda path=path: write_atomic(path, b"new"))
        seen.add(path.read_bytes())
    assert seen == {b"old content", b"new"}


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_write_atomic_that_fails_keeps_the_old_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, name, failing(1, getattr(os, name)))
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new content")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["config.json"]
    write_atomic(path, b"new content")
    assert path.read_bytes() == b"new content"
