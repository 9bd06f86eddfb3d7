"""The examples of docs/components.md run as they stand there; the blocks of all pages are marked as
tests/run_docs.py wants them; the site builds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_docs
import torch
from run_docs import blocks_of, pages

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "components.md"
EXAMPLES = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", PAGE.read_text(), re.S))

PRINTED = {
    "replay": r"torch.Size\(\[32, 3\]\) tensor\(0\.9\d+\)",
    "learner": r"(0\.9|1\.0)\d+",
    "family": r"\{'loss': \(1, 3\), .*'behaviour_nll': \(1, 3\), 'grad_norm': \(1, 3\)\}",
    "loggers": r"\[5\. 5\. 5\. 5\.\]",
    "checkpoint": r"1000 tensor\(\[1\., 1\., 1\.\]\)",
    "atari": r"\[0\. 0\. 0\.\] \[False False False\] \[False False False\]",
}


def test_every_example_is_known() -> None:
    assert set(EXAMPLES) == set(PRINTED)
    assert PAGE.read_text().count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_example(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(EXAMPLES[name], {})
    assert re.fullmatch(PRINTED[name], capsys.readouterr().out.strip())
    assert len(EXAMPLES[name].splitlines()) <= 20


def test_every_command_block_is_marked() -> None:
    """Run by tests/run_docs.py, or said why not; results.py writes the ledger's own."""
    blocks = [block for page in pages() for block in blocks_of(page)]
    assert len(blocks) > 30 and sum(block.kind == "fast" for block in blocks) > 8
    for block in blocks:
        assert block.is_marked, f"{block.page}:{block.line} is marked {block.mark!r}"
        if block.kind is not None:  # it runs in a place of its own, and ends
            assert "~" not in block.commands and "/tmp" not in block.commands
            assert not re.search(r"^(pip|make|tensorboard|sudo) ", block.commands, re.M)


def test_blocks_are_read_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run: fast -->\n```\n$ echo a\na\n$ false\n```\n\n```python\nx = 1\n```\n"
        "<!-- generated: table -->\n```sh\nx\n```\n<!-- end: table -->\n\n```\nls\n```\n"
        "<!-- not run: no -->\n```\nls\n```\n<!-- output -->\n```\nls\n```\n"
    )
    monkeypatch.setattr(run_docs, "ROOT", tmp_path)
    first, *others = blocks_of(page)
    assert (first.line, first.kind, first.commands) == (2, "fast", "echo a\nfalse\n")
    assert [block.line for block in others] == [17, 21, 25]
    assert [block.is_marked for block in others] == [False, False, True]


def test_failing_blocks_fail_and_passed_ones_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    (source / "docs").mkdir(parents=True)
    (source / "README.md").write_text("<!-- run: fast -->\n```\necho x >> ran.txt\n```\n")
    second = source / "docs" / "a.md"
    second.write_text("<!-- run: fast -->\n```\ncat fresh.txt\nfalse\necho no > not_reached\n```\n")
    for command in (["init", "-q"], ["add", "."]):
        run_docs.git(*command, where=source)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    run_docs.git(*identity, "commit", "-qm", "x", where=source)
    (source / "fresh.txt").write_text("untracked\n")
    monkeypatch.setattr(run_docs, "ROOT", source)
    monkeypatch.setattr(run_docs.git, "__kwdefaults__", {"where": source})
    config = run_docs.Config(out=tmp_path / "out")
    assert run_docs.main(config) == 1
    copy = tmp_path / "out" / "copy"
    assert (copy / "ran.txt").read_text() == "x\n" and not (copy / "not_reached").exists()
    assert "untracked" in capsys.readouterr().out
    assert run_docs.main(config) == 1
    assert (copy / "ran.txt").read_text() == "x\n" and "(before)" in capsys.readouterr().out
    second.write_text("<!-- run: fast -->\n```\ntest -e fresh.txt\n```\n")
    assert run_docs.main(config) == 0  # another tree: a fresh copy, in which all run
    assert (copy / "ran.txt").read_text() == "x\n" and "(before)" not in capsys.readouterr().out


def test_links_lead_to_files_and_headings() -> None:
    """In the files themselves, as GitHub shows them; the site's build checks its own."""

    def anchors(path: Path) -> set[str]:
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
        headings = re.findall(r"^#+ (.*)$", text, re.M)
        return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}

    top = DOCS.parent
    found = 0
    for page in (*pages(), top / "CONTRIBUTING.md", top / "runs" / "reference" / "README.md"):
        text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(), flags=re.S | re.M)
        for link, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", text):
            if ":" in link:
                continue
            target = page if not link else page.parent / link
            assert target.exists(), f"{page} links to {link}"
            assert not anchor or anchor in anchors(target), f"{page} links to {link}#{anchor}"
            found += 1
    assert found > 100


def test_pictures_are_small() -> None:
    for picture in (DOCS / "images").iterdir():
        assert 0 < picture.stat().st_size <= 200 * 1024, picture


def test_the_list_of_modules_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "modules_page.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(300)
def test_the_site_builds_with_strict_links(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists() and (tmp_path / "new_agent.html").exists()
    loaded = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//")
    for page in tmp_path.rglob("*.html"):  # nothing comes from elsewhere
        found = loaded.search(page.read_text())
        assert found is None, (page, found)
