"""The scripts of PPO with RND: what a run leaves, how it is stopped, killed and continued, on one
process and on two, what is refused, and that its agent can be played."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_process import AGENTS, CI, Kill, after_calls, command_line, load_script, train
from trees import assert_same_tree

pytest.importorskip("ale_py")

from PIL import Image

from classicrl.algorithms.ppo import PPOLearner
from classicrl.algorithms.rnd import RND
from classicrl.checkpoint import checkpoint_paths, load_model, read_checkpoint
from classicrl.envs.atari import PROTOCOLS, AtariSingle, AtariVector
from classicrl.errors import RunFailure, UserError
from classicrl.loggers import read_csv
from classicrl.taylor import taylor_weights

TIMES = ("charts/steps_per_second", "charts/wall_seconds")
COMMON: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "num_epochs": 2,
    "final_evaluation_episodes": 2,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo_rnd_atari": {
        **COMMON,
        "num_envs": 1,
        "rollout_steps": 6,
        "total_steps": 48,
        "warmup_rollouts": 2,
        "log_period_steps": 12,
        "checkpoint_period_steps": 12,
        "evaluation_period_steps": 24,
        "evaluation_episodes": 2,
    },
    "ppo_rnd_small": {
        **COMMON,
        "env_id": "classicrl/KeyReturn5-v0",
        "num_envs": 3,
        "num_minibatches": 3,
        "rollout_steps": 20,
        "total_steps": 960,
        "log_period_steps": 120,
        "checkpoint_period_steps": 240,
    },
}
SCRIPTS = list(SETTINGS)


def run(script: str, directory: Path, **settings: Any) -> dict[str, Any]:
    """``main``, in this process."""
    module = load_script(script)
    summary: dict[str, Any] = module.main(
        module.Config(**{**SETTINGS[script], "run_dir": directory, **settings})
    )
    return summary


def figures(directory: Path) -> tuple[dict[str, list[str]], str]:
    metrics = read_csv(directory / "metrics.csv")
    kept = {name: list(map(repr, metrics[name].tolist())) for name in metrics if name not in TIMES}
    return kept, (directory / "evaluations.csv").read_text()


def assert_same_end(one: Path, other: Path) -> None:
    assert figures(one) == figures(other)
    tensors, others = (load_model(d / "model.safetensors")[0] for d in (one, other))
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    states = [
        read_checkpoint(checkpoint_paths(d / "checkpoints")[-1]).state["learner"]
        for d in (one, other)
    ]
    assert_same_tree(states[0], states[1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def get(script: str) -> tuple[Path, Any]:
        if script not in made:
            directory = tmp_path_factory.mktemp(script)
            made[script] = directory, run(script, directory)
        return made[script]

    return get


Finished = Callable[[str], tuple[Path, Any]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_leaves_everything(script: str, finished: Finished) -> None:
    directory, summary = finished(script)
    files = {path.name for path in directory.iterdir()}
    expected = {"config.json", "metrics.csv", "evaluations.csv", "summary.json", "tensorboard"}
    if script == "ppo_rnd_atari":
        expected |= {"video.gif", "bonus.png"}
        assert summary["rooms"] == {"visited": 1, "first_seen_at_step": {1: 24}}
    assert {*expected, "model.safetensors"} <= files
    assert summary["agent"] == f"{script}-rnd"
    metrics = read_csv(directory / "metrics.csv")
    for name in ("bonus", "bonus_scale", "entropy", "approx_kl", "value_int_mean"):
        assert np.isfinite(metrics[f"diagnostics/{name}"]).all(), name
    for name in ("policy", "value_ext", "value_int", "predictor"):
        assert np.isfinite(metrics[f"losses/{name}"]).all(), name
    assert (metrics["diagnostics/bonus"] > 0).all()
    rollouts = summary["total_steps"] // (60 if script == "ppo_rnd_small" else 6)
    updates = rollouts * 2 * (3 if script == "ppo_rnd_small" else 1)
    assert summary["num_updates"] == updates


@pytest.mark.parametrize("script", SCRIPTS)
def test_stopped_and_continued_changes_nothing(
    script: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        after_calls(patch, PPOLearner, "update", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as caught:
            run(script, tmp_path)
    assert caught.value.code == 75
    run(script, tmp_path)
    assert_same_end(finished(script)[0], tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("script", ["ppo_rnd_small", pytest.param("ppo_rnd_atari", marks=CI)])
def test_killed_and_continued_changes_nothing(
    script: str, finished: Finished, tmp_path: Path
) -> None:
    settings = {**SETTINGS[script], "run_dir": tmp_path}
    for kill in (Kill("row", 2), Kill("fsync", 9)):
        assert train(script, settings, kill) == -signal.SIGKILL
    assert train(script, settings) == 0
    # The games of the process that was started are not cut short as they are in this one, so
    # evaluations differ; training does not reach their end.
    states = [
        read_checkpoint(checkpoint_paths(d / "checkpoints")[-1]).state["learner"]
        for d in (finished(script)[0], tmp_path)
    ]
    assert_same_tree(states[0], states[1])


def test_the_statistics_are_not_gathered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        after_calls(patch, PPOLearner, "update", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            run("ppo_rnd_atari", tmp_path)
    counts = []
    observe = RND.observe

    def counting(rnd: RND, obs: torch.Tensor) -> None:
        observe(rnd, obs)
        counts.append(float(rnd.view_moments.count))

    monkeypatch.setattr(RND, "observe", counting)
    run("ppo_rnd_atari", tmp_path)
    # Two random rollouts, then one for each rollout of the training: 8, one of them before.
    assert counts == pytest.approx([6.0 * n + 1e-4 for n in range(4, 11)])


@pytest.mark.slow
@pytest.mark.ci
def test_many_environments_begin_new_games_when_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num_envs": 4, "total_steps": 96, "env_groups": 2, "num_minibatches": 2}
    with monkeypatch.context() as patch:
        after_calls(patch, PPOLearner, "update", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            run("ppo_rnd_atari", tmp_path, **settings)
    seen: list[Any] = []
    update = PPOLearner.update

    def noting(learner: PPOLearner, rollout: Any) -> Any:
        seen.append(rollout.starts[0].clone())
        return update(learner, rollout)

    monkeypatch.setattr(PPOLearner, "update", noting)
    assert run("ppo_rnd_atari", tmp_path, **settings)["total_steps"] == 96
    assert seen[0].all() and not seen[1].any()


@pytest.mark.slow
@pytest.mark.ci
def test_groups_of_environments_fill_the_same_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two groups, too, obs[t + 1] follows obs[t], and rewards belong to their steps."""
    checked = 0
    received: list[Any] = []
    given: dict[int, list[Any]] = {}
    update, recv = PPOLearner.update, AtariVector.recv

    def noting(envs: AtariVector) -> Any:
        """Every step brings its own reward: 1, -1, 1, 1, -1, 1, ... by environment and step."""
        result = recv(envs)
        rows = given.setdefault(id(envs), [])
        signs = (-1.0) ** (np.arange(envs.num_envs) * len(rows) // 2)
        rows.append(signs)
        return result._replace(reward=(7 * signs).astype(np.float32))

    monkeypatch.setattr(AtariVector, "recv", noting)

    def checking(learner: PPOLearner, rollout: Any) -> Any:
        nonlocal checked
        output, _ = learner.network(rollout.obs, rollout.initial_state, rollout.starts)
        for name in ("value_ext", "value_int"):
            torch.testing.assert_close(
                getattr(output, name), getattr(rollout, name), atol=1e-5, rtol=1e-4
            )
        log_probs = output.logits[:-1].log_softmax(dim=-1)
        chosen = log_probs.gather(-1, rollout.action[..., None])[..., 0]
        torch.testing.assert_close(chosen, rollout.log_prob, atol=1e-4, rtol=1e-4)
        received.append(rollout.reward.numpy().copy())
        for t in range(rollout.num_steps):
            goes_on = ~rollout.starts[t + 1]
            # A stack is the one before, moved by a frame.
            now, after = rollout.obs[t][goes_on], rollout.obs[t + 1][goes_on]
            assert torch.equal(now[:, 1:], after[:, :-1])
            checked += 1
        ended = rollout.starts[1:]
        assert torch.equal(rollout.discount == 0, ended)
        return update(learner, rollout)

    monkeypatch.setattr(PPOLearner, "update", checking)
    run("ppo_rnd_atari", tmp_path, num_envs=6, env_groups=2, num_minibatches=3, total_steps=144)
    assert checked == 24
    groups = [np.stack(rows[12:]) for rows in given.values()]  # without the random rollouts
    np.testing.assert_array_equal(np.concatenate(received), np.concatenate(groups, axis=1))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"policy": "gru"}, marks=CI),
        {"bonus": "none"},
        pytest.param({"taylor_k": 1}, marks=CI),
        {"bootstrap_truncation": True, "rollout_steps": 70, "total_steps": 140},
        {"shuffle": True, "normalise_advantage": True, "max_grad_norm": 0.5, "num_minibatches": 1},
        {"anneal_learning_rate": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_options_of_the_atari_script(settings: dict[str, Any], tmp_path: Path) -> None:
    summary = run("ppo_rnd_atari", tmp_path, **settings)
    assert math.isfinite(summary["eval"]["mean_return"])
    assert (tmp_path / "bonus.png").exists() == (settings.get("bonus") != "none")


def test_a_time_limit_is_an_end_or_is_bootstrapped_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    update = PPOLearner.update

    def noting(learner: PPOLearner, rollout: Any) -> Any:
        seen.append((rollout.reward.clone(), rollout.discount.clone(), rollout.starts.clone()))
        return update(learner, rollout)

    monkeypatch.setattr(PPOLearner, "update", noting)
    values: list[float] = []
    value_of = PPOLearner.values

    def noting_values(learner: PPOLearner, obs: torch.Tensor, *rest: Any) -> Any:
        ext, intrinsic = value_of(learner, obs, *rest)
        if obs.shape[0] == 1 and len(last_views) and torch.equal(obs, last_views[-1]):
            values.append(float(ext[0]))
        return ext, intrinsic

    monkeypatch.setattr(PPOLearner, "values", noting_values)
    last_views: list[torch.Tensor] = []
    recv = AtariSingle.recv

    def noting_ends(env: AtariSingle) -> Any:
        result = recv(env)
        if result.ended[0]:
            last_views.append(torch.from_numpy(result.final_obs))
        return result

    monkeypatch.setattr(AtariSingle, "recv", noting_ends)
    for bootstrap in (False, True):
        run(
            "ppo_rnd_atari",
            tmp_path / str(bootstrap),
            rollout_steps=70,
            total_steps=70,
            bootstrap_truncation=bootstrap,
        )
    for (reward, discount, starts), bootstrap in zip(seen, (False, True), strict=True):
        ended = starts[1:]
        assert ended.sum() == 1  # games of 60 steps here
        assert (discount[ended] == 0).all()
        # Montezuma gives nothing there: what is left is the value of the game's own last view.
        expected = [0.999 * values[-1]] if bootstrap else [0.0]
        assert reward[ended].tolist() == pytest.approx(expected)


def test_the_taylor_weight_is_that_of_the_step_of_the_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    update = PPOLearner.update

    def noting(learner: PPOLearner, rollout: Any) -> Any:
        seen.append((rollout.weight_ext[:, 0].clone(), rollout.starts[:, 0].clone()))
        return update(learner, rollout)

    monkeypatch.setattr(PPOLearner, "update", noting)
    settings = {"rollout_steps": 25, "total_steps": 100, "taylor_k": 2}
    with monkeypatch.context() as patch:  # over a break, too
        after_calls(patch, PPOLearner, "update", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            run("ppo_rnd_atari", tmp_path, **settings)
    run("ppo_rnd_atari", tmp_path, **settings)
    weights = torch.cat([weight for weight, _ in seen])
    starts = torch.cat([starts[:-1] for _, starts in seen])
    assert starts.nonzero()[:, 0].tolist() == [0, 60]  # games of 60 steps here
    by_age = taylor_weights(61, 2, 0.999, 0.9999)
    expected = np.concatenate([by_age[:60], by_age[:40]])
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


def test_the_learning_rate_falls_over_its_own_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prolonging the run does not raise it again, which is said."""
    rates: list[float] = []
    update = PPOLearner.update

    def noting(learner: PPOLearner, rollout: Any) -> Any:
        rates.append(learner.optimizer.param_groups[0]["lr"])
        return update(learner, rollout)

    monkeypatch.setattr(PPOLearner, "update", noting)
    run("ppo_rnd_atari", tmp_path, anneal_learning_rate=True, total_steps=24)
    assert "learning rate is 0" not in capsys.readouterr().err
    run("ppo_rnd_atari", tmp_path, anneal_learning_rate=True, total_steps=36)
    assert "warning: from step 24 on the learning rate is 0" in capsys.readouterr().err
    assert rates == pytest.approx([1e-4, 0.75e-4, 0.5e-4, 0.25e-4, 0.0, 0.0])


@pytest.mark.parametrize("script", SCRIPTS)
def test_nan_ends_the_run_and_leaves_the_checkpoint(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = PPOLearner.update, 0

    def poisoned(learner: PPOLearner, rollout: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            with torch.no_grad():
                learner.parameters[0].fill_(math.nan)
        return update(learner, rollout)

    monkeypatch.setattr(PPOLearner, "update", poisoned)
    with pytest.raises(RunFailure, match="NaN or infinite"):
        run(script, tmp_path)
    newest = checkpoint_paths(tmp_path / "checkpoints")[-1]
    network = read_checkpoint(newest).state["learner"]["network"]
    assert all(values.isfinite().all() for values in network.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_agents_are_played_by_the_command(
    script: str, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    from classicrl import cli

    directory = finished(script)[0]
    words = [str(directory), "--episodes", "3", "--max-frames", "240", "--threads", "1"]
    outputs = []
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            cli.main(["evaluate", *words])
        assert caught.value.code == 0, capsys.readouterr()
        outputs.append(capsys.readouterr().out)
    assert f"{script}-rnd" in outputs[0] and outputs[0] == outputs[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_results_can_be_published_and_verified(
    script: str, finished: Finished, tmp_path: Path
) -> None:
    from classicrl.reports.publish import publish
    from classicrl.reports.reference import verify

    entry = publish(finished(script)[0], tmp_path, "x", cheap=True)
    assert f"agents/{script}.py" in entry.command and "--bonus rnd" in entry.command
    verdict = verify(entry, tmp_path, play=script == "ppo_rnd_small")
    assert verdict is not None and verdict.holds, verdict


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("ppo_rnd_atari", ["--env-id", "ALE/MontezumaRevenj-v5"], "ALE/MontezumaRevenge-v5"),
        ("ppo_rnd_atari", ["--num-envs", "7", "--env-groups", "2"], "cannot be shared equally"),
        ("ppo_rnd_atari", ["--num-envs", "6"], "--num-minibatches 4 does not divide 6"),
        ("ppo_rnd_atari", ["--policy", "gru", "--shuffle"], "leave --shuffle off"),
        ("ppo_rnd_atari", ["--taylor-k", "1", "--taylor-gamma", "0.9"], "--taylor-gamma must lie"),
        ("ppo_rnd_atari", ["--predictor-keep-prob", "1.5"], "must be at most 1"),
        ("ppo_rnd_atari", ["--gamma-int", "-1"], "--gamma-int must not be negative"),
        ("ppo_rnd_atari", ["--num-envs", "100000000"], "is more than the 4096"),
        ("ppo_rnd_atari", ["--rollout-steps", "100000000"], "lower --rollout-steps or --num-envs"),
        ("ppo_rnd_small", ["--env-id", "classicrl/ChainLok40-v0"], "classicrl/ChainLock40-v0"),
        ("ppo_rnd_small", ["--env-id", "Pendulum-v1"], "only discrete actions"),
        ("ppo_rnd_small", ["--num-minibatches", "3"], "--num-minibatches 3 does not divide 32"),
        ("ppo_rnd_small", ["--learning-rate", "nan"], "--learning-rate must be a finite number"),
    ],
)
def test_bad_flags_exit_2_with_one_line(
    tmp_path: Path, script: str, arguments: list[str], message: str
) -> None:
    exit_code, output = command_line(
        script, *arguments, "--run-dir", str(tmp_path / "run"), output=tmp_path / "output"
    )
    assert exit_code == 2, output
    assert message in output
    assert output.startswith("error: ") and output.count("\n") == 1


def test_another_setting_is_refused(finished: Finished) -> None:
    with pytest.raises(UserError, match=r"int_coef is 0\.5, was 1\.0"):
        run("ppo_rnd_small", finished("ppo_rnd_small")[0], int_coef=0.5)


def test_the_room_byte_is_the_room() -> None:
    """Another number in that byte shows another room, and the same one the same room again."""
    env = AtariSingle("ALE/MontezumaRevenge-v5", protocol=PROTOCOLS["classic"], seed=0)
    env.reset()
    assert env.ram()[3] == 1
    pictures = {}
    for room in (1, 0, 2, 5, 1):
        env._ale.setRAM(3, room)
        for _ in range(3):
            env.step(np.array([0]))
        assert env.ram()[3] == room
        picture = env.render()[50:150].copy()  # walls and floors, without score and lives
        if room in pictures:
            assert np.mean(picture != pictures[room]) < 0.03
        pictures[room] = picture
    rooms = list(pictures)
    for a in rooms:
        for b in rooms:
            assert a == b or np.mean(pictures[a] != pictures[b]) > 0.03, (a, b)


def test_the_pictures_of_an_episode(finished: Finished) -> None:
    directory = finished("ppo_rnd_atari")[0]
    with Image.open(directory / "bonus.png") as picture:
        assert picture.size[0] == 848
        blue = np.all(np.abs(np.asarray(picture).astype(int) - (90, 200, 250)) < 20, axis=-1)
    assert blue.sum() > 300  # the line is there
    with Image.open(directory / "video.gif") as video:
        assert video.size == (160, 274)
        assert video.n_frames == 31  # type: ignore[attr-defined]  # 60 steps, one of two


# -- several processes -----------------------------------------------------------------------------


def torchrun(directory: Path, total_steps: int, *arguments: str) -> "subprocess.Popen[str]":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    command += ["--max-restarts", "0", str(AGENTS / "ppo_rnd_atari.py"), "--preset", "cpu"]
    settings = {**SETTINGS["ppo_rnd_atari"], "num_envs": 2, "total_steps": total_steps}
    settings |= {"evaluation_period_steps": 10_000, "final_evaluation_episodes": 1}
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--run-dir", str(directory), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def worker_pids(directory: Path) -> list[int]:
    """Processes of a training in that directory, those that torchrun started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(directory) in words and "torch.distributed.run" not in words:
            found.append(int(path.parent.name))
    return sorted(found)


def learner_state(directory: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_checkpoint(checkpoint_paths(directory / "checkpoints")[-1]).state
    return state


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(400)
def test_two_processes_train_one_agent_and_a_killed_one_changes_nothing(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = torchrun(whole, 240)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    first, second = learner_state(whole), learner_state(whole / "ranks" / "1")
    for name, values in first["learner"]["network"].items():
        assert torch.equal(values, second["learner"]["network"][name]), name
    moments = [state["learner"]["rnd"]["view_moments"] for state in (first, second)]
    assert torch.equal(moments[0]["var"], moments[1]["var"])
    assert float(moments[0]["count"]) == pytest.approx(2 * (6 * 2 + 120) + 1e-4)
    # Not the same games, though: each rank has environments and random numbers of its own.
    for name in ("envs0", "rollout"):
        assert first.keys() == second.keys() and name in first
    assert first["envs0"]["emulator"] != second["envs0"]["emulator"]
    generators = [state["learner"]["generator"]["state"] for state in (first, second)]
    assert not torch.equal(*generators)

    process = torchrun(broken, 240)
    deadline = time.monotonic() + 100
    while not checkpoint_paths(broken / "ranks" / "1" / "checkpoints")[1:]:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(worker_pids(broken)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)  # the other one is ended with it
    assert process.returncode != 0, output
    assert not worker_pids(broken)
    process = torchrun(broken, 240)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    for rank in ("", "ranks/1"):
        states = [learner_state(directory / rank)["learner"] for directory in (broken, whole)]
        assert_same_tree(states[0], states[1])
    summary = json.loads((broken / "summary.json").read_text())
    assert summary["num_processes"] == 2
    # One alone cannot continue what two have made, and nothing of it is lost.
    with pytest.raises(UserError, match="made by 2 processes"):
        run(
            "ppo_rnd_atari",
            broken,
            **{**SETTINGS["ppo_rnd_atari"], "num_envs": 2}
            | {"total_steps": 360, "evaluation_period_steps": 10_000}
            | {"final_evaluation_episodes": 1, "preset": "cpu"},
        )
    assert len(checkpoint_paths(broken / "checkpoints")) == 3
