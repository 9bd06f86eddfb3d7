"""Q* and training on the cube beside DeepXube 0.3.2, the package of the authors of Q*, same work.

    python3.11 -m venv /tmp/deepxube
    /tmp/deepxube/bin/pip install deepxube==0.3.2
    python benchmarks/beside_deepxube.py --peer-python /tmp/deepxube/bin/python

Its package runs in a process of its own (benchmarks/deepxube_peer.py). Networks are untrained and
have as many parameters within 10%: ours of one-hot rows added up, theirs `resnet_fc` on one-hot
stickers. Three kinds of work, alternately, each with the same threads:

    search   Q* on full scrambles until so many nodes are generated
    walk     states of random walks, generated and learnt: theirs `sup_q` (one label a state),
             ours two labels a state
    bellman  states of random walks, one action each, its target from the target network: theirs
             `graph_q` with one iteration a search

In a training, the start of processes is left out: two lengths are trained, and the difference of
their times belongs to the difference of their states.

Seconds are those that the processor worked for the program, its processes and threads together, so
they mean something also on a machine that has other work; --clock wall takes those of the clock.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from report import Table, keep, origin, ratios, show, spread

from classicrl.algorithms.q_iteration import QIterationLearner
from classicrl.command_line import exit_with, require_positive
from classicrl.domains.cube3 import Cube3
from classicrl.domains.cube3_walks import CubeWalks
from classicrl.errors import UserError
from classicrl.machine import set_threads
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.search import Perimeter, qstar

PEER = Path(__file__).resolve().parent / "deepxube_peer.py"
PATHFIND = {"walk": "sup_q", "bellman": "graph_q.1B_1.0W"}
TEMPERATURE = 1 / 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and lengths."""

    peer_python: Path = Path("python-with-deepxube")
    """Python of the environment where deepxube is installed."""
    peer_network: str = "resnet_fc.430H_2B"
    """Theirs, as their command line takes it."""
    embedding_size: int = 1024
    """Ours: units of the first layer."""
    hidden_size: int = 256
    """Units of the others."""
    num_blocks: int = 1
    """Residual blocks."""
    search_batch_sizes: tuple[int, ...] = (1_000, 10_000)
    """Pairs taken at a time."""
    weight: float = 0.6
    """Of the path cost."""
    max_nodes: int = 100_000
    """Of a search."""
    batch_size: int = 2_000
    """States per update."""
    updates: int = 20
    """Of the shorter training; the longer has three times as many. Theirs come in rounds of as
    many, each with states and a target network of its own."""
    walk_length: int = 26
    """Turns."""
    repeats: int = 3
    """Of everything."""
    threads: int = 1
    """For each process."""
    clock: Literal["cpu", "wall"] = "cpu"
    """Whose seconds the rates are of. Both are kept."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


def peer(config: Config, task: dict[str, Any]) -> dict[str, Any]:
    """What the other side found.

    Raises:
        UserError: it could not be started or failed; with its last line.
    """
    task = {"threads": config.threads, "network": config.peer_network, **task}
    command = [str(config.peer_python), str(PEER), json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--peer-python {config.peer_python} cannot be run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{PEER.name} under {config.peer_python} failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def fresh_network(config: Config, domain: Cube3) -> ByteQNetwork:
    """Ours, untrained."""
    return ByteQNetwork(
        domain.feature_offsets,
        domain.num_features,
        len(domain.sequences),
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        num_blocks=config.num_blocks,
        mean_output=config.walk_length / 2,
        generator=torch.Generator().manual_seed(0),
    )


def our_search(config: Config, batch_size: int, repeat: int) -> dict[str, float]:
    """One search."""
    domain = Cube3(12)
    network = fresh_network(config, domain).eval()
    start = domain.random_states(config.repeats, torch.Generator().manual_seed(0))[repeat]
    began = time.process_time()
    found = qstar(
        domain, network, start, weight=config.weight, batch_size=batch_size,
        max_nodes=config.max_nodes,
    )  # fmt: skip
    cpu_seconds = time.process_time() - began
    return {"count": found.num_generated, "wall": found.seconds, "cpu": cpu_seconds}


def their_search(config: Config, batch_size: int) -> dict[str, float]:
    """One search."""
    sizes = {"batch_size": batch_size, "weight": config.weight, "max_nodes": config.max_nodes}
    task = {"what": "search", "repeats": 1, **sizes}
    found = peer(config, task)
    (run,) = found["runs"]
    return {
        "count": run["nodes"],
        "wall": run["seconds"],
        "cpu": run["cpu_seconds"],
        "parameters": found["parameters"],
    }


def our_training(config: Config, kind: str) -> dict[str, float]:
    """So many updates, after as many that are not counted."""
    domain = Cube3(12)
    ball = Perimeter(domain, domain.goal, 4)
    generator = torch.Generator().manual_seed(0)
    walks = CubeWalks(domain, config.walk_length, ball, generator)
    learner = QIterationLearner(fresh_network(config, domain))
    at_once = max(2_000, 16 * config.batch_size // config.walk_length)

    def update() -> None:
        part = walks.batch(config.batch_size, at_once)
        if kind == "walk":
            learner.update_walk(part.states, part.actions, part.labels)
            return
        chances = torch.softmax(-learner.action_values(part.states) / TEMPERATURE, dim=1)
        actions = torch.multinomial(chances, 1, generator=generator)[:, 0]
        states = domain.apply(part.states, actions)
        target = 1.0 + torch.where(domain.is_goal(states), 0.0, learner.next_cost(states))
        learner.update_bellman(part.states, actions, target)

    learner.sync_target()
    for _ in range(config.updates):
        update()
    began, began_cpu = time.perf_counter(), time.process_time()
    for _ in range(2 * config.updates):
        update()
    return {
        "count": 2 * config.updates * config.batch_size,
        "wall": time.perf_counter() - began,
        "cpu": time.process_time() - began_cpu,
    }


def their_training(config: Config, kind: str) -> dict[str, float]:
    """The difference of a longer and a shorter training."""
    task = {
        "what": "train",
        "pathfind": PATHFIND[kind],
        "updates_per_round": config.updates,
        "walk_length": config.walk_length,
        "batch_size": config.batch_size,
    }
    short, long = (
        peer(config, {**task, "updates": [count]})["runs"][0]
        for count in (config.updates, 3 * config.updates)
    )
    return {
        "count": long["states"] - short["states"],
        "wall": long["seconds"] - short["seconds"],
        "cpu": long["cpu_seconds"] - short["cpu_seconds"],
    }


def measure(config: Config) -> dict[str, Any]:
    """Both sides, alternately; returns the result as it is kept in JSON."""
    set_threads(config.threads)
    kinds = [*(f"search {size}" for size in config.search_batch_sizes), *PATHFIND]
    result: dict[str, Any] = {
        **origin(config, torch.device("cpu")),
        "parameters": sum(p.numel() for p in fresh_network(config, Cube3(12)).parameters()),
        "runs": {kind: {"ours": [], "theirs": []} for kind in kinds},
    }
    del result["config"]["peer_python"]
    for repeat in range(config.repeats):
        for kind in kinds:
            if kind not in PATHFIND:
                size = int(kind.split()[1])
                ours, theirs = our_search(config, size, repeat), their_search(config, size)
                result["peer_parameters"] = int(theirs.pop("parameters"))
                if not 0.9 < result["peer_parameters"] / result["parameters"] < 1.1:
                    raise UserError(
                        f"{result['parameters']:,} and {result['peer_parameters']:,} parameters "
                        "are no equal networks: choose --peer-network or --embedding-size anew"
                    )
            else:
                ours, theirs = our_training(config, kind), their_training(config, kind)
            result["runs"][kind]["ours"].append(ours)
            result["runs"][kind]["theirs"].append(theirs)
            print(kind, "ours", ours, "theirs", theirs, file=sys.stderr, flush=True)
            if config.json is not None:
                keep(config.json, "beside_deepxube", result)
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    config = result["config"]
    clock = config["clock"]
    titles = {"walk": "training, walk labels: states", "bellman": "training, Bellman: states"}
    rows = []
    for kind, runs in result["runs"].items():
        if not runs["theirs"]:
            continue  # the benchmark was stopped before
        rates = {side: [run["count"] / run[clock] for run in found] for side, found in runs.items()}
        times = spread(ratios(rates["ours"], rates["theirs"]), 1)
        title = titles.get(kind) or f"Q*, batches of {int(kind.split()[1]):,}: nodes generated"
        rows.append((title, spread(rates["ours"]), spread(rates["theirs"]), times))
    seconds = "of processor" if clock == "cpu" else "of wall time"
    header = (f"per second {seconds}", "classicrl", "DeepXube 0.3.2", "ratio")
    notes = (
        f"{result['parameters']:,} and {result['peer_parameters']:,} parameters, untrained; "
        f"{config['threads']} thread(s) a process; searches of {config['max_nodes']:,} "
        f"nodes; updates of {config['batch_size']:,} states; "
        f"median (range) of {config['repeats']}.",
    )
    return [Table("Rubik's cube, 12 actions, beside DeepXube", header, rows, notes)]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"weight"}, at_most_one={"weight"})
    result = measure(config)
    show(tables(result))
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
