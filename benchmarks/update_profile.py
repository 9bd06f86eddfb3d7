"""Where the time of one DQN update goes, operator by operator.

Samples and updates as a training run does, under torch's profiler, and adds up the CPU time that
each operator takes by itself. The replay's own work in numpy is no operator; it is what is left.

    python benchmarks/update_profile.py --json benchmarks/results/my-machine.json
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from report import Table, keep, origin, show
from torch.profiler import ProfilerActivity, profile

from classicrl.algorithms.dqn import DQNLearner
from classicrl.command_line import exit_with, require_positive
from classicrl.machine import set_threads
from classicrl.networks import atari_q_network
from classicrl.replay import ReplayBuffer

NUM_ACTIONS = 6


@dataclasses.dataclass(frozen=True)
class Config:
    """The networks of Pong on frames of noise; the arithmetic does not depend on the pictures."""

    torso: Literal["nature", "small"] = "nature"
    """nature: 512 hidden units. small: 256."""
    head: Literal["q", "dueling"] = "q"
    """One stream, or two."""
    batch_size: int = 32
    """Transitions per update."""
    updates: int = 100
    """Updates under the profiler."""
    threads: int = 1
    """CPU threads; with one, CPU time adds up to the time of the update."""
    replay_capacity: int = 10_000
    """Frames."""
    smallest_share: float = 0.01
    """Operators with less than this share of the time are put together in one row."""
    seed: int = 0
    """Of everything random."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


def make_learner(config: Config) -> DQNLearner:
    """The learner, on the CPU."""
    network = atari_q_network(config.torso, config.head, NUM_ACTIONS, seed=config.seed)
    network = network.to(memory_format=torch.channels_last)
    return DQNLearner(network, loss="huber", max_grad_norm=10.0)


def make_replay(config: Config) -> ReplayBuffer:
    """A full replay of 8 environments' noise; an episode ends every thousand steps or so."""
    num_envs = 8
    rng = np.random.default_rng(config.seed)
    replay = ReplayBuffer(config.replay_capacity, (84, 84), num_envs, stack=4, seed=config.seed)
    while len(replay) < config.replay_capacity:
        ended = rng.random(num_envs) < 1e-3
        replay.add(
            rng.integers(256, size=(num_envs, 84, 84), dtype=np.uint8),
            rng.integers(NUM_ACTIONS, size=num_envs),
            rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=num_envs),
            ended,
            ended,
            rng.integers(256, size=(int(ended.sum()), 84, 84), dtype=np.uint8),
        )
    return replay


def measure(config: Config) -> dict[str, Any]:
    """Profiles; returns the result as it is kept in JSON."""
    set_threads(config.threads)
    replay, learner = make_replay(config), make_learner(config)

    def once() -> None:
        learner.update(replay.sample(config.batch_size))

    for _ in range(10):
        once()
    # The profiler slows everything down, so the time of an update is taken without it.
    sample_seconds, update_seconds = [], []
    for _ in range(config.updates):
        start = time.process_time()
        batch = replay.sample(config.batch_size)
        sampled = time.process_time()
        learner.update(batch)
        sample_seconds.append(sampled - start)
        update_seconds.append(time.process_time() - sampled)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(config.updates):
            once()
    operators = {
        event.key: {
            "calls_per_update": event.count / config.updates,
            "milliseconds_per_update": event.self_cpu_time_total / 1e3 / config.updates,
        }
        for event in profiler.key_averages()
    }
    return {
        **origin(config, torch.device("cpu")),
        "sample_milliseconds": 1e3 * statistics.median(sample_seconds),
        "update_milliseconds": 1e3 * statistics.median(update_seconds),
        "operators": operators,
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    config, operators = result["config"], result["operators"]
    total = sum(o["milliseconds_per_update"] for o in operators.values())
    rows, rest, rest_names = [], 0.0, 0
    for name, o in sorted(operators.items(), key=lambda i: -i[1]["milliseconds_per_update"]):
        share = o["milliseconds_per_update"] / total
        if share < config["smallest_share"]:
            rest, rest_names = rest + share, rest_names + 1
            continue
        calls, milliseconds = o["calls_per_update"], o["milliseconds_per_update"]
        rows.append((f"`{name}`", f"{calls:.3g}", f"{milliseconds:.3f}", f"{share:.1%}"))
    rows.append((f"{rest_names} others", "", f"{rest * total:.3f}", f"{rest:.1%}"))
    rows.append(("together", "", f"{total:.3f}", "100.0%"))
    return [
        Table(
            f"One update of {config['batch_size']} transitions, {config['torso']} torso, "
            f"{config['head']} head, {result['threads']} thread(s)",
            ("operator", "calls", "ms under the profiler", "share"),
            rows,
            (
                "CPU time without the profiler, medians: sampling "
                f"{result['sample_milliseconds']:.2f} ms, updating "
                f"{result['update_milliseconds']:.2f} ms.",
            ),
        )
    ]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"seed"})
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "update_profile", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
