"""A training run while it goes on: `skipnet train --metrics-port`."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.panels import (
    Built,
    Target,
    dashboard,
    padded,
    series_panel,
    stat_panel,
    steps,
    variable,
    with_rows,
)

RUN = 'job=~"$job", instance=~"$instance", architecture=~"$architecture"'
HELD_OUT = f'{RUN}, split="held_out"'
SERIES = "{{architecture}} {{stage}}"
VARIABLES = [
    variable("job", "Job", "skipnet_training_progress_ratio"),
    variable("instance", "Instance", 'skipnet_training_progress_ratio{job=~"$job"}'),
    variable("architecture", "Architecture", 'skipnet_training_progress_ratio{job=~"$job", instance=~"$instance"}'),
]


def board() -> Dashboard:
    made = dashboard("skipnet-training", "SkipNet: training", "A run of `skipnet train`, while it goes on.", VARIABLES)
    return with_rows(made, {"Now": numbers(), "By epoch": epochs(), "By step": steps_of_the_run()})


def numbers() -> list[Built]:
    return [
        stat_panel(
            "Progress",
            "Steps done of the stage that runs: sp, hrl or plain.",
            "percentunit",
            Target(f"skipnet_training_progress_ratio{{{RUN}}}", SERIES),
            steps("text"),
        ).max(1),
        stat_panel(
            "Speed",
            "Training images a second, augmentation included.",
            "suffix: images/s",
            Target(f"sum(rate(skipnet_training_images_total{{{RUN}}}[$__rate_interval]))"),
            steps("text"),
        ),
        stat_panel(
            "Accuracy",
            "On held-out images, after the last epoch.",
            "percentunit",
            Target(f"skipnet_training_accuracy_ratio{{{HELD_OUT}}}", SERIES),
            steps("text"),
        ),
        stat_panel(
            "Computation",
            "Share of blocks executed on held-out images (the paper's computation percentage), after the last epoch.",
            "percentunit",
            Target(f"skipnet_training_computation_ratio{{{HELD_OUT}}}", SERIES),
            steps("text"),
        ),
    ]


def epochs() -> list[Built]:
    return [
        series_panel(
            "Loss",
            "Mean of the epoch's training batches.",
            "short",
            Target(f"skipnet_training_loss{{{RUN}}}", SERIES),
        ),
        series_panel(
            "Accuracy, training against held out",
            "A widening gap is overfitting.",
            "percentunit",
            Target(f"skipnet_training_accuracy_ratio{{{RUN}}}", f"{SERIES} {{{{split}}}}"),
        ),
        series_panel(
            "Computation percentage",
            "Share of blocks executed. A fall to almost nothing is collapse: the gates have shut.",
            "percentunit",
            Target(f"skipnet_training_computation_ratio{{{RUN}}}", f"{SERIES} {{{{split}}}}"),
        )
        .min(0)
        .max(1),
        series_panel(
            "Skip rate per block",
            "Share of held-out images that each block is skipped for.",
            "percentunit",
            Target(padded(f"skipnet_training_skip_ratio{{{RUN}}}"), "{{stage}} block {{block}}"),
        )
        .min(0)
        .max(1),
    ]


def steps_of_the_run() -> list[Built]:
    images = f"sum by (architecture, stage) (rate(skipnet_training_images_total{{{RUN}}}[$__rate_interval]))"
    return [
        series_panel(
            "Images",
            "Training images a second. Dips are the validation after each epoch.",
            "suffix: images/s",
            Target(images, SERIES),
        ),
        series_panel(
            "Learning rate",
            "What the schedule gives the step that runs.",
            "short",
            Target(f"skipnet_training_learning_rate{{{RUN}}}", SERIES),
        ),
    ]
