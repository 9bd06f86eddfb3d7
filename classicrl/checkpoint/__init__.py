"""Crash-safe checkpoints and model files, without pickle.

A checkpoint is a directory `ckpt-<step>`:

* `state.json`: the tree of a state (see `save`), with every tensor and array replaced by a name;
* `tensors-000.safetensors` and so on: their bytes, in files of at most 15 MiB;
* `manifest.json`, written last: format version, step, free-form info, and the size and SHA-256 of
  the files above and of every *external* file. Its own SHA-256 ends it, so that a damaged step
  or info is noticed too.

External files are large, immutable pieces of state (chunks of a replay memory) that live beside
the checkpoints and are shared between them, so that gigabytes are not rewritten each time.

A checkpoint is built in `ckpt-<step>.tmp-<pid>`, flushed to the disk, and renamed: at any instant
a kill or a power cut leaves either the old or the new checkpoint whole. Every byte is verified
before it is used.
"""

from classicrl.checkpoint.files import CheckpointCorrupt, write_atomic
from classicrl.checkpoint.manifest import FORMAT_VERSION, JSON
from classicrl.checkpoint.model_file import load_model, require_fit, save_model
from classicrl.checkpoint.store import (
    Checkpoint,
    CheckpointNotWritten,
    CheckpointStore,
    checkpoint_paths,
    read_checkpoint,
)
from classicrl.checkpoint.torch_state import load_optimizer_, restore_generator

__all__ = [
    "FORMAT_VERSION",
    "JSON",
    "Checkpoint",
    "CheckpointCorrupt",
    "CheckpointNotWritten",
    "CheckpointStore",
    "checkpoint_paths",
    "load_model",
    "load_optimizer_",
    "read_checkpoint",
    "require_fit",
    "restore_generator",
    "save_model",
    "write_atomic",
]
