"""Tabular VA-learning beside Q-learning, dueling and RDQ, on random MDPs.

    V(x)   += alpha (y - V(x))
    A(x,a) += alpha (y - V(x) - A(x,a))
    y       = r + g [ V(x') + sum_b pi(b|x') A(x',b) ]    evaluation
    y       = r + g [ V(x') + max_b A(x',b) ]             control

VA-learning is Tang et al. 2023 (arXiv 2305.18161); these tabular forms are our reconstruction. All
methods learn from one trajectory per MDP, at every step size of a grid. Printed and drawn is the
distance of their values from the exact ones.

The run takes some seconds and is not resumed: stopped, it starts anew; finished, the same command
prints its table again. docs/va_tabular.md explains the methods and every column.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from classicrl.command_line import exit_with, not_recorded, parse, require_positive


@dataclasses.dataclass(frozen=True)
class Config:
    """None: the default depends on --env; --run-dir's config.json has what it became."""

    env: Literal["random-mdps", "corridor"] = "random-mdps"
    """corridor: after the one of the dueling paper; its behaviour is the policy it evaluates."""
    task: Literal["evaluation", "control", "both"] | None = None
    """evaluation of a random policy, control, or both (the corridor: evaluation)."""
    behaviour: Literal["uniform", "random", "both"] | None = None
    """random: per state 0.9 Dirichlet(1) + 0.1 uniform. Default both; not for the corridor."""
    mu: Literal["known", "counts"] = "known"
    """What the learners know of the behaviour policy. counts: they estimate it."""
    mdps: int = 20
    """Random MDPs, or seeds in the corridor."""
    steps: int | None = None
    """Of each trajectory. Default: 10,000, in the corridor 50,000."""
    num_states: int = 20
    """Of a random MDP."""
    num_actions: tuple[int, ...] | None = None
    """One measurement each. Default: 5, in the corridor 5 10 20."""
    gamma: float | None = None
    """Discount per step. Default: 0.9, in the corridor 0.99."""
    epsilon: float = 0.001
    """Share of random actions in the corridor."""
    step_sizes: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0)
    """The grid in which each method's best step size is looked for."""
    step_size: float = 0.1
    """The one at which all methods are compared as well; joins the grid."""
    beta: float = 1e-3
    """Penalty of soft RDQ."""
    seed: int = 0
    """Of everything random."""
    checkpoint_period_steps: int | None = None
    """The table averages errors over steps this far apart. Default: a tenth of the steps."""
    curve_period_steps: int | None = None
    """Between points of the curves. Default: a fortieth of the steps."""
    run_dir: Path | None = not_recorded(None)
    """Default: runs/va_tabular/<env>/seed<seed>."""
    overwrite: bool = not_recorded(False)
    """Measure again over what an earlier run left in the run directory."""


def resolve(config: Config) -> Config:
    """Fills in what depends on other fields."""
    corridor = config.env == "corridor"
    steps = config.steps or (50_000 if corridor else 10_000)
    return dataclasses.replace(
        config,
        task=config.task or ("evaluation" if corridor else "both"),
        behaviour=config.behaviour or (None if corridor else "both"),
        steps=steps,
        num_actions=config.num_actions or ((5, 10, 20) if corridor else (5,)),
        gamma=config.gamma or (0.99 if corridor else 0.9),
        checkpoint_period_steps=config.checkpoint_period_steps or max(1, steps // 10),
        curve_period_steps=config.curve_period_steps or max(1, steps // 40),
    )


if __name__ == "__main__":  # before numpy and torch are imported, so that --help answers at once
    command_line = parse({"default": Config()}, "default", __doc__ or "")

import csv
import io
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from classicrl.algorithms.tabular import (
    MDP,
    METHODS,
    Floats,
    Learners,
    Method,
    Trajectory,
    corridor,
    epsilon_greedy,
    learn,
    optimal_values,
    policy_values,
    random_mdps,
    random_policies,
    sample_trajectory,
    uniform_policies,
)
from classicrl.checkpoint import write_atomic
from classicrl.console import TrainingProgress, duration_in_words
from classicrl.errors import UserError
from classicrl.experiment import Run, as_json, versions
from classicrl.machine import describe, require_memory
from classicrl.reports.statistics import bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGENT = "va_tabular"
MEASURES = {
    "random-mdps": "mean |q - exact| over all pairs",
    "corridor": "sum of (q - exact)^2 over all pairs that are not terminal",
}
DRAWN_BELOW = 1e9
_REPEATED = {"random-mdps": "MDPs", "corridor": "seeds"}
# Okabe and Ito's colours and a grey; methods that nearly coincide differ in their dashes.
STYLES = {
    "q_learning": ("#000000", "-"),
    "va_raw": ("#D55E00", "-"),
    "va_centred": ("#CC79A7", "-"),
    "va_projected": ("#E69F00", "--"),
    "uniform_dueling": ("#0072B2", "-"),
    "behaviour_dueling": ("#56B4E9", "--"),
    "hard_rdq": ("#009E73", "-"),
    "soft_rdq": ("#999999", ":"),
}


class Cell(NamedTuple):
    """One measurement: a column of the table."""

    task: str
    behaviour: str
    num_actions: int

    @property
    def label(self) -> str:
        behaviour = "on policy" if self.behaviour == "policy" else f"mu {self.behaviour}"
        return f"{self.task}, {behaviour}, {self.num_actions} actions"


class Problem(NamedTuple):
    """What is learnt from: M MDPs, how they are acted in, what was met."""

    mdp: MDP
    behaviour: Floats  # [M, X, A]
    trajectory: Trajectory


class Measured(NamedTuple):
    """Errors of K methods at S step sizes."""

    cell: Cell
    steps: list[int]  # [C]
    errors: Floats  # [C, M, K, S]


class Score(NamedTuple):
    """Mean error over checkpoints and MDPs, with the 95% interval over MDPs."""

    method: str
    step_size: float
    error: float
    low: float
    high: float
    best: bool


def main(config: Config) -> dict[str, Any]:
    """Measures, or reports a finished run; returns its summary."""
    check(config)
    directory = config.run_dir or Path(f"runs/{AGENT}/{config.env}/seed{config.seed}")
    with Run(directory, overwrite=config.overwrite) as run:
        command = command_of(config)
        config = run.configure(config, resolve)
        summary = run.summary
        if summary is None:
            summary = measure(config, run, command)
        print(printed_table(summary))
        print(
            f"{AGENT} on {summary['env']}, {summary['config']['mdps']} trajectories of "
            f"{summary['config']['steps']:,} steps, in "
            f"{duration_in_words(summary['wall_seconds'])}\n"
            f"everything is in {directory}: {', '.join(summary['files'])}"
        )
        return summary


def check(config: Config) -> None:
    """Refuses what cannot be measured, before anything is written.

    Raises:
        UserError: naming the flag.
    """
    require_positive(
        config, may_be_zero={"seed", "beta", "epsilon"}, at_most_one={"gamma", "epsilon"}
    )
    if config.gamma == 1:
        raise UserError("--gamma must be below 1: without an end, values would be infinite")
    if not config.step_sizes:
        raise UserError("--step-sizes needs one step size or more")
    for step_size in config.step_sizes:
        if not (math.isfinite(step_size) and step_size > 0):
            raise UserError(f"--step-sizes must be positive and finite, got {step_size}")
    fewest = 5 if config.env == "corridor" else 1
    for num_actions in config.num_actions or ():
        if num_actions < fewest:
            raise UserError(f"--num-actions must be at least {fewest}, got {num_actions}")
    if config.env == "corridor" and config.task not in (None, "evaluation"):
        raise UserError("--env corridor is for --task evaluation only")
    if config.env == "corridor" and config.behaviour is not None:
        raise UserError("--env corridor is acted in by the policy it evaluates: leave --behaviour")
    resolved = resolve(config)
    assert resolved.checkpoint_period_steps is not None and resolved.steps is not None
    if resolved.checkpoint_period_steps > resolved.steps:
        raise UserError("--checkpoint-period-steps must be at most --steps")


def measure(config: Config, run: Run, command: str) -> dict[str, Any]:
    """All cells; writes what the run leaves behind and returns its summary."""
    began = time.monotonic()
    assert config.steps is not None
    cells = list(cells_of(config))
    step_sizes = sorted({*config.step_sizes, config.step_size})
    methods = methods_of(config)
    require_memory(
        max(nbytes_of(config, cell, len(methods) * len(step_sizes)) for cell in cells),
        torch.device("cpu"),
        what="MDPs, tables and trajectories",
        flag="--mdps",
    )
    measured: list[Measured] = []
    problems: dict[tuple[str, int], Problem] = {}
    with TrainingProgress(config.steps * len(cells)) as progress:
        for number, cell in enumerate(cells):
            if (cell.behaviour, cell.num_actions) not in problems:
                problems.clear()  # one is kept, for the other task: the path is the same
                problems[cell.behaviour, cell.num_actions] = make_problem(config, cell)
            problem = problems[cell.behaviour, cell.num_actions]
            done = number * config.steps
            measured.append(measure_cell(config, cell, problem, step_sizes, progress, done))

    scores = {m.cell: scores_of(config, m, step_sizes) for m in measured}
    write_table(run.directory / "table.csv", scores)
    write_curves(run.directory / "curves.csv", config, measured, scores, step_sizes)
    files = ["table.csv", "curves.csv", "summary.json"]
    if draw(run.directory / "curves.png", config, measured, scores, step_sizes):
        files.append("curves.png")
    else:
        print('no picture: matplotlib is not installed (pip install "classicrl[plots]")')
    summary = {
        "agent": AGENT,
        "env": config.env,
        "seed": config.seed,
        "measure": MEASURES[config.env],
        "table": [
            {**cell._asdict(), "label": cell.label, "methods": summarised(config, scores[cell])}
            for cell in cells
        ],
        "config": as_json(config),
        "command": command,
        "wall_seconds": time.monotonic() - began,
        "machine": describe(torch.device("cpu")),
        "versions": versions(),
        "files": files,
    }
    run.finish(summary)
    return summary


def cells_of(config: Config) -> Iterator[Cell]:
    """Cells that share a trajectory follow each other."""
    assert config.num_actions is not None
    tasks = ("evaluation", "control") if config.task == "both" else (config.task or "",)
    if config.env == "corridor":
        behaviours: tuple[str, ...] = ("policy",)
    elif config.behaviour == "both":
        behaviours = ("uniform", "random")
    else:
        behaviours = (config.behaviour or "",)
    for num_actions in config.num_actions:
        for behaviour in behaviours:
            for task in tasks:
                yield Cell(task, behaviour, num_actions)


def methods_of(config: Config) -> dict[str, Method]:
    soft = dataclasses.replace(METHODS["soft_rdq"], beta=config.beta)
    return {**METHODS, "soft_rdq": soft}


def nbytes_of(config: Config, cell: Cell, num_learners: int) -> int:
    """About what one cell takes at its peak."""
    assert config.steps is not None
    states = len(corridor().terminal[0]) if config.env == "corridor" else config.num_states
    pairs = states * cell.num_actions
    return 8 * config.mdps * (3 * pairs * states + 4 * pairs * num_learners + 8 * config.steps)


# -- Measuring ---------------------------------------------------------------------------------


def make_problem(config: Config, cell: Cell) -> Problem:
    assert config.gamma is not None and config.steps is not None
    if config.env == "corridor":
        mdp = corridor(config.mdps, num_actions=cell.num_actions, gamma=config.gamma)
        # The copies are equal: one is solved.
        one = corridor(1, num_actions=cell.num_actions, gamma=config.gamma)
        behaviour = epsilon_greedy(optimal_values(one), config.epsilon)
        behaviour = np.repeat(behaviour, config.mdps, axis=0)
    else:
        size = (config.mdps, config.num_states, cell.num_actions)
        mdp = random_mdps(
            config.mdps,
            num_states=config.num_states,
            num_actions=cell.num_actions,
            gamma=config.gamma,
            seed=config.seed,
        )
        behaviour = (
            uniform_policies(*size)
            if cell.behaviour == "uniform"
            else random_policies(*size, uniform_share=0.1, seed=config.seed)
        )
    trajectory = sample_trajectory(mdp, behaviour, config.steps, seed=config.seed)
    return Problem(mdp, behaviour, trajectory)


def measure_cell(
    config: Config,
    cell: Cell,
    problem: Problem,
    step_sizes: Sequence[float],
    progress: TrainingProgress,
    done_steps: int,
) -> Measured:
    assert config.checkpoint_period_steps is not None and config.curve_period_steps is not None
    methods = methods_of(config)
    mdp, behaviour, trajectory = problem
    policy: Floats | None = None
    if config.env == "corridor":
        policy = behaviour
    elif cell.task == "evaluation":
        policy = random_policies(*mdp.reward.shape, seed=config.seed)
    exact = optimal_values(mdp) if policy is None else policy_values(mdp, policy)
    steps, errors = [], []
    for step, q in learn(
        mdp,
        trajectory,
        Learners.grid(list(methods.values()), step_sizes),
        behaviour=behaviour if config.mu == "known" else None,
        policy=policy,
        period_steps=math.gcd(config.checkpoint_period_steps, config.curve_period_steps),
    ):
        error = error_of(config.env, q, exact, mdp)
        steps.append(step)
        errors.append(error.reshape(len(error), len(methods), len(step_sizes)))
        if step:
            progress.update(done_steps + step, {})
    return Measured(cell, steps, np.stack(errors))


def error_of(env: str, q: Floats, exact: Floats, mdp: MDP) -> Floats:
    """The distance of q, ``[M, X, A, L]``, from exact values, ``[M, X, A]``, as :data:`MEASURES`
    says; ``[M, L]``."""
    with np.errstate(over="ignore", invalid="ignore"):  # of learners that diverge
        difference = q - exact[..., None]
        error: Floats
        if env == "corridor":
            error = (difference**2 * mdp.live[:, :, None, None]).sum(axis=(1, 2))
        else:
            error = np.abs(difference).mean(axis=(1, 2))
    return np.where(np.isnan(error), np.inf, error)


# -- Reporting ---------------------------------------------------------------------------------


def scores_of(config: Config, measured: Measured, step_sizes: Sequence[float]) -> list[Score]:
    """Every method at every step size; its best one is that with the least mean error."""
    assert config.checkpoint_period_steps is not None
    at = [s > 0 and s % config.checkpoint_period_steps == 0 for s in measured.steps]
    with np.errstate(over="ignore", invalid="ignore"):
        per_mdp = measured.errors[at].mean(axis=0)  # [M, K, S]
        mean = per_mdp.mean(axis=0)
        low, high = bootstrap_interval(per_mdp)
    best = mean.argmin(axis=-1)
    return [
        Score(name, size, mean[k, s], low[k, s], high[k, s], bool(best[k] == s))
        for k, name in enumerate(METHODS)
        for s, size in enumerate(step_sizes)
    ]


def summarised(config: Config, scores: Sequence[Score]) -> dict[str, dict[str, float | None]]:
    """Per method the best score and the one at the common step size; None where it diverged."""
    best = {s.method: s for s in scores if s.best}
    common = {s.method: s for s in scores if s.step_size == config.step_size}
    return {
        name: {
            "best_step_size": best[name].step_size,
            "error": _finite(best[name].error),
            "low": _finite(best[name].low),
            "high": _finite(best[name].high),
            f"error_at_{config.step_size:g}": _finite(common[name].error),
        }
        for name in METHODS
    }


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def printed_table(summary: dict[str, Any]) -> str:
    """In Markdown: a row per method, a column per cell."""
    cells = summary["table"]
    common = f"{summary['config']['step_size']:g}"
    over = _REPEATED[summary["env"]]
    lines = [
        f"{summary['measure']}, averaged over checkpoints and {over}, at the best step size "
        f"+- half the 95% interval over {over} (best step size; error at {common})",
        "",
        "| | " + " | ".join(cell["label"] for cell in cells) + " |",
        "|" + "---|" * (len(cells) + 1),
    ]
    for name, method in METHODS.items():
        row = [method.label]
        for cell in cells:
            m = cell["methods"][name]
            half = None if m["low"] is None else (m["high"] - m["low"]) / 2
            row.append(
                f"{_short(m['error'])} +- {_short(half, 2)} "
                f"({m['best_step_size']:g}; {_short(m[f'error_at_{common}'])})"
            )
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _short(value: float | None, digits: int = 3) -> str:
    return "diverged" if value is None else f"{value:#.{digits}g}".rstrip(".")


def command_of(config: Config) -> str:
    """What makes the same run elsewhere: the flags that are not at their defaults."""
    words = ["python", f"agents/{AGENT}.py"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.metadata.get("not_recorded", False):
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{field.name.replace('_', '-')}", *(str(v) for v in values)]
    return shlex.join(words)


def write_table(path: Path, scores: dict[Cell, list[Score]]) -> None:
    """The whole grid of step sizes."""
    rows = [
        [*cell, s.method, f"{s.step_size:g}", *map(_cell, (s.error, s.low, s.high)), int(s.best)]
        for cell, row in scores.items()
        for s in row
    ]
    header = [*Cell._fields, "method", "step_size", "error", "low", "high", "best"]
    _write_csv(path, header, rows)


class Curve(NamedTuple):
    """A method's error against steps at one step size; ``[C]`` each."""

    method: str
    step_size: float
    steps: list[int]
    mean: Floats
    low: Floats
    high: Floats


def curves_of(
    config: Config,
    measured: Measured,
    scores: Sequence[Score],
    step_sizes: Sequence[float],
    choice: str,
) -> list[Curve]:
    """Of every method, at its best step size (``best``) or at the common one (``equal``)."""
    assert config.curve_period_steps is not None
    at = [s % config.curve_period_steps == 0 for s in measured.steps]
    steps = [s for s, kept in zip(measured.steps, at, strict=True) if kept]
    best = {s.method: s.step_size for s in scores if s.best}
    curves = []
    for k, name in enumerate(METHODS):
        size = best[name] if choice == "best" else config.step_size
        errors = measured.errors[at][:, :, k, step_sizes.index(size)].T  # [M, C]
        with np.errstate(over="ignore", invalid="ignore"):
            curves.append(
                Curve(name, size, steps, errors.mean(axis=0), *bootstrap_interval(errors))
            )
    return curves


def write_curves(
    path: Path,
    config: Config,
    measured: Sequence[Measured],
    scores: dict[Cell, list[Score]],
    step_sizes: Sequence[float],
) -> None:
    rows = [
        [*m.cell, choice, curve.method, f"{curve.step_size:g}", step, *map(_cell, figures)]
        for m in measured
        for choice in ("equal", "best")
        for curve in curves_of(config, m, scores[m.cell], step_sizes, choice)
        for step, *figures in zip(curve.steps, curve.mean, curve.low, curve.high, strict=True)
    ]
    header = [*Cell._fields, "choice", "method", "step_size", "step", "error", "low", "high"]
    _write_csv(path, header, rows)


def _cell(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def draw(
    path: Path,
    config: Config,
    measured: Sequence[Measured],
    scores: dict[Cell, list[Score]],
    step_sizes: Sequence[float],
) -> bool:
    """A panel per cell and choice of the step size; False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    width = 4.2 * len(measured)
    figure = Figure(figsize=(max(width, 8.0), 7.6), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(measured), squeeze=False)
    for column, m in enumerate(measured):
        for row, choice in enumerate(("equal", "best")):
            curves = curves_of(config, m, scores[m.cell], step_sizes, choice)
            draw_panel(axes[row, column], curves, choice)
        axes[0, column].set_title(m.cell.label, loc="left", fontsize=10, fontweight="bold")
        axes[1, column].set_xlabel("steps")
    axes[0, 0].set_ylabel(f"error, every step size {config.step_size:g}")
    axes[1, 0].set_ylabel("error, each at its best step size")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    note = (
        f"Error: {MEASURES[config.env]}. Mean and 95% bootstrap interval over {config.mdps} "
        f"{_REPEATED[config.env]}, seed {config.seed}; mu {config.mu}."
    )
    figure.suptitle(note, fontsize=8, color="#444444", x=0.01, ha="left")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())
    return True


def draw_panel(axis: "Axes", curves: Sequence[Curve], choice: str) -> None:
    for curve in curves:
        colour, dashes = STYLES[curve.method]
        label = METHODS[curve.method].label
        # What diverged leaves the picture; an axis to its end would show nothing else.
        mean, low, high = (
            np.where(line < DRAWN_BELOW, line, np.nan)
            for line in (curve.mean, curve.low, curve.high)
        )
        axis.plot(curve.steps, mean, dashes, color=colour, linewidth=1.4, label=label)
        axis.fill_between(curve.steps, low, high, color=colour, alpha=0.1, linewidth=0)
    axis.set_yscale("log")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if choice == "best":
        sizes = ", ".join(f"{curve.step_size:g}" for curve in curves)
        axis.set_title(f"step sizes {sizes}", loc="left", fontsize=7.5, color="#444444")


if __name__ == "__main__":
    exit_with(main, command_line)
