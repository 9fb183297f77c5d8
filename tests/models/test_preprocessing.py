import numpy as np
import pytest
from PIL import Image

from models.preprocessing import InputSpec, prepare

SPEC = InputSpec(height=32, width=32, resize=32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1))


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    expected = (pixels / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    result = prepare(Image.fromarray(pixels), SPEC)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (33, 32), (640, 480), (31, 400)])
def test_any_size_becomes_the_size_of_the_input(size: tuple[int, int]) -> None:
    assert prepare(Image.new("RGB", size, (255, 0, 0)), SPEC).shape == (3, 32, 32)


def test_the_centre_is_cropped() -> None:
    image = Image.new("RGB", (300, 100), (0, 0, 0))
    image.paste((255, 255, 255), (100, 0, 200, 100))
    white = (1 - np.array(SPEC.mean)) / np.array(SPEC.std)
    np.testing.assert_allclose(prepare(image, SPEC).mean((1, 2)), white, rtol=0.1)


@pytest.mark.parametrize("side", [512, 224, 256])
def test_resize_and_crop_are_those_of_imagenets_networks(side: int) -> None:
    spec = SPEC.model_copy(update={"height": 224, "width": 224, "resize": 256, "interpolation": "bilinear"})
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    cropped = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    difference = np.abs(
        prepare(Image.fromarray(pixels), spec)
        - prepare(cropped, SPEC.model_copy(update={"height": 224, "width": 224, "resize": 224}))
    )
    # Two roundings to integer pixel values may differ by one.
    assert difference.max() <= 1.01 / 255 / min(SPEC.std)
