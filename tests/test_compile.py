"""``--compile``: the same updates up to rounding, and one line where nothing can be compiled."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import ALL

from classicrl.algorithms.dqn import DQNLearner
from classicrl.errors import UserError
from classicrl.machine import compile_networks
from classicrl.networks import minatar_q_network, vector_q_network
from classicrl.types import Transition

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="requires g++")


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("No working C++ compiler found\nin torch._inductor.config.cpp.cxx")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler.*No working") as caught:
        compile_networks(vector_q_network("q", 3, 2))
    assert len(str(caught.value).splitlines()) == 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: vector_q_network("dueling", 5, 3, seeds=1), (12, 5)),
        # Large enough for the products that go to oneDNN without a compiler.
        (lambda: minatar_q_network("behaviour", 4, 3, seeds=[1, 2]), (2, 40, 10, 10, 4)),
    ],
    ids=["single", "members"],
)
def test_updates_are_equal_up_to_rounding(network: Any, shape: tuple[int, ...]) -> None:
    plain = DQNLearner(network(), double=True, learning_rate=1e-3)
    compiled = DQNLearner(copy.deepcopy(plain.online), double=True, learning_rate=1e-3)
    compile_networks(compiled.online, compiled.target)
    axes = shape[: 2 if len(shape) > 2 else 1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        obs = torch.rand(shape, generator=generator)
        action = torch.randint(0, 3, axes, generator=generator)
        reward = torch.rand(axes, generator=generator)
        batch = Transition(obs, action, reward, torch.full(axes, 0.9), obs.flip(-1))
        figures = [learner.update(batch, num_updates=2) for learner in (plain, compiled)]
        for name, values in figures[0].items():
            torch.testing.assert_close(values, figures[1][name], rtol=1e-3, atol=1e-4)
    # Acting, which does not go through the network's forward pass, is compiled as well.
    assert compiled.online.torso._compiled_call_impl is not None
    torch.testing.assert_close(
        plain.online.preferences(obs), compiled.online.preferences(obs), rtol=1e-3, atol=1e-4
    )
    state, other = (learner.online.state_dict() for learner in (plain, compiled))
    assert set(state) == set(other)  # no prefix: a file of one is a file of the other
    for name, values in state.items():
        torch.testing.assert_close(values, other[name], rtol=1e-3, atol=1e-4)


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_compiled_run_is_continued_by_a_plain_one(tmp_path: Path) -> None:
    small = next(small for small in ALL if small.script == "va_classic_control")
    assert small.run(tmp_path, compile=True)["num_updates"] > 0
    assert small.run(tmp_path, total_steps=120)["total_steps"] == 120
