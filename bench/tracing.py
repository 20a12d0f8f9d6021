# SPDX-License-Identifier: MIT
"""Records what the driver's tracepoints say while a client uses rings, and what the client knows itself.

Here everything happens on purpose: each engine, each operation, a copy that faults, one that is canceled, and
many in flight. Times are CLOCK_MONOTONIC in ns everywhere: of tracepoints, of records, and of the client's
spans.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import pynymph
from bench.ways import PATIENCE, WrongError
from pynymph import Compare, Copy, Fill, Hash, Nop, batch
from pynymph.command.recording import Tracer

PAGE = mmap.PAGESIZE


class Client:
    """A ring, the records of all its operations, and the spans of all its calls."""

    def __init__(self, engine: str, spans: list[dict[str, Any]], *, paused: bool = False) -> None:
        self.name, self._spans = f"client of {engine}{', paused' * paused}", spans
        self.engine = engine
        self.ring = pynymph.Ring(256, engine=engine, paused=paused)
        fdinfo = Path(f"/proc/self/fdinfo/{self.ring.fileno()}").read_text()
        self.number = int(re.search(r"^nymph-ring:\s+(\d+)", fdinfo, re.MULTILINE)[1])  # type: ignore[index]
        self.records: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[dict[str, Any]]:
        span = {"name": name, "ring": self.number, "begin_ns": time.monotonic_ns(), "cookies": []}
        yield span
        self._spans.append({**span, "end_ns": time.monotonic_ns()})

    def keep(self, span: dict[str, Any], done: pynymph.Completion) -> None:
        span["cookies"].append(done.cookie)
        names = ("cookie", "status", "bytes_done", "engine", "queued_ns", "started_ns", "completed_ns")
        self.records.append({name: getattr(done, name) for name in names})

    def one(self, operation: pynymph.Operation) -> None:
        """Queue it, and wait for it."""
        with self.span(type(operation).__name__.lower()) as span:
            transfer = self.ring.submit(operation)
            self.keep(span, next(self.completions([transfer])))

    def all_at_once(self, operations: list[pynymph.Operation]) -> None:
        with self.span("submit_all") as span:
            transfers = self.ring.submit_all(operations)
        with self.span("results"):
            for done in self.completions(transfers):
                self.keep(span, done)  # arrows come from where it was submitted

    @staticmethod
    def completions(transfers: list[pynymph.Transfer]) -> Iterator[pynymph.Completion]:
        for transfer in transfers:
            try:
                yield transfer.result(PATIENCE)
            except pynymph.NymphError as error:
                if error.completion is None:
                    raise
                yield error.completion

    def array(self, entries: Any) -> None:
        with self.span("run_many") as span:
            done = self.ring.run_many(entries, PATIENCE)
        engines = pynymph.query().engines
        for row in done:
            span["cookies"].append(int(row["cookie"]))
            names = ("cookie", "status", "bytes_done", "queued_ns", "started_ns", "completed_ns")
            record = {name: int(row[name]) for name in names}
            self.records.append({**record, "engine": engines.get(int(row["engine"]))})


def record() -> dict[str, Any]:
    """Use some engines in every way, and return all that was seen of it: what perfetto_trace.py takes."""
    spans: list[dict[str, Any]] = []
    query = pynymph.query()
    engines = list(query.engines.values())[:3]  # the CPU, and two channels
    with Tracer() as tracer, ExitStack() as stack:
        clients = [Client(engine, spans) for engine in engines]
        clients += [Client(engine, spans, paused=True) for engine in engines]
        for client in clients:
            stack.enter_context(client.ring)
        for client in clients[: len(engines)]:
            _use(client)
        for client in clients[len(engines) :]:
            _fault(client)
        events = tracer.events()
    rings = [
        {"ring": each.number, "name": each.name, "engine": each.engine, "records": each.records}
        for each in clients
    ]
    return {"engines": {str(id): name for id, name in query.engines.items()}, "rings": rings, "spans": spans,
            "events": events, "pid": os.getpid()}  # fmt: skip


def _use(client: Client) -> None:
    ring = client.ring
    src, dst = ring.allocate(1 << 20), ring.allocate(1 << 20)
    src.view[:] = os.urandom(1 << 20)
    user = [bytearray(src.view[: 256 << 10]), bytearray(256 << 10)]
    for size in (64, 4096, 1 << 20):
        client.one(Copy(src=src[:size], dst=dst[:size]))
        client.one(Copy(src=src[:size], dst=dst[:size], verify=True))
    client.one(Copy(src=user[0], dst=user[1], verify=True))
    client.one(Copy(src=user[0], dst=user[1], zero_copy=True))
    client.one(Fill(dst=dst[:4096], pattern=b"\x01\x02"))
    client.one(Hash(src=src[:65536]))
    client.one(Compare(a=src[:4096], b=dst[:4096]))  # they differ
    parts = [slice(i, i + 4096) for i in range(0, 16 << 12, 4096)]
    client.all_at_once([Copy(src=src[part], dst=dst[part], verify=True) for part in parts])
    at = np.arange(32) * 1024
    client.array(batch.copies(src, dst, src_at=at, dst_at=at, length=1024, verify=True))
    if src.view != dst.view or user[0] != user[1]:
        raise WrongError("the traced copies are not their sources")


def _fault(client: Client) -> None:
    """A copy of which the second page is gone by the time it runs, and one that is canceled for that."""
    src = bytes(2 * PAGE)
    memory = mmap.mmap(-1, 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with client.span("a copy that faults") as span:
        transfers = client.ring.submit_all([Copy(src=src, dst=memory, link=True), Nop()])
        if libc.mprotect(at + PAGE, PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        client.ring.enable()
        for done in client.completions(transfers):
            client.keep(span, done)
