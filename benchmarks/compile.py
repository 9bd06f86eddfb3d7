"""Updates per second with and without torch.compile (``--compile``), of this package alone.

Each line: one learner on random batches, warmed up, the median of several timings in turn.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
import tyro

from classicrl.algorithms.dqn import DQNLearner
from classicrl.machine import choose_device, compile_networks, describe, set_threads
from classicrl.networks import atari_q_network, minatar_q_network, vector_q_network
from classicrl.types import Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the learners compute."""
    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    seconds: float = 3.0
    """Of each timing."""
    rounds: int = 5
    """Timings of each; their median counts."""


CASES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], torch.dtype, int]] = {
    # network, shape of an observation (members first), its dtype, actions
    "Atari, small torso, batch 32": (
        lambda: atari_q_network("small", "dueling", 6),
        (32, 4, 84, 84),
        torch.uint8,
        6,
    ),
    "Atari, Nature torso, batch 32": (
        lambda: atari_q_network("nature", "dueling", 6),
        (32, 4, 84, 84),
        torch.uint8,
        6,
    ),
    "MinAtar, 5 seeds, batch 32": (
        lambda: minatar_q_network("behaviour", 4, 6, seeds=range(5)),
        (5, 32, 10, 10, 4),
        torch.uint8,
        6,
    ),
    "CartPole, 3 seeds, batch 64": (
        lambda: vector_q_network("behaviour", 4, 2, seeds=range(3)),
        (3, 64, 4),
        torch.float32,
        2,
    ),
}


def main(config: Config) -> None:
    """Measures and prints a table."""
    device = choose_device(config.device)
    set_threads(config.threads)
    print(f"torch {torch.__version__}, {describe(device)}")
    print("| updates of | plain, 1/s | compiled, 1/s | ratio | first calls, s |")
    print("|---|---|---|---|---|")
    for name, (build, shape, dtype, num_actions) in CASES.items():
        torch.compiler.reset()
        plain, compiled = (DQNLearner(build().to(device), double=True) for _ in range(2))
        compile_networks(compiled.online, compiled.target)
        batch = random_batch(shape, dtype, num_actions, device)
        began = time.perf_counter()
        for _ in range(3):
            compiled.update(batch)
        first = time.perf_counter() - began
        rates: dict[str, list[float]] = {"plain": [], "compiled": []}
        for _ in range(config.rounds):
            for which, learner in (("plain", plain), ("compiled", compiled)):
                rates[which].append(rate(learner, batch, config.seconds))
        a, b = (statistics.median(rates[which]) for which in ("plain", "compiled"))
        print(f"| {name} | {a:.0f} | {b:.0f} | {b / a:.2f} | {first:.0f} |", flush=True)


def random_batch(
    shape: tuple[int, ...], dtype: torch.dtype, num_actions: int, device: torch.device
) -> Transition:
    """Transitions of random observations."""
    members = shape[:1] if shape[0] < 32 else ()
    axes = (*members, shape[len(members)])
    obs = torch.randint(0, 2, shape, device=device).to(dtype)
    return Transition(
        obs,
        torch.randint(0, num_actions, axes, device=device),
        torch.randn(axes, device=device),
        torch.full(axes, 0.99, device=device),
        obs.flip(len(members)),
    )


def rate(learner: DQNLearner, batch: Transition, seconds: float) -> float:
    """Updates per second."""
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        metrics = learner.update(batch)
        float(metrics["loss"][..., 0].sum())  # waits for the device
        count += 1
    return count / spent


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
