"""Wide, shallow networks without gates that serve nobody: they learn fast, and teach those that are served.

Three groups of two convolutions, each pair halving the map, behind a first layer that whitens patches of 2x2 pixels and
is not trained. After David Page's account of how to train a ResNet (2018-2019) and Keller Jordan's of CIFAR-10 in 3.29
seconds (arXiv 2404.00498): 118 M multiply-adds, about 93 to 94 % on CIFAR-10 after a dozen epochs. The wider one's
labels are not smoothed: that takes from its answers what they tell of the other classes (Mueller et al. 2019).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, max_pool2d

from models.atomic_file import whole_file
from models.data.augmentation import normalise
from models.data.batches import MemoryBatches
from models.data.datasets import DatasetRow
from models.data.source import Source
from models.data.validation_split import split_positions
from models.errors import UserError
from models.training.distillation.logits import ANSWERS, AnswersError, give_answers, write_answers
from models.training.hardware import multiplies_bfloat16, prepare_process
from models.training.loop import require_finite
from models.training.objective import Step
from models.training.state import LOG, Progress, StateFile, Stopwatch, cut_log, log_row

NETWORK = "network.safetensors"
PATCH = 24
"""What the first layer answers about a patch of 2x2 pixels: its 12 numbers and their opposites."""
WIDTHS = (64, 256, 256)
WHITENED, NOISE = 5000, 5e-4
"""Images that the first layer is made for, and what is added to the variance of their patches."""
BATCH, RATE, BIAS_RATE, MOMENTUM, DECAY = 256, 0.25, 4, 0.9, 5e-4
WARM_UP, FIRST = 0.2, 0.2
"""The share of the steps in which the rate rises, and the share of it that it begins with."""


@dataclass(frozen=True)
class Kind:
    """How many times as wide as it might be a network is, and how it is trained: ``smoothing`` (0..1) is how far its
    labels are from their class to all alike.
    """

    width: int
    epochs: int
    smoothing: float


KINDS = {"wide": Kind(width=1, epochs=12, smoothing=0.1), "wider": Kind(width=2, epochs=30, smoothing=0.0)}


class Group(nn.Module):
    """Two 3x3 convolutions; the map is halved behind the first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = gelu(self.first_norm(max_pool2d(self.first(x), 2)))
        return gelu(self.second_norm(self.second(x)))


class WideNetwork(nn.Module):
    """Class logits [N, classes] of normalised images [N, 3, 32, 32]; all layers but the first are ``width`` times as
    wide as they might be.
    """

    def __init__(self, classes: int, width: int = 1) -> None:
        super().__init__()
        widths = (PATCH, *(width * each for each in WIDTHS))
        self.whitening = nn.Conv2d(3, PATCH, 2)
        nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]
        self.whitening.weight.requires_grad_(False)
        self.groups = nn.Sequential(*(Group(*pair) for pair in pairwise(widths)))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        for module in self.groups.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                # The first filters hand their inputs on.
                with torch.no_grad():
                    nn.init.dirac_(module.weight[: module.in_channels])

    def whiten(self, images: Tensor) -> None:
        """Make the first layer for images [N, 3, H, W]."""
        filters = whitening_filters(images)
        with torch.no_grad():
            self.whitening.weight.copy_(torch.cat((filters, -filters)))

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.groups(gelu(self.whitening(images)))
        logits: Tensor = self.head(x.float().amax((2, 3))) / 9
        return logits


def whitening_filters(images: Tensor) -> Tensor:
    """Return filters [12, 3, 2, 2] whose answers on the images' patches have variance 1 and no correlation."""
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters: Tensor = (vectors.T / (values + NOISE).sqrt()[:, None]).flip(0)
    return filters.reshape(12, 3, 2, 2).float()


@dataclass
class WideRun:
    """A training run of ``steps`` steps by SGD on smoothed labels; the rate rises, then falls to zero along lines."""

    network: WideNetwork
    batches: MemoryBatches
    kind: Kind
    steps: int
    state: StateFile
    log: Path

    def train(self, show: Callable[[Iterator[int]], Iterator[int]], measure: Callable[[], float]) -> bool:
        """Take all steps that are left, an epoch after the other; each epoch's figures go into the log.

        Return whether there were any.
        """
        optimizer, progress = self.optimizer(), Progress()
        if self.state.path.exists():
            progress, optimizer_state = self.state.load(self.network)
            if optimizer_state is not None:
                optimizer.load_state_dict(optimizer_state)
        cut_log(self.log, progress)
        finished = progress.step == self.steps
        while progress.step < self.steps:
            epoch, start = divmod(progress.step, self.batches.steps_per_epoch)
            self.network.train()
            watch = Stopwatch()
            steps = show(iter(range(start, self.batches.steps_per_epoch)))
            for within, (images, labels) in zip(steps, self.batches.epoch(epoch, start), strict=False):
                step = self.step(optimizer, images, labels, progress.step / self.steps)
                progress.add(step, len(labels), *watch.lap())
                if self.state.due() and within + 1 < self.batches.steps_per_epoch:
                    self.state.save(progress, self.network, optimizer)
            self.log_epoch(progress, epoch, measure())
            self.state.save(progress, self.network, optimizer)
        return not finished

    def optimizer(self) -> torch.optim.SGD:
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [each for each in trained if each.ndim > 1], "weight_decay": DECAY, "times": 1},
            {"params": [each for each in trained if each.ndim <= 1], "weight_decay": 0.0, "times": BIAS_RATE},
        ]
        return torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)

    def step(self, optimizer: torch.optim.SGD, images: Tensor, labels: Tensor, done: float) -> Step:
        """Take a step, ``done`` (0..1) of the run being behind it."""
        rate = RATE * (FIRST + (1 - FIRST) * done / WARM_UP if done < WARM_UP else (1 - done) / (1 - WARM_UP))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["times"]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=multiplies_bfloat16(images.device)):
            logits = self.network(images).float()
        loss = cross_entropy(logits, labels, label_smoothing=self.kind.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        correct = (logits.argmax(1) == labels).sum()
        return Step(loss, correct, torch.full_like(correct, len(labels)))

    def log_epoch(self, progress: Progress, epoch: int, accuracy: float) -> None:
        assert progress.sums is not None
        loss, correct, _ = (progress.sums / progress.images).tolist()
        require_finite(loss, f"the wide network, epoch {epoch + 1}", "another --seed, in another --output")
        row = {
            "epoch": epoch + 1,
            "loss": round(loss, 4),
            "train_accuracy": round(correct, 4),
            "accuracy": round(accuracy, 4),
            "seconds": round(progress.seconds, 3),
            "cpu_seconds": round(progress.cpu_seconds, 3),
        }
        log_row(self.log, row, progress)


def correct_share(network: WideNetwork, pixels: Tensor, labels: Tensor, row: DatasetRow) -> float:
    """Return the accuracy (0..1) of a network's answers on images uint8 [N, 3, H, W]; it is left in evaluation mode."""
    answers = give_answers(network.eval(), pixels, row)
    return float((answers.argmax(1).cpu() == labels).float().mean())


def teach(
    source: Source,
    folder: Path,
    *,
    network: str,
    epochs: int | None,
    held_out: int,
    limit: int | None,
    seed: int,
    device: torch.device,
    save_every: float,
    show: Callable[[Iterator[int]], Iterator[int]],
) -> None:
    """Train a wide network on a data set of small images but those held out, or go on with it, and write its answers.

    ``network`` is one of `KINDS`, ``epochs`` by default its own. ``folder`` gets ``answers.safetensors``,
    ``network.safetensors``, ``log.jsonl`` and ``state.pt``. Raises UserError where images are not all of the data set's
    own size or too few, StateError where the folder holds another run's state, TrainingDiverged where the loss is no
    longer a number.
    """
    kind = KINDS[network]
    epochs = epochs or kind.epochs
    train, kept_apart = split_positions(source, held_out, limit)
    if len(train) < BATCH:
        raise UserError(f"{len(train)} training images don't fill a batch of {BATCH}, which a wide teacher needs")
    row, (pixels, labels) = source.row, source.in_memory(source.row.size)
    prepare_process(seed)
    batches = MemoryBatches(pixels[train], labels[train], row, row.size, BATCH, seed, device)
    first = normalise(pixels[train[:WHITENED]], row.mean, row.std)
    taught = WideNetwork(len(source.classes), kind.width)
    taught.whiten(first)
    taught.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = pixels.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"network": network, "dataset": row.name, "epochs": epochs, "seed": seed}
    about |= {"train_images": len(train), "held_out_images": held_out}
    state = StateFile(folder, about, save_every)
    run = WideRun(taught, batches, kind, epochs * batches.steps_per_epoch, state, folder / LOG)
    trained = run.train(show, lambda: correct_share(taught, pixels[kept_apart], labels[kept_apart], row))
    if trained or not (folder / ANSWERS).is_file():
        write_answers(folder / ANSWERS, give_answers(taught.eval(), pixels, row).cpu(), row.name, network)
    if trained or not (folder / NETWORK).is_file():
        write_network(folder / NETWORK, taught, row.name, network)


def write_network(file: Path, network: WideNetwork, dataset: str, name: str) -> None:
    """Write a trained network, one of `KINDS`, for those who ask it about each image as they see it."""
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    with whole_file(file) as kept:
        kept.write(save(weights, {"dataset": dataset, "network": name}))


def read_network(file: Path, dataset: str, classes: int) -> WideNetwork:
    """Return a network in evaluation mode; raises AnswersError where the file holds none, or another data set's."""
    try:
        with safe_open(file, "pt") as found:
            of = (found.metadata() or {}).get("dataset")
        weights = load_file(file)
        given, width = weights["head.weight"].shape[0], weights["head.weight"].shape[1] // WIDTHS[-1]
        network = WideNetwork(given, width)
        network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as error:
        raise AnswersError(f"{file} can't be read as a wide network ({error}); delete it and train it again") from error
    if (of, given) != (dataset, classes):
        raise AnswersError(f"{file} is a network for {of} in {given} classes, not for {dataset} in {classes}")
    return network.eval().requires_grad_(False)


def wide_teacher(name: str) -> tuple[str, str] | None:
    """Return the network and the file of what a stage's summary calls ``name``: "wider" is the network itself, asked
    about each image as it is seen, "wider-answers" what it answered once; None where it is no wide network.
    """
    network = name.removesuffix("-answers")
    if network not in KINDS:
        return None
    return network, NETWORK if name == network else ANSWERS


def name_teacher(file: Path) -> str:
    """Return what a stage's summary calls the wide network of a file, or its answers; an older file does not tell."""
    with safe_open(file, "pt") as found:
        network: str = (found.metadata() or {}).get("network", "wide")
    return network if file.name == NETWORK else f"{network}-answers"
