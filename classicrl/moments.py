"""Running mean and variance: what observations and intrinsic rewards are scaled by."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from classicrl.distributed import Ranks

_CHUNK_ELEMENTS = 1 << 24  # 128 MiB in float64


class RunningMoments:
    """Mean and variance of all that was seen, float64, merged batch by batch.

    Two groups of n_a and n_b numbers have together (Chan, Golub & LeVeque 1983, equation 2.1)

        mean = m_a + d n_b / n,    M2 = M2_a + M2_b + d^2 n_a n_b / n,    d = m_b - m_a

    with M2 = n var. The start counts as 1e-4 numbers of mean 0 and variance 1, as in the code of
    Burda et al. 2018: before the first batch the scale is 1, after it hardly any of it is left.

    Args:
        shape: of one item; moments are kept for every element of it.
        device: where they are kept.
        ranks: batches of all processes count as one.

    >>> moments = RunningMoments((2,))
    >>> moments.update(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    >>> moments.mean.round(decimals=2)
    tensor([ 2., 20.], dtype=torch.float64)
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (),
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
    ) -> None:
        self.mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self.var = torch.ones(shape, dtype=torch.float64, device=device)
        self.count = torch.tensor(1e-4, dtype=torch.float64, device=device)
        self._ranks = ranks or Ranks()

    @property
    def std(self) -> Tensor:
        """Square root of the variance, float64 ``[*shape]``."""
        return self.var.sqrt()

    @torch.no_grad()
    def update(self, items: Tensor) -> None:
        """Counts a batch, any dtype ``[M, *shape]``, M at least 1."""
        if items.shape[1:] != self.mean.shape or len(items) == 0:
            raise ValueError(
                f"expected [M, {', '.join(map(str, self.mean.shape))}], got {tuple(items.shape)}"
            )
        # In parts, so that float64 copies of many pictures do not fill the memory.
        rows = max(1, _CHUNK_ELEMENTS // max(1, self.mean.numel()))
        moments: tuple[Tensor, Tensor, Tensor] | None = None
        for chunk in torch.split(items, rows):
            var, mean = torch.var_mean(chunk.to(torch.float64), dim=0, correction=0)
            part = (torch.full_like(self.count, len(chunk)), mean, var)
            moments = part if moments is None else _merged(moments, part)
        assert moments is not None
        for part in zip(*(self._ranks.gather(moment) for moment in moments), strict=True):
            self.count, self.mean, self.var = _merged((self.count, self.mean, self.var), part)

    def state_dict(self) -> dict[str, Any]:
        """Mean, variance, count."""
        return {"mean": self.mean.clone(), "var": self.var.clone(), "count": self.count.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the count."""
        device = self.mean.device
        self.mean, self.var = state["mean"].to(device).clone(), state["var"].to(device).clone()
        self.count = state["count"].to(device).clone()


def _merged(
    a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and variance of two groups together."""
    count_a, mean_a, var_a = a
    count_b, mean_b, var_b = b
    count = count_a + count_b
    delta = mean_b - mean_a
    squares = var_a * count_a + var_b * count_b + delta.square() * (count_a * count_b / count)
    return count, mean_a + delta * (count_b / count), squares / count
