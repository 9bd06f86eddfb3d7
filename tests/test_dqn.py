"""The DQN learner: targets by hand, updates in one call or several, and problems it must solve.

The problems are solved with parts of the library put together here: torso, head, replay, learner.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classicrl.algorithms.dqn import DQNLearner
from classicrl.networks import (
    DuelingHead,
    MLPTorso,
    QHead,
    QNetwork,
    QOutput,
    atari_q_network,
    init_fan_in_,
)
from classicrl.replay import ReplayBuffer
from classicrl.types import Transition


class Table(nn.Module):
    """Action values of numbered states, one parameter each."""

    def __init__(self, q: list[list[float]]) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.tensor(q, dtype=torch.float64))

    def forward(self, obs: Tensor) -> QOutput:
        return QOutput(self.q[obs])


def transitions(*rows: tuple[int, int, float, float, int]) -> Transition:
    """Of ``(state, action, reward, discount, next state)``."""
    obs, action, reward, discount, next_obs = zip(*rows, strict=True)
    return Transition(
        torch.tensor(obs),
        torch.tensor(action),
        torch.tensor(reward, dtype=torch.float64),
        torch.tensor(discount, dtype=torch.float64),
        torch.tensor(next_obs),
    )


def network(seed: int = 0, dueling: bool = True) -> QNetwork:
    """Five inputs, three actions."""
    head = DuelingHead(16, 3, hidden=8) if dueling else QHead(16, 3, hidden=8)
    net = QNetwork(MLPTorso(5, (16,)), head, torso_gradient_scale=2**-0.5)
    init_fan_in_(net, torch.Generator().manual_seed(seed))
    return net


def random_batch(size: int, seed: int = 0) -> Transition:
    generator = torch.Generator().manual_seed(seed)
    return Transition(
        torch.randn(size, 5, generator=generator),
        torch.randint(0, 3, (size,), generator=generator),
        torch.randn(size, generator=generator),
        0.9 * torch.randint(0, 2, (size,), generator=generator),
        torch.randn(size, 5, generator=generator),
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# -- one update by hand ----------------------------------------------------------------------------

ONLINE = [[1.0, 2.0, 0.0], [0.0, 5.0, 3.0]]
TARGET = [[7.0, 7.0, 7.0], [4.0, -2.0, 1.0]]


def table_learner(**settings: Any) -> DQNLearner:
    """Whose target network differs from the online one, also about the best action of state 1."""
    learner = DQNLearner(Table(TARGET), max_grad_norm=None, **settings)
    with torch.no_grad():
        learner.online.q.copy_(torch.tensor(ONLINE))  # type: ignore[operator, union-attr]
    return learner


@pytest.mark.parametrize(
    ("double", "bootstrap"),
    [(False, 4.0), (True, -2.0)],  # the target's maximum; the target's value of the online choice
)
def test_loss_is_that_of_the_bootstrapped_target(double: bool, bootstrap: float) -> None:
    learner = table_learner(double=double)
    metrics = learner.update(transitions((0, 1, 0.5, 0.9, 1), (0, 0, -1.0, 0.81, 1)))
    errors = [2.0 - (0.5 + 0.9 * bootstrap), 1.0 - (-1.0 + 0.81 * bootstrap)]
    assert metrics["loss"].item() == pytest.approx(sum(0.5 * e * e for e in errors) / 2)
    assert metrics["q"].item() == pytest.approx(1.5)
    assert metrics["grad_norm"].item() == pytest.approx(np.hypot(*errors) / 2)
    assert all(values.shape == (1,) for values in metrics.values())


def test_the_choice_of_double_q_changes_which_way_a_value_moves() -> None:
    batch = transitions((0, 1, 0.5, 0.9, 1))  # target 4.1 plain, -1.3 double; value 2
    moved = {}
    for double in (False, True):
        learner = table_learner(double=double, learning_rate=0.01)
        learner.update(batch)
        moved[double] = learner.online.q[0, 1].item() - 2.0  # type: ignore[index, union-attr]
    # Adam's first step is one learning rate towards the target.
    assert moved[False] == pytest.approx(0.01, rel=1e-6)
    assert moved[True] == pytest.approx(-0.01, rel=1e-6)


@pytest.mark.parametrize("double", [False, True])
def test_after_a_termination_the_target_is_the_reward(double: bool) -> None:
    # Whatever the next state is worth, and also for a reward summed over several steps.
    for next_state in (0, 1):
        learner = table_learner(double=double)
        loss = learner.update(transitions((1, 2, 2.71, 0.0, next_state)))["loss"].item()
        assert loss == pytest.approx(0.5 * (3.0 - 2.71) ** 2)


def test_only_the_values_of_taken_actions_move() -> None:
    learner = table_learner(learning_rate=0.1)
    learner.update(transitions((0, 1, 0.5, 0.9, 1), (1, 2, 0.5, 0.9, 0)))
    moved = learner.online.q.detach() != torch.tensor(ONLINE)  # type: ignore[operator, union-attr]
    assert moved.tolist() == [[False, True, False], [False, False, True]]  # type: ignore[union-attr]


def test_huber_bounds_the_gradient_of_one_transition() -> None:
    batch = transitions((0, 0, 1e4, 0.0, 0))
    assert table_learner(loss="huber").update(batch)["grad_norm"].item() == 1.0
    assert table_learner(loss="squared").update(batch)["grad_norm"].item() == 1e4 - 1.0


@pytest.mark.parametrize(("bound", "left"), [(0.25, 0.25), (1e9, 99.0), (None, 99.0)])
def test_gradient_is_clipped_and_reported_unclipped(bound: float | None, left: float) -> None:
    learner = DQNLearner(Table([[1.0, 0.0]]), max_grad_norm=bound)
    metrics = learner.update(transitions((0, 0, 100.0, 0.0, 0)))
    assert metrics["grad_norm"].item() == pytest.approx(99.0)
    gradient = learner.parameters[0].grad
    assert gradient is not None
    assert gradient.norm().item() == pytest.approx(left, rel=1e-4)


def test_the_bound_is_on_all_parameters_together() -> None:
    learner = DQNLearner(network(), max_grad_norm=1e-3)
    assert learner.update(random_batch(32))["grad_norm"].item() > 1e-3
    squares = sum(p.grad.square().sum().item() for p in learner.parameters if p.grad is not None)
    assert squares**0.5 == pytest.approx(1e-3, rel=1e-2)


# -- several updates in one call -------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("num_updates", [2, 5])
def test_updates_in_one_call_are_those_of_single_calls(double: bool, num_updates: int) -> None:
    together = DQNLearner(network(1), learning_rate=1e-2, double=double)
    apart = DQNLearner(network(1), learning_rate=1e-2, double=double)
    for learner in (together, apart):  # the target network is not the online one
        learner.target.load_state_dict(network(2).state_dict())
    batch = random_batch(7 * num_updates)
    joint = together.update(batch, num_updates)
    single = [
        apart.update(Transition(*(field[7 * u : 7 * (u + 1)] for field in batch)))
        for u in range(num_updates)
    ]
    for name, values in joint.items():
        assert values.shape == (num_updates,)
        expected = torch.cat([metrics[name] for metrics in single])
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(together.parameters, apart.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("double", [False, True])
def test_updates_in_one_call_are_exact_where_arithmetic_is(double: bool) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (int(s), int(a), float(r), 0.9, int(t))
        for s, a, r, t in zip(*rng.integers([[2], [3], [9], [2]], size=(4, 12)), strict=True)
    ]
    together, apart = (table_learner(double=double, learning_rate=0.3) for _ in range(2))
    joint = together.update(transitions(*rows), num_updates=4)
    single = [apart.update(transitions(*rows[3 * u : 3 * u + 3])) for u in range(4)]
    for name, values in joint.items():
        assert values.tolist() == [metrics[name].item() for metrics in single]
    assert same(together.state_dict(), apart.state_dict())
    # Double Q must look at the parameters of each update, not at those of the first.
    assert len(set(joint["q"].tolist())) > 1


# -- target network, state, seeds ------------------------------------------------------------------


def test_target_network_stays_until_it_is_synchronised() -> None:
    learner = DQNLearner(network(), learning_rate=1e-2)
    before = copy.deepcopy(learner.target.state_dict())
    assert same(dict(before), dict(learner.online.state_dict()))
    learner.update(random_batch(40), num_updates=5)
    assert same(dict(before), dict(learner.target.state_dict()))
    assert not any(p.requires_grad or p.grad is not None for p in learner.target.parameters())
    learner.sync_target()
    assert same(dict(learner.online.state_dict()), dict(learner.target.state_dict()))
    synchronised = copy.deepcopy(learner.target.state_dict())
    learner.update(random_batch(8))
    assert same(dict(synchronised), dict(learner.target.state_dict()))  # a copy, not a view


def test_state_dict_continues_exactly() -> None:
    learner = DQNLearner(network(), learning_rate=1e-2, double=True)
    learner.update(random_batch(30), num_updates=3)
    learner.sync_target()
    learner.update(random_batch(20, seed=1), num_updates=2)
    other = DQNLearner(network(seed=9), learning_rate=1e-2, double=True)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for seed in range(3):
        assert same(
            learner.update(random_batch(8, seed=seed)), other.update(random_batch(8, seed=seed))
        )
    assert same(learner.state_dict(), other.state_dict())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_state_of_a_convolutional_network_continues_exactly_whatever_lies_how_in_memory(
    memory_format: torch.memory_format,
) -> None:
    def make(seed: int) -> DQNLearner:
        net = atari_q_network("small", "dueling", 3, seed=seed)
        return DQNLearner(net.to(memory_format=memory_format), learning_rate=1e-3)

    def batch(seed: int) -> Transition:
        generator = torch.Generator().manual_seed(seed)
        obs, next_obs = torch.randint(
            0, 256, (2, 6, 4, 84, 84), dtype=torch.uint8, generator=generator
        )
        rest = random_batch(6, seed)
        return rest._replace(obs=obs, next_obs=next_obs)

    def as_from_disk(value: Any) -> Any:
        """Files know no memory format."""
        if isinstance(value, Tensor):
            return value.clone(memory_format=torch.contiguous_format)
        if isinstance(value, dict):
            return {key: as_from_disk(item) for key, item in value.items()}
        return value

    learner, other = make(0), make(1)
    for seed in range(2):
        learner.update(batch(seed))
    other.load_state_dict(as_from_disk(learner.state_dict()))
    assert same(learner.state_dict(), other.state_dict())
    for seed in range(2, 5):
        assert same(learner.update(batch(seed)), other.update(batch(seed)))
    assert same(learner.state_dict(), other.state_dict())


def test_two_learners_from_one_state_go_their_own_ways() -> None:
    source = DQNLearner(network(), learning_rate=1e-2)
    source.update(random_batch(8))
    before = copy.deepcopy(source.state_dict())
    for seed in (1, 2):
        learner = DQNLearner(network(), learning_rate=1e-2)
        learner.load_state_dict(source.state_dict())
        learner.update(random_batch(8, seed=seed))
        assert same(source.state_dict(), before)


def test_same_seed_same_parameters_another_seed_others() -> None:
    def trained(network_seed: int, batch_seed: int) -> dict[str, Any]:
        learner = DQNLearner(network(network_seed))
        for u in range(50):
            learner.update(random_batch(8, seed=batch_seed + u))
        return learner.state_dict()

    first = trained(0, 0)
    assert same(first, trained(0, 0))
    assert not same(first, trained(1, 0))
    assert not same(first, trained(0, 1))


def test_act_is_greedy_and_leaves_no_graph() -> None:
    learner = table_learner()
    action = learner.act(torch.tensor([1, 0, 0, 1]))
    assert action.tolist() == [1, 1, 1, 1] and action.dtype == torch.int64
    assert not learner.act(torch.tensor([0])).requires_grad


def test_a_batch_with_targets_of_another_shape_is_refused() -> None:
    batch = random_batch(6)
    with pytest.raises(ValueError, match="shapes must be equal"):
        DQNLearner(network()).update(batch._replace(reward=batch.reward[:, None]))


# -- problems with known solutions -----------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("time_limit_ends_the_value", [False, True])
def test_constant_reward_under_a_time_limit(n_steps: int, time_limit_ends_the_value: bool) -> None:
    """A reward of 1 for ever is worth 1 / (1 - gamma) = 10, though episodes are cut after 5 steps.

    To take the cut for a termination gives 3.6 (for one-step targets: v = 1 + 0.9 * 4/5 v).
    """
    gamma = 0.9
    replay = ReplayBuffer(
        500, (5,), 2, n_steps=n_steps, gamma=gamma, obs_dtype=torch.float32, seed=1
    )
    view = np.ones((2, 5), dtype=np.float32)
    for t in range(100):
        cut = np.array([t % 5 == 4, t % 5 == 2])
        replay.add(
            view,
            np.array([t % 3, t % 2]),
            np.ones(2, dtype=np.float32),
            terminated=cut & time_limit_ends_the_value,
            ended=cut,
            final_obs=view[cut],
        )
    learner = DQNLearner(network(dueling=False), learning_rate=1e-2)
    for _ in range(60):
        learner.update(replay.sample(10 * 32), num_updates=10)
        learner.sync_target()
    value = learner.online(torch.ones(1, 5)).q.max().item()
    if time_limit_ends_the_value:
        assert value < 5.0
    else:
        assert value == pytest.approx(10.0, rel=0.05)


LENGTH = 6
CHAIN_GAMMA = 0.8


def chain_step(state: int, action: int) -> tuple[int, float, bool]:
    """Right (1) goes on, 10 at the end; left (0) goes back, 1 at the left end, which ends too."""
    if action == 1:
        return (state + 1, 0.0, False) if state < LENGTH - 1 else (state, 10.0, True)
    return (state - 1, 0.0, False) if state > 0 else (state, 1.0, True)


def chain_optimum() -> np.ndarray:
    q = np.zeros((LENGTH, 2))
    for _ in range(200):
        for state in range(LENGTH):
            for action in range(2):
                following, reward, over = chain_step(state, action)
                q[state, action] = reward + CHAIN_GAMMA * (0.0 if over else q[following].max())
    return q


@pytest.mark.parametrize("double", [False, True])
def test_chain_is_learned_to_its_optimum_from_random_play(double: bool) -> None:
    rng = np.random.default_rng(0)
    views = np.eye(LENGTH, dtype=np.float32)
    # Smaller than what is added, so that the ring comes round.
    replay = ReplayBuffer(1200, (LENGTH,), 3, gamma=CHAIN_GAMMA, obs_dtype=torch.float32, seed=2)
    states = rng.integers(LENGTH, size=3)
    for _ in range(600):
        actions = rng.integers(2, size=3)
        steps = [chain_step(int(s), int(a)) for s, a in zip(states, actions, strict=True)]
        following = np.array([step[0] for step in steps])
        reward = np.array([step[1] for step in steps], dtype=np.float32)
        over = np.array([step[2] for step in steps])
        replay.add(views[states], actions, reward, over, over, views[following[over]])
        states = np.where(over, rng.integers(LENGTH, size=3), following)
    assert replay.next_id > 1500

    net = QNetwork(MLPTorso(LENGTH, (64,)), DuelingHead(64, 2, hidden=32))
    init_fan_in_(net, torch.Generator().manual_seed(0))
    learner = DQNLearner(net, learning_rate=3e-3, double=double)
    for _ in range(60):
        learner.update(replay.sample(40 * 32), num_updates=40)
        learner.sync_target()
    optimum = chain_optimum()
    learned = learner.online(torch.from_numpy(views)).q.detach().numpy()
    assert np.abs(learned - optimum).max() < 0.1
    assert learner.act(torch.from_numpy(views)).tolist() == optimum.argmax(axis=1).tolist()


def test_a_batch_of_unequal_shares_is_refused() -> None:
    learner = DQNLearner(network())
    with pytest.raises(ValueError, match="a batch of 7 is not 3 equal shares"):
        learner.update(random_batch(7), num_updates=3)
