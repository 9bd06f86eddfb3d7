"""Taking up what torch saved, on whatever device this is."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def load_optimizer_(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Continues with saved moments, on the device of the parameters.

    The moments are copies in the memory format of their parameters: a fused optimiser pairs numbers
    by their place in memory, and in another format they would belong to other weights. Whether
    a CUDA graph may capture the optimiser stays as it is here, whatever the saved state says.
    """
    capturable = [group.get("capturable") for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, here in zip(optimizer.param_groups, capturable, strict=True):
        if here is not None:
            group["capturable"] = here
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            for name, value in moments.items():
                like = parameter if value.shape == parameter.shape else value
                moments[name] = torch.empty_like(like).copy_(value)


def restore_generator(generator: torch.Generator, saved: Tensor) -> None:
    """Goes on where ``generator.get_state()`` was taken.

    Exactly, if that was on the same kind of device. The states of another kind have another form:
    then other random numbers come from here on, which depend on the saved state and on the seed.
    """
    saved = saved.cpu()
    if saved.shape == generator.get_state().shape:
        generator.set_state(saved)
    else:
        mark = zlib.crc32(saved.numpy().tobytes())
        generator.manual_seed((generator.initial_seed() + 1 + mark) % 2**63)
