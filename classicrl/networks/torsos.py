"""Torsos: observation -> features. Heads (``heads.py``) turn features into values.

Each torso states ``out_features``. Weights start as in the original DQN: uniform in
+-1/sqrt(fan_in), biases too, drawn from the generator that the caller passes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from classicrl.networks.linear import StackedLinear, linear


def init_fan_in_(module: nn.Module, generator: torch.Generator) -> None:
    """Sets every linear and convolution layer of ``module`` to U(-b, b), b = 1/sqrt(fan_in)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1.0 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def init_lecun_normal_(module: nn.Module, generator: torch.Generator) -> None:
    """Sets every linear layer of ``module`` to N(0, 1/fan_in), biases to zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)


def init_orthogonal_(layer: nn.Module, generator: torch.Generator, gain: float = 2**0.5) -> None:
    """Sets a linear or convolution layer to an orthogonal matrix times ``gain``, its bias to 0.

    Rows of a convolution are its filters (Saxe et al. 2014, arXiv 1312.6120).
    """
    assert isinstance(layer, nn.Linear | nn.Conv2d), layer
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ConvTorso(nn.Module):
    """Stacked 84x84 frames -> convolutions -> flat features.

    Args:
        layers: per convolution ``(channels, kernel, stride)``, no padding.
        in_channels: frames in a stack.
        scale: pixels are multiplied by it.
        negative_slope: of the activation; 0 makes it a ReLU.

    Shapes:
        uint8 or float ``[B, in_channels, 84, 84]`` -> float32 ``[B, out_features]``.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        in_channels: int = 4,
        *,
        scale: float = 1.0 / 255.0,
        negative_slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        convolutions: list[nn.Module] = []
        channels, side = in_channels, 84
        for out_channels, kernel, stride in layers:
            activation = nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()
            convolutions += [nn.Conv2d(channels, out_channels, kernel, stride), activation]
            channels, side = out_channels, (side - kernel) // stride + 1
        self.convolutions = nn.Sequential(*convolutions)
        self.out_features = channels * side * side

    def forward(self, obs: Tensor) -> Tensor:
        # channels_last is what the convolution kernels of CPUs and GPUs want. The bytes are put
        # into that order before they become floats four times as long.
        x = obs.contiguous(memory_format=torch.channels_last).to(torch.float32)
        if self.scale != 1.0:
            x = x.mul_(self.scale) if obs.dtype == torch.uint8 else x * self.scale
        # Features in the order height, width, channel: as they lie in memory, so without a copy.
        features: Tensor = self.convolutions(x).permute(0, 2, 3, 1).flatten(1)
        return features  # [B, out_features]


def nature_torso(in_channels: int = 4) -> ConvTorso:
    """The torso of Mnih et al. 2015 (Nature): 32 8x8/4, 64 4x4/2, 64 3x3/1; 3136 features."""
    return ConvTorso([(32, 8, 4), (64, 4, 2), (64, 3, 1)], in_channels)


def small_torso(in_channels: int = 4) -> ConvTorso:
    """The torso of Mnih et al. 2013: 16 8x8/4, 32 4x4/2; 2592 features.

    About a third of the Nature torso's arithmetic, for runs on a CPU. Its scores are labelled.
    """
    return ConvTorso([(16, 8, 4), (32, 4, 2)], in_channels)


class MinAtarTorso(nn.Module):
    """10x10 boards -> 3x3 convolution, ReLU -> flat features (Young & Tian 2019, section 4).

    Args:
        in_channels: kinds of things on the board, C.
        channels: of the convolution.
        members: None, or the number of networks side by side (``linear.py``).

    Shapes:
        ``[B, 10, 10, C]``, any dtype -> float32 ``[B, out_features]``; with K members
        ``[K, B, 10, 10, C]`` -> ``[K, B, out_features]``.
    """

    def __init__(self, in_channels: int, channels: int = 16, members: int | None = None) -> None:
        super().__init__()
        # A convolution as a product with all 3x3 patches: the same for one network and for many.
        self.patch = linear(9 * in_channels, channels, members)
        self.out_features = 8 * 8 * channels

    def forward(self, obs: Tensor) -> Tensor:
        if isinstance(self.patch, StackedLinear) and _grouped_convolution_pays(obs):
            return torch.relu(_convolve_in_groups(obs, self.patch)).flatten(2)
        # Three neighbours in a row lie together in memory, so patches are made of runs of 3 C.
        channels = obs.shape[-1]
        runs = obs.to(torch.float32).flatten(-2).unfold(-1, 3 * channels, channels)
        patches = runs.unfold(-3, 3, 1).transpose(-2, -1)  # [..., 8, 8, 3, 3 C], a view
        flat = patches.flatten(-2).flatten(-3, -2)  # [..., 64, 9 C]
        features: Tensor = torch.relu(self.patch(flat)).flatten(-2)
        return features  # [..., 64 * channels]


# Measured with 32 boards, where groups are the faster, and with one, where patches are.
_MIN_CONVOLVED_BOARDS = 16


def _grouped_convolution_pays(obs: Tensor) -> bool:
    """On a CPU, with a batch for each of several members; on a GPU it was not measured."""
    several = len(obs) > 1 and obs.shape[1] >= _MIN_CONVOLVED_BOARDS
    return several and obs.device.type == "cpu" and not torch.compiler.is_compiling()


def _convolve_in_groups(obs: Tensor, patch: StackedLinear) -> Tensor:
    """What the products of ``patch`` with all patches are, without the patches; a group is a
    member: ``[K, B, 10, 10, C] -> [K, B, 8, 8, channels]``."""
    members, batch, _, _, in_channels = obs.shape
    boards = obs.permute(1, 2, 3, 0, 4).flatten(-2).to(torch.float32)  # [B, 10, 10, K C]
    kernels = patch.weight.view(-1, 3, 3, in_channels).permute(0, 3, 1, 2)
    maps = functional.conv2d(
        boards.permute(0, 3, 1, 2), kernels, patch.bias.flatten(), groups=members
    )
    by_member = maps.permute(0, 2, 3, 1).view(batch, 8, 8, members, -1)
    return by_member.permute(3, 0, 1, 2, 4)


class MLPTorso(nn.Module):
    """Vector observation -> ReLU layers.

    Shapes:
        ``[B, in_features]``, any dtype -> float32 ``[B, hidden[-1]]``; with K members
        ``[K, B, in_features]`` -> ``[K, B, hidden[-1]]``.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int] = (128,), members: int | None = None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [linear(in_features, width, members), nn.ReLU()]
            in_features = width
        self.layers = nn.Sequential(*layers)
        self.out_features = in_features

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.layers(obs.to(torch.float32))
        return features
