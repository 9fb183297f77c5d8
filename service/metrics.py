"""What Prometheus scrapes. Names begin with skipnet_; labels take only values that the server chose."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from service.batching import Ran
from service.loading import Served
from service.timing import STAGES, Timing

SECONDS = (
    *(0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.025),
    *(0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10),
)
# One bucket a count for the small networks, steps for the deep ones (ResNet-152: 75 blocks, 150 layers).
BLOCKS = (*range(19), *range(20, 36, 2), 36, 40, 44, 48, 54, 60, 66, 75)
LAYERS = (*range(37), 39, *range(42, 75, 3), 80, 90, 99, 108, 120, 132, 150)
VERSION = ("model", "version")

# Each would double a counter's series to say when it began, which process_start_time_seconds tells.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = VERSION) -> Counter:
            return Counter(f"skipnet_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = VERSION) -> Gauge:
            return Gauge(f"skipnet_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = VERSION) -> Histogram:
            return Histogram(f"skipnet_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter(
            "requests_total",
            "Inference requests by outcome; model and version are empty where none was found.",
            (*VERSION, "outcome"),
        )
        self.request_duration = histogram(
            "request_duration_seconds", "From arrival to answer, of requests that were classified.", SECONDS
        )
        self.stage_duration = histogram(
            "stage_duration_seconds", "The stages of the same requests.", SECONDS, (*VERSION, "stage")
        )
        self.in_flight = gauge("requests_in_flight", "Images admitted and not yet answered.", ())
        self.rejections = counter("rejections_total", "Requests answered with 429, by what was full.", ("reason",))
        self.dropped = counter(
            "dropped_total",
            "Images that left the queue uncomputed: their client was gone or their deadline past.",
            (*VERSION, "reason"),
        )

        self.layers_skipped = histogram("layers_skipped", "Convolutions that an image skipped.", LAYERS)
        self.blocks_skipped = histogram("blocks_skipped", "Blocks that an image skipped.", BLOCKS)
        self.executions = counter("block_executions_total", "Images that a block ran for.", (*VERSION, "block"))
        self.skips = counter("block_skips_total", "Images that a block was skipped for.", (*VERSION, "block"))
        self.macs = counter(
            "macs_total",
            "Multiply-adds spent (executed), and what the network without gates would have spent (dense).",
            (*VERSION, "kind"),
        )

        self.batch_size = histogram("batch_size", "Images that ran together.", (1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.batches = counter("batches_total", "Batches that ran, by how skipping was done.", (*VERSION, "mode"))
        self.engine_seconds = counter("engine_seconds_total", "Seconds that the engine ran.")
        self.dense_seconds = counter(
            "dense_seconds_total",
            "Seconds that the same batches would have taken with every block run, by the warm-up's clock.",
        )
        self.queue_depth = gauge("queue_depth", "Decoded images that wait for the engine.")

        self.model = Info("skipnet_model", "What is served.", VERSION, registry=registry)
        self.engine_mode = gauge(
            "engine_mode",
            "1 for how the last batch ran: branch leaves skipped blocks out, mask runs them in vain.",
            (*VERSION, "mode"),
        )
        self.expected_mac_share = gauge(
            "expected_mac_share", "Executed by dense multiply-adds when the checkpoint was evaluated."
        )
        self.expected_execution_rate = gauge(
            "expected_block_execution_rate",
            "Share of the evaluated images that a block ran for.",
            (*VERSION, "block"),
        )
        self.ready = gauge("ready", "1 when /health/ready says yes.", ())

    def served(self, served: Served, depth: Callable[[], int]) -> None:
        """Begin a version's series, at zero where nothing was counted yet."""
        name, version = labels = (served.name, str(served.version))
        self.model.labels(*labels).info(
            {
                "architecture": served.checkpoint.config.architecture,
                "engine": served.engine.name,
                "device": served.engine.device,
            }
        )
        self.queue_depth.labels(*labels).set_function(depth)
        self._show_mode(name, version, served.mode)
        for kind in ("executed", "dense"):
            self.macs.labels(*labels, kind)
        for reason in ("client_gone", "deadline"):
            self.dropped.labels(*labels, reason)
        for metric in (self.engine_seconds, self.dense_seconds, self.layers_skipped, self.blocks_skipped):
            metric.labels(*labels)
        for block in range(len(served.checkpoint.macs.blocks)):
            self.executions.labels(*labels, str(block))
            self.skips.labels(*labels, str(block))
        evaluation = served.checkpoint.config.evaluation
        if evaluation is not None:
            self.expected_mac_share.labels(*labels).set(evaluation.macs / evaluation.dense_macs)
            for block, rate in enumerate(evaluation.execution_rate, start=1):
                self.expected_execution_rate.labels(*labels, str(block)).set(rate)

    def retired(self, served: Served) -> None:
        """End the series that say what is served now; counters stay, as their end is not yet scraped."""
        labels = (served.name, str(served.version))
        for metric in (self.model, self.queue_depth, self.expected_mac_share):
            metric.remove_by_labels(dict(zip(VERSION, labels, strict=True)))
        for metric in (self.engine_mode, self.expected_execution_rate):
            metric.remove_by_labels(dict(zip(VERSION, labels, strict=True)))

    def ran(self, ran: Ran, macs: NDArray[np.int64]) -> None:
        """Count a batch."""
        served, routed, size = ran.batch.served, ran.routed, len(ran.batch.works)
        name, version = labels = (served.name, str(served.version))
        self.batch_size.labels(*labels).observe(size)
        self.batches.labels(*labels, routed.mode).inc()
        self.engine_seconds.labels(*labels).inc(ran.seconds)
        self.dense_seconds.labels(*labels).inc(served.dense_time(size))
        self.macs.labels(*labels, "executed").inc(int(macs.sum()))
        self.macs.labels(*labels, "dense").inc(served.checkpoint.macs.dense * size)
        for block, executed in enumerate([size, *routed.executed.sum(0).tolist()]):
            self.executions.labels(*labels, str(block)).inc(executed)
            self.skips.labels(*labels, str(block)).inc(size - executed)
        for skipped in (~routed.executed).sum(1).tolist():
            self.blocks_skipped.labels(*labels).observe(skipped)
            self.layers_skipped.labels(*labels).observe(skipped * served.checkpoint.network.layers_per_block)
        self._show_mode(name, version, routed.mode)

    def answered(self, served: Served, timing: Timing, request_id: str) -> None:
        """Observe an answered request's timing, with its id as the exemplar."""
        labels, exemplar = (served.name, str(served.version)), {"request_id": request_id}
        self.request_duration.labels(*labels).observe(timing.total, exemplar)
        for stage in STAGES:
            self.stage_duration.labels(*labels, stage).observe(getattr(timing, stage), exemplar)

    def _show_mode(self, name: str, version: str, mode: str) -> None:
        for each in ("branch", "mask"):
            self.engine_mode.labels(name, version, each).set(each == mode)
