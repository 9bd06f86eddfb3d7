"""Networks: sizes by formula, the dueling identity, gradients into the torso, initial weights."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from classicrl.networks import (
    ConvTorso,
    DuelingHead,
    DuelingOutput,
    MLPTorso,
    QHead,
    QNetwork,
    QOutput,
    atari_q_network,
    init_fan_in_,
    nature_torso,
    scale_gradient,
    small_torso,
)

TorsoName = Literal["nature", "small"]
HeadName = Literal["q", "dueling"]


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def screens(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8, generator=generator)


def linear_size(fan_in: int, out: int) -> int:
    return fan_in * out + out


CONVOLUTIONS = {
    "nature": linear_size(4 * 8 * 8, 32)
    + linear_size(32 * 4 * 4, 64)
    + linear_size(64 * 3 * 3, 64),
    "small": linear_size(4 * 8 * 8, 16) + linear_size(16 * 4 * 4, 32),
}
FEATURES = {"nature": 64 * 7 * 7, "small": 32 * 9 * 9}
HIDDEN = {"nature": 512, "small": 256}


@pytest.mark.parametrize("num_actions", [3, 18])
@pytest.mark.parametrize("head", ["q", "dueling"])
@pytest.mark.parametrize("torso", ["nature", "small"])
def test_number_of_parameters(torso: TorsoName, head: HeadName, num_actions: int) -> None:
    hidden, features = HIDDEN[torso], FEATURES[torso]
    streams = 2 if head == "dueling" else 1
    expected = CONVOLUTIONS[torso] + streams * linear_size(features, hidden)
    expected += linear_size(hidden, num_actions)
    if head == "dueling":
        expected += linear_size(hidden, 1)
    assert size(atari_q_network(torso, head, num_actions)) == expected


def test_known_numbers_of_parameters() -> None:
    assert size(atari_q_network("small", "dueling", 6)) == 1_341_751
    # The published size of the DQN of 2015 with 4 actions.
    assert size(atari_q_network("nature", "q", 4)) == 1_686_180


@pytest.mark.parametrize(("torso", "features"), [(nature_torso(), 3136), (small_torso(), 2592)])
def test_torsos_state_their_features(torso: ConvTorso, features: int) -> None:
    assert torso.out_features == features
    assert torso(screens(2)).shape == (2, features)


def test_mlp_torso_states_its_features_and_takes_any_dtype() -> None:
    torso = MLPTorso(5, hidden=(7, 3))
    assert torso.out_features == 3
    for dtype in (torch.float32, torch.float64, torch.int64, torch.uint8):
        features = torso(torch.ones(4, 5, dtype=dtype))
        assert features.shape == (4, 3) and features.dtype == torch.float32


@pytest.mark.parametrize("torso", ["nature", "small"])
def test_dueling_output(torso: TorsoName) -> None:
    output = atari_q_network(torso, "dueling", 5, seed=1)(screens(3))
    assert isinstance(output, DuelingOutput)
    assert output.q.shape == output.advantage.shape == (3, 5)
    assert output.value.shape == (3,)
    torch.testing.assert_close(output.q, output.value[:, None] + output.advantage)
    torch.testing.assert_close(output.advantage.mean(dim=1), torch.zeros(3), atol=1e-6, rtol=0)
    assert output.advantage.std() > 1e-4  # or the identity above would say nothing
    # The paper's reason for the centring: V is the mean of Q.
    torch.testing.assert_close(output.q.mean(dim=1), output.value)


def test_dueling_head_is_two_separate_streams() -> None:
    head = DuelingHead(6, num_actions=3, hidden=4)
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    output = head(features)
    rows = head.hidden.weight, head.hidden.bias
    value_hidden = torch.relu(features @ rows[0][:4].T + rows[1][:4])
    advantage_hidden = torch.relu(features @ rows[0][4:].T + rows[1][4:])
    torch.testing.assert_close(output.value[:, None], head.value(value_hidden))
    raw = head.advantage(advantage_hidden)
    torch.testing.assert_close(output.advantage, raw - raw.mean(dim=1, keepdim=True))
    gradient = torch.autograd.grad(output.value.sum(), head.hidden.weight)[0]
    assert gradient[:4].abs().sum() > 0
    assert gradient[4:].abs().sum() == 0


def test_q_head_is_a_single_stream() -> None:
    output = atari_q_network("small", "q", 5)(screens(2))
    assert isinstance(output, QOutput)
    assert output.q.shape == (2, 5)


def gradients(network: QNetwork, obs: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    network(obs).q.square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_gradient_into_the_torso_of_the_dueling_network_is_scaled() -> None:
    network, obs = atari_q_network("small", "dueling", 4, seed=3), screens(2)
    q = network(obs).q
    scaled = gradients(network, obs)
    network.torso_gradient_scale = 1.0
    torch.testing.assert_close(network(obs).q, q)  # the values are not touched
    plain = gradients(network, obs)
    assert set(plain) == set(scaled) == {name for name, _ in network.named_parameters()}
    for name in plain:
        assert plain[name].abs().max() > 0
        factor = 2**-0.5 if name.startswith("torso") else 1.0
        torch.testing.assert_close(scaled[name], factor * plain[name], rtol=1e-4, atol=1e-5)


def test_only_the_dueling_network_scales() -> None:
    assert atari_q_network("small", "dueling", 4).torso_gradient_scale == 2**-0.5
    assert atari_q_network("small", "q", 4).torso_gradient_scale == 1.0


def test_scale_gradient_is_the_identity_forwards() -> None:
    x = torch.tensor([1.5, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    y = scale_gradient(x, 0.25)
    torch.testing.assert_close(y, x)
    y.backward(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    assert x.grad is not None
    assert x.grad.tolist() == [0.25, 0.5, 1.0]


def test_initial_weights_fill_their_bounds() -> None:
    network = atari_q_network("nature", "dueling", 6, seed=0)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == 6
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for values in (layer.weight, layer.bias):
            assert values is not None
            assert values.abs().max() <= bound
        assert layer.weight.abs().max() > 0.95 * bound
        spread = layer.weight.std().item() if layer.weight.numel() > 5000 else bound / math.sqrt(3)
        assert spread == pytest.approx(bound / math.sqrt(3), rel=0.05)  # of a uniform law


def test_initial_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = atari_q_network("small", "dueling", 4, seed=7).state_dict()
    torch.manual_seed(2)
    again = atari_q_network("small", "dueling", 4, seed=7).state_dict()
    other = atari_q_network("small", "dueling", 4, seed=8).state_dict()
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_init_fan_in_draws_the_same_from_the_same_generator() -> None:
    first, second = nn.Linear(9, 4), nn.Linear(9, 4)
    init_fan_in_(first, torch.Generator().manual_seed(5))
    init_fan_in_(second, torch.Generator().manual_seed(5))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert first.bias.abs().max() <= 1 / 3 < 1.0


def test_bytes_are_scaled_to_one() -> None:
    torso = ConvTorso([(3, 84, 1)], in_channels=2)
    convolution = torso.convolutions[0]
    assert isinstance(convolution, nn.Conv2d)
    nn.init.constant_(convolution.weight, 1.0)
    nn.init.constant_(convolution.bias, 0.5)  # type: ignore[arg-type]
    obs = torch.full((1, 2, 84, 84), 255, dtype=torch.uint8)
    obs[:, 1] = 51  # a fifth
    expected = 84 * 84 * 1.2 + 0.5
    torch.testing.assert_close(torso(obs), torch.full((1, 3), expected), rtol=1e-3, atol=0)


def test_input_is_left_as_it_is() -> None:
    obs = screens(2)
    before = obs.clone()
    atari_q_network("small", "q", 4)(obs)
    assert torch.equal(obs, before)


def test_rows_of_a_batch_do_not_mix() -> None:
    network, obs = atari_q_network("small", "dueling", 4, seed=2), screens(3)
    alone = torch.cat([network(obs[i : i + 1]).q for i in range(3)])
    torch.testing.assert_close(network(obs).q, alone, rtol=1e-4, atol=1e-6)


def test_parts_fit_together_without_atari() -> None:
    network = QNetwork(MLPTorso(3, (8,)), QHead(8, num_actions=2, hidden=4))
    assert network(torch.zeros(5, 3)).q.shape == (5, 2)
