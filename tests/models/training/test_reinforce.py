"""Hybrid reinforcement learning: sampled routes, their gradients and their rewards."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.architectures import find_architecture
from models.network import SkipNet, run_masked
from models.training.recipes import find_recipe
from models.training.stages.batch_norm import freeze_statistics
from models.training.stages.gate_readout import readouts, scale_gate_logits, set_gate_bias
from models.training.stages.reinforce import (
    advantages,
    pure_loss,
    re_estimate_statistics,
    returns,
    sampled_forward,
)
from models.training.stages.skipping import run_executed
from tests.models.engines.conftest import normalise_gate


def with_varied_gates(network: SkipNet, images: Tensor) -> SkipNet:
    """Normalise the gates' outputs, so that the routes of a new network differ between images."""
    handles = [gate.register_forward_pre_hook(normalise_gate) for gate in network.gates]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return network


def test_a_sampled_route_has_the_output_of_the_masked_network() -> None:
    images = torch.randn(6, 3, 32, 32)
    network = with_varied_gates(find_architecture("cifar10_rnn_gate_38").build().eval(), images)
    uniform = torch.rand(6, network.decision_count)
    logits, _, decisions = sampled_forward(network, images, uniform, run_executed)
    assert 0 < decisions.float().mean() < 1
    masked, routing = network(images, lambda index, _: decisions[:, index].float())
    torch.testing.assert_close(logits, masked, atol=1e-5, rtol=1e-4)
    assert torch.equal(routing.decisions.bool(), decisions)


def test_a_block_computes_only_the_images_that_execute_it() -> None:
    network = find_architecture("cifar10_rnn_gate_38").build().eval()
    seen: list[int] = []
    network.blocks[1].residual.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    x = torch.randn(5, 16, 32, 32)
    out = run_executed(network.blocks[1], x, torch.tensor([True, False, False, True, False]))  # type: ignore[arg-type]
    assert seen == [2]
    assert torch.equal(out[1], x[1]) and not torch.equal(out[0], x[0])


@pytest.mark.parametrize("name", ["cifar10_rnn_gate_38", "cifar10_feedforward_38"])
def test_skipping_has_the_gradient_of_masking(name: str) -> None:
    torch.manual_seed(0)
    images, uniform = torch.randn(6, 3, 32, 32), torch.rand(6, 17)
    network = with_varied_gates(find_architecture(name).build().eval(), images)
    # No image executes one of the blocks, and all images execute another.
    uniform[:, 3], uniform[:, 4] = 2.0, -1.0
    network.train()
    freeze_statistics(network)
    gradients = []
    for run in (run_executed, run_masked):
        network.zero_grad(set_to_none=True)
        logits, gate_logits, _ = sampled_forward(network, images, uniform, run)
        (logits.square().mean() + gate_logits.square().mean()).backward()  # type: ignore[no-untyped-call]
        gradients.append({key: value.grad for key, value in network.named_parameters() if value.grad is not None})
    compacted, masked = gradients
    largest = max(float(gradient.abs().max()) for gradient in masked.values())
    for key, expected in masked.items():
        found = compacted.get(key, torch.zeros_like(expected))
        torch.testing.assert_close(found, expected, atol=1e-5 * largest, rtol=1e-3, msg=key)


def test_gates_send_no_gradient_into_the_backbone() -> None:
    network = find_architecture("cifar10_rnn_gate_38").build()
    uniform = torch.rand(4, network.decision_count)
    _, gate_logits, _ = sampled_forward(network, torch.randn(4, 3, 32, 32), uniform, run_executed)
    gate_logits.sum().backward()  # type: ignore[no-untyped-call]
    assert network.controller is not None
    assert all(parameter.grad is None for part in (network.stem, network.blocks) for parameter in part.parameters())
    assert all(parameter.grad is not None for parameter in network.controller.parameters())


def test_hrl_keeps_the_statistics_of_batch_norm() -> None:
    network = find_architecture("cifar10_rnn_gate_38").build()
    before = {key: value.clone() for key, value in network.named_buffers()}
    network.train()
    freeze_statistics(network)
    sampled_forward(network, torch.randn(4, 3, 32, 32), torch.rand(4, network.decision_count), run_executed)
    for key, value in network.named_buffers():
        assert torch.equal(value, before[key]), key


def test_re_estimated_statistics_are_those_of_executed_blocks() -> None:
    images = torch.randn(32, 3, 32, 32)
    network = find_architecture("cifar10_rnn_gate_38").build()
    set_gate_bias(network, 5.0)
    stem, first = network.stem[1], network.blocks[1].residual[1]  # type: ignore[index]
    assert isinstance(first, nn.BatchNorm2d) and first.running_mean is not None
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    re_estimate_statistics(network, [images, images])
    torch.testing.assert_close(stem.running_mean, network.stem[0](images).mean((0, 2, 3)))
    assert not torch.equal(first.running_mean, kept["blocks.1.residual.1.running_mean"])
    for key, parameter in network.named_parameters():
        assert torch.equal(parameter, kept[key]), key
    network.load_state_dict(kept)
    set_gate_bias(network, -5.0)
    re_estimate_statistics(network, [images])
    assert torch.equal(first.running_mean, kept["blocks.1.residual.1.running_mean"])
    assert stem.momentum == 0.1


def test_pure_reinforcement_learns_from_the_correctness_of_the_class_only() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]], requires_grad=True)
    recipe = replace(find_recipe("short", "hrl"), pure=True, samples=1, alpha=0.0)
    decisions = torch.tensor([[True], [False]])
    gates = torch.zeros(2, 1, requires_grad=True)
    # The sampled classes are 0 for the first image and 1 for the second; class 0 is correct.
    loss = pure_loss(logits, torch.tensor([0, 0]), gates, decisions, recipe, torch.tensor([[0.1], [0.99]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and gates.grad is not None
    assert (logits.grad[:, 0] < 0).all() and (logits.grad[:, 1] > 0).all()
    # Twice the advantage of the correct image over the mean of the others, divided by the two images.
    torch.testing.assert_close(gates.grad, torch.tensor([[-0.5], [0.5]]))


def test_returns_are_those_of_the_paper() -> None:
    decisions = torch.tensor([[True, False, False]])
    # alpha / 3 for each gate from this one on that skips, minus the loss of the image.
    torch.testing.assert_close(returns(torch.tensor([2.0]), decisions, 0.3), torch.tensor([[-1.8, -1.8, -1.9]]))


def test_the_baseline_removes_the_difficulty_of_the_image() -> None:
    easy, hard = 0.1, 5.0
    gate_returns = torch.tensor([[-easy], [-hard], [-easy - 0.2], [-hard]])
    torch.testing.assert_close(advantages(gate_returns, samples=2), torch.tensor([[0.2], [0.0], [-0.2], [0.0]]))


@pytest.mark.parametrize("name", ["cifar10_rnn_gate_38", "cifar10_feedforward_38"])
def test_scaled_gate_logits_keep_the_decisions(name: str) -> None:
    images = torch.randn(6, 3, 32, 32)
    network = with_varied_gates(find_architecture(name).build().eval(), images)
    with torch.no_grad():
        for readout in readouts(network):
            readout.weight.mul_(0.1)
        before = network(images)[1]
        scale_gate_logits(network, 10)
        after = network(images)[1]
    assert torch.equal(before.decisions, after.decisions)
    torch.testing.assert_close(after.logits, before.logits * 10, atol=1e-4, rtol=1e-4)
