"""Methods over several environments and seeds in one picture (Agarwal et al. 2021).

A score is a run's last evaluation. Returns of several environments have no common scale: each
environment's are then divided by the span between the lowest and the highest run drawn, which the
caption says; the same runs with other company get other numbers.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from classicrl.errors import UserError
from classicrl.reports.plots import (
    COLOURS,
    MARKERS,
    PANEL_INCHES,
    line_style,
    new_figure,
    protocol_in_words,
    read_runs,
    require_plots,
    save_figure,
    write_caption,
)
from classicrl.reports.records import Array, RunRecord, curve, group_runs
from classicrl.reports.statistics import (
    Estimate,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["profile", "improvement", "iqm"]

_NUM_THRESHOLDS = 201


class Scores(NamedTuple):
    """Of several methods on the same tasks.

    Attributes:
        by_method: label -> task -> ``[seeds]``, on one scale.
        seeds: label -> task -> which.
        protocols: of the tasks.
        scaled: whether the scale is not that of the returns.
    """

    by_method: dict[str, dict[str, Array]]
    seeds: dict[str, dict[str, list[int]]]
    protocols: list[str]
    scaled: bool


def plot_methods(directories: Sequence[Path], out: Path, kind: Kind) -> None:
    """Draws how methods compare, each over its environments and seeds.

    Args:
        directories: run directories; every method needs runs on every environment.
        out: ``.png``, ``.svg`` or ``.pdf``; its directory must exist.
        kind: ``profile``: share of runs above every score. ``improvement``: how likely a run of one
            method beats one of another. ``iqm``: interquartile means.

    Raises:
        UserError: if matplotlib is missing, a method lacks an environment, a run has no evaluation
            yet, two methods are needed, or the picture cannot be written.
    """
    require_plots(out)
    scores = scores_of(read_runs(directories))
    names = list(scores.by_method)
    if kind == "improvement" and len(names) < 2:
        raise UserError(f"--kind improvement compares methods, and there is only {names[0]}")
    rows = {"improvement": len(names) * (len(names) - 1) // 2, "iqm": len(names)}
    height = PANEL_INCHES[1] if kind == "profile" else 2.0 + 0.45 * rows[kind]
    # Names of pairs of methods are long.
    figure = new_figure(PANEL_INCHES[0] + (3.0 if kind == "improvement" else 0.0), height)
    axis = figure.subplots()
    what = "scaled return" if scores.scaled else "return"
    if kind == "profile":
        _draw_profiles(axis, scores, what)
    elif kind == "iqm":
        _draw_estimates(axis, interquartile_means(scores))
        axis.set_xlabel(f"interquartile mean of the {what} of runs")
    else:
        _draw_estimates(axis, improvements(scores), colours=1)
        axis.axvline(0.5, color="#888888", linewidth=0.8, zorder=0)
        axis.set_xlim(0, 1)
        axis.set_xlabel("probability that the first scores above the second")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    write_caption(figure, _caption(scores), 175 if kind == "improvement" else 125)
    save_figure(figure, out)


def scores_of(runs: Sequence[RunRecord]) -> Scores:
    """Last evaluations, by method and task, on one scale.

    Raises:
        UserError: as :func:`plot_methods`.
    """
    returns: dict[str, dict[str, Array]] = {}
    seeds: dict[str, dict[str, list[int]]] = {}
    for group in group_runs(runs):
        task = f"{group.runs[0].env_id}, {group.runs[0].protocol}"
        last = []
        for run in group.runs:
            _, values = curve(run, "eval", "steps")
            if not len(values):
                raise UserError(f"{run.directory} has no evaluation yet: wait for one")
            last.append(float(values[-1]))
        returns.setdefault(group.label, {})[task] = np.array(last)
        seeds.setdefault(group.label, {})[task] = sorted(run.seed for run in group.runs)
    if not returns:
        raise UserError("no run to draw: name one or more run directories")
    tasks = list(dict.fromkeys(task for of_method in returns.values() for task in of_method))
    for label, of_method in returns.items():
        missing = [task for task in tasks if task not in of_method]
        if missing:
            raise UserError(
                f"{label} has no run on {missing[0]}: methods are compared on the same environments"
            )
    scaled = len(tasks) > 1
    if scaled:
        for task in tasks:
            everyone = np.concatenate([of_method[task] for of_method in returns.values()])
            low, span = everyone.min(), max(float(np.ptp(everyone)), 1e-12)
            for of_method in returns.values():
                of_method[task] = (of_method[task] - low) / span
    protocols = list(dict.fromkeys(run.protocol for run in runs))
    return Scores(returns, seeds, protocols, scaled)


def interquartile_means(scores: Scores) -> dict[str, Estimate]:
    """Of each method, every task with the same weight."""
    estimates = {}
    for label, by_task in scores.by_method.items():
        each = [np.full(len(s), 1 / len(s)) for s in by_task.values()]
        statistic = partial(interquartile_mean, weights=np.concatenate(each))
        value = float(statistic(np.concatenate(list(by_task.values()))))
        estimates[label] = Estimate(value, *stratified_bootstrap(by_task, statistic))
    return estimates


def improvements(scores: Scores) -> dict[str, Estimate]:
    """Of every pair of methods, in the order in which they were named."""
    return {
        f"{x} > {y}": probability_of_improvement(scores.by_method[x], scores.by_method[y])
        for x, y in itertools.combinations(scores.by_method, 2)
    }


def _draw_profiles(axis: "Axes", scores: Scores, what: str) -> None:
    everyone = np.concatenate(
        [s for by_task in scores.by_method.values() for s in by_task.values()]
    )
    margin = 0.02 * max(float(np.ptp(everyone)), 1e-9)
    thresholds = np.linspace(everyone.min() - margin, everyone.max() + margin, _NUM_THRESHOLDS)
    for index, (label, by_task) in enumerate(scores.by_method.items()):
        colour, dashes = line_style(index)
        profile = performance_profile(by_task, thresholds)
        axis.fill_between(
            thresholds, profile.low, profile.high, color=colour, alpha=0.18, linewidth=0
        )
        axis.step(
            thresholds, profile.share, color=colour, linestyle=dashes, linewidth=1.8, label=label
        )
    axis.set_xlabel(f"{what} of a run, t")
    axis.set_ylabel("share of runs above t")
    axis.set_ylim(-0.02, 1.02)
    axis.legend(frameon=False, fontsize=9, loc="best")


def _draw_estimates(
    axis: "Axes", estimates: dict[str, Estimate], colours: int = len(COLOURS)
) -> None:
    for row, (value, low, high) in enumerate(estimates.values()):
        colour, marker = COLOURS[row % colours], MARKERS[row % colours]
        axis.plot([low, high], [row, row], color=colour, linewidth=6, alpha=0.3)
        axis.plot([value], [row], marker, color=colour, markersize=8, clip_on=False, zorder=3)
    axis.set_yticks(range(len(estimates)), list(estimates), fontsize=8)
    axis.set_ylim(len(estimates) - 0.4, -0.6)  # the first on top


def _caption(scores: Scores) -> list[str]:
    lines = [f"Protocol {name}: {protocol_in_words(name)}." for name in scores.protocols]
    for label, by_task in scores.seeds.items():
        listed = "; ".join(f"{task}: {', '.join(map(str, s))}" for task, s in by_task.items())
        lines.append(f"Seeds of {label} on {listed}.")
    words = "A run's score is its last evaluation"
    if scores.scaled:
        words += ", scaled on each environment so that 0 and 1 are the lowest and highest run here"
    lines.append(f"{words}. Shaded: 95% intervals, stratified bootstrap over seeds.")
    return lines
