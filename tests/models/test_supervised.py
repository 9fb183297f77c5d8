"""The loss of supervised pre-training: rungs, targets by the image, a teacher."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.catalogue import find_architecture
from models.network import SkipNet
from models.training.readout import readouts
from models.training.recipes import Rung, find_recipe
from models.training.supervised import hardness, rung_slices, supervised_step, taught


def gates_at(logit: float) -> SkipNet:
    """Return a network whose every gate answers ``logit``, whatever the image."""
    network = find_architecture("cifar10_rnn_gate_38").build()
    with torch.no_grad():
        for readout in readouts(network):
            readout.weight.zero_()
            readout.bias.fill_(logit)
    return network


def test_each_rung_of_the_dial_is_routed_at_its_own_threshold() -> None:
    recipe = replace(find_recipe("dial", "sp"), distil=0.0, target_weight=0.0)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    # Thresholds 0, 0.2, 0.5 and 0.8 for 2, 2, 8 and 4 images: a probability of 0.4 executes on the first two rungs.
    step = supervised_step(gates_at(math.log(0.4 / 0.6)), images, labels, torch.tensor(1.0), recipe)
    assert step.executions.tolist() == [4] * 17


def test_a_rung_pays_for_what_lies_above_its_own_target() -> None:
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    recipe = replace(find_recipe("dial", "sp"), distil=0.0, target_weight=1.0)

    def cost(fallen: float) -> float:
        torch.manual_seed(0)
        paid = supervised_step(gates_at(0.1), images, labels, torch.tensor(fallen), recipe)
        torch.manual_seed(0)
        costless = replace(recipe, target_weight=0.0)
        free = supervised_step(gates_at(0.1), images, labels, torch.tensor(fallen), costless)
        return (paid.loss - free.loss).item()

    assert cost(0.0) == 0
    # All of the rungs at 0, 0.2 and 0.5 execute everything; that at 0.8 only block 0, below its target.
    assert cost(1.0) == pytest.approx(0.25**2 / 8 + 0.5**2 / 2, rel=1e-4)
    assert cost(0.5) == pytest.approx(0.125**2 / 8 + 0.25**2 / 2, rel=1e-4)


def test_an_image_has_a_target_by_how_hard_its_teacher_finds_it() -> None:
    teacher = find_architecture("cifar10_resnet_38").build().eval()
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    recipe = replace(find_recipe("adaptive", "sp"), target_weight=1.0, rungs=(Rung(1, 0.5, 0.5),), spread=0.5)
    network, routings = gates_at(0.0), []
    network.register_forward_hook(lambda *call: routings.append(call[2][1]))
    step = supervised_step(network, images, labels, torch.tensor(1.0), recipe, teacher)
    [pull] = torch.autograd.grad(step.loss, [routings[0].decisions])
    order = cross_entropy(taught(teacher, images), labels, reduction="none").argsort()
    # No gate lies above its limit: each image executes block 0 alone, below its target, the further the harder it is.
    expected = 2 * (1 / 18 - torch.linspace(0.25, 0.75, 16)) / 16 / 18
    assert torch.allclose(pull[order, 0], expected, atol=1e-6)


def test_the_hardest_of_some_images_is_the_one_answered_worst() -> None:
    answers = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]])
    assert hardness(answers, torch.zeros(3, dtype=torch.long)).tolist() == [0, 0.5, 1]
    assert hardness(answers[:1], torch.zeros(1, dtype=torch.long)).tolist() == [0]


def test_the_rungs_share_out_a_whole_batch() -> None:
    for size in (1, 7, 64, 128):
        parts = rung_slices(find_recipe("dial", "sp").rungs, size)
        assert [index for part in parts for index in range(part.start, part.stop)] == list(range(size))


def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn() -> None:
    teacher = find_architecture("cifar10_resnet_38").build().eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    recipe = replace(find_recipe("dial", "sp"), rungs=(), distil=1.0)
    none = torch.tensor(0.0)
    assert supervised_step(teacher, images, labels, none, recipe, teacher).loss.item() == pytest.approx(0, abs=1e-5)
    other = find_architecture("cifar10_resnet_38").build().eval()
    assert supervised_step(other, images, labels, none, recipe, teacher).loss > 1e-3
    assert all(parameter.grad is None for parameter in teacher.parameters())
