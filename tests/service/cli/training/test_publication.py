"""The warning of `skipnet train` before it publishes, and the single publication of a resumed run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.architectures import find_architecture
from models.checkpoint import read_checkpoint, write_checkpoint
from models.evaluation.forced_routes import force_route, without_gates
from models.training.setup.options import JobOptions
from service.cli.training.publication import publish_once, warn_of_routing
from tests.models.data.test_image_folder import write_classes
from tests.service.parts import NAME, write_random


@pytest.mark.parametrize("gated", [True, False])
def test_there_is_a_warning_if_a_fixed_route_is_as_good(
    gated: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random(tmp_path / "start", seed=0)
    checkpoint = read_checkpoint(tmp_path / "start")
    training = checkpoint.config.training.model_copy(update={"dataset": "imagefolder", "validation_images": 8})
    changes = {"training": training, "labels": ["cat", "dog"], "execute_threshold": 0.5}
    if gated:
        network = force_route(checkpoint.network, np.arange(17) % 2 == 0)
    else:
        changes["architecture"] = "cifar10_resnet_38"
        network = without_gates(checkpoint.network, find_architecture(NAME))
    config = checkpoint.config.model_copy(update=changes)
    network.head = torch.nn.Linear(64, 2)
    write_checkpoint(tmp_path / "trained", network, config)
    write_classes(tmp_path / "photos", cat=6, dog=6)
    options = JobOptions(arch=NAME, dataset="imagefolder", data=tmp_path / "photos", device="cpu")
    warn_of_routing(tmp_path / "trained", options)
    output = capsys.readouterr().out
    assert ("warning: on 8 validation images routing by image gains nothing." in output) == gated
    assert ("9 gated blocks for every image" in output) == gated


def test_a_resumed_run_publishes_the_same_weights_once(tmp_path: Path) -> None:
    write_random(tmp_path / "run", seed=0)
    first, message = publish_once(tmp_path / "run", tmp_path / "repository", "mine", resumed=True)
    assert (first.name, message) == ("1", "published")
    assert publish_once(tmp_path / "run", tmp_path / "repository", "mine", resumed=True) == (first, "published before")
    assert publish_once(tmp_path / "run", tmp_path / "repository", "mine", resumed=False)[0].name == "2"
    checkpoint = read_checkpoint(tmp_path / "run")
    with torch.no_grad():
        checkpoint.network.head.bias.add_(1)
    write_checkpoint(tmp_path / "run", checkpoint.network, checkpoint.config)
    assert publish_once(tmp_path / "run", tmp_path / "repository", "mine", resumed=True)[0].name == "3"
