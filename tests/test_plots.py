import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_process import AGENTS
from synthetic_runs import colours_of, write_model, write_peer, write_run

from classicrl.errors import UserError
from classicrl.reports import records
from classicrl.reports.plots import (
    DPI,
    PANEL_INCHES,
    line_style,
    marker_of,
    plot_runs,
    protocol_in_words,
)
from classicrl.reports.publish import command_of
from classicrl.reports.records import curve, group_runs, on_common_range, read_run

BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def test_reads_a_finished_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", seed=3, double=True))
    assert (run.agent, run.env_id, run.protocol) == ("dueling_dqn_atari", "ALE/Pong-v5", "classic")
    assert (run.seed, run.variant) == (3, "cpu")
    assert run.settings == {"num_envs": 8, "double": True, "gamma": 0.99}
    assert run.evaluations["mean_return"].tolist() == [-17.0, -12.0]


def test_reads_a_peer(tmp_path: Path) -> None:
    run = read_run(write_peer(tmp_path / "p", seed=2))
    assert (run.agent, run.protocol, run.variant) == ("sb3-dqn", "classic", "2013")
    assert run.settings == {"torso": "2013", "buffer_size": 100_000}
    steps, returns = curve(run, "return", "steps")
    assert steps.tolist() == [2_000, 3_000, 4_000, 5_000]
    assert returns[0] == -19.0


def test_a_run_under_way_is_named_by_its_model(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a", seed=1, finished=False)
    with pytest.raises(UserError, match="name no agent"):
        read_run(directory)
    write_model(directory / "model.safetensors", agent="some_agent")
    assert read_run(directory).agent == "some_agent"


def test_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        read_run(tmp_path / "absent")
    with pytest.raises(UserError, match="not a run directory"):
        read_run(tmp_path)
    for seed in (1, 2):
        write_run(tmp_path / f"seed{seed}", seed=seed)
    (tmp_path / "seeds1-1").mkdir()  # what seeds trained side by side share
    (tmp_path / "seeds1-1" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"but holds some: name \S+/seed1 \S+/seed2$"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "damage", ["step,loss\n1,abc\n", "step,loss\n5,1\n3,1\n", "loss\n1\n", "\0\xff\n\n\n"]
)
def test_refuses_a_damaged_table(tmp_path: Path, damage: str) -> None:
    directory = write_run(tmp_path / "a", seed=1)
    (directory / "metrics.csv").write_text(damage)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        read_run(directory)


def test_groups_seeds_and_nothing_else(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a0", seed=0)),
        read_run(write_run(tmp_path / "b0", seed=0, gamma=0.9)),
        read_run(write_run(tmp_path / "a1", seed=1, total_steps=3_000)),
        read_run(write_run(tmp_path / "c0", seed=0, preset="fast")),
        read_run(write_peer(tmp_path / "p0", seed=0)),
    ]
    groups = {
        group.described: [run.directory.name for run in group.runs] for group in group_runs(runs)
    }
    assert groups == {
        "dueling_dqn_atari cpu, gamma=0.99 (2 seeds)": ["a0", "a1"],
        "dueling_dqn_atari cpu, gamma=0.9 (1 seed)": ["b0"],
        "dueling_dqn_atari fast (1 seed)": ["c0"],
        "sb3-dqn 2013 (1 seed)": ["p0"],
    }


def test_what_may_change_makes_no_other_method() -> None:
    places = [*AGENTS.glob("*.py"), AGENTS.parent / "docs" / "examples" / "c51_classic_control.py"]
    marked = [re.findall(r"^    (\w+): .* = may_change\(", p.read_text(), re.M) for p in places]
    names = {name for of_script in marked for name in of_script}
    assert len(names) > 15 and names <= records._NOT_OF_THE_METHOD


def test_the_command_of_a_list_of_numbers() -> None:
    record = {"config": {"num_actions": [5, 10], "cheap": False, "gamma": None}}
    command = "python agents/va_tabular.py --num-actions 5 10 --no-cheap"
    assert command_of("va_tabular", record) == command


def test_refuses_to_count_a_seed_twice(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, seed=4)) for name in "ab"]
    with pytest.raises(UserError, match="same seed"):
        group_runs(runs)


def test_curves_leave_gaps_out(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", seed=0, total_steps=2_000))
    steps, returns = curve(run, "return", "steps")  # the first row has no return yet
    assert steps.tolist() == [1_000, 1_500, 2_000]
    assert returns.tolist() == [-20.0, -19.5, -19.0]
    assert len(curve(run, "loss", "steps")[0]) == 4
    assert np.array_equal(curve(run, "td", "steps")[1], curve(run, "losses/td", "steps")[1])
    assert np.array_equal(curve(run, "std_return", "steps")[1], run.evaluations["std_return"])
    hours, scores = curve(run, "eval", "hours")
    assert hours == pytest.approx([10 / 3600, 20 / 3600])
    assert scores.tolist() == [-20.0, -15.0]
    with pytest.raises(UserError, match="it has eval, return, loss, episodic_return"):
        curve(run, "speed", "steps")


def test_common_range() -> None:
    short = (np.array([1.0, 3.0]), np.array([10.0, 30.0]))
    long = (np.array([2.0, 4.0, 8.0]), np.array([0.0, 2.0, 6.0]))
    grid, values = on_common_range([short, long], np.array([1.5, 2.0, 2.5, 3.0, 5.0]))
    assert grid.tolist() == [2.0, 2.5, 3.0]
    assert values.tolist() == [[20.0, 25.0, 30.0], [0.0, 0.5, 1.0]]
    grid, values = on_common_range([short, long])
    assert (grid[0], grid[-1]) == (2.0, 3.0)
    assert values.shape == (2, len(grid))
    late = (np.array([5.0, 6.0]), np.array([0.0, 1.0]))
    grid, values = on_common_range([short, late])
    assert len(grid) == 0 and values.shape == (2, 0)


@pytest.mark.parametrize(
    ("metric", "x"), [("return", "steps"), ("eval", "hours"), ("loss", "hours")]
)
def test_draws_every_group_in_its_colour(tmp_path: Path, metric: str, x: str) -> None:
    runs = [
        write_run(tmp_path / "a0", seed=0, total_steps=9_000),
        write_run(tmp_path / "a1", seed=1, total_steps=6_000),
        write_run(tmp_path / "a2", seed=2),
        write_run(tmp_path / "b5", seed=5, preset="fast"),
        write_peer(tmp_path / "p", seed=1),
    ]
    out = tmp_path / "curves.png"
    plot_runs(runs, out, metric=metric, x=x)  # type: ignore[arg-type]
    with Image.open(out) as picture:
        assert picture.size == tuple(round(DPI * inches) for inches in PANEL_INCHES)
    assert {BLUE, ORANGE, GREEN} <= colours_of(out)


def test_two_games_are_two_panels_and_the_caption_says_what_was_done(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a0", seed=7),
        write_run(tmp_path / "a1", seed=11),
        write_run(tmp_path / "b", seed=5, env_id="ALE/Breakout-v5", protocol="sticky"),
    ]
    out = tmp_path / "curves.png"
    plot_runs(runs, out)
    with Image.open(out) as picture:
        assert picture.size == (round(2 * DPI * PANEL_INCHES[0]), round(DPI * PANEL_INCHES[1]))
    plot_runs(runs, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()  # matplotlib leaves each text as a comment
    for text in (
        "dueling_dqn_atari cpu (2 seeds)",
        "dueling_dqn_atari cpu (1 seed)",
        "ALE/Breakout-v5, sticky",
        "Seeds on ALE/Pong-v5, classic: dueling_dqn_atari cpu: 7, 11.",
        "sticky actions 0.25",
    ):
        assert text in drawn


def test_lines_of_a_chart_are_told_apart(tmp_path: Path) -> None:
    """By colour or dashes, the eighth method's from the first's too, whether trained or played."""
    assert len({line_style(index) for index in range(21)}) == 21
    assert len({(line_style(index)[0], marker_of(index)) for index in range(49)}) == 49
    runs = [write_run(tmp_path / f"{i}", seed=0, preset=f"method{i}") for i in range(8)]
    for metric in ("return", "eval"):
        plot_runs(runs, tmp_path / "curves.svg", metric=metric)
        drawn = (tmp_path / "curves.svg").read_text()
        blue = [line for line in drawn.splitlines() if "stroke: #0072b2" in line]
        assert any("stroke-dasharray" in line for line in blue), metric
        assert any("stroke-dasharray" not in line for line in blue), metric


def test_seeds_without_common_steps_are_drawn_one_by_one(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"a{seed}", seed=seed, total_steps=4_000) for seed in (0, 1)]
    header, *rows = (runs[0] / "metrics.csv").read_text().splitlines()
    late = [",".join([str(10_000 + i), *row.split(",")[1:]]) for i, row in enumerate(rows)]
    (runs[0] / "metrics.csv").write_text("\n".join([header, *late]) + "\n")
    plot_runs(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_run_that_has_just_begun_does_not_spoil_the_picture(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a0", seed=0), write_run(tmp_path / "a1", seed=1)]
    (runs[1] / "metrics.csv").write_text("")
    (runs[1] / "evaluations.csv").unlink()
    plot_runs(runs, tmp_path / "curves.png")
    with pytest.raises(UserError, match="none of the 1 runs has a value of return yet"):
        plot_runs(runs[1:], tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_plot_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "a", seed=0)
    with pytest.raises(UserError, match=r"must end in \.png"):
        plot_runs([run], tmp_path / "curves.bmp")
    with pytest.raises(UserError, match="cannot write"):
        plot_runs([run], tmp_path / "absent" / "curves.png")
    with pytest.raises(UserError, match="no run"):
        plot_runs([], tmp_path / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r'pip install "classicrl\[plots\]"'):
        plot_runs([run], tmp_path / "curves.png")


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", seed=0)
    (run / "config.json").write_text(json.dumps({"config": [1]}))
    with pytest.raises(UserError, match=r"config\.json"):
        read_run(run)


def test_protocols_in_words() -> None:
    assert protocol_in_words("sticky").startswith("sticky actions 0.25, no no-ops")
    assert "0 to 29 no-ops" in protocol_in_words("classic")
    assert "unknown" in protocol_in_words("house rules")
