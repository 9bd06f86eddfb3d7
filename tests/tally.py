"""What a group of the fault battery did, counted case by case.

A test file of the battery names its group in ``GROUP`` and counts with the fixture ``tally``
(tests/conftest.py). The quick tests run a few cases of each group; tests/battery/run.py sets the
variable below and runs all of them, one line of JSON per group.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path

FULL = os.environ.get("CLASSICRL_BATTERY") == "full"
LINES = os.environ.get("CLASSICRL_BATTERY_LINES")


def size(quick: int, full: int) -> int:
    """How many cases this time."""
    return full if FULL else quick


class Tally:
    """Cases of one group by outcome."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.outcomes: Counter[str] = Counter()
        self._began = time.monotonic()

    def count(self, outcome: str, cases: int = 1) -> None:
        """After a case has been checked."""
        self.outcomes[outcome] += cases

    def line(self) -> dict[str, object]:
        """What goes into the table."""
        return {
            "group": self.group,
            "full": FULL,
            "cases": sum(self.outcomes.values()),
            "outcomes": dict(sorted(self.outcomes.items())),
            "seconds": round(time.monotonic() - self._began),
        }

    def write(self) -> None:
        """Appends the line to the file that the battery's program names."""
        if LINES:
            with Path(LINES).open("a") as file:
                file.write(json.dumps(self.line()) + "\n")
