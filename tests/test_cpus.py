"""What control groups leave to a process, from files such as the kernel shows; and that a process
keeps the memory it has freed."""

import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from classicrl import machine
from classicrl.cpus import available_cpus, group_memory


def test_available_cpus_heeds_quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    membership = tmp_path / "membership"
    assert available_cpus(membership, tmp_path) == 12  # no such file
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    membership.write_text("4:memory:/elsewhere\n0::/outer/inner\n")
    assert available_cpus(membership, tmp_path) == 12
    (group / "cpu.max").write_text("max 100000\n")
    assert available_cpus(membership, tmp_path) == 12
    (tmp_path / "outer" / "cpu.max").write_text("550000 100000\n")
    assert available_cpus(membership, tmp_path) == 5
    (group / "cpu.max").write_text("50000 100000\n")
    assert available_cpus(membership, tmp_path) == 1

    old = tmp_path / "cpu,cpuacct" / "box"
    old.mkdir(parents=True)
    membership.write_text("2:cpu,cpuacct:/box\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    assert available_cpus(membership, tmp_path) == 12
    (old / "cpu.cfs_quota_us").write_text("300000\n")
    assert available_cpus(membership, tmp_path) == 3


def test_group_memory_is_the_least_that_a_group_leaves(tmp_path: Path) -> None:
    """Limit less what is in use, of which pages of files that lie idle do not count."""
    membership = tmp_path / "membership"
    assert group_memory(membership, tmp_path) == math.inf  # no such file
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    membership.write_text("4:cpu:/elsewhere\n0::/outer/inner\n")
    assert group_memory(membership, tmp_path) == math.inf
    for folder, limit, usage, idle in ((group, "max", 7, 0), (tmp_path / "outer", "900", 500, 120)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"anon 3\ninactive_file {idle}\n")
    assert group_memory(membership, tmp_path) == 900 - (500 - 120)
    (group / "memory.max").write_text("5\n")
    assert group_memory(membership, tmp_path) == 0  # never below

    old = tmp_path / "memory" / "box"
    old.mkdir(parents=True)
    membership.write_text("2:memory:/box\n")
    (old / "memory.limit_in_bytes").write_text("1000\n")
    (old / "memory.usage_in_bytes").write_text("300\n")
    (old / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 50\n")
    assert group_memory(membership, tmp_path) == 750


def test_memory_of_the_machine_is_cut_by_that_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(machine, "group_memory", lambda: math.inf)
    assert machine.available_memory(cpu) > 10_000
    monkeypatch.setattr(machine, "group_memory", lambda: 10_000)
    assert machine.available_memory(cpu) == 10_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="requires glibc")
def test_freed_memory_is_kept() -> None:
    program = """
import resource, sys, numpy
if sys.argv[1] == "kept":
    from classicrl.machine import set_threads
    set_threads(1)
for _ in range(2):  # one array of 50 MB at a time
    numpy.empty(50_000_000, dtype=numpy.uint8).fill(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    numpy.empty(50_000_000, dtype=numpy.uint8).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for mode in ("kept", "returned"):
        # NumPy asks for huge pages otherwise, where there are a few faults in either case.
        ran = subprocess.run(
            [sys.executable, "-c", program, mode],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"},
        )
        faults[mode] = int(ran.stdout)
    # 24 for each array where the kernel takes huge pages by itself.
    assert faults["kept"] < 20 < 100 < faults["returned"], faults
