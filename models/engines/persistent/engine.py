"""The persistent engine: it runs a CIFAR network in one launch of one CUDA kernel (persistent.cu)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.engines.folding import ConvolutionalGate, FoldedNetwork, LayeredGate
from models.engines.persistent.build import SHARED_BYTES, THREADS, compile_kernel, kernel_name
from models.engines.persistent.layout import filter_streams, gate_stream
from models.engines.protocol import EngineError, Routed, check_batch, plain_output
from models.gates import Limits

if TYPE_CHECKING:
    from cuda.core import Device, Kernel

SIDE = 32
"""The side of an image in pixels. The kernel keeps complete feature maps in shared memory, which holds this size."""
WIDTHS = (16, 32, 64)


def suits(folded: FoldedNetwork, height: int = SIDE, width: int = SIDE) -> bool:
    """Return whether the kernel can run a network.

    It needs CIFAR's stem and widths, basic blocks, the paper's gates, and images of 32 x 32 pixels.
    """
    widths = [len(block.residual[-1].bias) for block in folded.blocks]
    shaped = not folded.stem_pools and sorted(set(widths)) == list(WIDTHS) and widths == sorted(widths)
    basic = all(len(block.residual) == 2 and block.residual[0].weight.shape[-1] == 3 for block in folded.blocks)
    known = not any(isinstance(gate, LayeredGate) for gate in folded.gates)
    return shaped and basic and known and (height, width) == (SIDE, SIDE)


def gate_kind(folded: FoldedNetwork) -> str | None:
    """Return a folded network's kind of gate, by its name in ``SkipNet.gate_kind``."""
    if not folded.gates:
        return None
    gate = folded.gates[0]
    if not isinstance(gate, ConvolutionalGate):
        return "rnn"
    return "feedforward_1" if gate.pools else "feedforward_2"


@dataclass(frozen=True)
class Batch:
    """One batch's inputs and outputs in pinned host memory, which the kernel accesses directly.

    An image is read once, when it is needed. So there is no separate copy to start or to wait for.
    """

    images: Tensor
    limits: Tensor
    logits: Tensor
    probability: Tensor
    executed: Tensor

    @classmethod
    def of(cls, size: int, classes: int, decisions: int) -> Batch:
        def pinned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, pin_memory=True)

        return cls(
            images=pinned(size, 3, SIDE, SIDE),
            limits=pinned(size),
            logits=pinned(size, classes),
            probability=pinned(size, decisions),
            executed=pinned(size, decisions, dtype=torch.bool),
        )


class PersistentEngine:
    """Run a folded network that ``suits`` the kernel on one GPU, in half precision with fp32 sums.

    An image's output does not depend on its batch. Raises EngineError if the network, the library, the GPU or the
    compiler does not allow it.
    """

    name = "persistent"

    def __init__(self, folded: FoldedNetwork, device: str) -> None:
        if not suits(folded):
            raise EngineError("the persistent engine runs CIFAR-shaped networks only; choose the engine torch")
        if not torch.cuda.is_available():
            raise EngineError("the persistent engine needs a GPU and a CUDA build of torch")
        self.device = device
        self.gated = bool(folded.gates)
        self.classes, self.decisions = len(folded.head_bias), len(folded.blocks) - 1
        widths = [len(block.residual[-1].bias) for block in folded.blocks]
        self.shape = tuple(np.int32(widths.count(width)) for width in WIDTHS)
        self.torch_device = torch.device(device)
        self.gpu, self.kernel = load(gate_kind(folded), self.torch_device)
        resident = self.kernel.occupancy.max_active_blocks_per_multiprocessor(THREADS, SHARED_BYTES)
        self.thread_blocks = resident * self.gpu.properties.multiprocessor_count
        self.stream = self.gpu.create_stream()
        self.weights = [
            torch.from_numpy(words).to(self.torch_device) for words in (*filter_streams(folded), gate_stream(folded))
        ]
        self.queue = torch.zeros(2, dtype=torch.int32, device=self.torch_device)
        torch.cuda.synchronize(self.torch_device)
        self.batch = Batch.of(1, self.classes, self.decisions)

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does.

        Raises ValueError for images of another shape.
        """
        check_batch(images, thresholds)
        count = len(images)
        if images.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(f"images have the shape {images.shape}, not (N, 3, {SIDE}, {SIDE})")
        if count > len(self.batch.limits):
            self.batch = Batch.of(1 << (count - 1).bit_length(), self.classes, self.decisions)
        batch = self.batch
        batch.images[:count] = torch.from_numpy(images)
        batch.limits[:count] = Limits.of(thresholds).probabilities
        self.launch(batch, count)
        logits = batch.logits[:count].numpy().copy()
        if not self.gated:
            return plain_output(logits, self.decisions + 1, "branch")
        probability, executed = batch.probability[:count].numpy(), batch.executed[:count].numpy()
        return Routed(logits, executed.copy(), probability.copy(), "branch")

    def launch(self, batch: Batch, count: int) -> None:
        """Run the kernel on the first ``count`` images and wait for the result."""
        from cuda.core import LaunchConfig, launch

        self.gpu.set_current()
        grid = min(count, self.thread_blocks)
        config = LaunchConfig(grid=grid, block=THREADS, shmem_size=SHARED_BYTES)
        inputs = batch.images, batch.limits, *self.weights
        outputs = batch.logits, batch.probability, batch.executed, self.queue
        pointers = (tensor.data_ptr() for tensor in inputs + outputs)
        launch(self.stream, config, self.kernel, *pointers, np.int32(count), *self.shape, np.int32(self.classes))
        self.stream.sync()

    def close(self) -> None:
        """Release the GPU's and the pinned memory."""
        self.weights, self.queue = [], torch.empty(0)
        self.batch = Batch(*[torch.empty(0)] * 5)


def load(gates: str | None, device: torch.device) -> tuple[Device, Kernel]:
    """Compile the kernel for a GPU and load it.

    Raises EngineError.
    """
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise EngineError(
            f"the persistent engine needs a GPU of compute capability 8.0 or more, not {major}.{minor}; "
            "choose the engine torch"
        )
    code, _ = compile_kernel(gates, f"sm_{major}{minor}")
    from cuda.core import Device

    try:
        gpu = Device(device.index or 0)
        gpu.set_current()
        kernel = code.get_kernel(kernel_name(gates))
        allow_shared_memory(kernel, gpu)
    # The library has no common exception type for the driver's errors.
    except Exception as error:
        raise EngineError(f"the driver cannot load the persistent engine: {error}") from error
    return gpu, kernel


def allow_shared_memory(kernel: Kernel, gpu: Device) -> None:
    """Allow the kernel more than 48 KB of shared memory per thread block.

    Raises EngineError.
    """
    # Not every version of cuda-core can set a kernel's attributes.
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    handle = driver.CUkernel(int(kernel.handle))
    (status,) = driver.cuKernelSetAttribute(attribute, SHARED_BYTES, handle, gpu.device_id)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise EngineError(f"the driver refuses {SHARED_BYTES} bytes of shared memory: {status.name}")
