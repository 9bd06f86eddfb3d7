"""Model files: weights to share, in one safetensors file with a few words about them."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from classicrl.checkpoint.codec import own_storage, plain_tensor
from classicrl.checkpoint.files import one_line, write_atomic
from classicrl.errors import UserError


def save_model(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write weights as one safetensors file, atomically. Raises OSError as `write_atomic` does."""
    seen: set[int] = set()
    own = {name: own_storage(plain_tensor(tensor), seen) for name, tensor in tensors.items()}
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
        raise UserError(f"{path} is not a valid safetensors file: {one_line(error)}") from error
    return tensors, header.get("__metadata__", {})


def require_fit(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    network: torch.nn.Module | Mapping[str, torch.Tensor],
    what: str,
) -> None:
    """Refuses weights that a network cannot take, or could not act with.

    Args:
        path: of the model file, for the message.
        tensors: what it holds.
        network: or its ``state_dict``.
        what: the network, in words.

    Raises:
        UserError: if a tensor is missing, superfluous, of another shape or not finite.
    """
    own = network.state_dict() if isinstance(network, torch.nn.Module) else network
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    for name in sorted(expected.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != expected.get(name):
            raise UserError(
                f"{path} does not fit {what}: {name} is {found or 'missing'}, "
                f"expected {expected.get(name) or 'none'}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{path} has NaN or infinite weights in {name}")
