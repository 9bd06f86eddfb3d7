"""Data-parallel scripts started by runs/launch.py: two processes with gloo on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tally import Tally

GROUP = "data-parallel launches"
ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "runs" / "launch.py"

# Least squares on batches whose halves the two processes share; the gradient is averaged. Rank 0
# writes a checkpoint after each update, with a replacement that cannot be half done.
PROGRAM = """
import json, os, signal, sys, time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

directory, updates = Path(sys.argv[1]), int(sys.argv[2])
pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
dist.init_process_group("gloo", timeout=timedelta(seconds=20))
rank, ranks = dist.get_rank(), dist.get_world_size()
stopped = False


def stop(number, frame):
    global stopped
    stopped = True


signal.signal(signal.SIGTERM, stop)
path = directory / "checkpoint.json"
weights, begun = torch.zeros(3, dtype=torch.float64), 0
if path.exists():
    saved = json.loads(path.read_text())
    weights, begun = torch.tensor(saved["weights"], dtype=torch.float64), saved["update"]
(directory / f"pid-{rank}-{begun}").write_text(str(os.getpid()))
dist.barrier()
for update in range(begun, updates):
    flag = torch.tensor(int(stopped))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)  # all stop after the same update
    if flag:
        sys.exit(75)
    generator = torch.Generator().manual_seed(update)
    inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    labels = inputs @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mine = slice(rank * 12 // ranks, (rank + 1) * 12 // ranks)
    gradient = 2 * inputs[mine].T @ (inputs[mine] @ weights - labels[mine]) / len(inputs[mine])
    dist.all_reduce(gradient)
    weights -= 0.05 * gradient / ranks
    if rank == 0:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"update": update + 1, "weights": weights.tolist()}))
        os.replace(temporary, path)
    time.sleep(pause)
dist.destroy_process_group()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(PROGRAM)
    return path


def start(script: Path, *flags: object, ranks: int = 2, retries: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, str(LAUNCH), "--ranks", str(ranks), "--retries", str(retries)]
    return subprocess.Popen(
        [*command, str(script), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        output, _ = process.communicate()
    return process.returncode, output


def weights(directory: Path) -> list[float]:
    saved = json.loads((directory / "checkpoint.json").read_text())
    assert saved["update"] == 30
    found: list[float] = saved["weights"]
    return found


def when_training(directory: Path) -> None:
    """Waits until the group is up and has made some updates: before that all is easy."""
    path = directory / "checkpoint.json"
    while not path.exists() or json.loads(path.read_text())["update"] < 5:
        time.sleep(0.02)


def directories(tmp_path: Path, *names: str) -> list[Path]:
    found = [tmp_path / name for name in names]
    for path in found:
        path.mkdir()
    return found


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(240)
def test_a_killed_rank_is_started_again_and_changes_nothing(
    script: Path, tmp_path: Path, tally: Tally
) -> None:
    one, two, killed = directories(tmp_path, "one", "two", "killed")
    assert finish(start(script, one, 30, ranks=1))[0] == 0
    assert finish(start(script, two, 30))[0] == 0
    assert weights(two) == pytest.approx(weights(one), abs=1e-12)

    process = start(script, killed, 30, 0.2)
    when_training(killed)
    os.kill(int((killed / "pid-1-0").read_text()), signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert output.count("a process was lost (exit code 1): starting all again") == 1
    assert weights(killed) == weights(two)
    later = [path.name for path in killed.glob("pid-1-*") if path.name != "pid-1-0"]
    assert len(later) == 1 and int(later[0].split("-")[2]) >= 5  # it went on, not from the start
    tally.count("2 ranks as 1 rank")
    tally.count("rank killed: same end")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_stopped_group_saves_says_call_again_and_continues(
    script: Path, tmp_path: Path, tally: Tally
) -> None:
    whole, stopped = directories(tmp_path, "whole", "stopped")
    assert finish(start(script, whole, 30))[0] == 0
    process = start(script, stopped, 30, 0.2)
    when_training(stopped)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75
    assert finish(start(script, stopped, 30))[0] == 0
    assert weights(stopped) == weights(whole)
    tally.count("stopped: call again, same end")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("ends", "retries", "starts", "code"),
    [
        ("sys.exit(2)", 3, 1, 2),
        ("sys.exit(75)", 3, 1, 75),
        ("sys.exit(1)", 1, 2, 1),
    ],
)
def test_exit_codes(
    tmp_path: Path, ends: str, retries: int, starts: int, code: int, tally: Tally
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "if os.environ['RANK'] == '0':\n"
        "    with (pathlib.Path(sys.argv[1]) / 'starts').open('a') as file:\n"
        "        file.write('x')\n"
        f"{ends}\n"
    )
    found, output = finish(start(script, tmp_path, retries=retries))
    assert found == code, output
    assert len((tmp_path / "starts").read_text()) == starts
    assert ("failed 2 times" in output) == (code == 1)
    tally.count("exit code of the script")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "missing.py is not a file"),
        (["--ranks", "0", str(LAUNCH)], "--ranks must be positive"),
        (["--ranks", "two", str(LAUNCH)], "invalid int value: 'two'"),
        ([], "the following arguments are required: script"),
    ],
)
def test_bad_input_exits_2(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(LAUNCH), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
