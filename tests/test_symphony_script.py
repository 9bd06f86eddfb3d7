"""agents/symphony_mujoco.py: what a run leaves, how it is stopped and continued, what is refused,
that its agent can be played, published and verified."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_process import CI, after_calls, command_line, load_script
from trees import assert_same_tree

pytest.importorskip("mujoco")

from classicrl.algorithms.symphony import METRICS, SymphonyLearner
from classicrl.checkpoint import checkpoint_paths, load_model, read_checkpoint
from classicrl.errors import RunFailure, UserError
from classicrl.loggers import read_csv

TIMES = ("charts/steps_per_second", "charts/wall_seconds")
SETTINGS: dict[str, Any] = {
    "env_id": "Hopper-v5",
    "total_steps": 120,
    "device": "cpu",
    "threads": 1,
    "hidden": 16,
    "heads_per_critic": 4,
    "batch_size": 8,
    "warmup_steps": 40,
    "warmup_replication": 3,
    "updates_per_step": 2,
    "log_period_steps": 20,
    "checkpoint_period_steps": 30,
    "evaluation_period_steps": 60,
    "evaluation_episodes": 1,
    "final_evaluation_episodes": 2,
    "video": False,
}


def run(directory: Path, **settings: Any) -> dict[str, Any]:
    """``main``, in this process."""
    script = load_script("symphony_mujoco")
    config = script.Config(**{**SETTINGS, "run_dir": directory, **settings})
    summary: dict[str, Any] = script.main(config)
    return summary


def stopped_then_continued(
    directory: Path, monkeypatch: pytest.MonkeyPatch, updates: int, **settings: Any
) -> dict[str, Any]:
    with monkeypatch.context() as patch:
        after_calls(
            patch, SymphonyLearner, "update", updates, lambda: os.kill(os.getpid(), signal.SIGTERM)
        )
        with pytest.raises(SystemExit) as caught:
            run(directory, **settings)
    assert caught.value.code == 75
    assert not (directory / "summary.json").exists()
    return run(directory, **settings)


def assert_same_end(one: Path, other: Path) -> None:
    metrics, others = (read_csv(d / "metrics.csv") for d in (one, other))
    for name in metrics:
        if name not in TIMES:
            np.testing.assert_array_equal(metrics[name], others[name], err_msg=name)
    assert (one / "evaluations.csv").read_text() == (other / "evaluations.csv").read_text()
    states = [read_checkpoint(checkpoint_paths(d / "checkpoints")[-1]).state for d in (one, other)]
    for part in ("learner", "replay", "envs", "meter"):
        assert_same_tree(states[0][part], states[1][part], part)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("hopper")
    return directory, run(directory)


def test_a_run_leaves_everything(finished: tuple[Path, dict[str, Any]]) -> None:
    directory, summary = finished
    files = {path.name for path in directory.iterdir()}
    assert {"config.json", "metrics.csv", "evaluations.csv", "summary.json"} <= files
    assert {"model.safetensors", "tensorboard", "checkpoints"} <= files
    assert summary["agent"] == "symphony_mujoco-s3"
    assert summary["num_updates"] == 2 * (120 - 40)
    scores = summary["eval"]
    for name in ("action_magnitude", "action_rate", "action_jerk", "energy_joules", "mean_steps"):
        assert math.isfinite(scores[name]) and scores[name] > 0, name
    assert 0 <= scores["action_saturation"] <= 1 and scores["action_spectrum"] > 0
    metrics = read_csv(directory / "metrics.csv")
    late = metrics["step"] > 40
    assert late.any() and not late.all()
    for name in [f"diagnostics/{name}" for name in METRICS[3:]]:
        assert np.isnan(metrics[name][~late]).all() and np.isfinite(metrics[name][late]).all()
    assert np.isfinite(metrics["losses/td"][late]).all()
    assert np.isfinite(metrics["smoothness/action_rate"]).all()
    assert metrics["charts/reward_scale"][-1] == summary["reward_scale"] > 0
    evaluations = read_csv(directory / "evaluations.csv")
    assert evaluations["step"].tolist() == [60, 120]
    card = load_model(directory / "model.safetensors")[1]
    assert card["step"] == "120" and card["protocol"] == "control"


@pytest.mark.parametrize("updates", [1, 33])
def test_stopped_and_continued_changes_nothing(
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    updates: int,
) -> None:
    stopped_then_continued(tmp_path, monkeypatch, updates)
    assert_same_end(finished[0], tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"member": "s2", "env_id": "Pendulum-v1", "num_envs": 2, "obs_norm": True},
        pytest.param({"env_id": "Ant-v5", "end_noise_only": True, "action_scale": 1.5}, marks=CI),
    ],
    ids=["pendulum", "ant"],
)
def test_variants_are_continued_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = {"total_steps": 80, **settings}
    run(tmp_path / "whole", **settings)
    stopped_then_continued(tmp_path / "parts", monkeypatch, 11, **settings)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_without_a_saved_replay_the_present_policy_refills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = stopped_then_continued(tmp_path, monkeypatch, 20, checkpoint_replay="none")
    assert "refill" in capsys.readouterr().err
    assert summary["refill_steps"] == 40 and summary["num_updates"] == 2 * 80


def test_a_warm_up_that_was_not_saved_is_played_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped within the warm-up: what was stored of it comes first, then the rest of it."""
    settings = {"checkpoint_replay": "none", "obs_norm": True, "evaluation_period_steps": 1_000}
    run(tmp_path, total_steps=30, **settings)
    summary = run(tmp_path, total_steps=60, **settings)
    assert "30 steps of the present policy refill it" in capsys.readouterr().err
    assert summary["refill_steps"] == 30 and summary["num_updates"] == 2 * 20
    state = read_checkpoint(checkpoint_paths(tmp_path / "checkpoints")[-1]).state
    assert state["learner"]["actor"]["obs_norm.std"].ne(1).any()


def test_members_and_presets_are_those_of_the_paper() -> None:
    script = load_script("symphony_mujoco")

    def of(**settings: Any) -> Any:
        return script.resolve(script.Config(**settings))

    for member, capacity, batch, heads, updates, rate, noise in (
        ("s3", 512_000, 384, 128, 3, 1e-4, 1 / math.e),
        ("se", 512_000, 384, 128, 3, 1e-4, 1 / math.pi),
        ("s2", 512_000, 384, 128, 3, 5e-5, 1 / math.e),
        ("ed", 384_000, 288, 96, 2, 1e-4, 1 / math.e),
    ):
        config = of(member=member)
        assert config.warmup_steps * config.warmup_replication == capacity
        assert (config.batch_size, config.heads_per_critic) == (batch, heads)
        assert (config.updates_per_step, config.learning_rate) == (updates, rate)
        assert config.noise_std == noise and config.grad_dropout == (member == "s2")
    assert of(hidden=40).heads_per_critic == 10
    for name, preset in script.PRESETS.items():
        assert preset.preset == name
        assert dataclasses.asdict(script.resolve(preset))["hidden"] in (64, 512)
    assert script.PRESETS["humanoid"].action_scale == 1.0


def test_noise_alone_acts_at_the_end_of_an_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pendulum's episodes have 200 steps: the last 51 of them begin at step 150."""
    gains: list[float] = []
    act = SymphonyLearner.act

    def watching(self: Any, obs: Any, *, explore: bool = True, policy_gain: Any = None) -> Any:
        if explore:
            gains.append(float(policy_gain))
        return act(self, obs, explore=explore, policy_gain=policy_gain)

    monkeypatch.setattr(SymphonyLearner, "act", watching)
    settings = {"env_id": "Pendulum-v1", "end_noise_only": True, "warmup_steps": 250}
    run(tmp_path, total_steps=250, evaluation_period_steps=1_000, **settings)
    assert gains == [1.0] * 149 + [0.0] * 51 + [1.0] * 50


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = SymphonyLearner.update

    def broken(self: Any, batch: Any, num_updates: int = 1) -> Any:
        return {**update(self, batch, num_updates), "critic": torch.full((num_updates,), math.nan)}

    monkeypatch.setattr(SymphonyLearner, "update", broken)
    with pytest.raises(RunFailure, match="lower --learning-rate"):
        run(tmp_path)


def test_observations_that_are_not_finite_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    step = HopperEnv.step

    def broken(self: Any, action: Any) -> Any:
        obs, *others = step(self, action)
        return (np.where(obs == obs[1], np.nan, obs), *others)

    monkeypatch.setattr(HopperEnv, "step", broken)
    with pytest.raises(RunFailure, match=r"an observation that is NaN .* last checkpoint stands"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": "CartPole-v1"}, "discrete actions"),
        ({"env_id": "Hoper-v5"}, "did you mean Hopper-v5"),
        ({"num_envs": 3}, "multiple of --num-envs"),
        ({"gamma": 1.5}, "--gamma must be at most 1"),
        ({"learning_rate": -1.0}, "--learning-rate must be positive"),
        ({"hidden": 3, "heads_per_critic": None}, "--hidden 3 leaves critics without heads"),
        ({"device": "cuda"}, "no CUDA"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_another_setting_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"gamma is 0\.9, was 0\.99"):
        run(finished[0], gamma=0.9)


def test_command_line(tmp_path: Path) -> None:
    code, output = command_line("symphony_mujoco", "--member", "s9", output=tmp_path / "out")
    assert code == 2 and "Traceback" not in output
    code, output = command_line("symphony_mujoco", "--help", output=tmp_path / "out")
    assert code == 0 and "--updates-per-step" in output


def test_the_agent_is_played_published_and_verified(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from classicrl import cli

    directory, summary = finished
    index = str(tmp_path / "index.json")
    for arguments in (
        ["evaluate", str(directory), "--episodes", "2", "--threads", "1"],
        ["publish", str(directory), "--name", "hopper", "--cheap", "--index", index],
        ["verify", "--index", index, "--threads", "1"],
        ["plot", str(directory), "--out", str(tmp_path / "curves.png")],
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        output = capsys.readouterr()
        assert caught.value.code == 0, output
        if arguments[0] == "evaluate":
            assert f"{summary['eval']['mean_return']:.2f}" in output.out
            assert "deterministic policy" in output.out
    (entry,) = json.loads(Path(index).read_text())
    assert entry["agent"] == "symphony_mujoco-s3" and entry["variant"] == "default"
    assert "agents/symphony_mujoco.py" in entry["command"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(directory), "--epsilon", "0.1"])
    assert caught.value.code == 2 and "no discrete actions" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from classicrl.agent_file import load_agent
    from classicrl.checkpoint import save_model

    tensors, card = load_model(finished[0] / "model.safetensors")
    path = tmp_path / "model.safetensors"
    save_model(path, tensors, {**card, "env_id": "Walker2d-v5"})
    with pytest.raises(UserError, match="does not fit"):
        load_agent(path)
    save_model(path, tensors, {**card, "torso": "vector"})
    with pytest.raises(UserError, match="torso 'vector'"):
        load_agent(path)
    del tensors["block.second.weight"]
    save_model(path, tensors, card)
    with pytest.raises(UserError, match="does not fit"):
        load_agent(path)
