"""The time of a request in each stage, for the response, its headers, metrics and spans."""

from dataclasses import dataclass, field
from time import perf_counter

STAGES = ("receive", "decode", "queue", "inference")


@dataclass(slots=True)
class Timing:
    """Seconds of one request. If it has several images, each stage is that of the slowest image."""

    started: float = field(default_factory=perf_counter)
    receive: float = 0.0  # reading the body
    decode: float = 0.0  # decoding and preprocessing the image
    queue: float = 0.0  # waiting for a decoding thread and for the engine
    inference: float = 0.0  # the run of its batch
    total: float = 0.0  # from the request's arrival to its response
    batch_size: int = 0

    def finish(self) -> None:
        self.total = perf_counter() - self.started

    def headers(self) -> dict[str, str]:
        """Return `Server-Timing` (W3C) and one `X-…-Time` header a stage, all in milliseconds."""
        stages = {stage: getattr(self, stage) * 1e3 for stage in (*STAGES, "total")}
        return {
            "Server-Timing": ", ".join(f"{stage};dur={value:.3f}" for stage, value in stages.items()),
            **{f"X-{stage.capitalize()}-Time": f"{value:.3f}" for stage, value in stages.items()},
            "X-Batch-Size": str(self.batch_size),
        }
