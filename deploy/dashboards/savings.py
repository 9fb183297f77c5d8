"""What skipping saves: in multiply-adds, and on the clock beside them."""

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
"""The first block runs for every image, so that its executions count images."""
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
        "What skipping blocks saves, in multiply-adds (MACs) and on the clock beside them.",
        VARIABLES,
    ).with_variable(
        TextBoxVariable("price")
        .label("Price of an engine hour")
        .description("In your currency: what an hour costs of the machine, or its share, that the engine keeps busy.")
        .default_value("0.10")
    )
    return with_rows(made, {"Saved": numbers(), "Over time": courses(), "Where it comes from": origins()})


def numbers() -> list[Built]:
    return [
        stat_panel(
            "MACs saved now",
            "1 - executed / dense multiply-adds of the images answered lately. Below zero the gates cost more than "
            "the blocks they skip; so it is while every block runs in vain (engine mode mask).",
            "percentunit",
            Target(saved()),
            GAIN,
        ),
        stat_panel(
            "MACs saved since start",
            "The same over everything that the replicas running now have answered.",
            "percentunit",
            Target(f"1 - {total('skipnet_macs_total', EXECUTED)} / {total('skipnet_macs_total', DENSE)}"),
            GAIN,
        ),
        stat_panel(
            "MACs saved in evaluation",
            "What the checkpoint saved on its test images, from its config.json: what to expect of like images.",
            "percentunit",
            Target(f"1 - avg(skipnet_expected_mac_share{{{VERSION}}})"),
            steps("text"),
        ),
        stat_panel(
            "Engine time saved now",
            "1 - engine seconds / seconds that the same batches would have taken with every block run, measured on "
            "batches that are also run dense now and then. This is what skipping is worth; saved MACs are what it "
            "could be worth.",
            "percentunit",
            Target(time_saved()),
            GAIN,
        ),
        stat_panel(
            "Engine time saved since start",
            "Dense seconds less engine seconds, of everything that the replicas running now have answered.",
            "s",
            Target(SECONDS_SAVED),
            GAIN,
        ),
        stat_panel(
            "Money saved since start",
            "Engine time saved since start at the price above, in the currency of that price.",
            "short",
            Target(f"({SECONDS_SAVED}) / 3600 * $price"),
            GAIN,
        ).decimals(4),
        stat_panel(
            "GPU energy saved since start",
            "An estimate: engine time saved since start, at the power that the replica's GPU takes now, or where its "
            "machine has several their mean. Empty without a GPU.",
            "joule",
            Target(ENERGY_SAVED),
            GAIN,
        ),
    ]


def courses() -> list[Built]:
    return [
        series_panel(
            "Saved: MACs beside engine time",
            "The gap between the two lines of a version is what skipping costs: deciding, and batches that shrink "
            "from block to block.",
            "percentunit",
            Target(saved(EACH), f"{SERIES} MACs"),
            Target(time_saved(EACH), f"{SERIES} engine time"),
        ),
        series_panel(
            "Executed against dense MACs",
            "Multiply-adds a second that were spent, and that the network without gates would have spent.",
            "si:MAC/s",
            Target(rate("skipnet_macs_total", VERSION, f"{EACH}, kind"), f"{SERIES} {{{{kind}}}}"),
        ),
        series_panel(
            "Engine time of an image: routed against dense",
            "Mean seconds of engine time that an image took, and would have taken with every block run.",
            "s",
            Target(f"{rate('skipnet_engine_seconds_total', by=EACH)} / {IMAGE_RATE}", f"{SERIES} routed"),
            Target(f"{rate('skipnet_dense_seconds_total', by=EACH)} / {IMAGE_RATE}", f"{SERIES} dense"),
        ),
        series_panel(
            "Batches by mode",
            "branch leaves skipped blocks out. mask runs them in vain, where that is faster or skipping is off: then "
            "no MACs are saved.",
            "ops",
            Target(rate("skipnet_batches_total", by=f"{EACH}, mode"), f"{SERIES} {{{{mode}}}}"),
        ),
    ]


def origins() -> list[Built]:
    return [
        heatmap_panel(
            "Layers skipped per image",
            "How many convolutions images skipped: a band that moves is traffic, or a model, that changes. What is "
            "all at zero runs every block.",
            "short",
            "skipnet_layers_skipped",
        ),
        bars_panel(
            "Execution rate per block",
            "Share of images that each block ran for, lately. Block 0 has no gate: it always runs.",
            "percentunit",
            Target(padded(execution_rate("block")), "{{block}}"),
        )
        .min(0)
        .max(1),
        series_panel(
            "Execution rate per block, less the checkpoint's own",
            "How far each block's execution rate is from what it was in evaluation. Lines apart from zero are images "
            "unlike those of the evaluation, or requests with an execute_threshold of their own.",
            "percentunit",
            Target(padded(f"{execution_rate(f'{EACH}, block')} - {expected_rate()}"), f"{SERIES} block {{{{block}}}}"),
        ),
        series_panel(
            "Images that skip nothing",
            "Share of images that ran every block. A rise may be hard images, a client that sets execute_threshold=0, "
            "or images made to cost the most.",
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
