"""Augmentation of whole batches on the device where they are trained."""

import torch
from torch import Tensor

PADDING = 4


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad images [N, 3, H, W] with zeros by 4 pixels, crop each at random to its size, flip half of them."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator).to(images.device)
    flips = torch.randint(0, 2, (count,), generator=generator).bool().to(images.device)
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).repeat(count, 1)
    columns = torch.where(flips[:, None], columns.flip(1), columns) + offsets[1][:, None]
    image = torch.arange(count, device=images.device)
    # Indices on either side of a slice put the cropped axes first: [N, H, W, 3], which is channels_last already.
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return uint8 images [N, 3, H, W] as float32, scaled to 0..1, less ``mean``, over ``std``, channels_last."""
    shift = torch.tensor(mean, device=images.device)[:, None, None] * 255
    scale = 1 / (torch.tensor(std, device=images.device)[:, None, None] * 255)
    return ((images.float() - shift) * scale).contiguous(memory_format=torch.channels_last)
