"""Tensors of the Open Inference Protocol, in JSON or as binary data after the JSON.

This is version 2 over REST with Triton's extensions "binary tensor data" and "classification". `service/grpc/` uses the
module too.
"""

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import Code, ServiceError
from service.inference.image_task import Payload
from service.inference.result import ImageResult
from service.inference.route import RouteChoice

MAX_JSON = 4 << 20
"""In bytes. Parsing JSON blocks all other requests, so larger tensors must be sent as binary data."""

MAX_TIMEOUT = 3_600_000_000
"""Microseconds. The largest value of the setting request_timeout."""

DATATYPES = {"logits": "FP32", "probabilities": "FP32", "executed": "BOOL", "macs": "INT64"}
"""The outputs of every model."""

CASCADE_DATATYPES = DATATYPES | {"stages": "INT64"}
"""The outputs of a cascade."""


class NullIsAbsent(BaseModel):
    """Treats a null member as missing."""

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, members: Any) -> Any:
        if isinstance(members, dict):
            return {name: value for name, value in members.items() if value is not None}
        return members


class Tolerant(NullIsAbsent):
    """Ignores unknown members, as the protocol demands."""

    model_config = ConfigDict(extra="ignore")


class Parameters(Tolerant):
    """Parameters of a request: the protocol's extensions and our own."""

    binary_data_output: bool = False
    execute_threshold: float | None = Field(default=None, ge=0, le=1)
    compute_budget: float | None = Field(default=None, ge=0, le=1)
    min_margin: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="for a cascade: an image is escalated to the next stage if its confidence is below this",
    )
    timeout: int | None = Field(default=None, gt=0, le=MAX_TIMEOUT, description="microseconds")


class InputParameters(Tolerant):
    binary_data_size: int | None = Field(default=None, ge=0)


class OutputParameters(Tolerant):
    binary_data: bool | None = None
    classification: int = Field(default=0, ge=0)


class InputTensor(Tolerant):
    name: str
    datatype: str
    shape: list[int] = Field(min_length=1, max_length=4)
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class RequestedOutput(Tolerant):
    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(Tolerant):
    id: str = Field(default="", max_length=256)
    parameters: Parameters = Parameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=2)
    outputs: list[RequestedOutput] = Field(default=[], max_length=16)


@dataclass(frozen=True)
class Call:
    """A request whose input is split into images: encoded files, or normalised tensors FP32 [3, H, W].

    ``outputs`` are those of the response.
    """

    id: str
    parameters: Parameters
    outputs: list[RequestedOutput]
    payloads: list[Payload]


def read_call(
    body: bytes,
    json_length: int | None,
    shape: tuple[int, int, int],
    max_images: int,
    datatypes: Mapping[str, str] = DATATYPES,
) -> Call:
    """Read a body whose first ``json_length`` bytes are JSON, all of it by default.

    ``datatypes`` are the model's outputs. A request that names none gets all of them.
    Raises ServiceError: bad_request, body_too_large, or invalid_parameter for more than ``max_images``.
    """
    length = len(body) if json_length is None else json_length
    if length > len(body):
        raise bad(f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes")
    if length > MAX_JSON:
        raise ServiceError(Code.BODY_TOO_LARGE, f"more than {MAX_JSON} bytes of JSON; send the tensor as binary data")
    try:
        members = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise bad(f"the request is not JSON: {error}") from error
    return call_of(members, memoryview(body)[length:], shape, max_images, datatypes)


def call_of(
    members: Any, rest: memoryview, shape: tuple[int, int, int], max_images: int, datatypes: Mapping[str, str]
) -> Call:
    """Return the call from an `InferRequest`'s members and the binary data after the JSON, as `read_call` does."""
    try:
        request = InferRequest.model_validate(members)
    except ValidationError as error:
        problem = error.errors()[0]
        raise bad(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    names = [output.name for output in request.outputs]
    unknown = [name for name in names if name not in datatypes]
    if unknown:
        raise bad(f"unknown output {unknown[0]!r}; expected one of {', '.join(datatypes)}")
    if len(set(names)) < len(names):
        raise bad("name each output once")
    if len(request.inputs) != 1:
        raise bad("send one input: image, or bytes")
    [tensor] = request.inputs
    size = tensor.parameters.binary_data_size
    if (size or 0) != len(rest) or (size is None) == (tensor.data is None):
        raise bad("an input needs either data, or binary_data_size and that number of bytes after the JSON")
    if tensor.shape[0] > max_images:
        raise ServiceError(
            Code.INVALID_PARAMETER, f"{tensor.shape[0]} images in one request; at most {max_images} are admitted"
        )
    binary = rest if size is not None else None
    if tensor.name == "image":
        payloads = read_images(tensor, binary, shape)
    elif tensor.name == "bytes":
        payloads = read_files(tensor, binary)
    else:
        raise bad(f"unknown input {tensor.name!r}; send image or bytes")
    outputs = request.outputs or [RequestedOutput(name=name) for name in datatypes]
    return Call(request.id, request.parameters, outputs, payloads)


def read_images(tensor: InputTensor, binary: memoryview | None, shape: tuple[int, int, int]) -> list[Payload]:
    """Return the images of a tensor FP32 [N, 3, H, W]."""
    if tensor.datatype != "FP32" or len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != shape or tensor.shape[0] < 1:
        raise bad(
            f"image has to be FP32 {[-1, *shape]}, normalised as the model's config says, not "
            f"{tensor.datatype!r} {tensor.shape}"
        )
    if binary is not None:
        if len(binary) != 4 * math.prod(tensor.shape):
            raise bad(f"{len(binary)} bytes are not {tensor.shape} floats")
        values = np.frombuffer(binary, "<f4")
    else:
        try:
            with np.errstate(over="ignore"):
                values = np.asarray(tensor.data, np.float32).ravel()
        except (ValueError, TypeError, OverflowError) as error:
            raise bad(f"the data of image are not numbers: {error}") from error
    if values.size != math.prod(tensor.shape):
        raise bad(f"{values.size} numbers are not {tensor.shape}")
    if not np.isfinite(values).all():
        raise bad("image holds NaN or infinity")
    return list(values.astype(np.float32, copy=False).reshape(tensor.shape))


def read_files(tensor: InputTensor, binary: memoryview | None) -> list[Payload]:
    """Return the encoded images of a tensor BYTES [N], or [N, 1] as in Triton's configuration. JSON has base64."""
    if tensor.datatype != "BYTES" or tensor.shape[0] < 1 or tensor.shape[1:] not in ([], [1]):
        raise bad(f"bytes has to be BYTES [-1], not {tensor.datatype!r} {tensor.shape}")
    if binary is not None:
        return split_elements(binary, tensor.shape[0])
    elements = tensor.data or []
    if len(tensor.shape) == 2 and all(isinstance(element, list) and len(element) == 1 for element in elements):
        elements = [element[0] for element in elements]
    if len(elements) != tensor.shape[0]:
        raise bad(f"bytes has {len(elements)} elements, not {tensor.shape[0]}")
    try:
        return [base64.b64decode(element, validate=True) for element in elements]
    except (binascii.Error, TypeError, ValueError) as error:
        raise bad(f"the data of bytes have to be base64 strings: {error}") from error


def split_elements(binary: memoryview, count: int) -> list[Payload]:
    """Return the ``count`` elements of a binary tensor BYTES. Each is preceded by its length, four bytes."""
    elements: list[Payload] = []
    # At most `count` are read, because the body could have millions of empty elements.
    for _ in range(count):
        end = 4 + int.from_bytes(binary[:4], "little")
        if len(binary) < end:
            raise bad("the data of bytes end before the last element")
        elements.append(bytes(binary[4:end]))
        binary = binary[end:]
    if binary:
        raise bad(f"the data of bytes are longer than the {count} elements")
    return elements


def respond(
    call: Call, results: Sequence[ImageResult], labels: list[str], model: str, version: int, route: RouteChoice
) -> tuple[bytes, int | None]:
    """Return the response's body, and the length of its JSON if binary tensors follow.

    The response's parameters say whether ``route`` was degraded under load.
    """
    binary_by_default = call.parameters.binary_data_output
    described, behind = [], []
    for output, datatype, values, content in output_tensors(call, results, labels):
        tensor: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": list(values.shape)}
        binary = output.parameters.binary_data
        if binary_by_default if binary is None else binary:
            tensor["parameters"] = {"binary_data_size": len(content)}
            behind.append(content)
        else:
            flat = values.ravel().tolist()
            tensor["data"] = [each.decode() for each in flat] if datatype == "BYTES" else flat
        described.append(tensor)
    response: dict[str, Any] = {"model_name": model, "model_version": str(version), "outputs": described}
    if route.accuracy_loss is not None:
        response["parameters"] = {"degraded": True, "expected_accuracy_loss": round(route.accuracy_loss, 4)}
    if call.id:
        response["id"] = call.id
    head = json.dumps(response, allow_nan=False).encode()
    return (head + b"".join(behind), len(head)) if behind else (head, None)


def output_tensors(
    call: Call, results: Sequence[ImageResult], labels: list[str]
) -> Iterator[tuple[RequestedOutput, str, NDArray[Any], bytes]]:
    """Yield each output of the response: the requested output, its datatype, its values and their bytes."""
    if not all(np.isfinite(result.logits).all() for result in results):
        raise bad("image holds numbers so large that the network's sums overflow; is it normalised?")
    for output in call.outputs:
        values = tensor_of(output.name, results)
        if output.parameters.classification:
            values = classified(values, labels, output)
            yield output, "BYTES", values, b"".join(map(with_length, values.ravel()))
        else:
            yield output, CASCADE_DATATYPES[output.name], values, values.tobytes()


def with_length(element: bytes) -> bytes:
    """Return an element of a binary tensor BYTES, preceded by its length in four bytes."""
    return len(element).to_bytes(4, "little") + element


def tensor_of(name: str, results: Sequence[ImageResult]) -> NDArray[Any]:
    """Return an output's values for N images.

    logits and probabilities [N, classes], executed [N, B-1], macs [N]; of a cascade also stages [N] (how many ran).
    """
    if name == "macs":
        return np.asarray([result.macs for result in results], "<i8")
    if name == "stages":
        return np.asarray([len(result.stages) for result in results], "<i8")
    if name == "executed":
        return np.stack([result.executed for result in results])
    values = [result.logits if name == "logits" else result.probabilities for result in results]
    return np.stack(values).astype("<f4", copy=False)


def classified(values: NDArray[Any], labels: list[str], output: RequestedOutput) -> NDArray[Any]:
    """Return the most probable classes of each image as b"value:index:label", [N, k]."""
    if output.name not in ("logits", "probabilities"):
        raise bad(f"the output {output.name} cannot be classified; logits and probabilities can")
    order = np.argsort(-values, axis=1, kind="stable")[:, : output.parameters.classification]
    rows = [[f"{row[i]:f}:{i}:{labels[i]}".encode() for i in best] for row, best in zip(values, order, strict=True)]
    return np.asarray(rows, object)


def bad(message: str) -> ServiceError:
    return ServiceError(Code.BAD_REQUEST, message)
