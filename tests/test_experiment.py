"""The run directory: its lock, its configuration, what overwriting deletes; and stop signals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from classicrl import command_line
from classicrl.command_line import exit_with, may_change, not_recorded, require_positive
from classicrl.distributed import Ranks
from classicrl.errors import RunFailure, UserError
from classicrl.experiment import (
    Run,
    StopRequest,
    as_json,
    read_json,
    shared_run,
    versions,
    write_json,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    width: int = 8
    rate: float = 0.1
    loss: str = "squared"
    total_steps: int = may_change(1000)
    log_period_steps: int = may_change(50)
    decay_steps: int | None = None
    teacher: Path | None = None
    sizes: tuple[int, ...] | None = None
    run_dir: Path | None = not_recorded(None)


SUMMARY = {
    "agent": "some",
    "env_id": "CartPole-v1",
    "protocol": "plain",
    "total_steps": 500,
    "wall_seconds": 50.0,
    "eval": {
        "mean_return": 2.0,
        "std_return": 1.0,
        "episodes": 3,
        "epsilon": 0.0,
        "max_frames_per_episode": 500,
    },
}


def resolve(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings,
        decay_steps=settings.decay_steps or settings.total_steps // 10,
        sizes=settings.sizes or (3, 4),
    )


def configure(directory: Path, **asked: Any) -> Settings:
    """As a run does it that then begins."""
    with Run(directory) as run:
        settings = run.configure(Settings(**asked), resolve)
        (directory / "checkpoints").mkdir(exist_ok=True)
        return settings


# -- the directory ---------------------------------------------------------------------------------


def test_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    with Run(tmp_path / "a" / "b") as run:
        assert run.directory.is_dir()
        assert run.summary is None


def test_a_second_handle_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    with Run(tmp_path), pytest.raises(UserError, match="in use by another process"):
        Run(tmp_path)
    Run(tmp_path).close()


def test_another_process_is_refused_until_it_is_gone_even_killed(tmp_path: Path) -> None:
    hold = (
        "import fcntl, sys, time\n"
        "lock = open(sys.argv[1], 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(100)\n"
    )
    Run(tmp_path).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / ".lock")], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="in use by another process"):
            Run(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    Run(tmp_path).close()


def test_a_refused_process_deletes_nothing(tmp_path: Path) -> None:
    configure(tmp_path)
    with Run(tmp_path), pytest.raises(UserError, match="in use"):
        Run(tmp_path, overwrite=True)
    assert (tmp_path / "config.json").exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*--run-dir") as caught:
        Run(tmp_path / "file" / "run")
    assert caught.value.exit_code == 2


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    configure(tmp_path / "begun")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**20))
    with pytest.raises(UserError, match="256 MiB"):
        Run(tmp_path)
    configure(tmp_path / "begun")  # goes on, and its checkpoints wait
    with pytest.raises(UserError, match="256 MiB"):
        Run(tmp_path / "begun", overwrite=True)
    assert (tmp_path / "begun" / "config.json").exists()


OWN = ["config.json", "metrics.csv", "evaluations.csv", "summary.json", "video.gif"]


def test_overwrite_deletes_what_runs_write_and_nothing_else(tmp_path: Path) -> None:
    others = ["notes.txt", "config.json.orig", "metrics.png"]
    for name in [*OWN, "model.safetensors", *others]:
        (tmp_path / name).write_text("{}")
    for name in ("checkpoints", "tensorboard", "mine"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text("")
    Run(tmp_path).close()
    for name in [*OWN, "model.safetensors", "checkpoints", "tensorboard"]:
        assert (tmp_path / name).exists()  # not without being asked
    Run(tmp_path, overwrite=True).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "mine", ".lock"])
    assert (tmp_path / "mine" / "deep" / "file").exists()


def test_overwrite_follows_no_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(elsewhere)
    (tmp_path / "run" / "metrics.csv").symlink_to(elsewhere / "file")
    Run(tmp_path / "run", overwrite=True).close()
    assert (elsewhere / "file").exists()


def test_an_interrupted_overwrite_never_leaves_checkpoints_without_their_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    configure(tmp_path)
    for name in OWN[1:]:
        (tmp_path / name).write_text("")
    unlink, deleted = Path.unlink, 0
    for survive in range(len(OWN)):

        def dying(path: Path, missing_ok: bool = False, survive: int = survive) -> None:
            nonlocal deleted
            if deleted == survive:
                raise Killed
            deleted += 1
            unlink(path, missing_ok=missing_ok)

        deleted = 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying)
            with pytest.raises(Killed):
                Run(tmp_path, overwrite=True)
        assert (tmp_path / "config.json").exists() or not (tmp_path / "checkpoints").exists()


# -- the configuration -----------------------------------------------------------------------------


def test_new_run_records_what_was_asked_and_what_it_resolved_to(tmp_path: Path) -> None:
    settings = configure(tmp_path, width=16, run_dir=tmp_path)
    assert settings == Settings(width=16, decay_steps=100, sizes=(3, 4), run_dir=tmp_path)
    record = read_json(tmp_path / "config.json")
    assert record["config"] == {
        "width": 16,
        "rate": 0.1,
        "loss": "squared",
        "total_steps": 1000,
        "log_period_steps": 50,
        "decay_steps": 100,
        "teacher": None,
        "sizes": [3, 4],
    }
    assert record["changes"] == []
    assert {"classicrl", "torch", "numpy", "python"} <= set(record["versions"])


def test_the_same_command_continues_with_the_same_configuration(tmp_path: Path) -> None:
    first = configure(tmp_path, width=16, rate=1e-4)
    before = (tmp_path / "config.json").read_text()
    assert configure(tmp_path, width=16, rate=1e-4, run_dir=tmp_path) == dataclasses.replace(
        first, run_dir=tmp_path
    )
    assert (tmp_path / "config.json").read_text() == before


def test_recorded_values_come_back_as_what_they_were(tmp_path: Path) -> None:
    configure(tmp_path, teacher=Path("x/y"))
    settings = configure(tmp_path)
    assert settings.teacher == Path("x/y") and settings.sizes == (3, 4)


def test_a_setting_that_was_given_must_be_given_again(tmp_path: Path) -> None:
    """Left open, it would be another run's: that of the default."""
    configure(tmp_path, decay_steps=70)
    with pytest.raises(UserError, match="decay_steps is not given, was 70"):
        configure(tmp_path)
    assert configure(tmp_path, decay_steps=70).decay_steps == 70
    configure(tmp_path / "open")
    assert configure(tmp_path / "open", decay_steps=100).decay_steps == 100  # what was derived
    assert configure(tmp_path / "open").decay_steps == 100


def test_a_preset_that_differs_is_named_as_the_way_to_continue(tmp_path: Path) -> None:
    """It may have been chosen by the machine that the run began on."""

    @dataclasses.dataclass(frozen=True)
    class WithPreset(Settings):
        preset: str = "cpu"

    def configured(**asked: Any) -> None:
        with Run(tmp_path) as run:
            run.configure(WithPreset(**asked), lambda settings: settings)
            (tmp_path / "checkpoints").mkdir(exist_ok=True)

    configured()
    with pytest.raises(UserError, match="continue it with --preset cpu, use --overwrite"):
        configured(preset="gpu", width=9)
    with pytest.raises(UserError) as caught:
        configured(width=9)
    assert "--preset" not in str(caught.value)


def test_every_field_that_differs_is_named(tmp_path: Path) -> None:
    configure(tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError) as caught:
        configure(tmp_path, width=16, loss="huber", decay_steps=7, total_steps=5)
    message = str(caught.value)
    for part in ("width is 16, was 8", "loss is huber, was squared", "decay_steps is 7, was 100"):
        assert part in message
    assert "total_steps" not in message and "rate" not in message
    assert "--overwrite" in message and "--run-dir" in message and "\n" not in message
    assert (tmp_path / "config.json").read_text() == before


def test_a_finished_run_records_only_what_prolongs_it(tmp_path: Path) -> None:
    configure(tmp_path, total_steps=500, log_period_steps=20)
    with Run(tmp_path) as run:
        run.finish(SUMMARY)
    before = (tmp_path / "config.json").read_text()
    for asked, said in (
        ({"log_period_steps": 10}, "not used: log_period_steps 10 (recorded: 20)\n"),
        ({"total_steps": 400}, "not used: total_steps 400 (recorded: 500)\n"),
        ({"log_period_steps": 50}, ""),  # as by default, so it may not have been asked for
    ):
        with Run(tmp_path) as run:
            run.configure(Settings(**{"total_steps": 500, "log_period_steps": 20} | asked), resolve)
            lines = run.closing_lines(SUMMARY)
            assert said in lines and ("not used" in lines) == bool(said)
            run.finish(SUMMARY)  # what is trained after all
            assert "not used" not in run.closing_lines(SUMMARY)
        assert (tmp_path / "config.json").read_text() == before
    configure(tmp_path, total_steps=600, log_period_steps=10)
    record = read_json(tmp_path / "config.json")
    assert record["config"]["log_period_steps"] == 10
    # The score is of weights that are about to change: it is kept, but not as the run's.
    assert not (tmp_path / "summary.json").exists()
    [change] = record["changes"]
    assert change["summary"] == SUMMARY
    configure(tmp_path, total_steps=600, log_period_steps=10)
    assert len(read_json(tmp_path / "config.json")["changes"]) == 1


def test_derived_values_keep_their_length_when_the_run_gets_longer(tmp_path: Path) -> None:
    configure(tmp_path)
    settings = configure(tmp_path, total_steps=5000, log_period_steps=10)
    assert settings == Settings(
        total_steps=5000, log_period_steps=10, decay_steps=100, sizes=(3, 4)
    )
    record = read_json(tmp_path / "config.json")
    assert record["config"]["total_steps"] == 5000
    assert record["config"]["decay_steps"] == 100
    [change] = record["changes"]
    assert change["fields"] == {"total_steps": 5000, "log_period_steps": 10}
    configure(tmp_path, total_steps=6000, log_period_steps=10)
    changes = read_json(tmp_path / "config.json")["changes"]
    assert [change["fields"] for change in changes] == [
        {"total_steps": 5000, "log_period_steps": 10},
        {"total_steps": 6000},
    ]


def test_a_configuration_refused_before_the_run_began_binds_nobody(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.configure(Settings(width=10**9), resolve)  # and then the memory does not suffice
    (tmp_path / "ranks" / "1").mkdir(parents=True)  # of a process beside it, refused as well
    assert configure(tmp_path, width=4).width == 4
    with pytest.raises(UserError, match="width"):
        configure(tmp_path, width=5)


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "agent" / "seed0"
    with pytest.raises(UserError), Run(directory) as run:
        run.configure(Settings(), resolve)
        raise UserError("no such environment")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError), Run(directory):
        (directory / "key").mkdir()  # of somebody else
        raise UserError("the part failed")
    assert (directory / "key").exists() and (directory / ".lock").exists()


def test_what_was_there_stays_when_a_run_is_refused(tmp_path: Path) -> None:
    configure(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match="width"), Run(tmp_path / "run") as run:
        run.configure(Settings(width=5), resolve)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    with pytest.raises(RunFailure), Run(tmp_path / "other") as run:
        run.configure(Settings(), resolve)
        raise RunFailure("in mid-run")
    assert (tmp_path / "other" / "config.json").exists()


class SomeRank(Ranks):
    """Of two processes that are not there; notes when it would wait for the other."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank, 2)
        self.asked: list[bool] = []

    def any(self, flag: bool) -> bool:
        self.asked.append(flag)
        return flag


@pytest.mark.parametrize(("rank", "asked"), [(0, [True]), (1, [False])])
def test_a_process_that_cannot_open_its_directory_waits_for_nobody(
    tmp_path: Path, rank: int, asked: list[bool]
) -> None:
    (tmp_path / "file").write_text("")
    ranks = SomeRank(rank)
    with pytest.raises(UserError, match="cannot write"), shared_run(tmp_path / "file", ranks):
        pass
    assert ranks.asked == asked


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\x01"])
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    configure(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        configure(tmp_path)


def test_finished_run_has_a_summary(tmp_path: Path) -> None:
    summary = {"total_steps": 1000, "eval": {"mean_return": 1.5}}
    with Run(tmp_path) as run:
        run.finish(summary)
        assert run.summary == summary
    with Run(tmp_path) as run:
        assert run.summary == summary


def test_json_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def crash(*_: Any) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="power cut"):
            write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_recorded_fields_are_plain(tmp_path: Path) -> None:
    recorded = as_json(Settings(run_dir=tmp_path))
    assert "run_dir" not in recorded
    assert json.loads(json.dumps(recorded)) == recorded


def test_versions_name_the_commit_of_a_clone() -> None:
    found = versions()
    assert found["torch"].split("+")[0].count(".") == 2
    if (Path(__file__).parents[1] / ".git").exists() and "commit" in found:
        commit, *changed = found["commit"].split(" ", 1)
        assert len(commit) == 40 and int(commit, 16) >= 0
        assert changed in ([], ["with changes"])


# -- stop signals ----------------------------------------------------------------------------------


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Puts pytest's handlers back, whatever a test did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_becomes_a_flag_with_its_exit_code(number: int, exit_code: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop and stop.exit_code is None
        os.kill(os.getpid(), number)
        assert stop
        assert stop.exit_code == exit_code
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_further_interrupt_does_not_wait(first: int) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop


@pytest.mark.usefixtures("own_handlers")
def test_a_further_termination_lets_the_checkpoint_be_written() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 75


# -- exit codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "exit_code"),
    [
        (UserError("no such game: choose another"), 2),
        (RunFailure("the loss became NaN"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(75), 75),
        (None, 0),
    ],
)
def test_exit_codes(
    raised: BaseException | None, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: str) -> None:
        assert config == "config"
        if raised is not None:
            raise raised

    with pytest.raises(SystemExit) as caught:
        exit_with(main, "config")
    assert caught.value.code == exit_code
    errors = capsys.readouterr().err
    if isinstance(raised, UserError | RunFailure):
        assert errors == f"error: {raised}\n"
    else:
        assert errors == ""


def test_other_errors_keep_their_traceback() -> None:
    def main(config: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_with(main, "config")


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        ({"width": 0}, "--width"),
        ({"width": -5}, "--width"),
        ({"rate": -1e-9}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"total_steps": -5}, "--total-steps"),
        ({"decay_steps": -1}, "--decay-steps"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(asked: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        require_positive(Settings(**asked), may_be_zero={"decay_steps"})


@pytest.mark.parametrize(
    ("driver", "torch", "expected"),
    [(True, "2.13.0", True), (True, "2.13.0+cpu", False), (False, "2.13.0", False)],
)
def test_a_gpu_is_expected_where_torch_could_use_it(
    monkeypatch: pytest.MonkeyPatch, driver: bool, torch: str, expected: bool
) -> None:
    monkeypatch.setattr(command_line.os.path, "exists", lambda path: driver)
    monkeypatch.setattr(command_line.metadata, "version", lambda name: torch)
    assert command_line.expects_gpu() is expected


def test_numbers_that_may_be_zero_or_open() -> None:
    require_positive(Settings(rate=0.0, decay_steps=None), may_be_zero={"rate"})
    require_positive(Settings(decay_steps=0), may_be_zero={"decay_steps"})
