"""Two processes with half of the environments each make the update of one with all of them."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from classicrl.algorithms.ppo import PPOLearner
from classicrl.algorithms.rnd import RND, whole
from classicrl.distributed import Ranks, join_ranks
from classicrl.moments import RunningMoments
from classicrl.networks import vector_actor_critic, vector_rnd_networks
from classicrl.replay import Rollout

T, N, D, A, MINIBATCHES = 5, 12, 3, 4, 3


def rollout_of(envs: list[int]) -> Rollout:
    """Some environments of one and the same rollout."""
    g = torch.Generator().manual_seed(0)
    full = Rollout(T, N, (D,), obs_dtype=torch.float32)
    full.obs.normal_(generator=g)
    full.action.random_(0, A, generator=g)
    full.log_prob.uniform_(-2.0, -0.5, generator=g)
    full.value_ext.normal_(generator=g)
    full.value_int.normal_(generator=g)
    full.reward.bernoulli_(0.3, generator=g)
    full.discount.bernoulli_(0.8, generator=g)
    part = Rollout(T, len(envs), (D,), obs_dtype=torch.float32)
    for name in ("obs", "action", "log_prob", "value_ext", "value_int", "reward", "discount"):
        setattr(part, name, getattr(full, name)[:, envs].clone())
    return part


def learn(ranks: Ranks, envs: list[int], normalise: bool) -> dict[str, Any]:
    target, predictor = vector_rnd_networks(D, hidden=(8,), out_features=2, seed=1)
    rnd = RND(target, predictor, (D,), len(envs), view=whole, ranks=ranks)
    learner = PPOLearner(
        vector_actor_critic(D, A, hidden=(7,), seed=1),
        rnd,
        learning_rate=1e-2,
        num_epochs=2,
        num_minibatches=MINIBATCHES,
        normalise_advantage=normalise,
        max_grad_norm=0.3,
        ranks=ranks,
    )
    for _ in range(2):
        learner.update(rollout_of(envs))
    assert ranks.same_everywhere(learner.parameters)
    return {
        "parameters": [p.detach() for p in learner.parameters],
        "moments": [rnd.view_moments.state_dict(), rnd.reward_moments.state_dict()],
    }


def envs_of(rank: int, size: int) -> list[int]:
    """Dealt so that a minibatch of all ranks together has the environments of one rank's."""
    of_minibatch = N // MINIBATCHES
    share = of_minibatch // size
    return [m * of_minibatch + rank * share + k for m in range(MINIBATCHES) for k in range(share)]


def work(rank: int, port: int, directory: Path, normalise: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with join_ranks("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.is_first) == (rank, 2, rank == 0)
        assert ranks.gather(torch.tensor([rank + 1.0])).tolist() == [[1.0], [2.0]]
        assert ranks.mean(torch.tensor(float(rank))).item() == 0.5
        assert ranks.any(rank == 1) and not ranks.any(False)
        assert not ranks.same_everywhere([torch.tensor([float(rank)])])
        moments = RunningMoments((), ranks=ranks)
        moments.update(torch.tensor([1.0, 2.0, 3.0, 4.0])[2 * rank : 2 * rank + 2])
        assert moments.var.item() == pytest.approx(1.25015, abs=1e-5)
        # Without frames that count on one rank, the mean is over the other's.
        target, predictor = vector_rnd_networks(D, hidden=(8,), out_features=2, seed=1)
        rnd = RND(target, predictor, (D,), 2, view=whole, keep_prob=0.5, ranks=ranks)
        obs = torch.ones(4, D) * torch.arange(4)[:, None]
        kept = torch.tensor([True, False, True, True]) & (rank == 1)
        loss = ranks.mean(rnd.loss(obs, rnd.targets(obs), kept).detach())
        expected = rnd.bonus(obs)[[0, 2, 3]].mean()
        torch.testing.assert_close(loss, expected)
        result = learn(ranks, envs_of(rank, 2), normalise)
        if ranks.is_first:
            flat = torch.cat([p.flatten() for p in result["parameters"]])
            of_moments = [m[k].double().flatten() for m in result["moments"] for k in sorted(m)]
            (directory / "parameters.bin").write_bytes(flat.numpy().tobytes())
            (directory / "moments.bin").write_bytes(torch.cat(of_moments).numpy().tobytes())
    assert not dist.is_initialized()


@pytest.mark.parametrize("normalise", [False, True])
def test_two_ranks_make_the_update_of_one(tmp_path: Path, normalise: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "classicrl.algorithms.ppo"])
    processes = [
        context.Process(target=work, args=(rank, port, tmp_path, normalise)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    alone = learn(Ranks(), list(range(N)), normalise)
    flat = torch.cat([p.flatten() for p in alone["parameters"]])
    buffer = bytearray((tmp_path / "parameters.bin").read_bytes())
    torch.testing.assert_close(
        torch.frombuffer(buffer, dtype=torch.float32), flat, atol=1e-6, rtol=0
    )
    of_moments = [m[k].double().flatten() for m in alone["moments"] for k in sorted(m)]
    buffer = bytearray((tmp_path / "moments.bin").read_bytes())
    torch.testing.assert_close(
        torch.frombuffer(buffer, dtype=torch.float64), torch.cat(of_moments), atol=1e-6, rtol=1e-6
    )


def test_one_alone_changes_nothing() -> None:
    ranks = Ranks()
    tensor = torch.randn(3)
    assert torch.equal(ranks.sum(tensor), tensor) and torch.equal(ranks.gather(tensor)[0], tensor)
    assert ranks.any(True) and not ranks.any(False) and ranks.is_first
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        Ranks(2, 2)
