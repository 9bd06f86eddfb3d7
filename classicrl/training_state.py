"""All that a resume must bring back: the mechanism that every training script shares.

A script names its parts, anything with ``state_dict`` and ``load_state_dict`` (and NumPy
generators); this module saves them together and brings them back together.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from classicrl.checkpoint import CheckpointNotWritten, CheckpointStore, save_model
from classicrl.replay import ReplayArchive, ReplayBuffer
from classicrl.types import Stateful


@dataclasses.dataclass
class Counters:
    """How far a run has come, over all processes that worked on it."""

    step: int = 0
    """Agent decisions, summed over environments."""
    updates: int = 0
    """Gradient steps."""
    evaluated_at_step: int = 0
    """When the agent was evaluated last."""
    refill_steps: int = 0
    """Decisions that only refilled a replay which a checkpoint had left out; not in ``step``."""
    seconds: float = 0.0
    """Wall time of the earlier processes, up to the checkpoint that this one began with."""

    def state_dict(self) -> dict[str, Any]:
        """The fields."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the fields."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, state[field.name])


class TrainingState:
    """The parts of a training, their checkpoints, and the weights to share.

    Args:
        directory: of the run; checkpoints go to ``checkpoints/``, the newest weights to
            ``model.safetensors``.
        count: the counters, saved with the rest.
        parts: what else is saved, by name.
        replay: the replay buffer, if there is one.
        save_replay: whether checkpoints hold its contents. Without, a resume finds it empty.
        model: whose weights are shared, and ``card``, what is written beside them.
        say: shows one line to the user.
    """

    def __init__(
        self,
        directory: Path,
        count: Counters,
        parts: Mapping[str, Stateful | np.random.Generator],
        *,
        replay: ReplayBuffer | None = None,
        save_replay: bool = True,
        model: nn.Module,
        card: Mapping[str, str],
        info: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.count = count
        self._parts = {**parts, "count": count}
        self._replay = replay
        self._save_replay = save_replay
        self._archive = ReplayArchive(directory / "checkpoints" / "replay")
        self._store = CheckpointStore(directory / "checkpoints", warn=say)
        self._model = model
        self._model_path = directory / "model.safetensors"
        self._card = card
        self._info = info
        self._say = say
        self._started = time.monotonic()

    def resume(self) -> bool:
        """Brings back the newest whole checkpoint; False if there is none.

        Raises:
            UserError: if there are checkpoints, but none is whole.
        """
        checkpoint = self._store.load_latest()
        if checkpoint is None:
            return False
        state = checkpoint.state
        for name, part in self._parts.items():
            if isinstance(part, np.random.Generator):
                part.bit_generator.state = state[name]
            else:
                part.load_state_dict(state[name])
        if self._replay is not None and "replay" in state:
            self._replay.load_state_dict(state["replay"])
            self._archive.load_state_dict(state["archive"])
            self._archive.load(self._replay)
        self._started = time.monotonic()
        self._say(f"continuing from step {self.count.step:,}")
        return True

    def save(self) -> None:
        """Writes a checkpoint and the weights. If the disk refuses, says so and goes on."""
        state = {name: _state_of(part) for name, part in self._parts.items()}
        state["count"]["seconds"] = self.seconds
        files: list[Path] = []
        try:
            if self._replay is not None and self._save_replay:
                files = self._archive.save(self._replay)
                state["replay"] = self._replay.state_dict()
                state["archive"] = self._archive.state_dict()
            self._store.save(self.count.step, state, files=files, info=self._info)
            card = {**self._card, "step": str(self.count.step)}
            save_model(self._model_path, self._model.state_dict(), card)
        except (CheckpointNotWritten, OSError) as error:
            self._say(f"warning: {error}; the last checkpoint stands and the run goes on")

    @property
    def seconds(self) -> float:
        """Wall time of the whole run so far, lost parts not counted."""
        return self.count.seconds + time.monotonic() - self._started

    @property
    def replay_compression(self) -> float:
        """Bytes of the saved observations over their bytes on disk; NaN before the first save."""
        if self._replay is None or not self._archive.nbytes:
            return float("nan")
        return self._archive.num_rows * self._replay.obs_nbytes / self._archive.nbytes


def _state_of(part: Stateful | np.random.Generator) -> dict[str, Any]:
    if isinstance(part, np.random.Generator):
        return dict(part.bit_generator.state)
    return part.state_dict()
