"""The run directory: one writer, one configuration, everything that a run leaves behind.

config.json      what was asked for, what it resolved to, versions, later changes
metrics.csv      training figures;  evaluations.csv: scores of the agent as it learns
tensorboard/     the same to look at
checkpoints/     see checkpoint/__init__.py
model.safetensors  the newest weights, with what they are for
summary.json     written once, when the run is finished
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar, get_args, get_type_hints

from classicrl.checkpoint import write_atomic
from classicrl.console import duration_in_words, limit_in_words
from classicrl.distributed import Ranks
from classicrl.errors import UserError

ConfigT = TypeVar("ConfigT")

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
SUMMARY_FILE = "summary.json"

_MIN_FREE_BYTES = 256 * 2**20
_OWN_FILES = (
    CONFIG_FILE,
    "metrics.csv",
    "evaluations.csv",
    SUMMARY_FILE,
    "video.gif",
    "bonus.png",
    MODEL_FILE,
    "walk.safetensors",
    "report.html",
)
_OWN_DIRECTORIES = ("checkpoints", "tensorboard", "wandb", "ranks")
_VERSIONED = ("classicrl", "torch", "numpy", "gymnasium", "ale-py", "minatar", "mujoco")


class Run:
    """An open run directory, locked against a second process until it is closed.

    Left by a UserError before anything was made of the run, as a context it takes away again the
    directories that it made: what is refused leaves nothing behind.

    Args:
        directory: made if absent.
        overwrite: delete what an earlier run left there (only files that runs write).

    Raises:
        UserError: if it cannot be written or is in use.
    """

    def __init__(self, directory: Path, *, overwrite: bool = False) -> None:
        self.directory = directory
        self._not_used = ""  # settings that a finished run was called with
        self._made = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = (directory / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"cannot write to {directory} ({error.strerror}): choose another --run-dir"
            ) from error
        # A run that is there goes on, without checkpoints if it must.
        begins = overwrite or not (directory / CONFIG_FILE).exists()
        if begins and shutil.disk_usage(directory).free < _MIN_FREE_BYTES:
            self._lock.close()
            self._take_away()
            raise UserError(
                f"{directory} is on a disk with less than 256 MiB free: free some, or choose "
                "another --run-dir"
            )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"{directory} is in use by another process: wait for it, or choose another "
                "--run-dir"
            ) from error
        if overwrite:
            # The configuration last: a kill in between must not leave checkpoints without theirs.
            for name in _OWN_DIRECTORIES:
                shutil.rmtree(directory / name, ignore_errors=True)
            for name in reversed(_OWN_FILES):
                (directory / name).unlink(missing_ok=True)

    def configure(self, config: ConfigT, resolve: Callable[[ConfigT], ConfigT]) -> ConfigT:
        """Records the configuration, or checks it against the recorded one.

        Args:
            config: a dataclass; None means "to be derived".
            resolve: fills in what is to be derived. Called for a new run only: a continued one
                takes the recorded values, so its schedules keep their absolute length.

        Returns:
            The configuration without open values. One that asks nothing more of a finished run
            than was done is not recorded.

        Raises:
            UserError: if a field that may not change differs; all such fields are named.
        """
        path = self.directory / CONFIG_FILE
        # A configuration that was refused before anything was made of it binds nobody.
        if not path.exists() or not self._begun():
            open_fields = [name for name, value in as_json(config).items() if value is None]
            config = resolve(config)
            record: dict[str, Any] = {
                "config": as_json(config),
                "sha256": _sha256(as_json(config)),
                "derived": open_fields,  # not given, and filled in since, as far as they are
                "run": secrets.token_hex(8),  # its checkpoints say so, too
                "versions": versions(),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "changes": [],
            }
            write_json(path, record)
            return config
        record, changed, derived = self._compared(config)
        done = self.summary
        if self._finished(config):
            self._not_used = _in_words(config, record["config"], changed)
        elif changed or done is not None:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            change: dict[str, Any] = {"at": when, "fields": changed}
            if done is not None:  # of weights that are about to change
                change["summary"] = done
            record["changes"].append(change)
            record["config"] |= changed
            if "sha256" in record:
                record["sha256"] = _sha256(record["config"])
            write_json(path, record)
            (self.directory / SUMMARY_FILE).unlink(missing_ok=True)
        return dataclasses.replace(config, **_from_json(type(config), derived))  # type: ignore[type-var]

    def _compared(self, config: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What is recorded; of it, fields that changed, with their new values, and fields that are
        to be derived, with their recorded ones."""
        path = self.directory / CONFIG_FILE
        record = read_json(path)
        recorded = record.get("config", {})
        if not isinstance(recorded, dict) or record.get("sha256", "") not in (
            "",
            _sha256(recorded),
        ):
            raise UserError(
                f"{path} was altered: its config does not have the SHA-256 that stands beside it; "
                "restore it, or use --overwrite to start afresh"
            )
        differing: list[str] = []
        changed: dict[str, Any] = {}
        derived: dict[str, Any] = {}
        fields = {field.name: field for field in dataclasses.fields(config)}
        for name, new in as_json(config).items():
            old = recorded.get(name)
            # A run of a version that had no such setting did what its default does.
            if new == old or (name not in recorded and new == fields[name].default):
                continue
            if new is None and (
                name in record.get("derived", [name])
                or "Path" in str(fields[name].type)  # of an input, which need not be given again
                or fields[name].metadata.get("may_change", False)
            ):
                derived[name] = old
            elif new is None:
                differing.append(f"{name} is not given, was {old}")
            elif fields[name].metadata.get("may_change", False):
                changed[name] = new
            else:
                differing.append(f"{name} is {new}, was {old}")
        if differing:
            # The preset may have been the machine's choice, and the others follow from it.
            preset = ""
            if any(difference.startswith("preset is ") for difference in differing):
                preset = f"continue it with --preset {recorded['preset']}, "
            raise UserError(
                f"{self.directory} holds a run with another configuration ("
                + "; ".join(differing)
                + f"): {preset}use --overwrite to start afresh, or another --run-dir"
            )
        return record, changed, derived

    def _begun(self) -> bool:
        """Whether anything was made of the configuration yet."""
        # Directories of the other ranks are there as soon as these are, before anything begins.
        others = {*_OWN_FILES, *_OWN_DIRECTORIES} - {CONFIG_FILE, "report.html", "ranks"}
        return any((self.directory / name).exists() for name in others)

    def _finished(self, config: Any) -> bool:
        """Whether a run of this configuration has nothing left to do."""
        done = self.summary
        return done is not None and getattr(config, "total_steps", 0) <= done.get("total_steps", 0)

    def _take_away(self) -> None:
        """Removes the directories that this process made, as far as nothing else is in them."""
        own = {CONFIG_FILE, ".lock"}
        with contextlib.suppress(OSError):
            if self._made and {path.name for path in self.directory.iterdir()} <= own:
                for name in own:
                    (self.directory / name).unlink(missing_ok=True)
                for path in self._made:  # the deepest first
                    path.rmdir()

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a finished run left, or None."""
        path = self.directory / SUMMARY_FILE
        return read_json(path) if path.exists() else None

    def closing_lines(self, summary: dict[str, Any], directory: Path | None = None) -> str:
        """What a finished run says last: its score, and where everything is.

        Args:
            summary: of the run.
            directory: that holds everything, where it is not the run's own.
        """
        scores = summary["eval"]
        directory = directory or self.directory
        unit = "frames" if summary["env_id"].startswith("ALE/") else "steps"
        limit = limit_in_words(scores["max_frames_per_episode"], unit)
        files = ", ".join(name for name in _OWN_FILES if (directory / name).exists())
        return (
            f"{self.not_used_line}{summary['agent']} on {summary['env_id']} "
            f"({summary['protocol']}), "
            f"{summary['total_steps']:,} steps in "
            f"{duration_in_words(summary['wall_seconds'])}: "
            f"return {scores['mean_return']:.2f} +- {scores['std_return']:.2f} over "
            f"{scores['episodes']} games (epsilon {scores['epsilon']:g}, {limit})\n"
            f"everything is in {directory}{': ' + files if files else ''}\n"
            f"curves: tensorboard --logdir {directory}"
        )

    @property
    def not_used_line(self) -> str:
        """Which settings a run that was finished before had no use for; nothing if there are none.

        Those that are as by default, and may not have been asked for, are left out.
        """
        if not self._not_used:
            return ""
        return f"finished before, so nothing was trained, and not used: {self._not_used}\n"

    def require_same_method(self, config: Any) -> None:
        """Checks a configuration against the recorded one, and records nothing.

        Raises:
            UserError: as :meth:`configure`.
        """
        self._compared(config)

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary: the run is finished."""
        self._not_used = ""
        write_json(self.directory / SUMMARY_FILE, summary)

    def close(self) -> None:
        """Lets other processes in."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, UserError) and not self._begun():
            self._take_away()
        self.close()


@contextlib.contextmanager
def shared_run(directory: Path, ranks: Ranks, *, overwrite: bool = False) -> Iterator[Run]:
    """The run directory of each of several processes: the first one's, and below it the others'.

    The first one opens its own before the others do, so that ``overwrite`` deletes nothing that
    they have just written. If it cannot, they leave, too, with exit code 2 and without a word.

    Raises:
        UserError: as :class:`Run`.
    """
    if not ranks.is_first and ranks.any(False):
        raise SystemExit(UserError.exit_code)
    own = directory if ranks.is_first else directory / "ranks" / str(ranks.rank)
    try:
        run = Run(own, overwrite=overwrite)
    except UserError:
        if ranks.is_first:  # whom the others wait for; nobody waits for them
            ranks.any(True)
        raise
    with run:
        if ranks.is_first:
            ranks.any(False)
        yield run


class StopRequest:
    """Turns SIGINT and SIGTERM into a flag that the training loop reads between steps.

    A second SIGINT raises KeyboardInterrupt at once. ``exit_code`` is 130 after SIGINT and 75
    ("call again") after SIGTERM.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.exit_code is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = 130 if number == signal.SIGINT else 75

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def versions() -> dict[str, str]:
    """Versions of what produced a run; the commit too, when it runs from a clone."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    commit = _git("rev-parse", "HEAD")
    if commit:
        # Only the code matters: new runs and notes do not make a commit another one.
        changed = _git("status", "--porcelain", "--", "classicrl", "agents")
        found["commit"] = commit + (" with changes" if changed else "")
    return found


def _git(*arguments: str) -> str:
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return ""
    command = ["git", "-C", str(here), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def as_json(config: Any) -> dict[str, Any]:
    """The recorded fields of a configuration as plain JSON values; paths become strings."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=os.fspath))
    for field in dataclasses.fields(config):
        if field.metadata.get("not_recorded", False):
            del plain[field.name]
    return plain


def _from_json(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Recorded values as fields of the configuration: what JSON has no type for gets its own."""
    types = get_type_hints(kind)
    result = {}
    for name, value in values.items():
        allowed = (types[name], *get_args(types[name]))
        if isinstance(value, str) and Path in allowed:
            value = Path(value)
        elif isinstance(value, list):
            value = tuple(value)
        result[name] = value
    return result


def _in_words(config: Any, recorded: dict[str, Any], changed: dict[str, Any]) -> str:
    """Changed fields, their new and recorded values; without those that are as by default."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return ", ".join(
        f"{name} {new} (recorded: {recorded.get(name)})"
        for name, new in changed.items()
        if new != defaults[name]
    )


def _sha256(config: dict[str, Any]) -> str:
    """Of a recorded configuration. It is a guard against damage, not against intent."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: if the file is not one.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """:func:`read_json`; an empty one where there is no such file."""
    return read_json(path) if path.exists() else {}


def json_bytes(value: dict[str, Any]) -> bytes:
    """A JSON object as it stands in files here."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object, atomically."""
    write_atomic(path, json_bytes(value))
