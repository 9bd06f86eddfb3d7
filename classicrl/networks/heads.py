"""Heads: features -> named outputs. Losses pick the fields that they need by name.

Shapes are those of one network; with ``members=K`` everything has K as its first axis
(``linear.py``).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from classicrl.networks.linear import linear

Centring = Literal["mean", "behaviour", "fitted", "none"]


class QOutput(NamedTuple):
    """Action values of a single stream."""

    q: Tensor  # [B, A]


class DuelingOutput(NamedTuple):
    """Action values with the two streams that make them."""

    q: Tensor  # [B, A]
    value: Tensor  # [B]
    advantage: Tensor  # [B, A], centred (or not, as the head says)


class BehaviourOutput(NamedTuple):
    """As :class:`DuelingOutput`, with the behaviour policy that centres the advantage."""

    q: Tensor  # [B, A]
    value: Tensor  # [B]
    advantage: Tensor  # [B, A], sum_b mu(b|x) advantage(x,b) = 0
    behaviour_logits: Tensor  # [B, A]


class FittedOutput(NamedTuple):
    """As :class:`DuelingOutput`, with the estimated mean of F over the actions taken."""

    q: Tensor  # [B, A]
    value: Tensor  # [B]
    advantage: Tensor  # [B, A], F less the centre
    centre: Tensor  # [B], with a gradient for the estimate alone


class QHead(nn.Module):
    """``features -> hidden, ReLU -> A`` (Mnih et al. 2015)."""

    def __init__(
        self,
        in_features: int,
        num_actions: int,
        hidden: int = 512,
        members: int | None = None,
    ) -> None:
        super().__init__()
        self.hidden = linear(in_features, hidden, members)
        self.q = linear(hidden, num_actions, members)

    def forward(self, features: Tensor) -> QOutput:
        return QOutput(self.q(torch.relu(self.hidden(features))))


class DuelingHead(nn.Module):
    """Value and advantage streams, ``features -> hidden, ReLU -> 1`` and ``-> A``.

    Q(x,a) = V(x) + F(x,a) - sum_b c(b|x) F(x,b)

    Args:
        in_features, num_actions, hidden: sizes; ``hidden`` of each stream.
        centring: the weights c. ``mean``: 1/A (Wang et al. 2016, equation 9). ``behaviour``: the
            policy that acted, estimated by a :class:`BehaviourHead` and taken as a constant
            (VA-learning, Tang et al. 2023, arXiv 2305.18161). ``fitted``: the sum as a whole, the
            mean of F over the actions taken, is estimated by a :class:`CentreHead` (ours).
            ``none``: 0, so Q = V + F (regularised dueling Q-learning, arXiv 2507.09523).
        behaviour_hidden: units of the behaviour or centre head.
        smoothing: share of the uniform policy mixed into mu before it centres.
        members: None, or the number of networks side by side.
    """

    def __init__(
        self,
        in_features: int,
        num_actions: int,
        hidden: int = 512,
        *,
        centring: Centring = "mean",
        behaviour_hidden: int = 128,
        smoothing: float = 0.0,
        members: int | None = None,
    ) -> None:
        super().__init__()
        # The first layers of both streams as one matrix product; rows [:hidden] feed V, the rest F.
        self.width = hidden
        self.hidden = linear(in_features, 2 * hidden, members)
        self.value = linear(hidden, 1, members)
        self.advantage = linear(hidden, num_actions, members)
        self.centring = centring
        self.smoothing = smoothing
        if centring == "behaviour":
            self.behaviour = BehaviourHead(in_features, num_actions, behaviour_hidden, members)
        if centring == "fitted":
            self.centre = CentreHead(in_features, behaviour_hidden, members)

    def forward(self, features: Tensor) -> DuelingOutput | BehaviourOutput | FittedOutput:
        for_value, for_advantage = torch.relu(self.hidden(features)).chunk(2, dim=-1)
        value = self.value(for_value)  # [B, 1]
        raw = self.advantage(for_advantage)  # [B, A]
        if self.centring == "none":
            return DuelingOutput(value + raw, value[..., 0], raw)
        if self.centring == "mean":
            advantage = raw - raw.mean(dim=-1, keepdim=True)
            return DuelingOutput(value + advantage, value[..., 0], advantage)
        if self.centring == "fitted":
            centre = self.centre(features)  # [B, 1]
            advantage = raw - centre.detach()
            return FittedOutput(value + advantage, value[..., 0], advantage, centre[..., 0])
        logits = self.behaviour(features)
        mu = logits.detach().softmax(dim=-1)
        if self.smoothing:
            mu = (1.0 - self.smoothing) * mu + self.smoothing / mu.shape[-1]
        # The gradient flows through F here, never through mu.
        advantage = raw - (mu * raw).sum(dim=-1, keepdim=True)
        return BehaviourOutput(value + advantage, value[..., 0], advantage, logits)

    def preferences(self, features: Tensor) -> Tensor:
        """F, ``[B, A]``: it ranks the actions as Q does, for V and the centre are the same for all.

        At most half of the first layers' arithmetic.
        """
        raw: Tensor = self.advantage(torch.relu(self.hidden(features, first=self.width)))
        return raw


class BehaviourHead(nn.Module):
    """Logits of the policy that acted, ``features -> hidden, ReLU -> A``.

    Learned by maximum likelihood beside the values and apart from them: its gradient does not
    enter the features.
    """

    def __init__(
        self, in_features: int, num_actions: int, hidden: int, members: int | None = None
    ) -> None:
        super().__init__()
        self.hidden = linear(in_features, hidden, members)
        self.logits = linear(hidden, num_actions, members)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.logits(torch.relu(self.hidden(features.detach())))
        return logits


class CentreHead(nn.Module):
    """The mean of F over the actions that were taken, ``features -> hidden, ReLU -> 1``.

    Learned by least squares on F of the replay's actions, beside the values and apart from them:
    its gradient does not enter the features.
    """

    def __init__(self, in_features: int, hidden: int, members: int | None = None) -> None:
        super().__init__()
        self.hidden = linear(in_features, hidden, members)
        self.centre = linear(hidden, 1, members)

    def forward(self, features: Tensor) -> Tensor:
        centre: Tensor = self.centre(torch.relu(self.hidden(features.detach())))
        return centre
