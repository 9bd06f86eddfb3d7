"""Run directories as the agents and the peers leave them, without the training."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classicrl.checkpoint import save_model
from classicrl.networks import atari_q_network

PONG_ACTIONS = 6


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_run(
    directory: Path,
    *,
    seed: int,
    total_steps: int = 7_000,
    period_steps: int = 500,
    summary: dict[str, Any] | None = None,
    finished: bool = True,
    **settings: Any,
) -> Path:
    """A run of ours: rising returns, the first row without one, two evaluations."""
    directory.mkdir(parents=True)
    steps = list(range(period_steps, total_steps + 1, period_steps))
    returns = [round(-21 + step / 1_000 + seed, 3) for step in steps]
    write_table(
        directory / "metrics.csv",
        {
            "step": steps,
            "charts/episodic_return": ["", *returns[1:]],
            "charts/wall_seconds": [step / 100 for step in steps],
            "losses/td": [0.5 - step / 1e5 for step in steps],
        },
    )
    write_table(
        directory / "evaluations.csv",
        {
            "step": [total_steps // 2, total_steps],
            "mean_return": [-20.0 + seed, -15.0 + seed],
            "std_return": [1.5, 2.5],
            "episodes": [4, 9],
            "epsilon": [0.01, 0.01],
        },
    )
    config = {
        "preset": "cpu",
        "env_id": "ALE/Pong-v5",
        "protocol": "classic",
        "total_steps": total_steps,
        "seed": seed,
        "num_envs": 8,
        "threads": seed + 1,
        "run_dir": str(directory),
        "double": False,
        "gamma": 0.99,
    } | settings
    record = {"config": config, "versions": {"commit": "c0ffee" * 6}, "changes": []}
    (directory / "config.json").write_text(json.dumps(record))
    if finished:
        known = {
            "agent": "dueling_dqn_atari",
            "env_id": config["env_id"],
            "protocol": config["protocol"],
            "seed": seed,
            "total_steps": total_steps,
            "eval": {
                "mean_return": -15.0 + seed,
                "std_return": 2.5,
                "episodes": 9,
                "epsilon": 0.01,
                "max_frames_per_episode": 108_000,
            },
            "wall_seconds": total_steps / 100,
            "machine": "2 cores | a test",
        } | (summary or {})
        (directory / "summary.json").write_text(json.dumps(known))
    return directory


def write_peer(directory: Path, *, seed: int, total_steps: int = 5_000) -> Path:
    """A run of the peer, which has no config.json and does not say its protocol."""
    directory.mkdir(parents=True)
    steps = list(range(1_000, total_steps + 1, 1_000))
    write_table(
        directory / "metrics.csv",
        {
            "step": steps,
            "episodic_return": ["", *(-20.0 + step / 2_000 for step in steps[1:])],
            "loss": [0.1] * len(steps),
            "wall_seconds": [step / 50 for step in steps],
        },
    )
    evaluations = {"step": [total_steps], "mean_return": [-17.0], "std_return": [2.0]}
    write_table(directory / "evaluations.csv", evaluations | {"episodes": [5], "epsilon": [0.01]})
    scores = {"mean_return": -17.0, "std_return": 2.0, "episodes": 5, "epsilon": 0.01}
    summary = {
        "agent": "sb3-dqn",
        "env_id": "ALE/Pong-v5",
        "seed": seed,
        "completed": True,
        "total_steps": total_steps,
        "eval": scores,
        "wall_seconds": total_steps / 50,
        "config": {"torso": "2013", "seed": seed, "run_dir": "somewhere", "buffer_size": 100_000},
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def write_minatar(
    directory: Path,
    *,
    member: str,
    game: str,
    seed: int,
    score: float,
    total_steps: int = 1_000_000,
    num_seeds: int = 2,
) -> Path:
    """A seed of agents/va_minatar.py, which trains several in a process: it rises to its score."""
    scores = {"mean_return": score, "std_return": 2.0, "episodes": 100, "epsilon": 0.01}
    write_run(
        directory,
        seed=seed,
        total_steps=total_steps,
        period_steps=total_steps // 4,
        summary={"agent": f"va_minatar-{member}", "eval": scores, "num_seeds": num_seeds},
        preset=None,
        env_id=f"MinAtar/{game}-v1",
        protocol="minatar",
        num_envs=4,
        num_seeds=1,  # that which trains this seed alone
    )
    steps = list(range(total_steps // 10, total_steps + 1, total_steps // 10))
    write_table(
        directory / "evaluations.csv",
        {
            "step": steps,
            "mean_return": [score * step / total_steps for step in steps],
            "std_return": [2.0] * 10,
            "episodes": [20] * 9 + [100],
            "epsilon": [0.01] * 10,
        },
    )
    return directory


def write_model(
    path: Path, *, num_actions: int = PONG_ACTIONS, step: int = 7_000, **card: str
) -> Path:
    """Random weights of a small dueling network, as training leaves them."""
    network = atari_q_network("small", "dueling", num_actions, seed=3)
    metadata = {
        "agent": "dueling_dqn_atari",
        "env_id": "ALE/Pong-v5",
        "protocol": "classic",
        "torso": "small",
        "head": "dueling",
        "step": str(step),
    }
    save_model(path, network.state_dict(), metadata | card)
    return path


def set_weight(path: Path, name: str, value: float) -> None:
    """Overwrites one tensor of a model file."""
    from classicrl.checkpoint import load_model

    tensors, metadata = load_model(path)
    tensors[name] = torch.full_like(tensors[name], value)
    save_model(path, tensors, metadata)


def colours_of(path: Path) -> set[tuple[int, int, int]]:
    """Every colour of a picture."""
    from PIL import Image

    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return {(int(r), int(g), int(b)) for r, g, b in np.unique(pixels, axis=0)}
