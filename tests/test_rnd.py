"""Random network distillation: statistics, filter, networks, order of the steps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from classicrl.algorithms.rnd import RND, newest_frame, whole
from classicrl.moments import RunningMoments
from classicrl.networks import atari_actor_critic, atari_rnd_networks, vector_rnd_networks
from classicrl.returns import discounted_filter, gae


def small_rnd(
    num_envs: int = 3, *, keep_prob: float = 1.0, seed: int = 0, **options: object
) -> RND:
    target, predictor = vector_rnd_networks(5, hidden=(7,), out_features=4, seed=seed)
    return RND(target, predictor, (5,), num_envs, keep_prob=keep_prob, view=whole, **options)  # type: ignore[arg-type]


class TestMoments:
    def test_hand_computed(self) -> None:
        moments = RunningMoments()
        moments.update(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert moments.mean.item() == pytest.approx(2.4999375, abs=1e-7)
        assert moments.var.item() == pytest.approx(1.25015, abs=1e-5)
        assert moments.count.item() == pytest.approx(4.0001)
        moments.update(torch.tensor([10.0, 20.0]))
        assert moments.mean.item() == pytest.approx(6.66656, abs=1e-5)
        assert moments.var.item() == pytest.approx(43.88891, abs=1e-5)

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.integers(1, 9), min_size=1, max_size=5),
        st.integers(0, 1000),
        st.floats(-1e3, 1e3),
    )
    def test_batches_are_as_one(self, sizes: list[int], seed: int, offset: float) -> None:
        items = torch.randn(sum(sizes), 3, 2, generator=torch.Generator().manual_seed(seed))
        items = items + offset
        at_once, in_parts = RunningMoments((3, 2)), RunningMoments((3, 2))
        at_once.update(items)
        for part in items.split(sizes):
            in_parts.update(part)
        torch.testing.assert_close(at_once.mean, in_parts.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(at_once.var, in_parts.var, rtol=1e-7, atol=1e-9)

    def test_bytes_are_counted_exactly(self) -> None:
        frames = torch.randint(0, 256, (11, 1, 4, 3), dtype=torch.uint8)
        moments = RunningMoments((1, 4, 3))
        moments.update(frames)
        expected = frames.double().sum(dim=0) / 11.0001
        torch.testing.assert_close(moments.mean, expected, rtol=1e-9, atol=1e-9)

    def test_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"expected \[M, 2, 3\]"):
            RunningMoments((2, 3)).update(torch.zeros(4, 3, 2))

    def test_resume(self) -> None:
        moments, other = RunningMoments((2,)), RunningMoments((2,))
        moments.update(torch.randn(7, 2))
        other.load_state_dict(moments.state_dict())
        more = torch.randn(3, 2)
        moments.update(more)
        other.update(more)
        assert torch.equal(moments.var, other.var)
        assert torch.equal(moments.count, other.count)


class TestFilter:
    BONUS = torch.tensor([[1.0, 2.0], [0.0, 1.0], [2.0, 0.0]])  # [T, N] = [3, 2]

    def test_hand_computed(self) -> None:
        sums = discounted_filter(self.BONUS, torch.zeros(2), 0.99)
        expected = torch.tensor([[1.0, 2.0], [0.99, 2.98], [2.9801, 2.9502]])
        torch.testing.assert_close(sums, expected)

    def test_scaled_rewards(self) -> None:
        rnd = small_rnd(num_envs=2)
        scaled = rnd.scaled(self.BONUS)
        assert rnd.reward_moments.var.item() == pytest.approx(0.784895, abs=1e-6)
        expected = torch.tensor([[1.12874, 2.25748], [0.0, 1.12874], [2.25748, 0.0]])
        torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=0)

    def test_over_environments_it_would_be_another(self) -> None:
        """The well-known mistake: this fails if the filter's axes are swapped."""
        wrong = RunningMoments()
        wrong.update(discounted_filter(self.BONUS.T, torch.zeros(3), 0.99).flatten())
        assert wrong.var.item() == pytest.approx(0.908430, abs=1e-6)
        rnd = small_rnd(num_envs=2)
        rnd.scaled(self.BONUS)
        assert rnd.reward_moments.var.item() != pytest.approx(wrong.var.item(), abs=1e-2)
        with pytest.raises(ValueError, match=r"\[T, N\]"):
            small_rnd(num_envs=2).scaled(self.BONUS.T)

    def test_goes_on_over_rollouts(self) -> None:
        rows = torch.rand(7, 3)
        whole_run = discounted_filter(rows, torch.zeros(3), 0.9)
        first = discounted_filter(rows[:4], torch.zeros(3), 0.9)
        torch.testing.assert_close(discounted_filter(rows[4:], first[-1], 0.9), whole_run[4:])
        rnd = small_rnd(num_envs=3)
        rnd.scaled(rows[:4])
        rnd.scaled(rows[4:])
        expected = discounted_filter(rows, torch.zeros(3), 0.99)[-1]
        torch.testing.assert_close(rnd.filter_state, expected)


class TestGae:
    VALUE = torch.tensor([0.5, 0.5, 0.5, 2.0])[:, None]

    def test_episodic_stream(self) -> None:
        discount = 0.999 * torch.tensor([1.0, 1.0, 0.0])[:, None]
        advantage = gae(torch.tensor([0.0, 0.0, 1.0])[:, None], discount, self.VALUE, 0.95)
        expected = torch.tensor([0.449373, 0.474025, 0.5])
        torch.testing.assert_close(advantage[:, 0], expected, atol=1e-6, rtol=0)

    def test_intrinsic_stream_does_not_end(self) -> None:
        discount = torch.full((3, 1), 0.99)
        advantage = gae(torch.tensor([1.0, 0.0, 0.0])[:, None], discount, self.VALUE, 0.95)
        expected = torch.tensor([2.299417, 1.38694, 1.48])
        torch.testing.assert_close(advantage[:, 0], expected, atol=1e-5, rtol=0)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
    def test_lambda_one_is_the_discounted_sum(self, T: int, N: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        reward = torch.from_numpy(rng.normal(size=(T, N)))
        discount = torch.from_numpy(0.9 * (rng.random((T, N)) < 0.7))
        value = torch.from_numpy(rng.normal(size=(T + 1, N)))
        target = gae(reward, discount, value, 1.0) + value[:-1]
        expected = value[-1]
        for t in reversed(range(T)):
            expected = reward[t] + discount[t] * expected
            torch.testing.assert_close(target[t], expected)

    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match="T \\+ 1"):
            gae(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2), 0.9)


class TestNetworks:
    def test_parameter_counts(self) -> None:
        target, predictor = atari_rnd_networks()
        assert sum(p.numel() for p in target.parameters()) == 1_677_984
        assert sum(p.numel() for p in predictor.parameters()) == 2_203_296
        policy = atari_actor_critic("cnn", 18)
        assert sum(p.numel() for p in policy.parameters()) == 1_223_156

    def test_the_slope_is_a_fifth(self) -> None:
        target, predictor = atari_rnd_networks()
        for network in (target, predictor):
            slopes = {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)}
            assert slopes == {0.2}
        # And it acts: with the filters negated, features of negative inputs are not zero.
        x = torch.randn(3, 1, 84, 84)
        assert (target.torso(x) < 0).any()

    def test_weights_are_orthogonal(self) -> None:
        target, _ = atari_rnd_networks(seed=3)
        weight = target.torso.convolutions[0].weight.flatten(1)  # [32, 64]
        torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(32), atol=1e-4, rtol=0)

    def test_seeds(self) -> None:
        (a, _), (b, _), (c, _) = (vector_rnd_networks(5, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(a[0].weight, b[0].weight)
        assert not torch.equal(a[0].weight, c[0].weight)


class TestBonus:
    def test_is_the_mean_squared_error_of_scaled_views(self) -> None:
        rnd = small_rnd()
        rnd.observe(torch.randn(4, 3, 5) * 3 + 1)
        obs = torch.randn(2, 3, 5)
        mean, std = rnd.view_moments.mean.float(), rnd.view_moments.std.float()
        x = ((obs - mean) / std).clamp(-5, 5)
        expected = (rnd.target(x) - rnd.predictor(x)).square().sum(dim=-1) / 4
        torch.testing.assert_close(rnd.bonus(obs), expected)

    def test_values_are_cut_at_five(self) -> None:
        rnd = small_rnd()
        x = rnd.normalised(torch.tensor([[100.0, -100.0, 0.5, 0.0, -5.5]]))
        torch.testing.assert_close(x, torch.tensor([[5.0, -5.0, 0.5, 0.0, -5.0]]))

    def test_a_pixel_that_never_changed_answers_with_the_full_clip(self) -> None:
        rnd = small_rnd()
        rnd.observe(torch.zeros(6400, 3, 5))
        assert rnd.normalised(torch.tensor([[0.0, 1.0, 0.0, -1.0, 0.0]])).tolist() == [
            [0.0, 5.0, 0.0, -5.0, 0.0]
        ]

    def test_constant_pixels_stay_zero(self) -> None:
        """The mean is subtracted first: a bright pixel that never changes must not jitter."""
        rnd = small_rnd()
        bright = torch.full((6400, 3, 5), 87.0)
        rnd.observe(bright)
        assert rnd.normalised(bright[0]).abs().max() < 0.01

    def test_looks_at_the_newest_frame(self) -> None:
        obs = torch.arange(2 * 4 * 3 * 3).view(2, 4, 3, 3)
        assert torch.equal(newest_frame(obs), obs[:, 3:])
        target, predictor = atari_rnd_networks()
        rnd = RND(target, predictor, (1, 84, 84), 2)
        stacks = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
        same = stacks.clone()
        same[:, :3] = 0
        torch.testing.assert_close(rnd.bonus(stacks), rnd.bonus(same))
        same[:, 3] = 0
        assert not torch.allclose(rnd.bonus(stacks), rnd.bonus(same))

    def test_passes_of_many_rows_are_one(self) -> None:
        rnd = small_rnd()
        obs = torch.randn(500, 3, 5)
        expected = torch.stack([rnd.bonus(row) for row in obs])
        torch.testing.assert_close(rnd.bonus(obs), expected)

    def test_no_gradient_reaches_the_target(self) -> None:
        rnd = small_rnd()
        obs = torch.randn(6, 5)
        rnd.loss(obs, rnd.targets(obs), torch.ones(6, dtype=torch.bool)).backward()
        assert all(p.grad is None for p in rnd.target.parameters())
        assert all(p.grad is not None for p in rnd.predictor.parameters())


class TestPredictorLoss:
    def test_nothing_kept_is_no_loss(self) -> None:
        rnd = small_rnd(keep_prob=0.5)
        obs = torch.randn(6, 5)
        loss = rnd.loss(obs, rnd.targets(obs), torch.zeros(6, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0.0
        assert all(
            p.grad is None or torch.equal(p.grad, torch.zeros_like(p))
            for p in rnd.predictor.parameters()
        )

    def test_is_the_mean_over_kept_frames(self) -> None:
        rnd = small_rnd(keep_prob=0.5)
        obs = torch.randn(6, 5)
        kept = torch.tensor([True, False, True, True, False, False])
        expected = rnd.bonus(obs)[kept].mean()
        torch.testing.assert_close(rnd.loss(obs, rnd.targets(obs), kept).detach(), expected)

    def test_keeps_its_share(self) -> None:
        rnd = small_rnd(keep_prob=0.25)
        kept = rnd.draw_kept(20_000, torch.Generator().manual_seed(0))
        assert kept.float().mean().item() == pytest.approx(0.25, abs=0.012)
        assert small_rnd().draw_kept(50, torch.Generator()).all()

    def test_learns_to_predict(self) -> None:
        rnd = small_rnd()
        optimizer = torch.optim.Adam(rnd.predictor.parameters(), lr=1e-2)
        seen, unseen = torch.randn(16, 5), torch.randn(16, 5) * 2 + 4
        before = rnd.bonus(seen).mean()
        for _ in range(300):
            optimizer.zero_grad()
            rnd.loss(seen, rnd.targets(seen), torch.ones(16, dtype=torch.bool)).backward()
            optimizer.step()
        after = rnd.bonus(seen).mean()
        assert 0 < after < 0.05 * before
        assert rnd.bonus(unseen).mean() > 10 * after


def test_resume_is_exact() -> None:
    rnd, other = small_rnd(seed=1), small_rnd(seed=2)
    rnd.observe(torch.randn(4, 3, 5))
    rnd.scaled(torch.rand(4, 3))
    other.load_state_dict(rnd.state_dict())
    obs, bonus = torch.randn(2, 3, 5), torch.rand(2, 3)
    assert torch.equal(rnd.bonus(obs), other.bonus(obs))
    assert torch.equal(rnd.scaled(bonus), other.scaled(bonus))
