"""The run directories of several seeds that one process trains side by side.

<parent>/seed3/, seed4/, ...   a run directory each, as if the seed had been trained alone
<parent>/seeds3-4/             what they share: the checkpoints and the summary over all
"""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from classicrl.errors import UserError
from classicrl.evaluation import Evaluation, pooled
from classicrl.experiment import Run

ConfigT = TypeVar("ConfigT")


class SeedGroup:
    """Open run directories, locked against a second process until they are closed.

    Refused before anything was made of them, they are taken away, as by :class:`Run`.

    Args:
        parent: holds all of them.
        seeds: increasing.
        overwrite: delete what earlier runs left in them, and the checkpoints of groups that some
            of these seeds were in: the runs that those would continue are gone.

    Raises:
        UserError: if one of them cannot be written or is in use.
    """

    def __init__(self, parent: Path, seeds: Sequence[int], *, overwrite: bool = False) -> None:
        self.parent = parent
        self.seeds = list(seeds)
        with contextlib.ExitStack() as stack:
            names = [f"seeds{seeds[0]}-{seeds[-1]}", *(f"seed{seed}" for seed in seeds)]
            self.shared, *self.runs = (
                stack.enter_context(Run(parent / name, overwrite=overwrite)) for name in names
            )
            if overwrite:
                self._end_other_groups()
            self._open = stack.pop_all()

    def _end_other_groups(self) -> None:
        for other in self.parent.glob("seeds*"):
            ends = re.fullmatch(r"seeds(\d+)-(\d+)", other.name)
            if ends is None or other == self.shared.directory:
                continue
            if int(ends[1]) <= self.seeds[-1] and self.seeds[0] <= int(ends[2]):
                Run(other, overwrite=True).close()

    @property
    def directories(self) -> list[Path]:
        """Of the seeds."""
        return [run.directory for run in self.runs]

    def configure(self, config: ConfigT) -> ConfigT:
        """Records the configuration for all, and for each seed as if it were trained alone.

        Args:
            config: a dataclass with the fields ``seed`` and ``num_seeds``.

        Raises:
            UserError: if a field that may not change differs from what is recorded, or a seed's
                directory holds a run that was made with other seeds than these.
        """
        config = self.shared.configure(config, lambda c: c)
        begun = (self.shared.directory / "checkpoints").exists()
        for seed, run in zip(self.seeds, self.runs, strict=True):
            alone = dataclasses.replace(config, seed=seed, num_seeds=1)  # type: ignore[type-var]
            if (run.directory / "metrics.csv").exists() and not begun:
                run.require_same_method(alone)
                raise UserError(
                    f"{run.directory} holds a run that was made with other seeds: "
                    f"{self._free_seeds()}use --overwrite to start afresh, or another --run-dir"
                )
            run.configure(alone, lambda c: c)
        return config

    def _free_seeds(self) -> str:
        """How to train those seeds that have no run yet, where they follow each other."""
        free = [
            seed
            for seed, run in zip(self.seeds, self.runs, strict=True)
            if not (run.directory / "metrics.csv").exists()
        ]
        if not free or free[-1] - free[0] + 1 != len(free):
            return ""
        return f"train the others with --seed {free[0]} --num-seeds {len(free)}, "

    @property
    def summary(self) -> dict[str, Any] | None:
        """What finished runs left, over all seeds; or None."""
        return self.shared.summary

    def finish(self, summary: dict[str, Any], scores: Sequence[Evaluation]) -> dict[str, Any]:
        """Writes a summary for each seed, then that over all: the runs are finished.

        Args:
            summary: what is true of all seeds.
            scores: of each seed.

        Returns:
            The summary over all seeds, with their games as one evaluation.
        """
        for seed, run, of_seed in zip(self.seeds, self.runs, scores, strict=True):
            run.finish({**summary, "seed": seed, "eval": of_seed.record()})
        over_all = {**summary, "seed": self.seeds[0], "eval": pooled(scores).record()}
        self.shared.finish(over_all)
        return over_all

    def closing_lines(self, summary: dict[str, Any]) -> str:
        """What finished runs say last."""
        return self.shared.closing_lines(summary, self.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
