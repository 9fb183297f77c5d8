"""The temperature at which probabilities are as sure as they are right."""

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from models import SHIPPED
from models.checkpoint import read_checkpoint
from models.evaluation.temperature import find_temperature, temper
from models.model_repository import find_version


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_it_is_found_where_labels_were_drawn_by_it(temperature: float) -> None:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40_000, 10, generator=random)
    labels = torch.multinomial(softmax(logits, 1), 1, generator=random)[:, 0]
    found = find_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert cross_entropy(logits * temperature / found, labels) <= cross_entropy(logits, labels) + 1e-6


def test_answers_that_are_always_right_end_at_the_bound() -> None:
    labels = torch.arange(10)
    assert find_temperature(10.0 * torch.eye(10), labels) == pytest.approx(0.05, rel=0.01)


def test_a_tempered_network_decides_and_answers_alike() -> None:
    network = read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None)).network
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tempered = temper(network, 2.0)
    with torch.no_grad():
        (before, routed), (after, tempered_routed) = network(images), tempered(images)
    torch.testing.assert_close(after, before / 2)
    assert torch.equal(routed.decisions, tempered_routed.decisions)
    assert torch.equal(after.argmax(1), before.argmax(1))
