"""NVML's readings as metrics, without a GPU. A substitute for NVML returns values as in its manual."""

from types import SimpleNamespace

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.telemetry.gpu import GpuCollector


def scrape() -> set[str]:
    registry = CollectorRegistry()
    registry.register(GpuCollector())
    return {line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")}


def test_no_series_without_an_nvidia_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert scrape() == set()


def test_readings_are_in_base_units_and_unsupported_ones_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def energy(device: int) -> int:
        if device == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 2500

    stand_in = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=50 + device),
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(used=1024, total=4096 + device),
        "nvmlDeviceGetTotalEnergyConsumption": energy,
    }
    for name, function in stand_in.items():
        monkeypatch.setattr(pynvml, name, function)
    assert scrape() == {
        'skipnet_gpu_utilization_ratio{gpu="0"} 0.5',
        'skipnet_gpu_utilization_ratio{gpu="1"} 0.51',
        'skipnet_gpu_memory_used_bytes{gpu="0"} 1024.0',
        'skipnet_gpu_memory_used_bytes{gpu="1"} 1024.0',
        'skipnet_gpu_memory_bytes{gpu="0"} 4096.0',
        'skipnet_gpu_memory_bytes{gpu="1"} 4097.0',
        'skipnet_gpu_energy_joules_total{gpu="0"} 2.5',
    }
