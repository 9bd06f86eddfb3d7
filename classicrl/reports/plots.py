"""Learning curves of finished or running runs, seeds drawn together."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from classicrl.checkpoint import write_atomic
from classicrl.envs.atari import PROTOCOLS
from classicrl.errors import UserError
from classicrl.reports.records import (
    Array,
    Group,
    RunRecord,
    XAxis,
    curve,
    group_runs,
    is_shared_by_seeds,
    on_common_range,
    read_run,
)
from classicrl.reports.statistics import (
    bootstrap_interval,
    interquartile_mean,
    interval_from_std,
)
from classicrl.views.line_chart import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (7.0, 4.8)
DPI = 150

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is too faint for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_NUM_RESAMPLES = 2_000  # of interquartile means, at every point of a curve
_FORMATS = (".png", ".svg", ".pdf")


Centre = Literal["mean", "iqm"]


def line_style(index: int) -> tuple[str, str]:
    """Colour and dashes of a chart's line: seven colours, then the same dashed, then dotted."""
    turn, colour = divmod(index, len(COLOURS))
    return COLOURS[colour], DASHES[turn % len(DASHES)]


def marker_of(index: int) -> str:
    """Of a chart's points, which no dashes tell apart: another at each return of a colour."""
    turn, place = divmod(index, len(MARKERS))
    return MARKERS[(place + turn) % len(MARKERS)]


def plot_runs(
    directories: Sequence[Path],
    out: Path,
    *,
    metric: str = "return",
    x: XAxis = "steps",
    centre: Centre = "mean",
) -> None:
    """Draws run directories into one picture, a panel per environment and protocol.

    Args:
        directories: of the runs.
        out: ``.png``, ``.svg`` or ``.pdf``; its directory must exist.
        metric: see :func:`curve`. ``return`` shows the evaluations too, as points.
        x: steps, frames, or hours of wall time.
        centre: what is drawn of several seeds, their mean or their interquartile mean.

    Raises:
        UserError: if matplotlib is missing, there is nothing to draw or it cannot be written.
    """
    write_figure(read_runs(directories), out, metric=metric, x=x, centre=centre)


def read_runs(directories: Sequence[Path]) -> list[RunRecord]:
    """Those of the directories that are runs; raises UserError as :func:`read_run`."""
    # Of seeds trained side by side, seed* also names the directory that they share.
    alone = [directory for directory in directories if not is_shared_by_seeds(directory)]
    return [read_run(directory) for directory in alone or directories]


def write_figure(
    runs: Sequence[RunRecord],
    out: Path,
    *,
    metric: str = "return",
    x: XAxis = "steps",
    centre: Centre = "mean",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """As :func:`plot_runs`, of runs that were read already; ``metadata`` is written into a PNG."""
    require_plots(out)
    if not runs:
        raise UserError("no run to draw: name one or more run directories")
    panels: dict[tuple[str, str], list[Group]] = {}
    for group in group_runs(runs):
        panels.setdefault((group.runs[0].env_id, group.runs[0].protocol), []).append(group)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = PANEL_INCHES
    figure = new_figure(width * columns, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    labels = list(dict.fromkeys(group.label for groups in panels.values() for group in groups))
    drawn = [
        _draw_panel(axis, groups, labels, env_id, protocol, metric, x, centre)
        for axis, ((env_id, protocol), groups) in zip(axes, panels.items(), strict=False)
    ]
    if not any(drawn):
        raise UserError(f"none of the {len(runs)} runs has a value of {metric} yet: wait for more")
    _caption(figure, panels, metric, columns, centre)
    save_figure(figure, out, metadata)


def require_plots(out: Path) -> None:
    """Refuses a picture that cannot be drawn: matplotlib is missing, or ``out`` is of no format.

    Raises:
        UserError: saying so.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(
            'plots need matplotlib, which is not installed: pip install "classicrl[plots]"'
        ) from error
    if out.suffix not in _FORMATS:
        raise UserError(f"{out} must end in {', '.join(_FORMATS)}")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save_figure(figure: "Figure", out: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a figure, whole or not at all; ``metadata`` into a PNG.

    Raises:
        UserError: if the disk refuses.
    """
    image = io.BytesIO()
    described = dict(metadata) if metadata and out.suffix == ".png" else None
    figure.savefig(image, format=out.suffix[1:], metadata=described)
    try:
        write_atomic(out, image.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}): choose another --out") from error


def _draw_panel(
    axis: "Axes",
    groups: Sequence[Group],
    labels: Sequence[str],
    env_id: str,
    protocol: str,
    metric: str,
    x: XAxis,
    centre: Centre,
) -> bool:
    drawn = False
    for group in groups:
        index = labels.index(group.label)
        name: str | None = group.described
        if metric != "eval" and _draw_lines(axis, group, metric, x, index, name, centre):
            drawn, name = True, None
        if metric in ("return", "eval") and _draw_evaluations(
            axis, group, x, index, name, centre, joined=metric == "eval"
        ):
            drawn = True
    axis.set_title(f"{env_id}, {protocol}", loc="left", fontsize=11, fontweight="bold")
    frames = ", 4 frames each" if env_id.startswith("ALE/") else ""
    steps = f"steps (decisions of the agent{frames})"
    if x == "frames":
        steps = "frames (4 for each decision of the agent)" if frames else "steps"
    axis.set_xlabel("hours of wall time" if x == "hours" else steps)
    axis.set_ylabel({"return": "return of a game", "eval": "return of a game"}.get(metric, metric))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_xlim(left=0)
    if x != "hours":
        axis.xaxis.set_major_formatter(lambda value, _: short_number(value))
    if drawn:
        axis.legend(frameon=False, fontsize=9, loc="best")
    return drawn


def centre_of(values: Array, centre: Centre) -> tuple[Array, Array, Array]:
    """Mean or interquartile mean over seeds, ``[seeds, P] -> [P]``, and its 95% interval.

    The interval is the percentile bootstrap's over seeds, which on one environment is the
    stratified one.
    """
    if centre == "mean":
        return values.mean(axis=0), *bootstrap_interval(values)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(values), (_NUM_RESAMPLES, len(values)))
    # Few seeds make few different draws: each is looked at once.
    draws, counts = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    means = interquartile_mean(values[draws].swapaxes(1, 2)).repeat(counts, axis=0)  # [R, P]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return interquartile_mean(values.T), low, high


def _draw_lines(
    axis: "Axes",
    group: Group,
    metric: str,
    x: XAxis,
    index: int,
    label: str | None,
    centre: Centre,
) -> bool:
    colour, dashes = line_style(index)
    curves = [curve(run, metric, x) for run in group.runs]
    curves = [(xs, ys) for xs, ys in curves if len(xs)]
    if not curves:
        return False
    if len(curves) > 1:
        for xs, ys in curves:
            axis.plot(xs, ys, color=colour, linewidth=0.7, alpha=0.3)
        grid, values = on_common_range(curves)
        if len(grid):
            middle, low, high = centre_of(values, centre)
            axis.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
        else:
            middle = grid
        axis.plot(grid, middle, dashes, color=colour, linewidth=1.8, label=label)
    else:
        xs, ys = curves[0]
        marker = "." if len(xs) == 1 else None  # a line of a single point would be invisible
        axis.plot(xs, ys, dashes, marker=marker, color=colour, linewidth=1.2, label=label)
    return True


def _draw_evaluations(
    axis: "Axes",
    group: Group,
    x: XAxis,
    index: int,
    label: str | None,
    centre: Centre,
    *,
    joined: bool,
) -> bool:
    colour, dashes = line_style(index)
    runs = [run for run in group.runs if len(curve(run, "eval", x)[0])]
    if not runs:
        return False
    curves = [curve(run, "eval", x) for run in runs]
    if len(curves) == 1:
        xs, mean = curves[0]
        table = runs[0].evaluations
        there = np.isfinite(table["mean_return"])
        zero = np.zeros(len(there))
        rows = zip(
            mean,
            table.get("std_return", zero)[there],
            table.get("episodes", zero)[there],
            strict=True,
        )
        ends = [interval_from_std(m, s, int(n)) for m, s, n in rows]
        low, high = np.array(ends).T
    else:
        # Where seeds were evaluated at the same steps, these are the points themselves.
        shortest = min(curves, key=lambda c: c[0][-1])[0]
        xs, values = on_common_range(curves, shortest)
        mean, low, high = centre_of(values, centre) if len(xs) else (xs, xs, xs)
    axis.errorbar(
        xs,
        mean,
        yerr=[np.maximum(mean - low, 0), np.maximum(high - mean, 0)],
        marker=marker_of(index),
        color=colour,
        linestyle=dashes if joined else "none",
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.7,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
        zorder=3,
    )
    return True


def _caption(
    figure: "Figure",
    panels: Mapping[tuple[str, str], Sequence[Group]],
    metric: str,
    columns: int,
    centre: Centre,
) -> None:
    lines = [
        f"Protocol {name}: {protocol_in_words(name)}."
        for name in dict.fromkeys(protocol for _, protocol in panels)
    ]
    for (env_id, protocol), groups in panels.items():
        where = f" on {env_id}, {protocol}" if len(panels) > 1 else ""
        listed = (
            f"{group.label}: {', '.join(str(seed) for seed in sorted(r.seed for r in group.runs))}"
            for group in groups
        )
        lines.append(f"Seeds{where}: {'; '.join(listed)}.")
    several = any(len(group.runs) > 1 for groups in panels.values() for group in groups)
    words = []
    if metric == "return":
        words.append("Lines: games of the training, with its exploration. Points: evaluations")
    if metric == "eval":
        words.append("Points: evaluations")
    if words:
        over = "seeds (over games where there is 1 seed)" if several else "games"
        words[-1] += f", bars their 95% interval over {over}."
    if several and metric != "eval":
        name = "mean" if centre == "mean" else "interquartile mean"
        words.append(
            f"Thick: {name} over seeds, shaded its 95% bootstrap interval; thin: each seed."
        )
    if words:
        lines.append(" ".join(words))
    write_caption(figure, lines, 125 * columns)


def write_caption(figure: "Figure", lines: Sequence[str], characters: int) -> None:
    """Small print under a figure, in lines of so many characters."""
    text = "\n".join(textwrap.fill(line, characters) for line in lines)
    figure.supxlabel(text, fontsize=7.5, color="#444444", x=0.01, ha="left")


def protocol_in_words(name: str) -> str:
    """The rules of a protocol in a line; its name alone if this version does not know it."""
    if name == "minatar":
        return "sticky actions 0.1, difficulty ramps, minimal actions, cut after 10,000 steps"
    if name == "control":
        return "as gymnasium makes it, the deterministic policy"
    if name == "plain":
        return "as gymnasium makes it"
    if name == "qtm":
        return "random cubes, solved with the preset fast; a return is minus the quarter turns"
    if name not in PROTOCOLS:
        return "unknown to this version"
    rules = PROTOCOLS[name]
    sticky = rules.repeat_action_probability
    return ", ".join(
        [
            f"sticky actions {sticky:g}" if sticky else "no sticky actions",
            f"0 to {rules.noop_max - 1} no-ops at the start" if rules.noop_max else "no no-ops",
            "a lost life ends the bootstrapped episode in training"
            if rules.life_loss_terminates
            else "only the end of the game counts",
            *(
                [f"games are cut after {rules.max_frames_per_episode:,} frames"]
                if rules.max_frames_per_episode < PROTOCOLS["classic"].max_frames_per_episode
                else []
            ),
            "scores are of whole games, unclipped",
        ]
    )
