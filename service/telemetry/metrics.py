"""The metrics of one server, for Prometheus. No label has a value that a client chose."""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from service.errors import OUTCOMES
from service.inference.admission import REJECT_REASONS
from service.inference.batch import BatchRun
from service.inference.image_task import DROP_REASONS
from service.inference.result import ImageResult
from service.inference.route import RouteChoice
from service.repository.loaded_cascade import LoadedCascade
from service.repository.loaded_model import LoadedModel
from service.telemetry.cascade_metrics import MARGINS, CascadeMetrics
from service.telemetry.metric_registry import VERSION, MetricRegistry, remove_version
from service.telemetry.shadow_metrics import ShadowMetrics
from service.telemetry.timing import STAGES, Timing

SECONDS = (
    *(0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.025),
    *(0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10),
)
# One bucket per count for small networks, wider ones for deep networks (ResNet-152: 75 blocks, 150 layers).
BLOCKS = (*range(19), *range(20, 36, 2), 36, 40, 44, 48, 54, 60, 66, 75)
LAYERS = (*range(37), 39, *range(42, 75, 3), 80, 90, 99, 108, 120, 132, 150)
MODES = ("branch", "mask")

KEPT = 2
"""Retired versions of a model whose counters stay, so that their last values are scraped."""


class Metrics:
    """All metrics of one server, in their own registry. Their names begin with skipnet_."""

    def __init__(self) -> None:
        self._made = MetricRegistry()
        self.registry = self._made.collectors
        counter, gauge, histogram = self._made.counter, self._made.gauge, self._made.histogram
        self._retired: dict[tuple[str, str], None] = {}  # name and version, oldest first
        self._add_requests()
        self._add_batches()
        self._add_versions()
        self.cascades = CascadeMetrics(
            counter,
            gauge,
            lambda name, text, labels: histogram(name, text, MARGINS, labels),
            lambda name, text, labels: histogram(name, text, SECONDS, labels),
        )
        self.shadows = ShadowMetrics(counter)
        self._series: WeakKeyDictionary[LoadedModel, Series] = WeakKeyDictionary()
        self.ready = gauge("ready", "1 if /health/ready succeeds.", ())
        self.models_failed = gauge(
            "models_failed", "Models whose newest version could not be loaded; GET /models says why.", ()
        )
        # Each worker adds one: all engines together have as many engine seconds in a second.
        self.engine_threads = gauge("engine_threads", "Threads that run an engine: one for each device.", ())
        self.engine_threads.set(1)

    def _add_requests(self) -> None:
        """Add the metrics of requests and of the queue's limits."""
        counter, gauge, histogram = self._made.counter, self._made.gauge, self._made.histogram
        self.requests = counter(
            "requests_total",
            "Inference requests by outcome; model and version are empty if no model was found.",
            (*VERSION, "outcome"),
        )
        self._begin_requests("", "")
        self.request_duration = histogram(
            "request_duration_seconds", "Time from arrival to response of successful inference requests.", SECONDS
        )
        self.stage_duration = histogram(
            "stage_duration_seconds", "Time in each stage of the same requests.", SECONDS, (*VERSION, "stage")
        )
        self.in_flight = gauge("images_in_flight", "Admitted images whose result is pending.", ())
        self.engine_busy = gauge(
            "engine_busy_seconds", "Time that the current batch has been in the engine; 0 if there is none.", ()
        )
        self.rejections = counter("rejections_total", "Requests refused with 429, by reason.", ("reason",))
        for reason in REJECT_REASONS:
            self.rejections.labels(reason)
        self.dropped = counter(
            "dropped_total",
            "Images that were not computed: their client disconnected, their deadline passed, or another image of "
            "their request failed.",
            (*VERSION, "reason"),
        )

    def _add_batches(self) -> None:
        """Add the metrics of blocks, MACs, batches and engine time."""
        counter, histogram = self._made.counter, self._made.histogram
        self.layers_skipped = histogram("layers_skipped", "Convolutional layers that an image skipped.", LAYERS)
        self.blocks_skipped = histogram("blocks_skipped", "Blocks that an image skipped.", BLOCKS)
        self.executions = counter("block_executions_total", "Images that executed a block.", (*VERSION, "block"))
        self.skips = counter("block_skips_total", "Images that skipped a block.", (*VERSION, "block"))
        self.macs = counter(
            "macs_total",
            "MACs that the engine computed (executed), and of the network without gates (dense).",
            (*VERSION, "kind"),
        )

        self.batch_size = histogram("batch_size", "Images that ran together.", (1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.batches = counter("batches_total", "Batches that ran, by routing mode.", (*VERSION, "mode"))
        self.engine_seconds = counter("engine_seconds_total", "Seconds that the engine ran.")
        self.dense_seconds = counter(
            "dense_seconds_total",
            "Seconds that the same batches would have taken with every block run, by the dense clock.",
        )
        self.dense_samples = counter(
            "dense_sampled_images_total",
            "Images that also ran with every block, to set the dense clock. Their MACs and seconds count as executed.",
        )
        self.queue_depth = self._made.gauge("queue_depth", "Decoded images that wait for the engine.")

    def _add_versions(self) -> None:
        """Add the metrics of versions: their engine, their evaluation, and their degraded routes."""
        counter, gauge = self._made.counter, self._made.gauge
        self.model = self._made.info("model", "Engine and device of a served version.")
        self.fallbacks = counter(
            "engine_fallbacks_total",
            "Engines that were unavailable at a load, or whose output differs from the reference engine. "
            "The engine that is used has 0; the log has the reasons.",
            (*VERSION, "engine"),
        )
        self.engine_mode = gauge(
            "engine_mode",
            "1 for the mode of the last batch: branch skips blocks, mask computes and discards them.",
            (*VERSION, "mode"),
        )
        self.expected_mac_share = gauge(
            "expected_mac_share", "Executed MACs / dense MACs in the checkpoint's evaluation."
        )
        self.expected_execution_rate = gauge(
            "expected_block_execution_rate",
            "Share of the evaluated images that executed a block.",
            (*VERSION, "block"),
        )
        self.degraded_share = gauge(
            "usual_macs_share", "Current share of an image's usual MACs; below 1 under load.", ()
        )
        self.degraded = counter("degraded_images_total", "Images whose route was degraded under load.")
        self.accuracy_loss = counter(
            "degraded_accuracy_loss_total", "Expected loss of accuracy, 0..1, of degraded images, summed over images."
        )

    def add_model(self, model: LoadedModel, depth: Callable[[], int]) -> None:
        """Start a version's series. Those that have counted nothing yet are 0."""
        labels = (model.name, str(model.version))
        self._retired.pop(labels, None)
        self.model.labels(*labels).info(
            {
                "architecture": model.architecture,
                "engine": model.engine.name,
                "device": model.device,
            }
        )
        self.fallbacks.labels(*labels, model.engine.name)
        for engine in model.fallbacks:
            self.fallbacks.labels(*labels, engine).inc()
        self.queue_depth.labels(*labels).set_function(depth)
        for mode, gauge in self._series_of(model).modes.items():
            gauge.set(mode == model.mode)
        self._begin_requests(*labels)
        for reason in DROP_REASONS:
            self.dropped.labels(*labels, reason)
        self.degraded.labels(*labels)
        self.accuracy_loss.labels(*labels)
        if model.expected_mac_share is not None:
            self.expected_mac_share.labels(*labels).set(model.expected_mac_share)
        for block, rate in enumerate(model.execution_rates, start=1):
            self.expected_execution_rate.labels(*labels, str(block)).set(rate)
        if isinstance(model, LoadedCascade):
            self.cascades.add_model(model)

    def remove_model(self, model: LoadedModel) -> None:
        """Remove the gauges of a version that is no longer served.

        Of more than KEPT such versions, all series of the oldest are removed.
        """
        labels = (model.name, str(model.version))
        now = (self.model, self.queue_depth, self.expected_mac_share, self.engine_mode, self.expected_execution_rate)
        remove_version(now, labels)
        self._retired.pop(labels, None)
        self._retired[labels] = None
        for ended in [each for each in self._retired if each[0] == model.name][:-KEPT]:
            del self._retired[ended]
            self._made.remove_version(ended)

    def count_batch(self, run: BatchRun, results: list[ImageResult]) -> None:
        """Count a batch and the results of its images."""
        model, routed, size = run.batch.model, run.routed, len(run.batch.tasks)
        series = self._series_of(model)
        series.batch_size.observe(size)
        series.batches[routed.mode].inc()
        series.engine_seconds.inc(run.seconds + run.dense_seconds)
        series.dense_seconds.inc(model.clock.instead(size, run.seconds))
        series.macs["executed"].inc(sum(result.macs for result in results))
        if run.dense_seconds:
            series.dense_samples.inc(size)
            series.macs["executed"].inc(model.sample_macs * size)
        series.macs["dense"].inc(model.dense_macs * size)
        executed_counts = [size, *routed.executed.sum(0).tolist()]
        reached_counts = model.images_per_block(routed).tolist()
        blocks = zip(executed_counts, reached_counts, series.executions, series.skips, strict=True)
        for executed, reached, executions, skips in blocks:
            # An increment by 0 costs as much as any other.
            if executed:
                executions.inc(executed)
            if executed < reached:
                skips.inc(reached - executed)
        for result in results:
            series.blocks_skipped.observe(result.skipped)
            series.layers_skipped.observe(result.layers_skipped)
        if isinstance(model, LoadedCascade):
            self.cascades.count_batch(model, results)
        if routed.mode != model.mode:  # the mode of the batch before
            for mode, gauge in series.modes.items():
                gauge.set(mode == routed.mode)

    def count_dropped(self, model: LoadedModel, reason: str) -> None:
        """Count an image that was not computed, for one of DROP_REASONS. Any thread may call this."""
        self.dropped.labels(model.name, str(model.version), reason).inc()

    def count_degraded(self, model: LoadedModel, count: int, loss: float) -> None:
        """Count images whose route was degraded, each with its expected ``loss`` of accuracy."""
        self.degraded.labels(model.name, str(model.version)).inc(count)
        self.accuracy_loss.labels(model.name, str(model.version)).inc(count * loss)

    def count_rejected(self, reason: str) -> None:
        """Count a request that got a 429, for one of REJECT_REASONS."""
        self.rejections.labels(reason).inc()

    def observe_request(
        self, model: LoadedModel, timing: Timing, request_id: str, results: Sequence[ImageResult], route: RouteChoice
    ) -> None:
        """Observe a successful request: its timing, with its id as the exemplar, and whether it was degraded."""
        series, exemplar = self._series_of(model), {"request_id": request_id}
        series.request_duration.observe(timing.total, exemplar)
        for stage, histogram in series.stages.items():
            histogram.observe(getattr(timing, stage), exemplar)
        if isinstance(model, LoadedCascade):
            self.cascades.observe_request(model, timing.total, results)
        if route.accuracy_loss is not None:
            self.count_degraded(model, len(results), route.accuracy_loss)

    def _begin_requests(self, name: str, version: str) -> None:
        """Start the series at 0. If a series began with a burst of errors, rate() would miss the burst."""
        for outcome in OUTCOMES:
            self.requests.labels(name, version, outcome)

    def _series_of(self, model: LoadedModel) -> "Series":
        series = self._series.get(model)
        if series is None:
            series = self._series[model] = Series(self, model)
        return series


class Series:
    """The series of one version, looked up once, because a look-up takes longer than counting."""

    def __init__(self, metrics: Metrics, model: LoadedModel) -> None:
        name, version = model.name, str(model.version)
        blocks = [str(block) for block in range(model.blocks)]
        self.batch_size = metrics.batch_size.labels(name, version)
        self.batches = {mode: metrics.batches.labels(name, version, mode) for mode in MODES}
        self.modes = {mode: metrics.engine_mode.labels(name, version, mode) for mode in MODES}
        self.engine_seconds = metrics.engine_seconds.labels(name, version)
        self.dense_seconds = metrics.dense_seconds.labels(name, version)
        self.dense_samples = metrics.dense_samples.labels(name, version)
        self.macs = {kind: metrics.macs.labels(name, version, kind) for kind in ("executed", "dense")}
        self.executions = [metrics.executions.labels(name, version, block) for block in blocks]
        self.skips = [metrics.skips.labels(name, version, block) for block in blocks]
        self.blocks_skipped = metrics.blocks_skipped.labels(name, version)
        self.layers_skipped = metrics.layers_skipped.labels(name, version)
        self.request_duration = metrics.request_duration.labels(name, version)
        self.stages = {stage: metrics.stage_duration.labels(name, version, stage) for stage in STAGES}
