"""benchmarks/control_comparison.py, by evaluations made up so that the answers are known."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_runs import write_table

from classicrl.errors import UserError
from classicrl.reports.reference import Entry, RecordedEvaluation, write_index

ROOT = Path(__file__).resolve().parent.parent
STEPS = [10, 20, 30]


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("control_comparison")
    for name in ("control_comparison", "report"):
        sys.modules.pop(name, None)


def learned(comparison: Any, seed: int, scores: list[float], rates: list[float]) -> Any:
    figures = {name: np.full(len(scores), np.nan) for name in comparison.FIGURES}
    figures["action_rate"] = np.array(rates)
    steps = np.array(STEPS[: len(scores)], dtype=np.float64)
    return comparison.Learned("a b", seed, steps, np.array(scores), figures, 7)


def test_the_matched_return_is_what_every_run_has_reached(comparison: Any) -> None:
    high = learned(comparison, 0, [100.0, 900.0, 300.0], [1.0, 2.0, 3.0])
    low = learned(comparison, 1, [50.0, 290.0, 280.0], [4.0, 5.0, 6.0])
    assert comparison.matched_return([high, low]) == 290.0
    assert comparison.nearest_evaluation(high, 290.0) == 2
    assert comparison.nearest_evaluation(low, 290.0) == 1


def test_the_earliest_of_equally_near_evaluations_counts(comparison: Any) -> None:
    run = learned(comparison, 0, [250.0, 330.0, 250.0], [1.0, 2.0, 3.0])
    assert comparison.nearest_evaluation(run, 290.0) == 0


def test_smoothness_is_averaged_over_the_evaluations_that_match(comparison: Any) -> None:
    runs = {
        "ours": [
            learned(comparison, 0, [100.0, 900.0, 310.0], [1.0, 2.0, 3.0]),
            learned(comparison, 1, [50.0, 290.0, 280.0], [4.0, 5.0, 6.0]),
        ],
        "peer": [learned(comparison, 0, [0.0, 10.0, 400.0], [7.0, 8.0, 9.25])],
    }
    table = comparison.smoothness_table(runs, "at 300", 300.0)
    at = dict(zip(table.header, zip(*table.rows, strict=True), strict=True))
    assert at["agent"] == ("ours", "peer")
    assert at["at step"] == ("25 (20-30)", "30")
    assert at["return"] == ("300 (290-310)", "400")
    assert at["rate, 1/s"] == ("4.0 (3.0-5.0)", "9.2")
    assert at["energy, J"] == ("-", "-")  # not known
    last = comparison.smoothness_table(runs, "at the end", None)
    assert last.rows[0][1:3] == ("30", "295 (280-310)")


def publish(root: Path, agent: str, seed: int, scores: list[float], steps: list[int]) -> Entry:
    """An entry of the index with its directory, as ``classicrl publish`` leaves them."""
    path = f"{agent}/Some-v0-control/small-seed{seed}"
    (root / path).mkdir(parents=True)
    columns = {"step": steps, "mean_return": scores, "action_rate": [2.0] * len(steps)}
    write_table(root / path / "evaluations.csv", columns)
    summary = {"agent": agent, "env_id": "Some-v0", "protocol": "control", "seed": seed}
    summary |= {"variant": "small", "num_updates": 60}
    (root / path / "summary.json").write_text(json.dumps(summary))
    scored = RecordedEvaluation(1.0, (0.0, 2.0), (0.0, 2.0), 5, 0.0, 0, 9)
    return Entry(
        f"{agent}-{seed}",
        agent=agent,
        variant="small",
        env_id="Some-v0",
        protocol="control",
        path=path,
        weights=None,
        files={},
        command="true",
        commit=None,
        seed=seed,
        total_steps=steps[-1],
        machine=None,
        hours=0.1,
        eval=scored,
        cheap=False,
    )


def config_of(comparison: Any, tmp_path: Path, entries: list[Entry]) -> Any:
    write_index(tmp_path / "index.json", entries)
    docs = tmp_path / "page.md"
    docs.write_text(
        "before\n<!-- benchmark:control_comparison -->\n<!-- /benchmark:control_comparison -->\nend"
    )
    return comparison.Config(
        env_id="Some-v0",
        total_steps=30,
        index=tmp_path / "index.json",
        picture=tmp_path / "page.png",
        docs=docs,
    )


def test_the_page_is_written_from_the_index(comparison: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    entries = [
        publish(tmp_path, "ours", 0, [1.0, 2.0, 60.0], STEPS),
        publish(tmp_path, "ours", 4, [1.0, 8.0, 40.0], STEPS),
        publish(tmp_path, "peer", 0, [3.0, 20.0, 10.0], STEPS),
        publish(tmp_path, "longer", 0, [3.0, 20.0], [30, 60]),  # another length: left out
    ]
    config = config_of(comparison, tmp_path, entries)
    comparison.main(config)
    page = config.docs.read_text()
    assert page.startswith("before\n") and page.endswith("\nend")
    assert "| ours small | 60 | 60 (0), 40 (4) | 50 [40, 60] |" in page
    assert "| peer small | 60 | 10 (0) | 10 |" in page
    assert "where the return is nearest to 20" in page  # the best of `peer`
    assert "longer" not in page
    assert config.picture.stat().st_size > 1_000
    comparison.main(config)
    assert config.docs.read_text() == page


def test_runs_that_cannot_be_compared(comparison: Any, tmp_path: Path) -> None:
    entries = [
        publish(tmp_path, "ours", 0, [1.0, 2.0, 60.0], STEPS),
        publish(tmp_path, "peer", 0, [3.0, 20.0, 10.0], [10, 15, 30]),
    ]
    with pytest.raises(UserError, match="not evaluated at the same steps"):
        comparison.main(config_of(comparison, tmp_path, entries))
    with pytest.raises(UserError, match="no run of 30 steps on Some-v0"):
        comparison.main(config_of(comparison, tmp_path, []))
