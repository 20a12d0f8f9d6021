# SPDX-License-Identifier: MIT
"""The buffers of a ring by handle: a table that makes, exports and frees them."""

from __future__ import annotations

import errno
import os
import weakref
from typing import TYPE_CHECKING, Any

from pynymph import abi
from pynymph.abi import address, ffi, lib
from pynymph.buffer import Memory, RingBuffer, checked_length, with_bytes
from pynymph.errors import (
    BUFFER,
    EXPORT,
    ArgumentError,
    Hints,
    NymphError,
    card_hints,
    import_hints,
    memory_hints,
)
from pynymph.integers import INT32_MAX, INT32_MIN, whole
from pynymph.openfile import OpenFile

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BufferTable(OpenFile):
    """Keep the buffers of an open file. Methods that Ring has too are documented there.

    Args:
        device: the path of the driver's device, or "model:".
    """

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.known: dict[int, weakref.ref[Memory]] = {}
        """Memory by its handle."""
        # The garbage collector appends in any thread. Only the first element is removed.
        self.garbage: list[int] = []
        """Handles of collected memory that are still to be freed; the next request frees them."""

    def allocate(self, nbytes: int) -> RingBuffer:
        """Allocate memory of the driver; see Ring.allocate()."""
        nbytes = checked_length(nbytes)
        arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_ALLOC, length=nbytes)
        with self.lock():
            self._make_buffer(arg, memory_hints(f"{nbytes} bytes"))
            try:
                memory = Memory(self.map(nbytes, arg.mmap_offset), False, self, hold=False)
                return self._buffer(memory, arg.handle, nbytes)
            except BaseException:
                self.garbage.append(arg.handle)
                self.free_garbage()
                raise

    def allocate_on_card(self, nbytes: int) -> RingBuffer:
        """Allocate memory of a card; see Ring.allocate_on_card()."""
        nbytes = checked_length(nbytes)
        arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_CARD, length=nbytes)
        with self.lock():
            self._make_buffer(arg, card_hints(nbytes))
            return self._buffer(Memory(None, False, self, hold=False), arg.handle, nbytes)

    def register(self, buffer: Buffer, *, read_only: bool = False) -> RingBuffer:
        """Pin memory of the caller; see Ring.register()."""
        buffer = with_bytes(buffer, "buffer")
        if isinstance(buffer, RingBuffer):
            raise ArgumentError(errno.EINVAL, "buffer is a RingBuffer already; pass it to an operation")
        with memoryview(buffer) as view:
            if view.readonly and not read_only:
                raise ArgumentError(
                    errno.EINVAL,
                    "the buffer is read-only, or its DLPack does not say that it is not; register it with "
                    "read_only=True",
                )
            nbytes = checked_length(view.nbytes)
        memory = Memory(buffer, read_only, self, hold=True)
        with ffi.from_buffer(buffer, require_writable=not read_only) as held:
            arg = abi.new(
                "nymph_buffer",
                op=lib.NYMPH_BUFFER_REGISTER,
                flags=lib.NYMPH_BUFFER_READ_ONLY if read_only else 0,
                addr=address(held),
                length=nbytes,
            )
            try:
                with self.lock():
                    self._make_buffer(arg, memory_hints("the buffer, each huge page of it as a whole"))
                    return self._buffer(memory, arg.handle, nbytes)
            except BaseException:
                memory.end("it was never registered")
                raise

    def import_dmabuf(self, fd: int, *, read_only: bool = False) -> RingBuffer:
        """Import a dma-buf; see Ring.import_dmabuf()."""
        fd = whole(fd, "fd", INT32_MIN, INT32_MAX)
        flags = lib.NYMPH_BUFFER_READ_ONLY if read_only else 0
        arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_IMPORT, flags=flags, fd=fd)
        with self.lock():
            self._make_buffer(arg, import_hints(fd, lib.NYMPH_MAX_LENGTH))
            try:
                try:
                    mapping = abi.map_shared(fd, arg.length, writable=not read_only)
                except OSError:
                    mapping = None
                memory = Memory(mapping, read_only, self, hold=False)
                return self._buffer(memory, arg.handle, arg.length)
            except BaseException:
                self.garbage.append(arg.handle)
                self.free_garbage()
                raise

    def export(self, memory: Memory) -> int:
        """Export memory as a dma-buf; see RingBuffer.export(). Returns a file descriptor."""
        arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_EXPORT, handle=memory.handle)
        with self.lock():
            memory.check()
            self.request(abi.NYMPH_IOC_BUFFER, arg, EXPORT)
        return int(arg.fd)

    def free(self, memory: Memory) -> None:
        """Free the handle of memory. Idempotent."""
        with self.lock():
            if memory.gone is None:
                # In this order: Ctrl-C can come anywhere, and a second free could be of another's handle.
                self.garbage.append(memory.handle)
                memory.end("it was freed")
            self.free_garbage()

    def free_later(self, handle: int) -> None:
        """Free a handle at once if the ring is not in use, else with the next request.

        The garbage collector calls this at any point of any thread, even while the thread holds the mutex.
        """
        self.garbage.append(handle)
        if os.getpid() != self.pid or self.mutex.is_mine or not self.mutex.acquire(blocking=False):
            return
        try:
            if self.file is not None:
                self.free_garbage()
        finally:
            self.mutex.release()

    # Everything below is called with the mutex held.

    def request(self, number: int, arg: Any = None, hints: Hints | None = None) -> None:
        """Free garbage, then make a request.

        Args:
            number: the number of the request.
            arg: its struct.
            hints: messages for the errors of the request.

        Raises:
            NymphError: the driver refused the request.
        """
        if self.garbage:
            self.free_garbage()
        self.ioctl(number, arg, hints)

    def free_garbage(self) -> None:
        """Free the handles of collected memory."""
        while self.garbage:
            handle = self.garbage[0]
            try:
                self.ioctl(abi.NYMPH_IOC_BUFFER, _free(handle))
            except NymphError as e:
                # The handle was freed before Ctrl-C came, or is gone with a ring that reset() did not set
                # up again. It is no other buffer's: garbage is freed before a buffer is made.
                if e.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
            self.known.pop(handle, None)
            del self.garbage[0]

    def end_memories(self, why: str) -> None:
        """End all memory, which the driver has released. `why`: the reason, for errors."""
        for known in self.known.values():
            if (memory := known()) is not None:
                memory.end(why)
        self.known.clear()
        self.garbage.clear()

    def _make_buffer(self, arg: Any, hints: Hints) -> None:
        self.request(abi.NYMPH_IOC_BUFFER, arg, BUFFER | hints)

    def _buffer(self, memory: Memory, handle: int, nbytes: int) -> RingBuffer:
        memory.handle = handle
        self.known[handle] = weakref.ref(memory)
        return RingBuffer(memory, 0, nbytes, self)


def _free(handle: int) -> Any:
    return abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_FREE, handle=handle)
