"""How well and how smoothly agents of continuous actions learn, from published runs.

Reads the runs of one environment and length in the index of published results, ours and peers', and
writes a picture of their evaluations and three tables: returns, the figures of smoothness at a
matched return, and the same at the end.

    python benchmarks/control_comparison.py

writes docs/symphony_hopper.png and the tables in docs/symphony.md.

The matched return is the highest that every run has reached in some evaluation, so the least of the
runs' best ones. Of each run the evaluation counts whose return is nearest to it, of equals the
earliest. No other choice is made, and the rule was written before the runs were looked at.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray
from report import Table, markdown, replace_block, show

from classicrl.command_line import exit_with, require_positive
from classicrl.errors import UserError
from classicrl.experiment import read_json
from classicrl.reports.plots import line_style
from classicrl.reports.records import read_run
from classicrl.reports.reference import read_index
from classicrl.reports.statistics import bootstrap_interval

ROOT = Path(__file__).resolve().parents[1]
Array = NDArray[np.float64]

FIGURES = {
    "mean_steps": ("steps of an episode", 0),
    "action_magnitude": ("magnitude", 2),
    "action_saturation": ("saturated", 3),
    "action_rate": ("rate, 1/s", 1),
    "action_jerk": ("jerk, 1/s^2", 0),
    "energy_joules": ("energy, J", 0),
    "cost_of_transport": ("cost of transport", 2),
}
"""Columns of evaluations.csv: what they are called in the tables, and their decimals."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one action."""

    env_id: str = "Hopper-v5"
    """Environment of the runs."""
    total_steps: int = 50_000
    """Their length."""
    index: Path = ROOT / "runs" / "reference" / "index.json"
    """Of the published results."""
    picture: Path = ROOT / "docs" / "symphony_hopper.png"
    """The picture."""
    docs: Path = ROOT / "docs" / "symphony.md"
    """Markdown file with a pair of markers for the tables."""


class Learned(NamedTuple):
    """The evaluations of one run."""

    agent: str  # with its variant
    seed: int
    step: Array  # [E]
    score: Array  # [E], mean return of an evaluation's episodes
    figures: dict[str, Array]  # of FIGURES, [E] each; NaN where nothing is known
    num_updates: int


def read_runs(config: Config) -> dict[str, list[Learned]]:
    """The published runs of the environment and length, by agent, ours first.

    Raises:
        UserError: if there are none, or one has no evaluations.
    """
    agents: dict[str, list[Learned]] = {}
    for entry in sorted(read_index(config.index), key=lambda e: (e.weights is None, e.path)):
        if (entry.env_id, entry.total_steps) != (config.env_id, config.total_steps):
            continue
        directory = config.index.parent / entry.path
        table = read_run(directory).evaluations
        if not {"step", "mean_return"} <= set(table):
            raise UserError(f"{directory} has no evaluations.csv to compare")
        summary = read_json(directory / "summary.json")
        unknown = np.full(len(table["step"]), math.nan)
        label = f"{entry.agent} {entry.variant}"
        agents.setdefault(label, []).append(
            Learned(
                label,
                entry.seed,
                table["step"],
                table["mean_return"],
                {name: table.get(name, unknown) for name in FIGURES},
                int(summary["num_updates"]),
            )
        )
    if not agents:
        raise UserError(
            f"{config.index} has no run of {config.total_steps:,} steps on {config.env_id}"
        )
    return agents


# -- What is compared --------------------------------------------------------------------------


def matched_return(runs: Sequence[Learned]) -> float:
    """The highest return that every run has reached in some evaluation."""
    return min(float(run.score.max()) for run in runs)


def nearest_evaluation(run: Learned, score: float) -> int:
    """Which evaluation's return is nearest to a score; the earliest of equals."""
    return int(np.abs(run.score - score).argmin())


def returns_table(agents: Mapping[str, Sequence[Learned]], config: Config) -> Table:
    """Returns at the end, and over the whole of the training."""
    rows = []
    for agent, runs in agents.items():
        final = [float(run.score[-1]) for run in runs]
        low, high = (float(end) for end in bootstrap_interval(final))
        rows.append(
            (
                agent,
                f"{runs[0].num_updates:,}",
                ", ".join(f"{run.score[-1]:,.0f} ({run.seed})" for run in runs),
                f"{np.mean(final):,.0f}" + (f" [{low:,.0f}, {high:,.0f}]" if len(runs) > 1 else ""),
                f"{np.mean([run.score.mean() for run in runs]):,.0f}",
                f"{np.mean([run.score.max() for run in runs]):,.0f}",
            )
        )
    return Table(
        f"{config.env_id}, {config.total_steps:,} steps",
        (
            "agent",
            "updates",
            "return at the end (seed)",
            "mean over seeds",
            "all evaluations",
            "best evaluation",
        ),
        rows,
        (
            "Brackets: the 95% interval of the mean, bootstrapped over so few seeds that it is "
            "hardly more than their range. *All evaluations* is the mean over the whole training, "
            "*best evaluation* the mean over seeds of each one's highest.",
        ),
    )


def smoothness_table(
    agents: Mapping[str, Sequence[Learned]], title: str, score: float | None
) -> Table:
    """The figures of smoothness, averaged over seeds, with their range.

    Args:
        agents: runs by agent.
        title: of the table.
        score: each run's evaluation nearest to it counts; None for the last.
    """
    rows = []
    for agent, runs in agents.items():
        chosen = [(r, -1 if score is None else nearest_evaluation(r, score)) for r in runs]
        cells = [agent, _spread([run.step[i] for run, i in chosen], 0)]
        cells.append(_spread([run.score[i] for run, i in chosen], 0))
        for name, (_, digits) in FIGURES.items():
            cells.append(_spread([run.figures[name][i] for run, i in chosen], digits))
        rows.append(tuple(cells))
    header = ("agent", "at step", "return", *(title for title, _ in FIGURES.values()))
    return Table(title, header, rows)


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and range: `12 (11-15)`."""
    if not np.isfinite(values).all():
        return "-"
    mean, low, high = (f"{f(values):,.{digits}f}" for f in (np.mean, np.min, np.max))
    return mean if low == high else f"{mean} ({low}-{high})"


def draw(agents: Mapping[str, Sequence[Learned]], config: Config, score: float) -> None:
    """Returns against steps, and action rate against return.

    A thin line per seed, a thick one for their mean and a band between the least and the greatest.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('pictures need matplotlib: pip install "classicrl[plots]"') from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    learning, smoothness = figure.subplots(1, 2)
    for index, (agent, runs) in enumerate(agents.items()):
        colour, dashes = line_style(index)
        steps = runs[0].step / 1e3
        for run in runs:
            learning.plot(run.step / 1e3, run.score, color=colour, alpha=0.35, linewidth=0.8)
            rate = run.figures["action_rate"]
            smoothness.plot(run.score, rate, "o", color=colour, markersize=4, alpha=0.7)
        scores = np.stack([run.score for run in runs])  # [seeds, E]
        low, high = scores.min(axis=0), scores.max(axis=0)
        learning.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        label = f"{agent} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
        learning.plot(steps, scores.mean(axis=0), dashes, color=colour, linewidth=2, label=label)
        smoothness.plot([], [], "o", color=colour, markersize=4, label=agent)
    learning.set_title(config.env_id, loc="left", fontsize=10)
    learning.set_xlabel("thousand steps")
    learning.set_ylabel("return of evaluations: mean, range over seeds")
    learning.legend(loc="upper left", fontsize=8, frameon=False)
    smoothness.axvline(score, color="#888888", linewidth=0.8, linestyle=":")
    smoothness.set_title("each evaluation; dotted: the matched return", loc="left", fontsize=10)
    smoothness.set_xlabel("return")
    smoothness.set_ylabel("action rate, 1/s")
    smoothness.set_yscale("log")
    for axes in (learning, smoothness):
        axes.grid(alpha=0.25)
    figure.savefig(config.picture, dpi=150)


def main(config: Config) -> list[Table]:
    """Reads, compares, writes; returns the tables."""
    require_positive(config)
    agents = read_runs(config)
    every_run = [run for runs in agents.values() for run in runs]
    if len({tuple(run.step) for run in every_run}) > 1:
        raise UserError("the runs were not evaluated at the same steps: they cannot be compared")
    score = matched_return(every_run)
    tables = [
        returns_table(agents, config),
        smoothness_table(agents, f"Smoothness where the return is nearest to {score:,.0f}", score),
        smoothness_table(agents, f"Smoothness at {config.total_steps:,} steps", None),
    ]
    show(tables)
    try:
        text = config.docs.read_text()
        blocks = "\n\n".join(markdown(table) for table in tables)
        text = replace_block(text, "control_comparison", blocks)
        draw(agents, config, score)
        config.docs.write_text(text)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read or written ({error.strerror})") from error
    print(f"written: {config.docs}, {config.picture}")
    return tables


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
