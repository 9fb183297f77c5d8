"""Depth growth: the grown network has the same output as the one that it starts from."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import SHIPPED
from models.architectures import find_architecture
from models.checkpoint import read_checkpoint
from models.errors import UserError
from models.experiments.catalogue import find_row
from models.experiments.plan import Plan
from models.experiments.runner import reproduce
from models.model_card.card import draw_training
from models.model_card.training_commands import list_commands
from models.model_repository import find_version
from models.network import SkipNet
from models.training.distillation.location import LOGITS_FILE
from models.training.distillation.logits import write_teacher_logits
from models.training.setup.growth import grow
from models.training.setup.job import make_job
from models.training.types import stage_record
from tests.models.data.parquet_files import write_cifar10
from tests.models.experiments.test_runner import TINY, TRAIN, never, plan_in
from tests.models.training.interruption import quiet

TRAINED = find_version(SHIPPED, "cifar10_resnet_38", None)
OLD = {group + 2 * index for group in (0, 12, 24) for index in range(6)}
"""Blocks of a network of 74 layers that come from the one of 38 layers."""


@pytest.fixture(scope="module")
def trained() -> SkipNet:
    return read_checkpoint(TRAINED).network.eval()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    write_cifar10(tmp_path, TRAIN, 16)
    (tmp_path / "cifar10_teacher_small").mkdir()
    write_teacher_logits(tmp_path / "cifar10_teacher_small" / LOGITS_FILE, torch.zeros(TRAIN, 10), "cifar10", "small")
    return replace(plan_in(tmp_path, tmp_path), depth=74)


def grown(trained: SkipNet, name: str) -> SkipNet:
    return grow(trained, find_architecture("cifar10_resnet_38"), find_architecture(name)).eval()


@torch.no_grad()
def logits_along(network: SkipNet, executed: set[int], images: Tensor) -> Tensor:
    logits: Tensor = network(images, lambda index, logit: torch.full_like(logit, float(index + 1 in executed)))[0]
    return logits


@pytest.mark.parametrize("executed", [set(range(36)), OLD], ids=["all blocks", "original blocks"])
def test_a_grown_network_has_the_same_output(trained: SkipNet, executed: set[int]) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    deeper = grown(trained, "cifar10_rnn_gate_74")
    assert torch.equal(logits_along(deeper, executed, images), logits_along(trained, set(), images))
    assert not torch.equal(logits_along(deeper, executed - {2}, images), logits_along(trained, set(), images))


def test_new_blocks_get_gradients(trained: SkipNet) -> None:
    deeper = grown(trained, "cifar10_resnet_74")
    logits, _ = deeper(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    logits.square().sum().backward()
    for block in deeper.blocks:
        assert block.residual[-1].weight.grad.abs().max() > 0  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("name", "deeper"),
    [
        ("cifar10_resnet_74", "cifar10_resnet_38"),
        ("cifar10_resnet_38", "cifar10_rnn_gate_38"),
        ("cifar10_rnn_gate_38", "cifar10_rnn_gate_74"),
        ("imagenet_resnet_34", "imagenet_resnet_50"),
        ("imagenet_resnet_18", "cifar10_resnet_74"),
    ],
)
def test_impossible_growth_is_refused(name: str, deeper: str) -> None:
    architecture = find_architecture(name)
    with pytest.raises(UserError, match=f"{name} does not grow into {deeper}"):
        grow(architecture.build(), architecture, find_architecture(deeper))


def test_a_row_with_depth_growth_starts_from_the_shallower_network(plan: Plan) -> None:
    row = find_row("grown-40", "short")
    [(found, seed)] = plan.runs(["grown-40"], [1])
    assert found == row
    with pytest.raises(UserError, match="run the same command with --depth 38 --rows plain-distilled first"):
        reproduce(plan, row, seed, save_every=300, show=never)
    with pytest.raises(UserError, match="grown-40 grows from 38 layers: choose a larger --depth, such as 110"):
        reproduce(replace(plan, depth=38), row, seed, save_every=300, show=never)
    folder = plan.output / "cifar10_38" / "short" / "plain-distilled-0" / "plain"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(TRAINED)
    tried = replace(row, changes={**row.changes, **TINY})
    result = reproduce(plan, tried, seed, save_every=300, show=quiet)
    assert (result.start, result.architecture) == ("plain-distilled of 38 layers", "cifar10_rnn_gate_74")
    folder.unlink()
    assert reproduce(plan, tried, seed, save_every=300, show=never) == result
    with pytest.raises(UserError, match="start='plain-distilled of 38 layers'"):
        reproduce(replace(plan, start=TRAINED), tried, seed, save_every=300, show=never)


def test_a_network_without_gates_can_grow(plan: Plan, trained: SkipNet) -> None:
    options = plan.options(find_row("plain", "short"), 0).model_copy(
        update={"recipe": "short", "init": TRAINED, "batch": 8}
    )
    network = make_job(options).network.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert len(network.blocks) == 36
    assert torch.equal(logits_along(network, set(), images), logits_along(trained, set(), images))


def test_the_card_names_the_network_of_each_stage(plan: Plan, trained: SkipNet) -> None:
    options = replace(plan, start=TRAINED).options(find_row("grown-40", "short"), 0).model_copy(update={"batch": 8})
    job = make_job(options)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    every = set(range(36))
    assert torch.equal(logits_along(job.network.eval(), every, images), logits_along(trained, every, images))
    config = read_checkpoint(TRAINED).config
    stages = (*job.earlier, stage_record(job.recipes[0]))
    training = config.training.model_copy(update={"stages": stages})
    grew = config.model_copy(update={"architecture": "cifar10_rnn_gate_74", "training": training})
    before, last = list_commands(grew)[-2:]
    assert "--arch cifar10_resnet_38 " in before
    assert "--arch cifar10_rnn_gate_74 " in last
    assert "| plain, `cifar10_resnet_38` | distilled |" in draw_training(replace(read_checkpoint(TRAINED), config=grew))
    written = dict(re.findall(r"--(\S+) (\S+)", before))
    assert f"--init {written.get('output', 'runs/' + written['arch'])}/plain " in last
