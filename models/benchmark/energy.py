"""Energy by NVML's counter, which GPUs since Volta have; it moves every few tens of milliseconds."""

import time
from collections.abc import Callable

import torch

SPAN_S = 2.0
"""So long that the counter's steps do not matter."""


Meter = Callable[[], float]
"""Tells the joules that a GPU took so far."""


def open_meter(device: str) -> Meter | None:
    """Return the meter of a CUDA device, or None where NVML cannot tell."""
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


def joules_a_run(run: Callable[[], object], read: Meter, span_s: float = SPAN_S) -> float:
    """Return the joules of one run, the idle power of the GPU included, from runs for ``span_s`` seconds."""
    runs, before, began = 0, read(), time.perf_counter()
    while time.perf_counter() - began < span_s:
        run()
        runs += 1
    return (read() - before) / runs
