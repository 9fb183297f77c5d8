"""The images that the load generator sends."""

from io import BytesIO

from PIL import Image

from service.benchmark.generator import Request
from service.benchmark.servers import ROOT

PHOTO = ROOT / "tests/photos/cat.jpg"
BOUNDARY = "image-boundary"


def small() -> bytes:
    """Return the photo as a PNG of the network's input size, which takes little time to decode."""
    file = BytesIO()
    with Image.open(PHOTO) as photo:
        photo.resize((32, 32)).save(file, "PNG")
    return file.getvalue()


IMAGES = {"PNG 32x32": (small(), "image/png"), "JPEG 451x300": (PHOTO.read_bytes(), "image/jpeg")}


def post(name: str, *paths: str, headers: tuple[str, ...] = ()) -> Request:
    """Return a request that sends an image as its body to /classify, or to ``paths`` in turn."""
    image, kind = IMAGES[name]
    return Request(paths or ("/classify",), image, kind, headers)


def form(name: str) -> Request:
    """Return a request that sends an image as the field `image` of a form, which every server accepts."""
    image, kind = IMAGES[name]
    disposition = 'Content-Disposition: form-data; name="image"; filename="image"'
    head = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: {kind}\r\n\r\n".encode()
    body = head + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return Request(("/classify",), body, f"multipart/form-data; boundary={BOUNDARY}")
