# SPDX-License-Identifier: MIT
"""Watching the driver: its engines, rings and counters, and their changes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynymph
from nymphd import __version__, sensors
from nymphd.carrier import Carrier
from nymphd.engines import Engines
from nymphd.events import Events, now
from nymphd.history import Durations, Histogram, History, Reading, Row
from nymphd.log import log
from nymphd.settings import Settings
from pynymph.model import ENGINE
from pynymph.ring import MODEL

SYSFS = Path("/sys/class/misc/pcie_nymph")
DRIVERS = ("nymph_endpoint",)  # of functions that /status shows

_EVERY_S = 1.0
_FRESH_S = 0.25
_SAME_S = 0.05
_PATIENCE_S = 2.0  # with sysfs, for one look
_OWN_BYTES = 4096  # of a verification that nobody asked for
_LASTING_S = 5.0  # longer than a verification's ring is there
_MOST_RINGS = 256  # in /metrics
_RING_FIELDS = ("entries", "active", "unread", "errors", "dma_bytes")
_RING_LATENCIES = {"p50": "p50", "p95": "p95", "p99": "p99", "p999": "p99.9"}


@dataclass
class Work:
    """Count inferences, for /status and for rates."""

    count: int = 0
    failed: int = 0
    in_flight: int = 0
    tokens: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    durations: Durations = field(default_factory=Durations)

    def note(self, seconds: float, tokens: int) -> None:
        """Count an inference that succeeded."""
        self.count += 1
        self.tokens += tokens
        self.latencies_ms.append(round(seconds * 1000, 3))
        self.durations.add(seconds)


class Watch:
    """Read the state of the driver every second."""

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
        self._json = b""
        self._told: tuple[float, ...] = ()
        self._told_at = float("-inf")
        self.history = History()
        self._last_row: Row = self.history.add(self._reading())
        self._rings: dict[str, tuple[str, float, str]] = {}
        self._fixed = self._facts()

    async def run(self) -> None:
        """Read the state once a second, and announce changes, until the task is cancelled."""
        verified = time.monotonic()
        tasks: set[asyncio.Task[Any]] = set()
        while True:
            try:
                await self._look(_EVERY_S / 2)
                self._last_row = self.history.add(self._reading())
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

    async def fresh_json(self) -> bytes:
        """Return fresh_status() in JSON. It is made again after a change, else at most once in _SAME_S."""
        await self._look(_FRESH_S)
        work, now_s = self._work, time.monotonic()
        news = (self._seen_at, self._events.last, work.count, work.failed, work.in_flight)
        if news != self._told or now_s - self._told_at > _SAME_S:
            self._told, self._told_at = news, now_s
            self._json = json.dumps(self.status(), separators=(",", ":")).encode()
        return self._json

    def status(self) -> dict[str, Any]:
        """Return the state that was read last."""
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
            "rates": self._last_row,
            "infer": {
                "count": self._work.count,
                "failed": self._work.failed,
                "in_flight": self._work.in_flight,
                "latency_p50_ms": _quantile(self._work.latencies_ms, 0.5),
                "latency_p99_ms": _quantile(self._work.latencies_ms, 0.99),
            },
        }

    def _facts(self) -> dict[str, Any]:
        """Return facts that do not change while the service runs."""
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
        return {"version": __version__, "board_id": name, "board_id_source": source, "driver": driver}

    async def _look(self, fresh_s: float) -> None:
        """Read the state unless it is younger than `fresh_s`. If the driver is slow, the old state stays."""
        if time.monotonic() - self._seen_at < fresh_s:
            return
        if self._looking is None:
            loop = asyncio.get_running_loop()
            # A model of the driver is asked here; the driver is asked in a thread, because it can be slow.
            look: Callable[[], dict[str, Any]] = functools.partial(_observe, self._carrier, self._seen)
            if self._carrier.device == MODEL:
                look = functools.partial(_observe_model, self._model_ring(), self._carrier.durations())
            self._looking = loop.run_in_executor(self._threads, look)
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
        before, self._rings = self._rings, {}
        for ring in rings:
            name, engine = ring["name"], ring["engine"]
            if name not in before:
                self._events.publish("ring", name=name, engine=engine, what="opened")
            self._rings[name] = engine, *before.get(name, ("", time.monotonic(), now()))[1:]
            ring["seen_since"] = self._rings[name][2]
        for name in before.keys() - self._rings.keys():
            self._events.publish("ring", name=name, engine=before[name][0], what="closed")

    def lasting_rings(self) -> list[dict[str, Any]]:
        """Return the rings that are older than a verification's."""
        old = time.monotonic() - _LASTING_S
        rings: list[dict[str, Any]] = self._seen.get("rings", [])
        return [ring for ring in rings if self._rings[ring["name"]][1] <= old][:_MOST_RINGS]

    def _reading(self) -> Reading:
        counters = self._seen.get("counters", {})
        counts = {
            "bytes": counters.get("bytes", 0),
            "copies": counters.get("completed", 0),
            "inferences": self._work.count,
            "tokens": self._work.tokens,
            "infer_failed": self._work.failed,
            "faults": self._events.faults,
        }
        return Reading(
            time=time.time(),
            clock=time.monotonic(),
            counts=counts,
            copies=self._seen.get("copies", {}),
            inferences=dict(self._work.durations.buckets),
            temp_c=self._seen.get("temp_c"),
        )


def _temperature() -> dict[str, Any]:
    temp_c, temp_reason = sensors.temperature()
    return {"temp_c": temp_c, "temp_reason": temp_reason}


def _observe_model(own: dict[str, Any], copies: Histogram) -> dict[str, Any]:
    """What there is of a model whose ring is `own`."""
    completed = own.pop("completed")
    counters = {"completed": completed, "bytes": own["dma_bytes"], "failed": own["errors"], "rings": 1}
    found = {"engines": [ENGINE], "rings": [own], "counters": counters, "copies": copies, "functions": []}
    return _temperature() | found


def _observe(carrier: Carrier, before: dict[str, Any]) -> dict[str, Any]:
    """One look at the driver. May take as long as the driver likes."""
    engines = (SYSFS / "engines").read_text().split()
    # PCI is slow to look at, and what brings engines does not change without them.
    is_same = engines == before.get("engines")
    return _temperature() | {
        "engines": engines,
        "rings": _rings(carrier),
        "copies": carrier.durations(),
        "counters": {path.name: int(_read(path) or 0) for path in sorted(SYSFS.glob("counters/*"))},
        "functions": before["functions"] if is_same else _functions(),
    }


def _rings(carrier: Carrier) -> list[dict[str, Any]]:
    """Those of the carrier, and those of other processes that nymphd may look into. Those of verifications
    come and go.
    """
    files = [Path(f"/proc/self/fdinfo/{file}") for file in carrier.files]
    found = {}
    for path in (*files, *_files_of_others(carrier.device)):
        with contextlib.suppress(OSError, ValueError, KeyError):  # it is gone
            ring = _ring(path.read_text())
            found[ring["name"]] = ring  # once, whoever else has the file
    return sorted(found.values(), key=lambda ring: int(ring["name"][4:]))


def _files_of_others(device: str) -> Iterator[Path]:
    """The fdinfo of each file of `device` that another process has open."""
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it is not for us, or has ended
            for name in os.listdir(process / "fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(process / "fd" / name) == device:
                        yield process / "fdinfo" / name


def _ring(fdinfo: str) -> dict[str, Any]:
    """What the driver says there. Raises KeyError or ValueError if that is no ring."""
    lines = (line.partition(":\t") for line in fdinfo.splitlines() if line.startswith("nymph-"))
    said = {name.removeprefix("nymph-").replace("-", "_"): value for name, _, value in lines}
    latency = dict(each.split("=") for each in said["latency_ns"].split())
    ring = {"name": f"ring{said['ring']}", "owner": int(said["owner"]), "engine": said["engine"]}
    ring["mine"] = ring["owner"] == os.getpid()
    ring |= {name: int(said[name]) for name in _RING_FIELDS}
    return ring | {f"latency_{name}_ns": int(latency[key]) for name, key in _RING_LATENCIES.items()}


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
