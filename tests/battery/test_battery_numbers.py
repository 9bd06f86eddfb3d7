"""NaN and infinity at every stage of an update: the run ends before a bad state is saved."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_process import owner_of
from small_agents import Agent, load, rows
from tally import Tally

from classicrl.checkpoint import checkpoint_paths, load_model, read_checkpoint
from classicrl.errors import RunFailure, UserError

GROUP = "NaN and infinity"


def fill_one(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = value


def online(learner: Any, value: float) -> None:
    fill_one(learner.parameters[0], value)


def target(learner: Any, value: float) -> None:
    fill_one(next(iter(learner.target.parameters())), value)


def moments(learner: Any, value: float) -> None:
    fill_one(learner.optimizer.state[learner.parameters[-1]]["exp_avg"], value)


def squares(learner: Any, value: float) -> None:
    fill_one(learner.optimizer.state[learner.parameters[-1]]["exp_avg_sq"], value)


def gradient(learner: Any, value: float) -> None:
    step = learner.optimizer.step

    def poisoned(*arguments: Any) -> Any:
        fill_one(learner.parameters[-1].grad, value)
        return step(*arguments)

    learner.optimizer.step = poisoned


def rate(learner: Any, value: float) -> None:
    for group in learner.optimizer.param_groups:
        group["lr"] = value


STAGES: dict[str, Callable[[Any, float], None]] = {
    "weights": online,
    "target network": target,
    "first moments": moments,
    "second moments": squares,
    "gradient": gradient,
    "learning rate": rate,
}
CASES = [
    (name, value)
    for name in STAGES
    for value in (math.nan, math.inf)
    # Infinite squares make updates of zero; they are noticed in the state, which NaN shows, too.
    if (name, value) != ("gradient", math.inf)
]


def is_finite(state: Any) -> bool:
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(state.isfinite().all())
    if isinstance(state, dict):
        return all(is_finite(item) for item in state.values())
    if isinstance(state, list | tuple):
        return all(is_finite(item) for item in state)
    return True


def poisoned_run(
    agent: Agent,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: Callable[[Any], None],
    call: int,
) -> RunFailure:
    load(agent)
    owner, name = owner_of(agent.update)
    update, made = getattr(owner, name), 0

    def wrapper(learner: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if made == call:
            poison(learner)
        return update(learner, *arguments, **named)

    monkeypatch.setattr(owner, name, wrapper)
    with pytest.raises(RunFailure) as caught:
        agent.run(directory)
    return caught.value


@pytest.mark.parametrize(("stage", "value"), CASES)
@pytest.mark.parametrize("agent", rows("va_classic_control", "qstar_cube3_train"))
def test_no_checkpoint_holds_what_is_no_number(
    agent: Agent,
    stage: str,
    value: float,
    tmp_path: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the update just before a checkpoint: a loss shows it one update later."""
    if (agent.script, stage) == ("qstar_cube3_train", "learning rate"):
        pytest.skip("that script sets it anew for every update")
    if (agent.script, stage) == ("qstar_cube3_train", "target network"):
        pytest.skip("that script copies it before it is used")
    # The second checkpoint; of the cube, whose bellman updates begin late, the last.
    call = {"va_classic_control": 21, "qstar_cube3_train": 40}[agent.script]
    error = poisoned_run(
        agent, tmp_path, monkeypatch, lambda learner: STAGES[stage](learner, value), call
    )
    assert "NaN or infinite" in str(error) and "--learning-rate" in str(error)
    assert "\n" not in str(error)
    paths = checkpoint_paths(agent.checkpoint_directory(tmp_path))
    assert len(paths) == 1  # that before
    for path in paths:
        assert is_finite(read_checkpoint(path).state)
    for name in agent.results:
        assert is_finite(load_model(tmp_path / name / "model.safetensors")[0])
    tally.count("ended, last good checkpoint stands")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": math.nan}, "--learning-rate must be a finite number"),
        ({"learning_rate": math.inf}, "--learning-rate must be a finite number"),
        ({"gamma": math.nan}, "--gamma must be a finite number"),
        ({"epsilon_end": math.nan}, "--epsilon-end must be a finite number"),
    ],
)
@pytest.mark.parametrize("agent", rows("va_classic_control"))
def test_settings_that_are_no_numbers_are_refused(
    agent: Agent, settings: dict[str, float], message: str, tmp_path: Path, tally: Tally
) -> None:
    with pytest.raises(UserError, match=message):
        agent.run(tmp_path, **settings)
    tally.count("refused before the run")


@pytest.mark.parametrize("agent", rows("va_classic_control"))
def test_batches_of_one_are_learned_from(agent: Agent, tmp_path: Path, tally: Tally) -> None:
    """A spread over one item would be NaN."""
    agent.run(tmp_path, batch_size=1, total_steps=80)
    newest = checkpoint_paths(agent.checkpoint_directory(tmp_path))[-1]
    assert is_finite(read_checkpoint(newest).state)
    tally.count("batch of one: finite")
