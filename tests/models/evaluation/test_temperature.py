"""Temperature scaling: the temperature that calibrates the probabilities."""

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from models import SHIPPED
from models.checkpoint import read_checkpoint
from models.evaluation.temperature import find_temperature, scale_temperature
from models.model_repository import find_version


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_that_drew_the_labels_is_found(temperature: float) -> None:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40_000, 10, generator=random)
    labels = torch.multinomial(softmax(logits, 1), 1, generator=random)[:, 0]
    found = find_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert cross_entropy(logits * temperature / found, labels) <= cross_entropy(logits, labels) + 1e-6


def test_always_correct_logits_give_the_least_temperature() -> None:
    labels = torch.arange(10)
    assert find_temperature(10.0 * torch.eye(10), labels) == pytest.approx(0.05, rel=0.01)


def test_scaled_network_keeps_labels_and_decisions() -> None:
    network = read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None)).network
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scaled = scale_temperature(network, 2.0)
    with torch.no_grad():
        (before, routed), (after, scaled_routed) = network(images), scaled(images)
    torch.testing.assert_close(after, before / 2)
    assert torch.equal(routed.decisions, scaled_routed.decisions)
    assert torch.equal(after.argmax(1), before.argmax(1))
