"""Weights & Biases with a module that only remembers: what it is told, and that it harms nobody."""

import builtins
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from small_runs import ALL

from classicrl.errors import UserError
from classicrl.loggers import read_csv
from classicrl.tracking import WandbSink, require_tracker

RECORD = {"run": "0123456789abcdef", "config": {"seed": 3}, "versions": {"torch": "2"}}


class Fake(ModuleType):
    """wandb, as far as it is used."""

    def __init__(self, fail: str = "", blocks: threading.Event | None = None) -> None:
        super().__init__("wandb")
        self.runs: list[Any] = []
        self.fail, self.blocks = fail, blocks
        self.Settings = lambda **settings: settings

    def _do(self, what: str) -> None:
        if self.fail == what:
            raise ConnectionError("no route\nto host")
        if self.blocks is not None:
            self.blocks.wait(20)

    def init(self, **arguments: Any) -> Any:
        self._do("init")
        run = SimpleNamespace(arguments=arguments, rows=[], metrics=[], finished=False)

        def log(row: dict[str, float]) -> None:
            self._do("log")
            run.rows.append(row)

        def finish() -> None:
            self._do("finish")
            run.finished = True

        run.log, run.finish = log, finish
        run.define_metric = lambda name, **how: run.metrics.append((name, how))
        self.runs.append(run)
        return run


def use(monkeypatch: pytest.MonkeyPatch, fake: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake)


def test_rows_arrive_under_the_number_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    use(monkeypatch, fake)
    for rows in ([(10, 1.5)], [(20, float("nan"))]):  # a run, and its continuation
        sink = WandbSink(tmp_path, RECORD)
        for step, value in rows:
            sink.write(step, {"losses/td": value, "charts/episodes": 4})
        sink.close()
    first, second = fake.runs
    assert first.arguments["id"] == second.arguments["id"] == RECORD["run"]
    assert first.arguments["resume"] == "allow"
    assert first.arguments["config"]["seed"] == 3
    assert first.rows == [{"step": 10, "losses/td": 1.5, "charts/episodes": 4.0}]
    assert second.rows == [{"step": 20, "charts/episodes": 4.0}]
    assert first.metrics == [("step", {}), ("*", {"step_metric": "step"})]
    assert first.finished and second.finished


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failure_is_said_once_and_nothing_else(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Fake(fail=where))
    sink = WandbSink(tmp_path, RECORD)
    for step in range(30):
        sink.write(step, {"losses/td": 1.0})
    sink.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: --track wandb: ConnectionError: no route to host; the run")


def test_a_service_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    use(monkeypatch, Fake(blocks=released))
    sink = WandbSink(tmp_path, RECORD, finish_seconds=0.1)
    began = time.monotonic()
    for step in range(20_000):  # more than it keeps
        sink.write(step, {"losses/td": 1.0})
    sink.close()
    assert time.monotonic() - began < 15  # it would hang for longer
    released.set()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_service_that_was_slow_gets_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    fake = Fake(blocks=released)
    use(monkeypatch, fake)
    sink = WandbSink(tmp_path, RECORD, finish_seconds=30)
    for step in range(10_050):  # more than it keeps
        sink.write(step, {"losses/td": 1.0})
    threading.Timer(0.2, released.set).start()
    sink.close()
    (run,) = fake.runs
    assert run.finished and len(run.rows) >= 10_000


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *arguments, **named)

    require_tracker("none")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "classicrl\[wandb\]"'):
        require_tracker("wandb")


def test_a_folder_of_that_name_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ModuleType("wandb"))
    with pytest.raises(UserError, match="not installed"):
        require_tracker("wandb")


@pytest.mark.parametrize("fail", ["", "log"])
def test_seeds_side_by_side_are_runs_of_their_own(
    fail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(fail)
    use(monkeypatch, fake)
    small = next(small for small in ALL if small.script == "va_classic_control")
    small.run(tmp_path, track="wandb")
    assert len({run.arguments["id"] for run in fake.runs}) == len(fake.runs) == 2
    metrics = read_csv(tmp_path / "seed3" / "metrics.csv")
    assert metrics["step"].tolist() == [30, 60, 80]
    if not fail:
        sent = [row["step"] for row in fake.runs[0].rows if "charts/updates" in row]
        assert sent == metrics["step"].tolist()
        assert "eval/mean_return" in fake.runs[0].rows[-1]
