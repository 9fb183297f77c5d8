"""The onnxruntime engine: each session run has one image, and a batch is distributed over the CPU's cores."""

import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.engines.folding import FoldedNetwork
from models.engines.onnx.graph import BLOCKED, IR_VERSION, OPSET, build_graph
from models.engines.protocol import EngineError, Routed, check_batch, plain_output
from models.macs import Mode

ERRORS_ONLY = 3

log = logging.getLogger(__name__)


class OnnxRuntimeEngine:
    """Run a folded network in ONNX Runtime.

    In mode "branch" every image runs alone through a graph of ``If`` nodes, with one thread per image, so that no image
    waits for the blocks of another. In mode "mask" a batch runs in one session run.
    """

    name = "onnxruntime"

    def __init__(self, folded: FoldedNetwork, device: str = "cpu", mode: Mode = "branch", threads: int = 1) -> None:
        """Build the graph for this machine.

        Raises EngineError if ONNX Runtime cannot use ``device``.
        """
        self.device = device
        self.mode: Mode = mode
        self.blocks = len(folded.blocks)
        self.classes = len(folded.head_bias)
        self.gated = bool(folded.gates)
        branching = mode == "branch"
        self.session = open_session(folded, device, mode, threads=1 if branching else threads)
        # CUDA uses one stream, so several threads would only wait for each other.
        workers = threads if branching and device == "cpu" else 1
        self.workers = [Worker(self.session) for _ in range(workers)]
        self.pool = ThreadPoolExecutor(workers, "onnxruntime") if workers > 1 else None

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does."""
        check_batch(images, thresholds)
        count, decisions = len(images), self.blocks - 1
        outputs: dict[str, NDArray[np.generic]] = {"logits": np.empty((count, self.classes), np.float32)}
        inputs = {"images": images}
        if self.gated:
            inputs["thresholds"] = thresholds
            outputs["probabilities"] = np.empty((count, decisions), np.float32)
            outputs["executed"] = np.empty((count, decisions), np.bool_)
        if self.mode == "mask":
            self.workers[0].run(inputs, outputs, slice(None))
        else:
            self.run_images(inputs, outputs, count)
        logits = outputs["logits"].astype(np.float32, copy=False)
        if not self.gated:
            return plain_output(logits, self.blocks, self.mode)
        return Routed(
            logits,
            outputs["executed"].astype(np.bool_, copy=False),
            outputs["probabilities"].astype(np.float32, copy=False),
            self.mode,
        )

    def run_images(
        self, inputs: dict[str, NDArray[np.float32]], outputs: dict[str, NDArray[np.generic]], count: int
    ) -> None:
        """Run the images one by one. Each worker takes the next image when it has finished one."""
        queue = iter(range(count))

        def work(worker: Worker) -> None:
            for index in queue:
                worker.run(inputs, outputs, slice(index, index + 1))

        if self.pool is None or count == 1:
            work(self.workers[0])
        else:
            tasks = [self.pool.submit(work, worker) for worker in self.workers[:count]]
            # If one worker fails, the others still use buffers that the next run would overwrite.
            wait(tasks)
            for task in tasks:
                task.result()

    def close(self) -> None:
        """Stop the threads."""
        if self.pool is not None:
            self.pool.shutdown()


class Worker:
    """One thread's input and output buffers, bound to the session. Images of another shape get new buffers."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.shape: tuple[int, ...] = ()

    def run(self, inputs: dict[str, NDArray[np.float32]], outputs: dict[str, NDArray[np.generic]], part: slice) -> None:
        """Run a part of ``inputs`` and write the results to the same part of ``outputs``."""
        taken = {name: value[part] for name, value in inputs.items()}
        if taken["images"].shape != self.shape:
            self.bind(taken, {name: value[part] for name, value in outputs.items()})
        for name, value in taken.items():
            self.buffers[name][...] = value
        self.session.run_with_iobinding(self.binding)
        for name, output in outputs.items():
            output[part] = self.buffers[name]

    def bind(self, inputs: dict[str, NDArray[np.float32]], outputs: dict[str, NDArray[np.generic]]) -> None:
        self.shape = inputs["images"].shape
        self.binding = self.session.io_binding()
        self.buffers: dict[str, NDArray[np.generic]] = {}
        for name, value in (*inputs.items(), *outputs.items()):
            self.buffers[name] = np.empty(value.shape, value.dtype)
            bound = onnxruntime.OrtValue.ortvalue_from_numpy(self.buffers[name])
            attach = self.binding.bind_ortvalue_input if name in inputs else self.binding.bind_ortvalue_output
            attach(name, bound)


def open_session(folded: FoldedNetwork, device: str, mode: Mode, threads: int) -> onnxruntime.InferenceSession:
    """Return a session for the network, in ONNX Runtime's blocked CPU layout if the machine has one."""
    if device != "cpu":
        return create_session(build_graph(folded, mode=mode), device, threads)
    size = blocked_layout()
    if size > 1:
        try:
            return create_session(build_graph(folded, mode=mode, block_size=size), device, threads)
        except Exception:  # ONNX Runtime's exceptions have no common base class.
            log.warning("ONNX Runtime rejects its blocked operators, falling back to standard ONNX", exc_info=True)
    return create_session(build_graph(folded, mode=mode), device, threads)


def create_session(model: onnx.ModelProto, device: str, threads: int) -> onnxruntime.InferenceSession:
    options = session_options(threads)
    if device == "cpu":
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    index = int(device.partition(":")[2] or 0)
    providers = [("CUDAExecutionProvider", {"device_id": index, "use_tf32": "0"}), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise EngineError(
            f"ONNX Runtime cannot use {device}: its CUDA provider did not load. Install onnxruntime-gpu with "
            "the CUDA and cuDNN libraries of its version, or choose the engine torch, or the device cpu."
        )
    return session


def session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # Spinning threads take CPU time from decoding and from the other sessions of the process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def blocked_layout() -> int:
    """Return the channel block of ONNX Runtime's CPU layout on this machine (16 with AVX-512), or 1 if it has none.

    ONNX Runtime has no function that returns it. So this optimises a convolution to one channel and reads the padding
    of its weight.
    """
    weight = numpy_helper.from_array(np.ones((1, 64, 1, 1), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(1)
        options.optimized_model_filepath = str(Path(folder) / "probe.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath)
    arranged = {name for node in optimised.graph.node if node.domain == BLOCKED for name in node.input}
    return next((weight.dims[0] for weight in optimised.graph.initializer if weight.name in arranged), 1)
