"""A forward and backward pass captured once as a CUDA graph and replayed.

A deep network with few channels consists of a thousand small kernels. The GPU finishes each of them before Python
launches the next one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.training.objective import Step

WARM_UP_RUNS = 3
"""cuDNN, the allocator and autograd initialise themselves in the first runs. A capture does not allow this."""


class CapturedStep:
    """``forward_backward``, captured for the shapes of its first inputs.

    The outputs are valid until the next step. The gradients are the same tensors in every step. So the optimiser must
    not remove them from the parameters.
    """

    def __init__(self, network: nn.Module, forward_backward: Callable[..., Step]) -> None:
        self.network, self.forward_backward = network, forward_backward
        self.inputs: list[Tensor | None] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor | None) -> Step:
        if self.graph is None:
            self.graph = self.capture(inputs)
        for buffer, given in zip(self.inputs, inputs, strict=True):
            if buffer is not None and given is not None:
                buffer.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.step

    def capture(self, inputs: tuple[Tensor | None, ...]) -> torch.cuda.CUDAGraph:
        device = next(self.network.parameters()).device
        self.inputs = [None if given is None else given.to(device).clone() for given in inputs]
        # The warm-up runs are not training steps, so their changes to batch norm's statistics are undone.
        kept = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            for _ in range(WARM_UP_RUNS):
                self.forward_backward(*self.inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self.step = self.forward_backward(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
        return graph
