"""Augmentation of whole batches on the device where they are trained, whose work the host never waits for."""

import torch
from torch import Tensor

PADDING = 4
SMALLEST, WIDEST = 0.08, 4 / 3
"""Of a random resized crop: the least share of the area, and the widest ratio of its sides."""


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad images [N, 3, H, W] with zeros by 4 pixels, crop each at random to its size, flip half of them."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator).to(images.device, non_blocking=True)
    flips = torch.randint(0, 2, (count,), generator=generator).bool().to(images.device, non_blocking=True)
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).repeat(count, 1)
    columns = torch.where(flips[:, None], columns.flip(1), columns) + offsets[1][:, None]
    image = torch.arange(count, device=images.device)
    # Indices on either side of a slice put the cropped axes first: [N, H, W, 3], which is channels_last already.
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def overlay(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Lay another image over about ``share`` (0..1) of images [N, 3, H, W], up to half of it: what it was stays the
    larger part. Zhang et al. 2018 (mixup), whose labels are mixed too; here a teacher says what to see.
    """
    drawn = torch.rand(len(images), generator=generator)
    weight = ((drawn - 1) / share + 1).clamp(min=0) / 2
    weight = weight[:, None, None, None].to(images.device, non_blocking=True)
    return torch.lerp(images, images.flip(0), weight)


def random_boxes(count: int, width: int, height: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return boxes [N, 4] of left, top, width and height in pixels, and which [N] to flip: half of them.

    A box takes 8 to 100 % of the area, sides between 3:4 and 4:3. Szegedy et al. 2015, section 6: the augmentation
    that ImageNet's ResNets are trained with.
    """
    area, ratio, left, top, flip = torch.rand(5, count, generator=generator)
    area = width * height * (SMALLEST + (1 - SMALLEST) * area)
    ratio = WIDEST ** (2 * ratio - 1)
    sides = torch.stack(((area * ratio).sqrt().clamp(1, width), (area / ratio).sqrt().clamp(1, height)), 1)
    room = torch.tensor((width, height)) - sides
    return torch.cat((torch.stack((left, top), 1) * room, sides), 1), flip < 0.5


def random_resized_crop(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return a random box of each image [N, 3, H, W], float32 [N, 3, size, size]; half of them are flipped.

    Samples are bilinear and not averaged, which serves where the images are hardly larger than ``size``.
    """
    count, _, height, width = images.shape
    boxes, flips = (drawn.to(images.device) for drawn in random_boxes(count, width, height, generator))
    whole = torch.tensor((width, height), device=images.device)
    scale = boxes[:, 2:] / whole
    centre = (2 * boxes[:, :2] + boxes[:, 2:]) / whole - 1
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
    """Return images [N, 3, H, W] of 0..255 as float32, scaled to 0..1, less ``mean``, over ``std``, channels_last."""
    shift = (torch.tensor(mean)[:, None, None] * 255).to(images.device, non_blocking=True)
    scale = (1 / (torch.tensor(std)[:, None, None] * 255)).to(images.device, non_blocking=True)
    return ((images.float() - shift) * scale).contiguous(memory_format=torch.channels_last)
