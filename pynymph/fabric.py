# SPDX-License-Identifier: MIT
"""The fabric as NYMPH's own software knows it, and the proof that it works.

Without a driver it is the reference model, and each report of it has "model" for an engine.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pynymph import abi, digest
from pynymph.buffer import checked_length
from pynymph.errors import ClosedError, NymphError, error
from pynymph.evidence import Log
from pynymph.integers import UINT32_MAX, UINT64_MAX, seconds, whole
from pynymph.operation import Copy
from pynymph.owner import Owner
from pynymph.ring import DEVICE, MODEL, Ring, query
from pynymph.state import Completion, Snapshot, Status

LABEL = 0x1000000  # what NYMPH's daemon has always given its ring for an address


@dataclass(frozen=True)
class DMADescriptor:
    """Describe a copy as struct nymph_dma_desc does.

    Addresses are of this process's memory, `length` is in bytes. `flags` are `NYMPH_DMA_FLAG_...`: with
    COMPLETE_SYNC the copy has ended when submit_dma() returns. Without it, the memory has to stay until
    get_status() counts its bytes.
    """

    src_addr: int
    dst_addr: int
    length: int
    flags: int = 0
    cookie: int = 0


@dataclass(frozen=True)
class FabricStatus(Status):
    """Tell what the ring did so far. `ring_hash` is the driver's own, 32 bytes; `engine` moves the bytes."""

    engine: str | None


@dataclass(frozen=True)
class EngineVerification:
    """Tell whether one engine proved itself just now, and why not. Values that were not reached are None."""

    engine: str
    verified: bool
    reason: str | None
    time_s: float
    ring_hash: bytes | None = None
    recomputed_ring_hash: bytes | None = None
    """Of SNAPSHOT, in user space."""
    dma_bytes: int | None = None
    src_digest: bytes | None = None
    dst_digest: bytes | None = None
    errno: int | None = None
    """Of the error that ended it; None if there was none, and what was found disagreed."""
    evidence: bytes | None = None
    """A file of pynymph.evidence, of the copy; None if none was asked for, or the copy did not end."""


@dataclass(frozen=True)
class FabricVerification:
    """Tell what get_fabric_verify_status() found: `verified` is true only if every engine is."""

    verified: bool
    status: FabricStatus
    recomputed_ring_hash: bytes
    """Of the fabric's own ring."""
    engines: tuple[EngineVerification, ...]


def find_device() -> str:
    """Return the driver's device, or "model:" if there is no driver."""
    return DEVICE if Path(DEVICE).exists() else MODEL


class ZLTA2Fabric(Owner):
    """Drive one ring, by the names that NYMPH's software has for its requests. Methods raise NymphError.

    Args:
        device: a path, or "model:". None: the driver's device, or the model if there is no driver.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._ring: Ring | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def initialize(self, ring_size: int = 256) -> bool:
        """Open the device, and set up a ring. Idempotent.

        Args:
            ring_size: how many entries, 1 to 4096.

        Returns:
            True.

        Raises:
            NymphError: as Ring raises it.
        """
        if self._ring is None:
            self._ring = Ring(ring_size, device=self._device or find_device(), label=LABEL)
        return True

    def is_initialized(self) -> bool:
        """Tell whether the device is open."""
        return self._ring is not None

    def submit_dma(self, descriptor: DMADescriptor) -> bool:
        """Queue one copy, by SUBMIT_DMA.

        Returns:
            True.

        Raises:
            NymphError: the copy was refused; with COMPLETE_SYNC, also that it failed.
        """
        given = asdict(descriptor)
        widest = {"length": UINT32_MAX, "flags": UINT32_MAX}
        numbers = {name: whole(each, name, 0, widest.get(name, UINT64_MAX)) for name, each in given.items()}
        desc = abi.new("nymph_dma_desc", **numbers)
        self._opened()._core.submit_dma(desc)
        return True

    def get_status(self) -> FabricStatus:
        """Read the counters, and the driver's hash of the ring."""
        return _status(self._opened().snapshot())

    def reset(self) -> bool:
        """Cancel all copies, and be as after initialize().

        Returns:
            True.
        """
        self._opened().reset()
        return True

    def get_fabric_verify_status(
        self, nbytes: int = 64 * 1024, timeout: float | None = 10.0
    ) -> FabricVerification:
        """Have every engine prove itself, one after the other; see verify_engine().

        Args:
            nbytes: bytes that each copies, 1 byte to 1 GiB.
            timeout: seconds for each; None waits for ever.

        Returns:
            A FabricVerification.

        Raises:
            NymphError: the fabric itself can't be asked. An engine that fails raises nothing.
        """
        ring = self._opened()
        device = MODEL if ring.is_model else self._device or find_device()
        engines = tuple(
            verify_engine(engine, device=device, nbytes=nbytes, timeout=timeout)
            for engine in query(device).engines.values()
        )
        snapshot = ring.snapshot()
        recomputed = digest.ring_hash(snapshot)
        verified = all(each.verified for each in engines) and recomputed == snapshot.ring_hash
        return FabricVerification(verified and bool(engines), _status(snapshot), recomputed, engines)

    def close(self) -> None:
        """Close the device. Idempotent."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()

    def _opened(self) -> Ring:
        if self._ring is None:
            raise ClosedError(errno.EBADF, "the fabric has no ring; call initialize() first")
        return self._ring


def get_fabric_verify_status(device: str | None = None) -> FabricVerification:
    """Verify a fabric that is opened for it; see ZLTA2Fabric.get_fabric_verify_status().

    Args:
        device: as for ZLTA2Fabric.
    """
    with ZLTA2Fabric(device) as fabric:
        fabric.initialize()
        return fabric.get_fabric_verify_status()


def _status(of: Snapshot) -> FabricStatus:
    return FabricStatus(of.dma_bytes, of.ring_hash, of.ring_size, of.active_descriptors, of.engine)


def verify_engine(
    engine: str,
    *,
    device: str = DEVICE,
    nbytes: int = 64 * 1024,
    timeout: float | None = 10.0,
    log: Log | None = None,
    nonce: bytes | None = None,
) -> EngineVerification:
    """Have an engine copy random bytes, and check all that it leaves, on a ring of its own.

    The ring is paused at first. An engine is verified if all of these agree: the digests of the record with
    those of source and destination, made here; the bytes; the engine's name; dma_bytes; and the ring's hash
    with that of SNAPSHOT, made here, with the copy queued and after it.

    Args:
        engine: its name.
        device: as for Ring.
        nbytes: bytes to copy, 1 byte to 1 GiB.
        timeout: seconds to wait for the copy, beside the time the driver takes to give a channel up; None
            waits for ever.
        log: a Log without a ring, for evidence of the copy; None makes none.
        nonce: as for Log.evidence().

    Returns:
        An EngineVerification; a failure is in its `reason`, and raises nothing.
    """
    nbytes = checked_length(nbytes)
    timeout = seconds(timeout)
    started = time.perf_counter()
    found: dict[str, bytes | int] = {}
    code: int | None = None
    try:
        reason = _disagreement(engine, device, nbytes, timeout, found, log, nonce)
    except NymphError as error:
        reason, code = error.strerror or str(error), error.errno
    took = time.perf_counter() - started
    return EngineVerification(engine, reason is None, reason, took, errno=code, **found)  # type: ignore[arg-type]


def _disagreement(
    engine: str,
    device: str,
    nbytes: int,
    timeout: float | None,
    found: dict[str, bytes | int],
    log: Log | None,
    nonce: bytes | None,
) -> str | None:
    src = os.urandom(nbytes)
    # Whole pages that nothing else uses: a channel that did not stop may still write to them.
    try:
        dst = mmap.mmap(-1, nbytes)
    except OSError as e:
        message = f"{nbytes} bytes cannot be mapped: {e.strerror}; verify with fewer"
        raise error(e.errno or 0, message) from None
    with Ring(1, engine=engine, device=device, paused=True, label=LABEL, evidence=log) as ring:
        transfer = ring.submit(Copy(src=src, dst=dst, verify=True))
        queued = ring.snapshot()
        ring.enable()
        ended: Completion | None = None
        try:
            done = ended = transfer.result(timeout)
        except NymphError as failed:
            ended = failed.completion
            raise
        finally:
            if log is not None and ended is not None:
                log.add(
                    ended, source="random bytes", target=f"memory, by engine {engine}", time_ns=time.time_ns()
                )
                found.update(evidence=log.evidence(nonce).to_bytes())
        after = ring.snapshot()
    assert done.src_digest is not None and done.dst_digest is not None
    recomputed = digest.ring_hash(after)
    found.update(ring_hash=after.ring_hash, recomputed_ring_hash=recomputed, dma_bytes=after.dma_bytes)
    found.update(src_digest=done.src_digest, dst_digest=done.dst_digest)
    agree = {
        "the ring's hash, with the copy queued, is not that of its snapshot": (
            queued.active_descriptors == 1 and queued.ring_hash == digest.ring_hash(queued)
        ),
        "the ring's hash is not that of its snapshot": after.ring_hash == recomputed,
        "the digest of what was sent is not that of the source": done.src_digest == digest.payload(src),
        "the digest of what arrived is not that of the destination": done.dst_digest == digest.payload(dst),
        "the bytes that arrived are not those sent": dst[:] == src,
        f"{done.bytes_done} bytes are reported as done, and {after.dma_bytes} counted": (
            done.bytes_done == after.dma_bytes == nbytes
        ),
        f"engine {done.engine} ran it instead": done.engine == engine,
    }
    return next((reason for reason, fine in agree.items() if not fine), None)
