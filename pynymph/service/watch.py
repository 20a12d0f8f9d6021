# SPDX-License-Identifier: MIT
"""Watches the driver: its engines, rings and counters, and what changes of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynymph
from pynymph.model import ENGINE
from pynymph.ring import MODEL
from pynymph.service import sensors
from pynymph.service.carrier import Carrier
from pynymph.service.engines import Engines
from pynymph.service.events import Events, now
from pynymph.service.log import log
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

    def __init__(
        self, settings: Settings, carrier: Carrier, engines: Engines, events: Events, work: Work
    ) -> None:
        self._settings = settings
        self._carrier = carrier
        self._events = events
        self._work = work
        self._started = time.monotonic()
        self._engines = engines
        self._threads = ThreadPoolExecutor(1, "nymphd-watch")
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
                due = self._engines.any_untried or time.monotonic() - verified >= every
                if every and due and not tasks:
                    verified = time.monotonic()
                    task = asyncio.create_task(self._engines.verify(_OWN_BYTES))
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
        uptime = time.monotonic() - self._started
        return {
            "engine": self._seen.get("engine"),
            "uptime_s": round(uptime, 3),
            "time": self._seen.get("time"),
            "temp_c": self._seen.get("temp_c"),
            "temp_reason": self._seen.get("temp_reason", "the driver has not been looked at yet"),
            **self._fixed,
            "functions": self._seen.get("functions", []),
            "engines": self._engines.states(),
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
        return {"version": pynymph.__version__, "board_id": name, "board_id_source": source, "driver": driver}

    async def _look(self, fresh_s: float) -> None:
        """Have what is seen no older than that; but rather old than late, if the driver takes its time."""
        if time.monotonic() - self._seen_at < fresh_s:
            return
        if self._looking is None:
            loop = asyncio.get_running_loop()
            # The model's ring is asked here, the driver in a thread, as it may take its time.
            own = self._model_ring() if self._carrier.device == MODEL else None
            self._looking = loop.run_in_executor(self._threads, _observe, own, self._seen)
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
        self._engines.note_present(self._seen["engines"])
        self._note_rings(self._seen["rings"])

    def _model_ring(self) -> dict[str, Any]:
        snapshot, latency = self._carrier.snapshot(), self._carrier.latency()
        return {
            "name": "ring0", "owner": os.getpid(), "mine": True, "engine": snapshot.engine,
            "entries": snapshot.ring_size, "active": snapshot.active_descriptors,
            "unread": snapshot.unread_records, "errors": snapshot.errors, "dma_bytes": snapshot.dma_bytes,
            "latency_p50_ns": latency.p50, "latency_p95_ns": latency.p95,
            "latency_p99_ns": latency.p99, "latency_p999_ns": latency.p999,
            "completed": latency.count,
        }  # fmt: skip

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


def _observe(own: dict[str, Any] | None, before: dict[str, Any]) -> dict[str, Any]:
    """One look at the driver, or at the model whose ring is `own`. May take as long as the driver likes."""
    temp_c, temp_reason = sensors.temperature()
    found: dict[str, Any] = {"temp_c": temp_c, "temp_reason": temp_reason}
    if own is not None:
        completed = own.pop("completed")
        counters = {"completed": completed, "bytes": own["dma_bytes"], "failed": own["errors"], "rings": 1}
        return {**found, "engines": [ENGINE], "rings": [own], "counters": counters, "functions": []}
    engines = (SYSFS / "engines").read_text().split()
    # PCI is slow to look at, and what brings engines does not change without them.
    is_same = engines == before.get("engines")
    return {
        **found,
        "engines": engines,
        "rings": sorted(_rings(), key=lambda ring: int(ring["name"][4:])),
        "counters": {path.name: int(_read(path) or 0) for path in sorted(SYSFS.glob("counters/*"))},
        "functions": before["functions"] if is_same else _functions(),
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


def _quantile(values: Collection[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
