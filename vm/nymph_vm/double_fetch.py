# SPDX-License-Identifier: MIT
"""The gate against double fetches, in the guest: no sanitizer of the kernel knows them.

What the kernel reads twice, another thread of the caller's can have changed in between. So an argument is
laid across two pages that arrive on demand (userfaultfd). Once the kernel asks for the second one, the first
is taken away again: whoever asks to read that now, reads it for the second time. Nothing depends on chance
or time.

Two reads before the second page are not found, so try every position of the argument.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import struct
import threading
from types import TracebackType
from typing import Self

PAGE = mmap.PAGESIZE
WORD = 8  # what the kernel reads at once must not lie across the pages, or it asks for both again

# From linux/userfaultfd.h
SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
API, EXACT_ADDRESS = 0xAA, 1 << 11
IOC_API, IOC_REGISTER, IOC_COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03
REGISTER_MISSING = 1
MESSAGE, FLAG_WRITE = struct.Struct("=B7xQQ8x"), 1


class DoubleFetchError(AssertionError):
    """The kernel read an argument twice."""


class Argument:
    """Memory of which the first `split` bytes are on one page, the rest on the next. For root alone.

    Hand `address` to the kernel inside a with statement, which fails if it reads the memory twice; there,
    only the kernel may touch it. `later`: what is to be there when it is read for the second time.
    """

    def __init__(self, content: bytes, split: int, later: bytes | None = None) -> None:
        assert 0 < split < len(content) and split % WORD == 0 and len(content) - split <= PAGE
        self._start = PAGE - split
        self._length = len(content)
        self._memory, self._base = _map(b"")
        self._sources = [_map(bytes(self._start) + each) for each in (content, later or content)]
        self.address = self._base + self._start

    def content(self) -> bytes:
        """What is there now. Not inside the with statement."""
        return self._memory[self._start : self._start + self._length]

    def __enter__(self) -> Self:
        self._fetched = self._taken = False
        self._twice: list[int] = []
        libc = ctypes.CDLL(None, use_errno=True)
        self._faults: int = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._faults < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self._faults, IOC_API, struct.pack("=QQQ", API, EXACT_ADDRESS, 0))
        where = struct.pack("=QQQQ", self._base, 2 * PAGE, REGISTER_MISSING, 0)
        fcntl.ioctl(self._faults, IOC_REGISTER, where)
        self._end = os.eventfd(0)
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.eventfd_write(self._end, 1)
        self._server.join()
        for page in (0, 1):
            self._arrive(page)
        os.close(self._end)
        os.close(self._faults)
        if self._twice and error is None:
            at = ", ".join(str(address - self.address) for address in self._twice)
            raise DoubleFetchError(f"the kernel fetched its argument twice: byte {at} of {self._length}")

    def _serve(self) -> None:
        """Answer the page faults."""
        while self._faults in select.select([self._faults, self._end], [], [])[0]:
            _, flags, address = MESSAGE.unpack(os.read(self._faults, MESSAGE.size))
            page = (address - self._base) // PAGE
            if not flags & FLAG_WRITE:
                self._note_read(page, address)
            self._arrive(page)

    def _note_read(self, page: int, address: int) -> None:
        if page == 0:
            if self._taken:
                self._twice.append(address)
            self._fetched = True
        elif self._fetched:
            self._memory.madvise(mmap.MADV_DONTNEED, 0, PAGE)
            self._taken = True

    def _arrive(self, page: int) -> None:
        """Let a page be there, if it is not."""
        _, source = self._sources[self._taken]
        copy = struct.pack("=QQQQq", self._base + page * PAGE, source + page * PAGE, PAGE, 0, 0)
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(self._faults, IOC_COPY, copy)


def _map(content: bytes) -> tuple[mmap.mmap, int]:
    """Two pages with that content, and their address; without content they are not touched."""
    memory = mmap.mmap(-1, 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if content:
        memory.write(content)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))
