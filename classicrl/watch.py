"""Ends a program whose environment hangs, so that whoever called it can call it again.

A step that never returns cannot be interrupted from the thread that waits for it. Environments say
what they are doing (:data:`doing`); in a program, :func:`start` has a thread look at it once a
second. Nothing is watched in a notebook, where nobody has called :func:`start`.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol

LIMIT_SECONDS = 600.0
"""A step of an environment that takes longer hangs."""


class Doing(Protocol):
    """What an environment is at: its text says which one, and where."""

    steps: int


doing: Doing | None = None
"""Set while an environment is stepped; None between steps."""

_started = False


def start(limit_seconds: float | None = None, tick_seconds: float = 1.0) -> None:
    """Has the process end with exit code 1 and one line once a step takes too long.

    A second call does nothing. It counts its own ticks, not the clock: a process that was suspended
    does not hang.

    Args:
        limit_seconds: default :data:`LIMIT_SECONDS`.
        tick_seconds: between looks.
    """
    global _started
    if _started:
        return
    _started = True
    limit = LIMIT_SECONDS if limit_seconds is None else limit_seconds
    ticks = max(1, round(limit / tick_seconds))
    thread = threading.Thread(
        target=_look, args=(threading.Event().wait, tick_seconds, ticks), daemon=True
    )
    thread.start()


def _look(wait: Callable[[float], bool], tick_seconds: float, limit_ticks: int) -> None:
    seen: tuple[int, int] | None = None
    count = 0
    while not wait(tick_seconds):
        now = doing
        here = None if now is None else (id(now), now.steps)
        count = count + 1 if here is not None and here == seen else 0
        seen = here
        if count >= limit_ticks:
            text = f"error: {now} has not returned for {limit_ticks * tick_seconds:g} s; "
            print(text + "the last checkpoint stands, the same command continues", file=sys.stderr)
            sys.stderr.flush()
            # No exception reaches a thread that waits in foreign code. What is on the disk is
            # whole at any moment.
            os._exit(1)
