"""Random network distillation: an intrinsic reward for what has not been seen often.

    i(x) = mean_k (f_k(x) - g_k(x))^2

with f a fixed random network, the target, and g a predictor trained on what the agent sees (Burda
et al. 2018, arXiv 1810.12894). Frames are scaled by running moments before either network sees
them; rewards by the running standard deviation of their discounted sums.

The order of the calls is part of the algorithm; for a rollout of T steps it is

    bonus = rnd.bonus(next_obs)       # with the statistics from before these steps
    rnd.observe(obs)                  # now they count
    reward = rnd.scaled(bonus)        # [T, N]: the filter runs over time
    ... rnd.loss(next_obs, ...)       # in every minibatch, with the new statistics
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from classicrl import losses
from classicrl.distributed import Ranks
from classicrl.moments import RunningMoments
from classicrl.returns import discounted_filter

_CLIP = 5.0
_ROWS_PER_PASS = {"cpu": 512, "cuda": 16_384}


def newest_frame(obs: Tensor) -> Tensor:
    """What of a stack the bonus looks at, ``[..., C, 84, 84] -> [..., 1, 84, 84]``."""
    return obs[..., -1:, :, :]


def whole(obs: Tensor) -> Tensor:
    """All of the observation."""
    return obs


class RND:
    """Target, predictor, and the running statistics of frames and intrinsic rewards.

    Args:
        target: frozen; scaled views ``[M, *view_shape] -> [M, F]``.
        predictor: of the same shapes. Its parameters are the caller's to optimise.
        view_shape: of what the networks see of an observation.
        num_envs: N, environments of this process.
        gamma: discount per step of the filter over intrinsic rewards.
        keep_prob: probability with which a frame counts in the predictor's loss.
        view: observation ``[..., *obs_shape]`` -> what the networks see ``[..., *view_shape]``.
        min_var: added to the frames' variance. 0 as in the paper's code, whose statistics begin
            with a variance of 1 that never quite vanishes: a pixel that has never changed then
            answers any change with the full clip of +-5.
        ranks: statistics of all processes are one.
        device: of the statistics; the networks are there already.
    """

    def __init__(
        self,
        target: nn.Module,
        predictor: nn.Module,
        view_shape: tuple[int, ...],
        num_envs: int,
        *,
        gamma: float = 0.99,
        keep_prob: float = 1.0,
        view: Callable[[Tensor], Tensor] = newest_frame,
        min_var: float = 0.0,
        ranks: Ranks | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.target = target.requires_grad_(False)
        self.predictor = predictor
        self.gamma = gamma
        self.keep_prob = keep_prob
        self.view = view
        self.min_var = min_var
        self.ranks = ranks or Ranks()
        self.view_moments = RunningMoments(view_shape, device, self.ranks)
        self.reward_moments = RunningMoments((), device, self.ranks)
        self.filter_state = torch.zeros(num_envs, device=device)
        self._rows_per_pass = _ROWS_PER_PASS[torch.device(device).type]

    def normalised(self, obs: Tensor) -> Tensor:
        """Views scaled by the statistics and cut at +-5; ``[M, *obs_shape]`` -> float32."""
        # In float32; the difference to the mean first, where a large mean costs no digits.
        mean = self.view_moments.mean.to(torch.float32)
        std = (self.view_moments.var + self.min_var).sqrt().to(torch.float32)
        tiny = torch.finfo(torch.float32).tiny
        scaled = (self.view(obs).to(torch.float32) - mean).div_(std.clamp(min=tiny))
        return scaled.clamp_(-_CLIP, _CLIP)

    @torch.no_grad()
    def bonus(self, next_obs: Tensor) -> Tensor:
        """Intrinsic reward of arriving at observations, ``[..., *obs_shape] -> float32 [...]``.

        Of the observation *after* a step: where the agent went, not where it came from.
        """
        leading = next_obs.shape[: next_obs.ndim - self.view_moments.mean.ndim]
        flat = next_obs.reshape(-1, *next_obs.shape[len(leading) :])
        parts = []
        for rows in torch.split(flat, self._rows_per_pass):
            x = self.normalised(rows)
            parts.append(losses.distillation_error(self.predictor(x), self.target(x)))
        return torch.cat(parts).view(leading)

    @torch.no_grad()
    def observe(self, obs: Tensor) -> None:
        """Counts observations in the frames' statistics, ``[T, N, *obs_shape]``."""
        self.view_moments.update(self.view(obs).flatten(0, 1))

    @torch.no_grad()
    def scaled(self, bonus: Tensor) -> Tensor:
        """Bonuses over the running standard deviation of their discounted sums, ``[T, N]``.

        The sums run over time and go on from one rollout to the next, also over episodes: the
        intrinsic stream knows none. Nothing is subtracted.
        """
        sums = discounted_filter(bonus, self.filter_state, self.gamma)
        self.filter_state = sums[-1].clone()
        self.reward_moments.update(sums.flatten())
        return bonus / self.reward_moments.std.to(bonus.dtype)

    @torch.no_grad()
    def targets(self, next_obs: Tensor) -> Tensor:
        """What the predictor is to predict, ``[M, *obs_shape] -> [M, F]``.

        The target never changes, so one pass serves all epochs over a rollout.
        """
        rows = torch.split(next_obs, self._rows_per_pass)
        return torch.cat([self.target(self.normalised(part)) for part in rows])

    def draw_kept(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Which frames count in the predictor's loss: bool ``[num_rows]``, each by chance.

        With more environments the predictor would see more frames per update and learn faster;
        dropping some keeps its pace (Burda et al. 2018, section A.4).
        """
        device = self.filter_state.device
        if self.keep_prob >= 1.0:
            return torch.ones(num_rows, dtype=torch.bool, device=device)
        return torch.rand(num_rows, generator=generator, device=device) < self.keep_prob

    def loss(self, next_obs: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
        """Mean error of the predictor over the kept frames; 0 if none is kept.

        Dropped frames are not even predicted, which gives the same loss for less.

        Args:
            next_obs: ``[M, *obs_shape]``, the observations that bonuses were given for.
            targets: of :meth:`targets`, ``[M, F]``.
            kept: bool ``[M]``.
        """
        if self.keep_prob < 1.0:
            rows = kept.nonzero()[:, 0]  # once: it waits for a GPU
            next_obs, targets = next_obs[rows], targets[rows]
        error = losses.distillation_error(self.predictor(self.normalised(next_obs)), targets)
        # The mean over all ranks' frames; gradients are averaged over ranks, hence the factor.
        count = self.ranks.sum(kept.sum())
        return error.sum() * self.ranks.size / count.clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """Both networks, both statistics, the filter."""
        return {
            "target": dict(self.target.state_dict()),
            "predictor": dict(self.predictor.state_dict()),
            "view_moments": self.view_moments.state_dict(),
            "reward_moments": self.reward_moments.state_dict(),
            "filter_state": self.filter_state.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues exactly where :meth:`state_dict` was taken."""
        self.target.load_state_dict(state["target"])
        self.predictor.load_state_dict(state["predictor"])
        self.view_moments.load_state_dict(state["view_moments"])
        self.reward_moments.load_state_dict(state["reward_moments"])
        self.filter_state = state["filter_state"].to(self.filter_state.device).clone()
