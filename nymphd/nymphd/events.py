# SPDX-License-Identifier: MIT
"""Events of the service, and clients that listen to them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from nymphd.log import log
from nymphd.meters import FAULTS

Event = dict[str, Any]

# Of each kind, so that many of one do not hide the others.
_REMEMBERED = {"verify": 10, "infer": 10}
_REMEMBERED_ELSE = 100
_WAITING = 256  # for one listener
_KINDS = {
    errno.EBADMSG: "mismatch", errno.ETIMEDOUT: "timeout", errno.ENODEV: "gone", errno.ENXIO: "gone",
}  # fmt: skip


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def kind_of(code: int | None) -> str:
    """Return the kind of fault of an errno of the driver."""
    return _KINDS.get(code or 0, "failed")


class Listener:
    """Queue events in JSON for one client. A client that does not take them in time is `lost`."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._is_news = asyncio.Event()
        self._has_left = False
        self.lost = False

    def put(self, event: str) -> None:
        self.lost = self.lost or len(self._waiting) >= _WAITING
        if not self.lost:
            self._waiting.append(event)
        self._is_news.set()

    def leave(self) -> None:
        """End the listening."""
        self._has_left = True
        self._is_news.set()

    async def get(self) -> str | None:
        """Wait for the next event. Returns None if the client left or is lost."""
        while not self._waiting and not self._has_left and not self.lost:
            self._is_news.clear()
            await self._is_news.wait()
        return None if self._has_left or self.lost else self._waiting.popleft()


class Events:
    """Number events, and pass them to all listeners."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._recent: dict[str, deque[Event]] = {}
        self._seq = 0
        self.faults = 0
        """So far."""

    def publish(self, kind: str, /, **fields: Any) -> None:
        event = self.make(kind, **fields)
        if kind != "telemetry":
            most = _REMEMBERED.get(kind, _REMEMBERED_ELSE)
            self._recent.setdefault(kind, deque(maxlen=most)).append(event)
        text = json.dumps(event, separators=(",", ":")) if self._listeners else ""
        for listener in self._listeners:
            listener.put(text)

    def fault(self, source: str, engine: str | None, reason: str, kind: str) -> None:
        """Announce a fault. `source`: one of metrics.FAULT_SOURCES; `kind`: one of metrics.FAULT_KINDS."""
        self.faults += 1
        FAULTS.labels(source, kind).inc()
        log.warning("fault", source=source, kind=kind, engine=engine, reason=reason)
        self.publish("fault", source=source, kind=kind, engine=engine, reason=reason)

    @property
    def last(self) -> int:
        """Number of the last event."""
        return self._seq

    def make(self, kind: str, /, **fields: Any) -> Event:
        self._seq += 1
        return {"type": kind, "seq": self._seq, "time": now(), **fields}

    def hello(self, engine: str | None) -> str:
        """Return the first message for a client, in JSON. `seq`: number of the last event before its own."""
        said = {"type": "hello", "seq": self._seq, "time": now(), "engine": engine, "recent": self.recent}
        return json.dumps(said, separators=(",", ":"))

    @property
    def recent(self) -> list[Event]:
        return sorted(itertools.chain(*self._recent.values()), key=lambda event: int(event["seq"]))

    @property
    def listeners(self) -> int:
        """Number of listeners."""
        return len(self._listeners)

    @contextlib.contextmanager
    def listen(self) -> Iterator[Listener]:
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
