"""Write the layers of a registered gate (`models.own_gates`) as nodes of an ONNX graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from models.engines.folding import LayeredGate
from models.engines.protocol import EngineError

if TYPE_CHECKING:
    from models.engines.onnx.graph import GraphBuilder

FUNCTIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "Relu",
    nn.Sigmoid: "Sigmoid",
    nn.Tanh: "Tanh",
    nn.Softplus: "Softplus",
    nn.Hardswish: "HardSwish",
}
"""Layers without settings, and their operators. A setting that is not the default is not written."""


def layered_logit(builder: GraphBuilder, gate: LayeredGate, x: str) -> str:
    """Return the logit [N, 1] of a gate for the map ``x``.

    Raises EngineError for a gate that is not a sequence, or for a layer without an operator here.
    """
    if not isinstance(gate.layers, nn.Sequential):
        raise unknown(gate.layers)
    layers = list(gate.layers)
    if isinstance(layers[0], nn.AdaptiveAvgPool2d):
        # The average is the same in ONNX Runtime's blocked layout. Other layers need the standard one.
        x = write_layer(builder, layers.pop(0), x)
    elif builder.block_size > 1:
        x = builder.standard_layout(x, gate.channels)
    standard = dataclasses.replace(builder, block_size=1)
    for layer in layers:
        x = write_layer(standard, layer, x)
    return x


def write_layer(builder: GraphBuilder, layer: nn.Module, x: str) -> str:
    """Add the node of one layer and return its output."""
    write = next((write for kind, write in WRITERS.items() if type(layer) is kind), None)
    if write is None:
        raise unknown(layer)
    return write(builder, layer, x)


def write_convolution(builder: GraphBuilder, layer: nn.Module, x: str) -> str:
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise unknown(layer)
    inputs = [x, builder.weight(layer.weight.detach().numpy())]
    if layer.bias is not None:
        inputs.append(builder.weight(layer.bias.detach().numpy()))
    return builder.node(
        "Conv",
        *inputs,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=list(layer.padding) * 2,
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def write_linear(builder: GraphBuilder, layer: nn.Module, x: str) -> str:
    assert isinstance(layer, nn.Linear)
    inputs = [x, builder.weight(layer.weight.detach().numpy())]
    if layer.bias is not None:
        inputs.append(builder.weight(layer.bias.detach().numpy()))
    return builder.node("Gemm", *inputs, transB=1)


def write_max_pool(builder: GraphBuilder, layer: nn.Module, x: str) -> str:
    assert isinstance(layer, nn.MaxPool2d)
    if layer.dilation not in (1, (1, 1)) or layer.ceil_mode:
        raise unknown(layer)
    return builder.node(
        "MaxPool",
        x,
        kernel_shape=pair(layer.kernel_size),
        strides=pair(layer.stride),
        pads=pair(layer.padding) * 2,
    )


def write_average(builder: GraphBuilder, layer: nn.Module, x: str) -> str:
    assert isinstance(layer, nn.AdaptiveAvgPool2d)
    if layer.output_size not in (1, (1, 1)):
        raise unknown(layer)
    return builder.average(x)


def write_flatten(builder: GraphBuilder, layer: nn.Module, x: str) -> str:
    assert isinstance(layer, nn.Flatten)
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise unknown(layer)
    return builder.node("Flatten", x)


def write_function(builder: GraphBuilder, layer: nn.Module, x: str) -> str:
    if isinstance(layer, nn.Softplus) and (layer.beta, layer.threshold) != (1, 20):
        raise unknown(layer)
    return builder.node(FUNCTIONS[type(layer)], x)


def pair(setting: Any) -> list[int]:
    """Return a layer's setting for height and width."""
    return [setting] * 2 if isinstance(setting, int) else list(setting)


def unknown(layer: nn.Module) -> EngineError:
    return EngineError(f"the onnxruntime engine has no code for the layer {layer} of a gate; choose the engine torch")


WRITERS: dict[type[nn.Module], Callable[[GraphBuilder, nn.Module, str], str]] = {
    nn.Conv2d: write_convolution,
    nn.Linear: write_linear,
    nn.MaxPool2d: write_max_pool,
    nn.AdaptiveAvgPool2d: write_average,
    nn.Flatten: write_flatten,
    **dict.fromkeys(FUNCTIONS, write_function),
}
