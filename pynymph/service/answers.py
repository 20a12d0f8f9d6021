# SPDX-License-Identifier: MIT
"""What nymphd takes and says, as its OpenAPI document has it."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="BLAKE3-256, in hexadecimal")]
EngineName = Annotated[
    str | None, Field(description='what moves the bytes of the service\'s ring; "model": there is no driver')
]


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
    engine: EngineName
    ready: bool
    checks: dict[str, Check]


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


class Engine(BaseModel):
    name: str
    present: bool = Field(description="whether the driver lists it now")
    verified: bool | None = Field(description="whether it proved itself the last time; null: not tried yet")
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


class Rates(BaseModel):
    """Of the last second."""

    bytes_per_s: float
    copies_per_s: float
    inferences_per_s: float
    tokens_per_s: float


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
    kind: str | None
    ready: bool
    reason: str | None
    model_digest: Digest | None
    files: dict[str, Digest]
    source: str | None
    token: str | None = Field(description="what a token is")


class Models(BaseModel):
    engine: EngineName
    models: list[ModelState]


class InferRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        min_length=1,
        max_length=64,
        description="a folder's name, as /models lists them",
        examples=["magika"],
    )
    input: Annotated[bytes, BeforeValidator(_from_base64)] = Field(
        description="any bytes, in base64",
        examples=["aW1wb3J0IG9zCg=="],
        json_schema_extra={"contentEncoding": "base64", "minLength": 4, "pattern": _BASE64},
    )
    profile: Literal["latency", "throughput", "efficient"] = Field(
        "latency",
        description="latency: at once, on all CPUs; throughput: waits up to 5 ms for others, up to 32 run as "
        "one batch; efficient: one thread that does not spin",
    )


class CarrierFault(BaseModel):
    engine: str | None
    reason: str


class Inference(BaseModel):
    engine: str = Field(description='what carried the input; "model": there is no driver')
    model: str
    profile: str
    output: dict[str, Any] = Field(description="what the model says, by its kind")
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
    model_digest: Digest = Field(description="of the bytes that arrived, and were run")
    faults: list[CarrierFault] = Field(description="engines that failed to carry the input")
