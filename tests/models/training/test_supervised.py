"""The loss of supervised pre-training: operating points, target rates per image, teacher logits."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.architectures import find_architecture
from models.blocks import Block
from models.gates import Limits
from models.network import RunBlock, SkipNet, run_masked
from models.training.recipes import OperatingPoint, find_recipe
from models.training.stages.gate_readout import readouts, set_gate_bias
from models.training.stages.skipping import run_explored
from models.training.stages.supervised import (
    difficulty_rank,
    point_slices,
    run_teacher,
    straight_through,
    supervised_step,
)


def gates_at(logit: float) -> SkipNet:
    """Return a network whose gates have the logit ``logit`` for every image."""
    network = find_architecture("cifar10_rnn_gate_38").build()
    with torch.no_grad():
        for readout in readouts(network):
            readout.weight.zero_()
            readout.bias.fill_(logit)
    return network


def test_each_operating_point_has_its_own_threshold() -> None:
    recipe = replace(find_recipe("multi_budget", "sp"), distillation_weight=0.0, target_rate_weight=0.0)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    # Thresholds 0, 0.2, 0.5 and 0.8 for 2, 2, 8 and 4 images: a probability of 0.4 executes on the first two points.
    step = supervised_step(gates_at(math.log(0.4 / 0.6)), images, labels, torch.tensor(1.0), recipe)
    # Four images execute all 18 blocks, the other twelve only the first.
    assert step.computation.item() == pytest.approx(4 + 12 / 18)


def test_threshold_1_skips_every_block_and_0_none() -> None:
    logits = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
    for threshold, decided in ((0.0, [1, 1, 1]), (0.5, [0, 0, 1]), (1.0, [0, 0, 0])):
        decisions = straight_through(Limits.of(torch.full((3,), threshold)).logits)(0, logits)
        decisions.sum().backward()  # type: ignore[no-untyped-call]
        assert decisions.tolist() == decided
        assert logits.grad is not None and logits.grad.isfinite().all()


def test_the_loss_grows_with_the_excess_over_the_target_rate() -> None:
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    recipe = replace(find_recipe("multi_budget", "sp"), distillation_weight=0.0, target_rate_weight=1.0)

    def cost(annealing: float) -> float:
        torch.manual_seed(0)
        paid = supervised_step(gates_at(0.1), images, labels, torch.tensor(annealing), recipe)
        torch.manual_seed(0)
        costless = replace(recipe, target_rate_weight=0.0)
        free = supervised_step(gates_at(0.1), images, labels, torch.tensor(annealing), costless)
        return (paid.loss - free.loss).item()

    assert cost(0.0) == 0
    # The images of thresholds 0, 0.2 and 0.5 execute every block; those of 0.8 only block 0, below their target rate.
    assert cost(1.0) == pytest.approx(0.25**2 / 8 + 0.5**2 / 2, rel=1e-4)
    assert cost(0.5) == pytest.approx(0.125**2 / 8 + 0.25**2 / 2, rel=1e-4)


HALF = (1.0, -1.0) * 4
"""Gate logits of eight images; every second image skips."""


def gradients(block: Block, run: RunBlock, gates: Sequence[float] = HALF) -> tuple[Tensor, Tensor]:
    """Return the gradients of eight images and of their gate logits through a block."""
    torch.manual_seed(0)
    images = torch.randn(8, 16, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    logits = torch.tensor(gates, requires_grad=True)
    # As in a network, the input of the block is not a leaf and is also read by another operation.
    read = images * 1.0
    out = run(block, read, straight_through(torch.zeros(8))(0, logits))
    ((out * torch.randn_like(out)).sum() + read.square().sum()).backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None and logits.grad is not None
    return images.grad, logits.grad


def block_of(number: int) -> Block:
    torch.manual_seed(0)
    block = find_architecture("cifar10_rnn_gate_38").build().blocks[number]
    assert isinstance(block, Block)
    return block


@pytest.mark.parametrize("number", [1, 6], ids=["identity", "projection"])
def test_without_skipped_blocks_the_gradients_are_those_of_masking(number: int) -> None:
    block, none_skips = block_of(number).train(), (1.0,) * 8
    explored = gradients(block, partial(run_explored, random=torch.Generator().manual_seed(0)), none_skips)
    for found, expected in zip(explored, gradients(block, run_masked, none_skips), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("gates", [HALF, (-1.0,) * 8], ids=["half skip", "all skip"])
def test_batch_norm_learns_from_the_images_that_execute(gates: Sequence[float]) -> None:
    block, alone = block_of(1).train(), block_of(1).train()
    images, decisions = torch.randn(8, 16, 32, 32), (torch.tensor(gates) > 0).float().requires_grad_()
    out = run_explored(block, images, decisions, torch.Generator().manual_seed(0), share=1.0)
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert decisions.grad is not None and decisions.grad.all()
    executed = images[decisions > 0.5]
    if len(executed):
        torch.testing.assert_close(out[decisions > 0.5], alone(executed))
    for found, expected in zip(block.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(found, expected)
    assert all(module.training for module in block.modules())


def test_exploring_does_not_change_the_gradient_of_the_weights() -> None:
    def weights_gradient(share: float) -> Tensor:
        block, random = block_of(1).train(), torch.Generator().manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            gradients(block, partial(run_explored, share=share, random=random))
        weight = next(block.parameters())
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(weights_gradient(1.0), weights_gradient(0.0))


@pytest.mark.parametrize("number", [1, 6], ids=["identity", "projection"])
def test_the_mean_gradient_of_exploring_is_that_of_masking(number: int) -> None:
    # With frozen statistics of batch norm, the images are independent.
    block = block_of(number).eval()
    of_images, of_gates = gradients(block, run_masked)
    random = torch.Generator().manual_seed(0)
    drawn = [gradients(block, partial(run_explored, share=0.25, random=random)) for _ in range(60)]
    for found, _ in drawn:
        torch.testing.assert_close(found, of_images, atol=1e-4, rtol=1e-3)
    each = torch.stack([found for _, found in drawn])
    # The gradient of executing images is exact. A quarter of the others is explored, with four times the weight.
    torch.testing.assert_close(each[:, ::2], of_gates[::2].expand(60, 4), atol=1e-4, rtol=1e-3)
    known = each[:, 1::2] != 0
    assert 0.18 < known.float().mean() < 0.32
    torch.testing.assert_close(each[:, 1::2], 4 * of_gates[1::2] * known, atol=1e-4, rtol=1e-3)


def test_a_step_explores_skipped_blocks_for_a_share_of_the_images() -> None:
    network, seen = gates_at(-1.0).train(), []
    for block in network.blocks[1:]:
        block.residual.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    recipe = find_recipe("short", "sp")
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    step = supervised_step(network, images, labels, torch.tensor(1.0), recipe, random=torch.Generator().manual_seed(0))
    assert step.computation.item() == pytest.approx(16 / 18)
    assert 0.15 < sum(seen) / 16 / 17 < 0.35
    step.loss.backward()  # type: ignore[no-untyped-call]
    gradients = [readout.bias.grad for readout in readouts(network)]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_the_target_rate_of_an_image_rises_with_the_loss_of_its_teacher() -> None:
    teacher = find_architecture("cifar10_resnet_38").build().eval()
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    recipe = replace(
        find_recipe("adaptive", "sp"),
        target_rate_weight=1.0,
        operating_points=(OperatingPoint(1, 0.5, 0.5),),
        per_sample_spread=0.5,
    )
    network, routings = gates_at(0.0), []
    network.register_forward_hook(lambda *call: routings.append(call[2][1]))
    step = supervised_step(network, images, labels, torch.tensor(1.0), recipe, run_teacher(teacher, images))
    [pull] = torch.autograd.grad(step.loss, [routings[0].decisions])
    order = cross_entropy(run_teacher(teacher, images), labels, reduction="none").argsort()
    # No gate exceeds its limit: each image executes only block 0, which is below its target rate.
    expected = 2 * (1 / 18 - torch.linspace(0.25, 0.75, 16)) / 16 / 18
    assert torch.allclose(pull[order, 0], expected, atol=1e-6)


def test_difficulty_is_ranked_by_the_loss_of_the_teacher() -> None:
    teacher_logits = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]])
    assert difficulty_rank(teacher_logits, torch.zeros(3, dtype=torch.long)).tolist() == [0, 0.5, 1]
    assert difficulty_rank(teacher_logits[:1], torch.zeros(1, dtype=torch.long)).tolist() == [0]


def test_the_operating_points_divide_the_batch() -> None:
    for size in (1, 7, 64, 128):
        parts = point_slices(find_recipe("multi_budget", "sp").operating_points, size)
        assert [index for part in parts for index in range(part.start, part.stop)] == list(range(size))


def test_a_student_with_the_logits_of_its_teacher_has_no_loss() -> None:
    teacher = find_architecture("cifar10_resnet_38").build().eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    recipe = replace(find_recipe("multi_budget", "sp"), operating_points=(), distillation_weight=1.0)
    start, teacher_logits = torch.tensor(0.0), run_teacher(teacher, images)
    assert supervised_step(teacher, images, labels, start, recipe, teacher_logits).loss.item() == pytest.approx(
        0, abs=1e-5
    )
    other = find_architecture("cifar10_resnet_38").build().eval()
    assert supervised_step(other, images, labels, start, recipe, teacher_logits).loss > 1e-3
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_soft_gates_scale_the_block_by_their_probability() -> None:
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    network = find_architecture("cifar10_rnn_gate_38").build()
    step = supervised_step(
        network, images, labels, torch.tensor(1.0), replace(find_recipe("short", "sp"), gates="soft")
    )
    # New gates have probabilities near 0.5, so each block counts about half. Hard gates would give a whole number.
    executed = 18 * step.computation - 4
    assert 0.3 * 68 < executed < 0.7 * 68
    assert abs(float(executed) - round(float(executed))) > 1e-4


def test_supervised_gates_are_hard_forward_and_soft_backward() -> None:
    logits = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    limits = torch.tensor([0.0, 0.0, 2.0])
    decisions = straight_through(limits)(0, logits)
    torch.testing.assert_close(decisions.detach(), torch.tensor([0.0, 0.0, 0.0]))
    torch.testing.assert_close(straight_through(torch.zeros(3))(0, logits).detach(), torch.tensor([0.0, 0.0, 1.0]))
    decisions.sum().backward()  # type: ignore[no-untyped-call]
    probability = torch.sigmoid(logits.detach() - limits)
    torch.testing.assert_close(logits.grad, probability * (1 - probability))


@pytest.mark.parametrize("name", ["cifar10_rnn_gate_38", "cifar10_feedforward_38"])
def test_the_gate_bias_executes_or_skips_every_block(name: str) -> None:
    network = find_architecture(name).build().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        set_gate_bias(network, -1e3)
        assert not network(images)[1].decisions.any()
        set_gate_bias(network, 1e3)
        assert network(images)[1].decisions.all()


def test_a_batch_smaller_than_the_operating_points_has_a_loss() -> None:
    network = find_architecture("cifar10_rnn_gate_38").build()
    images, labels = torch.randn(2, 3, 32, 32), torch.arange(2)
    for recipe in ("multi_budget", "adaptive"):
        assert supervised_step(network, images, labels, torch.tensor(1.0), find_recipe(recipe, "sp")).loss.isfinite()
