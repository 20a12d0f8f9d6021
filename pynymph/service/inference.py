# SPDX-License-Identifier: MIT
"""Runs models on inputs, in batches, and says what that took."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from magika import Magika
from magika.types import MagikaResult, ModelFeatures, Seekable

from pynymph.service.carrier import Arrived, Carrier
from pynymph.service.events import Events
from pynymph.service.metrics import INFER_SECONDS, TOKENS
from pynymph.service.models import MODEL_FILE, Model, ModelRefused, Models
from pynymph.service.sensors import EnergyMeter
from pynymph.service.watch import Work


@dataclass(frozen=True)
class Profile:
    """How a model runs: `threads` 0 is one for each CPU; `wait_s`: for more inputs, up to `batch`."""

    threads: int
    spins: bool
    batch: int
    wait_s: float


PROFILES = {
    "latency": Profile(threads=0, spins=True, batch=8, wait_s=0.0),
    "throughput": Profile(threads=0, spins=True, batch=32, wait_s=0.005),
    "efficient": Profile(threads=1, spins=False, batch=8, wait_s=0.0),
}


@dataclass(frozen=True)
class Ran:
    """What became of one input of a batch."""

    output: dict[str, Any]
    tokens: int
    batch: int
    began: float
    """time.perf_counter()."""
    seconds: float
    energy_wh: float | None


class Classifier(Magika):
    """Magika with its preparation of bytes; network and configuration are what arrived through the ring."""

    def __init__(self, model: Model, profile: Profile) -> None:
        self._arrived = model.files[MODEL_FILE]
        self._profile = profile
        super().__init__(model_dir=model.folder)  # type: ignore[arg-type]  # does all a Path has to here

    def _init_onnx_session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._profile.threads
        options.inter_op_num_threads = 1
        spins = "1" if self._profile.spins else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spins)
        return onnxruntime.InferenceSession(self._arrived, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: list[Any]) -> list[tuple[dict[str, Any], int]]:
        """What each input, a binary file, is; and how many tokens the network saw of it."""
        found: dict[int, MagikaResult] = {}
        features: list[tuple[Path, ModelFeatures]] = []
        for i, each in enumerate(inputs):
            ruled, wanted = self._get_result_or_features_from_seekable(Seekable(each))
            if ruled is not None:  # it is too short for the network
                found[i] = ruled
            elif wanted is not None:
                features.append((Path(str(i)), wanted))
        seen = {int(name): each for name, each in self._get_results_from_features(features).items()}
        config = self._model_config
        tokens = config.beg_size + config.mid_size + config.end_size
        ordered = ((i, seen.get(i) or found[i]) for i in range(len(inputs)))
        return [(_as_json(result), tokens if i in seen else 0) for i, result in ordered]


def _as_json(result: MagikaResult) -> dict[str, Any]:
    of = result.prediction.output
    return {
        "label": str(of.label),
        "description": of.description,
        "mime_type": of.mime_type,
        "group": of.group,
        "extensions": list(of.extensions),
        "is_text": of.is_text,
        "score": result.prediction.score,
        "model_label": str(result.prediction.dl.label),
        "overwrite_reason": str(result.prediction.overwrite_reason),
    }


class _Runner:
    """One model under one profile: inputs that wait go in one batch."""

    def __init__(
        self, model: Model, profile: Profile, threads: ThreadPoolExecutor, meter: EnergyMeter
    ) -> None:
        self._model, self._profile = model, profile
        self._threads, self._meter = threads, meter
        self._classifier: Classifier | None = None
        self._waiting: asyncio.Queue[tuple[Any, asyncio.Future[Ran]]] = asyncio.Queue()
        self._task = asyncio.create_task(self._run_all())

    def close(self) -> None:
        self._task.cancel()

    async def run(self, memory: Any) -> Ran:
        ran: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((memory, ran))
        return await ran

    async def _run_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            if self._profile.wait_s:
                await asyncio.sleep(self._profile.wait_s)
            while len(batch) < self._profile.batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [each for each in batch if not each[1].done()]  # whoever asked may be gone
            if not batch:
                continue
            try:
                found = await loop.run_in_executor(self._threads, self._run, [memory for memory, _ in batch])
            except Exception as error:
                for _, ran in batch:
                    if not ran.done():
                        ran.set_exception(error)
                continue
            for (_, ran), one in zip(batch, found, strict=True):
                if not ran.done():
                    ran.set_result(one)

    def _run(self, inputs: list[Any]) -> list[Ran]:
        """In a thread."""
        if self._classifier is None:
            try:
                self._classifier = Classifier(self._model, self._profile)
            except Exception as error:  # whatever a file makes of ONNX Runtime, or Magika
                raise ModelRefused(f"model {self._model.name} can't be run: {error}") from None
        before = self._meter.read()
        began = time.perf_counter()
        outputs = self._classifier.run(inputs)
        seconds = time.perf_counter() - began
        used = self._meter.used_wh(before)
        share = None if used is None else used / len(inputs)
        return [Ran(output, tokens, len(inputs), began, seconds, share) for output, tokens in outputs]


class Inference:
    """All of it: through the ring, and through the network."""

    def __init__(self, carrier: Carrier, models: Models, events: Events, work: Work) -> None:
        self._carrier, self._models, self._events, self._work = carrier, models, events, work
        self._threads = ThreadPoolExecutor(2, "nymphd-infer")
        self._meter = EnergyMeter()
        self._runners: dict[tuple[str, str], _Runner] = {}

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def infer(self, name: str, data: bytes, profile: str) -> dict[str, Any]:
        """What /infer answers. Raises UnknownModel, ModelRefused and NymphError."""
        self._work.in_flight += 1
        try:
            answer = await self._infer(name, data, profile)
        except Exception:
            self._work.failed += 1
            raise
        finally:
            self._work.in_flight -= 1
        return answer

    async def _infer(self, name: str, data: bytes, profile: str) -> dict[str, Any]:
        model = await self._models.load(name)
        arrived = await self._carrier.carry(data, "infer")
        asked = time.perf_counter()
        ran = await self._runner(model, profile).run(arrived.memory)
        answer = self._answer(model, profile, arrived, ran, max(0.0, ran.began - asked))
        self._work.count += 1
        self._work.tokens += ran.tokens
        self._work.latencies_ms.append(answer["latency_ms"])
        INFER_SECONDS.labels(name, profile).observe(ran.seconds)
        TOKENS.labels(name).inc(ran.tokens)
        told = ("model", "profile", "latency_ms", "tokens", "input_bytes", "input_digest")
        self._events.publish("infer", label=ran.output["label"], **{each: answer[each] for each in told})
        return answer

    def _runner(self, model: Model, profile: str) -> _Runner:
        key = model.name, profile
        if key not in self._runners:
            self._runners[key] = _Runner(model, PROFILES[profile], self._threads, self._meter)
        return self._runners[key]

    def _answer(
        self, model: Model, profile: str, arrived: Arrived, ran: Ran, queue_s: float
    ) -> dict[str, Any]:
        return {
            "engine": arrived.engine,
            "model": model.name,
            "profile": profile,
            "output": ran.output,
            "latency_ms": round(ran.seconds * 1000, 3),
            "transfer_ms": round(arrived.seconds * 1000, 3),
            "queue_ms": round(queue_s * 1000, 3),
            "batch": ran.batch,
            "energy_wh": ran.energy_wh,
            "energy_reason": self._meter.reason if ran.energy_wh is None else None,
            "tokens": ran.tokens,
            "tokens_per_s": round(ran.tokens / ran.seconds, 1) if ran.tokens else None,
            "input_bytes": len(arrived.memory),
            "input_digest": arrived.digest.hex(),
            "model_digest": model.digest,
            "faults": [vars(fault) for fault in arrived.faults],
        }
