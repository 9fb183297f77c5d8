"""The torch engine: it runs eagerly, and each block runs only on the images of a batch that execute it."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.engines.folding import FoldedNetwork
from models.engines.protocol import Routed, check_batch, plain_output
from models.engines.torch.forward import arrange, forward
from models.engines.torch.skipping import compact, mask
from models.gates import Limits
from models.macs import Mode


class TorchEngine:
    """Run a folded network in torch, on the CPU or on CUDA, in float32.

    In mode "branch" a block runs only on the images that execute it. In mode "mask" every block runs on all images of
    the batch and the decisions select the output. On CUDA this avoids a wait for the device at every gate.
    """

    name = "torch"

    def __init__(
        self, folded: FoldedNetwork, device: str = "cpu", mode: Mode = "branch", threads: int | None = None
    ) -> None:
        """``threads`` is the number of CPU threads per operator. torch has one such setting per process."""
        if device == "cpu" and threads is not None:
            torch.set_num_threads(threads)
        if device != "cpu":
            # TF32 rounds to 10 bits. A gate near its threshold could then decide differently than on the CPU.
            torch.backends.cudnn.allow_tf32 = False
        self.device = device
        self.mode: Mode = mode
        self.network = arrange(folded, device)

    def run(self, images: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Routed:
        """Run a batch, as ``Engine.run`` does."""
        check_batch(images, thresholds)
        with torch.inference_mode():
            x = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
            limits = Limits.of(thresholds).logits.to(self.device)
            scores, logits = forward(self.network, x, limits, compact if self.mode == "branch" else mask)
            if not self.network.gates:
                return plain_output(scores.cpu().numpy(), len(self.network.blocks), self.mode)
            executed = logits > limits[:, None]
            return Routed(scores.cpu().numpy(), executed.cpu().numpy(), torch.sigmoid(logits).cpu().numpy(), self.mode)

    def close(self) -> None:
        """Do nothing: torch frees the memory with this object."""
