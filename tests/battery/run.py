"""Runs the whole fault battery, group by group, and writes down what was counted.

    make test-all                                    all groups, resumable; then the page
    python tests/battery/run.py kills damage         some of them
    python tests/battery/run.py --page               the page from what was counted already

A group that has run at the present commit is not run again: .battery/ holds what it counted.
docs/data/reliability.json and the table in docs/reliability.md say what was counted, no more.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".battery"
DATA = ROOT / "docs" / "data" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- generated: reliability -->", "<!-- end: reliability -->"

# In this order: what fails most cheaply first, what takes longest last.
GROUPS = {
    "hostile": "tests/battery/test_battery_hostile.py",
    "episodes": "tests/battery/test_battery_episodes.py",
    "environments": "tests/battery/test_battery_environments.py",
    "numbers": "tests/battery/test_battery_numbers.py",
    "commands": "tests/battery/test_battery_commands.py",
    "disk": "tests/battery/test_battery_disk.py",
    "determinism": "tests/battery/test_battery_determinism.py",
    "launch": "tests/test_launch.py",
    "sweep": "tests/test_sweep.py",
    "kills": "tests/battery/test_battery_kills.py",
    "damage": "tests/battery/test_battery_damage.py",
    "replay": "tests/battery/test_battery_replay.py",
    "scrambles": "tests/battery/test_battery_scrambles.py",
    "soak": "tests/battery/test_battery_soak.py",
}

Line = dict[str, Any]


def commit() -> str:
    """Of the code; with a mark where something has changed since."""
    found = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", "classicrl", "agents", "runs/*.py", "tests")
    return found[:12] + ("+changes" if changed else "")


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def run(name: str) -> tuple[int, Line | None]:
    """Runs one group; pytest's exit code, and the line that it wrote."""
    STATE.mkdir(exist_ok=True)
    lines = STATE / f"{name}.line"
    lines.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "CLASSICRL_BATTERY": "full",
        "CLASSICRL_BATTERY_LINES": str(lines),
    }
    began, tested = time.monotonic(), commit()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", GROUPS[name]],
        cwd=ROOT,
        env=environment,
        check=False,
    )
    line = json.loads(lines.read_text().splitlines()[-1]) if lines.exists() else None
    if line is not None:
        line |= {
            "name": name,
            "seconds": round(time.monotonic() - began),
            "commit": tested,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": f"{os.cpu_count()} cores, {processor()}",
            "torch": metadata.version("torch"),
        }
        (STATE / f"{name}.json").write_text(json.dumps(line, indent=1) + "\n")
    return done.returncode, line


def counted() -> list[Line]:
    """The lines of this machine in the place of those that were published before, in order."""
    published = json.loads(DATA.read_text()) if DATA.exists() else []
    lines = {line["name"]: line for line in published}
    for name in GROUPS:
        path = STATE / f"{name}.json"
        if path.exists():
            lines[name] = json.loads(path.read_text())
    return [lines[name] for name in GROUPS if name in lines]


def table(lines: list[Line]) -> str:
    """What was counted, as a table."""
    if not lines:
        return f"Nothing was run yet; there are {', '.join(GROUPS)}."
    rows = ["| group | cases | outcomes | seconds | commit |", "| --- | ---: | --- | ---: | --- |"]
    for line in lines:
        outcomes = "; ".join(f"{count:,} {name}" for name, count in line["outcomes"].items())
        rows.append(
            f"| {line['group']} | {line['cases']:,} | {outcomes} | {line['seconds']:,} | "
            f"{line['commit']} |"
        )
    cases = sum(line["cases"] for line in lines)
    failed = sum(line["outcomes"].get("FAILED", 0) for line in lines)
    machines = sorted({f"{line['machine']}, torch {line['torch']}" for line in lines})
    dates = sorted({line["date"] for line in lines})
    rows += ["", f"{cases:,} cases, {failed} failed. Machine: {'; '.join(machines)}."]
    missing = [name for name in GROUPS if name not in {line["name"] for line in lines}]
    rows.append(f"Dates: {', '.join(dates)}.")
    if missing:
        rows.append(f"Not run yet: {', '.join(missing)}.")
    return "\n".join(rows)


def page_with(text: str, lines: list[Line]) -> str:
    """The page, with the table of these lines between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(lines)}\n\n{END}{after}"


def write_page(lines: list[Line]) -> None:
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(lines, indent=1) + "\n")
    PAGE.write_text(page_with(PAGE.read_text(), lines))


def main() -> int:
    """0 if every group that ran has passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="group", help=", ".join(GROUPS))
    parser.add_argument("--again", action="store_true", help="also what has run at this commit")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    asked = parser.parse_args()
    unknown = [name for name in asked.groups if name not in GROUPS]
    if unknown:
        parser.error(f"no group {', '.join(unknown)}: choose of {', '.join(GROUPS)}")
    failed = []
    for name in [] if asked.page else asked.groups or GROUPS:
        path = STATE / f"{name}.json"
        if path.exists() and not asked.again:
            line = json.loads(path.read_text())
            if line["commit"] == commit() and not line["outcomes"].get("FAILED"):
                print(f"{name}: {line['cases']} cases, counted before", flush=True)
                continue
        print(f"{name}: {GROUPS[name]}", flush=True)
        code, line = run(name)
        if code not in (0, 5) or line is None:
            failed.append(name)
    lines = counted()
    write_page(lines)
    print(table(lines))
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
