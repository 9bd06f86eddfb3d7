"""The tabular script: what it measures and leaves, what it says again, what it refuses."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from classicrl.algorithms.tabular import (
    METHODS,
    Learners,
    learn,
    optimal_values,
    random_mdps,
    random_policies,
    sample_trajectory,
)
from classicrl.command_line import exit_with
from classicrl.errors import UserError

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "runs" / "reference" / "va_tabular"
TINY: dict[str, Any] = {
    "mdps": 3,
    "steps": 60,
    "num_states": 4,
    "num_actions": (2,),
    "step_sizes": (0.3, 0.7),
}
FILES = {"config.json", "summary.json", "table.csv", "curves.csv", "curves.png", ".lock"}


def load() -> ModuleType:
    name = "va_tabular"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "agents" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
    return sys.modules[name]


script = load()


def run(directory: Path, **settings: Any) -> dict[str, Any]:
    config = script.Config(**{**TINY, "run_dir": directory, **settings})
    summary: dict[str, Any] = script.main(config)
    return summary


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_what_a_run_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert [(cell["task"], cell["behaviour"]) for cell in summary["table"]] == [
        ("evaluation", "uniform"),
        ("control", "uniform"),
        ("evaluation", "random"),
        ("control", "random"),
    ]
    table = rows_of(tmp_path / "run" / "table.csv")
    assert len(table) == 4 * len(METHODS) * 3  # the common step size, 0.1, has joined the grid
    assert sum(int(row["best"]) for row in table) == 4 * len(METHODS)
    curves = rows_of(tmp_path / "run" / "curves.csv")
    assert len(curves) == 4 * len(METHODS) * 2 * (60 + 1)
    assert {row["step_size"] for row in curves if row["choice"] == "equal"} == {"0.1"}
    printed = capsys.readouterr().out
    assert all(f"| {method.label} |" in printed for method in METHODS.values())
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_figures_are_those_of_the_library(tmp_path: Path) -> None:
    summary = run(tmp_path, task="control", behaviour="random", mu="counts", seed=4)
    mdp = random_mdps(3, num_states=4, num_actions=2, seed=4)
    mu = random_policies(3, 4, 2, uniform_share=0.1, seed=4)
    path = sample_trajectory(mdp, mu, 60, seed=4)
    learners = Learners.grid([METHODS["va_centred"]], [0.1, 0.3, 0.7])
    exact = optimal_values(mdp)[..., None]
    errors = [
        np.abs(q - exact).mean(axis=(0, 1, 2))
        for step, q in learn(mdp, path, learners, behaviour=None, policy=None, period_steps=6)
        if step
    ]
    mean = np.mean(errors, axis=0)
    found = summary["table"][0]["methods"]["va_centred"]
    assert found["error"] == pytest.approx(mean.min(), rel=1e-4)
    assert found["best_step_size"] == [0.1, 0.3, 0.7][int(mean.argmin())]
    assert found["error_at_0.1"] == pytest.approx(mean[0], rel=1e-4)
    assert found["low"] <= found["error"] <= found["high"]


def test_a_finished_run_is_printed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path, task="control")
    said = capsys.readouterr().out.partition("averaged")[2]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}
    assert run(tmp_path, task="control") == first
    assert capsys.readouterr().out.partition("averaged")[2] == said
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with pytest.raises(UserError, match="seed is 1, was 0"):
        run(tmp_path, task="control", seed=1)
    assert run(tmp_path, task="control", seed=1, overwrite=True)["seed"] == 1


def test_the_corridor(tmp_path: Path) -> None:
    summary = run(
        tmp_path, env="corridor", num_states=20, num_actions=(5, 7), mdps=2, steps=80, gamma=0.9
    )
    assert [cell["num_actions"] for cell in summary["table"]] == [5, 7]
    assert {cell["behaviour"] for cell in summary["table"]} == {"policy"}
    assert summary["command"] == (
        "python agents/va_tabular.py --env corridor --mdps 2 --steps 80 --num-actions 5 7 "
        "--gamma 0.9 --step-sizes 0.3 0.7"
    )


def test_a_learner_that_diverges_is_reported_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(tmp_path, step_sizes=(0.2, 1e9), step_size=1e9, task="control", steps=300)
    for method in summary["table"][0]["methods"].values():
        assert method["best_step_size"] == 0.2 and method["error"] > 0
    assert summary["table"][0]["methods"]["hard_rdq"]["error_at_1e+09"] is None
    assert "(0.2; diverged)" in capsys.readouterr().out


def test_without_matplotlib_there_is_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    summary = run(tmp_path, task="control", behaviour="uniform")
    assert "curves.png" not in summary["files"] and not (tmp_path / "curves.png").exists()
    assert "classicrl[plots]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mdps": 0}, "--mdps must be positive"),
        ({"steps": -5}, "--steps must be positive"),
        ({"gamma": 1.0}, "--gamma must be below 1"),
        ({"gamma": 1.5}, "--gamma must be at most 1"),
        ({"step_sizes": ()}, "--step-sizes needs one"),
        ({"step_sizes": (0.1, -0.1)}, "--step-sizes must be positive"),
        ({"step_size": float("nan")}, "--step-size must be a finite number"),
        ({"num_actions": (3, 0)}, "--num-actions must be at least 1"),
        ({"env": "corridor", "num_actions": (4,)}, "--num-actions must be at least 5"),
        ({"env": "corridor", "num_actions": None, "task": "control"}, "evaluation only"),
        ({"env": "corridor", "num_actions": None, "behaviour": "both"}, "leave --behaviour"),
        ({"checkpoint_period_steps": 61}, "at most --steps"),
        ({"mdps": 10**9}, "lower --mdps"),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    settings: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = script.Config(**{**TINY, "run_dir": tmp_path / "run", **settings})
    with pytest.raises(SystemExit) as caught:
        exit_with(script.main, config)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


NAMES = ("q_learning", "uniform_dueling", "behaviour_dueling", "va_centred", "va_raw", "hard_rdq")
PROTOTYPE = {
    ("evaluation", "uniform"): (0.307, 0.244, 0.244, 0.322, 0.332, 0.236),
    ("evaluation", "random"): (0.392, 0.316, 0.309, 0.396, 0.457, 0.320),
    ("control", "uniform"): (1.40, 1.10, 1.10, 1.17, 1.22, 0.98),
    ("control", "random"): (1.36, 1.24, 1.26, 1.29, 1.01, 1.34),
}
"""Errors at the best step size of an earlier program, one MDP at a time, on other MDPs."""
HALF_WIDTHS = {"evaluation": 0.07, "control": 0.16}
"""Of its widest 95% intervals over 20 MDPs."""


def test_the_published_table_agrees_with_an_earlier_program() -> None:
    path = PUBLISHED / "random-mdps" / "seed0" / "summary.json"
    found = {}
    for column in json.loads(path.read_text())["table"]:
        errors = [column["methods"][name]["error"] for name in NAMES]
        found[column["task"], column["behaviour"]] = np.array(errors)
        at_equal_step_size = {n: m["error_at_0.1"] for n, m in column["methods"].items()}
        q_learning = at_equal_step_size.pop("q_learning")
        assert q_learning > 1.5 * max(at_equal_step_size.values())
    assert found.keys() == PROTOTYPE.keys()
    for (task, behaviour), errors in found.items():
        difference = np.abs(errors - np.array(PROTOTYPE[task, behaviour]))
        assert (difference < 1.5 * HALF_WIDTHS[task]).all(), (task, behaviour, difference)


PROTOTYPE_AT_A_TENTH = {
    ("evaluation", "uniform"): (0.52, 0.24, 0.24, 0.32, 0.33, 0.24),
    ("evaluation", "random"): (0.64, 0.38, 0.34, 0.40, 0.46, 0.37),
    ("control", "uniform"): (6.9, 2.5, 2.5, 2.5, 2.1, 2.2),
    ("control", "random"): (7.4, 3.4, 2.9, 2.9, 1.7, 3.0),
}
"""The same at step size 0.1."""
T_OF_SIX = 2.571  # 97.5% point of Student's t with 5 degrees of freedom


@pytest.mark.parametrize(
    ("figure", "earlier"), [("error", PROTOTYPE), ("error_at_0.1", PROTOTYPE_AT_A_TENTH)]
)
def test_the_earlier_program_could_be_another_draw_of_mdps(
    figure: str, earlier: dict[tuple[str, str], tuple[float, ...]]
) -> None:
    """Each of its figures lies where six draws of 20 MDPs let a seventh be expected."""
    draws: dict[tuple[str, str], list[list[float]]] = {}
    for seed in range(6):
        summary = json.loads(
            (PUBLISHED / "random-mdps" / f"seed{seed}" / "summary.json").read_text()
        )
        assert summary["seed"] == seed
        for column in summary["table"]:
            errors = [column["methods"][name][figure] for name in NAMES]
            draws.setdefault((column["task"], column["behaviour"]), []).append(errors)
    for case, errors in draws.items():
        mean, deviation = np.mean(errors, axis=0), np.std(errors, axis=0, ddof=1)
        apart = np.abs(mean - np.array(earlier[case]))
        assert (apart < T_OF_SIX * deviation * np.sqrt(1 + 1 / 6)).all(), (case, apart / deviation)


@pytest.mark.parametrize("env", ["random-mdps", "corridor"])
def test_the_published_figures_say_how_they_were_made(env: str) -> None:
    directory = PUBLISHED / env / "seed0"
    summary = json.loads((directory / "summary.json").read_text())
    assert {path.name for path in directory.iterdir()} - {".lock"} == FILES - {".lock"}
    assert summary["command"].startswith("python agents/va_tabular.py")
    page = (ROOT / "docs" / "va_tabular.md").read_text()
    for line in script.printed_table(summary).splitlines()[2:]:
        assert line in page
    for path in directory.iterdir():
        if path.suffix in (".json", ".csv"):
            assert path.stat().st_size < 200_000
            assert str(ROOT) not in path.read_text()
