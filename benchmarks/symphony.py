"""Speed of Symphony: classicrl against a plain implementation of the same equations.

The plain side is written as the equations stand: three critics of their own, the gated sine and a
sort left to autograd, the optimiser parameter by parameter, a replay of five tensors that are
shifted by one at every step (as the authors' is) and drawn from by `torch.multinomial` over all of
them. Its target is frozen, which the authors' is not. Both replays are full. An environment step is
one write and the updates that are due; no environment is played, transitions are random numbers.

    python benchmarks/symphony.py --threads 2 --json benchmarks/results/my-machine.json

Timed, the sides in turn:

    steps       a write, a draw and G updates
    updates     G updates on a batch that is there
    replay      a write and a draw

and for classicrl alone: where the time of an update goes, how long its matrix products take by
themselves, and what a draw costs at several capacities and ages.
"""

import copy
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from report import Table, alternately, by_kind, keep, origin, ratios, show, spread, timed
from torch import Tensor, nn

from classicrl.algorithms.symphony import GOLDEN_DECAY, CudaGraphUpdates, SymphonyLearner
from classicrl.command_line import exit_with, require_positive
from classicrl.machine import choose_device, set_threads
from classicrl.networks.symphony import SymphonyActor, SymphonyCritics, init_symphony_
from classicrl.replay.fading import FadingReplay, age_probs
from classicrl.types import ControlBatch

GAMMA, NOISE_STD, TARGET_RATE, LEARNING_RATE, WEIGHT_DECAY = 0.99, 1 / math.e, 0.005, 1e-4, 0.01
MEASURES = ("steps", "updates", "replay")


@dataclasses.dataclass(frozen=True)
class Size:
    """A variant of the paper."""

    hidden: int
    heads: int
    batch_size: int
    updates: int
    capacity: int


SIZES = {"s3": Size(512, 128, 384, 3, 512_000), "ed": Size(384, 96, 288, 2, 384_000)}


@dataclasses.dataclass(frozen=True)
class Config:
    """An environment step is a write, a draw and the updates of the size."""

    sizes: tuple[Literal["s3", "ed"], ...] = ("s3", "ed")
    """Of the networks, batches and replays."""
    obs_size: int = 376
    """Humanoid-v4's."""
    action_size: int = 17
    """Humanoid-v4's."""
    capacity: int = 0
    """Of both replays; 0: as the size says."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    threads: int = 0
    """CPU threads of torch; 0: all that this process may use."""
    peer: Literal["plain", "none"] = "plain"
    """none: classicrl alone."""
    repeats: int = 5
    """How often everything is measured."""
    steps: int = 10
    """Environment steps per repeat."""
    warmup_steps: int = 3
    """Environment steps before anything is measured."""
    seed: int = 0
    """Of everything random."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


# -- The two sides -----------------------------------------------------------------------------


class ClassicRL:
    """This package."""

    name = "classicrl"

    def __init__(self, config: Config, size: Size, capacity: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        actor = SymphonyActor(config.obs_size, config.action_size, size.hidden)
        critics = SymphonyCritics(config.obs_size, config.action_size, size.hidden, size.heads)
        for network in (actor, critics):
            init_symphony_(network, generator)
        self.learner = SymphonyLearner(
            actor.to(device), critics.to(device), noise_std=NOISE_STD, seed=config.seed
        )
        self.replay = FadingReplay(
            config.obs_size,
            config.action_size,
            warmup_steps=capacity // 50,
            replication=50,
            gamma=GAMMA,
            device=device,
            seed=config.seed,
        )
        self._transition = random_transition(config)
        for _ in range(self.replay.warmup_steps):
            self.write()
        self.replay.finish_warmup()
        for _ in range(capacity + self.replay.warmup_steps):  # every row is one of its own
            self.write()
        self._size = size
        self.batch = self.replay.sample(size.updates * size.batch_size)
        self._graph: CudaGraphUpdates | None = None
        if device.type == "cuda":
            self._graph = CudaGraphUpdates(
                self.learner,
                self.replay.sample,
                [self.replay.generator],
                batch_size=size.batch_size,
                num_updates=size.updates,
            )

    def write(self) -> None:
        self.replay.add(*self._transition)

    def step(self) -> None:
        self.write()
        if self._graph is not None:
            self._graph()
            return
        batch = self.replay.sample(self._size.updates * self._size.batch_size)
        self.learner.update(batch, self._size.updates)

    def update(self) -> None:
        self.learner.update(self.batch, self._size.updates)

    def use_replay(self) -> None:
        self.write()
        self.replay.sample(self._size.updates * self._size.batch_size)


class PlainGatedSine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_logit = nn.Parameter(torch.empty(width).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate_logit)
        f = gate * torch.sin(x / gate)
        return f * torch.sigmoid(1.5 * f / gate)


def plain_block(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.LayerNorm(hidden),
        nn.Linear(hidden, hidden),
        PlainGatedSine(hidden),
        nn.Linear(hidden, out_features),
    )


class Plain:
    """The equations as they stand."""

    name = "plain"

    def __init__(self, config: Config, size: Size, capacity: int, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        S, A = config.obs_size, config.action_size
        self.actor = plain_block(S, size.hidden, 3 * A).to(device)
        self.critics = nn.ModuleList(
            plain_block(S + A, size.hidden, size.heads) for _ in range(3)
        ).to(device)
        self.target = copy.deepcopy(self.critics).requires_grad_(False)
        self.parameters = [*self.actor.parameters(), *self.critics.parameters()]
        self.first_moments = [torch.zeros_like(p) for p in self.parameters]
        self.second_moments = [torch.zeros_like(p) for p in self.parameters]
        num_heads = 3 * size.heads
        k = torch.arange(num_heads, device=device)
        weights = torch.tanh((math.pi * (1 - k / num_heads)) ** math.e)
        self.head_weights = weights / weights.sum()
        self.value_ema = torch.zeros((), device=device)
        self.obs = torch.randn(capacity, S, device=device)
        self.action = torch.rand(capacity, A, device=device) * 2 - 1
        self.reward = torch.randn(capacity, 1, device=device)
        self.next_obs = torch.randn(capacity, S, device=device)
        self.discount = torch.full((capacity, 1), GAMMA, device=device)
        self.probs = torch.from_numpy(age_probs(capacity)).float()
        self._size = size
        self._transition = [
            torch.from_numpy(x).to(device) for x in random_transition(config) if x.ndim == 2
        ]
        self.batch = self.draw()

    def write(self) -> None:
        obs, action, next_obs = self._transition
        for name, value in (
            ("obs", obs),
            ("action", action),
            ("reward", 0.5),
            ("next_obs", next_obs),
            ("discount", GAMMA),
        ):
            shifted = torch.roll(getattr(self, name), -1, dims=0)
            shifted[-1] = value
            setattr(self, name, shifted)

    def draw(self) -> tuple[Tensor, ...]:
        indices = torch.multinomial(self.probs, self._size.batch_size, replacement=True)
        indices = indices.to(self.obs.device)
        fields = (self.obs, self.action, self.reward, self.next_obs, self.discount)
        return tuple(field[indices] for field in fields)

    def update_on(self, batch: tuple[Tensor, ...]) -> None:
        obs, action, reward, next_obs, discount = batch
        z0, z1, z2 = torch.tanh(self.actor(next_obs) / 2).chunk(3, dim=-1)
        sigma, beta = z1.abs(), z2.abs()
        noise = (NOISE_STD * torch.randn_like(z0)).clamp(-1, 1)
        next_action = torch.tanh(sigma * z0 + noise)
        inputs = torch.cat([next_obs, next_action], dim=1)
        heads = torch.cat([critic(inputs) for critic in self.target], dim=1)
        next_value = heads.sort(dim=1).values @ self.head_weights
        target = (reward[:, 0] + discount[:, 0] * next_value).detach()
        inputs = torch.cat([obs, action], dim=1)
        error = torch.cat([critic(inputs) for critic in self.critics], dim=1) - target[:, None]
        base = GOLDEN_DECAY * self.value_ema + (1 - GOLDEN_DECAY) * next_value.detach()
        advantage = (next_value - base) / base.abs().clamp_min(1e-3)
        s, b = sigma.clamp(1e-3, 1 - 1e-3), beta.clamp(1e-3, 1 - 1e-3)
        sharp = s ** (1 / b.detach())
        swaddling = (
            torch.log((1 + sharp) / (1 - sharp))
            + b * s * torch.log(s)
            + torch.log((1 + b**2) / (1 - b**2))
        )
        loss = (
            (error * torch.tanh(error / 2)).mean()
            - (advantage.abs() * torch.tanh(advantage / 2)).mean()
            + swaddling.mean()
        )
        self.value_ema = base.mean()
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter, m, v in zip(
                self.parameters, self.first_moments, self.second_moments, strict=True
            ):
                g = parameter.grad
                m.mul_(GOLDEN_DECAY).add_((1 - GOLDEN_DECAY) * g)
                v.mul_(1 - TARGET_RATE).add_(TARGET_RATE * g * g)
                step = m / (v.sqrt() + 1e-8) + WEIGHT_DECAY * parameter
                parameter.sub_(LEARNING_RATE * step)
            for averaged, online in zip(
                self.target.parameters(), self.critics.parameters(), strict=True
            ):
                averaged.mul_(1 - TARGET_RATE).add_(TARGET_RATE * online)

    def step(self) -> None:
        self.write()
        for _ in range(self._size.updates):
            self.update_on(self.draw())

    def update(self) -> None:
        for _ in range(self._size.updates):
            self.update_on(self.batch)

    def use_replay(self) -> None:
        self.write()
        for _ in range(self._size.updates):
            self.draw()


def random_transition(config: Config) -> tuple[Any, ...]:
    """One environment's step as :meth:`FadingReplay.add` takes it."""
    generator = torch.Generator().manual_seed(config.seed)
    obs, next_obs = torch.randn(2, 1, config.obs_size, generator=generator).numpy()
    action = torch.rand(1, config.action_size, generator=generator).numpy()
    no = torch.zeros(1, dtype=torch.bool).numpy()
    return obs, action, torch.full((1,), 0.5).numpy(), no, next_obs


# -- Measuring ---------------------------------------------------------------------------------


def times_in_a_row(job: Callable[[], object], count: int) -> None:
    for _ in range(count):
        job()


def measure_size(config: Config, name: str, device: torch.device) -> dict[str, Any]:
    size = SIZES[name]
    capacity = (config.capacity or size.capacity) // 50 * 50
    programs: list[Any] = [ClassicRL, Plain] if config.peer == "plain" else [ClassicRL]
    print(f"{name}: fills replays of {capacity:,}", flush=True)
    sides = [program(config, size, capacity, device) for program in programs]
    for side in sides:
        times_in_a_row(side.step, config.warmup_steps)
    jobs = {
        "steps": [side.step for side in sides],
        "updates": [side.update for side in sides],
        "replay": [side.use_replay for side in sides],
    }
    records: dict[str, dict[str, Any]] = {side.name: {} for side in sides}
    for measure, each in jobs.items():
        timings = alternately(
            [functools.partial(times_in_a_row, job, config.steps) for job in each],
            device,
            config.repeats,
        )
        for side, of_side in zip(sides, timings, strict=True):
            records[side.name][measure] = by_kind(of_side)
    own = sides[0]
    for side in sides:
        learner = side.learner if isinstance(side, ClassicRL) else side
        records[side.name]["num_parameters"] = sum(p.numel() for p in learner.parameters)
    return {
        "size": name,
        **dataclasses.asdict(size),
        "capacity": capacity,
        "sides": records,
        "split": split(own, size, device, config.repeats * config.steps),
        "floor_seconds": matrix_products(config, size, device, config.repeats),
        "flops": sum(2 * m * k * n for m, k, n in products(config, size)),
    }


def split(side: ClassicRL, size: Size, device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of the parts of one update."""
    learner = side.learner
    batch = ControlBatch(*(field[: size.batch_size] for field in side.batch))
    noise = torch.zeros(size.batch_size, learner.action_size, device=device)
    seconds: dict[str, list[float]] = {}

    def part(name: str, job: Callable[[], Any]) -> Any:
        results: list[Any] = []
        timing = timed(lambda: results.append(job()), device)
        seconds.setdefault(name, []).append(timing.wall_seconds)
        return results[0]

    for _ in range(repeats):
        terms, _ = part("forwards and losses", lambda: learner.loss_terms(batch, noise))
        learner.optimizer.zero_grad(set_to_none=True)
        part("backwards", sum(terms).backward)
        part("optimiser", learner.optimizer.step)
        with torch.no_grad():
            part(
                "target critics",
                lambda: torch._foreach_lerp_(learner._averaged, learner._online, TARGET_RATE),
            )
    return {name: statistics.median(values) for name, values in seconds.items()}


def products(config: Config, size: Size) -> list[tuple[int, int, int]]:
    """All matrix products ``[M, K] @ [K, N]`` of one update."""
    B, S, A, h = size.batch_size, config.obs_size, config.action_size, size.hidden
    layers = {
        "actor": [(S, h), (h, h), (h, 3 * A)],
        "critic": [(S + A, h), (h, h), (h, size.heads)],
    }
    found = []
    for kind, count in (("actor", 1), ("critic", 3)):
        for number, (inputs, outputs) in enumerate(layers[kind]):
            each = [(B, inputs, outputs), (outputs, B, inputs)]  # forwards; of the weights
            if number:
                each.append((B, outputs, inputs))  # of the input
            found += count * each
    for number, (inputs, outputs) in enumerate(layers["critic"]):  # the target: no weights
        found += 3 * [(B, inputs, outputs), (B, outputs, inputs if number else A)]
    return found


def matrix_products(
    config: Config, size: Size, device: torch.device, repeats: int
) -> dict[str, float]:
    """Seconds that the matrix products of one update take by themselves, best of some, in each
    library; ``best`` takes the faster one for each product."""
    libraries: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"blas": lambda a, b: a @ b.t()}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        libraries["onednn"] = lambda a, b: torch.ops.mkldnn._linear_pointwise(
            a, b, None, "none", [], ""
        )
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    for m, k, n in products(config, size):
        a, b = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        for name, product in libraries.items():
            product(a, b)
            job = functools.partial(product, a, b)
            seconds[name].append(min(timed(job, device).wall_seconds for _ in range(repeats)))
    totals = {name: sum(values) for name, values in seconds.items()}
    totals["best"] = sum(map(min, zip(*seconds.values(), strict=True)))
    return totals


def draws(config: Config, device: torch.device) -> list[dict[str, Any]]:
    """What one draw of 1,152 transitions costs, by capacity and by writes since the warm-up."""
    rows = []
    most = config.capacity or 512_000
    for capacity in (most // 64, most // 8, most):
        warmup = max(1, capacity // 50)
        replay = FadingReplay(
            11, 3, warmup_steps=warmup, replication=50, device=device, seed=config.seed
        )
        small = dataclasses.replace(config, obs_size=11, action_size=3)
        transition = random_transition(small)
        for _ in range(warmup):
            replay.add(*transition)
        replay.finish_warmup()
        for share in (0.0, 0.5, 1.5):
            while replay.num_writes < share * replay.capacity:
                replay.add(*transition)
            timings = [
                timed(lambda replay=replay: replay.sample(1_152), device).wall_seconds
                for _ in range(20 * config.repeats)
            ]
            rows.append(
                {
                    "capacity": replay.capacity,
                    "writes": replay.num_writes,
                    "seconds": statistics.median(timings),
                }
            )
    return rows


def measure(config: Config) -> dict[str, Any]:
    """Measures everything; returns the result as it is kept in JSON."""
    device = choose_device(config.device)
    set_threads(config.threads)
    began = time.perf_counter()
    return {
        **origin(config, device),
        "rows": [measure_size(config, name, device) for name in config.sizes],
        "draws": draws(config, device),
        "seconds": time.perf_counter() - began,
    }


# -- Showing -----------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    steps = result["config"]["steps"]
    has_peer = any("plain" in row["sides"] for row in result["rows"])
    header = ["", "classicrl", *(["plain", "ratio"] if has_peer else [])]
    speed, parts = [], []
    for row in result["rows"]:
        per_repeat = {"steps": steps, "updates": steps * row["updates"], "replay": steps}
        units = {"steps": "steps/s", "updates": "updates/s", "replay": "writes and draws/s"}
        for measure in MEASURES:
            rates = {
                side: [per_repeat[measure] / s for s in record[measure]["wall_seconds"]]
                for side, record in row["sides"].items()
            }
            cells = [f"{row['size']}: {units[measure]}", spread(rates["classicrl"], 2)]
            if has_peer:
                cells += [
                    spread(rates["plain"], 2),
                    spread(ratios(rates["classicrl"], rates["plain"]), 2),
                ]
            speed.append(tuple(cells))
        whole = sum(row["split"].values())
        for name, seconds in row["split"].items():
            parts.append(
                (f"{row['size']}: {name}", f"{1e3 * seconds:.2f}", f"{seconds / whole:.0%}")
            )
        floor = row["floor_seconds"]["best"]
        parts.append(
            (
                f"{row['size']}: its matrix products alone ({row['flops'] / 1e9:.2f} GFLOP)",
                f"{1e3 * floor:.2f}",
                f"{floor / whole:.0%}",
            )
        )
    config = result["config"]
    capacities = ", ".join(f"{row['size']} {row['capacity']:,}" for row in result["rows"])
    return [
        Table(
            f"Symphony, {config['obs_size']} observations, {config['action_size']} actions, full "
            f"replays ({capacities}), {result['threads']} threads: median (range) of "
            f"{config['repeats']} repeats",
            tuple(header),
            speed,
            ("A ratio above 1 is in favour of classicrl.",) if has_peer else (),
        ),
        Table(
            "Where the time of an update goes, and what its matrix products take by themselves",
            ("", "ms", "share"),
            parts,
        ),
        Table(
            "One draw of 1,152 transitions (11 observations, 3 actions)",
            ("capacity", "writes", "ms"),
            [
                (f"{row['capacity']:,}", f"{row['writes']:,}", f"{1e3 * row['seconds']:.2f}")
                for row in result["draws"]
            ],
        ),
    ]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads", "seed", "capacity"})
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "symphony", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
