"""Where a run's figures go: a CSV that scripts read, TensorBoard that people watch, and a service.

The first two continue where a checkpoint was taken: rows and events that a lost part of the run had
written after it are dropped, so no step appears twice.
"""

import contextlib
import csv
import json
import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars, hparams
from torch.utils.tensorboard.summary import histogram as histogram_summary

from classicrl.checkpoint import write_atomic
from classicrl.errors import UserError
from classicrl.event_file import EventFile
from classicrl.tracking import TrackName, WandbSink

_CONFIG_FILE = "config.json"  # of the run directory; experiment.py writes it
_UPWARDS = [1e-12 * 1.1**i for i in range(774)]  # to 1e20
_BINS = [-edge for edge in reversed(_UPWARDS)] + [0.0] + _UPWARDS  # TensorBoard's own


class CsvLog:
    """A CSV file, ``step`` first, flushed at every row. Its first row fixes the columns.

    Where a file is continued by a version that logs other figures, its columns are kept, empty from
    then on where nothing of that name is logged, and new ones are added, empty in the rows before.

    Args:
        path: of the file; an existing one is continued.
        resume_step: rows of later steps are dropped.

    Raises:
        UserError: if the file is not a table whose first column is a step.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        header, rows = _whole_rows(path) if path.exists() else ([], [])
        if header and header[0] != "step":
            raise UserError(f"{path} is damaged: its first column is not step; take it away")
        kept = [row for row in rows if _step_of(row, path) <= resume_step]
        # Of rows that the file had.
        self.dropped_steps = {_step_of(row, path) for row in rows} - {int(row[0]) for row in kept}
        # Without rows there are no columns either: a later version may write others.
        self._columns = tuple(header) if kept else ()
        self._path, self._names = path, frozenset[str]()  # of what is logged since it was opened
        text = "".join(",".join(row) + "\n" for row in [header, *kept]) if kept else ""
        write_atomic(path, text.encode())
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row. What a full disk refuses is kept and written with the next row.

        Raises:
            ValueError: if there are no names, or others than in the first row since the file was
                opened; or a figure is not one number.
        """
        metrics = plain_numbers(metrics)
        if not metrics:
            raise ValueError("a row needs at least one figure")
        text = ""
        if not self._columns:
            self._columns = ("step", *metrics)
            text = ",".join(self._columns) + "\n"
        if not self._names:
            self._names = frozenset(metrics)
            self._add_columns([name for name in metrics if name not in self._columns])
        if metrics.keys() != self._names:
            raise ValueError(f"columns are {sorted(self._names)}, got {tuple(metrics)}")
        cells = [_short(metrics.get(name, math.nan)) for name in self._columns[1:]]
        cells.insert(0, str(step))
        self._unwritten += (text + ",".join(cells) + "\n").encode()
        with contextlib.suppress(OSError):
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def _add_columns(self, names: Sequence[str]) -> None:
        """Writes the file again with empty columns of these names; not while the disk is full."""
        if not names:
            return
        header, rows = _whole_rows(self._path)
        lines = [[*header, *names], *([*row, *[""] * len(names)] for row in rows)]
        with contextlib.suppress(OSError):
            write_atomic(self._path, "".join(",".join(line) + "\n" for line in lines).encode())
            self._file.close()
            self._file = self._path.open("ab", buffering=0)
            self._columns = (*self._columns, *names)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _whole_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file, without a last row that a crash has cut short."""
    try:
        lines = path.read_text().splitlines(keepends=True)
        header, *rows = list(csv.reader(line for line in lines if line.endswith("\n"))) or [[]]
    except (ValueError, csv.Error) as error:  # bytes that are no text
        raise UserError(f"{path} is damaged ({error}): mend it or take it away") from error
    return header, [row for row in rows if len(row) == len(header)]


def _step_of(row: list[str], path: Path) -> int:
    try:
        return int(row[0])
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {row[0][:40]!r} is not a step; mend that row or take it away"
        ) from error


def _short(value: float) -> str:
    """Shortest text that gives the same float back; nothing for NaN (not measured yet)."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    return repr(value)


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Python's numbers for those of NumPy and torch, which would say their type in a file.

    Raises:
        ValueError: if one is not a single number.

    >>> plain_numbers({"loss": torch.tensor(0.5), "updates": np.int64(3)})
    {'loss': 0.5, 'updates': 3}
    """
    plain = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor | np.ndarray | np.generic):
            if math.prod(value.shape) != 1:
                raise ValueError(
                    f"{name} has the shape {tuple(value.shape)}, but a figure is one number: "
                    "MeanMetrics takes the means of what update() returns"
                )
            value = value.item()
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}, but a figure is a number")
        plain[name] = int(value) if isinstance(value, bool) else value
    return plain


class MetricsLog:
    """Scalars to CSV files, TensorBoard and a service; histograms and pictures to TensorBoard.

    Training figures go to ``metrics.csv``, the scores of evaluations to ``evaluations.csv``. The
    events also hold a layout for TensorBoard's custom scalars and, from the first evaluation on,
    the settings of the directory's ``config.json`` with the scores, for its hparams.

    Args:
        directory: of the run; made if absent.
        resume_step: what was written for later steps is dropped.
        evaluated_at_step: the last evaluation that the resumed run knows of; later ones are
            dropped, also one at ``resume_step`` itself, which will be made again.
        track: the service that gets the scalars, too.
    """

    def __init__(
        self,
        directory: Path,
        *,
        resume_step: int = 0,
        evaluated_at_step: int = 0,
        track: TrackName = "none",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._metrics = CsvLog(directory / "metrics.csv", resume_step)
        self._evaluations = CsvLog(directory / "evaluations.csv", evaluated_at_step)
        # Also at step 0: a run that was killed before its first checkpoint begins again there.
        # TensorBoard forgets whole steps. Where an evaluation at the very step of the checkpoint
        # will be made again, that step is forgotten, too, and what the table keeps is said again.
        again = resume_step in self._evaluations.dropped_steps
        purge_step = resume_step if again else resume_step + 1
        self._events = EventFile(directory / "tensorboard", purge_step=purge_step)
        if again:
            self._say_again(directory / "metrics.csv", resume_step)
        self._record = _recorded(directory)
        self._has_layout = False
        self._end_of_session: Any = None
        self._tracker = WandbSink(directory, self._record) if track == "wandb" else None

    def _say_again(self, path: Path, step: int) -> None:
        table = read_csv(path)
        for i in (table.pop("step", np.empty(0)) == step).nonzero()[0]:
            for name, column in table.items():
                if not math.isnan(column[i]):
                    self._events.add_scalar(name, float(column[i]), step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Training figures, numbers each; names like ``losses/td`` group the curves.

        Raises:
            ValueError: as :meth:`CsvLog.write`.
        """
        metrics = plain_numbers(metrics)
        if not self._has_layout:
            self._has_layout = True
            layout = custom_scalars(board_layout(list(metrics)))  # type: ignore[no-untyped-call]
            self._events.add(layout, 0)
        self._metrics.write(step, metrics)
        self._scalars(step, metrics)

    def write_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Scores of an evaluation; ``eval/`` in TensorBoard.

        Raises:
            ValueError: as :meth:`CsvLog.write`.
        """
        scores = plain_numbers(scores)
        if self._end_of_session is None and "config" in self._record:
            begin = hparams(  # type: ignore[no-untyped-call]
                settings_to_show(self._record["config"]), {f"eval/{name}": 0.0 for name in scores}
            )
            for summary in begin[:2]:
                self._events.add(summary, 0)
            self._end_of_session = begin[2]
        self._evaluations.write(step, scores)
        self._scalars(step, {f"eval/{name}": score for name, score in scores.items()})

    def _scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isnan(value):
                self._events.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.write(step, metrics)

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Distribution of those of ``values``, any shape, that are finite; nothing if none is."""
        finite = values[values.isfinite()]  # TensorBoard raises on others
        if not len(finite):
            return
        bins = histogram_summary(name, finite, _BINS)  # type: ignore[no-untyped-call]
        self._events.add(bins, step)

    def gif(self, step: int, name: str, path: Path) -> None:
        """An animated picture, shown under Images."""
        # As an image summary: TensorBoard plays GIFs there, and moviepy is not needed.
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        self._events.add(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def flush(self) -> None:
        """Everything written so far is on disk after this."""
        self._events.flush()

    def close(self) -> None:
        """Closes everything."""
        self._metrics.close()
        self._evaluations.close()
        self._events.close()
        if self._tracker is not None:
            self._tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._end_of_session is not None:  # else it may be continued
            self._events.add(self._end_of_session, 0)
        self.close()


def board_layout(names: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalars for training figures of these names.

    Four groups, returns, losses, diagnostics and speed; figures that differ in ``ext`` and ``int``,
    the two streams of a learner with a bonus, share a chart.

    >>> board_layout(["charts/episodic_return", "losses/value_ext", "losses/value_int"])["losses"]
    {'losses/value': ['Multiline', ['losses/value_ext', 'losses/value_int']]}
    """
    layout: dict[str, dict[str, list[Any]]] = {
        "returns": {"return": ["Multiline", ["eval/mean_return", "eval/solved_share"]]},
        "losses": {},
        "diagnostics": {},
        "speed": {},
    }
    for name in names:
        family, _, short = name.partition("/")
        if name.endswith("_return"):
            layout["returns"]["return"][1].append(name)
            continue
        group = family if family in layout else "diagnostics"
        if name.endswith("_per_second"):
            group, family, short = "speed", "per second", ""
        chart = "/".join(filter(None, (family, re.sub(r"_(ext|int)\b|_(ext|int)(?=_)", "", short))))
        layout[group].setdefault(chart, ["Multiline", []])[1].append(name)
    return {group: charts for group, charts in layout.items() if charts}


def settings_to_show(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A recorded configuration as TensorBoard's hparams take it: what is neither number, text nor
    truth value becomes text."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in config.items()
    }


def _recorded(directory: Path) -> dict[str, Any]:
    """What the run directory says of the run; nothing where there is no such file."""
    try:
        record = json.loads((directory / _CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


class MeanMetrics:
    """Means of tensors since they were last read; nothing is moved off the device before.

    >>> means = MeanMetrics()
    >>> means.add({"loss": torch.tensor([1.0, 3.0])})
    >>> means.pop()
    {'loss': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """More values of each name, ``[U]``, or ``[U, K]`` of members side by side."""
        for name, values in metrics.items():
            total = values.double().sum(dim=0)
            if name in self._sums:  # those of a checkpoint lie on the CPU
                total = self._sums[name].to(total.device) + total
            self._sums[name] = total
            self._counts[name] = self._counts.get(name, 0) + len(values)

    def peek(self, member: int | None = None) -> dict[str, float]:
        """Means so far, of one member where there are several."""
        index = () if member is None else member
        return {
            name: float(total[index]) / self._counts[name] for name, total in self._sums.items()
        }

    def reset(self) -> None:
        """Begins anew."""
        self._sums, self._counts = {}, {}

    def pop(self) -> dict[str, float]:
        """Means so far, which begin anew."""
        means = self.peek()
        self.reset()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        sums = {name: total.tolist() for name, total in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the means."""
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64) for name, total in state["sums"].items()
        }
        # Checkpoints of earlier versions have one count for all names.
        counts = state.get("counts") or {name: state["count"] for name in self._sums}
        self._counts = {name: int(count) for name, count in counts.items()}


class Episode(NamedTuple):
    """A finished episode."""

    episodic_return: float
    num_steps: int


class EpisodeStatistics:
    """Returns of whole episodes, from the rewards of N environments.

    Args:
        num_envs: N.
        window_episodes: how many of the last episodes :meth:`recent_mean` averages.
        gamma: discount per step from the episode's first on; 1 for none.

    >>> episodes = EpisodeStatistics(num_envs=2)
    >>> for last in (False, True):
    ...     ended = episodes.add(np.array([1.0, 2.0]), np.array([last, False]))
    >>> ended, episodes.recent_mean()
    ([Episode(episodic_return=2.0, num_steps=2)], 2.0)
    """

    def __init__(self, num_envs: int, window_episodes: int = 20, gamma: float = 1.0) -> None:
        self._gamma = gamma
        self._return = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._recent: deque[float] = deque(maxlen=window_episodes)
        self.num_episodes = 0
        self.best_return = float("-inf")

    def add(self, reward: NDArray[Any], ended: NDArray[np.bool_]) -> list[Episode]:
        """One step, both ``[N]``; the episodes that ended with it, in environment order."""
        self._return += reward if self._gamma == 1.0 else self._gamma**self._steps * reward
        self._steps += 1
        if not ended.any():
            return []
        finished = [
            Episode(float(r), int(s))
            for r, s in zip(self._return[ended], self._steps[ended], strict=True)
        ]
        self._return[ended] = 0.0
        self._steps[ended] = 0
        self._finish(finished)
        return finished

    def recent_mean(self) -> float:
        """Mean return of the last episodes; NaN before the first has ended."""
        return float(np.mean(self._recent)) if self._recent else float("nan")

    @property
    def recent_returns(self) -> list[float]:
        """Returns of the last episodes, oldest first."""
        return list(self._recent)

    @property
    def running_steps(self) -> NDArray[np.int64]:
        """Steps that each running episode has lasted, int64 ``[N]``."""
        return self._steps.copy()

    def _finish(self, finished: Sequence[Episode]) -> None:
        self._recent.extend(episode.episodic_return for episode in finished)
        self.best_return = max(self.best_return, *(e.episodic_return for e in finished))
        self.num_episodes += len(finished)

    def begin_new_episodes(self) -> None:
        """Forgets the running episodes: the environments were started afresh."""
        self._return[:] = 0.0
        self._steps[:] = 0

    def state_dict(self) -> dict[str, Any]:
        """Running and recent returns."""
        return {
            "return": self._return.copy(),
            "steps": self._steps.copy(),
            "recent": list(self._recent),
            "num_episodes": self.num_episodes,
            "best_return": self.best_return,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the counts."""
        self._return[:] = state["return"]
        self._steps[:] = state["steps"]
        self._recent.clear()
        self._recent.extend(state["recent"])
        self.num_episodes = int(state["num_episodes"])
        # Checkpoints of earlier versions know nothing of it.
        self.best_return = float(state.get("best_return", "-inf"))


class MemberEpisodes:
    """Episode statistics of K learners that are trained side by side, one each.

    Their running episodes move into one memory, so that a step is added to all of them at once;
    each stays usable by itself. Environments come member by member: of K * N, the first N are
    member 0's.

    Args:
        members: K statistics, with N environments and one gamma.

    Raises:
        ValueError: if they differ in that.
    """

    def __init__(self, members: Sequence[EpisodeStatistics]) -> None:
        self.members = list(members)
        self._num_envs = len(members[0]._return)
        self._gamma = members[0]._gamma
        if any((len(m._return), m._gamma) != (self._num_envs, self._gamma) for m in members):
            raise ValueError("the members must have the same number of environments and one gamma")
        self._all = EpisodeStatistics(len(members) * self._num_envs, gamma=self._gamma)
        for k, member in enumerate(members):
            own = slice(k * self._num_envs, (k + 1) * self._num_envs)
            self._all._return[own], self._all._steps[own] = member._return, member._steps
            member._return, member._steps = self._all._return[own], self._all._steps[own]

    def add(self, reward: NDArray[Any], ended: NDArray[np.bool_]) -> None:
        """One step of every environment, both ``[K * N]``."""
        finished = self._all.add(reward, ended)
        for i, episode in zip(np.flatnonzero(ended), finished, strict=True):
            self.members[i // self._num_envs]._finish([episode])


def read_csv(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of a file that :class:`CsvLog` wrote, float64, NaN where a cell is empty.

    Raises:
        UserError: if a cell is no number.
    """
    header, rows = _whole_rows(path)
    try:
        return {
            name: np.array([float(row[i]) if row[i] else math.nan for row in rows])
            for i, name in enumerate(header)
        }
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): mend it or take it away") from error
