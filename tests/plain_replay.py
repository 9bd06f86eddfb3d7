"""A replay that is slow and obvious: whole episodes of whole observations in plain lists."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from classicrl.replay import ReplayBuffer


@dataclass
class Step:
    row_id: int
    obs: NDArray[Any]  # whole: with its stack
    action: NDArray[Any]
    reward: float
    terminated: bool


@dataclass
class Episode:
    steps: list[Step] = field(default_factory=list)
    last_obs: NDArray[Any] | None = None  # None while it goes on, or if it was broken off


class PlainTransition(NamedTuple):
    obs: NDArray[Any]
    action: NDArray[Any]
    reward: float
    discount: float
    next_obs: NDArray[Any]


class PlainReplay:
    """What a :class:`ReplayBuffer` must do, given whole observations instead of single frames."""

    def __init__(
        self, capacity: int, num_envs: int, *, stack: int | None, n_steps: int, gamma: float
    ) -> None:
        self.capacity = capacity
        self.num_envs = num_envs
        self.depth = stack or 1
        self.n_steps = n_steps
        self.gamma = gamma
        self.next_id = 0
        self.finished: list[Episode] = []
        self.running = [Episode() for _ in range(num_envs)]
        self.awaits_last_obs = [False] * num_envs

    def add(
        self,
        obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        final_obs: NDArray[Any] | None,
    ) -> None:
        for i in range(self.num_envs):
            if self.awaits_last_obs[i]:
                self._finish(i, obs[i])
                self.awaits_last_obs[i] = False
            else:
                step = Step(self._new_id(), obs[i], action[i], float(reward[i]), terminated[i])
                self.running[i].steps.append(step)
                self.awaits_last_obs[i] = bool(ended[i])
        if final_obs is not None:
            for last_obs, i in zip(final_obs, np.flatnonzero(ended), strict=True):
                self._finish(int(i), last_obs)
                self.awaits_last_obs[i] = False

    def break_streams(self) -> None:
        self.finished += self.running
        self.running = [Episode() for _ in range(self.num_envs)]
        self.awaits_last_obs = [False] * self.num_envs

    def transitions(self) -> list[PlainTransition]:
        """All that can be drawn, the newest first."""
        oldest_id = max(0, self.next_id - self.capacity)
        self.finished = [e for e in self.finished if e.steps and e.steps[-1].row_id >= oldest_id]
        found: dict[int, PlainTransition] = {}
        for episode in self.finished + self.running:
            for t, step in enumerate(episode.steps):
                first_of_stack = episode.steps[max(0, t - self.depth + 1)]
                if first_of_stack.row_id >= oldest_id:
                    transition = self._transition(episode, t)
                    if transition is not None:
                        found[step.row_id] = transition
        return [found[row_id] for row_id in sorted(found, reverse=True)]

    def _transition(self, episode: Episode, t: int) -> PlainTransition | None:
        total, k = 0.0, 0
        while k < self.n_steps and t + k < len(episode.steps):
            total += self.gamma**k * episode.steps[t + k].reward
            k += 1
            if episode.steps[t + k - 1].terminated:
                break
        terminated = episode.steps[t + k - 1].terminated
        whole_window = k == self.n_steps or terminated or episode.last_obs is not None
        at_its_end = t + k == len(episode.steps)
        next_obs = episode.last_obs if at_its_end else episode.steps[t + k].obs
        if not whole_window or next_obs is None:
            return None
        discount = 0.0 if terminated else self.gamma**k
        first = episode.steps[t]
        return PlainTransition(first.obs, first.action, total, discount, next_obs)

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def _finish(self, env: int, last_obs: NDArray[Any]) -> None:
        self._new_id()  # a last observation takes a row
        self.running[env].last_obs = last_obs
        self.finished.append(self.running[env])
        self.running[env] = Episode()


class EveryAge:
    """A sampler that goes through all ages in turn, so that a test sees all that can be drawn."""

    def __init__(self) -> None:
        self._at = 0

    def begin(self) -> None:
        self._at = 0

    def __call__(self, rng: np.random.Generator, num_stored: int, size: int) -> NDArray[np.int64]:
        ages = (self._at + np.arange(size)) % num_stored
        self._at += size
        return ages


def assert_same_transitions(buffer: ReplayBuffer, model: PlainReplay) -> list[PlainTransition]:
    """Every transition that the buffer can draw is the model's, and it can draw all of them.

    The buffer's sampler must be an :class:`EveryAge`.
    """
    assert isinstance(buffer.sampler, EveryAge)
    assert buffer.next_id == model.next_id
    expected = model.transitions()
    if not expected:
        return expected
    buffer.sampler.begin()
    # Two rounds and a bit: one transition too many or too few would shift the second round.
    rounds = [*expected, *expected, expected[0]]
    batch = buffer.sample(len(rounds))
    for name, tensor in batch._asdict().items():
        wanted = np.stack([np.asarray(getattr(t, name)) for t in rounds])
        if name in ("reward", "discount"):
            assert tensor.dtype == torch.float32
            np.testing.assert_allclose(tensor.numpy(), wanted, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(tensor.numpy(), wanted, err_msg=name)
    return expected
