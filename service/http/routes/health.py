"""Liveness and readiness probes."""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from service.http.routes.dependencies import ContainerHere

router = APIRouter(prefix="/health", tags=["health"])


class Live(BaseModel):
    live: bool
    reasons: list[str] = []


class Ready(BaseModel):
    ready: bool
    reasons: list[str] = []


@router.get("/live", summary="Liveness probe", responses={503: {"model": Live, "description": "restart this process"}})
async def live(container: ContainerHere, response: Response) -> Live:
    """Return whether the process is live. If not, restart it."""
    reasons = container.health.not_live()
    response.status_code = 503 if reasons else 200
    return Live(live=not reasons, reasons=reasons)


@router.get(
    "/ready", summary="Readiness probe", responses={503: {"model": Ready, "description": "send requests elsewhere"}}
)
async def ready(container: ContainerHere, response: Response) -> Ready:
    """Return whether the process is ready: a model is loaded, its engine runs, and the process is not draining."""
    reasons = container.health.not_ready()
    response.status_code = 503 if reasons else 200
    return Ready(ready=not reasons, reasons=reasons)
