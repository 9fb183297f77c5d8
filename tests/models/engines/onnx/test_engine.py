from collections.abc import Callable
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines.folding import fold
from models.engines.onnx.engine import Lane, OnnxRuntimeEngine

ARCHITECTURE = "cifar10_rnn_gate_38"


def test_a_run_that_fails_is_over_only_when_no_lane_is_at_work_any_more(
    lively_checkpoint: Callable[[str], Checkpoint], make_images: Callable[[str], NDArray[np.float32]]
) -> None:
    engine = OnnxRuntimeEngine(fold(lively_checkpoint(ARCHITECTURE).network), threads=2)
    failed, done = Event(), []

    class Failing(Lane):
        def run(self, *_: object) -> None:
            failed.set()
            raise RuntimeError("told to fail")

    class Slow(Lane):
        def run(self, *run: object) -> None:
            assert failed.wait(20)
            for _ in range(20):
                super().run(*run)  # type: ignore[arg-type]
            done.append(run)

    engine.lanes = [Failing(engine.session), Slow(engine.session)]
    images = make_images(ARCHITECTURE)[:2]
    with pytest.raises(RuntimeError, match="told to fail"):
        engine.run(images, np.full(2, 0.5, np.float32))
    assert len(done) == 1
    engine.close()
