"""What only a machine with CUDA can show; run by `pytest -m gpu`."""

import copy

import pytest
import torch

from classicrl.algorithms.dqn import DQNLearner
from classicrl.networks import atari_q_network
from classicrl.types import Transition

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="requires CUDA"),
]


def make_batch(size: int, device: str) -> Transition:
    generator = torch.Generator().manual_seed(3)
    obs = torch.randint(0, 256, (size, 5, 84, 84), dtype=torch.uint8, generator=generator)
    return Transition(
        obs[:, :4].to(device),
        torch.randint(0, 6, (size,), generator=generator).to(device),
        torch.randn(size, generator=generator).to(device),
        torch.full((size,), 0.99).to(device),
        obs[:, 1:].to(device),
    )


def make_learner(device: str, double: bool) -> DQNLearner:
    network = atari_q_network("small", "dueling", 6, seed=1)
    return DQNLearner(network.to(device, memory_format=torch.channels_last), double=double)


@pytest.mark.parametrize("double", [False, True])
def test_an_update_is_that_of_the_cpu(double: bool) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        learner = make_learner(device, double)
        for _ in range(3):
            losses[device] = learner.update(make_batch(64, device), num_updates=2)["loss"].cpu()
    torch.testing.assert_close(losses["cpu"], losses["cuda"], rtol=2e-2, atol=1e-3)


def test_an_update_can_be_captured_in_a_cuda_graph() -> None:
    eager = make_learner("cuda", double=True)
    captured = make_learner("cuda", double=True)
    batch = make_batch(64, "cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the optimiser's state must exist before the capture
        for learner in (eager, captured):
            for _ in range(3):
                learner.update(batch, num_updates=2)
    torch.cuda.current_stream().wait_stream(side)
    captured.optimizer.zero_grad(set_to_none=True)
    before = copy.deepcopy(captured.online.state_dict())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.update(batch, num_updates=2)
    for _ in range(4):
        graph.replay()
        eager.update(batch, num_updates=2)
    for name, parameter in captured.online.state_dict().items():
        assert not torch.equal(parameter, before[name])
        torch.testing.assert_close(parameter, eager.online.state_dict()[name], rtol=1e-3, atol=1e-4)
