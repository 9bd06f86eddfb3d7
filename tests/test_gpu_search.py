"""The cube on CUDA: networks, walks and searches; run by `pytest -m gpu`."""

from pathlib import Path

import pytest
import torch
from script_process import load_script

from classicrl.algorithms.q_iteration import QIterationLearner
from classicrl.domains.cube3 import Cube3
from classicrl.domains.cube3_walks import CubeWalks
from classicrl.domains.lights_out import LightsOut
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.search import Perimeter, astar, deferred_astar, q_beam, qstar

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="requires CUDA"),
]


def make_network(domain: Cube3) -> ByteQNetwork:
    return ByteQNetwork(
        domain.feature_offsets,
        domain.num_features,
        len(domain.sequences),
        embedding_size=64,
        hidden_size=32,
        generator=torch.Generator().manual_seed(1),
    )


def test_a_network_answers_as_on_the_cpu() -> None:
    domain = Cube3(156)
    states = domain.random_states(37, torch.Generator().manual_seed(2))
    network = make_network(domain)
    with torch.no_grad():
        on_cpu = network(states)
        on_cuda = network.cuda()(states.cuda()).cpu()
    torch.testing.assert_close(on_cpu, on_cuda, rtol=1e-4, atol=1e-4)


def test_updates_learn_what_those_of_the_cpu_do() -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        domain = Cube3(12, device=device)
        learner = QIterationLearner(make_network(domain).to(device), learning_rate=1e-2)
        generator = torch.Generator().manual_seed(3)
        losses[device] = []
        for _ in range(20):
            states = domain.random_states(64, generator, min_turns=1, max_turns=9)
            actions = torch.randint(12, (64, 2), generator=generator)
            labels = 5.0 * torch.rand(64, 2, generator=generator)
            metrics = learner.update_walk(states, actions.to(device), labels.to(device))
            losses[device].append(float(metrics["loss"]))
    assert losses["cpu"][-1] < 0.7 * losses["cpu"][0]
    torch.testing.assert_close(losses["cpu"], losses["cuda"], rtol=0.05, atol=0.05)  # bf16


@pytest.mark.parametrize("actions", [12, 156, 1884])
def test_walks_are_labelled_as_they_went(actions: int) -> None:
    domain, turns = Cube3(actions, device="cuda"), Cube3(12, device="cuda")
    ball = Perimeter(turns, turns.goal, 4)
    assert ball.layers == [1, 12, 114, 1068, 10011]
    walks = CubeWalks(domain, 11, ball, torch.Generator("cuda").manual_seed(4))
    part = walks.batch(130, walks_at_once=17)
    distance = walks.distance(part.states)
    for j in range(part.actions.shape[1]):
        there = part.actions[:, j] >= 0
        after = walks.distance(domain.apply(part.states[there], part.actions[there, j]))
        near = ~after.isinf()
        expected = 1.0 + torch.ceil(after[near] / domain.max_turns)
        assert torch.equal(part.labels[there, j][near], expected)
    assert bool((distance[~distance.isinf()] <= part.steps[~distance.isinf()]).all())


@pytest.mark.parametrize("search", [qstar, astar, deferred_astar, q_beam])
def test_a_search_finds_the_path_of_the_cpu(search) -> None:  # type: ignore[no-untyped-def]
    paths = {}
    for device in ("cpu", "cuda"):
        domain = Cube3(12, device=device)
        start = domain.after([0, 4, 9, 2, 7])
        near = Perimeter(domain, domain.goal, 3)

        def exact(states: torch.Tensor, domain: Cube3 = domain, near: Perimeter = near):  # type: ignore[no-untyped-def]
            q = torch.empty(len(states), 12, device=states.device)
            for action in range(12):
                after = domain.apply(states, torch.full((len(states),), action, device=q.device))
                q[:, action] = 1.0 + near.distance(after, near.hashes(after))[0].clamp(max=4.0)
            return q

        solution = search(domain, exact, start)
        assert solution.solved
        assert solution.path_cost == 5
        paths[device] = solution.num_generated
    assert paths["cpu"] == paths["cuda"]


def test_lights_out_on_cuda() -> None:
    domain = LightsOut(3, device="cuda")
    start = domain.goal[None]
    for action in (0, 4, 7):
        start = domain.apply(start, torch.tensor([action], device="cuda"))

    def count(states: torch.Tensor) -> torch.Tensor:
        after = torch.stack(
            [
                domain.apply(states, torch.full((len(states),), a, device="cuda")).sum(1)
                for a in range(9)
            ],
            1,
        )
        return 1.0 + after / 5.0

    assert qstar(domain, count, start[0], weight=1.0).path_cost == 3


def test_training_runs(tmp_path: Path) -> None:
    train = load_script("qstar_cube3_train")
    settings = {
        "seed": 3, "device": "cuda", "run_dir": tmp_path, "embedding_size": 64, "hidden_size": 32,
        "ball_depth": 3, "batch_size": 520, "evaluation_period_updates": 50,
        "evaluation_cubes": 1, "final_evaluation_cubes": 2, "evaluation_width": 64,
        "checkpoint_period_updates": 20, "log_period_updates": 10,
    }  # fmt: skip
    summary = train.main(train.Config(total_updates=60, **settings))
    assert summary["num_updates"] == 60
    assert "cuda" in summary["device"]
    settings |= {"run_dir": tmp_path / "taught", "actions": 156, "recipe": "teacher"}
    assert train.main(train.Config(total_updates=20, **settings))["kept"] == "teacher"
