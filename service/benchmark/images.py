"""The images that the load generator sends."""

from io import BytesIO

from PIL import Image

from service.benchmark.servers import ROOT

PHOTO = ROOT / "tests/photos/cat.jpg"


def small() -> bytes:
    """Return the photo as a PNG of the network's input size, which takes little time to decode."""
    file = BytesIO()
    with Image.open(PHOTO) as photo:
        photo.resize((32, 32)).save(file, "PNG")
    return file.getvalue()


IMAGES = {"PNG 32x32": (small(), "image/png"), "JPEG 451x300": (PHOTO.read_bytes(), "image/jpeg")}
