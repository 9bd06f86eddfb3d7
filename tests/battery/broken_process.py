"""A training in a process of its own, and what can be done to it there."""

import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from script_process import _context
from small_agents import ALL, Agent, load, short_searches

# Where a process can be ended or disturbed: just before a call of one of these.
FSYNC, REPLACE = "os:fsync", "os:replace"  # within saves
WRITE = "classicrl.checkpoint.store:write_and_sync"  # with half of a file written
ROW = "classicrl.loggers:MetricsLog.write"
EVALUATION = "classicrl.loggers:MetricsLog.write_evaluation"
HISTOGRAM = "classicrl.loggers:MetricsLog.histogram"
IN_SAVES = (FSYNC, REPLACE, WRITE)
ELSEWHERE = (ROW, EVALUATION, HISTOGRAM)


class Fault(NamedTuple):
    """``act(*arguments)`` in the process, before its training begins."""

    act: Callable[..., None]
    arguments: tuple[Any, ...] = ()


class End(NamedTuple):
    """How a process ended."""

    code: int | None
    output: str


def run(agent: Agent, directory: Path, *faults: Fault, **settings: Any) -> End:
    """One call of the script, to its end."""
    directory.mkdir(parents=True, exist_ok=True)
    output = directory / "output"
    arguments = (agent.script, {**agent.settings, **settings, "run_dir": directory}, output, faults)
    process = _context().Process(target=_child, args=arguments)
    process.start()
    process.join()
    return End(process.exitcode, output.read_text())


def _child(script: str, settings: dict[str, Any], output: Path, faults: tuple[Fault, ...]) -> None:
    from classicrl.command_line import exit_with

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    [agent] = [agent for agent in ALL if agent.script == script]
    module = load(agent)
    for fault in faults:
        fault.act(*fault.arguments)
    try:
        with short_searches():
            exit_with(module.main, module.Config(**settings))
    finally:
        sys.stdout.flush()


def owner_of(place: str) -> tuple[Any, str]:
    """The object and the name of ``module:Class.method``."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def before_call(place: str, count: int, act: Callable[..., None]) -> None:
    """``act(*arguments of the call)`` just before the ``count``-th call of ``place``."""
    owner, name = owner_of(place)
    call = getattr(owner, name)
    made = 0

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if made == count:
            act(*arguments)
        return call(*arguments, **named)

    setattr(owner, name, wrapper)


def send_at(place: str, count: int, number: int) -> None:
    """A signal to itself at the ``count``-th call; within a write, after half of it."""

    def act(*arguments: Any) -> None:
        if place == WRITE:
            path, data = arguments
            path.write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), number)

    before_call(place, count, act)


def kill_at(place: str, count: int) -> None:
    """SIGKILL at the ``count``-th call."""
    send_at(place, count, signal.SIGKILL)


def count_calls(places: tuple[str, ...], file: Path) -> None:
    """Writes how often each place is called in this process, at its end."""
    made = dict.fromkeys(places, 0)
    for place in places:
        owner, name = owner_of(place)
        setattr(owner, name, _counting(getattr(owner, name), made, place))

    # A process of multiprocessing leaves without the handlers of atexit.
    multiprocessing.util.Finalize(None, lambda: file.write_text(json.dumps(made)), exitpriority=1)


def _counting(call: Callable[..., Any], made: dict[str, int], place: str) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **named: Any) -> Any:
        made[place] += 1
        return call(*arguments, **named)

    return wrapper


def random_points(
    rng: random.Random, calls: dict[str, int], places: tuple[str, ...], number: int
) -> list[tuple[str, int]]:
    """Different places and calls, spread over the run."""
    every = [(place, k) for place in places for k in range(1, calls.get(place, 0) + 1)]
    return rng.sample(every, min(number, len(every)))
