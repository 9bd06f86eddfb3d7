"""Linear layers: torch's, which go to its BLAS, beside those of classicrl, which go to oneDNN.

The first layers of the heads in agents/, forwards and backwards, on a CPU; in turn in every repeat.

    python benchmarks/linear_layers.py --json benchmarks/results/my-machine.json
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from report import Table, alternately, by_kind, keep, origin, ratios, show, spread
from torch import nn

from classicrl.command_line import exit_with, require_positive
from classicrl.machine import set_threads
from classicrl.networks import Linear

LAYERS = {
    "Nature torso, two streams": (3136, 1024),
    "small torso, two streams": (2592, 512),
    "MinAtar, two streams": (1024, 256),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and lengths."""

    batch_size: int = 32
    """Rows."""
    passes: int = 100
    """Forwards and backwards, per repeat."""
    repeats: int = 7
    """Of the whole comparison."""
    threads: int = 0
    """CPU threads; 0: all that this process may use."""
    json: Path | None = None
    """Keep the result in this file; other benchmarks' results in it stay."""


def measure(config: Config) -> dict[str, Any]:
    """Times both for every layer; returns the result as it is kept in JSON."""
    set_threads(config.threads)
    device = torch.device("cpu")
    layers: dict[str, Any] = {}
    for name, (in_features, out_features) in LAYERS.items():
        x = torch.randn(config.batch_size, in_features, requires_grad=True)
        gradient = torch.randn(config.batch_size, out_features)

        def passes(layer: nn.Module) -> Callable[[], None]:
            def run() -> None:
                for _ in range(config.passes):
                    layer.zero_grad()
                    layer(x).backward(gradient)  # noqa: B023 run before the loop goes on

            return run

        jobs = [passes(kind(in_features, out_features)) for kind in (Linear, nn.Linear)]
        for job in jobs:
            job()
        own, of_torch = alternately(jobs, device, config.repeats)
        layers[name] = {
            "in_features": in_features,
            "out_features": out_features,
            "classicrl": by_kind(own),
            "torch": by_kind(of_torch),
        }
    return {**origin(config, device), "layers": layers}


def tables(result: dict[str, Any]) -> list[Table]:
    """What a result says, as text."""
    config, rows = result["config"], []
    for name, layer in result["layers"].items():
        # Three products: forwards, and the gradients of the input and of the weights.
        size = config["batch_size"] * layer["in_features"] * layer["out_features"]
        operations = 3 * 2 * size * config["passes"]
        own, of_torch = layer["classicrl"]["wall_seconds"], layer["torch"]["wall_seconds"]
        rows.append(
            (
                f"{name}: {layer['in_features']} to {layer['out_features']}",
                spread([operations / s / 1e9 for s in own]),
                spread([operations / s / 1e9 for s in of_torch]),
                spread(ratios(of_torch, own), 2),
            )
        )
    return [
        Table(
            f"Batches of {config['batch_size']}, {result['threads']} thread(s): median (range) of "
            f"{config['repeats']} repeats",
            ("GFLOP/s, forwards and backwards", "classicrl", "torch", "ratio"),
            rows,
            ("A ratio above 1 is in favour of classicrl.",),
        )
    ]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, keeps."""
    require_positive(config, may_be_zero={"threads"})
    result = measure(config)
    show(tables(result))
    if config.json is not None:
        keep(config.json, "linear_layers", result)
        print(f"kept in {config.json}; python benchmarks/report.py writes docs/performance.md")
    return result


if __name__ == "__main__":
    exit_with(main, tyro.cli(Config, description=__doc__))
