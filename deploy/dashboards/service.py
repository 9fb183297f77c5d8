"""The dashboard of the service."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.panels import (
    INSTANCE,
    VARIABLES,
    VERSION,
    Built,
    Target,
    dashboard,
    heatmap_panel,
    padded,
    quantile,
    rate,
    series_panel,
    stat_panel,
    steps,
    table_panel,
    with_rows,
)

FAILED = f'{INSTANCE}, outcome=~"error|deadline|unavailable"'
JUDGED = f'{INSTANCE}, outcome!~"bad_input|cancelled|client_deadline|rejected"'
IMAGES = f'{VERSION}, block="0"'
"""The first block runs for every image."""
REQUESTS_BY_VERSION = f'{VERSION}, version!=""'
"""Without the requests that named no existing model."""
FAILED_BY_VERSION = f'{REQUESTS_BY_VERSION}, outcome=~"error|deadline|unavailable"'
AGREED = f'{VERSION}, outcome="agreed"'
COMPARED = f'{VERSION}, outcome=~"agreed|differed"'
EACH = "model, version"
DURATION = "skipnet_request_duration_seconds"


def board() -> Dashboard:
    made = dashboard("skipnet-service", "SkipNet: service", "Outcomes, latency and load of the service.", VARIABLES)
    rows = {
        "Now": numbers(),
        "Requests": requests(),
        "Queue and batches": batches(),
        "Versions": versions(),
        "Process": process(),
        "GPU": gpu(),
    }
    return with_rows(made, rows)


def numbers() -> list[Built]:
    return [
        stat_panel(
            "Replicas ready",
            "Replicas whose /health/ready returns 200.",
            "short",
            Target(f"sum(skipnet_ready{{{INSTANCE}}})"),
            steps("red", (1, "green")),
        ),
        stat_panel(
            "Requests",
            "Inference requests per second, with any outcome.",
            "reqps",
            Target(rate("skipnet_requests_total", INSTANCE)),
            steps("text"),
        ),
        stat_panel(
            "Errors",
            "Share of requests that the service failed: error, deadline passed, not ready. Invalid requests, 429s, "
            "disconnected clients and deadlines set by the client do not count. The objective is 0.1 %.",
            "percentunit",
            Target(f"{rate('skipnet_requests_total', FAILED)} / {rate('skipnet_requests_total', JUDGED)}"),
            steps("green", (0.001, "orange"), (0.0144, "red")),
        ),
        stat_panel(
            "Latency, 99th percentile",
            "From the arrival of a request to its response. The objective is 99 % within 100 ms.",
            "s",
            Target(quantile(0.99, DURATION)),
            steps("green", (0.1, "orange"), (0.5, "red")),
        ),
        stat_panel(
            "Rejected",
            "Share of requests refused with 429 because the service was saturated, without client_deadline.",
            "percentunit",
            Target(
                rate("skipnet_requests_total", f'{INSTANCE}, outcome="rejected"')
                + " / "
                + rate("skipnet_requests_total", f'{INSTANCE}, outcome!="client_deadline"')
            ),
            steps("green", (0.01, "orange"), (0.05, "red")),
        ),
        stat_panel(
            "Engine busy",
            "Share of the time that the engine of the busiest replica ran, the mean of its workers. Near 1 the "
            "capacity is used up: add replicas.",
            "percentunit",
            Target(
                f"max(sum by (job, instance) (rate(skipnet_engine_seconds_total{{{VERSION}}}[$__rate_interval])) "
                f"/ sum by (job, instance) (skipnet_engine_threads{{{INSTANCE}}}))"
            ),
            steps("green", (0.8, "orange"), (0.95, "red")),
        ),
    ]


def requests() -> list[Built]:
    return [
        series_panel(
            "Requests by outcome",
            "ok; bad_input: 4xx; rejected: 429; deadline: 504; client_deadline: 429 or 504 for a deadline that the "
            "client set; unavailable: 503; error: other 5xx; cancelled: the client disconnected.",
            "reqps",
            Target(rate("skipnet_requests_total", INSTANCE, "outcome"), "{{outcome}}"),
        ),
        series_panel(
            "Latency of classified requests",
            "Percentiles from the arrival of a request to its response. Diamonds are single requests with their id.",
            "s",
            Target(quantile(0.5, DURATION), "50 %"),
            Target(quantile(0.9, DURATION), "90 %"),
            Target(quantile(0.99, DURATION), "99 %", exemplars=True),
        ),
        series_panel(
            "Stages, 99th percentile",
            "receive: reading the body; decode: bytes to tensor; queue: waiting; inference: engine.",
            "s",
            Target(quantile(0.99, "skipnet_stage_duration_seconds", "stage"), "{{stage}}"),
        ),
        series_panel(
            "Stages, median",
            "The same, for the median request.",
            "s",
            Target(quantile(0.5, "skipnet_stage_duration_seconds", "stage"), "{{stage}}"),
        ),
    ]


def batches() -> list[Built]:
    return [
        series_panel(
            "Images in flight",
            "In flight: admitted, with the result pending, at most max_queue_size. Queued: decoded and waiting for "
            "the engine.",
            "short",
            Target(f"sum by (instance) (skipnet_images_in_flight{{{INSTANCE}}})", "{{instance}} in flight"),
            Target(f"sum by (instance) (skipnet_queue_depth{{{VERSION}}})", "{{instance}} queued"),
        ),
        series_panel(
            "Rejected and dropped",
            "429s by reason, and images that left the queue without being computed: their deadline had passed or "
            "their client had disconnected.",
            "reqps",
            Target(rate("skipnet_rejections_total", INSTANCE, "reason"), "429: {{reason}}"),
            Target(rate("skipnet_dropped_total", VERSION, "reason"), "dropped: {{reason}}"),
        ),
        series_panel(
            "Degraded images",
            "Share of the images whose route was made cheaper because of the load, with --degrade-to.",
            "percentunit",
            Target(
                f"{rate('skipnet_degraded_images_total', by=EACH)}"
                f" / {rate('skipnet_block_executions_total', IMAGES, EACH)}",
                "{{model}}/{{version}}",
            ),
        ),
        series_panel(
            "Accuracy lost under load",
            "Mean expected loss of accuracy of an image, over all images. The accuracy is that of the checkpoint's "
            "accuracy-compute curve.",
            "percentunit",
            Target(
                f"{rate('skipnet_degraded_accuracy_loss_total', by=EACH)}"
                f" / {rate('skipnet_block_executions_total', IMAGES, EACH)}",
                "{{model}}/{{version}}",
            ),
        ),
        heatmap_panel(
            "Batch size",
            "Images that ran together. The images that queued while the engine was busy are the next batch.",
            "short",
            "skipnet_batch_size",
        ),
        series_panel(
            "Effective batch per block",
            "Images of a batch that executed each block. It shrinks from block to block as images skip. If it is "
            "small, a GPU is mostly idle.",
            "short",
            Target(
                padded(
                    rate("skipnet_block_executions_total", VERSION, "block")
                    + " / on () group_left () "
                    + rate("skipnet_batches_total")
                ),
                "block {{block}}",
            ),
        ),
    ]


def versions() -> list[Built]:
    each = "model, version, shadow"
    return [
        series_panel(
            "Requests by version",
            "Inference requests per second by version, with any outcome. With --canary the canary has its share.",
            "reqps",
            Target(rate("skipnet_requests_total", REQUESTS_BY_VERSION, EACH), "{{model}}/{{version}}"),
        ),
        series_panel(
            "Errors by version",
            "Share of a version's requests that failed. Do not promote a canary with a larger share.",
            "percentunit",
            Target(
                f"{rate('skipnet_requests_total', FAILED_BY_VERSION, EACH)}"
                f" / {rate('skipnet_requests_total', REQUESTS_BY_VERSION, EACH)}",
                "{{model}}/{{version}}",
            ),
        ),
        series_panel(
            "Shadow agreement",
            "Share of the sampled images for which the shadow has the same label, with --shadow. With dense, "
            "routing loses at most the difference to 100 %.",
            "percentunit",
            Target(
                f"{rate('skipnet_shadow_images_total', AGREED, each)}"
                f" / {rate('skipnet_shadow_images_total', COMPARED, each)}",
                "{{model}}/{{version}} and {{shadow}}",
            ),
        ),
        series_panel(
            "Shadow images",
            "Sampled images by outcome. Dropped: the engine was busy, so the sample is smaller than requested.",
            "reqps",
            Target(rate("skipnet_shadow_images_total", VERSION, "outcome"), "{{outcome}}"),
        ),
    ]


def process() -> list[Built]:
    return [
        series_panel(
            "CPU",
            "Cores in use, including decoding and serving.",
            "short",
            Target(rate("process_cpu_seconds_total", INSTANCE, "instance"), "{{instance}}"),
        ),
        series_panel(
            "Memory",
            "Resident memory of the process.",
            "bytes",
            Target(f"sum by (instance) (process_resident_memory_bytes{{{INSTANCE}}})", "{{instance}}"),
        ),
        series_panel(
            "Open files",
            "Open files and connections as a share of the limit. At 1, new connections are closed without a log line"
            " or metric.",
            "percentunit",
            Target(
                f"sum by (instance) (process_open_fds{{{INSTANCE}}})"
                f" / sum by (instance) (process_max_fds{{{INSTANCE}}})",
                "{{instance}}",
            ),
        ),
        table_panel(
            "Models served",
            "Each version that a replica serves, with its engine.",
            "short",
            Target(f"skipnet_model_info{{{VERSION}}}"),
            hide=("job",),
        ),
        series_panel(
            "Engine fallbacks since start",
            "Loads that could not use an engine because it was unavailable or its output differed from the "
            "reference. The log has the reason. The engine in use is at 0.",
            "short",
            Target(
                f"sum by (instance, model, engine) (skipnet_engine_fallbacks_total{{{VERSION}}})",
                "{{instance}} {{model}}: {{engine}}",
            ),
        ),
        series_panel(
            "Restarts",
            "Restarts of a replica's process in the last hour.",
            "short",
            Target(f"sum by (instance) (changes(process_start_time_seconds{{{INSTANCE}}}[1h]))", "{{instance}}"),
        ),
    ]


def gpu() -> list[Built]:
    each = "{{instance}} GPU {{gpu}}"
    return [
        series_panel(
            "GPU utilization",
            "Share of time that the GPU was active, from NVML. A low value with a busy engine means small batches.",
            "percentunit",
            Target(f"skipnet_gpu_utilization_ratio{{{INSTANCE}}}", each),
        )
        .min(0)
        .max(1),
        series_panel(
            "GPU memory",
            "Memory in use, by all processes.",
            "bytes",
            Target(f"skipnet_gpu_memory_used_bytes{{{INSTANCE}}}", each),
            Target(f"skipnet_gpu_memory_bytes{{{INSTANCE}}}", f"{each} total"),
        ),
        series_panel(
            "GPU power",
            "Power of the GPU.",
            "watt",
            Target(rate("skipnet_gpu_energy_joules_total", INSTANCE, "instance, gpu"), each),
        ),
    ]
