"""The two networks of random network distillation: a fixed random one, and one that predicts it.

Burda et al. 2018, "Exploration by Random Network Distillation" (arXiv 1810.12894). Widths are those
of its authors' code, openai/random-network-distillation.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from classicrl.networks.linear import Linear
from classicrl.networks.torsos import ConvTorso, init_orthogonal_

_CONVOLUTIONS = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
_FEATURES = 512

Network = TypeVar("Network", bound=nn.Module)


class FrameEncoder(nn.Module):
    """One normalised frame -> convolutions (leaky ReLU, slope 0.2) -> linear layers.

    Args:
        widths: units of the linear layers; ReLU between them, none after the last.

    Shapes:
        float32 ``[B, 1, 84, 84]`` -> float32 ``[B, widths[-1]]``.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.torso = ConvTorso(_CONVOLUTIONS, in_channels=1, scale=1.0, negative_slope=0.2)
        self.layers = _mlp(self.torso.out_features, widths)

    def forward(self, frames: Tensor) -> Tensor:
        features: Tensor = self.layers(self.torso(frames))
        return features


def atari_rnd_networks(*, seed: int = 0) -> tuple[FrameEncoder, FrameEncoder]:
    """Target (frozen) and predictor for Atari frames, float32 ``[B, 1, 84, 84] -> [B, 512]``.

    The predictor has two layers more, 512 units each. Weights are orthogonal, gain sqrt(2).
    """
    target, predictor = FrameEncoder((_FEATURES,)), FrameEncoder((_FEATURES,) * 3)
    return _initialised(target, predictor, seed)


def vector_rnd_networks(
    in_features: int, *, hidden: tuple[int, ...] = (64, 64), out_features: int = 32, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Target (frozen) and predictor for vectors, ``[B, in_features] -> [B, out_features]``.

    Both have the same ReLU layers, for environments small enough to be learned in seconds.
    """
    target, predictor = (_mlp(in_features, (*hidden, out_features)) for _ in range(2))
    return _initialised(target, predictor, seed)


def _mlp(in_features: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers[:-1])


def _initialised(target: Network, predictor: Network, seed: int) -> tuple[Network, Network]:
    generator = torch.Generator().manual_seed(seed)
    for network in (target, predictor):
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                init_orthogonal_(layer, generator)
    target.requires_grad_(False)
    return target, predictor
