"""Write a folded network as one ONNX graph, node by node.

In mode "branch" every gated block is the ``then`` branch of an ``If`` node. Its weights are initialisers *inside* that
branch, because ONNX Runtime arranges only those for the CPU. Such a graph takes one image. In mode "mask" every block
is computed for a batch of any size, and ``Where`` selects the output.

Inputs: ``images`` [N, 3, H, W], normalised float32, and for a network with gates ``thresholds`` [N], float32.
Outputs: ``logits`` [N, classes] and, for a network with gates, ``probabilities`` [N, B-1] float32 and ``executed``
[N, B-1] bool.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.engines.folding import Convolution, FoldedBlock, FoldedNetwork, Gate, LayeredGate, RecurrentGate
from models.engines.onnx.layers import layered_logit
from models.macs import Mode

OPSET = 17
IR_VERSION = 8
BLOCKED = "com.microsoft.nchwc"
BLOCKED_VERSION = 1


@dataclass
class GraphBuilder:
    """Collects the nodes and weights of one graph: the main graph, or one branch of an ``If``.

    With ``block_size`` 1 it writes standard ONNX. A larger ``block_size`` is the channel block of ONNX Runtime's CPU
    layout NCHWc: it then writes the operators of that layout, so that maps stay blocked from one branch to the next.
    """

    prefix: str
    block_size: int = 1
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, kind: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        output = f"{self.prefix}{name or f'{kind.lower()}_{len(self.nodes)}'}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def weight(self, value: object, name: str = "") -> str:
        """Add an initialiser and return its name."""
        title = f"{self.prefix}{name or f'weight_{len(self.weights)}'}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), title))
        return title

    def convolve(self, x: str, convolution: Convolution, relu: bool, add: str = "") -> str:
        """Convolve ``x``. Then add the map ``add`` if it is named, and apply a ReLU if ``relu``."""
        shape: dict[str, Any] = {
            "kernel_shape": list(convolution.weight.shape[2:]),
            "strides": [convolution.stride] * 2,
            "pads": [convolution.padding] * 4,
        }
        weight, bias = convolution.weight.numpy(), convolution.bias.numpy()
        if self.block_size > 1:
            inputs = [x, self.weight(block_weight(weight, self.block_size)), self.weight(bias)]
            if relu:
                shape["activation"] = "Relu"
            return self.node("Conv", *inputs, *([add] if add else []), domain=BLOCKED, **shape)
        y = self.node("Conv", x, self.weight(weight), self.weight(bias), **shape)
        if add:
            y = self.node("Add", y, add)
        return self.node("Relu", y) if relu else y

    def max_pool(self, x: str, kernel: int, padding: int) -> str:
        domain = BLOCKED if self.block_size > 1 else ""
        shape: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": [padding] * 4}
        return self.node("MaxPool", x, domain=domain, **shape)

    def average(self, x: str) -> str:
        """Return the average over the map, [N, C, 1, 1]. It is the same in both layouts."""
        return self.node("GlobalAveragePool", x, domain=BLOCKED if self.block_size > 1 else "")

    def standard_layout(self, x: str, channels: int) -> str:
        """Return a map [N, C, H, W] of the blocked layout in the standard one."""
        return self.node("ReorderOutput", x, domain=BLOCKED, channels=channels)

    def execute(self, block: FoldedBlock, x: str, skip: str) -> str:
        """Return relu(residual(x) + skip)."""
        *first, last = block.residual
        y = x
        for convolution in first:
            y = self.convolve(y, convolution, relu=True)
        return self.convolve(y, last, relu=True, add=skip)

    def shortcut(self, block: FoldedBlock, x: str) -> str:
        return x if block.projection is None else self.convolve(x, block.projection, relu=False)


def block_weight(weight: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return weights [O, I, K, K] in the blocked order of ONNX Runtime.

        The axes are o-blocks, i-blocks, K, K, i in block, o in block.

    If there are fewer input channels than a block has (the stem's three), the order is o-blocks, I, K, K, o in block.
    """
    outputs, inputs, height, width = weight.shape
    if outputs % size:
        raise ValueError(f"{outputs} channels do not fill blocks of {size}")
    if inputs < size:
        tiles = weight.reshape(outputs // size, size, inputs, height, width).transpose(0, 2, 3, 4, 1)
    else:
        tiles = weight.reshape(outputs // size, size, inputs // size, size, height, width)
        tiles = tiles.transpose(0, 2, 4, 5, 3, 1)
    return np.ascontiguousarray(tiles).reshape(weight.shape)


@dataclass
class GateState:
    """The names of the values that pass from gate to gate."""

    limit: str
    logits: list[str] = field(default_factory=list)
    hidden: str = ""
    cell: str = ""


def build_graph(
    folded: FoldedNetwork,
    height: int | str = "height",
    width: int | str = "width",
    mode: Mode = "branch",
    block_size: int = 1,
) -> onnx.ModelProto:
    """Return the network as an ONNX model for images of ``height`` x ``width`` pixels, or of any size by default.

    With ``block_size`` 1 it is standard ONNX. With a larger one it runs only in an ONNX Runtime whose CPU layout has
    that block size, so it must not be saved.
    """
    builder = GraphBuilder("", block_size)
    x = builder.convolve("images", folded.stem, relu=True)
    if folded.stem_pools:
        x = builder.max_pool(x, 3, 1)
    x = builder.execute(folded.blocks[0], x, builder.shortcut(folded.blocks[0], x))
    state = GateState(add_limit(builder, folded)) if folded.gates else None
    for index, block in enumerate(folded.blocks[1:]):
        if state is None:
            x = builder.execute(block, x, builder.shortcut(block, x))
            continue
        decision = decide(builder, folded.gates[index], x, state, index)
        x = mask(builder, block, x, decision) if mode == "mask" else branch(builder, block, x, decision, index + 1)
    average = builder.node("Flatten", builder.average(x))
    head = builder.weight(folded.head_weight.numpy()), builder.weight(folded.head_bias.numpy())
    builder.node("Gemm", average, *head, name="logits", transB=1)
    batch: str | int = 1 if mode == "branch" and folded.gates else "N"
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(folded.head_bias)])]
    if state is not None:
        add_routing_outputs(builder, folded, state)
        decisions = [batch, len(folded.gates)]
        outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, decisions))
        outputs.append(helper.make_tensor_value_info("executed", TensorProto.BOOL, decisions))
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])]
    if state is not None:
        inputs.append(helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, [batch]))
    graph = helper.make_graph(builder.nodes, "skipnet", inputs, outputs, builder.weights)
    opsets = [helper.make_opsetid("", OPSET)]
    if block_size > 1:
        opsets.append(helper.make_opsetid(BLOCKED, BLOCKED_VERSION))
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="skipnet")


def set_default_threshold(model: onnx.ModelProto, threshold: float) -> None:
    """Make the input ``thresholds`` of a model with gates optional, with this default.

    In ONNX, an initialiser with the name of an input is the input's default. The default has one number: in mode
    "mask" it is broadcast to all images.
    """
    model.graph.initializer.append(numpy_helper.from_array(np.array([threshold], np.float32), "thresholds"))


def add_limit(builder: GraphBuilder, folded: FoldedNetwork) -> str:
    """Return the logits [N, 1] that the gates must exceed: `models.gates.Limits.logits` as ONNX nodes.

    The RNN gate's readout bias is the same at every gate, so it is moved to this side of the comparison.
    """
    zero, one = builder.weight(np.float32(0)), builder.weight(np.float32(1))
    thresholds = builder.node("Clip", "thresholds", zero, one)
    odds = builder.node("Div", thresholds, builder.node("Sub", one, thresholds))
    limit = builder.node("Unsqueeze", builder.node("Log", odds), builder.weight(np.array([1], np.int64)))
    first = folded.gates[0]
    if isinstance(first, RecurrentGate):
        limit = builder.node("Sub", limit, builder.weight(np.float32(first.readout_bias)))
    return limit


def decide(builder: GraphBuilder, gate: Gate, x: str, state: GateState, index: int) -> str:
    """Return the decision [N, 1] on block ``index`` + 1 from the output of block ``index``."""
    if isinstance(gate, RecurrentGate):
        logit = recurrent_logit(builder, gate, x, state, index)
    elif isinstance(gate, LayeredGate):
        logit = layered_logit(builder, gate, x)
    else:
        if gate.pools:
            x = builder.max_pool(x, 2, 0)
        for convolution in gate.convolutions:
            x = builder.convolve(x, convolution, relu=True)
        average = builder.node("Flatten", builder.average(x))
        weight = builder.weight(gate.weight.numpy()[:, None])
        logit = builder.node("Gemm", average, weight, builder.weight(np.array([gate.bias], np.float32)))
    state.logits.append(logit)
    return builder.node("Greater", logit, state.limit, name=f"decision_{index}")


def recurrent_logit(builder: GraphBuilder, gate: RecurrentGate, x: str, state: GateState, index: int) -> str:
    """Return an RNN gate's logit [1, N, 1] without its readout's bias, and update the LSTM's state."""
    shape = builder.weight(np.array([1, -1, gate.weight.shape[1]], np.int64))
    average = builder.node("Reshape", builder.average(x), shape)
    width = len(gate.readout)
    bias = np.concatenate([onnx_order(gate.bias.numpy()), np.zeros(4 * width, np.float32)])
    inputs = [
        average,
        builder.weight(onnx_order(gate.weight.numpy())[None]),
        shared_weight(builder, "recurrent", onnx_order(gate.recurrent.numpy())[None]),
        builder.weight(bias[None]),
    ]
    if state.hidden:
        inputs += ["", state.hidden, state.cell]
    state.hidden, state.cell = f"hidden_{index}", f"cell_{index}"
    builder.nodes.append(
        helper.make_node("LSTM", inputs, ["", state.hidden, state.cell], name=f"lstm_{index}", hidden_size=width)
    )
    return builder.node("MatMul", state.hidden, shared_weight(builder, "readout", gate.readout.numpy()[:, None]))


def shared_weight(builder: GraphBuilder, name: str, value: NDArray[np.float32]) -> str:
    """Add an initialiser that several nodes read, if it does not exist yet."""
    if all(weight.name != name for weight in builder.weights):
        builder.weight(value, name)
    return name


def onnx_order(parts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reorder an LSTM's parts along axis 0 from torch's order (i, f, c, o) to ONNX's (i, o, f, c)."""
    i, f, c, o = np.split(parts, 4)
    return np.concatenate([i, o, f, c])


def mask(builder: GraphBuilder, block: FoldedBlock, x: str, decision: str) -> str:
    """Return a block's output, computed for every image and selected by its decision."""
    skip = builder.shortcut(block, x)
    shape = builder.weight(np.array([-1, 1, 1, 1], np.int64))
    return builder.node("Where", builder.node("Reshape", decision, shape), builder.execute(block, x, skip), skip)


def branch(builder: GraphBuilder, block: FoldedBlock, x: str, decision: str, number: int) -> str:
    """Return the output of block ``number`` from an ``If`` that runs the block or returns its shortcut."""
    skip = builder.shortcut(block, x)
    if builder.block_size == 1:
        # OpenVINO accepts no condition with more than one axis. Graphs in the blocked layout run only in ONNX Runtime.
        decision = builder.node("Reshape", decision, builder.weight(np.array([1], np.int64)))
    then = GraphBuilder(f"block_{number}/", builder.block_size)
    executed = then.execute(block, x, skip)
    skip_branch = GraphBuilder(f"skip_{number}/", builder.block_size)
    skipped = skip_branch.node("Identity", skip)
    return builder.node(
        "If",
        decision,
        name=f"block_{number}",
        then_branch=finish(then, executed),
        else_branch=finish(skip_branch, skipped),
    )


def finish(builder: GraphBuilder, output: str) -> onnx.GraphProto:
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(builder.nodes, builder.prefix.rstrip("/"), [], outputs, builder.weights)


def add_routing_outputs(builder: GraphBuilder, folded: FoldedNetwork, state: GateState) -> None:
    """Add the outputs ``probabilities`` and ``executed``, by comparing all gates' logits again."""
    logits = builder.node("Concat", *state.logits, axis=-1)
    first = folded.gates[0]
    logits = builder.node("Reshape", logits, builder.weight(np.array([-1, len(folded.gates)], np.int64)))
    builder.node("Greater", logits, state.limit, name="executed")
    if isinstance(first, RecurrentGate):
        logits = builder.node("Add", logits, builder.weight(np.float32(first.readout_bias)))
    builder.node("Sigmoid", logits, name="probabilities")
