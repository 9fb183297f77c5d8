"""The dashboard of a running `skipnet train --metrics-port`."""

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
VALIDATION = f'{RUN}, split="held_out"'
SERIES = "{{architecture}} {{stage}}"
VARIABLES = [
    variable("job", "Job", "skipnet_training_progress_ratio"),
    variable("instance", "Instance", 'skipnet_training_progress_ratio{job=~"$job"}'),
    variable("architecture", "Architecture", 'skipnet_training_progress_ratio{job=~"$job", instance=~"$instance"}'),
]


def board() -> Dashboard:
    made = dashboard("skipnet-training", "SkipNet: training", "A running `skipnet train`.", VARIABLES)
    return with_rows(made, {"Now": numbers(), "By epoch": epochs(), "By step": steps_of_the_run()})


def numbers() -> list[Built]:
    return [
        stat_panel(
            "Progress",
            "Share of the steps of the running stage: sp, hrl or plain.",
            "percentunit",
            Target(f"skipnet_training_progress_ratio{{{RUN}}}", SERIES),
            steps("text"),
        ).max(1),
        stat_panel(
            "Speed",
            "Training images per second, including augmentation.",
            "suffix: images/s",
            Target(f"sum(rate(skipnet_training_images_total{{{RUN}}}[$__rate_interval]))"),
            steps("text"),
        ),
        stat_panel(
            "Accuracy",
            "Accuracy on validation images, after the last epoch.",
            "percentunit",
            Target(f"skipnet_training_accuracy_ratio{{{VALIDATION}}}", SERIES),
            steps("text"),
        ),
        stat_panel(
            "Computation",
            "Share of blocks executed on validation images (computation percentage), after the last epoch.",
            "percentunit",
            Target(f"skipnet_training_computation_ratio{{{VALIDATION}}}", SERIES),
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
            "Accuracy, training and validation",
            "A widening gap is overfitting.",
            "percentunit",
            Target(f"skipnet_training_accuracy_ratio{{{RUN}}}", f"{SERIES} {{{{split}}}}"),
        ),
        series_panel(
            "Computation percentage",
            "Share of blocks executed. A fall to almost zero is a collapse: the gates skip every block.",
            "percentunit",
            Target(f"skipnet_training_computation_ratio{{{RUN}}}", f"{SERIES} {{{{split}}}}"),
        )
        .min(0)
        .max(1),
        series_panel(
            "Skip rate per block",
            "Share of validation images that skip each block.",
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
            "Training images per second. Dips are due to the validation after each epoch.",
            "suffix: images/s",
            Target(images, SERIES),
        ),
        series_panel(
            "Learning rate",
            "Learning rate of the current step.",
            "short",
            Target(f"skipnet_training_learning_rate{{{RUN}}}", SERIES),
        ),
    ]
