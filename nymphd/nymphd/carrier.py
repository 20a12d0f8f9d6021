# SPDX-License-Identifier: MIT
"""Verified copies of bytes through the ring, with digests of the bytes that arrived."""

from __future__ import annotations

import asyncio
import errno
import mmap
import time
from collections import Counter
from dataclasses import dataclass, field

import pynymph
from nymphd.events import Events, kind_of
from nymphd.meters import TRANSFER_SECONDS
from pynymph import AsyncRing, NymphError, Snapshot, evidence
from pynymph.fabric import LABEL
from pynymph.ring import MODEL

_TIMEOUT_S = 5.0  # for a copy on whatever engine is best
_LAST_TIMEOUT_S = 30.0  # on the CPU, behind which there is nothing
_DISTRUST_S = 5.0  # so long the CPU carries after a failure


@dataclass(frozen=True)
class Fault:
    """Describe the failure of an engine before another one made the copy."""

    engine: str | None
    reason: str


@dataclass(frozen=True)
class Wanted:
    """Ask for evidence of a copy, to `target`. `nonce`: what the driver attests it in answer to, or None."""

    source: str
    target: str
    nonce: bytes | None = None


@dataclass(frozen=True)
class Arrived:
    """Keep bytes that came through the ring. `digest`: BLAKE3-256 by the driver, checked in user space."""

    memory: mmap.mmap | bytes
    digest: bytes
    engine: str
    seconds: float
    faults: list[Fault] = field(default_factory=list)
    evidence: bytes | None = None


class Carrier:
    """Open the service's ring on the best engine, and a ring on the CPU for failures of that engine.

    `faults` of the result has the failures, and each is an event.
    """

    def __init__(self, device: str, ring_size: int, events: Events) -> None:
        """Open the rings. The caller has a running event loop. Raises NymphError."""
        self.device = device
        self._events = events
        self._ring = AsyncRing(ring_size, device=device, label=LABEL)
        try:
            self._engine = self._ring.ring.snapshot().engine
            # A model has no other engine, and the CPU has nothing behind it.
            self._spare = None if device == MODEL else AsyncRing(ring_size, device=device, engine="cpu")
        except BaseException:
            self._ring.close()
            raise
        self._distrusted_until = 0.0

    def close(self) -> None:
        self._ring.close()
        if self._spare is not None:
            self._spare.close()

    @property
    def engine(self) -> str | None:
        """Name of the engine that the ring has now."""
        return self._engine

    def snapshot(self) -> Snapshot:
        """Get a snapshot of the service's ring."""
        snapshot = self._ring.ring.snapshot()
        self._engine = snapshot.engine
        return snapshot

    def latency(self) -> pynymph.Latency:
        return self._ring.ring.latency()

    @property
    def files(self) -> list[int]:
        """Return the file descriptors of the rings."""
        return [each.ring.fileno() for each in (self._ring, self._spare) if each is not None]

    def durations(self) -> dict[int, int]:
        """Return the durations of all copies: the longest time in ns of each bucket, and its number."""
        rings = [self._ring] if self._spare is None else [self._ring, self._spare]
        return dict(sum((Counter(dict(each.ring.latency().histogram)) for each in rings), Counter()))

    async def carry(self, data: bytes, source: str) -> Arrived:
        """Copy bytes through the ring with VERIFY_HASH.

        Args:
            data: at least 1 byte.
            source: requester, for the event of a fault.

        Returns:
            The bytes that arrived, with their digest.

        Raises:
            NymphError: no engine could copy them.
        """
        started = time.perf_counter()
        faults: list[Fault] = []
        spare = self._spare
        if spare is None:
            memory, done = await self._copy(self._ring, data, _LAST_TIMEOUT_S)
        else:
            try:
                if (left := self._distrusted_until - time.monotonic()) > 0:
                    reason = f"failed {_DISTRUST_S - left:.1f} s ago, so the CPU carries for a while"
                    faults.append(Fault(self._engine, reason))
                    memory, done = await self._copy(spare, data, _LAST_TIMEOUT_S)
                else:
                    memory, done = await self._copy(self._ring, data, _TIMEOUT_S)
            except NymphError as error:
                if faults:
                    raise
                self._distrusted_until = time.monotonic() + _DISTRUST_S
                faults.append(Fault(self._engine, error.strerror or str(error)))
                self._events.fault(source, self._engine, error.strerror or str(error), kind_of(error.errno))
                memory, done = await self._copy(spare, data, _LAST_TIMEOUT_S)
            if not faults and done.engine == "cpu" != self._engine:
                reason = "it failed, and the driver had the CPU do it"
                faults.append(Fault(self._engine, reason))
                self._events.fault(source, self._engine, reason, "failed")
        seconds = time.perf_counter() - started
        assert done.engine is not None and done.dst_digest is not None
        TRANSFER_SECONDS.labels(done.engine).observe(seconds)
        return Arrived(memory, done.dst_digest, done.engine, seconds, faults)

    def check_attesting(self) -> None:
        """Raise NymphError, ENOKEY, if the driver has no key to attest with."""
        self._ring.ring.attest(bytes(32))

    async def carry_with_evidence(self, data: bytes, wanted: Wanted) -> Arrived:
        """Copy bytes as carry() does, on a ring of their own, so that the evidence is of nothing else.

        Args:
            data: at least 1 byte.
            wanted: what the evidence says.

        Returns:
            The bytes that arrived, with evidence.

        Raises:
            NymphError: the engine could not copy them, and no other one has tried.
        """
        started = time.perf_counter()
        log = evidence.Log(by="nymphd")
        async with AsyncRing(1, device=self.device, label=LABEL, evidence=log) as ring:
            memory, done = await self._copy(ring, data, _TIMEOUT_S)
            log.add(done, source=wanted.source, target=wanted.target, time_ns=time.time_ns())
            made = log.evidence(wanted.nonce).to_bytes()
        assert done.engine is not None and done.dst_digest is not None
        seconds = time.perf_counter() - started
        TRANSFER_SECONDS.labels(done.engine).observe(seconds)
        return Arrived(memory, done.dst_digest, done.engine, seconds, evidence=made)

    async def _copy(
        self, ring: AsyncRing, data: bytes, timeout_s: float
    ) -> tuple[mmap.mmap, pynymph.Completion]:
        # Whole pages that nothing else uses: a channel that did not stop may still write to them.
        memory = mmap.mmap(-1, len(data))
        try:
            async with asyncio.timeout(timeout_s):
                done = await ring.copy(src=data, dst=memory, verify=True)
        except TimeoutError as error:
            if isinstance(error, NymphError):
                raise
            message = f"no end of the copy within {timeout_s:g} s"
            raise pynymph.RingTimeoutError(errno.ETIMEDOUT, message) from None
        if await asyncio.to_thread(pynymph.digest.payload, memory) != done.dst_digest:
            message = "the driver's digest is not that of the bytes that arrived"
            raise pynymph.VerifyError(errno.EBADMSG, message, done)
        return memory, done
