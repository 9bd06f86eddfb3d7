"""The cube's network: what it computes on a CPU, learned from and searched with."""

import pytest
import torch
from torch.nn import functional

from classicrl.cube_solver import load_network, shipped_network
from classicrl.domains.cube3 import Cube3
from classicrl.networks import byte_q_network
from classicrl.networks.byte_q_network import ByteQNetwork

OFFSETS = (0, 3, 7)  # bytes of 3, 4 and 2 values


def network() -> ByteQNetwork:
    generator = torch.Generator().manual_seed(1)
    net = ByteQNetwork(
        OFFSETS, 9, 5, embedding_size=12, hidden_size=7, num_blocks=2, mean_output=9.0,
        generator=generator,
    )  # fmt: skip
    for parameter in net.parameters():  # biases and blocks that do something
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def states(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    columns = [torch.randint(n, (count,), generator=generator) for n in (3, 4, 2)]
    return torch.stack(columns, dim=1).to(torch.uint8)


def plain(net: ByteQNetwork, s: torch.Tensor) -> torch.Tensor:
    """By its definition: a one-hot vector times a matrix, and every sum a new tensor."""
    hot = torch.zeros(len(s), 9)
    hot.scatter_(1, s + torch.tensor(OFFSETS), 1.0)
    x = torch.relu(hot @ net.embedding + net.embedding_bias)
    x = torch.relu(functional.linear(x, net.narrow.weight, net.narrow.bias))
    for block in net.blocks:
        inner = torch.relu(functional.linear(x, block.first.weight, block.first.bias))  # type: ignore[union-attr, arg-type]
        x = torch.relu(x + functional.linear(inner, block.second.weight, block.second.bias))  # type: ignore[union-attr, arg-type]
    return functional.linear(x, net.head.weight, net.head.bias)


def test_values_and_gradients_are_those_of_the_definition() -> None:
    net, s = network(), states(11)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(11, 5, generator=generator)
    answers = []
    for q in (net(s), plain(net, s)):
        gradients = torch.autograd.grad((q * weight).sum(), list(net.parameters()))
        answers.append([q, *gradients])
    for ours, expected in zip(*answers, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_first_layer_begins_as_one_on_a_one_hot_vector() -> None:
    """Rows N(0, 1 / rows): so small that Adam soon outweighs them. Outputs begin at their mean."""
    domain = Cube3(12)
    net = ByteQNetwork(
        domain.feature_offsets, 480, 12, embedding_size=512, hidden_size=64, mean_output=7.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert float(net.embedding.detach().std()) == pytest.approx(480**-0.5, rel=0.02)
    q = net(domain.random_states(200, torch.Generator().manual_seed(1))).detach()
    assert float(q.mean()) == pytest.approx(7.0, abs=0.3) and 0.0 < float(q.std()) < 0.6


def test_portions_of_a_large_batch_are_put_together_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, s = network(), states(23)
    expected = plain(net, s)
    monkeypatch.setattr(byte_q_network, "_CPU_PORTION", 7)
    with torch.no_grad():
        torch.testing.assert_close(net(s), expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_for_searches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net, s = network(), states(50)
    expected = plain(net, s)
    monkeypatch.setattr(byte_q_network, "_CPU_HAS_BF16", True)
    with torch.no_grad():
        torch.testing.assert_close(net(s), expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        q = net(s)
        assert q.dtype == torch.float32
        assert not torch.allclose(q, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(q, expected, rtol=0, atol=0.1)
        monkeypatch.setattr(byte_q_network, "_CPU_HAS_BF16", False)
        torch.testing.assert_close(net(s), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("actions", [12, 156, 1884])
def test_bfloat16_moves_the_shipped_networks_by_a_hundredth_of_a_move(
    actions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = load_network(shipped_network(actions)).network
    s = Cube3(actions).random_states(301, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        monkeypatch.setattr(byte_q_network, "_CPU_HAS_BF16", True)
        in_bf16 = net(s)
        monkeypatch.setattr(byte_q_network, "_CPU_HAS_BF16", False)
        error = in_bf16 - net(s)
    assert 0.001 < float(error.square().mean().sqrt()) < 0.02
    assert float(error.abs().max()) < 0.15


def test_a_wide_output_layer_in_bfloat16_is_rounded_by_a_thousandth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Q near 7, actions apart by 0.2: bfloat16 alone would be off by 0.016."""
    net = load_network(shipped_network(1884)).network
    s = Cube3(1884).random_states(301, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        monkeypatch.setattr(byte_q_network, "_CPU_HAS_BF16", True)
        q = net(s)
        monkeypatch.setattr(byte_q_network, "_WIDE_HEAD", 10_000)
        error = q - net(s)
    assert 0.0 < float(error.square().mean().sqrt()) < 0.002
    assert float(error.abs().max()) < 0.02
