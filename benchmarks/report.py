"""What the benchmarks share: how figures are summed up, kept as JSON and shown as tables.

Run as a program it writes the tables of all results in `benchmarks/results/` into
`docs/performance.md`, so that no figure there is typed by hand:

    python benchmarks/report.py

A results file belongs to one machine. It is a JSON object with one key per benchmark that was run
there (`atari_dqn`, `replay`, ...), each written by the program of that name.
"""

import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from rich.console import Console
from rich.table import Table as RichTable

from classicrl.command_line import exit_with
from classicrl.errors import UserError
from classicrl.experiment import read_json, versions, write_json
from classicrl.machine import describe

_HERE = Path(__file__).resolve().parent


class Table(NamedTuple):
    """A table of text; the first column is aligned left, the others right."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()


# -- Measuring ---------------------------------------------------------------------------------


class Timing(NamedTuple):
    """What a job took, all threads of this process together."""

    wall_seconds: float
    cpu_seconds: float
    page_faults: int  # of memory that the system hands out for the first time, or once more


def timed(job: Callable[[], object], device: torch.device) -> Timing:
    """Does a job; on a GPU until all that it has set off there is done."""
    _wait_for(device)
    faults, cpu, wall = _page_faults(), time.process_time(), time.perf_counter()
    job()
    _wait_for(device)
    return Timing(
        wall_seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
        page_faults=_page_faults() - faults,
    )


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternately(
    jobs: Sequence[Callable[[], object]], device: torch.device, repeats: int
) -> list[list[Timing]]:
    """Does all jobs `repeats` times, in turn, every other time in the opposite order.

    What else the machine is doing then meets all of them alike. Returns the timings per job.
    """
    timings: list[list[Timing]] = [[] for _ in jobs]
    for repeat in range(repeats):
        order = range(len(jobs)) if repeat % 2 == 0 else reversed(range(len(jobs)))
        for job in order:
            timings[job].append(timed(jobs[job], device))
    return timings


def by_kind(timings: Sequence[Timing]) -> dict[str, list[float]]:
    """Timings as they are kept in JSON: a list per kind of figure, a number per repeat."""
    return {
        name: list(values)
        for name, values in zip(Timing._fields, zip(*timings, strict=True), strict=True)
    }


def matrix_product_gflops(device: torch.device, size: int, repeats: int = 5) -> float:
    """10^9 float32 operations per second in the best of some square matrix products."""
    a, b = torch.rand(2, size, size, device=device)
    timings = [timed(lambda: a @ b, device).wall_seconds for _ in range(repeats + 1)]
    return 2 * size**3 / min(timings[1:]) / 1e9


# -- Summing up --------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median and range: `12 (11-15)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def ratios(own: Sequence[float], others: Sequence[float]) -> list[float]:
    """Quotients of what was measured in the same repeat, so next to each other in time."""
    return [a / b for a, b in zip(own, others, strict=True)]


# -- Keeping -----------------------------------------------------------------------------------


def origin(config: Any, device: torch.device) -> dict[str, Any]:
    """Where and with what a result was made."""
    software = versions()
    for package in ("stable-baselines3", "opencv-python-headless"):
        try:
            software[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            software[package] = "not installed"
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {
        "machine": describe(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": software,
        "config": {name: value for name, value in plain.items() if name != "json"},
    }


def keep(path: Path, benchmark: str, result: dict[str, Any]) -> None:
    """Puts one benchmark's result into a results file; those of others in it stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, (read_json(path) if path.exists() else {}) | {benchmark: result})


# -- Showing -----------------------------------------------------------------------------------


def show(tables: Iterable[Table]) -> None:
    """Prints tables."""
    # Where the output is no terminal, rich would take 80 columns and fold the cells.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for table in tables:
        shown = RichTable(*table.header, title=table.title, title_justify="left")
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        for note in table.notes:
            console.print(note, highlight=False, soft_wrap=True)
        console.print()


def markdown(table: Table) -> str:
    """The table as Markdown, its title as a paragraph before it."""
    ruler = ("---", *("---:" for _ in table.header[1:]))
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.header, ruler, *table.rows)]
    notes = "\n\n".join(table.notes)
    return f"**{table.title}**\n\n" + "\n".join(lines) + (f"\n\n{notes}" if notes else "")


def replace_block(text: str, name: str, content: str) -> str:
    """Puts `content` between `<!-- benchmark:name -->` and `<!-- /benchmark:name -->`.

    Raises:
        UserError: if the text has no such pair of markers.
    """
    begin, end = f"<!-- benchmark:{name} -->", f"<!-- /benchmark:{name} -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise UserError(f"no '{begin}' with an '{end}' after it: put them where the tables belong")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


@dataclasses.dataclass(frozen=True)
class Config:
    """Writes the tables of all results into the documentation."""

    results: Path = _HERE / "results"
    """Folder of results, one JSON file per machine."""
    docs: Path = _HERE.parent / "docs" / "performance.md"
    """Markdown file with a pair of markers per benchmark."""


def main(config: Config) -> None:
    """Fills every pair of markers with the tables of every machine that has that benchmark."""
    import atari_dqn
    import beside_deepxube
    import busy_machine
    import compile as compiled  # the name of a builtin
    import linear_layers
    import ppo_rnd_atari
    import replay
    import search_rate
    import seeds_together
    import symphony
    import update_profile
    import value_family

    try:
        text = config.docs.read_text()
    except OSError as error:
        raise UserError(f"{config.docs} cannot be read ({error.strerror})") from error
    results = {path.stem: read_json(path) for path in sorted(config.results.glob("*.json"))}
    for benchmark in (
        atari_dqn,
        replay,
        linear_layers,
        update_profile,
        value_family,
        seeds_together,
        ppo_rnd_atari,
        search_rate,
        beside_deepxube,
        symphony,
        busy_machine,
        compiled,
    ):
        name = benchmark.__name__
        blocks = [
            "\n\n".join([f"### {machine}", _origin_line(result[name]), *tables])
            for machine, result in results.items()
            if name in result
            for tables in [[markdown(table) for table in benchmark.tables(result[name])]]
        ]
        text = replace_block(text, name, "\n\n".join(blocks) or "Not measured yet.")
    config.docs.write_text(text)
    print(f"{config.docs}: {len(results)} machines ({', '.join(results) or 'none'})")


def _origin_line(result: dict[str, Any]) -> str:
    software = result["versions"]
    packages = ", ".join(
        f"{name} {software[name]}" for name in ("torch", "stable-baselines3", "ale-py", "numpy")
    )
    return f"{result['machine']}; on {result['device']}; {packages}; {result['measured'][:10]}."


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config))
