"""A pass forward and back, recorded once as a CUDA graph and replayed: a deep, narrow network is a thousand small
kernels, and a GPU has done each before Python has asked for the next.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.training.objective import Step

RUNS_BEFORE = 3
"""cuDNN, the allocator and autograd settle in the first passes, which may not happen inside a recording."""


class RecordedStep:
    """``descend``, recorded for inputs of the first ones' shapes. What it returns holds until the next step is taken.

    The gradients are the same tensors in every step: nobody may take them from the parameters.
    """

    def __init__(self, network: nn.Module, descend: Callable[..., Step]) -> None:
        self.network, self.descend = network, descend
        self.inputs: list[Tensor | None] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor | None) -> Step:
        if self.graph is None:
            self.graph = self.record(inputs)
        for buffer, given in zip(self.inputs, inputs, strict=True):
            if buffer is not None and given is not None:
                buffer.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.step

    def record(self, inputs: tuple[Tensor | None, ...]) -> torch.cuda.CUDAGraph:
        device = next(self.network.parameters()).device
        self.inputs = [None if given is None else given.to(device).clone() for given in inputs]
        # What the passes before the recording leave in batch norm's statistics is no step's.
        kept = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        apart = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        apart.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(apart), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            for _ in range(RUNS_BEFORE):
                self.descend(*self.inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=apart):
                self.step = self.descend(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(apart)
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
        return graph
