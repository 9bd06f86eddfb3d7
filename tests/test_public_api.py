"""What other people's programs may rely on: public names, signatures, examples in docstrings.

`python tests/test_public_api.py` writes tests/public_api.txt anew, after a change that is meant;
such a change also wants a line in CHANGELOG.md.
"""

import configparser
import difflib
import doctest
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import classicrl

SNAPSHOT = Path(__file__).parent / "public_api.txt"
ROOT = Path(__file__).parents[1]
NAMES = sorted(
    module.name
    for module in pkgutil.walk_packages(classicrl.__path__, "classicrl.")
    if not any(part.startswith("_") for part in module.name.split("."))
)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Names of ``__all__``, else classes and functions that the module itself defines."""
    if hasattr(module, "__all__"):
        yield from ((name, getattr(module, name)) for name in sorted(module.__all__))
        return
    for name, value in sorted(vars(module).items()):
        defined_here = getattr(value, "__module__", None) == module.__name__
        if (
            not name.startswith("_")
            and defined_here
            and inspect.isroutine(value) | inspect.isclass(value)
        ):
            yield name, value


def signature(value: Any) -> str:
    try:
        parameters = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    # Without annotations: how a type is spelled differs between versions of Python.
    plain = [
        p.replace(annotation=p.empty, default=p.default if p.default is p.empty else Default(p))
        for p in parameters.parameters.values()
    ]
    return str(inspect.Signature(plain))


class Default:
    """A default value, printed alike everywhere."""

    def __init__(self, parameter: inspect.Parameter) -> None:
        value = parameter.default
        plain = value is None or isinstance(value, bool | int | float | str | tuple | Path)
        self.text = repr(value) if plain else "..."

    def __repr__(self) -> str:
        return self.text


def members(owner: type) -> Iterator[tuple[str, str]]:
    """Methods and properties of a class's own."""
    for name, value in sorted(vars(owner).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            yield name, " (property)"
        elif isinstance(value, classmethod | staticmethod) or inspect.isfunction(value):
            yield name, signature(getattr(owner, name))


def describe() -> str:
    lines = []
    for module_name in NAMES:
        module = importlib.import_module(module_name)
        for name, value in public(module):
            full = f"{module_name}.{name}"
            if getattr(value, "__module__", module_name) != module_name:
                lines.append(f"{full} = {getattr(value, '__module__', '')}.{name}")
                continue
            lines.append(full + (signature(value) if callable(value) else ""))
            if inspect.isclass(value):
                lines += [f"{full}.{member}{text}" for member, text in members(value)]
    return "\n".join(lines) + "\n"


def test_names_and_signatures_are_those_of_the_snapshot() -> None:
    difference = list(
        difflib.unified_diff(
            SNAPSHOT.read_text().splitlines(), describe().splitlines(), "snapshot", "code", n=0
        )
    )
    assert not difference, (
        "the public API has changed; if that is meant, run `python tests/test_public_api.py` and "
        "say it in CHANGELOG.md:\n" + "\n".join(difference)
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_is_there_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert exported == sorted(exported, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    for member, value in public(module):
        if not callable(value) or isinstance(value, type(int | str)):
            continue
        if getattr(value, "__module__", "").startswith("classicrl"):
            assert inspect.getdoc(value), f"{name}.{member} has no docstring"


def examples() -> list[Any]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        pytest.param(test, id=test.name)
        for name in NAMES
        for test in finder.find(importlib.import_module(name), name)
        if test.examples
    ]


def test_there_are_examples() -> None:
    assert len(examples()) >= 20


@pytest.mark.parametrize("example", examples())
def test_examples_in_docstrings_do_what_they_say(example: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def test_types_are_shipped() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "py.typed" in setup["options.package_data"]["classicrl"]
    assert (ROOT / "classicrl" / "py.typed").exists()


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
    print(f"wrote {SNAPSHOT}", file=sys.stderr)
