"""VA-learning and its kin: the identities between them in float64, whose gradient goes where, and
networks side by side that must be what each would be alone."""

import copy
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classicrl import losses
from classicrl.algorithms.dqn import FAMILY, DQNLearner
from classicrl.evaluation import epsilon_greedy, members_epsilon_greedy
from classicrl.networks import (
    BehaviourOutput,
    DuelingHead,
    DuelingOutput,
    Linear,
    MinAtarTorso,
    MLPTorso,
    QNetwork,
    QOutput,
    StackedLinear,
    atari_q_network,
    member_state,
    minatar_q_network,
    stack_members_,
    torsos,
    vector_q_network,
)
from classicrl.networks import linear as linear_module
from classicrl.networks.q_network import HeadName
from classicrl.types import Transition

TWO_STREAMS = ["dueling", "dueling-behaviour", "va", "va-raw", "va-fitted", "rdq"]
WITH_BEHAVIOUR = ["dueling-behaviour", "va"]


def network(centring: Any, seed: int = 0, **settings: Any) -> QNetwork:
    """Five inputs, four actions, float64."""
    torch.manual_seed(seed)
    head = DuelingHead(
        7, num_actions=4, hidden=6, centring=centring, behaviour_hidden=3, **settings
    )
    return QNetwork(MLPTorso(5, (7,)), head).double()


class AsDouble(nn.Module):
    """The torsos convert what they are given to float32; here everything stays float64."""

    def __init__(self, net: QNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Tensor) -> Any:
        features = self.net.torso.layers(obs)  # type: ignore[operator, union-attr]
        return self.net.head(features)


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def observations(size: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 5, generator=generator, dtype=torch.float64)


# -- the identities --------------------------------------------------------------------------------


def test_va_and_behaviour_dueling_differ_by_the_advantage_times_the_gradient_of_v() -> None:
    """Per sample: grad L_B - grad L_VA = A(x,a) grad V(x); and its mean over a ~ mu is 0."""
    net = AsDouble(network("behaviour"))
    parameters = list(net.parameters())
    targets = torch.tensor([0.7, -1.2, 2.0, 0.1], dtype=torch.float64)
    obs = observations(1)
    expected_difference = [torch.zeros_like(p) for p in parameters]
    for action in range(4):
        output = net(obs)
        advantage, y = output.advantage[:, action], targets[action : action + 1]
        joint = gradients(losses.squared(output.value + advantage - y), parameters)
        split = gradients(losses.va(output.value, advantage, y), parameters)
        of_value = gradients(output.value.sum(), parameters)
        mu = output.behaviour_logits.softmax(dim=-1)[0, action].detach()
        for total, a, b, v in zip(expected_difference, joint, split, of_value, strict=True):
            torch.testing.assert_close(a - b, advantage.detach() * v, rtol=0, atol=1e-12)
            total += mu * (a - b)
        assert any((a - b).abs().max() > 1e-3 for a, b in zip(joint, split, strict=True))
    for total in expected_difference:
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)


def test_the_identity_needs_the_squared_loss() -> None:
    net = AsDouble(network("behaviour"))
    parameters = list(net.parameters())
    targets = torch.tensor([7.0, -12.0, 0.2, 0.1], dtype=torch.float64)
    total = [torch.zeros_like(p) for p in parameters]
    for action in range(4):
        output = net(observations(1))
        advantage, value = output.advantage[:, action], output.value
        y = targets[action : action + 1]
        joint = losses.huber(value + advantage - y)
        split = losses.huber(value - y) + losses.huber(advantage - (y - value.detach()))
        mu = output.behaviour_logits.softmax(dim=-1)[0, action].detach()
        for t, g in zip(total, gradients(mu * (joint - split), parameters), strict=True):
            t += g
    assert max(float(t.abs().max()) for t in total) > 1e-3


def test_without_the_stop_gradient_v_would_take_a_double_step() -> None:
    net = AsDouble(network("behaviour"))
    parameters = list(net.parameters())
    targets = torch.tensor([0.7, -1.2, 2.0, 0.1], dtype=torch.float64)
    output = net(observations(1))
    mu = output.behaviour_logits.softmax(dim=-1)[0].detach()
    excess = [torch.zeros_like(p) for p in parameters]
    for action in range(4):
        y = targets[action : action + 1]
        advantage = output.advantage[:, action]
        leaky = losses.squared(output.value - y) + losses.squared(advantage - (y - output.value))
        right = losses.va(output.value, advantage, y)
        for e, g in zip(excess, gradients(mu[action] * (leaky - right), parameters), strict=True):
            e += g
    error = (output.value - (mu * targets).sum()).detach()
    of_value = gradients(output.value.sum(), parameters)
    for e, v in zip(excess, of_value, strict=True):
        torch.testing.assert_close(e, error * v, rtol=0, atol=1e-12)
    assert abs(float(error)) > 0.1


@pytest.mark.parametrize("over", [True, False], ids=["bad action overrated", "underrated"])
def test_a_wrong_mu_moves_the_values_of_va_but_not_of_behaviour_dueling(over: bool) -> None:
    """One state, actions by mu, centred by c: at rest Q(b) - y(b) = E c(b) / mu(b)."""
    mu = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    wrong = torch.tensor(
        [0.4, 0.3, 0.15, 0.15] if over else [0.55, 0.3, 0.14, 0.01], dtype=torch.float64
    )
    y = torch.tensor([1.0, 0.5, 0.0, -9.0], dtype=torch.float64)  # the last action is deadly

    def slope(q: Tensor, at: Tensor, *, split: bool) -> float:
        """Size of the expected gradient where V = at and V + A = q, with the A of zero mean."""
        value, raw = at.clone().requires_grad_(), (q - at).requires_grad_()
        advantage = raw - (wrong * raw).sum()
        each = [
            losses.va(value[None], advantage[b : b + 1], y[b : b + 1])
            if split
            else losses.squared(value + advantage[b : b + 1] - y[b : b + 1])
            for b in range(4)
        ]
        found = torch.autograd.grad((mu * torch.stack(each)).sum(), [value, raw])
        return max(float(g.abs().max()) for g in found)

    assert slope(y, (wrong * y).sum(), split=False) < 1e-12
    assert slope(y, (wrong * y).sum(), split=True) > 1e-2
    excess = ((mu - wrong) * y).sum() / (wrong.square() / mu).sum()  # E
    assert slope(y + excess * wrong / mu, (mu * y).sum(), split=True) < 1e-12
    assert (excess > 0.01) if over else (excess < -0.01)


def test_a_fitted_centre_rests_where_the_right_mu_does() -> None:
    """V = y(mu), F - C = y - V and C the mean of F, whatever constant F carries: then Q = y."""
    mu = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    y = torch.tensor([1.0, 0.5, 0.0, -9.0], dtype=torch.float64)

    def slope(raw: Tensor, centre: Tensor, value: Tensor) -> float:
        """Size of the expected gradient."""
        parts = [part.clone().requires_grad_() for part in (raw, centre, value)]
        raw, centre, value = parts
        advantage = raw - centre.detach()
        each = [
            losses.va(value[None], advantage[b : b + 1], y[b : b + 1])
            + losses.fitted_centre(centre[None], advantage[b : b + 1])
            for b in range(4)
        ]
        return max(
            float(g.abs().max()) for g in torch.autograd.grad((mu * torch.stack(each)).sum(), parts)
        )

    for shift in (0.0, -3.0):
        raw = y + shift
        assert slope(raw, (mu * raw).sum(), (mu * y).sum()) < 1e-12
        assert slope(raw, raw.mean(), (mu * y).sum()) > 0.1  # centred by another policy
        assert slope(raw, (mu * raw).sum(), (mu * y).sum() + 0.1) > 1e-2


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("centring", ["behaviour", "fitted"])
def test_heads_too_small_for_the_policy_inflate_va_but_not_with_a_fitted_centre(
    centring: Any,
) -> None:
    """The action taken is the best one in nine of ten states, and a single unit cannot tell which
    that is. An estimated mu is then blurred, and Q lies above the rewards; a fitted centre is off
    in single states, but not on the whole."""
    torch.manual_seed(0)
    head = DuelingHead(32, num_actions=4, hidden=32, centring=centring, behaviour_hidden=1)
    learner = DQNLearner(
        QNetwork(MLPTorso(2, (32,)), head), loss="va", learning_rate=3e-3, max_grad_norm=None
    )
    generator = torch.Generator().manual_seed(1)

    def batch(size: int) -> Transition:
        obs = torch.randn(size, 2, generator=generator)
        best = 2 * (obs[:, 0] > 0).long() + (obs[:, 1] > 0).long()
        drawn = torch.randint(0, 4, (size,), generator=generator)
        action = torch.where(torch.rand(size, generator=generator) < 0.9, best, drawn)
        reward = torch.where(action == best, 1.0, -1.0)
        return Transition(obs, action, reward, torch.zeros(size), obs)

    for learning_rate, count in ((3e-3, 500), (3e-4, 300)):
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate
        for _ in range(count):
            learner.update(batch(128))
    seen = batch(20_000)
    q = losses.chosen(learner.action_values(seen.obs), seen.action)
    excess = float((q - seen.reward).mean())
    assert excess > 0.1 if centring == "behaviour" else abs(excess) < 0.03, excess


def test_pythagoras() -> None:
    """sum mu (q - y)^2 = (V - y(mu))^2 + sum mu (A - (y - y(mu)))^2 where A(mu) = 0."""
    output = AsDouble(network("behaviour", seed=4))(observations(6))
    mu = output.behaviour_logits.softmax(dim=-1)
    y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = (mu * y).sum(dim=1, keepdim=True)
    left = (mu * (output.q - y) ** 2).sum(dim=1)
    right = (output.value - mean[:, 0]) ** 2
    right = right + (mu * (output.advantage - (y - mean)) ** 2).sum(dim=1)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_uniform_behaviour_makes_behaviour_dueling_the_uniform_one() -> None:
    behaviour, uniform = network("behaviour", seed=2), network("mean", seed=5)
    nn.init.zeros_(behaviour.head.behaviour.logits.weight)  # type: ignore[arg-type, union-attr]
    nn.init.zeros_(behaviour.head.behaviour.logits.bias)  # type: ignore[arg-type, union-attr]
    state = {k: v for k, v in behaviour.state_dict().items() if "behaviour" not in k}
    uniform.load_state_dict(state)
    obs = observations(6)
    a, b = AsDouble(behaviour)(obs), AsDouble(uniform)(obs)
    for name in ("q", "value", "advantage"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("centring", ["mean", "behaviour", "fitted", "none"])
def test_centring_leaves_the_greedy_action(centring: str) -> None:
    net = network(centring, seed=6)
    features = net.torso.layers(observations(50))  # type: ignore[operator, union-attr]
    output = net.head(features)
    raw = net.head.preferences(features)  # type: ignore[operator, union-attr]
    assert torch.equal(output.q.argmax(dim=1), raw.argmax(dim=1))
    torch.testing.assert_close(output.q, output.value[:, None] + output.advantage)
    if centring == "none":
        torch.testing.assert_close(output.advantage, raw)
    elif centring == "fitted":
        torch.testing.assert_close(output.advantage, raw - output.centre[:, None])
    else:
        weights = (
            output.behaviour_logits.softmax(dim=1)
            if centring == "behaviour"
            else torch.full_like(raw, 0.25)
        )
        centre = (weights * output.advantage).sum(dim=1)
        torch.testing.assert_close(centre, torch.zeros_like(centre), rtol=0, atol=1e-12)


def test_smoothing_mixes_the_uniform_policy_into_the_centre() -> None:
    net = network("behaviour", seed=6, smoothing=0.2)
    output = AsDouble(net)(observations(3))
    mu = 0.8 * output.behaviour_logits.softmax(dim=1) + 0.2 / 4
    centre = (mu * output.advantage).sum(dim=1)
    torch.testing.assert_close(centre, torch.zeros_like(centre), rtol=0, atol=1e-12)


# -- whose gradient goes where ---------------------------------------------------------------------


def assert_do_not_touch_each_other(
    net: nn.Module, of_values: Tensor, of_head: Tensor, apart: str
) -> None:
    """The loss of a head moves the parameters that have ``apart`` in their names and no others."""
    parameters = list(net.parameters())
    both = zip(gradients(of_values, parameters), gradients(of_head, parameters), strict=True)
    for (name, _), (by_values, by_head) in zip(net.named_parameters(), both, strict=True):
        own, other = (by_head, by_values) if apart in name else (by_values, by_head)
        assert own.abs().max() > 0, name
        assert other.abs().max() == 0, name


@pytest.mark.parametrize("loss", ["va", "squared"])
def test_value_losses_and_the_behaviour_loss_do_not_touch_each_other(loss: str) -> None:
    net = AsDouble(network("behaviour"))
    output = net(observations(9))
    action = torch.arange(9) % 4
    advantage, y = losses.chosen(output.advantage, action), torch.linspace(-1, 1, 9).double()
    value_loss = (
        losses.va(output.value, advantage, y)
        if loss == "va"
        else losses.squared(output.value + advantage - y)
    )
    nll = losses.behaviour_nll(output.behaviour_logits, action)
    assert_do_not_touch_each_other(net, value_loss, nll, apart="behaviour")


def test_value_losses_and_the_loss_of_the_centre_do_not_touch_each_other() -> None:
    net = AsDouble(network("fitted"))
    output = net(observations(9))
    advantage = losses.chosen(output.advantage, torch.arange(9) % 4)
    value_loss = losses.va(output.value, advantage, torch.linspace(-1, 1, 9).double())
    of_centre = losses.fitted_centre(output.centre, advantage)
    assert_do_not_touch_each_other(net, value_loss, of_centre, apart="centre")


@pytest.mark.parametrize("head", ["dueling", "behaviour", "fitted", "uncentred"])
def test_two_stream_networks_scale_the_gradient_into_the_torso(head: Any) -> None:
    assert atari_q_network("small", head, 4).torso_gradient_scale == 2**-0.5


@pytest.mark.parametrize(("head", "apart"), [("behaviour", "behaviour"), ("fitted", "centre")])
def test_what_centres_is_left_out_of_the_bound_on_the_gradient(head: Any, apart: str) -> None:
    def learner(bound: float | None) -> DQNLearner:
        return DQNLearner(vector_q_network(head, 3, 4, seeds=1), loss="va", max_grad_norm=bound)

    batch = vector_batch(20)
    bounded, free = learner(1e-3), learner(None)
    norms = [float(one.update(batch)["grad_norm"]) for one in (bounded, free)]
    assert norms[0] == pytest.approx(norms[1]) and norms[0] > 1e-3
    squares = 0.0
    for (name, a), b in zip(bounded.online.named_parameters(), free.parameters, strict=True):
        assert a.grad is not None and b.grad is not None
        if apart in name:
            assert torch.equal(a.grad, b.grad)
        else:
            squares += float(a.grad.square().sum())
    assert squares**0.5 == pytest.approx(1e-3, rel=1e-2)


# -- the losses ------------------------------------------------------------------------------------


def test_va_loss_by_hand() -> None:
    value, advantage, y = (
        torch.tensor([1.0, 0.0]),
        torch.tensor([2.0, -1.0]),
        torch.tensor([4, 1.0]),
    )
    # V errors 3, 1; A targets 3, 1, A errors 1, 2.
    assert float(losses.va(value, advantage, y)) == pytest.approx((9 + 1 + 1 + 4) / 4)


def test_stream_penalty_rests_where_v_is_the_sum_of_the_advantages() -> None:
    """Q = (3, 6): V = 3, F = (0, 3), squared norm 18; the mean split would have 24.75."""

    def norm(v: float) -> float:
        streams = torch.tensor([v]), torch.tensor([[3.0 - v, 6.0 - v]])
        return 2 * float(losses.stream_penalty(*streams))

    assert norm(3.0) == pytest.approx(18.0)
    assert norm(4.5) == pytest.approx(24.75)
    assert all(norm(v) > 18.0 for v in (2.9, 3.1, 0.0, 6.0))


def test_behaviour_losses() -> None:
    logits = torch.zeros(3, 4)
    action = torch.tensor([0, 3, 1])
    assert float(losses.behaviour_nll(logits, action)) == pytest.approx(math.log(4))
    acting = torch.tensor([[0.7, 0.1, 0.1, 0.1]] * 3)
    logits = acting.log().requires_grad_()
    cross = losses.behaviour_cross_entropy(logits, acting)
    entropy = -(acting * acting.log()).sum(dim=1).mean()
    assert float(cross.detach()) == pytest.approx(float(entropy))
    cross.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-7)


# -- the learner -----------------------------------------------------------------------------------


def vector_batch(size: int, members: int | None = None, seed: int = 0) -> Transition:
    """Three inputs, four actions."""
    lead = () if members is None else (members,)
    g = torch.Generator().manual_seed(seed)
    return Transition(
        torch.randn(*lead, size, 3, generator=g),
        torch.randint(0, 4, (*lead, size), generator=g),
        torch.randn(*lead, size, generator=g),
        0.9 * torch.randint(0, 2, (*lead, size), generator=g),
        torch.randn(*lead, size, 3, generator=g),
    )


def family_learner(name: str, seeds: int | list[int] = 0, **settings: Any) -> DQNLearner:
    recipe = FAMILY[name]
    return DQNLearner(
        vector_q_network(recipe.head, 3, 4, seeds=seeds),
        loss=recipe.loss,
        stream_penalty=recipe.stream_penalty,
        **{"learning_rate": 1e-2, **settings},
    )


@pytest.mark.parametrize("name", FAMILY)
def test_the_learner_names_what_it_measures(name: str) -> None:
    learner = family_learner(name)
    metrics = learner.update(vector_batch(8), num_updates=2)
    assert tuple(metrics) == learner.metric_names
    assert all(values.shape == (2,) and values.isfinite().all() for values in metrics.values())
    assert ("value" in metrics) == (name in TWO_STREAMS)
    assert ("behaviour_nll" in metrics) == (name in WITH_BEHAVIOUR)
    assert ("centre_error" in metrics) == (name == "va-fitted")


def test_uniform_dueling_is_the_same_learner_and_makes_the_same_updates() -> None:
    """What agents/dueling_dqn_atari.py builds, and the family's `dueling`."""
    recipe = FAMILY["dueling"]
    obs = torch.randint(0, 256, (6, 4, 84, 84), dtype=torch.uint8)
    batch = Transition(obs, torch.arange(6) % 3, torch.ones(6), torch.full((6,), 0.9), obs.flip(0))
    own = DQNLearner(atari_q_network("small", "dueling", 3, seed=4))
    of_family = DQNLearner(
        atari_q_network("small", recipe.head, 3, seed=4),
        loss=recipe.loss,
        stream_penalty=recipe.stream_penalty,
    )
    for _ in range(3):
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                own.update(batch).values(), of_family.update(batch).values(), strict=True
            )
        )
    for a, b in zip(own.parameters, of_family.parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILY)
def test_every_member_of_the_family_learns_the_rewards(name: str) -> None:
    """Terminating transitions: Q(x,a) must become the reward of the action."""
    learner = family_learner(name, learning_rate=3e-3)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.tensor([1.0, -1.0, 0.5, 0.0])
    for _ in range(600):
        obs = torch.randn(64, 3, generator=generator)
        action = torch.randint(0, 4, (64,), generator=generator)
        metrics = learner.update(Transition(obs, action, rewards[action], torch.zeros(64), obs))
    q = learner.action_values(torch.randn(100, 3, generator=generator))
    torch.testing.assert_close(q.mean(dim=0), rewards, rtol=0, atol=0.1)
    if name in WITH_BEHAVIOUR:
        # Actions were uniform, so no policy explains them better than ln 4; V is their mean Q, and
        # the advantages of the taken actions average out against their spread.
        assert float(metrics["behaviour_nll"]) == pytest.approx(math.log(4), abs=0.08)
        assert float(metrics["value"]) == pytest.approx(float(rewards.mean()), abs=0.15)
        assert abs(float(metrics["advantage"])) < 0.35 * float(metrics["advantage_spread"])


@pytest.mark.parametrize("num_actions", [2, 4, 18])
def test_behaviour_head_finds_no_structure_in_random_actions(num_actions: int) -> None:
    learner = DQNLearner(
        vector_q_network("behaviour", 3, num_actions), loss="va", learning_rate=3e-3
    )
    g = torch.Generator().manual_seed(1)
    nll = []
    for _ in range(400):
        obs = torch.randn(128, 3, generator=g)
        action = torch.randint(0, num_actions, (128,), generator=g)
        batch = Transition(obs, action, torch.zeros(128), torch.zeros(128), obs)
        nll.append(float(learner.update(batch)["behaviour_nll"]))
    assert sum(nll[-100:]) / 100 == pytest.approx(math.log(num_actions), abs=0.03)


def test_soft_labels_teach_the_acting_distribution() -> None:
    learner = family_learner("va", learning_rate=1e-2)
    acting = torch.tensor([0.6, 0.2, 0.1, 0.1]).expand(32, 4)
    batch = vector_batch(32)._replace(action=torch.full((32,), 3))  # the labels, not the actions
    for _ in range(300):
        learner.update(batch, acting=acting)
    output = learner.online(batch.obs)
    assert isinstance(output, BehaviourOutput)
    found = output.behaviour_logits.softmax(dim=1).detach()
    torch.testing.assert_close(found, acting, rtol=0, atol=0.03)


def test_the_target_network_centres_with_its_own_copy_of_mu() -> None:
    learner = family_learner("va")
    before = copy.deepcopy(learner.target.state_dict())
    learner.update(vector_batch(8))
    after, online = learner.target.state_dict(), learner.online.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name])
        assert not torch.equal(online[name], after[name]), name
    learner.sync_target()
    assert all(torch.equal(online[name], p) for name, p in learner.target.state_dict().items())


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("q", {"loss": "va"}),
        ("dueling", {"loss": "va"}),
        ("q", {"stream_penalty": 1e-3}),
        ("dueling", {"stream_penalty": 1e-3}),
        ("behaviour", {"stream_penalty": 1e-3}),
    ],
)
def test_a_loss_that_the_head_cannot_serve_is_refused(head: Any, settings: Any) -> None:
    with pytest.raises(ValueError, match="needs a head"):
        DQNLearner(vector_q_network(head, 3, 4), **settings).update(vector_batch(5))


def test_one_action_is_learned_without_a_gap() -> None:
    learner = DQNLearner(vector_q_network("behaviour", 3, 1), loss="va")
    batch = vector_batch(5)
    figures = learner.update(batch._replace(action=torch.zeros_like(batch.action)))
    assert float(figures["action_gap"]) == float(figures["advantage_spread"]) == 0.0
    assert float(figures["loss"]) > 0.0


# -- networks side by side -------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [None, 0.05])
@pytest.mark.parametrize("name", FAMILY)
def test_members_side_by_side_are_what_each_would_be_alone(name: str, bound: float | None) -> None:
    seeds, num_updates, size = [3, 8, 5], 2, 7
    stacked = family_learner(name, seeds, max_grad_norm=bound)
    singles = [family_learner(name, seed, max_grad_norm=bound) for seed in seeds]
    for round_ in range(4):
        batch = vector_batch(num_updates * size, members=3, seed=round_)
        joint = stacked.update(batch, num_updates)
        for k, single in enumerate(singles):
            alone = single.update(Transition(*(field[k] for field in batch)), num_updates)
            for metric, values in joint.items():
                assert values.shape == (num_updates, 3)
                torch.testing.assert_close(values[:, k], alone[metric], rtol=1e-4, atol=1e-5)
        if round_ == 1:
            for learner in (stacked, *singles):
                learner.sync_target()
    obs = vector_batch(6, members=3).obs
    for k, single in enumerate(singles):
        for key, values in member_state(stacked.online, k).items():
            torch.testing.assert_close(
                values, single.online.state_dict()[key], rtol=1e-3, atol=1e-4
            )
        assert torch.equal(stacked.act(obs)[k], single.act(obs[k]))


@pytest.mark.parametrize("batch", [1, 33])  # acting alone; enough for the products of oneDNN
@pytest.mark.parametrize("seeds", [2, [2, 5, 3]])
@pytest.mark.parametrize("head", get_args(HeadName))
def test_preferences_differ_between_actions_as_values_do(
    head: HeadName, seeds: Any, batch: int
) -> None:
    net = minatar_q_network(head, 4, 6, seeds=seeds)
    axes = (batch,) if isinstance(seeds, int) else (len(seeds), batch)
    obs = torch.rand(*axes, 10, 10, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        q, preferences = net(obs).q, net.preferences(obs)
        assert torch.equal(DQNLearner(net).act(obs), preferences.argmax(dim=-1))
    assert preferences.shape == (*axes, 6)
    torch.testing.assert_close(
        preferences - preferences[..., :1], q - q[..., :1], rtol=1e-4, atol=1e-5
    )


def test_a_network_of_a_users_own_acts_by_its_q() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, obs: Tensor) -> QOutput:
            return QOutput(self.layer(obs))

    class OwnHead(nn.Linear):
        def forward(self, features: Tensor) -> QOutput:  # type: ignore[override]
            return QOutput(super().forward(features))

    class Backwards(QNetwork):
        def forward(self, obs: Tensor) -> QOutput:
            return QOutput(-super().forward(obs).q)

    class BackwardsHead(DuelingHead):
        def forward(self, features: Tensor) -> DuelingOutput:
            q, value, advantage = super().forward(features)[:3]
            return DuelingOutput(-q, value, advantage)

    obs = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    for net in (
        Own(),
        QNetwork(MLPTorso(3, (5,)), OwnHead(5, 4)),
        Backwards(MLPTorso(3, (5,)), DuelingHead(5, 4, 6)),
        QNetwork(MLPTorso(3, (5,)), BackwardsHead(5, 4, 6)),
    ):
        assert torch.equal(DQNLearner(net).act(obs), net(obs).q.argmax(dim=1))


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_members_explore_as_each_would_alone(epsilon: float) -> None:
    joint, alone = ([np.random.default_rng(seed) for seed in (5, 3, 9)] for _ in range(2))
    for _ in range(20):
        greedy = np.arange(6).reshape(3, 2) % 4
        expected = [epsilon_greedy(greedy[k], epsilon, 4, rng) for k, rng in enumerate(alone)]
        found = members_epsilon_greedy(greedy, epsilon, 4, joint)
        assert found.tolist() == np.concatenate(expected).tolist()


def test_exploring_takes_every_action_alike() -> None:
    greedy = np.full(40_000, 2)
    action = epsilon_greedy(greedy, 0.3, 5, np.random.default_rng(0))
    share = np.bincount(action, minlength=5) / len(greedy)
    expected = np.array([0.06, 0.06, 0.76, 0.06, 0.06])
    assert len(share) == 5
    assert (np.abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(greedy))).all()
    assert np.array_equal(epsilon_greedy(greedy, 0.0, 5, np.random.default_rng(1)), greedy)


def test_members_do_not_touch_each_other() -> None:
    one, other = family_learner("va", [1, 2, 3]), family_learner("va", [1, 7, 3])
    batch = vector_batch(9, members=3)
    changed = Transition(*(field.clone() for field in batch))
    changed.reward[1] += 5.0
    one.update(batch)
    other.update(changed)
    for k in (0, 2):
        a, b = member_state(one.online, k), member_state(other.online, k)
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            member_state(one.online, 1).values(),
            member_state(other.online, 1).values(),
            strict=True,
        )
    )


@pytest.mark.parametrize("head", ["q", "dueling", "behaviour", "uncentred"])
def test_minatar_networks_side_by_side(head: Any) -> None:
    boards = torch.randint(0, 2, (3, 5, 10, 10, 6), dtype=torch.uint8)
    stacked = minatar_q_network(head, 6, 4, seeds=[2, 0, 9])
    for k, seed in enumerate([2, 0, 9]):
        single = minatar_q_network(head, 6, 4, seeds=seed)
        torch.testing.assert_close(stacked(boards).q[k], single(boards[k]).q, rtol=1e-4, atol=1e-5)
        loaded = minatar_q_network(head, 6, 4)
        loaded.load_state_dict(member_state(stacked, k))
        torch.testing.assert_close(loaded(boards[k]).q, single(boards[k]).q)


def test_minatar_torso_is_a_convolution() -> None:
    torso = MinAtarTorso(4)
    convolution = nn.Conv2d(4, 16, 3)
    weight = torso.patch.weight.detach().view(16, 3, 3, 4)  # type: ignore[operator, union-attr]
    with torch.no_grad():
        convolution.weight.copy_(weight.permute(0, 3, 1, 2))
        convolution.bias.copy_(torso.patch.bias)  # type: ignore[arg-type, union-attr]
    boards = torch.randint(0, 2, (5, 10, 10, 4), dtype=torch.uint8)
    expected = torch.relu(convolution(boards.float().permute(0, 3, 1, 2)))
    found = torso(boards).view(5, 8, 8, 16).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [4, 7])
def test_boards_of_many_members_are_convolved_in_groups(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same features and gradients as by products with patches."""
    torch.manual_seed(0)
    torso = MinAtarTorso(channels, 5, members=3)
    boards = torch.randint(0, 2, (3, 17, 10, 10, channels), dtype=torch.uint8)
    gradient = torch.randn(3, 17, 64 * 5)
    found, convolutions = [], []
    convolve = torsos.functional.conv2d
    monkeypatch.setattr(
        torsos.functional, "conv2d", lambda *a, **kw: convolutions.append(1) or convolve(*a, **kw)
    )
    for least in (17, 18):
        monkeypatch.setattr(torsos, "_MIN_CONVOLVED_BOARDS", least)
        features = torso(boards)
        parameters = list(torso.parameters())
        found.append([features, *torch.autograd.grad(features, parameters, gradient)])
    assert convolutions == [1]  # the first time only
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    for k in range(3):  # member k's features are of its own boards and kernels
        alone = MinAtarTorso(channels, 5)
        alone.load_state_dict(member_state(torso, k))
        torch.testing.assert_close(found[0][0][k], alone(boards[k]), rtol=1e-4, atol=1e-5)


def test_stacking_refuses_networks_of_another_shape() -> None:
    with pytest.raises(ValueError, match="does not fit the stack"):
        stack_members_(StackedLinear(2, 3, 4), [nn.Linear(3, 4), nn.Linear(3, 5)])


# -- products by oneDNN ----------------------------------------------------------------------------


@pytest.mark.parametrize("needs_input_gradient", [False, True])
@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("first", [0, 5])
def test_large_products_are_those_of_torch(
    members: int | None, needs_input_gradient: bool, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linear_module._has_onednn():
        pytest.skip("requires a torch with oneDNN")
    torch.manual_seed(0)
    layer = linear_module.linear(500, 230, members)
    assert isinstance(layer, Linear | StackedLinear)
    x = torch.randn(*([40] if members is None else [members, 150]), 500)
    results = []
    for large in (True, False):
        monkeypatch.setattr(linear_module, "_USES_ONEDNN", large)
        layer.zero_grad()
        given = x.clone().requires_grad_(needs_input_gradient)
        out = layer(given, first)
        assert (out.grad_fn is not None) and ("OneDnn" in str(out.grad_fn.next_functions)) == large
        out.square().sum().backward()
        results.append([out.detach(), layer.weight.grad, layer.bias.grad, given.grad])
    layer.zero_grad()
    given = x.clone().requires_grad_(needs_input_gradient)
    out = ((given @ layer.weight.mT) + layer.bias.unsqueeze(-2))[..., first:]
    out.square().sum().backward()
    results.append([out.detach(), layer.weight.grad, layer.bias.grad, given.grad])
    for of_onednn, of_blas, expected in zip(*results, strict=True):
        for found in (of_onednn, of_blas):
            assert (found is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(("first", "turns"), [(0, True), (0, False), (6, True)])
@pytest.mark.parametrize(("rows", "out_features"), [(1, 40), (3, 40), (4, 40), (7, 40), (90, 40)])
def test_few_rows_and_many_are_multiplied_alike(
    rows: int,
    out_features: int,
    first: int,
    turns: bool,
    learns: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_module, "_USES_ONEDNN", False)
    monkeypatch.setattr(linear_module, "_TURNS_PRODUCTS", turns)
    torch.manual_seed(0)
    layer = StackedLinear(3, 25, out_features)
    x = torch.randn(3, rows, 25)
    given = x.clone().requires_grad_()
    with torch.set_grad_enabled(learns):
        out = layer(given, first)
    expected_input = x.clone().requires_grad_()
    expected = torch.stack(
        [
            nn.functional.linear(own, weight, bias)[:, first:]
            for own, weight, bias in zip(expected_input, layer.weight, layer.bias, strict=True)
        ]
    )
    torch.testing.assert_close(out, expected)
    assert out.requires_grad == learns
    if learns:
        wanted = torch.autograd.grad(
            expected.square().sum(), [expected_input, layer.weight, layer.bias]
        )
        found = torch.autograd.grad(out.square().sum(), [given, layer.weight, layer.bias])
        torch.testing.assert_close(found, wanted)


def test_dueling_output_of_an_uncentred_head_is_the_plain_sum() -> None:
    output = vector_q_network("uncentred", 3, 4)(torch.randn(5, 3))
    assert isinstance(output, DuelingOutput)
    torch.testing.assert_close(output.q, output.value[:, None] + output.advantage)
