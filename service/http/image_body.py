"""Read one image from a request's body."""

import re

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import Code, ServiceError

BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,200}")


async def read_image(request: Request, max_size: int) -> bytes:
    """Return the image's bytes, which are the body or a part of a form.

    Raises ServiceError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        image = await read_form(request, max_size)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        image = await request.body()
    else:
        raise ServiceError(
            Code.UNSUPPORTED_MEDIA_TYPE,
            f"content type {kind or 'missing'}: send multipart/form-data with a part `image`, or the image itself with "
            "its own content type, such as image/jpeg",
        )
    if not image:
        raise ServiceError(Code.BAD_REQUEST, "the image is empty")
    return image


async def read_form(request: Request, max_size: int) -> bytes:
    """Return the content of the part `image`, which may have a filename."""
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"").decode("latin-1")
    if not BOUNDARY.fullmatch(boundary):
        raise ServiceError(Code.BAD_REQUEST, "the content type multipart/form-data has no valid boundary")
    # Parts without a filename are decoded as text. Latin-1 keeps their bytes. The client's charset may lose some, or
    # take seconds.
    headers = Headers({"content-type": f'multipart/form-data; charset=latin-1; boundary="{boundary}"'})
    parser = MultiPartParser(headers, request.stream(), max_files=1, max_fields=8, max_part_size=max_size)
    # The part stays in memory, which the limit on the body bounds. The file system may be read-only.
    parser.spool_max_size = max_size
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ServiceError(
            Code.BAD_REQUEST,
            f"the multipart body cannot be read: {error.message.rstrip('.')}; send one image, in the part `image`",
        ) from error
    try:
        return await image_of(form)
    finally:
        await form.close()


async def image_of(form: FormData) -> bytes:
    images = form.getlist("image")
    if len(images) != 1:
        raise ServiceError(Code.BAD_REQUEST, f"the form has {len(images)} parts `image`; send one")
    others = [name for name in form if name != "image"]
    if others:
        name = others[0].encode("latin-1").decode(errors="replace")
        raise ServiceError(
            Code.INVALID_PARAMETER,
            f"the form's part {name!r} would be ignored: parameters go into the query, as in /classify?top_k=1",
        )
    image = images[0]
    return await image.read() if isinstance(image, UploadFile) else image.encode("latin-1")
