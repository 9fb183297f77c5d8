"""Several threads may call a native engine, and one may close it while others run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from numpy.typing import NDArray

from models.engines.folding import fold
from models.engines.native.engine import NativeEngine
from models.engines.protocol import Routed
from models.network import SkipNet

CALLERS, CALLS = 4, 100


@pytest.mark.parametrize("spread", [0, 8])
def test_calls_of_several_threads_take_turns_until_the_engine_is_closed(
    spread: int, varied_network: Callable[[str], SkipNet], make_images: Callable[[str], NDArray[np.float32]]
) -> None:
    engine = NativeEngine(fold(varied_network("cifar10_rnn_gate_38")), threads=2)
    engine.most_spread = spread
    images = make_images("cifar10_rnn_gate_38")[:3]
    thresholds = np.full(len(images), 0.5, np.float32)
    expected = engine.run(images, thresholds)
    together = Barrier(CALLERS)

    def run() -> list[Routed]:
        together.wait(60)
        return [engine.run(images, thresholds) for _ in range(CALLS)]

    def run_until_closed() -> None:
        together.wait(60)
        while True:
            engine.run(images, thresholds)

    with ThreadPoolExecutor(CALLERS) as pool:
        for outputs in [pool.submit(run) for _ in range(CALLERS)]:
            for output in outputs.result():
                np.testing.assert_array_equal(output.logits, expected.logits)
                np.testing.assert_array_equal(output.executed, expected.executed)
        running = [pool.submit(run_until_closed) for _ in range(CALLERS - 1)]
        together.wait(60)
        engine.close()
        for call in running:
            with pytest.raises(ValueError, match="the engine is closed"):
                call.result()
