"""The trainings of a fine-tuned network: the dense network, then only the gates, then all weights."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.architectures import UnknownArchitecture, find_architecture
from models.checkpoint import read_config
from models.data.datasets import find_dataset
from models.data.source import Source, read_source
from models.errors import UserError
from models.model_card.training_commands import RESULT
from models.preprocessing import InputSpec
from models.training.recipes import GATES_ALONE
from models.training.setup.data import choose_images, choose_input, with_normalisation
from models.training.setup.options import JobOptions

DENSE, GATES, ROUTED = "dense", "gates", "routed"
"""The folders of the three trainings in the folder of the run."""
LEAST_BATCH, MOST_BATCH, STEPS_PER_EPOCH = 8, 64, 16
LEAST_EPOCHS, MOST_EPOCHS = 3, 60
IMAGES_SEEN = {DENSE: 4000, GATES: 2000, ROUTED: 6000}
"""Images that each training processes, with repetitions, unless the number of epochs reaches a limit."""


@dataclass(frozen=True)
class Plan:
    """A run: the user's options, the images, the network's input, and the options of each training in order."""

    options: JobOptions
    spec: InputSpec
    train: Source
    validation: Source
    trainings: tuple[JobOptions, ...]

    @property
    def dense(self) -> Path:
        """The checkpoint of the dense network, which is the teacher."""
        return self.options.folder / DENSE / "plain"

    @property
    def routed(self) -> Path:
        """The checkpoint of the last training."""
        return self.options.folder / ROUTED / "sp"

    @property
    def result(self) -> Path:
        """The final checkpoint, with threshold, temperature and figures."""
        return self.options.folder / RESULT


def make_plan(options: JobOptions) -> Plan:
    """Return the plan of a run that starts from ``options.init`` and uses the folder of images ``options.data``.

    If ``options.arch`` is empty, the network is the one to start from, with RNN gates. Raises UserError if the data is
    not a folder of images or the network has no variant with gates.
    """
    if options.init is None:
        raise UserError("recipe finetune starts from a pretrained network: name its checkpoint with --init")
    dense, routed = choose_architectures(options.arch, options.init)
    dataset = with_normalisation(find_dataset(options.dataset), options)
    train, validation, _ = choose_images(read_source(dataset, "train", options.data), options)
    epochs = {name: options.epochs or choose_epochs(len(train), name) for name in IMAGES_SEEN}
    teacher, last = options.folder / DENSE / "plain", options.folder / GATES / "sp"
    changes: tuple[dict[str, Any], ...] = (
        {"arch": dense, "stages": "plain"},
        {
            "arch": routed,
            "stages": "sp",
            "init": teacher,
            "teacher": teacher,
            "changes": {**GATES_ALONE, **options.changes},
        },
        {"arch": routed, "stages": "sp", "init": last, "teacher": teacher},
    )
    batch = options.batch or choose_batch(len(train))
    trainings = tuple(
        options.model_copy(update={"output": options.folder / name, "batch": batch, "epochs": epochs[name], **values})
        for name, values in zip(IMAGES_SEEN, changes, strict=True)
    )
    spec = choose_input(find_architecture(dense), dataset, options)
    return Plan(options, spec, train, validation, trainings)


def choose_architectures(name: str, init: Path) -> tuple[str, str]:
    """Return the names of the dense network and of the network with gates, from ``name`` or from ``init``."""
    start = read_config(init).architecture
    routed = find_architecture(name or start.replace("_resnet_", "_rnn_gate_"))
    if routed.gates is None:
        raise UserError(
            f"{routed.name} has no gates: name a network with gates with --arch, or train with --recipe short"
        )
    parts = routed.name.split("_")
    dense = f"{parts[0]}_resnet_{parts[-1]}"
    try:
        find_architecture(dense)
    except UnknownArchitecture as error:
        raise UserError(
            f"{routed.name} has no dense form in the catalogue: name another network with --arch"
        ) from error
    return dense, routed.name


def choose_batch(count: int) -> int:
    """Return the largest power of two that gives 16 steps in an epoch.

    It is from 8 to 64 and at most the number of images.
    """
    batch = 1 << int(math.log2(max(1, count / STEPS_PER_EPOCH)))
    return min(max(batch, LEAST_BATCH), MOST_BATCH, count)


def choose_epochs(count: int, training: str) -> int:
    """Return the number of epochs of a training on ``count`` images."""
    return min(max(round(IMAGES_SEEN[training] / count), LEAST_EPOCHS), MOST_EPOCHS)
