"""Proximal policy optimisation with an extrinsic and an intrinsic stream of rewards.

    A = c_E A_E + c_I A_I,
    L = L_clip(A) - c_H H + 1/2 c_V [(V_E - R_E)^2 + (V_I - R_I)^2] + L_rnd

Schulman et al. 2017 (arXiv 1707.06347) for the clipped objective, Burda et al. 2018 (arXiv
1810.12894) for the two streams: each has its own reward, discount, value and advantage, and the
intrinsic one does not end with an episode. Without a bonus it is plain PPO.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from classicrl import losses
from classicrl.algorithms.rnd import RND
from classicrl.checkpoint import load_optimizer_, restore_generator
from classicrl.distributed import Ranks
from classicrl.networks.actor_critic import ActorCritic, RecurrentActorCritic
from classicrl.replay.rollout import Rollout
from classicrl.returns import gae


class Acted(NamedTuple):
    """What was decided for N observations."""

    action: Tensor  # [N] int64
    log_prob: Tensor  # [N]
    value_ext: Tensor  # [N]
    value_int: Tensor  # [N]
    state: Tensor  # [N, H], of a recurrent policy after these observations


class _Sample(NamedTuple):
    """A rollout's figures that the minibatches are cut from, ``[T, N, ...]``."""

    obs: Tensor
    next_obs: Tensor
    starts: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    return_ext: Tensor
    return_int: Tensor
    rnd_target: Tensor  # [T, N, F]; F = 0 without a bonus


class PPOLearner:
    """Policy, values, predictor, one optimiser over all; the update.

    Args:
        network: ``networks/actor_critic.py``; already on its device.
        rnd: the bonus, or None for plain PPO.
        learning_rate, adam_eps: of Adam.
        gamma_int: discount of the intrinsic stream per step. The extrinsic one's is in the rollout.
        gae_lambda: of both streams.
        ext_coef, int_coef: c_E, c_I, weights of the advantages.
        clip: bound on the change of the probability ratio.
        entropy_coef, value_coef: c_H, c_V.
        num_epochs: passes over a rollout.
        num_minibatches: updates in each.
        shuffle: minibatches of single steps in random order; else of whole environments, in order.
        normalise_advantage: to mean 0 and deviation 1 in each minibatch.
        max_grad_norm: bound on the gradient's norm, the predictor's left out; None for none.
        seed: of actions, masks and shuffling.
        ranks: processes whose gradients are averaged.

    Raises:
        ValueError: a recurrent policy cannot be shuffled.
    """

    metric_names = (
        "policy",
        "value_ext",
        "value_int",
        "predictor",
        "entropy",
        "approx_kl",
        "clip_fraction",
        "grad_norm",
    )

    def __init__(
        self,
        network: ActorCritic | RecurrentActorCritic,
        rnd: RND | None,
        *,
        learning_rate: float = 1e-4,
        adam_eps: float = 1e-8,
        gamma_int: float = 0.99,
        gae_lambda: float = 0.95,
        ext_coef: float = 2.0,
        int_coef: float = 1.0,
        clip: float = 0.1,
        entropy_coef: float = 0.001,
        value_coef: float = 1.0,
        num_epochs: int = 4,
        num_minibatches: int = 4,
        shuffle: bool = False,
        normalise_advantage: bool = False,
        max_grad_norm: float | None = None,
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        if shuffle and isinstance(network, RecurrentActorCritic):
            raise ValueError("a recurrent policy needs its steps in order: leave shuffle off")
        self.network = network
        self.rnd = rnd
        self.policy_parameters = list(network.parameters())
        self.parameters = list(self.policy_parameters)
        if rnd is not None:
            self.parameters += rnd.predictor.parameters()
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=learning_rate, eps=adam_eps, fused=True
        )
        self.gamma_int = gamma_int
        self.gae_lambda = gae_lambda
        self.ext_coef = ext_coef
        self.int_coef = int_coef
        self.clip = clip
        self.entropy_coef = entropy_coef
        self.value_coef = value_coef
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.shuffle = shuffle
        self.normalise_advantage = normalise_advantage
        self.max_grad_norm = float("inf") if max_grad_norm is None else max_grad_norm
        self.ranks = ranks or Ranks()
        self.device = self.policy_parameters[0].device
        # Of its own on every rank: their environments must not act alike.
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(seed + 1_000_003 * self.ranks.rank)

    # -- acting ------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Tensor, state: Tensor, starts: Tensor) -> Acted:
        """Draws actions: ``[N, *obs_shape]``, the state ``[N, H]`` and bool ``[N]``."""
        output, state = self.network(obs[None], state, starts[None])
        log_probs = output.logits[0].log_softmax(dim=-1)  # [N, A]
        action = sample_actions(log_probs, self.generator)
        return Acted(
            action,
            losses.chosen(log_probs, action),
            output.value_ext[0],
            output.value_int[0],
            state,
        )

    @torch.no_grad()
    def values(self, obs: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """V_E and V_I without acting, each ``[N]``; arguments as for :meth:`act`."""
        output, _ = self.network(obs[None], state, starts[None])
        return output.value_ext[0], output.value_int[0]

    # -- learning ----------------------------------------------------------------------------------

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """All epochs over one rollout.

        Raises:
            ValueError: if environments (or steps, where they are shuffled) make no equal parts.

        Returns:
            Means over the minibatches, scalars on the device: the losses, ``entropy``,
            ``approx_kl``, ``clip_fraction``, ``grad_norm`` before clipping. Of the rollout:
            ``bonus`` and ``bonus_scaled``, means; ``bonus_scale``, what divided them;
            ``return_ext``, ``return_int``, means of R = A + V, what the values learn;
            ``value_ext_mean``, ``value_int_mean``; ``explained_ext``, ``explained_int``,
            1 - Var(R - V) / Var(R).
        """
        obs, next_obs = rollout.obs[:-1], rollout.obs[1:]  # each [T, N, ...]
        reward_int = torch.zeros_like(rollout.reward)
        figures: dict[str, Tensor] = {}
        rnd_target = rollout.reward.new_zeros((*rollout.reward.shape, 0))
        if self.rnd is not None:
            bonus = self.rnd.bonus(next_obs)  # with the statistics of before
            self.rnd.observe(obs)
            reward_int = self.rnd.scaled(bonus)
            targets = self.rnd.targets(next_obs.flatten(0, 1))
            rnd_target = targets.view(*bonus.shape, -1)
            figures["bonus"] = bonus.mean()
            figures["bonus_scaled"] = reward_int.mean()
            figures["bonus_scale"] = self.rnd.reward_moments.std.to(bonus.dtype)

        advantage_ext = gae(rollout.reward, rollout.discount, rollout.value_ext, self.gae_lambda)
        never_ends = torch.full_like(rollout.discount, self.gamma_int)
        advantage_int = gae(reward_int, never_ends, rollout.value_int, self.gae_lambda)
        advantage = self.ext_coef * rollout.weight_ext * advantage_ext
        if self.rnd is not None:
            advantage = advantage + self.int_coef * advantage_int
        return_ext = advantage_ext + rollout.value_ext[:-1]
        return_int = advantage_int + rollout.value_int[:-1]
        sample = _Sample(
            obs,
            next_obs,
            rollout.starts[:-1],
            rollout.action,
            rollout.log_prob,
            advantage,
            return_ext,
            return_int,
            rnd_target,
        )
        rows = [
            self._update_once(part, state)
            for _ in range(self.num_epochs)
            for part, state in self._minibatches(sample, rollout.initial_state)
        ]
        means = torch.stack(rows).mean(dim=0)
        figures["return_ext"] = return_ext.mean()
        figures["return_int"] = return_int.mean()
        figures["value_ext_mean"] = rollout.value_ext.mean()
        figures["value_int_mean"] = rollout.value_int.mean()
        figures["explained_ext"] = _explained(advantage_ext, return_ext)
        figures["explained_int"] = _explained(advantage_int, return_int)
        return dict(zip(self.metric_names, means, strict=True)) | figures

    def _minibatches(
        self, sample: _Sample, initial_state: Tensor
    ) -> Iterator[tuple[_Sample, Tensor]]:
        """Equal parts ``[T, N / k, ...]``, or ``[1, T N / k, ...]`` of single steps."""
        num_steps, num_envs = sample.action.shape
        items = num_steps * num_envs if self.shuffle else num_envs
        if items % self.num_minibatches:
            raise ValueError(f"{items} are not {self.num_minibatches} equal minibatches")
        if self.shuffle:
            order = torch.randperm(
                num_steps * num_envs, generator=self.generator, device=self.device
            )
            flat = [field.flatten(0, 1) for field in sample]
            for rows in order.chunk(self.num_minibatches):
                part = _Sample(*(field[rows][None] for field in flat))
                yield part, initial_state.new_zeros((len(rows), 0))
        else:
            share = num_envs // self.num_minibatches
            for first in range(0, num_envs, share):
                cut = slice(first, first + share)
                yield _Sample(*(field[:, cut] for field in sample)), initial_state[cut]

    def _update_once(self, sample: _Sample, state: Tensor) -> Tensor:
        """One gradient step; its figures in the order of ``metric_names``."""
        output, _ = self.network(sample.obs, state, sample.starts)
        log_prob = losses.chosen(output.logits.log_softmax(dim=-1), sample.action).flatten()
        old_log_prob, advantage = sample.log_prob.flatten(), sample.advantage.flatten()
        if self.normalise_advantage:
            mean = self.ranks.mean(advantage.mean())
            var = self.ranks.mean((advantage - mean).square().mean())
            advantage = (advantage - mean) / (var.sqrt() + 1e-8)
        policy = losses.ppo_clip(log_prob, old_log_prob, advantage, self.clip)
        entropy = losses.entropy(output.logits.flatten(0, 1))
        value_ext = losses.squared((output.value_ext - sample.return_ext).flatten())
        value_int = losses.squared((output.value_int - sample.return_int).flatten())
        total = policy - self.entropy_coef * entropy + self.value_coef * value_ext
        predictor = torch.zeros_like(policy)
        if self.rnd is not None:
            total = total + self.value_coef * value_int
            next_obs, rnd_target = sample.next_obs.flatten(0, 1), sample.rnd_target.flatten(0, 1)
            kept = self.rnd.draw_kept(len(next_obs), self.generator)
            predictor = self.rnd.loss(next_obs, rnd_target, kept)
            total = total + predictor
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.ranks.average_gradients(self.parameters)
        grad_norm = nn.utils.clip_grad_norm_(self.policy_parameters, self.max_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            log_ratio = log_prob - old_log_prob
            # Never negative, and less noisy than the mean of -log ratio (Schulman 2020).
            approx_kl = (log_ratio.exp() - 1.0 - log_ratio).mean()
            clipped = ((log_ratio.exp() - 1.0).abs() > self.clip).float().mean()
        figures = (
            policy, value_ext, value_int, predictor, entropy, approx_kl, clipped, grad_norm
        )  # fmt: skip
        return torch.stack([figure.detach() for figure in figures])

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Policy, bonus, optimiser, random numbers."""
        return {
            "network": dict(self.network.state_dict()),
            "rnd": None if self.rnd is None else self.rnd.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": {"device": self.device.type, "state": self.generator.get_state()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken, on this learner's device.

        Exactly, if that is the kind of device it was taken on; another kind draws other random
        numbers from there on.
        """
        self.network.load_state_dict(state["network"])
        if self.rnd is not None:
            self.rnd.load_state_dict(state["rnd"])
        load_optimizer_(self.optimizer, state["optimizer"])
        restore_generator(self.generator, state["generator"]["state"])


def sample_actions(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """One action of every row, drawn with its probability; ``[N, A] -> int64 [N]``.

    By the Gumbel trick, argmax_a (log p_a - log E_a) with E exponential: no synchronisation with a
    GPU, which :func:`torch.multinomial` makes to check its input.
    """
    noise = torch.empty_like(log_probs).exponential_(generator=generator)
    return (log_probs - noise.log()).argmax(dim=-1)


def _explained(residual: Tensor, total: Tensor) -> Tensor:
    """Share of a variance that is not in the residual; NaN where there is none."""
    variance = total.var(correction=0)
    return torch.where(variance > 0, 1.0 - residual.var(correction=0) / variance, torch.nan)


class SampledPolicy:
    """A policy that plays by drawing actions, as PPO trains it; a ``GamesPolicy``.

    Args:
        network: on its device, where it stays.
    """

    def __init__(self, network: ActorCritic | RecurrentActorCritic) -> None:
        self.network = network
        self._device = next(network.parameters()).device
        # On the CPU: the same seed draws the same numbers on every device.
        self._generator = torch.Generator()
        self._state = torch.zeros((0, network.state_size), device=self._device)
        self._starts = torch.zeros(0, dtype=torch.bool, device=self._device)

    def begin(self, num_games: int, seed: int) -> None:
        """New games; the same seed draws alike."""
        self._generator.manual_seed(seed)
        shape = (num_games, self.network.state_size)
        self._state = torch.zeros(shape, device=self._device)
        self._starts = torch.ones(num_games, dtype=torch.bool, device=self._device)

    def keep(self, going_on: NDArray[np.bool_]) -> None:
        """Forgets the games that are over."""
        rows = torch.from_numpy(going_on).to(self._device)
        self._state, self._starts = self._state[rows], self._starts[rows]

    @torch.no_grad()
    def __call__(self, obs: NDArray[Any]) -> NDArray[np.int64]:
        """``[N, *obs_shape]`` of the games that go on -> int64 ``[N]``."""
        views = torch.from_numpy(obs).to(self._device)
        output, self._state = self.network(views[None], self._state, self._starts[None])
        self._starts = torch.zeros_like(self._starts)
        log_probs = output.logits[0].log_softmax(dim=-1).cpu()
        actions: NDArray[np.int64] = sample_actions(log_probs, self._generator).numpy()
        return actions
