"""What a measurement was taken on."""

import platform
from importlib import metadata
from pathlib import Path

import torch

from models.engines.threads import available_cpus


def describe_machine() -> dict[str, str]:
    """Return the processor, its usable cores and vector instructions, and the versions that matter to speed."""
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
