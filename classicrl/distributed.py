"""Several processes that train one agent: what they share, and nothing where there is only one.

``torchrun`` starts the processes and tells each its rank; :func:`join_ranks` reads that. Every rank
has environments, a rollout and random numbers of its own. Gradients and statistics are shared, so
that all ranks hold the same parameters at every step.
"""

import datetime
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from classicrl.errors import UserError

_TIMEOUT_SECONDS = 3600  # a rank may be that far behind, while the first one evaluates


class Ranks:
    """The processes of one training, this one being ``rank`` of ``size``.

    With ``size == 1`` every method returns what it was given.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu") -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank must lie in [0, {size}), got {rank}")
        self.rank = rank
        self.size = size
        self.device = torch.device(device)  # of what the backend carries

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, ``[*shape] -> [size, *shape]``, in the order of ranks."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, elementwise; a new tensor where there are several."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, elementwise."""
        return self.sum(tensor) / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: what one decides, all decide alike."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)) > 0)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its mean over ranks, all in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def same_everywhere(self, parameters: Iterable[Tensor]) -> bool:
        """Whether all ranks hold the same numbers, to the last bit of their sums."""
        if self.size == 1:
            return True
        sums = torch.stack([p.double().sum() for p in parameters])
        gathered = self.gather(sums)
        return bool((gathered == gathered[0]).all())


def local_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def join_ranks(device_type: str) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started this one with; one alone without it.

    Args:
        device_type: ``cuda`` joins by NCCL, each rank on the GPU of its local number; else gloo.

    Raises:
        UserError: if there are more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    nccl = device_type == "cuda"
    if nccl:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{local_rank + 1} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "start one for each GPU, or use --device cpu"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if nccl else "gloo", timeout=datetime.timedelta(seconds=_TIMEOUT_SECONDS)
    )
    try:
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else "cpu"
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
