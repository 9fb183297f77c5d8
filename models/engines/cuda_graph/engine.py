"""The CUDA graph engine: a whole forward pass in half precision, recorded once for each batch size and replayed.

The host launches one graph and reads one answer; between the two nothing waits for it. On the CPU, which has no
graphs, the function that would be recorded is called instead: so everything but the recording is tested there.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.engines.folding import FoldedNetwork
from models.engines.protocol import EngineError, Routed, check_batch, plain_answer
from models.engines.torch.forward import arrange, forward
from models.engines.torch.skipping import OnDevice, buckets, mask
from models.macs import Mode
from models.network import limits_of

LARGEST: dict[Mode, int] = {"mask": 1024, "branch": 256}
PIXELS: dict[Mode, int] = {"mask": 64 * 224 * 224, "branch": 32 * 224 * 224}
"""Images that run together at most, and their pixels. A graph keeps the memory of its maps, and conditional nodes do
not share theirs (pytorch PRs #191533 and #192098)."""
RUNS_BEFORE = 3
"""cuDNN and the allocator settle in the first runs, which may not happen inside a recording."""


class CudaGraphEngine:
    """A folded network, batch norm gone, maps and convolutions in ``dtype``, channels last.

    In mode "mask" every block is run and the decision chooses. In mode "branch" a block runs on those images of a
    batch that execute it, see ``OnDevice``. A batch is padded to the next power of two with images that skip
    every block; one that is large, or for which there is no memory, is split. Raises EngineError where the device
    cannot do that.
    """

    name = "cuda_graph"

    def __init__(
        self, folded: FoldedNetwork, device: str, mode: Mode = "mask", dtype: torch.dtype = torch.float16
    ) -> None:
        if mode == "branch" and device != "cpu" and folded.gates:
            require_conditional_nodes()
        self.device = device
        self.mode: Mode = mode
        self.dtype = dtype
        self.stream = None if device == "cpu" else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with self.on_stream():
            self.network = arrange(folded, device, dtype)
        self.recordings: dict[tuple[int, ...], Recording] = {}
        self.affordable = LARGEST[mode]

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """See ``Engine.run``."""
        check_batch(images, thresholds)
        limits = limits_of(torch.from_numpy(thresholds))
        with torch.inference_mode(), self.on_stream():
            answers = self.run_parts(torch.from_numpy(images), limits)
        classes = len(self.network.head_bias)
        answer = torch.cat(answers)
        scores, logits = answer[:, :classes], answer[:, classes:]
        if not self.network.gates:
            return plain_answer(scores.numpy(), len(self.network.blocks), self.mode)
        executed = logits > limits[:, None]
        return Routed(scores.numpy(), executed.numpy(), torch.sigmoid(logits).numpy(), self.mode)

    def run_parts(self, images: Tensor, limits: Tensor) -> list[Tensor]:
        """Return class logits and gate logits side by side, on the host, for one part of the batch after another."""
        step = min(self.affordable, largest_batch(self.mode, *images.shape[2:]))
        answers: list[Tensor] = []
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            size = padded(len(images[part]))
            try:
                answers.append(self.recording(images[part].shape).run(images[part], limits[part]))
                continue
            except RuntimeError as error:
                if size == 1 or not lacks_memory(error):
                    raise
            # Not before the error is gone: its traceback holds the memory of the recording that failed.
            self.affordable = size // 2
            return answers + self.run_parts(images[start:], limits[start:])
        return answers

    def recording(self, shape: tuple[int, ...]) -> "Recording":
        """Return the recording that has room for a batch of ``shape``, made where there is none yet."""
        shape = padded(shape[0]), *shape[1:]
        if shape not in self.recordings:
            self.recordings[shape] = Recording(self, shape)
        return self.recordings[shape]

    def on_stream(self) -> AbstractContextManager[object]:
        """Return a context in which the device's work goes to this engine's own stream."""
        if self.stream is None:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self.device))
        stack.enter_context(torch.cuda.stream(self.stream))
        return stack

    def close(self) -> None:
        """See ``Engine.close``."""
        self.recordings.clear()


class Recording:
    """The forward pass of one batch size, between two buffers on the device."""

    def __init__(self, engine: CudaGraphEngine, shape: tuple[int, ...]) -> None:
        self.network, self.dtype = engine.network, engine.dtype
        self.images = torch.zeros(shape, device=engine.device)
        self.limits = torch.full(shape[:1], torch.inf, device=engine.device)
        # A plain ResNet has nothing to branch on, and needs no conditional nodes.
        branches = engine.mode == "branch" and bool(self.network.gates)
        self.skipping = OnDevice(len(self.network.gates), shape[0], engine.device) if branches else None
        self.replay = self.forward if engine.stream is None else self.record(engine.stream)

    def forward(self) -> Tensor:
        """Return class logits and gate logits [N, classes + B-1], float32, of what the buffers hold."""
        images = self.images.to(self.dtype, memory_format=torch.channels_last)
        return torch.cat(forward(self.network, images, self.limits, self.skipping or mask), 1)

    def record(self, stream: torch.cuda.Stream) -> Callable[[], Tensor]:
        """Return a function that replays ``forward`` on ``stream``."""
        for executing in buckets(len(self.images)) * RUNS_BEFORE:
            # So that every branch has run: each block of each bucket's number of images, then of none.
            self.limits.fill_(torch.inf)
            self.limits[:executing] = -torch.inf
            self.forward()
        rehearsal, nodes = conditional_nodes() if self.skipping else (nullcontext(), nullcontext())
        with rehearsal:
            self.forward()
        graph = torch.cuda.CUDAGraph()
        # Another thread may serve another model meanwhile, and allocate.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"), nodes:
            answer = self.forward()

        def replay() -> Tensor:
            graph.replay()
            return answer

        return replay

    def run(self, images: Tensor, limits: Tensor) -> Tensor:
        """Fill the buffers, replay, and wait for the answer, the one wait there is. Images that only fill the batch up
        skip every block.
        """
        self.images[: len(images)].copy_(images)
        self.limits[: len(images)].copy_(limits)
        self.limits[len(images) :].fill_(torch.inf)
        return self.replay()[: len(images)].cpu()


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error is, or was raised while handling, a lack of memory: ending a broken recording raises another."""
    return error is not None and (isinstance(error, torch.OutOfMemoryError) or lacks_memory(error.__context__))


def padded(images: int) -> int:
    """Return the next power of two."""
    return 1 << (images - 1).bit_length()


def largest_batch(mode: Mode, height: int, width: int) -> int:
    """Return the largest power of two of images that may run together."""
    return int(min(LARGEST[mode], 1 << max(0, (PIXELS[mode] // (height * width)).bit_length() - 1)))


def conditional_nodes() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Return the context in which torch rehearses each ``torch.cond``, in a recording that it throws away, and the one
    in which a recording turns it into conditional nodes (pytorch PR #168912).
    """
    from torch._higher_order_ops import cudagraph_conditional_nodes as torchs

    return torchs.ControlFlowOpWarmupDispatchMode(), torchs.CUDAGraphCaptureControlFlowOpDispatchMode()


def require_conditional_nodes() -> None:
    """Raise EngineError where this torch cannot put conditions into a CUDA graph."""
    if tuple(map(int, (torch.version.cuda or "0.0").split(".")[:2])) < (12, 4):
        raise EngineError(f"conditional nodes need CUDA 12.4; this torch is built for {torch.version.cuda}")
    try:
        conditional_nodes()
    except (ImportError, AttributeError) as error:
        raise EngineError(f"torch {torch.__version__} cannot record torch.cond; 2.13 can") from error
