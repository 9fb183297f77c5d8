"""The memory that decoding takes, and the bytes that are counted for it."""

import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.images.encoded import EncodedImage
from service.errors import Code, ServiceError
from service.inference.decoder import (
    BYTES_PER_PIXEL,
    START_OF_SCAN,
    DecodeMemory,
    Decoder,
    memory_of,
)
from service.settings import Settings
from tests.models.images.test_boxes import declare, photo
from tests.models.images.test_encoded import png_chunk
from tests.service.inference.test_decoder import decode, refusal
from tests.service.parts import encoded, picture, until


def test_memory_bounds_the_pixels_too() -> None:
    decoder = Decoder(max_pixels=1_000_000, max_memory=100 * BYTES_PER_PIXEL)
    assert decode(encoded(picture(0, 10, 10)), decoder).size == (10, 10)
    assert refusal(encoded(picture(0, 11, 10)), decoder) == Code.IMAGE_TOO_LARGE


def test_large_image_is_not_starved_by_small_ones() -> None:
    memory = DecodeMemory(10)
    order: list[str] = []
    small_holds, release = threading.Event(), threading.Event()

    def first_small() -> None:
        with memory.hold(4):
            small_holds.set()
            release.wait(10)

    def wait_for(size: int, name: str) -> None:
        with memory.hold(size):
            order.append(name)

    threads = [threading.Thread(target=first_small)]
    threads[0].start()
    small_holds.wait(10)
    threads.append(threading.Thread(target=wait_for, args=(10, "large")))
    threads[-1].start()
    until(memory.turn.locked)
    threads.append(threading.Thread(target=wait_for, args=(1, "small")))
    threads[-1].start()
    threads[-1].join(0.1)  # In this time it would be decoded if it did not wait for the large one.
    assert not order
    release.set()
    for thread in threads:
        thread.join(10)
    assert order == ["large", "small"]
    assert memory.free == 10


def test_memory_is_held_as_long_as_the_image() -> None:
    decoder = Decoder(1_000_000, 1 << 20)
    with decoder.decode(encoded(picture(0, 10, 10))):
        assert decoder.memory.free == (1 << 20) - 100 * BYTES_PER_PIXEL
    assert decoder.memory.free == 1 << 20


def test_memory_is_given_back_after_a_failure() -> None:
    memory = DecodeMemory(10)
    with pytest.raises(ValueError, match="x"), memory.hold(10):
        raise ValueError("x")
    assert memory.free == 10


PEAK = """
import sys
from contextlib import suppress
from pathlib import Path
from service.inference.decoder import Decoder
from service.errors import ServiceError

def memory(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

decoder = Decoder(50_000_000, 1 << 30)
shorter_side = int(sys.argv[3])
data, small = (Path(name).read_bytes() for name in sys.argv[1:3])
with decoder.decode(small, shorter_side):
    pass
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
with suppress(ServiceError), decoder.decode(data, shorter_side):
    pass
print((memory("VmHWM") - before) * 1024)
"""


def peak(file: Path, small: Path, shorter_side: int = 0) -> int:
    """Return the peak bytes of decoding ``file``, in a process that decoded ``small`` before."""
    command = [sys.executable, "-c", PEAK, str(file), str(small), str(shorter_side)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(ran.stdout)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {"compress_level": 1}),
        ("PNG", "RGB", {"compress_level": 1, "transparency": (0, 0, 0)}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("PNG", "LA", {"compress_level": 1}),
        ("PNG", "P", {"compress_level": 1, "transparency": 0}),
        ("PNG", "I;16", {"compress_level": 1}),
        ("JPEG", "RGB", {}),
        ("JPEG without end", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}),
        ("WEBP", "RGBA", {"quality": 10, "method": 0}),
        ("AVIF", "RGBA", {"speed": 10}),
        ("HEIF", "RGB", {}),
        ("HEIF", "RGBA", {}),
        ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "I", {}),
        ("GIF", "P", {}),
    ],
    ids=str,
)
def test_decoding_takes_no_more_memory_than_it_is_counted_for(
    tmp_path: Path, kind: str, mode: str, options: dict[str, object]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = options | ({"exif": exif} if kind != "GIF" else {})
    side = 3000
    for name, width in (("large", side), ("small", 16)):
        if mode == "I;16":
            image = Image.fromarray(np.arange(width * width, dtype=np.uint32).reshape(width, width).astype(np.uint16))
        else:
            image = Image.new(mode, (width, width))
        data = encoded(image, kind.split()[0], **extra)
        (tmp_path / name).write_bytes(data[:-2] if "without end" in kind and name == "large" else data)
    counted = memory_of(EncodedImage((tmp_path / "large").read_bytes()))
    assert 3 * side * side < peak(tmp_path / "large", tmp_path / "small") <= counted <= side * side * 24


@pytest.mark.parametrize("progressive", [False, True])
def test_a_reduced_jpeg_counts_its_memory(tmp_path: Path, progressive: bool) -> None:
    for name, width in (("large", 6000), ("small", 512)):
        (tmp_path / name).write_bytes(encoded(Image.new("RGB", (width, width)), "JPEG", progressive=progressive))
    # The decoder keeps the coefficients of a progressive JPEG at full size.
    counted = memory_of(EncodedImage((tmp_path / "large").read_bytes(), shorter_side=32))
    assert counted == 750 * 750 * BYTES_PER_PIXEL + progressive * 6000 * 6000 * 3
    assert peak(tmp_path / "large", tmp_path / "small", 32) <= counted


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_phone_photo_of_48_megapixels_is_accepted_by_default(kind: str) -> None:
    options = Settings()
    decoder = Decoder(options.max_image_pixels, options.max_decode_memory)
    photo = Image.new("RGB", (8064, 6048), (200, 100, 0))
    more = {"save_all": True, "append_images": [picture(0)]} if kind == "MPO" else {}
    data = encoded(photo, kind, **more)
    image = decode(data, decoder, 32)
    assert image.size == (1008, 756)
    assert memory_of(EncodedImage(data, shorter_side=32)) < 8 << 20
    # Half of it could be decoded at full size at the same time.
    assert decode(data, decoder).size == photo.size


def test_a_heic_of_48_megapixels_is_accepted_by_default() -> None:
    options = Settings()
    decoder = Decoder(options.max_image_pixels, options.max_decode_memory)
    assert decoder.open(declare(photo("HEIF"), 8064, 6048)).full_size == (8064, 6048)


def test_components_in_separate_scans_are_counted() -> None:
    """A sequential JPEG may have a scan for each component. The decoder then keeps all coefficients."""
    data = encoded(picture(0, 64, 64), "JPEG", subsampling=0)
    start = data.index(START_OF_SCAN)
    alone = data[:start] + START_OF_SCAN + b"\0\x08\x01\x01\0\0\x3f\0" + data[start + 14 :]
    assert memory_of(EncodedImage(data)) == 64 * 64 * BYTES_PER_PIXEL
    assert memory_of(EncodedImage(alone)) == 64 * 64 * (BYTES_PER_PIXEL + 6)


def test_a_refusal_for_size_names_the_setting() -> None:
    with pytest.raises(ServiceError, match=r"at most 99 are accepted.*--max-image-pixels \(SKIPNET_MAX_IMAGE_PIXELS\)"):
        decode(encoded(picture(0, 10, 10)), Decoder(99, 1 << 20))
    with pytest.raises(ServiceError, match=r"takes 10 MiB .* 1 MiB are .*--max-decode-memory \(SKIPNET_MAX_DECODE_MEM"):
        decode(encoded(Image.new("RGB", (1024, 1024))), Decoder(1 << 21, 1 << 20))


def test_compressed_text_in_a_png_is_not_decompressed(tmp_path: Path) -> None:
    image = encoded(picture(0))
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000))
    (tmp_path / "bomb").write_bytes(image[:33] + bomb + image[33:])
    (tmp_path / "small").write_bytes(image)
    assert peak(tmp_path / "bomb", tmp_path / "small") < 20_000_000
