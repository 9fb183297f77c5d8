"""The training of a distillation teacher: SGD on smoothed labels. The run can be resumed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.data.augmentation import normalise
from models.data.batches import MemoryBatches
from models.data.datasets import DatasetInfo
from models.data.source import Source
from models.data.validation_split import split_positions
from models.errors import UserError
from models.training.distillation.location import LOGITS_FILE, TEACHER_FILE, teacher_file
from models.training.distillation.logits import compute_teacher_logits, write_teacher_logits
from models.training.distillation.network import TEACHERS, TeacherConfig, TeacherNetwork, write_teacher
from models.training.interruption import StopRequest, stop_on_signals
from models.training.loop import require_finite
from models.training.objective import Step
from models.training.setup.hardware import multiplies_bfloat16, prepare_process
from models.training.state import LOG, Progress, StateFile, Stopwatch, append_record, cut_log
from models.training.types import Show

WHITENED = 5000
"""Images that the first layer's filters are computed from."""
BATCH, RATE, BIAS_RATE, MOMENTUM, DECAY = 256, 0.25, 4, 0.9, 5e-4
WARM_UP, FIRST = 0.2, 0.2
"""The share of the steps in which the learning rate rises, and its first value as a share of the peak."""


@dataclass
class TeacherTraining:
    """A run of ``steps`` steps of SGD. The learning rate rises linearly and then falls linearly to zero."""

    network: TeacherNetwork
    batches: MemoryBatches
    config: TeacherConfig
    steps: int
    state: StateFile
    log: Path

    def train(self, show: Show, measure: Callable[[], float], stop: StopRequest) -> bool:
        """Run the remaining steps, log each epoch, and return whether any step remained.

        Raises TrainingStopped after a signal.
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
                if (self.state.due() or stop.number is not None) and within + 1 < self.batches.steps_per_epoch:
                    self.state.save(progress, self.network, optimizer)
                    stop.check(self.state.path)
            self.log_epoch(progress, epoch, measure())
            self.state.save(progress, self.network, optimizer)
            stop.check(self.state.path)
        return not finished

    def optimizer(self) -> torch.optim.SGD:
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [each for each in trained if each.ndim > 1], "weight_decay": DECAY, "times": 1},
            {"params": [each for each in trained if each.ndim <= 1], "weight_decay": 0.0, "times": BIAS_RATE},
        ]
        return torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)

    def step(self, optimizer: torch.optim.SGD, images: Tensor, labels: Tensor, done: float) -> Step:
        """Take a step; ``done`` (0..1) is the share of the steps that have been taken."""
        rate = RATE * (FIRST + (1 - FIRST) * done / WARM_UP if done < WARM_UP else (1 - done) / (1 - WARM_UP))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["times"]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=multiplies_bfloat16(images.device)):
            logits = self.network(images).float()
        loss = cross_entropy(logits, labels, label_smoothing=self.config.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        correct = (logits.argmax(1) == labels).sum()
        return Step(loss, correct, torch.full_like(correct, len(labels)))

    def log_epoch(self, progress: Progress, epoch: int, accuracy: float) -> None:
        assert progress.sums is not None
        loss, correct, _ = (progress.sums / progress.images).tolist()
        require_finite(loss, f"the teacher, epoch {epoch + 1}", "another --seed, in another --output")
        record = {
            "epoch": epoch + 1,
            "loss": round(loss, 4),
            "train_accuracy": round(correct, 4),
            "accuracy": round(accuracy, 4),
            "seconds": round(progress.seconds, 3),
            "cpu_seconds": round(progress.cpu_seconds, 3),
        }
        append_record(self.log, record, progress)


def accuracy_on(network: TeacherNetwork, pixels: Tensor, labels: Tensor, dataset: DatasetInfo) -> float:
    """Return the accuracy (0..1) on images uint8 [N, 3, H, W]. The network is set to evaluation mode."""
    logits = compute_teacher_logits(network.eval(), pixels, dataset)
    return float((logits.argmax(1).cpu() == labels).float().mean())


def train_teacher(
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
    show: Show,
) -> None:
    """Train a teacher on a data set of small images, or resume its training, and write its logits.

    ``network`` is one of `TEACHERS`, and ``epochs`` defaults to its number. ``held_out`` is the number of validation
    images. Writes `LOGITS_FILE`, `TEACHER_FILE`, ``log.jsonl`` and ``state.pt`` into ``folder``. Raises UserError if
    not all images have the data set's size, for too few images, for a folder that holds the state of another run, and
    for a loss that is no longer finite.
    """
    config = TEACHERS[network]
    epochs = epochs or config.epochs
    train, validation = split_positions(source, held_out, limit)
    if len(train) < BATCH:
        raise UserError(f"{len(train)} training images do not fill a teacher's batch of {BATCH}; take more images")
    dataset, (pixels, labels) = source.dataset, source.in_memory(source.dataset.size)
    prepare_process(seed)
    batches = MemoryBatches(pixels[train], labels[train], dataset, dataset.size, BATCH, seed, device)
    first = normalise(pixels[train[:WHITENED]], dataset.mean, dataset.std)
    teacher = TeacherNetwork(len(source.classes), config.width)
    teacher.whiten(first)
    teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = pixels.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"network": network, "dataset": dataset.name, "epochs": epochs, "seed": seed}
    identity |= {"train_images": len(train), "validation_images": held_out}
    state = StateFile(folder, identity, save_every)
    run = TeacherTraining(teacher, batches, config, epochs * batches.steps_per_epoch, state, folder / LOG)
    with stop_on_signals() as stop:
        trained = run.train(show, lambda: accuracy_on(teacher, pixels[validation], labels[validation], dataset), stop)
    if trained or not teacher_file(folder, LOGITS_FILE).is_file():
        logits = compute_teacher_logits(teacher.eval(), pixels, dataset).cpu()
        write_teacher_logits(folder / LOGITS_FILE, logits, dataset.name, network)
    if trained or not teacher_file(folder, TEACHER_FILE).is_file():
        write_teacher(folder / TEACHER_FILE, teacher, dataset.name, network)
