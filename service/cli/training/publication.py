"""Publish a trained network, with a warning if fixed routes are as good."""

import filecmp
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.training.setup.options import JobOptions

COMPARED_IMAGES = 2000
"""The most validation images on which a network is compared with its fixed routes."""


def warn_of_routing(folder: Path, options: "JobOptions") -> None:
    """Print a warning if routing by image is not better than a fixed route, on validation images."""
    from models.checkpoint import Checkpoint, read_checkpoint
    from models.data.datasets import find_dataset
    from models.data.source import read_source
    from models.data.validation_split import validation_source
    from models.engines import load_engine
    from models.engines.protocol import Engine
    from models.evaluation.fixed_routes import compare_fixed_routes, describe_routes, routing_pays
    from models.evaluation.metrics import measure, prepared_batches

    checkpoint = read_checkpoint(folder)
    config = checkpoint.config
    if checkpoint.network.gate_kind is None:
        return
    train = read_source(find_dataset(config.training.dataset or ""), "train", options.data)
    images = validation_source(train.labelled_as(config.labels), config.training)
    images = images.select(range(min(len(images), COMPARED_IMAGES)))
    if options.skip_damaged:
        images = images.without_damaged()

    def load(routed: Checkpoint) -> Engine:
        return load_engine(routed, device=options.device)

    engine = load(checkpoint)
    try:
        macs = measure(checkpoint, engine, images, "validation", config.execute_threshold).macs
    finally:
        engine.close()
    batches = list(prepared_batches(images, config.input))
    routes = compare_fixed_routes(checkpoint, load, batches, config.execute_threshold)
    if not routing_pays(macs, routes):
        print(f"warning: on {len(images):,} validation images routing by image gains nothing.")
        print(describe_routes(macs, routes))


def publish_once(folder: Path, repository: Path, name: str, resumed: bool) -> tuple[Path, str]:
    """Publish a checkpoint, and return its folder in the repository and a word for what was done.

    A resumed run that was published before is not published again.
    """
    from models.checkpoint import WEIGHTS
    from models.model_repository import publish, versions

    newest = max(versions(repository, name), default=None)
    if resumed and newest is not None:
        before = repository / name / str(newest)
        if (before / WEIGHTS).is_file() and filecmp.cmp(folder / WEIGHTS, before / WEIGHTS, shallow=False):
            return before, "published before"
    return publish(folder, repository, name), "published"
