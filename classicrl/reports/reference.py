"""Published results: run directories that are kept, and whether they still hold.

``runs/reference/index.json`` is a list of entries; each names a directory beside it:

    <agent>/<environment>-<protocol>/<variant>-seed<k>/
        config.json, metrics.csv (thinned), evaluations.csv, summary.json, model.safetensors

A result holds if its files are those that were published (SHA-256) and its weights, played again,
score within the interval that :func:`~classicrl.reports.statistics.replay_interval` makes of the
recorded games. The same seed plays the same games up to the rounding of another processor; other
seeds play others.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from classicrl.checkpoint import write_atomic
from classicrl.errors import UserError
from classicrl.experiment import read_json
from classicrl.reports.players import player_of

_LISTED_NAMES = 8  # in the answer to one that is not known


@dataclasses.dataclass(frozen=True)
class RecordedEvaluation:
    """Scores of the games that were played when the run was finished."""

    mean_return: float
    interval: tuple[float, float]
    """Where the mean of a replay must lie."""
    interval_of_mean: tuple[float, float]
    """95% interval of the mean over the recorded games; ``interval`` is made of it."""
    episodes: int
    epsilon: float
    seed: int
    """Of the :class:`~classicrl.evaluation.AtariEvaluator`."""
    max_frames_per_episode: int | None
    """None where a peer did not say it."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model file in the entry's directory."""

    file: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A published result."""

    name: str
    agent: str
    variant: str
    env_id: str
    protocol: str
    path: str
    """Directory, relative to that of the index."""
    weights: Weights | None
    """None for peers: only their files can be checked."""
    files: dict[str, str]
    """SHA-256 of every other file."""
    command: str
    """What trains it."""
    commit: str | None
    seed: int
    total_steps: int
    machine: str | None
    hours: float
    """Wall time of the training, evaluations included."""
    eval: RecordedEvaluation
    cheap: bool
    """Replayed in a minute or so on two cores: part of quick checks."""
    note: str = ""
    """What a reader must know beside it, such as a file that is missing."""


class Verdict(NamedTuple):
    """Whether a published result holds, and why."""

    name: str
    holds: bool
    detail: str


def read_index(path: Path) -> list[Entry]:
    """The entries of an index.

    Raises:
        UserError: if it is missing or malformed.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: name the index of published results by --index")
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(records, list):
        raise UserError(f"{path} does not hold a list of results")
    entries = [_entry(record, f"{path}, entry {number}") for number, record in enumerate(records)]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} has two results named {name!r}: rename one")
    return entries


def _entry(record: Any, where: str) -> Entry:
    try:
        scores = record["eval"]
        mean = float(scores["mean_return"])
        interval = _pair(scores["interval"])
        frames = scores.get("max_frames_per_episode")
        weights = record["weights"]
        entry = Entry(
            name=str(record["name"]),
            agent=str(record["agent"]),
            variant=str(record.get("variant", "default")),
            env_id=str(record["env_id"]),
            protocol=str(record["protocol"]),
            path=str(record["path"]),
            weights=None if weights is None else Weights(weights["file"], weights["sha256"]),
            files={str(file): str(digest) for file, digest in record.get("files", {}).items()},
            command=str(record["command"]),
            commit=None if record["commit"] is None else str(record["commit"]),
            seed=int(record["seed"]),
            total_steps=int(record["total_steps"]),
            machine=None if record["machine"] is None else str(record["machine"]),
            hours=float(record["hours"]),
            eval=RecordedEvaluation(
                mean_return=mean,
                interval=interval,
                interval_of_mean=_pair(scores.get("interval_of_mean", interval)),
                episodes=int(scores["episodes"]),
                epsilon=float(scores["epsilon"]),
                seed=int(scores["seed"]),
                max_frames_per_episode=None if frames is None else int(frames),
            ),
            cheap=bool(record["cheap"]),
            note=str(record.get("note", "")),
        )
    except KeyError as error:
        raise UserError(f"{where} lacks {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is malformed ({error})") from error
    inside = [entry.path, *entry.files, *([entry.weights.file] if entry.weights else [])]
    for name in inside:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UserError(f"{where} names the path {name!r}, which leads out of its directory")
    return entry


def _pair(value: Any) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)


def write_index(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the index, atomically, its entries in the order of their paths."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    records = [dataclasses.asdict(entry) for entry in ordered]
    for record in records:
        if not record["note"]:
            del record["note"]
    write_atomic(path, (json.dumps(records, indent=2) + "\n").encode())


def find(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """The entries of these names; all for none.

    Raises:
        UserError: for a name that is not there.
    """
    if not names:
        return list(entries)
    known = {entry.name: entry for entry in entries}
    for name in names:
        if name not in known:
            message = f"no published result is named {name!r}; there are: "
            if len(known) <= _LISTED_NAMES:
                raise UserError(message + (", ".join(known) or "none"))
            near = difflib.get_close_matches(name, known, n=_LISTED_NAMES, cutoff=0.0)
            raise UserError(
                f"{message}{', '.join(near)} and {len(known) - len(near)} more (docs/results.md)"
            )
    return [known[name] for name in names]


def verify(
    entry: Entry,
    reference_root: Path,
    *,
    play: bool = True,
    seed: int | None = None,
    device: str = "cpu",
    num_threads: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Verdict | None:
    """Checks one published result.

    Args:
        entry: of the index.
        reference_root: the directory of the index.
        play: play the weights; else only the files are checked.
        seed: of the games; None for the recorded ones.
        device: where the network computes.
        num_threads: of the emulators; 0 for all that this process may use.
        should_stop: asked at every step.

    Returns:
        The verdict, or None if it was stopped.
    """
    directory = reference_root / entry.path
    expected = dict(entry.files)
    if entry.weights:
        expected[entry.weights.file] = entry.weights.sha256
    for file, digest in expected.items():
        try:
            found = hashlib.sha256((directory / file).read_bytes()).hexdigest()
        except OSError as error:
            return Verdict(entry.name, False, f"{file} cannot be read ({error.strerror})")
        if found != digest:
            return Verdict(
                entry.name, False, f"{file} is not the file that was published (SHA-256)"
            )
    if "summary.json" in expected:
        try:
            recorded = read_json(directory / "summary.json")["eval"]["mean_return"]
        except (UserError, KeyError, TypeError):
            return Verdict(entry.name, False, "summary.json has no evaluation")
        if recorded != entry.eval.mean_return:
            detail = f"the index says {entry.eval.mean_return:.2f}, summary.json {recorded:.2f}"
            return Verdict(entry.name, False, detail)
    files = f"{len(expected)} file{'s' if len(expected) != 1 else ''} as published"
    if entry.weights is None:
        return Verdict(entry.name, True, f"{files}; no weights to play")
    if not play:
        return Verdict(entry.name, True, f"{files}; not played")
    return _replay(
        entry,
        directory / entry.weights.file,
        seed=entry.eval.seed if seed is None else seed,
        device=device,
        num_threads=num_threads,
        should_stop=should_stop,
    )


def _replay(
    entry: Entry,
    weights: Path,
    *,
    seed: int,
    device: str,
    num_threads: int,
    should_stop: Callable[[], bool],
) -> Verdict | None:
    scores = entry.eval
    try:
        player = player_of(
            weights,
            seed=seed,
            epsilon=scores.epsilon,
            max_frames=scores.max_frames_per_episode,
            device=device,
            num_threads=num_threads,
            should_stop=should_stop,
        )
    except UserError as error:
        return Verdict(entry.name, False, str(error))
    if player[:3] != (entry.agent, entry.env_id, entry.protocol):
        named = ", ".join(player[:3])
        return Verdict(entry.name, False, f"its weights are of another agent: {named}")
    played = player.play(scores.episodes)
    if played is None:
        return None
    low, high = scores.interval
    holds = low <= played.mean_return <= high
    return Verdict(
        entry.name,
        holds,
        f"replayed {played.mean_return:.2f}, {'within' if holds else 'outside'} "
        f"[{low:.2f}, {high:.2f}]; recorded {scores.mean_return:.2f} "
        f"({scores.episodes} games, seed {seed}, epsilon {scores.epsilon:g})",
    )
