"""What every test file shares."""

import os

# Before torch is imported: the tests are small, and several runs may share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# Times vary with the machine's load, so no test is judged by them; every failure can be repeated.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """A script's `main` has this process flush denormals; the next test shall not find it so."""
    yield
    torch.set_flush_denormal(False)
