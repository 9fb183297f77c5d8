"""What gates read of a map."""

import pytest
import torch

from models.gates import average


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_map_is_averaged_and_its_gradient_spread_evenly(layout: torch.memory_format) -> None:
    maps = torch.randn(3, 4, 5, 7).contiguous(memory_format=layout).requires_grad_()
    means = average(maps)
    torch.testing.assert_close(means, maps.mean((2, 3)))
    (means * torch.arange(12.0).reshape(3, 4)).sum().backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, torch.arange(12.0).reshape(3, 4, 1, 1).expand(3, 4, 5, 7) / 35)
