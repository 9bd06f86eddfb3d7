"""Q(s, .) of states that are rows of bytes: puzzles, cubes."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from classicrl.networks.linear import Linear

# States that a CPU takes at a time where nothing is learned from them. Above 32 MB of embeddings
# the C library asks the system for every tensor anew, and each of its pages costs a fault.
_CPU_PORTION = 2_048

# Where a processor multiplies bfloat16 itself, searches use it: sums stay float32, and Q of the
# shipped networks moves by about 0.01 (tests/test_byte_q_network.py). Others emulate it, slowly.
_CAPABILITIES: dict[str, Any] = getattr(
    torch.cpu, "get_capabilities", dict
)()  # not in every release of torch
_CPU_HAS_BF16 = any(_CAPABILITIES.get(name) for name in ("avx512_bf16", "amx_bf16"))


# Output layers at least this wide are multiplied in bfloat16, too: narrower ones gain nothing.
_WIDE_HEAD = 128


class ByteQNetwork(nn.Module):
    """Byte states -> Q-values: embedding, a narrowing layer, residual blocks, an output layer.

    The shape of F. Agostinelli et al. (arXiv 2102.04518, section 5) without batch normalisation.
    Its first layer multiplies a one-hot vector by a matrix; here the rows that the ones would pick
    are added up, which gives the same in a fraction of the time.

    Args:
        offsets: of each byte, [S]: byte i of value v picks row ``offsets[i] + v``.
        num_rows: of the embedding: above every ``offsets[i] + v``.
        num_actions: A.
        embedding_size: E.
        hidden_size: H, of the narrowing layer and the blocks.
        num_blocks: residual blocks of two layers each.
        mean_output: what every output is at first, about.

    Shapes:
        uint8 ``[B, S]`` -> float32 ``[B, A]``.
    """

    def __init__(
        self,
        offsets: Sequence[int],
        num_rows: int,
        num_actions: int,
        *,
        embedding_size: int = 1024,
        hidden_size: int = 256,
        num_blocks: int = 1,
        mean_output: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.embedding = nn.Parameter(torch.empty(num_rows, embedding_size))
        self.embedding_bias = nn.Parameter(torch.zeros(embedding_size))
        self.narrow = Linear(embedding_size, hidden_size)
        self.blocks = nn.ModuleList(_Block(hidden_size) for _ in range(num_blocks))
        self.head = Linear(hidden_size, num_actions)
        # The scale of a layer on a one-hot vector of num_rows, small beside what Adam adds to it:
        # of rows whose sum began at variance 1 too much of the beginning remained, and walks alone
        # taught the cube less (docs/qstar.md). Then He's scale after each ReLU; a block begins as
        # the identity, so depth changes nothing at first.
        nn.init.normal_(self.embedding, 0.0, num_rows**-0.5, generator=generator)
        layers = list(self.modules())
        for layer in layers:
            if isinstance(layer, nn.Linear):
                scale = (2.0 / layer.in_features) ** 0.5
                nn.init.normal_(layer.weight, 0.0, scale, generator=generator)
                nn.init.zeros_(layer.bias)
        for layer in layers:
            if isinstance(layer, _Block):
                nn.init.zeros_(layer.second.weight)
        nn.init.constant_(self.head.bias, mean_output)

    def forward(self, states: Tensor) -> Tensor:
        if len(states) > _CPU_PORTION and not (states.is_cuda or torch.is_grad_enabled()):
            return torch.cat([self(portion) for portion in torch.split(states, _CPU_PORTION)])
        rows = states + self.offsets  # [B, S] int64
        embedding: Tensor = self.embedding
        if torch.is_inference_mode_enabled() and not states.is_cuda and _CPU_HAS_BF16:
            embedding = embedding.bfloat16()  # all layers but the last then follow it
        # On CUDA, while training only: searches there have time for float32.
        narrow = states.is_cuda and torch.is_grad_enabled()
        with torch.autocast("cuda", torch.bfloat16) if narrow else nullcontext():
            # In place: a second tensor of this size costs more than what is done to the first.
            x = self._embed(rows, embedding)  # [B, E]
            x = x.add_(self.embedding_bias.to(x.dtype)).relu_()
            x = self.narrow(x).relu_()  # [B, H]
            for block in self.blocks:
                x = block(x)
        if x.dtype == torch.bfloat16 and not x.is_cuda and self.head.out_features >= _WIDE_HEAD:
            return self._wide_head(x)
        q: Tensor = self.head(x.float())  # float32: bf16 cannot tell 20.0 from 20.1
        return q  # [B, A]

    def _wide_head(self, x: Tensor) -> Tensor:
        """The output layer with most of its product in bfloat16: [B, H] bfloat16 -> [B, A].

        What all actions share is multiplied in float32; how they differ is small, and bfloat16
        rounds it by a thousandth.
        """
        shared = self.head.weight.mean(0, keepdim=True)
        q = functional.linear(x, (self.head.weight - shared).bfloat16()).float()
        return q.add_(functional.linear(x.float(), shared)).add_(self.head.bias)

    @staticmethod
    def _embed(rows: Tensor, embedding: Tensor) -> Tensor:
        """The sum of rows [B, S] of the embedding [R, E]: [B, E]."""
        if not rows.is_cuda:
            return functional.embedding_bag(rows, embedding, mode="sum")
        # On a GPU the gradients of all states would be added to so few rows one after another. The
        # rows of a state differ, so their sum is also a product with a vector of zeros and ones.
        hot = torch.zeros(len(rows), len(embedding), device=rows.device)
        return hot.scatter_(1, rows, 1.0) @ embedding


class _Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = Linear(size, size)
        self.second = Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.second(self.first(x).relu_())
        return added.add_(x).relu_()
