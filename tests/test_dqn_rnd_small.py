"""Value learners with an intrinsic stream: what they learn from; runs can be continued."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_process import CI, after_calls, command_line, load_script

from classicrl.algorithms.dqn import DQNLearner
from classicrl.algorithms.rnd import RND
from classicrl.checkpoint import load_model
from classicrl.loggers import read_csv

SETTINGS: dict[str, Any] = {
    "num_envs": 3,
    "total_steps": 900,
    "batch_size": 8,
    "updates_per_round": 2,
    "replay_capacity": 500,
    "first_update_steps": 60,
    "target_period_steps": 70,
    "log_period_steps": 90,
    "checkpoint_period_steps": 150,
    "final_evaluation_episodes": 2,
}


def run(directory: Path, **settings: Any) -> dict[str, Any]:
    script = load_script("dqn_rnd_small")
    summary: dict[str, Any] = script.main(
        script.Config(**{**SETTINGS, "run_dir": directory, **settings})
    )
    return summary


@pytest.mark.parametrize("member", [pytest.param("dueling", marks=CI), "va"])
def test_what_is_learned_from(member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Any] = []
    update = DQNLearner.update

    def noting(learner: DQNLearner, batch: Any, num_updates: int = 1) -> Any:
        batches.append(batch)
        return update(learner, batch, num_updates)

    monkeypatch.setattr(DQNLearner, "update", noting)
    start = np.zeros(50, dtype=np.float32)
    start[0] = 1.0  # at the entrance, without the key
    bonuses: list[tuple[torch.Tensor, torch.Tensor]] = []
    bonus = RND.bonus

    def of(rnd: RND, obs: torch.Tensor) -> torch.Tensor:
        value = bonus(rnd, obs)
        bonuses.append((obs, value))
        return value

    monkeypatch.setattr(RND, "bonus", of)
    run(tmp_path, member=member)
    ended = elsewhere = 0
    for ext, intrinsic in zip(batches[::2], batches[1::2], strict=True):
        assert torch.equal(ext.obs, intrinsic.obs) and torch.equal(ext.action, intrinsic.action)
        assert set(ext.discount.tolist()) <= {0.0, np.float32(0.99).item()}
        assert set(intrinsic.discount.tolist()) == {np.float32(0.95).item()}  # never ends
        over = ext.discount == 0
        ended += int(over.sum())
        assert torch.equal(intrinsic.next_obs[~over], ext.next_obs[~over])
        assert (intrinsic.next_obs[over] == torch.from_numpy(start)).all()
        elsewhere += int((ext.next_obs[over] != intrinsic.next_obs[over]).any(dim=1).sum())
        assert (intrinsic.reward >= 0).all() and intrinsic.reward.any()
    assert ended >= elsewhere > 0  # an episode may end where it began
    # Of the sampled observations, each time anew.
    sampled = [obs for obs, _ in bonuses if len(obs) == 16]
    assert len(sampled) == len(batches) // 2


def test_stopped_and_continued_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        after_calls(patch, DQNLearner, "update", 301, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as caught:
            run(tmp_path / "broken")
    assert caught.value.code == 75
    run(tmp_path / "broken")
    rows = [read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "broken")]
    for name in rows[0]:
        if name not in ("charts/steps_per_second", "charts/wall_seconds"):
            np.testing.assert_array_equal(rows[0][name], rows[1][name])
    models = [load_model(tmp_path / n / "model.safetensors")[0] for n in ("whole", "broken")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_without_a_bonus_there_is_one_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners: set[int] = set()
    update = DQNLearner.update

    def noting(learner: DQNLearner, batch: Any, num_updates: int = 1) -> Any:
        learners.add(id(learner))
        return update(learner, batch, num_updates)

    monkeypatch.setattr(DQNLearner, "update", noting)
    run(tmp_path, bonus="none")
    assert len(learners) == 1


def test_the_agent_is_played_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from classicrl import cli

    run(tmp_path, member="rdq")
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(tmp_path), "--episodes", "2"])
    assert caught.value.code == 0
    assert "dqn_rnd_small-rdq" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "CartPole-v1"], "must always be the same one"),
        (["--first-update-steps", "16"], "must be above --num-envs"),
        (["--beta", "-1"], "--beta must not be negative"),
        (["--epsilon", "2"], "--epsilon must be at most 1"),
    ],
)
def test_bad_flags_exit_2_with_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    exit_code, output = command_line(
        "dqn_rnd_small", *arguments, "--run-dir", str(tmp_path / "run"), output=tmp_path / "out"
    )
    assert exit_code == 2, output
    assert message in output and output.startswith("error: ") and output.count("\n") == 1
