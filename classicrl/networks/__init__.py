"""Networks: torsos, heads, and the two put together."""

from classicrl.networks.actor_critic import (
    ActorCritic,
    ActorCriticOutput,
    RecurrentActorCritic,
    atari_actor_critic,
    vector_actor_critic,
)
from classicrl.networks.heads import (
    BehaviourHead,
    BehaviourOutput,
    CentreHead,
    DuelingHead,
    DuelingOutput,
    FittedOutput,
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
from classicrl.networks.rnd import atari_rnd_networks, vector_rnd_networks
from classicrl.networks.torsos import (
    ConvTorso,
    MinAtarTorso,
    MLPTorso,
    init_fan_in_,
    init_lecun_normal_,
    init_orthogonal_,
    nature_torso,
    small_torso,
)

__all__ = [
    "ActorCritic",
    "ActorCriticOutput",
    "BehaviourHead",
    "BehaviourOutput",
    "CentreHead",
    "ConvTorso",
    "DuelingHead",
    "DuelingOutput",
    "FittedOutput",
    "Linear",
    "MLPTorso",
    "MinAtarTorso",
    "QHead",
    "QNetwork",
    "QOutput",
    "RecurrentActorCritic",
    "StackedLinear",
    "atari_actor_critic",
    "atari_q_network",
    "atari_rnd_networks",
    "init_fan_in_",
    "init_lecun_normal_",
    "init_orthogonal_",
    "member_state",
    "minatar_q_network",
    "nature_torso",
    "scale_gradient",
    "small_torso",
    "stack_members_",
    "vector_actor_critic",
    "vector_q_network",
    "vector_rnd_networks",
]
