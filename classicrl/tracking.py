"""A run's figures on Weights & Biases, beside the CSV and TensorBoard (``--track wandb``).

The service is a guest: it works on a thread of its own, and whatever it does, waits for or raises,
the training neither ends nor waits; what cannot be sent is dropped, and said once. A resumed run
continues the same run there. What stands there cannot be taken back, so rows between the last
checkpoint and a crash appear twice, with the same ``step``.
"""

import math
import queue
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from classicrl.errors import UserError

TrackName = Literal["none", "wandb"]

_MAX_WAITING = 10_000  # rows; those beyond are dropped
_FINISH_SECONDS = 60.0


def require_tracker(track: TrackName) -> None:
    """Refuses a service whose package is not installed.

    Raises:
        UserError: saying how to install it.
    """
    if track == "none":
        return
    try:
        import wandb

        wandb.init  # noqa: B018  # a mere folder named wandb can be imported, too
    except (ImportError, AttributeError) as error:
        raise UserError(
            '--track wandb needs wandb, which is not installed: pip install "classicrl[wandb]"'
        ) from error


class WandbSink:
    """One run on Weights & Biases.

    Args:
        directory: of the run; wandb's own files go below it.
        record: what ``config.json`` holds: the run's number names it there, too.
        finish_seconds: how long :meth:`close` waits for what is not sent yet.
    """

    def __init__(
        self,
        directory: Path,
        record: Mapping[str, Any],
        *,
        finish_seconds: float = _FINISH_SECONDS,
    ) -> None:
        self._directory, self._record = directory, record
        self._finish_seconds = finish_seconds
        self._rows: queue.Queue[dict[str, float] | None] = queue.Queue(_MAX_WAITING)
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends one row, but for what is NaN; at once, and never fails."""
        row = {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
        try:
            self._rows.put_nowait({"step": step, **row})
        except queue.Full:
            self._warn("it takes no more rows")

    def close(self) -> None:
        """Sends the rest, for a minute at most."""
        until = time.monotonic() + self._finish_seconds
        try:
            self._rows.put(None, timeout=self._finish_seconds if self._thread.is_alive() else 0.0)
        except queue.Full:
            self._warn("it takes no more rows")
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"it did not finish within {self._finish_seconds:g} seconds")

    def _work(self) -> None:
        try:
            import wandb

            run = wandb.init(
                project="classicrl",
                id=self._record.get("run"),
                resume="allow",
                name="/".join(self._directory.absolute().parts[-3:]),
                dir=str(self._directory),
                config={
                    **self._record.get("config", {}),
                    "versions": self._record.get("versions", {}),
                },
                reinit="create_new",  # of seeds trained side by side each has one
                settings=wandb.Settings(console="off", silent=True),
            )
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            while (row := self._rows.get()) is not None:
                run.log(row)
            run.finish()
        except Exception as error:
            self._warn(" ".join(f"{type(error).__name__}: {error}".split())[:300])

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"warning: --track wandb: {reason}; the run goes on, and its files have everything",
                file=sys.stderr,
            )
