"""Crash-safe checkpoints and model files, without pickle.

A checkpoint is a directory `ckpt-<step>` of three files:

* `state.json`: the tree of a state (see `save`), with every tensor and array replaced by a name;
* `tensors.safetensors`: their bytes;
* `manifest.json`, written last: format version, step, free-form info, and the size and SHA-256 of
  the two files above and of every *external* file. Its own SHA-256 ends it, so that a damaged step
  or info is noticed too.

External files are large, immutable pieces of state (chunks of a replay memory) that live beside
the checkpoints and are shared between them, so that gigabytes are not rewritten each time.

A checkpoint is built in `ckpt-<step>.tmp-<pid>`, flushed to the disk, and renamed: at any instant
a kill or a power cut leaves either the old or the new checkpoint whole. Every byte is verified
before it is used.
"""

import base64
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import stat
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import safetensors
import safetensors.torch
import torch

from classicrl.errors import RunFailure, UserError

__all__ = [
    "FORMAT_VERSION",
    "JSON",
    "Checkpoint",
    "CheckpointCorrupt",
    "CheckpointNotWritten",
    "CheckpointStore",
    "HashedFile",
    "checkpoint_paths",
    "load_model",
    "read_checkpoint",
    "save_model",
    "write_atomic",
]

FORMAT_VERSION = 1

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"

_STATE_FILE = "state.json"
_TENSOR_FILE = "tensors.safetensors"
_MANIFEST_FILE = "manifest.json"
_REPLAY_DIRECTORY = "replay"

# JSON grows by a factor of ten or more when it is parsed: a bound on the file bounds the memory.
_MAX_STATE_BYTES = 32 * 2**20
_MAX_MANIFEST_BYTES = 16 * 2**20
# One level of state is up to three of JSON, whose parser gives up near Python's 1000 frames.
_MAX_DEPTH = 100
_FREE_SPACE_FACTOR = 1.2

_CHECKPOINT_NAME = re.compile(r"ckpt-(\d{12,})")
_TEMPORARY_NAME = re.compile(r"ckpt-\d{12,}\.tmp-\d+")
_REPLACED_NAME = re.compile(r"(ckpt-\d{12,})\.old")
_QUARANTINED_NAME = re.compile(r"ckpt-\d{12,}\.bad(-\d+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Plain numbers, booleans, fixed-width strings and dates; no objects and no structures.
_ARRAY_DTYPE = re.compile(r"[<>|=][biufcSUmM]\d+(\[\d*[A-Za-z]+\])?")

# Stored as they are, readable by any safetensors tool. Other dtypes (complex, float8, uint16, ...)
# are stored as raw bytes, so that no dtype depends on the installed safetensors version.
_PLAIN_DTYPES = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
}


class CheckpointCorrupt(UserError):
    """A checkpoint that cannot be trusted: incomplete, altered, or not ours."""


class CheckpointNotWritten(RunFailure):
    """A save failed (disk full, read-only, ...). The older checkpoints are intact: try later."""


class Checkpoint(NamedTuple):
    step: int
    state: dict[str, Any]  # tensors on the CPU
    info: dict[str, Any]
    path: Path


class HashedFile(NamedTuple):
    """An external file whose writer hashed the bytes it meant to write, before writing them.

    Handing this to `CheckpointStore.save` spares reading the file back, and notices damage that
    happened on the way to the disk.
    """

    path: Path
    sha256: str  # 64 lower-case hexadecimal digits


class _FileRecord(NamedTuple):
    size: int  # bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "_FileRecord":
        return cls(len(data), hashlib.sha256(data).hexdigest())


class _Manifest(NamedTuple):
    step: int
    info: dict[str, Any]
    files: dict[str, _FileRecord]  # relative to the checkpoint
    external: dict[str, _FileRecord]  # relative to the directory that holds the checkpoints


# ------------------------------------------------------------------------------------- the disk


def _write_and_sync(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
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
        _write_and_sync(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[int]:
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


def _read(path: Path, max_bytes: int | None = None, record: _FileRecord | None = None) -> bytes:
    """The bytes of a file, once they are known to have the size and hash of `record`.

    Hash and use share one read, so that a file cannot change between the two.
    """
    with _open_regular(path) as descriptor:
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
    if record is not None and _FileRecord.of(data) != record:
        raise CheckpointCorrupt(f"{path} was altered: its SHA-256 is not that of its manifest")
    return data


def _hash_file(path: Path) -> str:
    with _open_regular(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointCorrupt(f"{path} cannot be read: {error.strerror}") from error


# ------------------------------------------------------------------------------- states as bytes


def _plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


class _Encoder:
    """Splits a state into a JSON tree and named tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._storages: set[int] = set()

    def _store(self, tensor: torch.Tensor) -> str:
        name = f"{len(self.tensors):06d}"
        self.tensors[name] = _own_storage(tensor, self._storages)
        return name

    def _tensor(self, tensor: torch.Tensor, where: str) -> JSON:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(f"{where} is a {type(tensor).__qualname__}, not a plain tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(f"{where} is a sparse, quantised or meta tensor: only dense ones fit")
        plain = _plain_tensor(tensor)
        if plain.dtype in _PLAIN_DTYPES:
            return {"tensor": self._store(plain)}
        try:
            raw = plain.reshape(-1).view(torch.uint8)
        except RuntimeError as error:
            raise TypeError(f"{where} has the unsupported dtype {tensor.dtype}") from error
        dtype = str(plain.dtype).removeprefix("torch.")
        return {"tensor": self._store(raw), "dtype": dtype, "shape": list(plain.shape)}

    def _array(self, array: np.ndarray[Any, Any], where: str) -> JSON:
        if array.dtype.metadata or not _ARRAY_DTYPE.fullmatch(array.dtype.str):
            raise TypeError(f"{where} is an array of the unsupported dtype {array.dtype}")
        raw = torch.from_numpy(np.frombuffer(bytearray(array.tobytes()), np.uint8))
        return {
            "ndarray": self._store(raw),
            "dtype": array.dtype.str,
            "shape": list(array.shape),
        }

    def encode(self, value: object, where: str = "state", depth: int = 0) -> JSON:
        if depth > _MAX_DEPTH:
            raise ValueError(f"the state is nested deeper than {_MAX_DEPTH} levels at {where}")
        # Exact types: a subclass (np.float64, a NamedTuple, an Enum) would come back as its base.
        kind = type(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and kind is int:
            # Other JSON readers lose digits beyond 2^53, and decimal conversion has a length limit.
            return value if abs(value) < 2**53 else {"int": hex(value)}
        if isinstance(value, float) and kind is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if isinstance(value, str) and kind is str:
            try:
                value.encode()
            except UnicodeEncodeError:  # lone surrogates, which JSON would join into pairs
                return {"str": value.encode("utf-8", "surrogatepass").hex()}
            return value
        if isinstance(value, bytes) and kind is bytes:
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, where)
        if isinstance(value, np.ndarray) and kind is np.ndarray:
            return self._array(value, where)
        if isinstance(value, list | tuple) and kind in (list, tuple):
            items = [self.encode(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
            return items if kind is list else {"tuple": items}
        if isinstance(value, dict) and kind in (dict, OrderedDict):
            pairs: list[JSON] = []
            for key, item in value.items():
                if type(key) not in (str, int):
                    raise TypeError(f"{where} has the key {key!r}: keys are str or int")
                path = f"{where}[{key!r}]"
                pairs.append([self.encode(key, path), self.encode(item, path, depth + 1)])
            return {"dict": pairs}
        hint = "; use int(), float() or bool()" if isinstance(value, np.generic) else ""
        raise TypeError(f"{where} has the unsupported type {kind.__module__}.{kind.__name__}{hint}")


def _own_storage(tensor: torch.Tensor, seen: set[int]) -> torch.Tensor:
    """`tensor`, or a copy where it shares memory with an earlier one, which safetensors refuses."""
    pointer = tensor.untyped_storage().data_ptr()
    if pointer in seen:
        tensor = tensor.clone()
        pointer = tensor.untyped_storage().data_ptr()
    seen.add(pointer)
    return tensor


def _shape(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"bad shape {value!r}")
    return value


def _decode(node: Any, tensors: dict[str, torch.Tensor], depth: int = 0) -> Any:
    """Inverse of `_Encoder.encode`; raises ValueError, KeyError or TypeError on a foreign tree."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(node, list):
        return [_decode(item, tensors, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    match node:
        case {"dict": list(pairs), **rest} if not rest:
            result = {}
            for key_node, item in pairs:
                key = _decode(key_node, tensors, depth + 1)
                if type(key) not in (str, int) or key in result:
                    raise ValueError(f"bad or repeated key {key!r}")
                result[key] = _decode(item, tensors, depth + 1)
            return result
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_decode(item, tensors, depth + 1) for item in items)
        case {"int": str(text), **rest} if not rest:
            return int(text, 16)
        case {"float": str(text), **rest} if not rest:
            return struct.unpack(">d", bytes.fromhex(text))[0]
        case {"str": str(text), **rest} if not rest:
            return bytes.fromhex(text).decode("utf-8", "surrogatepass")
        case {"bytes": str(text), **rest} if not rest:
            return base64.b64decode(text, validate=True)
        case {"tensor": str(name), **rest} if not rest:
            return tensors.pop(name)
        case {"tensor": str(name), "dtype": str(dtype_name), "shape": shape, **rest} if not rest:
            dtype = getattr(torch, dtype_name, None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"unknown tensor dtype {dtype_name!r}")
            raw = tensors.pop(name)
            if raw.dtype != torch.uint8 or math.prod(_shape(shape)) * dtype.itemsize != len(raw):
                raise ValueError(f"tensor {name!r} does not have the declared size")
            return raw.view(dtype).reshape(shape)
        case {"ndarray": str(name), "dtype": str(dtype_name), "shape": shape, **rest} if not rest:
            if not _ARRAY_DTYPE.fullmatch(dtype_name):
                raise ValueError(f"unknown array dtype {dtype_name!r}")
            array_dtype = np.dtype(dtype_name)
            raw = tensors.pop(name)
            size = math.prod(_shape(shape)) * array_dtype.itemsize
            if raw.dtype != torch.uint8 or raw.shape != (size,):
                raise ValueError(f"array {name!r} does not have the declared size")
            return np.ndarray(tuple(shape), array_dtype, buffer=raw.numpy().tobytes()).copy()
    raise ValueError(f"unknown node with the keys {sorted(node)[:4]}")


def _state_to_bytes(state: Mapping[str, Any]) -> dict[str, bytes]:
    encoder = _Encoder()
    tree = encoder.encode(dict(state))
    text = json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > _MAX_STATE_BYTES:
        raise ValueError(
            f"the state without its tensors has {len(text)} bytes, more than {_MAX_STATE_BYTES}: "
            "keep long lists of numbers as arrays or tensors"
        )
    return {_STATE_FILE: text, _TENSOR_FILE: safetensors.torch.save(encoder.tensors)}


def _state_from_bytes(tree: bytes, tensors: bytes) -> dict[str, Any]:
    named = safetensors.torch.load(tensors)
    state = _decode(json.loads(tree), named)
    if not isinstance(state, dict):
        raise ValueError("the state is not a dict")
    if named:
        raise ValueError(f"{len(named)} tensors belong to no place in the state")
    return state


# ------------------------------------------------------------------------------------- manifests

# The manifest is a JSON object whose last entry is the SHA-256 of all bytes before that hash. This
# place of the hash belongs to every format version: a newer version is told apart from damage.
_MANIFEST_TAIL = b'"\n}\n'
_HASH_BYTES = 64


def _manifest_to_bytes(manifest: _Manifest) -> bytes:
    document = {
        "format_version": FORMAT_VERSION,
        "step": manifest.step,
        "info": manifest.info,
        "files": {name: record._asdict() for name, record in manifest.files.items()},
        "external": {name: record._asdict() for name, record in manifest.external.items()},
        "sha256": "",
    }
    head = json.dumps(document, indent=1).encode().removesuffix(b'"\n}')
    data = head + hashlib.sha256(head).hexdigest().encode() + _MANIFEST_TAIL
    if len(data) > _MAX_MANIFEST_BYTES:
        raise ValueError(f"the manifest has {len(data)} bytes, more than {_MAX_MANIFEST_BYTES}")
    return data


def _file_records(value: Any) -> dict[str, _FileRecord]:
    """Raises ValueError, TypeError or AttributeError unless each name is a plain relative path."""
    records = {}
    for name, entry in value.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "/".join(parts) != name:
            raise ValueError(f"{name!r} is not a relative path below the directory")
        size, sha256 = entry["size"], entry["sha256"]
        if type(size) is not int or size < 0 or not _SHA256.fullmatch(sha256):
            raise ValueError(f"bad size or hash of {name!r}")
        records[name] = _FileRecord(size, sha256)
    return records


def _read_manifest(checkpoint: Path) -> _Manifest:
    if checkpoint.is_symlink():
        raise CheckpointCorrupt(f"{checkpoint} is a symbolic link")
    path = checkpoint / _MANIFEST_FILE
    data = _read(path, _MAX_MANIFEST_BYTES)
    head, tail = data[: -_HASH_BYTES - len(_MANIFEST_TAIL)], data[-len(_MANIFEST_TAIL) :]
    if data != head + hashlib.sha256(head).hexdigest().encode() + tail or tail != _MANIFEST_TAIL:
        raise CheckpointCorrupt(f"{path} was altered: it does not have the SHA-256 that ends it")
    try:
        document = json.loads(data)
        version = document["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}, this classicrl reads up to "
                f"{FORMAT_VERSION}: install the newer classicrl that wrote it"
            )
        manifest = _Manifest(
            document["step"],
            document["info"],
            _file_records(document["files"]),
            _file_records(document["external"]),
        )
        if (
            type(version) is not int
            or version != FORMAT_VERSION
            or set(manifest.files) != {_STATE_FILE, _TENSOR_FILE}
        ):
            raise ValueError("unknown format version or files")
        if type(manifest.step) is not int or not isinstance(manifest.info, dict):
            raise ValueError("bad step or info")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path} is not a manifest: {_one_line(error)}") from error
    named = _CHECKPOINT_NAME.fullmatch(checkpoint.name)
    if named and int(named[1]) != manifest.step:
        raise CheckpointCorrupt(f"{path} belongs to step {manifest.step}, not to {checkpoint.name}")
    return manifest


def _one_line(error: BaseException) -> str:
    name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())[:300]


# --------------------------------------------------------------------------------------- reading


def checkpoint_paths(directory: Path) -> list[Path]:
    """The complete (renamed, though not verified) checkpoints in `directory`, oldest step first.

    Changes nothing, hence safe beside a running training.
    """
    if not directory.is_dir():
        return []
    found = [(match, path) for path in directory.iterdir() if (match := _step_of(path)) is not None]
    return [path for _, path in sorted(found)]


def _step_of(path: Path) -> int | None:
    match = _CHECKPOINT_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint directory, without its external files (see `load_latest`).

    Leaving those out lets an evaluation read the weights without hashing a whole replay memory,
    and from a copy of the one directory. Raises `CheckpointCorrupt` with the reason, and UserError
    if a newer format version or a missing permission forbids reading it.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    tree = _read(path / _STATE_FILE, _MAX_STATE_BYTES, manifest.files[_STATE_FILE])
    tensors = _read(path / _TENSOR_FILE, None, manifest.files[_TENSOR_FILE])
    try:
        state = _state_from_bytes(tree, tensors)
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RuntimeError,  # from torch; includes RecursionError
    ) as error:
        raise CheckpointCorrupt(f"{path} is not a state: {_one_line(error)}") from error
    return Checkpoint(manifest.step, state, manifest.info, path)


# --------------------------------------------------------------------------------------- writing


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
            raise UserError(
                f"cannot keep checkpoints in {directory}: {_one_line(error)}"
            ) from error

    def _clear_leftovers(self) -> None:
        for path in list(self._directory.iterdir()):
            if _TEMPORARY_NAME.fullmatch(path.name):
                _delete(path)
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
        _delete(temporary)

    # ------------------------------------------------------------------------------------- save

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        files: Sequence[Path | HashedFile] = (),
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
                immutable, flushed to the disk by its writer. Each is hashed once per process unless
                it comes as `HashedFile`. Files below `replay/` that no remaining checkpoint names
                are deleted after the save, provided they are older than the newest of `files`
                (one that is being written, or that is yet to be named, is newer).
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
        contents = _state_to_bytes(state)
        try:
            external = self._external_records(files)
            contents[_MANIFEST_FILE] = _manifest_to_bytes(
                _Manifest(
                    step,
                    dict(info or {}),
                    {name: _FileRecord.of(data) for name, data in contents.items()},
                    external,
                )
            )
            final = self._write(step, contents)
        except UserError as error:  # an external file that is missing or cannot be read
            raise CheckpointNotWritten(f"checkpoint of step {step} not written: {error}") from error
        except OSError as error:
            raise CheckpointNotWritten(
                f"checkpoint of step {step} not written: {_one_line(error)}"
            ) from error
        # The checkpoint is safe. What cannot be deleted now is deleted after a later save.
        with contextlib.suppress(OSError):
            self._prune()
            self._collect_garbage(external)
        return final

    def _external_records(self, files: Sequence[Path | HashedFile]) -> dict[str, _FileRecord]:
        records = {}
        for file in files:
            path = Path(file.path if isinstance(file, HashedFile) else file)
            try:
                name = path.absolute().relative_to(self._directory.absolute()).as_posix()
            except ValueError:
                raise ValueError(f"{path} is not below {self._directory}") from None
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a regular file")
            size, mtime_ns = status.st_size, status.st_mtime_ns
            if isinstance(file, HashedFile):
                sha256 = file.sha256
            else:
                cached = self._hashes.get(path.absolute())
                sha256 = cached[2] if cached and cached[:2] == (size, mtime_ns) else ""
                sha256 = sha256 or _hash_file(path)
            self._hashes[path.absolute()] = (size, mtime_ns, sha256)
            records[name] = _FileRecord(size, sha256)
        _file_records({name: record._asdict() for name, record in records.items()})
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
                _write_and_sync(temporary / name, data)
            _sync_directory(temporary)
            # A directory cannot be renamed over a full one. Between these two renames the step has
            # no directory of its name; `_clear_leftovers` then gives the old one its name back.
            if final.exists():
                os.replace(final, replaced)
            os.replace(temporary, final)
            _sync_directory(self._directory)
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

    def _collect_garbage(self, newest: dict[str, _FileRecord]) -> None:
        """Delete files in replay/ that are neither named by a checkpoint nor newer than `newest`.

        Put-aside (`.bad`) checkpoints do not count: they would keep their replay memory for ever.
        """
        replay = self._directory / _REPLAY_DIRECTORY
        if not newest or replay.is_symlink() or not replay.is_dir():
            return
        named = set(newest)
        try:
            for checkpoint in checkpoint_paths(self._directory):
                named |= _read_manifest(checkpoint).external.keys()
        except UserError:
            return  # what an unreadable manifest names is unknown: delete nothing
        newest_ns = max((self._directory / name).stat().st_mtime_ns for name in newest)
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
        checked: dict[str, _FileRecord] = {}
        for path in reversed(checkpoint_paths(self._directory)):
            try:
                external = _read_manifest(path).external
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

    def _verify_external(
        self, external: dict[str, _FileRecord], checked: dict[str, _FileRecord]
    ) -> None:
        """`checked` holds what earlier calls found, for checkpoints that share files."""
        for name, record in external.items():
            path = self._directory / name
            for parent in path.relative_to(self._directory).parents:
                if (self._directory / parent).is_symlink() and parent != Path("."):
                    raise CheckpointCorrupt(f"{self._directory / parent} is a symbolic link")
            if name not in checked:
                with _open_regular(path) as descriptor:
                    status = os.fstat(descriptor)
                if status.st_size != record.size:
                    raise CheckpointCorrupt(
                        f"{path} has {status.st_size} bytes, its manifest says {record.size}"
                    )
                checked[name] = _FileRecord(status.st_size, _hash_file(path))
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


# ----------------------------------------------------------------------------------- model files


def save_model(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write weights as one safetensors file, atomically. Raises OSError as `write_atomic` does."""
    seen: set[int] = set()
    own = {name: _own_storage(_plain_tensor(tensor), seen) for name, tensor in tensors.items()}
    write_atomic(Path(path), safetensors.torch.save(own, dict(metadata)))


def load_model(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a safetensors file; runs no code from it.

    Raises UserError if the file cannot be read or is no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: name a .safetensors file")
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        # The library has just verified this header, but hands out its metadata from files only.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise UserError(f"{path} is not a valid safetensors file: {_one_line(error)}") from error
    return tensors, header.get("__metadata__", {})
