"""A*, deferred A*, Q* and Q-beam on the same network and cubes, over 12, 156 and 1,884 actions.

Tables 2 and 3 of F. Agostinelli et al. (arXiv 2102.04518) on this machine: for each ceiling of the
mean path cost, the least mean time and the fewest mean nodes of any setting that stays below it and
solves every cube; their ratios A* / Q*; and how both grow with the number of actions. The heuristic
of A* is min_a Q(s,a) of the same network, so its quality is equal. astar-v and deferred-astar-v
have a network of V alone (qstar_cube3_train --function v): --value-network-12 and its like.

    python benchmarks/qstar.py --json benchmarks/results/qstar/my-machine.json

Each cube is written when it is done; the same command goes on with those that are missing, also
with more --cubes than before. A setting that fails on a cube is left there, since the tables take
only settings that solve all.

On a machine that has other work too, wall time says little: `--threads 1 --clock cpu` counts the
seconds that the processor worked for this program, and --max-nodes with a large --max-seconds keeps
the counts of nodes exact.
"""

import dataclasses
import hashlib
import itertools
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from report import Table, markdown, origin, replace_block, show

from classicrl.command_line import exit_with, require_positive
from classicrl.cube_solver import CubeNetwork, CubeSolver, load_network, shipped_network
from classicrl.domains.cube3 import Cube3
from classicrl.errors import UserError
from classicrl.experiment import read_json, write_json
from classicrl.machine import choose_device, set_threads
from classicrl.solve_cubes import SolveSettings

SEARCHES = ("qstar", "deferred-astar", "astar", "q-beam")
VALUE_SEARCHES = ("deferred-astar-v", "astar-v")
ALL = SEARCHES + VALUE_SEARCHES
NUM_SCRAMBLES = 100  # those of `qstar_cube3_solve.py --random 100`: a seed's cubes depend on it
CEILINGS = {12: (24, 26, 28), 156: (13, 14, 16), 1884: (9, 10, 11)}
PAPER_CEILINGS = {12: (22, 25, 28), 156: (12, 14, 16), 1884: (8, 9, 10)}
# Of the paper, A* / Q* (table 2), at its own ceilings and on its own machine, as a reminder.
PAPER = {
    12: "<= 22: 0.8 (1.4), <= 25: 5.1 (11.9), <= 28: 1.7 (6.8)",
    156: "<= 12: 50.8 (92.0), <= 14: 23.9 (64.0), <= 16: 10.8 (34.5)",
    1884: "<= 8: 129.7 (1288), <= 9: 28.5 (283), <= 10: 22.6 (249)",
}
PAPER_GROWTH = (
    "156 actions A* time 3.5 (1.6), nodes 8.7 (2.2), Q* 0.9 (0.7), 1.4 (1.3); "
    "1,884 actions A* 37.0 (6.5), 62.7 (5.2), Q* 3.7 (4.0), 2.3 (3.6)"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Which settings, on which cubes."""

    network_12: Path | None = None
    """A model file. Default: the one in the package."""
    network_156: Path | None = None
    """The same for 156 actions."""
    network_1884: Path | None = None
    """The same for 1,884 actions."""
    value_network_12: Path | None = None
    """A model file of V, for astar-v and deferred-astar-v."""
    value_network_156: Path | None = None
    """The same for 156 actions."""
    value_network_1884: Path | None = None
    """The same for 1,884 actions."""
    actions: tuple[int, ...] = (12, 156, 1884)
    """Action spaces."""
    cubes: tuple[int, ...] = (20, 10, 5)
    """Of the 100 full scrambles of the seed, for each of them; the same for every search."""
    weights: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Of the path cost."""
    batch_sizes: tuple[int, ...] = (100, 1_000, 10_000)
    """Also widths of the beam. A batch of A* makes 1,194 times as many nodes at 1,884 actions, so
    only the smallest ends within the limits there."""
    searches: tuple[str, ...] = SEARCHES
    """qstar, deferred-astar, astar, q-beam, astar-v, deferred-astar-v."""
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
    clock: Literal["wall", "cpu"] = "wall"
    """Of the tables. Both are measured."""
    json: Path | None = None
    """Kept there, and continued."""
    measure: bool = True
    """--no-measure shows what is there."""
    docs: Path | None = None
    """Write the tables into this page, between the marks of --block."""
    block: str = "qstar"
    """Of the page."""
    figure: Path | None = None
    """Draw every setting that solved its cubes there."""


def measure(config: Config) -> dict[str, Any]:
    """Runs what is missing; returns the result as it is kept in JSON."""
    set_threads(config.threads)
    device = choose_device(config.device)
    files = network_files(config)
    networks = networks_of(files, device)
    digests = {f"{n} v" if v else f"{n}": digest_of(path) for (n, v), path in files.items()}
    result: dict[str, Any] = {**origin(config, device), "networks": digests, "cells": {}}
    if config.json is not None and config.json.exists():
        earlier = read_json(config.json)
        same = ("seed", "max_nodes", "max_seconds", "perimeter", "device", "threads")
        others = [name for name in same if earlier["config"][name] != result["config"][name]]
        known = earlier.get("networks", {})
        others += [f"network {n}" for n in digests if known.get(n, digests[n]) != digests[n]]
        if others:
            raise UserError(
                f"{config.json} was measured with another {', '.join(others)}: name another --json"
            )
        result["cells"] = earlier["cells"]
        result["config"] |= everything(earlier["config"], result["config"])
        result["networks"] = known | digests
    domain, scrambles = Cube3(12), dict(zip(config.actions, config.cubes, strict=True))
    starts = domain.random_states(NUM_SCRAMBLES, torch.Generator().manual_seed(config.seed))
    for size, weight, actions, search in settings_of(config):
        count = scrambles[actions]
        settings = SolveSettings(
            search=search.removesuffix("-v"),  # type: ignore[arg-type]
            weight=None if search == "q-beam" else weight,
            batch_size=size,
            max_nodes=config.max_nodes,
            max_seconds=config.max_seconds,
            perimeter=config.perimeter,
        )
        key = f"{actions} {search} {size} {weight:g}"
        cubes = result["cells"].setdefault(key, [])
        if len(cubes) >= count or given_up(cubes):
            continue
        solver = CubeSolver(networks[actions, search in VALUE_SEARCHES], settings)
        for start in starts[len(cubes) : count]:
            began = time.process_time()
            solution = solver.solve(start.to(device))
            cpu_seconds = time.process_time() - began
            cubes.append(
                {
                    **solution.as_json(),
                    "cpu_seconds": round(cpu_seconds, 4),
                    "network_seconds": round(solution.network_seconds, 4),
                }
            )
            if config.json is not None:
                write_json(config.json, result)
            if given_up(cubes):
                break
        print(key, described(cubes, count), flush=True)
    return result


def network_files(config: Config) -> dict[tuple[int, bool], Path]:
    """Of all action spaces; True: those of V."""
    given = {12: config.network_12, 156: config.network_156, 1884: config.network_1884}
    of_values = {
        12: config.value_network_12,
        156: config.value_network_156,
        1884: config.value_network_1884,
    }
    files = {(n, False): given[n] or shipped_network(n) for n in config.actions}
    if set(config.searches) & set(VALUE_SEARCHES):
        for n in config.actions:
            path = of_values[n]
            if path is None:
                raise UserError(f"a search with -v needs --value-network-{n}")
            files[n, True] = path
    return files


def networks_of(
    files: Mapping[tuple[int, bool], Path], device: torch.device
) -> dict[tuple[int, bool], CubeNetwork]:
    """Loads them; True: those of V."""
    networks = {key: load_network(path, device) for key, path in files.items()}
    for (n, of_value), network in networks.items():
        flag = f"--value-network-{n}" if of_value else f"--network-{n}"
        if network.is_value != of_value:
            raise UserError(f"{flag} must be a network of {'V' if of_value else 'Q'}")
    return networks


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def everything(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """What two calls measured: one that measures a part takes nothing out of the tables."""
    cubes = dict(zip(earlier["actions"], earlier["cubes"], strict=True))
    for actions, count in zip(now["actions"], now["cubes"], strict=True):
        cubes[actions] = max(count, cubes.get(actions, 0))
    united = {
        name: list(dict.fromkeys([*earlier[name], *now[name]]))
        for name in ("weights", "batch_sizes", "searches")
    }
    return {"actions": list(cubes), "cubes": list(cubes.values()), **united}


def given_up(cubes: list[dict[str, Any]]) -> bool:
    """Whether a setting has failed on a cube."""
    return bool(cubes) and not cubes[-1]["solved"]


def settings_of(config: Config) -> Iterable[tuple[int, float, int, str]]:
    """Batch size, weight, actions, search, the quick ones first; a beam has no weight."""
    yield from (
        (size, 1.0 if search == "q-beam" else weight, actions, search)
        for size, weight, actions, search in itertools.product(
            config.batch_sizes, config.weights, config.actions, config.searches
        )
        if search != "q-beam" or weight == config.weights[0]
    )


def described(cubes: list[dict[str, Any]], count: int) -> str:
    """A setting in a few words."""
    if given_up(cubes):
        return f"fails on cube {len(cubes)} ({cubes[-1]['stopped']})"
    means = [mean_of(cubes, what) for what in ("cost", "seconds", "cpu_seconds", "nodes_generated")]
    figures = "cost {:.2f}, {:.2f} s, {:.2f} s of processor, {:,.0f} nodes".format(*means)
    return f"solves {len(cubes)} of {count}: {figures}"


def mean_of(cubes: list[dict[str, Any]], what: str) -> float:
    """Mean of one of the recorded figures."""
    return statistics.mean(float(cube[what]) for cube in cubes)


class Point(NamedTuple):
    """A setting that solved all its cubes: what it is, and the means over them."""

    size: int
    weight: float
    cost: float
    seconds: float
    nodes: float


def points(result: dict[str, Any], actions: int, search: str) -> list[Point]:
    """The settings of a search that solved every cube, over as many as were asked for."""
    config = result["config"]
    count = dict(zip(config["actions"], config["cubes"], strict=True))[actions]
    clock = "cpu_seconds" if config["clock"] == "cpu" else "seconds"
    found = []
    for key, cubes in result["cells"].items():
        its_actions, its_search, size, weight = key.split()
        ours = (int(its_actions), its_search) == (actions, search)
        if ours and len(cubes) >= count and all(cube["solved"] for cube in cubes[:count]):
            means = [mean_of(cubes[:count], what) for what in ("cost", clock, "nodes_generated")]
            found.append(Point(int(size), float(weight), *means))
    return sorted(found)


def least(result: dict[str, Any], actions: int, search: str, ceiling: float, what: str) -> float:
    """The least mean ``seconds`` or ``nodes`` of a setting whose cost is below the ceiling; inf."""
    within = [p for p in points(result, actions, search) if p.cost <= ceiling]
    return min((float(getattr(p, what)) for p in within), default=math.inf)


def ratio(above: float, below: float) -> str:
    """A quotient of what was reached; "-" where either was not."""
    return f"{above / below:.1f}" if max(above, below) < math.inf else "-"


def tables(result: dict[str, Any]) -> list[Table]:
    """The paper's tables 2 and 3, and every setting that they are made of."""
    made = []
    config = result["config"]
    clock = "of one processor" if config["clock"] == "cpu" else "of wall time"
    for actions, count in zip(config["actions"], config["cubes"], strict=True):
        rows = []
        columns = searches_of(result, actions)
        for ceiling in CEILINGS[actions]:
            row = [f"<= {ceiling}"]
            for search in columns:
                seconds = least(result, actions, search, ceiling, "seconds")
                nodes = least(result, actions, search, ceiling, "nodes")
                row.append("-" if nodes == math.inf else f"{seconds:.2f} s, {nodes:,.0f}")
            for what in ("seconds", "nodes"):
                ours = least(result, actions, "qstar", ceiling, what)
                row.append(ratio(least(result, actions, "astar", ceiling, what), ours))
            rows.append(tuple(row))
        header = (f"cost, {actions} actions", *columns, "time A*/Q*", "nodes A*/Q*")
        note = f"The paper, time (nodes) A*/Q*, at its ceilings: {PAPER[actions]}."
        title = f"{actions} actions, {count} cubes: least mean seconds {clock} and nodes"
        made.append(Table(title, header, rows, (note,)))
    note = f"The paper, mean (standard deviation): {PAPER_GROWTH}."
    for whose, ceilings in (("these", CEILINGS), ("the paper's", PAPER_CEILINGS)):
        growth = [
            (f"{actions} actions", search, *grown(result, actions, search, ceilings))
            for actions in config["actions"]
            if 12 in config["actions"] and actions != 12
            for search in SEARCHES
        ]
        of = "; ".join(", ".join(map(str, ceilings[n])) for n in config["actions"])
        title = f"Growth over 12 actions, at {whose} ceilings in order (and their mean): {of}"
        if growth:
            made.append(Table(title, ("", "search", "time", "nodes"), growth, (note,)))
    settings = [
        (
            f"{actions} actions", search, f"{point.size:,}",
            "-" if search == "q-beam" else f"{point.weight:g}",
            f"{point.cost:.2f}", f"{point.seconds:.2f}", f"{point.nodes:,.0f}",
        )
        for actions in config["actions"]
        for search in searches_of(result, actions)
        for point in points(result, actions, search)
    ]  # fmt: skip
    header = ("", "search", "batch", "weight", "cost", "seconds", "nodes")
    made.append(Table("Every setting that solved its cubes: means", header, settings))
    return made


def searches_of(result: dict[str, Any], actions: int) -> tuple[str, ...]:
    """The four, and those with a network of V that were measured at so many actions."""
    measured = {tuple(key.split()[:2]) for key in result["cells"]}
    return SEARCHES + tuple(s for s in VALUE_SEARCHES if (str(actions), s) in measured)


def grown(
    result: dict[str, Any], actions: int, search: str, ceilings: Mapping[int, tuple[int, ...]]
) -> tuple[str, str]:
    """How many times the time and the nodes of 12 actions, at each ceiling."""
    cells = []
    for what in ("seconds", "nodes"):
        pairs = [
            (
                least(result, actions, search, ceiling, what),
                least(result, 12, search, ceiling_of_12, what),
            )
            for ceiling, ceiling_of_12 in zip(ceilings[actions], ceilings[12], strict=True)
        ]
        text = ", ".join(ratio(*pair) for pair in pairs)
        known = [above / below for above, below in pairs if max(above, below) < math.inf]
        cells.append(f"{text} ({statistics.mean(known):.1f})" if known else text)
    return cells[0], cells[1]


def draw(result: dict[str, Any], path: Path) -> None:
    """Mean nodes and seconds against the mean path cost, a point for each setting."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('plots need matplotlib: pip install "classicrl[plots]"') from error
    every = result["config"]["actions"]
    figure = Figure(figsize=(4.2 * len(every), 6.4), layout="constrained")
    panels = figure.subplots(2, len(every), squeeze=False)
    for column, actions in enumerate(every):
        for row, what in enumerate(("nodes", "seconds")):
            ax = panels[row][column]
            for search, marker in zip(ALL, "os^DPX", strict=True):
                found = sorted(points(result, actions, search), key=lambda point: point.cost)
                x, y = [p.cost for p in found], [float(getattr(p, what)) for p in found]
                if search in VALUE_SEARCHES and not found:
                    continue
                ax.plot(x, y, marker, label=search, alpha=0.8)
            ax.set_yscale("log")
            ax.grid(alpha=0.3)
        panels[0][column].set_title(f"{actions} actions")
        panels[1][column].set_xlabel("mean path cost")
    clock = " of processor" if result["config"]["clock"] == "cpu" else ""
    panels[0][0].set_ylabel("mean nodes generated")
    panels[1][0].set_ylabel(f"mean seconds{clock}")
    panels[0][0].legend()
    figure.savefig(path, dpi=130, metadata={"Software": ""})


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads", "seed", "perimeter"})
    if unknown := set(config.searches) - set(ALL):
        raise UserError(f"--searches {' '.join(sorted(unknown))}: there are {', '.join(ALL)}")
    if len(config.actions) != len(config.cubes):
        raise UserError(
            f"--cubes needs a number for each of --actions {' '.join(map(str, config.actions))}"
        )
    if config.measure:
        result = measure(config)
    elif config.json is not None:
        result = read_json(config.json)
    else:
        raise UserError("--no-measure needs the --json that holds what was measured")
    shown = tables(result)
    show(shown)
    if config.figure is not None:
        draw(result, config.figure)
    if config.docs is not None:
        origin_line = f"{result['machine']}; {result['measured'][:10]}."
        content = "\n\n".join([origin_line, *(markdown(table) for table in shown)])
        config.docs.write_text(replace_block(config.docs.read_text(), config.block, content))
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
