"""Manifests: what a checkpoint consists of, down to the hash of every file."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from classicrl.checkpoint.files import CheckpointCorrupt, FileRecord, one_line, read_verified
from classicrl.errors import UserError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
_TENSOR_FILE = re.compile(r"tensors-\d{3,}\.safetensors")
CHECKPOINT_NAME = re.compile(r"ckpt-(\d{12,})")
_MAX_MANIFEST_BYTES = 16 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"


class Manifest(NamedTuple):
    step: int
    info: dict[str, Any]
    files: dict[str, FileRecord]  # relative to the checkpoint
    external: dict[str, FileRecord]  # relative to the directory that holds the checkpoints


# The manifest is a JSON object whose last entry is the SHA-256 of all bytes before that hash. This
# place of the hash belongs to every format version: a newer version is told apart from damage.
_MANIFEST_TAIL = b'"\n}\n'
_HASH_BYTES = 64


def tensor_file(number: int) -> str:
    """Name of the n-th file of tensors."""
    return f"tensors-{number:03d}.safetensors"


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """The file, its own SHA-256 at the end."""
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


def file_records(value: Any) -> dict[str, FileRecord]:
    """Raises ValueError, TypeError or AttributeError unless each name is a plain relative path."""
    records = {}
    for name, entry in value.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "/".join(parts) != name:
            raise ValueError(f"{name!r} is not a relative path below the directory")
        size, sha256 = entry["size"], entry["sha256"]
        if type(size) is not int or size < 0 or not _SHA256.fullmatch(sha256):
            raise ValueError(f"bad size or hash of {name!r}")
        records[name] = FileRecord(size, sha256)
    return records


def read_manifest(checkpoint: Path) -> Manifest:
    """Of a checkpoint; CheckpointCorrupt if it is missing, damaged or too new."""
    if checkpoint.is_symlink():
        raise CheckpointCorrupt(f"{checkpoint} is a symbolic link")
    path = checkpoint / MANIFEST_FILE
    data = read_verified(path, _MAX_MANIFEST_BYTES)
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
        manifest = Manifest(
            document["step"],
            document["info"],
            file_records(document["files"]),
            file_records(document["external"]),
        )
        if (
            type(version) is not int
            or version != FORMAT_VERSION
            or STATE_FILE not in manifest.files
            or not all(map(_TENSOR_FILE.fullmatch, manifest.files.keys() - {STATE_FILE}))
        ):
            raise ValueError("unknown format version or files")
        if type(manifest.step) is not int or not isinstance(manifest.info, dict):
            raise ValueError("bad step or info")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path} is not a manifest: {one_line(error)}") from error
    named = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    if named and int(named[1]) != manifest.step:
        raise CheckpointCorrupt(f"{path} belongs to step {manifest.step}, not to {checkpoint.name}")
    return manifest
