"""All that a resume must bring back: the mechanism that every training script shares.

A script names its parts, anything with ``state_dict`` and ``load_state_dict`` (and NumPy
generators); this module saves them together and brings them back together.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from classicrl.checkpoint import Checkpoint, CheckpointNotWritten, CheckpointStore, save_model
from classicrl.distributed import Ranks
from classicrl.errors import RunFailure, UserError
from classicrl.experiment import CONFIG_FILE, MODEL_FILE, read_json_if_there
from classicrl.networks import member_state
from classicrl.replay import MemberReplays, ReplayArchive, ReplayBuffer
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
    refill_left_steps: int = 0
    """Decisions until it is full enough, for a run that was ended before."""
    seconds: float = 0.0
    """Wall time of the earlier processes, up to the checkpoint that this one began with."""

    def state_dict(self) -> dict[str, Any]:
        """The fields."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the fields."""
        for field in dataclasses.fields(self):
            if field.name in state or field.name != "refill_left_steps":  # older ones lack it
                setattr(self, field.name, state[field.name])


class TrainingState:
    """The parts of a training, their checkpoints, and the weights to share.

    Args:
        directory: of the run; checkpoints go to ``checkpoints/``, the newest weights to
            ``model.safetensors``.
        count: the counters, saved with the rest.
        parts: what else is saved, by name.
        replay: the replay buffer, or those of members side by side, if there is one.
        save_replay: whether checkpoints hold its contents. Without, a resume finds it empty.
        model: whose weights are shared, and ``card``, what is written beside them.
        member_directories: for a model of members side by side, where each one's weights go.
        say: shows one line to the user.
        ranks: processes that train together. Each saves what is its own, the first one the weights
            to share; a resume goes back to the newest step that all of them have.
    """

    def __init__(
        self,
        directory: Path,
        count: Counters,
        parts: Mapping[str, Stateful | np.random.Generator],
        *,
        replay: ReplayBuffer | MemberReplays | None = None,
        save_replay: bool = True,
        model: nn.Module,
        card: Mapping[str, str],
        member_directories: Sequence[Path] = (),
        info: Mapping[str, Any],
        say: Callable[[str], None],
        ranks: Ranks | None = None,
    ) -> None:
        self.count = count
        self._directory = directory
        self._parts = {**parts, "count": count}
        archives = directory / "checkpoints" / "replay"
        self._replays: list[tuple[ReplayBuffer, ReplayArchive]] = []
        if isinstance(replay, ReplayBuffer):
            self._replays = [(replay, ReplayArchive(archives))]
        elif replay is not None:
            for k, buffer in enumerate(replay.buffers):
                self._replays.append((buffer, ReplayArchive(archives / str(k))))
        self._save_replay = save_replay
        self._store = CheckpointStore(directory / "checkpoints", warn=say)
        self._ranks = ranks or Ranks()
        self._model = model
        self._model_path = directory / MODEL_FILE
        self._member_directories = member_directories
        self._card = card
        self._info = {**info, **_run_id(directory)}
        self._say = say
        self._started = time.monotonic()

    def resume(self) -> bool:
        """Brings back the newest whole checkpoint; False if there is none.

        Raises:
            UserError: if there are checkpoints, but none is whole, or the newest is of another run;
                or if another number of processes made them.
        """
        checkpoint = self._newest_of_all_ranks()
        if checkpoint is None:
            return False
        size = int(checkpoint.state.get("num_ranks", 1))
        if size != self._ranks.size:
            raise UserError(
                f"the run was made by {size} process{'es' * (size > 1)}, and {self._ranks.size} "
                "cannot continue it: its environments are divided among them"
            )
        if checkpoint.info.get("run") not in (None, self._info.get("run")):
            raise UserError(
                f"{checkpoint.path} belongs to another run than {checkpoint.path.parents[1]}: take "
                "it away, or use --overwrite to start afresh"
            )
        try:
            self._restore(checkpoint.state)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{checkpoint.path} does not fit into what is free of the GPU's memory: free some, "
                "or continue with --device cpu"
            ) from error
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(
                f"{checkpoint.path} was written by another program, version or configuration "
                f"({reason}): continue with that one, or use --overwrite to start afresh"
            ) from error
        self._started = time.monotonic()
        self._say(f"continuing from step {self.count.step:,}")
        return True

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            if isinstance(part, np.random.Generator):
                part.bit_generator.state = state[name]
            else:
                part.load_state_dict(state[name])
        if "replays" in state:
            for (buffer, archive), saved in zip(self._replays, state["replays"], strict=True):
                buffer.load_state_dict(saved["buffer"])
                archive.load_state_dict(saved["archive"])
                archive.load(buffer)

    def _newest_of_all_ranks(self) -> Checkpoint | None:
        while True:
            checkpoint = self._store.load_latest()
            own = -1 if checkpoint is None else checkpoint.step
            steps = self._ranks.gather(torch.tensor([own], device=self._ranks.device))
            common, newest = int(steps.min()), int(steps.max())
            if common == newest:
                return checkpoint
            if common < 0 < newest:
                raise UserError(
                    f"some of the {self._ranks.size} processes have no checkpoint, others have one "
                    f"of step {newest:,}: continue with as many processes as the run began with, "
                    "which all see its directory"
                )
            # One was ended between the saves of the others.
            self._store.discard_newer(common)

    def require_finite(self, losses: Iterable[float], whose: str = "a loss") -> None:
        """Ends a run whose losses make no sense, before a checkpoint is made of it.

        Raises:
            RunFailure: if one is NaN or infinite, in any of the processes.
        """
        if self._ranks.any(not all(map(math.isfinite, losses))):
            raise RunFailure(
                f"{whose} became NaN or infinite by step {self.count.step:,}; the last good "
                f"checkpoint stands in {self._directory}: start anew with a lower --learning-rate"
            )

    def save(self, *, last: bool = False) -> None:
        """Writes a checkpoint and the weights. If the disk refuses, says so and goes on.

        Args:
            last: of a run that ends now, which must not count as finished without its weights.

        Raises:
            CheckpointNotWritten: the disk refuses, and it was the last.
            RunFailure: if a tensor of the state is not finite. A loss shows that one update later:
                such a state must not take the place of a good one.
        """
        state: dict[str, Any] = {name: _state_of(part) for name, part in self._parts.items()}
        where = _not_finite(state)
        if where is not None:
            raise RunFailure(
                f"{where} became NaN or infinite by step {self.count.step:,}; the last good "
                "checkpoint stands: start anew with a lower --learning-rate"
            )
        state["count"]["seconds"] = self.seconds
        state["num_ranks"] = self._ranks.size
        files: list[Path] = []
        try:
            if self._save_replay:
                for buffer, archive in self._replays:
                    files += archive.save(buffer)
                state["replays"] = [
                    {"buffer": buffer.state_dict(), "archive": archive.state_dict()}
                    for buffer, archive in self._replays
                ]
            self._store.save(self.count.step, state, files=files, info=self._info)
            card = {**self._card, "step": str(self.count.step)}
            if not self._member_directories and self._ranks.is_first:
                save_model(self._model_path, self._model.state_dict(), card)
            for k, directory in enumerate(self._member_directories):
                save_model(directory / MODEL_FILE, member_state(self._model, k), card)
        except (CheckpointNotWritten, OSError) as error:
            if last:
                raise CheckpointNotWritten(
                    f"{error}; the last checkpoint stands, and the same command continues once "
                    "the disk takes more"
                ) from error
            self._say(f"warning: {error}; the last checkpoint stands and the run goes on")

    @property
    def seconds(self) -> float:
        """Wall time of the whole run so far, lost parts not counted."""
        return self.count.seconds + time.monotonic() - self._started

    @property
    def replay_compression(self) -> float:
        """Bytes of the saved observations over their bytes on disk; NaN before the first save."""
        on_disk = sum(archive.nbytes for _, archive in self._replays)
        in_memory = sum(a.num_rows * buffer.obs_nbytes for buffer, a in self._replays)
        return in_memory / on_disk if on_disk else float("nan")


def _state_of(part: Stateful | np.random.Generator) -> dict[str, Any]:
    if isinstance(part, np.random.Generator):
        return dict(part.bit_generator.state)
    return part.state_dict()


def _run_id(directory: Path) -> dict[str, str]:
    """Of the run that the directory was made for, so that no other's checkpoint is continued."""
    record = read_json_if_there(directory / CONFIG_FILE)
    return {"run": record["run"]} if isinstance(record.get("run"), str) else {}


def _not_finite(value: Any, where: str = "") -> str | None:
    """The place of a floating-point tensor with NaN or infinity, or None."""
    if isinstance(value, torch.Tensor):
        bad = value.is_floating_point() and not bool(value.isfinite().all())
        return where if bad else None
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for name, item in items:
        found = _not_finite(item, f"{where}/{name}" if where else str(name))
        if found is not None:
            return found
    return None
