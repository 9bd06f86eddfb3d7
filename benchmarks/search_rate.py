"""How fast Q* generates nodes, whether that falls as a search grows, and what a node takes.

One search that is not allowed to end, so that it grows to --max-nodes: the rate in each part of it,
the network's share of the time, and memory. Beside it the rate of the network alone.

    python benchmarks/search_rate.py --json benchmarks/results/my-machine.json
"""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from report import Table, keep, origin, show, spread

from classicrl.command_line import exit_with, require_positive
from classicrl.cube_solver import load_network, shipped_network
from classicrl.domains.cube3 import Cube3
from classicrl.errors import UserError
from classicrl.machine import choose_device, set_threads
from classicrl.networks.byte_q_network import ByteQNetwork
from classicrl.search import Progress, qstar


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and lengths."""

    network: Path | None = None
    """A model file. Default: the one in the package."""
    batch_size: int = 10_000
    """Pairs taken at a time."""
    weight: float = 0.8
    """Of the path cost."""
    max_nodes: int = 5_000_000
    """Of the search."""
    parts: int = 5
    """Of the search, each with a rate of its own."""
    repeats: int = 3
    """Searches, from different cubes."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


class Endless(Cube3):
    """A cube that is never solved."""

    def is_goal(self, states: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(states), dtype=torch.bool, device=states.device)


def measure(config: Config) -> dict[str, Any]:
    """Searches; returns the result as it is kept in JSON."""
    set_threads(config.threads)
    device = choose_device(config.device)
    domain = Endless(12, device=device)
    loaded = load_network(config.network or shipped_network(12), device)
    if loaded.is_value:
        raise UserError(f"--network {config.network} must be a network of Q; it is one of V")
    network = loaded.network
    starts = domain.random_states(config.repeats, torch.Generator().manual_seed(0))
    searches = []
    for start in starts:
        points = [(0, 0.0)]

        def note(now: Progress, points: list[tuple[int, float]] = points) -> None:
            if now.num_generated >= len(points) * config.max_nodes / config.parts:
                points.append((now.num_generated, now.seconds))

        found = qstar(
            domain, network, start, weight=config.weight, batch_size=config.batch_size,
            max_nodes=config.max_nodes, progress=note,
        )  # fmt: skip
        rates = [(n1 - n0) / (t1 - t0) for (n0, t0), (n1, t1) in itertools.pairwise(points)]
        searches.append(
            {
                "rates": rates,
                "nodes_per_second": found.num_generated / found.seconds,
                "network_share": found.network_seconds / found.seconds,
                "evaluated_share": found.num_evaluated / found.num_generated,
                "bytes_per_node": (found.num_bytes - found.row_bytes) / found.num_generated,
                "row_bytes_per_node": found.row_bytes / found.num_generated,
            }
        )
    return {
        **origin(config, device),
        "parameters": sum(p.numel() for p in network.parameters()),
        "network_states_per_second": network_rate(network, starts[0]),
        "searches": searches,
    }


@torch.inference_mode()
def network_rate(network: ByteQNetwork, start: torch.Tensor) -> float:
    """States per second of the network alone, in the chunks that a search gives it."""
    states = start.repeat(4096, 1)
    for _ in range(3):
        network(states)
    begin, passes = time.perf_counter(), 20
    for _ in range(passes):
        network(states)
    return passes * len(states) / (time.perf_counter() - begin)


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    searches, config = result["searches"], result["config"]
    part = config["max_nodes"] // config["parts"]

    def over(name: str, digits: int = 0) -> str:
        return spread([search[name] for search in searches], digits)

    rows = [
        (
            f"nodes/s from {i * part:,} to {(i + 1) * part:,}",
            spread([search["rates"][i] for search in searches]),
        )
        for i in range(min(len(search["rates"]) for search in searches))
    ]
    last = [search["rates"][-1] / search["rates"][0] for search in searches]
    rows += [
        ("nodes/s in all", over("nodes_per_second")),
        ("last part's rate over the first's", spread(last, 2)),
        ("states/s of the network alone", f"{result['network_states_per_second']:,.0f}"),
        ("the network's share of the time", over("network_share", 2)),
        ("states evaluated per node", over("evaluated_share", 2)),
        ("bytes per node, without its row of Q", over("bytes_per_node", 1)),
        ("bytes of the row of Q per node", over("row_bytes_per_node", 1)),
    ]
    title = (
        f"Q* with {result['parameters']:,} parameters, batches of {config['batch_size']:,}, "
        f"{result['threads']} thread(s): median (range) of {config['repeats']} searches"
    )
    return [Table(title, ("", "classicrl"), rows)]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads", "weight"}, at_most_one={"weight"})
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "search_rate", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
