"""Messages of the Open Inference Protocol: the classes that gRPC reads and writes.

They come from a compiled description, `open_inference.binpb`, in a separate pool. Generated modules would use the pool
of the process, which may already have the same names from a client's modules.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from service.http.oip import MAX_JSON, Parameters, bad, with_length

FOLDER = Path(__file__).parent
SERVICE = "inference.GRPCInferenceService"
MAX_FIELDS = 64
"""Fields of a request at its top level: inputs, outputs, parameters and tensors."""
RAW_INPUT = 7
"""The number of the field raw_input_contents."""

_POOL = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString((FOLDER / "open_inference.binpb").read_bytes()).file:
    _POOL.Add(_file)


def message_class(name: str) -> Any:
    """Return the class of a message of the protocol."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


def read_message(name: str, data: bytes) -> Any:
    """Return a message.

    Raises ServiceError bad_request.
    """
    try:
        return message_class(name).FromString(data)
    except DecodeError as error:
        raise bad(f"the message is no {name}: {error}") from error


def check_outline(data: bytes) -> int:
    """Return the number of bytes of a ModelInferRequest without its raw tensors, from the sizes of its fields.

    Parsed small fields take up to a hundred times their size in memory, raw tensors only their own size. Raises
    ServiceError bad_request if there are too many.
    """
    raw = 0
    for count, (number, size) in enumerate(top_fields(data)):
        raw += size if number == RAW_INPUT else 0
        if count >= MAX_FIELDS:
            raise bad(f"the request has more than {MAX_FIELDS} inputs, outputs, parameters and tensors")
    rest = len(data) - raw
    if rest > MAX_JSON:
        raise bad(f"more than {MAX_JSON} bytes beside raw_input_contents; send the tensor there")
    return rest


def top_fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number and the size in bytes of each field of a message whose fields all have a length."""
    place = 0
    while place < len(data):
        tag, place = varint(data, place)
        if tag & 7 != 2:
            raise bad("the message is no ModelInferRequest")
        size, place = varint(data, place)
        yield tag >> 3, size
        place += size


def varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the variable-length integer at ``place`` and the place after it."""
    value = 0
    for shift, byte in enumerate(data[place : place + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, place + shift + 1
    raise bad("the message ends within a number")


def members_of(request: Any) -> tuple[dict[str, Any], memoryview]:
    """Return the members of an `InferRequest` and its tensor as binary data, from a ModelInferRequest.

    Raises ServiceError bad_request.
    """
    if len(request.inputs) != 1 or len(request.raw_input_contents) > 1:
        raise bad("send one input: image, or bytes")
    [tensor] = request.inputs
    binary = request.raw_input_contents[0] if request.raw_input_contents else contents_of(tensor)
    described = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape[:5]),
        "parameters": {"binary_data_size": len(binary)},
    }
    outputs = [
        {"name": output.name, "parameters": parameters_of(output.parameters, ["classification"])}
        for output in request.outputs
    ]
    parameters = parameters_of(request.parameters, Parameters.model_fields)
    members = {"id": request.id, "parameters": parameters, "inputs": [described], "outputs": outputs}
    return members, memoryview(binary)


def contents_of(tensor: Any) -> bytes:
    """Return the values of a tensor that was sent as numbers or elements, as binary data."""
    if tensor.datatype == "BYTES":
        return b"".join(map(with_length, tensor.contents.bytes_contents))
    return np.array(tensor.contents.fp32_contents, "<f4").tobytes()


def parameters_of(parameters: Any, names: Any) -> dict[str, Any]:
    """Return the parameters with one of ``names`` from a map of parameters."""
    return {name: value_of(parameters[name]) for name in names if name in parameters}


def value_of(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)
