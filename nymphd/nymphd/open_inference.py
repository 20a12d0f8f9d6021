# SPDX-License-Identifier: MIT
"""The Open Inference Protocol, version 2, with its extension of binary tensors."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers

from nymphd import __version__
from nymphd.answers import ModelState
from nymphd.daemon import Nymphd
from nymphd.gate import Refused, Turns
from nymphd.inference import Answer
from nymphd.parsing import beside, read_model
from nymphd.refusals import STATUSES, described, refusals
from nymphd.tensors import DATATYPES, BadInput, Tensor, pack_bytes, unpack_bytes

_JSON_LENGTH = "Inference-Header-Content-Length"
_BYTES = "application/octet-stream"
_MOST_TENSORS = 256
_MOST_DIGITS = 20  # of a length; of more than 4300 digits, Python makes no number
# Of the protocol's and its extensions' parameters, those that would change the answer, and are not here.
_REFUSED = ("sequence_id", "shared_memory_region", "classification")

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "BF16", "BYTES",
]  # fmt: skip
Parameters = dict[str, str | bool | int | float]
Shape = Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], Field(max_length=8)]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int] = Field(description="-1: any size")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="of one model there is one: its digest")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    name: str
    ready: bool


class RequestInput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=256)
    shape: Shape
    datatype: Datatype
    parameters: Parameters = {}
    data: list[Any] | None = Field(None, description="row-major, nested or flat")


class RequestOutput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=256)
    parameters: Parameters = {}


class InferenceRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    id: str | None = Field(None, max_length=256)
    model_name: str | None = Field(None, description="that of the path, if a client says it here, too")
    parameters: Parameters = Field({}, description="binary_data_output: bool; profile: as of /infer")
    inputs: list[RequestInput] = Field(max_length=_MOST_TENSORS)
    outputs: list[RequestOutput] | None = Field(None, max_length=_MOST_TENSORS)


class ResponseOutput(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]
    parameters: Parameters | None = Field(None, description="binary_data_size: it is behind the JSON")
    data: list[Any] | None = Field(None, description="row-major, flat")


class InferenceResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str = Field(description="its digest")
    id: str | None = None
    parameters: Parameters = Field(
        description="model_digest; input_digest.NAME of each input: of its bytes as the binary extension has "
        "them; engine, profile, latency_ms, transfer_ms, queue_ms; faults, if there were any"
    )
    outputs: list[ResponseOutput]


def make_router(nymphd: Nymphd, inferences: Turns) -> APIRouter:
    """Make the paths below /v2 that need the token. `inferences`: the inferences of /infer."""
    router = APIRouter(prefix="/v2", tags=["open-inference-protocol"])
    unknown = described({404: STATUSES[404]})
    unready = described({404: STATUSES[404], 503: "it can't be used"})
    of_version = "/models/{model}/versions/{version}"

    @router.get("", operation_id="server_metadata")
    async def server_metadata() -> ServerMetadata:
        """Get name, version and extensions of the server."""
        return ServerMetadata(name="nymphd", version=__version__, extensions=["binary_tensor_data"])

    @router.get(of_version, responses=unknown, operation_id="model_version_metadata")
    async def model_version_metadata(model: str, version: str) -> ModelMetadata:
        """Get inputs and outputs of a model, if it has that digest."""
        return await metadata(model, version)

    @router.get("/models/{model}", responses=unknown, operation_id="model_metadata")
    async def model_metadata(model: str) -> ModelMetadata:
        """Get inputs and outputs of a model."""
        return await metadata(model)

    async def metadata(model: str, version: str | None = None) -> ModelMetadata:
        state = await _state(nymphd, model, version)
        return ModelMetadata(
            name=model,
            versions=[state.model_digest] if state.model_digest else [],
            platform="onnxruntime_onnx",
            inputs=[TensorMetadata(**vars(each)) for each in state.inputs],
            outputs=[TensorMetadata(**vars(each)) for each in state.outputs],
        )

    @router.get(f"{of_version}/ready", responses=unready, operation_id="model_version_ready")
    async def model_version_ready(model: str, version: str) -> ModelReady:
        """Tell whether a model can be used, and has that digest."""
        return await readiness(model, version)

    @router.get("/models/{model}/ready", responses=unready, operation_id="model_ready")
    async def model_ready(model: str) -> ModelReady:
        """Tell whether a model can be used."""
        return await readiness(model)

    async def readiness(model: str, version: str | None = None) -> ModelReady:
        state = await _state(nymphd, model, version)
        if not state.ready:
            raise Refused(503, str(state.reason), {"Retry-After": "1"})
        return ModelReady(name=model, ready=True)

    body = {
        "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
        _BYTES: {"schema": {"type": "string", "format": "binary"}},
    }
    header = {
        "name": _JSON_LENGTH,
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 0},
        "description": "of the JSON; behind it are the bytes of inputs with a binary_data_size, in order",
    }
    options: dict[str, Any] = {
        "response_model": InferenceResponse,
        "responses": {
            200: {"content": {_BYTES: {}}, "description": "JSON, or JSON and then the bytes of outputs"},
            **described(STATUSES),
        },
        "openapi_extra": {"requestBody": {"required": True, "content": body}, "parameters": [header]},
    }

    @router.post(f"{of_version}/infer", operation_id="model_version_infer", **options)
    async def model_version_infer(request: Request, model: str, version: str) -> Response:
        """Copy the inputs through the ring, and run the model with that digest on the bytes that arrived."""
        return await infer(request, model, version)

    @router.post("/models/{model}/infer", operation_id="model_infer", **options)
    async def model_infer(request: Request, model: str) -> Response:
        """Copy the inputs through the ring, and run the model on the bytes that arrived."""
        return await infer(request, model)

    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise Refused(415, f"Content-Encoding {encoding[:32]!r} is not taken; send the body as it is")
        with inferences, refusals(nymphd.models):
            state = await _state(nymphd, model, version)
            wanted, tensors = await _read(await request.body(), request.headers, state)
            _check(wanted, tensors, model, nymphd.settings.max_input_bytes)
            names = None if wanted.outputs is None else [each.name for each in wanted.outputs]
            profile = _profile(wanted.parameters)
            answer = await nymphd.inference.run(model, tensors, names, profile)
        if version is not None and answer.model_digest != version:
            raise Refused(404, f"model {model} has changed; ask for version {answer.model_digest}")
        return await beside(_write, wanted, answer)

    return router


async def _state(nymphd: Nymphd, name: str, version: str | None) -> ModelState:
    """Return the state of a model. Raises Refused, 404, if there is none of that name and version."""
    with refusals(nymphd.models):
        if name not in nymphd.models.names():
            await nymphd.models.look()  # it may just have come
        state = nymphd.models.state(name)
    if version not in (None, state.model_digest):
        has = state.model_digest or f"none, as {state.reason}"
        raise Refused(404, f"model {name} has no version {version[:64]!r}; its version is its digest: {has}")
    return state


# --- requests ---


async def _read(body: bytes, headers: Headers, state: ModelState) -> tuple[InferenceRequest, list[Tensor]]:
    """Parse a request and its inputs. Raises Refused and BadInput."""
    json_length = headers.get(_JSON_LENGTH)
    if json_length is None:
        length = len(body)
    elif json_length.isdecimal() and len(json_length) <= _MOST_DIGITS and int(json_length) <= len(body):
        length = int(json_length)
    else:
        raise Refused(422, f"{_JSON_LENGTH}: {json_length[:32]!r}; the body has {len(body)} bytes")
    # tritonclient says no type at all.
    if length != len(body) and headers.get("content-type", _BYTES).partition(";")[0].strip() != _BYTES:
        raise Refused(422, f"{_JSON_LENGTH}: there are bytes behind the JSON; say Content-Type: {_BYTES}")
    if length == 0 and json_length is not None:
        wanted = InferenceRequest.model_validate({"inputs": [], "parameters": {"binary_data_output": True}})
        return wanted, [_raw(state, body)]
    wanted = await read_model(InferenceRequest, body[:length])
    return wanted, await beside(_tensors, wanted, memoryview(body)[length:])


def _raw(state: ModelState, body: bytes) -> Tensor:
    """Return the only input of a model, whose data is the whole request. Raises BadInput."""
    if len(state.inputs) != 1:
        raise BadInput(f"model {state.name} has {len(state.inputs)} inputs: name them in JSON")
    (spec,) = state.inputs
    free = [place for place, size in enumerate(spec.shape) if size == -1]
    if spec.datatype == "BYTES":
        body, size = pack_bytes([body]), 1
    else:
        size = len(body) // DATATYPES[spec.datatype].itemsize
    fixed = math.prod(each for each in spec.shape if each != -1) or 1
    if len(free) > 1:
        raise BadInput(f"input {spec.name}: shape {list(spec.shape)} does not follow from bytes: use JSON")
    shape = tuple(size // fixed if place in free else each for place, each in enumerate(spec.shape))
    return Tensor(spec.name, spec.datatype, shape, body)


def _tensors(wanted: InferenceRequest, behind: memoryview) -> list[Tensor]:
    """Return the inputs from the JSON or from the bytes behind it. Raises BadInput."""
    found = []
    at = 0
    for each in wanted.inputs:
        size = each.parameters.get("binary_data_size")
        if (size is None) == (each.data is None):
            raise BadInput(f"input {each.name}: it has to have data, or else a binary_data_size")
        if each.data is not None:
            data: Any = _pack(each)
        elif not isinstance(size, int) or not 0 <= size <= len(behind) - at:
            left = len(behind) - at
            raise BadInput(f"input {each.name}: binary_data_size {size}, and {left} bytes are left")
        else:
            data = behind[at : at + size]
            at += size
            _check_bytes(each, data)
        found.append(Tensor(each.name, each.datatype, tuple(each.shape), data))
    if at != len(behind):
        raise BadInput(f"{len(behind) - at} bytes are left behind those of the inputs; see binary_data_size")
    return found


def _check_bytes(given: RequestInput, data: memoryview) -> None:
    """Raise BadInput unless BYTES have as many elements as the shape."""
    if given.datatype == "BYTES":
        _check_count(given, len(unpack_bytes(given.name, data)))


def _check_count(given: RequestInput, elements: int) -> None:
    if elements != (wanted := math.prod(given.shape)):
        raise BadInput(f"input {given.name}: {elements} elements; its shape makes {wanted}")


def _pack(given: RequestInput) -> bytes:
    """Pack the elements of a tensor in JSON. Raises BadInput."""
    values = _flat(given.data or [])
    _check_count(given, len(values))
    wanted: tuple[type, ...]
    if given.datatype == "BYTES":
        wanted, what = (str,), "a string"
    elif given.datatype == "BOOL":
        wanted, what = (bool,), "true or false"
    elif given.datatype.startswith(("FP", "BF")):
        wanted, what = (int, float), "a number"
    else:
        wanted, what = (int,), "an integer"
    for place, value in enumerate(values):
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise BadInput(f"input {given.name}: element {place} is not {what}, as {given.datatype} has them")
    if given.datatype == "BYTES":
        return pack_bytes([value.encode() for value in values])
    try:
        packed = _from_numbers(values, given.datatype)
    except OverflowError:
        raise BadInput(f"input {given.name}: an element is too large for {given.datatype}") from None
    return packed.tobytes()


def _from_numbers(values: list[Any], datatype: str) -> np.ndarray[Any, Any]:
    """Pack numbers as `datatype`. Raises OverflowError."""
    dtype = np.dtype("<f4") if datatype == "BF16" else DATATYPES[datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if values and not (limits.min <= min(values) and max(values) <= limits.max):
            raise OverflowError
    with np.errstate(over="ignore"):
        found = np.array(values, float).astype(dtype) if dtype.kind == "f" else np.array(values, dtype)
    if datatype == "BF16":
        found = _to_bfloat16(found)
    if dtype.kind == "f" and not np.isfinite(_to_floats(found, datatype)).all():
        raise OverflowError
    return found


def _flat(data: list[Any]) -> list[Any]:
    """Yield all elements of nested lists in their order."""
    found = []
    waiting = [iter(data)]
    while waiting:
        for each in waiting[-1]:
            if isinstance(each, list):
                waiting.append(iter(each))
                break
            found.append(each)
        else:
            waiting.pop()
    return found


def _to_bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Convert numbers to the bits of BF16, rounded to the nearest, ties to even."""
    bits = values.view("<u4")
    rounded: np.ndarray[Any, Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def _to_floats(values: np.ndarray[Any, Any], datatype: str) -> np.ndarray[Any, Any]:
    """Convert the bits of BF16 to numbers; other types are numbers already."""
    return (values.astype("<u4") << 16).view("<f4") if datatype == "BF16" else values


def _check(wanted: InferenceRequest, tensors: list[Tensor], model: str, most: int) -> None:
    """Raise Refused if the request asks for something that nymphd does not serve."""
    if wanted.model_name not in (None, model):
        raise Refused(422, f"model_name: {wanted.model_name[:64]!r}; the path says {model!r}")
    for each in (wanted, *wanted.inputs, *(wanted.outputs or ())):
        for name in _REFUSED:
            if each.parameters.get(name):
                raise Refused(422, f"parameters: {name} is of an extension that nymphd does not have")
    total = sum(memoryview(each.data).nbytes for each in tensors)
    if total > most:
        raise Refused(413, f"the inputs have {total} bytes, and {most} are the most")


def _profile(parameters: Parameters) -> str:
    profile = parameters.get("profile", "latency")
    if profile not in ("latency", "throughput", "efficient"):
        raise Refused(422, f"parameters: profile {str(profile)[:32]!r}; say latency, throughput or efficient")
    return str(profile)


# --- answers ---


def _write(wanted: InferenceRequest, answer: Answer) -> Response:
    """Make the answer: JSON, and behind it the outputs that are wanted as bytes. Raises Refused."""
    by_default = wanted.parameters.get("binary_data_output", False)
    asked = {each.name: each.parameters.get("binary_data", by_default) for each in wanted.outputs or ()}
    behind = []
    outputs = []
    for each in answer.outputs:
        output: dict[str, Any] = {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        if asked.get(each.name, by_default):
            behind.append(each.data)
            output["parameters"] = {"binary_data_size": len(each.data)}
        else:
            output["data"] = _unpack(each)
        outputs.append(output)
    parameters: Parameters = {"model_digest": answer.model_digest}
    parameters |= {f"input_digest.{name}": digest for name, digest in answer.input_digests.items()}
    parameters |= {"engine": answer.engine or "", "profile": answer.profile}
    parameters |= {name: getattr(answer, name) for name in ("latency_ms", "transfer_ms", "queue_ms")}
    if answer.faults:
        parameters["faults"] = "; ".join(f"{fault.engine}: {fault.reason}" for fault in answer.faults)
    found = {
        "model_name": answer.model,
        "model_version": answer.model_digest,
        **({"id": wanted.id} if wanted.id is not None else {}),
        "parameters": parameters,
        "outputs": outputs,
    }
    text = json.dumps(found, allow_nan=False).encode()
    if not behind:
        return Response(text, media_type="application/json")
    headers = {_JSON_LENGTH: str(len(text))}
    return Response(b"".join([text, *behind]), media_type=_BYTES, headers=headers)


def _unpack(tensor: Tensor) -> list[Any]:
    """Return a tensor's elements for JSON. Raises Refused for elements that JSON does not have."""
    ask = f"output {tensor.name}: ask for it with the parameter binary_data, as JSON has no"
    if tensor.datatype == "BYTES":
        try:
            return [each.decode() for each in unpack_bytes(tensor.name, tensor.data)]
        except UnicodeDecodeError:
            raise Refused(422, f"{ask} bytes that are not UTF-8") from None
    values = _to_floats(np.frombuffer(tensor.data, DATATYPES[tensor.datatype]), tensor.datatype)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Refused(422, f"{ask} NaN and no infinity")
    return values.tolist()  # type: ignore[no-any-return]
