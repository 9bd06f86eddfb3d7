"""The CPUs and the memory that a process may use, control groups heeded."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_cpus(membership: Path = _MEMBERSHIP, mount: Path = _MOUNT) -> int:
    """Count the CPUs this process may use: its affinity mask, cut by control-group quotas.

    Quotas are read along `mount` from each group that the file `membership` names up to the root,
    in either version of the kernel's interface; where the files are missing there is no quota.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, first_version in _groups("cpu", membership, mount):
        try:
            if first_version:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text()
            else:
                quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def group_memory(membership: Path = _MEMBERSHIP, mount: Path = _MOUNT) -> float:
    """Bytes that control groups leave this process; inf where none has a limit.

    Of what a group has in use, pages of files that were not used lately count as free: they make
    way. Limits are read as :func:`available_cpus` reads quotas.
    """
    free = math.inf
    for folder, first_version in _groups("memory", membership, mount):
        limit, usage, idle = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if first_version
            else ("memory.max", "memory.current", "inactive_file")
        )
        try:
            allowed = (folder / limit).read_text().strip()
            if allowed == "max":
                continue
            statistics = dict(
                line.split() for line in (folder / "memory.stat").read_text().splitlines()
            )
            used = int((folder / usage).read_text()) - int(statistics.get(idle, 0))
            free = min(free, max(0, int(allowed) - used))
        except (OSError, ValueError):
            continue
    return free


def _groups(controller: str, membership: Path, mount: Path) -> Iterator[tuple[Path, bool]]:
    """Folders from each of this process's groups up to the root; whether of version 1."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = mount / controllers / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder, bool(controllers)
