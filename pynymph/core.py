# SPDX-License-Identifier: MIT
"""The core of a ring: operations in flight, and their ends. Ring and AsyncRing each own a Core.

Each record of the driver belongs to a job or a batch. Any thread can collect records of another thread's job:
reap() gives each record to its job or batch, and wakes all threads that wait.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pynymph import abi
from pynymph.abi import address, ffi, lib
from pynymph.buffer import Memory
from pynymph.errors import (
    SUBMIT_DMA,
    ArgumentError,
    FullError,
    Hints,
    NymphError,
    error,
    refused,
    setup_hints,
)
from pynymph.integers import UINT64_MAX, seconds, whole
from pynymph.openfile import checked_engine, refuse_patched_waits
from pynymph.operation import Job, Operation
from pynymph.state import Completion
from pynymph.table import BufferTable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pynymph.batch import Batch, Checked
    from pynymph.evidence import Log

# Longest wait inside the ioctl while the mutex is held, by the only thread that uses the ring. The driver can
# run the entries in this thread then.
_ALONE_NS = 10_000_000
# A signal that comes just before poll() starts does not end poll(), and its handler runs after poll().
_LONGEST_POLL_MS = 1000
_BLIND_POLL_MS = 10


class Core(BufferTable):
    """Run the operations of a ring: keep those in flight, their records, and the threads that wait.

    Args and Raises: as Ring.
    """

    _instead = "it is the inside of one ring; open another Ring"

    def __init__(self, entries: int, *, engine: str, device: str, paused: bool, label: int) -> None:
        refuse_patched_waits(device)
        super().__init__(device)
        self.entries = whole(entries, "entries", 1, lib.NYMPH_MAX_ENTRIES)
        self.label = whole(label, "label", 0, UINT64_MAX)
        self._engine = checked_engine(engine)
        self._paused = paused

        # One thread can collect another's record, so it wakes all threads by these eventfds.
        self.wakers: set[int] = set()
        self._next_cookie = 1
        self._next_batch_cookie = 1 << 63
        self.in_flight: dict[int, Job] = {}
        self._ended: dict[int, Job] = {}  # jobs of submit() that completions() has not returned yet
        self.batches: list[Batch] = []  # batches in flight
        self._last_run: Checked | None = None  # run_many() takes it, runs it, and puts it back
        room = max(64, self.entries)  # enough for all records of a batch
        self._records = ffi.new("struct nymph_record[]", room)
        self._reaping = abi.new("nymph_enter", records=address(self._records), max_records=room)
        self.log: Log | None = None
        self._is_logged = True  # whether the log has all of the last ENTER

        try:
            self.open()
            self._setup()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        # Before any attribute is freed: the driver releases the buffers before Python does.
        self.close()

    def reset(self) -> None:
        """Cancel what is queued and running, and set the ring up again; see Ring.reset()."""
        with self.lock():
            self._drop_ring()
            self.end_memories("its ring was reset")
            if self.log is not None:
                self.log._restart()
            self._abandon(error(errno.ECANCELED, "the ring was reset before this ended; submit it again"))
            self._setup()

    def close(self) -> None:
        """Cancel the operations in flight, close the file, and release the buffers. Idempotent."""
        if self.file is None:
            return
        if os.getpid() != self.pid:
            # The mutex may be held by a thread that does not exist in this process.
            self.close_file()
            return
        with self.lock():
            if self.file is None:
                return
            try:
                # If a child of this process has the file, too, closing it neither stops operations nor
                # unpins memory. There may be no ring, or no driver behind the file.
                with contextlib.suppress(NymphError):
                    self._drop_ring()
            finally:
                self.close_file()
                self.end_memories("its ring was closed")
                self._abandon(error(errno.EBADF, "the ring was closed before this ended; open a Ring"))

    def run(self, operation: Operation, timeout: float | None) -> Completion:
        """Queue an operation, and wait until it has ended; see Ring.copy()."""
        timeout = seconds(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        job = Job(operation, self)
        try:
            with self.lock():
                queued = self.submit_if_room(job, deadline, wait=True)
            if not queued:
                room = select.POLLIN | select.POLLOUT
                if not self.wait(lambda: self.submit_if_room(job), deadline, room):
                    message = f"the ring had no room within {timeout} s, and nothing was done; try again"
                    raise error(errno.ETIMEDOUT, message)
            return self.result(job, timeout, deadline)
        finally:
            if job.outcome is None:
                self.release_refused([job])

    def result(self, job: Job, timeout: float | None, deadline: float | None) -> Completion:
        """Wait until an operation has ended, and return its Completion or raise its error."""
        if job.outcome is None and not self.wait(
            lambda: job.outcome is not None, deadline, select.POLLIN, job
        ):
            message = (
                f"not done within {timeout} s; the operation goes on and holds its buffers: wait again, or "
                "reset() the ring"
            )
            raise error(errno.ETIMEDOUT, message)
        if job.collectable:
            with self.lock():
                self._ended.pop(job.cookie, None)
        if job.holds_buffers:  # another thread, which noted the outcome, is at it
            self.release_refused([job])
        if isinstance(job.outcome, NymphError):
            # A new error each time: one that is raised again and again collects all tracebacks.
            raise error(job.outcome.errno or 0, job.outcome.strerror or "")
        assert job.outcome is not None
        if job.outcome.status:
            raise job.failure(job.outcome)
        return job.outcome

    def submit_all(self, operations: Iterable[Operation]) -> list[Job]:
        """Queue operations with one request, for completions(). Returns the jobs of those accepted."""
        jobs: list[Job] = []
        try:
            for operation in operations:
                jobs.append(Job(operation, self, collectable=True))
            with self.lock():
                # Uncollected records can take all the room.
                self.reap()
                accepted = self.submit(jobs[: self.room_for_completions()]) if jobs else 0
        finally:
            self.release_refused(jobs)
        return jobs[:accepted]

    def submit_many(self, entries: NDArray[np.void]) -> Batch:
        """Queue as many entries as there is room for with one request; see Ring.submit_many()."""
        with self.lock():
            many, memories = self.checked(entries)
            return self.make_batch(many, memories, 0, len(many), wait=False)

    def next_ended(self, timeout: float | None) -> Job | None:
        """Wait until an operation of submit_all() ends. Returns it, or None if none is left or in time."""
        found: list[Job] = []

        def ready() -> bool:
            if job := self.take_ended():
                found.append(job)
            return bool(found) or not self.expects_completions()

        with self.lock():
            if self.file is not None:
                self.reap()
        self.wait(ready, None if timeout is None else time.monotonic() + timeout, select.POLLIN)
        return found[0] if found else None

    def batch_result(self, batch: Batch, timeout: float | None, deadline: float | None) -> NDArray[np.void]:
        """Wait until a batch has ended, and return its records or raise the error that ended it."""
        if not (
            batch.done
            or self._wait_alone(batch, deadline)
            or self.wait(lambda: batch.done, deadline, select.POLLIN)
        ):
            done = f"{batch.first + batch.ended} of {batch.total}"
            message = f"{done} done within {timeout} s; queued entries go on: wait again, or reset() the ring"
            raise error(errno.ETIMEDOUT, message)
        if batch.error is not None:
            raise error(batch.error.errno or 0, batch.error.strerror or "")
        return batch.records

    def cancel(self, job: Job) -> bool:
        """Cancel an operation. Returns False if it has ended already."""
        with self.lock():
            if job.outcome is not None:
                return False
            try:
                self.request(abi.NYMPH_IOC_CANCEL, abi.new("nymph_cancel", cookie=job.cookie))
            except NymphError as e:
                if e.errno != errno.ENOENT:
                    raise
                return False
            return True

    def _wait_alone(self, batch: Batch, deadline: float | None) -> bool:
        """Wait until a batch has ended. Returns False if the deadline, or another user of the ring, came."""
        while True:
            with self.lock():
                if batch.done:
                    return True
                if self.in_flight or self.wakers or self.batches != [batch]:
                    return False
                self._enter(min_records=len(batch) - batch.ended, deadline=deadline)
                if batch.done:
                    return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            _let_others()

    def run_many(self, entries: NDArray[np.void], timeout: float | None = None) -> NDArray[np.void]:
        """Queue entries whenever there is room, and wait until all have ended; see Ring.run_many()."""
        timeout = seconds(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        many: Checked | None = None
        done: list[NDArray[np.void]] = []
        taken = 0
        while many is None or taken < len(many):
            try:
                with self.lock():
                    if many is None:
                        many, memories = self.checked(entries)
                    end = taken + self.entries
                    batch = self.make_batch(many, memories, taken, end, deadline, wait=True)
            except FullError:
                # Others fill the ring: this call has nothing in flight here.
                if not self.wait(self.has_room, deadline, select.POLLIN | select.POLLOUT):
                    message = f"the ring had no room within {timeout} s; try again"
                    raise error(errno.ETIMEDOUT, message) from None
                continue
            done.append(self.batch_result(batch, timeout, deadline))
            taken += len(batch)
            _let_others()
        if taken <= lib.NYMPH_MAX_ENTRIES:
            self._last_run = many
        if len(done) == 1:
            return done[0]
        import numpy as np

        return np.concatenate(done)

    def submit_dma(self, descriptor: Any) -> None:
        """Make the request SUBMIT_DMA, for pynymph.fabric. The core does not keep its entries."""
        with self.lock():
            self.request(abi.NYMPH_IOC_SUBMIT_DMA, descriptor, SUBMIT_DMA)

    # Callers of everything below hold the mutex; only wait(), _drop_waker() and release_refused() take it.

    def _setup(self) -> None:
        arg = abi.new(
            "nymph_setup2",
            flags=lib.NYMPH_SETUP_PAUSED if self._paused else 0,
            entries=self.entries,
            ring_addr=self.label,
            engine=self._engine.encode(),
        )
        hints = setup_hints(self._engine, self.engines.values(), self.entries)
        self.ioctl(abi.NYMPH_IOC_SETUP2, arg, hints)

    def _drop_ring(self) -> None:
        # If an earlier reset() was interrupted, there is no ring to drop.
        with contextlib.suppress(ArgumentError):
            self.ioctl(abi.NYMPH_IOC_RESET)

    def _enter(
        self,
        entries: int = 0,
        to_submit: int = 0,
        hints: Callable[[], Hints] = dict,
        *,
        min_records: int = 0,
        deadline: float | None = None,
    ) -> int:
        """Make one ENTER: submit entries, collect records, and give them to their jobs and batches.

        The request waits for `min_records` until the deadline, and at most 10 ms. self._reaping.submitted
        becomes the number of entries that were accepted.

        Args:
            entries: address of the first entry.
            to_submit: number of entries.
            hints: function that returns messages for errors of the first entry.
            min_records: number of records to wait for.
            deadline: time on time.monotonic(), in seconds.

        Returns:
            Number of records.

        Raises:
            NymphError: the driver refused the first entry.
        """
        file = self.opened()
        if self.garbage:
            self.free_garbage()
        arg = self._reaping
        if arg.reaped:
            self._hand_out()
        number = arg.submitted = 0
        self._is_logged = self.log is None
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
                    raise  # by the handler of a signal, such as a TimeoutError
                number = e.errno
            reaped = int(arg.reaped)
            self._hand_out()
        finally:
            # Ctrl-C can come at any point of the above. A second call continues where the first stopped.
            if arg.reaped or not self._is_logged:
                self._hand_out()
        if self.garbage:  # the end of an operation can leave some
            self.free_garbage()
        if number and not (min_records and number == errno.ETIME):
            raise refused(number, hints())
        return reaped

    def submit(self, jobs: Sequence[Job], *, wait: bool = False, deadline: float | None = None) -> int:
        """Give jobs to the driver with one request.

        Args:
            jobs: the jobs, at least one.
            wait: wait at most 10 ms for the first record.
            deadline: time on time.monotonic() at which the wait ends, in seconds.

        Returns:
            Number of jobs accepted.

        Raises:
            NymphError: the driver refused the first job.
        """
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
            # Before the request, so that Ctrl-C cannot come in between.
            for job in jobs:
                self.in_flight[job.cookie] = job
            number = len(jobs)
            self._enter(address(entries), number, jobs[0].hints, min_records=int(wait), deadline=deadline)
        finally:
            try:
                self._take_back_refused(jobs)
            except BaseException:  # Ctrl-C: a job that stayed here would hold its buffers for ever
                self._take_back_refused(jobs)
                raise
        return int(arg.submitted)

    def _take_back_refused(self, jobs: Sequence[Job]) -> None:
        for job in jobs[self._reaping.submitted :]:
            self.in_flight.pop(job.cookie, None)

    def checked(self, entries: NDArray[np.void]) -> tuple[Checked, list[Memory]]:
        """Check and copy entries for the driver. Returns them, and their memory, which keeps its handles."""
        self.opened()
        if self.garbage:
            self.free_garbage()
        many, self._last_run = self._last_run, None
        if many is not None and many.is_of(entries):
            try:
                return many, many.memories()
            except ArgumentError:
                pass  # a handle is gone, or another buffer's by now
        from pynymph.batch import Checked  # here, because it needs NumPy

        many = Checked(entries, self._next_batch_cookie, self.known)
        self._next_batch_cookie += len(many)
        return many, many.memories()

    def make_batch(
        self,
        many: Checked,
        memories: list[Memory],
        first: int,
        end: int,
        deadline: float | None = None,
        *,
        wait: bool,
    ) -> Batch:
        """Queue as many of the entries from `first` to `end` as there is room for."""
        batch = many.batch(self, first, end)
        if self.in_flight or self.batches:
            # Uncollected records can take all the room.
            self.reap()
        if len(batch):
            batch.hold(memories)
            self._submit_batch(batch, deadline, wait=wait)
        else:
            batch.end()
        return batch

    def _submit_batch(self, batch: Batch, deadline: float | None, *, wait: bool) -> None:
        wait = wait and not (self.in_flight or self.batches or self.wakers)
        self._reaping.submitted = 0
        try:
            # Before the request, so that Ctrl-C cannot come in between.
            self.batches.append(batch)
            n = len(batch)
            self._enter(batch.address, n, batch.hints, min_records=n if wait else 0, deadline=deadline)
        finally:
            try:
                self._cut(batch)
            except BaseException:
                self._cut(batch)
                raise

    def _cut(self, batch: Batch) -> None:
        if batch in self.batches:
            batch.cut(self._reaping.submitted)
            self._end_if_complete(batch)

    def _end_if_complete(self, batch: Batch) -> None:
        if batch.ended == len(batch):
            batch.end()
            if batch in self.batches:
                self.batches.remove(batch)

    def submit_if_room(self, job: Job, deadline: float | None = None, *, wait: bool = False) -> bool:
        """Queue a job, and tell whether there was room. With `wait`, the job may have ended on return."""
        wait = wait and job.is_memory and not (self.in_flight or self.batches or self.wakers)
        try:
            return bool(self.submit([job], wait=wait, deadline=deadline))
        except NymphError as e:
            if e.errno != errno.ENOSPC:
                raise
            return False

    def _is_next(self, job: Job) -> bool:
        """Tell whether the next record is this job's, and no other thread waits for one."""
        if self.batches or self.wakers or not job.is_memory:
            return False
        return next(iter(self.in_flight), None) == job.cookie

    def room_for_completions(self) -> int:
        """Return how many more operations completions() can take. Raises FullError if none."""
        known = len(self._ended) + sum(job.collectable for job in self.in_flight.values())
        if known >= 2 * self.entries:
            message = f"{len(self._ended)} completions wait for completions() or result(); call one of them"
            raise error(errno.ENOSPC, message)
        return 2 * self.entries - known

    def take_ended(self) -> Job | None:
        """Take the operation that ended first of those that completions() has not returned yet, or None."""
        return self._ended.pop(next(iter(self._ended))) if self._ended else None

    def expects_completions(self) -> bool:
        """Tell whether an operation is in flight that completions() will return."""
        return any(job.collectable for job in self.in_flight.values())

    def reap(self) -> None:
        """Collect all records, and give them to their jobs and batches."""
        while self._enter() == self._reaping.max_records:
            pass

    def has_room(self) -> bool:
        """Collect records, and tell whether the ring has room for an entry."""
        self.reap()
        poller = select.poll()
        poller.register(self.opened().fileno(), select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poller.poll(0))

    def _hand_out(self) -> None:
        if self.log is not None and not self._is_logged:
            self._tell(self.log)
        if not self._reaping.reaped:
            return
        records = self._hand_out_to_batches() if self.batches else self._records[0 : self._reaping.reaped]
        for record in records:
            job = self.in_flight.get(record.cookie)
            if job is None:
                continue
            if job.collectable:
                self._ended[record.cookie] = job
            job.end(self._completion(record))
            del self.in_flight[record.cookie]
        self._wake()
        self._reaping.reaped = 0

    def _tell(self, log: Log) -> None:
        """Give the log what the last ENTER has submitted and collected, once."""
        self._is_logged = True
        arg = self._reaping
        if accepted := arg.submitted:
            entries = ffi.cast("char *", arg.entries)
            log._submitted(bytes(ffi.buffer(entries, accepted * ffi.sizeof("struct nymph_entry"))))
        log._retired(bytes(ffi.buffer(self._records, arg.reaped * ffi.sizeof("struct nymph_record"))))

    def _hand_out_to_batches(self) -> Any:
        """Give records to the batches. Returns the records of jobs."""
        oldest, n = self.batches[0], self._reaping.reaped
        if oldest.take_all(self._records, n):
            oldest.end()
            del self.batches[0]
            return []
        import numpy as np

        from pynymph.batch import RECORD

        records = self._records[0:n]
        rest = np.frombuffer(ffi.buffer(records), RECORD)
        for batch in list(self.batches):
            rest = batch.take(rest)
            self._end_if_complete(batch)
        others = set(rest["cookie"].tolist())
        return [record for record in records if record.cookie in others] if others else []

    def _abandon(self, why: NymphError) -> None:
        """End all operations with an error. The driver uses no buffer, and will leave no record."""
        for job in self.in_flight.values():
            job.end(why)
        for batch in self.batches:
            batch.end(why)
        self.in_flight.clear()
        self.batches.clear()
        self._ended.clear()
        self._reaping.reaped = 0
        self._wake()

    def _wake(self) -> None:
        for waker in self.wakers:
            os.eventfd_write(waker, 1)

    def wait(
        self, ready: Callable[[], bool], deadline: float | None, events: int, job: Job | None = None
    ) -> bool:
        """Wait until `ready()` is true.

        Args:
            ready: condition, called with the mutex held.
            deadline: time on time.monotonic(), in seconds; None waits for ever.
            events: events of the file, for poll(), after which the condition can be true.
            job: the operation that the caller waits for, or None.

        Returns:
            False if the deadline came first.

        Raises:
            ClosedError: EBADF, the ring was closed.
        """
        waker = -1
        try:
            with self.lock():
                # Records that Ctrl-C left: the file does not become readable for them again.
                self._hand_out()
                if ready():
                    return True
                if job is not None and self._is_next(job):
                    self._enter(min_records=1, deadline=deadline)
                    if ready():
                        return True
                fd = self.opened().fileno()
                poller = select.poll()
                poller.register(fd, events)
                # Without a free descriptor, no other thread can wake this one: it checks every 10 ms.
                longest = _BLIND_POLL_MS
                with contextlib.suppress(OSError):
                    waker = os.eventfd(0, os.EFD_CLOEXEC)
                    poller.register(waker, select.POLLIN)
                    self.wakers.add(waker)
                    longest = _LONGEST_POLL_MS
            while True:
                left = _milliseconds_until(deadline, longest)
                happened = [ready_fd for ready_fd, _ in poller.poll(left)]
                if waker in happened:
                    os.eventfd_read(waker)
                with self.lock():
                    if fd in happened and self.file is not None:
                        self.reap()
                    if ready():
                        return True
                    self.opened()
                if not happened and left != longest:
                    return False
        finally:
            if waker != -1:
                try:
                    self._drop_waker(waker)
                except BaseException:  # Ctrl-C: a waker that stayed would keep all from using the ring alone
                    self._drop_waker(waker)
                    raise

    def _drop_waker(self, waker: int) -> None:
        with self.lock():
            if waker in self.wakers:
                self.wakers.remove(waker)
                os.close(waker)

    def release_refused(self, jobs: Iterable[Job]) -> None:
        """Release the buffers of jobs that the driver did not accept, or that have ended."""
        with self.lock():
            for job in jobs:
                if job.cookie not in self.in_flight:
                    job.release()

    def _completion(self, record: Any) -> Completion:
        return Completion(
            cookie=record.cookie,
            status=record.status,
            bytes_done=record.bytes_done,
            engine=self.engine_name(record.engine),
            queued_ns=record.queued_ns,
            started_ns=record.started_ns,
            completed_ns=record.completed_ns,
            src_digest=_bytes(record.src_digest) if record.flags & lib.NYMPH_RECORD_SRC_DIGEST else None,
            dst_digest=_bytes(record.dst_digest) if record.flags & lib.NYMPH_RECORD_DST_DIGEST else None,
        )


def _let_others() -> None:
    """Let other threads take the mutex, which this thread had for long and will take again."""
    if threading.active_count() > 1:
        time.sleep(0)


def _bytes(array: Any) -> bytes:
    return bytes(ffi.buffer(array))


def _milliseconds_until(deadline: float | None, longest: int) -> int:
    if deadline is None:
        return longest
    return math.ceil(min(max(0, (deadline - time.monotonic()) * 1000), longest))
