"""Predictions in the shape of Google's Vertex AI, at the paths that its variables AIP_… name.

A prediction has the members of Vertex AI's own image classification: ids, displayNames and confidences.
"""

import os
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, AliasPath, BaseModel, BeforeValidator, Field

from service.http.routes import dialects
from service.http.routes.dependencies import KEYED, failing, taking
from service.http.routes.dialects import ComputeParameters, Images
from service.inference.result import predictions

router = APIRouter(tags=["vertex ai"])

PREDICT = os.environ.get("AIP_PREDICT_ROUTE") or "/vertex/predict"
HEALTH = os.environ.get("AIP_HEALTH_ROUTE") or "/vertex/health"
PROBES = (HEALTH,)


class Instance(BaseModel):
    """An image in base64: ``{"b64": …}``, ``{"content": …}``, ``{"image_bytes": {"b64": …}}`` or the text alone."""

    b64: str = Field(validation_alias=AliasChoices("b64", "content", AliasPath("image_bytes", "b64")))


def named(instance: Any) -> Any:
    return {"b64": instance} if isinstance(instance, str) else instance


class Parameters(ComputeParameters):
    max_predictions: int = Field(default=5, ge=1, le=1000, alias="maxPredictions")


class PredictRequest(BaseModel):
    instances: list[Annotated[Instance, BeforeValidator(named)]] = Field(min_length=1)
    parameters: Parameters = Parameters()


class ImagePrediction(BaseModel):
    """The most probable classes of an image, most probable first."""

    ids: list[str] = Field(description="indices of the classes")
    displayNames: list[str]
    confidences: list[float]


class PredictResponse(BaseModel):
    predictions: list[ImagePrediction]


@router.post(
    PREDICT,
    summary="Classify images (Vertex AI)",
    dependencies=KEYED,
    response_model=PredictResponse,
    responses=failing(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504),
    openapi_extra=taking(PredictRequest),
)
async def predict(request: Request) -> JSONResponse:
    """Return the most probable classes of each instance, an image in base64."""
    images, results, labels, headers = await dialects.run(request, read)
    assert isinstance(images.parameters, Parameters)
    top_k = images.parameters.max_predictions
    entries = []
    for result in results:
        best = predictions(result.probabilities, labels, top_k)
        entries.append(
            ImagePrediction(
                ids=[str(each.index) for each in best],
                displayNames=[each.label for each in best],
                confidences=[each.probability for each in best],
            )
        )
    return JSONResponse(PredictResponse(predictions=entries).model_dump(), headers=headers)


@router.get(HEALTH, summary="Readiness probe (Vertex AI)", responses=failing(503))
async def health(request: Request) -> dict[str, Any]:
    return dialects.ready(request)


def read(_: str, body: bytes) -> Images:
    """Return the images of a body, which is JSON with any content type."""
    parsed = dialects.read_json(body, PredictRequest)
    return Images([dialects.from_base64(each.b64) for each in parsed.instances], parsed.parameters)
