"""A folded network as one self-contained ONNX graph, written node by node.

In mode "branch" every gated block is the ``then`` branch of an ``If`` node, and its weights are initialisers
*inside* that branch: only there does ONNX Runtime arrange them for the CPU. Such a graph takes one image. In
mode "mask" every block is computed for a batch of any size and ``Where`` chooses.

Inputs: ``images`` [N, 3, H, W] normalised float32 and ``thresholds`` [N] float32 in 0..1. Outputs: ``logits``
[N, classes] and, for a network with gates, ``probabilities`` [N, B-1] float32 and ``executed`` [N, B-1] bool.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.engines.folding import Convolution, FoldedBlock, FoldedNetwork, Gate, RecurrentGate
from models.macs import Mode

OPSET = 17
IR_VERSION = 8
BLOCKED = "com.microsoft.nchwc"
BLOCKED_VERSION = 1


@dataclass
class Body:
    """The nodes and weights of one graph: the whole, or one branch of an ``If``.

    ``block_size`` is the channel block of ONNX Runtime's CPU layout NCHWc, whose own operators are then
    written out so that maps stay blocked from one branch to the next; 1 writes standard ONNX.
    """

    prefix: str
    block_size: int = 1
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, kind: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node of one output; return the output's name."""
        output = f"{self.prefix}{name or f'{kind.lower()}_{len(self.nodes)}'}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def weight(self, value: object, name: str = "") -> str:
        """Add an initialiser; return its name."""
        title = f"{self.prefix}{name or f'weight_{len(self.weights)}'}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), title))
        return title

    def convolve(self, x: str, convolution: Convolution, relu: bool, add: str = "") -> str:
        """Convolve ``x``, add the map ``add`` if named, and apply a ReLU if asked."""
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
        """Return the average over the map, [N, C, 1, 1]: the same numbers in either layout."""
        return self.node("GlobalAveragePool", x, domain=BLOCKED if self.block_size > 1 else "")

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
    """Return [O, I, K, K] as the blocked layout has it: o-blocks, i-blocks, K, K, i in block, o in block.

    Fewer input channels than a block (the stem's three) are read unblocked: o-blocks, I, K, K, o in block.
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
class Routes:
    """What goes from gate to gate: logits (without the readout's bias), the recurrent state, the limit."""

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
    """Return the network as an ONNX model for images of ``height`` x ``width`` pixels; names leave them open.

    With ``block_size`` 1 it is standard ONNX; with more it runs only in an ONNX Runtime whose CPU layout has
    that block size, and is not for keeping.
    """
    body = Body("", block_size)
    x = body.convolve("images", folded.stem, relu=True)
    if folded.stem_pools:
        x = body.max_pool(x, 3, 1)
    x = body.execute(folded.blocks[0], x, body.shortcut(folded.blocks[0], x))
    routes = Routes(limit_of(body, folded)) if folded.gates else None
    for index, block in enumerate(folded.blocks[1:]):
        if routes is None:
            x = body.execute(block, x, body.shortcut(block, x))
            continue
        decision = decide(body, folded.gates[index], x, routes, index)
        x = mask(body, block, x, decision) if mode == "mask" else branch(body, block, x, decision, index + 1)
    average = body.node("Flatten", body.average(x))
    head = body.weight(folded.head_weight.numpy()), body.weight(folded.head_bias.numpy())
    body.node("Gemm", average, *head, name="logits", transB=1)
    batch: str | int = 1 if mode == "branch" and folded.gates else "N"
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(folded.head_bias)])]
    if routes is not None:
        report(body, folded, routes)
        decisions = [batch, len(folded.gates)]
        outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, decisions))
        outputs.append(helper.make_tensor_value_info("executed", TensorProto.BOOL, decisions))
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])]
    if routes is not None:
        inputs.append(helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, [batch]))
    graph = helper.make_graph(body.nodes, "skipnet", inputs, outputs, body.weights)
    opsets = [helper.make_opsetid("", OPSET)]
    if block_size > 1:
        opsets.append(helper.make_opsetid(BLOCKED, BLOCKED_VERSION))
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="skipnet")


def limit_of(body: Body, folded: FoldedNetwork) -> str:
    """Return the thresholds as logits [N, 1]: 0 becomes -inf, which every logit exceeds, and 1 becomes +inf.

    The RNN gate's readout bias is the same at every gate and goes to this side of the comparison.
    """
    one = body.weight(np.float32(1))
    odds = body.node("Div", "thresholds", body.node("Sub", one, "thresholds"))
    limit = body.node("Unsqueeze", body.node("Log", odds), body.weight(np.array([1], np.int64)))
    first = folded.gates[0]
    if isinstance(first, RecurrentGate):
        limit = body.node("Sub", limit, body.weight(np.float32(first.readout_bias)))
    return limit


def decide(body: Body, gate: Gate, x: str, routes: Routes, index: int) -> str:
    """Return the decision [N, 1] on block ``index`` + 1 from block ``index``'s output."""
    if isinstance(gate, RecurrentGate):
        logit = recur(body, gate, x, routes, index)
    else:
        if gate.pools:
            x = body.max_pool(x, 2, 0)
        for convolution in gate.convolutions:
            x = body.convolve(x, convolution, relu=True)
        average = body.node("Flatten", body.average(x))
        weight = body.weight(gate.weight.numpy()[:, None])
        logit = body.node("Gemm", average, weight, body.weight(np.array([gate.bias], np.float32)))
    routes.logits.append(logit)
    return body.node("Greater", logit, routes.limit, name=f"decision_{index}")


def recur(body: Body, gate: RecurrentGate, x: str, routes: Routes, index: int) -> str:
    """Return an RNN gate's logit [1, N, 1], its readout's bias left out, and carry the state on."""
    shape = body.weight(np.array([1, -1, gate.weight.shape[1]], np.int64))
    average = body.node("Reshape", body.average(x), shape)
    width = len(gate.readout)
    bias = np.concatenate([onnx_order(gate.bias.numpy()), np.zeros(4 * width, np.float32)])
    inputs = [
        average,
        body.weight(onnx_order(gate.weight.numpy())[None]),
        shared_weight(body, "recurrent", onnx_order(gate.recurrent.numpy())[None]),
        body.weight(bias[None]),
    ]
    if routes.hidden:
        inputs += ["", routes.hidden, routes.cell]
    routes.hidden, routes.cell = f"hidden_{index}", f"cell_{index}"
    body.nodes.append(
        helper.make_node("LSTM", inputs, ["", routes.hidden, routes.cell], name=f"lstm_{index}", hidden_size=width)
    )
    return body.node("MatMul", routes.hidden, shared_weight(body, "readout", gate.readout.numpy()[:, None]))


def shared_weight(body: Body, name: str, value: NDArray[np.float32]) -> str:
    """Add an initialiser that several nodes read, once."""
    if all(weight.name != name for weight in body.weights):
        body.weight(value, name)
    return name


def onnx_order(parts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reorder an LSTM's parts along axis 0 from torch's input, forget, cell, output to ONNX's i, o, f, c."""
    i, f, c, o = np.split(parts, 4)
    return np.concatenate([i, o, f, c])


def mask(body: Body, block: FoldedBlock, x: str, decision: str) -> str:
    """Return a block's output, computed for every image and chosen by its decision."""
    skip = body.shortcut(block, x)
    shape = body.weight(np.array([-1, 1, 1, 1], np.int64))
    return body.node("Where", body.node("Reshape", decision, shape), body.execute(block, x, skip), skip)


def branch(body: Body, block: FoldedBlock, x: str, decision: str, number: int) -> str:
    """Return block ``number``'s output, from an ``If`` that runs it or passes its shortcut on."""
    skip = body.shortcut(block, x)
    then = Body(f"block_{number}/", body.block_size)
    executed = then.execute(block, x, skip)
    otherwise = Body(f"skip_{number}/", body.block_size)
    skipped = otherwise.node("Identity", skip)
    return body.node(
        "If",
        decision,
        name=f"block_{number}",
        then_branch=finish(then, executed),
        else_branch=finish(otherwise, skipped),
    )


def finish(body: Body, output: str) -> onnx.GraphProto:
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(body.nodes, body.prefix.rstrip("/"), [], outputs, body.weights)


def report(body: Body, folded: FoldedNetwork, routes: Routes) -> None:
    """Write the outputs ``probabilities`` and ``executed``: the gates' comparison, once more for all."""
    logits = body.node("Concat", *routes.logits, axis=-1)
    first = folded.gates[0]
    logits = body.node("Reshape", logits, body.weight(np.array([-1, len(folded.gates)], np.int64)))
    body.node("Greater", logits, routes.limit, name="executed")
    if isinstance(first, RecurrentGate):
        logits = body.node("Add", logits, body.weight(np.float32(first.readout_bias)))
    body.node("Sigmoid", logits, name="probabilities")
