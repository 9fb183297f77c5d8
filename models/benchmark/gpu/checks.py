"""The checks of `skipnet verify-gpu`: the GPU engines and captured training steps.

On a CPU, the function of the CUDA graph engine runs eagerly.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from torch import Tensor

from models.benchmark.gpu.captured_steps import STAGES, compare_captured
from models.benchmark.gpu.captured_steps import TOLERANCE as GRADIENT_TOLERANCE
from models.checkpoint import Checkpoint
from models.engines.cuda_graph.engine import CudaGraphEngine
from models.engines.factory import MODES, describe
from models.engines.folding import fold
from models.engines.protocol import Engine, PixelEngine
from models.engines.selection import CANDIDATES, Selection
from models.engines.torch.reference import ReferenceEngine
from models.engines.verification import TOLERANCE, Verification
from models.evaluation.agreement import compare_engines
from models.importing.parity import read_case
from models.macs import Mode
from models.preprocessing import normalisation
from models.training.recipes import Stage

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Check:
    """The result of one requirement for one engine and network."""

    network: str
    engine: str
    demand: str
    passed: bool
    found: str


def gpu_engines(checkpoint: Checkpoint, device: str) -> dict[str, Callable[[], Engine]]:
    """Return functions that build and verify each GPU engine that supports the network, by "name:mode"."""
    if device == "cpu":
        return {f"cuda_graph:{mode}": partial(eager_engine, checkpoint, mode) for mode in MODES["cuda_graph"]}
    selection = Selection(checkpoint, device, 1, None)
    return {
        f"{name}:{mode}": partial(selection.verified, name, mode)
        for name in CANDIDATES["cuda"]
        for mode in MODES[name]
        if name in selection.candidates(mode)
    }


def eager_engine(checkpoint: Checkpoint, mode: Mode) -> PixelEngine:
    engine = build_eager(checkpoint, mode)
    Verification(checkpoint).check(engine)
    return engine


def build_eager(checkpoint: Checkpoint, mode: Mode) -> PixelEngine:
    """Return the CUDA graph engine on the CPU."""
    scales = normalisation(checkpoint.config.input)
    return CudaGraphEngine(fold(checkpoint.network), "cpu", mode, normalisation=scales)


def check_parity(file: Path, device: str) -> Iterator[Check]:
    """Check the GPU engines on a parity case of the public code."""
    case = read_case(file)
    for name, make in gpu_engines(case.checkpoint, device).items():

        def run(engine: Engine) -> tuple[bool, str]:
            different, error = case.check(engine)
            found = f"{different} of {case.expected.executed.size} decisions differ, logits within {error:.2%}"
            return different == 0 and error <= TOLERANCE, found

        yield check(case.name, name, "output of the public code", make, run)


def check_checkpoint(
    checkpoint: Checkpoint, device: str, batches: Callable[[], Batches] | None, images: int | None
) -> Iterator[Check]:
    """Verify the GPU engines for a checkpoint. If ``batches`` of test images are given, compare all decisions on them.

    ``images`` limits their number. By default all are compared.
    """
    reference = ReferenceEngine(checkpoint.network)
    for name, make in gpu_engines(checkpoint, device).items():

        def run(engine: Engine) -> tuple[bool, str]:
            if batches is None:
                return True, "on generated images; --data compares real images"
            chosen = first_images(batches(), images)
            agreement = compare_engines(engine, reference, chosen, checkpoint.config.execute_threshold)
            return agreement.holds, str(agreement)

        title = f"{checkpoint.name}/{checkpoint.version}"
        yield check(title, name, "decisions of the reference", make, run)


def check_training(device: str) -> Iterator[Check]:
    """Compare a training step of each stage, captured as a CUDA graph, with the same step run eagerly."""
    for stage, architecture in STAGES.items():

        def run(stage: Stage = stage) -> tuple[bool, str]:
            worst, share = compare_captured(stage, device)
            return worst <= GRADIENT_TOLERANCE, f"gradients within {worst:.1e}, in {share:.2f} of the time"

        yield judge(architecture, f"{stage}, captured", "gradients of the eager step", run)


def check(
    network: str, engine: str, demand: str, make: Callable[[], Engine], run: Callable[[Engine], tuple[bool, str]]
) -> Check:
    """Build an engine and return the result of its check."""

    def run_on_engine() -> tuple[bool, str]:
        with closing(make()) as built:
            return run(built)

    return judge(network, engine, demand, run_on_engine)


def judge(network: str, engine: str, demand: str, run: Callable[[], tuple[bool, str]]) -> Check:
    """Return the result of a check. An exception is a failed check."""
    try:
        passed, found = run()
    except Exception as error:
        passed, found = False, describe(error)
    return Check(network, engine, demand, passed, found)


def first_images(batches: Batches, images: int | None) -> Batches:
    """Return the first batches that together have ``images`` images."""
    if images is None:
        return batches
    first = next(iter(batches))
    return islice(batches, -(-images // len(first[0])))
