"""Torso and head put together: observations -> action values."""

from typing import Literal

import torch
from torch import Tensor, nn

from classicrl.networks.heads import DuelingHead, DuelingOutput, QHead, QOutput
from classicrl.networks.torsos import init_fan_in_, nature_torso, small_torso

TorsoName = Literal["nature", "small"]
HeadName = Literal["q", "dueling"]


class QNetwork(nn.Module):
    """A torso and a head.

    Args:
        torso: observation -> features.
        head: features -> a named tuple with a field ``q``.
        torso_gradient_scale: factor on the gradient that enters the torso. The dueling paper uses
            1/sqrt(2), because two streams both send one (Wang et al. 2016, section 4.2).
    """

    def __init__(
        self, torso: nn.Module, head: nn.Module, torso_gradient_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.torso = torso
        self.head = head
        self.torso_gradient_scale = torso_gradient_scale

    def forward(self, obs: Tensor) -> QOutput | DuelingOutput:
        features = scale_gradient(self.torso(obs), self.torso_gradient_scale)
        output: QOutput | DuelingOutput = self.head(features)
        return output


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """The identity, whose gradient is multiplied by ``scale``."""
    return x if scale == 1.0 else scale * x + (1.0 - scale) * x.detach()


def atari_q_network(
    torso: TorsoName, head: HeadName, num_actions: int, *, seed: int = 0
) -> QNetwork:
    """Network for stacked 84x84 frames: uint8 ``[B, 4, 84, 84]`` -> named tuple with ``q``.

    Args:
        torso: ``nature`` (2015) with 512 hidden units a stream, or ``small`` (2013) with 256.
        head: ``q`` (single stream) or ``dueling``, whose gradient into the torso is scaled by
            1/sqrt(2).
        num_actions: A.
        seed: of the initial weights.
    """
    features = nature_torso() if torso == "nature" else small_torso()
    hidden = 512 if torso == "nature" else 256
    if head == "dueling":
        dueling = DuelingHead(features.out_features, num_actions, hidden)
        network = QNetwork(features, dueling, torso_gradient_scale=2**-0.5)
    else:
        network = QNetwork(features, QHead(features.out_features, num_actions, hidden))
    init_fan_in_(network, torch.Generator().manual_seed(seed))
    return network
