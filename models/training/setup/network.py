"""The network that a run starts with: random weights, a checkpoint, or a deeper network grown from one."""

from pathlib import Path

from models.architectures import Architecture, find_architecture
from models.checkpoint import Checkpoint, read_checkpoint, read_config
from models.errors import UserError
from models.importing.public_checkpoint import IMPORTED
from models.network import GateKind, SkipNet
from models.persistence.training_record import TrainedStage
from models.training.setup.growth import grow
from models.training.setup.options import JobOptions


def start_network(
    architecture: Architecture, classes: list[str], options: JobOptions
) -> tuple[SkipNet, list[TrainedStage]]:
    """Return the network to train and the records of the stages before.

    The network has random weights or those of the checkpoint to start from. A dense checkpoint can get gates or grow
    (`grow`), and a routed one can lose its gates. Fine-tuning makes a new head if the labels differ.

    Raises UserError if the checkpoint was trained on images that are now validation images.
    """
    if options.init is None:
        return architecture.build(len(classes)), []
    checkpoint = read_checkpoint(options.init)
    found = find_architecture(checkpoint.config.architecture)
    same_gates = found.gates == architecture.gates
    grows = found.gates is None and found.grows_into(architecture)
    if not grows and (
        found.backbone != architecture.backbone or not (same_gates or None in (found.gates, architecture.gates))
    ):
        raise UserError(f"{options.init} is a {found.name}, not a {architecture.name}; name its own --arch")
    stages = earlier_stages(checkpoint)
    new_head = options.finetunes and checkpoint.config.labels != classes
    if not new_head:
        check_labels(checkpoint, options.init, classes, options)
        check_validation_images(checkpoint, options.init, options)
    if same_gates and not grows and not new_head:
        return checkpoint.network, stages
    if grows:
        grown = grow(checkpoint.network, found, architecture)
        return grown, [stage.with_architecture(found.name) for stage in stages]
    network = architecture.build(len(classes))
    state = checkpoint.network.state_dict()
    if new_head:
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
    # Only the weights of the gates and of a new head can be missing. They keep their random weights.
    network.load_state_dict(state, strict=False)
    # Record which network the stages with gates trained. A plain stage never has gates.
    return network, [stage if stage.stage == "plain" else stage.with_architecture(found.name) for stage in stages]


def gates_of(folder: Path) -> GateKind | None:
    """Return the gates of a checkpoint's architecture.

    Raises CheckpointError or UnknownArchitecture.
    """
    return find_architecture(read_config(folder).architecture).gates


def earlier_stages(checkpoint: Checkpoint) -> list[TrainedStage]:
    """Return a checkpoint's origin, if it was imported, and the records of its stages."""
    training = checkpoint.config.training
    origin = [TrainedStage(stage=IMPORTED, name=training.imported_from)] if training.imported_from else []
    return [*origin, *training.stages]


def check_labels(checkpoint: Checkpoint, folder: Path, classes: list[str], options: JobOptions) -> None:
    if checkpoint.config.labels != classes:
        raise UserError(f"{folder} has other labels than {options.dataset}; train it from the start")


def check_validation_images(checkpoint: Checkpoint, folder: Path, options: JobOptions) -> None:
    """Raise UserError if the checkpoint was trained on images that are now validation images."""
    training = checkpoint.config.training
    before = training.validation_images
    # The split of a folder is that of the checkpoint to start from (`choose_images`).
    if options.splits_folder or training.dataset != options.dataset or before is None:
        return
    if before < options.held_out:
        raise UserError(
            f"{folder} was validated on {before} images and trained on others of the {options.held_out} validation "
            f"images: set --held-out {before}"
        )
