"""PPO with two streams: losses, the order of an update, minibatches, acting."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classicrl import losses
from classicrl.algorithms.ppo import PPOLearner, SampledPolicy, sample_actions
from classicrl.algorithms.rnd import RND, whole
from classicrl.evaluation import GamesPolicy
from classicrl.networks import (
    atari_actor_critic,
    vector_actor_critic,
    vector_rnd_networks,
)
from classicrl.networks.actor_critic import PlainHeads, RecurrentActorCritic, VectorBody
from classicrl.replay import Rollout

T, N, D, A = 5, 6, 3, 4


def filled_rollout(seed: int = 0, state_size: int = 0, num_envs: int = N) -> Rollout:
    g = torch.Generator().manual_seed(seed)
    rollout = Rollout(T, num_envs, (D,), obs_dtype=torch.float32, state_size=state_size)
    rollout.obs.normal_(generator=g)
    rollout.action.random_(0, A, generator=g)
    rollout.log_prob.uniform_(-2.0, -0.5, generator=g)
    rollout.value_ext.normal_(generator=g)
    rollout.value_int.normal_(generator=g)
    rollout.reward.bernoulli_(0.3, generator=g)
    rollout.starts[1:].bernoulli_(0.2, generator=g)
    rollout.discount.copy_(0.99 * ~rollout.starts[1:])
    rollout.initial_state.normal_(generator=g)
    return rollout


def make_learner(
    *, bonus: bool = True, seed: int = 0, num_envs: int = N, **options: Any
) -> PPOLearner:
    rnd = None
    if bonus:
        target, predictor = vector_rnd_networks(D, hidden=(8,), out_features=2, seed=seed)
        rnd = RND(target, predictor, (D,), num_envs, view=whole)
    network = vector_actor_critic(D, A, hidden=(7,), seed=seed)
    return PPOLearner(network, rnd, num_epochs=2, num_minibatches=3, seed=seed, **options)


def recurrent_network() -> RecurrentActorCritic:
    torch.manual_seed(0)
    return RecurrentActorCritic(VectorBody(D, (8,)), PlainHeads(5, A), in_features=8, state_size=5)


class TestLosses:
    def test_clipped_objective_by_hand(self) -> None:
        old = torch.tensor([0.5, 0.5, 0.5, 0.5]).log()
        new = torch.tensor([0.6, 0.6, 0.4, 0.4]).log()  # ratios 1.2, 1.2, 0.8, 0.8
        advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
        # Per item the smaller of r A and clip(r) A: 1.1, -1.2, 0.8, -0.9.
        assert losses.ppo_clip(new, old, advantage, 0.1).item() == pytest.approx(0.05)

    def test_no_gradient_beyond_the_bound(self) -> None:
        old = torch.tensor([0.5, 0.5]).log()
        new = torch.tensor([0.6, 0.6]).log().requires_grad_()
        losses.ppo_clip(new, old, torch.tensor([1.0, -1.0]), 0.1).backward()
        assert new.grad is not None
        assert new.grad.tolist() == pytest.approx([0.0, 0.6])

    def test_entropy(self) -> None:
        assert losses.entropy(torch.zeros(3, 18)).item() == pytest.approx(np.log(18))
        sharp = torch.tensor([[100.0, 0.0, 0.0]])
        assert losses.entropy(sharp).item() == pytest.approx(0.0, abs=1e-6)

    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match="shapes must be equal"):
            losses.ppo_clip(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3), 0.1)


class TestUpdate:
    def test_advantages_are_combined(self) -> None:
        """2 A_E + 1 A_I of the worked example, seen through the policy's loss."""
        rollout = Rollout(3, 1, (D,), obs_dtype=torch.float32)
        rollout.value_ext[:, 0] = torch.tensor([0.5, 0.5, 0.5, 2.0])
        rollout.value_int[:, 0] = torch.tensor([0.5, 0.5, 0.5, 2.0])
        rollout.reward[:, 0] = torch.tensor([0.0, 0.0, 1.0])
        rollout.discount[:, 0] = 0.999 * torch.tensor([1.0, 1.0, 0.0])
        learner = make_learner(num_envs=1)
        learner.num_minibatches = learner.num_epochs = 1
        assert learner.rnd is not None
        learner.rnd.scaled = lambda bonus: torch.tensor([[1.0], [0.0], [0.0]])  # type: ignore[method-assign]
        # The ratio is 1: the loss is minus the mean advantage.
        output, _ = learner.network(rollout.obs[:-1], rollout.initial_state, rollout.starts[:-1])
        log_probs = output.logits.log_softmax(dim=-1)
        rollout.log_prob.copy_(losses.chosen(log_probs, rollout.action).detach())
        policy = learner.update(rollout)["policy"]
        assert policy.item() == pytest.approx(-np.mean([3.198164, 2.33499, 2.48]), abs=1e-5)

    def test_the_order_of_the_statistics(self) -> None:
        """The bonus is given with the old statistics, for the observation after the step; the
        predictor learns on the same observations with the new ones."""
        learner, rollout = make_learner(), filled_rollout()
        rnd = learner.rnd
        assert rnd is not None
        calls: list[tuple[str, float, Tensor]] = []

        def recorded(name: str) -> None:
            method = getattr(rnd, name)

            def call(obs: Tensor, *args: Any) -> Any:
                calls.append((name, float(rnd.view_moments.count), obs.clone()))
                return method(obs, *args)

            setattr(rnd, name, call)

        for name in ("bonus", "observe", "targets", "loss"):
            recorded(name)
        learner.update(rollout)
        names = [name for name, _, _ in calls]
        assert names == ["bonus", "observe", "targets", *["loss"] * 6]
        counts = dict((name, count) for name, count, _ in calls)
        assert counts["bonus"] == counts["observe"] == pytest.approx(1e-4)
        assert counts["targets"] == counts["loss"] == pytest.approx(T * N + 1e-4)
        seen = {name: obs for name, _, obs in calls}
        assert torch.equal(seen["bonus"], rollout.obs[1:])  # o_{t+1}, never o_t
        assert torch.equal(seen["observe"], rollout.obs[:-1])
        assert torch.equal(seen["targets"], rollout.obs[1:].flatten(0, 1))
        learned = torch.cat([obs for name, _, obs in calls if name == "loss"][:3])
        by_env = rollout.obs[1:].split(2, dim=1)
        assert torch.equal(learned, torch.cat([part.flatten(0, 1) for part in by_env]))

    def test_one_minibatch_by_hand(self) -> None:
        """A gradient step equals one taken from the formulas."""
        learner, rollout = make_learner(seed=3), filled_rollout(3)
        learner.num_epochs = learner.num_minibatches = 1
        other = make_learner(seed=3)
        rnd, network = other.rnd, other.network
        assert rnd is not None
        bonus = rnd.bonus(rollout.obs[1:])
        rnd.observe(rollout.obs[:-1])
        reward_int = rnd.scaled(bonus)
        advantages = {}
        for name, reward, value, ends in (
            ("ext", rollout.reward, rollout.value_ext, rollout.starts[1:]),
            ("int", reward_int, rollout.value_int, torch.zeros(T, N, dtype=torch.bool)),
        ):
            advantage, following = torch.zeros(T, N), torch.zeros(N)
            for t in reversed(range(T)):
                goes_on = (~ends[t]).float() * 0.99
                delta = reward[t] + goes_on * value[t + 1] - value[t]
                following = delta + goes_on * 0.95 * following
                advantage[t] = following
            advantages[name] = advantage
        output, _ = network(rollout.obs[:-1], rollout.initial_state, rollout.starts[:-1])
        probs = output.logits.softmax(dim=-1)
        ratio = probs.gather(-1, rollout.action[..., None])[..., 0] / rollout.log_prob.exp()
        combined = 2 * advantages["ext"] + advantages["int"]
        loss = -torch.min(ratio * combined, ratio.clamp(0.9, 1.1) * combined).mean()
        loss = loss + 0.001 * (probs * probs.log()).sum(-1).mean()
        for name, value in (("ext", output.value_ext), ("int", output.value_int)):
            target = advantages[name] + getattr(rollout, f"value_{name}")[:-1]
            loss = loss + 0.5 * (value - target).square().mean()
        x = rnd.normalised(rollout.obs[1:].flatten(0, 1))
        loss = loss + (rnd.predictor(x) - rnd.target(x)).square().mean()
        other.optimizer.zero_grad()
        loss.backward()
        other.optimizer.step()
        learner.update(rollout)
        for ours, theirs in zip(learner.parameters, other.parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_without_a_bonus_it_is_plain_ppo(self) -> None:
        learner, rollout = make_learner(bonus=False), filled_rollout()
        before = [p.clone() for p in learner.parameters]
        metrics = learner.update(rollout)
        assert metrics["predictor"] == 0.0
        assert "bonus" not in metrics
        assert any(not torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))
        # The intrinsic value is not trained: its row of the head stays.
        values = learner.network.heads.values.weight
        assert torch.equal(values[1], before[_index(learner, values)][1])
        assert not torch.equal(values[0], before[_index(learner, values)][0])

    @pytest.mark.parametrize("shuffle", [False, True])
    def test_every_step_is_used_once_an_epoch(self, shuffle: bool) -> None:
        learner, rollout = make_learner(shuffle=shuffle), filled_rollout()
        seen: list[Tensor] = []
        learner._update_once = lambda part, state: (  # type: ignore[method-assign]
            seen.append(part.obs) or torch.zeros(len(learner.metric_names))
        )
        learner.update(rollout)
        assert len(seen) == 6
        expected = rollout.obs[:-1].flatten(0, 1)
        for epoch in (seen[:3], seen[3:]):
            assert {part.shape for part in epoch} == {(1, 10, D) if shuffle else (T, 2, D)}
            rows = torch.cat([part.flatten(0, 1) for part in epoch])
            assert sorted(rows.tolist()) == sorted(expected.tolist())
        assert shuffle == (not torch.equal(seen[0], seen[3]))

    def test_the_predictors_gradient_is_not_clipped(self) -> None:
        """Bounding the policy's gradient leaves the predictor's steps as they are."""
        free, bounded = make_learner(), make_learner(max_grad_norm=1e-12)
        free.update(filled_rollout())
        bounded.update(filled_rollout())
        assert free.rnd is not None and bounded.rnd is not None
        for a, b in zip(
            free.rnd.predictor.parameters(), bounded.rnd.predictor.parameters(), strict=True
        ):
            assert torch.equal(a, b)

    def test_the_weight_scales_the_extrinsic_advantage_alone(self) -> None:
        plain, weighted = filled_rollout(), filled_rollout()
        weighted.weight_ext.fill_(0.0)
        for bonus, zero in ((False, True), (True, False)):
            weightless = make_learner(bonus=bonus).update(weighted)["policy"]
            assert (weightless == 0.0) == zero
            assert make_learner(bonus=bonus).update(plain)["policy"] != weightless
        # Half of it is as half of its coefficient.
        weighted.weight_ext.fill_(0.5)
        a = make_learner(ext_coef=2.0).update(weighted)["policy"]
        b = make_learner(ext_coef=1.0).update(plain)["policy"]
        torch.testing.assert_close(a, b)

    def test_frames_are_dropped_anew_in_every_minibatch(self) -> None:
        learner, rollout = make_learner(), filled_rollout()
        rnd = learner.rnd
        assert rnd is not None
        rnd.keep_prob = 0.25
        masks: list[Tensor] = []
        loss = rnd.loss

        def noting(obs: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
            masks.append(kept)
            result = loss(obs, targets, kept)
            error = losses.distillation_error(rnd.predictor(rnd.normalised(obs)), targets)
            expected = (error * kept).sum() / kept.sum().clamp(min=1)
            torch.testing.assert_close(result, expected)
            return result

        rnd.loss = noting  # type: ignore[method-assign]
        learner.num_epochs = 12
        learner.update(rollout)
        assert len(masks) == 36
        assert len({tuple(mask.tolist()) for mask in masks}) > 25
        assert 0.15 < torch.cat(masks).float().mean() < 0.35

    def test_parts_are_equal_or_refused(self) -> None:
        learner = make_learner(num_envs=N)
        learner.num_minibatches = 4
        with pytest.raises(ValueError, match="6 are not 4 equal minibatches"):
            learner.update(filled_rollout())

    def test_another_kind_of_device_draws_other_numbers(self) -> None:
        learner, other = make_learner(), make_learner()
        state = learner.state_dict()
        state["generator"] = {"device": "cuda", "state": torch.zeros(16, dtype=torch.uint8)}
        other.load_state_dict(state)
        assert not torch.equal(other.generator.get_state(), learner.generator.get_state())

    def test_the_same_twice(self) -> None:
        a, b = make_learner(shuffle=True, seed=5), make_learner(shuffle=True, seed=5)
        for seed in (1, 2):
            a.update(filled_rollout(seed))
            b.update(filled_rollout(seed))
        assert all(torch.equal(x, y) for x, y in zip(a.parameters, b.parameters, strict=True))
        c = make_learner(shuffle=True, seed=6)
        c.update(filled_rollout(1))
        assert not torch.equal(a.parameters[0], c.parameters[0])

    def test_resume_is_exact(self) -> None:
        learner, other = make_learner(shuffle=True), make_learner(shuffle=True, seed=9)
        learner.update(filled_rollout(1))
        other.load_state_dict(learner.state_dict())
        learner.update(filled_rollout(2))
        other.update(filled_rollout(2))
        for x, y in zip(learner.parameters, other.parameters, strict=True):
            assert torch.equal(x, y)
        obs = torch.randn(N, D)
        args = (obs, torch.zeros(N, 0), torch.zeros(N, dtype=torch.bool))
        assert torch.equal(learner.act(*args).action, other.act(*args).action)

    def test_a_recurrent_policy_is_not_shuffled(self) -> None:
        with pytest.raises(ValueError, match="in order"):
            PPOLearner(recurrent_network(), None, shuffle=True)


class TestMemory:
    def test_is_wiped_where_an_episode_begins(self) -> None:
        network = recurrent_network()
        obs = torch.randn(T, 2, D)
        starts = torch.zeros(T, 2, dtype=torch.bool)
        starts[3, 1] = True
        state = torch.randn(2, 5)
        output, _ = network(obs, state, starts)
        fresh, _ = network(obs[3:, 1:], torch.zeros(1, 5), torch.zeros(2, 1, dtype=torch.bool))
        torch.testing.assert_close(output.logits[3:, 1:], fresh.logits)
        # The other environment remembers.
        forgot, _ = network(obs[3:, :1], torch.zeros(1, 5), torch.zeros(2, 1, dtype=torch.bool))
        assert not torch.allclose(output.logits[3:, :1], forgot.logits)

    def test_step_by_step_is_as_at_once(self) -> None:
        network = recurrent_network()
        obs, starts = torch.randn(T, 2, D), torch.rand(T, 2) < 0.3
        state = torch.randn(2, 5)
        output, last = network(obs, state, starts)
        for t in range(T):
            one, state = network(obs[t : t + 1], state, starts[t : t + 1])
            torch.testing.assert_close(one.value_int[0], output.value_int[t])
        torch.testing.assert_close(state, last)

    def test_an_update_begins_with_the_rollouts_state(self) -> None:
        learner = PPOLearner(recurrent_network(), None, num_epochs=1, num_minibatches=1)
        first, second = filled_rollout(0, state_size=5), filled_rollout(0, state_size=5)
        second.initial_state = torch.zeros(N, 5)
        state = learner.state_dict()
        a = learner.update(first)["value_ext"]
        learner.load_state_dict(state)
        assert learner.update(second)["value_ext"] != a

    def test_atari(self) -> None:
        network = atari_actor_critic("gru", 6, seed=1)
        obs = torch.randint(0, 256, (2, 3, 4, 84, 84), dtype=torch.uint8)
        output, state = network(obs, torch.zeros(3, 256), torch.zeros(2, 3, dtype=torch.bool))
        assert output.logits.shape == (2, 3, 6)
        assert output.value_ext.shape == output.value_int.shape == (2, 3)
        assert state.shape == (3, 256)


class TestActing:
    def test_draws_with_the_policys_probabilities(self) -> None:
        probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
        drawn = sample_actions(probs.log().expand(40_000, 4), torch.Generator().manual_seed(0))
        counts = torch.bincount(drawn, minlength=4).double()
        expected = 40_000 * probs.double()
        assert ((counts - expected).square() / expected).sum() < 16.3  # chi-square, 3 df, p = .001

    def test_log_probs_are_those_of_the_actions(self) -> None:
        learner = make_learner()
        obs = torch.randn(N, D)
        acted = learner.act(obs, torch.zeros(N, 0), torch.zeros(N, dtype=torch.bool))
        output, _ = learner.network(obs[None], torch.zeros(N, 0), torch.zeros(1, N).bool())
        probs = output.logits[0].softmax(-1)
        torch.testing.assert_close(acted.log_prob.exp(), probs[torch.arange(N), acted.action])
        torch.testing.assert_close(acted.value_int, output.value_int[0])

    def test_a_policy_that_plays_games(self) -> None:
        policy = SampledPolicy(recurrent_network())
        assert isinstance(policy, GamesPolicy)
        obs = np.random.default_rng(0).normal(size=(3, 4, D)).astype(np.float32)

        def play(seed: int) -> list[list[int]]:
            policy.begin(4, seed)
            first = policy(obs[0])
            policy.keep(np.array([True, False, True, True]))
            return [first.tolist(), policy(obs[1, :3]).tolist(), policy(obs[2, :3]).tolist()]

        assert play(1) == play(1)
        assert any(play(1) != play(seed) for seed in range(2, 6))
        assert [len(actions) for actions in play(1)] == [4, 3, 3]


def _index(learner: PPOLearner, parameter: Tensor) -> int:
    return next(i for i, p in enumerate(learner.parameters) if p is parameter)
