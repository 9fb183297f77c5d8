"""Compare training steps: our SP with the public code's, HRL that skips with HRL that masks."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from models.architectures import find_architecture
from models.benchmark.timing import interleave
from models.data.augmentation import PADDING
from models.data.batches import MemoryBatches
from models.data.datasets import find_dataset
from models.evaluation.forced_routes import random_network
from models.network import RunBlock, SkipNet, run_masked
from models.training.objective import Step
from models.training.optimizer import make_optimizer
from models.training.recipes import OperatingPoint, Recipe, find_recipe
from models.training.setup.hardware import gains_by_compiling, keep_freed_memory, multiplies_bfloat16
from models.training.stages.batch_norm import freeze_statistics
from models.training.stages.gate_readout import readouts
from models.training.stages.reinforce import draw, reinforce_step
from models.training.stages.skipping import run_executed
from models.training.stages.supervised import straight_through, supervised_step

BATCH, IMAGES, WORKERS = 128, 2048, 2
CPU = torch.device("cpu")
DATASET = find_dataset("cifar10")
Loss = Callable[[SkipNet, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """Images per second of a step and of its rival, and the step's time over the rival's time with quartiles."""

    step: str
    rival: str
    images_per_second: float
    rival_images_per_second: float
    time_share: float
    time_share_low: float
    time_share_high: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def compare_steps(architecture: str, seconds: float, threads: int) -> Iterator[Comparison]:
    """Yield the comparisons of SP and HRL on images like CIFAR-10's, each measured for about ``seconds``.

    A step goes from images in memory to new weights, on the CPU.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    network = random_network(architecture)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, DATASET.size, DATASET.size, 3), np.uint8)
    half = "bfloat16" if multiplies_bfloat16(CPU) else "float32"
    compiles = gains_by_compiling(find_architecture(architecture), CPU, multiplies_bfloat16(CPU))
    public = "SP, the public code's way: float32, eager, PIL image by image"
    way = f"{'compiled, masked' if compiles else 'skipping'}, {half}, augmented in batches"
    for name, share in (("all", 1.0), ("half", 0.5)):
        step = our_sp_step(network, pixels, share, compiles)
        yield compare({f"SP at {name} the blocks: {way}": step, public: public_sp_step(network, pixels)}, seconds)
    yield compare(
        {
            f"HRL at half the blocks, skipping: {half}": hrl_step(network, pixels, run_executed),
            f"HRL at half the blocks, masked: {half}": hrl_step(network, pixels, run_masked),
        },
        seconds,
    )


def compare(steps: dict[str, Callable[[], object]], seconds: float) -> Comparison:
    timings = interleave(steps, seconds)
    step, rival = steps
    middle, low, high = timings[step].share_of(timings[rival])
    return Comparison(step, rival, BATCH / timings[step].median, BATCH / timings[rival].median, middle, low, high)


def our_sp_step(network: SkipNet, pixels: NDArray[np.uint8], share: float, compiles: bool) -> Callable[[], None]:
    """Return an SP step of `skipnet train` in which each block executes for a ``share`` of the images.

    Every gate has the probability 0.5. It does not change, because the learning rate is 0.
    """
    points = (OperatingPoint(share, 0.2, 1.0), OperatingPoint(1 - share, 0.8, 1.0))
    recipe = replace(find_recipe("budget", "sp"), operating_points=points if share < 1 else points[:1], rate=0.0)
    step_of = torch.compile(supervised_step, dynamic=False) if compiles else supervised_step
    annealing, random = torch.tensor(1.0), None if compiles else torch.Generator().manual_seed(0)

    def loss(network: SkipNet, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(CPU)):
            step: Step = step_of(network, images, labels, annealing, recipe, random=random)
        return step.loss

    return sgd_step(with_even_gates(network), recipe, from_memory(pixels), loss)


def hrl_step(network: SkipNet, pixels: NDArray[np.uint8], run: RunBlock) -> Callable[[], None]:
    """Return an HRL step in which every gate has the probability 0.5.

    It does not change, because the learning rate is 0.
    """
    recipe = replace(find_recipe("short", "hrl"), samples=1, rate=0.0)
    random = torch.Generator().manual_seed(0)

    def loss(network: SkipNet, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(CPU)):
            uniform = draw(len(images), network.decision_count, recipe, random)
            return reinforce_step(network, images, labels, recipe, uniform, run).loss

    trained = with_even_gates(network)
    freeze_statistics(trained)
    return sgd_step(trained, recipe, from_memory(pixels), loss)


def with_even_gates(network: SkipNet) -> SkipNet:
    """Return a copy in training mode whose gates all have the probability 0.5."""
    trained: SkipNet = copy.deepcopy(network).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    with torch.no_grad():
        for readout in readouts(trained):
            readout.weight.zero_()
            readout.bias.zero_()
    return trained


def public_sp_step(network: SkipNet, pixels: NDArray[np.uint8]) -> Callable[[], None]:
    """Return an SP step of the public code.

    It is eager and float32 in the default layout. Every block is masked by arithmetic, and a projection is computed
    twice: in the block and beside it. Workers augment the images one by one.
    """
    decide = straight_through(torch.tensor(0.0))

    def loss(network: SkipNet, images: Tensor, labels: Tensor) -> Tensor:
        x, state = network.blocks[0](network.stem(images)), None
        for index, block in enumerate(network.blocks[1:]):
            logit, state = network.gate_logit(index, x, state)
            mask = decide(index, logit)[:, None, None, None]
            identity, executed = block.shortcut(x), block(x)  # type: ignore[operator]
            x = mask.expand_as(executed) * executed + (1 - mask).expand_as(identity) * identity
        return cross_entropy(network.classify(x), labels)

    recipe = find_recipe("paper", "sp")
    loader = DataLoader(AugmentedOneByOne(pixels), BATCH, shuffle=True, drop_last=True, num_workers=WORKERS)
    return sgd_step(copy.deepcopy(network).train(), recipe, endless(lambda _: iter(loader)), loss)


class AugmentedOneByOne(Dataset[tuple[Tensor, int]]):
    """Images that are padded, cropped, flipped and normalised one at a time, in Python."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self.mean, self.std = (np.asarray(values, np.float32)[:, None, None] for values in (DATASET.mean, DATASET.std))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.pixels[index]), PADDING)
        left, top, flip = (int(torch.randint(0, high, ())) for high in (2 * PADDING + 1, 2 * PADDING + 1, 2))
        image = image.crop((left, top, left + DATASET.size, top + DATASET.size))
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scaled = np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255
        return torch.from_numpy((scaled - self.mean) / self.std), index % 10


def from_memory(pixels: NDArray[np.uint8]) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return endless(MemoryBatches(images, torch.arange(len(images)) % 10, DATASET, DATASET.size, BATCH, 0, CPU).epoch)


def endless(epoch: Callable[[int], Iterator[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch after another."""
    number = 0
    while True:
        yield from epoch(number)
        number += 1


def sgd_step(
    network: SkipNet, recipe: Recipe, batches: Iterator[tuple[Tensor, Tensor]], loss: Loss
) -> Callable[[], None]:
    """Return a step of SGD on the next batch."""
    optimizer = make_optimizer(network, recipe)

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss(network, images, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
