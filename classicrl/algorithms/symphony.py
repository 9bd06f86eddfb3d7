"""Symphony: one actor, three critics of many heads, one loss, one optimiser step per update
(arXiv 2512.10477, sections 3 and 4).

    y    = r + d sg Q'(s', u'),   u' = actor(s') with noise
    L    = mean H(q_k(s, u) - y)  -  mean J((Q'(s', u') - base) / |base|)  +  Sw(sigma', beta')
    base = a V + (1 - a) sg Q'(s', u'),   then V <- mean base

with H and J the smooth Huber functions and Sw the regulariser of ``losses.py``, Q' the soft lower
value of all heads of the target critics. H trains the critics; J, through the frozen target
critics, and Sw train the actor. All of an update stays on the device: it can be captured in a CUDA
graph.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classicrl import losses
from classicrl.checkpoint import load_optimizer_, restore_generator
from classicrl.networks.symphony import (
    GradDropout,
    SymphonyActor,
    SymphonyCritics,
    clipped_noise,
)
from classicrl.types import ControlBatch

GOLDEN_DECAY = 0.618033988749895
"""1/phi: the decay of the moving average of values, and of the optimiser's first moment."""
METRICS = (
    "critic",
    "actor",
    "action_scale",
    "next_value",
    "baseline",
    "abs_advantage",
    "action_gain",
    "gain_temperature",
)
"""What an update reports, in its order."""

# The optimiser of the paper is AdamW without bias correction. At this step count the corrections of
# torch's fused AdamW are exactly 1, and adding 1 to it in float32 leaves it as it is.
_NO_BIAS_CORRECTION_STEP = 2.0**25


def adamw_without_bias_correction(
    parameters: list[torch.nn.Parameter],
    *,
    learning_rate: float = 1e-4,
    beta1: float = GOLDEN_DECAY,
    beta2: float = 0.995,
    weight_decay: float = 0.01,
) -> torch.optim.AdamW:
    """``m <- b1 m + (1-b1) g``, ``v <- b2 v + (1-b2) g^2``,
    ``theta <- theta - lr (m / (sqrt(v) + 1e-8) + weight_decay theta)``.

    Torch's fused kernel does it: one pass over parameters, gradients and moments. The formula
    printed in the paper lacks the root; the authors' code has it.
    """
    is_cuda = parameters[0].is_cuda
    optimizer = torch.optim.AdamW(
        parameters,
        lr=learning_rate,
        betas=(beta1, beta2),
        eps=1e-8,
        weight_decay=weight_decay,
        fused=True,
        capturable=is_cuda,
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.full((), _NO_BIAS_CORRECTION_STEP, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


class SymphonyLearner:
    """Actor, critics, their target, optimiser, update.

    Args:
        actor, critics: initialised, on their device.
        learning_rate, weight_decay: of the optimiser.
        target_rate: tau: the target critics go this share of the way towards the online ones after
            every update; the decay of the optimiser's second moment is 1 - tau.
        noise_std: c, of the noise of actions before it is clipped.
        ema_decay: a, weight of the running mean V in the baseline of advantages.
        advantage_floor: least denominator of an advantage.
        seed: of the noise in acting (one generator) and in updates (another).
    """

    def __init__(
        self,
        actor: SymphonyActor,
        critics: SymphonyCritics,
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        target_rate: float = 0.005,
        noise_std: float = 0.36787944117144233,
        ema_decay: float = GOLDEN_DECAY,
        advantage_floor: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.actor = actor
        self.critics = critics
        self.target = copy.deepcopy(critics).requires_grad_(False)
        self.parameters = [*actor.parameters(), *critics.parameters()]
        self.optimizer = adamw_without_bias_correction(
            self.parameters,
            learning_rate=learning_rate,
            beta2=1.0 - target_rate,
            weight_decay=weight_decay,
        )
        self.target_rate = target_rate
        self.noise_std = noise_std
        self.ema_decay = ema_decay
        self.advantage_floor = advantage_floor
        self.device = self.parameters[0].device
        self.action_size = actor.centre.numel()
        self.value_ema = torch.zeros((), device=self.device)
        acting, updating = map(int, np.random.SeedSequence(seed).generate_state(2))
        self.acting_generator = torch.Generator(self.device).manual_seed(acting)
        self.generator = torch.Generator(self.device).manual_seed(updating)
        for network in (actor, critics, self.target):
            for module in network.modules():
                if isinstance(module, GradDropout):
                    module.generator = self.generator
        self._head_weights = losses.head_weights(critics.num_heads).float().to(self.device)
        self._online: list[Tensor] = list(critics.parameters())
        self._averaged: list[Tensor] = list(self.target.parameters())

    # -- acting --------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self, obs: Tensor, *, explore: bool = True, policy_gain: Tensor | None = None
    ) -> Tensor:
        """Actions in (-1, 1), ``[N, S] -> [N, A]``; with noise where it shall explore.

        ``policy_gain`` ``[N, 1]`` of 0 leaves the noise alone.
        """
        noise = self._noise(len(obs), self.acting_generator) if explore else None
        action: Tensor = self.actor(obs, noise, policy_gain).action
        return action

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(count, self.action_size, generator=generator, device=self.device)
        return clipped_noise(normal, self.noise_std)

    # -- learning ------------------------------------------------------------------------------

    def update(self, batch: ControlBatch, num_updates: int = 1) -> dict[str, Tensor]:
        """``num_updates`` optimiser steps, each on its own equal share of the batch.

        Returns:
            Per update, ``[num_updates]`` on the device: ``critic``, ``actor`` and ``action_scale``,
            the three terms of the loss; ``next_value``, mean Q'(s', u'); ``baseline``, the new V;
            ``abs_advantage``; ``action_gain`` and ``gain_temperature``, mean sigma' and beta'.

        Raises:
            ValueError: if the batch does not divide into equal shares.
        """
        size = len(batch.reward)
        if size % num_updates:
            raise ValueError(f"a batch of {size} is not {num_updates} equal shares")
        noise = self._noise(size, self.generator)
        shares = zip(*(field.chunk(num_updates) for field in (*batch, noise)), strict=True)
        rows = [self._update_once(ControlBatch(*share[:4]), share[4]) for share in shares]
        return dict(zip(METRICS, torch.stack(rows, dim=1), strict=True))

    def _update_once(self, batch: ControlBatch, noise: Tensor) -> Tensor:
        """One optimiser step; its figures, ``[len(METRICS)]``."""
        terms, figures = self.loss_terms(batch, noise)
        self.optimizer.zero_grad(set_to_none=True)
        sum(terms).backward()  # type: ignore[union-attr]
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._online, self.target_rate)
        return torch.stack([*(term.detach() for term in terms), *figures])

    def loss_terms(
        self, batch: ControlBatch, noise: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
        """The three terms of the loss, and further figures; moves V on.

        Args:
            batch: B transitions.
            noise: ``[B, A]``, of u'.
        """
        next_action = self.actor(batch.next_obs, noise)
        next_heads = self.target.of_actions(batch.next_obs, next_action.action)  # [B, 3 n_q]
        next_value = losses.soft_truncated_q(next_heads, self._head_weights)  # [B]
        target = losses.td_target(batch.reward, batch.discount, next_value)

        heads = self.critics(batch.obs_action)  # [3, B, n_q]
        critic = losses.smooth_huber(heads - target[:, None]).mean()

        baseline = losses.value_baseline(next_value, self.value_ema, self.ema_decay)
        advantage = losses.normalized_advantage(next_value, baseline, self.advantage_floor)
        actor = -losses.signed_smooth_huber(advantage).mean()

        gain = next_action.gain.clamp(1e-3, 1.0 - 1e-3)
        temperature = next_action.temperature.clamp(1e-3, 1.0 - 1e-3)
        regularizer = losses.action_scale_regularizer(gain, temperature)

        self.value_ema.copy_(baseline.mean())
        figures = [
            next_value.detach().mean(),
            self.value_ema.clone(),
            advantage.detach().abs().mean(),
            next_action.gain.detach().mean(),
            next_action.temperature.detach().mean(),
        ]
        return (critic, actor, regularizer), figures

    def set_obs_norm(self, mean: Tensor, std: Tensor) -> None:
        """Standardises observations from now on, where the networks were made for it; ``[S]``.

        Numbers that never changed are left as they are.
        """
        for network in (self.actor, self.critics, self.target):
            if network.obs_norm is not None:
                network.obs_norm.mean.copy_(torch.where(std > 0, mean, 0.0))
                network.obs_norm.std.copy_(torch.where(std > 0, std, 1.0))

    # -- saving --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Networks, moments, V and the states of both generators."""
        return {
            "actor": dict(self.actor.state_dict()),
            "critics": dict(self.critics.state_dict()),
            "target": dict(self.target.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "value_ema": self.value_ema.clone(),
            "generators": [self.acting_generator.get_state(), self.generator.get_state()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken, on this learner's device.

        Exactly, if that is the kind of device it was taken on; another kind draws other random
        numbers from there on.
        """
        self.actor.load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.target.load_state_dict(state["target"])
        load_optimizer_(self.optimizer, state["optimizer"])
        self.value_ema.copy_(state["value_ema"])
        for generator, saved in zip(
            (self.acting_generator, self.generator), state["generators"], strict=True
        ):
            restore_generator(generator, saved)


class CudaGraphUpdates:
    """``num_updates`` updates, drawing of their batches included, as one CUDA graph.

    An update is some 250 kernels of a few microseconds each; launched one by one they leave the GPU
    waiting. Everything that a replay of the graph changes lies at the addresses that it was
    captured with: parameters, moments, V, the ring's pointer, the states of both generators.

    Args:
        learner: on a CUDA device.
        sample: draws a batch of the given size on the learner's device, with no host
            synchronisation.
        generators: those that ``sample`` draws with.
        batch_size: of one update.
        num_updates: G.
    """

    def __init__(
        self,
        learner: SymphonyLearner,
        sample: Callable[[int], ControlBatch],
        generators: list[torch.Generator],
        *,
        batch_size: int,
        num_updates: int,
    ) -> None:
        self._learner = learner
        self._sample = sample
        self._generators = [*generators, learner.generator]
        self._batch_size = batch_size
        self._num_updates = num_updates
        self._graph: torch.cuda.CUDAGraph | None = None
        self._metrics: dict[str, Tensor] = {}
        self._eager_calls = 0

    def _update(self) -> dict[str, Tensor]:
        return self._learner.update(
            self._sample(self._num_updates * self._batch_size), self._num_updates
        )

    def __call__(self) -> dict[str, Tensor]:
        """Makes the updates; figures as :meth:`SymphonyLearner.update`, copies of them."""
        if self._graph is not None:
            self._graph.replay()
            return {name: value.clone() for name, value in self._metrics.items()}
        # The first calls warm up what the libraries allocate lazily, on a stream of their own as
        # a capture asks for; they are ordinary updates.
        side = torch.cuda.Stream(self._learner.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._learner.device))
        with torch.cuda.stream(side):
            metrics = self._update()
        torch.cuda.current_stream(self._learner.device).wait_stream(side)
        self._eager_calls += 1
        if self._eager_calls >= 3:
            self._capture()
        return metrics

    def _capture(self) -> None:
        """Records the graph; recording runs nothing."""
        torch.cuda.synchronize(self._learner.device)
        self._learner.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            self._metrics = self._update()
        self._graph = graph
