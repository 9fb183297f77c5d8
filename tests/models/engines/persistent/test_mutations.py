"""The tests can fail: they find a missing barrier, a wrong swizzle and a wrong index in the kernel's source."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from models.blocks import BasicBlock
from models.engines.folding import FoldedNetwork, fold
from models.engines.torch.reference import ReferenceEngine
from models.network import SkipNet
from models.preprocessing import InputSpec, normalisation, normalise
from tests.models.engines.persistent.simulated import SimulatedEngine, build
from tests.models.engines.persistent.test_work import expected_work

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here: install g++")

MUTATIONS = {
    "barrier between a block's convolutions": (
        "    __syncthreads();\n    second.accumulate(spare);",
        "    second.accumulate(spare);",
    ),
    "barrier after a block": (
        "(map, SUMS);\n    __syncthreads();",
        "(map, SUMS);",
    ),
    "barrier in the gate": (
        "        copy_weights<Next::CHANNELS>();\n        __syncthreads();",
        "        copy_weights<Next::CHANNELS>();",
    ),
    "waiting for the gate's weights": ("            wait_for_copies();", ""),
    "gates' sums in turn": ("decision % 2 * SUM_BYTES", "0"),
    "swizzle that conflicts": ("(pixel >> 1) & 3", "(pixel >> 2) & 3"),
    "swizzle of later channels": ("^ (chunk << 5)", "+ (chunk << 5)"),
    "row below the map": ("unsigned(y + row) >= unsigned(In::SIDE)", "unsigned(y + row) > unsigned(In::SIDE)"),
    "fragment of the other eight channels": ("pixels, weight.z, weight.w", "pixels, weight.w, weight.z"),
    "barrier before the host is told": (
        "    __syncthreads();\n    if (threadIdx.x == 0) leave",
        "    if (threadIdx.x == 0) leave",
    ),
    "waiting for the pixels": ("        wait_for_copies();\n        __syncthreads();", "        __syncthreads();"),
    "skipped block that runs": (
        "if (router.template executes<M, M>(map, spare)) execute",
        "router.template executes<M, M>(map, spare), execute",
    ),
}


@pytest.fixture(scope="module")
def network() -> SkipNet:
    """A network of two blocks per group whose gates decide differently."""
    torch.manual_seed(3)
    network = SkipNet(stem="cifar", block=BasicBlock, blocks=(2, 2, 2), classes=5, gates="rnn").eval()
    with torch.no_grad():
        assert network.controller is not None
        network.controller.projection.weight.mul_(8)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


@pytest.fixture(scope="module")
def libraries() -> dict[str, Path]:
    def one(name: str) -> Path:
        return build("RecurrentGate", *([MUTATIONS[name]] if name else []))

    names = ["", *MUTATIONS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def find_faults(folded: FoldedNetwork, network: SkipNet, library: Path, decoded: bool = False) -> set[str]:
    """Return the checks that a kernel fails, on normalised images or on pixels."""
    noise = np.random.default_rng(0).standard_normal((3, 32, 32, 3))
    pixels = np.clip(128 + 77 * noise, 0, 255).astype(np.uint8)
    thresholds = np.array([0.5, 0.0, 1.0], np.float32)
    images = normalise(pixels, SPEC)
    expected = ReferenceEngine(network).run(images, thresholds)
    found = set()
    outputs = []
    for order in (1, 2):
        engine = SimulatedEngine(folded, grid=1, order=order, library=library)
        engine.normalisation = normalisation(SPEC) if decoded else None
        output = engine.run(pixels if decoded else images, thresholds)
        outputs.append(output)
        if engine.counts.races:
            found.add("race")
        if engine.counts.outside:
            found.add("outside")
        # Only the reads of the strided convolutions of the two projecting blocks share banks.
        if engine.counts.conflicts > STRIDED_CONFLICTS * len(pixels):
            found.add("conflict")
        work = sum(expected_work(folded, executed)[0] for executed in output.executed)
        if engine.counts.multiplies != work:
            found.add("work")
        wrong = (output.executed != expected.executed).any()
        error = np.abs(output.logits - expected.logits).max()
        if wrong or not error < 0.01 * np.abs(expected.logits).max():
            found.add("output")
    if not np.array_equal(outputs[0].logits, outputs[1].logits, equal_nan=True):
        found.add("schedule")
    return found


STRIDED_CONFLICTS = 2080
SPEC = InputSpec(height=32, width=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))


def test_the_kernel_passes(network: SkipNet, libraries: dict[str, Path]) -> None:
    probability = ReferenceEngine(network).run(np.zeros((1, 3, 32, 32), np.float32), np.ones(1, np.float32)).probability
    assert (np.abs(probability - 0.5) > 1e-3).all()
    for decoded in (False, True):
        assert find_faults(fold(network), network, libraries[""], decoded) == set()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_fault_is_found(mutation: str, network: SkipNet, libraries: dict[str, Path]) -> None:
    found = find_faults(fold(network), network, libraries[mutation], decoded=mutation == "waiting for the pixels")
    if mutation.startswith("barrier"):
        # The order of the warps does not matter.
        assert "race" in found
    elif mutation == "swizzle that conflicts":
        assert found == {"conflict"}
    elif mutation == "skipped block that runs":
        assert "work" in found
    assert found, f"no check found the fault: {mutation}"
