"""Learning curves of finished or running runs, seeds drawn together.

Reads the run directories of every agent, and those of the peers in ``benchmarks/``.
"""

import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from classicrl.envs.atari import PROTOCOLS
from classicrl.errors import UserError
from classicrl.experiment import read_json
from classicrl.loggers import read_csv
from classicrl.statistics import bootstrap_interval, interval_from_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XAxis = Literal["steps", "hours"]
Array = NDArray[np.float64]

PANEL_INCHES = (7.0, 4.8)
DPI = 150

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is too faint for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GRID_POINTS = 300
_FORMATS = (".png", ".svg", ".pdf")

# Settings that say how a run was watched or where it ran, not what was learned. Runs that differ in
# others are never averaged.
_NOT_OF_THE_METHOD = {
    "preset",
    "env_id",
    "protocol",
    "seed",
    "total_steps",
    "run_dir",
    "overwrite",
    "device",
    "threads",
    "log_period_steps",
    "evaluation_period_steps",
    "evaluation_episodes",
    "final_evaluation_episodes",
    "checkpoint_period_steps",
    "checkpoint_replay",
    # The peers' names of the same.
    "eval_every_steps",
    "eval_episodes",
    "final_eval_episodes",
    "save_every_steps",
}

_NAMED_METRICS = {
    "return": ("charts/episodic_return", "episodic_return"),
    "loss": ("losses/td", "loss"),
}


class RunRecord(NamedTuple):
    """What a run directory says of itself, with its curves."""

    directory: Path
    agent: str
    env_id: str
    protocol: str
    seed: int
    variant: str  # of the agent: its preset, mostly
    settings: dict[str, Any]  # those that make another method of it
    metrics: dict[str, Array]  # column -> [rows]
    evaluations: dict[str, Array]


class Group(NamedTuple):
    """Runs that differ in the seed alone."""

    label: str
    runs: list[RunRecord]

    @property
    def described(self) -> str:
        """Label and number of seeds."""
        return f"{self.label} ({len(self.runs)} seed{'s' if len(self.runs) > 1 else ''})"


def read_run(directory: Path) -> RunRecord:
    """A run directory, finished or not.

    Raises:
        UserError: if it is none, or its files are damaged.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: name a run directory")
    summary = _json_if_there(directory / "summary.json")
    record = _json_if_there(directory / "config.json")
    config = record.get("config", summary.get("config", {}))
    if not isinstance(config, dict):
        raise UserError(f"{directory} has no readable configuration in its config.json")
    known = {**config, **summary}
    agent = known.get("agent") or _agent_of_model(directory / "model.safetensors")
    if not isinstance(agent, str) or not isinstance(known.get("env_id"), str):
        raise UserError(
            f"{directory} is not a run directory: its config.json and summary.json name no agent "
            "and environment (peers write theirs when they are finished)"
        )
    try:
        seed = int(known["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory} does not say which seed it used") from error
    variant = known.get("variant") or config.get("preset") or config.get("torso") or "default"
    return RunRecord(
        directory=directory,
        agent=agent,
        env_id=known["env_id"],
        # The peers' scripts know the classic rules only, and do not say so.
        protocol=str(known.get("protocol", "classic")),
        seed=seed,
        variant=str(variant),
        settings={k: v for k, v in config.items() if k not in _NOT_OF_THE_METHOD},
        metrics=read_curves(directory / "metrics.csv"),
        evaluations=read_curves(directory / "evaluations.csv"),
    )


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _agent_of_model(path: Path) -> str | None:
    """The agent's name, which a run that is not finished says in its model file only."""
    try:
        with safe_open(path, framework="np") as file:
            name: str | None = (file.metadata() or {}).get("agent")
            return name
    except (OSError, SafetensorError):
        return None


def read_curves(path: Path) -> dict[str, Array]:
    """Columns of a CSV file with a column ``step``; no columns where it is missing or empty.

    Raises:
        UserError: if it is damaged.
    """
    if not path.exists() or path.stat().st_size == 0:
        return {}
    try:
        columns = read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of numbers ({error})") from error
    if "step" not in columns or not np.all(np.diff(columns["step"]) > 0):
        raise UserError(f"{path} has no column of increasing steps")
    return columns


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Puts the runs of one method together, in the order in which they were named.

    Two runs are of one method if agent, environment, protocol, variant and all settings agree, but
    for the seed and for what does not touch learning. Where variants of the same name differ in a
    setting, their labels spell it out.

    Raises:
        UserError: if two runs of a group have the same seed: averaging them would count it twice.
    """
    families: dict[tuple[str, ...], dict[str, list[RunRecord]]] = {}
    for run in runs:
        family = families.setdefault((run.agent, run.variant, run.env_id, run.protocol), {})
        family.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    groups = []
    for (agent, variant, *_), family in families.items():
        members = list(family.values())
        for group in members:
            seeds = [run.seed for run in group]
            if len(set(seeds)) < len(seeds):
                twice = [run for run in group if seeds.count(run.seed) > 1][:2]
                raise UserError(
                    f"{twice[0].directory} and {twice[1].directory} are the same seed of the same "
                    "configuration: name one of them"
                )
            words = [f"{agent} {variant}", *_differences(group[0], [m[0] for m in members])]
            groups.append(Group(", ".join(words), group))
    return groups


def _differences(run: RunRecord, others: Sequence[RunRecord]) -> list[str]:
    names = [
        name
        for name in run.settings
        if any(other.settings.get(name) != run.settings[name] for other in others)
    ]
    return [f"{name}={run.settings[name]}" for name in names]


def curve(run: RunRecord, metric: str, x: XAxis) -> tuple[Array, Array]:
    """Abscissae and values of one figure of a run, both ``[rows]``, without rows that lack it.

    Args:
        run: the run.
        metric: ``return``, ``loss``, ``eval`` (scores of evaluations), or a column of
            ``metrics.csv``, with or without the part before its slash.
        x: steps, or hours of wall time.

    Raises:
        UserError: if the run has no such figure; those that it has are named.
    """
    if metric == "eval":
        table, column = run.evaluations, "mean_return"
    else:
        table, column = run.metrics, _column(run, metric)
    if column not in table:
        return np.empty(0), np.empty(0)
    values = table[column]
    there = np.isfinite(values)
    return _abscissae(run, table["step"][there], x), values[there]


def _column(run: RunRecord, metric: str) -> str:
    if not run.metrics:  # it has only begun
        return ""
    names = (*_NAMED_METRICS.get(metric, ()), metric)
    for column in run.metrics:
        if column in names or column.rpartition("/")[2] == metric:
            return column
    columns = [c.rpartition("/")[2] for c in run.metrics if c != "step"]
    raise UserError(
        f"{run.directory} has no metric {metric!r}; it has eval, return, loss, {', '.join(columns)}"
    )


def _abscissae(run: RunRecord, steps: Array, x: XAxis) -> Array:
    if x == "steps":
        return steps
    if not run.metrics:
        return np.full(len(steps), math.nan)
    column = _column(run, "wall_seconds")
    return np.interp(steps, run.metrics["step"], run.metrics[column]) / 3600


def plot_runs(
    directories: Sequence[Path], out: Path, *, metric: str = "return", x: XAxis = "steps"
) -> None:
    """Draws run directories into one picture, a panel per environment and protocol.

    Args:
        directories: of the runs.
        out: ``.png``, ``.svg`` or ``.pdf``; its directory must exist.
        metric: see :func:`curve`. ``return`` shows the evaluations too, as points.
        x: steps, or hours of wall time.

    Raises:
        UserError: if matplotlib is missing, there is nothing to draw or it cannot be written.
    """
    write_figure([read_run(directory) for directory in directories], out, metric=metric, x=x)


def write_figure(
    runs: Sequence[RunRecord],
    out: Path,
    *,
    metric: str = "return",
    x: XAxis = "steps",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """As :func:`plot_runs`, of runs that were read already; ``metadata`` is written into a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            'plots need matplotlib, which is not installed: pip install "classicrl[plots]"'
        ) from error
    if out.suffix not in _FORMATS:
        raise UserError(f"{out} must end in {', '.join(_FORMATS)}")
    if not runs:
        raise UserError("no run to draw: name one or more run directories")
    panels: dict[tuple[str, str], list[Group]] = {}
    for group in group_runs(runs):
        panels.setdefault((group.runs[0].env_id, group.runs[0].protocol), []).append(group)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    labels = list(dict.fromkeys(group.label for groups in panels.values() for group in groups))
    drawn = [
        _draw_panel(axis, groups, labels, env_id, protocol, metric, x)
        for axis, ((env_id, protocol), groups) in zip(axes, panels.items(), strict=False)
    ]
    if not any(drawn):
        raise UserError(f"none of the {len(runs)} runs has a value of {metric} yet: wait for more")
    _caption(figure, panels, metric, columns)
    image = io.BytesIO()
    described = dict(metadata) if metadata and out.suffix == ".png" else None
    figure.savefig(image, format=out.suffix[1:], metadata=described)
    try:
        out.write_bytes(image.getvalue())
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
) -> bool:
    drawn = False
    for group in groups:
        index = labels.index(group.label)
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        name: str | None = group.described
        if metric != "eval" and _draw_lines(axis, group, metric, x, colour, name):
            drawn, name = True, None
        if metric in ("return", "eval") and _draw_evaluations(
            axis, group, x, colour, marker, name, joined=metric == "eval"
        ):
            drawn = True
    axis.set_title(f"{env_id}, {protocol}", loc="left", fontsize=11, fontweight="bold")
    frames = ", 4 frames each" if env_id.startswith("ALE/") else ""
    steps = f"steps (decisions of the agent{frames})"
    axis.set_xlabel(steps if x == "steps" else "hours of wall time")
    axis.set_ylabel({"return": "return of a game", "eval": "return of a game"}.get(metric, metric))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_xlim(left=0)
    if x == "steps":
        axis.xaxis.set_major_formatter(lambda value, _: _short_number(value))
    if drawn:
        axis.legend(frameon=False, fontsize=9, loc="best")
    return drawn


def _draw_lines(
    axis: "Axes", group: Group, metric: str, x: XAxis, colour: str, label: str | None
) -> bool:
    curves = [curve(run, metric, x) for run in group.runs]
    curves = [(xs, ys) for xs, ys in curves if len(xs)]
    if not curves:
        return False
    if len(curves) > 1:
        for xs, ys in curves:
            axis.plot(xs, ys, color=colour, linewidth=0.7, alpha=0.3)
        grid, values = on_common_range(curves)
        if len(grid) > 1:
            low, high = bootstrap_interval(values)
            axis.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(grid, values.mean(axis=0), color=colour, linewidth=1.8, label=label)
    else:
        xs, ys = curves[0]
        # A line of a single point would be invisible.
        axis.plot(xs, ys, "." if len(xs) == 1 else "-", color=colour, linewidth=1.2, label=label)
    return True


def _draw_evaluations(
    axis: "Axes",
    group: Group,
    x: XAxis,
    colour: str,
    marker: str,
    label: str | None,
    *,
    joined: bool,
) -> bool:
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
        mean, (low, high) = values.mean(axis=0), bootstrap_interval(values)
    axis.errorbar(
        xs,
        mean,
        yerr=[np.maximum(mean - low, 0), np.maximum(high - mean, 0)],
        fmt=marker + ("-" if joined else ""),
        color=colour,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.7,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
        zorder=3,
    )
    return True


def on_common_range(
    curves: Sequence[tuple[Array, Array]], grid: Array | None = None
) -> tuple[Array, Array]:
    """Curves of different lengths at the same abscissae, by linear interpolation.

    Args:
        curves: abscissae, increasing, and values of each, ``[rows]`` with its own number of rows.
        grid: the abscissae wanted. Default: 300 across the range that all have.

    Returns:
        Abscissae ``[P]`` within the range that all curves have, and values ``[curves, P]``; P is 0
        where they have none in common.
    """
    low = max(xs[0] for xs, _ in curves)
    high = min(xs[-1] for xs, _ in curves)
    if grid is None:
        grid = np.linspace(low, high, _GRID_POINTS) if low < high else np.array([low])
    grid = grid[(grid >= low) & (grid <= high)]
    return grid, np.stack([np.interp(grid, xs, ys) for xs, ys in curves])


def _caption(
    figure: "Figure",
    panels: Mapping[tuple[str, str], Sequence[Group]],
    metric: str,
    columns: int,
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
        words.append("Thick: mean over seeds, shaded its 95% bootstrap interval; thin: each seed.")
    if words:
        lines.append(" ".join(words))
    text = "\n".join(textwrap.fill(line, 125 * columns) for line in lines)
    figure.supxlabel(text, fontsize=7.5, color="#444444", x=0.01, ha="left")


def protocol_in_words(name: str) -> str:
    """The rules of a protocol in a line; its name alone if this version does not know it."""
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
            "scores are of whole games, unclipped",
        ]
    )


def _short_number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"
