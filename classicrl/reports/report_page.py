"""A run directory as one page of HTML: what was trained, how it went, where and with what.

Reads what any agent leaves, and goes on where a file is missing or damaged: the page then says so.
Nothing is computed anew, so every figure is one of the files'.
"""

import csv
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classicrl.checkpoint import write_atomic
from classicrl.console import duration_in_words
from classicrl.errors import UserError
from classicrl.experiment import MODEL_FILE, read_json
from classicrl.reports.plots import protocol_in_words
from classicrl.reports.publish import command_of
from classicrl.reports.records import Array, card_of_model, read_curves
from classicrl.views import html_page as html
from classicrl.views.line_chart import Line

REPORT_FILE = "report.html"

_UNKNOWN_AGENT = "An agent not recorded"
_SMALL = (320, 190)
_MAX_ROWS = 200  # of a table
_MAX_WORDS = 200  # characters of a value
_MAX_SEEDS = 100
_RETURN_COLUMNS = ("charts/episodic_return", "episodic_return")
# Of evaluations.csv: how it was played, not how well.
_OF_THE_PLAY = {"step", "episodes", "epsilon", "max_frames_per_episode", "std_return"}
_GROUPS = {
    "charts": "Progress",
    "losses": "Losses",
    "diagnostics": "Diagnostics",
    "": "Other figures",
}
# What the page says elsewhere.
_TOLD = {"agent", "env_id", "protocol", "seed", "eval", "machine", "device", "versions"}
_TOLD |= {"total_steps", "wall_seconds", "config"}
_PICTURES = {
    "video.gif": ("A game of the trained agent", "The last game that was recorded"),
    "bonus.png": ("The bonus of each step of that game", "Its exploration bonus, step by step"),
}


class RunFiles(NamedTuple):
    """What could be read of a run directory.

    Attributes:
        directory: of the run.
        record: of ``config.json``.
        settings: the configuration in it, or in the summary.
        summary: empty if the run is not finished.
        card: of the model file.
        metrics, evaluations: columns ``[rows]``.
        problems: a line for each file that is damaged or missing.
    """

    directory: Path
    record: dict[str, Any]
    settings: dict[str, Any]
    summary: dict[str, Any]
    card: dict[str, str]
    metrics: dict[str, Array]
    evaluations: dict[str, Array]
    problems: list[str]

    def known(self, name: str) -> Any:
        """A fact, from the summary, the configuration or the model file; None if none knows it."""
        for source in (self.summary, self.settings, self.card):
            if source.get(name) is not None:
                return source[name]
        return None

    @property
    def agent(self) -> str:
        """Its name; where no file says it yet, that in ``runs/<agent>/<environment>/seed0``."""
        path = self.directory.resolve()
        if not self.known("agent") and re.fullmatch(r"seeds?[0-9-]+", path.name):
            return path.parent.parent.name
        return in_words(self.known("agent") or _UNKNOWN_AGENT)

    @property
    def env_id(self) -> str:
        """Of the environment."""
        names = (self.known("env_id"), self.known("env"), self.known("domain"))
        if self.known("actions") and not names[0]:
            return f"cube3-{in_words(self.known('actions'))}"
        return in_words(next((name for name in names if name), "an environment not recorded"))

    @property
    def step_word(self) -> str:
        """What a step is called: an update, where no environment is stepped through."""
        return "updates" if "log_period_updates" in self.settings else "steps"

    @property
    def last_step(self) -> float:
        """The last one of the curves; NaN if there is none."""
        steps = [t["step"][-1] for t in (self.metrics, self.evaluations) if len(t.get("step", ()))]
        return max(steps, default=math.nan)


def read_files(directory: Path) -> RunFiles:
    """All that can be read of a run directory.

    Raises:
        UserError: there is nothing in it that a run writes, or it is no directory.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: name a run directory")
    problems: list[str] = []

    def read(name: str, reader: Any) -> dict[str, Any]:
        path = directory / name
        if not path.exists():
            return {}
        try:
            found: dict[str, Any] = reader(path)
            return found
        except UserError as error:
            problems.append(str(error))
            return {}

    record = read("config.json", read_json)
    summary = read("summary.json", read_json)
    metrics = read("metrics.csv", read_curves)
    evaluations = read("evaluations.csv", read_curves)
    card = card_of_model(directory / MODEL_FILE)
    if not (record or summary or metrics or evaluations or card):
        why = f": {problems[0]}" if problems else ": name one that a script of agents/ has written"
        raise UserError(f"{directory} holds nothing of a run that can be read{why}")
    settings = record.get("config", summary.get("config", {}))
    if not isinstance(settings, dict):
        problems.append("the configuration in config.json is no table of names and values")
        settings = {}
    for name in ("config.json", "metrics.csv"):
        if not (directory / name).exists() and not _is_group(settings):
            problems.append(f"there is no {name}")
    return RunFiles(directory, record, settings, summary, card, metrics, evaluations, problems)


def write_report(directory: Path, out: Path | None = None) -> Path:
    """Writes the page of a run directory; returns its path.

    Args:
        directory: of the run, finished or not; or the one that seeds trained side by side share.
        out: of the page. Default: ``report.html`` in the run directory.

    Raises:
        UserError: see :func:`read_files`; or the page cannot be written.
    """
    run = read_files(directory)
    out = out or directory / REPORT_FILE
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is no directory: make it, or choose another --out")
    write_page(run_page(run, except_file=out), out)
    return out


def write_page(text: str, out: Path) -> None:
    """Writes a page, atomically.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        # What a damaged file holds may not be text; the page still is.
        write_atomic(out, text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}): choose another --out") from error


def run_page(run: RunFiles, *, except_file: Path | None = None) -> str:
    """The page of a run; ``except_file`` is left out of its table of files."""
    seeds = _seeds_of(run)
    problems = list(run.problems)
    pictures = picture_figures(run, problems)
    sections = [
        _curves(run, seeds),
        html.section("Pictures", html.group("pictures", pictures)) if pictures else "",
        _evaluations(run, seeds),
        _other_figures(run),
        _trained(run),
        _machine_and_versions(run),
        _history(run),
        _files(run.directory, except_file),
    ]
    unfinished = [] if run.summary else [_unfinished(run)]
    notes = [html.section("Not whole", html.items([*unfinished, *problems]), kind="notes")]
    return html.page(
        f"{run.agent} on {run.env_id}",
        _lead(run),
        [*(notes if unfinished or problems else []), *filter(None, sections)],
        over="Report of a training run",
        figures=_large_figures(run),
        footer=f"Made by classicrl report from {run.directory} at {_utc(time.time())}.",
    )


# What the page says.


def _lead(run: RunFiles) -> str:
    scores = scores_of(run)
    protocol = run.known("protocol")
    rules = f" Protocol {protocol}: {protocol_in_words(str(protocol))}." if protocol else ""
    if scores is None:
        return (
            f"{'Finished' if run.summary else 'Not finished'}; no final evaluation is recorded."
            f"{rules}"
        )
    return (
        f"The last evaluation returned {scores}: mean and standard deviation over games, played "
        f"without learning.{rules}"
    )


def scores_of(run: RunFiles) -> str | None:
    """Return of the final evaluation, in words; None if there is none."""
    scores = run.summary.get("eval")
    if not isinstance(scores, dict) or "mean_return" not in scores:
        return None
    words = in_words(scores["mean_return"])
    if "std_return" in scores:
        words += f" ± {in_words(scores['std_return'])}"
    return words + (f" over {in_words(scores['episodes'])} games" if "episodes" in scores else "")


def _large_figures(run: RunFiles) -> list[tuple[str, str]]:
    found: list[tuple[str, Any]] = []
    scores = run.summary.get("eval")
    if isinstance(scores, dict):
        found.append(("mean return of the last evaluation", scores.get("mean_return")))
    steps = run.summary.get("total_steps")
    if steps is None and math.isfinite(run.last_step):
        steps = int(run.last_step)
    found += [(run.step_word, steps), ("seed", run.known("seed"))]
    if _is_group(run.settings):
        found.append(("seeds, from that on", run.settings.get("num_seeds")))
    found.append(("wall time", duration(run.summary.get("wall_seconds"))))
    found.append((f"{run.step_word} per second", run.summary.get("steps_per_second")))
    found.append(("parameters", run.summary.get("num_parameters")))
    return [(name, in_words(value)) for name, value in found if value is not None]


def _unfinished(run: RunFiles) -> str:
    total = run.settings.get("total_steps") or run.settings.get("total_updates")
    words = "there is no summary.json: the run is going on, was stopped, or failed"
    if math.isfinite(run.last_step):
        words += f"; the last row is of step {in_words(int(run.last_step))}"
        words += f" of {in_words(total)}" if total else ""
    return words


def _curves(run: RunFiles, seeds: Mapping[int, RunFiles]) -> str:
    parts = [return_chart(list(seeds.items()) or [(None, run)], run.step_word)]
    if seeds:
        parts.append(html.paragraph("One line per seed. Each seed has a report of its own."))
    parts += _multiples(run.evaluations, "Evaluations", run.step_word, "evaluation", marked=True)
    for prefix, heading in _GROUPS.items():
        columns = {"step": run.metrics.get("step", np.empty(0))}
        for name, values in run.metrics.items():
            own = name.rpartition("/")[0] if name.rpartition("/")[0] in _GROUPS else ""
            if own == prefix and name not in (*_RETURN_COLUMNS, "step"):
                columns[name] = values
        parts += _multiples(columns, heading, run.step_word, "training")
    return html.section("Curves", *filter(None, parts))


def return_chart(
    runs: Sequence[tuple[object, RunFiles]],
    step_word: str,
    *,
    title: str = "Return of a game",
    size: tuple[int, int] = (1000, 340),
    colours: Sequence[int] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Returns in training as lines, those of evaluations as points; nothing without either.

    Args:
        runs: with a name each; None: what is drawn names itself. Equal names are shown once.
        step_word: under the axis.
        title, size, y_range: of the chart.
        colours: of each run. Default: one after the other.
    """
    lines = []
    for number, (name, run) in enumerate(runs):
        colour = number if colours is None else colours[number]
        own = f"seed {name}" if isinstance(name, int) else str(name)
        thin = len(runs) > 2
        trained = next((run.metrics[c] for c in _RETURN_COLUMNS if c in run.metrics), None)
        if trained is not None:
            label = "training, mean of recent games" if name is None else own
            lines.append(Line(label, run.metrics["step"], trained, colour=colour, thin=thin))
        scores = run.evaluations.get("mean_return")
        if scores is not None and (name is None or trained is None):
            label = "evaluation ± standard deviation over games" if name is None else own
            spread = run.evaluations.get("std_return") if name is None else None
            lines.append(
                Line(
                    label,
                    run.evaluations["step"],
                    scores,
                    marked=True,
                    spread=spread,
                    colour=colour + (name is None),
                    thin=thin,
                )
            )
    if not lines:
        return ""
    return html.chart(lines, title=title, x_label=step_word, size=size, y_range=y_range)


def _multiples(
    columns: Mapping[str, Array], heading: str, step_word: str, source: str, marked: bool = False
) -> list[str]:
    """A small chart for each column that has a value; nothing if none has."""
    # What only grows, such as the wall time, is not seen better by its logarithm.
    y_range = (0.0, 0.0) if heading == _GROUPS["charts"] else None
    charts = []
    for name, values in columns.items():
        if name in _OF_THE_PLAY or name == "mean_return" or not np.isfinite(values).any():
            continue
        label = name.rpartition("/")[2].replace("_", " ")
        line = Line(source, columns["step"], values, marked=marked)
        charts.append(
            html.chart([line], title=label, x_label=step_word, size=_SMALL, y_range=y_range)
        )
    return [html.subheading(heading), html.group("multiples", charts)] if charts else []


def picture_figures(run: RunFiles, problems: list[str]) -> list[str]:
    """Figures of the pictures in a run directory; what cannot be shown joins the problems."""
    found = [path for kind in ("*.gif", "*.png") for path in run.directory.glob(kind)]
    order = list(_PICTURES)
    found.sort(key=lambda p: (order.index(p.name) if p.name in order else len(order), p.name))
    figures = []
    for path in found:
        alt, caption = _PICTURES.get(path.name, (f"Picture {path.stem} of the run", path.name))
        try:
            shown = html.read_picture(path)
        except UserError as error:
            problems.append(str(error))
            continue
        what = f"{alt}: {run.agent} on {run.env_id}"
        figures.append(html.picture(shown, what, f"{caption} ({path.name})"))
    return figures


def _evaluations(run: RunFiles, seeds: Mapping[int, RunFiles]) -> str:
    parts = []
    if seeds:
        rows = []
        for seed, of_seed in seeds.items():
            state = scores_of(of_seed) or "not finished"
            rows.append((f"seed {seed}", in_words(of_seed.last_step), state))
        header = ("seed", f"last of its {run.step_word}", "return of the last evaluation")
        parts.append(html.table("The seeds trained side by side", header, rows))
    columns = run.evaluations
    if len(columns.get("step", ())):
        names = [name.replace("_", " ") for name in columns]
        table = list(zip(*columns.values(), strict=True))
        # The last ones count most.
        rows_of_words = [[in_words(float(value)) for value in row] for row in table[-_MAX_ROWS:]]
        caption = "Games without learning; a standard deviation is over games"
        if len(table) > _MAX_ROWS:
            caption += f"; the last {_MAX_ROWS} of {len(table):,} evaluations"
        shown = html.table(caption, names, rows_of_words, numbers=True)
        parts.append(
            shown if len(table) <= 12 else html.folded(f"{len(table):,} evaluations", shown)
        )
    scores = run.summary.get("eval")
    if isinstance(scores, dict):
        rows_of_facts = list(_facts(scores))
        parts.append(html.table("The final evaluation", ("figure", "value"), rows_of_facts))
    return html.section("Evaluations", *parts) if parts else ""


def _other_figures(run: RunFiles) -> str:
    rows = list(_facts({k: v for k, v in run.summary.items() if k not in _TOLD}))
    parts = []
    if rows:
        parts.append(html.table("As the run's summary.json has them", ("figure", "value"), rows))
    tables = (p for p in run.directory.glob("*.csv") if p.stem not in ("metrics", "evaluations"))
    for path in sorted(tables):
        parts.append(html.folded(path.name, _plain_table(path)))
    return html.section("Other results", *parts) if parts else ""


def _trained(run: RunFiles) -> str:
    parts = []
    try:
        if run.agent == _UNKNOWN_AGENT or not isinstance(run.record.get("config"), dict):
            raise UserError("no file names the script")
        command = command_of(run.agent, run.record)
        parts.append(html.paragraph("The command that trains it again, every setting spelt out:"))
        parts.append(html.code(command))
    except UserError:
        parts.append(html.paragraph("The command that trained it is not recorded."))
    rows = list(_facts(run.settings))
    if rows:
        shown = html.table("As config.json has them", ("setting", "value"), rows)
        parts.append(html.folded(f"All {len(rows)} settings", shown))
    rows = list(_facts(run.card))
    if rows:
        shown = html.table("As model.safetensors has them", ("name", "value"), rows)
        parts.append(html.folded("What the model file says of itself", shown))
    return html.section("What was trained", *parts)


def _machine_and_versions(run: RunFiles) -> str:
    parts = [html.paragraph(f"Machine: {in_words(run.summary.get('machine') or 'not recorded')}.")]
    rows = version_rows([run.record.get("versions"), run.summary.get("versions")])
    if rows:
        header = ("software", "when it began", "when it ended")
        parts.append(html.table("Versions", header, rows))
    return html.section("Machine and versions", *parts)


def version_rows(columns: Sequence[Any]) -> list[list[str]]:
    """A row for each name that one of the tables of versions knows, and what each says of it."""
    tables = [table if isinstance(table, dict) else {} for table in columns]
    names = dict.fromkeys(name for table in tables for name in table)
    return [[name, *(in_words(table.get(name, "-")) for table in tables)] for name in names]


def _history(run: RunFiles) -> str:
    created, changes = run.record.get("created"), run.record.get("changes")
    if created is None and changes is None:
        return ""
    parts = [html.paragraph(f"Begun at {in_words(created or 'a time that is not recorded')}.")]
    rows = []
    for change in changes if isinstance(changes, list) else [changes]:
        if isinstance(change, dict):
            fields = change.get("fields")
            set_anew = _facts(fields) if isinstance(fields, dict) else [("", in_words(fields))]
            words = ", ".join(f"{name} {value}".strip() for name, value in set_anew)
            rows.append((in_words(change.get("at", "-")), words))
    if rows:
        parts.append(html.table("Continued with other settings", ("at", "set anew"), rows))
    else:
        parts.append(html.paragraph("It was never continued with other settings."))
    parts.append(html.paragraph("Stops after which it went on as before leave no trace here."))
    return html.section("History", *parts)


def _files(directory: Path, except_file: Path | None) -> str:
    rows = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or (except_file and path.name == except_file.name):
            continue
        about = path.lstat()
        if path.is_dir() and not path.is_symlink():
            inside = [p.lstat().st_size for p in path.rglob("*") if not p.is_dir()]
            size = f"{size_in_words(sum(inside))} in {len(inside):,} files"
            rows.append((f"{path.name}/", size, _utc(about.st_mtime)))
        else:
            rows.append((path.name, size_in_words(about.st_size), _utc(about.st_mtime)))
    where = f"In {directory}"
    if len(rows) > _MAX_ROWS:
        where += f"; {_MAX_ROWS} of {len(rows):,}"
    return html.section("Files", html.table(where, ("name", "size", "changed"), rows[:_MAX_ROWS]))


def _plain_table(path: Path) -> str:
    """A CSV file of any columns."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        return html.paragraph(f"It cannot be read as a table ({error}).")
    if len(rows) < 2:
        return html.paragraph("It is empty.")
    header = rows[0]
    whole = [[cell[:_MAX_WORDS] for cell in row] for row in rows[1:] if len(row) == len(header)]
    caption = f"{path.name}, {len(whole):,} rows"
    caption += f", of which the first {_MAX_ROWS}" if len(whole) > _MAX_ROWS else ""
    return html.table(caption, header, whole[:_MAX_ROWS]) if header else ""


# Seeds that were trained side by side.


def _is_group(settings: Mapping[str, Any]) -> bool:
    count = settings.get("num_seeds")
    return isinstance(count, int) and count > 1


def _seeds_of(run: RunFiles) -> dict[int, RunFiles]:
    """The runs whose shared directory this is; none for any other."""
    first = run.settings.get("seed")
    if not _is_group(run.settings) or not isinstance(first, int) or abs(first) >= 2**63:
        return {}
    found = {}
    for seed in range(first, first + min(run.settings["num_seeds"], _MAX_SEEDS)):
        try:
            found[seed] = read_files(run.directory.parent / f"seed{seed}")
        except UserError as error:
            run.problems.append(str(error))
    return found


# Values in words.


def in_words(value: Any) -> str:
    """A value of a JSON file in few characters: numbers rounded, long lists summed up."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            # Such as a seed: beyond this a reader counts no digits, and Python prints none.
            return f"{value:,}" if abs(value) < 10**18 else f"{float_of(value):.4g}"
        case float():
            if not math.isfinite(value):
                return "-" if math.isnan(value) else str(value)
            whole = value.is_integer() or abs(value) >= 1e4
            return f"{value:,.0f}" if whole else f"{value:.4g}"
        case list() if len(value) > 8 and all(type(v) in (int, float) for v in value):
            numbers = [float_of(v) for v in value]
            mean = in_words(sum(numbers) / len(numbers))
            low, high = in_words(min(numbers)), in_words(max(numbers))
            return f"{len(value)} numbers from {low} to {high}, mean {mean}"
        case list() if any(isinstance(v, dict | list) for v in value):
            return f"{len(value)} entries"
        case list():
            words = ", ".join(in_words(v) for v in value[:20])
        case str():
            words = value
        case _:
            words = json.dumps(value, default=str)
    return words if len(words) <= _MAX_WORDS else words[:_MAX_WORDS] + " ..."


def float_of(value: float) -> float:
    """As a float; infinite where an integer is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def duration(seconds: Any) -> str | None:
    """Such as ``1 h 12 min``; None for what is no number of seconds."""
    if not isinstance(seconds, int | float) or not 0 <= float_of(seconds) < 1e12:
        return None
    return duration_in_words(seconds)


def size_in_words(num_bytes: int) -> str:
    """Such as ``3.1 MiB``."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def _facts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, nested ones with a dot between."""
    for name, value in values.items():
        if isinstance(value, dict) and prefix.count(".") < 3:
            yield from _facts(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", in_words(value)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
