"""Publishing: a finished run becomes a directory and an entry of ``runs/reference/``."""

import csv
import errno
import hashlib
import io
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch

from classicrl.checkpoint import load_model
from classicrl.errors import UserError
from classicrl.experiment import MODEL_FILE, json_bytes, read_json
from classicrl.reports.players import player_of
from classicrl.reports.records import Array, RunRecord, read_run
from classicrl.reports.reference import (
    Entry,
    RecordedEvaluation,
    Weights,
    read_index,
    write_index,
)
from classicrl.reports.statistics import bootstrap_interval, interval_from_std, replay_interval

MAX_WEIGHTS_BYTES = 8 * 2**20
MAX_METRICS_ROWS = 1_000

_KEPT_PARTS = 3  # <agent>/<environment>/seed<n>
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def publish(
    run_dir: Path,
    reference_root: Path,
    name: str,
    command: str | None = None,
    *,
    variant: str | None = None,
    weights: Literal["full", "half", "none"] = "full",
    machine: str | None = None,
    cheap: bool = False,
    replace: bool = False,
    note: str = "",
) -> Entry:
    """Copies a finished run into the published results and enters it in their index.

    Paths of the machine that trained are left out of the copies.

    Args:
        run_dir: of our agents, or of a peer.
        reference_root: the directory of ``index.json``; made if absent.
        name: of the entry; letters, digits, dots, dashes and underscores.
        command: what trains it. None writes one from the configuration, for our agents only.
        variant: of the agent; None for its preset.
        weights: ``half`` stores 16-bit floats, for networks that are too large otherwise. A run
            without a model file is published as with ``none``.
        machine: overrides what the run says; peers do not say it.
        cheap: whether quick checks shall replay it.
        replace: an entry of the same name is replaced.
        note: what a reader must know beside it, such as a file that was lost.

    Raises:
        UserError: if the run is not finished, the model file is over 8 MiB, or the name or the
            directory is taken.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be a name: use letters, digits, '.', '-' and '_'")
    run = read_run(run_dir)
    if not (run_dir / "summary.json").exists():
        raise UserError(f"{run_dir} has no summary.json: the run is not finished")
    summary = read_json(run_dir / "summary.json")
    scores = summary.get("eval")
    if not isinstance(scores, dict) or not summary.get("completed", True):
        raise UserError(f"{run_dir} has no final evaluation: the run is not finished")
    variant = variant or run.variant
    if not _NAME.fullmatch(variant):
        raise UserError(f"{variant!r} cannot be a directory's name: give another --variant")
    environment = f"{run.env_id.replace('/', '-')}-{run.protocol}"
    path = f"{run.agent}/{environment}/{variant}-seed{run.seed}"

    index = reference_root / "index.json"
    entries = read_index(index) if index.exists() else []
    if any(entry.name == name for entry in entries) and not replace:
        raise UserError(f"{name!r} is published already: choose another name, or --replace it")
    kept = [entry for entry in entries if entry.name != name]
    taken = [entry.name for entry in kept if entry.path == path]
    if taken:
        raise UserError(f"{path} holds {taken[0]!r} already: give another --variant")

    for other in kept:
        if (other.agent, other.env_id, other.protocol, other.variant, other.total_steps) == (
            run.agent,
            run.env_id,
            run.protocol,
            variant,
            summary.get("total_steps"),
        ) and read_run(reference_root / other.path).settings != run.settings:
            raise UserError(
                f"{run_dir} has other settings than {other.name!r}, which would count as another "
                "seed of it: give another --variant"
            )

    record = read_json(run_dir / "config.json") if (run_dir / "config.json").exists() else {}
    if "total_steps" in record.get("config", {}):
        # What was trained, not what a later call of a finished run asked for.
        record["config"]["total_steps"] = summary["total_steps"]
    software = {**record.get("versions", {}), **summary.get("versions", {})}
    texts: dict[str, bytes] = {
        "metrics.csv": _table(_thinned(run.metrics, MAX_METRICS_ROWS)),
        "summary.json": json_bytes(without_paths({**summary, "variant": variant})),
    }
    if run.evaluations:
        texts["evaluations.csv"] = _table(run.evaluations)
    if record:
        texts["config.json"] = json_bytes(without_paths(record))
    try:
        total_steps = int(summary["total_steps"])
        recorded_weights = _weights_bytes(run, total_steps, weights)
        entry = Entry(
            name=name,
            agent=run.agent,
            variant=variant,
            env_id=run.env_id,
            protocol=run.protocol,
            path=path,
            weights=(
                None if recorded_weights is None else Weights(MODEL_FILE, _sha256(recorded_weights))
            ),
            files={file: _sha256(data) for file, data in texts.items()},
            command=command or command_of(run.agent, without_paths(record)),
            commit=software.get("commit"),
            seed=run.seed,
            total_steps=total_steps,
            machine=machine or summary.get("machine"),
            hours=float(summary["wall_seconds"]) / 3600,
            eval=_recorded(scores, run.seed),
            cheap=cheap,
            note=note,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run_dir}/summary.json lacks a figure or has a bad one: {error}"
        ) from error
    if recorded_weights is not None:
        texts[MODEL_FILE] = recorded_weights
    try:
        _write_directory(reference_root / path, texts)
        write_index(index, [*kept, entry])
    except OSError as error:
        raise UserError(f"cannot write to {reference_root} ({error.strerror})") from error
    replaced = [old for old in entries if old.name == name and old.path != path]
    for old in replaced:
        shutil.rmtree(reference_root / old.path, ignore_errors=True)
    return entry


def command_of(agent: str, record: dict[str, Any]) -> str:
    """The command that trains an agent of ours again, every setting spelt out.

    Args:
        agent: its script's name.
        record: of ``config.json``.

    Raises:
        UserError: if there is no such record, as with the peers.
    """
    config = record.get("config")
    if not config:
        raise UserError(f"the command that trains {agent} is not known: give it by --command")
    # An agent is called after its script, and after the member of a family where that has several.
    words = ["python", f"agents/{agent.partition('-')[0]}.py"]
    for name, value in config.items():
        flag = name.replace("_", "-")
        if value is None or name in (
            "run_dir",
            "overwrite",
            "device",
            "threads",
            "compile",
            "track",
        ):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def _recorded(scores: dict[str, Any], training_seed: int) -> RecordedEvaluation:
    mean, episodes = float(scores["mean_return"]), int(scores["episodes"])
    if "returns" in scores:
        low, high = bootstrap_interval([float(score) for score in scores["returns"]])
        of_mean = float(low), float(high)
    else:
        of_mean = interval_from_std(mean, float(scores["std_return"]), episodes)
    frames = scores.get("max_frames_per_episode")
    return RecordedEvaluation(
        mean_return=mean,
        interval=replay_interval(mean, of_mean),
        interval_of_mean=of_mean,
        episodes=episodes,
        epsilon=float(scores["epsilon"]),
        seed=int(scores.get("seed", training_seed)),
        max_frames_per_episode=None if frames is None else int(frames),
    )


def _weights_bytes(
    run: RunRecord, total_steps: int, weights: Literal["full", "half", "none"]
) -> bytes | None:
    path = run.directory / MODEL_FILE
    if weights == "none" or not path.exists():
        return None
    card = player_of(path)  # what cannot be played must not be published as if it could
    if card[:3] != (run.agent, run.env_id, run.protocol):
        raise UserError(f"{path} is of another agent than the run: {', '.join(card[:3])}")
    # The last step of a run makes its number of environments full.
    if not total_steps <= card.step < total_steps + int(run.settings.get("num_envs", 1)):
        raise UserError(
            f"{path} is of step {card.step:,}, summary.json of {total_steps:,}: the run was "
            "continued, so let it finish"
        )
    if weights == "half":
        tensors, metadata = load_model(path)
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        data = safetensors.torch.save(halves, metadata)
    else:
        data = path.read_bytes()
    if len(data) > MAX_WEIGHTS_BYTES:
        raise UserError(
            f"{path} takes {len(data) / 2**20:.1f} MiB, more than the {MAX_WEIGHTS_BYTES >> 20} "
            "that are published: use --weights half or --weights none"
        )
    return data


def _thinned(table: dict[str, Array], max_rows: int) -> dict[str, Array]:
    """Evenly spaced rows, the first and the last among them."""
    count = len(table.get("step", ()))
    if count <= max_rows:
        return table
    rows = np.unique(np.linspace(0, count - 1, max_rows).round().astype(np.int64))
    return {name: column[rows] for name, column in table.items()}


def _table(columns: dict[str, Array]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        ["" if np.isnan(x) else int(x) if x.is_integer() else float(f"{x:.7g}") for x in row]
        for row in zip(*columns.values(), strict=True)
    )
    return text.getvalue().encode()


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """A copy in which the run directory, wherever it is named, is null, and of other absolute paths
    only the last parts are left, which say what they name and not where it lay."""

    def shown(key: str, value: Any) -> Any:
        if key == "run_dir":
            return None
        if isinstance(value, dict):
            return without_paths(value)
        if isinstance(value, list):
            return [shown(key, item) for item in value]
        if isinstance(value, str) and Path(value).is_absolute():
            return "/".join(Path(value).parts[1:][-_KEPT_PARTS:])
        return value

    # Later changes of the configuration are in it already, and name directories too.
    return {key: shown(key, value) for key, value in record.items() if key != "changes"}


def _write_directory(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        fresh.rename(path)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
