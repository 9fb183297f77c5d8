"""GET /: a page to try the service, with two sample photos."""

from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "page"
PAGE = (FOLDER / "index.html").read_text(encoding="utf-8")


@router.get("/")
async def page() -> Response:
    """Return the page."""
    return HTMLResponse(
        PAGE,
        headers={
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; img-src 'self' blob: data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'"
        },
    )


@router.get("/samples/{name}.jpg")
async def sample(name: Literal["cat", "rocket"]) -> Response:
    """Return a sample photo."""
    return FileResponse(FOLDER / f"{name}.jpg", media_type="image/jpeg", headers={"Cache-Control": "max-age=86400"})
