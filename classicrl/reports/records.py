"""Run directories as data: settings, curves, and which of them are seeds of one method.

Reads the run directories of every agent, and those of the peers in ``benchmarks/``.
"""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from classicrl.errors import UserError
from classicrl.experiment import MODEL_FILE, read_json_if_there
from classicrl.loggers import read_csv

XAxis = Literal["steps", "frames", "hours"]
Array = NDArray[np.float64]

_GRID_POINTS = 300

# Settings that say how a run was watched or where it ran, not what was learned; all that scripts
# mark with may_change are among them. Runs that differ in others are never averaged.
_NOT_OF_THE_METHOD = {
    "preset",
    "env_id",
    "protocol",
    "seed",
    "num_seeds",
    "total_steps",
    "run_dir",
    "overwrite",
    "device",
    "threads",
    "compile",
    "track",
    "log_period_steps",
    "evaluation_period_steps",
    "evaluation_episodes",
    "final_evaluation_episodes",
    "checkpoint_period_steps",
    "checkpoint_replay",
    "video",
    "cuda_graph",
    "tf32",
    "log_period_updates",
    "evaluation_period_updates",
    "evaluation_cubes",
    "final_evaluation_cubes",
    "evaluation_width",
    "checkpoint_period_updates",
    "report_period_steps",
    # The peers' names of the same.
    "eval_every_steps",
    "eval_episodes",
    "final_eval_episodes",
    "save_every_steps",
}
# Settings that older runs do not record, with the defaults that are what those runs did.
_NEWER_DEFAULTS = {("init_from", None), ("function", "q")}

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
    summary = read_json_if_there(directory / "summary.json")
    record = read_json_if_there(directory / "config.json")
    config = record.get("config", summary.get("config", {}))
    if not isinstance(config, dict):
        raise UserError(f"{directory} has no readable configuration in its config.json")
    if is_shared_by_seeds(directory):
        raise UserError(
            f"{directory} holds what seeds that were trained side by side share: name the "
            "directory of a seed, beside it"
        )
    # A run that is not finished says some things in its model file only.
    known = {**card_of_model(directory / MODEL_FILE), **config, **summary}
    agent = known.get("agent")
    if not isinstance(agent, str) or not isinstance(known.get("env_id"), str):
        seeds = {path.parent for path in directory.glob("seed[0-9]*/config.json")}
        if seeds:
            names = " ".join(str(path) for path in sorted(seeds, key=lambda p: (len(p.name), p)))
            raise UserError(f"{directory} is not a run directory, but holds some: name {names}")
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
        settings={
            name: value
            for name, value in config.items()
            # Runs of versions that had no such setting are as those that have its default.
            if name not in _NOT_OF_THE_METHOD and (name, value) not in _NEWER_DEFAULTS
        },
        metrics=read_curves(directory / "metrics.csv"),
        evaluations=read_curves(directory / "evaluations.csv"),
    )


def is_shared_by_seeds(directory: Path) -> bool:
    """Whether a directory holds what seeds trained side by side share, and no curve of its own."""
    config = read_json_if_there(directory / "config.json").get("config", {})
    return isinstance(config, dict) and config.get("num_seeds", 1) > 1


def card_of_model(path: Path) -> dict[str, str]:
    """Agent and protocol as the model file states them; nothing where there is none."""
    try:
        with safe_open(path, framework="np") as file:
            card = file.metadata() or {}
    except (OSError, SafetensorError):
        return {}
    return {name: card[name] for name in ("agent", "protocol") if name in card}


def read_curves(path: Path) -> dict[str, Array]:
    """Columns of a CSV file with a column ``step``; no columns where it is missing or empty.

    Raises:
        UserError: if it is damaged.
    """
    if not path.exists() or path.stat().st_size == 0:
        return {}
    try:
        columns = read_csv(path)
    except (OSError, ValueError, csv.Error) as error:
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
        metric: ``return``, ``loss``, ``eval`` (scores of evaluations), another column of
            ``evaluations.csv``, such as ``rooms``, or one of ``metrics.csv``, with or without the
            part before its slash.
        x: steps; frames, of which Atari's emulator shows four a step and others one; or hours of
            wall time.

    Raises:
        UserError: if the run has no such figure; those that it has are named.
    """
    if metric == "eval":
        table, column = run.evaluations, "mean_return"
        if table and column not in table:
            names = ", ".join(name for name in table if name != "step")
            raise UserError(f"{run.directory} has evaluations without a return; they have {names}")
    elif metric in run.evaluations:
        table, column = run.evaluations, metric
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
    if x == "frames":
        return steps * (4 if run.env_id.startswith("ALE/") else 1)
    if not run.metrics:
        return np.full(len(steps), math.nan)
    column = _column(run, "wall_seconds")
    return np.interp(steps, run.metrics["step"], run.metrics[column]) / 3600


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
