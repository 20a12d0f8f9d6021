# SPDX-License-Identifier: MIT
"""What happens, told to everybody who listens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pynymph.service.log import log
from pynymph.service.metrics import FAULTS

Event = dict[str, Any]

# Of each kind, so that many of one do not hide the others.
_REMEMBERED = {"verify": 10, "infer": 10}
_REMEMBERED_ELSE = 100
_WAITING = 256  # for one listener


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Listener:
    """The events that one client has yet to get. One that lets too many pile up is `lost`."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event] = asyncio.Queue(_WAITING)
        self.lost = False

    def put(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.lost = True

    async def get(self) -> Event:
        return await self._queue.get()


class Events:
    """Where all events come by."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._recent: dict[str, deque[Event]] = {}
        self._seq = 0

    def publish(self, kind: str, **fields: Any) -> None:
        event = self.make(kind, **fields)
        if kind != "telemetry":
            most = _REMEMBERED.get(kind, _REMEMBERED_ELSE)
            self._recent.setdefault(kind, deque(maxlen=most)).append(event)
        for listener in self._listeners:
            listener.put(event)

    def fault(self, source: str, engine: str | None, reason: str) -> None:
        FAULTS.labels(source).inc()
        log.warning("fault", source=source, engine=engine, reason=reason)
        self.publish("fault", source=source, engine=engine, reason=reason)

    def make(self, kind: str, **fields: Any) -> Event:
        self._seq += 1
        return {"type": kind, "seq": self._seq, "time": now(), **fields}

    @property
    def recent(self) -> list[Event]:
        return sorted(itertools.chain(*self._recent.values()), key=lambda event: int(event["seq"]))

    @contextlib.contextmanager
    def listen(self) -> Iterator[Listener]:
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
