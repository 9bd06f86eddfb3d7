"""Disks that are full, fail, or take no more than so much, for a while or to the end of a run."""

import errno
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from broken_process import FSYNC, REPLACE, WRITE, Fault, owner_of, run
from small_agents import Agent, end_of, rows
from tally import FULL, Tally

from classicrl.checkpoint import checkpoint_paths, read_checkpoint

GROUP = "full and failing disks"

CHUNK = "classicrl.replay.chunks:write_atomic"
MODEL = "classicrl.checkpoint.model_file:write_atomic"
EVENT = "tensorboard.summary.writer.record_writer:RecordWriter.write"
DIRECTORY = "os:mkdir"
FOR_EVER = 10**9


def fail_calls(place: str, first: int, last: int, code: int) -> None:
    """Calls ``first`` to ``last`` of ``place`` raise OSError."""
    owner, name = owner_of(place)
    call = getattr(owner, name)
    made = 0

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if first <= made <= last:
            raise OSError(code, os.strerror(code))
        return call(*arguments, **named)

    setattr(owner, name, wrapper)


def limit_file_size(nbytes: int) -> None:
    """No file of this process may grow larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))


def slow_calls(place: str, seconds: float) -> None:
    owner, name = owner_of(place)
    call = getattr(owner, name)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return call(*arguments, **named)

    setattr(owner, name, wrapper)


def little_space() -> None:
    """Enough to begin, too little for any checkpoint."""
    import shutil
    from typing import NamedTuple

    class Usage(NamedTuple):
        free: int

    calls = 0

    def usage(path: Any) -> Usage:
        nonlocal calls
        calls += 1
        return Usage(2**40 if calls <= 3 else 1_000)

    shutil.disk_usage = usage  # type: ignore[assignment]


CASES: dict[str, Fault] = {
    "full while a save is flushed": Fault(fail_calls, (FSYNC, 20, 24, errno.ENOSPC)),
    "full while a file is written": Fault(fail_calls, (WRITE, 4, 5, errno.ENOSPC)),
    "no larger file from the start on": Fault(limit_file_size, (6_000,)),
    "full at the last save": Fault(fail_calls, (WRITE, 13, FOR_EVER, errno.ENOSPC)),
    "full from the start on": Fault(fail_calls, (WRITE, 1, FOR_EVER, errno.ENOSPC)),
    "full for the replay": Fault(fail_calls, (CHUNK, 3, 6, errno.ENOSPC)),
    "full for the replay to the end": Fault(fail_calls, (CHUNK, 3, FOR_EVER, errno.ENOSPC)),
    "full for the weights": Fault(fail_calls, (MODEL, 2, 3, errno.ENOSPC)),
    "over quota": Fault(fail_calls, (FSYNC, 30, 33, errno.EDQUOT)),
    "failing": Fault(fail_calls, (FSYNC, 26, 27, errno.EIO)),
    "read-only at a rename": Fault(fail_calls, (REPLACE, 12, 14, errno.EROFS)),
    "read-only to the end": Fault(fail_calls, (REPLACE, 12, FOR_EVER, errno.EROFS)),
    "no new directory": Fault(fail_calls, (DIRECTORY, 8, 9, errno.ENOSPC)),
    "no events": Fault(fail_calls, (EVENT, 5, FOR_EVER, errno.ENOSPC)),
    "no larger file than the weights": Fault(limit_file_size, (90_000,)),
    "little space left": Fault(little_space),
    "slow to flush": Fault(slow_calls, (FSYNC, 0.02)),
}
QUICK = ("full while a save is flushed", "full at the last save")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Ends of uninterrupted runs."""
    return {}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", CASES if FULL else QUICK)
@pytest.mark.parametrize("agent", rows("va_classic_control"))
def test_the_disk_costs_no_run(
    agent: Agent, name: str, whole: dict[str, dict[str, str]], tmp_path: Path, tally: Tally
) -> None:
    if agent.script not in whole:
        assert run(agent, tmp_path / "whole").code == 0
        whole[agent.script] = end_of(agent, tmp_path / "whole")
    directory = tmp_path / "run"
    ended = run(agent, directory, CASES[name])
    assert "Traceback" not in ended.output, ended.output
    if ended.code == 0:
        assert end_of(agent, directory) == whole[agent.script]
        tally.count("the run goes on: same end")
        return
    assert ended.code == 1, ended.output
    assert "error: " in ended.output.splitlines()[-1]
    assert not (directory / agent.shared / "summary.json").exists()
    for path in checkpoint_paths(agent.checkpoint_directory(directory)):
        read_checkpoint(path)  # whole
    again = run(agent, directory)
    assert again.code == 0, again.output
    assert end_of(agent, directory) == whole[agent.script]
    tally.count("ended in one line, then same end")
