"""What an update costs for each member of the family: VA-learning beside dueling and the others.

All of them sample from the same replay of noise and make the updates of agents/va_atari.py and
agents/dueling_dqn_atari.py, in turn in every repeat. The ratio to uniform dueling is taken within a
repeat.

    python benchmarks/value_family.py --json benchmarks/results/my-machine.json
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
import update_profile
from report import Table, alternately, by_kind, keep, origin, ratios, show, spread

from classicrl.algorithms.dqn import FAMILY, DQNLearner
from classicrl.command_line import exit_with, require_positive
from classicrl.machine import choose_device, set_threads
from classicrl.networks import atari_q_network

BASELINE = "dueling"


@dataclasses.dataclass(frozen=True)
class Config:
    """The networks of Pong on frames of noise; the arithmetic does not depend on the pictures."""

    torsos: tuple[Literal["nature", "small"], ...] = ("nature", "small")
    """nature: 512 hidden units a stream. small: 256."""
    batch_size: int = 32
    """Transitions per update."""
    updates: int = 60
    """Updates of each member in a repeat."""
    repeats: int = 7
    """Of the whole comparison."""
    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    replay_capacity: int = 5_000
    """Frames."""
    seed: int = 0
    """Of everything random."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


def make_learner(torso: Literal["nature", "small"], member: str, device: torch.device) -> Any:
    """A member as the scripts make it."""
    recipe = FAMILY[member]
    head = "q-wide" if member == "dqn" else recipe.head
    network = atari_q_network(torso, head, update_profile.NUM_ACTIONS)
    return DQNLearner(
        network.to(device, memory_format=torch.channels_last),
        loss=recipe.loss,
        stream_penalty=recipe.stream_penalty,
    )


def measure(config: Config) -> dict[str, Any]:
    """Times all members with all torsos; returns the result as it is kept in JSON."""
    device = choose_device(config.device)
    set_threads(config.threads)
    replay = update_profile.make_replay(
        update_profile.Config(replay_capacity=config.replay_capacity, seed=config.seed)
    )
    torsos: dict[str, Any] = {}
    for torso in config.torsos:
        learners = {member: make_learner(torso, member, device) for member in FAMILY}

        def work(learner: DQNLearner) -> None:
            for _ in range(config.updates):
                batch = replay.sample(config.batch_size)
                learner.update(type(batch)(*(field.to(device) for field in batch)))

        jobs = [lambda own=learner: work(own) for learner in learners.values()]
        for job in jobs:
            job()
        timings = alternately(jobs, device, config.repeats)
        torsos[torso] = {
            member: {
                "num_parameters": sum(p.numel() for p in learners[member].parameters),
                **by_kind(timed),
            }
            for member, timed in zip(learners, timings, strict=True)
        }
    return {**origin(config, device), "torsos": torsos}


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    config = result["config"]
    found = []
    for torso, members in result["torsos"].items():
        base = members[BASELINE]["wall_seconds"]
        rows = []
        for member, timed in members.items():
            seconds = timed["wall_seconds"]
            rows.append(
                (
                    member,
                    f"{timed['num_parameters']:,}",
                    spread([1e3 * s / config["updates"] for s in seconds], 2),
                    spread(ratios(seconds, base), 3),
                )
            )
        found.append(
            Table(
                f"One update of {config['batch_size']} transitions with its sampling, {torso} "
                f"torso, {result['threads']} thread(s): median (range) of {config['repeats']} "
                "repeats",
                ("member", "parameters", "ms per update", f"ratio to {BASELINE}"),
                rows,
                ("A ratio above 1 is a cost.",),
            )
        )
    return found


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"seed", "threads"})
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "value_family", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
