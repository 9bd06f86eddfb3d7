"""Sweeps: which trials there are, how a trial is called again, and that kills neither lose nor
double a result. The quick tests call programs of a few lines instead of agents."""

import csv
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tally import Tally

from classicrl.errors import RunFailure, UserError

GROUP = "sweeps"
ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "runs" / "sweep.py"


def load_sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep", SWEEP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweep"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


sweep = load_sweep()

# An agent that keeps score of its calls, holds the lock as a run does, and ends as it is told:
# each call takes the next of its exit codes; "k" is a SIGKILL, a "+" before it a new checkpoint.
PROGRAM = """
import fcntl, json, os, pathlib, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
directory = pathlib.Path(flags["--run-dir"])
lock = open(directory / ".lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(2)
calls = directory / "calls"
calls.write_text((calls.read_text() if calls.exists() else "") + "x")
number = len(calls.read_text())
word = (flags.get("--codes", "0").split(",") + ["0"] * number)[number - 1]
time.sleep(float(flags.get("--sleep", "0")))
if word.startswith("+"):
    (directory / "checkpoints" / f"ckpt-{number:012d}").mkdir(parents=True)
    word = word[1:]
if word == "k":
    os.kill(os.getpid(), 9)
if word == "0":
    summary = {
        "agent": "toy", "env_id": flags.get("--env-id", "none"), "protocol": "plain",
        "seed": int(flags["--seed"]), "total_steps": 9, "wall_seconds": 0.5,
        "eval": {"mean_return": 1.5, "std_return": 0.5, "episodes": 2},
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "evaluations.csv").write_text("step,mean_return\\n3,1.0\\n9,1.5\\n")
    (directory / "metrics.csv").write_text("step,charts/wall_seconds\\n9,0.5\\n")
sys.exit(int(word))
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Flags of a sweep over the toy agent."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "toy.py").write_text(PROGRAM)
    monkeypatch.setattr(sweep, "ROOT", tmp_path)

    def flags(agent: str = "toy", **others: Any) -> list[str]:
        given = {"out": tmp_path / "out", "workers": 2, **others}
        words = ["--agents", agent]
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
        return words

    return flags


def calls(directory: Path) -> dict[str, int]:
    """How often each trial was called."""
    return {
        "/".join(path.parts[-4:-1]): len(path.read_text())
        for path in sorted(directory.glob("*/*/*/calls"))
    }


def results(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


# -- trials ----------------------------------------------------------------------------------------


def test_every_combination_is_one_trial(
    toy: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "more.txt"
    names.write_text("ALE/Pong-v5\nCartPole-v1\n")
    sweep.main(toy(envs=["MinAtar/Breakout-v1", names], seeds=[3, 5]))
    assert calls(tmp_path / "out") == {
        f"toy/{env}/seed{seed}": 1
        for env in ("MinAtar-Breakout-v1", "ALE-Pong-v5", "CartPole-v1")
        for seed in (3, 5)
    }
    rows = results(tmp_path / "out")
    assert [(row["env_id"], row["seed"]) for row in rows] == [
        (env, seed)
        for env in ("MinAtar/Breakout-v1", "ALE/Pong-v5", "CartPole-v1")
        for seed in ("3", "5")
    ]
    assert {row["mean_return"] for row in rows} == {"1.5"}
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5_000
    assert "[6/6] done" in capsys.readouterr().out


def test_a_finished_sweep_is_reported_again_and_a_larger_one_goes_on(
    toy: Callable[..., list[str]], tmp_path: Path
) -> None:
    sweep.main(toy(seeds=[0]))
    sweep.main(toy(seeds=[0, 1]))
    assert [row["seed"] for row in results(tmp_path / "out")] == ["0", "1"]


def test_a_file_sets_what_flags_do_not(tmp_path: Path, toy: Callable[..., list[str]]) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('agents = ["toy"]\nseeds = [4, 6]\nworkers = 2\nflags = "--sleep 0.01"\n')
    sweep.main(["--file", str(path), "--seeds", "8", "--out", str(tmp_path / "out")])
    assert [row["seed"] for row in results(tmp_path / "out")] == ["8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent = ['toy']", "there is no setting 'agent'"),
        ("seeds = ['one']", "seeds must be a list of int"),
        ("seeds = [true]", "seeds must be a list of int"),
        ("workers = 1.5", "workers must be a int"),
        ("engine = 'magic'", "engine is one of local, ray, slurm"),
        ("agents = ", "cannot read"),
        ("agents = ['no_such_agent']", "there is no agent 'no_such_agent': choose of toy"),
        ("agents = ['toy --seed 3']", "--seed is the sweep's to set"),
        ("agents = ['toy --seed=3']", "--seed is the sweep's to set"),
        ("flags = '--run-dir=here'", "--run-dir is the sweep's to set"),
        ("agents = ['toy', 'toy']", "is there twice"),
        ("envs = ['missing.txt']", "cannot read the environments"),
        ("seeds = [-1]", "--seeds must be"),
        ("retries = -1", "--retries must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, toy: Callable[..., list[str]], text: str, message: str
) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text if text.startswith("agents") else f"agents = ['toy']\n{text}")
    with pytest.raises(UserError) as caught:
        sweep.main(["--file", str(path), "--out", str(tmp_path / "out")])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_agents_that_train_several_seeds_do_not_train_one_twice(tmp_path: Path) -> None:
    def trials(agent: str, *seeds: int) -> int:
        return len(sweep.trials_of(sweep.Config(agents=(agent,), seeds=seeds, out=tmp_path)))

    with pytest.raises(UserError, match=r"trains 5 seeds, .* seeds 9 and 13 overlap: add"):
        trials("va_minatar --member dqn", 9, 13, 4)
    with pytest.raises(UserError, match=r"trains 2 seeds, .* seeds 0 and 1 overlap"):
        trials("va_classic_control --num-seeds=2", 0, 1)
    assert trials("va_minatar", 0, 5) == trials("va_minatar --num-seeds 1", 0, 1) == 2
    assert trials("dueling_dqn_atari", 0, 1) == 2


def test_an_agent_that_lacks_a_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="va_tabular cannot be swept: it has no --threads"):
        sweep.trials_of(sweep.Config(agents=("va_tabular",), out=tmp_path))


def test_a_container_with_two_cpus_gets_two_workers(
    tmp_path: Path, toy: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "available_cpus", lambda: 2)
    asked = sweep.Config(agents=("toy",), out=tmp_path, workers=1)
    (trial,) = sweep.trials_of(asked)
    assert trial.command[-2:] == ("--threads", "2")
    for flags in ("--threads 1", "--threads=1"):
        (trial,) = sweep.trials_of(dataclasses.replace(asked, flags=flags))
        assert sum(word.startswith("--threads") for word in trial.command) == 1


# -- called again ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "retries", "expected", "status"),
    [
        ("0", 0, 1, "done"),
        ("+75,+75,+75,0", 0, 4, "done"),  # call again, as often as it gets on
        ("+k,+1,0", 0, 3, "done"),  # a failure after a new checkpoint is the first of a row
        ("k,1,0", 2, 3, "done"),
        ("k,1,k,0", 2, 3, "given up"),
        ("75,75,75,0", 1, 2, "given up"),  # it says so for ever and gets nowhere
        ("2,0", 5, 1, "refused"),
    ],
)
def test_exit_codes_say_whether_a_trial_is_called_again(
    toy: Callable[..., list[str]],
    tmp_path: Path,
    codes: str,
    retries: int,
    expected: int,
    status: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = toy(flags=f"--codes {codes}", retries=retries, seeds=[7])
    if status == "done":
        sweep.main(arguments)
    else:
        with pytest.raises(RunFailure, match=r"1 of 1 trials are not done: .*trial\.log"):
            sweep.main(arguments)
    assert list(calls(tmp_path / "out").values()) == [expected]
    assert f"[1/1] {status}" in capsys.readouterr().out
    assert len(results(tmp_path / "out")) == (status == "done")


def test_a_trial_that_outlived_its_sweep_is_waited_for(
    toy: Callable[..., list[str]], tmp_path: Path
) -> None:
    arguments = toy(flags="--sleep 1.5", seeds=[2])
    [trial] = sweep.trials_of(sweep.Config(agents=("toy",), seeds=(2,)))
    directory = tmp_path / "out" / "toy" / "default" / "seed2"
    directory.mkdir(parents=True)
    command = [word.replace(str(trial.directory), str(directory)) for word in trial.command]
    with subprocess.Popen([*command, "--sleep", "1.5"]) as orphan:
        while not (directory / "calls").exists():
            time.sleep(0.02)
        sweep.main(arguments)
        assert orphan.poll() == 0  # it had ended before the trial was called
    assert list(calls(tmp_path / "out").values()) == [2]
    assert len(results(tmp_path / "out")) == 1


def test_one_sweep_at_a_time(toy: Callable[..., list[str]], tmp_path: Path) -> None:
    from classicrl.experiment import Run

    with Run(tmp_path / "out"), pytest.raises(UserError, match="in use by another process"):
        sweep.main(toy())


def test_a_stopped_sweep_stops_its_trials_and_continues(
    toy: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = sweep.subprocess.Popen

    def stop_soon(*arguments: Any, **named: Any) -> Any:
        process = started(*arguments, **named)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    with monkeypatch.context() as patch:
        patch.setattr(sweep.subprocess, "Popen", stop_soon)
        with pytest.raises(SystemExit) as caught:
            sweep.main(toy(flags="--sleep 30", seeds=[0, 1, 2], workers=1))
    assert caught.value.code == 75
    assert results(tmp_path / "out") == []
    sweep.main(toy(seeds=[0, 1, 2]))
    assert len(results(tmp_path / "out")) == 3


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_engine_is_named(
    toy: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, engine: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}, .* pip install 'classicrl\["):
        sweep.main(toy(engine=engine))


# -- real agents, killed ---------------------------------------------------------------------------

FLAGS = (
    "--num-seeds 1 --total-steps 2400 --first-update-steps 100 --checkpoint-period-steps 300 "
    "--evaluation-period-steps 1200 --evaluation-episodes 1 --final-evaluation-episodes 3 "
    "--log-period-steps 200 --batch-size 8 --device cpu --threads 1"
)
REAL = ["--agents", "va_classic_control", "--envs", "CartPole-v1", "Acrobot-v1"]
REAL += ["--seeds", "0", "1", "--flags", FLAGS]


def start(out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SWEEP), *REAL, "--out", str(out), *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def trials_now(out: Path) -> list[int]:
    """Ids of the processes that train in this sweep."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(word.startswith(f"{out}/") for word in words) and "--run-dir" in words:
            found.append(int(path.parent.name))
    return found


def kill_trials(out: Path, process: subprocess.Popen[str], number: int) -> int:
    """SIGKILL to ``number`` different trials, each as soon as it has a checkpoint."""
    killed: set[int] = set()
    while len(killed) < number and process.poll() is None:
        for pid in trials_now(out):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                directory = Path(words[words.index("--run-dir") + 1])
            except (OSError, ValueError):
                continue
            if pid not in killed and list(directory.glob("*/checkpoints/ckpt-*")):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                break
        time.sleep(0.02)
    if len(killed) < number and process.stdout is not None:
        print(process.stdout.read())
    return len(killed)


def assert_four_results(out: Path) -> None:
    rows = results(out)
    assert [(row["env_id"], row["seed"]) for row in rows] == [
        (env, seed) for env in ("CartPole-v1", "Acrobot-v1") for seed in ("0", "1")
    ]
    for row in rows:
        summary = json.loads((out / row["directory"] / "summary.json").read_text())
        assert summary["total_steps"] == int(row["steps"]) == 2400
        metrics = (out / row["directory"] / "metrics.csv").read_text().splitlines()[1:]
        assert [int(line.split(",")[0]) for line in metrics] == list(range(200, 2401, 200))
    assert (out / "curves.png").stat().st_size > 5_000


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "whole"
    with start(out, "--workers", "2") as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_four_results(out)
    return out


def scores(out: Path) -> list[tuple[str, ...]]:
    columns = ("env_id", "seed", "mean_return", "std_return", "directory")
    return [tuple(row[name] for name in columns) for row in results(out)]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(300)
def test_kills_of_trials_and_of_the_sweep_change_no_result(
    uninterrupted: Path, tmp_path: Path, tally: Tally
) -> None:
    out = tmp_path / "out"
    with start(out, "--workers", "2") as process:
        assert kill_trials(out, process, 2) == 2
        while not list(out.glob("*/*/*/*/summary.json")):
            time.sleep(0.05)
        process.kill()  # its trials live on
    with start(out, "--workers", "2") as process:
        later = kill_trials(out, process, 1)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_four_results(out)
    assert scores(out) == scores(uninterrupted)
    tally.count("local, trial killed: same 4 results", 2 + later)
    tally.count("local, sweep killed: same 4 results")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_ray_worker_changes_no_result(
    uninterrupted: Path, tmp_path: Path, tally: Tally
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    with start(out, "--workers", "2", "--engine", "ray") as process:
        assert kill_trials(out, process, 1) == 1
        # The worker that watches a trial, not the trial itself: Ray starts the task again.
        workers = ray_workers_of(out)
        while not workers:
            time.sleep(0.05)
            workers = ray_workers_of(out)
        os.kill(workers[0], signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_four_results(out)
    assert scores(out) == scores(uninterrupted)
    tally.count("Ray, trial killed: same 4 results")
    tally.count("Ray, worker killed: same 4 results")


def ray_workers_of(out: Path) -> list[int]:
    """Parents of the trials that train now, where they are Ray's workers."""
    found = []
    for pid in trials_now(out):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            parent = int(status.partition("PPid:")[2].split()[0])
            command = Path(f"/proc/{parent}/cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::"):
            found.append(parent)
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_slurm_job_changes_no_result(
    uninterrupted: Path, tmp_path: Path, tally: Tally
) -> None:
    """Jobs of submitit's local executor."""
    pytest.importorskip("submitit")
    out = tmp_path / "out"
    with start(out, "--workers", "2", "--engine", "slurm", "--slurm-cluster", "local") as process:
        assert kill_trials(out, process, 1) == 1
        jobs = submitit_jobs()
        while not jobs:
            time.sleep(0.05)
            jobs = submitit_jobs()
        os.kill(jobs[0], signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_four_results(out)
    assert scores(out) == scores(uninterrupted)
    tally.count("submitit's local executor, trial killed: same 4 results")
    tally.count("submitit's local executor, job killed: same 4 results")


def submitit_jobs() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"submitit.core._submit" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
