"""The documents that show published results, generated from their index.

Generated text stands between two comments,

    <!-- generated: NAME -->
    <!-- end: NAME -->

and everything else in a document is left as it is.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from classicrl.cube_solver import CUBE_PROTOCOL, UNSOLVED_RETURN
from classicrl.errors import UserError
from classicrl.experiment import read_json
from classicrl.reports.comparison import (
    BASELINE,
    NORMALISING_STEPS,
    PROTOCOL,
    Aggregate,
    Comparison,
    Score,
    agreement,
    compare,
    minatar_entries,
    published_scores,
    write_curves,
)
from classicrl.reports.plots import protocol_in_words, write_figure
from classicrl.reports.records import read_run
from classicrl.reports.reference import Entry, read_index
from classicrl.reports.statistics import bootstrap_interval

PAGE = Path("docs/results.md")
PICTURE = Path("docs/results.png")
README = Path("README.md")
MINATAR_PAGE = Path("docs/va_results.md")
MINATAR_PICTURE = Path("docs/va_results.png")

_DIGEST_KEY = "classicrl-data"  # in the PNG: of what it shows

_NEW_PAGE = """\
# Results

Every number comes from a run in `runs/reference/`. `classicrl verify` plays the published weights
again; `classicrl results` writes the parts of this page that stand between comments.

## Scores

<!-- generated: scores -->
<!-- end: scores -->

## Rubik's cube

<!-- generated: cubes -->
<!-- end: cubes -->

## What it took

<!-- generated: ledger -->
<!-- end: ledger -->
"""

_NEW_MINATAR_PAGE = """\
# MinAtar

<!-- generated: minatar -->
<!-- end: minatar -->
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
    """Brings the results pages, their pictures and the README up to date with the index.

    MinAtar has a page of its own; the README shows Atari alone. A README without the comments is
    left alone, and so is a missing page of MinAtar while nothing of it is published.

    Args:
        index: of the published results.
        root: the repository, which has ``docs/`` and ``README.md``.
        check: write nothing.

    Returns:
        The files that were out of date.

    Raises:
        UserError: if a file cannot be read or written, or a page lacks the comments.
    """
    entries = read_index(index)
    minatar = minatar_entries(entries)
    cubes = [entry for entry in entries if entry.protocol == CUBE_PROTOCOL]
    others = [entry for entry in entries if entry.protocol not in (PROTOCOL, CUBE_PROTOCOL)]
    stale = []

    def update_page(page: Path, template: str, blocks: dict[str, str]) -> None:
        old = _read(page) if page.exists() else None
        new = template if old is None else old
        for name, text in blocks.items():
            if not has_block(new, name):
                raise UserError(
                    f"{page} lacks the lines '<!-- generated: {name} -->' and "
                    f"'<!-- end: {name} -->': add them where the text shall stand"
                )
            new = with_block(new, name, text)
        if new != old:
            stale.append(page)
            if not check:
                _write(page, new)

    def update_picture(picture: Path, digest: str, draw: Callable[[Path, str], None]) -> None:
        if _digest_of_picture(picture) != digest:
            stale.append(picture)
            if not check:
                draw(picture, digest)

    def draw_others(picture: Path, digest: str) -> None:
        runs = [read_run(index.parent / entry.path) for entry in others]
        write_figure(runs, picture, metadata={_DIGEST_KEY: digest})

    def draw_minatar(picture: Path, digest: str) -> None:
        write_curves(minatar, index.parent, picture, metadata={_DIGEST_KEY: digest})

    blocks = {"scores": _scores(others, minatar), "ledger": _ledger(entries, index.parent)}
    if cubes:
        blocks["cubes"] = _cubes(cubes)
    update_page(root / PAGE, _NEW_PAGE, blocks)
    readme = root / README
    if readme.exists() and has_block(_read(readme), "results"):
        atari = [entry for entry in entries if entry.env_id.startswith("ALE/")]
        update_page(readme, "", {"results": _summary(atari)})
    if others:
        update_picture(root / PICTURE, _digest(others), draw_others)
    if minatar or (root / MINATAR_PAGE).exists():
        update_page(root / MINATAR_PAGE, _NEW_MINATAR_PAGE, {"minatar": _minatar(minatar)})
    if minatar:
        digest = _digest(minatar, repr(published_scores()))
        update_picture(root / MINATAR_PICTURE, digest, draw_minatar)
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


def _scores(entries: Sequence[Entry], elsewhere: Sequence[Entry]) -> str:
    more = (
        f"MinAtar's results have [a page of their own]({MINATAR_PAGE.name})." if elsewhere else ""
    )
    if not entries:
        return more or "Nothing is published yet."
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
    only_atari = all(entry.env_id.startswith("ALE/") for entry in entries)
    frames = "4 frames" if only_atari else "on Atari 4 frames"
    protocols = "\n".join(
        f"- {name}: {protocol_in_words(name)}."
        for name in dict.fromkeys(entry.protocol for entry in entries)
    )
    return (
        f"{_markdown_table(header, rows)}\n\n"
        f"A step is one decision of the agent, {frames}. Returns are of the final network: the "
        "mean and its 95% interval,\nbootstrapped over seeds, or over games where there is one "
        f"seed. Protocols:\n\n{protocols}\n\n![Learning curves]({PICTURE.name})\n\n{more}"
    )


def _cubes(entries: Sequence[Entry]) -> str:
    rows = []
    for entry in entries:
        low, high = entry.eval.interval_of_mean
        length = f"{-entry.eval.mean_return:.2f} [{-high:.2f}, {-low:.2f}]"
        of_v = ", V" if entry.agent.endswith("-v") else ""
        network = f"{entry.variant}, seed {entry.seed}{of_v}"
        cells = (entry.env_id, network, f"{entry.total_steps:,}")
        rows.append((*cells, f"{entry.hours:.1f}", length, str(entry.eval.episodes)))
    header = ("actions", "network", "updates", "hours", "quarter turns", "cubes")
    return (
        f"{_markdown_table(header, rows)}\n\n"
        "Mean length of the solutions of random cubes (100 to 200 random quarter turns each) with "
        f"the preset `fast`,\nand its 95% interval over the cubes; one that stays unsolved counts "
        f"{-UNSOLVED_RETURN:.0f}. [How they are solved](qstar.md)."
    )


def _ledger(entries: Sequence[Entry], reference_root: Path) -> str:
    if not entries:
        return "Nothing is published yet."
    ordered = sorted(entries, key=lambda entry: entry.path)
    together = [_seeds_side_by_side(reference_root / entry.path) for entry in ordered]
    hours = [entry.hours / count for entry, count in zip(ordered, together, strict=True)]
    rows = [
        (
            e.name,
            f"{e.total_steps:,}",
            f"{e.total_steps / (h * 3600):.0f}" if h > 0 else "-",
            f"{h:.2f}",
            e.machine or "not recorded",
            _commit(e),
        )
        for e, h in zip(ordered, hours, strict=True)
    ]
    header = ("run", "steps", "steps/s", "hours", "machine", "commit")
    commands = "\n".join(
        f"# {e.name}{f': {e.note}' if e.note else ''}\n{e.command}" for e in ordered
    )
    shared = (
        "Seeds that were trained side by side in one process share its hours evenly.\n"
        if any(count > 1 for count in together)
        else ""
    )
    return (
        f"{_markdown_table(header, rows)}\n\n{sum(hours):.1f} hours in all. "
        f"Hours are wall time, evaluations included; so is the rate.\n{shared}"
        f"\n```sh\n{commands}\n```"
    )


def _commit(entry: Entry) -> str:
    """Its first digits, and a plus where the code had changes beside it."""
    if not entry.commit:
        return "not recorded"
    return entry.commit[:12] + "+" * (" with changes" in entry.commit)


def _seeds_side_by_side(directory: Path) -> int:
    """How many seeds one process trained at a time: each of them recorded the hours of all."""
    path = directory / "summary.json"
    return int(read_json(path).get("num_seeds") or 1) if path.exists() else 1


def _summary(entries: Sequence[Entry]) -> str:
    if not entries:
        return "No Atari result is published yet."
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


def _minatar(entries: Sequence[Entry]) -> str:
    if not entries:
        return "No MinAtar result is published yet."
    games = "/".join(map(str, sorted({entry.eval.episodes for entry in entries})))
    epsilons = "/".join(f"{e:g}" for e in sorted({entry.eval.epsilon for entry in entries}))
    comparisons = compare(entries)
    several = len({comparison.variant for comparison in comparisons}) > 1
    return "\n\n".join(
        [
            *(_comparison(comparison, name_variant=several) for comparison in comparisons),
            "Returns are of the final network, over "
            f"{games} games for each seed at epsilon {epsilons}: the mean over seeds\n"
            "and its 95% interval, bootstrapped over seeds, or over games where there is one seed. "
            "Published:\nB. Daley et al., arXiv 2507.09523, repository brett-daley/reg-duel-q, "
            "`rlc_results.zip`: the mean\nover seeds, 1.96 standard errors, the number of seeds.",
            f"![Learning curves]({MINATAR_PICTURE.name})",
        ]
    )


def _comparison(comparison: Comparison, *, name_variant: bool) -> str:
    of_variant = f", {comparison.variant}" if name_variant else ""
    header = ("game", "agent", "steps", "return", "seeds", "published", "ours to it", "z")
    rows = [_minatar_row(score, comparison.total_steps) for score in comparison.scores]
    parts = [
        f"### {comparison.total_steps:,} steps{of_variant}",
        _markdown_table(header, rows),
    ]
    together = agreement(comparison.scores)
    if together is not None:
        of_all = (
            f"\nOver {together.num_scores} rows its squares add up to "
            f"{together.sum_of_squares:.1f}; chance alone makes as much or more with probability "
            f"{together.chance:.2f}.\nTheir sum is {together.lean:+.1f} standard errors of a sum; "
            "chance alone leans as far to one side or the other\nwith probability "
            f"{together.chance_of_lean:.2f}."
        )
        parts.append(
            "z: our mean less the published one, in standard errors, all seeds taken to scatter as "
            f"the published do.{of_all if together.num_scores > 1 else ''}"
        )
    means = comparison.interquartile_means
    if means:
        parts += [
            "Over games: the interquartile mean of all scores of an agent, each divided by the "
            f"published mean of\n{BASELINE} at {NORMALISING_STEPS:,} steps in its game, so that "
            "games weigh alike and 1 stands for that mean. Over the\ngames that every agent of the "
            f"table has played: {', '.join(means[0].games)}.",
            _markdown_table(
                ("agent", "interquartile mean", "seeds in a game"),
                [(mean.agent, _shown(mean), _seeds_in_a_game(mean)) for mean in means],
            ),
        ]
    if comparison.improvements:
        parts += [
            f"The probability that a run of the agent scores above a run of {BASELINE}, mean over "
            "the games that both have played:",
            _markdown_table(
                ("agent", f"above {BASELINE}", "games", "seeds in a game"),
                [
                    (gain.agent, _shown(gain), ", ".join(gain.games), _seeds_in_a_game(gain))
                    for gain in comparison.improvements
                ],
            ),
            "The same game by game:",
            _markdown_table(
                ("game", "agent", f"above {BASELINE}", "seeds"),
                [
                    (*gain.games, gain.agent, _shown(gain), _seeds_in_a_game(gain))
                    for gain in comparison.improvements_by_game
                ],
            ),
        ]
    if means or comparison.improvements:
        parts.append(
            "Intervals over games: 95%, stratified bootstrap over the seeds of each game (Agarwal "
            "et al. 2021,\narXiv 2108.13264); none is given where a game has a single seed."
        )
    return "\n\n".join(parts)


def _minatar_row(score: Score, total_steps: int) -> tuple[str, ...]:
    mean, low, high = score.estimate
    other = score.published
    return (
        score.game,
        score.agent,
        f"{total_steps:,}",
        f"{mean:.1f} [{low:.1f}, {high:.1f}]",
        str(len(score.by_seed)),
        f"{other.mean:.1f} +- {other.half_width:.1f} ({other.seeds} seeds)" if other else "-",
        score.verdict or "-",
        "-" if score.z is None else f"{score.z:+.1f}",
    )


def _shown(aggregate: Aggregate) -> str:
    value, low, high = aggregate.estimate
    return f"{value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if aggregate.fewest_seeds > 1 else "")


def _seeds_in_a_game(aggregate: Aggregate) -> str:
    fewest, most = aggregate.fewest_seeds, aggregate.most_seeds
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _digest(entries: Sequence[Entry], *more: str) -> str:
    """Of the published curves and what else is drawn: PNGs differ with every matplotlib."""
    files = sorted(f"{e.path}/{file} {digest}" for e in entries for file, digest in e.files.items())
    return hashlib.sha256("\n".join([*files, *more]).encode()).hexdigest()


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
