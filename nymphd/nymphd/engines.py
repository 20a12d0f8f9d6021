# SPDX-License-Identifier: MIT
"""Engines that exist or existed, and the results of their verification."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from nymphd.answers import Engine, as_base64
from nymphd.carrier import Carrier
from nymphd.events import Events, kind_of, now
from nymphd.meters import VERIFY_SECONDS
from pynymph import NymphError, digest
from pynymph.evidence import Log
from pynymph.fabric import EngineVerification, verify_engine

_GONE = "the driver does not list it any more: unplugged, or its driver unbound"


class Engines:
    """Keep and verify all engines since the service started."""

    def __init__(self, carrier: Carrier, events: Events, timeout_s: float) -> None:
        """`timeout_s`: longest time of a verification in seconds."""
        self._carrier = carrier
        self._events = events
        self._timeout_s = timeout_s
        self._known: dict[str, Engine] = {}
        self._threads = ThreadPoolExecutor(64, "nymphd-verify")
        self._running: dict[str, Future[EngineVerification]] = {}

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def states(self) -> list[dict[str, Any]]:
        return [asdict(state) for state in self._known.values()]

    @property
    def any_untried(self) -> bool:
        return any(state.present and state.verified is None for state in self._known.values())

    def note_present(self, names: list[str]) -> None:
        """Note the engines that the driver lists now."""
        for name in names:
            known = self._known.get(name)
            if known is None or not known.present:
                self._known[name] = Engine(
                    name, present=True, verified=None, verified_at=None, time_ms=None, reason=None
                )
                self._events.publish("engine", name=name, what="appeared", reason=None)
        for name, state in self._known.items():
            if state.present and name not in names:
                self._known[name] = replace(state, present=False, verified=False, time_ms=None, reason=_GONE)
                self._events.publish("engine", name=name, what="gone", reason=_GONE)
                self._events.fault("driver", name, _GONE, "gone")

    async def verify(self, nbytes: int, evidence: bool = False, nonce: bytes | None = None) -> dict[str, Any]:
        """Verify every engine and the service's ring now. Returns the answer of /fabric/verify.

        Args:
            nbytes: bytes that each engine copies.
            evidence: whether to make evidence of these copies.
            nonce: what the driver attests the evidence in answer to, or None.
        """
        started = time.perf_counter()
        found = await asyncio.gather(*(self._verify(name, nbytes, evidence, nonce) for name in self._known))
        reason = None
        try:
            arrived = await self._carrier.carry(os.urandom(nbytes), "verify")
            if arrived.faults:
                reason = arrived.faults[0].reason
        except NymphError as error:
            reason = error.strerror or str(error)
            self._events.fault("verify", self._carrier.engine, reason, kind_of(error.errno))
        snapshot = self._carrier.snapshot()
        recomputed = digest.ring_hash(snapshot)
        if recomputed != snapshot.ring_hash:
            reason = "the ring's hash is not that of its snapshot"
        listed = [_as_json(each) for each in found]
        answer = {
            "engine": snapshot.engine,
            "verified": bool(found) and all(each.verified for each in found) and reason is None,
            "reason": reason,
            "time_ms": _ms(time.perf_counter() - started),
            "bytes": nbytes,
            "ring_hash": snapshot.ring_hash.hex(),
            "recomputed_ring_hash": recomputed.hex(),
            "dma_bytes": snapshot.dma_bytes,
            "engines": listed,
        }
        self._events.publish("verify", **answer)
        told = [each | {"evidence": as_base64(of.evidence)} for each, of in zip(listed, found, strict=True)]
        return answer | {"engines": told}

    async def _verify(
        self, name: str, nbytes: int, evidence: bool, nonce: bytes | None
    ) -> EngineVerification:
        if not self._known[name].present:
            return EngineVerification(name, False, _GONE, 0.0)
        started = time.perf_counter()
        log = Log(by="nymphd") if evidence else None
        found = await self._verify_in_time(name, nbytes, log, nonce, time.monotonic() + self._timeout_s)
        found = replace(found, time_s=time.perf_counter() - started)
        VERIFY_SECONDS.labels(name).observe(found.time_s)
        if self._known[name].present:
            self._note(found)
        return found

    async def _verify_in_time(
        self, name: str, nbytes: int, log: Log | None, nonce: bytes | None, deadline: float
    ) -> EngineVerification:
        """Verify one engine within its deadline, one at a time: an earlier one may hang in its thread."""
        message = f"no answer within {self._timeout_s:g} s"
        late = EngineVerification(name, False, message, 0.0, errno=errno.ETIMEDOUT)
        while (earlier := self._running.get(name)) is not None and not earlier.done():
            left = max(0, deadline - time.monotonic())
            if not (await asyncio.wait([asyncio.wrap_future(earlier)], timeout=left))[0]:
                return late
        left = max(0.1, deadline - time.monotonic())
        verifying = partial(
            verify_engine, device=self._carrier.device, nbytes=nbytes, timeout=left, log=log, nonce=nonce
        )
        running = self._threads.submit(verifying, name)
        self._running[name] = running
        done, _ = await asyncio.wait([asyncio.wrap_future(running)], timeout=left)
        return done.pop().result() if done else late

    def _note(self, found: EngineVerification) -> None:
        before = self._known[found.engine]
        self._known[found.engine] = replace(
            before,
            verified=found.verified,
            verified_at=now(),
            time_ms=_ms(found.time_s) if found.verified else None,
            reason=found.reason,
        )
        if before.verified != found.verified:
            what = "verified" if found.verified else "failed"
            self._events.publish("engine", name=found.engine, what=what, reason=found.reason)
            if found.reason is not None:
                kind = "mismatch" if found.errno is None else kind_of(found.errno)
                self._events.fault("verify", found.engine, found.reason, kind)


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
