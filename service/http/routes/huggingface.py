"""POST / and /predict in the shape of Hugging Face's inference endpoints, for image classification."""

from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.errors import Code, ServiceError
from service.http.routes import dialects
from service.http.routes.dependencies import KEYED, failing, taking
from service.http.routes.dialects import JSON, ComputeParameters, Images
from service.inference.result import ImageResult

router = APIRouter(tags=["hugging face"])

PROBES = ("/health",)


class Parameters(ComputeParameters):
    """Parameters of an image classification, and our own."""

    top_k: int = Field(default=5, ge=1, le=1000)
    function_to_apply: Literal["softmax", "sigmoid", "none"] = Field(
        default="softmax", description="function that maps logits to scores"
    )


class ImageClassificationRequest(BaseModel):
    inputs: str = Field(description="an image in base64")
    parameters: Parameters = Parameters()


class Score(BaseModel):
    label: str
    score: float


@router.post(
    "/",
    summary="Classify an image (Hugging Face)",
    dependencies=KEYED,
    response_model=list[Score],
    responses=failing(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=taking(ImageClassificationRequest),
)
@router.post("/predict", include_in_schema=False)
async def classify(request: Request) -> JSONResponse:
    """Return the most probable labels of an image, sent as the body or as base64 in JSON."""
    images, [result], labels, headers = await dialects.run(request, read)
    assert isinstance(images.parameters, Parameters)
    return JSONResponse(scores_by_label(result, labels, images.parameters), headers=headers)


@router.get("/health", summary="Readiness probe (Hugging Face)", responses=failing(503))
async def health(request: Request) -> dict[str, Any]:
    return dialects.ready(request)


def read(kind: str, body: bytes) -> Images:
    """Return the image of a body.

    Clients send raw bytes with any content type or none. They send JSON if the request has parameters.
    """
    if kind == JSON:
        parsed = dialects.read_json(body, ImageClassificationRequest)
        return Images([dialects.from_base64(parsed.inputs)], parsed.parameters)
    if kind.startswith(("multipart/", "text/")):
        raise ServiceError(Code.UNSUPPORTED_MEDIA_TYPE, f"content type {kind}: send the image itself, or JSON")
    if not body:
        raise ServiceError(Code.BAD_REQUEST, "the image is empty")
    return Images([body], Parameters())


def scores_by_label(result: ImageResult, labels: list[str], parameters: Parameters) -> list[dict[str, Any]]:
    """Return the labels with the highest scores, highest first."""
    scores = scores_of(result, parameters.function_to_apply)
    best = np.argsort(-scores, kind="stable")[: parameters.top_k].tolist()
    return [{"label": labels[i], "score": float(scores[i])} for i in best]


def scores_of(result: ImageResult, function: str) -> NDArray[np.float32]:
    """Return the scores of all classes."""
    if function == "softmax":
        return result.probabilities
    if function == "none":
        return result.logits
    # This computes the sigmoid by tanh, which cannot overflow.
    return ((1 + np.tanh(result.logits / 2)) / 2).astype(np.float32)
