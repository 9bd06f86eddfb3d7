"""What a person sees while a run goes on: a live line in a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from classicrl.types import NO_LIMIT

_PLAIN_PERIOD_SECONDS = 30.0
_RATE_WINDOW_SECONDS = 60.0


class TrainingProgress:
    """Steps done, rate, time left and a few figures.

    Args:
        total_steps: end of the run.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._console = Console(file=sys.stderr)
        self._live: Progress | None = None
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
            )
            self._task = self._live.add_task("training", total=total_steps, completed=0, figures="")
        self._times: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._last_line = 0.0

    def begin_at(self, step: int) -> None:
        """Measures the rate from here on: what a resumed run did before took none of this time."""
        self._times = deque([(time.monotonic(), step)])

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        """Shows the state at ``step``; a NaN figure is one that is not known yet."""
        now = time.monotonic()
        self._times.append((now, step))
        while now - self._times[0][0] > _RATE_WINDOW_SECONDS and len(self._times) > 2:
            self._times.popleft()
        rate = self.steps_per_second
        left = (self.total_steps - step) / rate if rate > 0 else float("inf")
        pace = f"{rate:,.0f}/s" if rate == rate else "-/s"
        parts = [f"{step:,}/{self.total_steps:,} steps", pace, f"ETA {_clock(left)}"]
        parts += [f"{k} {'-' if v != v else format(v, '.4g')}" for k, v in figures.items()]
        if self._live is not None:
            self._live.update(self._task, completed=step, figures="  ".join(parts))
        elif now - self._last_line >= _PLAIN_PERIOD_SECONDS or step >= self.total_steps:
            self._last_line = now
            print("  ".join(parts), file=sys.stderr, flush=True)

    @property
    def steps_per_second(self) -> float:
        """Rate over the last minute; NaN before the first update."""
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else math.nan

    def say(self, line: str) -> None:
        """A line of its own, above the live one."""
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def limit_in_words(limit: int, unit: str) -> str:
    """How long a game may last, ``limit`` being ``NO_LIMIT`` where it is never cut.

    >>> limit_in_words(108_000, "frames")
    'at most 108,000 frames a game'
    """
    return "no limit to a game" if limit >= NO_LIMIT else f"at most {limit:,} {unit} a game"


def duration_in_words(seconds: float) -> str:
    """How long something took.

    >>> duration_in_words(4_320)
    '72 min'
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "-"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
