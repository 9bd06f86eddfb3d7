"""A*, deferred A*, Q* and Q-beam on the same network and cubes, over 12, 156 and 1,884 actions.

Tables 2 and 3 of F. Agostinelli et al. (arXiv 2102.04518) on this machine: for each ceiling of the
mean path cost, the least mean time and the fewest mean nodes of any setting that stays below it and
solves every cube; their ratios A* / Q*; and how both grow with the number of actions. The heuristic
of A* is min_a Q(s,a) of the same network, so its quality is equal.

    python benchmarks/qstar.py --json benchmarks/results/my-machine-qstar.json

Each setting is written when it is done; the same command goes on with those that are missing.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import tyro
from report import Table, origin, show

from classicrl.command_line import exit_with, require_positive
from classicrl.cube_solver import CubeSolver, load_network, shipped_network
from classicrl.domains.cube3 import Cube3
from classicrl.errors import UserError
from classicrl.experiment import read_json, write_json
from classicrl.machine import choose_device, set_threads
from classicrl.solve_cubes import SolveSettings

SEARCHES = ("qstar", "deferred-astar", "astar", "q-beam")
CEILINGS = {12: (24, 26, 28), 156: (13, 14, 16), 1884: (9, 10, 11)}
# Of the paper, A* / Q* (table 2), at its own ceilings and on its own machine, as a reminder.
PAPER = {
    12: "<= 22: 0.8 (1.4), <= 25: 5.1 (11.9), <= 28: 1.7 (6.8)",
    156: "<= 12: 50.8 (92.0), <= 14: 23.9 (64.0), <= 16: 10.8 (34.5)",
    1884: "<= 8: 129.7 (1288), <= 9: 28.5 (283), <= 10: 22.6 (249)",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which settings, on which cubes."""

    network_12: Path | None = None
    """A model file. Default: the one in the package."""
    network_156: Path | None = None
    """The same for 156 actions."""
    network_1884: Path | None = None
    """The same for 1,884 actions."""
    actions: tuple[int, ...] = (12, 156, 1884)
    """Action spaces."""
    cubes: tuple[int, ...] = (20, 10, 5)
    """Full scrambles for each of them; the same for every search."""
    weights: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Of the path cost."""
    batch_sizes: tuple[int, ...] = (1_000, 10_000)
    """Also widths of the beam."""
    searches: tuple[str, ...] = SEARCHES
    """Of them all."""
    max_nodes: int = 3_000_000
    """For a cube."""
    max_seconds: float = 60.0
    """For a cube."""
    seed: int = 7
    """Of the scrambles."""
    perimeter: int = 0
    """Turns around the goal that are looked up; the paper has none."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    json: Path | None = None
    """Kept there, and continued."""


def measure(config: Config) -> dict[str, Any]:
    """Runs what is missing; returns the result as it is kept in JSON."""
    set_threads(config.threads)
    device = choose_device(config.device)
    result: dict[str, Any] = {**origin(config, device), "cells": {}}
    if config.json is not None and config.json.exists():
        earlier = read_json(config.json)
        same = ("seed", "max_nodes", "max_seconds", "perimeter", "cubes")
        if any(earlier["config"][name] != result["config"][name] for name in same):
            raise UserError(f"{config.json} holds other cubes or limits: name another --json")
        result["cells"] = earlier["cells"]
    given = {12: config.network_12, 156: config.network_156, 1884: config.network_1884}
    for actions, count in zip(config.actions, config.cubes, strict=False):
        network = load_network(given[actions] or shipped_network(actions), device)
        starts = Cube3(12).random_states(count, torch.Generator().manual_seed(config.seed))
        for search, weight, size in settings_of(config):
            key = f"{actions} {search} {size} {weight:g}"
            if key in result["cells"]:
                continue
            settings = SolveSettings(
                search=search,  # type: ignore[arg-type]
                weight=weight,
                batch_size=size,
                max_nodes=config.max_nodes,
                max_seconds=config.max_seconds,
                perimeter=config.perimeter,
            )
            solver = CubeSolver(network, settings)
            solutions = [solver.solve(start.to(device)) for start in starts]
            result["cells"][key] = [
                {**solution.as_json(), "network_seconds": round(solution.network_seconds, 4)}
                for solution in solutions
            ]
            print(key, described(result["cells"][key]), flush=True)
            if config.json is not None:
                write_json(config.json, result)
    return result


def settings_of(config: Config) -> Iterable[tuple[str, float, int]]:
    """Search, weight, batch size; a beam has no weight."""
    for search, size in itertools.product(config.searches, config.batch_sizes):
        for weight in (1.0,) if search == "q-beam" else config.weights:
            yield search, weight, size


def described(cubes: list[dict[str, Any]]) -> str:
    """A setting in a few words."""
    solved = [cube for cube in cubes if cube["solved"]]
    if not solved:
        return f"solved 0 of {len(cubes)}"
    cost = statistics.mean(cube["cost"] for cube in solved)
    seconds = statistics.mean(cube["seconds"] for cube in cubes)
    nodes = statistics.mean(cube["nodes_generated"] for cube in cubes)
    figures = f"cost {cost:.2f}, {seconds:.2f} s, {nodes:,.0f} nodes"
    return f"solved {len(solved)} of {len(cubes)}, {figures}"


def best_at(result: dict[str, Any], actions: int, search: str, ceiling: float, what: str) -> float:
    """The least mean of ``what`` over settings with all cubes solved below the ceiling; inf."""
    found = [float("inf")]
    for key, cubes in result["cells"].items():
        ours = key.split()[:2] == [str(actions), search]
        if not ours or not all(cube["solved"] for cube in cubes):
            continue
        if statistics.mean(cube["cost"] for cube in cubes) <= ceiling:
            found.append(statistics.mean(cube[what] for cube in cubes))
    return min(found)


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    made = []
    for actions in result["config"]["actions"]:
        rows = []
        for ceiling in CEILINGS[actions]:
            row = [f"path cost <= {ceiling}"]
            for search in SEARCHES:
                seconds = best_at(result, actions, search, ceiling, "seconds")
                nodes = best_at(result, actions, search, ceiling, "nodes_generated")
                row.append("-" if nodes == float("inf") else f"{seconds:.2f} s, {nodes:,.0f}")
            for what in ("seconds", "nodes_generated"):
                ours = best_at(result, actions, "qstar", ceiling, what)
                theirs = best_at(result, actions, "astar", ceiling, what)
                known = ours < float("inf") and theirs < float("inf")
                row.append(f"{theirs / ours:.1f}" if known else "-")
            rows.append(tuple(row))
        header = (f"{actions} actions", *SEARCHES, "time A*/Q*", "nodes A*/Q*")
        notes = (
            "Seconds and nodes generated, each the least of any setting; -: no setting solves "
            "every cube below the ceiling within the limits.",
            f"The paper, time (nodes) A* / Q*: {PAPER[actions]}.",
        )
        made.append(Table(f"The same network, {actions} actions", header, rows, notes))
    return made


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads", "seed", "perimeter"})
    result = measure(config)
    show(tables(result))
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
