"""Augmentation of batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.augmentation import crop_flip, mixup, random_boxes, random_resized_crop


def test_crop_and_flip_only_move_pixels() -> None:
    images = torch.arange(1, 1 + 3 * 32 * 32).reshape(1, 3, 32, 32).repeat(64, 1, 1, 1)
    moved = crop_flip(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    originals = set(images[0].flatten().tolist()) | {0}
    assert all(set(image.flatten().tolist()) <= originals for image in moved)
    # Pixels that were neighbours still are, in the same or the reverse order: half of the images are flipped.
    steps = (moved[:, 0, 16, 17] - moved[:, 0, 16, 16]).tolist()
    assert set(steps) == {1, -1} and 16 < steps.count(1) < 48
    assert len({image[0, 16, 16].item() for image in moved}) > 20


def test_mixup_blends_a_share_of_the_images_by_at_most_half() -> None:
    images = torch.eye(400).reshape(400, 1, 20, 20).repeat(1, 3, 1, 1)
    for share in (0.25, 0.5, 1.0):
        found = mixup(images, share, torch.Generator().manual_seed(0))[:, 0].flatten(1)
        own, other = found.diagonal(), found.flip(1).diagonal()
        torch.testing.assert_close(own + other, torch.ones(400))
        assert float((other > 0).float().mean()) == pytest.approx(share, abs=0.07)
        assert 0.45 < float(other.max()) <= 0.5 and float(other[other > 0].mean()) == pytest.approx(0.25, abs=0.03)


def test_boxes_are_inside_the_image_and_within_their_bounds() -> None:
    boxes, flips = random_boxes(4000, 200, 100, torch.Generator().manual_seed(0))
    left, top, width, height = boxes.unbind(1)
    assert min(left.min(), top.min()) >= 0
    assert (left + width).max() <= 200.01 and (top + height).max() <= 100.01
    area = width * height / 20_000
    assert area.min() > 0.079 and area.max() > 0.75
    assert (width / height).max() <= 2 and (width / height).min() >= 0.74
    assert 0.45 < flips.float().mean() < 0.55


def test_a_batch_is_cropped_as_pillow_crops_each_image() -> None:
    coarse = torch.randint(0, 256, (24, 3, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    images = torch.nn.functional.interpolate(coarse, (40, 60), mode="bilinear").round().to(torch.uint8)
    cropped = random_resized_crop(images, 48, torch.Generator().manual_seed(1))
    boxes, flips = random_boxes(24, 60, 40, torch.Generator().manual_seed(1))
    for image, made, (left, top, width, height), flip in zip(images, cropped, boxes.tolist(), flips, strict=True):
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        box = left, top, left + width, top + height
        expected = np.asarray(photo.resize((48, 48), Image.Resampling.BILINEAR, box), np.float32)
        drawn = made.permute(1, 2, 0).numpy()
        np.testing.assert_allclose(drawn[:, ::-1] if flip else drawn, expected, atol=4)
