"""The scripts of the value learners, for every member of the family: what a run leaves, how it is
stopped, killed and continued, what is refused, and that its agent can be played and drawn.

Networks are updated with batches of 8; Atari's games are cut after 60 steps.
"""

import dataclasses
import difflib
import importlib.util
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from script_process import AGENTS, CI, Kill, after_calls, command_line, load_script, train
from trees import assert_same_tree

pytest.importorskip("ale_py")

from classicrl.algorithms.dqn import FAMILY, DQNLearner
from classicrl.checkpoint import checkpoint_paths, load_model, read_checkpoint
from classicrl.errors import RunFailure, UserError
from classicrl.loggers import EpisodeStatistics, read_csv
from classicrl.reports.plots import plot_runs
from classicrl.reports.records import read_run

TIMES = ("charts/steps_per_second", "charts/wall_seconds")
COMMON: dict[str, Any] = {
    "total_steps": 160,
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
SETTINGS: dict[str, dict[str, Any]] = {
    "va_atari": {**COMMON, "num_envs": 1},
    "va_minatar": {**COMMON, "num_envs": 2, "num_seeds": 2, "seed": 3},
    "va_classic_control": {**COMMON, "num_envs": 1, "num_seeds": 2, "seed": 3},
}


class Case(NamedTuple):
    script: str
    member: str

    def __str__(self) -> str:
        return f"{self.script}-{self.member}"

    @property
    def settings(self) -> dict[str, Any]:
        return {**SETTINGS[self.script], "member": self.member}

    def run(self, directory: Path, **settings: Any) -> dict[str, Any]:
        """``main``, in this process."""
        script = load_script(self.script)
        config = script.Config(**{**self.settings, "run_dir": directory, **settings})
        summary: dict[str, Any] = script.main(config)
        return summary

    def results(self, directory: Path) -> list[Path]:
        """Directories with the results of one seed each."""
        seeds = SETTINGS[self.script].get("num_seeds")
        return [directory] if seeds is None else [directory / f"seed{3 + k}" for k in range(seeds)]

    def shared(self, directory: Path) -> Path:
        """Where the checkpoints are."""
        return directory if "num_seeds" not in self.settings else directory / "seeds3-4"


needs_minatar = pytest.mark.skipif(
    importlib.util.find_spec("minatar") is None, reason="requires minatar"
)
CASES = [Case("va_atari", member) for member in FAMILY if member != "dueling"]
CASES += [Case(script, m) for script in ("va_minatar", "va_classic_control") for m in FAMILY]
SCRIPTS = [Case(script, "va") for script in SETTINGS]


def params(
    cases: list[Case],
    ci: Callable[[Case], bool] = lambda case: False,
    slow: Callable[[Case], bool] = lambda case: False,
) -> list[Any]:
    """Parameters of a test; ``ci`` and ``slow`` are those that `make test` has no time for."""
    return [
        pytest.param(
            case,
            id=str(case),
            marks=[needs_minatar] * (case.script == "va_minatar")
            + [*CI] * ci(case)
            + [pytest.mark.slow] * slow(case),
        )
        for case in cases
    ]


def every_member(ci: Callable[[Case], bool] = lambda case: False) -> list[Any]:
    """All cases: `make test` has ``va``, but for those of ``ci``; continuous integration the others
    of classic control, too; `make test-slow` all."""

    def other(case: Case) -> bool:
        return case.member != "va"

    return params(
        CASES,
        ci=lambda case: ci(case) or (other(case) and case.script == "va_classic_control"),
        slow=lambda case: other(case) and case.script != "va_classic_control",
    )


def other_on_atari(case: Case) -> bool:
    """Members whose script `make test` runs with ``va`` alone."""
    return case.script == "va_atari" and case.member != "va"


def figures(directory: Path) -> tuple[dict[str, list[str]], str]:
    """What metrics.csv (but for the times) and evaluations.csv hold."""
    metrics = read_csv(directory / "metrics.csv")
    kept = {name: list(map(repr, metrics[name].tolist())) for name in metrics if name not in TIMES}
    return kept, (directory / "evaluations.csv").read_text()


def assert_same_end(case: Case, one: Path, other: Path) -> None:
    for a, b in zip(case.results(one), case.results(other), strict=True):
        assert figures(a) == figures(b)
        (tensors, card), (others, other_card) = (
            load_model(d / "model.safetensors") for d in (a, b)
        )
        assert card == other_card
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    states = [
        read_checkpoint(checkpoint_paths(case.shared(d) / "checkpoints")[-1]).state["learner"]
        for d in (one, other)
    ]
    assert_same_tree(states[0], states[1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], tuple[Path, Any]]:
    """An uninterrupted run and its summary; made once for each case."""
    made: dict[Case, tuple[Path, Any]] = {}

    def get(case: Case) -> tuple[Path, Any]:
        if case not in made:
            directory = tmp_path_factory.mktemp(str(case))
            made[case] = directory, case.run(directory)
        return made[case]

    return get


Finished = Callable[[Case], tuple[Path, Any]]


@pytest.mark.parametrize("case", params(CASES, ci=other_on_atari))
def test_a_run_leaves_everything_and_learns(case: Case, finished: Finished) -> None:
    directory, summary = finished(case)
    assert summary["agent"] == str(case)
    # One for every multiple of 4 (or 2) that is passed by a step from the first update on.
    period = 2 if case.script == "va_classic_control" else 4
    first = 0 if case.script == "va_atari" else 1
    assert summary["num_updates"] == 160 // period - 40 // period + first
    for result in case.results(directory):
        files = {path.name for path in result.iterdir()}
        assert {"config.json", "metrics.csv", "evaluations.csv", "summary.json"} <= files
        assert {"model.safetensors", "tensorboard"} <= files
        own = json.loads((result / "summary.json").read_text())
        assert own["agent"] == str(case) and own["eval"]["episodes"] == 2
        metrics = read_csv(result / "metrics.csv")
        late = metrics["step"] > 60
        names = {f"diagnostics/{name}" for name in ("q", "max_q", "action_gap", "grad_norm")}
        if case.member != "dqn":
            names |= {f"diagnostics/{n}" for n in ("value", "advantage", "advantage_spread")}
        if FAMILY[case.member].head == "behaviour":
            names.add("diagnostics/behaviour_nll")
        if case.member == "va-fitted":
            names.add("diagnostics/centre_error")
        assert {name for name in metrics if name.startswith("diagnostics/")} == names
        for name in (*names, "losses/td"):
            assert np.isfinite(metrics[name][late]).all(), name
        assert (metrics["losses/td"][late] >= 0).all()
    models = [load_model(d / "model.safetensors")[0] for d in case.results(directory)]
    if len(models) > 1:  # other seeds, other weights
        assert not any(torch.equal(models[0][name], models[1][name]) for name in models[0])


class Built(Exception):
    """The learner that a script has made."""


STREAMS: dict[str, tuple[str, float, str | None]] = {
    "dqn": ("squared", 0.0, None),
    "dueling": ("squared", 0.0, "mean"),
    "dueling-behaviour": ("squared", 0.0, "behaviour"),
    "va": ("va", 0.0, "behaviour"),
    "va-raw": ("va", 0.0, "none"),
    "va-fitted": ("va", 0.0, "fitted"),
    "rdq": ("squared", 1e-3, "none"),
}
"""Loss, penalty and what centres the advantage, written down once more."""


@pytest.mark.parametrize(
    "case", params([*CASES, Case("dueling_dqn_atari", "dueling")], ci=other_on_atari)
)
def test_a_script_builds_the_member_that_was_asked_for(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script(case.script)
    built: list[DQNLearner] = []

    def build(*arguments: Any, **settings: Any) -> DQNLearner:
        built.append(DQNLearner(*arguments, **settings))
        raise Built

    monkeypatch.setattr(script, "DQNLearner", build)
    settings = SETTINGS.get(case.script, {**COMMON, "num_envs": 1}) | {"run_dir": tmp_path}
    if case.script != "dueling_dqn_atari":
        settings |= {"member": case.member}
    with pytest.raises(Built):
        script.main(script.Config(**settings))
    [learner] = built
    head: Any = learner.online.head
    loss, penalty, centring = STREAMS[case.member]
    assert (learner.loss, learner.stream_penalty) == (loss, penalty)
    assert getattr(head, "centring", None) == centring
    # Units of both streams together; a single stream is as wide but for MinAtar, as in its study.
    units = {"va_minatar": 256, "va_classic_control": 128}.get(case.script, 512)
    single_of_minatar = (case.script, case.member) == ("va_minatar", "dqn")
    assert head.hidden.weight.shape[-2] == (128 if single_of_minatar else units)
    assert learner.max_grad_norm == (math.inf if case.script == "va_minatar" else 10.0)
    two_streams_on_atari = case.script.endswith("_atari") and centring is not None
    assert learner.online.torso_gradient_scale == (2**-0.5 if two_streams_on_atari else 1.0)
    assert not learner.double


@pytest.mark.parametrize("case", params(CASES, ci=other_on_atari))
def test_stopped_and_continued_changes_nothing(
    case: Case, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        after_calls(patch, DQNLearner, "update", 14, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as caught:
            case.run(tmp_path)
    assert caught.value.code == 75
    assert not (case.shared(tmp_path) / "summary.json").exists()
    case.run(tmp_path)
    assert_same_end(case, finished(case)[0], tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "case", every_member(ci=lambda c: c.member == "va" and c.script != "va_classic_control")
)
def test_killed_and_continued_changes_nothing(
    case: Case, finished: Finished, tmp_path: Path
) -> None:
    settings = {**case.settings, "run_dir": tmp_path}
    for kill in (Kill("update", 12), Kill("fsync", 7)):
        assert train(case.script, settings, kill) == -signal.SIGKILL
    assert train(case.script, settings) == 0
    assert_same_end(case, finished(case)[0], tmp_path)


@pytest.mark.parametrize("case", every_member())
def test_a_finished_run_tells_its_summary(
    case: Case, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, summary = finished(case)

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(load_script(case.script), "train", refuse)
    assert case.run(directory) == summary


@pytest.mark.parametrize("case", every_member())
def test_another_member_or_setting_is_refused(case: Case, finished: Finished) -> None:
    other = "va-raw" if case.member == "rdq" else "rdq"
    with pytest.raises(UserError) as caught:
        case.run(finished(case)[0], gamma=0.5, member=other)
    message = str(caught.value)
    assert (
        "gamma is 0.5, was 0.99" in message and f"member is {other}, was {case.member}" in message
    )


def test_seeds_that_were_trained_with_others_are_not_written_over(tmp_path: Path) -> None:
    case = Case("va_classic_control", "va")
    case.run(tmp_path, total_steps=60)
    with pytest.raises(UserError, match="made with other seeds: use"):
        case.run(tmp_path, total_steps=60, seed=4, num_seeds=1)
    with pytest.raises(UserError, match="train the others with --seed 5 --num-seeds 2, use"):
        case.run(tmp_path, total_steps=60, seed=3, num_seeds=4)
    with pytest.raises(UserError, match=r"gamma is 0.5, was 0.99"):  # others would not go with it
        case.run(tmp_path, total_steps=60, seed=3, num_seeds=4, gamma=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed3", "seed4", "seeds3-4"]
    case.run(tmp_path, total_steps=60, seed=4, num_seeds=1, overwrite=True)
    with pytest.raises(UserError, match="made with other seeds"):  # seed 3 cannot go on without it
        case.run(tmp_path, total_steps=80)
    case.run(tmp_path, total_steps=60, seed=5, num_seeds=1)
    commands = json.loads((tmp_path / "seed5" / "config.json").read_text())["config"]
    assert (commands["seed"], commands["num_seeds"]) == (5, 1)


@pytest.mark.parametrize("case", params(CASES, ci=other_on_atari))
def test_agents_are_played_and_drawn_by_the_command(
    case: Case, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from classicrl import cli

    results = case.results(finished(case)[0])
    for arguments in (
        ["evaluate", str(results[0]), "--episodes", "3", "--max-frames", "240", "--threads", "1"],
        ["plot", *map(str, results), "--out", str(tmp_path / "curves.png"), "--metric", "eval"],
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0, capsys.readouterr()
    assert str(case) in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_what_seeds_share_is_not_played_but_a_seed_is_named(finished: Finished) -> None:
    from classicrl.agent_file import load_agent

    case = Case("va_classic_control", "va")
    directory = finished(case)[0]
    for path in (case.shared(directory), directory):
        with pytest.raises(UserError, match=r"such as .*seed3, or a model file"):
            load_agent(path)


@pytest.mark.parametrize("case", every_member())
def test_results_can_be_published_and_verified(
    case: Case, finished: Finished, tmp_path: Path
) -> None:
    from classicrl.reports.publish import publish
    from classicrl.reports.reference import verify

    for k, result in enumerate(case.results(finished(case)[0])):
        entry = publish(result, tmp_path, f"x{k}", cheap=True)
        assert (
            f"agents/{case.script}.py" in entry.command
            and f"--member {case.member}" in entry.command
        )
        verdict = verify(entry, tmp_path)
        assert verdict is not None and verdict.holds, verdict


@pytest.mark.parametrize("case", every_member())
def test_nan_ends_the_run_and_leaves_the_checkpoint(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = DQNLearner.update, 0

    def poisoned(learner: DQNLearner, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 28:
            with torch.no_grad():
                first = learner.parameters[0]
                first[(0,) * first.ndim] = math.nan  # of the first seed alone
        return update(learner, *arguments, **named)

    monkeypatch.setattr(DQNLearner, "update", poisoned)
    with pytest.raises(RunFailure, match="NaN or infinite") as caught:
        case.run(tmp_path)
    assert "--learning-rate" in str(caught.value)
    newest = checkpoint_paths(case.shared(tmp_path) / "checkpoints")[-1]
    learner = read_checkpoint(newest).state["learner"]
    assert all(values.isfinite().all() for values in learner["online"].values())


@pytest.mark.parametrize("case", every_member(ci=lambda case: str(case) == "va_atari-va"))
def test_a_checkpoint_without_replay_is_refilled(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        after_calls(patch, DQNLearner, "update", 14, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            case.run(tmp_path, checkpoint_replay="none")
    assert not (case.shared(tmp_path) / "checkpoints" / "replay").exists()
    with monkeypatch.context() as patch:  # again while it refills; now the few rows are saved
        after_calls(
            patch, EpisodeStatistics, "add", 9, lambda: os.kill(os.getpid(), signal.SIGTERM)
        )
        with pytest.raises(SystemExit):
            case.run(tmp_path)
    assert "40 steps refill it first" in capsys.readouterr().err
    state = read_checkpoint(checkpoint_paths(case.shared(tmp_path) / "checkpoints")[-1]).state
    assert 0 < state["count"]["refill_left_steps"] < 40 and "replays" in state
    summary = case.run(tmp_path)
    assert summary["refill_steps"] == 40


def test_soft_labels_and_smoothing_reach_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    update = DQNLearner.update

    def noting(learner: DQNLearner, batch: Any, num_updates: int = 1, acting: Any = None) -> Any:
        assert batch.action.dtype == torch.int64
        # The action was possible, and the greedy one is the likeliest.
        assert (acting.gather(1, batch.action[:, None]) > 0).all()
        seen.append(acting)
        assert learner.online.head.smoothing == 0.05  # type: ignore[union-attr]
        return update(learner, batch, num_updates, acting)

    monkeypatch.setattr(DQNLearner, "update", noting)
    case = Case("va_atari", "va")
    case.run(tmp_path, total_steps=80, soft_labels=True, behaviour_smoothing=0.05)
    acting = torch.cat(seen)
    torch.testing.assert_close(acting.sum(dim=1), torch.ones(len(acting)))
    assert acting.max() > acting.min()


@needs_minatar
@pytest.mark.parametrize("member", ["va", "va-fitted"])
def test_the_width_of_what_centres_is_that_of_the_model_file(member: str, tmp_path: Path) -> None:
    from classicrl.agent_file import load_agent

    case = Case("va_minatar", member)
    case.run(tmp_path / "wide", total_steps=60, behaviour_hidden=96)
    head = load_agent(tmp_path / "wide" / "seed4").network.head
    centred_by = head.behaviour if member == "va" else head.centre
    assert centred_by.hidden.out_features == 96
    with pytest.raises(UserError, match=r"this run's network"):
        case.run(tmp_path / "other", init_from=tmp_path / "wide", total_steps=60)
    assert not (tmp_path / "other").exists()
    case.run(tmp_path / "again", init_from=tmp_path / "wide", total_steps=60, behaviour_hidden=96)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("va_atari", ["--env-id", "ALE/Ponk-v5"], "did you mean ALE/Pong-v5"),
        ("va_atari", ["--behaviour-smoothing", "1.5"], "must be at most 1"),
        ("va_atari", ["--member", "rdq", "--soft-labels"], "for members with mu"),
        ("va_minatar", ["--env-id", "MinAtar/Brakeout-v1"], "did you mean MinAtar/Breakout-v1"),
        ("va_minatar", ["--env-id", "CartPole-v1"], "no MinAtar game"),
        ("va_minatar", ["--first-update-steps", "1"], "must be above --n-steps times"),
        ("va_minatar", ["--member", "rdq", "--behaviour-hidden", "9"], "has no mu"),
        ("va_minatar", ["--behaviour-hidden", "0"], "--behaviour-hidden must be positive"),
        ("va_minatar", ["--num-seeds", "0"], "--num-seeds must be positive"),
        ("va_minatar", ["--replay-capacity", "1000000000000"], "lower --replay-capacity"),
        ("va_classic_control", ["--env-id", "Pendulum-v1"], "only discrete actions"),
        ("va_classic_control", ["--env-id", "CartPole-v9"], "did you mean CartPole-v1"),
        ("va_classic_control", ["--env-id", "phys2d/CartPole-v1"], "needs a package"),
        ("va_classic_control", ["--env-id", "MinAtar/Breakout-v1"], "vectors of numbers"),
        ("va_classic_control", ["--n-steps", "1000"], "must be above --n-steps times --num-envs"),
        ("va_classic_control", ["--total-steps", "-1"], "--total-steps must be positive"),
    ],
)
def test_bad_flags_exit_2_with_one_line(
    tmp_path: Path, script: str, arguments: list[str], message: str
) -> None:
    if script == "va_minatar" or any("MinAtar/" in argument for argument in arguments):
        pytest.importorskip("minatar")
    exit_code, output = command_line(
        script, *arguments, "--run-dir", str(tmp_path / "run"), output=tmp_path / "output"
    )
    assert exit_code == 2, output
    assert message in output
    assert output.startswith("error: ") and output.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["va_atari", "va_minatar", "va_classic_control"])
def test_members_that_do_not_exist_are_refused(script: str, tmp_path: Path) -> None:
    exit_code, output = command_line(script, "--member", "sarsa", output=tmp_path / "output")
    assert exit_code == 2 and "--member" in output and "Traceback" not in output


def test_presets_of_the_atari_script_are_those_of_dueling_dqn() -> None:
    ours, theirs = load_script("va_atari"), load_script("dueling_dqn_atari")
    for name, preset in theirs.PRESETS.items():
        for field, value in dataclasses.asdict(preset).items():
            if field != "loss":
                assert getattr(ours.PRESETS[name], field) == value, (name, field)


def test_the_sweep_names_the_57_games() -> None:
    from classicrl.envs.atari_protocol import rom_of

    names = (AGENTS.parent / "runs" / "sweeps" / "atari57.txt").read_text().split()
    assert len(set(names)) == len(names) == 57
    for name in names:
        rom_of(name)  # refuses a name that ale-py does not know


def test_the_minatar_sweep_is_made_of_valid_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from classicrl.command_line import parse

    script = load_script("va_minatar")
    lines = (AGENTS.parent / "runs" / "sweeps" / "minatar.txt").read_text().splitlines()
    seen = set()
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["x", *line.split()])
        config = parse({"default": script.Config()}, "default", "")
        seen.add((config.env_id, config.member, config.num_seeds >= 3))
    members = set(FAMILY) - {"va-raw", "va-fitted"}  # which came after the comparison
    assert len(seen) == len(lines) == 4 * len(members)
    assert {member for _, member, _ in seen} == members


def test_the_two_atari_scripts_differ_in_little_but_words() -> None:
    """Their difference is the lesson, so it must stay small; doc strings are not counted."""

    def code(name: str) -> list[str]:
        text = (AGENTS / f"{name}.py").read_text()
        return text[text.index("import dataclasses") :].splitlines()

    delta = difflib.unified_diff(code("dueling_dqn_atari"), code("va_atari"), n=0, lineterm="")
    added = [line for line in delta if line.startswith("+") and not line.startswith("+++")]
    assert len(added) <= 50, "\n".join(added)


def test_the_directory_that_seeds_share_is_no_run_of_its_own(
    finished: Finished, tmp_path: Path
) -> None:
    case = Case("va_classic_control", "va")
    directory = finished(case)[0]
    shared = case.shared(directory)
    with pytest.raises(UserError, match="side by side share"):
        read_run(shared)
    seeds = [path for path in directory.iterdir() if path.name.startswith("seed")]
    assert shared in seeds
    plot_runs(seeds, tmp_path / "curves.png")
    with pytest.raises(UserError, match="side by side share"):
        plot_runs([shared], tmp_path / "none.png")
