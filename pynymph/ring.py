# SPDX-License-Identifier: MIT
"""A DMA ring of this process's own."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from pynymph import abi
from pynymph.abi import ffi, lib
from pynymph.errors import ArgumentError, ClosedError, NymphError, error

if TYPE_CHECKING:
    from typing_extensions import Buffer

DEVICE = "/dev/pcie_nymph"

_FORKED = "this ring belongs to the process that opened it; after fork, open a Ring of your own"
_REAP_BATCH = 64
_LONGEST_POLL_MS = 2**31 - 1


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
class Completion:
    """How a transfer ended. Times are CLOCK_MONOTONIC in ns; digests are BLAKE3-256 or None."""

    cookie: int
    status: int
    """0, or why it failed as a negative errno."""
    bytes_done: int
    """Bytes that reached the destination, from its start on."""
    engine: str | None
    """Name of the engine that ran it, None if none did."""
    queued_ns: int
    started_ns: int
    """0 if no engine took it."""
    completed_ns: int
    src_digest: bytes | None
    """Of exactly the bytes sent; advisory with zero_copy: another thread may have changed src meanwhile."""
    dst_digest: bytes | None


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
class Copy:
    """One copy for Ring.enter(); what the fields mean is said at Ring.copy()."""

    src: Buffer
    dst: Buffer
    verify: bool = False
    digest: bool = False
    zero_copy: bool = False


def query(device: str = DEVICE) -> Query:
    """Ask the driver what it serves. Raises NymphError if there is no driver to ask, or no right to."""
    fd = _open(device)
    try:
        return _query(fd, device)
    finally:
        os.close(fd)


class Ring:
    """A DMA ring, and the open file that it lives in. Any number of threads may use one.

    `entries`: how many transfers can be queued, 1 to 4096. `engine`: the name of one in query().engines, or
    "auto". `paused`: what is queued waits for enable(). `label`: any 64-bit number; reported back, and bound
    into the hash.

    The buffers of a transfer are held, so that they can't be freed, resized or closed, until it has ended:
    also if the call that started it ended earlier, by its timeout or Ctrl-C. The ring notices the end at the
    next copy(), enter() or collect().

    A ring belongs to the process that opened it: a child made by fork gets a ForkedError. Raises NymphError.
    """

    # Also where __init__ did not get far.
    _fd = -1

    def __init__(
        self,
        entries: int = 256,
        *,
        engine: str = "auto",
        device: str = DEVICE,
        paused: bool = False,
        label: int = 0,
    ) -> None:
        if not 1 <= entries <= lib.NYMPH_MAX_ENTRIES:
            raise ArgumentError(
                errno.EINVAL, f"a ring has 1 to {lib.NYMPH_MAX_ENTRIES} entries, and {entries} were asked for"
            )
        if not 0 <= label < 2**64:
            raise ArgumentError(errno.EINVAL, f"a label is a 64-bit number from 0 up, and this is {label}")
        if not len(engine.encode()) < lib.NYMPH_ENGINE_NAME_SIZE:
            raise ArgumentError(errno.EINVAL, f"no engine has a name as long as {engine!r}")
        self.entries = entries
        self.label = label
        self._engine = engine
        self._device = device
        self._paused = paused

        self._pid = os.getpid()
        self._mutex = threading.Lock()
        # All below is under the mutex. What one thread reaps may be another's: all are told, by eventfd.
        self._wakers: set[int] = set()
        self._next_cookie = count(1)
        self._in_flight: dict[int, _Transfer] = {}
        self._entered: dict[int, Completion] = {}
        self._records = ffi.new("struct nymph_record[]", _REAP_BATCH)
        self._reaping = abi.new(
            "nymph_enter", records=int(ffi.cast("uintptr_t", self._records)), max_records=_REAP_BATCH
        )

        self._fd = _open(device)
        try:
            self._engines = _query(self._fd, device).engines
            self._setup()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Here, before any attribute goes: the driver lets go of the buffers before Python does.
        self.close()

    def copy(
        self,
        *,
        src: Buffer,
        dst: Buffer,
        verify: bool = False,
        digest: bool = False,
        zero_copy: bool = False,
        timeout: float | None = None,
    ) -> Completion:
        """Copy all of `src` to `dst`, and return when it is done.

        Both are C-contiguous, of the same length, 1 byte to 1 GiB, and do not overlap; `dst` is writable.

        `verify`: hash what is sent, read the destination back and hash it; VerifyError if the two differ.
        `digest`: only hash the destination. `zero_copy`: pin the memory (RLIMIT_MEMLOCK) instead of going
        through a bounce buffer. `timeout`: seconds after which to give up with a RingTimeoutError; a transfer
        in flight stays so: see Ring about its buffers; reset() cancels it.

        While the ring is full, or paused, this waits. Raises NymphError, with `completion` if the driver ran
        the transfer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        transfer = _Transfer(next(self._next_cookie), Copy(src, dst, verify, digest, zero_copy))
        try:
            room = select.POLLIN | select.POLLOUT
            if not self._wait(lambda: self._submit_if_room(transfer), deadline, room):
                raise error(errno.ETIMEDOUT, f"the ring had no room within {timeout} s; nothing was copied")
            if not self._wait(lambda: transfer.outcome is not None, deadline, select.POLLIN):
                raise error(
                    errno.ETIMEDOUT,
                    f"the copy was not done within {timeout} s; it goes on and holds its buffers",
                )
        finally:
            self._let_go_of_refused([transfer])
        if isinstance(transfer.outcome, NymphError):
            raise transfer.outcome
        assert transfer.outcome is not None
        if transfer.outcome.status:
            raise _failure(transfer.outcome)
        return transfer.outcome

    def enter(self, copies: Iterable[Copy]) -> list[int]:
        """Queue `copies` with one request. Returns the cookies of those accepted.

        Those are the first ones: if the driver refuses a copy, it takes none behind it. Raises NymphError if
        it refuses the very first (FullError: there is no room).
        """
        transfers: list[_Transfer] = []
        try:
            for copy in copies:
                transfers.append(_Transfer(next(self._next_cookie), copy, entered=True))
            with self._lock():
                # Records not collected yet could be all there is room for.
                self._reap()
                accepted = self._submit(transfers) if transfers else 0
        finally:
            self._let_go_of_refused(transfers)
        return [transfer.cookie for transfer in transfers[:accepted]]

    def collect(self, wait: int = 0, timeout: float | None = None) -> list[Completion]:
        """Completions of copies queued by enter(), each once, in the order in which they ended.

        Waits until there are `wait` of them; after `timeout` seconds returns what there are. How a copy ended
        is in the `status` of its completion.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._wait(lambda: len(self._entered) >= wait, deadline, select.POLLIN)
        with self._lock():
            self._reap()
            completions, self._entered = self._entered, {}
        return list(completions.values())

    def enable(self) -> None:
        """Let a ring that was opened `paused` run."""
        with self._lock():
            self._request(abi.NYMPH_IOC_ENABLE)

    def reset(self) -> None:
        """Cancel what is queued and running, and start again as if just opened: paused, if it was opened so.

        Calls of copy() in other threads raise CanceledError. Completions not yet collected are gone.
        """
        with self._lock():
            self._drop_ring()
            self._abandon(error(errno.ECANCELED, "the ring was reset before the copy ended; copy again"))
            self._setup()

    def status(self) -> Status:
        """Counters, and the driver's hash of the ring."""
        arg = abi.new("nymph_fabric_status")
        with self._lock():
            self._request(abi.NYMPH_IOC_GET_STATUS, arg)
        return Status(arg.dma_bytes, bytes(arg.ring_hash), arg.ring_size, arg.active_descriptors)

    def hash(self) -> bytes:
        """The driver's hash of the ring now, 32 bytes. snapshot() has it with what it was made of."""
        return self.status().ring_hash

    def snapshot(self) -> Snapshot:
        """All that the ring's hash is made of, at one moment, and the counters of that moment."""
        entries = ffi.new("struct nymph_entry[]", self.entries)
        arg = abi.new("nymph_snapshot", entries=int(ffi.cast("uintptr_t", entries)), max_entries=self.entries)
        with self._lock():
            self._request(abi.NYMPH_IOC_SNAPSHOT, arg)
            engine = self._engine_name(arg.engine)
        return Snapshot(
            ring_size=arg.ring.ring_size,
            head=arg.ring.head,
            tail=arg.ring.tail,
            label=arg.ring.ring_addr,
            dma_bytes=arg.dma_bytes,
            ring_hash=bytes(arg.ring_hash),
            active_descriptors=arg.active_descriptors,
            unread_records=arg.unread_records,
            errors=arg.errors,
            first_error=arg.first_error,
            paused=bool(arg.state & lib.NYMPH_STATE_PAUSED),
            engine=engine,
            ring_bytes=bytes(ffi.buffer(ffi.addressof(arg, "ring"))),
            entry_bytes=bytes(ffi.buffer(entries, arg.active_descriptors * ffi.sizeof("struct nymph_entry"))),
        )

    def fileno(self) -> int:
        """The open file: readable when a completion can be collected, writable when there is room."""
        with self._lock():
            self._check_open()
            return self._fd

    def close(self) -> None:
        """Cancel what is in flight, close the file, let go of the buffers. Closing again does nothing."""
        if self._fd == -1:
            return
        if os.getpid() != self._pid:
            # The mutex may have been held by a thread that is not in this process.
            self._close_file()
            return
        with self._mutex:
            if self._fd == -1:
                return
            try:
                # A child of this process may hold the file too, and then closing it stops nothing.
                if self._in_flight:
                    self._drop_ring()
            finally:
                self._close_file()
                self._abandon(error(errno.EBADF, "the ring was closed before the copy ended"))

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _lock(self) -> threading.Lock:
        if os.getpid() != self._pid:
            raise error(errno.EPERM, _FORKED)
        return self._mutex

    # Everything below is called with the mutex held, except _wait() and _let_go_of_refused(), which take it.

    def _check_open(self) -> None:
        if self._fd == -1:
            raise ClosedError(errno.EBADF, "the ring is closed; open another one")

    def _request(self, number: int, arg: Any = None, hints: dict[int, str] | None = None) -> None:
        self._check_open()
        try:
            abi.ioctl(self._fd, number, arg)
        except OSError as e:
            known = {
                errno.EPERM: _FORKED,
                errno.EINVAL: "there is no ring; reset() sets it up again",
                errno.ENOMEM: "the kernel has no memory for it",
            }
            number = e.errno or 0
            raise error(number, (known | (hints or {})).get(number, os.strerror(number))) from None

    def _setup(self) -> None:
        arg = abi.new(
            "nymph_setup2",
            flags=lib.NYMPH_SETUP_PAUSED if self._paused else 0,
            entries=self.entries,
            ring_addr=self.label,
            engine=self._engine.encode(),
        )
        there_are = ", ".join(self._engines.values()) or "none"
        hints = {
            errno.ENODEV: f"there is no engine {self._engine!r}; there are: {there_are}",
            errno.ENFILE: "there are too many rings; close some, or have the administrator raise max_rings",
        }
        self._request(abi.NYMPH_IOC_SETUP2, arg, hints)

    def _drop_ring(self) -> None:
        # An earlier reset() that was interrupted half way has left none to drop.
        with contextlib.suppress(ArgumentError):
            self._request(abi.NYMPH_IOC_RESET)

    def _submit(self, transfers: Sequence[_Transfer]) -> int:
        """Hand them to the driver. Returns how many it took; raises NymphError if it refused the first."""
        entries = ffi.new("struct nymph_entry[]", [transfer.entry for transfer in transfers])
        arg = abi.new("nymph_enter", entries=int(ffi.cast("uintptr_t", entries)), to_submit=len(transfers))
        try:
            # Before the request, so that Ctrl-C can't come between it and this.
            for transfer in transfers:
                self._in_flight[transfer.cookie] = transfer
            self._request(abi.NYMPH_IOC_ENTER, arg, transfers[0].hints())
        finally:
            for transfer in transfers[arg.submitted :]:
                self._in_flight.pop(transfer.cookie, None)
        return int(arg.submitted)

    def _submit_if_room(self, transfer: _Transfer) -> bool:
        try:
            return bool(self._submit([transfer]))
        except NymphError as e:
            if e.errno != errno.ENOSPC:
                raise
            return False

    def _reap(self) -> None:
        """Collect all records there are, and hand them to whom they belong."""
        more = True
        try:
            while more:
                self._request(abi.NYMPH_IOC_ENTER, self._reaping)
                more = self._reaping.reaped == _REAP_BATCH
                self._hand_out()
        finally:
            # Ctrl-C can come at any point of the above. Done again, this goes on where it was.
            self._hand_out()

    def _hand_out(self) -> None:
        if not self._reaping.reaped:
            return
        for record in self._records[0 : self._reaping.reaped]:
            transfer = self._in_flight.get(record.cookie)
            if transfer is None:
                continue
            transfer.outcome = self._completion(record)
            if transfer.entered:
                self._entered[record.cookie] = transfer.outcome
            transfer.let_go()
            del self._in_flight[record.cookie]
        self._wake()
        self._reaping.reaped = 0

    def _abandon(self, why: NymphError) -> None:
        """The driver is done with all buffers, and there will be no record."""
        for transfer in self._in_flight.values():
            # Each its own: raised in several threads, one would collect the tracebacks of all.
            transfer.outcome = type(why)(why.errno or 0, why.strerror or "")
            transfer.let_go()
        self._in_flight.clear()
        self._entered.clear()
        self._reaping.reaped = 0
        self._wake()

    def _wake(self) -> None:
        for waker in self._wakers:
            os.eventfd_write(waker, 1)

    def _wait(self, ready: Callable[[], bool], deadline: float | None, events: int) -> bool:
        """Wait until `ready()`, called with the mutex held, is true: True. At the deadline: False."""
        waker = -1
        try:
            with self._lock():
                if ready():
                    return True
                self._check_open()
                poller = select.poll()
                poller.register(self._fd, events)
                waker = os.eventfd(0, os.EFD_CLOEXEC)
                poller.register(waker, select.POLLIN)
                self._wakers.add(waker)
            while True:
                left = _milliseconds_until(deadline)
                happened = [fd for fd, _ in poller.poll(left)]
                if waker in happened:
                    os.eventfd_read(waker)
                with self._lock():
                    if self._fd in happened:
                        self._reap()
                    if ready():
                        return True
                    self._check_open()
                if not happened and left != _LONGEST_POLL_MS:
                    return False
        finally:
            if waker != -1:
                with self._lock():
                    self._wakers.discard(waker)
                    os.close(waker)

    def _let_go_of_refused(self, transfers: Iterable[_Transfer]) -> None:
        with self._lock():
            for transfer in transfers:
                if transfer.cookie not in self._in_flight:
                    transfer.let_go()

    def _engine_name(self, number: int) -> str | None:
        if number == 0:
            return None
        if number not in self._engines:
            self._engines = _query(self._fd, self._device).engines
        return self._engines.get(number)

    def _completion(self, record: Any) -> Completion:
        return Completion(
            cookie=record.cookie,
            status=record.status,
            bytes_done=record.bytes_done,
            engine=self._engine_name(record.engine),
            queued_ns=record.queued_ns,
            started_ns=record.started_ns,
            completed_ns=record.completed_ns,
            src_digest=bytes(record.src_digest) if record.flags & lib.NYMPH_RECORD_SRC_DIGEST else None,
            dst_digest=bytes(record.dst_digest) if record.flags & lib.NYMPH_RECORD_DST_DIGEST else None,
        )


class _Transfer:
    """A copy on its way: its entry, and the hold on its buffers."""

    def __init__(self, cookie: int, copy: Copy, *, entered: bool = False) -> None:
        if copy.verify and copy.digest:
            raise ArgumentError(errno.EINVAL, "verify makes both digests; leave out digest")
        self.cookie = cookie
        self.entered = entered
        self.zero_copy = copy.zero_copy
        self.outcome: Completion | NymphError | None = None
        length = _check(copy.src, copy.dst)
        self._src = ffi.from_buffer(copy.src)
        self._dst = ffi.from_buffer(copy.dst, require_writable=True)
        self.entry = {
            "size": ffi.sizeof("struct nymph_entry"),
            "opcode": lib.NYMPH_OP_COPY,
            "flags": lib.NYMPH_DMA_FLAG_RECORD
            | (lib.NYMPH_DMA_FLAG_VERIFY_HASH if copy.verify else 0)
            | (lib.NYMPH_DMA_FLAG_DIGEST_ONLY if copy.digest else 0)
            | (lib.NYMPH_DMA_FLAG_ZERO_COPY if copy.zero_copy else 0),
            "length": length,
            "src": int(ffi.cast("uintptr_t", self._src)),
            "dst": int(ffi.cast("uintptr_t", self._dst)),
            "cookie": cookie,
        }

    def let_go(self) -> None:
        """Of the buffers, at once: their owner may want to resize or close them. Again does nothing."""
        ffi.release(self._src)
        ffi.release(self._dst)

    def hints(self) -> dict[int, str]:
        """Why the driver can have refused this."""
        hints = {
            errno.EINVAL: "src and dst overlap: give separate ones; if not, reset() was cut short: again",
            errno.EFAULT: "part of src is not mapped readable, or of dst not mapped writable",
            errno.EOPNOTSUPP: "the driver does not serve this kind of copy",
            errno.ENOSPC: "the ring is full; collect completions, or open it with more entries",
        }
        if self.zero_copy:
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            allowed = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
            hints[errno.ENOMEM] = (
                "zero_copy pins src and dst, each huge page of them as a whole, and RLIMIT_MEMLOCK "
                f"({allowed} for all pinned) or memory does not allow it; raise it (ulimit -l), copy less at "
                "a time, or without zero_copy"
            )
            hints[errno.EOPNOTSUPP] = (
                "zero_copy can't write into a shared mapping of a file; copy without it, or into other memory"
            )
        return hints


def _check(src: Buffer, dst: Buffer) -> int:
    """How many bytes to copy. Raises ArgumentError if these two can't be copied."""
    with memoryview(src) as source, memoryview(dst) as destination:
        length = source.nbytes
        if destination.readonly:
            raise ArgumentError(errno.EINVAL, "dst is read-only; give a writable buffer")
        for name, view in (("src", source), ("dst", destination)):
            if not view.c_contiguous:
                raise ArgumentError(errno.EINVAL, f"{name} is not C-contiguous; give a buffer without gaps")
        if length != destination.nbytes:
            raise ArgumentError(errno.EINVAL, f"src has {length} bytes, dst has {destination.nbytes}")
        if not 1 <= length <= lib.NYMPH_MAX_LENGTH:
            raise ArgumentError(
                errno.EINVAL, f"a copy has 1 to {lib.NYMPH_MAX_LENGTH} bytes, and this one {length}; split it"
            )
        return length


def _failure(completion: Completion) -> NymphError:
    number = -completion.status
    done = f"after {completion.bytes_done} bytes"
    if number == errno.EBADMSG:
        assert completion.src_digest is not None and completion.dst_digest is not None
        message = (
            f"dst is not what was sent: BLAKE3 {completion.dst_digest.hex()} instead of "
            f"{completion.src_digest.hex()}; if nothing else wrote to the buffers, distrust the engine"
        )
    elif number == errno.EFAULT:
        message = f"the memory of src or dst went away {done}; keep it mapped until the copy has ended"
    else:
        message = f"{os.strerror(number)}, {done}"
    return error(number, message, completion)


def _milliseconds_until(deadline: float | None) -> int | None:
    if deadline is None:
        return None
    return math.ceil(min(max(0, (deadline - time.monotonic()) * 1000), _LONGEST_POLL_MS))


def _open(device: str) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        missing = f"there is no {device}; load the module: sudo modprobe pcie_nymph, or insmod pcie_nymph.ko"
        hints = {
            errno.ENOENT: missing,
            errno.ENXIO: missing,
            errno.ENODEV: missing,
            errno.EACCES: f"{device} may be used by group nymph, and you are not in it: "
            "sudo usermod -aG nymph $USER, then log in again",
        }
        number = e.errno or 0
        raise error(number, hints.get(number, f"can't open {device}: {e.strerror}")) from None


def _query(fd: int, device: str) -> Query:
    room = 16
    while True:
        engines = ffi.new("struct nymph_engine_info[]", room)
        arg = abi.new("nymph_query", engines=int(ffi.cast("uintptr_t", engines)), max_engines=room)
        try:
            abi.ioctl(fd, abi.NYMPH_IOC_QUERY, arg)
        except OSError as e:
            why = " is not a device of pcie_nymph" if e.errno == errno.ENOTTY else f": {e.strerror}"
            raise error(e.errno or 0, f"{device}{why}") from None
        if arg.num_engines <= room:
            break
        room = arg.num_engines
    return Query(
        version=arg.version,
        features=arg.features,
        requests=arg.requests,
        opcodes=arg.opcodes,
        entry_flags=arg.entry_flags,
        max_length=arg.max_length,
        max_entries=arg.max_entries,
        setup_flags=arg.setup_flags,
        engines={e.id: ffi.string(e.name).decode() for e in engines[0 : arg.num_engines]},
    )
