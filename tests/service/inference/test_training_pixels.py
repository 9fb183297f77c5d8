"""Training and serving see the same pixels of every image file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.data.batches import PreparedImages
from models.data.datasets import find_dataset
from models.data.source import Source, read_source
from models.preprocessing import InputSpec, prepare
from service.inference.decoder import Decoder
from tests.models.images.test_profiles import DISPLAY_P3
from tests.research import shared
from tests.service.parts import encoded, picture

IMAGENET = find_dataset("imagenet")
SPEC = InputSpec(height=32, width=40, resize=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
DECODER = Decoder(50_000_000, 1 << 29)
CASES = ("comfy_zTXt.png", "cutout_noise.png", "grey16.png", "no_eoi.jpg", "palette.png", "v5_alpha0.bmp")


def alpha_picture() -> Image.Image:
    image = picture(3, 90, 60).convert("RGBA")
    image.putalpha(picture(4, 90, 60).convert("L"))
    return image


def made() -> Iterator[tuple[str, bytes]]:
    """Yield a file of every format and mode that Pillow writes, with orientations, profiles and palettes."""
    rgb, rgba = picture(3, 90, 60), alpha_picture()
    grey16 = Image.fromarray((np.asarray(rgb.convert("L"), np.uint16) * 257)[:, ::-1].copy())
    palette = rgb.quantize(16)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"{mode}.png", encoded(rgba.convert(mode))
    yield "grey16.png", encoded(grey16)
    yield "grey16_transparent.png", encoded(grey16, transparency=int(grey16.getpixel((0, 0))))  # type: ignore[arg-type]
    yield "rgb_transparent.png", encoded(rgb, transparency=rgb.getpixel((0, 0)))
    yield "palette_transparent.png", encoded(palette, transparency=3)
    yield "palette_alpha.png", encoded(palette, transparency=bytes(range(0, 256, 16)))
    for mode in ("L", "RGB", "CMYK"):
        for options in ({}, {"progressive": True}, {"subsampling": 0, "quality": 95}):
            yield f"{mode}_{'_'.join(options)}.jpg", encoded(rgb.convert(mode), "JPEG", **options)
    yield "large.jpg", encoded(picture(5, 1500, 900), "JPEG")
    yield "several.mpo", encoded(rgb, "MPO", save_all=True, append_images=[rgb])
    for lossless in (False, True):
        yield f"lossless_{lossless}.webp", encoded(rgba, "WEBP", lossless=lossless)
    yield "frames.webp", encoded(rgb, "WEBP", save_all=True, append_images=[rgba])
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"{mode}.bmp", encoded(rgba.convert(mode), "BMP")
    for mode in ("L", "RGB", "RGBA"):
        yield f"{mode}.avif", encoded(rgba.convert(mode), "AVIF", speed=10)
        yield f"{mode}.heic", encoded(rgba.convert(mode), "HEIF")
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"{mode}.tiff", encoded(rgba.convert(mode), "TIFF")
    for mode in ("CMYK", "LAB", "YCbCr"):
        yield f"{mode}.tiff", encoded(rgb.convert(mode), "TIFF")
    yield "grey16.tiff", encoded(grey16, "TIFF")
    yield "frames.gif", encoded(palette, "GIF", save_all=True, append_images=[rgb], transparency=2)
    yield "grey.gif", encoded(rgb.convert("L"), "GIF")
    for kind in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"):
        yield f"profile.{kind.lower()}", encoded(rgb, kind, icc_profile=DISPLAY_P3)
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            yield f"orientation_{orientation}.{kind.lower()}", encoded(rgb, kind, exif=exif)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return dict(made()) | {name: shared(f"cases/images/{name}").read_bytes() for name in CASES}


def from_folder(folder: Path, files: dict[str, bytes]) -> Source:
    for split in ("train/all", "train/other"):
        (folder / split).mkdir(parents=True)
        for name, data in files.items():
            (folder / split / name).write_bytes(data)
    source = read_source(IMAGENET, "train", folder)
    return source.select(range(len(files)))


def from_parquet(folder: Path, files: dict[str, bytes]) -> Source:
    rows = [{"bytes": files[name], "path": name} for name in sorted(files)]
    images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": images, "label": [0] * len(rows)}), folder / "train.parquet")
    return read_source(IMAGENET, "train", folder)


@pytest.mark.parametrize("read", [from_folder, from_parquet])
def test_training_and_serving_see_the_same_pixels(read, files: dict[str, bytes], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = read(tmp_path, files)
    inputs = PreparedImages(source, SPEC)
    assert len(source) == len(files) > 50
    for index, name in enumerate(sorted(files)):
        for shorter_side in (0, SPEC.resize):
            trained, _ = source.image(index, shorter_side)
            with DECODER.decode(files[name], shorter_side) as served:
                assert (trained.mode, trained.size) == (served.mode, served.size), name
                assert trained.tobytes() == served.tobytes(), name
        # The service makes the network's input from the last of the two.
        np.testing.assert_array_equal(inputs[index][0].numpy(), prepare(served, SPEC), name)


def test_images_in_memory_are_those_that_are_served(files: dict[str, bytes], tmp_path: Path) -> None:
    pixels, _ = from_folder(tmp_path, files).in_memory(32)
    square = InputSpec(height=32, width=32, resize=32, mean=(0, 0, 0), std=(1 / 255,) * 3)
    for image, name in zip(pixels, sorted(files), strict=True):
        with DECODER.decode(files[name], 32) as served:
            np.testing.assert_array_equal(image.numpy(), prepare(served, square).round(), name)
