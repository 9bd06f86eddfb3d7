"""DQN and its kin: one network that gives action values, trained on replayed transitions.

    y = r + discount * v-(x'),      L = mean 1/2 (Q(x,a) - y)^2   (or Huber, or VA-learning's)

with v- the target network's maximum (Mnih et al. 2015), or its value at the online network's choice
(double Q, van Hasselt et al. 2016). What the network is made of is its own business: this learner
reads ``.q``, and the streams and the behaviour policy where there are any. The learner owns
parameters; when to act, update or synchronise is the script's to say.

A network of K members side by side (``networks/linear.py``) is trained by the same code: every
tensor then has K as its first axis, and each member learns from its own batch.
"""

import copy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from classicrl import losses
from classicrl.checkpoint import load_optimizer_
from classicrl.networks.heads import (
    BehaviourHead,
    BehaviourOutput,
    CentreHead,
    DuelingHead,
    DuelingOutput,
    FittedOutput,
    QOutput,
)
from classicrl.networks.q_network import HeadName, QNetwork
from classicrl.types import Transition

LossName = Literal["squared", "huber", "va"]


class Recipe(NamedTuple):
    """What sets the members of the family apart: a head, a loss, a penalty."""

    head: HeadName
    loss: LossName = "squared"
    stream_penalty: float = 0.0


FAMILY: dict[str, Recipe] = {
    "dqn": Recipe("q"),
    "dueling": Recipe("dueling"),
    "dueling-behaviour": Recipe("behaviour"),
    "va": Recipe("behaviour", loss="va"),
    "va-raw": Recipe("uncentred", loss="va"),
    "va-fitted": Recipe("fitted", loss="va"),
    "rdq": Recipe("uncentred", stream_penalty=1e-3),
}
"""The value learners that differ in head, centring and loss alone; see docs/va_learning.md."""


def wide_head(member: str) -> HeadName:
    """The head of a member of the family, its single stream as wide as the others' two together."""
    return "q-wide" if member == "dqn" else FAMILY[member].head


class DQNLearner:
    """Online and target network, optimiser, update.

    Args:
        network: observations -> a named tuple with a field ``q`` ``[B, A]``; already on its device.
        learning_rate, adam_eps: of Adam.
        double: choose the bootstrap action with the online network.
        loss: ``squared``; ``huber``, whose gradient is clipped per item; ``va``, which needs a
            network with two streams, the advantage centred by the behaviour policy or not at all.
        stream_penalty: coefficient of :func:`classicrl.losses.stream_penalty`; two streams only.
        max_grad_norm: bound on the norm of the whole gradient of a network, its behaviour or centre
            head left out; None for none.

    Raises:
        ValueError: if the loss ``va`` meets an advantage centred by the mean, which is not the mean
            of the actions taken, or the stream penalty one that is centred; at the first update, if
            the network lacks what the loss reads.

    >>> from classicrl.networks import vector_q_network
    >>> learner = DQNLearner(vector_q_network("dueling", 4, 2), double=True)
    >>> obs = torch.zeros(8, 4)
    >>> zeros = torch.zeros(8)
    >>> metrics = learner.update(Transition(obs, zeros.long(), zeros + 1, zeros, obs))
    >>> metrics["loss"].shape, learner.act(obs).shape
    (torch.Size([1]), torch.Size([8]))
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float = 1e-4,
        adam_eps: float = 1e-8,
        double: bool = False,
        loss: LossName = "squared",
        stream_penalty: float = 0.0,
        max_grad_norm: float | None = 10.0,
    ) -> None:
        heads = [module for module in network.modules() if isinstance(module, DuelingHead)]
        if loss == "va" and any(head.centring == "mean" for head in heads):
            raise ValueError("the loss 'va' needs a head centred by the behaviour, or not at all")
        if stream_penalty and any(head.centring != "none" for head in heads):
            raise ValueError("stream_penalty needs a head whose advantage is not centred")
        self.online = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.parameters = list(network.parameters())
        # What centres the advantage is learned beside the values, and must not change theirs.
        centres = [m for m in network.modules() if isinstance(m, BehaviourHead | CentreHead)]
        apart = {id(p) for head in centres for p in head.parameters()}
        self._value_parameters = [p for p in self.parameters if id(p) not in apart]
        # Fused: one kernel over all parameters. Capturable: its step count lives on the GPU, so
        # that a whole update can be captured in a CUDA graph.
        self.optimizer = torch.optim.Adam(
            self.parameters,
            lr=learning_rate,
            eps=adam_eps,
            fused=True,
            capturable=self.parameters[0].is_cuda,
        )
        self.double = double
        self.loss: LossName = loss
        self.stream_penalty = stream_penalty
        self.max_grad_norm = float("inf") if max_grad_norm is None else max_grad_norm

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What :meth:`update` returns, in its order."""
        names: tuple[str, ...] = ("loss", "q", "max_q", "action_gap")
        modules = list(self.online.modules())
        if any(isinstance(module, DuelingHead) for module in modules):
            names += ("value", "advantage", "advantage_spread")
        if any(isinstance(module, BehaviourHead) for module in modules):
            names += ("behaviour_nll",)
        if any(isinstance(module, CentreHead) for module in modules):
            names += ("centre_error",)
        return (*names, "grad_norm")

    @torch.no_grad()
    def action_values(self, obs: Tensor) -> Tensor:
        """Q of every action, ``[N, *obs_shape] -> float32 [N, A]``."""
        q: Tensor = self.online(obs).q
        return q

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Greedy actions, ``[N, *obs_shape] -> int64 [N]``."""
        if type(self.online) is QNetwork:  # a subclass may rank actions by a Q of its own
            return self.online.preferences(obs).argmax(dim=-1)
        return self.action_values(obs).argmax(dim=-1)

    def update(
        self, batch: Transition, num_updates: int = 1, acting: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``num_updates`` gradient steps, each on its own equal share of the batch.

        The target network does not change in between, so its pass over the whole batch is made
        once; the result is that of ``num_updates`` calls with a share each.

        Args:
            batch: ``num_updates * B`` transitions (of every member).
            num_updates: gradient steps.
            acting: the distribution that each action was drawn from, ``[num_updates * B, A]``: a
                behaviour head then learns from it instead of from the action.

        Returns:
            Per update, ``[num_updates]`` (or ``[num_updates, K]``) on the device: ``loss``; ``q``,
            the mean value of the taken actions; ``grad_norm``, before clipping; ``max_q``;
            ``action_gap``, between the best and the second best action. With two streams also
            ``value``; ``advantage``, the batch mean of A(x,a); ``advantage_spread``, the standard
            deviation of A(x,.) over actions. With a behaviour head also ``behaviour_nll``, with a
            fitted centre ``centre_error``.

        Raises:
            ValueError: if the batch does not divide into equal shares.
        """
        axis = batch.action.ndim - 1  # of the batch
        if batch.reward.shape[axis] % num_updates:
            raise ValueError(
                f"a batch of {batch.reward.shape[axis]} is not {num_updates} equal shares"
            )
        with torch.no_grad():
            next_q_target = self.target(batch.next_obs).q  # [num_updates * B, A]
        fields = [*batch, next_q_target] + ([] if acting is None else [acting])
        shares = zip(*(field.chunk(num_updates, dim=axis) for field in fields), strict=True)
        results = [self._update_once(Transition(*share[:5]), *share[5:]) for share in shares]
        names = results[0]
        rows = [torch.stack(list(result.values())) for result in results]
        return dict(zip(names, torch.stack(rows, dim=1), strict=True))

    def _update_once(
        self, batch: Transition, next_q_target: Tensor, acting: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One gradient step; its figures, each a scalar (or ``[K]``)."""
        if self.double:
            with torch.no_grad():
                next_q_online = self.online(batch.next_obs).q
            next_value = losses.double_q(next_q_target, next_q_online)
        else:
            next_value = losses.max_q(next_q_target)
        target = losses.td_target(batch.reward, batch.discount, next_value)  # [B]
        output = self.online(batch.obs)
        loss = self._value_loss(output, batch.action, target)
        total, figures = loss, _figures(output, batch.action)
        if isinstance(output, BehaviourOutput):
            nll = losses.behaviour_nll(output.behaviour_logits, batch.action)
            figures["behaviour_nll"] = nll.detach()
            if acting is not None:
                nll = losses.behaviour_cross_entropy(output.behaviour_logits, acting)
            total = total + nll
        if isinstance(output, FittedOutput):
            taken = losses.chosen(output.advantage, batch.action)
            of_centre = losses.fitted_centre(output.centre, taken)
            figures["centre_error"] = of_centre.detach()
            total = total + of_centre
        self.optimizer.zero_grad(set_to_none=True)
        # The sum over members: to each its own gradient.
        total.sum().backward()  # type: ignore[no-untyped-call]
        grad_norm = self._clip_gradients(num_members=len(total) if total.ndim else None)
        self.optimizer.step()
        return {"loss": loss.detach(), **figures, "grad_norm": grad_norm}

    def _value_loss(
        self,
        output: QOutput | DuelingOutput | BehaviourOutput | FittedOutput,
        action: Tensor,
        target: Tensor,
    ) -> Tensor:
        if self.loss == "va":
            if isinstance(output, QOutput):
                raise ValueError("the loss 'va' needs a head with two streams")
            loss = losses.va(output.value, losses.chosen(output.advantage, action), target)
        else:
            error = losses.chosen(output.q, action) - target  # [B]
            loss = losses.squared(error) if self.loss == "squared" else losses.huber(error)
        if self.stream_penalty:
            if isinstance(output, QOutput):
                raise ValueError("stream_penalty needs a head with two streams")
            penalty = losses.stream_penalty(output.value, output.advantage)
            loss = loss + self.stream_penalty * penalty
        return loss

    def _clip_gradients(self, num_members: int | None) -> Tensor:
        """Bounds the gradient's norm, of each member by itself; the norm before, scalar or [K]."""
        if num_members is None:
            return nn.utils.clip_grad_norm_(self._value_parameters, self.max_grad_norm).detach()
        gradients = [p.grad for p in self._value_parameters if p.grad is not None]
        norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)  # [K]
        if self.max_grad_norm < float("inf"):
            scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
        return norm

    def sync_target(self) -> None:
        """Copies the online parameters into the target network."""
        self.target.load_state_dict(self.online.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Parameters of both networks and the optimiser's state."""
        return {
            "online": dict(self.online.state_dict()),
            "target": dict(self.target.state_dict()),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where :meth:`state_dict` was taken, on this learner's device."""
        self.online.load_state_dict(state["online"])
        self.target.load_state_dict(state["target"])
        load_optimizer_(self.optimizer, state["optimizer"])


@torch.no_grad()
def _figures(
    output: QOutput | DuelingOutput | BehaviourOutput | FittedOutput, action: Tensor
) -> dict[str, Tensor]:
    """What a batch says of the values, each a mean over the batch."""
    best = output.q.topk(min(2, output.q.shape[-1]), dim=-1).values  # [B, 2]; one action: [B, 1]
    figures = {
        "q": losses.chosen(output.q, action).mean(dim=-1),
        "max_q": best[..., 0].mean(dim=-1),
        "action_gap": (best[..., 0] - best[..., -1]).mean(dim=-1),
    }
    if not isinstance(output, QOutput):
        figures["value"] = output.value.mean(dim=-1)
        figures["advantage"] = losses.chosen(output.advantage, action).mean(dim=-1)
        spread = output.advantage.std(dim=-1, correction=min(1, output.q.shape[-1] - 1))
        figures["advantage_spread"] = spread.mean(dim=-1)
    return figures
