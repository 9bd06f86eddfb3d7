"""The agents that the battery breaks: a row each, with a run of a second or two."""

import contextlib
import hashlib
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from script_process import AGENTS as SCRIPTS
from script_process import load_script

from classicrl import cube_solver
from classicrl.checkpoint import checkpoint_paths, load_model, read_checkpoint
from classicrl.loggers import read_csv
from classicrl.replay.chunks import decode

TIMES = {"charts/steps_per_second", "charts/wall_seconds", "charts/states_per_second"}


class Agent(NamedTuple):
    """One script, made small."""

    script: str
    settings: dict[str, Any]
    update: str  # what is called for every update: "module:Class.method"
    needs: str = "torch"  # a package without which it cannot run
    checkpoints: str = "."  # the directory below the run directory that holds checkpoints/
    results: tuple[str, ...] = (".",)  # those that hold metrics.csv

    def __str__(self) -> str:
        return self.script

    def run(self, directory: Path, **settings: Any) -> dict[str, Any]:
        """``main``, in this process."""
        script = load(self)
        config = script.Config(**{**self.settings, "run_dir": directory, **settings})
        with short_searches():
            summary: dict[str, Any] = script.main(config)
        return summary

    def checkpoint_directory(self, directory: Path) -> Path:
        return directory / self.checkpoints / "checkpoints"


_COMMON: dict[str, Any] = {
    "total_steps": 160,
    "device": "cpu",
    "threads": 1,
    "batch_size": 8,
    "replay_capacity": 2_000,
    "first_update_steps": 40,
    "epsilon_decay_steps": 100,
    "target_period_steps": 35,
    "log_period_steps": 20,
    "checkpoint_period_steps": 40,
    "evaluation_period_steps": 80,
    "evaluation_episodes": 1,
    "final_evaluation_episodes": 2,
}
_VALUE_UPDATE = "classicrl.algorithms.dqn:DQNLearner.update"

ALL = [
    Agent(
        "va_classic_control",
        {**_COMMON, "num_envs": 1, "num_seeds": 2, "seed": 3},
        _VALUE_UPDATE,
        checkpoints="seeds3-4",
        results=("seed3", "seed4"),
    ),
    Agent(
        "va_minatar",
        {**_COMMON, "num_envs": 2, "num_seeds": 2, "seed": 3},
        _VALUE_UPDATE,
        needs="minatar",
        checkpoints="seeds3-4",
        results=("seed3", "seed4"),
    ),
    Agent("dueling_dqn_atari", {**_COMMON, "num_envs": 1}, _VALUE_UPDATE, needs="ale_py"),
    Agent(
        "qstar_cube3_train",
        {
            "total_updates": 60,
            "threads": 1,
            "device": "cpu",
            "embedding_size": 24,
            "hidden_size": 16,
            "batch_size": 200,
            "walk_length": 9,
            "ball_depth": 3,
            "log_period_updates": 10,
            "evaluation_period_updates": 20,
            "evaluation_cubes": 1,
            "final_evaluation_cubes": 2,
            "evaluation_width": 8,
            "checkpoint_period_updates": 20,
            "target_period_updates": 7,
        },
        "classicrl.algorithms.q_iteration:QIterationLearner._step",
    ),
    Agent(
        "ppo_rnd_atari",
        {
            "total_steps": 48,
            "device": "cpu",
            "threads": 1,
            "num_envs": 1,
            "rollout_steps": 6,
            "warmup_rollouts": 2,
            "log_period_steps": 12,
            "checkpoint_period_steps": 12,
            "evaluation_period_steps": 24,
            "evaluation_episodes": 2,
            "final_evaluation_episodes": 2,
        },
        "classicrl.algorithms.ppo:PPOLearner.update",
        needs="ale_py",
    ),
    Agent(
        "symphony_mujoco",
        {
            "env_id": "Hopper-v5",
            "total_steps": 120,
            "device": "cpu",
            "threads": 1,
            "hidden": 16,
            "heads_per_critic": 4,
            "batch_size": 8,
            "warmup_steps": 40,
            "warmup_replication": 3,
            "updates_per_step": 2,
            "log_period_steps": 20,
            "checkpoint_period_steps": 30,
            "evaluation_period_steps": 60,
            "evaluation_episodes": 1,
            "final_evaluation_episodes": 2,
            "video": False,
        },
        "classicrl.algorithms.symphony:SymphonyLearner.update",
        needs="mujoco",
    ),
]


def rows(*names: str) -> list[Any]:
    """Parameters of a test, all agents or those named, skipped where they cannot run."""
    parameters = []
    for agent in ALL:
        if names and agent.script not in names:
            continue
        marks = []
        if not (SCRIPTS / f"{agent.script}.py").exists():
            marks.append(pytest.mark.skip(reason=f"there is no agents/{agent.script}.py"))
        elif importlib.util.find_spec(agent.needs) is None:
            marks.append(pytest.mark.skip(reason=f"requires {agent.needs}"))
        parameters.append(pytest.param(agent, id=agent.script, marks=marks))
    return parameters


def load(agent: Agent) -> Any:
    """Its script, with short games."""
    return load_script(agent.script)


@contextlib.contextmanager
def short_searches() -> Iterator[None]:
    """Networks that know nothing would climb the ladder of searches to its end for every cube."""
    before, cube_solver._MAX_WIDTH = cube_solver._MAX_WIDTH, 16
    try:
        yield
    finally:
        cube_solver._MAX_WIDTH = before


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
