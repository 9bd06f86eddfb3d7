"""The agents that the battery breaks: a row each, with a run of a second or two."""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from script_process import load_script
from small_runs import ALL as SMALL
from small_runs import Small as Agent
from small_runs import scripts, short_searches

from classicrl.checkpoint import checkpoint_paths, load_model, read_checkpoint
from classicrl.loggers import read_csv
from classicrl.replay.chunks import decode

__all__ = ["ALL", "Agent", "digest", "end_of", "load", "rows", "short_searches"]

TIMES = {"charts/steps_per_second", "charts/wall_seconds", "charts/states_per_second"}

# Longer, so that a run can be broken at several places; and with one environment where several are
# not continued exactly.
_LONGER: dict[str, dict[str, Any]] = {
    "va_classic_control": {"total_steps": 160, "evaluation_period_steps": 80},
    "va_minatar": {"total_steps": 160, "evaluation_period_steps": 80},
    "dueling_dqn_atari": {"total_steps": 160, "evaluation_period_steps": 80, "num_envs": 1},
    "qstar_cube3_train": {
        "total_updates": 60,
        "log_period_updates": 10,
        "evaluation_period_updates": 20,
        "checkpoint_period_updates": 20,
    },
    "ppo_rnd_atari": {"num_envs": 1},
    "symphony_mujoco": {
        "env_id": "Hopper-v5",
        "total_steps": 120,
        "evaluation_period_steps": 60,
        "obs_norm": False,
    },
}

ALL = [
    small._replace(
        settings={**small.settings, **_LONGER[small.script]},
        needs="mujoco" if small.script == "symphony_mujoco" else small.needs,
    )
    for small in SMALL
    if small.script in _LONGER
]


def rows(*names: str) -> list[Any]:
    """Parameters of a test, all agents or those named, skipped where they cannot run."""
    return scripts([agent for agent in ALL if not names or agent.script in names])


def load(agent: Agent) -> Any:
    """Its script, with short games."""
    return load_script(agent.script)


# -- where a run has come to, to the bit -----------------------------------------------------------


def end_of(agent: Agent, directory: Path) -> dict[str, str]:
    """Hashes of all that a run has left, but for times: figures, weights, and its last state."""
    end: dict[str, str] = {}
    for name in agent.results:
        metrics = read_csv(directory / name / "metrics.csv")
        kept = {column: metrics[column] for column in metrics if column not in TIMES}
        end[f"{name} metrics"] = digest(kept)
        end[f"{name} evaluations"] = digest((directory / name / "evaluations.csv").read_bytes())
        # By what it holds: safetensors writes the entries of a header in any order.
        tensors, card = load_model(directory / name / "model.safetensors")
        end[f"{name} model"] = digest([dict(sorted(tensors.items())), dict(sorted(card.items()))])
    store = agent.checkpoint_directory(directory)
    state = read_checkpoint(checkpoint_paths(store)[-1]).state
    state["count"].pop("seconds")
    for k, replay in enumerate(state.pop("replays", [])):
        end[f"replay {k}"] = digest(replay["buffer"])
        several = len(list((store / "replay").glob("[0-9]"))) > 0
        archive = store / "replay" / str(k) if several else store / "replay"
        end[f"replay {k} rows"] = digest(rows_of(archive, replay, agent.settings))
    return end | {f"state {name}": digest(part) for name, part in state.items()}


def rows_of(directory: Path, replay: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
    """Every field of all rows that the replay holds, however they were cut into files."""
    oldest = max(0, replay["buffer"]["next_id"] - settings["replay_capacity"])
    found = []
    for _, _, name, _ in replay["archive"]["chunks"]:
        chunk = decode(directory / name)
        kept = slice(max(0, oldest - chunk.first_id), None)
        found.append([field[kept] for field in chunk[1:]])
    return [np.concatenate(fields) for fields in zip(*found, strict=True)]


def digest(value: Any) -> str:
    """A hash of a tree of plain values, by type, order and bit."""
    sha = hashlib.sha256()
    for part in _parts(value):
        sha.update(part)
    return sha.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    yield type(value).__name__.encode()
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(key)
            yield from _parts(item)
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, float):
        yield struct.pack("d", value)
    else:
        yield repr(value).encode()
