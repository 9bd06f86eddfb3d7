"""Approximate Q-iteration for shortest-path problems: costs to the goal.

Two ways to make labels without a teacher, both from random walks that begin at the goal:

- **walk**: a state k steps along a walk is at most k steps from the goal, so the action that steps
  back leads to one at most k - 1 away and the action that steps on to one at most k + 1 away. The
  mean of these bounds ranks states well long before it is exact.
- **bellman**: ``Q(s,a) = c + min_a' Q-(s',a')``, 0 beyond a goal, no discount (F. Agostinelli et
  al., arXiv 2102.04518, equation 6): one pass of the target network for each sample, however many
  actions there are. The action is drawn from softmax(-Q / T).

Within a ball around the goal whose distances are known both take the distance instead. Labels of a
teacher (classicrl/domains/cube3_teacher.py) are learned as those of walks are.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from classicrl import losses
from classicrl.checkpoint import load_optimizer_


class QIterationLearner:
    """Online and target network, optimiser, updates.

    Args:
        network: states ``[B, S]`` -> costs to go ``[B, A]``; already on its device.
        learning_rate: of Adam, until :meth:`set_learning_rate`.
    """

    def __init__(self, network: nn.Module, *, learning_rate: float = 1e-3) -> None:
        self.online = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters,
            lr=learning_rate,
            fused=True,
            capturable=self.parameters[0].is_cuda,
        )

    @torch.no_grad()
    def action_values(self, states: Tensor) -> Tensor:
        """Q of every action, uint8 ``[B, S]`` -> float32 ``[B, A]``."""
        q: Tensor = self.online(states)
        return q

    def update_walk(
        self, states: Tensor, actions: Tensor, labels: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One gradient step towards labels for some actions of each state.

        Args:
            states: ``[B, S]`` uint8.
            actions: ``[B, J]`` int64; -1 where there is none.
            labels: costs to the goal by them, ``[B, J]`` float32.
            weights: of their squared errors, ``[B, J]`` float32; None: all the same.

        Returns:
            ``loss``, ``q`` and ``grad_norm``, scalars on the device; ``squared_error``, ``[B]``: of
            each state, the mean over its labels.
        """
        there = actions >= 0
        weight = there.float() if weights is None else there * weights
        q = self.online(states).gather(1, actions.clamp(min=0))  # [B, J]
        squared = weight * torch.where(there, q - labels, 0.0).square()
        metrics = self._step(
            squared.sum() / weight.sum(), torch.where(there, q, 0.0).sum().detach() / there.sum()
        )
        return metrics | {"squared_error": squared.detach().sum(1) / weight.sum(1)}

    def update_bellman(self, states: Tensor, actions: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One gradient step towards targets ``[B]`` for one action ``[B]`` of each state.

        Returns:
            As :meth:`update_walk`.
        """
        q = losses.chosen(self.online(states), actions)
        squared = (q - target).square()
        metrics = self._step(squared.mean(), q.mean().detach())
        return metrics | {"squared_error": squared.detach()}

    @torch.no_grad()
    def next_cost(self, states: Tensor) -> Tensor:
        """The target network's cost to the goal, ``min_a Q-(s, a)``: ``[B, S] -> [B]``."""
        best: Tensor = self.target(states).amin(1)
        return best

    def _step(self, loss: Tensor, q: Tensor) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.optimizer.step()
        return {"loss": loss.detach(), "q": q, "grad_norm": norm.detach()}

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next updates."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

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
