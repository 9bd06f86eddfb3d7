"""MinAtar: published agents beside one another, and beside figures that others have published.

Those figures, ``minatar_published.csv``, are of B. Daley et al.'s study of regularised dueling
Q-learning (arXiv 2507.09523; repository brett-daley/reg-duel-q, ``rlc_results.zip``): mean return
over seeds, and the half width of its 95% interval, 1.96 standard errors.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from classicrl.errors import UserError
from classicrl.reports.plots import (
    new_figure,
    protocol_in_words,
    require_plots,
    save_figure,
    write_caption,
)
from classicrl.reports.records import RunRecord, curve, on_common_range, read_run
from classicrl.reports.reference import Entry
from classicrl.reports.statistics import (
    Estimate,
    bootstrap_interval,
    interquartile_mean,
    probability_of_improvement,
    stratified_bootstrap,
)
from classicrl.views.line_chart import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROTOCOL = "minatar"
BASELINE = "dqn"
NORMALISING_STEPS = 1_000_000
"""Scores are divided by the published mean of the baseline at this step."""

_PUBLISHED_FILE = "minatar_published.csv"
_FAMILY = "va_minatar-"  # agents/va_minatar.py calls its members so

# In this order, and in Okabe and Ito's colours; others follow in the order of their names.
_COLOURS = {
    "dqn": "#000000",
    "dueling": "#0072B2",
    "dueling-behaviour": "#56B4E9",
    "va": "#D55E00",
    "va-raw": "#E69F00",
    "va-fitted": "#CC79A7",
    "rdq": "#009E73",
}
_MORE_COLOURS = ("#999999", "#F0E442")
_PANEL_INCHES = (4.4, 3.4)
_COLUMNS = 3


class Published(NamedTuple):
    """A figure of the other study."""

    mean: float
    half_width: float
    """Of the 95% interval."""
    seeds: int


class Score(NamedTuple):
    """How an agent of ours did in a game, over its seeds."""

    game: str
    agent: str
    by_seed: dict[int, float]
    """Seed -> mean return of the final network."""
    estimate: Estimate
    """The mean over seeds; of a single seed, the interval is over its games."""
    published: Published | None
    """The same agent after as many steps, if the other study has it."""

    @property
    def verdict(self) -> str | None:
        """Whether the two intervals overlap, or where ours lies; None for one seed or no figure."""
        if self.published is None or len(self.by_seed) == 1:
            return None
        mean, half_width, _ = self.published
        if self.estimate.low > mean + half_width:
            return "above"
        return "below" if self.estimate.high < mean - half_width else "overlaps"

    @property
    def z(self) -> float | None:
        """Our mean less the published one, in standard errors; None where there is no verdict.

        Between seeds both are taken to scatter as the other study's do: its half width tells how
        much, from many seeds, where our few would say so badly.
        """
        if self.published is None or len(self.by_seed) == 1:
            return None
        mean, half_width, seeds = self.published
        deviation = half_width / 1.96 * math.sqrt(seeds)
        error = deviation * math.sqrt(1 / len(self.by_seed) + 1 / seeds)
        return (self.estimate.value - mean) / error


class Aggregate(NamedTuple):
    """A figure over several games."""

    agent: str
    games: list[str]
    fewest_seeds: int
    """In one game; with 1 the interval says too little, for that game does not vary."""
    most_seeds: int
    estimate: Estimate


class Comparison(NamedTuple):
    """What may stand in one table: runs of as many steps, and of settings of the same name."""

    total_steps: int
    variant: str
    scores: list[Score]
    """Of each game and agent, games in the order of their names."""
    interquartile_means: list[Aggregate]
    """Of each agent, over the games that all of them have played; of divided scores."""
    improvements: list[Aggregate]
    """Of each agent but the baseline: the probability that it scores above the baseline."""
    improvements_by_game: list[Aggregate]
    """The same in each game alone."""


Groups = dict[tuple[int, str], dict[str, dict[str, list[Entry]]]]  # -> game -> agent -> seeds


class Agreement(NamedTuple):
    """Of many scores with another study's."""

    num_scores: int
    sum_of_squares: float
    """Of their z."""
    chance: float
    """Of a sum of squares as large or larger if all scores were drawn alike."""
    lean: float
    """Their sum in standard errors of its own, which shows whether they lie to one side."""
    chance_of_lean: float
    """Of one as far from 0 or farther, to either side."""


def agreement(scores: Sequence[Score]) -> Agreement | None:
    """Of those that have a z; None if none has."""
    zs = [score.z for score in scores if score.z is not None]
    if not zs:
        return None
    total = sum(z * z for z in zs)
    halves = torch.tensor([len(zs) / 2, total / 2], dtype=torch.float64)
    lean = sum(zs) / math.sqrt(len(zs))
    return Agreement(
        len(zs),
        total,
        float(torch.special.gammaincc(*halves)),
        lean,
        math.erfc(abs(lean) / math.sqrt(2)),
    )


def minatar_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Those that were played by MinAtar's rules."""
    return [entry for entry in entries if entry.protocol == PROTOCOL]


@cache
def published_scores() -> Mapping[tuple[str, str, int], Published]:
    """Game, agent and steps -> the other study's figure."""
    text = resources.files("classicrl.reports").joinpath(_PUBLISHED_FILE).read_text()
    return {
        (row["game"], row["agent"], int(row["steps"])): Published(
            float(row["mean"]), float(row["half_width"]), int(row["seeds"])
        )
        for row in csv.DictReader(io.StringIO(text))
    }


def compare(entries: Sequence[Entry]) -> list[Comparison]:
    """Tables of the published MinAtar runs, one for each number of steps and name of settings.

    Args:
        entries: of the index; those of other environments are left out.
    """
    return [
        Comparison(
            total_steps,
            variant,
            scores := [
                _score(game, agent, seeds, total_steps)
                for game, agents in games.items()
                for agent, seeds in agents.items()
            ],
            _interquartile_means(scores),
            _improvements(scores),
            [
                gain
                for game in _games(scores)
                for gain in _improvements([score for score in scores if score.game == game])
            ],
        )
        for (total_steps, variant), games in _groups(entries).items()
    ]


def _groups(entries: Sequence[Entry]) -> Groups:
    groups: Groups = {}
    for e in sorted(minatar_entries(entries), key=_place):
        games = groups.setdefault((e.total_steps, e.variant), {})
        games.setdefault(_game_of(e.env_id), {}).setdefault(_name_of(e.agent), []).append(e)
    return groups


def _place(entry: Entry) -> tuple[int, str, str, int, str, int]:
    agent = _name_of(entry.agent)
    rank = list(_COLOURS).index(agent) if agent in _COLOURS else len(_COLOURS)
    return entry.total_steps, entry.variant, entry.env_id, rank, agent, entry.seed


def _game_of(env_id: str) -> str:
    """``Breakout`` of ``MinAtar/Breakout-v1``."""
    return env_id.rpartition("/")[2].partition("-v")[0]


def _name_of(agent: str) -> str:
    return agent.removeprefix(_FAMILY)


def _score(game: str, agent: str, entries: Sequence[Entry], total_steps: int) -> Score:
    by_seed = {entry.seed: entry.eval.mean_return for entry in entries}
    means = list(by_seed.values())
    if len(means) > 1:
        low, high = (float(end) for end in bootstrap_interval(means))
    else:
        low, high = entries[0].eval.interval_of_mean
    published = published_scores().get((game, agent, total_steps))
    return Score(game, agent, by_seed, Estimate(float(np.mean(means)), low, high), published)


def _divided(scores: Sequence[Score]) -> dict[str, dict[str, list[float]]]:
    """Agent -> game -> scores of its seeds, as parts of the baseline's published mean.

    Games for which there is no such mean are left out.
    """
    table: dict[str, dict[str, list[float]]] = {score.agent: {} for score in scores}
    for score in scores:
        unit = published_scores().get((score.game, BASELINE, NORMALISING_STEPS))
        if unit is not None:
            table[score.agent][score.game] = [mean / unit.mean for mean in score.by_seed.values()]
    return table


def _interquartile_means(scores: Sequence[Score]) -> list[Aggregate]:
    table = _divided(scores)
    games = [game for game in _games(scores) if all(game in own for own in table.values())]
    if not games:
        return []
    aggregates = []
    for agent, own in table.items():
        by_game = [own[game] for game in games]
        # A game with more seeds than another shall not count more for it.
        weights = [1 / len(seeds) for seeds in by_game for _ in seeds]
        statistic = partial(interquartile_mean, weights=weights)
        estimate = Estimate(
            float(statistic(np.concatenate(by_game))), *stratified_bootstrap(by_game, statistic)
        )
        aggregates.append(_aggregate(agent, games, by_game, estimate))
    return aggregates


def _improvements(scores: Sequence[Score]) -> list[Aggregate]:
    table: dict[str, dict[str, list[float]]] = {score.agent: {} for score in scores}
    for score in scores:
        table[score.agent][score.game] = list(score.by_seed.values())
    baseline = table.pop(BASELINE, {})
    aggregates = []
    for agent, own in table.items():
        games = [game for game in own if game in baseline]
        if games:
            x, y = [own[game] for game in games], [baseline[game] for game in games]
            estimate = probability_of_improvement(x, y)
            aggregates.append(_aggregate(agent, games, x + y, estimate))
    return aggregates


def _games(scores: Sequence[Score]) -> list[str]:
    return list(dict.fromkeys(score.game for score in scores))


def _aggregate(
    agent: str, games: list[str], seeds: Sequence[Sequence[float]], estimate: Estimate
) -> Aggregate:
    counts = [len(each) for each in seeds]
    return Aggregate(agent, games, min(counts), max(counts), estimate)


# ------------------------------------------------------------------------------------ the picture


def write_curves(
    entries: Sequence[Entry],
    reference_root: Path,
    out: Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Draws the evaluations of MinAtar runs against steps, a panel for each game.

    A line is the mean over the seeds of an agent, the band its 95% bootstrap interval. The other
    study's means are short dashed lines that begin at their number of steps. Runs that may not
    stand in one table have panels of their own.

    Args:
        entries: of the index; those of other environments are left out.
        reference_root: the directory of the index.
        out: ``.png``.
        metadata: written into it.

    Raises:
        UserError: if matplotlib is missing, there is nothing to draw, a run cannot be read, or the
            picture cannot be written.
    """
    require_plots(out)
    from matplotlib.lines import Line2D

    groups = _groups(entries)
    panels = [(key, game) for key, games in groups.items() for game in games]
    if not panels:
        raise UserError("no MinAtar run to draw: publish one first")
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = _PANEL_INCHES
    # The lines under the panels take about an inch.
    figure = new_figure(width * columns, height * rows + 1)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    colours = _colours_of(entries)
    for axis, (key, game) in zip(axes, panels, strict=False):
        agents = {
            agent: [read_run(reference_root / entry.path) for entry in seeds]
            for agent, seeds in groups[key][game].items()
        }
        _draw_panel(axis, agents, game, key[0], colours)
        axis.set_title(_title(game, key, groups), loc="left", fontsize=11, fontweight="bold")
    handles = [Line2D([], [], color=colour, label=agent) for agent, colour in colours.items()]
    handles.append(Line2D([], [], color="#666666", linestyle="--", label="published mean"))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles) if columns > 1 else math.ceil(len(handles) / 2),
        frameon=False,
        fontsize=9,
    )
    _caption(figure, groups, columns)
    save_figure(figure, out, metadata)


def _colours_of(entries: Sequence[Entry]) -> dict[str, str]:
    """Each agent has one colour in all panels, and the family's have the same in all pictures."""
    agents = {_name_of(entry.agent) for entry in minatar_entries(entries)}
    others = sorted(agents - set(_COLOURS))
    more = {agent: _MORE_COLOURS[i % len(_MORE_COLOURS)] for i, agent in enumerate(others)}
    return {agent: colour for agent, colour in _COLOURS.items() if agent in agents} | more


def _draw_panel(
    axis: "Axes",
    agents: Mapping[str, Sequence[RunRecord]],
    game: str,
    total_steps: int,
    colours: Mapping[str, str],
) -> None:
    for agent, runs in agents.items():
        colour = colours[agent]
        curves = [curve(run, "eval", "steps") for run in runs]
        curves = [(xs, ys) for xs, ys in curves if len(xs)]
        if curves:
            # Where all seeds were evaluated at the same steps, these are the points themselves.
            shortest = min(curves, key=lambda c: c[0][-1])[0]
            xs, values = on_common_range(curves, shortest)
            if len(curves) > 1:
                low, high = bootstrap_interval(values)
                axis.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(xs, values.mean(axis=0), ".-", color=colour, linewidth=1.4, markersize=4)
        for (other, name, steps), figure in published_scores().items():
            if (other, name) == (game, agent) and steps <= total_steps:
                ends = [steps, steps + 0.12 * total_steps]
                axis.plot(ends, [figure.mean] * 2, "--", color=colour, linewidth=1.4)
    axis.set_xlabel("steps")
    axis.set_ylabel("return of a game")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_xlim(0, 1.14 * total_steps)
    axis.xaxis.set_major_formatter(lambda value, _: short_number(value))


def _title(game: str, key: tuple[int, str], groups: Groups) -> str:
    """The game; where there are several groups, which one it is of."""
    total_steps, variant = key
    words = [game]
    if len({steps for steps, _ in groups}) > 1:
        words.append(f"{short_number(total_steps)} steps")
    if len({name for _, name in groups}) > 1:
        words.append(variant)
    return ", ".join(words)


def _caption(figure: "Figure", groups: Groups, columns: int) -> None:
    lines = [
        f"Protocol {PROTOCOL}: {protocol_in_words(PROTOCOL)}.",
        "Evaluations: mean over seeds, shaded its 95% bootstrap interval where there are several "
        "seeds. Dashed, from their number of steps on: means published in arXiv 2507.09523.",
    ]
    panels_of: dict[str, list[str]] = {}
    for key, games in groups.items():
        for game, agents in games.items():
            seeds = "; ".join(
                f"{agent} {_ranges([e.seed for e in own])}" for agent, own in agents.items()
            )
            panels_of.setdefault(seeds, []).append(_title(game, key, groups))
    lines += [f"Seeds in {', '.join(names)}: {seeds}." for seeds, names in panels_of.items()]
    write_caption(figure, lines, 80 * columns)


def _ranges(seeds: Sequence[int]) -> str:
    """``0-2, 5`` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
