"""Events for TensorBoard, written where they are given.

TensorBoard's own writer has a thread; where the disk is full that thread ends with a traceback on
the user's screen. Here the caller meets the error, says it in one line and goes on without events.
"""

import contextlib
import itertools
import math
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_FLUSH_PERIOD_SECONDS = 120.0
_numbers = itertools.count()  # several files of one process in one second


class EventFile:
    """A file of events in ``directory``, which is made.

    Args:
        directory: what ``tensorboard --logdir`` is to be given, or lies above.
        purge_step: TensorBoard forgets what earlier files say of this step and later ones.
    """

    def __init__(self, directory: Path, purge_step: int) -> None:
        number = f"{os.getpid()}.{next(_numbers)}"
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{number}"
        self._records: RecordWriter | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter((directory / name).open("wb"))
        except OSError as error:
            self._give_up(error)
        self._flushed_at = -math.inf  # the first event is there at once
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        self.add(Summary(value=[Summary.Value(tag=name, simple_value=value)]), step)

    def add(self, summary: Any, step: int) -> None:
        """A summary, as ``torch.utils.tensorboard.summary`` makes them."""
        self._add(Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event: Any) -> None:
        if self._records is None:
            return
        try:
            self._records.write(event.SerializeToString())
            if time.monotonic() - self._flushed_at > _FLUSH_PERIOD_SECONDS:
                self._records.flush()
                self._flushed_at = time.monotonic()
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Everything added so far is on disk after this."""
        if self._records is not None:
            try:
                self._records.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Flushes and ends the file; what is added later is dropped."""
        self.flush()
        if self._records is not None:
            self._records.close()
            self._records = None

    def _give_up(self, error: OSError) -> None:
        """A record may be torn now, and nothing behind it would be read: no more are written."""
        records, self._records = self._records, None
        print(f"warning: no more TensorBoard events: {error}; the run goes on", file=sys.stderr)
        with contextlib.suppress(OSError):  # what was left in the buffer is lost, too
            if records is not None:
                records.close()
