"""Figures of docs/va_results.md that no command writes, counted again from the published runs."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

from classicrl.reports.reference import read_index

ROOT = Path(__file__).parents[1]
ROWS = [  # below the study's interval with four environments a seed
    ("rdq", "Breakout"),
    ("dqn", "Seaquest"),
    ("dueling", "Seaquest"),
    ("dueling", "SpaceInvaders"),
]


def scores(member: str, game: str, variant: str) -> list[float]:
    """Of each seed, after a million steps."""
    return [
        entry.eval.mean_return
        for entry in read_index(ROOT / "runs" / "reference" / "index.json")
        if (entry.agent, entry.env_id) == (f"va_minatar-{member}", f"MinAtar/{game}-v1")
        and (entry.variant, entry.total_steps) == (variant, 1_000_000)
    ]


def wins(some: list[float], others: list[float]) -> int:
    return sum(a > b for a in some for b in others)


def chances(some: list[float], others: list[float]) -> dict[int, float]:
    """How often a random choice of as many as ``some`` wins so many pairs."""
    pool = some + others
    counts: Counter[int] = Counter()
    for chosen in combinations(range(len(pool)), len(some)):
        rest = [x for i, x in enumerate(pool) if i not in chosen]
        counts[wins([pool[i] for i in chosen], rest)] += 1
    return {number: count / counts.total() for number, count in counts.items()}


def test_one_environment_a_seed_beside_four() -> None:
    pairs = won = 0
    together = {0: 1.0}
    for member, game in ROWS:
        one, four = scores(member, game, "default"), scores(member, game, "four-envs")
        assert len(one) == 3 and len(four) >= 3
        pairs, won = pairs + len(one) * len(four), won + wins(one, four)
        found = chances(one, four)
        sums: Counter[int] = Counter()
        for number, chance in together.items():
            for more, other in found.items():
                sums[number + more] += chance * other  # type: ignore[assignment]
        together = dict(sums)
    apart = abs(won - pairs / 2)
    p = sum(c for number, c in together.items() if abs(number - pairs / 2) >= apart)
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "va_results.md").read_text())
    assert f"Of the {pairs} pairs of a seed with one and a seed with four, {won} say" in text
    assert f"(exact rank test within the four, two-sided p = {p:.3f};" in text
