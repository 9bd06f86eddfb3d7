"""The checkpoints of one run: saving, pruning, and finding the newest whole one."""

import contextlib
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from classicrl.checkpoint.codec import MAX_STATE_BYTES, state_from_bytes, state_to_bytes
from classicrl.checkpoint.files import (
    CheckpointCorrupt,
    FileRecord,
    delete,
    hash_file,
    one_line,
    open_regular,
    read_verified,
    sync_directory,
    write_and_sync,
)
from classicrl.checkpoint.manifest import (
    CHECKPOINT_NAME,
    JSON,
    MANIFEST_FILE,
    STATE_FILE,
    Manifest,
    file_records,
    manifest_to_bytes,
    read_manifest,
)
from classicrl.errors import RunFailure, UserError

_REPLAY_DIRECTORY = "replay"
_FREE_SPACE_FACTOR = 1.2
_TEMPORARY_NAME = re.compile(r"ckpt-\d{12,}\.tmp-\d+")
_REPLACED_NAME = re.compile(r"(ckpt-\d{12,})\.old")
_QUARANTINED_NAME = re.compile(r"ckpt-\d{12,}\.bad(-\d+)?")


class CheckpointNotWritten(RunFailure):
    """A save failed (disk full, read-only, ...). The older checkpoints are intact: try later."""


class Checkpoint(NamedTuple):
    step: int
    state: dict[str, Any]  # tensors on the CPU
    info: dict[str, Any]
    path: Path


def checkpoint_paths(directory: Path) -> list[Path]:
    """The complete (renamed, though not verified) checkpoints in `directory`, oldest step first.

    Changes nothing, hence safe beside a running training.
    """
    if not directory.is_dir():
        return []
    found = [(match, path) for path in directory.iterdir() if (match := _step_of(path)) is not None]
    return [path for _, path in sorted(found)]


def _step_of(path: Path) -> int | None:
    match = CHECKPOINT_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint directory, without its external files (see `load_latest`).

    Leaving those out lets an evaluation read the weights without hashing a whole replay memory,
    and from a copy of the one directory. Raises `CheckpointCorrupt` with the reason, and UserError
    if a newer format version or a missing permission forbids reading it.
    """
    path = Path(path)
    manifest = read_manifest(path)
    tree = read_verified(path / STATE_FILE, MAX_STATE_BYTES, manifest.files[STATE_FILE])
    tensors = [
        read_verified(path / name, None, record)
        for name, record in sorted(manifest.files.items())
        if name != STATE_FILE
    ]
    try:
        state = state_from_bytes(tree, tensors)
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RuntimeError,  # from torch; includes RecursionError
    ) as error:
        raise CheckpointCorrupt(f"{path} is not a state: {one_line(error)}") from error
    return Checkpoint(manifest.step, state, manifest.info, path)


class CheckpointStore:
    """The checkpoints of one run directory.

    The caller must hold the run directory's lock: there is one store per directory at a time.
    Construction therefore removes *all* leftovers of killed saves, whatever their process id, and
    finishes or takes back a replacement that was interrupted between its two renames. A reader
    without the lock uses `checkpoint_paths` and `read_checkpoint`. Not thread-safe.

    Args:
        directory: created if missing.
        keep: how many newest checkpoints survive a successful save, at least 1.
        warn: called with one line for each checkpoint that `load_latest` puts aside.
    """

    def __init__(self, directory: Path, *, keep: int = 3, warn: Callable[[str], None]) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._directory = Path(directory)
        self._keep = keep
        self._warn = warn
        # path -> (size, mtime_ns, sha256): external files are immutable, so one hash each is enough
        self._hashes: dict[Path, tuple[int, int, str]] = {}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
        except OSError as error:
            raise UserError(f"cannot keep checkpoints in {directory}: {one_line(error)}") from error

    def _clear_leftovers(self) -> None:
        for path in list(self._directory.iterdir()):
            if _TEMPORARY_NAME.fullmatch(path.name):
                delete(path)
            elif match := _REPLACED_NAME.fullmatch(path.name):
                final = self._directory / match[1]
                if final.exists():
                    self._remove(path)
                else:
                    os.replace(path, final)

    def _remove(self, path: Path) -> None:
        """Rename first: a kill in mid-removal must not leave half a directory that looks whole."""
        temporary = path.with_name(f"{path.name.removesuffix('.old')}.tmp-{os.getpid()}")
        os.replace(path, temporary)
        delete(temporary)

    # ------------------------------------------------------------------------------------- save

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        files: Sequence[Path] = (),
        info: Mapping[str, JSON] | None = None,
    ) -> Path:
        """Write the checkpoint of `step`, then prune; returns its path.

        Args:
            step: not lower than the newest checkpoint's; the same one is replaced.
            state: nested dict (keys str or int), list and tuple of None, bool, int, float, str,
                bytes, torch.Tensor (dense, any dtype, device and shape) and np.ndarray (not of
                objects or records). Types come back exactly, but: a tensor or parameter comes back
                as a tensor on the CPU without gradient, an OrderedDict as a dict, and memory shared
                between two tensors is not shared any more. It is serialised in memory, at about
                three times its size: a replay memory belongs in `files`.
            files: *every* external file that this checkpoint needs: below the store's directory,
                immutable, flushed to the disk by its writer. Each is hashed once per process. Files
                below `replay/` that no remaining checkpoint names are deleted after the save,
                provided they are older than the newest of `files` (one that is being written, or
                that is yet to be named, is newer), or, without `files`, than the checkpoint.
            info: free-form JSON for the manifest, such as a config hash or library versions.

        Raises:
            CheckpointNotWritten: the disk is full or fails. Older checkpoints are intact, the
                temporary directory is removed.
            TypeError, ValueError: the state, step or files cannot be saved (a programming error).
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        existing = checkpoint_paths(self._directory)
        newest = _step_of(existing[-1]) if existing else None
        if newest is not None and step < newest:
            raise ValueError(f"cannot save step {step}: {self._directory} holds step {newest}")
        # Serialised in memory first: whatever fails from here on is the disk, hence an OSError.
        # (Left to write the file themselves, torch and safetensors report a full disk otherwise.)
        contents = state_to_bytes(state)
        try:
            external = self._external_records(files)
            contents[MANIFEST_FILE] = manifest_to_bytes(
                Manifest(
                    step,
                    dict(info or {}),
                    {name: FileRecord.of(data) for name, data in contents.items()},
                    external,
                )
            )
            final = self._write(step, contents)
        except UserError as error:  # an external file that is missing or cannot be read
            raise CheckpointNotWritten(f"checkpoint of step {step} not written: {error}") from error
        except OSError as error:
            raise CheckpointNotWritten(
                f"checkpoint of step {step} not written: {one_line(error)}"
            ) from error
        # The checkpoint is safe. What cannot be deleted now is deleted after a later save.
        with contextlib.suppress(OSError):
            self._prune()
            self._collect_garbage(external)
        return final

    def _external_records(self, files: Sequence[Path]) -> dict[str, FileRecord]:
        records = {}
        for path in files:
            try:
                name = path.absolute().relative_to(self._directory.absolute()).as_posix()
            except ValueError:
                raise ValueError(f"{path} is not below {self._directory}") from None
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a regular file")
            size, mtime_ns = status.st_size, status.st_mtime_ns
            cached = self._hashes.get(path.absolute())
            sha256 = cached[2] if cached and cached[:2] == (size, mtime_ns) else hash_file(path)
            self._hashes[path.absolute()] = (size, mtime_ns, sha256)
            records[name] = FileRecord(size, sha256)
        file_records({name: record._asdict() for name, record in records.items()})
        return records

    def _write(self, step: int, contents: dict[str, bytes]) -> Path:
        self._clear_leftovers()
        size = sum(map(len, contents.values()))
        needed = math.ceil(_FREE_SPACE_FACTOR * size)
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(f"{self._directory} has {free} bytes free, {needed} are needed")
        final = self._directory / f"ckpt-{step:012d}"
        temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
        replaced = final.with_name(f"{final.name}.old")
        try:
            temporary.mkdir()
            for name, data in contents.items():  # the manifest is the last
                write_and_sync(temporary / name, data)
            sync_directory(temporary)
            # A directory cannot be renamed over a full one. Between these two renames the step has
            # no directory of its name; `_clear_leftovers` then gives the old one its name back.
            if final.exists():
                os.replace(final, replaced)
            os.replace(temporary, final)
            sync_directory(self._directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if replaced.exists() and not final.exists():
                os.replace(replaced, final)
            raise
        return final

    def _prune(self) -> None:
        self._clear_leftovers()  # the replaced checkpoint of the same step
        for path in checkpoint_paths(self._directory)[: -self._keep]:
            self._remove(path)

    def _collect_garbage(self, newest: dict[str, FileRecord]) -> None:
        """Delete files in replay/ that are neither named by a checkpoint nor newer than `newest`,
        the files that the newest one names, or than that one itself where it names none.

        Put-aside (`.bad`) checkpoints do not count: they would keep their replay memory for ever.
        """
        replay = self._directory / _REPLAY_DIRECTORY
        if replay.is_symlink() or not replay.is_dir():
            return
        named = set(newest)
        checkpoints = checkpoint_paths(self._directory)
        try:
            for checkpoint in checkpoints:
                named |= read_manifest(checkpoint).external.keys()
        except UserError:
            return  # what an unreadable manifest names is unknown: delete nothing
        dated = [self._directory / name for name in newest] or checkpoints[-1:]
        newest_ns = max(path.stat().st_mtime_ns for path in dated)
        for root, _, names in os.walk(replay):
            for path in (Path(root, name) for name in names):
                unnamed = path.relative_to(self._directory).as_posix() not in named
                if unnamed and path.lstat().st_mtime_ns < newest_ns:
                    path.unlink()
                    self._hashes.pop(path.absolute(), None)

    # ------------------------------------------------------------------------------------- load

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies with all its external files; None if none exists.

        One that fails is renamed to `<name>.bad` with one warning, and the next older one is tried.

        Raises:
            UserError: checkpoints exist (or were put aside, now or earlier) but none is valid; or
                the newest has a newer format version, or must not be read. Nothing is deleted.
        """
        checked: dict[str, FileRecord] = {}
        for path in reversed(checkpoint_paths(self._directory)):
            try:
                external = read_manifest(path).external
                self._verify_external(external, checked)
                return read_checkpoint(path)
            except CheckpointCorrupt as error:
                self._quarantine(path, error)
        if any(_QUARANTINED_NAME.fullmatch(path.name) for path in self._directory.iterdir()):
            raise UserError(
                f"no checkpoint in {self._directory} is valid (see its *.bad directories); "
                "use --overwrite to start afresh"
            )
        return None

    def discard_newer(self, step: int) -> None:
        """Deletes the checkpoints of later steps than ``step``; -1 deletes all."""
        for path in checkpoint_paths(self._directory):
            found = _step_of(path)
            if found is not None and found > step:
                self._remove(path)

    def _verify_external(
        self, external: dict[str, FileRecord], checked: dict[str, FileRecord]
    ) -> None:
        """`checked` holds what earlier calls found, for checkpoints that share files."""
        for name, record in external.items():
            path = self._directory / name
            for parent in path.relative_to(self._directory).parents:
                if (self._directory / parent).is_symlink() and parent != Path("."):
                    raise CheckpointCorrupt(f"{self._directory / parent} is a symbolic link")
            if name not in checked:
                with open_regular(path) as descriptor:
                    status = os.fstat(descriptor)
                if status.st_size != record.size:
                    raise CheckpointCorrupt(
                        f"{path} has {status.st_size} bytes, its manifest says {record.size}"
                    )
                checked[name] = FileRecord(status.st_size, hash_file(path))
                found = (status.st_size, status.st_mtime_ns, checked[name].sha256)
                self._hashes[path.absolute()] = found
            if checked[name] != record:
                raise CheckpointCorrupt(f"{path} was altered: its SHA-256 is not the manifest's")

    def _quarantine(self, path: Path, error: CheckpointCorrupt) -> None:
        bad = path.with_name(f"{path.name}.bad")
        number = 1
        while os.path.lexists(bad):
            number += 1
            bad = path.with_name(f"{path.name}.bad-{number}")
        try:
            os.replace(path, bad)
        except OSError as failure:
            raise UserError(f"cannot put aside {path} ({error}): {failure.strerror}") from failure
        self._warn(f"checkpoint {path.name} put aside as {bad.name}: {error}")
