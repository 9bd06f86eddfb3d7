"""Environments that raise, hang, or show what is no number: the error names environment, seed and
step, and nothing of that step reaches the replay or a checkpoint."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from broken_process import Fault, run
from small_agents import Agent, load, rows
from tally import Tally

from classicrl.checkpoint import checkpoint_paths, read_checkpoint
from classicrl.errors import RunFailure

GROUP = "environment faults"
AT_STEP = 55  # of the second seed's environment; the first has none
LENGTH = 19  # of an episode: two have ended by then, the third ends at 57

Step = tuple[Any, ...]


class Toy(gymnasium.Env[Any, Any]):
    """Counts; at one step of one environment ``fault`` changes what it says."""

    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    made = 0
    fault: Callable[..., Any] = staticmethod(lambda said: said)
    in_reset = False

    def __init__(self) -> None:
        self.number = Toy.made
        Toy.made += 1
        self.steps = self.at = 0

    def _obs(self) -> Any:
        return np.array([self.number, self.steps, self.at, 1.0], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        said = self._obs(), {}
        return Toy.fault(said) if Toy.in_reset and self.steps and self.number == 1 else said

    def step(self, action: Any) -> Step:
        self.steps += 1
        self.at += 1
        said = self._obs(), 0.5, self.at == LENGTH, False, {}
        broken = self.number == 1 and self.steps == AT_STEP and not Toy.in_reset
        return Toy.fault(said) if broken else said


def raising(error: BaseException) -> Callable[[Step], Step]:
    def fault(said: Step) -> Step:
        raise error

    return fault


def obs(value: Any) -> Callable[[Step], Step]:
    return lambda said: (value, *said[1:])


def reward(value: Any) -> Callable[[Step], Step]:
    return lambda said: (said[0], value, *said[2:])


def part(values: list[float]) -> Any:
    return np.array(values, np.float32)


FAULTS: dict[str, tuple[Callable[[Step], Any], str]] = {
    "raises": (raising(RuntimeError("emulator died")), "failed: RuntimeError: emulator died"),
    "raises in two lines": (raising(ValueError("one\ntwo")), "failed: ValueError: one two"),
    "lacks a key": (raising(KeyError("lives")), "failed: KeyError"),
    "divides by zero": (raising(ZeroDivisionError()), "failed: ZeroDivisionError"),
    "has no memory left": (raising(MemoryError()), "failed: MemoryError"),
    "lost its worker": (raising(BrokenPipeError("worker 3")), "failed: BrokenPipeError"),
    "was not reset": (
        raising(gymnasium.error.ResetNeeded("call reset")),
        "failed: ResetNeeded",
    ),
    "shows NaN": (obs(part([0, np.nan, 0, 0])), "showed an observation that is NaN"),
    "shows infinity": (obs(part([0, 0, 0, np.inf])), "showed an observation that is NaN"),
    "shows minus infinity": (obs(part([-np.inf, 0, 0, 0])), "showed an observation that is NaN"),
    "shows too little": (obs(part([0, 0, 0])), "showed an array of shape (3,), not (4,)"),
    "shows one number for four": (obs(part([3])), "showed an array of shape (1,), not (4,)"),
    "shows a scalar": (obs(3.0), "showed an array of shape (), not (4,)"),
    "shows a matrix": (obs(np.zeros((1, 4))), "showed an array of shape (1, 4), not (4,)"),
    "shows nothing": (obs(None), "showed an array of shape (), not (4,)"),
    "shows text": (obs(np.array(["a", "b", "c", "d"])), "showed an array of <U1"),
    "shows objects": (obs(np.array([None] * 4)), "showed an array of object"),
    "shows complex numbers": (obs(np.zeros(4, complex)), "showed an array of complex128"),
    "rewards NaN": (reward(np.nan), "showed a reward that is NaN"),
    "rewards infinity": (reward(np.inf), "showed a reward that is NaN"),
    "rewards more than fits": (reward(1e39), "showed a reward that is NaN"),
    "rewards nothing": (reward(None), "showed a reward that is NaN"),
    "rewards text": (reward("much"), "failed: ValueError"),
    "says neither over nor not": (
        lambda said: (*said[:2], None, *said[3:]),
        "said terminated=None",
    ),
    "says too little": (lambda said: said[:4], "failed: ValueError"),
    "ends with NaN": (
        lambda said: (part([np.nan] * 4), said[1], True, False, {}),
        "showed a last observation that is NaN",
    ),
}
RESET_FAULTS: dict[str, tuple[Callable[[Step], Any], str]] = {
    "raises in reset": (raising(RuntimeError("no licence")), "failed: RuntimeError: no licence"),
    "shows NaN in reset": (obs(part([np.nan] * 4)), "showed an observation that is NaN"),
    "shows too much in reset": (obs(np.zeros(5)), "showed an array of shape (5,), not (4,)"),
}


@pytest.fixture
def toy() -> Any:
    gymnasium.register("Toy-v0", entry_point=lambda: Toy())
    Toy.made, Toy.in_reset = 0, False
    yield Toy
    del gymnasium.registry["Toy-v0"]


def played_until_the_fault(
    agent: Agent, directory: Path, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> str:
    """The error of a run, whose replays and checkpoints hold nothing of the step that failed."""
    script, replays = load(agent), []
    make = script.ReplayBuffer

    def keeping(*arguments: Any, **named: Any) -> Any:
        replays.append(make(*arguments, **named))
        return replays[-1]

    monkeypatch.setattr(script, "ReplayBuffer", keeping)
    settings = {"evaluation_period_steps": 10_000, "env_id": "Toy-v0"}
    with pytest.raises(RunFailure) as caught:
        agent.run(directory, **settings)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    for k, replay in enumerate(replays):
        stored = replay.rows(0, replay.next_id)
        assert stored.is_source.sum() == num_rows
        assert np.isfinite(stored.obs).all() and np.isfinite(stored.reward).all()
        assert (stored.obs[:, 0] == k).all() and (stored.obs[:, 3] == 1).all()
    state = read_checkpoint(checkpoint_paths(agent.checkpoint_directory(directory))[-1]).state
    assert state["count"]["step"] == 40
    return str(caught.value)


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("agent", rows("va_classic_control"))
def test_a_fault_in_a_step_is_named_and_not_stored(
    agent: Agent,
    fault: Callable[[Step], Any],
    message: str,
    toy: Any,
    tmp_path: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toy, "fault", staticmethod(fault))
    error = played_until_the_fault(agent, tmp_path, monkeypatch, AT_STEP - 1)
    assert error.startswith("environment 1 of Toy-v0 (seed 4000), step 55 ")
    assert message in error
    tally.count("named with environment, seed and step; not stored")


@pytest.mark.parametrize(("fault", "message"), RESET_FAULTS.values(), ids=RESET_FAULTS)
@pytest.mark.parametrize("agent", rows("va_classic_control"))
def test_a_fault_in_a_reset_is_named_and_not_stored(
    agent: Agent,
    fault: Callable[[Step], Any],
    message: str,
    toy: Any,
    tmp_path: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step that the new episode follows is not stored either: a resume plays it again."""
    once = 0

    def third_time(said: Step) -> Any:
        nonlocal once
        once += 1
        return fault(said) if once == 3 else said

    monkeypatch.setattr(toy, "in_reset", True)
    monkeypatch.setattr(toy, "fault", staticmethod(third_time))
    error = played_until_the_fault(agent, tmp_path, monkeypatch, 3 * LENGTH - 1)
    assert error.startswith("environment 1 of Toy-v0 (seed 4000), step 57 ")
    assert message in error
    tally.count("named with environment, seed and step; not stored")


@pytest.mark.parametrize("num_envs", [1, 3])
def test_emulators_that_fail_are_named(
    num_envs: int, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    pytest.importorskip("ale_py")
    from classicrl.envs.atari import PROTOCOLS, make_atari

    envs = make_atari("ALE/Pong-v5", num_envs, protocol=PROTOCOLS["sticky"], seed=7)
    envs.reset()
    actions = np.zeros(num_envs, np.int64)
    for _ in range(4):
        envs.step(actions)

    class Dead:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("the emulator is gone")

    monkeypatch.setattr(envs, "_ale" if num_envs == 1 else "_envs", Dead())
    monkeypatch.setattr(envs, "_pending", 0 if num_envs == 1 else True)
    with pytest.raises(RunFailure, match=r"of ALE/Pong-v5 \(seed 7\), step 5 failed: RuntimeError"):
        envs.recv()
    tally.count("named with environment, seed and step; not stored")


def hang(step: int) -> None:
    """The toy's step never returns, within foreign code that hears no signal."""
    import time

    from classicrl import watch

    start = watch.start
    watch.start = lambda: start(1.0, tick_seconds=0.1)
    gymnasium.register("Toy-v0", entry_point=lambda: Toy())

    def never(said: Step) -> Any:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        time.sleep(3600)

    Toy.fault = staticmethod(never)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("agent", rows("va_classic_control"))
def test_a_hang_ends_the_program_and_leaves_the_checkpoint(
    agent: Agent, tmp_path: Path, tally: Tally
) -> None:
    ended = run(agent, tmp_path, Fault(hang, (1,)), env_id="Toy-v0", evaluation_period_steps=10_000)
    assert ended.code == 1
    expected = "error: environment 1 of Toy-v0 (seed 4000), step 55 has not returned for 1 s"
    assert expected in ended.output and "Traceback" not in ended.output
    newest = checkpoint_paths(agent.checkpoint_directory(tmp_path))[-1]
    assert read_checkpoint(newest).step == 40
    tally.count("hang: ended and named")


def test_a_step_that_takes_its_time_does_not_hang() -> None:
    """Only one and the same step counts, however slow the steps are."""
    from classicrl import watch

    class Doing:
        steps = 0

    looks = 0

    def wait(seconds: float) -> bool:
        nonlocal looks
        looks += 1
        Doing.steps = looks // 3
        return looks == 50

    before = watch.doing
    watch.doing = Doing()
    try:
        watch._look(wait, 1.0, 3)  # ends this process if it counts further than a step
    finally:
        watch.doing = before
    assert looks == 50
