"""Linear layers whose large products go to oneDNN on a CPU, and many of them side by side.

PyTorch gives float32 matrix products to its BLAS, which reaches less than half of the rate of
oneDNN on processors with AVX-512 (docs/performance.md). The layers here are ``nn.Linear`` in all
else.

Networks of a few hundred thousand weights leave a processor waiting between kernels. K of them,
say one per seed, trained side by side, share those kernels and stay K independent networks: member
k's output depends on member k's parameters and input alone, so the gradient of the sum of their
losses is every member's own. The torsos and heads of this package take ``members=K`` and then map
``[K, B, ...]`` to ``[K, B, ...]``; without it they are ordinary networks, ``[B, ...]`` to
``[B, ...]``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Below these a call costs more than it saves: oneDNN puts the weights in order for every product.
_MIN_ONEDNN_ROWS = 16
_MIN_ONEDNN_PRODUCTS = 1 << 22  # multiplications
# Of each of several layers: one call of the BLAS is made for all of them, of oneDNN for each.
_MIN_STACKED_ONEDNN_PRODUCTS = 1 << 24


def _has_onednn() -> bool:
    # The operator under torch.compile's linear layers; not there in builds without oneDNN.
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


# Where a processor has no more than AVX2, the BLAS is as fast, and faster with many at a time.
_USES_ONEDNN = _has_onednn() and torch.backends.cpu.get_cpu_capability() != "AVX2"


class Linear(nn.Linear):
    """``nn.Linear``: float ``[..., in_features] -> [..., out_features]``.

    On a CPU a bfloat16 input is multiplied, and answered, in bfloat16. ``first`` leaves out the
    outputs before it, and their arithmetic.
    """

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if first:
            weight, bias = weight[first:], bias[first:]
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return functional.linear(x, weight.bfloat16(), bias.bfloat16())
        flat = x.flatten(0, -2)
        if not _for_onednn(x, len(flat), len(weight), _MIN_ONEDNN_PRODUCTS):
            return functional.linear(x, weight, bias)
        # Columns of a wider tensor, transposed, would go to a kernel a hundred times slower.
        flat = flat.contiguous()
        product: Tensor = _OneDnnLinear.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
        return product.view(*x.shape[:-1], len(weight))


class StackedLinear(nn.Module):
    """K linear layers side by side: float ``[K, ..., in_features] -> [K, ..., out_features]``.

    Member k's parameters are ``weight[k]`` and ``bias[k]``, shaped as those of ``nn.Linear``.
    ``first`` leaves out the outputs before it, and their arithmetic.
    """

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(
            torch.empty(members, out_features, in_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(members, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        flat = x.flatten(1, -2)  # [K, M, in_features]
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if first:
            weight, bias = weight[:, first:], bias[:, first:]
        out_features = weight.shape[1]
        product: Tensor
        if _for_onednn(x, flat.shape[1], out_features, _MIN_STACKED_ONEDNN_PRODUCTS):
            flat = flat.contiguous()
            product = _OneDnnStackedLinear.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
        elif flat.device.type != "cpu" or torch.compiler.is_compiling():
            product = torch.baddbmm(bias[:, None], flat, weight.mT)
        elif torch.is_grad_enabled():
            product = _BatchedStackedLinear.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
        else:
            product = _batched_product(flat, weight, bias)
        return product.reshape(*x.shape[:-1], out_features)


def linear(in_features: int, out_features: int, members: int | None = None) -> nn.Module:
    """A :class:`Linear` layer, or ``members`` of them side by side."""
    if members is None:
        return Linear(in_features, out_features)
    return StackedLinear(members, in_features, out_features)


@torch.no_grad()
def stack_members_(stacked: nn.Module, singles: Sequence[nn.Module]) -> None:
    """Makes member k of ``stacked`` what ``singles[k]`` is.

    Args:
        stacked: made with ``members=len(singles)``, otherwise by the same arguments.
        singles: made without ``members``.

    Raises:
        ValueError: if they are not networks of one shape.
    """
    states = [single.state_dict() for single in singles]
    for name, values in stacked.state_dict().items():
        try:
            values.copy_(torch.stack([state[name] for state in states]))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{name} of the members does not fit the stack: {error}") from error


def member_state(stacked: nn.Module, member: int) -> dict[str, Tensor]:
    """The ``state_dict`` of one member alone, which a network made without ``members`` loads."""
    return {name: values[member].contiguous() for name, values in stacked.state_dict().items()}


# -- products by oneDNN ----------------------------------------------------------------------------


def _for_onednn(x: Tensor, rows: int, out_features: int, least_products: int) -> bool:
    return (
        _USES_ONEDNN
        and not torch.compiler.is_compiling()  # the compiler chooses kernels of its own
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and rows >= _MIN_ONEDNN_ROWS
        and rows * x.shape[-1] * out_features >= least_products
    )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias``: ``[M, I]``, ``[O, I]``, ``[O]`` -> ``[M, O]``."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        gradient = gradients[0].contiguous()  # [M, O]
        x, weight = ctx.saved_tensors
        of_x = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:  # frozen
            return of_x, None, None
        return of_x, _product(gradient.t(), x.t()), gradient.sum(dim=0)


class _OneDnnStackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        members = zip(x, weight, bias, strict=True)
        return torch.stack([_product(*member) for member in members])

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        gradient = gradients[0].contiguous()  # [K, M, O]
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.stack([_product(g, w.t()) for g, w in zip(gradient, weight, strict=True)])
        if not ctx.needs_input_grad[1]:  # frozen
            return of_x, None, None
        # Each product is copied into its place while it is still in the cache.
        of_weight = torch.empty_like(weight)
        for place, g, inputs in zip(of_weight, gradient, x, strict=True):
            place.copy_(_product(g.t(), inputs.t()))
        return of_x, of_weight, gradient.sum(dim=1)


# -- products by the BLAS, many at a time ----------------------------------------------------------

# The longer side first: with AVX2 a tenth faster, and twice as fast with the few rows that are
# acted on; with one or two it is the slower. With AVX-512 (Zen 4) it costs an update about 3%, and
# half as much again with 8 rows.
_MIN_TURNED_ROWS = 4
_TURNS_PRODUCTS = torch.backends.cpu.get_cpu_capability() == "AVX2"


def _batched_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x @ weight.mT + bias``: ``[K, M, I]``, ``[K, O, I]``, ``[K, O]`` -> ``[K, M, O]``."""
    if _TURNS_PRODUCTS and _MIN_TURNED_ROWS <= x.shape[1] < weight.shape[1]:
        return torch.baddbmm(bias[:, :, None], weight, x.mT).mT
    return torch.baddbmm(bias[:, None], x, weight.mT)


class _BatchedStackedLinear(torch.autograd.Function):
    """``torch.baddbmm``, whose own gradient of the weights comes transposed and is then copied.

    On a CPU that copy is an eighth of an update; on a GPU it was not measured.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _batched_product(x, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        gradient = gradients[0]  # [K, M, O]
        x, weight = ctx.saved_tensors
        of_x = gradient.bmm(weight) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:  # frozen
            return of_x, None, None
        return of_x, gradient.mT.bmm(x), gradient.sum(dim=1)
