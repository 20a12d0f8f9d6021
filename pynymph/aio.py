# SPDX-License-Identifier: MIT
"""A ring for asyncio: the event loop polls its open file, and no thread waits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

from pynymph.errors import FullError, NymphError
from pynymph.operation import Compare, Copy, Fill, Hash, Job, Operation
from pynymph.owner import Owner
from pynymph.ring import Ring
from pynymph.state import Completion
from pynymph.transfer import Transfer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from pynymph.batch import Batch


class AsyncRing(Owner):
    """Open a DMA ring for one event loop; arguments, operations and errors are those of Ring.

    >>> async with pynymph.AsyncRing() as ring:
    ...     done = await ring.copy(src=data, dst=buffer, verify=True)

    The ring belongs to the loop that runs when it is made. Only that loop's thread may use it, with any
    number of tasks. Tasks wait for room in a full ring one after the other. A task that is cancelled, for
    example by asyncio.timeout(), cancels its operation; the ring holds the buffers until the operation has
    ended, which may be later.

    `ring` is the Ring behind it, for methods that do not wait: allocate(), register(), status(), snapshot(),
    latency(), enable() and reset().

    Args:
        entries: how many operations the ring can queue, 1 to 4096.
        options: engine, device, paused and label, as for Ring.

    Raises:
        RuntimeError: no event loop runs.
        NymphError: as Ring raises it.
    """

    _instead = "it owns an open file; open another AsyncRing, and pass memory on by RingBuffer.export()"

    def __init__(self, entries: int = 256, **options: Any) -> None:
        """Open the ring. See the class."""
        self._loop = asyncio.get_running_loop()
        self.ring = Ring(entries, **options)
        self._core = self.ring._core
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
        """Cancel all operations, and close the ring. Idempotent."""
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
        """Copy all of `src` to `dst`. Args, Returns, Raises: as Ring.copy()."""
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
        """Write `pattern` into `dst` over and over. Args, Returns, Raises: as Ring.fill()."""
        operation = Fill(dst=dst, pattern=pattern, verify=verify, digest=digest, zero_copy=zero_copy)
        return await self.run(operation)

    async def digest(self, *, src: Buffer, zero_copy: bool = False) -> bytes:
        """Hash all of `src` in the driver. Args, Returns, Raises: as Ring.digest()."""
        digest = (await self.run(Hash(src=src, zero_copy=zero_copy))).src_digest
        assert digest is not None
        return digest

    async def compare(self, *, a: Buffer, b: Buffer, zero_copy: bool = False) -> int | None:
        """Find the first byte in which `a` and `b` differ. Args, Returns, Raises: as Ring.compare()."""
        try:
            await self.run(Compare(a=a, b=b, zero_copy=zero_copy))
        except NymphError as e:
            if e.errno != errno.EBADMSG or e.completion is None:
                raise
            return e.completion.bytes_done
        return None

    async def run(self, operation: Operation) -> Completion:
        """Queue an operation, and wait until it has ended.

        Args:
            operation: a Copy, Hash, Fill, Compare or Nop.

        Returns:
            A Completion.

        Raises:
            NymphError: the operation was refused or failed, as Ring.copy() raises it.
        """
        transfer = await self._submit(operation, collectable=False)
        try:
            return await self.result(transfer)
        except asyncio.CancelledError:
            with contextlib.suppress(NymphError):  # it may have ended just now
                transfer.cancel()
            raise

    async def run_many(self, entries: NDArray[np.void]) -> NDArray[np.void]:
        """Queue a NumPy array of entries as room for them comes, and wait until all have ended.

        Args:
            entries: as for Ring.submit_many().

        Returns:
            An array of pynymph.batch.RECORD, in the order of the entries.

        Raises:
            NymphError: an entry was refused. The entries before it go on and hold their buffers. If the task
                is cancelled, all entries do so.
        """
        import numpy as np

        with self._core.lock():
            many, memories = self._core.checked(entries)
        batches: list[Batch] = []
        async with self._turn:
            taken = 0
            while taken < len(many) or not batches:
                try:
                    with self._core.lock():
                        end = taken + self._core.entries
                        batch = self._core.make_batch(many, memories, taken, end, wait=False)
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

    # --- many operations in flight ---

    async def submit(self, operation: Operation) -> Transfer:
        """Queue an operation, once there is room, for result() or completions().

        Args:
            operation: a Copy, Hash, Fill, Compare or Nop.

        Returns:
            A Transfer.

        Raises:
            FullError: ENOSPC, no more completions can wait to be collected.
            NymphError: the operation was refused.
        """
        return await self._submit(operation, collectable=True)

    async def result(self, transfer: Transfer) -> Completion:
        """Wait until an operation of submit() has ended. Returns, Raises: as Transfer.result().

        A task that is cancelled only ends its wait.
        """
        job = transfer._job
        while job.outcome is None:
            ended = self._waiting.get(job.cookie)
            if ended is None:
                ended = self._waiting[job.cookie] = self._loop.create_future()
            await asyncio.shield(ended)
        return transfer.result()

    async def completions(self) -> AsyncIterator[Completion]:
        """Iterate over operations of submit() as they end, as Ring.completions() does.

        `async for` of the ring itself does the same.
        """
        while True:
            with self._core.lock():
                job = self._core.take_ended()
                in_flight = self._core.expects_completions()
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
        job = Job(operation, self._core, collectable=collectable)
        job.on_end = lambda: self._end(job)
        try:
            async with self._turn:
                while not self._try(job):
                    await self._wait_for_room()
        finally:
            self._core.release_refused([job])
        return Transfer(self._core, job)

    def _try(self, job: Job) -> bool:
        with self._core.lock():
            self._core.reap()
            if job.collectable:
                self._core.room_for_completions()
            accepted = self._core.submit_if_room(job)
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
        """Collect records, which the loop has found."""
        with self._core.lock():
            self._core.reap()
            more = bool(self._core.in_flight or self._core.batches)
        self._watch(more)

    def _end(self, job: Job) -> None:
        """Wake the task that waits for a job. The ring calls this with its mutex held."""
        ended = self._waiting.pop(job.cookie, None)
        if ended is not None and not ended.done():
            ended.set_result(None)
        if job.collectable:
            self._ended.set()
