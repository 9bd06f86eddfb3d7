"""Replay: a ring that stores each observation once, samplers over it, and its archive on disk."""

from classicrl.replay.buffer import ReplayBuffer, Rows, replay_nbytes
from classicrl.replay.chunks import ReplayArchive
from classicrl.replay.members import MemberReplays
from classicrl.replay.samplers import UniformSampler

__all__ = [
    "MemberReplays",
    "ReplayArchive",
    "ReplayBuffer",
    "Rows",
    "UniformSampler",
    "replay_nbytes",
]
