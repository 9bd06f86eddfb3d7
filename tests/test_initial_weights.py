"""``--init-from`` in every training script: what is taken, what is refused, and what resumes."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from script_process import AGENTS, after_calls, load_script
from small_runs import ALL, Small, scripts

from classicrl.checkpoint import load_model, save_model
from classicrl.errors import UserError
from classicrl.loggers import MetricsLog, read_csv
from classicrl.training_state import TrainingState

Finished = Callable[[Small], Path]
Tensors = dict[str, torch.Tensor]


def weights(directory: Path) -> Tensors:
    return load_model(directory / "model.safetensors")[0]


def first_weights(
    small: Small, directory: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> list[Tensors]:
    """Those that each seed of a new run begins with."""

    def stop(*_: Any, **__: Any) -> None:
        raise Began

    seen: list[Tensors] = []
    init = TrainingState.__init__

    def watching(self: TrainingState, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        seen.append(named["model"])

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "__init__", watching)
        patch.setattr(MetricsLog, "__init__", stop)
        with pytest.raises(Began):
            small.run(directory, **settings)
    state = {name: tensor.clone() for name, tensor in seen[0].state_dict().items()}
    if len(small.results) == 1:
        return [state]
    return [{n: t[k] for n, t in state.items()} for k in range(len(small.results))]


class Began(Exception):
    """Training would begin now."""


def assert_same(a: Tensors, b: Tensors) -> None:
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_every_training_script_is_here() -> None:
    others = {"qstar_cube3_solve", "va_tabular"}  # nothing is trained there, or no network
    assert {small.script for small in ALL} == {p.stem for p in AGENTS.glob("*.py")} - others


@pytest.mark.parametrize("small", scripts(ci=("ppo_rnd_atari", "dueling_dqn_atari")))
def test_a_run_begins_with_the_weights_and_with_nothing_else(
    small: Small, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = finished(small) / small.results[0]
    settings = {"init_from": source, "seed": 3}
    for given in first_weights(small, tmp_path / "a", monkeypatch, **settings):
        assert_same(given, weights(source))
    without = first_weights(small, tmp_path / "b", monkeypatch, seed=3)
    assert not all(torch.equal(without[0][n], t) for n, t in weights(source).items())


@pytest.mark.parametrize("small", scripts(ci=("ppo_rnd_atari", "dueling_dqn_atari")))
def test_a_run_trains_on_and_its_configuration_says_from_what(
    small: Small, finished: Finished, tmp_path: Path
) -> None:
    source = tmp_path / "source" / "model.safetensors"
    source.parent.mkdir()
    shutil.copy(finished(small) / small.results[-1] / "model.safetensors", source)
    summary = small.run(tmp_path / "run", init_from=source)
    assert summary["num_updates"] > 0
    for result in small.results:
        directory = tmp_path / "run" / result
        recorded = json.loads((directory / "config.json").read_text())["config"]
        assert recorded["init_from"] == str(source)
        assert read_csv(directory / "metrics.csv")["step"][0] > 0
        name = next(n for n, t in weights(directory).items() if t.dim() > 1)
        assert not torch.equal(weights(directory)[name], weights(source.parent)[name])
    # It is needed for the beginning alone: a checkpoint wins.
    source.unlink()
    again = small.run(tmp_path / "run", init_from=source)
    assert again["eval"]["mean_return"] == summary["eval"]["mean_return"]


@pytest.mark.parametrize("small", scripts())
def test_another_network_is_refused_and_nothing_is_lost(
    small: Small, finished: Finished, tmp_path: Path
) -> None:
    kept = tmp_path / "run" / small.shared / "summary.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    source = finished(small) / small.results[0]
    with pytest.raises(UserError, match=str(source)) as caught:
        small.run(tmp_path / "run", init_from=source, overwrite=True, **dict(small.wrong))
    assert len(str(caught.value).splitlines()) == 1
    assert kept.exists()


@pytest.mark.parametrize("small", scripts())
def test_files_that_cannot_be_taken_are_refused(
    small: Small, finished: Finished, tmp_path: Path
) -> None:
    result = finished(small) / small.results[0]
    tensors, card = load_model(result / "model.safetensors")
    name = next(iter(tensors))
    damaged = tmp_path / "cut.safetensors"
    damaged.write_bytes((result / "model.safetensors").read_bytes()[:-9])
    nan, less, stranger = (tmp_path / f"{n}.safetensors" for n in ("nan", "less", "stranger"))
    save_model(nan, {**tensors, name: torch.full_like(tensors[name], torch.nan)}, card)
    save_model(less, {n: t for n, t in tensors.items() if n != name}, card)
    save_model(stranger, tensors, {})
    (tmp_path / "empty").mkdir()
    for path, message in {
        tmp_path / "absent": "does not exist",
        tmp_path / "empty": r"holds no model\.safetensors",
        damaged: "not a valid safetensors file",
        nan: "NaN",
        less: "missing",
        stranger: "another kind of network",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            small.run(tmp_path / "run", init_from=path)
        assert str(path) in str(caught.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("small", scripts())
def test_what_overwrite_would_delete_is_refused(small: Small, finished: Finished) -> None:
    directory = finished(small)
    source = directory / small.results[0]
    with pytest.raises(UserError, match="--overwrite empties"):
        small.run(directory, init_from=source, overwrite=True)
    assert (source / "model.safetensors").exists()


def test_agents_of_another_kind_are_named(finished: Finished, tmp_path: Path) -> None:
    by_name = {small.script: small for small in ALL}
    source = finished(by_name["ppo_rnd_small"])
    with pytest.raises(UserError, match="of ppo_rnd_small-rnd: it has head actor-critic, not duel"):
        by_name["dqn_rnd_small"].run(tmp_path / "run", init_from=source)


def test_every_seed_begins_with_its_own(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = next(small for small in ALL if small.script == "va_classic_control")
    source = finished(small)
    given = first_weights(small, tmp_path, monkeypatch, init_from=source)
    for own, result in zip(given, small.results, strict=True):
        assert_same(own, weights(source / result))


def test_killed_before_the_first_checkpoint_it_begins_with_them_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = next(small for small in ALL if small.script == "ppo_rnd_small")
    source = finished(small)
    whole = small.run(tmp_path / "whole", init_from=source)
    learner = load_script(small.script).PPOLearner

    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed(signal.SIGKILL)

    with monkeypatch.context() as patch:
        after_calls(patch, learner, "update", 2, kill)
        with pytest.raises(Killed):
            small.run(tmp_path / "killed", init_from=source)
    # Called again without the flag: the configuration remembers it.
    assert small.run(tmp_path / "killed")["eval"] == whole["eval"]
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
