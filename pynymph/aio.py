# SPDX-License-Identifier: MIT
"""A ring for asyncio: the event loop polls its open file, and no thread waits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

from pynymph.errors import FullError, NymphError
from pynymph.operation import Compare, Completion, Copy, Fill, Hash, Job, Operation
from pynymph.ring import Ring, Transfer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from pynymph.batch import Batch


class AsyncRing:
    """A DMA ring of one event loop: arguments, operations and errors are those of Ring.

    >>> async with pynymph.AsyncRing() as ring:
    ...     done = await ring.copy(src=data, dst=buffer, verify=True)

    It belongs to the loop that runs when it is made; only that loop's thread may use it, and any number of
    its tasks. A full ring lets them wait for room, one after the other. A task that is cancelled meanwhile,
    by asyncio.timeout() say, cancels its operation; until that has ended, which may be later, its buffers are
    held, as Ring does. `ring` is the Ring behind it, for all that does not wait: allocate(), register(),
    status(), snapshot(), latency(), enable() and reset().
    """

    def __init__(self, entries: int = 256, **options: Any) -> None:
        """As Ring(entries, ...)."""
        self._loop = asyncio.get_running_loop()
        self.ring = Ring(entries, **options)
        self._fd = self.ring.fileno()
        self._is_watched = False
        self._turn = asyncio.Lock()  # who may wait for room
        self._room: asyncio.Future[None] | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}  # by cookie
        self._ended = asyncio.Event()  # some operation of submit()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pynymph.AsyncRing of {self.ring!r}>"

    def close(self) -> None:
        """Cancel what is in flight, and close the ring. Closing again does nothing."""
        if self._fd == -1:
            return
        self._watch(False)
        self._loop.remove_writer(self._fd)
        self._fd = -1
        self.ring.close()
        self._tell_of_room()
        self._ended.set()

    # --- one operation, and wait for it ---

    async def copy(
        self, *, src: Buffer, dst: Buffer, verify: bool = False, digest: bool = False, zero_copy: bool = False
    ) -> Completion:
        """Copy all of `src` to `dst`; see Ring.copy()."""
        return await self.run(Copy(src=src, dst=dst, verify=verify, digest=digest, zero_copy=zero_copy))

    async def fill(
        self,
        *,
        dst: Buffer,
        pattern: bytes = b"\0",
        verify: bool = False,
        digest: bool = False,
        zero_copy: bool = False,
    ) -> Completion:
        """Write `pattern` into `dst` over and over; see Ring.fill()."""
        operation = Fill(dst=dst, pattern=pattern, verify=verify, digest=digest, zero_copy=zero_copy)
        return await self.run(operation)

    async def digest(self, *, src: Buffer, zero_copy: bool = False) -> bytes:
        """BLAKE3-256 of all of `src`, made by the driver; see Ring.digest()."""
        digest = (await self.run(Hash(src=src, zero_copy=zero_copy))).src_digest
        assert digest is not None
        return digest

    async def compare(self, *, a: Buffer, b: Buffer, zero_copy: bool = False) -> int | None:
        """The offset of the first byte in which `a` and `b` differ, or None; see Ring.compare()."""
        try:
            await self.run(Compare(a=a, b=b, zero_copy=zero_copy))
        except NymphError as e:
            if e.errno != errno.EBADMSG or e.completion is None:
                raise
            return e.completion.bytes_done
        return None

    async def run(self, operation: Operation) -> Completion:
        """Queue an operation, and return when it has ended. Raises NymphError if that was no success."""
        transfer = await self._submit(operation, collectable=False)
        try:
            return await self.result(transfer)
        except asyncio.CancelledError:
            with contextlib.suppress(NymphError):  # it may have ended just now
                transfer.cancel()
            raise

    async def run_many(self, entries: NDArray[np.void]) -> NDArray[np.void]:
        """Queue a NumPy array of entries, as room for them comes, and return how they ended, in their order.

        See Ring.submit_many() about entries, and Batch.result() about what is returned. Raises NymphError if
        an entry was refused; those before it, and all if the task is cancelled, go on and hold their buffers.
        """
        import numpy as np

        with self.ring._lock():
            many, memories = self.ring._checked(entries)
        batches: list[Batch] = []
        async with self._turn:
            taken = 0
            while taken < len(many) or not batches:
                try:
                    with self.ring._lock():
                        end = taken + self.ring.entries
                        batch = self.ring._make_batch(many, memories, taken, end, wait=False)
                except FullError:
                    await self._wait_for_room()
                    continue
                batch.on_end = self._ended.set
                batches.append(batch)
                taken += len(batch)
                self._watch(True)
        while not all(batch.done for batch in batches):
            self._ended.clear()
            await self._ended.wait()
        return np.concatenate([batch.result() for batch in batches])

    # --- many, and do something else meanwhile ---

    async def submit(self, operation: Operation) -> Transfer:
        """Queue an operation, once there is room, for result() or completions().

        Raises FullError if that can't come: as many completions as there can be wait to be collected.
        """
        return await self._submit(operation, collectable=True)

    async def result(self, transfer: Transfer) -> Completion:
        """Wait until an operation of submit() has ended; see Transfer.result(). Cancelled, the wait ends."""
        job = transfer._job
        while job.outcome is None:
            ended = self._waiting.get(job.cookie)
            if ended is None:
                ended = self._waiting[job.cookie] = self._loop.create_future()
            await asyncio.shield(ended)
        return transfer.result()

    async def completions(self) -> AsyncIterator[Completion]:
        """How operations of submit() ended, as Ring.completions() has it: `async for` of the ring itself."""
        while True:
            with self.ring._lock():
                job = self.ring._take_ended()
                in_flight = self.ring._expects_completions()
            if job is not None:
                assert isinstance(job.outcome, Completion)
                yield job.outcome
            elif in_flight:
                self._ended.clear()
                await self._ended.wait()
            else:
                return

    def __aiter__(self) -> AsyncIterator[Completion]:
        return self.completions()

    async def _submit(self, operation: Operation, *, collectable: bool) -> Transfer:
        job = Job(operation, self.ring, collectable=collectable)
        job.on_end = lambda: self._end(job)
        try:
            async with self._turn:
                while not self._try(job):
                    await self._wait_for_room()
        finally:
            self.ring._let_go_of_refused([job])
        return Transfer(self.ring, job)

    def _try(self, job: Job) -> bool:
        with self.ring._lock():
            self.ring._reap()
            if job.collectable:
                self.ring._room_for_completions()
            accepted = self.ring._submit_if_room(job)
        if accepted:
            self._watch(True)
        return accepted

    async def _wait_for_room(self) -> None:
        self._room = self._loop.create_future()
        self._loop.add_writer(self._fd, self._tell_of_room)
        try:
            await self._room
        finally:
            self._room = None
            if self._fd != -1:
                self._loop.remove_writer(self._fd)

    def _tell_of_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _watch(self, wanted: bool) -> None:
        if wanted and not self._is_watched:
            self._loop.add_reader(self._fd, self._collect)
        elif not wanted and self._is_watched:
            self._loop.remove_reader(self._fd)
        self._is_watched = wanted

    def _collect(self) -> None:
        """There are records."""
        with self.ring._lock():
            self.ring._reap()
            more = bool(self.ring._in_flight or self.ring._batches)
        self._watch(more)

    def _end(self, job: Job) -> None:
        """Called by the ring, with its mutex held."""
        ended = self._waiting.pop(job.cookie, None)
        if ended is not None and not ended.done():
            ended.set_result(None)
        if job.collectable:
            self._ended.set()
