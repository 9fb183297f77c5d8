"""Gates of users: the interface of a kind of gate, its registration, and the files that register kinds.

The environment variable SKIPNET_GATES names Python files, separated as in PATH. Each registers kinds with `register`:
see docs/own-gate.md.
"""

import copy
import importlib.util
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.errors import UserError

VARIABLE = "SKIPNET_GATES"
CERTAIN = 20.0
"""A logit that exceeds every used threshold."""
TAKEN = ("rnn", "feedforward_1", "feedforward_2", "resnet", "feedforward")
KIND = re.compile(r"[a-z][a-z0-9]*")


class OwnGate(nn.Module):
    """A gate for one block that consists of ``layers``. It has no state between gates.

    A subclass takes the number of channels of the feature map, and passes layers that map it [N, C, H, W] to one logit
    [N, 1]. The last layer is linear. Parameters, forward, MACs, folding, initial bias and forcing follow from the
    layers. A gate that is not a sequence of layers overrides the methods below.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        if not isinstance(layers[-1], nn.Linear) or layers[-1].out_features != 1 or layers[-1].bias is None:
            raise UserError(f"the last layer of the gate {type(self).__name__} must be nn.Linear(…, 1) with a bias")

    @property
    def head(self) -> nn.Linear:
        """The layer whose output is the logit. Training sets its bias and scales it."""
        head = self.layers[-1]
        assert isinstance(head, nn.Linear)
        return head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit [N] of a feature map [N, C, H, W]."""
        logit: Tensor = self.layers(x)
        return logit.squeeze(1)

    def other_macs(self, x: Tensor) -> int:
        """Return the MACs for a map ``x`` [1, C, H, W] of parts that are neither convolutions nor linear layers."""
        del x
        return 0

    def folded(self) -> nn.Module:
        """Return the module for the fast engines, which maps [N, C, H, W] to [N, 1].

        By default these are the layers, with each batch norm folded into the convolution before it. The onnxruntime
        engine needs an ``nn.Sequential`` of layers that it knows (`models.engines.onnx.layers`).
        """
        layers: list[nn.Module] = []
        for layer in copy.deepcopy(self.layers).eval().requires_grad_(False):
            if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
                layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
            else:
                layers.append(layer)
        return nn.Sequential(*layers)

    @torch.no_grad()
    def force(self, execute: bool) -> None:
        """Make the gate compute as usual and always return the decision ``execute``, for benchmarks."""
        self.head.weight.zero_()
        self.head.bias.fill_(CERTAIN if execute else -CERTAIN)


KINDS: dict[str, Callable[[int], OwnGate]] = {}
"""The registered kinds by name. Each makes the gate for a number of channels."""
Kind = TypeVar("Kind", bound=Callable[[int], OwnGate])


def register(kind: str) -> Callable[[Kind], Kind]:
    """Return a decorator that registers a gate class. Its architectures are ``<data>_<kind>_gate_<depth>``.

    Raises UserError for a name that is in use, or that has other characters than lower-case letters and digits.
    """
    if not KIND.fullmatch(kind) or kind in TAKEN or kind in KINDS:
        raise UserError(f"{kind!r} cannot name a kind of gate: choose unused lower-case letters and digits")

    def add(gate: Kind) -> Kind:
        KINDS[kind] = gate
        return gate

    return add


@cache
def load_files(paths: str) -> None:
    """Import the Python files in ``paths``, once.

    Raises UserError if one cannot be imported.
    """
    for path in filter(None, paths.split(os.pathsep)):
        known = set(KINDS)
        try:
            spec = importlib.util.spec_from_file_location(f"skipnet_gates_{Path(path).stem}", path)
            if spec is None or spec.loader is None:
                raise ImportError("it is not a Python file")
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except Exception as error:  # The user's file may raise any exception.
            for kind in set(KINDS) - known:
                del KINDS[kind]
            raise UserError(f"{path}, named by {VARIABLE}, cannot be imported: {error}") from error


def own_kinds() -> dict[str, Callable[[int], OwnGate]]:
    """Return the registered kinds, including those of the files that SKIPNET_GATES names."""
    load_files(os.environ.get(VARIABLE, ""))
    return KINDS
