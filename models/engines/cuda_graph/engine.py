"""The CUDA graph engine: a forward pass in half precision, captured once per batch size and replayed.

The host launches one graph and reads one result. The device does not wait for the host in between. A CPU has no graphs,
so there the engine calls the function that would be captured. Tests use this to check everything except the capture.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.engines.folding import FoldedNetwork
from models.engines.protocol import EngineError, Routed, check_batch, closed, plain_output
from models.engines.torch.forward import arrange, forward
from models.engines.torch.skipping import BucketSkipping, bucket_sizes, mask
from models.gates import Limits
from models.macs import Mode

LARGEST: dict[Mode, int] = {"mask": 1024, "branch": 256}
PIXELS: dict[Mode, int] = {"mask": 64 * 224 * 224, "branch": 32 * 224 * 224}
"""The largest batch, in images and in pixels. A graph keeps the memory of its feature maps, and conditional nodes do
not share theirs (pytorch PRs #191533 and #192098)."""
WARM_UP_RUNS = 3
"""cuDNN and the allocator initialise themselves in the first runs. A capture does not allow this."""


class CudaGraphEngine:
    """Run a folded network with feature maps and convolutions in ``dtype``, in the channels-last layout.

    In mode "mask" every block runs and the decisions select the output. In mode "branch" a block runs on the images of
    the batch that execute it, see ``BucketSkipping``. A batch is padded to the next power of two with images that skip
    every block. A batch that is too large or runs out of memory is split.
    Raises EngineError if the device cannot do that.
    """

    name = "cuda_graph"

    def __init__(
        self,
        folded: FoldedNetwork,
        device: str,
        mode: Mode = "mask",
        dtype: torch.dtype = torch.float16,
        normalisation: NDArray[np.float32] | None = None,
    ) -> None:
        """``normalisation`` is that of pixels (``models.preprocessing``); without it they are not changed."""
        if mode == "branch" and device != "cpu" and folded.gates:
            require_conditional_nodes()
        self.device = device
        self.mode: Mode = mode
        self.dtype = dtype
        self.stream = None if device == "cpu" else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with self.on_stream():
            self.network = arrange(folded, device, dtype)
            scales = torch.tensor([[1.0], [0.0]]).repeat(1, 3) if normalisation is None else torch.tensor(normalisation)
            self.normalisation = scales.to(device)
        self.captured: dict[tuple[int, ...], CapturedForward] = {}
        self.largest = LARGEST[mode]
        self.closed = False

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does. Raises EngineError if the engine is closed."""
        return self.route(images, thresholds)

    def run_pixels(self, pixels: NDArray[np.uint8], thresholds: NDArray[np.float32]) -> Routed:
        """Run decoded images, as ``PixelEngine.run_pixels`` does. Raises EngineError if the engine is closed."""
        return self.route(pixels, thresholds)

    def route(self, images: NDArray[np.float32] | NDArray[np.uint8], thresholds: NDArray[np.float32]) -> Routed:
        if self.closed:
            raise closed(self)
        check_batch(images, thresholds)
        limits = Limits.of(thresholds).logits
        with torch.inference_mode(), self.on_stream():
            output = torch.cat(self.run_parts(torch.from_numpy(images), limits))
        classes = len(self.network.head_bias)
        scores, logits = output[:, :classes], output[:, classes:]
        if not self.network.gates:
            return plain_output(scores.numpy(), len(self.network.blocks), self.mode)
        executed = logits > limits[:, None]
        return Routed(scores.numpy(), executed.numpy(), torch.sigmoid(logits).numpy(), self.mode)

    def run_parts(self, images: Tensor, limits: Tensor) -> list[Tensor]:
        """Run the batch in parts. Each result has class logits and gate logits side by side, on the host."""
        height, width = images.shape[1:3] if images.dtype == torch.uint8 else images.shape[2:]
        step = min(self.largest, largest_batch(self.mode, height, width))
        outputs: list[Tensor] = []
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            size = next_power_of_two(len(images[part]))
            try:
                outputs.append(self.capture_for(images[part]).run(images[part], limits[part]))
                continue
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # The error is released only here. Its traceback holds the memory of the failed capture.
            self.largest = size // 2
            return outputs + self.run_parts(images[start:], limits[start:])
        return outputs

    def capture_for(self, images: Tensor) -> "CapturedForward":
        """Return the captured forward pass with room for a batch. Capture it if there is none."""
        shape = next_power_of_two(len(images)), *images.shape[1:]
        if shape not in self.captured:
            self.captured[shape] = CapturedForward(self, shape, images.dtype)
        return self.captured[shape]

    def on_stream(self) -> AbstractContextManager[object]:
        """Return a context in which the device's work goes to this engine's own stream."""
        if self.stream is None:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self.device))
        stack.enter_context(torch.cuda.stream(self.stream))
        return stack

    def close(self) -> None:
        """Release the captured graphs and their memory."""
        self.closed = True
        self.captured.clear()


class CapturedForward:
    """The forward pass of one batch size, between an input and an output buffer on the device.

    The input is normalised images [N, 3, H, W], or pixels [N, H, W, 3] if ``kind`` is torch.uint8.
    """

    def __init__(self, engine: CudaGraphEngine, shape: tuple[int, ...], kind: torch.dtype = torch.float32) -> None:
        self.network, self.dtype, self.normalisation = engine.network, engine.dtype, engine.normalisation
        self.images = torch.zeros(shape, dtype=kind, device=engine.device)
        # The device reads pinned memory without a copy in between.
        self.staged = None if engine.stream is None else torch.zeros(shape, dtype=kind, pin_memory=True)
        self.limits = torch.full(shape[:1], torch.inf, device=engine.device)
        # A plain ResNet has no decisions, so it needs no conditional nodes.
        branches = engine.mode == "branch" and bool(self.network.gates)
        self.skipping = BucketSkipping(len(self.network.gates), shape[0], engine.device) if branches else None
        self.replay = self.forward if engine.stream is None else self.capture(engine.stream)

    def forward(self) -> Tensor:
        """Return class logits and gate logits [N, classes + B-1], float32, of the images in the buffer."""
        images = self.images
        if images.dtype == torch.uint8:
            scale, shift = self.normalisation
            # Two operations, as on the host, so that they round alike.
            images = images.float().mul_(scale).sub_(shift).permute(0, 3, 1, 2)
        images = images.to(self.dtype, memory_format=torch.channels_last)
        return torch.cat(forward(self.network, images, self.limits, self.skipping or mask), 1)

    def capture(self, stream: torch.cuda.Stream) -> Callable[[], Tensor]:
        """Return a function that replays ``forward`` on ``stream``."""
        for executing in bucket_sizes(len(self.images)) * WARM_UP_RUNS:
            # Run every branch of every block: this many images execute all blocks, the others none.
            self.limits.fill_(torch.inf)
            self.limits[:executing] = -torch.inf
            self.forward()
        warm_up, nodes = conditional_nodes() if self.skipping else (nullcontext(), nullcontext())
        with warm_up:
            self.forward()
        graph = torch.cuda.CUDAGraph()
        # Another thread may run another model and allocate memory at the same time.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"), nodes:
            output = self.forward()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def run(self, images: Tensor, limits: Tensor) -> Tensor:
        """Fill the buffers, replay the graph, and copy the result to the host."""
        self.fill(images, limits)
        return self.fetch(self.replay(), len(images))

    def fill(self, images: Tensor, limits: Tensor) -> None:
        """Copy a batch to the buffers. Padding images skip every block."""
        count = len(images)
        if self.staged is not None:
            images = self.staged[:count].copy_(images)
        self.images[:count].copy_(images, non_blocking=True)
        self.limits[:count].copy_(limits)
        self.limits[count:].fill_(torch.inf)

    def fetch(self, output: Tensor, count: int) -> Tensor:
        """Copy the results of ``count`` images to the host: the only wait for the device."""
        return output[:count].cpu()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error is a lack of memory, or was raised while handling one, as in a failed capture."""
    return error is not None and (isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error.__context__))


def next_power_of_two(count: int) -> int:
    """Return the smallest power of two that is not less than ``count``."""
    return 1 << (count - 1).bit_length()


def largest_batch(mode: Mode, height: int, width: int) -> int:
    """Return the largest power of two of images that may run together."""
    return int(min(LARGEST[mode], 1 << max(0, (PIXELS[mode] // (height * width)).bit_length() - 1)))


def conditional_nodes() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Return two contexts for a forward pass with ``torch.cond``: one to warm up, one to capture.

    The first runs each condition in a capture that torch discards. The second turns each condition into conditional
    nodes of the graph (pytorch PR #168912).
    """
    from torch._higher_order_ops import cudagraph_conditional_nodes as modes

    return modes.ControlFlowOpWarmupDispatchMode(), modes.CUDAGraphCaptureControlFlowOpDispatchMode()


def require_conditional_nodes() -> None:
    """Raise EngineError if this torch cannot put conditions into a CUDA graph."""
    if tuple(map(int, (torch.version.cuda or "0.0").split(".")[:2])) < (12, 4):
        raise EngineError(f"conditional nodes need CUDA 12.4; this torch is built for {torch.version.cuda}")
    try:
        conditional_nodes()
    except (ImportError, AttributeError) as error:
        raise EngineError(f"torch {torch.__version__} cannot capture torch.cond; 2.13 can") from error
