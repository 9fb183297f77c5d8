"""The checks of `skipnet verify-gpu`, on the CPU."""

from collections.abc import Callable

import pytest
import torch

from models import SHIPPED
from models.benchmark.gpu import checks as acceptance
from models.benchmark.gpu.checks import check_checkpoint, check_parity, gpu_engines
from models.checkpoint import Checkpoint, read_checkpoint
from models.data.augmentation import normalise
from models.data.datasets import find_dataset
from models.engines.cuda_graph.engine import CudaGraphEngine
from models.engines.folding import fold
from models.engines.protocol import Engine, EngineError
from models.engines.torch.engine import TorchEngine
from models.engines.torch.reference import ReferenceEngine
from models.evaluation.agreement import Agreement, compare_engines
from models.importing.parity import read_case
from models.model_repository import find_version
from tests.models.data.parquet_files import read_images
from tests.models.engines.test_verification import Faulty, flip_last_decision
from tests.research import shared

CASES = ["cifar10_resnet_38", "cifar10_rnn_gate_38", "cifar10_feedforward_38"]
Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("name", CASES)
def test_parity_cases_are_read_and_pass(name: str) -> None:
    file = shared(f"reference/parity/{name}.npz")
    case = read_case(file)
    different, error = case.check(ReferenceEngine(case.checkpoint.network))
    assert (different, case.name) == (0, name)
    assert error < 1e-5
    checks = list(check_parity(file, "cpu"))
    assert [check.engine for check in checks] == ["cuda_graph:branch", "cuda_graph:mask"]
    assert all(check.passed and "0 of" in check.found for check in checks), checks


def test_branching_on_the_device_equals_the_public_code_for_imagenet() -> None:
    """In float32: half precision on 224 x 224 pixels takes a CPU too long for a test."""
    case = read_case(shared("reference/parity/imagenet_rnn_gate_18.npz"))
    different, error = case.check(CudaGraphEngine(fold(case.checkpoint.network), "cpu", "branch", torch.float32))
    assert different == 0
    assert error < 1e-5


def test_a_parity_case_can_fail() -> None:
    case = read_case(shared("reference/parity/cifar10_rnn_gate_38.npz"))
    assert case.check(Faulty(TorchEngine(fold(case.checkpoint.network)), flip_last_decision))[0] == 1


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return read_checkpoint(find_version(SHIPPED, "cifar10_rnn_gate_38", None))


@pytest.fixture(scope="module")
def real() -> list[Batch]:
    """The first 200 test images of CIFAR-10; `skipnet verify-gpu --data` takes all 10,000."""
    dataset = find_dataset("cifar10")
    pixels, labels = read_images("cifar10", "test")
    images = normalise(torch.from_numpy(pixels[:200]).permute(0, 3, 1, 2), dataset.mean, dataset.std).contiguous()
    return list(zip(torch.split(images, 50), torch.split(torch.from_numpy(labels[:200]), 50), strict=True))


@pytest.mark.parametrize("mode", ["mask", "branch"])
def test_half_precision_makes_the_same_decisions_on_real_images(
    shipped: Checkpoint, real: list[Batch], mode: str
) -> None:
    engine = CudaGraphEngine(fold(shipped.network), "cpu", "mask" if mode == "mask" else "branch", torch.float16)
    agreement = compare_engines(engine, ReferenceEngine(shipped.network), real, shipped.config.execute_threshold)
    assert agreement.holds
    assert agreement.images == 200
    assert agreement.decisions >= 0.999


def test_weights_of_three_bits_make_other_decisions(shipped: Checkpoint, real: list[Batch]) -> None:
    """The check can fail."""
    coarse = read_checkpoint(shipped.folder).network
    with torch.no_grad():
        for parameter in coarse.parameters():
            mantissa, exponent = torch.frexp(parameter)
            parameter.copy_(torch.ldexp(torch.round(mantissa * 8) / 8, exponent))
    agreement = compare_engines(ReferenceEngine(coarse), ReferenceEngine(shipped.network), real[:2], 0.5)
    assert not agreement.holds


def test_accuracy_is_checked_besides_decisions() -> None:
    assert Agreement(10_000, 0.995, 1, 0.8791, 0.8800).holds
    assert not Agreement(10_000, 0.995, 1, 0.8785, 0.8800).holds
    assert not Agreement(10_000, 0.9949, 1, 0.88, 0.88).holds
    assert Agreement(100, 1, 0.98, 0.86, 0.88).holds


def test_a_checkpoint_is_checked_on_the_requested_number_of_images(shipped: Checkpoint, real: list[Batch]) -> None:
    checks = list(check_checkpoint(shipped, "cpu", lambda: real, 30))
    assert [check.engine for check in checks] == ["cuda_graph:branch", "cuda_graph:mask"]
    assert all(check.passed and check.found.endswith(" 50 images") for check in checks), checks


def test_a_failed_check_does_not_stop_the_others(shipped: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def engines(checkpoint: Checkpoint, _: str) -> dict[str, Callable[[], Engine]]:
        def unavailable() -> Engine:
            raise EngineError("cuda-core is not installed")

        return {"persistent:branch": unavailable, "torch:mask": lambda: TorchEngine(fold(checkpoint.network))}

    monkeypatch.setattr(acceptance, "gpu_engines", engines)
    broken, right = check_checkpoint(shipped, "cuda:0", None, None)
    assert (broken.passed, broken.found) == (False, "cuda-core is not installed")
    assert right.passed


def test_on_a_gpu_every_suitable_engine_is_checked(shipped: Checkpoint) -> None:
    assert list(gpu_engines(shipped, "cuda:0")) == ["persistent:branch", "cuda_graph:branch", "cuda_graph:mask"]
