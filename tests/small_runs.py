"""Every training script, with a run of a second: what tests over all scripts share."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from script_process import CI, load_script

from classicrl import cube_solver


class Small(NamedTuple):
    """A script, made small."""

    script: str
    settings: dict[str, Any]
    needs: str = "torch"  # a package without which it cannot run
    shared: str = "."  # the directory below the run directory that holds checkpoints/
    results: tuple[str, ...] = (".",)  # those that hold metrics.csv and the model
    wrong: tuple[tuple[str, Any], ...] = ()  # settings that make another network of it
    update: str = ""  # what is called for every update: "module:Class.method"

    def __str__(self) -> str:
        return self.script

    def run(self, directory: Path, **settings: Any) -> dict[str, Any]:
        """``main``, in this process."""
        script = load_script(self.script)
        config = script.Config(**{**self.settings, "run_dir": directory, **settings})
        with short_searches():
            summary: dict[str, Any] = script.main(config)
        return summary

    def checkpoint_directory(self, directory: Path) -> Path:
        return directory / self.shared / "checkpoints"


@contextlib.contextmanager
def short_searches() -> Iterator[None]:
    """Networks that know nothing would climb the ladder of searches to its end for every cube."""
    before, cube_solver._MAX_WIDTH = cube_solver._MAX_WIDTH, 16
    try:
        yield
    finally:
        cube_solver._MAX_WIDTH = before


_VALUE: dict[str, Any] = {
    "total_steps": 80,
    "device": "cpu",
    "threads": 1,
    "batch_size": 8,
    "replay_capacity": 2_000,
    "first_update_steps": 40,
    "epsilon_decay_steps": 100,
    "target_period_steps": 35,
    "log_period_steps": 30,  # neither this nor those below divide the end
    "checkpoint_period_steps": 40,
    "evaluation_period_steps": 40,
    "evaluation_episodes": 1,
    "final_evaluation_episodes": 2,
}
_VALUE_UPDATE = {"update": "classicrl.algorithms.dqn:DQNLearner.update"}
_SEEDS: dict[str, Any] = {"num_seeds": 2, "seed": 3}
_GROUP: dict[str, Any] = {"shared": "seeds3-4", "results": ("seed3", "seed4")}

ALL = [
    Small(
        "dueling_dqn_atari",
        {**_VALUE, "num_envs": 2},
        "ale_py",
        wrong=(("torso", "nature"),),
        **_VALUE_UPDATE,
    ),
    Small(
        "va_atari",
        {**_VALUE, "num_envs": 2},
        "ale_py",
        wrong=(("member", "dqn"),),
        **_VALUE_UPDATE,
    ),
    Small(
        "va_minatar",
        {**_VALUE, **_SEEDS, "num_envs": 2},
        "minatar",
        **_GROUP,
        wrong=(("env_id", "MinAtar/Freeway-v1"),),
        **_VALUE_UPDATE,
    ),
    Small(
        "va_classic_control",
        {**_VALUE, **_SEEDS, "num_envs": 1},
        **_GROUP,
        wrong=(("env_id", "Acrobot-v1"),),
        **_VALUE_UPDATE,
    ),
    Small(
        "ppo_rnd_atari",
        {
            "total_steps": 48,
            "device": "cpu",
            "threads": 1,
            "num_envs": 2,
            "rollout_steps": 6,
            "warmup_rollouts": 2,
            "log_period_steps": 36,
            "checkpoint_period_steps": 12,
            "evaluation_period_steps": 24,
            "evaluation_episodes": 2,
            "final_evaluation_episodes": 2,
        },
        "ale_py",
        wrong=(("policy", "gru"),),
        update="classicrl.algorithms.ppo:PPOLearner.update",
    ),
    Small(
        "ppo_rnd_small",
        {
            "total_steps": 96,
            "num_envs": 4,
            "rollout_steps": 6,
            "warmup_steps": 5,
            "log_period_steps": 40,
            "final_evaluation_episodes": 2,
            "checkpoint_period_steps": 48,
        },
        wrong=(("env_id", "CartPole-v1"),),
    ),
    Small(
        "dqn_rnd_small",
        {
            "total_steps": 96,
            "num_envs": 4,
            "batch_size": 8,
            "replay_capacity": 1_000,
            "first_update_steps": 40,
            "target_period_steps": 30,
            "log_period_steps": 40,
            "final_evaluation_episodes": 2,
            "checkpoint_period_steps": 48,
        },
        wrong=(("env_id", "classicrl/ChainLock40-v0"),),
    ),
    Small(
        "symphony_mujoco",
        {
            "env_id": "Pendulum-v1",
            "total_steps": 60,
            "device": "cpu",
            "threads": 1,
            "hidden": 16,
            "heads_per_critic": 4,
            "batch_size": 8,
            "warmup_steps": 40,
            "warmup_replication": 3,
            "updates_per_step": 2,
            "log_period_steps": 25,
            "checkpoint_period_steps": 30,
            "evaluation_period_steps": 30,
            "evaluation_episodes": 1,
            "final_evaluation_episodes": 2,
            "obs_norm": True,
            "video": False,
        },
        wrong=(("hidden", 24),),
        update="classicrl.algorithms.symphony:SymphonyLearner.update",
    ),
    Small(
        "qstar_cube3_train",
        {
            "total_updates": 20,
            "threads": 1,
            "device": "cpu",
            "embedding_size": 24,
            "hidden_size": 16,
            "batch_size": 200,
            "walk_length": 9,
            "ball_depth": 3,
            "log_period_updates": 6,
            "evaluation_period_updates": 10,
            "evaluation_cubes": 1,
            "final_evaluation_cubes": 2,
            "evaluation_width": 8,
            "checkpoint_period_updates": 10,
            "target_period_updates": 7,
        },
        wrong=(("hidden_size", 24),),
        update="classicrl.algorithms.q_iteration:QIterationLearner._step",
    ),
]


def scripts(these: list[Small] = ALL, ci: tuple[str, ...] = ()) -> list[Any]:
    """Parameters of a test over scripts, skipped where they cannot run.

    Of ``ci`` those that `make test` has no time for.
    """
    return [
        pytest.param(
            small,
            id=small.script,
            marks=[
                pytest.mark.skipif(
                    importlib.util.find_spec(small.needs) is None, reason=f"requires {small.needs}"
                ),
                *(CI if small.script in ci else ()),
            ],
        )
        for small in these
    ]
