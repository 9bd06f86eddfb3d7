"""Imports go down only, agents are imported by nobody, and nothing runs what a file says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "classicrl").rglob("*.py"))
PROGRAMS = sorted(
    path
    for place in ("agents", "runs", "docs", "docs/examples")
    for path in (ROOT / place).glob("*.py")
)

# Each layer may import those above it in this list, and its own package. Modules that are not
# listed put others together: they form the last layer.
LAYERS = [
    {"cpus", "errors", "types", "watch"},
    {"distributed"},
    {"returns", "losses", "moments", "taylor", "schedules"}
    | {"checkpoint", "console", "command_line", "event_file", "tracking"},
    {"loggers", "replay", "envs", "networks", "search", "smoothness"},
    {"algorithms", "domains", "experiment", "evaluation", "machine"},
    {"views"},
]
# What a file of a run could make do more than say something.
UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_IMPORTS = UNSAFE_IMPORTS | {"imp", "code", "agents", "tests", "benchmarks"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def layer(part: str) -> int:
    return next((i for i, parts in enumerate(LAYERS) if part in parts), len(LAYERS))


def part_of(path: Path) -> str:
    """``replay`` of ``classicrl/replay/buffer.py``."""
    return path.relative_to(ROOT / "classicrl").parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of all that is imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def test_the_parts_are_found() -> None:
    parts = {part_of(path) for path in MODULES}
    assert {part for parts_of_layer in LAYERS[:4] for part in parts_of_layer} <= parts


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    own = part_of(path)
    if own == "__init__":
        assert not [name for name in imports(parsed(path)) if name.startswith("classicrl")]
        return
    for name in imports(parsed(path)):
        top, *rest = name.split(".")
        assert top not in FORBIDDEN_IMPORTS, f"{path} imports {name}"
        if top == "classicrl" and rest and rest[0] not in (own, "__version__"):
            allowed = layer(rest[0]) < layer(own) or layer(own) == len(LAYERS)
            assert allowed, f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize(
    "path",
    [*MODULES, *PROGRAMS],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_in_a_file_is_run(path: Path) -> None:
    imported = {name.split(".")[0] for name in imports(parsed(path))}
    assert not imported & UNSAFE_IMPORTS, path
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        assert function not in FORBIDDEN_CALLS, f"{path}:{node.lineno} calls {function}"
        # These unpickle; safetensors' functions of the same name do not.
        assert function not in ("torch.load", "torch.save"), f"{path}:{node.lineno}"
        if function.endswith(("np.load", "numpy.load")):
            assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}
        unsafe = {"shell", "allow_pickle"} & {keyword.arg for keyword in node.keywords}
        assert not unsafe, f"{path}:{node.lineno} passes {unsafe}"


def test_command_lines_answer_without_torch() -> None:
    """What a script imports before it parses its flags must not pull in torch."""
    quick = {"types", "torch", "gymnasium", "numpy"}
    for name in ("command_line.py", "cpus.py", "errors.py", "watch.py"):
        path = ROOT / "classicrl" / name
        names = {part for found in imports(parsed(path)) for part in found.split(".")[:2]}
        assert not names & quick, path
