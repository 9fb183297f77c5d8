"""Read parity cases: outputs of the public SkipNet code for given weights and images, one file (.npz) per network.

A case has ``images`` [N, h, w, 3] uint8, ``logits`` [N, classes], and for a SkipNet ``executed`` and
``gate_probability`` [N, B-1]. ``meta`` is JSON with the architecture and the preprocessing. For each weight of the
public code it has either a stored array ("p:<key>") or a rule to draw it by.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.architectures import find_architecture
from models.checkpoint import Checkpoint, Config, fit_state
from models.engines.protocol import Engine, Routed, plain_output
from models.importing.public_checkpoint import public_input, public_labels
from models.importing.state_names import rename_state

THRESHOLD = 0.5
"""The threshold of the public code. No probability of a case is nearer to it than 0.02."""


@dataclass(frozen=True)
class Case:
    """A network, its input [N, 3, H, W], and the expected output."""

    checkpoint: Checkpoint
    images: NDArray[np.float32]
    expected: Routed

    @property
    def name(self) -> str:
        return self.checkpoint.config.architecture

    def check(self, engine: Engine) -> tuple[int, float]:
        """Return how many decisions of ``engine`` differ, and the largest error of a logit over the largest logit."""
        output = engine.run(self.images, np.full(len(self.images), THRESHOLD, np.float32))
        error = np.abs(output.logits - self.expected.logits).max() / np.abs(self.expected.logits).max()
        return int((output.executed != self.expected.executed).sum()), float(error)


def read_case(file: Path) -> Case:
    """Return the case in ``file``.

    Raises CheckpointError if its weights are not its architecture's.
    """
    with np.load(file) as stored:
        case: dict[str, Any] = dict(stored)
    meta = json.loads(str(case["meta"]))
    architecture = find_architecture(meta["arch"])
    network = architecture.build().eval()
    fit_state(network, rename_state(public_state(case, meta), architecture), file)
    how = meta["normalise"]
    pixels = case["images"].repeat(how["upsample"], 1).repeat(how["upsample"], 2).astype(np.float32) / np.float32(255)
    normalised = (pixels - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    images = np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
    spec = public_input(architecture).model_copy(update={"height": images.shape[2], "width": images.shape[3]})
    config = Config(architecture=architecture.name, labels=public_labels(architecture), input=spec, code="parity")
    expected = plain_output(case["logits"], len(network.blocks), "mask")
    if "executed" in case:
        expected = Routed(case["logits"], case["executed"].astype(np.bool_), case["gate_probability"], "mask")
    return Case(Checkpoint(file.with_suffix(""), config, network), images, expected)


def public_state(case: dict[str, Any], meta: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the public code's weights: stored, or drawn from a generator that the rule seeds."""
    state = {}
    for key in meta["keys"]:
        stored = case.get(f"p:{key}")
        if stored is None:
            rule = meta["rule"][key]
            generator = np.random.Generator(np.random.PCG64([meta["seed"], rule["index"]]))
            stored = generator.standard_normal(tuple(rule["shape"]), np.float32) * np.float32(rule["scale"])
        state[key] = torch.from_numpy(np.asarray(stored))
    return state
