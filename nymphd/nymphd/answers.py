# SPDX-License-Identifier: MIT
"""Bodies of requests and answers of nymphd, as in its OpenAPI document."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from nymphd.tensors import TensorSpec

_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

_BASE64_SCHEMA = {"type": "string", "contentEncoding": "base64", "minLength": 4, "pattern": _BASE64}

Evidence = Annotated[
    str | None,
    Field(
        description="evidence of the copy, if it was asked for: a file for `pynymph verify`, in base64",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "application/cbor"},
    ),
]
Nonce = Annotated[str, Field(pattern="^([0-9a-fA-F]{2}){1,64}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="BLAKE3-256, in hexadecimal")]
EngineName = Annotated[
    str | None, Field(description='what moves the bytes of the service\'s ring; "model": there is no driver')
]


def as_base64(data: bytes | None) -> str | None:
    """Return bytes as an answer has them."""
    return None if data is None else base64.b64encode(data).decode()


def _from_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("it is no string of base64")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"it is not base64: {error}") from None


class Error(BaseModel):
    error: str = Field(description="what was wrong, and what to do")
    request_id: str


class Health(BaseModel):
    status: Literal["ok"]


class Check(BaseModel):
    ok: bool
    reason: str | None


class Readiness(BaseModel):
    """Readiness. An answer to a request without a token has only `ready`."""

    ready: bool
    engine: EngineName = None
    checks: dict[str, Check] = Field(default={}, description="by name; all are ok, or nymphd is not ready")


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class Driver(BaseModel):
    name: Literal["pcie_nymph", "model"]
    device: str
    version: int
    blake3: str | None = Field(description="what the driver hashes with")
    max_entries: int
    max_length: int = Field(description="bytes of one operation")


class Function(BaseModel):
    """A PCI function whose driver brings engines."""

    address: str
    id: str = Field(description="vendor and device")
    driver: str
    link: str | None
    dma_channels: list[str]


@dataclass(frozen=True)
class Engine:
    name: str
    present: Annotated[bool, Field(description="whether the driver lists it now")]
    verified: Annotated[
        bool | None, Field(description="whether it proved itself the last time; null: not tried yet")
    ]
    verified_at: str | None
    time_ms: float | None
    reason: str | None


class RingState(BaseModel):
    name: str
    owner: int = Field(description="process id")
    mine: bool = Field(description="whether it is nymphd's")
    engine: str | None
    entries: int
    active: int
    unread: int = Field(description="records nobody has collected")
    errors: int
    dma_bytes: int
    latency_p50_ns: int
    latency_p95_ns: int
    latency_p99_ns: int
    latency_p999_ns: int
    seen_since: str = Field(description="when nymphd saw it first")


class Rates(BaseModel):
    """Rates of the last second, as in a row of /history. Latencies are null if there was no copy."""

    time: float = Field(description="seconds since 1970, at the end of it")
    bytes_per_s: float
    copies_per_s: float
    inferences_per_s: float
    tokens_per_s: float
    copy_p50_ns: int | None = Field(description="of copies on the service's own rings, to an eighth")
    copy_p99_ns: int | None
    infer_p50_ns: int | None = Field(description="of networks that ran, to an eighth")
    infer_p99_ns: int | None
    infer_failed: int
    faults: int
    temp_c: float | None


class History(BaseModel):
    span: Literal["hour", "day"]
    every_s: int = Field(description="seconds that a row is of")
    columns: list[str] = Field(description="the names of a row's values, as in `rates` of /status")
    rows: list[list[float | None]] = Field(description="oldest first")


class Inferences(BaseModel):
    count: int
    failed: int
    in_flight: int
    latency_p50_ms: float | None = Field(description="of the last 1000")
    latency_p99_ms: float | None = Field(description="of the last 1000")


class Status(BaseModel):
    engine: EngineName
    uptime_s: float
    time: str | None = Field(description="when the driver was looked at")
    version: str
    temp_c: float | None = Field(description="the hottest sensor")
    temp_reason: str | None = Field(description="why there is no temp_c")
    board_id: str | None
    board_id_source: Literal["setting", "device-tree", "dmi"] | None
    driver: Driver
    functions: list[Function]
    engines: list[Engine]
    rings: list[RingState]
    counters: dict[str, int]
    rates: Rates
    infer: Inferences


class EngineVerification(BaseModel):
    engine: str
    verified: bool
    reason: str | None = Field(description="why not")
    time_ms: float
    dma_bytes: int | None
    ring_hash: Digest | None = Field(description="the driver's own")
    recomputed_ring_hash: Digest | None = Field(description="of SNAPSHOT, in user space")
    src_digest: Digest | None
    dst_digest: Digest | None
    evidence: Evidence = None


class Verification(BaseModel):
    engine: EngineName
    verified: bool = Field(description="whether all agree, of every engine and the service's own ring")
    reason: str | None = Field(description="what was wrong with the service's own ring")
    time_ms: float
    bytes: int
    ring_hash: Digest = Field(description="of the service's own ring, by the driver")
    recomputed_ring_hash: Digest = Field(description="of the service's own ring, of SNAPSHOT in user space")
    dma_bytes: int = Field(description="of the service's own ring")
    engines: list[EngineVerification]


class ModelState(BaseModel):
    name: str
    kind: Literal["magika", "onnx"] | None
    ready: bool = Field(description="whether it has arrived, is what its manifest says, and has run once")
    state: Literal["loading", "ready", "refused"]
    reason: str | None = Field(description="why it is not ready")
    model_digest: Digest | None = Field(description="of the lines `DIGEST  NAME` of its files, sorted")
    files: dict[str, Digest]
    source: str | None
    token: str | None = Field(description="what a token is")
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    loaded_at: str | None


class Models(BaseModel):
    engine: EngineName
    models: list[ModelState]


Profile = Annotated[
    Literal["latency", "throughput", "efficient"],
    Field(
        description="latency: alone, on all CPUs if the model does nothing else; throughput and efficient: "
        "on one CPU, up to 8 that wait as one batch"
    ),
]


class InferRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        min_length=1,
        max_length=64,
        description="a folder's name, as /models lists them",
        examples=["magika"],
    )
    input: Annotated[bytes, BeforeValidator(_from_base64), WithJsonSchema(_BASE64_SCHEMA)] = Field(
        description="any bytes, in base64", examples=["aW1wb3J0IG9zCg=="]
    )
    profile: Profile | None = Field(None, description="as in the query; null: what that says")
    evidence: bool | None = Field(None, description="as in the query; null: what that says")
    nonce: Nonce | None = Field(None, description="as in the query; null: what that says")


class CarrierFault(BaseModel):
    engine: str | None
    reason: str


class Label(BaseModel):
    """Result of a model of kind magika for an input."""

    label: str
    description: str
    mime_type: str
    group: str
    extensions: list[str]
    is_text: bool
    score: float = Field(description="0 to 1")
    model_label: str = Field(description="the network's own, which rules may overwrite")
    overwrite_reason: str
    note: str | None = Field(description="if the label is worth little: why")


class Inference(BaseModel):
    engine: str = Field(description='what carried the input; "model": there is no driver')
    model: str
    profile: str
    output: Label
    latency_ms: float = Field(description="of the network")
    transfer_ms: float = Field(description="through the ring")
    queue_ms: float = Field(description="before the network began")
    batch: int = Field(description="how many inputs ran at once")
    energy_wh: float | None = Field(description="the machine's, in equal shares of a batch")
    energy_reason: str | None = Field(description="why there is no energy_wh")
    tokens: int = Field(description="what the network saw of this input; what one is, /models says")
    tokens_per_s: float | None = Field(description="tokens by latency_ms; null for none")
    input_bytes: int
    input_digest: Digest = Field(description="of the bytes that arrived, and were looked at")
    model_digest: Digest = Field(description="of all files of the model that arrived, and were run")
    faults: list[CarrierFault] = Field(description="engines that failed to carry the input")
    evidence: Evidence = None
