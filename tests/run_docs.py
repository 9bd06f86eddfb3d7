"""Runs the command blocks of README.md and docs/ that are marked so, in a fresh copy of this clone.

    python tests/run_docs.py                            # those marked fast
    python tests/run_docs.py --kinds fast minutes       # the longer ones too
    python tests/run_docs.py --pages docs/qstar.md --go-on

A comment stands in the line before every fenced block that is not Python:

    <!-- run: fast -->             is run; seconds to a minute or two on two cores
    <!-- run: minutes -->          is run when asked for
    <!-- not run: the reason -->   is not
    <!-- output -->                shows what a command prints, or a drawing

In a block in which lines begin with "$ ", those are the commands and the others what they print.
The copy is `git clone`, with what the working tree changed; blocks run there in order, page by
page, under bash -eu, with the Python that runs this. What has passed is not run again as long as
the tree is the same: the same command continues.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tyro

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("fast", "minutes")
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n)?^```([\w-]*)\n(.*?)^```$", re.S | re.M)
_GENERATED = re.compile(r"^<!-- generated: (\w+) -->$.*?^<!-- end: \1 -->$", re.S | re.M)


@dataclasses.dataclass(frozen=True)
class Config:
    kinds: tuple[str, ...] = ("fast",)
    """fast, minutes."""
    pages: tuple[str, ...] = ()
    """Only these, such as docs/qstar.md."""
    go_on: bool = False
    """Do not stop at the first block that fails."""
    out: Path = ROOT / "build" / "check_docs"
    """Holds the copy, a log for every block, and what has passed."""
    limit_seconds: int = 1_800
    """After which a block has failed."""


class Block(NamedTuple):
    """A fenced block that is not Python."""

    page: str  # from the top of the repository
    line: int  # of its first fence
    mark: str | None  # what stands in the comment before it
    text: str

    @property
    def kind(self) -> str | None:
        """``fast`` or ``minutes``; None if it is not run."""
        found = re.fullmatch(r"run: (\w+)", self.mark or "")
        return found[1] if found else None

    @property
    def is_marked(self) -> bool:
        """Whether the comment is one of the four."""
        mark = self.mark or ""
        return self.kind in KINDS or mark == "output" or bool(re.fullmatch(r"not run: .{5,}", mark))

    @property
    def commands(self) -> str:
        """What bash is given."""
        lines = self.text.splitlines()
        prompted = [line[2:] for line in lines if line.startswith("$ ")]
        return "\n".join(prompted or lines) + "\n"


def pages() -> list[Path]:
    """Where blocks are looked for, in the order in which they run."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page, but for those that a program writes."""
    text = page.read_text()
    text = _GENERATED.sub(lambda match: "\n" * match.group().count("\n"), text)
    for match in _BLOCK.finditer(text):
        mark, language, content = match.groups()
        if language != "python":
            line = text[: match.start()].count("\n") + 1 + (mark is not None)
            yield Block(str(page.relative_to(ROOT)), line, mark, content)


def git(*arguments: str, where: Path = ROOT) -> bytes:
    """Output of a git command."""
    return subprocess.run(["git", *arguments], cwd=where, check=True, capture_output=True).stdout


def copy_tree(copy: Path) -> None:
    """A clone of this clone at `copy`, with what is changed or new here."""
    shutil.rmtree(copy, ignore_errors=True)
    git("clone", "--quiet", "--local", str(ROOT), str(copy))
    changes = git("diff", "--binary", "HEAD")
    if changes:
        subprocess.run(["git", "apply", "-"], cwd=copy, input=changes, check=True)
    for name in git("ls-files", "--others", "--exclude-standard", "-z").decode().split("\0"):
        if name:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def state_of_tree() -> str:
    """Changes with every change of what would be copied."""
    digest = hashlib.sha256(git("rev-parse", "HEAD") + git("diff", "--binary", "HEAD"))
    for name in git("ls-files", "--others", "--exclude-standard", "-z").decode().split("\0"):
        if name:
            digest.update(name.encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()


def run(block: Block, copy: Path, log: Path, limit_seconds: int) -> int:
    """Runs a block; its exit code, 124 if it took too long."""
    beside = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(copy),  # the copy's package, wherever another is installed
    }
    with log.open("w") as output:
        try:
            done = subprocess.run(
                ["bash", "-eu", "-c", block.commands],
                cwd=copy,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124
    return done.returncode


def main(config: Config) -> int:
    """Runs what is asked for; 1 if a block failed, 2 for bad flags."""
    known = {str(page.relative_to(ROOT)) for page in pages()}
    wrong = [*set(config.kinds).difference(KINDS), *set(config.pages).difference(known)]
    if wrong:
        print(f"error: {wrong[0]} is no kind ({', '.join(KINDS)}) and no page", file=sys.stderr)
        return 2
    config.out.mkdir(parents=True, exist_ok=True)
    passed_file, copy = config.out / "passed.json", config.out / "copy"
    passed: dict[str, float] = {}
    state = state_of_tree()
    if passed_file.exists() and copy.exists():
        record = json.loads(passed_file.read_text())
        passed = record["passed"] if record["tree"] == state else {}
    if not passed:
        copy_tree(copy)
    failed = 0
    print(f"{'page and line':<34}{'kind':<9}{'seconds':>8}{'exit':>6}")
    for page in pages():
        for block in blocks_of(page):
            if block.kind not in config.kinds or (config.pages and block.page not in config.pages):
                continue
            place = f"{block.page}:{block.line}"
            if place in passed:
                print(f"{place:<34}{block.kind:<9}{passed[place]:>8.1f}{'0':>6}  (before)")
                continue
            log = config.out / f"{block.page.replace('/', '-')}-{block.line}.log"
            began = time.monotonic()
            code = run(block, copy, log, config.limit_seconds)
            seconds = time.monotonic() - began
            print(f"{place:<34}{block.kind:<9}{seconds:>8.1f}{code:>6}", flush=True)
            if code == 0:
                passed[place] = round(seconds, 1)
                passed_file.write_text(json.dumps({"tree": state, "passed": passed}, indent=1))
                continue
            failed += 1
            print("\n".join(log.read_text(errors="replace").splitlines()[-15:]))
            print(f"the whole output is in {log}")
            if not config.go_on:
                return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
