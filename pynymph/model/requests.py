# SPDX-License-Identifier: MIT
"""Serve the driver's requests without a driver."""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from blake3 import blake3

from pynymph import abi, transcript
from pynymph.abi import ffi, lib
from pynymph.integers import INT64_MAX, whole
from pynymph.model.addresses import PAGE, Process, fail, load, pages, store
from pynymph.model.entries import OPERATIONS, RUN, SERVED, check_entry
from pynymph.model.ring_state import Carried, Charge, ModelRing, Outcome, Region, RegionView, Slot, bucket
from pynymph.mutex import Mutex
from pynymph.owner import Owner
from pynymph.signing_keys import RSA_BITS

ENGINE = "model"

_ENGINE_ID = 1
_MAX_HANDLE = 4095
_HANDLE_SHIFT = 30
_MEMFD = "pynymph model"

_transcripts = itertools.count(1)
_STATED = (
    *("transcript_count", "transcript_id", "dma_bytes", "active_descriptors", "unread_records", "errors"),
    *("state", "engine"),
)
"""Fields that a statement has as a snapshot has them."""


def _statement_text() -> bytes:
    """Tell what the model is, as the driver tells it of itself."""
    kernel = os.uname()
    facts = {
        "version": "model",
        "kernel": kernel.release,
        "kernel_version": kernel.version,
        "machine": kernel.machine,
        "blake3": "blake3",
        f"engine.{_ENGINE_ID}": ENGINE,
    }
    return "".join(f"{name}={value}\n" for name, value in facts.items()).encode()


def _signer(key: bytes) -> Callable[[bytes], bytes]:
    """Return what signs with a key, as the driver signs. Without `cryptography`, EOPNOTSUPP."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import load_der_private_key
    except ImportError:
        fail(errno.EOPNOTSUPP)
    try:
        private = load_der_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        fail(errno.EKEYREJECTED)
    if not isinstance(private, RSAPrivateKey) or private.key_size not in RSA_BITS:
        fail(errno.EKEYREJECTED)
    return lambda statement: private.sign(statement, PKCS1v15(), SHA256())


class Model(Owner):
    """Open a file of the driver that is not there. Threads may share one.

    Its methods are those of pynymph.abi.Device, and refuse with the same OSErrors.
    """

    attest_key: bytes | None = None
    """What stands for the administrator's logon key, 32 bytes."""
    sign_key: bytes | None = None
    """What stands for the administrator's asymmetric key: a private RSA key, PKCS#8 in DER."""

    def __init__(self) -> None:
        # Guards all of it. Not the Condition itself: Ctrl-C can come before its `with` can give it back.
        self._lock = Mutex()
        self._changed = threading.Condition(self._lock)
        self._ring: ModelRing | None = None
        self._locked_pages: dict[int, int] = {}
        self._exports: WeakValueDictionary[int, Region] = WeakValueDictionary()
        self._process = Process()
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
            15: self._attest,
        }
        self._numbers = {
            (value if value & 0xFF < 6 or value & 0xFF == 8 else value & ~0x3FFF0000): value & 0xFF
            for name, value in vars(abi).items()
            if name.startswith("NYMPH_IOC_")
        }

    def fileno(self) -> int:
        """Return a descriptor to poll: readable when there are records, writable when there is room."""
        return self._poll.fileno()

    def close(self) -> None:
        """End the model, as closing the file ends the driver's ring."""
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
            fail(errno.ENOTTY)
        serve: Any = self._requests[number]
        with self._lock:
            self._process = Process()
            try:
                return int((serve() if argument is None else serve(argument)) or 0)
            finally:
                self._show()

    def read(self, size: int) -> bytes:
        """Read completion records: as many as there are and fit in `size` bytes. Waits for the first."""
        most = whole(size, "size", 0, INT64_MAX) // ffi.sizeof("struct nymph_record")
        if not most:
            fail(errno.EINVAL)
        with self._lock:
            ring = self._need_ring()
            while not ring.unread:
                if not os.get_blocking(self.fileno()):
                    fail(errno.EAGAIN)
                self._changed.wait()
                if ring is not self._ring:
                    fail(errno.ECANCELED)
            found = b"".join(ring.unread.popleft() for _ in range(min(most, len(ring.unread))))
            self._show()
            return found

    def mmap(self, length: int, offset: int) -> mmap.mmap:
        """Map `length` bytes of an allocated buffer: `offset` is its mmap_offset, or whole pages more."""
        length, offset = whole(length, "length", 0, INT64_MAX), whole(offset, "offset", 0, INT64_MAX)
        with self._lock:
            region = self._need_ring().carried.regions.get(offset >> _HANDLE_SHIFT)
            first = offset & ((1 << _HANDLE_SHIFT) - 1)
            if region is None or region.memfd == -1 or region.mapping is None:
                fail(errno.EINVAL)
            if not 0 < length <= len(region.mapping) - first:
                fail(errno.EINVAL)
            mapping = RegionView(region.memfd, length, offset=first)
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

    def _need_ring(self) -> ModelRing:
        return self._get_ring_state() or fail(errno.EINVAL)

    def _get_ring_state(self) -> ModelRing | None:
        if self._ring is not None and self._ring.pid != os.getpid():
            fail(errno.EPERM)
        return self._ring

    @staticmethod
    def _check_size(argument: Any, least: int | None = None) -> None:
        known = ffi.sizeof(argument[0])
        if argument.size < (known if least is None else least):
            fail(errno.EINVAL)
        if argument.size > PAGE:
            fail(errno.E2BIG)
        if argument.size > known:
            rest = load(abi.address(argument) + known, argument.size - known)
            if len(rest) < argument.size - known:
                fail(errno.EFAULT)
            if any(rest):
                fail(errno.E2BIG)

    # Setting up and taking away

    def _setup(self, entries: int, label: int, flags: int, engine: bytes) -> None:
        if flags & ~lib.NYMPH_SETUP_PAUSED or not 1 <= entries <= lib.NYMPH_MAX_ENTRIES:
            fail(errno.EINVAL)
        if b"\0" not in engine:
            fail(errno.EINVAL)
        if engine.split(b"\0")[0] not in (b"", b"auto", ENGINE.encode()):
            fail(errno.ENODEV)
        old = self._get_ring_state()
        if old is not None and (old.active or old.unread):
            fail(errno.EBUSY)
        carried = old.carried if old is not None else Carried(transcript_id=next(_transcripts))
        self._ring = ModelRing(entries, label, bool(flags & lib.NYMPH_SETUP_PAUSED), carried, os.getpid())
        self._changed.notify_all()

    def _setup_ring(self, argument: Any) -> None:
        if argument.head or argument.tail or argument.reserved:
            fail(errno.EINVAL)
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
            self._retire(ring, ring.active[0], Outcome(-errno.ECANCELED))
        self._changed.notify_all()

    def _enable(self) -> None:
        ring = self._need_ring()
        ring.paused = False
        self._run(ring)

    # Entries

    def _operand(self, ring: ModelRing, slot: Slot, handle: int, at: int) -> tuple[int, Region | None]:
        if not handle:
            return at, None
        region = ring.carried.regions.get(handle)
        if region is None:
            fail(errno.ENOENT)
        slot.kept.append(region)
        return region.at + at, region

    def _charge(self, pages: int) -> Charge:
        return Charge(self._locked_pages, self._process, pages)

    def _prepare(self, ring: ModelRing, slot: Slot) -> None:
        """Make sure of the memory the entry names."""
        entry, operation = slot.entry, OPERATIONS[slot.entry.opcode]
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
                fail(errno.EFAULT)
        if zero_copy:
            for at, region, _ in sides:
                if region is None:
                    slot.kept.append(self._charge(pages(at, entry.length)))

    def _accept(self, ring: ModelRing, entry: Any) -> Outcome | None:
        """Queue an entry, and run what can be; returns how it ended, if it has."""
        check_entry(entry)
        if entry.flags & lib.NYMPH_DMA_FLAG_COMPLETE_SYNC and ring.paused:
            fail(errno.EAGAIN)
        own = ffi.new("struct nymph_entry *", entry[0])
        slot = Slot(bytes(ffi.buffer(own)), own, 0, 0, [])
        self._prepare(ring, slot)
        record = bool(own.flags & lib.NYMPH_DMA_FLAG_RECORD)
        if ring.is_full(record):
            fail(errno.ENOSPC)
        slot.queued_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        ring.active.append(slot)
        ring.reserved += record
        return self._run(ring)

    def _run(self, ring: ModelRing) -> Outcome | None:
        """Run what is queued; returns how the last one ended."""
        outcome = None
        while ring.active and not ring.paused:
            slot = ring.active[0]
            outcome = Outcome()
            if ring.chain_broken or slot.canceled:
                outcome.status = -errno.ECANCELED
            else:
                outcome.started_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                RUN[slot.entry.opcode](slot, outcome)
            self._retire(ring, slot, outcome)
        return outcome

    def _retire(self, ring: ModelRing, slot: Slot, outcome: Outcome) -> None:
        carried, entry = ring.carried, slot.entry
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        record = self._record(slot, outcome, now)
        carried.transcript.update(transcript.pack(slot.raw, record))
        carried.transcript_count += 1
        if entry.flags & lib.NYMPH_DMA_FLAG_RECORD:
            ring.reserved -= 1
            ring.unread.append(record)
            if carried.eventfd != -1:
                os.eventfd_write(carried.eventfd, 1)
        elif outcome.status:
            carried.first_error = carried.first_error or outcome.status
            carried.errors += 1
        ring.chain_broken = bool(outcome.status and entry.flags & lib.NYMPH_DMA_FLAG_LINK)
        if outcome.started_ns:
            took = now - slot.queued_ns
            carried.latencies[bucket(took)] += 1
            carried.latency_count += 1
            carried.latency_sum += took
            carried.latency_max = max(carried.latency_max, took)
        if OPERATIONS[entry.opcode].moves:
            carried.dma_bytes += outcome.done
        ring.active.popleft()
        ring.tail = (ring.tail + 1) % ring.size
        self._changed.notify_all()

    @staticmethod
    def _record(slot: Slot, outcome: Outcome, now: int) -> bytes:
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
            fail(-outcome.status)

    def _enter(self, argument: Any) -> int:
        self._check_size(argument)
        if argument.flags or argument.min_records > argument.max_records:
            fail(errno.EINVAL)
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
            fail(-error)
        return int(argument.submitted)

    def _enter_submit(self, ring: ModelRing, argument: Any) -> int:
        """Accept entries until one is refused; returns why, as a negative errno, or 0."""
        size = ffi.sizeof("struct nymph_entry")
        while argument.submitted < argument.to_submit:
            raw = load(argument.entries + argument.submitted * size, size)
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

    def _enter_reap(self, ring: ModelRing, argument: Any, wanted: int) -> None:
        """Hand out records, and wait until there were `wanted`."""
        size = ffi.sizeof("struct nymph_record")
        while True:
            while ring.unread and argument.reaped < argument.max_records:
                if store(argument.records + argument.reaped * size, ring.unread[0]) < size:
                    fail(errno.EFAULT)
                ring.unread.popleft()
                argument.reaped += 1
            if argument.reaped >= wanted:
                return
            if ring is not self._ring:
                fail(errno.ECANCELED)
            left = None
            if argument.deadline_ns != lib.NYMPH_NO_DEADLINE:
                left = (argument.deadline_ns - time.clock_gettime_ns(time.CLOCK_MONOTONIC)) / 1e9
                if left <= 0:
                    fail(errno.ETIME)
                left = min(left, threading.TIMEOUT_MAX)
            self._show()
            self._changed.wait(left)

    def _cancel(self, argument: Any) -> None:
        self._check_size(argument)
        if argument.flags or argument.reserved:
            fail(errno.EINVAL)
        argument.canceled = 0
        found = [slot for slot in self._need_ring().active if slot.entry.cookie == argument.cookie]
        for slot in found:
            slot.canceled = True
        argument.canceled = len(found)
        if not found:
            fail(errno.ENOENT)

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
            fail(errno.EINVAL)
        if op in (lib.NYMPH_BUFFER_ALLOC, lib.NYMPH_BUFFER_REGISTER, lib.NYMPH_BUFFER_CARD):
            known = lib.NYMPH_BUFFER_READ_ONLY if op == lib.NYMPH_BUFFER_REGISTER else 0
            if (
                flags & ~known
                or not 1 <= argument.length <= lib.NYMPH_MAX_LENGTH
                or (op != lib.NYMPH_BUFFER_REGISTER and argument.addr)
            ):
                fail(errno.EINVAL)
            ring = self._need_ring()
            if op == lib.NYMPH_BUFFER_CARD:
                fail(errno.EOPNOTSUPP)  # its only engine is the CPU
            make = self._allocate if op == lib.NYMPH_BUFFER_ALLOC else self._register
            self._add_region(ring, argument, make)
        elif op in (lib.NYMPH_BUFFER_FREE, lib.NYMPH_BUFFER_IMPORT, lib.NYMPH_BUFFER_EXPORT):
            known = lib.NYMPH_BUFFER_READ_ONLY if op == lib.NYMPH_BUFFER_IMPORT else 0
            if flags & ~known or argument.addr or argument.length:
                fail(errno.EINVAL)
            ring = self._need_ring()
            if op == lib.NYMPH_BUFFER_IMPORT:
                self._add_region(ring, argument, self._import)
            elif argument.handle not in ring.carried.regions:
                fail(errno.ENOENT)
            elif op == lib.NYMPH_BUFFER_EXPORT:
                argument.fd = self._export(ring.carried.regions[argument.handle])
            else:
                del ring.carried.regions[argument.handle]
        else:
            fail(errno.EINVAL)

    def _add_region(self, ring: ModelRing, argument: Any, make: Any) -> None:
        regions = ring.carried.regions
        region = make(argument)
        handle = next((h for h in range(1, _MAX_HANDLE + 1) if h not in regions), None)
        if handle is None:
            fail(errno.EMFILE)
        regions[handle] = region
        argument.handle = handle
        argument.mmap_offset = handle << _HANDLE_SHIFT if region.memfd != -1 else 0

    def _allocate(self, argument: Any) -> Region:
        pages = -(-argument.length // PAGE)
        charge = self._charge(pages)
        memfd = os.memfd_create(_MEMFD, os.MFD_CLOEXEC)
        try:
            os.ftruncate(memfd, pages * PAGE)
            mapping = mmap.mmap(memfd, pages * PAGE)
        except BaseException:
            os.close(memfd)
            raise
        at = abi.address(ffi.from_buffer(mapping))
        return Region(at, argument.length, False, charge, memfd, mapping)

    def _register(self, argument: Any) -> Region:
        readonly = bool(argument.flags & lib.NYMPH_BUFFER_READ_ONLY)
        self._process.check_mapped(argument.addr, argument.length, "r" if readonly else "rw", True)
        charge = self._charge(pages(argument.addr, argument.length))
        return Region(argument.addr, argument.length, readonly, charge)

    def _export(self, region: Region) -> int:
        if region.memfd == -1:
            fail(errno.EINVAL)
        self._exports[os.fstat(region.memfd).st_ino] = region
        return fcntl.fcntl(region.memfd, fcntl.F_DUPFD_CLOEXEC, 0)

    def _import(self, argument: Any) -> Region:
        readonly = bool(argument.flags & lib.NYMPH_BUFFER_READ_ONLY)
        if argument.fd < 0:
            fail(errno.EBADF)
        access = fcntl.fcntl(argument.fd, fcntl.F_GETFL) & os.O_ACCMODE  # the same, if there is no such file
        name = os.readlink(f"/proc/self/fd/{argument.fd}")
        if not name.startswith((f"/memfd:{_MEMFD} ", "/dmabuf:")):
            fail(errno.EINVAL)
        if access == os.O_WRONLY or (access == os.O_RDONLY and not readonly):
            fail(errno.EACCES)
        length = os.lseek(argument.fd, 0, os.SEEK_END)
        if not 1 <= length <= lib.NYMPH_MAX_LENGTH:
            fail(errno.EINVAL)
        protection = mmap.PROT_READ | (0 if readonly else mmap.PROT_WRITE)
        mapping = mmap.mmap(argument.fd, length, prot=protection)
        at = abi.address(ffi.from_buffer(mapping))
        argument.length = length
        origin = self._exports.get(os.fstat(argument.fd).st_ino)
        return Region(at, length, readonly, self._charge(0), mapping=mapping, origin=origin)

    # What there is to see

    def _query(self, argument: Any) -> None:
        self._check_size(argument)
        argument.version = lib.NYMPH_ABI_VERSION
        argument.features = lib.NYMPH_FEATURE_POLL | lib.NYMPH_FEATURE_READ
        argument.features |= lib.NYMPH_FEATURE_ALLOC | lib.NYMPH_FEATURE_REGISTER | lib.NYMPH_FEATURE_CARD
        argument.features |= lib.NYMPH_FEATURE_DMABUF
        argument.requests = sum(1 << number for number in self._requests)
        argument.opcodes = sum(1 << opcode for opcode in OPERATIONS)
        argument.entry_flags = SERVED
        argument.max_length = lib.NYMPH_MAX_LENGTH
        argument.max_entries = lib.NYMPH_MAX_ENTRIES
        argument.setup_flags = lib.NYMPH_SETUP_PAUSED
        argument.num_engines = 1
        if argument.engines and argument.max_engines:
            engine = abi.new("nymph_engine_info", id=_ENGINE_ID, name=ENGINE.encode())
            raw = bytes(ffi.buffer(engine))
            if store(argument.engines, raw) < len(raw):
                fail(errno.EFAULT)

    def _fill_ring(self, ring: ModelRing | None, to: Any) -> None:
        to.ring_size, to.head, to.tail, to.reserved, to.ring_addr = (
            (ring.size, ring.head, ring.tail, 0, ring.label) if ring is not None else (0, 0, 0, 0, 0)
        )

    def _hash(self, ring: ModelRing | None) -> bytes:
        indices = ffi.new("struct nymph_dma_ring *")
        self._fill_ring(ring, indices)
        hasher = blake3(bytes(ffi.buffer(indices)))
        if ring is not None:
            for slot in ring.active:
                hasher.update(slot.raw)
        hasher.update((ring.carried.dma_bytes if ring is not None else 0).to_bytes(8, "little"))
        return hasher.digest()

    def _get_ring(self, argument: Any) -> None:
        self._fill_ring(self._need_ring(), argument)

    def _get_status(self, argument: Any) -> None:
        ring = self._get_ring_state()
        argument.dma_bytes = ring.carried.dma_bytes if ring is not None else 0
        argument.ring_hash = self._hash(ring)
        argument.ring_size = ring.size if ring is not None else 0
        argument.active_descriptors = len(ring.active) if ring is not None else 0

    def _snapshot(self, argument: Any) -> None:
        self._check_size(argument, ffi.offsetof("struct nymph_snapshot", "transcript"))
        if argument.flags:
            fail(errno.EINVAL)
        ring = self._get_ring_state()
        raw = b"".join(slot.raw for slot in ring.active) if ring is not None else b""
        active = len(ring.active) if ring is not None else 0
        if argument.entries:
            if active > argument.max_entries:
                fail(errno.ENOSPC)
            if raw and store(argument.entries, raw) < len(raw):
                fail(errno.EFAULT)
        carried = ring.carried if ring is not None else Carried()
        self._fill_ring(ring, argument.ring)
        argument.dma_bytes = carried.dma_bytes
        argument.ring_hash = self._hash(ring)
        argument.active_descriptors = active
        argument.unread_records = len(ring.unread) if ring is not None else 0
        argument.first_error, argument.errors = carried.first_error, carried.errors
        argument.state = lib.NYMPH_STATE_PAUSED if ring is not None and ring.paused else 0
        argument.engine = _ENGINE_ID if ring is not None else 0
        if argument.size > ffi.offsetof("struct nymph_snapshot", "transcript"):
            argument.transcript = carried.transcript.digest()
            argument.transcript_count = carried.transcript_count
            argument.transcript_id = carried.transcript_id

    def _attest(self, argument: Any) -> None:
        least = ffi.offsetof("struct nymph_attest", "signature")
        self._check_size(argument, least)
        is_whole = argument.size >= ffi.sizeof("struct nymph_attest")
        sign = bool(argument.flags & lib.NYMPH_ATTEST_SIGN)
        of_signature = slice(least, ffi.offsetof("struct nymph_attest", "signature_size"))
        given = any(bytes(ffi.buffer(argument, argument.size))[of_signature])
        if argument.flags & ~lib.NYMPH_ATTEST_SIGN or (not is_whole if sign else given):
            fail(errno.EINVAL)
        ring = self._need_ring()
        key = self.sign_key if sign else self.attest_key
        if key is None:
            fail(errno.ENOKEY)
        signer = _signer(key) if sign else None
        text = _statement_text()
        snap = abi.new("nymph_snapshot")
        self._snapshot(snap)
        head = abi.new(
            "nymph_statement",
            magic=b"nymph attest v1",
            nonce=bytes(argument.nonce),
            text_offset=ffi.sizeof("struct nymph_statement"),
            realtime_ns=time.time_ns(),
            transcript=bytes(snap.transcript),
            ring_hash=bytes(snap.ring_hash),
            first_error=snap.first_error & 0xFFFFFFFF,
            uid=os.getuid(),
        )
        head.size = head.text_offset + len(text)
        self._fill_ring(ring, head)
        for name in _STATED:
            setattr(head, name, getattr(snap, name))
        statement = bytes(ffi.buffer(head)) + text
        signature = b"" if signer is None else signer(statement)
        if len(statement) > argument.max_statement or (sign and len(signature) > argument.max_signature):
            fail(errno.ENOSPC)
        if store(argument.statement, statement) < len(statement):
            fail(errno.EFAULT)
        if sign and store(argument.signature, signature) < len(signature):
            fail(errno.EFAULT)
        argument.statement_size = len(statement)
        argument.digest = bytes(32) if sign else blake3(statement, key=key).digest()
        if is_whole:
            argument.signature_size = len(signature)

    def _eventfd(self, argument: Any) -> None:
        self._check_size(argument)
        if argument.flags or argument.reserved:
            fail(errno.EINVAL)
        own = -1
        if argument.fd != -1:
            try:
                kind = os.readlink(f"/proc/self/fd/{argument.fd}")
            except OSError:
                fail(errno.EBADF)
            if "eventfd" not in kind:
                fail(errno.EINVAL)
            own = os.dup(argument.fd)
        try:
            carried = self._need_ring().carried
        except OSError:
            if own != -1:
                os.close(own)
            raise
        own, carried.eventfd = carried.eventfd, own
        if own != -1:
            os.close(own)

    def _latency(self, argument: Any) -> None:
        self._check_size(argument)
        if argument.flags:
            fail(errno.EINVAL)
        carried = self._need_ring().carried
        argument.count, argument.sum_ns = carried.latency_count, carried.latency_sum
        argument.max_ns = carried.latency_max
        if argument.buckets:
            raw = bytes(ffi.buffer(ffi.new("unsigned long long[]", carried.latencies)))
            if store(argument.buckets, raw) < len(raw):
                fail(errno.EFAULT)
