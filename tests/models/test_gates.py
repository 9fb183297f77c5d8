"""The gates' average and the limits that they must exceed."""

import numpy as np
import pytest
import torch

from models.gates import Limits, average


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_average_and_its_gradient(layout: torch.memory_format) -> None:
    maps = torch.randn(3, 4, 5, 7).contiguous(memory_format=layout).requires_grad_()
    means = average(maps)
    torch.testing.assert_close(means, maps.mean((2, 3)))
    (means * torch.arange(12.0).reshape(3, 4)).sum().backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, torch.arange(12.0).reshape(3, 4, 1, 1).expand(3, 4, 5, 7) / 35)


@pytest.mark.parametrize("scale", ["probabilities", "logits"])
def test_0_executes_every_block_and_1_none(scale: str) -> None:
    """Also if a gate's probability rounds to 0 or 1."""
    logits = torch.tensor([-300.0, 0.0, 300.0])
    gates = torch.sigmoid(logits) if scale == "probabilities" else logits
    for threshold, executed in ((-0.5, 3), (0.0, 3), (1.0, 0), (1.5, 0)):
        limit = getattr(Limits.of(threshold), scale)
        assert (gates > limit).sum() == executed


def test_limits_of_logits_and_probabilities_agree() -> None:
    thresholds = np.linspace(0.05, 0.95, 10, dtype=np.float32)
    limits = Limits.of(thresholds)
    torch.testing.assert_close(torch.sigmoid(limits.logits), torch.from_numpy(thresholds))
    torch.testing.assert_close(limits.probabilities, torch.from_numpy(thresholds))


def test_a_read_only_array_is_accepted() -> None:
    assert Limits.of(np.broadcast_to(np.float32(0.5), 3)).logits.tolist() == [0, 0, 0]
