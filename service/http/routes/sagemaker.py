"""GET /ping and POST /invocations, which Amazon SageMaker requests from a container.

Requests and responses have the shape of AWS's Hugging Face containers (`service/http/routes/huggingface.py`).
"""

from typing import Any

from fastapi import APIRouter, Request

from service.http.routes import dialects, huggingface
from service.http.routes.dependencies import KEYED, failing, taking
from service.http.routes.huggingface import ImageClassificationRequest, Score

router = APIRouter(tags=["sagemaker"])

PROBES = ("/ping",)

router.post(
    "/invocations",
    summary="Classify an image (SageMaker)",
    dependencies=KEYED,
    response_model=list[Score],
    responses=failing(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=taking(ImageClassificationRequest),
)(huggingface.classify)


@router.get("/ping", summary="Readiness probe (SageMaker)", responses=failing(503))
async def ping(request: Request) -> dict[str, Any]:
    return dialects.ready(request)
