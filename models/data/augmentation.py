"""Augment batches on the training device without synchronising with the host."""

import torch
from torch import Tensor

from models.data.share import GLOBAL_BATCH, Share

PADDING = 4
MIN_AREA, MAX_RATIO = 0.08, 4 / 3
"""Bounds of a random resized crop: its smallest share of the area and its largest ratio of sides."""


def crop_flip(images: Tensor, generator: torch.Generator, share: Share = GLOBAL_BATCH) -> Tensor:
    """Pad images [N, 3, H, W] by 4 zero pixels, crop each at random to its size, and flip half of them.

    The images are a ``share`` of a batch. The random numbers are drawn for the global batch, as in all functions here.
    """
    count, _, height, width = images.shape
    own, total = share.positions(count * share.size), count * share.size
    drawn = torch.randint(0, 2 * PADDING + 1, (2, total), generator=generator)[:, own]
    flips = torch.randint(0, 2, (total,), generator=generator)[own].bool().to(images.device, non_blocking=True)
    offsets = drawn.to(images.device, non_blocking=True)
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).repeat(count, 1)
    columns = torch.where(flips[:, None], columns.flip(1), columns) + offsets[1][:, None]
    image = torch.arange(count, device=images.device)
    # Indices on either side of a slice put the cropped axes first. The result [N, H, W, 3] is already channels_last.
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mixup(images: Tensor, blended: float, generator: torch.Generator, share: Share = GLOBAL_BATCH) -> Tensor:
    """Blend about ``blended`` (0..1) of images [N, 3, H, W] with the image at the mirrored place of the batch.

    The other image has a weight of at most one half. Zhang et al. 2018 (mixup) mix the labels too. Here the teacher's
    logits for the blended image replace the labels.
    """
    drawn = share.take(torch.rand(len(images) * share.size, generator=generator))
    weight = ((drawn - 1) / blended + 1).clamp(min=0) / 2
    weight = weight[:, None, None, None].to(images.device, images.dtype, non_blocking=True)
    return torch.lerp(images, images.flip(0), weight)


def random_boxes(count: int, width: int, height: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return boxes float32 [N, 4] (left, top, width, height in pixels) and flips bool [N].

    A box covers 8 to 100 % of the area and its aspect ratio is between 3:4 and 4:3 (Szegedy et al. 2015, section 6).
    Half of the images are flipped.
    """
    area, ratio, left, top, flip = torch.rand(5, count, generator=generator)
    area = width * height * (MIN_AREA + (1 - MIN_AREA) * area)
    ratio = MAX_RATIO ** (2 * ratio - 1)
    sides = torch.stack(((area * ratio).sqrt().clamp(1, width), (area / ratio).sqrt().clamp(1, height)), 1)
    room = torch.tensor((width, height)) - sides
    return torch.cat((torch.stack((left, top), 1) * room, sides), 1), flip < 0.5


def random_resized_crop(images: Tensor, size: int, generator: torch.Generator, share: Share = GLOBAL_BATCH) -> Tensor:
    """Return a random box of each image [N, 3, H, W] as float32 [N, 3, size, size], half of them flipped.

    Sampling is bilinear without antialiasing. That suffices for images that are only a little larger than ``size``.
    """
    count, _, height, width = images.shape
    drawn = random_boxes(count * share.size, width, height, generator)
    boxes, flips = (share.take(each).to(images.device) for each in drawn)
    extent = torch.tensor((width, height), device=images.device)
    scale = boxes[:, 2:] / extent
    centre = (2 * boxes[:, :2] + boxes[:, 2:]) / extent - 1
    affine = torch.zeros(count, 2, 3, device=images.device)
    affine[:, 0, 0] = torch.where(flips, -scale[:, 0], scale[:, 0])
    affine[:, 1, 1] = scale[:, 1]
    affine[:, :, 2] = centre
    grid = torch.nn.functional.affine_grid(affine, [count, 3, size, size], align_corners=False)
    return torch.nn.functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def crop_centre(images: Tensor, size: int) -> Tensor:
    """Return the centre ``size`` x ``size`` of images [N, 3, H, W]."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return images [N, 3, H, W] of 0..255 as normalised float32 in channels_last.

    Values are scaled to 0..1. Then ``mean`` is subtracted and the result divided by ``std``.
    """
    shift = (torch.tensor(mean)[:, None, None] * 255).to(images.device, non_blocking=True)
    scale = (1 / (torch.tensor(std)[:, None, None] * 255)).to(images.device, non_blocking=True)
    return ((images.float() - shift) * scale).contiguous(memory_format=torch.channels_last)
