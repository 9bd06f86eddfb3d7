"""Writes docs/modules.md: every module of classicrl with the first sentence of its docstring.

    python docs/modules_page.py            # writes it
    python docs/modules_page.py --check    # exits with 1 if it is not up to date

Docstrings are read, not imported, so that this needs nothing but Python.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "modules.md"
BEGINNING = """# Modules

What is in which file, by the first sentence of each. Written by `python docs/modules_page.py`.
Shapes, dtypes, errors and sources stand in the docstrings of what a module offers:
`help(classicrl.replay)` in Python, or the file. [Components](components.md) shows the parts in use.
"""


def first_sentence(path: Path) -> str:
    """Of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = paragraph.split(". ")[0].rstrip(".:") + "."
    return sentence.replace("|", "\\|").replace("*", "\\*")


def page() -> str:
    """The whole page."""
    package = ROOT / "classicrl"
    parts = [BEGINNING]
    groups = [("classicrl", sorted(package.glob("*.py")))]
    for directory in sorted(p.parent for p in package.glob("*/__init__.py")):
        groups.append((f"classicrl.{directory.name}", sorted(directory.glob("*.py"))))
    for name, files in groups:
        parts.append(f"\n## `{name}`\n")
        own = next(path for path in files if path.name == "__init__.py")
        parts.append(f"\n{first_sentence(own)}\n\n| module | |\n|---|---|\n")
        for path in files:
            if not path.name.startswith("_"):
                link = f"[`{path.stem}`](../{path.relative_to(ROOT)})"
                parts.append(f"| {link} | {first_sentence(path)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() != page():
            sys.exit(f"{PAGE} is not up to date: python docs/modules_page.py")
    else:
        PAGE.write_text(page())
