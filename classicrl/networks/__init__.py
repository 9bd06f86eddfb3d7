"""Networks: torsos, heads, and the two put together."""

from classicrl.networks.heads import (
    BehaviourHead,
    BehaviourOutput,
    DuelingHead,
    DuelingOutput,
    QHead,
    QOutput,
)
from classicrl.networks.linear import Linear, StackedLinear, member_state, stack_members_
from classicrl.networks.q_network import (
    QNetwork,
    atari_q_network,
    minatar_q_network,
    scale_gradient,
    vector_q_network,
)
from classicrl.networks.torsos import (
    ConvTorso,
    MinAtarTorso,
    MLPTorso,
    init_fan_in_,
    init_lecun_normal_,
    nature_torso,
    small_torso,
)

__all__ = [
    "BehaviourHead",
    "BehaviourOutput",
    "ConvTorso",
    "DuelingHead",
    "DuelingOutput",
    "Linear",
    "MLPTorso",
    "MinAtarTorso",
    "QHead",
    "QNetwork",
    "QOutput",
    "StackedLinear",
    "atari_q_network",
    "init_fan_in_",
    "init_lecun_normal_",
    "member_state",
    "minatar_q_network",
    "nature_torso",
    "scale_gradient",
    "small_torso",
    "stack_members_",
    "vector_q_network",
]
