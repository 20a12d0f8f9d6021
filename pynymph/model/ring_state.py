# SPDX-License-Identifier: MIT
"""Keep the state of a model's ring: its entries, its memory, and what is carried over to the next ring."""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from pynymph import transcript
from pynymph.abi import lib
from pynymph.model.addresses import Process, fail
from pynymph.owner import Owner


class Charge(Owner):
    """Charge pages to the locked memory; they come back with the last reference to this."""

    _account: dict[int, int] | None = None  # also where __init__ did not get far

    def __init__(self, account: dict[int, int], process: Process, pages: int) -> None:
        # By charge, and not one sum: the last reference can be anybody's, with no lock held.
        self._account = account
        if process.lockable_pages == math.inf:
            return
        if sum(list(account.values())) + pages > process.lockable_pages:
            fail(errno.ENOMEM)
        account[id(self)] = pages

    def __del__(self) -> None:
        if self._account is not None:
            self._account.pop(id(self), None)


@dataclass(frozen=True)
class Region(Owner):
    """Memory behind a handle: ours (a memfd, and our mapping of it), or the caller's."""

    at: int
    length: int
    readonly: bool
    charge: Charge
    memfd: int = -1
    mapping: mmap.mmap | None = None
    origin: object = None
    """What is of no use to it, but has to live as long."""

    def __del__(self) -> None:
        if self.memfd != -1:
            os.close(self.memfd)


class RegionView(mmap.mmap):
    """What a user has of a region: its charge comes back with the last of these."""

    region: Region


@dataclass
class Slot:
    """An active entry: its bytes, its fields, where its memory is, and what it keeps until it retires."""

    raw: bytes
    entry: Any
    src: int
    dst: int
    kept: list[object]
    queued_ns: int = 0
    canceled: bool = False


@dataclass
class Carried(Owner):
    """Keep what a ring carries over to the one that SETUP puts in its place."""

    dma_bytes: int = 0
    errors: int = 0
    first_error: int = 0
    eventfd: int = -1
    regions: dict[int, Region] = field(default_factory=dict)
    last_handle: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * lib.NYMPH_LATENCY_BUCKETS)
    latency_count: int = 0
    latency_sum: int = 0
    latency_max: int = 0
    transcript: blake3 = field(default_factory=lambda: blake3(derive_key_context=transcript.CONTEXT))
    transcript_count: int = 0
    transcript_id: int = 0

    def __del__(self) -> None:
        if self.eventfd != -1:
            os.close(self.eventfd)


@dataclass
class ModelRing:
    size: int
    label: int
    paused: bool
    carried: Carried
    pid: int
    tail: int = 0
    active: deque[Slot] = field(default_factory=deque)
    unread: deque[bytes] = field(default_factory=deque)
    reserved: int = 0
    chain_broken: bool = False

    @property
    def records(self) -> int:
        """How many can be reserved or unread."""
        return 2 * self.size

    @property
    def head(self) -> int:
        return (self.tail + len(self.active)) % self.size

    def is_full(self, record: bool) -> bool:
        return len(self.active) == self.size or (record and len(self.unread) + self.reserved == self.records)


@dataclass
class Outcome:
    """How an entry ended."""

    status: int = 0
    done: int = 0
    started_ns: int = 0
    src_digest: bytes | None = None
    dst_digest: bytes | None = None


def bucket(ns: int) -> int:
    """Choose the bucket of the histogram of latencies; see struct nymph_latency."""
    if ns < 8:
        return ns
    e = ns.bit_length() - 1
    return 8 * (e - 2) + (ns >> (e - 3) & 7)
