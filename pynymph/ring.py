# SPDX-License-Identifier: MIT
"""The DMA ring of a process: copies, fills, digests and compares, one at a time or many in flight."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self

from pynymph import abi
from pynymph.abi import address, ffi, lib
from pynymph.core import Core
from pynymph.errors import ATTEST, CANNOT_SIGN, SIGN, ArgumentError, NymphError, eventfd_hints
from pynymph.integers import INT32_MAX, seconds, shown, whole
from pynymph.openfile import DEVICE as DEVICE
from pynymph.openfile import MODEL as MODEL
from pynymph.openfile import query as query
from pynymph.operation import Compare, Copy, Fill, Hash, Operation
from pynymph.owner import Owner
from pynymph.state import Attestation, Completion, Latency, Snapshot, Status
from pynymph.transfer import Transfer as Transfer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from pynymph.batch import Batch
    from pynymph.buffer import RingBuffer
    from pynymph.evidence import Log


class Ring(Owner):
    """Open a DMA ring, and the file of the driver that it lives in.

    The ring holds the buffers of an operation until the operation has ended: nobody can free, resize or
    close them before. This is so even if the call that started the operation ended earlier, by its timeout
    or Ctrl-C. The ring notices the end at the next call that waits, submits or collects.

    Threads: any number of threads may use one ring with its buffers and handles, with and without a GIL. A
    call that waits lets others in after at most 10 ms. Two threads that touch the same bytes have to order
    that themselves. An AsyncRing belongs to its event loop.

    Fork: a ring belongs to the process that opened it. A child that uses it gets a ForkedError. Operations
    in flight go on, and close() in the child only closes the child's file.

    Signals: a handler may raise, and so end a call. It cannot use the ring that it interrupts: where that
    would hang, the ring raises NymphError with EDEADLK.

    Args:
        entries: how many operations the ring can queue, 1 to 4096.
        engine: the name of an engine, as query().engines lists them, or "auto".
        device: the path of the driver's device, or "model:" for a model of the driver in Python
            (pynymph.model). The engine of a model is always called "model".
        paused: let operations wait until enable().
        label: any 64-bit number. The ring reports it, and its hash covers it.
        evidence: a Log of pynymph.evidence that no other ring has. It records all that this ring retires.

    Raises:
        ArgumentError: EINVAL, an argument is out of range, or the Log is another ring's; the message says
            which.
        NymphError: ENOENT or EACCES, the device is missing or not yours to open. ENODEV or EIO, the engine
            is missing or has failed. ENFILE or EMFILE, there are too many rings or open files. ENOMEM,
            RLIMIT_MEMLOCK is too low. EOPNOTSUPP, gevent has replaced the calls that wait.
    """

    _instead = "it owns an open file; open another Ring, and pass memory on by RingBuffer.export()"

    def __init__(
        self,
        entries: int = 256,
        *,
        engine: str = "auto",
        device: str = DEVICE,
        paused: bool = False,
        label: int = 0,
        evidence: Log | None = None,
    ) -> None:
        # It closes itself when nothing has it any more: a buffer or a Transfer may outlive this.
        self._core = Core(entries, engine=engine, device=device, paused=paused, label=label)
        self.entries = self._core.entries
        self.label = self._core.label
        if evidence is not None:
            evidence._attach(self)
            self._core.log = evidence

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "a model, no driver" if self.is_model else self._core.device
        return f"<pynymph.Ring of {self.entries} entries, {where}{', closed' * (self._core.file is None)}>"

    @property
    def is_model(self) -> bool:
        """Whether a model in Python serves this ring, instead of the driver."""
        return self._core.is_model

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
        """Copy all of `src` to `dst`, and return when that is done.

        The call waits while the ring is full or paused.

        Args:
            src: a RingBuffer of this ring, or C-contiguous memory of the CPU: anything with the buffer
                protocol, a NumPy array of any dtype but objects, or a tensor with DLPack or
                __array_interface__. 1 byte to 1 GiB. A tensor that has no such memory, such as one that is
                negated lazily, is refused; the message names the tensor to give instead.
            dst: writable memory of as many bytes, of the same kinds. It must not overlap `src`.
            verify: hash what is sent, then read the destination back and hash it.
            digest: hash the destination only.
            zero_copy: pin the memory (RLIMIT_MEMLOCK) instead of going through a bounce buffer. Digests are
                advisory then: another thread may change `src` in flight.
            timeout: seconds to wait; None waits for ever. An operation in flight goes on after the timeout
                and holds its buffers; reset() cancels it.

        Returns:
            A Completion. It has the digests, of 32 bytes each, that were asked for.

        Raises:
            ArgumentError: EINVAL, the buffers cannot be copied; nothing was moved.
            VerifyError: EBADMSG, `dst` is not what was sent; `completion` has both digests.
            RingTimeoutError: ETIMEDOUT, `timeout` seconds have passed.
            CanceledError: ECANCELED, reset() came first.
            ClosedError: EBADF, the ring or a buffer is closed.
            NymphError: EFAULT, memory is not mapped; ENOMEM, RLIMIT_MEMLOCK is too low for `zero_copy`; or
                the engine failed. `completion` is set if the driver ran the operation.
        """
        operation = Copy(src=src, dst=dst, verify=verify, digest=digest, zero_copy=zero_copy)
        return self._core.run(operation, timeout)

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
        """Write `pattern` into `dst` over and over; the last repetition may be cut short.

        Args:
            dst: as for copy().
            pattern: 1, 2, 4 or 8 bytes.
            verify: as for copy().
            digest: as for copy().
            zero_copy: as for copy().
            timeout: seconds, as for copy().

        Returns:
            A Completion, as copy() returns it.

        Raises:
            NymphError: as copy() raises it.
        """
        operation = Fill(dst=dst, pattern=pattern, verify=verify, digest=digest, zero_copy=zero_copy)
        return self._core.run(operation, timeout)

    def digest(self, *, src: Buffer, zero_copy: bool = False, timeout: float | None = None) -> bytes:
        """Hash all of `src` in the driver.

        Args:
            src: as for copy().
            zero_copy: as for copy().
            timeout: seconds, as for copy().

        Returns:
            BLAKE3-256 of `src`, 32 bytes.

        Raises:
            NymphError: as copy() raises it.
        """
        digest = self._core.run(Hash(src=src, zero_copy=zero_copy), timeout).src_digest
        assert digest is not None
        return digest

    def compare(
        self, *, a: Buffer, b: Buffer, zero_copy: bool = False, timeout: float | None = None
    ) -> int | None:
        """Find the first byte in which `a` and `b` differ.

        Args:
            a: as `src` of copy().
            b: readable memory of as many bytes.
            zero_copy: as for copy().
            timeout: seconds, as for copy().

        Returns:
            The offset of that byte, or None if the two are equal.

        Raises:
            NymphError: as copy() raises it.
        """
        try:
            self._core.run(Compare(a=a, b=b, zero_copy=zero_copy), timeout)
        except NymphError as e:
            if e.errno != errno.EBADMSG or e.completion is None:
                raise
            return e.completion.bytes_done
        return None

    # --- many operations in flight ---

    def submit(self, operation: Operation) -> Transfer:
        """Queue an operation, and return at once.

        Args:
            operation: a Copy, Hash, Fill, Compare or Nop.

        Returns:
            A Transfer to wait on.

        Raises:
            FullError: ENOSPC, the ring has no room, or nobody has collected earlier completions.
            NymphError: the operation was refused.
        """
        (transfer,) = self.submit_all([operation])
        return transfer

    def submit_all(self, operations: Iterable[Operation]) -> list[Transfer]:
        """Queue operations with one request.

        Args:
            operations: as for submit().

        Returns:
            A Transfer for each operation that was accepted. These are the first ones: the driver takes none
            behind one that it refuses.

        Raises:
            FullError: ENOSPC, there is no room for the first.
            NymphError: the first was refused.
        """
        return [Transfer(self._core, job) for job in self._core.submit_all(operations)]

    def submit_many(self, entries: NDArray[np.void]) -> Batch:
        """Queue a NumPy array of entries with one request.

        Args:
            entries: an array of pynymph.batch.ENTRY with one dimension, as pynymph.batch.copies() makes it.
                The entries name RingBuffers of this ring, which are held until all have ended. The ring sets
                cookies and the flag that asks for a record.

        Returns:
            A Batch of the entries that were accepted: the first ones, if there was not room for all.

        Raises:
            FullError: ENOSPC, there is no room for the first.
            NymphError: the first was refused.
        """
        return self._core.submit_many(entries)

    def run_many(self, entries: NDArray[np.void], timeout: float | None = None) -> NDArray[np.void]:
        """Queue a NumPy array of entries as room for them comes, and wait until all have ended.

        This is the fastest way to make many small copies, most of all the same ones again: entries that were
        checked once are not checked twice.

        Args:
            entries: as for submit_many().
            timeout: seconds to wait; None waits for ever. Entries queued by then go on and hold their
                buffers.

        Returns:
            An array of pynymph.batch.RECORD, in the order of the entries, as Batch.result() returns it.

        Raises:
            RingTimeoutError: ETIMEDOUT, `timeout` seconds have passed.
            NymphError: an entry was refused.
        """
        return self._core.run_many(entries, timeout)

    def completions(self, timeout: float | None = None) -> Iterator[Completion]:
        """Iterate over operations of submit() as they end, in the order in which they do.

        Each comes once, in whichever thread is first. Operations whose result() was taken do not come. The
        iterator ends when no operation is in flight, also because of reset() or close().

        Args:
            timeout: seconds to wait for the next one before the iterator ends; None waits for ever.

        Yields:
            A Completion; its `status` is 0 or a negative errno.

        Raises:
            ClosedError: EBADF, the ring is closed.
        """
        timeout = seconds(timeout)
        with self._core.lock():
            self._core.opened()
        while (job := self._core.next_ended(timeout)) is not None:
            assert isinstance(job.outcome, Completion)
            yield job.outcome

    # --- memory ---

    def allocate(self, nbytes: int) -> RingBuffer:
        """Allocate zeroed memory of the driver, which needs no pinning for transfers.

        Args:
            nbytes: 1 byte to 1 GiB. It counts as locked memory (RLIMIT_MEMLOCK).

        Returns:
            A RingBuffer.

        Raises:
            NymphError: ENOMEM, RLIMIT_MEMLOCK is too low. EMFILE, the ring has too many buffers.
        """
        return self._core.allocate(nbytes)

    def allocate_on_card(self, nbytes: int) -> RingBuffer:
        """Allocate zeroed memory of the device whose channel is the ring's engine.

        Only operations reach this memory: it has no `view`. It is gone when the device is.

        Args:
            nbytes: 1 byte to 1 GiB.

        Returns:
            A RingBuffer.

        Raises:
            NymphError: EOPNOTSUPP, the engine has no memory of its own. ENOMEM or EDQUOT, too little is left.
                ENODEV, the card is gone.
        """
        return self._core.allocate_on_card(nbytes)

    def register(self, buffer: Buffer, *, read_only: bool = False) -> RingBuffer:
        """Pin memory of the caller until free().

        Args:
            buffer: as `src` or `dst` of copy(). It counts as locked memory (RLIMIT_MEMLOCK), each huge page
                of it as a whole.
            read_only: accept memory that is not writable; it can only be a source.

        Returns:
            A RingBuffer.

        Raises:
            ArgumentError: EINVAL, the memory cannot be used, or is read-only.
            NymphError: ENOMEM, RLIMIT_MEMLOCK is too low. EFAULT, the memory is not mapped. EOPNOTSUPP, it is
                a writable shared mapping of a file.
        """
        return self._core.register(buffer, read_only=read_only)

    def import_dmabuf(self, fd: int, *, read_only: bool = False) -> RingBuffer:
        """Import all memory behind a dma-buf that somebody else has exported.

        Operations wait for the fences that other drivers have put there. The result has a `view` if the
        dma-buf can be mapped. Where caches are not coherent with devices, reads of the view belong between
        two DMA_BUF_IOCTL_SYNC of the file. The memory does not count as locked here: its exporter has paid
        for it.

        Args:
            fd: a file descriptor of it, from RingBuffer.export() or another driver. It stays the caller's,
                who can close it at once.
            read_only: accept a file that is not open for writing; it can only be a source.

        Returns:
            A RingBuffer.

        Raises:
            NymphError: EBADF, no such file. EINVAL, it is no dma-buf. EACCES, it is not open to read and
                write.
        """
        return self._core.import_dmabuf(fd, read_only=read_only)

    # --- the ring itself ---

    def enable(self) -> None:
        """Let a ring that was opened `paused` run.

        Raises:
            NymphError: the ring is closed, or another process's.
        """
        with self._core.lock():
            self._core.request(abi.NYMPH_IOC_ENABLE)

    def reset(self) -> None:
        """Cancel all operations, and start again as if just opened: paused, if the ring was opened so.

        Calls of copy() and its siblings in other threads raise CanceledError, and so do handles of submit().
        Completions that nobody has collected are gone, and so are all buffers of the ring. An interrupted
        reset() can be called again.

        Raises:
            NymphError: the ring is closed, or the engine cannot be had again.
        """
        self._core.reset()

    def status(self) -> Status:
        """Read the counters, and the driver's hash of the ring.

        Returns:
            A Status.

        Raises:
            NymphError: the ring is closed, or another process's.
        """
        arg = abi.new("nymph_fabric_status")
        with self._core.lock():
            self._core.request(abi.NYMPH_IOC_GET_STATUS, arg)
        return Status(arg.dma_bytes, bytes(arg.ring_hash), arg.ring_size, arg.active_descriptors)

    def hash(self) -> bytes:
        """Read the driver's hash of the ring; snapshot() has it with what it covers.

        Returns:
            BLAKE3-256, 32 bytes.

        Raises:
            NymphError: as status() raises it.
        """
        return self.status().ring_hash

    def snapshot(self) -> Snapshot:
        """Read all that the ring's hash covers at one moment, with the counters of that moment.

        Returns:
            A Snapshot; pynymph.digest.ring_hash() computes the hash of it again.

        Raises:
            NymphError: the ring is closed, or another process's.
        """
        entries = ffi.new("struct nymph_entry[]", self._core.entries)
        arg = abi.new("nymph_snapshot", entries=address(entries), max_entries=self._core.entries)
        with self._core.lock():
            self._core.request(abi.NYMPH_IOC_SNAPSHOT, arg)
            engine = self._core.engine_name(arg.engine)
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
            transcript=bytes(arg.transcript),
            transcript_count=arg.transcript_count,
            transcript_id=arg.transcript_id,
            ring_bytes=bytes(ffi.buffer(ffi.addressof(arg, "ring"))),
            entry_bytes=bytes(ffi.buffer(entries, arg.active_descriptors * ffi.sizeof("struct nymph_entry"))),
        )

    def attest(self, nonce: bytes, *, sign: bool | None = None) -> Attestation:
        """Have the driver state what the ring did so far, and authenticate that.

        The statement has the transcript, the ring's state, the time, and what driver and kernel are.

        Args:
            nonce: 32 bytes, which the statement repeats: chosen by who is to believe it, for this once.
            sign: True signs the statement, and False makes a keyed digest of it. None signs if the
                administrator has given the driver a key to sign with, and the kernel can.

        Returns:
            An Attestation.

        Raises:
            ArgumentError: EINVAL, `nonce` is not 32 bytes.
            NymphError: ENOKEY, the administrator has set no key; EKEYREVOKED, EKEYEXPIRED, EKEYREJECTED, the
                key can't be used; EOPNOTSUPP, `sign` is True and the kernel can't sign; the ring is closed,
                or another process's.
        """
        if not isinstance(nonce, bytes) or len(nonce) != lib.NYMPH_NONCE_SIZE:
            message = (
                f"nonce is {shown(nonce)}; give {lib.NYMPH_NONCE_SIZE} bytes, as os.urandom() makes them"
            )
            raise ArgumentError(errno.EINVAL, message)
        if sign is None:
            try:
                return self._attest(nonce, True)
            except NymphError as error:
                if error.errno not in CANNOT_SIGN:
                    raise
        return self._attest(nonce, bool(sign))

    def _attest(self, nonce: bytes, sign: bool) -> Attestation:
        statement = ffi.new("unsigned char[]", lib.NYMPH_STATEMENT_MAX)
        arg = abi.new("nymph_attest", nonce=nonce, statement=address(statement), max_statement=len(statement))
        if sign:
            signature = ffi.new("unsigned char[]", lib.NYMPH_SIGNATURE_MAX)
            arg.flags = lib.NYMPH_ATTEST_SIGN
            arg.signature, arg.max_signature = address(signature), len(signature)
        with self._core.lock():
            self._core.request(abi.NYMPH_IOC_ATTEST, arg, SIGN if sign else ATTEST)
        stated = bytes(ffi.buffer(statement, arg.statement_size))
        if sign:
            return Attestation(stated, None, bytes(ffi.buffer(signature, arg.signature_size)))
        return Attestation(stated, bytes(arg.digest))

    def latency(self) -> Latency:
        """Read how long operations took so far, from submit to the end; reset() clears it.

        Returns:
            A Latency, in ns.

        Raises:
            NymphError: the ring is closed, or another process's.
        """
        buckets = ffi.new("unsigned long long[]", lib.NYMPH_LATENCY_BUCKETS)
        arg = abi.new("nymph_latency", buckets=address(buckets))
        with self._core.lock():
            self._core.request(abi.NYMPH_IOC_LATENCY, arg)
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
        """Have the driver raise an eventfd by 1 whenever an operation ends, until reset().

        This serves a program that waits for an eventfd already. Others can poll the ring itself.

        Args:
            eventfd: a file descriptor of os.eventfd(), or None to end this.

        Raises:
            NymphError: EINVAL or EBADF, it is no eventfd.
        """
        fd = -1 if eventfd is None else whole(eventfd, "eventfd", 0, INT32_MAX)
        arg = abi.new("nymph_eventfd", fd=fd)
        with self._core.lock():
            self._core.request(abi.NYMPH_IOC_EVENTFD, arg, eventfd_hints(eventfd))

    def fileno(self) -> int:
        """Return the descriptor of the open file, to poll.

        It is readable when a completion can be collected, and writable when there is room.

        Raises:
            ClosedError: EBADF, the ring is closed.
        """
        with self._core.lock():
            return self._core.opened().fileno()

    def close(self) -> None:
        """Cancel all operations, close the file, and release the buffers. Idempotent."""
        self._core.close()


def _bucket_end(bucket: int) -> int:
    """Compute the longest time in ns that belongs to a bucket of struct nymph_latency."""
    if bucket < 8:
        return bucket
    return ((8 + bucket % 8 + 1) << (bucket // 8 - 1)) - 1
