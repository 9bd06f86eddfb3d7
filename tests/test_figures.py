"""What every script logs, against the one table of docs/components.md; TensorBoard's layout."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import ALL, Small, scripts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from classicrl.loggers import read_csv

PAGE = Path(__file__).parents[1] / "docs" / "components.md"
VALUE = {"dueling_dqn_atari", "va_atari", "va_minatar", "va_classic_control"}
WHO = {
    "all": {small.script for small in ALL},
    "value": VALUE,
    "PPO": {"ppo_rnd_atari", "ppo_rnd_small"},
    "PPO on Atari": {"ppo_rnd_atari"},
    "value + bonus": {"dqn_rnd_small"},
    "Symphony": {"symphony_mujoco"},
    "cube": {"qstar_cube3_train"},
    **{f"`{script}`": {script} for script in VALUE},
}


def documented() -> dict[str, set[str]]:
    """Name -> the scripts that log it."""
    section = PAGE.read_text().split("### The names of figures")[1].split("\n## ")[0]
    table: dict[str, set[str]] = {}
    for names, who in re.findall(r"^\| (`.*?`) \| .* \| (.*) \|$", section, re.M):
        for name in re.findall(r"`(.*?)`", names):
            assert name not in table, f"{name} stands in the table twice"
            table[name] = set().union(*(WHO[word] for word in who.split(", ")))
    return table


Events = Callable[[Small], tuple[Path, EventAccumulator]]


@pytest.fixture(scope="module")
def events(finished: Callable[[Small], Path]) -> Events:
    """The directory with the results of a small run, and what TensorBoard reads there."""
    made: dict[str, tuple[Path, EventAccumulator]] = {}

    def get(small: Small) -> tuple[Path, EventAccumulator]:
        if small.script not in made:
            result = finished(small) / small.results[0]
            accumulator = EventAccumulator(str(result / "tensorboard"))
            accumulator.Reload()
            made[small.script] = result, accumulator
        return made[small.script]

    return get


def columns(path: Path) -> list[str]:
    with path.open() as file:
        return next(csv.reader(file))[1:]


@pytest.mark.parametrize("small", scripts())
def test_the_table_is_what_the_script_logs(small: Small, events: Events) -> None:
    directory, board = events(small)
    written = set(columns(directory / "metrics.csv"))
    written |= {f"eval/{name}" for name in columns(directory / "evaluations.csv")}
    tags = board.Tags()
    assert set(tags["scalars"]) <= written  # NaN is no event
    logged = written | set(tags["histograms"]) | set(tags["images"])
    if small.script == "symphony_mujoco":
        logged.add("eval/game")  # rendering is left off here
    table = {name for name, who in documented().items() if small.script in who}
    assert logged - table == set(), "not in the table of docs/components.md"
    assert table - logged == set(), "in the table, but not logged"


@pytest.mark.parametrize("small", scripts())
def test_the_last_row_is_of_the_last_step(small: Small, finished: Callable[[Small], Path]) -> None:
    settings = small.settings
    end = settings.get("total_steps") or settings["total_updates"]
    assert end % (settings.get("log_period_steps") or settings["log_period_updates"])
    for result in small.results:
        steps = read_csv(finished(small) / result / "metrics.csv")["step"].tolist()
        assert steps[-1] == end and len(steps) == len(set(steps)) > 1


def test_nobody_else_is_in_the_table() -> None:
    assert set().union(*documented().values()) == WHO["all"]


@pytest.mark.parametrize("small", scripts())
def test_the_layout_shows_what_there_is(small: Small, events: Events) -> None:
    directory, board = events(small)
    tensor = board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = Layout.FromString(tensor)
    charts = {category.title: list(category.chart) for category in layout.category}
    assert set(charts) == {"returns", "losses", "diagnostics", "speed"}
    shown = [tag for group in charts.values() for chart in group for tag in chart.multiline.tag]
    assert len(shown) == len(set(shown))
    found = set(columns(directory / "metrics.csv"))
    # All but counters and what says when.
    assert {n for n in found if n.startswith(("losses/", "diagnostics/"))} <= set(shown)
    assert {n for n in found if n.endswith(("_per_second", "_return"))} <= set(shown)
    assert set(shown) - found == {"eval/mean_return", "eval/solved_share"}


@pytest.mark.parametrize("small", scripts())
def test_hparams_hold_settings_and_scores(small: Small, events: Events) -> None:
    directory, board = events(small)
    content = board.PluginTagToContent("hparams")
    started, experiment, ended = (
        HParamsPluginData.FromString(content[f"_hparams_/{name}"])
        for name in ("session_start_info", "experiment", "session_end_info")
    )
    settings = {
        name: value.number_value
        if value.HasField("number_value")
        else value.bool_value
        if value.HasField("bool_value")
        else value.string_value
        for name, value in started.session_start_info.hparams.items()
    }
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())["config"]
    assert set(settings) == set(config)
    for name, value in config.items():
        plain = value if isinstance(value, bool | int | float | str) else str(value)
        assert settings[name] == plain, name
    metrics = {info.name.tag for info in experiment.experiment.metric_infos}
    assert metrics == {f"eval/{name}" for name in columns(directory / "evaluations.csv")}
    assert metrics & set(board.Tags()["scalars"])  # what the table of hparams shows
    assert ended.session_end_info.status == 1  # success
