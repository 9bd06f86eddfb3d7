"""Torso and head put together: observations -> action values."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from classicrl.networks.heads import (
    BehaviourOutput,
    Centring,
    DuelingHead,
    DuelingOutput,
    FittedOutput,
    QHead,
    QOutput,
)
from classicrl.networks.linear import stack_members_
from classicrl.networks.torsos import (
    MinAtarTorso,
    MLPTorso,
    init_fan_in_,
    init_lecun_normal_,
    nature_torso,
    small_torso,
)

TorsoName = Literal["nature", "small"]
HeadName = Literal["q", "q-wide", "dueling", "behaviour", "fitted", "uncentred"]
"""q: a single stream. q-wide: one with as many units as two streams have together. The others have
two streams, with the advantage centred by its mean, by the behaviour policy, by a fitted mean over
the actions taken, or not at all."""

_CENTRING: dict[str, Centring] = {
    "dueling": "mean",
    "behaviour": "behaviour",
    "fitted": "fitted",
    "uncentred": "none",
}
_TWO_STREAM_GRADIENT_SCALE = 2**-0.5


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

    def forward(self, obs: Tensor) -> QOutput | DuelingOutput | BehaviourOutput | FittedOutput:
        features = scale_gradient(self.torso(obs), self.torso_gradient_scale)
        output: QOutput | DuelingOutput | BehaviourOutput | FittedOutput = self.head(features)
        return output

    def preferences(self, obs: Tensor) -> Tensor:
        """What ranks the actions as ``q`` does, ``[B, *obs_shape] -> [B, A]``, at the least cost.

        Enough to act greedily; differences between actions are those of ``q``, but for rounding.
        """
        features = self.torso(obs)
        if type(self.head) is DuelingHead:  # a subclass may have a Q of its own
            return self.head.preferences(features)
        q: Tensor = self.head(features).q
        return q

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As that of ``nn.Module``; the torso also where :meth:`preferences` calls it."""
        super().compile(*args, **kwargs)
        self.torso.compile(*args, **kwargs)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """The identity, whose gradient is multiplied by ``scale``."""
    return x if scale == 1.0 else scale * x + (1.0 - scale) * x.detach()


def value_head(
    head: HeadName,
    in_features: int,
    num_actions: int,
    hidden: int,
    *,
    behaviour_hidden: int | None = None,
    smoothing: float = 0.0,
    members: int | None = None,
) -> QHead | DuelingHead:
    """The head of a name; ``hidden`` units a stream; ``behaviour_hidden`` for mu or a fitted
    centre, None for a quarter of a stream's, at least 64."""
    if head in ("q", "q-wide"):
        return QHead(in_features, num_actions, hidden * (2 if head == "q-wide" else 1), members)
    return DuelingHead(
        in_features,
        num_actions,
        hidden,
        centring=_CENTRING[head],
        behaviour_hidden=behaviour_hidden or max(64, hidden // 4),
        smoothing=smoothing,
        members=members,
    )


def atari_q_network(
    torso: TorsoName,
    head: HeadName,
    num_actions: int,
    *,
    seed: int = 0,
    behaviour_smoothing: float = 0.0,
) -> QNetwork:
    """Network for stacked 84x84 frames: uint8 ``[B, 4, 84, 84]`` -> named tuple with ``q``.

    Args:
        torso: ``nature`` (2015) with 512 hidden units a stream, or ``small`` (2013) with 256.
        head: see ``HeadName``; with two streams, the gradient into the torso is scaled by
            1/sqrt(2).
        num_actions: A.
        seed: of the initial weights.
        behaviour_smoothing: share of the uniform policy in what centres ``behaviour``.
    """
    features = nature_torso() if torso == "nature" else small_torso()
    hidden = 512 if torso == "nature" else 256
    network = QNetwork(
        features,
        value_head(head, features.out_features, num_actions, hidden, smoothing=behaviour_smoothing),
        torso_gradient_scale=_TWO_STREAM_GRADIENT_SCALE if head in _CENTRING else 1.0,
    )
    init_fan_in_(network, torch.Generator().manual_seed(seed))
    return network


def minatar_q_network(
    head: HeadName,
    in_channels: int,
    num_actions: int,
    *,
    behaviour_hidden: int = 64,
    seeds: int | Sequence[int] = 0,
) -> QNetwork:
    """Network for 10x10 boards: ``[B, 10, 10, C]`` -> named tuple with ``q``.

    One 3x3 convolution of 16 channels, and streams of 128 units whose weights start LeCun-normal,
    as in the comparison of dueling and regularised dueling on MinAtar (arXiv 2507.09523). A single
    stream starts so, too; there it starts as PyTorch's layers do.

    Args:
        head: see ``HeadName``.
        in_channels: C.
        num_actions: A.
        behaviour_hidden: units of the layer of mu, or of a fitted centre.
        seeds: of the initial weights; K of them give K networks side by side, which map
            ``[K, B, 10, 10, C]``.
    """

    def build(members: int | None) -> QNetwork:
        torso = MinAtarTorso(in_channels, members=members)
        heads = value_head(
            head,
            torso.out_features,
            num_actions,
            128,
            behaviour_hidden=behaviour_hidden,
            members=members,
        )
        return QNetwork(torso, heads)

    def init_(network: QNetwork, generator: torch.Generator) -> None:
        init_fan_in_(network.torso, generator)
        init_lecun_normal_(network.head, generator)

    return _seeded(build, init_, seeds)


def vector_q_network(
    head: HeadName,
    in_features: int,
    num_actions: int,
    *,
    torso_hidden: int = 128,
    hidden: int = 64,
    seeds: int | Sequence[int] = 0,
) -> QNetwork:
    """Network for vector observations: ``[B, in_features]`` -> named tuple with ``q``.

    Args:
        head: see ``HeadName``.
        in_features: numbers in an observation.
        num_actions: A.
        torso_hidden, hidden: units of the torso's layer, and of each stream.
        seeds: as for :func:`minatar_q_network`.

    >>> network = vector_q_network("dueling", 4, 2)
    >>> network(torch.zeros(5, 4)).q.shape
    torch.Size([5, 2])
    >>> vector_q_network("dueling", 4, 2, seeds=[0, 1, 2])(torch.zeros(3, 5, 4)).q.shape
    torch.Size([3, 5, 2])
    """

    def build(members: int | None) -> QNetwork:
        torso = MLPTorso(in_features, (torso_hidden,), members)
        heads = value_head(head, torso.out_features, num_actions, hidden, members=members)
        return QNetwork(torso, heads)

    return _seeded(build, init_fan_in_, seeds)


def _seeded(
    build: Callable[[int | None], QNetwork],
    init_: Callable[[QNetwork, torch.Generator], None],
    seeds: int | Sequence[int],
) -> QNetwork:
    """One network, or one of several members, each as it would be alone."""

    def single(seed: int) -> QNetwork:
        network = build(None)
        init_(network, torch.Generator().manual_seed(seed))
        return network

    if isinstance(seeds, int):
        return single(seeds)
    stacked = build(len(seeds))
    stack_members_(stacked, [single(seed) for seed in seeds])
    return stacked
