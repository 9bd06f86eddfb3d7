"""Replay contents on disk: append-only chunks, each written once and compressed.

Consecutive frames of a game differ in a few pixels. Every observation is XORed with its predecessor
in the same episode, which leaves almost only zeros, and deflated. A chunk holds consecutive rows,
refers to no other chunk, takes at most 15 MiB and never changes: a checkpoint writes what came
since the last one, and a long run can be carried from one machine to another file by file.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from classicrl.checkpoint import write_atomic
from classicrl.errors import UserError
from classicrl.replay.buffer import ReplayBuffer, Rows

MAX_CHUNK_BYTES = 15 * 2**20
_MAX_CHUNK_ROWS = 16_384
_MAX_INFLATED_BYTES = 256 * 2**20
_DEFLATE_LEVEL = 6
_DTYPES = {
    "reward": np.float32,
    "terminated": np.bool_,
    "ended": np.bool_,
    "is_source": np.bool_,
    "back": np.int32,
}


class Chunk(NamedTuple):
    """Rows ``[first_id, end_id)`` in a file of ``nbytes``."""

    first_id: int
    end_id: int
    name: str
    nbytes: int


class ReplayArchive:
    """The chunks of one replay buffer, in one directory.

    Args:
        directory: made on the first save.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.chunks: list[Chunk] = []

    def save(self, buffer: ReplayBuffer) -> list[Path]:
        """Writes the rows that came since the last save; returns the files of all stored rows."""
        self.chunks = [c for c in self.chunks if c.end_id > buffer.oldest_id]
        first = max(self.chunks[-1].end_id if self.chunks else 0, buffer.oldest_id)
        fitting_rows = _MAX_INFLATED_BYTES // (buffer.nbytes // buffer.capacity)
        max_rows = max(1, min(_MAX_CHUNK_ROWS, fitting_rows))
        while first < buffer.next_id:
            end = min(first + max_rows, buffer.next_id)
            data = encode(buffer.rows(first, end))
            while len(data) > MAX_CHUNK_BYTES and end - first > 1:
                end = first + (end - first) // 2
                data = encode(buffer.rows(first, end))
            name = f"rows-{first:012d}-{end:012d}.safetensors"
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomic(self.directory / name, data)
            self.chunks.append(Chunk(first, end, name, len(data)))
            first = end
        return [self.directory / c.name for c in self.chunks]

    def load(self, buffer: ReplayBuffer) -> None:
        """Puts the rows of all chunks back, after both state dicts were loaded.

        Raises:
            UserError: if a chunk is not what its record says.
        """
        for chunk in self.chunks:
            path = self.directory / chunk.name
            rows = decode(path)
            if (rows.first_id, rows.first_id + len(rows.reward)) != (chunk.first_id, chunk.end_id):
                raise UserError(f"{path} does not hold rows {chunk.first_id}-{chunk.end_id}")
            try:
                buffer.restore(rows)
            except ValueError as error:
                raise UserError(f"{path} is of another replay ({error})") from error

    @property
    def nbytes(self) -> int:
        """Size of all chunks on disk, in bytes."""
        return sum(c.nbytes for c in self.chunks)

    @property
    def num_rows(self) -> int:
        """Rows in all chunks."""
        return sum(c.end_id - c.first_id for c in self.chunks)

    def state_dict(self) -> dict[str, Any]:
        """Which chunks there are."""
        return {"chunks": [list(c) for c in self.chunks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a list of chunks; :meth:`load` reads them."""
        self.chunks = [Chunk(*record) for record in state["chunks"]]


def encode(rows: Rows) -> bytes:
    """One chunk as the bytes of a safetensors file."""
    layout: dict[str, Any] = {}
    tensors: dict[str, NDArray[np.uint8]] = {}
    for name, field in rows._asdict().items():
        if name == "first_id":
            continue
        raw = np.ascontiguousarray(field).view(np.uint8).reshape(len(field), -1)
        if name == "obs":
            has_link, link = _links(rows.back)
            raw = raw.copy()
            raw[has_link] ^= raw[link[has_link]]
        layout[name] = {"dtype": field.dtype.name, "shape": list(field.shape)}
        tensors[name] = np.frombuffer(zlib.compress(raw.tobytes(), _DEFLATE_LEVEL), dtype=np.uint8)
    metadata = {"format": "classicrl-replay-1", "first_id": str(rows.first_id)}
    return safetensors.numpy.save(tensors, metadata | {"layout": json.dumps(layout)})


def decode(path: Path) -> Rows:
    """Reads one chunk.

    Raises:
        UserError: if the file is not a whole chunk.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            layout = json.loads(metadata["layout"])
            first_id = int(metadata["first_id"])
            fields: dict[str, NDArray[Any]] = {}
            left = _MAX_INFLATED_BYTES
            for name in Rows._fields[1:]:
                dtype, shape = np.dtype(layout[name]["dtype"]), tuple(layout[name]["shape"])
                nbytes = math.prod(shape) * dtype.itemsize
                left -= nbytes
                if left < 0 or any(length < 0 for length in shape):
                    raise ValueError(f"bad shape {shape}: at most {_MAX_INFLATED_BYTES} bytes fit")
                # The declared size bounds what is inflated, and a limit of 0 would mean none: a
                # hostile file cannot fill the memory.
                inflater = zlib.decompressobj()
                raw = inflater.decompress(file.get_tensor(name).tobytes(), nbytes + 1)
                if len(raw) != nbytes or not inflater.eof:
                    raise ValueError(f"{name} is not {nbytes} bytes long")
                fields[name] = np.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
        _require_rows(fields)
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        zlib.error,
        SafetensorError,
    ) as error:
        raise UserError(f"{path} is not a whole replay chunk ({error})") from error
    obs = fields["obs"].view(np.uint8).reshape(len(fields["obs"]), -1)
    has_link, link = _links(fields["back"])
    for i in np.flatnonzero(has_link):  # in order: a predecessor is whole before it is used
        obs[i] ^= obs[link[i]]
    return Rows(first_id, **fields)


def _require_rows(fields: dict[str, NDArray[Any]]) -> None:
    """Raises ValueError unless these are the fields of :class:`Rows`, of equally many rows."""
    for name, dtype in _DTYPES.items():
        if fields[name].ndim != 1 or fields[name].dtype != dtype:
            raise ValueError(f"{name} is not one {np.dtype(dtype)} a row")
    num_rows = {len(field) for field in fields.values()}
    if len(num_rows) != 1 or num_rows == {0}:
        raise ValueError("the fields are empty, or differ in their number of rows")
    if (fields["back"] < 0).any():
        raise ValueError("a row follows one that is newer than itself")


def _links(back: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows have their predecessor in the same chunk, and its index there."""
    link = np.arange(len(back)) - back
    return (back > 0) & (link >= 0), link
