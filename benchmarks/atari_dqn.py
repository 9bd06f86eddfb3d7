"""Speed of DQN on an Atari game: classicrl and stable-baselines3, side by side in one process.

Both train the same algorithm with the same settings: one network of one stream, plain maximum in
the target, Huber loss, Adam, one update per 4 steps whatever the number of environments. Sizes of
the networks and numbers of updates are counted on both sides, and the program fails if they differ.
docs/performance.md says what is compared and what is not.

    python benchmarks/atari_dqn.py --threads 2 --json benchmarks/results/my-machine.json

Three things are timed, each several times, the two sides in turn:

    training        the whole loop: acting, emulating, storing, sampling, updating
    updates         sampling and updating alone
    environments    the emulators and their preprocessing alone, under random actions
"""

import dataclasses
import functools
import gc
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import tyro
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

from classicrl.algorithms.dqn import DQNLearner
from classicrl.command_line import exit_with, require_positive
from classicrl.envs.atari import PROTOCOLS, make_atari
from classicrl.errors import RunFailure
from classicrl.evaluation import epsilon_greedy
from classicrl.loggers import EpisodeStatistics, MeanMetrics
from classicrl.machine import choose_device, set_threads
from classicrl.networks import atari_q_network
from classicrl.replay import ReplayBuffer
from classicrl.schedules import crossings

# The settings of the comparison. Those that are no flags are the same on both sides by definition.
LEARNING_RATE = 1e-4
ADAM_EPS = 1e-8
BATCH_SIZE = 32
GAMMA = 0.99
MAX_GRAD_NORM = 10.0
UPDATE_PERIOD_STEPS = 4
TARGET_PERIOD_STEPS = 1_000
EPSILON = 0.01

PEER = "stable-baselines3"
Measure = Literal["training", "updates", "environments"]
MEASURES: tuple[Measure, ...] = ("training", "updates", "environments")
UNITS = {"training": "steps/s", "updates": "updates/s", "environments": "steps/s"}


@dataclasses.dataclass(frozen=True)
class Config:
    """A step is one agent decision in one environment: 4 frames."""

    env_id: str = "ALE/Pong-v5"
    """Any game of ale-py; without sticky actions, a lost life ends the bootstrapped episode."""
    num_envs: tuple[int, ...] = (1, 8)
    """Games side by side: a row for each."""
    own_num_envs: tuple[int, ...] = ()
    """More rows, for classicrl alone."""
    torso: Literal["nature", "small"] = "nature"
    """nature: the network of 2015, 512 hidden units. small: that of 2013, 256."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    threads: int = 0
    """CPU threads of torch, OpenCV and the emulators; 0: all that this process may use."""
    peer: Literal["sb3", "none"] = "sb3"
    """none: measure classicrl alone."""
    repeats: int = 5
    """How often everything is measured."""
    steps: int = 1_600
    """Steps of training per repeat, with updates."""
    updates: int = 120
    """Updates alone per repeat."""
    play_steps: int = 2_000
    """Steps of the environments alone per repeat."""
    fill_steps: int = 10_000
    """Steps under random actions that go into the replay before anything is measured."""
    warmup_steps: int = 400
    """Steps of training before anything is measured."""
    replay_capacity: int = 100_000
    """Transitions. They take 0.7 GB in classicrl and, once full, 5.6 GB in stable-baselines3."""
    matrix_size: int = 2_048
    """Rows and columns in the matrix product that shows the machine's speed."""
    seed: int = 0
    """Of everything random."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


class Side(Protocol):
    """One of the two programs that are compared."""

    name: str
    network: nn.Module

    @property
    def num_updates(self) -> int:
        """Updates made so far."""

    def fill(self, steps: int) -> None:
        """Puts steps under random actions into the replay."""

    def train(self, steps: int) -> None:
        """Trains as the program always does."""

    def update(self, updates: int) -> None:
        """Samples and updates, grouped as in training."""

    def play(self, steps: int) -> None:
        """Steps the environments alone; no training afterwards."""

    def close(self) -> None:
        """Frees what it holds."""


class ClassicRL:
    """The loop of agents/dueling_dqn_atari.py, without evaluations, checkpoints and log files."""

    name = "classicrl"

    def __init__(self, config: Config, num_envs: int, device: torch.device, threads: int) -> None:
        self.envs = make_atari(
            config.env_id,
            num_envs,
            protocol=PROTOCOLS["classic"],
            seed=config.seed,
            num_threads=threads,
        )
        self.network = atari_q_network(
            config.torso, "q", self.envs.num_actions, seed=config.seed
        ).to(device, memory_format=torch.channels_last)
        self.learner = DQNLearner(
            self.network,
            learning_rate=LEARNING_RATE,
            adam_eps=ADAM_EPS,
            loss="huber",
            max_grad_norm=MAX_GRAD_NORM,
        )
        stack, *frame_shape = self.envs.obs_shape
        self.replay = ReplayBuffer(
            config.replay_capacity,
            tuple(frame_shape),
            num_envs,
            stack=stack,
            gamma=GAMMA,
            device=device,
            seed=config.seed,
        )
        self.num_envs = num_envs
        self.device = device
        self.explore_rng = np.random.default_rng([config.seed, 1])
        self.episodes = EpisodeStatistics(num_envs)
        self.means = MeanMetrics()
        self.step = 0
        self.num_updates = 0
        self.obs = self.envs.reset()

    def fill(self, steps: int) -> None:
        self._loop(steps, epsilon=1.0, updating=False)

    def train(self, steps: int) -> None:
        self._loop(steps, epsilon=EPSILON, updating=True)
        self.means.pop()  # the script logs them as often as a repeat lasts: they reach the host

    def _loop(self, steps: int, *, epsilon: float, updating: bool) -> None:
        end = self.step + steps
        while self.step < end:
            before, after = self.step, self.step + self.num_envs
            greedy = self.learner.act(torch.from_numpy(self.obs).to(self.device)).cpu().numpy()
            action = epsilon_greedy(greedy, epsilon, self.envs.num_actions, self.explore_rng)
            self.envs.send(action)

            due = crossings(before, after, UPDATE_PERIOD_STEPS)
            if due and updating:
                self._update(due)

            result = self.envs.recv()
            self.replay.add(
                self.obs[:, -1],
                action,
                np.sign(result.reward),
                result.terminated,
                result.ended,
                result.final_obs[:, -1],
            )
            self.obs = result.obs
            self.episodes.add(result.reward, result.ended)
            self.step = after
            if crossings(before, after, TARGET_PERIOD_STEPS):
                self.learner.sync_target()

    def _update(self, due: int) -> None:
        self.means.add(self.learner.update(self.replay.sample(due * BATCH_SIZE), num_updates=due))
        self.num_updates += due

    def update(self, updates: int) -> None:
        due = updates_at_once(self.num_envs)
        for _ in range(updates // due):
            self._update(due)
        self.means.pop()

    def play(self, steps: int) -> None:
        for _ in range(steps // self.num_envs):
            self.envs.step(self.explore_rng.integers(self.envs.num_actions, size=self.num_envs))

    def close(self) -> None:
        self.envs.close()


class StableBaselines3:
    """stable-baselines3's DQN, as benchmarks/sb3_dqn_atari.py sets it up."""

    name = PEER

    def __init__(self, config: Config, num_envs: int, device: torch.device, threads: int) -> None:
        import sb3_dqn_atari  # says itself what to install, if anything is missing

        sb3_dqn_atari.gymnasium.register_envs(sb3_dqn_atari.ale_py)
        sb3_dqn_atari.cv2.setNumThreads(threads)
        self._config = sb3_dqn_atari.Config(
            run_dir=Path(),  # nothing is written
            env_id=config.env_id,
            seed=config.seed,
            torso="nature" if config.torso == "nature" else "2013",
            n_envs=num_envs,
            threads=threads,
            device=str(device),
            buffer_size=config.replay_capacity,
            learning_starts_steps=config.fill_steps,
            learning_rate=LEARNING_RATE,
            batch_size=BATCH_SIZE,
            gamma=GAMMA,
            target_update_interval_steps=TARGET_PERIOD_STEPS,
            exploration_fraction=1e-9,  # before `learning_starts_steps` it acts at random anyway
            exploration_final_epsilon=EPSILON,
        )
        self.num_envs = num_envs
        self.env = sb3_dqn_atari.make_env(self._config, num_envs, config.seed)
        self.model = sb3_dqn_atari.make_model(self._config, self.env)
        self.network: nn.Module = self.model.q_net
        adam = self.model.policy.optimizer.defaults
        assert (adam["eps"], adam["lr"]) == (ADAM_EPS, LEARNING_RATE)
        assert self.model.max_grad_norm == MAX_GRAD_NORM

    @property
    def num_updates(self) -> int:
        return int(self.model._n_updates)

    def fill(self, steps: int) -> None:
        self.model.learn(steps, log_interval=None)

    def train(self, steps: int) -> None:
        self.model.learn(steps, log_interval=None, reset_num_timesteps=False)

    def update(self, updates: int) -> None:
        due = updates_at_once(self.num_envs)
        for _ in range(updates // due):
            self.model.train(gradient_steps=due, batch_size=BATCH_SIZE)

    def play(self, steps: int) -> None:
        rng = np.random.default_rng(self._config.seed)
        for _ in range(steps // self.num_envs):
            self.env.step(rng.integers(self.env.action_space.n, size=self.num_envs))

    def close(self) -> None:
        self.env.close()


def updates_at_once(num_envs: int) -> int:
    """Updates that fall due in one step of all environments, or 1 where that takes several."""
    return num_envs // math.gcd(UPDATE_PERIOD_STEPS, num_envs)


def rounded_up(steps: int, num_envs: int) -> int:
    """So many steps that updates and steps of all environments both come out even."""
    unit = math.lcm(UPDATE_PERIOD_STEPS, num_envs)
    return -(-steps // unit) * unit


# -- Arithmetic --------------------------------------------------------------------------------


def count_flops(network: nn.Module, obs: Tensor) -> tuple[int, int]:
    """Floating-point operations per observation: forwards, and backwards.

    Counted from the shapes of the convolutions and linear layers as they are run, two operations
    per multiplication; biases, ReLUs and the like are left out. Backwards a layer costs the
    gradient of its weights and that of its input, each as much as forwards; the first layer needs
    none of its input.
    """
    per_layer: list[int] = []

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        per_layer.append(2 * output[0].numel() * layer.weight[0].numel())

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            network(obs)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(per_layer), 2 * sum(per_layer) - per_layer[0]


# -- Measuring ---------------------------------------------------------------------------------


def measure(config: Config) -> dict[str, Any]:
    """Measures everything; returns the result as it is kept in JSON."""
    device = choose_device(config.device)
    threads = set_threads(config.threads)
    if config.peer == "sb3":
        import sb3_dqn_atari  # noqa: F401  if it is missing, better now than after the first row

    # Another program that is running can only make it look slower, so the best one counts.
    gflops = [matrix_product_gflops(device, config.matrix_size)]
    rows: list[dict[str, Any]] = []
    for all_envs, with_peer in (
        (config.num_envs, config.peer == "sb3"),
        (config.own_num_envs, False),
    ):
        for num_envs in all_envs:
            rows.append(measure_row(config, num_envs, device, threads, with_peer=with_peer))
            gflops.append(matrix_product_gflops(device, config.matrix_size))
    return {
        **origin(config, device),
        "settings": {
            "learning_rate": LEARNING_RATE,
            "adam_eps": ADAM_EPS,
            "batch_size": BATCH_SIZE,
            "gamma": GAMMA,
            "max_grad_norm": MAX_GRAD_NORM,
            "update_period_steps": UPDATE_PERIOD_STEPS,
            "target_period_steps": TARGET_PERIOD_STEPS,
            "epsilon": EPSILON,
        },
        "matrix_product_gflops": max(gflops),
        "rows": rows,
    }


def measure_row(
    config: Config, num_envs: int, device: torch.device, threads: int, *, with_peer: bool
) -> dict[str, Any]:
    """Both sides, or classicrl alone, with one number of environments."""
    steps = rounded_up(config.steps, num_envs)
    play_steps = rounded_up(config.play_steps, num_envs)
    group = updates_at_once(num_envs)
    updates = -(-config.updates // group) * group
    fill_steps = rounded_up(config.fill_steps, num_envs)
    config = dataclasses.replace(config, fill_steps=fill_steps)

    programs: list[Callable[..., Side]] = (
        [ClassicRL, StableBaselines3] if with_peer else [ClassicRL]
    )
    sides = [program(config, num_envs, device, threads) for program in programs]
    for side in sides:
        print(f"{num_envs} environments, {side.name}: fills its replay, warms up", flush=True)
        side.fill(fill_steps)
        if side.num_updates:
            raise RunFailure(f"{side.name} made {side.num_updates} updates before the first one")
        side.train(rounded_up(config.warmup_steps, num_envs))

    counted = [side.num_updates for side in sides]
    timings: dict[Measure, list[list[Timing]]] = {}
    timings["training"] = alternately(
        [functools.partial(side.train, steps) for side in sides], device, config.repeats
    )
    # What was counted, not what was asked for.
    counted = [side.num_updates - before for side, before in zip(sides, counted, strict=True)]
    timings["updates"] = alternately(
        [functools.partial(side.update, updates) for side in sides], device, config.repeats
    )
    timings["environments"] = alternately(
        [functools.partial(side.play, play_steps) for side in sides], device, config.repeats
    )

    obs = torch.zeros(1, 4, 84, 84, dtype=torch.uint8, device=device)
    records: dict[str, dict[str, Any]] = {}
    for i, side in enumerate(sides):
        forward, backward = count_flops(side.network, obs)
        records[side.name] = {
            "num_parameters": sum(p.numel() for p in side.network.parameters()),
            "training_updates": counted[i],
            "forward_flops": forward,
            "backward_flops": backward,
            **{name: by_kind(timings[name][i]) for name in MEASURES},
        }
        side.close()
    for same in ("num_parameters", "training_updates", "forward_flops", "backward_flops"):
        found = {name: record[same] for name, record in records.items()}
        if len(set(found.values())) != 1:
            raise RunFailure(f"the two sides do not do the same: {same} is {found}")
    if counted[0] != config.repeats * steps // UPDATE_PERIOD_STEPS:
        raise RunFailure(f"{counted[0]} updates in {config.repeats} x {steps} steps")
    del sides, side
    gc.collect()  # a replay of gigabytes should not wait for its turn
    return {
        "num_envs": num_envs,
        "per_repeat": {"training": steps, "updates": updates, "environments": play_steps},
        "sides": records,
    }


# -- Showing -----------------------------------------------------------------------------------


def rates(row: dict[str, Any], side: str, name: Measure) -> list[float]:
    """Steps or updates per second, one per repeat."""
    return [row["per_repeat"][name] / s for s in row["sides"][side][name]["wall_seconds"]]


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    speed, arithmetic = [], []
    header = ["", ClassicRL.name]
    if any(PEER in row["sides"] for row in result["rows"]):
        header += [PEER, "ratio"]
    peak = result["matrix_product_gflops"] * 1e9
    for row in result["rows"]:
        envs = f"{row['num_envs']} env" + ("s" if row["num_envs"] > 1 else "")
        for name in MEASURES:
            own = rates(row, ClassicRL.name, name)
            cells = [f"{envs}: {name}, {UNITS[name]}", spread(own)]
            if PEER in row["sides"]:
                peer = rates(row, PEER, name)
                cells += [spread(peer), spread(ratios(own, peer), 2)]
            cells += [""] * (len(header) - len(cells))
            speed.append(tuple(cells))
        for name, record in row["sides"].items():
            forward, backward = record["forward_flops"], record["backward_flops"]
            # Forwards by the target and by the online network, then backwards.
            update = result["settings"]["batch_size"] * (2 * forward + backward)
            step = forward + update / result["settings"]["update_period_steps"]
            training = statistics.median(rates(row, name, "training"))
            updating = statistics.median(rates(row, name, "updates"))
            faults = statistics.median(record["updates"]["page_faults"])
            arithmetic.append(
                (
                    f"{envs}: {name}",
                    f"{record['num_parameters']:,}",
                    f"{record['training_updates']:,}",
                    f"{update / 1e9:.2f}",
                    f"{1e3 / updating:.2f}",
                    f"{updating * update / peak:.0%}",
                    f"{faults / row['per_repeat']['updates']:,.0f}",
                    f"{step / 1e9:.2f}",
                    f"{training * step / peak:.0%}",
                )
            )
    config = result["config"]
    return [
        Table(
            f"DQN on {config['env_id']}, {config['torso']} torso, {result['threads']} threads: "
            f"median (range) of {config['repeats']} repeats",
            tuple(header),
            speed,
            ("A ratio above 1 is in favour of classicrl.",) if PEER in header else (),
        ),
        Table(
            "The arithmetic, and how much of the machine's speed in a float32 matrix product "
            f"({result['matrix_product_gflops']:,.0f} GFLOP/s) it is done at",
            (
                "",
                "parameters",
                "updates made",
                "GFLOP per update",
                "ms per update",
                "of the limit",
                "page faults per update",
                "GFLOP per step",
                "of the limit, training",
            ),
            arithmetic,
        ),
    ]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads", "seed"})
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "atari_dqn", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
