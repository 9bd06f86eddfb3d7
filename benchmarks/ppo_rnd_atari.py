"""Speed of PPO with RND on an Atari game: classicrl, a plain loop, and stable-baselines3's PPO.

    classicrl           the loop of agents/ppo_rnd_atari.py
    plain               the same algorithm on the same environments, written down in this file as
                        the equations say it, with torch's own layers
    stable-baselines3   its PPO with the same convolutions and without the bonus: a head start

The vector environment alone, under random actions, says what emulation would allow. All take turns
in one process. docs/performance.md says what is compared and what is not.

    python benchmarks/ppo_rnd_atari.py --threads 2 --json benchmarks/results/my-machine.json
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import tyro
from atari_dqn import count_flops
from report import (
    Table,
    Timing,
    alternately,
    by_kind,
    keep,
    matrix_product_gflops,
    origin,
    ratios,
    show,
    spread,
)
from torch import Tensor, nn
from torch.distributions import Categorical

from classicrl.algorithms.ppo import PPOLearner
from classicrl.algorithms.rnd import RND
from classicrl.command_line import exit_with, require_positive
from classicrl.envs.atari import PROTOCOLS, AtariVector
from classicrl.errors import RunFailure, UserError
from classicrl.machine import choose_device, set_threads
from classicrl.networks import atari_actor_critic, atari_rnd_networks
from classicrl.replay import Rollout

NUM_EPOCHS = 4
NUM_MINIBATCHES = 4
GAMMA_EXT, GAMMA_INT, LAMBDA = 0.999, 0.99, 0.95
CLIP, ENTROPY_COEF, LEARNING_RATE = 0.1, 0.001, 1e-4

OWN, PLAIN, PEER = "classicrl", "plain", "stable-baselines3"
PROTOCOL = PROTOCOLS["exploration"]


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one agent decision in one environment: 4 frames."""

    env_id: str = "ALE/MontezumaRevenge-v5"
    """Any game of ale-py."""
    num_envs: int = 32
    """Games side by side."""
    env_groups: int = 1
    """Of classicrl's: 2 emulates one half while actions are found for the other."""
    rollout_steps: int = 128
    """Steps of each environment in a rollout; it is followed by 16 updates."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    threads: int = 0
    """CPU threads of torch and the emulators; 0: all that this process may use."""
    peer: Literal["sb3", "none"] = "sb3"
    """none: leave stable-baselines3 out."""
    repeats: int = 3
    """How often everything is measured; a repeat is one rollout and its updates."""
    matrix_size: int = 2_048
    """Rows and columns in the matrix product that shows the machine's speed."""
    seed: int = 0
    """Of everything random."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""

    @property
    def steps(self) -> int:
        """Of all environments in a rollout."""
        return self.num_envs * self.rollout_steps

    @property
    def keep_prob(self) -> float:
        """Share of frames that the predictor learns from."""
        return min(1.0, 32 / self.num_envs)


class Side(Protocol):
    """One of the programs that are compared."""

    name: str

    def collect(self) -> None:
        """One rollout."""

    def learn(self) -> None:
        """The updates on the last rollout."""


def make_envs(config: Config, num_envs: int, seed: int, threads: int) -> AtariVector:
    """ale-py's vector environment under the rules of RND."""
    return AtariVector(
        config.env_id, num_envs, protocol=PROTOCOL, seed=seed, num_threads=min(threads, num_envs)
    )


class ClassicRL:
    """The loop of agents/ppo_rnd_atari.py, without evaluations, checkpoints and log files."""

    name = OWN

    def __init__(self, config: Config, device: torch.device, threads: int) -> None:
        N = config.num_envs
        size = N // config.env_groups
        self.envs = [
            make_envs(config, size, config.seed + g, threads) for g in range(config.env_groups)
        ]
        self.own = [slice(g * size, (g + 1) * size) for g in range(config.env_groups)]
        self.network = atari_actor_critic("cnn", self.envs[0].num_actions, seed=config.seed)
        self.network.to(device, memory_format=torch.channels_last)
        target, predictor = (
            part.to(device, memory_format=torch.channels_last)
            for part in atari_rnd_networks(seed=config.seed)
        )
        rnd = RND(target, predictor, (1, 84, 84), N, keep_prob=config.keep_prob, device=device)
        self.learner = PPOLearner(self.network, rnd, seed=config.seed)
        self.rollout = Rollout(config.rollout_steps, N, (4, 84, 84), device=device)
        self.device = device
        self.reward = np.zeros((config.rollout_steps, N), dtype=np.float32)
        self.discount = np.zeros_like(self.reward)
        first = np.concatenate([part.reset() for part in self.envs])
        self.rollout.begin_new_episodes(torch.from_numpy(first).to(device))

    def collect(self) -> None:
        rollout, learner = self.rollout, self.learner
        state = rollout.initial_state
        for t in range(rollout.num_steps):
            for g, cut in enumerate(self.own):
                if t > 0:
                    self._receive(t - 1, g)
                acted = learner.act(rollout.obs[t, cut], state[cut], rollout.starts[t, cut])
                self.envs[g].send(acted.action.cpu().numpy())
                rollout.action[t, cut] = acted.action
                rollout.log_prob[t, cut] = acted.log_prob
                rollout.value_ext[t, cut] = acted.value_ext
                rollout.value_int[t, cut] = acted.value_int
        for g in range(len(self.own)):
            self._receive(rollout.num_steps - 1, g)
        rollout.value_ext[-1], rollout.value_int[-1] = learner.values(
            rollout.obs[-1], state, rollout.starts[-1]
        )
        rollout.reward.copy_(torch.from_numpy(self.reward))
        rollout.discount.copy_(torch.from_numpy(self.discount))

    def _receive(self, t: int, g: int) -> None:
        result, cut = self.envs[g].recv(), self.own[g]
        self.rollout.obs[t + 1, cut] = torch.from_numpy(result.obs).to(self.device)
        self.rollout.starts[t + 1, cut] = torch.from_numpy(result.ended).to(self.device)
        self.reward[t, cut] = np.sign(result.reward)
        self.discount[t, cut] = GAMMA_EXT * ~result.ended

    def learn(self) -> None:
        metrics = self.learner.update(self.rollout)
        metrics["policy"].item()
        self.rollout.begin_next(self.rollout.initial_state)


class Plain:
    """The equations as they stand, in torch's own layers: what one would write first."""

    name = PLAIN

    def __init__(self, config: Config, device: torch.device, threads: int) -> None:
        self.config, self.device = config, device
        self.envs = make_envs(config, config.num_envs, config.seed, threads)
        num_actions = self.envs.num_actions

        def convolutions(channels: int, last: int, activation: nn.Module) -> list[nn.Module]:
            return [
                nn.Conv2d(channels, 32, 8, 4), activation, nn.Conv2d(32, 64, 4, 2), activation,
                nn.Conv2d(64, 64, last, 1), activation, nn.Flatten(),
            ]  # fmt: skip

        relu, leaky = nn.ReLU(), nn.LeakyReLU(0.2)
        self.body = nn.Sequential(
            *convolutions(4, 4, relu), nn.Linear(2304, 256), relu, nn.Linear(256, 448), relu
        )
        self.branches = nn.ModuleList(nn.Linear(448, 448) for _ in range(2))
        self.heads = nn.ModuleList([nn.Linear(448, num_actions), nn.Linear(448, 2)])
        self.policy = nn.ModuleList([self.body, self.branches, self.heads]).to(device)
        self.target = nn.Sequential(*convolutions(1, 3, leaky), nn.Linear(3136, 512)).to(device)
        self.predictor = nn.Sequential(
            *convolutions(1, 3, leaky), nn.Linear(3136, 512), relu, nn.Linear(512, 512), relu,
            nn.Linear(512, 512),
        ).to(device)  # fmt: skip
        self.parameters = [*self.policy.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, eps=1e-8)
        T, N = config.rollout_steps, config.num_envs
        self.obs = torch.zeros((T + 1, N, 4, 84, 84), dtype=torch.uint8, device=device)
        self.action = torch.zeros((T, N), dtype=torch.int64, device=device)
        self.log_prob, self.reward, self.discount = torch.zeros((3, T, N), device=device)
        self.values = torch.zeros((T + 1, N, 2), device=device)
        self.mean = torch.zeros((1, 84, 84), dtype=torch.float64, device=device)
        self.var = torch.ones((1, 84, 84), dtype=torch.float64, device=device)
        self.count, self.reward_var, self.reward_mean, self.reward_count = 1e-4, 1.0, 0.0, 1e-4
        self.sums = torch.zeros(N, device=device)
        self.obs[0] = torch.from_numpy(self.envs.reset()).to(device)

    def forward(self, obs: Tensor) -> tuple[Categorical, Tensor]:
        x = self.body(obs.float() / 255)
        logits = self.heads[0](x + torch.relu(self.branches[0](x)))
        return Categorical(logits=logits), self.heads[1](x + torch.relu(self.branches[1](x)))

    @torch.no_grad()
    def collect(self) -> None:
        for t in range(self.config.rollout_steps):
            policy, self.values[t] = self.forward(self.obs[t])
            self.action[t] = policy.sample()
            self.log_prob[t] = policy.log_prob(self.action[t])
            result = self.envs.step(self.action[t].cpu().numpy())
            self.obs[t + 1] = torch.from_numpy(result.obs).to(self.device)
            self.reward[t] = torch.from_numpy(np.sign(result.reward)).to(self.device)
            self.discount[t] = GAMMA_EXT * torch.from_numpy(~result.ended).to(self.device)
        self.values[-1] = self.forward(self.obs[-1])[1]

    def normalised(self, frames: Tensor) -> Tensor:
        return ((frames - self.mean) / self.var.sqrt()).clamp(-5, 5).float()

    def learn(self) -> None:
        T, N = self.action.shape
        frames = self.obs[1:, :, -1:].flatten(0, 1)
        with torch.no_grad():
            x = torch.cat([self.normalised(part) for part in frames.split(1024)])
            bonus = torch.cat(
                [
                    (self.predictor(part) - self.target(part)).square().mean(dim=1)
                    for part in x.split(1024)
                ]
            ).view(T, N)
            seen = self.obs[:-1, :, -1:].flatten(0, 1).double()
            self.mean, self.var, self.count = pooled(
                (self.mean, self.var, self.count),
                (seen.mean(dim=0), seen.var(dim=0, correction=0), len(seen)),
            )
            filtered = []
            for row in bonus:
                self.sums = GAMMA_INT * self.sums + row
                filtered.append(self.sums)
            f = torch.stack(filtered).double()
            self.reward_mean, self.reward_var, self.reward_count = pooled(
                (self.reward_mean, self.reward_var, self.reward_count),
                (f.mean(), f.var(correction=0), f.numel()),
            )
            bonus = bonus / self.reward_var.sqrt().float()
            rewards = torch.stack([self.reward, bonus], dim=-1)
            discounts = torch.stack([self.discount, torch.full_like(bonus, GAMMA_INT)], dim=-1)
            advantages = torch.zeros_like(rewards)
            following = torch.zeros_like(rewards[0])
            for t in reversed(range(T)):
                delta = rewards[t] + discounts[t] * self.values[t + 1] - self.values[t]
                following = delta + discounts[t] * LAMBDA * following
                advantages[t] = following
            returns = advantages + self.values[:-1]
            advantage = 2 * advantages[..., 0] + advantages[..., 1]
            x = torch.cat([self.normalised(part) for part in frames.split(1024)]).view(
                T, N, 1, 84, 84
            )
        for _ in range(NUM_EPOCHS):
            for envs in torch.arange(N).chunk(NUM_MINIBATCHES):
                policy, values = self.forward(self.obs[:-1, envs].flatten(0, 1))
                log_prob = policy.log_prob(self.action[:, envs].flatten())
                ratio = (log_prob - self.log_prob[:, envs].flatten()).exp()
                a = advantage[:, envs].flatten()
                loss = -torch.min(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a).mean()
                loss = loss - ENTROPY_COEF * policy.entropy().mean()
                errors = values - returns[:, envs].flatten(0, 1)
                loss = loss + 0.5 * errors.square().mean(dim=0).sum()
                part = x[:, envs].flatten(0, 1)
                with torch.no_grad():
                    target = self.target(part)
                error = (self.predictor(part) - target).square().mean(dim=1)
                mask = (torch.rand(len(error), device=self.device) < self.config.keep_prob).float()
                loss = loss + (mask * error).sum() / mask.sum().clamp(min=1)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        self.obs[0] = self.obs[-1]


def pooled(a: Any, b: Any) -> Any:
    """Mean, variance and count of two groups together."""
    (mean_a, var_a, n_a), (mean_b, var_b, n_b) = a, b
    n, delta = n_a + n_b, mean_b - mean_a
    var = (var_a * n_a + var_b * n_b + delta**2 * n_a * n_b / n) / n
    return mean_a + delta * n_b / n, var, n


class StableBaselines3:
    """stable-baselines3's PPO: the same convolutions and trunk, no residual branches, no bonus."""

    name = PEER

    def __init__(self, config: Config, device: torch.device, threads: int) -> None:
        try:
            import ale_py
            import gymnasium
            from stable_baselines3 import PPO
            from stable_baselines3.common.atari_wrappers import AtariWrapper
            from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
            from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
        except ImportError as error:
            raise UserError(
                f'{error}: pip install "classicrl[atari,bench]", or --peer none'
            ) from error
        gymnasium.register_envs(ale_py)

        class Features(BaseFeaturesExtractor):  # type: ignore[misc]
            def __init__(self, space: Any) -> None:
                super().__init__(space, 448)
                self.layers = nn.Sequential(
                    nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
                    nn.Conv2d(64, 64, 4, 1), nn.ReLU(), nn.Flatten(),
                    nn.Linear(2304, 256), nn.ReLU(), nn.Linear(256, 448), nn.ReLU(),
                )  # fmt: skip

            def forward(self, obs: Tensor) -> Tensor:
                features: Tensor = self.layers(obs)
                return features

        def make() -> Any:
            env = gymnasium.make(
                config.env_id,
                frameskip=1,
                repeat_action_probability=PROTOCOL.repeat_action_probability,
                max_num_frames_per_episode=PROTOCOL.max_frames_per_episode,
            )
            return AtariWrapper(env, noop_max=0, terminal_on_life_loss=False)

        env = VecFrameStack(DummyVecEnv([make for _ in range(config.num_envs)]), 4)
        env.seed(config.seed)
        self.model = PPO(
            "CnnPolicy",
            env,
            learning_rate=LEARNING_RATE,
            n_steps=config.rollout_steps,
            batch_size=config.steps // NUM_MINIBATCHES,
            n_epochs=NUM_EPOCHS,
            gamma=GAMMA_EXT,
            gae_lambda=LAMBDA,
            clip_range=CLIP,
            ent_coef=ENTROPY_COEF,
            policy_kwargs={"features_extractor_class": Features, "net_arch": []},
            device=device,
            seed=config.seed,
        )
        self.config = config
        _, self.callback = self.model._setup_learn(10**9)
        self.callback.on_training_start({}, {})

    def collect(self) -> None:
        self.model.collect_rollouts(
            self.model.env, self.callback, self.model.rollout_buffer, self.config.rollout_steps
        )

    def learn(self) -> None:
        self.model.train()


# -- Measuring ---------------------------------------------------------------------------------


def measure(config: Config) -> dict[str, Any]:
    """Measures everything; returns the result as it is kept in JSON."""
    device = choose_device(config.device)
    threads = set_threads(config.threads)
    programs: list[Callable[..., Side]] = [ClassicRL, Plain]
    if config.peer == "sb3":
        programs.append(StableBaselines3)
    gflops = [matrix_product_gflops(device, config.matrix_size)]
    sides = [program(config, device, threads) for program in programs]
    emulators = make_envs(config, config.num_envs, config.seed, threads)
    emulators.reset()
    rng = np.random.default_rng(config.seed)

    def emulate() -> None:
        for _ in range(config.rollout_steps):
            emulators.step(rng.integers(emulators.num_actions, size=config.num_envs))

    for side in sides:
        print(f"{side.name}: warms up", flush=True)
        side.collect()
        side.learn()
    emulate()
    timings: dict[str, dict[str, list[Timing]]] = {}
    for part in ("collect", "learn"):
        jobs = [functools.partial(getattr(side, part)) for side in sides]
        if part == "collect":
            jobs.append(emulate)
        results = alternately(jobs, device, config.repeats)
        names = [side.name for side in sides] + ["emulators"] * (part == "collect")
        timings[part] = dict(zip(names, results, strict=True))
    gflops.append(matrix_product_gflops(device, config.matrix_size))

    own = sides[0]
    assert isinstance(own, ClassicRL) and own.learner.rnd is not None
    plain = sides[1]
    assert isinstance(plain, Plain)
    counts = [
        sum(p.numel() for p in parameters)
        for parameters in (own.learner.parameters, plain.parameters)
    ]
    if counts[0] != counts[1]:
        raise RunFailure(f"the two sides do not train the same number of parameters: {counts}")
    stack = torch.zeros(1, 4, 84, 84, dtype=torch.uint8, device=device)
    frame = torch.zeros(1, 1, 84, 84, device=device)
    flops = {
        "policy": count_flops(_Batch(own.network), stack),
        "predictor": count_flops(own.learner.rnd.predictor, frame),
        "target": count_flops(own.learner.rnd.target, frame),
    }
    return {
        **origin(config, device),
        "matrix_product_gflops": max(gflops),
        "steps": config.steps,
        "num_parameters": counts[0],
        "flops": flops,
        "step_flops": step_flops(flops, config.keep_prob),
        "seconds": {
            part: {name: by_kind(values) for name, values in sides_of.items()}
            for part, sides_of in timings.items()
        },
        "profile": profile(own, device),
    }


class _Batch(nn.Module):
    """The policy network on a batch, for counting."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: Tensor) -> Tensor:
        starts = torch.zeros(1, len(obs), dtype=torch.bool, device=obs.device)
        output, _ = self.network(obs[None], obs.new_zeros((len(obs), 0)), starts)
        logits: Tensor = output.logits
        return logits


def step_flops(flops: dict[str, tuple[int, int]], keep_prob: float) -> float:
    """Operations of convolutions and linear layers that a step of the algorithm asks for.

    Acting, the bonus, the targets of the predictor, then the epochs.
    """
    policy, predictor, target = (flops[name] for name in ("policy", "predictor", "target"))
    epochs = NUM_EPOCHS * (sum(policy) + keep_prob * sum(predictor))
    return policy[0] + predictor[0] + 2 * target[0] + epochs


def profile(own: ClassicRL, device: torch.device) -> dict[str, float]:
    """Milliseconds per step that the parts of classicrl's learning take, each timed alone."""
    learner, rollout = own.learner, own.rollout
    rnd = learner.rnd
    assert rnd is not None
    steps = rollout.num_steps * rollout.num_envs
    next_obs = rollout.obs[1:].flatten(0, 1)
    share = next_obs[: steps // NUM_MINIBATCHES]
    targets = rnd.targets(share)
    kept = rnd.draw_kept(len(share), learner.generator)
    envs = slice(0, rollout.num_envs // NUM_MINIBATCHES)

    def policy() -> None:
        output, _ = own.network(
            rollout.obs[:-1, envs], rollout.initial_state[envs], rollout.starts[:-1, envs]
        )
        (output.logits.mean() + output.value_ext.mean() + output.value_int.mean()).backward()

    def predictor() -> None:
        rnd.loss(share, targets, kept).backward()

    per_rollout: dict[str, tuple[Callable[[], object], int]] = {
        "bonus": (lambda: rnd.bonus(rollout.obs[1:]), 1),
        "statistics of frames": (lambda: rnd.observe(rollout.obs[:-1]), 1),
        "targets": (lambda: rnd.targets(next_obs), 1),
        "policy, forwards and backwards": (policy, NUM_EPOCHS * NUM_MINIBATCHES),
        "predictor, forwards and backwards": (predictor, NUM_EPOCHS * NUM_MINIBATCHES),
    }
    results = {}
    for name, (job, times) in per_rollout.items():
        seconds = [t.wall_seconds for t in alternately([job], device, 3)[0]]
        results[name] = 1e3 * times * statistics.median(seconds) / steps
    learner.optimizer.zero_grad()
    return results


# -- Showing -----------------------------------------------------------------------------------


def totals(result: dict[str, Any], side: str) -> list[float]:
    """Steps per second of the whole loop, one per repeat."""
    collect, learn = (
        result["seconds"][part][side]["wall_seconds"] for part in ("collect", "learn")
    )
    return [result["steps"] / (a + b) for a, b in zip(collect, learn, strict=True)]


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    sides = list(result["seconds"]["learn"])
    others = sides[1:]
    header = ("steps/s", *sides, *(f"over {name}" for name in others))

    def rates(part: str, side: str) -> list[float]:
        if part == "training":
            return totals(result, side)
        return [result["steps"] / s for s in result["seconds"][part][side]["wall_seconds"]]

    rows = []
    for part, words in (
        ("training", "training"),
        ("collect", "acting and emulating alone"),
        ("learn", "learning alone"),
    ):
        own = rates(part, OWN)
        cells = [spread(rates(part, side)) for side in sides]
        cells += [spread(ratios(own, rates(part, side)), 2) for side in others]
        rows.append((words, *cells))
    emulation = rates("collect", "emulators")
    rows.append(("emulators alone", spread(emulation), *[""] * (len(header) - 2)))
    config = result["config"]
    median = statistics.median(totals(result, OWN))
    limit = result["matrix_product_gflops"] * 1e9 / result["step_flops"]
    profile_rows = [(name, f"{ms:.2f}") for name, ms in result["profile"].items()]
    collect = statistics.median(rates("collect", OWN))
    learn = statistics.median(rates("learn", OWN))
    profile_rows += [
        ("acting and emulating", f"{1e3 / collect:.2f}"),
        ("learning, all of it", f"{1e3 / learn:.2f}"),
    ]
    return [
        Table(
            f"PPO with RND on {config['env_id']}, {config['num_envs']} environments, rollouts of "
            f"{config['rollout_steps']} steps, {result['threads']} threads: median (range) of "
            f"{config['repeats']} repeats",
            header,
            rows,
            (
                "A ratio above 1 is in favour of classicrl. stable-baselines3 trains without the "
                "bonus.",
                f"A step asks for {result['step_flops'] / 1e9:.2f} GFLOP; at the rate of a float32 "
                f"matrix product, {result['matrix_product_gflops']:,.0f} GFLOP/s, that would be "
                f"{limit:,.0f} steps/s. classicrl reaches {median / limit:.0%} of it.",
            ),
        ),
        Table("Where classicrl's time goes", ("", "ms per step"), profile_rows),
    ]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads", "seed"})
    if config.num_envs % (NUM_MINIBATCHES * config.env_groups):
        raise UserError(
            f"--num-envs must be a multiple of {NUM_MINIBATCHES * config.env_groups}, got "
            f"{config.num_envs}"
        )
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "ppo_rnd_atari", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
