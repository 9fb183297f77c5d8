"""Read weights files of the public SkipNet code (github.com/ucbdrive/skipnet)."""

from pathlib import Path
from typing import Any

from models.architectures import Architecture, find_architecture
from models.checkpoint import Checkpoint, Config, code_version, fit_state
from models.data.datasets import DATASETS, IMAGENET_MEAN, IMAGENET_STD
from models.importing.state_names import rename_state
from models.importing.weights_file import read_weights
from models.persistence.training_record import TrainingRecord
from models.preprocessing import InputSpec

IMPORTED = "imported"
"""The stage name of imported weights in the training record of a network that was trained further."""

# The public code normalises CIFAR and SVHN by these values (cifar/data.py). The values of ``std`` are not the
# deviations of the data.
PUBLIC_MEAN, PUBLIC_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def load_public(source: Path, arch: str, name: str) -> Checkpoint:
    """Return the network in a weights file. The training record names the file ``name``.

    ``arch`` may have the public code's spelling mistakes. The number of classes is that of the weights. If the data set
    has another number, the labels are the class numbers. Raises UserError if the architecture is unknown, or if the
    file cannot be read or has other weights.
    """
    architecture = find_architecture(arch)
    public, others = read_weights(source)
    state = rename_state(public, architecture)
    head = state.get("head.weight")
    classes = architecture.classes if head is None else len(head)
    network = architecture.build(classes)
    fit_state(network, state, source, f"check --arch, here {architecture.name}: it must be the trained architecture")
    config = Config(
        architecture=architecture.name,
        labels=public_labels(architecture, classes),
        input=public_input(architecture),
        training=TrainingRecord(imported_from=name, **public_progress(others)),
        code=code_version(),
    )
    return Checkpoint(source.parent, config, network.eval())


def public_labels(architecture: Architecture, classes: int | None = None) -> list[str]:
    """Return the labels of the architecture's data set, or class numbers if it has another number of classes."""
    count = classes or architecture.classes
    dataset = DATASETS.get(architecture.name.split("_")[0])
    known = dataset.classes if dataset else None
    return list(known) if known and len(known) == count else [str(number) for number in range(count)]


def public_input(architecture: Architecture) -> InputSpec:
    """Return the preprocessing of the public code."""
    size = architecture.image_size
    if architecture.stem == "imagenet":
        return InputSpec(
            height=size, width=size, resize=256, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
    return InputSpec(height=size, width=size, resize=size, mean=PUBLIC_MEAN, std=PUBLIC_STD)


def public_progress(saved: dict[str, Any]) -> dict[str, float]:
    """Return the training progress that a public checkpoint records."""
    return {key: float(saved[key]) for key in ("iter", "epoch", "best_prec1") if key in saved}
