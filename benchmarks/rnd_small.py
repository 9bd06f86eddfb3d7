"""What the intrinsic reward is worth on environments with known answers: PPO with and without RND.

Trains agents/ppo_rnd_small.py with many seeds on the environments of
classicrl/envs/exploration.py, with and without the bonus, and keeps the share of recent episodes
that succeeded against the steps. The command continues where it was stopped.

    python benchmarks/rnd_small.py

writes curves.csv and summary.json to runs/reference/ppo_rnd_small/, the picture docs/rnd_small.png
and the table in docs/rnd.md.
"""

import csv
import dataclasses
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from report import Table, markdown, replace_block, show

from classicrl.checkpoint import write_atomic
from classicrl.command_line import exit_with, require_positive
from classicrl.errors import UserError
from classicrl.experiment import read_json, write_json
from classicrl.loggers import read_csv

ROOT = Path(__file__).resolve().parents[1]
# Steps to train for, and those within which the bonus has to solve it.
BUDGETS = {"ChainLock40": 150_000, "ChainLock60": 200_000, "KeyReturn5": 200_000}
BONUSES = ("rnd", "none")


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one decision in one environment."""

    num_seeds: int = 10
    """Seeds 0 to this, exclusive."""
    runs: Path = ROOT / "runs" / "ppo_rnd_small"
    """Where the runs are kept while they are made."""
    reference: Path = ROOT / "runs" / "reference" / "ppo_rnd_small"
    """Where their curves and the summary go."""
    picture: Path = ROOT / "docs" / "rnd_small.png"
    """The picture."""
    docs: Path = ROOT / "docs" / "rnd.md"
    """Markdown file with a pair of markers for the table."""


def main(config: Config) -> dict[str, Any]:
    """Trains what is missing, then writes everything."""
    require_positive(config)
    if not config.docs.exists():
        raise UserError(f"{config.docs} does not exist: name the page by --docs")
    script = _script()
    rows: list[tuple[str, str, int, int, float]] = []
    results: list[dict[str, Any]] = []
    machine, software = "", {}
    for name, total_steps in BUDGETS.items():
        for bonus in BONUSES:
            for seed in range(config.num_seeds):
                directory = config.runs / f"{name}-{bonus}" / f"seed{seed}"
                summary = script.main(
                    script.Config(
                        env_id=f"classicrl/{name}-v0",
                        bonus=bonus,
                        seed=seed,
                        total_steps=total_steps,
                        run_dir=directory,
                    )
                )
                machine, software = summary["machine"], summary["versions"]
                metrics = read_csv(directory / "metrics.csv")
                curve = zip(metrics["step"], metrics["charts/rewarded_episodes"], strict=True)
                rows += [(name, bonus, seed, int(step), share) for step, share in curve]
                results.append(
                    {
                        "environment": name,
                        "bonus": bonus,
                        "seed": seed,
                        "total_steps": summary["total_steps"],
                        "solved_at_step": summary["rewarded_at_step"],
                        "evaluated_return": summary["eval"]["mean_return"],
                        "wall_seconds": summary["wall_seconds"],
                    }
                )
    settings = read_json(directory / "config.json")["config"]
    for name in ("env_id", "bonus", "seed", "total_steps", "run_dir"):
        settings.pop(name, None)
    summary = {
        "command": "python benchmarks/rnd_small.py",
        "config": settings,
        "machine": machine,
        "versions": software,
        "results": results,
    }
    config.reference.mkdir(parents=True, exist_ok=True)
    write_json(config.reference / "summary.json", summary)
    write_atomic(config.reference / "curves.csv", _csv(rows).encode())
    table = summary_table(results)
    show([table])
    draw(rows, config.picture)
    try:
        text = config.docs.read_text()
    except OSError as error:
        raise UserError(f"{config.docs} cannot be read ({error.strerror})") from error
    config.docs.write_text(replace_block(text, "rnd_small", markdown(table)))
    return summary


def _script() -> Any:
    spec = importlib.util.spec_from_file_location(
        "ppo_rnd_small", ROOT / "agents" / "ppo_rnd_small.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ppo_rnd_small"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def summary_table(results: list[dict[str, Any]]) -> Table:
    """How many seeds solved each environment, and when."""
    rows = []
    for name, budget in BUDGETS.items():
        for bonus in BONUSES:
            own = [r for r in results if (r["environment"], r["bonus"]) == (name, bonus)]
            steps = [r["solved_at_step"] for r in own if r["solved_at_step"] is not None]
            within = f"{np.median(steps):,.0f} ({min(steps):,}-{max(steps):,})" if steps else "-"
            rows.append(
                (
                    f"{name}, {'PPO + RND' if bonus == 'rnd' else 'PPO'}",
                    f"{budget:,}",
                    f"{len(steps)} of {len(own)}",
                    within,
                    f"{np.mean([r['evaluated_return'] for r in own]):.2f}",
                )
            )
    return Table(
        "Solved: at least 90 of the last 100 episodes succeeded",
        ("", "steps", "solved by", "at step: median (range)", "return after"),
        rows,
        ("The return is over 100 episodes of every seed's last network; 1 is a success.",),
    )


def _csv(rows: list[tuple[str, str, int, int, float]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("environment", "bonus", "seed", "step", "success_share"))
    for *key, share in rows:
        writer.writerow((*key, "" if np.isnan(share) else f"{share:.4g}"))
    return text.getvalue()


def draw(rows: list[tuple[str, str, int, int, float]], path: Path) -> None:
    """A panel per environment; a thin line per seed, a thick one for their mean."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('pictures need matplotlib: pip install "classicrl[plots]"') from error
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(BUDGETS), sharey=True)
    for axes, name in zip(panels, BUDGETS, strict=True):
        for bonus, colour in zip(BONUSES, ("#0072B2", "#D55E00"), strict=True):
            curves: dict[int, list[tuple[int, float]]] = {}
            for environment, kind, seed, step, share in rows:
                if (environment, kind) == (name, bonus):
                    curves.setdefault(seed, []).append((step, 0.0 if np.isnan(share) else share))
            lines = np.array(list(curves.values()))  # [seeds, rows, 2]
            for line in lines:
                axes.plot(line[:, 0] / 1e3, line[:, 1], color=colour, alpha=0.3, linewidth=0.8)
            label = f"PPO + RND ({len(lines)} seeds)" if bonus == "rnd" else f"PPO ({len(lines)})"
            mean = lines.mean(axis=0)
            axes.plot(mean[:, 0] / 1e3, mean[:, 1], color=colour, linewidth=2, label=label)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("thousand steps, all environments together")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("share of the last 100 episodes\nthat succeeded")
    panels[0].legend(loc="center right", fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
