"""Heads: features -> named outputs. Losses pick the fields that they need by name."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class QOutput(NamedTuple):
    """Action values of a single stream."""

    q: Tensor  # [B, A]


class DuelingOutput(NamedTuple):
    """Action values with the two streams that make them."""

    q: Tensor  # [B, A]
    value: Tensor  # [B]
    advantage: Tensor  # [B, A], centred


class QHead(nn.Module):
    """``features -> hidden, ReLU -> A`` (Mnih et al. 2015)."""

    def __init__(self, in_features: int, num_actions: int, hidden: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.q = nn.Linear(hidden, num_actions)

    def forward(self, features: Tensor) -> QOutput:
        return QOutput(self.q(torch.relu(self.hidden(features))))


class DuelingHead(nn.Module):
    """Value and advantage streams, ``features -> hidden, ReLU -> 1`` and ``-> A``.

    Q(x,a) = V(x) + F(x,a) - mean_b F(x,b)      (Wang et al. 2016, equation 9)
    """

    def __init__(self, in_features: int, num_actions: int, hidden: int = 512) -> None:
        super().__init__()
        # The first layers of both streams as one matrix product; rows [:hidden] feed V, the rest F.
        self.hidden = nn.Linear(in_features, 2 * hidden)
        self.value = nn.Linear(hidden, 1)
        self.advantage = nn.Linear(hidden, num_actions)

    def forward(self, features: Tensor) -> DuelingOutput:
        for_value, for_advantage = torch.relu(self.hidden(features)).chunk(2, dim=1)
        value = self.value(for_value)  # [B, 1]
        raw = self.advantage(for_advantage)  # [B, A]
        advantage = raw - raw.mean(dim=1, keepdim=True)
        return DuelingOutput(value + advantage, value[:, 0], advantage)
