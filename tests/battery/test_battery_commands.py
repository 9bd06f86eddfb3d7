"""Command lines and settings that make no sense: exit code 2, the flag named, no traceback, and
nothing begun."""

import dataclasses
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from small_agents import Agent, load, rows
from tally import FULL, Tally

from classicrl.command_line import exit_with, parse

GROUP = "bad command lines"


def kinds(annotation: Any) -> set[Any]:
    """The plain types of a field."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in kinds(part)}
    return {Literal} if get_origin(annotation) is Literal else {annotation}


def bad_flags(agent: Agent) -> Iterator[list[str]]:
    """Values that no field of this kind can take."""
    hints = get_type_hints(load(agent).Config)
    for name, annotation in hints.items():
        flag = f"--{name.replace('_', '-')}"
        kind = kinds(annotation)
        if Literal in kind:
            yield [flag, "no-such-choice"]
        elif bool in kind:
            yield [f"{flag}=perhaps"]
        elif int in kind:
            yield [flag, "-1"]
            yield [flag, "many"]
            yield [flag, "1.5"]
        elif float in kind:
            yield [flag, "-0.5"]
            yield [flag, "nan"]
            yield [flag, "inf"]
            yield [flag, "much"]
        else:
            yield [flag]  # its value is missing
    yield ["--no-such-flag"]
    yield ["--no-such-flag", "3"]
    yield ["stray"]
    yield ["--seed", str(2**63)]
    yield ["--seed"]
    yield ["--preset", "huge"]
    yield ["--device", "tpu"]


def called(agent: Agent, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the script with these flags after those of a small run."""
    script = load(agent)
    config = script.Config(**agent.settings)
    presets = getattr(script, "PRESETS", {"default": config})
    default = next(iter(presets))
    presets = {**presets, default: dataclasses.replace(presets[default], **agent.settings)}
    monkeypatch.setattr(sys, "argv", [f"{agent.script}.py", *arguments])
    try:
        exit_with(script.main, parse(presets, default, ""))
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.timeout(900 if FULL else 240)
@pytest.mark.parametrize("agent", rows(*(() if FULL else ("va_classic_control",))))
def test_what_makes_no_sense_is_refused(
    agent: Agent,
    tmp_path: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for case, arguments in enumerate(bad_flags(agent)):
        directory = tmp_path / str(case)
        given = [*arguments, "--run-dir", str(directory)]
        if arguments[0] in ("--run-dir",) or (len(arguments) == 1 and "=" not in arguments[0]):
            given = ["--run-dir", str(directory), *arguments]
        capsys.readouterr()
        code = called(agent, given, monkeypatch)
        captured = capsys.readouterr()
        assert code == 2, (arguments, code, captured)
        flag, _, value = arguments[0].partition("=")
        named = (flag, flag.replace("-", "_"), *([value] if value else []))
        assert any(name in captured.err for name in named), captured.err
        assert "Traceback" not in captured.err
        assert not list(directory.glob("**/checkpoints")), arguments
        tally.count("exit 2, flag named")


@pytest.mark.parametrize("agent", rows("va_classic_control"))
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": "CartPoll-v1"}, "did you mean CartPole"),
        ({"env_id": ""}, "gymnasium knows no environment"),
        ({"env_id": "Pendulum-v1"}, "only discrete actions"),
        ({"env_id": "MinAtar/Breakout-v1"}, "agents/va_minatar.py"),
        ({"replay_capacity": 3}, "make it at least"),
        ({"replay_capacity": 10**13}, "lower --replay-capacity"),
        ({"first_update_steps": 1}, "--first-update-steps must be above"),
        ({"n_steps": 100}, "--first-update-steps must be above"),
        ({"epsilon_end": 1.5}, "--epsilon-end must be at most 1"),
        ({"gamma": math.inf}, "--gamma must be a finite number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    agent: Agent, settings: dict[str, Any], message: str, tmp_path: Path, tally: Tally
) -> None:
    from classicrl.errors import UserError

    with pytest.raises(UserError) as caught:
        agent.run(tmp_path, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    tally.count("exit 2, reason in one line")
