"""How the service does: what it answers, how fast, how full it is, what it runs on."""

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
DURATION = "skipnet_request_duration_seconds"


def board() -> Dashboard:
    made = dashboard(
        "skipnet-service", "SkipNet: service", "What the service answers, how fast, and how full it is.", VARIABLES
    )
    rows = {
        "Now": numbers(),
        "Requests": requests(),
        "Queue and batches": batches(),
        "Process": process(),
        "GPU": gpu(),
    }
    return with_rows(made, rows)


def numbers() -> list[Built]:
    return [
        stat_panel(
            "Replicas ready",
            "Replicas that answer /health/ready with yes.",
            "short",
            Target(f"sum(skipnet_ready{{{INSTANCE}}})"),
            steps("red", (1, "green")),
        ),
        stat_panel(
            "Requests",
            "Inference requests a second, whatever came of them.",
            "reqps",
            Target(rate("skipnet_requests_total", INSTANCE)),
            steps("text"),
        ),
        stat_panel(
            "Errors",
            "Share of requests that failed by our fault: error, deadline passed, not ready. Requests that are wrong, "
            "turned away with 429, given up by their client or given less time by it do not count. The objective is "
            "0.1 %.",
            "percentunit",
            Target(f"{rate('skipnet_requests_total', FAILED)} / {rate('skipnet_requests_total', JUDGED)}"),
            steps("green", (0.001, "orange"), (0.0144, "red")),
        ),
        stat_panel(
            "Latency, 99th percentile",
            "From a request's arrival to its answer. The objective is 99 % within 100 ms.",
            "s",
            Target(quantile(0.99, DURATION)),
            steps("green", (0.1, "orange"), (0.5, "red")),
        ),
        stat_panel(
            "Rejected",
            "Share of requests answered with 429 because the house was full, without those of a client's own deadline.",
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
            "Share of its time that the busiest replica's engine ran, of several workers in the mean. Near 1 it gives "
            "all it has: add replicas.",
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
            "client set shorter than the service's; unavailable: 503; error: other 5xx; cancelled: the client hung up.",
            "reqps",
            Target(rate("skipnet_requests_total", INSTANCE, "outcome"), "{{outcome}}"),
        ),
        series_panel(
            "Latency of classified requests",
            "Percentiles from a request's arrival to its answer. Diamonds are single requests, with their request id.",
            "s",
            Target(quantile(0.5, DURATION), "50 %"),
            Target(quantile(0.9, DURATION), "90 %"),
            Target(quantile(0.99, DURATION), "99 %", exemplars=True),
        ),
        series_panel(
            "Stages, 99th percentile",
            "receive: reading the body; decode: bytes to tensor; queue: waiting; inference: the batch in the engine.",
            "s",
            Target(quantile(0.99, "skipnet_stage_duration_seconds", "stage"), "{{stage}}"),
        ),
        series_panel(
            "Stages, median",
            "The same for the request in the middle.",
            "s",
            Target(quantile(0.5, "skipnet_stage_duration_seconds", "stage"), "{{stage}}"),
        ),
    ]


def batches() -> list[Built]:
    return [
        series_panel(
            "Images in flight",
            "In flight: admitted and not yet answered; the limit is max_queue_size. Queued: decoded and waiting for "
            "the engine.",
            "short",
            Target(f"sum by (instance) (skipnet_images_in_flight{{{INSTANCE}}})", "{{instance}} in flight"),
            Target(f"sum by (instance) (skipnet_queue_depth{{{VERSION}}})", "{{instance}} queued"),
        ),
        series_panel(
            "Turned away and given up",
            "429s by what was full, and images that left the queue uncomputed: their deadline had passed or their "
            "client was gone.",
            "reqps",
            Target(rate("skipnet_rejections_total", INSTANCE, "reason"), "429: {{reason}}"),
            Target(rate("skipnet_dropped_total", VERSION, "reason"), "dropped: {{reason}}"),
        ),
        heatmap_panel(
            "Batch size",
            "Images that ran together; what queued while the engine was busy is the next batch.",
            "short",
            "skipnet_batch_size",
        ),
        series_panel(
            "Effective batch per block",
            "Images that a block ran for, per batch. It shrinks from block to block as images skip; where it is small "
            "a GPU is idle.",
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


def process() -> list[Built]:
    return [
        series_panel(
            "CPU",
            "Cores in use, decoding and serving included.",
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
            "Share of the files, connections among them, that the process may open. At 1 nobody new is heard, and no "
            "log line or metric says so.",
            "percentunit",
            Target(
                f"sum by (instance) (process_open_fds{{{INSTANCE}}})"
                f" / sum by (instance) (process_max_fds{{{INSTANCE}}})",
                "{{instance}}",
            ),
        ),
        table_panel(
            "Models served",
            "Each version that a replica answers with, and what runs it.",
            "short",
            Target(f"skipnet_model_info{{{VERSION}}}"),
            hide=("job",),
        ),
        series_panel(
            "Engines done without since start",
            "Loads that could not use an engine: not to be had there, or not answering as the reference does; the log "
            "has the reason. The engine in use is at 0.",
            "short",
            Target(
                f"sum by (instance, model, engine) (skipnet_engine_fallbacks_total{{{VERSION}}})",
                "{{instance}} {{model}}: {{engine}}",
            ),
        ),
        series_panel(
            "Restarts",
            "Times that a replica's process started anew, in the last hour.",
            "short",
            Target(f"sum by (instance) (changes(process_start_time_seconds{{{INSTANCE}}}[1h]))", "{{instance}}"),
        ),
    ]


def gpu() -> list[Built]:
    each = "{{instance}} GPU {{gpu}}"
    return [
        series_panel(
            "GPU utilization",
            "Share of time that the GPU ran anything, as NVML tells. Low beside a busy engine: small batches.",
            "percentunit",
            Target(f"skipnet_gpu_utilization_ratio{{{INSTANCE}}}", each),
        )
        .min(0)
        .max(1),
        series_panel(
            "GPU memory",
            "Memory in use, by this process and any other.",
            "bytes",
            Target(f"skipnet_gpu_memory_used_bytes{{{INSTANCE}}}", each),
            Target(f"skipnet_gpu_memory_bytes{{{INSTANCE}}}", f"{each}, all there is"),
        ),
        series_panel(
            "GPU power",
            "Power that the GPU takes.",
            "watt",
            Target(rate("skipnet_gpu_energy_joules_total", INSTANCE, "instance, gpu"), each),
        ),
    ]
