# SPDX-License-Identifier: MIT
"""Watches the driver: engines and whether they prove themselves, rings, counters, and what changes of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pynymph
from pynymph import NymphError, digest
from pynymph.fabric import EngineVerification, verify_engine
from pynymph.ring import MODEL
from pynymph.service import sensors
from pynymph.service.carrier import Carrier
from pynymph.service.events import Events, now
from pynymph.service.log import log
from pynymph.service.metrics import ENGINE_VERIFIED, UPTIME, VERIFY_SECONDS
from pynymph.service.settings import Settings

SYSFS = Path("/sys/class/misc/pcie_nymph")
DRIVERS = ("nymph_endpoint",)  # of functions that /status shows

_EVERY_S = 1.0
_FRESH_S = 0.25
_PATIENCE_S = 2.0  # with sysfs, for one look
_OWN_BYTES = 4096  # of a verification that nobody asked for
_RING_FIELDS = (
    "entries", "active", "unread", "errors", "dma_bytes",
    "latency_p50_ns", "latency_p95_ns", "latency_p99_ns", "latency_p999_ns",
)  # fmt: skip
_GONE = "the driver does not list it any more: unplugged, or its driver unbound"


@dataclass(frozen=True)
class EngineState:
    """An engine as /status has it."""

    name: str
    present: bool = True
    verified: bool | None = None
    verified_at: str | None = None
    time_ms: float | None = None
    reason: str | None = None


@dataclass
class Work:
    """What inference did so far, which /status shows and rates are made of."""

    count: int = 0
    failed: int = 0
    in_flight: int = 0
    tokens: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))


class Watch:
    """What there is to know of the driver now."""

    def __init__(self, settings: Settings, carrier: Carrier, events: Events, work: Work) -> None:
        self._settings = settings
        self._carrier = carrier
        self._events = events
        self._work = work
        self._started = time.monotonic()
        self._engines: dict[str, EngineState] = {}
        self._threads = ThreadPoolExecutor(64, "nymphd-watch")
        self._verifying: dict[str, asyncio.Future[EngineVerification]] = {}
        self._looking: asyncio.Future[dict[str, Any]] | None = None
        self._seen: dict[str, Any] = {}
        self._seen_at = float("-inf")
        self._rates = dict.fromkeys(("bytes_per_s", "copies_per_s", "inferences_per_s", "tokens_per_s"), 0.0)
        self._counted: tuple[float, dict[str, int]] | None = None
        self._rings: dict[str, str] = {}
        self._fixed = self._facts()

    async def run(self) -> None:
        """Look once a second, and tell of it, until cancelled."""
        verified = time.monotonic()
        tasks: set[asyncio.Task[Any]] = set()
        while True:
            try:
                await self._look(_EVERY_S / 2)
                self._note_rates()
                self._events.publish("telemetry", status=self.status())
                every = self._settings.verify_every_s
                new = any(state.present and state.verified is None for state in self._engines.values())
                if every and not tasks and (new or time.monotonic() - verified >= every):
                    verified = time.monotonic()
                    task = asyncio.create_task(self.verify(_OWN_BYTES))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            except Exception:
                log.exception("watching failed")
            await asyncio.sleep(_EVERY_S)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- status ---

    async def fresh_status(self) -> dict[str, Any]:
        await self._look(_FRESH_S)
        return self.status()

    def status(self) -> dict[str, Any]:
        """As the last look found it."""
        temp_c, temp_reason = sensors.temperature()
        uptime = time.monotonic() - self._started
        UPTIME.set(uptime)
        return {
            "engine": self._seen.get("engine"),
            "uptime_s": round(uptime, 3),
            "time": self._seen.get("time"),
            "temp_c": temp_c,
            "temp_reason": temp_reason,
            **self._fixed,
            "functions": self._seen.get("functions", []),
            "engines": [asdict(state) for state in self._engines.values()],
            "rings": self._seen.get("rings", []),
            "counters": self._seen.get("counters", {}),
            "rates": self._rates,
            "infer": {
                "count": self._work.count,
                "failed": self._work.failed,
                "in_flight": self._work.in_flight,
                "latency_p50_ms": _quantile(self._work.latencies_ms, 0.5),
                "latency_p99_ms": _quantile(self._work.latencies_ms, 0.99),
            },
        }

    def _facts(self) -> dict[str, Any]:
        """What does not change while the service runs."""
        known = pynymph.query(self._carrier.device)
        is_model = self._carrier.device == MODEL
        name, source = sensors.board_id(self._settings.board_id)
        driver = {
            "name": "model" if is_model else "pcie_nymph",
            "device": self._carrier.device,
            "version": known.version,
            "blake3": None if is_model else _read(SYSFS / "blake3"),
            "max_entries": known.max_entries,
            "max_length": known.max_length,
        }
        return {"version": version("pynymph"), "board_id": name, "board_id_source": source, "driver": driver}

    async def _look(self, fresh_s: float) -> None:
        """Have what is seen no older than that; but rather old than late, if the driver takes its time."""
        if time.monotonic() - self._seen_at < fresh_s:
            return
        if self._looking is None:
            loop = asyncio.get_running_loop()
            # The model's ring is asked here, the driver in a thread, as it may take its time.
            own = self._model_ring() if self._carrier.device == MODEL else None
            self._looking = loop.run_in_executor(self._threads, _observe, self._carrier.device, own)
            self._looking.add_done_callback(self._seen_now)
        await asyncio.wait([self._looking], timeout=_PATIENCE_S)

    def _seen_now(self, looking: asyncio.Future[dict[str, Any]]) -> None:
        self._looking = None
        if looking.cancelled():
            return
        if (error := looking.exception()) is not None:
            log.warning("the driver can't be watched", reason=str(error))
            return
        self._seen = {**looking.result(), "engine": self._carrier.engine, "time": now()}
        self._seen_at = time.monotonic()
        self._note_engines(self._seen["engines"])
        self._note_rings(self._seen["rings"])

    def _model_ring(self) -> dict[str, Any]:
        snapshot, latency = self._carrier.snapshot(), self._carrier.latency()
        return {
            "name": "ring0", "owner": os.getpid(), "mine": True, "engine": snapshot.engine,
            "entries": snapshot.ring_size, "active": snapshot.active_descriptors, "unread": snapshot.unread_records,
            "errors": snapshot.errors, "dma_bytes": snapshot.dma_bytes,
            "latency_p50_ns": latency.p50, "latency_p95_ns": latency.p95,
            "latency_p99_ns": latency.p99, "latency_p999_ns": latency.p999,
            "completed": latency.count,
        }  # fmt: skip

    def _note_engines(self, names: list[str]) -> None:
        for name in names:
            known = self._engines.get(name)
            if known is None or not known.present:
                self._engines[name] = EngineState(name)
                self._events.publish("engine", name=name, what="appeared", reason=None)
        for name, state in self._engines.items():
            if state.present and name not in names:
                self._engines[name] = replace(state, present=False, verified=False, time_ms=None, reason=_GONE)
                ENGINE_VERIFIED.labels(name).set(0)
                self._events.publish("engine", name=name, what="gone", reason=_GONE)
                self._events.fault("driver", name, _GONE)

    def _note_rings(self, rings: list[dict[str, Any]]) -> None:
        there = {ring["name"]: ring["engine"] for ring in rings}
        for name in there.keys() - self._rings.keys():
            self._events.publish("ring", name=name, engine=there[name], what="opened")
        for name in self._rings.keys() - there.keys():
            self._events.publish("ring", name=name, engine=self._rings[name], what="closed")
        self._rings = there

    def _note_rates(self) -> None:
        counters = self._seen.get("counters", {})
        now_s = time.monotonic()
        counted = {
            "bytes_per_s": counters.get("bytes", 0),
            "copies_per_s": counters.get("completed", 0),
            "inferences_per_s": self._work.count,
            "tokens_per_s": self._work.tokens,
        }
        if self._counted is not None:
            then_s, then = self._counted
            self._rates = {
                name: round((value - then[name]) / (now_s - then_s), 3) for name, value in counted.items()
            }
        self._counted = now_s, counted

    # --- verification ---

    async def verify(self, nbytes: int) -> dict[str, Any]:
        """Have every engine prove itself now, and the service's own ring; see verify_engine()."""
        started = time.perf_counter()
        await self._look(0)
        names = list(self._engines)
        found = await asyncio.gather(*(self._verify(name, nbytes) for name in names))
        own_reason = None
        try:
            await self._carrier.carry(os.urandom(nbytes))
        except NymphError as error:
            own_reason = error.strerror or str(error)
            self._events.fault("verify", self._carrier.engine, own_reason)
        snapshot = self._carrier.snapshot()
        recomputed = digest.ring_hash(snapshot)
        if recomputed != snapshot.ring_hash:
            own_reason = "the ring's hash is not that of its snapshot"
        answer = {
            "engine": snapshot.engine,
            "verified": bool(found) and all(each.verified for each in found) and own_reason is None,
            "reason": own_reason,
            "time_ms": _ms(time.perf_counter() - started),
            "bytes": nbytes,
            "ring_hash": snapshot.ring_hash.hex(),
            "recomputed_ring_hash": recomputed.hex(),
            "dma_bytes": snapshot.dma_bytes,
            "engines": [_as_json(each) for each in found],
        }
        self._events.publish("verify", **answer)
        return answer

    async def _verify(self, name: str, nbytes: int) -> EngineVerification:
        """One engine; an earlier verification of it that has not ended comes first, if in time."""
        started = time.perf_counter()
        timeout = self._settings.verify_timeout_s
        found = EngineVerification(name, False, _GONE, 0.0)
        if self._engines[name].present:
            found = await self._verify_present(name, nbytes, time.monotonic() + timeout)
            found = replace(found, time_s=time.perf_counter() - started)
            VERIFY_SECONDS.labels(name).observe(found.time_s)
            if found.verified or self._engines[name].present:
                self._note_verification(found)
        return found

    async def _verify_present(self, name: str, nbytes: int, deadline: float) -> EngineVerification:
        late = EngineVerification(name, False, f"no answer within {self._settings.verify_timeout_s:g} s", 0.0)
        while (earlier := self._verifying.get(name)) is not None:
            if not (await asyncio.wait([earlier], timeout=max(0, deadline - time.monotonic())))[0]:
                return late
        loop = asyncio.get_running_loop()
        left = max(0.1, deadline - time.monotonic())
        running = loop.run_in_executor(self._threads, _verify_engine, name, self._carrier.device, nbytes, left)
        self._verifying[name] = running
        running.add_done_callback(lambda _: self._verifying.pop(name, None))
        done, _ = await asyncio.wait([running], timeout=left)
        return running.result() if done else late

    def _note_verification(self, found: EngineVerification) -> None:
        before = self._engines[found.engine]
        self._engines[found.engine] = replace(
            before,
            verified=found.verified,
            verified_at=now(),
            time_ms=_ms(found.time_s) if found.verified else None,
            reason=found.reason,
        )
        ENGINE_VERIFIED.labels(found.engine).set(found.verified)
        if before.verified != found.verified:
            what = "verified" if found.verified else "failed"
            self._events.publish("engine", name=found.engine, what=what, reason=found.reason)
        if found.reason is not None and found.reason != before.reason:
            self._events.fault("verify", found.engine, found.reason)


def _verify_engine(name: str, device: str, nbytes: int, timeout: float) -> EngineVerification:
    return verify_engine(name, device=device, nbytes=nbytes, timeout=timeout)


def _observe(device: str, own: dict[str, Any] | None) -> dict[str, Any]:
    """One look at the driver, or at the model whose ring is `own`. May take as long as the driver likes."""
    engines = list(pynymph.query(device).engines.values())
    if own is not None:
        completed = own.pop("completed")
        counters = {"completed": completed, "bytes": own["dma_bytes"], "failed": own["errors"], "rings": 1}
        return {"engines": engines, "rings": [own], "counters": counters, "functions": []}
    return {
        "engines": engines,
        "rings": sorted(_rings(), key=lambda ring: int(ring["name"][4:])),
        "counters": {path.name: int(_read(path) or 0) for path in sorted(SYSFS.glob("counters/*"))},
        "functions": _functions(),
    }


def _rings() -> Iterator[dict[str, Any]]:
    for folder in SYSFS.glob("ring[0-9]*"):
        try:
            owner = int((folder / "owner").read_text())
            ring = {"name": folder.name, "owner": owner, "mine": owner == os.getpid()}
            ring["engine"] = (folder / "engine").read_text().strip()
            ring |= {name: int((folder / name).read_text()) for name in _RING_FIELDS}
        except (OSError, ValueError):
            continue  # it went away meanwhile
        yield ring


def _functions() -> list[dict[str, Any]]:
    """The PCI functions whose drivers bring engines."""
    found = []
    waiting = list(pynymph.topology())
    while waiting:
        function = waiting.pop(0)
        waiting += function.children
        if function.driver in DRIVERS:
            link = function.link
            text = f"{link.speed:g} GT/s x{link.width}" if link and link.speed and link.width else None
            about = {"address": function.address, "id": function.id, "driver": function.driver, "link": text}
            found.append({**about, "dma_channels": list(function.dma_channels)})
    return found


def _as_json(found: EngineVerification) -> dict[str, Any]:
    hexed = ("ring_hash", "recomputed_ring_hash", "src_digest", "dst_digest")
    digests = {name: None if (value := getattr(found, name)) is None else value.hex() for name in hexed}
    return {
        "engine": found.engine,
        "verified": found.verified,
        "reason": found.reason,
        "time_ms": _ms(found.time_s),
        "dma_bytes": found.dma_bytes,
        **digests,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _quantile(values: Collection[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
