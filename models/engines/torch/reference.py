"""The reference engine: the network in its masked form. Every other engine must have the same output."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.engines.protocol import Routed, check_batch, plain_output
from models.gates import Limits
from models.macs import Mode
from models.network import SkipNet


class ReferenceEngine:
    """Run ``SkipNet.forward`` in inference mode: every block is computed, then the decisions select the output."""

    name = "reference"
    mode: Mode = "mask"

    def __init__(self, network: SkipNet, device: str = "cpu") -> None:
        self.device = device
        if device != "cpu":
            torch.backends.cudnn.allow_tf32 = False
        self.network = copy.deepcopy(network).to(device).eval()

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does."""
        check_batch(images, thresholds)
        limits = Limits.of(thresholds).probabilities.to(self.device)

        def decide(_: int, logits: Tensor) -> Tensor:
            return (torch.sigmoid(logits) > limits).to(logits.dtype)

        with torch.inference_mode():
            logits, routing = self.network(torch.from_numpy(images).to(self.device), decide)
        if self.network.gate_kind is None:
            return plain_output(logits.cpu().numpy(), len(self.network.blocks), self.mode)
        return Routed(
            logits.cpu().numpy(),
            (routing.decisions > 0).cpu().numpy(),
            routing.probability.cpu().numpy(),
            self.mode,
        )

    def close(self) -> None:
        """Do nothing: torch frees the memory with this object."""
