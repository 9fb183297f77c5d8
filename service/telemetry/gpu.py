"""Metrics of the machine's NVIDIA GPUs from NVML. Without a GPU there are no series."""

from collections.abc import Callable, Iterable, Iterator

import pynvml
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class GpuCollector(Collector):
    """Reads the devices at every scrape. Readings that a device does not support are left out."""

    def __init__(self) -> None:
        try:
            pynvml.nvmlInit()
            self.devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            self.devices = []

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        utilization = GaugeMetricFamily(
            "skipnet_gpu_utilization_ratio", "Share of time that the GPU was busy.", labels=["gpu"]
        )
        used = GaugeMetricFamily("skipnet_gpu_memory_used_bytes", "GPU memory in use by all processes.", labels=["gpu"])
        size = GaugeMetricFamily("skipnet_gpu_memory_bytes", "Total GPU memory.", labels=["gpu"])
        energy = CounterMetricFamily(
            "skipnet_gpu_energy_joules", "Energy that the GPU used since its driver was loaded.", labels=["gpu"]
        )
        readings: list[tuple[GaugeMetricFamily | CounterMetricFamily, Callable[[object], float]]] = [
            (utilization, lambda device: pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100),
            (used, lambda device: pynvml.nvmlDeviceGetMemoryInfo(device).used),
            (size, lambda device: pynvml.nvmlDeviceGetMemoryInfo(device).total),
            (energy, lambda device: pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1000),
        ]
        for family, read in readings:
            for index, device in enumerate(self.devices):
                try:
                    family.add_metric([str(index)], read(device))
                except pynvml.NVMLError:
                    continue
            if family.samples:
                yield family
