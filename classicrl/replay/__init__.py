"""Replay: a ring that stores each observation once, samplers over it, its archive on disk; and the
rollout of agents that learn from what they have just done."""

from classicrl.replay.buffer import ReplayBuffer, Rows, replay_nbytes
from classicrl.replay.chunks import ReplayArchive
from classicrl.replay.members import MemberReplays
from classicrl.replay.rollout import Rollout, rollout_nbytes
from classicrl.replay.samplers import UniformSampler

__all__ = [
    "MemberReplays",
    "ReplayArchive",
    "ReplayBuffer",
    "Rollout",
    "Rows",
    "UniformSampler",
    "replay_nbytes",
    "rollout_nbytes",
]
