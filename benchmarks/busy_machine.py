"""Updates of the cube's network where nothing else runs, and beside one busy process.

Threads of one product wait for each other. Where something else takes a core from one of them, the
others wait by turning in a loop, which keeps the core from it all the longer. GOMP_SPINCOUNT, a
variable that is read when torch is imported, says how long they do so before they sleep.

    python benchmarks/busy_machine.py --json benchmarks/results/my-machine.json

Run it where nothing else runs. Each kind in turn in every repeat, in a process of its own.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import tyro
from report import Table, keep, origin, ratios, show, spread

from classicrl.command_line import exit_with, require_positive
from classicrl.domains.cube3 import Cube3
from classicrl.machine import set_threads
from classicrl.networks.byte_q_network import ByteQNetwork

WORKER = "--updates-of-a-worker"
SPIN = "GOMP_SPINCOUNT"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and lengths."""

    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    spin_count: int = 1_000
    """Turns of the loop before a thread sleeps; the default of torch's OpenMP is 300,000."""
    batch_size: int = 2_000
    """States per update, as in qstar_cube3_train.py."""
    seconds: float = 5.0
    """Of each measurement."""
    repeats: int = 5
    """Of the whole comparison."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


def updates_per_second(threads: int, batch_size: int, seconds: float) -> float:
    """Of forwards and backwards passes, after three that are not counted."""
    set_threads(threads)
    domain = Cube3(12)
    network = ByteQNetwork(domain.feature_offsets, domain.num_features, 12)
    states = domain.random_states(batch_size, torch.Generator().manual_seed(0))

    def update() -> None:
        network.zero_grad()
        network(states).square().mean().backward()

    for _ in range(3):
        update()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        update()
        count += 1
    return count / (time.perf_counter() - began)


def in_a_process(config: Config, threads: int, environment: dict[str, str]) -> float:
    """The same, where torch is imported with these variables."""
    task = [threads, config.batch_size, config.seconds]
    variables = {k: v for k, v in os.environ.items() if k not in (SPIN, "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, __file__, WORKER, json.dumps(task)],
        env={**variables, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


@contextmanager
def busy_process() -> Iterator[None]:
    """One that only counts."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(config: Config) -> dict[str, Any]:
    """Times all kinds; returns the result as it is kept in JSON."""
    threads = set_threads(config.threads)
    kinds: dict[str, tuple[int, dict[str, str]]] = {
        f"{threads} threads": (threads, {}),
        f"{threads} threads, {SPIN}={config.spin_count}": (threads, {SPIN: str(config.spin_count)}),
        "1 thread": (1, {}),
    }
    rates: dict[str, dict[str, list[float]]] = {k: {"alone": [], "beside": []} for k in kinds}
    for _ in range(config.repeats):
        for name, kind in kinds.items():
            rates[name]["alone"].append(in_a_process(config, *kind))
            with busy_process():
                rates[name]["beside"].append(in_a_process(config, *kind))
    return {**origin(config, torch.device("cpu")), "rates": rates}


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    config, rates = result["config"], result["rates"]
    rows = [
        (
            name,
            spread(rate["alone"], 1),
            spread(rate["beside"], 1),
            spread(ratios(rate["beside"], rate["alone"]), 2),
        )
        for name, rate in rates.items()
    ]
    return [
        Table(
            f"The cube's network, batches of {config['batch_size']:,}: median (range) of "
            f"{config['repeats']} repeats",
            ("updates/s", "nothing else runs", "beside a busy process", "what is left"),
            rows,
        )
    ]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads"})
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "busy_machine", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        print(updates_per_second(*json.loads(sys.argv[2])))
    else:
        exit_with(main, tyro.cli(Config, description=__doc__))
