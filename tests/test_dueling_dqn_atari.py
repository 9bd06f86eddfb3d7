"""The dueling DQN script: what a run leaves, how it is stopped, killed and continued, its refusals.

Games are cut after 60 steps here, and networks are updated with batches of 8.
"""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_process import (
    AGENTS,
    Kill,
    after_calls,
    command_line,
    load_script,
    start_training,
    train,
)

pytest.importorskip("ale_py")

from classicrl.algorithms.dqn import DQNLearner
from classicrl.checkpoint import CheckpointStore, checkpoint_paths, load_model, read_checkpoint
from classicrl.errors import RunFailure, UserError
from classicrl.loggers import read_csv
from classicrl.replay import ReplayArchive, ReplayBuffer

SCRIPT = "dueling_dqn_atari"
script = load_script(SCRIPT)

SETTINGS: dict[str, Any] = {
    "total_steps": 160,
    "num_envs": 1,
    "device": "cpu",
    "threads": 1,
    "batch_size": 8,
    "replay_capacity": 2_000,
    "first_update_steps": 40,
    "epsilon_decay_steps": 100,
    "target_period_steps": 35,
    "log_period_steps": 20,
    "checkpoint_period_steps": 40,
    "evaluation_period_steps": 80,
    "evaluation_episodes": 1,
    "final_evaluation_episodes": 2,
}
TIMES = ("charts/steps_per_second", "charts/wall_seconds")
Figures = dict[str, list[float]]


def run(directory: Path, **settings: Any) -> dict[str, Any]:
    """``main``, in this process."""
    config = script.Config(**{**SETTINGS, "run_dir": directory, **settings})
    summary: dict[str, Any] = script.main(config)
    return summary


def num_updates(**settings: Any) -> int:
    """One for every multiple of the period that is passed by a step from the first update on."""
    s = {**SETTINGS, "update_period_steps": 4, **settings}
    n, period = s["num_envs"], s["update_period_steps"]
    first = math.ceil(s["first_update_steps"] / n) * n
    last = math.ceil(s["total_steps"] / n) * n
    return int(last // period - first // period)


def newest_checkpoint(directory: Path) -> Any:
    return read_checkpoint(checkpoint_paths(directory / "checkpoints")[-1])


def figures(directory: Path) -> tuple[Figures, str]:
    """What metrics.csv (but for the times) and evaluations.csv hold."""
    metrics = read_csv(directory / "metrics.csv")
    kept = {name: list(map(repr, metrics[name])) for name in metrics if name not in TIMES}
    return kept, (directory / "evaluations.csv").read_text()  # type: ignore[return-value]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def archived(directory: Path, state: dict[str, Any]) -> list[Any]:
    """Every field of all rows in the replay of a checkpoint of one environment."""
    replay = ReplayBuffer(SETTINGS["replay_capacity"], (84, 84), 1, stack=4)
    archive = ReplayArchive(directory / "checkpoints" / "replay")
    [saved] = state["replays"]
    replay.load_state_dict(saved["buffer"])
    archive.load_state_dict(saved["archive"])
    archive.load(replay)
    return list(replay.rows(replay.oldest_id, replay.next_id))


def assert_same_end(one: Path, other: Path) -> None:
    """Figures, weights and all that a further step would need are equal to the bit."""
    assert figures(one) == figures(other)
    models = [load_model(directory / "model.safetensors") for directory in (one, other)]
    assert same(*models)
    states = [newest_checkpoint(directory).state for directory in (one, other)]
    for directory, state in zip((one, other), states, strict=True):
        del state["count"]["seconds"]
        # How the rows are cut into files depends on when they were saved; the rows do not.
        state["replays"][0]["archive"] = archived(directory, state)
    for name in states[0]:
        assert same(states[0][name], states[1][name]), name


def interrupt(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def stopped(
    directory: Path, monkeypatch: pytest.MonkeyPatch, at_update: int, **settings: Any
) -> None:
    """A run that gets SIGTERM in the middle of an update."""
    with monkeypatch.context() as patch:
        after_calls(patch, DQNLearner, "update", at_update, interrupt(signal.SIGTERM))
        with pytest.raises(SystemExit) as caught:
            run(directory, **settings)
    assert caught.value.code == 75


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of one environment."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    run(directory)
    return directory


@pytest.fixture(scope="module")
def vector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of three environments, and what ``main`` returned."""
    directory = tmp_path_factory.mktemp("vector") / "run"
    summary = run(
        directory, num_envs=3, total_steps=170, env_id="ALE/Breakout-v5", double=True, n_steps=3
    )
    return directory, summary


# -- what a run leaves -----------------------------------------------------------------------------


def test_files_of_a_finished_run(vector: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = vector
    assert {path.name for path in directory.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "evaluations.csv",
        "metrics.csv",
        "model.safetensors",
        "summary.json",
        "tensorboard",
        "video.gif",
    }
    assert not list(directory.rglob("*.tmp*"))
    # Crossings of 40 by steps of 3, and the end; the three newest are kept.
    steps = [read_checkpoint(path).step for path in checkpoint_paths(directory / "checkpoints")]
    assert steps == [120, 162, 171]


def test_summary(vector: tuple[Path, dict[str, Any]]) -> None:
    directory, summary = vector
    assert json.loads((directory / "summary.json").read_text()) == summary
    assert summary["agent"] == SCRIPT
    assert summary["env_id"] == "ALE/Breakout-v5"
    assert summary["total_steps"] == 170
    assert summary["num_updates"] == num_updates(num_envs=3, total_steps=170)
    assert summary["refill_steps"] == 0
    assert summary["device"] == "cpu"
    assert summary["wall_seconds"] > 0
    assert summary["replay_compression"] > 10
    evaluation = summary["eval"]
    assert evaluation["episodes"] == 2
    assert evaluation["epsilon"] == 0.01
    assert evaluation["max_frames_per_episode"] == 240
    assert evaluation["mean_return"] >= 0  # Breakout takes no points away
    tensors, _ = load_model(directory / "model.safetensors")
    assert summary["num_parameters"] == sum(t.numel() for t in tensors.values())


def test_metrics_are_finite_and_on_time(vector: tuple[Path, dict[str, Any]]) -> None:
    metrics = read_csv(vector[0] / "metrics.csv")
    assert metrics["step"].tolist() == [21, 42, 60, 81, 102, 120, 141, 162, 171]
    learning = metrics["step"] > 42
    for name in ("losses/td", "diagnostics/q", "diagnostics/grad_norm"):
        assert np.isfinite(metrics[name][learning]).all()
        assert np.isnan(metrics[name][~learning]).all()
    assert (metrics["losses/td"][learning] > 0).all()
    epsilon = metrics["charts/epsilon"]
    assert (np.diff(epsilon) <= 0).all() and epsilon[0] > 0.5 and epsilon[-1] == 0.01
    assert metrics["charts/updates"].tolist() == [
        max(0, step // 4 - 42 // 4) for step in metrics["step"]
    ]
    evaluations = read_csv(vector[0] / "evaluations.csv")
    assert evaluations["step"].tolist() == [81, 162, 171]
    assert evaluations["episodes"].tolist() == [1, 1, 2]


def test_parameters_moved_and_the_target_lags(vector: tuple[Path, dict[str, Any]]) -> None:
    initial = script.atari_q_network("small", "dueling", 4, seed=0).state_dict()
    learner = newest_checkpoint(vector[0]).state["learner"]
    for name, start in initial.items():
        moved = (learner["online"][name] - start).abs().max().item()
        assert 0 < moved < 0.1, name
        assert not torch.equal(learner["online"][name], learner["target"][name])
        assert not torch.equal(start, learner["target"][name])
    tensors, card = load_model(vector[0] / "model.safetensors")
    assert all(torch.equal(tensors[name], learner["online"][name]) for name in initial)
    assert card["env_id"] == "ALE/Breakout-v5" and card["step"] == "171"


def test_video_is_a_whole_game(vector: tuple[Path, dict[str, Any]]) -> None:
    from PIL import Image

    with Image.open(vector[0] / "video.gif") as video:
        assert video.size == (160, 210)
        assert 1 < video.n_frames <= 31  # type: ignore[attr-defined]


def test_a_finished_run_tells_its_summary_and_trains_nothing(
    vector: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, summary = vector
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.name != ".lock"}

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(script, "train", refuse)
    settings = {"num_envs": 3, "env_id": "ALE/Breakout-v5", "double": True, "n_steps": 3}
    assert run(directory, total_steps=170, **settings) == summary
    assert "over 2 games (epsilon 0.01" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.name != ".lock"}
    assert after == before


def test_another_configuration_is_refused(vector: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError) as caught:
        run(vector[0], num_envs=3, total_steps=170, gamma=0.5, seed=1)
    message = str(caught.value)
    for part in ("gamma is 0.5, was 0.99", "seed is 1", "env_id is ALE/Pong-v5", "n_steps is 1"):
        assert part in message
    assert "num_envs" not in message


def test_same_seed_same_run_another_seed_another(finished: Path, tmp_path: Path) -> None:
    run(tmp_path / "again")
    assert_same_end(finished, tmp_path / "again")
    run(tmp_path / "other", seed=1, total_steps=60)
    weights = [load_model(d / "model.safetensors")[0] for d in (finished, tmp_path / "other")]
    assert not same(*weights)


# -- stopped and continued -------------------------------------------------------------------------


def test_sigterm_and_the_same_command_again_change_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path, monkeypatch, at_update=14)  # between two checkpoints
    assert newest_checkpoint(tmp_path).step == 40 + 14 * 4
    assert not (tmp_path / "summary.json").exists()
    run(tmp_path)
    assert_same_end(finished, tmp_path)


@pytest.mark.parametrize("count", [1, 2], ids=["evaluation on the way", "last evaluation"])
def test_a_stop_in_an_evaluation_is_obeyed_and_changes_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with monkeypatch.context() as patch:
        after_calls(patch, script.AtariEvaluator, "play", count, interrupt(signal.SIGINT))
        with pytest.raises(SystemExit) as caught:
            run(tmp_path)
    assert caught.value.code == 130
    assert newest_checkpoint(tmp_path).step == 80 * count
    assert not (tmp_path / "summary.json").exists()
    run(tmp_path)
    assert_same_end(finished, tmp_path)


def kill_and_continue(directory: Path, kills: list[tuple[Kill, int | None]]) -> None:
    """Each process is killed, the next continues what it left, and the last one finishes.

    Args:
        kills: where, and the step of the newest checkpoint then.
    """
    settings = {**SETTINGS, "run_dir": directory}
    for kill, newest in kills:
        assert train(SCRIPT, settings, kill) == -signal.SIGKILL, kill
        paths = checkpoint_paths(directory / "checkpoints")
        assert (read_checkpoint(paths[-1]).step if paths else None) == newest, kill
        assert not (directory / "summary.json").exists()
    assert train(SCRIPT, settings) == 0


@pytest.mark.timeout(120)
def test_killed_and_continued_changes_nothing(finished: Path, tmp_path: Path) -> None:
    # After an evaluation at 80, which the checkpoint of 80 does not know: it is made again.
    kill_and_continue(tmp_path, [(Kill("update", 12), 80)])
    assert_same_end(finished, tmp_path)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(300)
def test_killed_again_and_again_and_continued_changes_nothing(
    finished: Path, tmp_path: Path
) -> None:
    kills = [
        (Kill("fsync", 9), None),  # in the middle of the first save
        (Kill("replace", 4), None),  # the first checkpoint is written, but has no name yet
        (Kill("replace", 5), 40),  # it has, but model.safetensors is not there
        (Kill("update", 12), 80),
        (Kill("evaluation", 1), 80),  # played again, just before it is written
        (Kill("fsync", 9), 80),  # in the middle of the save at 120
    ]
    kill_and_continue(tmp_path, kills)
    assert_same_end(finished, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_and_continued_changes_nothing(
    finished: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    settings = {**SETTINGS, "run_dir": tmp_path}
    num_killed, exit_code = 0, None
    while exit_code != 0:
        process = start_training(SCRIPT, settings)
        process.join(timeout=1.0 + 3.0 * rng.random() * (1 + num_killed / 10))
        process.kill()
        process.join()
        exit_code = process.exitcode
        assert exit_code in (0, -signal.SIGKILL)
        num_killed += exit_code != 0
    print(f"killed {num_killed} times")
    assert_same_end(finished, tmp_path)


def test_many_environments_go_on_at_the_checkpoint_without_a_burst_of_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num_envs": 3, "total_steps": 120, "env_id": "ALE/Breakout-v5"}
    stopped(tmp_path, monkeypatch, at_update=12, **settings)
    step = newest_checkpoint(tmp_path).step
    per_call: list[int] = []
    update = DQNLearner.update

    def noting(learner: DQNLearner, batch: Any, num_updates: int = 1) -> Any:
        per_call.append(num_updates)
        return update(learner, batch, num_updates)

    monkeypatch.setattr(DQNLearner, "update", noting)
    summary = run(tmp_path, **settings)
    assert set(per_call) == {1}
    assert sum(per_call) == 120 // 4 - step // 4
    assert summary["num_updates"] == num_updates(**settings)
    assert summary["refill_steps"] == 0
    assert read_csv(tmp_path / "metrics.csv")["step"].tolist() == [21, 42, 60, 81, 102, 120]


def test_nothing_spans_the_break_of_a_resumed_vector_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num_envs": 3, "total_steps": 100, "env_id": "ALE/Breakout-v5"}
    stopped(tmp_path, monkeypatch, at_update=5, **settings)
    seen: list[Any] = []
    train_once = script.ReplayBuffer

    def keeping(*arguments: Any, **named: Any) -> Any:
        seen.append(train_once(*arguments, **named))
        return seen[0]

    monkeypatch.setattr(script, "ReplayBuffer", keeping)
    broken_at = newest_checkpoint(tmp_path).state["replays"][0]["buffer"]["next_id"]
    run(tmp_path, **settings)
    [replay] = seen
    rows = replay.rows(broken_at - 3, replay.next_id)
    assert (rows.back[3:6] == 0).all()  # the first rows after it are first of their games
    assert (rows.back[6:9] > 0).all()


@pytest.mark.parametrize("ended_again", [False, True])
def test_a_checkpoint_without_replay_is_refilled_before_it_goes_on(
    ended_again: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # At a step before which an update is due: it must wait for the refill.
    with monkeypatch.context() as patch:
        after_calls(patch, script.ReplayBuffer, "add", 79, interrupt(signal.SIGTERM))
        with pytest.raises(SystemExit):
            run(tmp_path, checkpoint_replay="none")
    assert newest_checkpoint(tmp_path).step == 79
    assert not (tmp_path / "checkpoints" / "replay").exists()
    sizes: list[int] = []
    sample = script.ReplayBuffer.sample

    def noting(replay: Any, *arguments: Any, **named: Any) -> Any:
        sizes.append(len(replay))
        return sample(replay, *arguments, **named)

    monkeypatch.setattr(script.ReplayBuffer, "sample", noting)
    capsys.readouterr()
    if ended_again:  # while it refills; the few rows are saved, and are not all that is needed
        with monkeypatch.context() as patch:
            after_calls(patch, script.ReplayBuffer, "add", 15, interrupt(signal.SIGTERM))
            with pytest.raises(SystemExit):
                run(tmp_path)
        assert newest_checkpoint(tmp_path).step == 79 and not sizes
    summary = run(tmp_path, checkpoint_replay="full" if ended_again else "none")
    assert "the checkpoint has no replay: 40 steps refill it first" in capsys.readouterr().err
    assert sizes[0] >= 40
    assert summary["refill_steps"] == 40
    assert summary["num_updates"] == num_updates()
    assert read_csv(tmp_path / "metrics.csv")["step"].tolist() == list(range(20, 161, 20))


def test_a_longer_run_continues_a_finished_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, total_steps=80)
    summary = run(tmp_path)
    assert summary["total_steps"] == 160
    assert_same_end(finished, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [change["fields"] for change in config["changes"]] == [{"total_steps": 160}]


def test_derived_schedules_keep_their_length_in_a_longer_run(tmp_path: Path) -> None:
    derived = {"first_update_steps": None, "epsilon_decay_steps": None}
    run(tmp_path, total_steps=40, final_evaluation_episodes=1, **derived)
    run(tmp_path, total_steps=60, final_evaluation_episodes=1, **derived)
    recorded = json.loads((tmp_path / "config.json").read_text())["config"]
    assert (recorded["first_update_steps"], recorded["epsilon_decay_steps"]) == (2, 4)
    epsilon = read_csv(tmp_path / "metrics.csv")["charts/epsilon"]
    assert epsilon.tolist() == [0.01] * 3


# -- failures --------------------------------------------------------------------------------------


def test_a_loss_that_becomes_nan_ends_the_run_and_leaves_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = DQNLearner.update, 0

    def poisoned(learner: DQNLearner, batch: Any, num_updates: int = 1) -> Any:
        nonlocal calls
        calls += 1
        if calls == 12:  # at step 88: after the checkpoint of 80
            with torch.no_grad():
                learner.parameters[0].fill_(math.nan)
        return update(learner, batch, num_updates)

    monkeypatch.setattr(DQNLearner, "update", poisoned)
    with pytest.raises(RunFailure, match="by step 100") as caught:
        run(tmp_path)
    assert caught.value.exit_code == 1
    assert "--learning-rate" in str(caught.value)
    store = CheckpointStore(tmp_path / "checkpoints", warn=pytest.fail)
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.step == 80
    assert all(t.isfinite().all() for t in checkpoint.state["learner"]["online"].values())
    tensors, _ = load_model(tmp_path / "model.safetensors")
    assert all(t.isfinite().all() for t in tensors.values())
    assert read_csv(tmp_path / "metrics.csv")["step"].tolist() == [20, 40, 60, 80]


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from classicrl.checkpoint import CheckpointNotWritten

    save, calls = CheckpointStore.save, 0

    def full(store: Any, step: int, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if step == 40:
            raise CheckpointNotWritten("no space left on device")
        return save(store, step, *arguments, **named)

    monkeypatch.setattr(CheckpointStore, "save", full)
    run(tmp_path, total_steps=80, final_evaluation_episodes=1)
    assert "no space left" in capsys.readouterr().err
    paths = checkpoint_paths(tmp_path / "checkpoints")
    assert [read_checkpoint(path).step for path in paths] == [80]
    assert calls >= 2


def test_a_damaged_newest_checkpoint_falls_back_and_ends_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path, monkeypatch, at_update=25)  # at step 140, after the checkpoint of 120
    newest = checkpoint_paths(tmp_path / "checkpoints")[-1]
    data = bytearray((newest / "tensors-000.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "tensors-000.safetensors").write_bytes(data)
    run(tmp_path)
    assert_same_end(finished, tmp_path)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": "ALE/Ponk-v5"}, "did you mean ALE/Pong-v5"),
        ({"total_steps": -5}, "--total-steps must be positive"),
        ({"replay_capacity": 10**12}, "lower --replay-capacity"),
        ({"replay_capacity": 5}, "at least 10"),
        ({"learning_rate": math.nan}, "--learning-rate"),
        ({"seed": -1}, "--seed"),
        ({"n_steps": 0}, "--n-steps"),
        ({"gamma": 1.01}, "--gamma must be at most 1"),
        ({"epsilon_end": 5.0}, "--epsilon-end must be at most 1"),
        ({"learning_rate": math.inf}, "--learning-rate must be a finite number"),
        ({"learning_rate": math.nan}, "--learning-rate must be a finite number"),
        pytest.param(
            {"device": "cuda"},
            "--device cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_is_refused_and_the_mended_command_goes_through(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()
    config = script.Config(**{**SETTINGS, "run_dir": tmp_path})
    with script.Run(tmp_path) as again:
        again.configure(config, script.resolve)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "ALE/Ponk-v5"], "did you mean ALE/Pong-v5"),
        (["--total-steps", "-5"], "--total-steps must be positive"),
        (["--replay-capacity", str(10**12)], "lower --replay-capacity"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_flags_exit_2_with_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    exit_code, output = command_line(
        SCRIPT, *arguments, "--run-dir", str(tmp_path / "run"), output=tmp_path / "output"
    )
    assert exit_code == 2
    assert message in output
    assert output.startswith("error: ") and output.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--no-such-flag"], ["--total-steps", "many"], ["--preset", "huge"]]
)
def test_flags_that_cannot_be_parsed_exit_2_without_traceback(
    tmp_path: Path, arguments: list[str]
) -> None:
    exit_code, output = command_line(SCRIPT, *arguments, output=tmp_path / "output")
    assert exit_code == 2
    assert arguments[0] in output and "Traceback" not in output
    assert not (tmp_path / "runs").exists()


def test_help_needs_no_torch() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(AGENTS / f"{SCRIPT}.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--replay-capacity" in done.stdout


@pytest.mark.parametrize(("preset", "steps", "n_steps"), [("fast", 1e6, 3), ("gpu", 1e7, 1)])
def test_presets_set_defaults_and_flags_win(
    monkeypatch: pytest.MonkeyPatch, preset: str, steps: int, n_steps: int
) -> None:
    from classicrl.command_line import parse

    flags = ["--preset", preset, "--gamma", "0.5", "--no-double"]
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    config = parse(script.PRESETS, "cpu", "")
    expected = dataclasses.replace(script.PRESETS[preset], gamma=0.5, double=False)
    assert config == expected
    assert (config.total_steps, config.n_steps) == (steps, n_steps)
    monkeypatch.setattr(sys, "argv", ["x", "--gamma=0.5", f"--preset={preset}", "--no-double"])
    assert parse(script.PRESETS, "cpu", "") == expected


@pytest.mark.parametrize(("total", "first", "decay"), [(1_000_000, 50_000, 100_000), (7, 9, 1)])
def test_what_is_derived_from_the_length(total: int, first: int, decay: int) -> None:
    """Never an update before each of the 8 environments has made a step and seen its end."""
    config = script.resolve(script.Config(total_steps=total))
    assert (config.first_update_steps, config.epsilon_decay_steps) == (first, decay)


@pytest.mark.timeout(120)
def test_sigterm_to_the_program_saves_and_exits_75(tmp_path: Path) -> None:
    """As it is called by hand: no test's own code in that process."""
    arguments = "--total-steps 100000 --first-update-steps 50 --replay-capacity 2000 --device cpu"
    arguments += " --checkpoint-period-steps 80 --threads 1 --batch-size 8 --run-dir"
    command = [sys.executable, str(AGENTS / f"{SCRIPT}.py"), *arguments.split(), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        while not checkpoint_paths(tmp_path / "checkpoints"):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=40)  # for a busy machine: it takes about 1 s
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 75
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint.step >= 80
    assert f"stopped at step {checkpoint.step:,}; the same command continues" in errors
    assert "Traceback" not in errors
