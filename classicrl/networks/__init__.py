"""Networks: torsos, heads, and the two put together."""

from classicrl.networks.heads import (
    DuelingHead,
    DuelingOutput,
    QHead,
    QOutput,
)
from classicrl.networks.q_network import QNetwork, atari_q_network, scale_gradient
from classicrl.networks.torsos import (
    ConvTorso,
    MLPTorso,
    init_fan_in_,
    nature_torso,
    small_torso,
)

__all__ = [
    "ConvTorso",
    "DuelingHead",
    "DuelingOutput",
    "MLPTorso",
    "QHead",
    "QNetwork",
    "QOutput",
    "atari_q_network",
    "init_fan_in_",
    "nature_torso",
    "scale_gradient",
    "small_torso",
]
