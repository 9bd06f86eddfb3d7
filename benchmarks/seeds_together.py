"""Seeds trained side by side in one process, against as many processes of one seed each.

All run agents/va_minatar.py, or for other environments agents/va_classic_control.py, with the same
settings, evaluations and checkpoints left out: for each of --num-seeds, one process with all cores
that trains so many, and a process per core, each of one thread and of so many; and a process per
core, each of one thread and one seed, as by hand. Steps per second are taken from metrics.csv,
between the first row after the updates have begun and the last, so starting up does not count; the
processes of a side run at the same time, and their rates are added.

    python benchmarks/seeds_together.py --json benchmarks/results/my-machine.json
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import tyro
from report import Table, keep, origin, ratios, show, spread

from classicrl.command_line import exit_with, require_positive
from classicrl.cpus import available_cpus
from classicrl.errors import RunFailure
from classicrl.loggers import read_csv

AGENTS = Path(__file__).resolve().parent.parent / "agents"


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one agent decision in one environment."""

    env_ids: tuple[str, ...] = ("CartPole-v1", "MinAtar/Breakout-v1")
    """Vectors or MinAtar's boards."""
    members: tuple[str, ...] = ("dqn", "va")
    """Of the family."""
    num_seeds: tuple[int, ...] = (5, 10, 20, 40)
    """Seeds trained side by side in a process; all of these are measured."""
    steps: int = 12_000
    """Steps of each seed, per repeat."""
    num_envs: int = 1
    """Environments side by side, for each seed; on all sides."""
    repeats: int = 3
    """Of the whole comparison; the sides take turns."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


def steps_per_second(
    config: Config, env_id: str, member: str, processes: int, num_seeds: int
) -> float:
    """All seeds of all processes together."""
    agent = "va_minatar" if env_id.startswith("MinAtar/") else "va_classic_control"
    threads = max(1, available_cpus() // processes)
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for p in range(processes):
            command = [sys.executable, str(AGENTS / f"{agent}.py"), "--member", member]
            command += ["--env-id", env_id, "--run-dir", f"{folder}/{p}"]
            command += ["--total-steps", str(config.steps), "--num-envs", str(config.num_envs)]
            command += ["--num-seeds", str(num_seeds), "--seed", "0", "--device", "cpu"]
            command += ["--threads", str(threads), "--log-period-steps", "1000"]
            command += ["--evaluation-period-steps", "1000000000"]
            command += ["--checkpoint-period-steps", "1000000000", "--checkpoint-replay", "none"]
            command += ["--final-evaluation-episodes", "1"]
            running.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                )
            )
        rates = []
        for p, process in enumerate(running):
            _, errors = process.communicate()
            if process.returncode:
                raise RunFailure(f"{agent}.py ended with {process.returncode}: {errors.strip()}")
            metrics = read_csv(Path(folder) / str(p) / "seed0" / "metrics.csv")
            settled = metrics["step"] >= 2_000  # updates begin at 1,000
            step = metrics["step"][settled]
            seconds = metrics["charts/wall_seconds"][settled]
            rates.append(num_seeds * (step[-1] - step[0]) / (seconds[-1] - seconds[0]))
    return float(sum(rates))


def measure(config: Config) -> dict[str, Any]:
    """Times the sides in turn; returns the result as it is kept in JSON."""
    cores = available_cpus()
    sides = {"apart": (cores, 1)}
    for num_seeds in config.num_seeds:
        sides[f"{num_seeds} in one process"] = (1, num_seeds)
        sides[f"{num_seeds} on each core"] = (cores, num_seeds)
    environments: dict[str, dict[str, dict[str, list[float]]]] = {
        env_id: {member: {side: [] for side in sides} for member in config.members}
        for env_id in config.env_ids
    }
    for repeat in range(config.repeats):
        order = list(sides) if repeat % 2 == 0 else list(reversed(sides))
        for env_id, members in environments.items():
            for member, rates in members.items():
                for side in order:
                    rates[side].append(steps_per_second(config, env_id, member, *sides[side]))
                    print(f"{env_id}, {member}, {side}: {rates[side][-1]:,.0f}/s", flush=True)
    return {**origin(config, torch.device("cpu")), "processes": cores, "environments": environments}


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    config, processes = result["config"], result["processes"]
    found = []
    for env_id, members in result["environments"].items():
        rows = []
        for member, rates in members.items():
            apart = rates["apart"]
            for num_seeds in config["num_seeds"]:
                one = rates[f"{num_seeds} in one process"]
                each = rates[f"{num_seeds} on each core"]
                gains = [spread(ratios(side, apart), 2) for side in (one, each)]
                rates_of_sides = [spread(side) for side in (one, each, apart)]
                rows.append((member, str(num_seeds), *rates_of_sides, *gains))
        title = (
            f"{env_id}, --num-envs {config['num_envs']}: median (range) of "
            f"{config['repeats']} repeats"
        )
        header = (
            "steps/s, all seeds",
            "seeds in a process",
            f"one process, {processes} threads",
            f"{processes} processes",
            f"{processes} processes of one seed",
            "the first over the last",
            "the second over the last",
        )
        note = "A ratio above 1 is in favour of seeds side by side."
        found.append(Table(title, header, rows, (note,)))
    return found


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config)
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "seeds_together", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
