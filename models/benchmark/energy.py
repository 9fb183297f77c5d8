"""Measure energy with NVML's counter, which GPUs have since Volta."""

import time
from collections.abc import Callable

import torch

SPAN_S = 2.0
"""Seconds of a measurement. It is long because the counter is updated only every few tens of milliseconds."""


Meter = Callable[[], float]
"""Return the joules that a GPU has used so far."""


def open_meter(device: str) -> Meter | None:
    """Return the meter of a CUDA device, or None if NVML has no counter for it."""
    import pynvml

    if device == "cpu":
        return None
    try:
        pynvml.nvmlInit()
        # CUDA and NVML number the devices differently.
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


def joules_per_run(run: Callable[[], object], read: Meter, span_s: float = SPAN_S) -> float:
    """Return the joules of one run, including idle power, measured over ``span_s`` seconds."""
    runs, before, began = 0, read(), time.perf_counter()
    while time.perf_counter() - began < span_s:
        run()
        runs += 1
    return (read() - before) / runs
