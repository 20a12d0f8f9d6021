# SPDX-License-Identifier: MIT
"""Reports: what a driver, a ring and an operation that has ended tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from pynymph._nymph import ffi


@dataclass(frozen=True)
class Completion:
    """Tell how an operation ended.

    Times are CLOCK_MONOTONIC in ns. Digests are BLAKE3-256, 32 bytes, or None.
    """

    cookie: int
    status: int
    """0, or why it failed as a negative errno."""
    bytes_done: int
    """Bytes that reached the destination, were hashed, or were found equal, from the start on."""
    engine: str | None
    """Name of the engine that was last at it, None if none was: several can share a large copy."""
    queued_ns: int
    started_ns: int
    """0 if no engine took it."""
    completed_ns: int
    src_digest: bytes | None
    """Digest of exactly the bytes sent; advisory with zero_copy, where another thread can change src."""
    dst_digest: bytes | None


@dataclass(frozen=True)
class Query:
    """Tell what the driver serves.

    Bit n of `requests` and `opcodes` stands for number n; lengths are in bytes.
    """

    version: int
    features: int
    requests: int
    opcodes: int
    entry_flags: int
    max_length: int
    max_entries: int
    setup_flags: int
    engines: dict[int, str]
    """Name of each engine, by the id that records use."""


@dataclass(frozen=True)
class Status:
    """Tell what the ring did so far. `dma_bytes` counts bytes; `ring_hash` is the driver's own, 32 bytes."""

    dma_bytes: int
    ring_hash: bytes
    ring_size: int
    active_descriptors: int


@dataclass(frozen=True)
class Entry:
    """Describe an operation that is queued or runs.

    Addresses and length are in bytes, of this process's memory.
    """

    opcode: int
    flags: int
    length: int
    src: int
    dst: int
    cookie: int


@dataclass(frozen=True)
class Snapshot:
    """Tell all that the ring's hash covers at one moment.

    pynymph.digest.ring_hash() computes `ring_hash`, 32 bytes, again from the rest.
    """

    ring_size: int
    head: int
    tail: int
    label: int
    dma_bytes: int
    ring_hash: bytes
    active_descriptors: int
    unread_records: int
    errors: int
    """How many transfers failed without leaving a record."""
    first_error: int
    """Status of the first of those, a negative errno, or 0."""
    paused: bool
    engine: str | None
    transcript: bytes
    """Digest, 32 bytes, of all entries that retired since setup or reset: pynymph.transcript tells how."""
    transcript_count: int
    """How many entries that are."""
    transcript_id: int
    """Number of the transcript since the module was loaded; reset() begins another one."""
    ring_bytes: bytes
    """struct nymph_dma_ring as the driver gave it, 24 bytes."""
    entry_bytes: bytes
    """The active entries from tail on as the driver gave them, 64 bytes each."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The active entries, from tail on."""
        parsed = ffi.from_buffer("struct nymph_entry[]", self.entry_bytes)
        return tuple(Entry(e.opcode, e.flags, e.length, e.src, e.dst, e.cookie) for e in parsed)


@dataclass(frozen=True)
class Attestation:
    """Hold the driver's statement about a ring, and what authenticates it.

    It has either `digest` or `signature`. kernel/pcie_nymph.h describes the bytes at struct nymph_statement.
    """

    statement: bytes
    digest: bytes | None
    """BLAKE3-256 of `statement`, keyed with the administrator's key, 32 bytes each: who has the key computes
    it again."""
    signature: bytes | None = None
    """Of `statement`, RSASSA-PKCS1-v1_5 with SHA-256: who has the administrator's public key verifies it."""


@dataclass(frozen=True)
class Latency:
    """Tell how long operations took, from submit to the end, in ns.

    Operations that were canceled do not count. `p50` is the time that 50 % did not exceed, and so on, rounded
    up to the end of a bucket of the histogram: at most an eighth too much.
    """

    count: int
    mean: float
    p50: int
    p95: int
    p99: int
    p999: int
    max: int
    histogram: tuple[tuple[int, int], ...]
    """The longest time that belongs to a bucket, and how many are in it; only buckets that are not empty."""
