"""Updates per second with and without torch.compile (``--compile``), of this package alone.

One learner of each kind on random batches, warmed up; the two take turns in every repeat.

    python benchmarks/compile.py --json benchmarks/results/my-machine.json
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from report import Table, alternately, by_kind, keep, origin, ratios, show, spread

from classicrl.algorithms.dqn import DQNLearner
from classicrl.command_line import exit_with, require_positive
from classicrl.errors import UserError
from classicrl.machine import choose_device, compile_networks, set_threads
from classicrl.networks import atari_q_network, minatar_q_network, vector_q_network
from classicrl.types import Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the learners compute."""
    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    updates: int = 60
    """Of each learner in a repeat."""
    repeats: int = 7
    """Of the whole comparison."""
    cases: tuple[str, ...] = ("atari-small", "atari-nature", "minatar", "cartpole")
    """Networks."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


class Case(NamedTuple):
    """What is learned by whom."""

    words: str
    build: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]  # of a batch of observations; members first
    dtype: torch.dtype
    num_actions: int


CASES = {
    "atari-small": Case(
        "Atari, small torso, batch 32",
        lambda: atari_q_network("small", "dueling", 6), (32, 4, 84, 84), torch.uint8, 6,
    ),
    "atari-nature": Case(
        "Atari, Nature torso, batch 32",
        lambda: atari_q_network("nature", "dueling", 6), (32, 4, 84, 84), torch.uint8, 6,
    ),
    "minatar": Case(
        "MinAtar, 5 seeds, batch 32",
        lambda: minatar_q_network("behaviour", 4, 6, seeds=range(5)),
        (5, 32, 10, 10, 4), torch.uint8, 6,
    ),
    "cartpole": Case(
        "CartPole, 3 seeds, batch 64",
        lambda: vector_q_network("behaviour", 4, 2, seeds=range(3)), (3, 64, 4), torch.float32, 2,
    ),
}  # fmt: skip


def measure(config: Config) -> dict[str, Any]:
    """Times both learners of every case; returns the result as it is kept in JSON."""
    device = choose_device(config.device)
    set_threads(config.threads)
    cases: dict[str, Any] = {}
    for name in config.cases:
        case = CASES[name]
        torch.compiler.reset()
        plain, compiled = (DQNLearner(case.build().to(device), double=True) for _ in range(2))
        compile_networks(compiled.online, compiled.target)
        batch = random_batch(case.shape, case.dtype, case.num_actions, device)
        began = time.perf_counter()
        update(compiled, batch, 3)
        first = time.perf_counter() - began
        update(plain, batch, 3)
        jobs = [
            lambda learner=learner, batch=batch: update(learner, batch, config.updates)
            for learner in (plain, compiled)
        ]
        timings = alternately(jobs, device, config.repeats)
        of_kind = {
            kind: by_kind(timed) for kind, timed in zip(("plain", "compiled"), timings, strict=True)
        }
        cases[name] = {"first_seconds": first, **of_kind}
        print(f"{name}: done", flush=True)
    return {**origin(config, device), "cases": cases}


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    config = result["config"]
    rows = []
    for name, timed in result["cases"].items():
        plain, compiled = (timed[kind]["wall_seconds"] for kind in ("plain", "compiled"))
        rows.append(
            (
                CASES[name].words,
                *(spread([config["updates"] / s for s in side], 1) for side in (plain, compiled)),
                spread(ratios(plain, compiled), 2),
                f"{timed['first_seconds']:.1f}",
            )
        )
    title = f"{result['threads']} thread(s): median (range) of {config['repeats']} repeats"
    header = ("updates of", "plain, 1/s", "compiled, 1/s", "compiled over plain", "first calls, s")
    return [Table(title, header, rows, ("A ratio above 1 is in favour of compiling.",))]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads"})
    if unknown := set(config.cases) - set(CASES):
        raise UserError(f"--cases {' '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "compile", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


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


def update(learner: DQNLearner, batch: Transition, count: int) -> None:
    """So many updates on the same batch."""
    for _ in range(count):
        learner.update(batch)


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
