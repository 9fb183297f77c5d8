"""Describe the machine on which a measurement was taken."""

import platform
from importlib import metadata
from pathlib import Path

import torch

from models.cpus import available_cpus


def describe_machine() -> dict[str, str]:
    """Return the processor, its usable cores and vector instructions, and the versions that affect speed."""
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
