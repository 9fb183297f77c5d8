"""One version of a model in memory: its checkpoint, its engine and the time a dense batch takes."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.inference.dense_clock import DenseClock

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.engines.protocol import Engine, Routed
    from models.macs import Mode


@dataclass(eq=False)
class LoadedModel:
    """One version of a model, loaded and warm."""

    checkpoint: "Checkpoint"
    engine: "Engine"
    mode: "Mode"  # of the last batch
    clock: DenseClock
    fallbacks: list[str] = field(default_factory=list)  # engines that auto does without; the log says why
    leases: int = field(default=0, init=False)  # requests that still need it
    retired: bool = field(default=False, init=False)  # no new request gets it
    closed: bool = field(default=False, init=False)  # its engine is closed, or about to be

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def version(self) -> int:
        return self.checkpoint.version

    @property
    def shape(self) -> tuple[int, int, int]:
        spec = self.checkpoint.config.input
        return 3, spec.height, spec.width

    def engine_in(self, mode: "Mode") -> str:
        """Return the name of the engine that runs a batch in ``mode``: a switch has two."""
        from models.engines.routing_switch import engine_in

        return engine_in(self.engine, mode).name

    def probe(self) -> None:
        """Run a blank image; raises what the engine raises."""
        self.run_dense(np.zeros((1, *self.shape), np.float32))

    def run_dense(self, images: NDArray[np.float32]) -> float:
        """Run every block for ``images`` [N, 3, H, W] and return the seconds it took; nobody gets the answers."""
        return timed(self.engine, images, 0.0)[1]

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


def timed(engine: "Engine", images: NDArray[np.float32], threshold: float) -> "tuple[Routed, float]":
    """Run images that are no traffic: a switch between branching and masking does not learn from them."""
    from models.engines.routing_switch import rehearse

    start = perf_counter()
    routed = rehearse(engine, images, np.full(len(images), threshold, np.float32))
    return routed, perf_counter() - start
