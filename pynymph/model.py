# SPDX-License-Identifier: MIT
"""The driver's contract in pure Python: what docs/abi.md says, without a driver. For Ring(device="model:").

A Model takes the driver's requests and gives its answers, errors and hashes. It moves bytes itself, in the
calling thread, as soon as an entry is accepted, unless the ring is paused: one of the orders the driver could
choose. It always says that it is a model: its one engine has that name.

Where it knows less than a kernel: locked memory is charged by pages, not folios, and to the Model, not the
user; nothing is pinned, so memory that is unmapped while queued is -EFAULT also with ZERO_COPY or registered;
how many rings there are in all is nobody's concern. What it exports is no dma-buf but a memfd, which Models
import, in other processes too; its charge ends with its handle, or an import by the same Model. And Ctrl-C
can cut a request in two.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import mmap
import os
import re
import resource
import socket
import threading
import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from blake3 import blake3

from pynymph import abi
from pynymph.abi import ffi, lib
from pynymph.mutex import Mutex

ENGINE = "model"

_ENGINE_ID = 1
_PAGE = mmap.PAGESIZE
_PIECE = 64 * 1024
_MAX_HANDLE = 4095
_HANDLE_SHIFT = 30
_USER_END = 1 << 48 if os.uname().machine == "aarch64" else (1 << 47) - _PAGE
_CAP_IPC_LOCK = 14
_MEMFD = "pynymph model"
_CHUNK = 256  # pages to load or store at once: what can't be, is found page by page

_ALWAYS = (
    lib.NYMPH_DMA_FLAG_COMPLETE_SYNC
    | lib.NYMPH_DMA_FLAG_RECORD
    | lib.NYMPH_DMA_FLAG_LINK
    | lib.NYMPH_DMA_FLAG_BARRIER
)
_SERVED = _ALWAYS | (
    lib.NYMPH_DMA_FLAG_ZERO_COPY | lib.NYMPH_DMA_FLAG_VERIFY_HASH | lib.NYMPH_DMA_FLAG_DIGEST_ONLY
)


@dataclass(frozen=True)
class _Operation:
    """What there is to know of an opcode: the flags it takes, whether it has sides, and writes."""

    flags: int
    src: bool = False
    dst: bool = False
    moves: bool = False


_OPERATIONS = {
    lib.NYMPH_OP_NOP: _Operation(_ALWAYS),
    lib.NYMPH_OP_COPY: _Operation(_SERVED, src=True, dst=True, moves=True),
    lib.NYMPH_OP_HASH: _Operation(_ALWAYS | lib.NYMPH_DMA_FLAG_ZERO_COPY, src=True),
    lib.NYMPH_OP_FILL: _Operation(_SERVED, dst=True, moves=True),
    lib.NYMPH_OP_COMPARE: _Operation(_ALWAYS | lib.NYMPH_DMA_FLAG_ZERO_COPY, src=True, dst=True),
}


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


# --- memory by its address ----------------------------------------------------------------------------------


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong]


def _transfer(call: Any, local: int, at: int, length: int) -> int:
    """Move memory from or to `at`; a fault there ends it, and no process. Returns the bytes moved."""
    done = 0
    while done < length:
        # Each page of its own: the kernel does not split one of these.
        starts = [at + done]
        while len(starts) < _CHUNK and (following := (starts[-1] | (_PAGE - 1)) + 1) < at + length:
            starts.append(following)
        end = min(at + length, (starts[-1] | (_PAGE - 1)) + 1)
        ends = [*starts[1:], end]
        remote = (_Iovec * len(starts))(*(_Iovec(a, b - a) for a, b in zip(starts, ends, strict=True)))
        here = _Iovec(local + done, end - at - done)
        moved = call(os.getpid(), ctypes.byref(here), 1, remote, len(starts), 0)
        if moved < 0 and (number := ctypes.get_errno()) != errno.EFAULT:  # no CROSS_MEMORY_ATTACH, say
            raise OSError(number, f"the model cannot do without {call.__name__}(): {os.strerror(number)}")
        done += max(moved, 0)
        if moved < here.length:
            break
    return done


def _load(at: int, length: int) -> bytes:
    """What is at address `at`, as far as it can be read."""
    buffer = ctypes.create_string_buffer(length)
    loaded = _transfer(_libc.process_vm_readv, ctypes.addressof(buffer), at, length)
    return buffer.raw[:loaded]


def _store(at: int, data: bytes) -> int:
    """Write `data` to address `at`. Returns how many bytes could be."""
    source = ffi.from_buffer(data)
    return _transfer(_libc.process_vm_writev, abi.address(source), at, len(data))


def _is_written_back(device: str) -> bool:
    """Whether the file system of that device has a disk behind it."""
    major, minor = (int(part, 16) for part in device.split(":"))
    mounts = Path("/proc/self/mountinfo").read_text()
    found = re.search(rf"^\d+ \d+ {major}:{minor} .* - (\S+) ", mounts, re.MULTILINE)
    return found is not None and found[1] not in ("tmpfs", "devtmpfs", "ramfs", "hugetlbfs")


def _span(line: str) -> tuple[int, int]:
    """Where the mapping of a line of maps starts, and where it has ended."""
    start, end = line.split(" ", 1)[0].split("-")
    return int(start, 16), int(end, 16)


def _pages(at: int, length: int) -> int:
    return (at + length - 1) // _PAGE - at // _PAGE + 1


class _Process:
    """What the kernel would know of this process; looked up once, so one of these is good for one request."""

    # Not cached_property: until Python 3.11 that has a lock, which fork can catch in another thread's hands.
    _mappings: list[str] | None = None
    _lockable_pages: float | None = None

    @property
    def mappings(self) -> list[str]:
        """Lines of proc_pid_maps(5), by address. There are hundreds, and few are looked at."""
        if self._mappings is None:
            self._mappings = Path("/proc/self/maps").read_text().splitlines()
        return self._mappings

    def check_mapped(self, at: int, length: int, access: str, long_term: bool) -> None:
        """-EFAULT unless all of it is mapped with `access`, such as "rw"; see docs/abi.md for -EOPNOTSUPP."""
        end = at + length
        if end > _USER_END:
            _fail(errno.EFAULT)
        refused = False
        first = bisect_right(self.mappings, at, key=lambda line: _span(line)[1])
        for line in islice(self.mappings, first, None):
            start, behind = _span(line)
            _, allowed, _, device, inode, *_ = line.split()
            if at >= end or start > at or not set(access) <= set(allowed):
                break
            if long_term and "w" in access and "s" in allowed and inode != "0":
                refused = refused or _is_written_back(device)
            at = behind
        if at < end:
            _fail(errno.EFAULT)
        if refused:
            _fail(errno.EOPNOTSUPP)

    @property
    def lockable_pages(self) -> float:
        """How many it may lock in all."""
        if self._lockable_pages is None:
            self._lockable_pages = self._find_lockable_pages()
        return self._lockable_pages

    def _find_lockable_pages(self) -> float:
        status = Path("/proc/self/status").read_text()
        found = re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)
        if found is not None and int(found[1], 16) >> _CAP_IPC_LOCK & 1:
            return math.inf
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return math.inf if limit == resource.RLIM_INFINITY else limit // _PAGE


# --- state --------------------------------------------------------------------------------------------------


class _Charge:
    """Pages charged to the locked memory; they come back with the last reference to this."""

    def __init__(self, account: dict[int, int], process: _Process, pages: int) -> None:
        # By charge, and not one sum: the last reference can be anybody's, with no lock held.
        self._account = account
        if process.lockable_pages == math.inf:
            return
        if sum(list(account.values())) + pages > process.lockable_pages:
            _fail(errno.ENOMEM)
        account[id(self)] = pages

    def __del__(self) -> None:
        self._account.pop(id(self), None)


@dataclass(frozen=True)
class _Region:
    """Memory behind a handle: ours (a memfd, and our mapping of it), or the caller's."""

    at: int
    length: int
    readonly: bool
    charge: _Charge
    memfd: int = -1
    mapping: mmap.mmap | None = None
    origin: object = None
    """What is of no use to it, but has to live as long."""

    def __del__(self) -> None:
        if self.memfd != -1:
            os.close(self.memfd)


class _RegionView(mmap.mmap):
    """What a user has of a region: its charge comes back with the last of these."""

    region: _Region


@dataclass
class _Slot:
    """An active entry: its bytes, its fields, where its memory is, and what it keeps until it retires."""

    raw: bytes
    entry: Any
    src: int
    dst: int
    kept: list[object]
    queued_ns: int = 0
    canceled: bool = False


@dataclass
class _Estate:
    """What a ring leaves to the one SETUP puts in its place."""

    dma_bytes: int = 0
    errors: int = 0
    first_error: int = 0
    eventfd: int = -1
    regions: dict[int, _Region] = field(default_factory=dict)
    last_handle: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * lib.NYMPH_LATENCY_BUCKETS)
    latency_count: int = 0
    latency_sum: int = 0
    latency_max: int = 0

    def __del__(self) -> None:
        if self.eventfd != -1:
            os.close(self.eventfd)


@dataclass
class _Ring:
    size: int
    label: int
    paused: bool
    estate: _Estate
    pid: int
    tail: int = 0
    active: deque[_Slot] = field(default_factory=deque)
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
class _Outcome:
    """How an entry ended."""

    status: int = 0
    done: int = 0
    started_ns: int = 0
    src_digest: bytes | None = None
    dst_digest: bytes | None = None


def _bucket(ns: int) -> int:
    """Of the histogram of latencies; see struct nymph_latency."""
    if ns < 8:
        return ns
    e = ns.bit_length() - 1
    return 8 * (e - 2) + (ns >> (e - 3) & 7)


# --- entries ------------------------------------------------------------------------------------------------


def _overlap(entry: Any) -> bool:
    return bool(entry.src_buffer == entry.dst_buffer and abs(entry.src - entry.dst) < entry.length)


def _check_entry(entry: Any) -> None:
    """-EINVAL unless it is well formed."""
    operation = _OPERATIONS.get(entry.opcode)
    wrong = (
        operation is None
        or entry.size != ffi.sizeof("struct nymph_entry")
        or any(entry.reserved)
        or entry.flags & ~operation.flags
    )
    if wrong or operation is None:
        _fail(errno.EINVAL)
    has_length = operation.src or operation.dst
    digest_only = entry.flags & lib.NYMPH_DMA_FLAG_DIGEST_ONLY
    record = entry.flags & lib.NYMPH_DMA_FLAG_RECORD
    if (
        (not 1 <= entry.length <= lib.NYMPH_MAX_LENGTH if has_length else entry.length)
        or (not operation.src and (entry.src_buffer or (entry.src and entry.opcode != lib.NYMPH_OP_FILL)))
        or (not operation.dst and (entry.dst_buffer or entry.dst))
        or (operation.src and operation.dst and _overlap(entry))
        or (not record and (digest_only or entry.opcode == lib.NYMPH_OP_HASH))
        or (digest_only and entry.flags & lib.NYMPH_DMA_FLAG_VERIFY_HASH)
    ):
        _fail(errno.EINVAL)


def _move(slot: _Slot, outcome: _Outcome) -> None:
    """A COPY or FILL."""
    entry, flags = slot.entry, slot.entry.flags
    pattern = entry.src.to_bytes(8, "little") * (_PIECE // 8) if entry.opcode == lib.NYMPH_OP_FILL else None
    sent, back = blake3(), blake3()
    while outcome.done < entry.length and not outcome.status:
        at, length = outcome.done, min(entry.length - outcome.done, _PIECE)
        data = pattern[:length] if pattern is not None else _load(slot.src + at, length)
        moved = _store(slot.dst + at, data)
        if moved < length:
            outcome.status = -errno.EFAULT
        sent.update(data[:moved])
        if flags & lib.NYMPH_DMA_FLAG_DIGEST_ONLY:
            back.update(_load(slot.dst + at, moved))
        outcome.done += moved
    if outcome.status:
        return
    if flags & lib.NYMPH_DMA_FLAG_VERIFY_HASH:
        for at in range(0, entry.length, _PIECE):
            length = min(entry.length - at, _PIECE)
            data = _load(slot.dst + at, length)
            if len(data) < length:
                outcome.status = -errno.EFAULT
                return
            back.update(data)
        outcome.src_digest, outcome.dst_digest = sent.digest(), back.digest()
        if outcome.src_digest != outcome.dst_digest:
            outcome.status = -errno.EBADMSG
    elif flags & lib.NYMPH_DMA_FLAG_DIGEST_ONLY:
        outcome.dst_digest = back.digest()


def _hash(slot: _Slot, outcome: _Outcome) -> None:
    hasher = blake3()
    while outcome.done < slot.entry.length:
        length = min(slot.entry.length - outcome.done, _PIECE)
        data = _load(slot.src + outcome.done, length)
        hasher.update(data)
        outcome.done += len(data)
        if len(data) < length:
            outcome.status = -errno.EFAULT
            return
    outcome.src_digest = hasher.digest()


def _compare(slot: _Slot, outcome: _Outcome) -> None:
    while outcome.done < slot.entry.length and not outcome.status:
        length = min(slot.entry.length - outcome.done, _PIECE // 2)
        one, other = _load(slot.src + outcome.done, length), _load(slot.dst + outcome.done, length)
        common = min(len(one), len(other))
        if one[:common] != other[:common]:
            outcome.status = -errno.EBADMSG
            outcome.done += next(i for i in range(common) if one[i] != other[i])
            return
        outcome.done += common
        if common < length:
            outcome.status = -errno.EFAULT


_RUN = {
    lib.NYMPH_OP_NOP: lambda slot, outcome: None,
    lib.NYMPH_OP_COPY: _move,
    lib.NYMPH_OP_FILL: _move,
    lib.NYMPH_OP_HASH: _hash,
    lib.NYMPH_OP_COMPARE: _compare,
}


# --- requests -----------------------------------------------------------------------------------------------


class Model:
    """An open file of the driver that is not there. Threads may share one.

    Its methods are those of pynymph.abi.Device, and refuse with the same OSErrors.
    """

    def __init__(self) -> None:
        # Guards all of it. Not the Condition itself: Ctrl-C can come before its `with` can give it back.
        self._lock = Mutex()
        self._changed = threading.Condition(self._lock)
        self._ring: _Ring | None = None
        self._locked_pages: dict[int, int] = {}
        self._exports: WeakValueDictionary[int, _Region] = WeakValueDictionary()
        self._process = _Process()
        # Readable while the peer has sent something, writable while the peer has room for more.
        self._poll, self._peer = socket.socketpair()
        self._peer.setblocking(False)
        self._is_readable, self._is_writable = False, True
        self._requests = {
            1: self._submit_dma,
            2: self._get_status,
            3: self._setup_ring,
            4: self._get_ring,
            5: self._reset,
            6: self._query,
            7: self._setup2,
            8: self._enable,
            9: self._enter,
            10: self._snapshot,
            11: self._cancel,
            12: self._buffer,
            13: self._eventfd,
            14: self._latency,
        }
        self._numbers = {
            (value if value & 0xFF < 6 or value & 0xFF == 8 else value & ~0x3FFF0000): value & 0xFF
            for name, value in vars(abi).items()
            if name.startswith("NYMPH_IOC_")
        }

    def fileno(self) -> int:
        """To poll: readable when there are unread records, writable when there is room for an entry."""
        return self._poll.fileno()

    def close(self) -> None:
        """End it, as closing the file ends the driver's."""
        # In a child made by fork, a thread that is not there may have the lock.
        ring = self._ring
        if ring is not None and ring.pid == os.getpid():
            with self._lock:
                self._end()
        self._poll.close()
        self._peer.close()

    def ioctl(self, request: int, argument: Any = None) -> int:
        """Make `request`. `argument` is a pointer to a struct of `abi.ffi`, which is read and written."""
        # A struct that may grow is known by all but its size.
        number = self._numbers.get(request) or self._numbers.get(request & ~0x3FFF0000)
        if number is None:
            _fail(errno.ENOTTY)
        serve: Any = self._requests[number]
        with self._lock:
            self._process = _Process()
            try:
                return int((serve() if argument is None else serve(argument)) or 0)
            finally:
                self._show()

    def read(self, size: int) -> bytes:
        """Completion records, as many as are there and fit in `size` bytes; waits for the first."""
        most = size // ffi.sizeof("struct nymph_record")
        if not most:
            _fail(errno.EINVAL)
        with self._lock:
            ring = self._need_ring()
            while not ring.unread:
                if not os.get_blocking(self.fileno()):
                    _fail(errno.EAGAIN)
                self._changed.wait()
                if ring is not self._ring:
                    _fail(errno.ECANCELED)
            found = b"".join(ring.unread.popleft() for _ in range(min(most, len(ring.unread))))
            self._show()
            return found

    def mmap(self, length: int, offset: int) -> mmap.mmap:
        """Map `length` bytes of an allocated buffer: `offset` is its mmap_offset, or whole pages more."""
        with self._lock:
            region = self._need_ring().estate.regions.get(offset >> _HANDLE_SHIFT)
            first = offset & ((1 << _HANDLE_SHIFT) - 1)
            if region is None or region.memfd == -1 or region.mapping is None:
                _fail(errno.EINVAL)
            if not 0 < length <= len(region.mapping) - first:
                _fail(errno.EINVAL)
            mapping = _RegionView(region.memfd, length, offset=first)
            mapping.region = region
            return mapping

    def _show(self) -> None:
        """Let poll() see what is the case now."""
        ring = self._ring
        readable = ring is not None and bool(ring.unread)
        writable = ring is None or not ring.is_full(True)
        if readable != self._is_readable:
            self._peer.send(b"x") if readable else self._poll.recv(1, socket.MSG_DONTWAIT)
        if writable != self._is_writable:
            try:
                while True:
                    self._peer.recv(1 << 20) if writable else self._poll.send(
                        bytes(1 << 16), socket.MSG_DONTWAIT
                    )
            except BlockingIOError:
                pass
        self._is_readable, self._is_writable = readable, writable

    def _need_ring(self) -> _Ring:
        return self._get_ring_state() or _fail(errno.EINVAL)

    def _get_ring_state(self) -> _Ring | None:
        if self._ring is not None and self._ring.pid != os.getpid():
            _fail(errno.EPERM)
        return self._ring

    @staticmethod
    def _check_size(argument: Any, least: int | None = None) -> None:
        known = ffi.sizeof(argument[0])
        if argument.size < (known if least is None else least):
            _fail(errno.EINVAL)
        if argument.size > _PAGE:
            _fail(errno.E2BIG)
        if argument.size > known:
            rest = _load(abi.address(argument) + known, argument.size - known)
            if len(rest) < argument.size - known:
                _fail(errno.EFAULT)
            if any(rest):
                _fail(errno.E2BIG)

    # Setting up and taking away

    def _setup(self, entries: int, label: int, flags: int, engine: bytes) -> None:
        if flags & ~lib.NYMPH_SETUP_PAUSED or not 1 <= entries <= lib.NYMPH_MAX_ENTRIES:
            _fail(errno.EINVAL)
        if b"\0" not in engine:
            _fail(errno.EINVAL)
        if engine.split(b"\0")[0] not in (b"", b"auto", ENGINE.encode()):
            _fail(errno.ENODEV)
        old = self._get_ring_state()
        if old is not None and (old.active or old.unread):
            _fail(errno.EBUSY)
        estate = old.estate if old is not None else _Estate()
        self._ring = _Ring(entries, label, bool(flags & lib.NYMPH_SETUP_PAUSED), estate, os.getpid())
        self._changed.notify_all()

    def _setup_ring(self, argument: Any) -> None:
        if argument.head or argument.tail or argument.reserved:
            _fail(errno.EINVAL)
        self._setup(argument.ring_size, argument.ring_addr, 0, b"\0")

    def _setup2(self, argument: Any) -> None:
        self._check_size(argument)
        argument.records = 2 * argument.entries & 0xFFFFFFFF
        engine = bytes(ffi.buffer(argument.engine))
        self._setup(argument.entries, argument.ring_addr, argument.flags, engine)

    def _reset(self) -> None:
        self._need_ring()
        self._end()

    def _end(self) -> None:
        """Cancel what is queued, and be without a ring."""
        ring, self._ring = self._ring, None
        while ring is not None and ring.active:
            self._retire(ring, ring.active[0], _Outcome(-errno.ECANCELED))
        self._changed.notify_all()

    def _enable(self) -> None:
        ring = self._need_ring()
        ring.paused = False
        self._run(ring)

    # Entries

    def _operand(self, ring: _Ring, slot: _Slot, handle: int, at: int) -> tuple[int, _Region | None]:
        if not handle:
            return at, None
        region = ring.estate.regions.get(handle)
        if region is None:
            _fail(errno.ENOENT)
        slot.kept.append(region)
        return region.at + at, region

    def _charge(self, pages: int) -> _Charge:
        return _Charge(self._locked_pages, self._process, pages)

    def _prepare(self, ring: _Ring, slot: _Slot) -> None:
        """Make sure of the memory the entry names."""
        entry, operation = slot.entry, _OPERATIONS[slot.entry.opcode]
        zero_copy = bool(entry.flags & lib.NYMPH_DMA_FLAG_ZERO_COPY)
        hashed = entry.flags & (lib.NYMPH_DMA_FLAG_VERIFY_HASH | lib.NYMPH_DMA_FLAG_DIGEST_ONLY)
        dst_access = ("rw" if hashed else "w") if operation.moves else "r"
        sides = []
        if operation.src:
            slot.src, region = self._operand(ring, slot, entry.src_buffer, entry.src)
            sides.append((entry.src, region, "r"))
        if operation.dst:
            slot.dst, region = self._operand(ring, slot, entry.dst_buffer, entry.dst)
            sides.append((entry.dst, region, dst_access))
        for at, region, access in sides:
            if region is None:
                self._process.check_mapped(at, entry.length, access, zero_copy)
            elif at + entry.length > region.length or ("w" in access and region.readonly):
                _fail(errno.EFAULT)
        if zero_copy:
            for at, region, _ in sides:
                if region is None:
                    slot.kept.append(self._charge(_pages(at, entry.length)))

    def _accept(self, ring: _Ring, entry: Any) -> _Outcome | None:
        """Queue an entry, and run what can be; returns how it ended, if it has."""
        _check_entry(entry)
        if entry.flags & lib.NYMPH_DMA_FLAG_COMPLETE_SYNC and ring.paused:
            _fail(errno.EAGAIN)
        own = ffi.new("struct nymph_entry *", entry[0])
        slot = _Slot(bytes(ffi.buffer(own)), own, 0, 0, [])
        self._prepare(ring, slot)
        record = bool(own.flags & lib.NYMPH_DMA_FLAG_RECORD)
        if ring.is_full(record):
            _fail(errno.ENOSPC)
        slot.queued_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        ring.active.append(slot)
        ring.reserved += record
        return self._run(ring)

    def _run(self, ring: _Ring) -> _Outcome | None:
        """Run what is queued; returns how the last one ended."""
        outcome = None
        while ring.active and not ring.paused:
            slot = ring.active[0]
            outcome = _Outcome()
            if ring.chain_broken or slot.canceled:
                outcome.status = -errno.ECANCELED
            else:
                outcome.started_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                _RUN[slot.entry.opcode](slot, outcome)
            self._retire(ring, slot, outcome)
        return outcome

    def _retire(self, ring: _Ring, slot: _Slot, outcome: _Outcome) -> None:
        estate, entry = ring.estate, slot.entry
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if entry.flags & lib.NYMPH_DMA_FLAG_RECORD:
            ring.reserved -= 1
            ring.unread.append(self._record(slot, outcome, now))
            if estate.eventfd != -1:
                os.eventfd_write(estate.eventfd, 1)
        elif outcome.status:
            estate.first_error = estate.first_error or outcome.status
            estate.errors += 1
        ring.chain_broken = bool(outcome.status and entry.flags & lib.NYMPH_DMA_FLAG_LINK)
        if outcome.started_ns:
            took = now - slot.queued_ns
            estate.latencies[_bucket(took)] += 1
            estate.latency_count += 1
            estate.latency_sum += took
            estate.latency_max = max(estate.latency_max, took)
        if _OPERATIONS[entry.opcode].moves:
            estate.dma_bytes += outcome.done
        ring.active.popleft()
        ring.tail = (ring.tail + 1) % ring.size
        self._changed.notify_all()

    @staticmethod
    def _record(slot: _Slot, outcome: _Outcome, now: int) -> bytes:
        record = abi.new("nymph_record", cookie=slot.entry.cookie, status=outcome.status)
        record.queued_ns, record.completed_ns = slot.queued_ns, now
        if outcome.started_ns:
            record.bytes_done, record.engine = outcome.done, _ENGINE_ID
            record.started_ns = outcome.started_ns
            if outcome.src_digest is not None:
                record.flags |= lib.NYMPH_RECORD_SRC_DIGEST
                record.src_digest = outcome.src_digest
            if outcome.dst_digest is not None:
                record.flags |= lib.NYMPH_RECORD_DST_DIGEST
                record.dst_digest = outcome.dst_digest
        return bytes(ffi.buffer(record))

    def _submit_dma(self, argument: Any) -> None:
        ring = self._need_ring()
        entry = abi.new(
            "nymph_entry",
            opcode=lib.NYMPH_OP_COPY,
            flags=argument.flags,
            length=argument.length,
            src=argument.src_addr,
            dst=argument.dst_addr,
            cookie=argument.cookie,
        )
        outcome = self._accept(ring, entry)
        if entry.flags & lib.NYMPH_DMA_FLAG_COMPLETE_SYNC and outcome is not None and outcome.status:
            _fail(-outcome.status)

    def _enter(self, argument: Any) -> int:
        self._check_size(argument)
        if argument.flags or argument.min_records > argument.max_records:
            _fail(errno.EINVAL)
        argument.submitted = argument.reaped = argument.error = 0
        error = 0
        try:
            ring = self._need_ring()
            error = self._enter_submit(ring, argument)
            self._enter_reap(ring, argument, 0 if error else argument.min_records)
        except OSError as e:
            if e.errno is None:
                raise  # a signal's handler did
            error = error or -e.errno
        argument.error = error
        if error and not argument.submitted and not argument.reaped:
            _fail(-error)
        return int(argument.submitted)

    def _enter_submit(self, ring: _Ring, argument: Any) -> int:
        """Accept entries until one is refused; returns why, as a negative errno, or 0."""
        size = ffi.sizeof("struct nymph_entry")
        while argument.submitted < argument.to_submit:
            raw = _load(argument.entries + argument.submitted * size, size)
            if len(raw) < size:
                return -errno.EFAULT
            entry = ffi.new("struct nymph_entry *")
            ffi.buffer(entry)[:] = raw
            try:
                self._accept(ring, entry)
            except OSError as e:
                return -(e.errno or 0)
            argument.submitted += 1
        return 0

    def _enter_reap(self, ring: _Ring, argument: Any, wanted: int) -> None:
        """Hand out records, and wait until there were `wanted`."""
        size = ffi.sizeof("struct nymph_record")
        while True:
            while ring.unread and argument.reaped < argument.max_records:
                if _store(argument.records + argument.reaped * size, ring.unread[0]) < size:
                    _fail(errno.EFAULT)
                ring.unread.popleft()
                argument.reaped += 1
            if argument.reaped >= wanted:
                return
            if ring is not self._ring:
                _fail(errno.ECANCELED)
            left = None
            if argument.deadline_ns != lib.NYMPH_NO_DEADLINE:
                left = (argument.deadline_ns - time.clock_gettime_ns(time.CLOCK_MONOTONIC)) / 1e9
                if left <= 0:
                    _fail(errno.ETIME)
                left = min(left, threading.TIMEOUT_MAX)
            self._show()
            self._changed.wait(left)

    def _cancel(self, argument: Any) -> None:
        self._check_size(argument)
        if argument.flags or argument.reserved:
            _fail(errno.EINVAL)
        argument.canceled = 0
        found = [slot for slot in self._need_ring().active if slot.entry.cookie == argument.cookie]
        for slot in found:
            slot.canceled = True
        argument.canceled = len(found)
        if not found:
            _fail(errno.ENOENT)

    # Buffers

    def _buffer(self, argument: Any) -> None:
        self._check_size(argument, ffi.offsetof("struct nymph_buffer", "fd"))
        op, flags = argument.op, argument.flags
        has_fd = op in (lib.NYMPH_BUFFER_IMPORT, lib.NYMPH_BUFFER_EXPORT)
        # A shorter struct has none, and nothing is read behind it.
        if argument.size < ffi.sizeof("struct nymph_buffer"):
            wrong = has_fd
        else:
            wrong = argument.reserved or (argument.fd and not has_fd)
        if wrong:
            _fail(errno.EINVAL)
        if op in (lib.NYMPH_BUFFER_ALLOC, lib.NYMPH_BUFFER_REGISTER, lib.NYMPH_BUFFER_CARD):
            known = lib.NYMPH_BUFFER_READ_ONLY if op == lib.NYMPH_BUFFER_REGISTER else 0
            if (
                flags & ~known
                or not 1 <= argument.length <= lib.NYMPH_MAX_LENGTH
                or (op != lib.NYMPH_BUFFER_REGISTER and argument.addr)
            ):
                _fail(errno.EINVAL)
            ring = self._need_ring()
            if op == lib.NYMPH_BUFFER_CARD:
                _fail(errno.EOPNOTSUPP)  # its only engine is the CPU
            make = self._allocate if op == lib.NYMPH_BUFFER_ALLOC else self._register
            self._add_region(ring, argument, make)
        elif op in (lib.NYMPH_BUFFER_FREE, lib.NYMPH_BUFFER_IMPORT, lib.NYMPH_BUFFER_EXPORT):
            known = lib.NYMPH_BUFFER_READ_ONLY if op == lib.NYMPH_BUFFER_IMPORT else 0
            if flags & ~known or argument.addr or argument.length:
                _fail(errno.EINVAL)
            ring = self._need_ring()
            if op == lib.NYMPH_BUFFER_IMPORT:
                self._add_region(ring, argument, self._import)
            elif argument.handle not in ring.estate.regions:
                _fail(errno.ENOENT)
            elif op == lib.NYMPH_BUFFER_EXPORT:
                argument.fd = self._export(ring.estate.regions[argument.handle])
            else:
                del ring.estate.regions[argument.handle]
        else:
            _fail(errno.EINVAL)

    def _add_region(self, ring: _Ring, argument: Any, make: Any) -> None:
        regions = ring.estate.regions
        region = make(argument)
        handle = next((h for h in range(1, _MAX_HANDLE + 1) if h not in regions), None)
        if handle is None:
            _fail(errno.EMFILE)
        regions[handle] = region
        argument.handle = handle
        argument.mmap_offset = handle << _HANDLE_SHIFT if region.memfd != -1 else 0

    def _allocate(self, argument: Any) -> _Region:
        pages = -(-argument.length // _PAGE)
        charge = self._charge(pages)
        memfd = os.memfd_create(_MEMFD, os.MFD_CLOEXEC)
        os.ftruncate(memfd, pages * _PAGE)
        mapping = mmap.mmap(memfd, pages * _PAGE)
        at = abi.address(ffi.from_buffer(mapping))
        return _Region(at, argument.length, False, charge, memfd, mapping)

    def _register(self, argument: Any) -> _Region:
        readonly = bool(argument.flags & lib.NYMPH_BUFFER_READ_ONLY)
        self._process.check_mapped(argument.addr, argument.length, "r" if readonly else "rw", True)
        charge = self._charge(_pages(argument.addr, argument.length))
        return _Region(argument.addr, argument.length, readonly, charge)

    def _export(self, region: _Region) -> int:
        if region.memfd == -1:
            _fail(errno.EINVAL)
        self._exports[os.fstat(region.memfd).st_ino] = region
        return fcntl.fcntl(region.memfd, fcntl.F_DUPFD_CLOEXEC, 0)

    def _import(self, argument: Any) -> _Region:
        readonly = bool(argument.flags & lib.NYMPH_BUFFER_READ_ONLY)
        if argument.fd < 0:
            _fail(errno.EBADF)
        access = fcntl.fcntl(argument.fd, fcntl.F_GETFL) & os.O_ACCMODE  # the same, if there is no such file
        name = os.readlink(f"/proc/self/fd/{argument.fd}")
        if not name.startswith((f"/memfd:{_MEMFD} ", "/dmabuf:")):
            _fail(errno.EINVAL)
        if access == os.O_WRONLY or (access == os.O_RDONLY and not readonly):
            _fail(errno.EACCES)
        length = os.lseek(argument.fd, 0, os.SEEK_END)
        if not 1 <= length <= lib.NYMPH_MAX_LENGTH:
            _fail(errno.EINVAL)
        protection = mmap.PROT_READ | (0 if readonly else mmap.PROT_WRITE)
        mapping = mmap.mmap(argument.fd, length, prot=protection)
        at = abi.address(ffi.from_buffer(mapping))
        argument.length = length
        origin = self._exports.get(os.fstat(argument.fd).st_ino)
        return _Region(at, length, readonly, self._charge(0), mapping=mapping, origin=origin)

    # What there is to see

    def _query(self, argument: Any) -> None:
        self._check_size(argument)
        argument.version = lib.NYMPH_ABI_VERSION
        argument.features = lib.NYMPH_FEATURE_POLL | lib.NYMPH_FEATURE_READ
        argument.features |= lib.NYMPH_FEATURE_ALLOC | lib.NYMPH_FEATURE_REGISTER | lib.NYMPH_FEATURE_CARD
        argument.features |= lib.NYMPH_FEATURE_DMABUF
        argument.requests = sum(1 << number for number in self._requests)
        argument.opcodes = sum(1 << opcode for opcode in _OPERATIONS)
        argument.entry_flags = _SERVED
        argument.max_length = lib.NYMPH_MAX_LENGTH
        argument.max_entries = lib.NYMPH_MAX_ENTRIES
        argument.setup_flags = lib.NYMPH_SETUP_PAUSED
        argument.num_engines = 1
        if argument.engines and argument.max_engines:
            engine = abi.new("nymph_engine_info", id=_ENGINE_ID, name=ENGINE.encode())
            raw = bytes(ffi.buffer(engine))
            if _store(argument.engines, raw) < len(raw):
                _fail(errno.EFAULT)

    def _fill_ring(self, ring: _Ring | None, to: Any) -> None:
        to.ring_size, to.head, to.tail, to.reserved, to.ring_addr = (
            (ring.size, ring.head, ring.tail, 0, ring.label) if ring is not None else (0, 0, 0, 0, 0)
        )

    def _hash(self, ring: _Ring | None) -> bytes:
        indices = ffi.new("struct nymph_dma_ring *")
        self._fill_ring(ring, indices)
        hasher = blake3(bytes(ffi.buffer(indices)))
        if ring is not None:
            for slot in ring.active:
                hasher.update(slot.raw)
        hasher.update((ring.estate.dma_bytes if ring is not None else 0).to_bytes(8, "little"))
        return hasher.digest()

    def _get_ring(self, argument: Any) -> None:
        self._fill_ring(self._need_ring(), argument)

    def _get_status(self, argument: Any) -> None:
        ring = self._get_ring_state()
        argument.dma_bytes = ring.estate.dma_bytes if ring is not None else 0
        argument.ring_hash = self._hash(ring)
        argument.ring_size = ring.size if ring is not None else 0
        argument.active_descriptors = len(ring.active) if ring is not None else 0

    def _snapshot(self, argument: Any) -> None:
        self._check_size(argument)
        if argument.flags:
            _fail(errno.EINVAL)
        ring = self._get_ring_state()
        raw = b"".join(slot.raw for slot in ring.active) if ring is not None else b""
        active = len(ring.active) if ring is not None else 0
        if argument.entries:
            if active > argument.max_entries:
                _fail(errno.ENOSPC)
            if raw and _store(argument.entries, raw) < len(raw):
                _fail(errno.EFAULT)
        estate = ring.estate if ring is not None else _Estate()
        self._fill_ring(ring, argument.ring)
        argument.dma_bytes = estate.dma_bytes
        argument.ring_hash = self._hash(ring)
        argument.active_descriptors = active
        argument.unread_records = len(ring.unread) if ring is not None else 0
        argument.first_error, argument.errors = estate.first_error, estate.errors
        argument.state = lib.NYMPH_STATE_PAUSED if ring is not None and ring.paused else 0
        argument.engine = _ENGINE_ID if ring is not None else 0

    def _eventfd(self, argument: Any) -> None:
        self._check_size(argument)
        if argument.flags or argument.reserved:
            _fail(errno.EINVAL)
        own = -1
        if argument.fd != -1:
            try:
                kind = os.readlink(f"/proc/self/fd/{argument.fd}")
            except OSError:
                _fail(errno.EBADF)
            if "eventfd" not in kind:
                _fail(errno.EINVAL)
            own = os.dup(argument.fd)
        try:
            estate = self._need_ring().estate
        except OSError:
            if own != -1:
                os.close(own)
            raise
        own, estate.eventfd = estate.eventfd, own
        if own != -1:
            os.close(own)

    def _latency(self, argument: Any) -> None:
        self._check_size(argument)
        if argument.flags:
            _fail(errno.EINVAL)
        estate = self._need_ring().estate
        argument.count, argument.sum_ns = estate.latency_count, estate.latency_sum
        argument.max_ns = estate.latency_max
        if argument.buckets:
            raw = bytes(ffi.buffer(ffi.new("unsigned long long[]", estate.latencies)))
            if _store(argument.buckets, raw) < len(raw):
                _fail(errno.EFAULT)
