# SPDX-License-Identifier: MIT
"""A DMA ring of this process's own."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from pynymph import abi
from pynymph.abi import address, ffi, lib
from pynymph.buffer import Memory, RingBuffer, check_length, with_bytes
from pynymph.errors import ArgumentError, ClosedError, FullError, NymphError, error
from pynymph.model import Model
from pynymph.mutex import Mutex
from pynymph.operation import Compare, Completion, Copy, Fill, Hash, Job, Operation, memlock
from pynymph.state import Latency, Query, Snapshot, Status

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from pynymph.batch import Batch, Checked

DEVICE = "/dev/pcie_nymph"
MODEL = "model:"

_FORKED = "this ring belongs to the process that opened it; after fork, open a Ring of your own"
# So long the driver is waited for with the mutex held, by who has the ring alone: then it may run what it
# waits for in this thread, and there is no other that could be told to.
_ALONE_NS = 10_000_000
# A signal that comes just before poll() begins does not end it, and its handler has to wait until it ends.
_LONGEST_POLL_MS = 1000


def query(device: str = DEVICE) -> Query:
    """Ask the driver what it serves. Raises NymphError if there is no driver to ask, or no right to."""
    opened = _open(device)
    try:
        return _query(opened, device)
    finally:
        opened.close()


class Ring:
    """A DMA ring, and the open file that it lives in.

    `entries`: how many operations can be queued, 1 to 4096. `engine`: the name of one in query().engines, or
    "auto". `device`: the driver's, or "model:" for one in Python (pynymph.model), where there is no driver:
    then `engine` of whatever the ring says is "model". `paused`: what is queued waits for enable(). `label`:
    any 64-bit number; reported back, and bound into the hash.

    The buffers of an operation are held, so that they can't be freed, resized or closed, until it has ended:
    also if the call that started it ended earlier, by its timeout or Ctrl-C. The ring notices the end at the
    next call that waits, submits or collects.

    Threads: any number may use one ring, and its buffers and handles, with and without a GIL: locks keep them
    apart, not the GIL. A call that waits lets others in after 10 ms at most. What two threads do to the same
    bytes is theirs to order, and an AsyncRing is its event loop's alone.

    Fork: a ring belongs to the process that opened it. A child gets a ForkedError, whatever other threads did
    at that moment; what is in flight goes on, and close() in the child only closes the child's file.

    Signals: a handler may raise, and so end a call, but not use the ring that it interrupts: where that would
    hang, it gets a NymphError (EDEADLK). Raises NymphError.
    """

    # Also where __init__ did not get far.
    _file: abi.Device | Model | None = None

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
        self._mutex = Mutex()
        # All below is under the mutex. What one thread reaps may be another's: all are told, by eventfd.
        self._wakers: set[int] = set()
        self._next_cookie = 1
        self._next_batch_cookie = 1 << 63
        self._in_flight: dict[int, Job] = {}
        self._ended: dict[int, Job] = {}  # of submit(), and nobody knows yet
        self._batches: list[Batch] = []  # not ended
        self._known: dict[int, weakref.ref[Memory]] = {}  # by handle
        # Handles of memory that was garbage. Collection can come at any moment, so their end has to wait. It
        # appends, whichever thread it is in; only the first is taken away.
        self._forgotten: list[int] = []
        self._last_run: Checked | None = None  # whoever takes it away runs it, and puts it back
        room = max(64, entries)  # so that all of a batch come at once
        self._records = ffi.new("struct nymph_record[]", room)
        self._reaping = abi.new("nymph_enter", records=address(self._records), max_records=room)

        self._file = _open(device)
        try:
            self._engines = _query(self._file, device).engines
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

    def __repr__(self) -> str:
        where = "a model, no driver" if self.is_model else self._device
        return f"<pynymph.Ring of {self.entries} entries, {where}{', closed' * (self._file is None)}>"

    @property
    def is_model(self) -> bool:
        """Whether there is no driver behind it, but Python alone."""
        return self._device == MODEL

    # --- one operation, and wait for it ---

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

        Each is a RingBuffer of this ring, or anything with the buffer protocol, or else DLPack, that is
        C-contiguous. Both are of the same length, 1 byte to 1 GiB, and do not overlap; `dst` is writable.

        `verify`: hash what is sent, read the destination back and hash it; VerifyError if the two differ.
        `digest`: only hash the destination. `zero_copy`: pin the memory (RLIMIT_MEMLOCK) instead of going
        through a bounce buffer. `timeout`: seconds after which to give up with a RingTimeoutError; an
        operation in flight stays so: see Ring about its buffers; reset() cancels it.

        While the ring is full, or paused, this waits. Raises NymphError, with `completion` if the driver ran
        the operation.
        """
        return self._do(Copy(src=src, dst=dst, verify=verify, digest=digest, zero_copy=zero_copy), timeout)

    def fill(
        self,
        *,
        dst: Buffer,
        pattern: bytes = b"\0",
        verify: bool = False,
        digest: bool = False,
        zero_copy: bool = False,
        timeout: float | None = None,
    ) -> Completion:
        """Write `pattern`, 1, 2, 4 or 8 bytes, into `dst` over and over; the last one may be cut short.

        Everything else is as with copy().
        """
        operation = Fill(dst=dst, pattern=pattern, verify=verify, digest=digest, zero_copy=zero_copy)
        return self._do(operation, timeout)

    def digest(self, *, src: Buffer, zero_copy: bool = False, timeout: float | None = None) -> bytes:
        """BLAKE3-256 of all of `src`, 32 bytes, made by the driver. Everything else is as with copy()."""
        digest = self._do(Hash(src=src, zero_copy=zero_copy), timeout).src_digest
        assert digest is not None
        return digest

    def compare(
        self, *, a: Buffer, b: Buffer, zero_copy: bool = False, timeout: float | None = None
    ) -> int | None:
        """The offset of the first byte in which `a` and `b` differ, or None. All else is as with copy()."""
        try:
            self._do(Compare(a=a, b=b, zero_copy=zero_copy), timeout)
        except NymphError as e:
            if e.errno != errno.EBADMSG or e.completion is None:
                raise
            return e.completion.bytes_done
        return None

    # --- many, and do something else meanwhile ---

    def submit(self, operation: Operation) -> Transfer:
        """Queue an operation: Copy, Hash, Fill, Compare or Nop. Returns at once with a handle to wait on.

        Raises FullError if there is no room, in the ring or for more completions that nobody has collected.
        """
        (transfer,) = self.submit_all([operation])
        return transfer

    def submit_all(self, operations: Iterable[Operation]) -> list[Transfer]:
        """Queue operations with one request. Returns the handles of those accepted.

        Those are the first ones: if one is refused, none behind it is taken. Raises NymphError if the very
        first is refused (FullError: there is no room).
        """
        jobs: list[Job] = []
        try:
            for operation in operations:
                jobs.append(Job(operation, self, collectable=True))
            with self._lock():
                # Records not collected yet could be all there is room for.
                self._reap()
                accepted = self._submit(jobs[: self._room_for_completions()]) if jobs else 0
        finally:
            self._let_go_of_refused(jobs)
        return [Transfer(self, job) for job in jobs[:accepted]]

    def submit_many(self, entries: NDArray[np.void]) -> Batch:
        """Queue a NumPy array of entries with one request: those of pynymph.batch.copies(), or your own.

        `entries`: one dimension of pynymph.batch.ENTRY. Memory is that of RingBuffers, which are held
        meanwhile. Cookies, and the flag that asks for a record, are the ring's affair. The batch has those
        that were accepted: the first ones, if there was not room for all. Raises NymphError if the very first
        was refused (FullError: there is no room).
        """
        with self._lock():
            many, memories = self._checked(entries)
            return self._make_batch(many, memories, 0, len(many), wait=False)

    def run_many(self, entries: NDArray[np.void], timeout: float | None = None) -> NDArray[np.void]:
        """Queue a NumPy array of entries, as room for them comes, and return how all ended, in their order.

        Entries are those of submit_many(), and what is returned is that of Batch.result(). Nothing is faster
        for many small copies, least of all the same ones again: what was checked once is not checked twice.
        Raises NymphError if an entry was refused, and RingTimeoutError after `timeout` seconds; what was
        queued by then goes on and holds its buffers.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        many: Checked | None = None
        done: list[NDArray[np.void]] = []
        taken = 0
        while many is None or taken < len(many):
            try:
                with self._lock():
                    if many is None:
                        many, memories = self._checked(entries)
                    end = taken + self.entries
                    batch = self._make_batch(many, memories, taken, end, deadline, wait=True)
            except FullError:
                # Of others' making: this call has nothing in flight here.
                if not self._wait(self._has_room, deadline, select.POLLIN | select.POLLOUT):
                    raise error(errno.ETIMEDOUT, f"the ring had no room within {timeout} s") from None
                continue
            done.append(self._batch_result(batch, timeout, deadline))
            taken += len(batch)
            _let_others()
        if taken <= lib.NYMPH_MAX_ENTRIES:
            self._last_run = many
        if len(done) == 1:
            return done[0]
        import numpy as np

        return np.concatenate(done)

    def completions(self, timeout: float | None = None) -> Iterator[Completion]:
        """How operations of submit() ended, in the order in which they did, as soon as they do.

        Each comes once, in whichever thread is first; those whose result() was taken do not come. Ends when
        none is in flight, also because of reset() or close(), or when none came for `timeout` seconds. How an
        operation ended is in the `status` of its Completion.
        """
        with self._lock():
            self._opened()
        while (job := self._next_ended(timeout)) is not None:
            assert isinstance(job.outcome, Completion)
            yield job.outcome

    def _next_ended(self, timeout: float | None) -> Job | None:
        found: list[Job] = []

        def ready() -> bool:
            if job := self._take_ended():
                found.append(job)
            return bool(found) or not self._expects_completions()

        with self._lock():
            if self._file is not None:
                self._reap()
        self._wait(ready, None if timeout is None else time.monotonic() + timeout, select.POLLIN)
        return found[0] if found else None

    # --- memory ---

    def allocate(self, nbytes: int) -> RingBuffer:
        """Zeroed memory of the driver's, `nbytes` of it, 1 byte to 1 GiB, which counts as locked memory."""
        check_length(nbytes)
        arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_ALLOC, length=nbytes)
        with self._lock():
            self._make_buffer(arg, _memory_hints(f"{nbytes} bytes"))
            try:
                assert self._file is not None
                mapping = self._file.mmap(nbytes, arg.mmap_offset)
                memory = Memory(mapping, False, self._forgotten.append, hold=False)
                return self._buffer(memory, arg.handle, nbytes)
            except BaseException:
                self._forgotten.append(arg.handle)
                raise

    def allocate_on_card(self, nbytes: int) -> RingBuffer:
        """Zeroed memory of the device that the ring's engine is a channel of, `nbytes` of it.

        Operations reach it, and nothing else: it has no `view`. It is gone when the device is.
        """
        check_length(nbytes)
        arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_CARD, length=nbytes)
        hints = {
            errno.ENOMEM: f"no {nbytes} bytes in one piece are left of the card's memory",
            errno.EOPNOTSUPP: "the ring's engine is no channel of a card that has memory",
            errno.ENODEV: "the card is gone",
        }
        with self._lock():
            self._make_buffer(arg, hints)
            return self._buffer(Memory(None, False, self._forgotten.append, hold=False), arg.handle, nbytes)

    def register(self, buffer: Buffer, *, read_only: bool = False) -> RingBuffer:
        """Memory of the caller's, which stays pinned, and counts as locked memory, until free().

        `buffer`: as a src or dst of copy(). `read_only`: it need not be writable, and will only be a source.
        """
        buffer = with_bytes(buffer)
        with memoryview(buffer) as view:
            if not view.c_contiguous:
                raise ArgumentError(errno.EINVAL, "the buffer is not C-contiguous; give one without gaps")
            if view.readonly and not read_only:
                raise ArgumentError(
                    errno.EINVAL,
                    "the buffer is read-only, or its DLPack does not say that it is not; register it with "
                    "read_only=True",
                )
            nbytes = view.nbytes
        check_length(nbytes)
        memory = Memory(buffer, read_only, self._forgotten.append, hold=True)
        with ffi.from_buffer(buffer, require_writable=not read_only) as held:
            arg = abi.new(
                "nymph_buffer",
                op=lib.NYMPH_BUFFER_REGISTER,
                flags=lib.NYMPH_BUFFER_READ_ONLY if read_only else 0,
                addr=address(held),
                length=nbytes,
            )
            try:
                with self._lock():
                    self._make_buffer(arg, _memory_hints("the buffer, each huge page of it as a whole"))
                    return self._buffer(memory, arg.handle, nbytes)
            except BaseException:
                memory.end("it was never registered")
                raise

    def import_dmabuf(self, fd: int, *, read_only: bool = False) -> RingBuffer:
        """Memory that somebody else has exported as a dma-buf: all of it.

        `fd`: a file descriptor of it, from RingBuffer.export() say, or another driver. It stays the caller's,
        who can close it at once. `read_only`: it need not be open for writing, and will only be a source.

        Operations wait for the fences that other drivers have put there. If it can be mapped it has a `view`;
        where caches are not coherent with devices, looks at that go between two DMA_BUF_IOCTL_SYNC of the
        file. Nothing counts as locked memory: it is paid for by who exported it.
        """
        flags = lib.NYMPH_BUFFER_READ_ONLY if read_only else 0
        arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_IMPORT, flags=flags, fd=fd)
        hints = {
            errno.EBADF: f"there is no open file {fd}; give the descriptor of a dma-buf",
            errno.EINVAL: f"file {fd} is no dma-buf, or of more than {lib.NYMPH_MAX_LENGTH} bytes",
            errno.EACCES: f"file {fd} is not open to read and write; to read only, give read_only=True",
        }
        with self._lock():
            self._make_buffer(arg, hints)
            try:
                try:
                    mapping = abi.map_shared(fd, arg.length, writable=not read_only)
                except OSError:
                    mapping = None
                memory = Memory(mapping, read_only, self._forgotten.append, hold=False)
                return self._buffer(memory, arg.handle, arg.length)
            except BaseException:
                self._forgotten.append(arg.handle)
                raise

    def _make_buffer(self, arg: Any, hints: dict[int, str]) -> None:
        self._drop_forgotten()
        hints = {errno.EMFILE: "a ring can have no more buffers; free some", **hints}
        self._request(abi.NYMPH_IOC_BUFFER, arg, hints)

    def _buffer(self, memory: Memory, handle: int, nbytes: int) -> RingBuffer:
        memory.handle = handle
        self._known[handle] = weakref.ref(memory)
        return RingBuffer(memory, 0, nbytes, self, self._free_buffer, self._export_buffer)

    def _export_buffer(self, memory: Memory) -> int:
        arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_EXPORT, handle=memory.handle)
        hints = {
            errno.EINVAL: "only memory of allocate() can be exported",
            errno.ENOENT: "the buffer was freed meanwhile; make another one",
            errno.EMFILE: "the process can have no more open files; close some, or raise ulimit -n",
            errno.ENFILE: "the machine can have no more open files",
        }
        with self._lock():
            memory.check()
            self._request(abi.NYMPH_IOC_BUFFER, arg, hints)
        return int(arg.fd)

    def _free_buffer(self, memory: Memory) -> None:
        with self._lock():
            if memory.gone is None:
                # In this order: Ctrl-C can come anywhere, and who frees a handle twice may free another's.
                self._forgotten.append(memory.handle)
                memory.end("it was freed")
            self._drop_forgotten()

    def _drop_forgotten(self) -> None:
        while self._forgotten:
            handle = self._forgotten[0]
            try:
                self._request(abi.NYMPH_IOC_BUFFER, _free(handle))
            except NymphError as e:
                # Freed before, and then Ctrl-C came. It is nobody else's: this is done before one is made.
                if e.errno != errno.ENOENT:
                    raise
            self._known.pop(handle, None)
            del self._forgotten[0]

    def _end_memories(self, why: str) -> None:
        for known in self._known.values():
            if (memory := known()) is not None:
                memory.end(why)
        self._known.clear()
        self._forgotten.clear()

    # --- the ring itself ---

    def enable(self) -> None:
        """Let a ring that was opened `paused` run."""
        with self._lock():
            self._request(abi.NYMPH_IOC_ENABLE)

    def reset(self) -> None:
        """Cancel what is queued and running, and start again as if just opened: paused, if it was opened so.

        Calls of copy() and the like in other threads raise CanceledError, and so do handles of submit().
        Completions not yet collected are gone, and so are all buffers of the ring.
        """
        with self._lock():
            self._drop_ring()
            self._end_memories("its ring was reset")
            self._abandon(error(errno.ECANCELED, "the ring was reset before this ended; do it again"))
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
        arg = abi.new("nymph_snapshot", entries=address(entries), max_entries=self.entries)
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

    def latency(self) -> Latency:
        """How long operations took so far, from submit to the end. reset() forgets it."""
        buckets = ffi.new("unsigned long long[]", lib.NYMPH_LATENCY_BUCKETS)
        arg = abi.new("nymph_latency", buckets=address(buckets))
        with self._lock():
            self._request(abi.NYMPH_IOC_LATENCY, arg)
        histogram = tuple((_bucket_end(i), n) for i, n in enumerate(buckets) if n)

        def quantile(permille: int) -> int:
            rank, seen = -(-arg.count * permille // 1000), 0
            for end, n in histogram:
                seen += n
                if seen >= rank:
                    return min(end, int(arg.max_ns))
            return 0

        mean = arg.sum_ns / arg.count if arg.count else 0.0
        p50, p95, p99, p999 = (quantile(permille) for permille in (500, 950, 990, 999))
        return Latency(arg.count, mean, p50, p95, p99, p999, arg.max_ns, histogram)

    def notify(self, eventfd: int | None) -> None:
        """Raise `eventfd`, of os.eventfd(), by 1 whenever an operation ends, until reset(); None: no more.

        For a program that waits for one already: all others can poll the ring itself.
        """
        arg = abi.new("nymph_eventfd", fd=-1 if eventfd is None else eventfd)
        hints = {
            errno.EINVAL: f"file {eventfd} is no eventfd; make one with os.eventfd(0)",
            errno.EBADF: f"there is no open file {eventfd}",
        }
        with self._lock():
            self._request(abi.NYMPH_IOC_EVENTFD, arg, hints)

    def fileno(self) -> int:
        """The open file: readable when a completion can be collected, writable when there is room."""
        with self._lock():
            return self._opened().fileno()

    def close(self) -> None:
        """Cancel what is in flight, close the file, let go of the buffers. Closing again does nothing."""
        if self._file is None:
            return
        if os.getpid() != self._pid:
            # The mutex may have been held by a thread that is not in this process.
            self._close_file()
            return
        with self._lock():
            if self._file is None:
                return
            try:
                # A child of this process may hold the file too. Then closing it neither stops what is in
                # flight nor unpins anything. There may be no ring, or no driver behind the file.
                with contextlib.suppress(NymphError):
                    self._drop_ring()
            finally:
                self._close_file()
                self._end_memories("its ring was closed")
                self._abandon(error(errno.EBADF, "the ring was closed before this ended"))

    def _close_file(self) -> None:
        file, self._file = self._file, None
        assert file is not None
        file.close()

    def _lock(self) -> Mutex:
        if os.getpid() != self._pid:
            raise error(errno.EPERM, _FORKED)
        if self._mutex.is_mine:
            message = "a signal's handler can't use the ring that it interrupts; let it raise"
            raise error(errno.EDEADLK, message)
        return self._mutex

    def _do(self, operation: Operation, timeout: float | None) -> Completion:
        deadline = None if timeout is None else time.monotonic() + timeout
        job = Job(operation, self)
        try:
            with self._lock():
                queued = self._submit_if_room(job, deadline, wait=True)
            if not queued:
                room = select.POLLIN | select.POLLOUT
                if not self._wait(lambda: self._submit_if_room(job), deadline, room):
                    raise error(errno.ETIMEDOUT, f"the ring had no room within {timeout} s; nothing was done")
            return self._result(job, timeout, deadline)
        finally:
            if job.outcome is None:
                self._let_go_of_refused([job])

    def _result(self, job: Job, timeout: float | None, deadline: float | None) -> Completion:
        """Wait for the end, and return how it was, or raise it."""
        if job.outcome is None and not self._wait(
            lambda: job.outcome is not None, deadline, select.POLLIN, job
        ):
            raise error(errno.ETIMEDOUT, f"not done within {timeout} s; it goes on and holds its buffers")
        if job.collectable:
            with self._lock():
                self._ended.pop(job.cookie, None)
        if isinstance(job.outcome, NymphError):
            # Each its own: raised over and over, one would collect the tracebacks of all.
            raise error(job.outcome.errno or 0, job.outcome.strerror or "")
        assert job.outcome is not None
        if job.outcome.status:
            raise job.failure(job.outcome)
        return job.outcome

    def _batch_result(
        self, batch: Batch, timeout: float | None, deadline: float | None
    ) -> NDArray[np.void]:
        if not (
            batch.done
            or self._wait_alone(batch, deadline)
            or self._wait(lambda: batch.done, deadline, select.POLLIN)
        ):
            done = f"{batch.first + batch.ended} of {batch.total}"
            raise error(errno.ETIMEDOUT, f"{done} done within {timeout} s; what was queued goes on")
        if batch.error is not None:
            raise error(batch.error.errno or 0, batch.error.strerror or "")
        return batch.records

    def _cancel(self, job: Job) -> bool:
        with self._lock():
            if job.outcome is not None:
                return False
            try:
                self._request(abi.NYMPH_IOC_CANCEL, abi.new("nymph_cancel", cookie=job.cookie))
            except NymphError as e:
                if e.errno != errno.ENOENT:
                    raise
                return False
            return True

    def _wait_alone(self, batch: Batch, deadline: float | None) -> bool:
        """Wait until it has ended, as long as nothing else is in flight and nobody else waits."""
        while True:
            with self._lock():
                if batch.done:
                    return True
                if self._in_flight or self._wakers or self._batches != [batch]:
                    return False
                self._enter(min_records=len(batch) - batch.ended, deadline=deadline)
                if batch.done:
                    return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            _let_others()

    # Everything below is called with the mutex held, except _wait() and _let_go_of_refused(), which take it.

    def _opened(self) -> abi.Device | Model:
        if self._file is None:
            raise ClosedError(errno.EBADF, "the ring is closed; open another one")
        return self._file

    def _request(self, number: int, arg: Any = None, hints: dict[int, str] | None = None) -> None:
        file = self._opened()
        try:
            file.ioctl(number, arg)
        except OSError as e:
            raise _refused(e.errno or 0, hints or {}) from None

    def _setup(self) -> None:
        arg = abi.new(
            "nymph_setup2",
            flags=lib.NYMPH_SETUP_PAUSED if self._paused else 0,
            entries=self.entries,
            ring_addr=self.label,
            engine=self._engine.encode(),
        )
        there_are = ", ".join(self._engines.values()) or "none"
        absent = f"there is no engine {self._engine!r}; there are: {there_are}"
        if self._engine in self._engines.values():
            absent = f"engine {self._engine!r} can't be had: it does not answer, or another driver has it"
        hints = {
            errno.ENODEV: absent,
            errno.EIO: f"engine {self._engine!r} has failed, and not stopped yet; try later, or another",
            errno.ENFILE: "there are too many rings; close some, or have root raise limits/max_rings",
            errno.EMFILE: "you have too many rings; close some, or have root raise limits/max_user_rings",
        }
        self._request(abi.NYMPH_IOC_SETUP2, arg, hints)

    def _submit_dma(self, descriptor: Any) -> None:
        """SUBMIT_DMA, for pynymph.fabric; takes the mutex. Entries without a record are not known here."""
        hints = {
            errno.EINVAL: "the descriptor is not well-formed, or its sides overlap; see docs/abi.md",
            errno.EFAULT: "part of the source is not mapped readable, or of the destination not writable",
            errno.ENOSPC: "the ring is full; wait until some have ended, or have a larger one",
            errno.EBADMSG: "the destination is not what was sent",
        }
        with self._lock():
            self._request(abi.NYMPH_IOC_SUBMIT_DMA, descriptor, hints)

    def _drop_ring(self) -> None:
        # An earlier reset() that was interrupted half way has left none to drop.
        with contextlib.suppress(ArgumentError):
            self._request(abi.NYMPH_IOC_RESET)

    def _enter(
        self,
        entries: int = 0,
        to_submit: int = 0,
        hints: Callable[[], dict[int, str]] = dict,
        *,
        min_records: int = 0,
        deadline: float | None = None,
    ) -> int:
        """One ENTER: submit `to_submit` at the address `entries`, collect what records there are, and hand
        them to whom they belong.

        Waits for `min_records` until the deadline, but not for long. How many entries were taken is in
        self._reaping.submitted; how many records came is returned.
        """
        file = self._opened()
        arg = self._reaping
        if arg.reaped:
            self._hand_out()
        number = arg.submitted = 0
        arg.entries = entries
        arg.to_submit = to_submit
        arg.min_records = min_records
        if min_records:
            latest = time.monotonic_ns() + _ALONE_NS
            if deadline is not None and (wanted := deadline * 1e9) < latest:
                latest = max(0, int(wanted))
            arg.deadline_ns = latest
        else:
            arg.deadline_ns = 0
        try:
            try:
                file.ioctl(abi.NYMPH_IOC_ENTER, arg)
                if to_submit and not arg.submitted:
                    number = -arg.error
            except OSError as e:
                if e.errno is None:
                    raise  # a signal's handler did: TimeoutError, say
                number = e.errno
            reaped = int(arg.reaped)
            self._hand_out()
        finally:
            # Ctrl-C can come at any point of the above. Done again, this goes on where it was.
            if arg.reaped:
                self._hand_out()
        if number and not (min_records and number == errno.ETIME):
            raise _refused(number, hints())
        return reaped

    def _submit(self, jobs: Sequence[Job], *, wait: bool = False, deadline: float | None = None) -> int:
        """Hand them to the driver. Returns how many it took; raises NymphError if it refused the first."""
        if self._forgotten:
            self._drop_forgotten()
        for job in jobs:
            job.check()
            if not job.cookie:
                job.entry.cookie = job.cookie = self._next_cookie
                self._next_cookie += 1
        entries = jobs[0].entry
        if len(jobs) > 1:
            entries = ffi.new("struct nymph_entry[]", [job.entry[0] for job in jobs])
        arg = self._reaping
        arg.submitted = 0
        try:
            # Before the request, so that Ctrl-C can't come between it and this.
            for job in jobs:
                self._in_flight[job.cookie] = job
            number = len(jobs)
            self._enter(address(entries), number, jobs[0].hints, min_records=int(wait), deadline=deadline)
        finally:
            try:
                self._take_back_refused(jobs)
            except BaseException:  # Ctrl-C; and what stays in flight is held for ever
                self._take_back_refused(jobs)
                raise
        return int(arg.submitted)

    def _take_back_refused(self, jobs: Sequence[Job]) -> None:
        for job in jobs[self._reaping.submitted :]:
            self._in_flight.pop(job.cookie, None)

    def _checked(self, entries: NDArray[np.void]) -> tuple[Checked, list[Memory]]:
        """Entries as the driver gets them, and their memory: held, it keeps its handles."""
        self._opened()
        many, self._last_run = self._last_run, None
        if many is not None and many.is_of(entries):
            try:
                return many, many.memories()
            except ArgumentError:
                pass  # a handle of then is gone, or another's by now
        from pynymph.batch import Checked  # NumPy, for who has it

        many = Checked(entries, self._next_batch_cookie, self._known)
        self._next_batch_cookie += len(many)
        return many, many.memories()

    def _make_batch(
        self,
        many: Checked,
        memories: list[Memory],
        first: int,
        end: int,
        deadline: float | None = None,
        *,
        wait: bool,
    ) -> Batch:
        batch = many.batch(self, first, end)
        if self._in_flight or self._batches:
            # Their records could be all there is room for.
            self._reap()
        if len(batch):
            if self._forgotten:
                self._drop_forgotten()
            batch.hold(memories)
            self._submit_batch(batch, deadline, wait=wait)
        else:
            batch.end()
        return batch

    def _submit_batch(self, batch: Batch, deadline: float | None, *, wait: bool) -> None:
        wait = wait and not (self._in_flight or self._batches or self._wakers)
        self._reaping.submitted = 0
        try:
            # Before the request, so that Ctrl-C can't come between it and this.
            self._batches.append(batch)
            n = len(batch)
            self._enter(batch.address, n, batch.hints, min_records=n if wait else 0, deadline=deadline)
        finally:
            try:
                self._cut(batch)
            except BaseException:
                self._cut(batch)
                raise

    def _cut(self, batch: Batch) -> None:
        if batch in self._batches:
            batch.cut(self._reaping.submitted)
            self._end_if_complete(batch)

    def _end_if_complete(self, batch: Batch) -> None:
        if batch.ended == len(batch):
            batch.end()
            if batch in self._batches:
                self._batches.remove(batch)

    def _submit_if_room(self, job: Job, deadline: float | None = None, *, wait: bool = False) -> bool:
        """If it is to `wait`, and nothing else is in flight, the job may be done already."""
        wait = wait and job.is_memory and not (self._in_flight or self._batches or self._wakers)
        try:
            return bool(self._submit([job], wait=wait, deadline=deadline))
        except NymphError as e:
            if e.errno != errno.ENOSPC:
                raise
            return False

    def _is_next(self, job: Job) -> bool:
        """Whether the next record is its, and nobody else waits for one."""
        if self._batches or self._wakers or not job.is_memory:
            return False
        return next(iter(self._in_flight), None) == job.cookie

    def _room_for_completions(self) -> int:
        """How many more operations can be told of by completions(). Raises FullError if that is none."""
        known = len(self._ended) + sum(job.collectable for job in self._in_flight.values())
        if known >= 2 * self.entries:
            raise error(errno.ENOSPC, f"{len(self._ended)} completions wait for completions() or result()")
        return 2 * self.entries - known

    def _take_ended(self) -> Job | None:
        return self._ended.pop(next(iter(self._ended))) if self._ended else None

    def _expects_completions(self) -> bool:
        return any(job.collectable for job in self._in_flight.values())

    def _reap(self) -> None:
        """Collect all records there are, and hand them to whom they belong."""
        while self._enter() == self._reaping.max_records:
            pass

    def _has_room(self) -> bool:
        self._reap()
        poller = select.poll()
        poller.register(self._opened().fileno(), select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poller.poll(0))

    def _hand_out(self) -> None:
        if not self._reaping.reaped:
            return
        records = self._hand_out_to_batches() if self._batches else self._records[0 : self._reaping.reaped]
        for record in records:
            job = self._in_flight.get(record.cookie)
            if job is None:
                continue
            if job.collectable:
                self._ended[record.cookie] = job
            job.end(self._completion(record))
            del self._in_flight[record.cookie]
        self._wake()
        self._reaping.reaped = 0

    def _hand_out_to_batches(self) -> Any:
        """Returns those records that are of none."""
        oldest, n = self._batches[0], self._reaping.reaped
        if oldest.take_all(self._records, n):
            oldest.end()
            del self._batches[0]
            return []
        import numpy as np

        from pynymph.batch import RECORD

        records = self._records[0:n]
        rest = np.frombuffer(ffi.buffer(records), RECORD)
        for batch in list(self._batches):
            rest = batch.take(rest)
            self._end_if_complete(batch)
        others = set(rest["cookie"].tolist())
        return [record for record in records if record.cookie in others] if others else []

    def _abandon(self, why: NymphError) -> None:
        """The driver is done with all buffers, and there will be no record."""
        for job in self._in_flight.values():
            job.end(why)
        for batch in self._batches:
            batch.end(why)
        self._in_flight.clear()
        self._batches.clear()
        self._ended.clear()
        self._reaping.reaped = 0
        self._wake()

    def _wake(self) -> None:
        for waker in self._wakers:
            os.eventfd_write(waker, 1)

    def _wait(
        self, ready: Callable[[], bool], deadline: float | None, events: int, job: Job | None = None
    ) -> bool:
        """Wait until `ready()`, called with the mutex held, is true: True. At the deadline: False.

        `job`: what it is that is waited for.
        """
        waker = -1
        try:
            with self._lock():
                # What Ctrl-C cut short: the file does not become readable by it again.
                self._hand_out()
                if ready():
                    return True
                if job is not None and self._is_next(job):
                    self._enter(min_records=1, deadline=deadline)
                    if ready():
                        return True
                fd = self._opened().fileno()
                poller = select.poll()
                poller.register(fd, events)
                waker = os.eventfd(0, os.EFD_CLOEXEC)
                poller.register(waker, select.POLLIN)
                self._wakers.add(waker)
            while True:
                left = _milliseconds_until(deadline)
                happened = [ready_fd for ready_fd, _ in poller.poll(left)]
                if waker in happened:
                    os.eventfd_read(waker)
                with self._lock():
                    if fd in happened and self._file is not None:
                        self._reap()
                    if ready():
                        return True
                    self._opened()
                if not happened and left != _LONGEST_POLL_MS:
                    return False
        finally:
            if waker != -1:
                try:
                    self._drop_waker(waker)
                except BaseException:  # Ctrl-C; and while there is one, nobody has the ring alone
                    self._drop_waker(waker)
                    raise

    def _drop_waker(self, waker: int) -> None:
        with self._lock():
            if waker in self._wakers:
                self._wakers.remove(waker)
                os.close(waker)

    def _let_go_of_refused(self, jobs: Iterable[Job]) -> None:
        with self._lock():
            for job in jobs:
                if job.cookie not in self._in_flight:
                    job.let_go()

    def _engine_name(self, number: int) -> str | None:
        if number == 0:
            return None
        if number not in self._engines:
            self._engines = _query(self._opened(), self._device).engines
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
            src_digest=_bytes(record.src_digest) if record.flags & lib.NYMPH_RECORD_SRC_DIGEST else None,
            dst_digest=_bytes(record.dst_digest) if record.flags & lib.NYMPH_RECORD_DST_DIGEST else None,
        )


class Transfer:
    """An operation that Ring.submit() has queued. Any thread may wait for it."""

    def __init__(self, ring: Ring, job: Job) -> None:
        self._ring = ring
        self._job = job

    def __repr__(self) -> str:
        state = "has ended" if self._job.outcome is not None else "in flight"
        return f"<pynymph.Transfer {self.cookie}, {self._job.operation.__name__}: {state}>"

    @property
    def cookie(self) -> int:
        """What its Completion has for a cookie, and the entries of a Snapshot."""
        return self._job.cookie

    @property
    def done(self) -> bool:
        """Whether it has ended, as far as is known without asking the driver: poll the ring to know more."""
        return self._job.outcome is not None

    def result(self, timeout: float | None = None) -> Completion:
        """Wait until it has ended, and return how. As often as you like.

        Raises NymphError, with `completion` if the driver ran it, if that was no success; RingTimeoutError
        after `timeout` seconds: it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._ring._result(self._job, timeout, deadline)

    def cancel(self) -> bool:
        """Have it end early, with a CanceledError. False if it has ended already.

        What is queued ends so in its turn; what runs may still come to its proper end.
        """
        return self._ring._cancel(self._job)


def _let_others() -> None:
    """Who has had the mutex for long, and will have it again, gives the others a chance."""
    if threading.active_count() > 1:
        time.sleep(0)


def _refused(number: int, hints: dict[int, str]) -> NymphError:
    known = {
        errno.EPERM: _FORKED,
        errno.EINVAL: "there is no ring; reset() sets it up again",
        errno.ENOMEM: "the kernel has no memory for it",
    }
    return error(number, (known | hints).get(number, os.strerror(number)))


def _bytes(array: Any) -> bytes:
    return bytes(ffi.buffer(array))


def _free(handle: int) -> Any:
    return abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_FREE, handle=handle)


def _memory_hints(what: str) -> dict[int, str]:
    """What errors of allocating or pinning `what` mean."""
    return {
        errno.ENOMEM: f"this locks {what}, and {memlock()} does not allow it; raise it (ulimit -l)",
        errno.EFAULT: "part of the buffer is not mapped readable, or not writable: then read_only=True",
        errno.EOPNOTSUPP: "a writable shared mapping of a file can't be pinned; use it unregistered",
    }


def _bucket_end(bucket: int) -> int:
    """The longest time in ns that belongs to a bucket of struct nymph_latency."""
    if bucket < 8:
        return bucket
    return ((8 + bucket % 8 + 1) << (bucket // 8 - 1)) - 1


def _milliseconds_until(deadline: float | None) -> int:
    if deadline is None:
        return _LONGEST_POLL_MS
    return math.ceil(min(max(0, (deadline - time.monotonic()) * 1000), _LONGEST_POLL_MS))


def _open(device: str) -> abi.Device | Model:
    if device == MODEL:
        return Model()
    try:
        return abi.Device(device)
    except OSError as e:
        missing = (
            f"there is no {device}; load the module: sudo modprobe pcie_nymph, or insmod pcie_nymph.ko; or "
            f"try things without a driver: device={MODEL!r}"
        )
        hints = {
            errno.ENOENT: missing,
            errno.ENXIO: missing,
            errno.ENODEV: missing,
            errno.EACCES: f"{device} may be used by group nymph, and you are not in it: "
            "sudo usermod -aG nymph $USER, then log in again",
        }
        number = e.errno or 0
        raise error(number, hints.get(number, f"can't open {device}: {e.strerror}")) from None


def _query(file: abi.Device | Model, device: str) -> Query:
    room = 16
    while True:
        engines = ffi.new("struct nymph_engine_info[]", room)
        arg = abi.new("nymph_query", engines=address(engines), max_engines=room)
        try:
            file.ioctl(abi.NYMPH_IOC_QUERY, arg)
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
