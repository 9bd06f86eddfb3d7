"""A policy and two values from one body: what PPO with an intrinsic stream trains.

Every network here maps ``[T, B, *obs_shape]`` with the state ``[B, H]`` that it had before the
first step, and says which observations begin an episode. A network without memory has H = 0 and
looks at neither.
"""

from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from classicrl.networks.linear import Linear
from classicrl.networks.torsos import ConvTorso, init_orthogonal_

PolicyName = Literal["cnn", "gru"]

_CONVOLUTIONS = [(32, 8, 4), (64, 4, 2), (64, 4, 1)]
_ORTHOGONAL_GAIN = 2**0.5


class ActorCriticOutput(NamedTuple):
    """What a policy and its critics say of observations; leading axes are those of the input."""

    logits: Tensor  # [..., A]
    value_ext: Tensor  # [...], of the game's rewards
    value_int: Tensor  # [...], of the intrinsic ones


class ResidualHeads(nn.Module):
    """Features -> a residual branch for the policy and one for both values -> outputs.

        v = x + relu(W_v x),  p = x + relu(W_p x),  logits = W p,  (V_ext, V_int) = W' v

    The authors' code of Burda et al. 2018. Gains: 0.1 in the branches, 0.01 at the outputs, so that
    a new policy is nearly uniform and new values are nearly zero.
    """

    def __init__(self, in_features: int, num_actions: int) -> None:
        super().__init__()
        self.actor_branch = Linear(in_features, in_features)
        self.value_branch = Linear(in_features, in_features)
        self.logits = Linear(in_features, num_actions)
        self.values = Linear(in_features, 2)

    def forward(self, x: Tensor) -> ActorCriticOutput:
        """``[M, in_features]`` -> logits ``[M, A]``, values ``[M]``."""
        values = self.values(x + torch.relu(self.value_branch(x)))
        logits = self.logits(x + torch.relu(self.actor_branch(x)))
        return ActorCriticOutput(logits, values[..., 0], values[..., 1])

    def init_(self, generator: torch.Generator) -> None:
        """Sets the weights."""
        for branch in (self.actor_branch, self.value_branch):
            init_orthogonal_(branch, generator, gain=0.1)
        for output in (self.logits, self.values):
            init_orthogonal_(output, generator, gain=0.01)


class PlainHeads(nn.Module):
    """Features -> logits and both values, by one linear layer each."""

    def __init__(self, in_features: int, num_actions: int) -> None:
        super().__init__()
        self.logits = Linear(in_features, num_actions)
        self.values = Linear(in_features, 2)

    def forward(self, x: Tensor) -> ActorCriticOutput:
        """``[M, in_features]`` -> logits ``[M, A]``, values ``[M]``."""
        values = self.values(x)
        return ActorCriticOutput(self.logits(x), values[..., 0], values[..., 1])

    def init_(self, generator: torch.Generator) -> None:
        """Sets the weights."""
        init_orthogonal_(self.logits, generator, gain=0.01)
        init_orthogonal_(self.values, generator, gain=0.1)


class ActorCritic(nn.Module):
    """A body without memory, and heads.

    Args:
        body: ``[M, *obs_shape] -> [M, F]``.
        heads: ``[M, F] -> ActorCriticOutput``.
    """

    state_size = 0

    def __init__(self, body: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.heads = heads

    def forward(
        self, obs: Tensor, state: Tensor, starts: Tensor
    ) -> tuple[ActorCriticOutput, Tensor]:
        """``[T, B, *obs_shape]``, float ``[B, 0]``, bool ``[T, B]`` -> outputs ``[T, B, ...]``."""
        output = self.heads(self.body(obs.flatten(0, 1)))
        return ActorCriticOutput(*(x.unflatten(0, obs.shape[:2]) for x in output)), state


class RecurrentActorCritic(nn.Module):
    """A body, a gated recurrent unit over time, and heads.

    The reset gate acts after the product with the state, as in :class:`torch.nn.GRUCell`; the
    authors' code of Burda et al. 2018 applies it before.

    Args:
        body: ``[M, *obs_shape] -> [M, F]``.
        heads: ``[M, state_size] -> ActorCriticOutput``.
        in_features: F.
        state_size: H.
    """

    def __init__(
        self, body: nn.Module, heads: nn.Module, in_features: int, state_size: int
    ) -> None:
        super().__init__()
        self.body = body
        self.cell = nn.GRUCell(in_features, state_size)
        self.heads = heads
        self.state_size = state_size

    def forward(
        self, obs: Tensor, state: Tensor, starts: Tensor
    ) -> tuple[ActorCriticOutput, Tensor]:
        """``[T, B, *obs_shape]``, float ``[B, H]``, bool ``[T, B]`` -> outputs and the state after.

        The state is set to zero before an observation that begins an episode.
        """
        features = self.body(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])  # [T, B, F]
        keep = (~starts).to(features.dtype)[..., None]  # [T, B, 1]
        states = []
        for x, keep_now in zip(features, keep, strict=True):
            state = self.cell(x, state * keep_now)
            states.append(state)
        output = self.heads(torch.cat(states))  # [T * B, ...]
        return ActorCriticOutput(*(x.unflatten(0, obs.shape[:2]) for x in output)), state


class AtariBody(nn.Module):
    """Stacked frames -> three convolutions -> ReLU layers; uint8 ``[M, 4, 84, 84] -> [M, F]``."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.torso = ConvTorso(_CONVOLUTIONS)
        sizes = (self.torso.out_features, *widths)
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(sizes, widths, strict=False))

    def forward(self, obs: Tensor) -> Tensor:
        x: Tensor = self.torso(obs)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class VectorBody(nn.Module):
    """Numbers -> tanh layers; ``[M, in_features] -> [M, widths[-1]]``."""

    def __init__(self, in_features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (in_features, *widths)
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(sizes, widths, strict=False))

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.to(torch.float32)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def atari_actor_critic(
    policy: PolicyName, num_actions: int, *, seed: int = 0
) -> ActorCritic | RecurrentActorCritic:
    """Network for stacked 84x84 frames, uint8 ``[T, B, 4, 84, 84]``.

    Args:
        policy: ``cnn``: features of 448 units, no memory. ``gru``: a state of 256 units.
        num_actions: A.
        seed: of the initial weights, orthogonal with gain sqrt(2) below the heads.
    """
    if policy == "cnn":
        body, heads = AtariBody((256, 448)), ResidualHeads(448, num_actions)
        return _initialised(ActorCritic(body, heads), seed)
    body, heads = AtariBody((256,)), ResidualHeads(256, num_actions)
    network = RecurrentActorCritic(body, heads, in_features=256, state_size=256)
    return _initialised(network, seed)


def vector_actor_critic(
    in_features: int, num_actions: int, *, hidden: tuple[int, ...] = (64, 64), seed: int = 0
) -> ActorCritic:
    """Network for vector observations, ``[T, B, in_features]``: tanh layers, plain heads."""
    network = ActorCritic(VectorBody(in_features, hidden), PlainHeads(hidden[-1], num_actions))
    return _initialised(network, seed)


Network = TypeVar("Network", ActorCritic, RecurrentActorCritic)


def _initialised(network: Network, seed: int) -> Network:
    generator = torch.Generator().manual_seed(seed)
    for layer in network.body.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            init_orthogonal_(layer, generator, _ORTHOGONAL_GAIN)
    if isinstance(network, RecurrentActorCritic):
        for name, weight in network.cell.named_parameters():
            if name.startswith("weight"):
                for gate in weight.chunk(3):
                    nn.init.orthogonal_(gate, generator=generator)
            else:
                nn.init.zeros_(weight)
    heads = network.heads
    assert isinstance(heads, ResidualHeads | PlainHeads)
    heads.init_(generator)
    return network
