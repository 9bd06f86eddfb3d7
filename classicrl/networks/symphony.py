"""Symphony's actor and critics (arXiv 2512.10477, sections 3 and 4).

All are made of one block: linear, layer norm, linear, gated sine, linear. Several critics are one
stacked network: their parameters have the critic as first axis, so that a GPU does for all of them
what it would do for one.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from classicrl.networks.linear import Linear, StackedLinear, linear

NUM_CRITICS = 3


class GatedSine(nn.Module):
    """``f sigmoid(1.5 f / g)`` with ``f = g sin(x / g)``, ``g = sigmoid(l)``; l is learned.

    ``f / g`` is the sine itself, so this is ``g h(sin(x / g))`` with ``h(s) = s sigmoid(1.5 s)``,
    which is how it is computed. The authors call it ReSine.

    Args:
        width: features.
        members: None, or the number of networks side by side.

    Shapes:
        ``[..., width]``, with members ``[K, B, width]``, to the same.
    """

    def __init__(self, width: int, members: int | None = None) -> None:
        super().__init__()
        self.width = width
        shape = (width,) if members is None else (members, 1, width)
        self.gate_logit = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate_logit)
        output: Tensor = _GatedSine.apply(x, gate)  # type: ignore[no-untyped-call]
        return output


class _GatedSine(torch.autograd.Function):
    """``g h(sin(x / g))``: written out, it reads and writes memory half as often as autograd."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, gate: Tensor) -> Tensor:
        phase = x / gate
        sine = phase.sin()
        share = (1.5 * sine).sigmoid_()
        swish = sine * share
        if x.requires_grad or gate.requires_grad:
            ctx.save_for_backward(phase, share, swish, gate)
        return swish * gate

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        phase, share, swish, gate = ctx.saved_tensors  # type: ignore[attr-defined]
        # h'(s) = sigmoid + 1.5 s sigmoid (1 - sigmoid)
        slope = 1.5 * swish
        slope = torch.addcmul(slope, slope, share, value=-1.0).add_(share).mul_(phase.cos())
        of_x = gradient * slope
        of_gate = None
        if ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            # The phase is x / g, so d/dg [g h(sin(x/g))] = h - h' cos * x/g.
            of_gate = torch.addcmul(swish, slope, phase, value=-1.0).mul_(gradient)
            of_gate = of_gate.sum_to_size(gate.shape)
        return of_x, of_gate


class GradDropout(nn.Module):
    """Identity forwards; backwards each element's gradient is dropped with probability 1/2.

    Nothing is rescaled. ``generator`` draws the masks; None is torch's own. The authors call it
    SilentDropout or GradientDropout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return x
        mask = torch.rand(x.shape, generator=self.generator, device=x.device) < 0.5
        output: Tensor = _MaskedGradient.apply(x, mask)  # type: ignore[no-untyped-call]
        return output


class _MaskedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x.view_as(x)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * mask, None


class MLPBlock(nn.Module):
    """Linear, layer norm (no activation between), linear, gated sine, linear.

    Every weight, bias and gate starts uniform in +-1/sqrt(fan in); see :func:`init_symphony_`.

    Args:
        in_features, hidden, out_features: sizes.
        members: None, or the number of networks side by side, which all get the same input.
        grad_dropout: whether :class:`GradDropout` follows.

    Shapes:
        ``[B, in_features] -> [B, out_features]``, with K members ``[K, B, out_features]``.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        members: int | None = None,
        *,
        grad_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.members = members
        self.hidden = hidden
        # The input is shared, so the members' first layers are one with as many outputs.
        self.first = Linear(in_features, hidden * (members or 1))
        norm_shape = (hidden,) if members is None else (members, 1, hidden)
        self.norm_gain = nn.Parameter(torch.ones(norm_shape))
        self.norm_bias = nn.Parameter(torch.zeros(norm_shape))
        self.second = linear(hidden, hidden, members)
        self.activation = GatedSine(hidden, members)
        self.third = linear(hidden, out_features, members)
        self.dropout = GradDropout() if grad_dropout else None

    def forward(self, x: Tensor) -> Tensor:
        return self.after_first(self.first(x))

    def after_first(self, z: Tensor) -> Tensor:
        """The rest of the block, from the first layer's output ``[B, hidden * (K or 1)]``."""
        if self.members is None:
            z = functional.layer_norm(z, (self.hidden,), self.norm_gain, self.norm_bias)
        else:
            z = z.view(-1, self.members, self.hidden).transpose(0, 1)  # [K, B, hidden]
            z = functional.layer_norm(z, (self.hidden,))
            z = torch.addcmul(self.norm_bias, z, self.norm_gain)
        y: Tensor = self.third(self.activation(self.second(z)))
        return y if self.dropout is None else self.dropout(y)


class ActorOutput(NamedTuple):
    """What the actor says of B observations, A numbers each, all ``[B, A]``."""

    action: Tensor  # in (-1, 1), with noise where there was some
    gain: Tensor  # sigma, in [0, 1): how far the action goes
    temperature: Tensor  # beta, in [0, 1): parameter of the regulariser of sigma


class SymphonyActor(nn.Module):
    """``u = tanh(gain sigma z0 + noise)`` with ``z0, z1, z2 = tanh(block(s) / 2)``, sigma = |z1|,
    beta = |z2|.

    Args:
        obs_size: S.
        action_size: A.
        hidden: width of the block.
        centre, scale: ``[A]``: what is done in the environment is ``centre + scale * u``.
        grad_dropout: see :class:`GradDropout`.
        obs_norm: whether observations are standardised by the buffers ``obs_norm.mean`` and
            ``obs_norm.std``, which ``SymphonyLearner.set_obs_norm`` fills.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        hidden: int,
        *,
        centre: NDArray[np.float32] | None = None,
        scale: NDArray[np.float32] | None = None,
        grad_dropout: bool = False,
        obs_norm: bool = False,
    ) -> None:
        super().__init__()
        self.block = MLPBlock(obs_size, hidden, 3 * action_size, grad_dropout=grad_dropout)
        zeros, ones = np.zeros(action_size), np.ones(action_size)
        for name, value in (
            ("centre", zeros if centre is None else centre),
            ("scale", ones if scale is None else scale),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))
        self.obs_norm = ObsNorm(obs_size) if obs_norm else None

    def forward(
        self, obs: Tensor, noise: Tensor | None = None, policy_gain: Tensor | None = None
    ) -> ActorOutput:
        """Actions of observations.

        Args:
            obs: ``[B, S]``.
            noise: ``[B, A]`` within [-1, 1], see :func:`clipped_noise`; None for none.
            policy_gain: ``[B, 1]``; 0 leaves the noise alone. None for 1.
        """
        if self.obs_norm is not None:
            obs = self.obs_norm(obs)
        raw_action, z1, z2 = torch.tanh(0.5 * self.block(obs)).chunk(3, dim=-1)
        gain, temperature = z1.abs(), z2.abs()
        argument = gain * raw_action
        if policy_gain is not None:
            argument = policy_gain * argument
        if noise is not None:
            argument = argument + noise
        return ActorOutput(torch.tanh(argument), gain, temperature)

    def env_action(self, action: Tensor) -> Tensor:
        """What the environment is told: ``centre + scale * u``, ``[B, A]``, not clipped."""
        return torch.addcmul(self.centre, self.scale, action)


class SymphonyCritics(nn.Module):
    """Three critics with ``heads_per_critic`` regression heads each, as one stacked network.

    Args:
        obs_size, action_size, hidden: S, A and the width of each block.
        heads_per_critic: n_q.
        grad_dropout, obs_norm: as for :class:`SymphonyActor`.
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        hidden: int,
        heads_per_critic: int,
        *,
        grad_dropout: bool = False,
        obs_norm: bool = False,
    ) -> None:
        super().__init__()
        self.obs_size = obs_size
        self.num_heads = NUM_CRITICS * heads_per_critic
        self.block = MLPBlock(
            obs_size + action_size,
            hidden,
            heads_per_critic,
            NUM_CRITICS,
            grad_dropout=grad_dropout,
        )
        self.obs_norm = ObsNorm(obs_size) if obs_norm else None

    def forward(self, obs_action: Tensor) -> Tensor:
        """All heads: ``[B, S + A] -> [3, B, n_q]``."""
        if self.obs_norm is not None:
            obs, action = obs_action[:, : self.obs_size], obs_action[:, self.obs_size :]
            obs_action = torch.cat([self.obs_norm(obs), action], dim=1)
        heads: Tensor = self.block(obs_action)
        return heads

    def of_actions(self, obs: Tensor, action: Tensor) -> Tensor:
        """All heads, ``[B, S]``, ``[B, A] -> [B, 3 n_q]``, with a gradient for the action alone.

        The first layer is split between observation and action: a gradient for the observations
        would cost as much as the whole layer does forwards, and nobody asks for it.
        """
        if self.obs_norm is not None:
            obs = self.obs_norm(obs)
        first = self.block.first
        of_obs, of_action = first.weight[:, : self.obs_size], first.weight[:, self.obs_size :]
        z = functional.linear(obs, of_obs, first.bias) + functional.linear(action, of_action)
        heads = self.block.after_first(z)
        return heads.transpose(0, 1).flatten(1)


class ObsNorm(nn.Module):
    """``(obs - mean) / std`` per number of an observation, both set once; ``[B, S] -> [B, S]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, obs_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs_size))
        self.register_buffer("std", torch.ones(obs_size))

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std


def clipped_noise(normal: Tensor, std: float) -> Tensor:
    """``c clip(xi, -1/c, 1/c)`` for standard normal xi: noise of deviation c within [-1, 1]."""
    return (std * normal).clamp_(-1.0, 1.0)


def init_symphony_(module: nn.Module, generator: torch.Generator) -> None:
    """Sets every weight, bias and gate logit to U(-b, b), b = 1/sqrt(fan in); norms stay (1, 0)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | StackedLinear):
            bound = 1.0 / math.sqrt(layer.weight.shape[-1])
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, GatedSine):
            bound = 1.0 / math.sqrt(layer.width)
            nn.init.uniform_(layer.gate_logit, -bound, bound, generator=generator)
