"""A static subnetwork has the output of its routed network along one fixed route."""

import shutil
from pathlib import Path

import pytest
import torch

from models import SHIPPED
from models.checkpoint import read_checkpoint, write_config
from models.errors import UserError
from models.experiments.subnetwork import extract_subnetwork
from models.model_repository import find_version

ROUTED = find_version(SHIPPED, "cifar10_rnn_gate_38", None)


@torch.no_grad()
def test_it_is_the_routed_network_along_its_most_executed_blocks(tmp_path: Path) -> None:
    architecture = extract_subnetwork(ROUTED, 9, tmp_path / "static")
    assert architecture.name == "cifar10_resnet_2-3-4"
    static, routed = read_checkpoint(tmp_path / "static"), read_checkpoint(ROUTED)
    subnetwork = static.config.training.subnetwork
    assert subnetwork is not None and subnetwork.of == "cifar10_rnn_gate_38"
    kept = list(subnetwork.blocks)
    assert kept == [0, 3, 6, 7, 11, 12, 13, 14, 15]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, _ = routed.network.eval()(images, lambda index, logit: torch.full_like(logit, float(index + 1 in kept)))
    torch.testing.assert_close(static.network.eval()(images)[0], expected, rtol=0, atol=1e-5)
    assert static.macs.dense < 0.5 * routed.macs.dense


@pytest.mark.parametrize(
    ("count", "message"), [(0, "has 18 blocks: keep 1 to 18"), (19, "keep 1 to 18"), (2, "first block of a group, 6,")]
)
def test_an_impossible_number_of_blocks_is_refused(tmp_path: Path, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        extract_subnetwork(ROUTED, count, tmp_path)


def test_a_network_without_gates_or_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a CIFAR network with gates"):
        extract_subnetwork(find_version(SHIPPED, "cifar10_resnet_38", None), 9, tmp_path)
    unmeasured = Path(shutil.copytree(ROUTED, tmp_path / "unmeasured"))
    write_config(unmeasured, read_checkpoint(ROUTED).config.model_copy(update={"evaluation": None}))
    with pytest.raises(UserError, match="has no execution rates: measure them with skipnet evaluate"):
        extract_subnetwork(unmeasured, 9, tmp_path / "static")
