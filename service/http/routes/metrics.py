"""GET /metrics, in Prometheus' text format or OpenMetrics."""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from service.http.routes.dependencies import ContainerHere

router = APIRouter(tags=["metrics"])


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request, container: ContainerHere) -> Response:
    """Return the metrics. In OpenMetrics, the durations have request ids as exemplars."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    # Writing thousands of series would block the event loop.
    text = await asyncio.to_thread(encode, container.metrics.registry)
    return Response(text, headers={"Content-Type": content_type})
