"""SIGKILL at random points and in the middle of saves, then the same command again: the end is that
of a run that nothing has happened to, to the bit."""

import json
import random
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from broken_process import (
    ELSEWHERE,
    IN_SAVES,
    Fault,
    count_calls,
    kill_at,
    random_points,
    run,
    send_at,
)
from small_agents import Agent, end_of, rows
from tally import FULL, Tally, size

GROUP = "kill -9, and stop signals"


class Whole(NamedTuple):
    """An uninterrupted run of an agent."""

    end: dict[str, str]
    calls: dict[str, int]  # how often each place is reached


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    """Made once for each agent, as it is asked for."""
    return {}


def whole_run(agent: Agent, whole: dict[str, Whole], directory: Path) -> Whole:
    if agent.script not in whole:
        places = (*IN_SAVES, *ELSEWHERE, agent.update)
        ended = run(agent, directory, Fault(count_calls, (places, directory.parent / "calls")))
        assert ended.code == 0, ended.output
        calls = json.loads((directory.parent / "calls").read_text())
        assert calls[agent.update] > 5 and calls["os:fsync"] > 10
        whole[agent.script] = Whole(end_of(agent, directory), calls)
    return whole[agent.script]


@pytest.mark.timeout(3000 if FULL else 240)
@pytest.mark.parametrize("agent", rows(*(() if FULL else ("va_classic_control",))))
def test_killed_runs_end_as_if_nothing_had_happened(
    agent: Agent, whole: dict[str, Whole], tmp_path: Path, tally: Tally
) -> None:
    expected = whole_run(agent, whole, tmp_path / "whole")
    rng = random.Random(agent.script)
    number = size(1, 10)
    places = [
        (where, point)
        for where, among in (
            ("in a save", IN_SAVES),
            ("elsewhere", (*ELSEWHERE, agent.update)),
        )
        for point in random_points(rng, expected.calls, among, number)
    ]
    for case, (where, (place, count)) in enumerate(places):
        directory = tmp_path / str(case)
        killed = run(agent, directory, Fault(kill_at, (place, count)))
        assert killed.code == -signal.SIGKILL, (place, count, killed.output)
        again = run(agent, directory)
        assert again.code == 0, (place, count, again.output)
        assert end_of(agent, directory) == expected.end, (place, count)
        tally.count(f"killed {where}: same end")


@pytest.mark.timeout(1000 if FULL else 240)
@pytest.mark.parametrize("agent", rows(*(() if FULL else ("va_classic_control",))))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_stopped_runs_save_and_end_the_same(
    agent: Agent, number: signal.Signals, whole: dict[str, Whole], tmp_path: Path, tally: Tally
) -> None:
    if not FULL and number == signal.SIGTERM:
        pytest.skip("one of the two in the quick tests")
    expected = whole_run(agent, whole, tmp_path / "whole")
    rng = random.Random(f"{agent.script} {number}")
    among = (*IN_SAVES, *ELSEWHERE, agent.update)
    for case, point in enumerate(random_points(rng, expected.calls, among, size(1, 3))):
        directory = tmp_path / str(case)
        stopped = run(agent, directory, Fault(send_at, (*point, number)))
        # One that comes in the last save is too late to stop anything.
        late = stopped.code == 0 and (directory / agent.results[0] / "summary.json").exists()
        assert late or stopped.code == (75 if number == signal.SIGTERM else 130), stopped.output
        assert "Traceback" not in stopped.output
        again = run(agent, directory)
        assert again.code == 0, (point, again.output)
        assert end_of(agent, directory) == expected.end, point
        tally.count(f"{number.name}: saved, same end")
