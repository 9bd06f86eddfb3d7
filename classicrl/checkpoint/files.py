"""Bytes on the disk: written whole or not at all, and verified before they are used."""

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from classicrl.errors import UserError


class CheckpointCorrupt(UserError):
    """A checkpoint that cannot be trusted: incomplete, altered, or not ours."""


class FileRecord(NamedTuple):
    size: int  # bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "FileRecord":
        return cls(len(data), hashlib.sha256(data).hexdigest())


def write_and_sync(path: Path, data: bytes) -> None:
    """Writes a file and flushes it to the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flushes a directory to the disk, so that names in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data` so that a crash leaves the old or the new one whole.

    The directory must exist. Raises OSError; the old file is then intact and nothing is left over
    (a kill may leave `<name>.tmp-<pid>` behind).
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        write_and_sync(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def delete(path: Path) -> None:
    """Deletes a file, a link or a whole directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A descriptor of a regular file; never follows a link and never waits on a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CheckpointCorrupt(f"{path} is missing") from None
    except PermissionError as error:
        raise UserError(f"no permission to read {path}: {error.strerror}") from error
    except OSError as error:
        if path.is_symlink():
            raise CheckpointCorrupt(f"{path} is a symbolic link") from error
        raise CheckpointCorrupt(f"{path} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointCorrupt(f"{path} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def read_verified(
    path: Path, max_bytes: int | None = None, record: FileRecord | None = None
) -> bytes:
    """The bytes of a file, once they are known to have the size and hash of `record`.

    Hash and use share one read, so that a file cannot change between the two.
    """
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if record is not None and size != record.size:
            raise CheckpointCorrupt(f"{path} has {size} bytes, its manifest says {record.size}")
        if max_bytes is not None and size > max_bytes:
            raise CheckpointCorrupt(f"{path} has {size} bytes, more than the limit of {max_bytes}")
        try:
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(size)
        except OSError as error:
            raise CheckpointCorrupt(f"{path} cannot be read: {error.strerror}") from error
    if record is not None and FileRecord.of(data) != record:
        raise CheckpointCorrupt(f"{path} was altered: its SHA-256 is not that of its manifest")
    return data


def hash_file(path: Path) -> str:
    """SHA-256 of a regular file, hexadecimal; CheckpointCorrupt if it cannot be read."""
    with open_regular(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointCorrupt(f"{path} cannot be read: {error.strerror}") from error


def one_line(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())[:300]
