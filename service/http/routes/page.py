"""GET /: a page to try it on."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

PAGE = (Path(__file__).parent.parent / "page.html").read_text()


@router.get("/")
async def page() -> Response:
    return HTMLResponse(
        PAGE,
        headers={
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'"
        },
    )
