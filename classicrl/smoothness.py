"""How smoothly, and at what cost, actions are carried out: figures beside the return.

``x`` is an action as the environment carries it out (clipped to its limits), minus the middle of
its range, over half of it, so within [-1, 1]; ``dt`` is the control period in seconds.

    magnitude         mean |x|
    saturation        share of |x| > 0.95
    action rate       mean |x_t - x_{t-1}| / dt
    action jerk       mean |x_t - 2 x_{t-1} + x_{t-2}| / dt^2
    energy            sum over an episode of |actuator force * joint velocity| dt, in joules
    cost of transport energy / (weight * distance)
    spectrum          2/(n f_s) sum_i M_i f_i over the amplitudes M_i at the frequencies f_i of x
                      (Mysore et al. 2021, arXiv 2012.06644)

Means are over time and the dimensions of an action, never across the end of an episode. Small is
not the same as smooth, and an episode that ends early looks smooth: compare at equal returns.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SATURATED = 0.95
FIGURES = (
    "action_magnitude",
    "action_saturation",
    "action_rate",
    "action_jerk",
    "energy_joules",
    "cost_of_transport",
)


def normalised(
    action: NDArray[Any], low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Actions ``[..., A]`` in the environment's units as ``x``, within [-1, 1]."""
    middle, half = (low.astype(np.float64) + high) / 2, (high.astype(np.float64) - low) / 2
    x: NDArray[np.float64] = (np.clip(action, low, high) - middle) / half
    return x


def spectrum(x: NDArray[np.float64], dt: float) -> float:
    """``2/(n f_s) sum_i M_i f_i`` of one episode's actions ``[T, A]``, averaged over A.

    M_i is the amplitude at frequency f_i, n the number of frequencies, f_s = 1/dt. NaN for fewer
    than two steps.
    """
    steps = len(x)
    if steps < 2:
        return math.nan
    amplitudes = np.abs(np.fft.rfft(x, axis=0)) * 2.0 / steps  # [n, A]
    frequencies = np.fft.rfftfreq(steps, dt)  # [n] Hz
    weighted = (amplitudes * frequencies[:, None]).sum(axis=0)
    return float((2.0 * dt / len(frequencies) * weighted).mean())


class SmoothnessMeter:
    """Running figures over the steps of N environments.

    Args:
        num_envs: N.
        low, high: limits of the actions, ``[A]``.
        dt: control period in seconds.
        weight: of the body in newtons; NaN if not known.
    """

    def __init__(
        self,
        num_envs: int,
        low: NDArray[np.float32],
        high: NDArray[np.float32],
        *,
        dt: float,
        weight: float = math.nan,
    ) -> None:
        self._low, self._high, self._dt, self._weight = low, high, dt, weight
        self._previous = np.full((2, num_envs, len(low)), np.nan)  # x_{t-1}, x_{t-2}
        self._energy = np.zeros(num_envs)
        self._start = np.full(num_envs, np.nan)
        self.reset()

    def reset(self) -> None:
        """Begins new figures; the running episodes go on."""
        self._sums = np.zeros(4)
        self._counts = np.zeros(4)
        self._episode_energy = self._distance_energy = self._distance = 0.0
        self._episodes = 0

    def add(
        self,
        action: NDArray[Any],
        ended: NDArray[np.bool_],
        power: NDArray[np.float64],
        position: NDArray[np.float64],
        counted: NDArray[np.bool_] | None = None,
    ) -> None:
        """One step.

        Args:
            action: ``[N, A]``, as the environment was told.
            ended: bool ``[N]``.
            power, position: ``[N]``, of :class:`~classicrl.envs.continuous.ControlStep`.
            counted: bool ``[N]``, environments whose step counts; None for all.
        """
        x = normalised(action, self._low, self._high)  # [N, A]
        one, two = self._previous
        differences = (np.abs(x), np.abs(x) > SATURATED, np.abs(x - one), np.abs(x - 2 * one + two))
        among = np.ones(len(x), dtype=np.bool_) if counted is None else counted
        for i, values in enumerate(differences):
            known = values[among & np.isfinite(values[:, 0])] if i > 1 else values[among]
            self._sums[i] += known.sum()
            self._counts[i] += known.size
        self._previous[1], self._previous[0] = one, x
        self._energy += np.where(np.isfinite(power), power, np.nan) * self._dt
        self._start = np.where(np.isnan(self._start), position, self._start)
        for i in map(int, np.flatnonzero(ended)):
            if among[i]:
                self._episodes += 1
                self._episode_energy += float(self._energy[i])
                walked = float(abs(position[i] - self._start[i]))
                if math.isfinite(walked):
                    self._distance += walked
                    self._distance_energy += float(self._energy[i])
            self._energy[i] = 0.0
            self._start[i] = np.nan
            self._previous[:, i] = np.nan

    def begin_new_episodes(self) -> None:
        """Forgets the running episodes: the environments were started afresh."""
        self._previous[:] = np.nan
        self._energy[:] = 0.0
        self._start[:] = np.nan

    def figures(self) -> dict[str, float]:
        """All of ``FIGURES``; NaN where nothing is known yet."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self._sums / self._counts
        magnitude, saturation, rate, jerk = means.tolist()
        energy = self._episode_energy / self._episodes if self._episodes else math.nan
        work = self._weight * self._distance
        transport = self._distance_energy / work if work > 0 else math.nan
        values = (
            magnitude,
            saturation,
            rate / self._dt,
            jerk / self._dt**2,
            energy,
            transport,
        )
        return dict(zip(FIGURES, values, strict=True))

    def pop(self) -> dict[str, float]:
        """The figures, which begin anew."""
        figures = self.figures()
        self.reset()
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Sums and running episodes."""
        return {
            "previous": self._previous.copy(),
            "energy": self._energy.copy(),
            "start": self._start.copy(),
            "sums": self._sums.copy(),
            "counts": self._counts.copy(),
            "episodes": self._episodes,
            "totals": [self._episode_energy, self._distance_energy, self._distance],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the figures."""
        self._previous[:] = state["previous"]
        self._energy[:] = state["energy"]
        self._start[:] = state["start"]
        self._sums[:] = state["sums"]
        self._counts[:] = state["counts"]
        self._episodes = int(state["episodes"])
        self._episode_energy, self._distance_energy, self._distance = map(float, state["totals"])
