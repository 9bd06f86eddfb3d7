"""Files that were made to do harm, handed to everything that reads files of a run."""

import importlib.util
import io
import json
import os
import pickle
import resource
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from tally import Tally
from test_checkpoint import HOSTILE_STATES, HOSTILE_TENSORS, STATE, TENSORS, replace_file

from classicrl.agent_file import load_agent
from classicrl.checkpoint import CheckpointStore, load_model, read_checkpoint
from classicrl.cube_solver import load_network
from classicrl.errors import UserError
from classicrl.experiment import Run
from classicrl.loggers import CsvLog, read_csv
from classicrl.replay.chunks import decode
from classicrl.reports.records import read_run
from classicrl.reports.reference import read_index

GROUP = "malicious files"
CANARY = "canary"


class Touch:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (CANARY, "w")


def numpy_objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Touch()]), allow_pickle=True)
    return file.getvalue()


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save({"a": Touch()}, file)
    return file.getvalue()


def zip_slip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"../../{CANARY}", "")
        archive.writestr(f"/tmp/{CANARY}", "")
    return file.getvalue()


CONTENTS: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: pickle.dumps(Touch()),
    "torch file": torch_file,
    "array of objects": numpy_objects,
    "zip that climbs out": zip_slip,
    "yaml tag": lambda: f"!!python/object/apply:os.mknod ['{CANARY}']".encode(),
    "expression": lambda: f"__import__('os').mknod('{CANARY}')".encode(),
    "deep nesting": lambda: b"[" * 300_000,
    "deep objects": lambda: b'{"a":' * 100_000,
}


def write_state(directory: Path, data: bytes, name: str) -> None:
    path = CheckpointStore(directory, warn=pytest.fail).save(1, {"t": torch.ones(8).byte()})
    if name == "manifest.json":
        (path / name).write_bytes(data)
    else:
        replace_file(path, name, data)
    read_checkpoint(path)


def write_file(directory: Path, data: bytes, name: str) -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def run_with_config(directory: Path, data: bytes) -> None:
    from test_experiment import Settings, resolve

    (directory / "checkpoints").mkdir()
    write_file(directory, data, "config.json")
    with Run(directory) as run:
        run.configure(Settings(), resolve)


def run_with_figures(directory: Path, data: bytes) -> None:
    record = {"config": {"agent": "x", "env_id": "y", "seed": 1}}
    write_file(directory, json.dumps(record).encode(), "config.json")
    read_csv(write_file(directory, data, "metrics.csv"))
    CsvLog(directory / "metrics.csv", resume_step=10).close()
    read_run(directory)


def sweep_file(directory: Path, data: bytes) -> None:
    path = Path(__file__).parents[2] / "runs" / "sweep.py"
    spec = importlib.util.spec_from_file_location("sweep", path)
    assert spec is not None and spec.loader is not None
    sweep = importlib.util.module_from_spec(spec)
    sys.modules["sweep"] = sweep
    spec.loader.exec_module(sweep)
    sweep.with_file(write_file(directory, data, "sweep.toml"))


READERS: dict[str, Callable[[Path, bytes], object]] = {
    "state of a checkpoint": lambda d, data: write_state(d, data, STATE),
    "tensors of a checkpoint": lambda d, data: write_state(d, data, TENSORS),
    "manifest of a checkpoint": lambda d, data: write_state(d, data, "manifest.json"),
    "model file": lambda d, data: load_model(write_file(d, data, "model.safetensors")),
    "agent to be played": lambda d, data: load_agent(write_file(d, data, "model.safetensors")),
    "network for the cube": lambda d, data: load_network(write_file(d, data, "m.safetensors")),
    "replay chunk": lambda d, data: decode(write_file(d, data, "rows.safetensors")),
    "configuration": run_with_config,
    "figures": run_with_figures,
    "summary": lambda d, data: read_run(write_file(d, data, "summary.json").parent),
    "index of results": lambda d, data: read_index(write_file(d, data, "index.json")),
    "sweep file": sweep_file,
}


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_reader_runs_or_is_overwhelmed_by_what_it_reads(
    reader: Callable[[Path, bytes], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tally: Tally,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = peak_kib()
    for name, make in CONTENTS.items():
        directory = tmp_path / "place" / name
        directory.mkdir(parents=True)
        outcome = "refused in one line"
        try:
            reader(directory, make())
            # A table without a line end is one whose last line a crash has cut short.
            assert reader is run_with_figures and b"\n" not in make(), name
            outcome = "read as an empty table"
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2_000, name
        assert not list(tmp_path.rglob(CANARY)) and not os.path.exists(f"/tmp/{CANARY}"), name
        tally.count(outcome)
    assert peak_kib() - before < 200 * 1024


@pytest.mark.parametrize("which", ["tensors", "state"])
def test_shapes_and_trees_that_lie_are_refused(which: str, tmp_path: Path, tally: Tally) -> None:
    contents = HOSTILE_TENSORS if which == "tensors" else HOSTILE_STATES
    name = TENSORS if which == "tensors" else STATE
    before = peak_kib()
    for number, data in enumerate(contents.values()):
        with pytest.raises(UserError) as caught:
            write_state(tmp_path / str(number), data, name)
        assert "\n" not in str(caught.value)
        tally.count("refused in one line")
    assert peak_kib() - before < 200 * 1024


@pytest.mark.parametrize("rows", [2**40, 10**9])
def test_chunks_that_would_fill_the_memory_are_refused(
    rows: int, tmp_path: Path, tally: Tally
) -> None:
    import zlib

    data = np.frombuffer(zlib.compress(bytes(100_000)), np.uint8)
    names = ("obs", "action", "reward", "terminated", "ended", "is_source", "back")
    layout = {name: {"dtype": "uint8", "shape": [rows]} for name in names}
    path = tmp_path / "rows.safetensors"
    metadata = {"format": "classicrl-replay-1", "first_id": "0", "layout": json.dumps(layout)}
    path.write_bytes(safetensors.numpy.save(dict.fromkeys(names, data), metadata))
    before = peak_kib()
    with pytest.raises(UserError, match="bad shape"):
        decode(path)
    assert peak_kib() - before < 200 * 1024
    tally.count("refused in one line")
