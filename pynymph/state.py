# SPDX-License-Identifier: MIT
"""What a driver and a ring say of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from pynymph.abi import ffi


@dataclass(frozen=True)
class Query:
    """What the driver serves. Bit n of `requests` and `opcodes` stands for number n."""

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
    """What the ring did so far; `ring_hash` is the driver's own, 32 bytes."""

    dma_bytes: int
    ring_hash: bytes
    ring_size: int
    active_descriptors: int


@dataclass(frozen=True)
class Entry:
    """A transfer that is queued or runs. Addresses and length are in bytes, of this process's memory."""

    opcode: int
    flags: int
    length: int
    src: int
    dst: int
    cookie: int


@dataclass(frozen=True)
class Snapshot:
    """The ring at one moment. pynymph.digest.ring_hash() computes `ring_hash` again from the rest."""

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
    ring_bytes: bytes
    """struct nymph_dma_ring as the driver gave it, 24 bytes."""
    entry_bytes: bytes
    """The active entries from tail on as the driver gave them, 64 bytes each."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The active entries from tail on."""
        parsed = ffi.from_buffer("struct nymph_entry[]", self.entry_bytes)
        return tuple(Entry(e.opcode, e.flags, e.length, e.src, e.dst, e.cookie) for e in parsed)


@dataclass(frozen=True)
class Latency:
    """How long operations took, from submit to the end, in ns. Those that were canceled do not count.

    `p50` and so on: what so many per cent did not exceed, rounded up to the end of a bucket of the histogram:
    by an eighth at most.
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
