"""The photo that is sent, large and small."""

from io import BytesIO

from PIL import Image

from service.benchmark.servers import ROOT

PHOTO = ROOT / "tests/photos/cat.jpg"


def small() -> bytes:
    """Return the photo at the network's own size, as PNG: next to no decoding."""
    file = BytesIO()
    with Image.open(PHOTO) as photo:
        photo.resize((32, 32)).save(file, "PNG")
    return file.getvalue()


IMAGES = {"PNG 32x32": (small(), "image/png"), "JPEG 451x300": (PHOTO.read_bytes(), "image/jpeg")}
