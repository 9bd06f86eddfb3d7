"""Training scripts in processes of their own, which a test may kill.

A fork server imports torch and more once, so that each process starts in a fraction of a second.
"""

import dataclasses
import importlib.util
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

AGENTS = Path(__file__).parents[1] / "agents"
MAX_FRAMES_PER_EPISODE = 240  # games of 60 steps at most
LONGEST_S = 300  # far more than any process of a test takes, even on a loaded machine
CI = (pytest.mark.slow, pytest.mark.ci)
"""Of the parameters of a test that `make test` runs for others alone."""


def load_script(name: str) -> ModuleType:
    """``agents/<name>.py`` as a module, with short games."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, AGENTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
        if hasattr(module, "PROTOCOLS"):  # of Atari
            module.PROTOCOLS = {
                key: dataclasses.replace(rules, max_frames_per_episode=MAX_FRAMES_PER_EPISODE)
                for key, rules in module.PROTOCOLS.items()
            }
    return sys.modules[name]


def after_calls(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, count: int, act: Callable[[], None]
) -> None:
    """``act()`` just before the ``count``-th call of ``owner.name``."""
    call, made = getattr(owner, name), 0

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if made == count:
            act()
        return call(*arguments, **named)

    monkeypatch.setattr(owner, name, counting)


class Kill(NamedTuple):
    """SIGKILL just before the ``count``-th call of ``place``."""

    place: str  # of PLACES
    count: int


def _kill_at(kill: Kill) -> None:
    from classicrl.algorithms.dqn import DQNLearner
    from classicrl.loggers import MetricsLog

    # fsync: in the middle of whatever is being saved. replace: just before it gets its name.
    places: dict[str, tuple[Any, str]] = {
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
        "update": (DQNLearner, "update"),
        "row": (MetricsLog, "write"),
        "evaluation": (MetricsLog, "write_evaluation"),
        "histogram": (MetricsLog, "histogram"),
    }
    owner, name = places[kill.place]
    call = getattr(owner, name)
    left = kill.count

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)

    setattr(owner, name, dying)


def _train(script: str, settings: dict[str, Any], kill: Kill | None) -> None:
    from classicrl.command_line import exit_with

    module = load_script(script)
    if kill is not None:
        _kill_at(kill)
    exit_with(module.main, module.Config(**settings))


def _command_line(path: str, arguments: list[str], output: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch", "torch.utils.tensorboard", "gymnasium", "tyro",
            "classicrl.training_state", "classicrl.algorithms.dqn", "classicrl.command_line",
            "classicrl.evaluation", "classicrl.envs.atari", "classicrl.reports.records",
        ]
    )  # fmt: skip
    return context


def start_training(script: str, settings: dict[str, Any], kill: Kill | None = None) -> BaseProcess:
    """Starts ``main(Config(**settings))``; the caller joins it."""
    process = _context().Process(target=_train, args=(script, settings, kill))
    process.start()
    return process


def train(script: str, settings: dict[str, Any], kill: Kill | None = None) -> int | None:
    """Exit code of ``main(Config(**settings))``; -9 after a SIGKILL."""
    return _exit_code(start_training(script, settings, kill))


def command_line(script: str, *arguments: str, output: Path) -> tuple[int | None, str]:
    """Exit code and output of ``python agents/<script>.py <arguments>``."""
    path = str(AGENTS / f"{script}.py")
    process = _context().Process(target=_command_line, args=(path, list(arguments), str(output)))
    process.start()
    return _exit_code(process), output.read_text()


def _exit_code(process: BaseProcess) -> int | None:
    """When it has ended. One that should have been refused may train for days: it is killed."""
    process.join(LONGEST_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"a process of a test had not ended after {LONGEST_S} s")
    return process.exitcode
