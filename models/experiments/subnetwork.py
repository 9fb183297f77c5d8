"""The static subnetwork of a routed network: its most executed blocks without gates.

Its output is that of the routed network along the fixed route of these blocks. It is the control for routing by image:
a static network with the same weights and the same cost.
"""

from itertools import pairwise
from pathlib import Path

import torch

from models.architectures import Architecture, find_architecture, first_blocks
from models.checkpoint import Checkpoint, code_version, read_checkpoint, write_checkpoint
from models.errors import UserError
from models.persistence.training_record import Subnetwork


@torch.no_grad()
def extract_subnetwork(folder: Path, count: int, target: Path) -> Architecture:
    """Write the static subnetwork of a checkpoint's ``count`` most executed blocks, and return its architecture.

    The first block counts, because it always executes. Raises UserError for a checkpoint without gates or without
    execution rates, and for images larger than CIFAR's. Raises UserError if a group would lose its first block, which
    changes the map's size.
    """
    checkpoint = read_checkpoint(folder)
    found = find_architecture(checkpoint.config.architecture)
    if found.gates is None or found.stem != "cifar":
        raise UserError(f"{folder} is a {found.name}: a static subnetwork needs a CIFAR network with gates")
    kept = most_executed(checkpoint, count, folder)
    if missing := set(first_blocks(found.blocks)) - set(kept):
        raise UserError(
            f"{folder}: the first block of a group, {min(missing)}, is not among the {count} most executed blocks; "
            "keep more of them"
        )
    starts = [*first_blocks(found.blocks), sum(found.blocks)]
    groups = [sum(start <= block < end for block in kept) for start, end in pairwise(starts)]
    dataset = found.name.partition("_")[0]
    architecture = find_architecture(f"{dataset}_resnet_{'-'.join(map(str, groups))}")
    network = architecture.build(len(checkpoint.config.labels))
    network.stem.load_state_dict(checkpoint.network.stem.state_dict())
    network.head.load_state_dict(checkpoint.network.head.state_dict())
    for block, source in zip(network.blocks, kept, strict=True):
        block.load_state_dict(checkpoint.network.blocks[source].state_dict())
    training = checkpoint.config.training
    stages = tuple(stage.with_architecture(found.name) for stage in training.stages)
    subnetwork = Subnetwork(of=found.name, blocks=tuple(kept))
    changes = {
        "architecture": architecture.name,
        "execute_threshold": 0.5,
        "training": training.model_copy(update={"stages": stages, "subnetwork": subnetwork}),
        "evaluation": None,
        "calibration": [],
        "code": code_version(),
    }
    write_checkpoint(target, network, checkpoint.config.model_copy(update=changes))
    return architecture


def most_executed(checkpoint: Checkpoint, count: int, folder: Path) -> list[int]:
    """Return the indices of the ``count`` most executed blocks in order.

    Of equally executed blocks, the first are taken.
    """
    evaluation = checkpoint.config.evaluation
    if evaluation is None:
        raise UserError(f"{folder} has no execution rates: measure them with skipnet evaluate {folder} --write")
    rates = [1.0, *evaluation.execution_rate]
    if not 1 <= count <= len(rates):
        raise UserError(f"{folder} has {len(rates)} blocks: keep 1 to {len(rates)} of them, not {count}")
    return sorted(sorted(range(len(rates)), key=lambda block: -rates[block])[:count])
