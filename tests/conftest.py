"""What every test file shares."""

import os

# Before torch is imported: the tests are small, and several runs may share the machine. Threads
# that wait for each other shall sleep: turning in a loop, they took a minute for a second's work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tally import Tally

torch.set_num_threads(1)
# Times vary with the machine's load, so no test is judged by them; every failure can be repeated.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def processor() -> Iterator[None]:
    """A script's `main` has this process flush denormals and take all cores; not the next test."""
    yield
    torch.set_flush_denormal(False)
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """The directory of a finished run of a script of ``small_runs``, made once, to be read."""
    made: dict[str, Path] = {}

    def get(small: Any) -> Path:
        if small.script not in made:
            directory = tmp_path_factory.mktemp(small.script)
            small.run(directory)
            made[small.script] = directory
        return made[small.script]

    return get


_FAILED = pytest.StashKey[dict[str, int]]()


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Counts the cases of the battery's group that the module names in ``GROUP``."""
    counted = Tally(request.module.GROUP)
    yield counted
    failed = request.config.stash.get(_FAILED, {}).get(request.module.__name__, 0)
    if failed:
        counted.count("FAILED", failed)
    counted.write()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """A test of the battery that fails is a case, too."""
    outcome: Any = yield
    module = getattr(item, "module", None)
    if outcome.get_result().failed and hasattr(module, "GROUP"):
        failed = item.config.stash.setdefault(_FAILED, {})
        failed[module.__name__] = failed.get(module.__name__, 0) + 1
