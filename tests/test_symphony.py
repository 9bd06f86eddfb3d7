"""Symphony's functions, networks and learner against numbers worked out by hand."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classicrl import losses
from classicrl.algorithms.symphony import (
    GOLDEN_DECAY,
    METRICS,
    SymphonyLearner,
    adamw_without_bias_correction,
)
from classicrl.networks.symphony import (
    GatedSine,
    GradDropout,
    MLPBlock,
    SymphonyActor,
    SymphonyCritics,
    clipped_noise,
    init_symphony_,
)
from classicrl.types import ControlBatch

S, A, HIDDEN, HEADS, B = 5, 2, 12, 4, 7


def learner_of(
    obs_size: int = S,
    action_size: int = A,
    hidden: int = HIDDEN,
    heads: int = HEADS,
    seed: int = 0,
    grad_dropout: bool = False,
    **settings: Any,
) -> SymphonyLearner:
    generator = torch.Generator().manual_seed(seed)
    actor = SymphonyActor(obs_size, action_size, hidden, grad_dropout=grad_dropout)
    critics = SymphonyCritics(obs_size, action_size, hidden, heads, grad_dropout=grad_dropout)
    init_symphony_(actor, generator)
    init_symphony_(critics, generator)
    return SymphonyLearner(actor, critics, seed=seed, **settings)


def batch_of(size: int = B, seed: int = 0) -> ControlBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    obs_action = torch.cat([normal(size, S), normal(size, A).tanh()], dim=1)
    return ControlBatch(obs_action, normal(size, S), normal(size), torch.full((size,), 0.99))


# -- functions -------------------------------------------------------------------------------------


def test_smooth_huber() -> None:
    x = torch.tensor([1.0, 2.0, -2.0], requires_grad=True)
    torch.testing.assert_close(
        losses.smooth_huber(x).detach(), torch.tensor([0.462117, 1.523188, 1.523188])
    )
    signed = losses.signed_smooth_huber(x)
    torch.testing.assert_close(signed.detach(), torch.tensor([0.462117, 1.523188, -1.523188]))
    (slope,) = torch.autograd.grad(signed.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([0.855341, 1.181568, 1.181568]))


def test_head_weights() -> None:
    expected = [0.105791] * 5 + [0.105785, 0.105562, 0.102534, 0.085927, 0.050421]
    expected += [0.018044, 0.002768]
    torch.testing.assert_close(
        losses.head_weights(12), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )
    weights = losses.head_weights(384)
    assert weights[0].item() == pytest.approx(0.0034846, abs=1e-7)
    assert (weights > 0.99 * weights[0]).sum().item() / 384 == pytest.approx(0.547, abs=2e-3)
    heads = torch.arange(384, dtype=torch.float64)[None] / 384
    assert losses.soft_truncated_q(heads, weights).item() == pytest.approx(0.377571, abs=1e-6)
    equal = torch.full((3, 384), 2.5, dtype=torch.float64)
    torch.testing.assert_close(losses.soft_truncated_q(equal, weights), equal[:, 0])


def test_soft_truncated_q_equals_a_sort() -> None:
    heads = torch.randn(5, 12, requires_grad=True, dtype=torch.float64)
    weights = losses.head_weights(12)
    value = losses.soft_truncated_q(heads, weights)
    by_sort = heads.sort(dim=-1).values @ weights
    torch.testing.assert_close(value, by_sort)
    ours, theirs = (
        torch.autograd.grad(v.sum(), heads, retain_graph=True)[0] for v in (value, by_sort)
    )
    torch.testing.assert_close(ours, theirs)


def regulariser(gain: float, temperature: float) -> tuple[float, float, float]:
    both = torch.tensor([gain, temperature], dtype=torch.float64, requires_grad=True)
    value = losses.action_scale_regularizer(both[:1], both[1:])
    value.backward()
    assert both.grad is not None
    return value.item(), both.grad[0].item(), both.grad[1].item()


def test_action_scale_regularizer() -> None:
    assert regulariser(0.5, 0.5) == pytest.approx((0.848364, 2.286760, 1.786760), abs=1e-5)
    assert regulariser(0.363881, 0.091958)[0] == pytest.approx(-0.016881, abs=1e-6)


@pytest.mark.parametrize("gain", [1e-3, 1 - 1e-3])
@pytest.mark.parametrize("temperature", [1e-3, 1 - 1e-3])
def test_action_scale_regularizer_is_finite_in_the_corners(gain: float, temperature: float) -> None:
    both = torch.tensor([gain, temperature], requires_grad=True)
    value = losses.action_scale_regularizer(both[:1], both[1:])
    value.backward()
    assert both.grad is not None
    assert torch.isfinite(value) and torch.isfinite(both.grad).all()


def test_action_scale_regularizer_descends_to_its_own_minimum() -> None:
    both = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    for _ in range(2_000):
        (slope,) = torch.autograd.grad(losses.action_scale_regularizer(both[:1], both[1:]), both)
        both = (both - 0.05 * slope).detach().requires_grad_()
    assert both.tolist() == pytest.approx([0.363881, 0.091958], abs=1e-5)


def test_advantage_has_a_floor_and_no_gradient_from_its_baseline() -> None:
    value = torch.tensor([1e-5, -3.0, 4.0], requires_grad=True)
    base = losses.value_baseline(value, torch.tensor(0.0), GOLDEN_DECAY)
    torch.testing.assert_close(base, (1 - GOLDEN_DECAY) * value.detach())
    advantage = losses.normalized_advantage(value, base)
    ratio = GOLDEN_DECAY / (1 - GOLDEN_DECAY)
    assert advantage.tolist() == pytest.approx([GOLDEN_DECAY * 1e-2, -ratio, ratio], rel=1e-4)
    advantage.sum().backward()
    torch.testing.assert_close(value.grad, 1 / base.abs().clamp_min(1e-3))
    with pytest.raises(ValueError, match="shapes"):
        losses.normalized_advantage(value, base[:, None])


# -- networks --------------------------------------------------------------------------------------


def test_gated_sine() -> None:
    sine = GatedSine(1)
    x = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]])
    expected = torch.tensor([[-0.092566], [-0.092812], [0.327924], [0.362082]])
    torch.testing.assert_close(sine(x).detach(), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        sine.gate_logit.fill_(1.0)
    assert sine(torch.ones(1, 1)).item() == pytest.approx(0.582113, abs=1e-5)


@pytest.mark.parametrize("members", [None, 3])
def test_gated_sine_has_the_gradient_of_its_formula(members: int | None) -> None:
    sine = GatedSine(4, members).double()
    torch.nn.init.normal_(sine.gate_logit)
    x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    gate = sine.gate_logit.sigmoid()
    f = gate * torch.sin(x / gate)
    written_out = f * torch.sigmoid(1.5 * f / gate)
    output = sine(x)
    torch.testing.assert_close(output, written_out)
    seen = torch.randn_like(x)
    inputs = (x, sine.gate_logit)
    for ours, theirs in zip(
        torch.autograd.grad(output, inputs, seen),
        torch.autograd.grad(written_out, inputs, seen),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_grad_dropout_is_the_identity_forwards_and_drops_half_backwards() -> None:
    dropout = GradDropout()
    dropout.generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 250, requires_grad=True)
    y = dropout(x)
    assert torch.equal(y, x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert set(slope.unique().tolist()) == {0.0, 1.0}
    assert slope.mean().item() == pytest.approx(0.5, abs=0.02)
    (again,) = torch.autograd.grad(dropout(x).sum(), x)
    assert not torch.equal(slope, again)


@pytest.mark.parametrize(
    ("obs_size", "hidden", "expected"),
    [(376, 512, 2_078_131), (348, 512, 2_020_787), (348, 384, 1_282_131)],
)
def test_numbers_of_parameters(obs_size: int, hidden: int, expected: int) -> None:
    actor = SymphonyActor(obs_size, 17, hidden)
    critics = SymphonyCritics(obs_size, 17, hidden, hidden // 4)
    assert sum(p.numel() for p in (*actor.parameters(), *critics.parameters())) == expected


def test_stacked_critics_equal_separate_ones() -> None:
    critics = SymphonyCritics(S, A, HIDDEN, HEADS)
    init_symphony_(critics, torch.Generator().manual_seed(0))
    with torch.no_grad():
        critics.block.norm_gain.uniform_(0.5, 1.5)
        critics.block.norm_bias.normal_()
    batch = batch_of()
    separate = []
    stacked = critics.block.state_dict()
    for k in range(3):
        one = MLPBlock(S + A, HIDDEN, HEADS)
        own = {}
        for name, value in stacked.items():
            if name.startswith("first"):
                own[name] = value[k * HIDDEN : (k + 1) * HIDDEN]
            else:
                own[name] = value[k].reshape(one.state_dict()[name].shape)
        one.load_state_dict(own)
        separate.append(one(batch.obs_action))
    torch.testing.assert_close(critics(batch.obs_action), torch.stack(separate))
    obs, action = batch.obs_action[:, :S], batch.obs_action[:, S:]
    torch.testing.assert_close(critics.of_actions(obs, action), torch.cat(separate, dim=1))


def test_actor_s_action() -> None:
    actor = SymphonyActor(S, A, HIDDEN, centre=np.array([1.0, 0.0]), scale=np.array([2.0, 0.5]))
    init_symphony_(actor, torch.Generator().manual_seed(0))
    obs, noise = torch.randn(B, S), torch.rand(B, A) - 0.5
    z0, z1, z2 = torch.tanh(actor.block(obs) / 2).chunk(3, dim=-1)
    output = actor(obs, noise)
    torch.testing.assert_close(output.action, torch.tanh(z1.abs() * z0 + noise))
    torch.testing.assert_close(output.gain, z1.abs())
    torch.testing.assert_close(output.temperature, z2.abs())
    assert torch.equal(actor(obs, noise, torch.zeros(B, 1)).action, torch.tanh(noise))
    expected = torch.tensor([1.0, 0.0]) + torch.tensor([2.0, 0.5]) * output.action
    torch.testing.assert_close(actor.env_action(output.action), expected)


@pytest.mark.parametrize(
    ("std", "measured", "clipped"), [(1 / math.e, 0.3657, 0.0066), (1 / math.pi, 0.3181, 0.0017)]
)
def test_noise(std: float, measured: float, clipped: float) -> None:
    noise = clipped_noise(torch.randn(10**6, generator=torch.Generator().manual_seed(0)), std)
    assert noise.abs().max() <= 1
    assert noise.std().item() == pytest.approx(measured, abs=1e-3)
    assert (noise.abs() == 1).float().mean().item() == pytest.approx(clipped, abs=1e-3)


def test_obs_norm_standardises() -> None:
    actor = SymphonyActor(S, A, HIDDEN, obs_norm=True)
    critics = SymphonyCritics(S, A, HIDDEN, HEADS, obs_norm=True)
    learner = SymphonyLearner(actor, critics)
    batch = batch_of()
    obs, action = batch.obs_action[:, :S], batch.obs_action[:, S:]
    mean, std = torch.randn(S), torch.rand(S) + 0.5
    expected = actor(obs).action, critics(batch.obs_action)
    std[2] = 0.0  # a number that never changes
    learner.set_obs_norm(mean, std)
    shifted = obs * std.where(std > 0, torch.ones(())) + mean.where(std > 0, torch.zeros(()))
    torch.testing.assert_close(actor(shifted).action, expected[0])
    torch.testing.assert_close(critics(torch.cat([shifted, action], 1)), expected[1])
    torch.testing.assert_close(
        learner.target.of_actions(shifted, action), expected[1].transpose(0, 1).flatten(1)
    )


# -- the optimiser and the learner -----------------------------------------------------------------


def test_optimiser_steps_under_a_constant_gradient() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = adamw_without_bias_correction([weight], learning_rate=1.0, weight_decay=0.0)
    steps = []
    for _ in range(1_000):
        before = weight.detach().clone()
        weight.grad = torch.ones(3)
        optimizer.step()
        steps.append((before - weight.detach())[0].item())
    assert steps[:5] == pytest.approx([5.4018, 6.1881, 6.2531, 6.0621, 5.7831], abs=1e-3)
    assert (steps[49], steps[999]) == pytest.approx((2.1239, 1.0033), abs=1e-3)


def test_optimiser_equals_its_formula_and_obeys_a_schedule() -> None:
    weight = torch.nn.Parameter(torch.linspace(-2, 2, 7))
    optimizer = adamw_without_bias_correction([weight], learning_rate=0.01, weight_decay=0.1)
    theta, m, v = weight.detach().clone().double(), torch.zeros(7).double(), torch.zeros(7).double()
    generator = torch.Generator().manual_seed(0)
    for k in range(30):
        rate = 0.01 if k < 15 else 0.002
        optimizer.param_groups[0]["lr"] = rate
        gradient = torch.randn(7, generator=generator)
        weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m, v = GOLDEN_DECAY * m + (1 - GOLDEN_DECAY) * g, 0.995 * v + 0.005 * g * g
        theta = theta - rate * (m / (v.sqrt() + 1e-8) + 0.1 * theta)
    torch.testing.assert_close(weight.detach().double(), theta, atol=1e-5, rtol=1e-5)


def test_first_update_and_where_gradients_go() -> None:
    learner = learner_of(advantage_floor=0.0)
    batch = batch_of()
    noise = torch.zeros(B, A)
    (critic, actor, regularizer), figures = learner.loss_terms(batch, noise)
    named = dict(zip(METRICS[3:], figures, strict=True))
    # With V = 0 every advantage is +-a / (1 - a), which is 1 / a.
    assert named["abs_advantage"].item() == pytest.approx(1.618034, abs=1e-5)
    of_actor, of_critics = list(learner.actor.parameters()), list(learner.critics.parameters())

    def gradients(loss: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))

    assert all(g is None for g in gradients(critic, of_actor))
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(critic, of_critics))
    for loss in (actor, regularizer):
        assert all(g is None for g in gradients(loss, of_critics))
        assert all(g is not None for g in gradients(loss, of_actor))
    learner.update(batch)
    assert all(p.grad is None for p in learner.target.parameters())


def test_update_equals_the_equations_written_out() -> None:
    """With sort, separate sums, and the formula of the optimiser."""
    learner = learner_of(learning_rate=0.01)
    plain = copy.deepcopy(learner)
    batch = batch_of()
    before = [p.detach().clone() for p in learner.critics.parameters()]
    noise_generator = torch.Generator()
    noise_generator.set_state(learner.generator.get_state())
    noise = clipped_noise(torch.randn(B, A, generator=noise_generator), learner.noise_std)
    metrics = learner.update(batch)

    action, gain, temperature = plain.actor(batch.next_obs, noise)
    heads = plain.target(torch.cat([batch.next_obs, action], dim=1))  # [3, B, heads]
    heads = torch.cat(list(heads), dim=1).sort(dim=1).values
    value = heads @ losses.head_weights(3 * HEADS).float()
    target = (batch.reward + 0.99 * value).detach()
    error = torch.cat(list(plain.critics(batch.obs_action)), dim=1) - target[:, None]
    baseline = (1 - GOLDEN_DECAY) * value.detach()
    advantage = (value - baseline) / baseline.abs().clamp_min(1e-3)
    critic = (error * (error / 2).tanh()).mean()
    actor = -(advantage.abs() * (advantage / 2).tanh()).mean()
    b = temperature.clamp(1e-3, 1 - 1e-3)
    s = gain.clamp(1e-3, 1 - 1e-3)

    def omega(x: Tensor) -> Tensor:
        return ((1 + x) / (1 - x)).log()

    swaddling = (omega(s ** (1 / b.detach())) + b * s * s.log() + omega(b**2)).mean()
    (critic + actor + swaddling).backward()
    for name, term in (("critic", critic), ("actor", actor), ("action_scale", swaddling)):
        torch.testing.assert_close(metrics[name][0], term.detach())
    torch.testing.assert_close(metrics["next_value"][0], value.detach().mean())
    torch.testing.assert_close(learner.value_ema, baseline.mean())
    for ours, p in zip(learner.parameters, plain.parameters, strict=True):
        assert p.grad is not None
        m, v = (1 - GOLDEN_DECAY) * p.grad, 0.005 * p.grad**2
        expected = p - 0.01 * (m / (v.sqrt() + 1e-8) + 0.01 * p)
        torch.testing.assert_close(ours.detach(), expected.detach(), atol=2e-5, rtol=1e-4)
    for averaged, online, old in zip(
        learner.target.parameters(), learner.critics.parameters(), before, strict=True
    ):
        torch.testing.assert_close(averaged, 0.995 * old + 0.005 * online.detach())


def test_several_updates_at_once_are_the_same_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Torch draws 42 numbers otherwise than three times 14.
    monkeypatch.setattr(
        SymphonyLearner, "_noise", lambda _, count, generator: torch.zeros(count, A)
    )
    one, other = learner_of(), learner_of()
    batch = batch_of(3 * B)
    metrics = one.update(batch, 3)
    assert {name: tuple(values.shape) for name, values in metrics.items()} == dict.fromkeys(
        METRICS, (3,)
    )
    for k in range(3):
        other.update(ControlBatch(*(field[k * B : (k + 1) * B] for field in batch)))
    for mine, theirs in zip(one.parameters, other.parameters, strict=True):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(ValueError, match="equal shares"):
        one.update(batch, 2)


@pytest.mark.parametrize("grad_dropout", [False, True])
def test_saved_and_loaded_goes_on_to_the_bit(grad_dropout: bool) -> None:
    learner = learner_of(grad_dropout=grad_dropout)
    for k in range(5):
        learner.update(batch_of(seed=k))
    learner.act(torch.zeros(3, S))
    other = learner_of(seed=9, grad_dropout=grad_dropout)
    other.load_state_dict(learner.state_dict())
    for k in range(50):
        mine, theirs = (one.update(batch_of(seed=5 + k)) for one in (learner, other))
        assert all(torch.equal(mine[name], theirs[name]) for name in METRICS)
        assert torch.equal(learner.act(torch.ones(3, S)), other.act(torch.ones(3, S)))
    for a, b in zip(learner.target.parameters(), other.target.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("onednn", [False, True])
def test_a_frozen_layer_gets_no_gradient(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from classicrl.networks import Linear, StackedLinear
    from classicrl.networks import linear as linear_module

    if onednn and not linear_module._has_onednn():
        pytest.skip("requires a torch with oneDNN")
    monkeypatch.setattr(linear_module, "_USES_ONEDNN", onednn)

    for layer, shape in ((Linear(256, 256), (64, 256)), (StackedLinear(2, 256, 256), (2, 64, 256))):
        layer.requires_grad_(False)
        x = torch.randn(*shape, requires_grad=True)
        layer(x).square().sum().backward()
        expected = x.detach().clone().requires_grad_()
        if isinstance(layer, Linear):
            y = functional.linear(expected, layer.weight, layer.bias)
        else:
            y = torch.baddbmm(layer.bias[:, None], expected, layer.weight.mT)
        y.square().sum().backward()
        assert all(p.grad is None for p in layer.parameters())
        torch.testing.assert_close(x.grad, expected.grad, rtol=1e-4, atol=1e-3)


# -- does it learn ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_constant_reward_is_valued_as_the_target_rate_lets_it() -> None:
    """Q' follows 10 (1 - exp(-tau (1 - gamma) k)), and the action's scale comes to rest."""
    learner = learner_of(hidden=32, heads=8, learning_rate=1e-3)
    generator = torch.Generator().manual_seed(1)
    size = 32

    def batch() -> ControlBatch:
        obs, next_obs = torch.randn(2, size, S, generator=generator)
        action = torch.rand(size, A, generator=generator) * 2 - 1
        ones = torch.ones(size)
        return ControlBatch(torch.cat([obs, action], dim=1), next_obs, ones, 0.9 * ones)

    for k in range(1, 6_001):
        metrics = learner.update(batch())
        if k in (1_000, 2_000, 4_000, 6_000):
            expected = 10 * (1 - math.exp(-5e-4 * k))
            assert metrics["next_value"].item() == pytest.approx(expected, abs=0.4)
    assert metrics["action_gain"].item() == pytest.approx(0.364, abs=3e-3)
    assert metrics["gain_temperature"].item() == pytest.approx(0.092, abs=3e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("goal", "low", "high", "gain"), [(0.3, 0.33, 0.43, 0.40), (-0.8, -0.64, -0.52, 0.67)]
)
def test_bandit(goal: float, low: float, high: float, gain: float) -> None:
    """One dimension, r = 1 - (u - goal)^2. The pull towards 0 belongs to the method."""
    learner = learner_of(action_size=1, hidden=32, heads=8, learning_rate=1e-3)
    generator = torch.Generator().manual_seed(1)
    size = 32
    for _ in range(2_000):
        obs, next_obs = torch.randn(2, size, S, generator=generator)
        action = learner.act(obs)
        reward = 1 - (action[:, 0] - goal) ** 2
        batch = ControlBatch(torch.cat([obs, action], dim=1), next_obs, reward, torch.zeros(size))
        metrics = learner.update(batch)
    u = learner.act(torch.randn(256, S, generator=generator), explore=False).mean().item()
    assert low <= u <= high
    assert metrics["action_gain"].item() == pytest.approx(gain, abs=0.05)
