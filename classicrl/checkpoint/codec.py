"""States as bytes: a tree of plain values as JSON, its tensors and arrays as safetensors.

Nothing is pickled: what comes back is made of the few types listed at `CheckpointStore.save`.
"""

import base64
import json
import math
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from classicrl.checkpoint.manifest import JSON, STATE_FILE, tensor_file

# JSON grows by a factor of ten or more when it is parsed: a bound on the file bounds the memory.
MAX_STATE_BYTES = 32 * 2**20
# One level of state is up to three of JSON, whose parser gives up near Python's 1000 frames.
_MAX_DEPTH = 100
# Small files travel more easily from one machine to another.
_MAX_TENSOR_FILE_BYTES = 15 * 2**20
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


def plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers on the CPU, contiguous, with nothing lazy about them."""
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


class _Encoder:
    """Splits a state into a JSON tree and named tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._storages: set[int] = set()

    def _store(self, tensor: torch.Tensor) -> str:
        name = f"{len(self.tensors):06d}"
        self.tensors[name] = own_storage(tensor, self._storages)
        return name

    def _tensor(self, tensor: torch.Tensor, where: str) -> JSON:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(f"{where} is a {type(tensor).__qualname__}, not a plain tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(f"{where} is a sparse, quantised or meta tensor: only dense ones fit")
        plain = plain_tensor(tensor)
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


def own_storage(tensor: torch.Tensor, seen: set[int]) -> torch.Tensor:
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


def state_to_bytes(state: Mapping[str, Any]) -> dict[str, bytes]:
    """A state as files: name -> bytes, the tree and its tensors."""
    encoder = _Encoder()
    tree = encoder.encode(dict(state))
    text = json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_STATE_BYTES:
        raise ValueError(
            f"the state without its tensors has {len(text)} bytes, more than {MAX_STATE_BYTES}: "
            "keep long lists of numbers as arrays or tensors"
        )
    return {STATE_FILE: text} | {
        tensor_file(number): safetensors.torch.save(group)
        for number, group in enumerate(_groups(encoder.tensors))
    }


def _groups(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Tensors in their order, each group below the limit unless it is a single large one."""
    groups: list[dict[str, torch.Tensor]] = [{}]
    nbytes = 0
    for name, tensor in tensors.items():
        if groups[-1] and nbytes + tensor.nbytes > _MAX_TENSOR_FILE_BYTES:
            groups.append({})
            nbytes = 0
        groups[-1][name] = tensor
        nbytes += tensor.nbytes
    return groups


def state_from_bytes(tree: bytes, tensor_files: Sequence[bytes]) -> dict[str, Any]:
    """The state that :func:`state_to_bytes` took apart; ValueError if the parts do not fit."""
    named: dict[str, torch.Tensor] = {}
    for data in tensor_files:
        group = safetensors.torch.load(data)
        if group.keys() & named.keys():
            raise ValueError("a tensor is there twice")
        named |= group
    state = _decode(json.loads(tree), named)
    if not isinstance(state, dict):
        raise ValueError("the state is not a dict")
    if named:
        raise ValueError(f"{len(named)} tensors belong to no place in the state")
    return state
