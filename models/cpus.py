"""How many CPUs this process may use: what a container limits, not what the machine has."""

import math
import os
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """Return the CPUs this process may use, at least 1: the affinity mask, cut to the cgroup's CPU quota.

    A quota of 1.5 CPUs counts as 2. ``root`` is the file system's root, for tests.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in cpu_quotas(root))]))


def cpu_quotas(root: Path) -> list[float]:
    """Return the quotas, in CPUs, of this process's cgroup and of those above it (cgroups version 1 and 2)."""
    quotas = []
    for group in control_groups(root):
        quota, period = read_numbers(group / "cpu.max") or (
            *(read_numbers(group / "cpu.cfs_quota_us") or [-1]),
            *(read_numbers(group / "cpu.cfs_period_us") or [-1]),
        )
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return quotas


def control_groups(root: Path) -> list[Path]:
    """Return the folders that can hold a quota for this process, the nearest first.

    In a container the mount usually begins at the container's own group, although /proc names the path that
    the host sees: so the mount itself is always among them.
    """
    folders = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return folders or [root / "sys/fs/cgroup", root / "sys/fs/cgroup/cpu"]


def read_numbers(file: Path) -> list[int] | None:
    """Return the numbers in a file of one line, ``max`` being -1, or None where there is no such file."""
    try:
        return [-1 if word == "max" else int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return None
