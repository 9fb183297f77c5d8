"""Describe the machine and count the CPUs that this process may use.

``loky.cpu_count`` (also in joblib) reads the CPU quota of the mounted root cgroup only. It misses the quota of a nested
group, such as a systemd unit with ``CPUQuota=``, and of a version 1 controller that is mounted as ``cpu,cpuacct``. So
``available_cpus`` reads the quotas itself.
"""

import math
import os
import platform
from importlib import metadata
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs in the affinity mask, limited by the cgroup's CPU quota.

    The result is at least 1, and a quota of 1.5 CPUs counts as 2. A number in ``PYTHON_CPU_COUNT`` replaces the count,
    as in Python 3.13. Tests set ``root``, the root of the file system.
    """
    if (override := os.environ.get("PYTHON_CPU_COUNT", "")).isdecimal():
        return max(1, int(override))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in cpu_quotas(root))]))


def cpu_quotas(root: Path) -> list[float]:
    """Return the CPU quotas of this process's cgroup and its ancestors (cgroup versions 1 and 2)."""
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

    In a container the mount usually begins at the container's own group, but /proc names the path as the host sees it.
    Therefore the mount itself is always in the list.
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
    """Return the numbers of a one-line file, with -1 for ``max``, or None if the file cannot be read."""
    try:
        return [-1 if word == "max" else int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return None


def describe_machine() -> dict[str, str]:
    """Return the processor, its usable cores and vector instructions, and the versions that affect speed."""
    import torch

    return {
        "processor": processor_name(),
        "cores": str(available_cpus()),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime_version(),
        "code": metadata.version("skipnet-serve"),
    }


def describe_gpu(device: str) -> dict[str, str]:
    """Return a CUDA device's name, architecture, memory and driver, or an empty dict for the CPU."""
    import torch

    if device == "cpu":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "architecture": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "gpu memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "driver": driver_version(),
        "cuda": str(torch.version.cuda),
    }


def driver_version() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "unknown"


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
