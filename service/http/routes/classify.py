"""POST /classify: the labels of an image and the blocks that were executed."""

from time import perf_counter

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.errors import Code, documented
from service.http.body import deadline_of, read_body
from service.http.image_body import read_image
from service.http.request_context import context_of
from service.http.routes.dependencies import KEYED, container_of, described, read_parameters, read_query
from service.inference.result import Classification, ModelIdentity, predictions, routing, timing_answer

router = APIRouter(tags=["inference"])

FILE = {"type": "string", "format": "binary"}
IMAGE_TYPES = ("jpeg", "png", "webp", "avif", "heic", "heif", "tiff", "bmp", "gif")
REQUEST_BODY = {
    "required": True,
    "description": "an image: JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP or GIF (its first frame or page)",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": {"image": FILE}}},
        **{f"image/{kind}": {"schema": FILE} for kind in IMAGE_TYPES},
    },
}


EXAMPLE = {
    "request_id": "2f1c9a7be0d4435c",
    "model": {"name": "cifar10_rnn_gate_38", "version": 9, "engine": "native", "device": "cpu"},
    "predictions": [
        {"label": "cat", "index": 3, "probability": 0.9731},
        {"label": "dog", "index": 5, "probability": 0.0182},
    ],
    "routing": {
        "blocks": 18,
        "executed": 10,
        "skipped": 8,
        "layers_skipped": 16,
        "macs": 45_551_626,
        "dense_macs": 83_280_512,
        "saved": 0.453,
        "mode": "branch",
    },
    "timing_ms": {"decode": 0.211, "queue": 0.064, "inference": 0.702, "total": 1.318},
}
"""A response to /classify?top_k=2 in the OpenAPI document."""


class ClassifyQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="default: the server's default model")
    version: int | None = Field(None, ge=0, description="default: the promoted or the newest one")
    top_k: int = Field(5, ge=1, le=1000, description="predictions to return, at most one per class")
    execute_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="run a block if its gate's probability is above this: 0 runs every block, 1 only "
        "the first; default: the checkpoint's",
    )
    compute_budget: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="instead of a threshold: the share of the dense MACs to spend, on average over images "
        "like those the checkpoint was calibrated on",
    )
    min_margin: float | None = Field(
        None,
        ge=0,
        le=1,
        description="for a cascade: an image is escalated to the next stage if the difference of the two likeliest "
        "classes' probabilities is below this; default: the cascade's",
    )
    explain: bool = Field(False, description="list every gate's decision in routing.decisions")


class ClassifyHeaders(BaseModel):
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        alias="x-request-timeout",
        description="seconds until 504; at most the server's setting",
    )
    degrade: bool = Field(
        True,
        alias="x-degrade",
        description="false: keep the usual route under load, if the server has --degrade-to",
    )


@router.post(
    "/classify",
    dependencies=KEYED,
    response_model=Classification,
    response_model_exclude_none=True,
    responses=documented(
        Code.BAD_REQUEST,
        Code.DAMAGED_IMAGE,
        Code.UNAUTHORIZED,
        Code.FORBIDDEN,
        Code.MODEL_NOT_FOUND,
        Code.BODY_TIMEOUT,
        Code.BODY_TOO_LARGE,
        Code.IMAGE_TOO_LARGE,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.INVALID_PARAMETER,
        Code.OVERLOADED,
        Code.INTERNAL,
        Code.ENGINE_FAILED,
        Code.NOT_READY,
        Code.DEADLINE,
    )
    | {200: {"content": {"application/json": {"example": EXAMPLE}}}},
    summary="Classify an image",
    openapi_extra={
        "parameters": described(ClassifyQuery, "query") + described(ClassifyHeaders, "header"),
        "requestBody": REQUEST_BODY,
    },
)
async def classify(request: Request) -> Response:
    """Classify one image, sent as the multipart field `image` or as the body."""
    container, context = container_of(request), context_of(request)
    container.inference_keys.check(request.headers)
    query = read_query(ClassifyQuery, request)
    timing = context.timing
    headers = read_parameters(ClassifyHeaders, request.headers)
    deadline = deadline_of(timing.started, container.settings.request_timeout, headers.timeout)
    container.health.require_accepting()
    with container.lease(query.model, query.version, request.headers) as loaded:
        context.model, context.version = loaded.name, str(loaded.version)
        container.admission.refuse_if_saturated(loaded)
        route = container.degradation.route(loaded, query, headers.degrade)
        image = await read_body(read_image(request, container.settings.max_body_size), deadline)
        timing.receive = perf_counter() - timing.started
        with container.admission.admit(1, loaded, deadline, timing.started):
            [result] = await container.pipeline.run(
                loaded,
                [image],
                threshold=route.threshold,
                deadline=deadline,
                timing=timing,
                disconnected=request.receive(),
            )
        timing.finish()
        body = Classification(
            request_id=context.request_id,
            model=ModelIdentity(
                name=loaded.name,
                version=loaded.version,
                engine=loaded.engine_in(result.mode),
                device=loaded.device,
            ),
            predictions=predictions(result.probabilities, loaded.labels, query.top_k),
            routing=routing(result, loaded.dense_macs, query.explain),
            timing_ms=timing_answer(timing),
            expected_accuracy=None if route.expected_accuracy is None else round(route.expected_accuracy, 4),
            degraded=route.degraded or None,
            expected_accuracy_loss=None if route.accuracy_loss is None else round(route.accuracy_loss, 4),
        )
        container.metrics.observe_request(loaded, timing, context.request_id, [result], route)
    context.fields |= {
        "label": body.predictions[0].label,
        "threshold": route.threshold,
        "skipped": body.routing.skipped,
        "saved": body.routing.saved,
        "batch": timing.batch_size,
    }
    return Response(
        body.model_dump_json(exclude_none=True),
        media_type="application/json",
        headers=timing.headers(),
    )
