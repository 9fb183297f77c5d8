"""The dashboard of the MACs and the engine time that skipping saves."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, TextBoxVariable

from deploy.dashboards.panels import (
    INSTANCE,
    VARIABLES,
    VERSION,
    Built,
    Target,
    bars_panel,
    dashboard,
    heatmap_panel,
    padded,
    quantile,
    rate,
    series_panel,
    stat_panel,
    steps,
    total,
    with_rows,
)

EXECUTED, DENSE = f'{VERSION}, kind="executed"', f'{VERSION}, kind="dense"'
GATED = f'{VERSION}, block!="0"'
IMAGES = f'{VERSION}, block="0"'
"""The first block runs for every image, so its executions are the number of images."""
FIRST_STAGE = f'{VERSION}, stage="0"'
LATER_STAGES = f'{VERSION}, stage!="0"'
EACH = "model, version"
SERIES = "{{model}}/{{version}}"


def saved(by: str = "") -> str:
    return f"1 - {rate('skipnet_macs_total', EXECUTED, by)} / {rate('skipnet_macs_total', DENSE, by)}"


def time_saved(by: str = "") -> str:
    return f"1 - {rate('skipnet_engine_seconds_total', by=by)} / {rate('skipnet_dense_seconds_total', by=by)}"


def seconds_saved(by: str = "") -> str:
    return f"{total('skipnet_dense_seconds_total', by=by)} - {total('skipnet_engine_seconds_total', by=by)}"


def execution_rate(by: str) -> str:
    executed = rate("skipnet_block_executions_total", GATED, by)
    return f"{executed} / ({executed} + {rate('skipnet_block_skips_total', GATED, by)})"


def expected_rate() -> str:
    return f"avg by ({EACH}, block) (skipnet_expected_block_execution_rate{{{VERSION}}})"


def per_cascade_image(stages: str) -> str:
    """Divide an expression by model, version and stage by the images per second that their cascade classifies."""
    images = rate("skipnet_cascade_images_total", FIRST_STAGE, EACH)
    return f"{stages} / on ({EACH}) group_left () {images}"


IMAGE_RATE = rate("skipnet_block_executions_total", IMAGES, EACH)
SECONDS_SAVED = seconds_saved()
ENERGY_SAVED = (
    f"sum(({seconds_saved('job, instance')})"
    f" * avg by (job, instance) (rate(skipnet_gpu_energy_joules_total{{{INSTANCE}}}[$__rate_interval])))"
)
GAIN = steps("red", (0, "green"))


def board() -> Dashboard:
    made = dashboard(
        "skipnet-savings",
        "SkipNet: compute savings",
        "The savings of skipping blocks, in MACs (multiply-adds) and in engine time.",
        VARIABLES,
    ).with_variable(
        TextBoxVariable("price")
        .label("Price of an engine hour")
        .description("What one hour of the machine, or of the share that the engine uses, costs in your currency.")
        .default_value("0.10")
    )
    rows = {"Saved": numbers(), "Over time": courses(), "Where it comes from": origins(), "Cascades": cascades()}
    return with_rows(made, rows)


def numbers() -> list[Built]:
    return [
        stat_panel(
            "MACs saved now",
            "1 - executed MACs / dense MACs of the most recent images. It is below zero if the gates cost more than "
            "the skipped blocks save, for example while the engine masks.",
            "percentunit",
            Target(saved()),
            GAIN,
        ),
        stat_panel(
            "MACs saved since start",
            "The same for all images since the running replicas started.",
            "percentunit",
            Target(f"1 - {total('skipnet_macs_total', EXECUTED)} / {total('skipnet_macs_total', DENSE)}"),
            GAIN,
        ),
        stat_panel(
            "MACs saved in evaluation",
            "The saving on the checkpoint's test images, from config.json. Expect it for similar images.",
            "percentunit",
            Target(f"1 - avg(skipnet_expected_mac_share{{{VERSION}}})"),
            steps("text"),
        ),
        stat_panel(
            "Engine time saved now",
            "1 - engine seconds / seconds that the same batches would take with every block. The dense time is "
            "measured on batches that sometimes also run dense. This is the real saving. Saved MACs are the possible"
            " saving.",
            "percentunit",
            Target(time_saved()),
            GAIN,
        ),
        stat_panel(
            "Engine time saved since start",
            "Dense seconds minus engine seconds of all images since the running replicas started.",
            "s",
            Target(SECONDS_SAVED),
            GAIN,
        ),
        stat_panel(
            "Money saved since start",
            "Engine time saved since start, at the price set at the top, in its currency.",
            "short",
            Target(f"({SECONDS_SAVED}) / 3600 * $price"),
            GAIN,
        ).decimals(4),
        stat_panel(
            "GPU energy saved since start",
            "An estimate: engine time saved since start, times the current power of the replica's GPU. With several "
            "GPUs it is their mean power. Empty without a GPU.",
            "joule",
            Target(ENERGY_SAVED),
            GAIN,
        ),
    ]


def courses() -> list[Built]:
    return [
        series_panel(
            "MACs and engine time saved",
            "The gap between the two lines of a version is the cost of skipping: gates, and batches that shrink from "
            "block to block.",
            "percentunit",
            Target(saved(EACH), f"{SERIES} MACs"),
            Target(time_saved(EACH), f"{SERIES} engine time"),
        ),
        series_panel(
            "Executed and dense MACs",
            "MACs per second of the engine, and of the network without gates.",
            "si:MAC/s",
            Target(rate("skipnet_macs_total", VERSION, f"{EACH}, kind"), f"{SERIES} {{{{kind}}}}"),
        ),
        series_panel(
            "Engine time per image: routed and dense",
            "Mean engine time of an image, and its time with every block.",
            "s",
            Target(f"{rate('skipnet_engine_seconds_total', by=EACH)} / {IMAGE_RATE}", f"{SERIES} routed"),
            Target(f"{rate('skipnet_dense_seconds_total', by=EACH)} / {IMAGE_RATE}", f"{SERIES} dense"),
        ),
        series_panel(
            "Batches by mode",
            "branch: skipped blocks are not computed. mask: every block is computed and the skipped ones are "
            "discarded, because that is faster or skipping is off. Mask saves no MACs.",
            "ops",
            Target(rate("skipnet_batches_total", by=f"{EACH}, mode"), f"{SERIES} {{{{mode}}}}"),
        ),
    ]


def origins() -> list[Built]:
    return [
        heatmap_panel(
            "Layers skipped per image",
            "Convolutions that an image skipped. A band that moves means that the traffic or the model changed. All "
            "images at zero: every block runs.",
            "short",
            "skipnet_layers_skipped",
        ),
        bars_panel(
            "Execution rate per block",
            "Share of recent images that executed each block. Block 0 has no gate and always runs. The blocks of a "
            "cascade's later stages count only the images that reached the stage.",
            "percentunit",
            Target(padded(execution_rate("block")), "{{block}}"),
        )
        .min(0)
        .max(1),
        series_panel(
            "Execution rate per block, difference from evaluation",
            "Execution rate of each block minus its rate in evaluation. A line away from zero means images unlike "
            "those of the evaluation, or requests that set execute_threshold.",
            "percentunit",
            Target(padded(f"{execution_rate(f'{EACH}, block')} - {expected_rate()}"), f"{SERIES} block {{{{block}}}}"),
        ),
        series_panel(
            "Images that skip nothing",
            "Share of images that executed every block. A rise can mean hard images, a client that sets "
            "execute_threshold=0, or images made to cost the most. A cascade of networks without gates is always at "
            "1.",
            "percentunit",
            Target(
                rate("skipnet_blocks_skipped_bucket", f'{VERSION}, le="0.0"', EACH)
                + " / "
                + rate("skipnet_blocks_skipped_count", by=EACH),
                SERIES,
            ),
        )
        .min(0)
        .max(1),
    ]


def cascades() -> list[Built]:
    return [
        series_panel(
            "Escalation rate",
            "Share of a cascade's images that were escalated to each later stage, and the share in evaluation. A line "
            "that differs from the expected one means images unlike those of the evaluation, or requests that set "
            "compute_budget or min_margin.",
            "percentunit",
            Target(
                per_cascade_image(rate("skipnet_cascade_images_total", LATER_STAGES, f"{EACH}, stage")),
                f"{SERIES} stage {{{{stage}}}}",
            ),
            Target(
                f"avg by ({EACH}, stage) (skipnet_cascade_expected_escalation_rate{{{VERSION}}})",
                f"{SERIES} stage {{{{stage}}}} expected",
            ),
        ).min(0),
        heatmap_panel(
            "Margin of the first stage",
            "How sure the first stage is of its output. An image below the cascade's margin is escalated. A band that "
            "moves down means harder or other images.",
            "short",
            "skipnet_cascade_margin",
            FIRST_STAGE,
        ),
        series_panel(
            "MACs per image by stage",
            "MACs of each stage, as a mean over all images of the cascade. The sum of a cascade's stages is the mean "
            "cost of an image.",
            "si:MAC",
            Target(
                per_cascade_image(rate("skipnet_cascade_macs_total", by=f"{EACH}, stage")),
                f"{SERIES} stage {{{{stage}}}}",
            ),
        ).min(0),
        series_panel(
            "Latency by escalation",
            "Median and 99th percentile of the time from arrival to response. A request with several images is "
            "escalated if one of them is.",
            "s",
            *(
                Target(
                    quantile(share, "skipnet_cascade_request_duration_seconds", f"{EACH}, escalated"),
                    f"{SERIES} escalated {{{{escalated}}}} {name}",
                )
                for share, name in ((0.5, "p50"), (0.99, "p99"))
            ),
        ),
    ]
