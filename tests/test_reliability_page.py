"""The page on reliability says what its data say, and the battery is whole."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tally import Tally

ROOT = Path(__file__).parents[1]


def battery() -> ModuleType:
    path = ROOT / "tests" / "battery" / "run.py"
    spec = importlib.util.spec_from_file_location("battery_run", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = battery()


def line(name: str, **outcomes: int) -> dict[str, Any]:
    return {
        "group": f"group {name}",
        "full": True,
        "cases": sum(outcomes.values()),
        "outcomes": outcomes,
        "seconds": 1234,
        "name": name,
        "commit": "0123456789ab",
        "date": "2026-01-02",
        "machine": "3 cores, Example",
        "torch": "2.10.0",
    }


def test_page_and_data_agree() -> None:
    lines = json.loads(run.DATA.read_text())
    assert run.page_with(run.PAGE.read_text(), lines) == run.PAGE.read_text()


def test_published_counts_are_of_whole_groups_that_passed() -> None:
    for counted in json.loads(run.DATA.read_text()):
        assert counted["full"] and counted["name"] in run.GROUPS
        assert counted["cases"] == sum(counted["outcomes"].values()) > 0
        assert "FAILED" not in counted["outcomes"]
        assert re.fullmatch(r"[0-9a-f]{12}", counted["commit"])


def test_every_group_is_run_and_described() -> None:
    files = {path.name for path in (ROOT / "tests" / "battery").glob("test_*.py")}
    named = {Path(path).name for path in run.GROUPS.values()}
    assert files <= named and all((ROOT / path).is_file() for path in run.GROUPS.values())
    described = re.findall(r"^\| `(\w+)` \|", run.PAGE.read_text(), re.M)
    assert set(described) == set(run.GROUPS)


def test_table_by_hand() -> None:
    text = run.table([line("kills", same=1200, FAILED=1), line("soak", flat=2)])
    assert "| group kills | 1,201 | 1,200 same; 1 FAILED | 1,234 | 0123456789ab |" in text
    assert "1,203 cases, 1 failed. Machine: 3 cores, Example, torch 2.10.0." in text
    assert "Not run yet: hostile, episodes," in text and "soak" not in text.split("Not run yet")[1]


def test_what_is_run_anew_takes_the_place_of_what_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "DATA", tmp_path / "data" / "reliability.json")
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(run, "STATE", tmp_path / "state")
    run.PAGE.write_text(f"# Page\n\n{run.BEGIN}\nold\n{run.END}\n\nmore\n")
    run.write_page([line("soak", flat=2), line("kills", same=3)])
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "kills.json").write_text(json.dumps(line("kills", same=40)))
    assert [found["cases"] for found in run.counted()] == [40, 2]
    run.write_page(run.counted())
    page = run.PAGE.read_text()
    assert page.startswith("# Page\n") and page.endswith("more\n") and "old" not in page
    assert "| group kills | 40 | 40 same |" in page


def test_cases_are_counted_by_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tally.LINES", str(tmp_path / "lines"))
    tally = Tally("kills")
    tally.count("same end")
    tally.count("same end", 4)
    tally.count("put aside")
    tally.write()
    [text] = (tmp_path / "lines").read_text().splitlines()
    counted = json.loads(text)
    assert (counted["group"], counted["cases"]) == ("kills", 6)
    assert counted["outcomes"] == {"put aside": 1, "same end": 5}
