"""POST /classify: an image in, its labels and the blocks it needed out."""

from time import perf_counter

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import Code, ServiceError, documented
from service.http.body import deadline_of, read_body
from service.http.request_context import context_of
from service.http.routes.dependencies import KEYED, container_of, described, read_parameters, read_query
from service.inference.result import Classification, ModelIdentity, predictions, routing, timing_answer

router = APIRouter(tags=["inference"])

CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")
"""Of a form's names, which are decoded in the event loop: others take longer than their length, punycode its square."""

FILE = {"type": "string", "format": "binary"}
REQUEST_BODY = {
    "required": True,
    "description": "an image: JPEG, PNG, WebP, BMP or GIF, of which the first frame counts",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": {"image": FILE}}},
        **{f"image/{kind}": {"schema": FILE} for kind in ("jpeg", "png", "webp", "bmp", "gif")},
    },
}


class ClassifyQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="default: the server's default model")
    version: int | None = Field(None, ge=0, description="default: the newest that is served")
    top_k: int = Field(5, ge=1, le=1000, description="predictions to return, at most one a class")
    execute_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="run a block where its gate's probability is above this: 0 runs every block, 1 none but "
        "the first; default: the checkpoint's",
    )
    compute_budget: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="instead of a threshold: the share of dense multiply-adds to spend, on average over images "
        "like those the checkpoint was calibrated on",
    )
    min_margin: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of a cascade: an image goes on to the next stage where the difference of the two likeliest "
        "classes' probabilities is below this; default: the cascade's",
    )
    explain: bool = Field(False, description="list every gate's decision in routing.decisions")


class ClassifyHeaders(BaseModel):
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        alias="x-request-timeout",
        description="seconds until 504; the server's setting is the most",
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
    ),
    openapi_extra={
        "parameters": described(ClassifyQuery, "query") + described(ClassifyHeaders, "header"),
        "requestBody": REQUEST_BODY,
    },
)
async def classify(request: Request) -> Response:
    """Classify one image, sent as the multipart field `image` or as the body itself."""
    container, context = container_of(request), context_of(request)
    container.inference_keys.check(request)
    query = read_query(ClassifyQuery, request)
    timing = context.timing
    requested = read_parameters(ClassifyHeaders, request.headers).timeout
    deadline = deadline_of(timing.started, container.settings.request_timeout, requested)
    container.health.require_accepting()
    with container.repository.lease(query.model, query.version) as loaded:
        context.model, context.version = loaded.name, str(loaded.version)
        container.admission.refuse_if_saturated(loaded)
        route = loaded.choose_route(query.execute_threshold, query.compute_budget, query.min_margin)
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
        answer = Classification(
            request_id=context.request_id,
            model=ModelIdentity(
                name=loaded.name,
                version=loaded.version,
                engine=loaded.engine_in(result.mode),
                device=loaded.engine.device,
            ),
            predictions=predictions(result.probabilities, loaded.labels, query.top_k),
            routing=routing(result, loaded.dense_macs, query.explain),
            timing_ms=timing_answer(timing),
            expected_accuracy=None if route.expected_accuracy is None else round(route.expected_accuracy, 4),
        )
        container.metrics.observe_request(loaded, timing, context.request_id, [result])
    context.fields |= {
        "label": answer.predictions[0].label,
        "threshold": route.threshold,
        "skipped": answer.routing.skipped,
        "saved": answer.routing.saved,
        "batch": timing.batch_size,
    }
    return Response(
        answer.model_dump_json(exclude_none=True),
        media_type="application/json",
        headers=timing.headers(),
    )


async def read_image(request: Request, max_size: int) -> bytes:
    """Return the image's bytes, as the body or in it; raises ServiceError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        image = await read_multipart(request, max_size)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        image = await request.body()
    else:
        raise ServiceError(
            Code.UNSUPPORTED_MEDIA_TYPE,
            f"content type {kind or 'missing'}: send multipart/form-data with a file field `image`, or the image "
            "itself with its own content type, such as image/jpeg",
        )
    if not image:
        raise ServiceError(Code.BAD_REQUEST, "the image is empty")
    return image


async def read_multipart(request: Request, max_size: int) -> bytes:
    """Return the content of the file field `image`."""
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in CHARSETS:
        raise ServiceError(Code.BAD_REQUEST, f"the form's charset {charset!r} is not read: leave it out, or send utf-8")
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=8)
    # In memory, which the limit on the body bounds: the file system may be read-only.
    parser.spool_max_size = max_size
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ServiceError(
            Code.BAD_REQUEST,
            f"the multipart body can't be read: {error.message.rstrip('.')}; send one image, in the file field `image`",
        ) from error
    upload = form.get("image")
    try:
        if not isinstance(upload, UploadFile):
            raise ServiceError(Code.BAD_REQUEST, "send the image as a file in the multipart field `image`")
        others = [name for name in form if name != "image"]
        if others:
            raise ServiceError(
                Code.INVALID_PARAMETER,
                f"the form's field {others[0]!r} would not be read: parameters go into the query, as in "
                "/classify?top_k=1",
            )
        return await upload.read()
    finally:
        await form.close()
