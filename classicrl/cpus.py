"""The CPUs that a process may use."""

import os
from pathlib import Path


def available_cpus(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int:
    """Count the CPUs this process may use: its affinity mask, cut by control-group quotas.

    Quotas are read along `mount` from each group that the file `membership` names up to the root,
    in either version of the kernel's interface; where the files are missing there is no quota.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return cpus
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = mount / controllers / path.lstrip("/")
        for folder in (group, *group.parents):
            try:
                if controllers:
                    quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                    period = (folder / "cpu.cfs_period_us").read_text()
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
            except (OSError, ValueError):
                continue
            if quota not in ("max", "-1"):
                cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus
