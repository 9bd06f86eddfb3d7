"""DQN and its kin: one network that gives action values, trained on replayed transitions.

    y = r + discount * v-(x'),      L = mean 1/2 (Q(x,a) - y)^2   (or Huber)

with v- the target network's maximum (Mnih et al. 2015), or its value at the online network's choice
(double Q, van Hasselt et al. 2016). Whether the network is dueling (Wang et al. 2016) is the
network's business: this learner reads ``.q``. The learner owns parameters; when to act, update or
synchronise is the script's to say.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from classicrl import losses
from classicrl.types import Transition

_LOSSES = {"squared": losses.squared, "huber": losses.huber}


class DQNLearner:
    """Online and target network, optimiser, update.

    Args:
        network: observations -> a named tuple with a field ``q`` ``[B, A]``; already on its device.
        learning_rate, adam_eps: of Adam.
        double: choose the bootstrap action with the online network.
        loss: ``squared``, or ``huber``, whose gradient is clipped per item.
        max_grad_norm: bound on the norm of the whole gradient; None for none.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float = 1e-4,
        adam_eps: float = 1e-8,
        double: bool = False,
        loss: Literal["squared", "huber"] = "squared",
        max_grad_norm: float | None = 10.0,
    ) -> None:
        self.online = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.parameters = list(network.parameters())
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
        self.loss = _LOSSES[loss]
        self.max_grad_norm = float("inf") if max_grad_norm is None else max_grad_norm

    @torch.no_grad()
    def action_values(self, obs: Tensor) -> Tensor:
        """Q of every action, ``[N, *obs_shape] -> float32 [N, A]``."""
        q: Tensor = self.online(obs).q
        return q

    def act(self, obs: Tensor) -> Tensor:
        """Greedy actions, ``[N, *obs_shape] -> int64 [N]``."""
        return self.action_values(obs).argmax(dim=1)

    def update(self, batch: Transition, num_updates: int = 1) -> dict[str, Tensor]:
        """``num_updates`` gradient steps, each on its own equal share of the batch.

        The target network does not change in between, so its pass over the whole batch is made
        once; the result is that of ``num_updates`` calls with a share each.

        Args:
            batch: ``num_updates * B`` transitions.
            num_updates: gradient steps.

        Returns:
            Per update, ``[num_updates]`` on the device: ``loss``; ``q``, the mean value of the
            taken actions; ``grad_norm``, before clipping.

        Raises:
            ValueError: if the batch does not divide into equal shares.
        """
        if len(batch.reward) % num_updates:
            raise ValueError(f"a batch of {len(batch.reward)} is not {num_updates} equal shares")
        with torch.no_grad():
            next_q_target = self.target(batch.next_obs).q  # [num_updates * B, A]
        shares = zip(*(field.chunk(num_updates) for field in (*batch, next_q_target)), strict=True)
        results = [self._update_once(Transition(*share[:5]), share[5]) for share in shares]
        return dict(zip(("loss", "q", "grad_norm"), torch.stack(results, dim=1), strict=True))

    def _update_once(self, batch: Transition, next_q_target: Tensor) -> Tensor:
        """One gradient step; loss, mean Q and gradient norm as one tensor ``[3]``."""
        if self.double:
            with torch.no_grad():
                next_q_online = self.online(batch.next_obs).q
            next_value = losses.double_q(next_q_target, next_q_online)
        else:
            next_value = losses.max_q(next_q_target)
        target = losses.td_target(batch.reward, batch.discount, next_value)  # [B]
        q = losses.chosen(self.online(batch.obs).q, batch.action)  # [B]
        loss = self.loss(q - target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        return torch.stack([loss.detach(), q.detach().mean(), grad_norm.detach()])

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
        self.optimizer.load_state_dict(state["optimizer"])
        # Copies, and in the memory format of the parameters: the fused optimiser pairs numbers by
        # their place in memory, and moments in another format would belong to other weights.
        for parameter in self.parameters:
            moments = self.optimizer.state[parameter]
            for name, value in moments.items():
                like = parameter if value.shape == parameter.shape else value
                moments[name] = torch.empty_like(like).copy_(value)
