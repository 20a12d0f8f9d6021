# SPDX-License-Identifier: MIT
"""Inference: each input is copied through the ring, and the network runs on the bytes that arrived."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nymphd.answers import as_base64
from nymphd.carrier import Arrived, Carrier, Fault, Wanted
from nymphd.events import Events
from nymphd.meters import BATCH_INPUTS, INFER_FAILED, INFER_SECONDS, QUEUE_SECONDS, TOKENS
from nymphd.models import Models, UnknownModel
from nymphd.network import Classifier, InferenceTimeout, ModelFailed, ModelRefused, Ran, Runner
from nymphd.sensors import EnergyMeter
from nymphd.tensors import BadInput, Tensor, packed, unpack_bytes
from nymphd.watch import Work
from pynymph import NymphError, digest

_CAUSES: dict[type[BaseException], str] = {
    UnknownModel: "unknown_model",
    ModelRefused: "model",
    ModelFailed: "model",
    BadInput: "input",
    InferenceTimeout: "deadline",
    NymphError: "engine",
    asyncio.CancelledError: "cancelled",
}
_MOST_ELEMENTS = 256  # of one request for labels


@dataclass(frozen=True)
class Answer:
    """Keep the result of an inference. Digests are BLAKE3-256, in hexadecimal.

    Attributes:
        input_digests: digest of the bytes of each input that arrived, by its name.
    """

    model: str
    model_digest: str
    engine: str | None
    profile: str
    outputs: list[Tensor]
    input_digests: dict[str, str]
    input_bytes: int
    latency_ms: float
    transfer_ms: float
    queue_ms: float
    batch: int
    faults: list[Fault]


class Inference:
    """Copy inputs through the ring, and run models on them."""

    def __init__(
        self, carrier: Carrier, models: Models, events: Events, work: Work, timeout_s: float
    ) -> None:
        """`timeout_s`: longest time that an inference waits and runs, in seconds."""
        self._carrier, self._models, self._events, self._work = carrier, models, events, work
        self._timeout_s = timeout_s
        self._meter = EnergyMeter()

    async def infer(
        self, name: str, data: bytes, profile: str, wanted: Wanted | None = None
    ) -> dict[str, Any]:
        """Return the answer of /infer; with `wanted`, it has evidence of the copy.

        Raises UnknownModel, ModelRefused, ModelFailed, BadInput, InferenceTimeout and NymphError.
        """
        with self._counted():
            runner = await self._models.runner(name)
            if runner.model.kind != "magika":
                raise BadInput(f"model {name} takes tensors: POST them to /v2/models/{name}/infer")
            if wanted is None:
                arrived = await self._carrier.carry(data, "infer")
            else:
                target = f"model {name}, {runner.model.digest}"
                arrived = await self._carrier.carry_with_evidence(data, replace(wanted, target=target))
            asked = time.perf_counter()
            ran = await runner.run(arrived.memory, profile, self._timeout_s)
            answer = self._answer(runner, profile, arrived, ran, asked)
            self._note(name, profile, ran, asked)
        told = ("model", "profile", "latency_ms", "tokens", "input_bytes", "input_digest")
        self._events.publish("infer", label=ran.output["label"], **{each: answer[each] for each in told})
        return answer

    async def run(
        self,
        name: str,
        tensors: Sequence[Tensor],
        outputs: Sequence[str] | None = None,
        profile: str = "latency",
    ) -> Answer:
        """Run a model on tensors; `outputs` names those wanted, None for all. Raises as infer() does."""
        with self._counted():
            runner = await self._models.runner(name)
            given = _fitting(runner, tensors)
            wanted = _wanted(runner, outputs)
            arrived = {each: await self._carry(tensor) for each, tensor in given.items()}
            asked = time.perf_counter()
            if runner.model.kind == "magika":
                ran = await self._classify(runner, arrived["input"].memory, profile)
            else:
                items = {
                    each: Tensor(each, tensor.datatype, tensor.shape, arrived[each].memory)
                    for each, tensor in given.items()
                }
                ran = await runner.run(items, profile, self._timeout_s)
            self._note(name, profile, ran, asked)
        found = {tensor.name: tensor for tensor in ran.output}
        digests = {each: of.digest.hex() for each, of in arrived.items()}
        answer = Answer(
            model=name,
            model_digest=runner.model.digest,
            engine=next((of.engine for of in arrived.values() if of.engine), self._carrier.engine),
            profile=profile,
            outputs=[found[each] for each in wanted],
            input_digests=digests,
            input_bytes=sum(len(of.memory) for of in arrived.values()),
            latency_ms=_ms(ran.seconds),
            transfer_ms=_ms(sum(of.seconds for of in arrived.values())),
            queue_ms=_ms(max(0.0, ran.began - asked)),
            batch=ran.batch,
            faults=[fault for of in arrived.values() for fault in of.faults],
        )
        self._events.publish(
            "infer",
            label=None,
            model=name,
            profile=profile,
            latency_ms=answer.latency_ms,
            tokens=ran.tokens,
            input_bytes=answer.input_bytes,
            input_digest=next(iter(digests.values()), None),
        )
        return answer

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._work.in_flight += 1
        try:
            yield
        except BaseException as error:
            self._work.failed += 1
            causes = (cause for kind, cause in _CAUSES.items() if isinstance(error, kind))
            INFER_FAILED.labels(next(causes, "nymphd")).inc()
            raise
        finally:
            self._work.in_flight -= 1

    def _note(self, name: str, profile: str, ran: Ran, asked: float) -> None:
        self._work.note(ran.seconds, ran.tokens)
        QUEUE_SECONDS.labels(name, profile).observe(max(0.0, ran.began - asked))
        BATCH_INPUTS.labels(name, profile).observe(ran.batch)
        INFER_SECONDS.labels(name, profile).observe(ran.seconds)
        TOKENS.labels(name).inc(ran.tokens)

    async def _carry(self, tensor: Tensor) -> Arrived:
        if not len(tensor.data):
            return Arrived(b"", digest.payload(b""), "", 0.0)  # there is nothing to carry
        return await self._carrier.carry(tensor.data, "infer")

    async def _classify(self, runner: Runner, packed_inputs: Any, profile: str) -> Ran:
        """Classify each element of the BYTES that arrived. Returns labels as tensors."""
        inputs = unpack_bytes("input", packed_inputs)
        if not all(inputs) or len(inputs) > _MOST_ELEMENTS:
            raise BadInput(f"input input: it may have 1 to {_MOST_ELEMENTS} elements, of 1 byte or more")
        files = map(io.BytesIO, inputs)
        runs = await asyncio.gather(*(runner.run(each, profile, self._timeout_s) for each in files))
        outputs = [packed(spec, [run.output[spec.name] for run in runs]) for spec in Classifier.outputs]
        return Ran(
            output=outputs,
            tokens=sum(run.tokens for run in runs),
            batch=max((run.batch for run in runs), default=0),
            began=min((run.began for run in runs), default=time.perf_counter()),
            seconds=sum(run.seconds / run.batch for run in runs),
            energy_wh=None,
        )

    def _answer(
        self, runner: Runner, profile: str, arrived: Arrived, ran: Ran, asked: float
    ) -> dict[str, Any]:
        return {
            "engine": arrived.engine,
            "model": runner.model.name,
            "profile": profile,
            "output": ran.output,
            "latency_ms": _ms(ran.seconds),
            "transfer_ms": _ms(arrived.seconds),
            "queue_ms": _ms(max(0.0, ran.began - asked)),
            "batch": ran.batch,
            "energy_wh": ran.energy_wh,
            "energy_reason": self._meter.reason if ran.energy_wh is None else None,
            "tokens": ran.tokens,
            "tokens_per_s": round(ran.tokens / ran.seconds, 1) if ran.tokens else None,
            "input_bytes": len(arrived.memory),
            "input_digest": arrived.digest.hex(),
            "model_digest": runner.model.digest,
            "faults": [vars(fault) for fault in arrived.faults],
            "evidence": as_base64(arrived.evidence),
        }


def _fitting(runner: Runner, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the tensors by name. Raises BadInput if the model does not take them."""
    given = {tensor.name: tensor for tensor in tensors}
    takes = [spec.name for spec in runner.inputs]
    if len(given) != len(tensors) or given.keys() != set(takes):
        names = ", ".join(tensor.name[:64] for tensor in tensors[:16]) or "none"
        raise BadInput(f"inputs {names}: model {runner.model.name} takes {', '.join(takes)}, each once")
    for spec in runner.inputs:
        spec.check(given[spec.name])
        given[spec.name].check_size()
    return given


def _wanted(runner: Runner, outputs: Sequence[str] | None) -> list[str]:
    """Return the names of outputs. Raises BadInput if the model does not have them."""
    has = [spec.name for spec in runner.outputs]
    for name in outputs or ():
        if name not in has:
            raise BadInput(f"output {name[:64]}: model {runner.model.name} has {', '.join(has)}")
    return list(outputs or has)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
