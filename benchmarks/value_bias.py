"""How far the values of VA-learning lie above what they are trained towards, in published runs.

V is trained towards y, so the mean of V + A - y over the replay is that of A. With the advantage
centred by the policy that acted it is 0; with an estimate of that policy it need not be, and a
target passes it on to the step before: mean A / (1 - gamma) where nothing ends.

    python benchmarks/value_bias.py

reads the metrics of the runs of MinAtar in runs/reference/ and writes the table in
docs/va_and_dueling.md. Nothing is trained.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray
from report import Table, markdown, replace_block, show

from classicrl.command_line import exit_with, require_positive
from classicrl.errors import UserError
from classicrl.experiment import read_json
from classicrl.loggers import read_csv

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = ("dqn", "dueling-behaviour", "va-raw", "va-fitted", "va")
USUAL_UNITS = 64  # of mu's layer


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one decision in one environment."""

    reference: Path = ROOT / "runs" / "reference"
    """Published runs, of which those count that bootstrap without double Q and have ..."""
    num_envs: int = 4
    """... so many environments a seed."""
    docs: Path = ROOT / "docs" / "va_and_dueling.md"
    """Markdown file with a pair of markers for the table."""
    last_steps: tuple[int, ...] = (300_000, 600_000, 1_000_000)
    """The rows of metrics.csv up to each of these steps ..."""
    window_steps: int = 50_000
    """... and this many before it are averaged."""


class Bias(NamedTuple):
    """Of one run."""

    seed: int
    max_q: list[float]  # of each window; NaN where the run was shorter
    advantage: list[float]  # batch mean of A(x,a); NaN without two streams
    gamma: float


def main(config: Config) -> dict[tuple[str, str], list[Bias]]:
    """Writes the table; per game and member, the figures of each seed."""
    require_positive(config)
    if not config.docs.exists():
        raise UserError(f"{config.docs} does not exist: name the page by --docs")
    found = read_runs(config)
    if not found:
        raise UserError(f"{config.reference} has no runs of MinAtar: name another by --reference")
    table = bias_table(found, config)
    show([table])
    text = config.docs.read_text()
    config.docs.write_text(replace_block(text, "value_bias", markdown(table)))
    return found


def read_runs(config: Config) -> dict[tuple[str, str], list[Bias]]:
    """Per game and member, what the published runs logged, by seed."""
    found: dict[tuple[str, str], list[Bias]] = defaultdict(list)
    for path in sorted(config.reference.glob("va_minatar-*/*/*/metrics.csv")):
        settings = read_json(path.parent / "config.json")["config"]
        if settings["double"] or settings["num_envs"] != config.num_envs:
            continue
        columns = read_csv(path)

        def means_of(
            name: str, columns: Mapping[str, NDArray[np.float64]] = columns
        ) -> list[float]:
            """In each window."""
            if name not in columns:
                return [float("nan")] * len(config.last_steps)
            steps = columns["step"]
            windows = ((steps > s - config.window_steps) & (steps <= s) for s in config.last_steps)
            return [float(columns[name][w].mean()) if w.any() else float("nan") for w in windows]

        # Runs of earlier versions do not say it.
        units = settings.get("behaviour_hidden", USUAL_UNITS)
        name = settings["member"] + (f", {units} units of mu" if units != USUAL_UNITS else "")
        found[settings["env_id"], name].append(
            Bias(
                seed=settings["seed"],
                max_q=means_of("diagnostics/max_q"),
                advantage=means_of("diagnostics/advantage"),
                gamma=settings["gamma"],
            )
        )
    return found


def bias_table(found: dict[tuple[str, str], list[Bias]], config: Config) -> Table:
    """The figures, means over seeds."""
    rows = []

    def place(of: tuple[str, str]) -> tuple[str, int, str]:
        game, name = of
        return game, MEMBERS.index(name.split(",")[0]), name

    known = [of for of in found if of[1].split(",")[0] in MEMBERS]
    for game, member in sorted(known, key=place):
        runs = found[game, member]
        max_q = np.mean([run.max_q for run in runs], axis=0)
        passed_on = [np.array(run.advantage) / (1.0 - run.gamma) for run in runs]
        advantage = np.mean(passed_on, axis=0)
        figures = [f"{x:.1f}" for pair in zip(max_q, advantage, strict=True) for x in pair]
        cells = ["-" if figure == "nan" else figure for figure in figures]
        rows.append((game, member, str(len(runs)), *cells))
    header = ["game", "member", "seeds"]
    for steps in config.last_steps:
        header += [f"max Q, {steps:,}", f"mean A / (1 - gamma), {steps:,}"]
    return Table(f"over the {config.window_steps:,} steps before", tuple(header), rows)


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
