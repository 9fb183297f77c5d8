from collections.abc import Callable
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engines.folding import fold
from models.engines.onnx.engine import OnnxRuntimeEngine, Worker

ARCHITECTURE = "cifar10_rnn_gate_38"


def test_a_failing_run_returns_only_after_all_workers_have_stopped(
    varied_checkpoint: Callable[[str], Checkpoint], make_images: Callable[[str], NDArray[np.float32]]
) -> None:
    engine = OnnxRuntimeEngine(fold(varied_checkpoint(ARCHITECTURE).network), threads=2)
    failed, done = Event(), []

    class Failing(Worker):
        def run(self, *_: object) -> None:
            failed.set()
            raise RuntimeError("failing on purpose")

    class Slow(Worker):
        def run(self, *run: object) -> None:
            assert failed.wait(20)
            for _ in range(20):
                super().run(*run)  # type: ignore[arg-type]
            done.append(run)

    engine.workers = [Failing(engine.session), Slow(engine.session)]
    images = make_images(ARCHITECTURE)[:2]
    with pytest.raises(RuntimeError, match="failing on purpose"):
        engine.run(images, np.full(2, 0.5, np.float32))
    assert len(done) == 1
    engine.close()
