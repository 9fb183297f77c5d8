import numpy as np
import pytest

from models.analysis import alterations
from models.analysis.appearance import brightness, contrast, sharpness

FLAT = np.full((1, 32, 32, 3), 128, np.uint8)
CHECKED = np.repeat((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None], 3, 3)
HALVED = np.repeat((np.indices((32, 32))[1] // 16 * 255).astype(np.uint8)[None, :, :, None], 3, 3)


def test_appearance_of_known_images() -> None:
    assert brightness(FLAT) == pytest.approx(128 / 255, abs=1e-4)
    assert contrast(FLAT) == pytest.approx(0, abs=1e-5)
    assert contrast(CHECKED) == pytest.approx(0.5) == pytest.approx(contrast(HALVED)[0])
    assert sharpness(CHECKED)[0] > 4 * sharpness(HALVED)[0] > 0
    # Half the contrast of the same detail is equally sharp.
    assert sharpness(alterations.scale_contrast(CHECKED, 0.5)) == pytest.approx(sharpness(CHECKED), rel=0.01)


def test_each_alteration_changes_one_property() -> None:
    assert brightness(alterations.scale_brightness(FLAT, 0.5)) == pytest.approx(64 / 255, abs=1e-4)
    softer = alterations.scale_contrast(HALVED, 0.5)
    assert contrast(softer) == pytest.approx(0.25, abs=0.01)
    assert brightness(softer) == pytest.approx(brightness(HALVED), abs=0.01)
    assert sharpness(alterations.blur(HALVED, 4))[0] < sharpness(HALVED)[0] / 2
    assert alterations.resize(HALVED, 0.5).shape == (1, 16, 16, 3)


@pytest.mark.parametrize("name", alterations.ALTERATIONS)
def test_neutral_strength_changes_nothing(name: str) -> None:
    alteration = alterations.ALTERATIONS[name]
    assert alteration.neutral in alteration.strengths
    np.testing.assert_array_equal(alteration.change(CHECKED, alteration.neutral), CHECKED)


def test_shift_repeats_the_edge() -> None:
    numbered = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, 3)
    moved = alterations.shift(numbered, across=1, down=-2)[0, :, :, 0]
    np.testing.assert_array_equal(moved, [[8, 8, 9, 10], [12, 12, 13, 14], [12, 12, 13, 14], [12, 12, 13, 14]])


def test_jpeg_error_grows_as_the_quality_falls() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    errors = [np.abs(alterations.compress_jpeg(noisy, quality).astype(int) - noisy).mean() for quality in (95, 50, 10)]
    assert 0 < errors[0] < errors[1] < errors[2]
