import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from synthetic_runs import colours_of, write_minatar, write_run

from classicrl.errors import UserError
from classicrl.reports.comparison import (
    Comparison,
    Score,
    agreement,
    compare,
    published_scores,
    write_curves,
)
from classicrl.reports.publish import publish
from classicrl.reports.reference import Entry, RecordedEvaluation, read_index
from classicrl.reports.results import write_results

BLACK, VERMILION, GREEN = (0, 0, 0), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def entry(
    member: str,
    game: str,
    seed: int,
    score: float,
    total_steps: int = 1_000_000,
    **changes: Any,
) -> Entry:
    known = {
        "name": f"{member}-{game}-{seed}-{total_steps}",
        "agent": f"va_minatar-{member}",
        "variant": "default",
        "env_id": f"MinAtar/{game}-v1",
        "protocol": "minatar",
        "path": f"{member}/{game}/{total_steps}-seed{seed}",
        "weights": None,
        "files": {},
        "command": "train",
        "commit": None,
        "seed": seed,
        "total_steps": total_steps,
        "machine": None,
        "hours": 1.0,
        "eval": RecordedEvaluation(
            score, (score - 2, score + 2), (score - 1, score + 1), 100, 0.01, seed, 10_000
        ),
        "cheap": False,
    }
    return Entry(**(known | changes))


def seeds_of(member: str, game: str, scores: Sequence[float], **changes: Any) -> list[Entry]:
    return [entry(member, game, seed, score, **changes) for seed, score in enumerate(scores)]


def score_of(comparison: Comparison, game: str, agent: str) -> Score:
    (found,) = (s for s in comparison.scores if (s.game, s.agent) == (game, agent))
    return found


def test_the_other_study() -> None:
    table = published_scores()
    assert len(table) == 5 * 3 * 4
    assert {steps for *_, steps in table} == {1_000_000, 2_000_000, 5_000_000, 10_000_000}
    assert table["Breakout", "rdq", 1_000_000] == (20.1, 0.9, 30)
    assert table["Freeway", "rdq", 10_000_000] == (62.9, 0.1, 22)
    assert table["SpaceInvaders", "dqn", 2_000_000] == (107.3, 4.8, 30)
    assert all(figure.mean > figure.half_width > 0 for figure in table.values())


def test_tables_keep_what_cannot_be_compared_apart() -> None:
    entries = [
        *seeds_of("va", "Breakout", [3.0, 5.0], total_steps=2_000_000),
        *seeds_of("va", "Freeway", [50.0]),
        *seeds_of("va", "Breakout", [1.0, 2.0, 3.0]),
        *seeds_of("zeta", "Breakout", [1.0]),
        *seeds_of("dqn", "Breakout", [1.0, 1.5]),
        *seeds_of("dqn", "Breakout", [4.0], variant="double"),
        entry("other", "Pong", 0, 9.0, env_id="ALE/Pong-v5", protocol="classic"),
    ]
    tables = compare(entries)
    assert [(t.total_steps, t.variant) for t in tables] == [
        (1_000_000, "default"),
        (1_000_000, "double"),
        (2_000_000, "default"),
    ]
    assert [(s.game, s.agent) for s in tables[0].scores] == [
        ("Breakout", "dqn"),
        ("Breakout", "va"),
        ("Breakout", "zeta"),
        ("Freeway", "va"),
    ]
    of_va = score_of(tables[0], "Breakout", "va")
    assert of_va.by_seed == {0: 1.0, 1: 2.0, 2: 3.0}
    assert of_va.estimate == pytest.approx((2.0, 1.0, 3.0))
    assert (of_va.published, of_va.verdict) == (None, None)
    assert compare(entries[-1:]) == []


def test_differences_in_standard_errors() -> None:
    """By hand: 16.4 +- 1.1 over 30 seeds is a deviation of 3.07 between them."""
    [table] = compare(
        [
            *seeds_of("dqn", "Breakout", [18.0, 19.0, 20.0, 21.0]),
            *seeds_of("rdq", "Breakout", [18.1, 20.1]),  # 20.1 +- 0.9
            *seeds_of("va", "Breakout", [1.0, 2.0, 3.0]),  # has no published score
            *seeds_of("dueling", "Breakout", [1.0]),  # a single seed
        ]
    )
    z = {score.agent: score.z for score in table.scores}
    assert z["dqn"] == pytest.approx(3.1 / (3.07398 * (1 / 4 + 1 / 30) ** 0.5), rel=1e-5)
    assert z["rdq"] == pytest.approx(-1.0 / (2.51505 * (1 / 2 + 1 / 30) ** 0.5), rel=1e-5)
    assert (z["va"], z["dueling"]) == (None, None)
    found = agreement(table.scores)
    assert found is not None
    assert found.num_scores == 2
    # Of two squares the sum is exponential.
    assert found.sum_of_squares == pytest.approx(z["dqn"] ** 2 + z["rdq"] ** 2)
    assert found.chance == pytest.approx(math.exp(-found.sum_of_squares / 2))
    assert found.lean == pytest.approx((z["dqn"] + z["rdq"]) / 2**0.5)
    normal = statistics.NormalDist()
    assert found.chance_of_lean == pytest.approx(2 * normal.cdf(-abs(found.lean)))
    assert agreement([score for score in table.scores if score.agent == "va"]) is None


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        # Published: 16.4 +- 1.1.
        ([18.0, 19.0, 20.0, 21.0], "above"),
        ([15.0, 15.1, 15.2], "below"),
        ([15.0, 17.0, 30.0], "overlaps"),
        ([10.0, 15.4], "overlaps"),
        ([17.49, 17.49], "overlaps"),
        ([40.0], None),  # no interval over seeds
    ],
)
def test_verdicts(scores: list[float], verdict: str | None) -> None:
    (table,) = compare(seeds_of("dqn", "Breakout", scores))
    assert score_of(table, "Breakout", "dqn").verdict == verdict


def test_the_published_figure_is_of_the_same_steps() -> None:
    tables = compare(
        [
            *seeds_of("dueling", "Asterix", [1.0, 2.0], total_steps=5_000_000),
            *seeds_of("dueling", "Asterix", [1.0, 2.0], total_steps=3_000_000),
        ]
    )
    assert tables[0].scores[0].published is None
    assert tables[1].scores[0].published == (25.6, 0.8, 30)


def test_scores_over_games_are_parts_of_dqns_and_games_count_alike() -> None:
    unit = {
        game: published_scores()[game, "dqn", 1_000_000].mean for game in ("Asterix", "Freeway")
    }
    entries = [
        *seeds_of("va", "Asterix", [2 * unit["Asterix"]] * 9),
        *seeds_of("va", "Freeway", [unit["Freeway"], 3 * unit["Freeway"]]),
        *seeds_of("dqn", "Asterix", [unit["Asterix"]] * 2),
        *seeds_of("dqn", "Freeway", [unit["Freeway"]] * 3),
        *seeds_of("va", "Seaquest", [1e6]),  # dqn has not played it
    ]
    of_dqn, of_va = compare(entries)[0].interquartile_means
    assert (of_dqn.agent, of_va.agent) == ("dqn", "va")
    assert of_dqn.games == of_va.games == ["Asterix", "Freeway"]
    assert (of_va.fewest_seeds, of_va.most_seeds) == (2, 9)
    assert of_dqn.estimate == pytest.approx((1.0, 1.0, 1.0))
    # Weight 1/4 at 1, 1/2 at 2, 1/4 at 3; with both seeds of Freeway at 1, half of it is there.
    assert of_va.estimate == pytest.approx((2.0, 1.5, 2.5))


def test_no_common_game_has_no_mean_over_games() -> None:
    entries = [*seeds_of("va", "Asterix", [1.0]), *seeds_of("dqn", "Freeway", [1.0])]
    (table,) = compare(entries)
    assert table.interquartile_means == [] and table.improvements == []


def test_improvements_are_on_dqn_over_the_games_of_both() -> None:
    entries = [
        *seeds_of("dqn", "Asterix", [1.0, 3.0]),
        *seeds_of("dqn", "Freeway", [5.0, 6.0, 7.0]),
        *seeds_of("va", "Asterix", [2.0, 4.0, 4.0]),
        *seeds_of("va", "Freeway", [9.0, 9.0]),
        *seeds_of("rdq", "Freeway", [5.0]),
    ]
    (table,) = compare(entries)
    va, rdq = table.improvements
    assert (va.agent, va.games) == ("va", ["Asterix", "Freeway"])
    assert va.estimate.value == pytest.approx((5 / 6 + 1) / 2)
    assert (rdq.agent, rdq.games, rdq.fewest_seeds) == ("rdq", ["Freeway"], 1)
    assert rdq.estimate.value == pytest.approx(0.5 / 3)
    assert [
        (gain.games, gain.agent, gain.estimate.value) for gain in table.improvements_by_game
    ] == [
        (["Asterix"], "va", pytest.approx(5 / 6)),
        (["Freeway"], "va", 1.0),
        (["Freeway"], "rdq", pytest.approx(0.5 / 3)),
    ]
    assert compare(seeds_of("va", "Asterix", [2.0, 4.0]))[0].improvements == []


# ---------------------------------------------------------------------------------- the documents


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Three agents, two games, one to three seeds; and a run of Atari."""
    root = tmp_path / "runs" / "reference"
    runs = [
        ("dqn", "Breakout", 0, 16.0),
        ("dqn", "Breakout", 1, 17.0),
        ("dqn", "Freeway", 0, 50.0),
        ("dqn", "Freeway", 1, 52.0),
        ("dqn", "Freeway", 2, 51.0),
        ("va", "Breakout", 0, 20.0),
        ("va", "Breakout", 1, 22.0),
        ("va", "Freeway", 0, 40.0),
        ("va", "Freeway", 1, 54.0),
        ("rdq", "Breakout", 5, 25.0),
    ]
    for member, game, seed, score in runs:
        name = f"{member}-{game}-{seed}"
        run = write_minatar(tmp_path / name, member=member, game=game, seed=seed, score=score)
        publish(run, root, name, f"train {name}")
    publish(write_run(tmp_path / "pong", seed=0), root, "pong", "train pong")
    return root / "index.json"


def test_the_picture_has_a_panel_for_each_game(tmp_path: Path, index: Path) -> None:
    out = tmp_path / "curves.png"
    write_curves(read_index(index), index.parent, out, metadata={"key": "value"})
    with Image.open(out) as picture:
        assert picture.info["key"] == "value"
        two = picture.size
    assert {BLACK, VERMILION, GREEN} <= colours_of(out)
    only = [e for e in read_index(index) if e.env_id == "MinAtar/Freeway-v1"]
    write_curves(only, index.parent, out)
    with Image.open(out) as picture:
        assert picture.size == (two[0] / 2, two[1])
    assert GREEN not in colours_of(out)  # rdq has not played it


def test_the_picture_refuses(tmp_path: Path, index: Path) -> None:
    atari = [e for e in read_index(index) if e.protocol != "minatar"]
    with pytest.raises(UserError, match="no MinAtar run"):
        write_curves(atari, index.parent, tmp_path / "curves.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_curves(read_index(index), index.parent, tmp_path / "file" / "curves.png")


def test_minatar_has_its_own_page(tmp_path: Path, index: Path) -> None:
    readme, atari, page, picture = (
        tmp_path / name
        for name in ("README.md", "docs/results.md", "docs/va_results.md", "docs/va_results.png")
    )
    readme.write_text("<!-- generated: results -->\n<!-- end: results -->\n")
    page.parent.mkdir()
    page.write_text("By hand.\n<!-- generated: minatar -->\n<!-- end: minatar -->\n")
    everything = [atari, readme, tmp_path / "docs/results.png", page, picture]
    assert write_results(index, tmp_path, check=True) == everything
    assert not picture.exists()
    assert write_results(index, tmp_path) == everything
    assert write_results(index, tmp_path, check=True) == []

    text = page.read_text()
    assert text.startswith("By hand.\n") and "### 1,000,000 steps\n" in text
    row = (
        "| Breakout | dqn | 1,000,000 | 16.5 [16.0, 17.0] | 2 | 16.4 +- 1.1 (30 seeds) | overlaps |"
    )
    assert row in text
    assert (
        "| Freeway | dqn | 1,000,000 | 51.0 [50.0, 52.0] | 3 | 55.6 +- 0.7 (30 seeds) | below"
        in text
    )
    assert "| Breakout | va | 1,000,000 | 21.0 [20.0, 22.0] | 2 | - | - |" in text
    assert "| Breakout | rdq | 1,000,000 | 25.0 [" in text and "| 1 | 20.1 +- 0.9" in text
    # rdq has played Breakout alone, once: it bounds the games and has no interval.
    assert "table has played: Breakout." in text
    assert "| rdq | 1.52 | 1 |" in text
    assert "| va | 0.75 [0.50, 1.00] | Breakout, Freeway | 2 to 3 |" in text
    assert "| rdq | 1.00 | Breakout | 1 to 2 |" in text
    assert "100 games for each seed at epsilon 0.01" in text and "(va_results.png)" in text

    assert "MinAtar" not in readme.read_text() and "ALE/Pong-v5" in readme.read_text()
    scores, _, ledger = atari.read_text().partition("<!-- end: scores -->")
    assert "(va_results.md)" in scores and "va_minatar" not in scores
    assert "# va-Freeway-1\ntrain va-Freeway-1\n" in ledger
    # Two seeds shared the 10,000 seconds of a process; Pong had 70 for itself.
    assert "| dqn-Breakout-0 | 1,000,000 | 200 | 1.39 |" in ledger
    assert "| pong | 7,000 | 100 | 0.02 |" in ledger
    assert "13.9 hours in all." in ledger and "side by side" in ledger

    page.write_text(text.replace("overlaps", "above"))
    picture.write_bytes(b"no picture")
    assert write_results(index, tmp_path, check=True) == [page, picture]
    page.write_text("No place.\n")
    with pytest.raises(UserError, match="lacks the lines '<!-- generated: minatar -->'"):
        write_results(index, tmp_path)


def test_a_missing_page_is_made_when_there_is_something_to_show(
    tmp_path: Path, index: Path
) -> None:
    assert tmp_path / "docs/va_results.md" in write_results(index, tmp_path)
    assert "| Breakout | dqn |" in (tmp_path / "docs/va_results.md").read_text()


def test_nothing_of_minatar_is_published_yet(tmp_path: Path) -> None:
    root = tmp_path / "reference"
    publish(write_run(tmp_path / "pong", seed=0), root, "pong", "train pong")
    page = tmp_path / "docs/va_results.md"
    assert page not in write_results(root / "index.json", tmp_path)
    page.write_text("<!-- generated: minatar -->\n<!-- end: minatar -->\n")
    assert write_results(root / "index.json", tmp_path) == [page]
    assert "No MinAtar result is published yet." in page.read_text()
    assert "va_results" not in (tmp_path / "docs/results.md").read_text()
    assert write_results(root / "index.json", tmp_path, check=True) == []
    assert not (tmp_path / "docs/va_results.png").exists()
