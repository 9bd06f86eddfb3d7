"""The documents that show published results, generated from their index.

Generated text stands between two comments,

    <!-- generated: NAME -->
    <!-- end: NAME -->

and everything else in a document is left as it is.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from classicrl.errors import UserError
from classicrl.reports.plots import protocol_in_words, write_figure
from classicrl.reports.records import read_run
from classicrl.reports.reference import Entry, read_index
from classicrl.reports.statistics import bootstrap_interval

PAGE = Path("docs/results.md")
PICTURE = Path("docs/results.png")
README = Path("README.md")

_DIGEST_KEY = "classicrl-data"  # in the PNG: of what it shows

_NEW_PAGE = """\
# Results

Every number comes from a run in `runs/reference/`. `classicrl verify` plays the published weights
again; `classicrl results` writes the parts of this page that stand between comments.

## Scores

<!-- generated: scores -->
<!-- end: scores -->

## What it took

<!-- generated: ledger -->
<!-- end: ledger -->
"""


class _Method(NamedTuple):
    """Runs that differ in the seed alone."""

    entries: list[Entry]

    @property
    def title(self) -> str:
        entry = self.entries[0]
        return f"{entry.agent} {entry.variant}"

    @property
    def score(self) -> str:
        """Mean over seeds and its interval; over the games of a single seed."""
        means = [entry.eval.mean_return for entry in self.entries]
        if len(means) > 1:
            low, high = (float(end) for end in bootstrap_interval(means))
        else:
            low, high = self.entries[0].eval.interval_of_mean
        return f"{np.mean(means):.1f} [{low:.1f}, {high:.1f}]"


def write_results(index: Path, root: Path = Path(), *, check: bool = False) -> list[Path]:
    """Brings the results page, its picture and the README up to date with the index.

    A README without the comments is left alone.

    Args:
        index: of the published results.
        root: the repository, which has ``docs/`` and ``README.md``.
        check: write nothing.

    Returns:
        The files that were out of date.

    Raises:
        UserError: if a file cannot be read or written, or the page lacks the comments.
    """
    entries = read_index(index)
    page, picture, readme = root / PAGE, root / PICTURE, root / README
    blocks = {"scores": _scores(entries), "ledger": _ledger(entries)}
    stale = []
    old = _read(page) if page.exists() else None
    new = _NEW_PAGE if old is None else old
    for name, text in blocks.items():
        if not has_block(new, name):
            raise UserError(
                f"{page} lacks the lines '<!-- generated: {name} -->' and '<!-- end: {name} -->': "
                "add them where the text shall stand"
            )
        new = with_block(new, name, text)
    if new != old:
        stale.append(page)
        if not check:
            _write(page, new)
    if readme.exists():
        old = _read(readme)
        new = with_block(old, "results", _summary(entries)) if has_block(old, "results") else old
        if new != old:
            stale.append(readme)
            if not check:
                _write(readme, new)
    digest = _digest(entries)
    if entries and _digest_of_picture(picture) != digest:
        stale.append(picture)
        if not check:
            runs = [read_run(index.parent / entry.path) for entry in entries]
            write_figure(runs, picture, metadata={_DIGEST_KEY: digest})
    return stale


def has_block(text: str, name: str) -> bool:
    """Whether a document has the two comments of this name, in order."""
    return _block(name).search(text) is not None


def with_block(text: str, name: str, content: str) -> str:
    """The document with ``content`` between the comments of this name."""
    return _block(name).sub(
        lambda match: f"{match['begin']}\n\n{content.strip()}\n\n{match['end']}", text, count=1
    )


def _block(name: str) -> re.Pattern[str]:
    begin, end = re.escape(f"<!-- generated: {name} -->"), re.escape(f"<!-- end: {name} -->")
    return re.compile(f"(?P<begin>{begin}).*?(?P<end>{end})", re.DOTALL)


def _methods(entries: Sequence[Entry]) -> list[_Method]:
    groups: dict[tuple[str | int, ...], list[Entry]] = {}
    for entry in sorted(entries, key=lambda e: (e.env_id, e.protocol, e.agent, e.variant, e.seed)):
        key = (entry.env_id, entry.protocol, entry.agent, entry.variant, entry.total_steps)
        groups.setdefault(key, []).append(entry)
    return [_Method(group) for group in groups.values()]


def _scores(entries: Sequence[Entry]) -> str:
    if not entries:
        return "Nothing is published yet."
    rows = []
    for method in _methods(entries):
        first = method.entries[0]
        each = ", ".join(f"{e.eval.mean_return:.1f} (seed {e.seed})" for e in method.entries)
        games = sorted({e.eval.episodes for e in method.entries})
        epsilons = sorted({e.eval.epsilon for e in method.entries})
        rows.append(
            (
                first.env_id,
                first.protocol,
                method.title,
                f"{first.total_steps:,}",
                method.score,
                each,
                "/".join(map(str, games)),
                "/".join(f"{epsilon:g}" for epsilon in epsilons),
            )
        )
    header = ("game", "protocol", "agent", "steps", "return", "by seed", "games", "epsilon")
    protocols = "\n".join(
        f"- {name}: {protocol_in_words(name)}."
        for name in dict.fromkeys(entry.protocol for entry in entries)
    )
    return (
        f"{_markdown_table(header, rows)}\n\n"
        "A step is one decision of the agent, 4 frames. Returns are of the final network: the mean "
        "and its 95% interval,\nbootstrapped over seeds, or over games where there is one seed. "
        f"Protocols:\n\n{protocols}\n\n![Learning curves]({PICTURE.name})"
    )


def _ledger(entries: Sequence[Entry]) -> str:
    if not entries:
        return "Nothing is published yet."
    ordered = sorted(entries, key=lambda entry: entry.path)
    rows = [
        (
            e.name,
            f"{e.total_steps:,}",
            f"{e.total_steps / (e.hours * 3600):.0f}" if e.hours > 0 else "-",
            f"{e.hours:.2f}",
            e.machine or "not recorded",
            (e.commit or "not recorded").replace(" with changes", "+")[:12],
        )
        for e in ordered
    ]
    header = ("run", "steps", "steps/s", "hours", "machine", "commit")
    commands = "\n".join(f"# {e.name}\n{e.command}" for e in ordered)
    total = sum(entry.hours for entry in entries)
    return (
        f"{_markdown_table(header, rows)}\n\n"
        f"{total:.1f} hours in all. Hours are wall time, evaluations included; so is the rate.\n"
        f"\n```sh\n{commands}\n```"
    )


def _summary(entries: Sequence[Entry]) -> str:
    if not entries:
        return "Nothing is published yet."
    rows = []
    for method in _methods(entries):
        first = method.entries[0]
        hours = float(np.mean([entry.hours for entry in method.entries]))
        machines = dict.fromkeys(entry.machine or "not recorded" for entry in method.entries)
        rows.append(
            (
                f"{first.env_id} ({first.protocol})",
                method.title,
                f"{first.total_steps:,}",
                f"{hours:.1f}",
                "; ".join(machines),
                method.score,
                str(len(method.entries)),
            )
        )
    header = ("game", "agent", "steps", "hours", "machine", "return [95% interval]", "seeds")
    return _markdown_table(header, rows)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _digest(entries: Sequence[Entry]) -> str:
    """Of the published curves: a PNG's own bytes differ with every matplotlib."""
    files = sorted(f"{e.path}/{file} {digest}" for e in entries for file, digest in e.files.items())
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def _digest_of_picture(path: Path) -> str | None:
    try:
        with Image.open(path) as picture:
            digest = picture.info.get(_DIGEST_KEY)
    except OSError:
        return None
    return str(digest) if digest else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
