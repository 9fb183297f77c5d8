"""The distillation teachers: networks of seven convolutions, without gates. They train fast and are not served.

The first layer is fixed and whitens patches of 2x2 pixels. Three groups of two convolutions follow, and each group
halves the map.

After David Page's "How to train your ResNet" (2018-2019) and Keller Jordan's "94% on CIFAR-10 in 3.29
seconds" (arXiv 2404.00498): 118 M MACs, 93 to 94 % on CIFAR-10 after twelve epochs.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import gelu, max_pool2d

from models.errors import UserError
from models.persistence.atomic_file import whole_file

PATCH = 24
"""Outputs of the first layer for a patch of 2x2 pixels: its 12 whitened values and their opposites."""
WIDTHS = (64, 256, 256)
NOISE = 5e-4
"""Added to the variance of the patches, so that directions of little variance stay small."""


@dataclass(frozen=True)
class TeacherConfig:
    """The size of a teacher and how it is trained.

    ``width`` multiplies the number of channels. ``smoothing`` (0..1) is that of the labels.

    The large teacher's labels are not smoothed: smoothing removes the information of its logits about the other classes
    (Mueller et al. 2019).
    """

    width: int
    epochs: int
    smoothing: float


TEACHERS = {
    "small": TeacherConfig(width=1, epochs=12, smoothing=0.1),
    "large": TeacherConfig(width=2, epochs=30, smoothing=0.0),
}


class Group(nn.Module):
    """Two 3x3 convolutions. The map is halved after the first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = gelu(self.first_norm(max_pool2d(self.first(x), 2)))
        return gelu(self.second_norm(self.second(x)))


class TeacherNetwork(nn.Module):
    """Class logits [N, classes] of normalised images [N, 3, 32, 32]; ``width`` multiplies the channels."""

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
                # The first filters pass their inputs on.
                with torch.no_grad():
                    nn.init.dirac_(module.weight[: module.in_channels])

    def whiten(self, images: Tensor) -> None:
        """Set the first layer's filters from images [N, 3, H, W]."""
        filters = whitening_filters(images)
        with torch.no_grad():
            self.whitening.weight.copy_(torch.cat((filters, -filters)))

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.groups(gelu(self.whitening(images)))
        logits: Tensor = self.head(x.float().amax((2, 3))) / 9
        return logits


def whitening_filters(images: Tensor) -> Tensor:
    """Return filters [12, 3, 2, 2] whose outputs on the images' patches have variance 1 and no correlation."""
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters: Tensor = (vectors.T / (values + NOISE).sqrt()[:, None]).flip(0)
    return filters.reshape(12, 3, 2, 2).float()


def write_teacher(file: Path, network: TeacherNetwork, dataset: str, name: str) -> None:
    """Write a trained teacher, one of `TEACHERS`, to be used online."""
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    with whole_file(file) as opened:
        opened.write(save(weights, {"dataset": dataset, "network": name}))


def read_teacher(file: Path, dataset: str, classes: int) -> TeacherNetwork:
    """Return a teacher in evaluation mode.

    Raises UserError if the file holds no teacher, or a teacher for another data set.
    """
    try:
        with safe_open(file, "pt") as opened:
            found_dataset = (opened.metadata() or {}).get("dataset")
        weights = load_file(file)
        found_classes, width = weights["head.weight"].shape[0], weights["head.weight"].shape[1] // WIDTHS[-1]
        network = TeacherNetwork(found_classes, width)
        network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{file} cannot be read as a teacher ({error}); delete it and train the teacher again"
        ) from error
    if (found_dataset, found_classes) != (dataset, classes):
        raise UserError(
            f"{file} is a teacher for {found_dataset} in {found_classes} classes, not for {dataset} in {classes}; "
            "name another with --teacher"
        )
    return network.eval().requires_grad_(False)
