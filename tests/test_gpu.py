"""What only a machine with CUDA can show; run by `pytest -m gpu`."""

import copy

import numpy as np
import pytest
import torch

from classicrl.algorithms.dqn import DQNLearner
from classicrl.algorithms.symphony import CudaGraphUpdates, SymphonyLearner
from classicrl.networks import atari_q_network
from classicrl.networks.symphony import SymphonyActor, SymphonyCritics, init_symphony_
from classicrl.replay.fading import FadingReplay
from classicrl.types import ControlBatch, Transition

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


@pytest.mark.parametrize("keep_prob", [1.0, 0.5])
def test_ppo_with_rnd_learns_as_on_the_cpu(keep_prob: float) -> None:
    from classicrl.algorithms.ppo import PPOLearner
    from classicrl.algorithms.rnd import RND
    from classicrl.networks import atari_actor_critic, atari_rnd_networks
    from classicrl.replay import Rollout

    T, N = 6, 8
    figures, learners = {}, {}
    for device in ("cpu", "cuda"):
        g = torch.Generator().manual_seed(0)
        rollout = Rollout(T, N, (4, 84, 84), device=device)
        for name, values in {
            "obs": torch.randint(0, 256, rollout.obs.shape, dtype=torch.uint8, generator=g),
            "action": torch.randint(0, 18, (T, N), generator=g),
            "log_prob": torch.full((T, N), -2.9),
            "reward": torch.rand((T, N), generator=g),
            "discount": torch.full((T, N), 0.999),
        }.items():
            getattr(rollout, name).copy_(values)
        target, predictor = (
            part.to(device, memory_format=torch.channels_last) for part in atari_rnd_networks()
        )
        network = atari_actor_critic("cnn", 18).to(device, memory_format=torch.channels_last)
        rnd = RND(target, predictor, (1, 84, 84), N, keep_prob=keep_prob, device=device)
        learners[device] = PPOLearner(network, rnd)
        for _ in range(2):
            metrics = learners[device].update(rollout)
        figures[device] = {name: float(value) for name, value in metrics.items()}
    # Which frames are dropped is drawn by each device for itself.
    tolerance = 5e-2 if keep_prob == 1.0 else 0.3
    for name in ("predictor", "value_ext", "entropy", "bonus", "bonus_scale"):
        assert figures["cuda"][name] == pytest.approx(figures["cpu"][name], rel=tolerance), name
    # And it is continued on the same device, or on the other one.
    learners["cpu"].load_state_dict(learners["cuda"].state_dict())
    learners["cuda"].load_state_dict(learners["cpu"].state_dict())
    learners["cuda"].load_state_dict(learners["cuda"].state_dict())
    learners["cuda"].update(rollout)
    first = learners["cuda"].act(rollout.obs[0], rollout.initial_state, rollout.starts[0])
    assert first.action.is_cuda


@pytest.mark.timeout(300)
def test_the_script_of_ppo_with_rnd_trains_and_resumes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("ale_py")
    from script_process import load_script

    script = load_script("ppo_rnd_atari")
    settings = {
        "num_envs": 16,
        "env_groups": 2,
        "rollout_steps": 8,
        "warmup_rollouts": 2,
        "device": "cuda",
        "final_evaluation_episodes": 2,
        "run_dir": tmp_path,
    }
    assert script.main(script.Config(total_steps=256, **settings))["device"] == "cuda"
    assert script.main(script.Config(total_steps=512, **settings))["total_steps"] == 512


# -- Symphony --------------------------------------------------------------------------------------


def symphony_parts(device: str, hidden: int = 32) -> tuple[SymphonyLearner, FadingReplay]:
    actor, critics = SymphonyActor(5, 3, hidden), SymphonyCritics(5, 3, hidden, 8)
    generator = torch.Generator().manual_seed(0)
    for network in (actor, critics):
        init_symphony_(network, generator)
    learner = SymphonyLearner(actor.to(device), critics.to(device), learning_rate=1e-3, seed=1)
    replay = FadingReplay(5, 3, warmup_steps=20, replication=4, device=device, seed=2)
    rng = np.random.default_rng(0)
    for number in range(50):
        replay.add(
            rng.normal(size=(1, 5)),
            rng.uniform(-1, 1, (1, 3)),
            rng.normal(size=1),
            rng.random(1) < 0.1,
            rng.normal(size=(1, 5)),
        )
        if number == 19:
            replay.finish_warmup()
    return learner, replay


def test_symphony_s_update_is_that_of_the_cpu() -> None:
    terms = {}
    for device in ("cpu", "cuda"):
        learner, replay = symphony_parts(device)
        rows = replay.rows_of_ranks(torch.arange(80, device=device))
        stored = replay._rows[rows.long()]
        batch = ControlBatch(stored[:, :8], stored[:, 8:13], stored[:, -2], stored[:, -1])
        noise = torch.zeros(80, 3, device=device)
        learner._noise = lambda count, generator, noise=noise: noise  # type: ignore[method-assign]
        for _ in range(5):
            metrics = learner.update(batch)
        terms[device] = torch.stack([value.cpu() for value in metrics.values()])
    torch.testing.assert_close(terms["cpu"], terms["cuda"], rtol=1e-3, atol=1e-4)


def test_symphony_s_updates_as_a_graph_are_the_eager_ones() -> None:
    learner, replay = symphony_parts("cuda")
    other, other_replay = symphony_parts("cuda")
    graph = CudaGraphUpdates(
        learner, replay.sample, [replay.generator], batch_size=16, num_updates=2
    )
    transition = (np.ones((1, 5)), np.ones((1, 3)), np.ones(1), np.zeros(1, bool), np.ones((1, 5)))
    for _ in range(8):  # 3 of them eager, then replays of the graph
        for one in (replay, other_replay):  # the ring moves on between them
            one.add(*transition)
        captured, eager = graph(), other.update(other_replay.sample(32), 2)
        for name, values in eager.items():
            torch.testing.assert_close(captured[name], values, rtol=1e-3, atol=1e-4)
    assert graph._graph is not None
    for mine, theirs in zip(learner.parameters, other.parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_symphony_s_replay_draws_on_the_gpu_as_on_the_cpu() -> None:
    on_cpu, on_gpu = (symphony_parts(device)[1] for device in ("cpu", "cuda"))
    ranks = torch.arange(80)
    mine, theirs = on_cpu.rows_of_ranks(ranks), on_gpu.rows_of_ranks(ranks.cuda()).cpu()
    assert torch.equal(mine, theirs)
    state = on_gpu.state_dict()
    on_gpu.sample(7)
    other = FadingReplay(5, 3, warmup_steps=20, replication=4, device="cuda")
    other.load_state_dict(state)
    on_gpu.load_state_dict(state)
    for a, b in zip(other.sample(9), on_gpu.sample(9), strict=True):
        assert torch.equal(a, b)
