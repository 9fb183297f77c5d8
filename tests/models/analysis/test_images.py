import numpy as np
import pytest

from models.analysis import images

FLAT = np.full((1, 32, 32, 3), 128, np.uint8)
CHECKED = np.repeat((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None], 3, 3)
HALVED = np.repeat((np.indices((32, 32))[1] // 16 * 255).astype(np.uint8)[None, :, :, None], 3, 3)


def test_looks_of_known_images() -> None:
    assert images.brightness(FLAT) == pytest.approx(128 / 255, abs=1e-4)
    assert images.contrast(FLAT) == pytest.approx(0, abs=1e-5)
    assert images.contrast(CHECKED) == pytest.approx(0.5) == pytest.approx(images.contrast(HALVED)[0])
    assert images.sharpness(CHECKED)[0] > 4 * images.sharpness(HALVED)[0] > 0
    # Half the contrast of the same detail is not half as sharp.
    assert images.sharpness(images.stretch(CHECKED, 0.5)) == pytest.approx(images.sharpness(CHECKED), rel=0.01)


def test_alterations_do_one_thing() -> None:
    assert images.brightness(images.brighten(FLAT, 0.5)) == pytest.approx(64 / 255, abs=1e-4)
    softer = images.stretch(HALVED, 0.5)
    assert images.contrast(softer) == pytest.approx(0.25, abs=0.01)
    assert images.brightness(softer) == pytest.approx(images.brightness(HALVED), abs=0.01)
    assert images.sharpness(images.blur(HALVED, 4))[0] < images.sharpness(HALVED)[0] / 2
    assert images.resize(HALVED, 0.5).shape == (1, 16, 16, 3)
    for change, neutral in ((images.brighten, 1), (images.stretch, 1), (images.blur, 0)):
        np.testing.assert_array_equal(change(CHECKED, neutral), CHECKED)


def test_a_shift_moves_and_repeats_the_edge() -> None:
    numbered = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, 3)
    moved = images.shift(numbered, across=1, down=-2)[0, :, :, 0]
    np.testing.assert_array_equal(moved, [[8, 8, 9, 10], [12, 12, 13, 14], [12, 12, 13, 14], [12, 12, 13, 14]])


def test_jpeg_of_less_quality_is_farther_off() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    errors = [np.abs(images.compress(noisy, quality).astype(int) - noisy).mean() for quality in (95, 50, 10)]
    assert 0 < errors[0] < errors[1] < errors[2]
