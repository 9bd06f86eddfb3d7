"""How short and how fast random cubes are solved: a file per machine and settings, a table, a plot.

    python benchmarks/cube_solver.py --name fast-my-machine --note "nothing else ran"
    python benchmarks/cube_solver.py

The first solves the cubes of `qstar_cube3_solve.py --random 100 --seed 7` with the network of the
package and writes each when it is solved, in the format of `--json`, to
runs/reference/qstar_cube3_solve/NAME.json; the same command goes on with those that are missing.
Both write the table of all files into docs/qstar.md and draw docs/qstar_solve.png.

On a machine that has other work too, `--threads 1 --clock cpu` tells the seconds that the processor
worked for this program.
"""

import dataclasses
import math
import re
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from report import Table, markdown, replace_block, show

from classicrl.command_line import exit_with
from classicrl.cube_solver import CubeSolver, load_network, shipped_network
from classicrl.domains.cube3 import Cube3
from classicrl.errors import UserError
from classicrl.experiment import read_json, versions, write_json
from classicrl.machine import choose_device, describe, set_threads
from classicrl.reports.plots import line_style
from classicrl.solve_cubes import SolveSettings

ROOT = Path(__file__).resolve().parent.parent
BLOCK = "cube_solver"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which cubes, and how they are solved. Without a name nothing is: the page is brought up to
    date."""

    name: str | None = None
    """Of the result's file."""
    note: str = ""
    """On the circumstances, such as other work on the machine; stands in the table."""
    random: int = 100
    """Cubes. Another number gives other cubes, also at their beginning."""
    seed: int = 7
    """Of the cubes."""
    first: int | None = None
    """Solve only so many of them, and the rest another time."""
    actions: Literal[12, 156, 1884] = 12
    """Of the network."""
    network: Path | None = None
    """A model file. Default: the one in the package."""
    preset: Literal["fast", "best"] = "fast"
    """As of qstar_cube3_solve.py."""
    batch_size: int | None = None
    """The same."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    clock: Literal["wall", "cpu"] = "wall"
    """Of the table. Both are measured."""
    folder: Path = ROOT / "runs" / "reference" / "qstar_cube3_solve"
    """Of results."""
    docs: Path = ROOT / "docs" / "qstar.md"
    """Page with the table."""
    figure: Path = ROOT / "docs" / "qstar_solve.png"
    """Plot."""


def command_of(config: Config) -> str:
    """What solves the same cubes by the script."""
    words = [f"--actions {config.actions}"] if config.actions != 12 else []
    words += [f"--network {relative(config.network)}"] if config.network is not None else []
    words += [f"--preset {config.preset}"] if config.preset != "fast" else []
    words += [f"--batch-size {config.batch_size}"] if config.batch_size is not None else []
    words += ["--threads 1"] if config.threads == 1 else []
    return " ".join([*words, f"--random {config.random} --seed {config.seed}"])


def relative(path: Path) -> Path:
    """As seen from the repository, where it lies in it."""
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def measure(config: Config, name: str) -> None:
    """Solves the cubes that are missing in the result's file."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or name == "index":
        raise UserError(f"--name {name} must be of small letters, digits and dashes")
    threads = set_threads(config.threads)
    device = choose_device(config.device)
    index = read_json(config.folder / "index.json")
    about = {
        "machine": describe(device),
        "command": command_of(config),
        "clock": config.clock,
        "note": config.note,
        "commit": versions().get("commit"),
    }
    known = index.get(name, about)
    if (known["machine"], known["command"]) != (about["machine"], about["command"]):
        raise UserError(f"{name} holds cubes of another machine or command: choose another --name")
    path = config.folder / f"{name}.json"
    cubes: list[dict[str, Any]] = read_json(path)["cubes"] if path.exists() else []
    starts = Cube3(12).random_states(config.random, torch.Generator().manual_seed(config.seed))
    solver = CubeSolver(
        load_network(config.network or shipped_network(config.actions), device),
        # On a machine that has other work, time on the clock is no limit that means anything.
        SolveSettings(
            preset=config.preset,
            batch_size=config.batch_size,
            max_seconds=math.inf if config.clock == "cpu" else 600.0,
        ),
    )
    print(f"{name}: {len(cubes)} of {config.random} cubes are there, {threads} thread(s)")
    for start in starts[len(cubes) : config.first]:
        began = time.process_time()
        solution = solver.solve(start.to(device))
        cpu_seconds = round(time.process_time() - began, 4)
        cubes.append({**solution.as_json(), "cpu_seconds": cpu_seconds})
        write_json(path, {"cubes": cubes})
        print(f"{len(cubes):4d}  {solution.moves}  [{len(solution.turns)}, {cpu_seconds} s]")
    write_json(config.folder / "index.json", {**index, name: about})


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What is known of each file of the index, with its ``cubes``.

    Raises:
        UserError: a file that the index does not name, or the other way round.
    """
    index = read_json(folder / "index.json")
    files = {path.stem for path in folder.glob("*.json")} - {"index"}
    if files != set(index):
        raise UserError(f"{folder}/index.json and the files differ: {sorted(files ^ set(index))}")
    return {name: {**about, **read_json(folder / f"{name}.json")} for name, about in index.items()}


def seconds_of(result: dict[str, Any]) -> list[float]:
    """Of each cube, by the clock of the result."""
    key = "cpu_seconds" if result["clock"] == "cpu" else "seconds"
    return [float(cube[key]) for cube in result["cubes"]]


def table(found: dict[str, dict[str, Any]]) -> Table:
    """A row for each file."""
    rows = []
    for name, result in found.items():
        cubes = result["cubes"]
        lengths = [cube["length_qtm"] for cube in cubes if cube["solved"]]
        seconds = seconds_of(result)
        nodes = statistics.median(cube["nodes_generated"] for cube in cubes)
        clock = " of processor" if result["clock"] == "cpu" else ""
        rows.append(
            (
                name,
                f"{result['machine']}{'; ' if result['note'] else ''}{result['note']}",
                f"`{result['command']}`",
                f"{len(lengths)} of {len(cubes)}",
                f"{statistics.mean(lengths):.2f} ({min(lengths)}-{max(lengths)})"
                if lengths
                else "-",
                f"{statistics.median(seconds):.2f} ({max(seconds):.2f}){clock}",
                f"{nodes:,.0f}",
            )
        )
    header = (
        "data", "machine", "command", "solved", "quarter turns, mean",
        "seconds, median (most)", "nodes, median",
    )  # fmt: skip
    return Table("Random cubes, 100 to 200 random quarter turns each", header, rows)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Shares of the cubes below each length, number of seconds and number of nodes."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter
    except ImportError as error:
        raise UserError('plots need matplotlib: pip install "classicrl[plots]"') from error
    figure = Figure(figsize=(12, 5.0), layout="constrained")
    axes = figure.subplots(1, 3)
    for index, (name, result) in enumerate(found.items()):
        cubes = result["cubes"]
        never = float("inf")  # what stays unsolved is never below
        lengths = [cube["length_qtm"] if cube["solved"] else never for cube in cubes]
        nodes = [float(cube["nodes_generated"]) for cube in cubes]
        colour, dashes = line_style(index)
        for ax, values in zip(axes, (lengths, seconds_of(result), nodes), strict=True):
            values = sorted(values)
            shares = [(i + 1) / len(values) for i in range(len(values))]
            ax.step(
                [values[0], *values], [0, *shares], dashes, color=colour, where="post", label=name
            )
    for ax, label in zip(axes, ("quarter turns", "seconds", "nodes generated"), strict=True):
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
        ax.set_ylim(0, 1)
    for ax in axes[1:]:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("share of the cubes that took at most so many")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=130, metadata={"Software": ""})


def main(config: Config) -> None:
    """Solves what is asked for, then brings the page and the plot up to date."""
    if config.random < 1 or (config.first is not None and config.first < 1):
        raise UserError("--random and --first must be at least 1")
    if config.name is not None:
        measure(config, config.name)
    found = results(config.folder)
    show([table(found)])
    text = config.docs.read_text()
    config.docs.write_text(replace_block(text, BLOCK, markdown(table(found))))
    draw(found, config.figure)
    print(f"wrote {config.docs} and {config.figure}")


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
