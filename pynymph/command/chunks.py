# SPDX-License-Identifier: MIT
"""Chunks of files on their way through a ring: where they come from, holes between them, and the ring."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pynymph.command.terminal import Failure, named
from pynymph.errors import NymphError
from pynymph.operation import Copy, Hash
from pynymph.ring import Ring
from pynymph.state import Completion
from pynymph.transfer import Transfer

if TYPE_CHECKING:
    from pynymph.evidence import Log, Part

CHUNK = 512 << 10
SLOTS = 4
"""Chunks in flight: with source and target they take half of the default RLIMIT_MEMLOCK."""

AGAIN = "the same command goes on from there"

Chunk = tuple[int, memoryview, bytes]
Chunks = contextlib.closing[Generator[Chunk]]
Read = Callable[[memoryview, int], int]
"""Fills memory from an offset of a file on, and returns how many bytes there were."""


@dataclass
class Source:
    """An open file to copy from."""

    fd: int
    name: str
    found: os.stat_result
    stream: bool
    """Whether it is read from where it stands on: a pipe, or standard input."""

    @property
    def regular(self) -> bool:
        """Whether it is a file whose size and time are told."""
        return not self.stream and stat.S_ISREG(self.found.st_mode)

    def read(self, view: memoryview, at: int) -> int:
        """Fill memory, from offset `at` on; less only at the end."""
        done = 0
        with about(self.name):
            while done < len(view):
                rest = [view[done:]]
                n = os.readv(self.fd, rest) if self.stream else os.preadv(self.fd, rest, at + done)
                if not n:
                    break
                done += n
        return done

    def end(self) -> int:
        """Return how many bytes there are; 0 where nobody knows."""
        if self.stream:
            return 0
        return os.fstat(self.fd).st_size if self.regular else os.lseek(self.fd, 0, os.SEEK_END)

    def changed(self) -> bool:
        """Whether it is another than it was."""
        return self.regular and stamp(os.fstat(self.fd)) != stamp(self.found)


class Conveyor:
    """Move chunks through a ring.

    Args:
        ring: the ring.
        log: what records it, or None.
    """

    def __init__(self, ring: Ring, log: Log | None = None) -> None:
        self._ring = ring
        buffers = [(ring.allocate(CHUNK), ring.allocate(CHUNK)) for _ in range(SLOTS)]
        self._slots = [(src, dst, src.view, dst.view) for src, dst in buffers]
        self._log = log
        self.reached = 0
        """End of the last chunk that ended, in bytes of its file."""
        self.engines: set[str] = set()
        """Those that moved or hashed something."""

    def copy(self, read: Read, offsets: Iterable[int], parts: list[Part]) -> Chunks:
        """Yield (offset, what arrived, digest of what was sent), until `read` or `offsets` ends.

        With a log, `parts` gets each chunk as evidence has it, also one that failed.
        """
        return contextlib.closing(self._run(read, offsets, parts, hash_only=False))

    def hash(self, read: Read, offsets: Iterable[int], parts: list[Part]) -> Chunks:
        """Yield (offset, what was read, its digest). `parts`: as for copy()."""
        return contextlib.closing(self._run(read, offsets, parts, hash_only=True))

    def _run(
        self, read: Read, offsets: Iterable[int], parts: list[Part], *, hash_only: bool
    ) -> Generator[Chunk]:
        todo, free, flying = iter(offsets), deque(self._slots), deque[Any]()
        self.reached = 0
        try:
            while True:
                while free and (at := next(todo, None)) is not None:
                    src, dst, view, _ = slot = free.popleft()
                    if not (nbytes := read(view, at)):
                        todo = iter(())
                        break
                    if nbytes < CHUNK:
                        src, dst = src[:nbytes], dst[:nbytes]
                    moved = Hash(src=src) if hash_only else Copy(src=src, dst=dst, verify=True)
                    transfer = self._ring.submit(moved)
                    flying.append((at, nbytes, slot, transfer))
                if not flying:
                    return
                at, nbytes, slot, transfer = flying.popleft()
                self.reached = at + nbytes
                done = self._ended(at, transfer, parts)
                assert done.src_digest is not None
                self.engines.add(done.engine or "")
                yield at, slot[2 if hash_only else 3][:nbytes], done.src_digest
                free.append(slot)
        finally:  # the slots are free for the next file
            for *_, transfer in flying:
                with contextlib.suppress(NymphError):
                    transfer.result()

    def _ended(self, at: int, transfer: Transfer, parts: list[Part]) -> Completion:
        """Wait for the chunk at an offset, and note it."""
        done: Completion | None = None
        try:
            done = transfer.result()
        except NymphError as error:
            done = error.completion
            raise
        finally:
            if self._log is not None and done is not None:
                parts.append(self._log.part(at, done))
        return done


# --- files ---


@contextlib.contextmanager
def about(path: str, *, part: bool = False) -> Iterator[None]:
    """Have errors name the file that they are about, and say what helps where a disk is full.

    Args:
        path: the file.
        part: whether it is a part that the same command goes on with.
    """
    try:
        yield
    except BrokenPipeError:
        raise Failure(f"{named(path)}: nobody reads it any more") from None
    except OSError as error:
        reason = error.strerror
        if part and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"{reason}; make room, and {AGAIN}"
        raise OSError(error.errno, reason, path) from None


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """Open a file, and yield its descriptor."""
    with about(path):
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def stamp(found: os.stat_result) -> tuple[int, int]:
    """Return what changes when a file is written: its size, and its time in ns."""
    return found.st_size, found.st_mtime_ns


def write_at(fd: int, view: memoryview, at: int) -> int:
    """Write all of `view` to offset `at`, and return how many bytes that is."""
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], at + done)
    return done


def write(fd: int, view: memoryview) -> int:
    """Write all of `view`, and return how many bytes that is."""
    done = 0
    while done < len(view):
        done += os.write(fd, view[done:])
    return done


def hash_zeros(hasher: Any, nbytes: int) -> None:
    """Hash a hole of `nbytes`."""
    zeros = bytes(min(nbytes, 8 << 20))
    while nbytes > 0:
        hasher.update(zeros[:nbytes])
        nbytes -= len(zeros)


# --- holes ---


class Spans:
    """Where a file has data, and where holes. The file system is asked once for each."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # There is a hole from the first to the second, and data from there to the third.
        self._hole = self._data = self._end = 0

    def data(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the spans from `begin` to `end` that are no holes."""
        while begin < end:
            if not self._hole <= begin < self._end:
                self._ask(begin)
            start, stop = max(begin, self._data), min(self._end, end)
            if start >= end:
                return
            yield start, stop
            begin = stop

    def holds_data(self, begin: int, end: int) -> bool:
        """Tell whether a span is more than a hole."""
        return next(self.data(begin, end), None) is not None

    def offsets(self, end: int, had: int) -> Iterator[int]:
        """Yield the offsets of chunks that are no holes, and of all below `had`, where the part has some."""
        for at in range(0, end, CHUNK):
            if at < had or self.holds_data(at, min(at + CHUNK, end)):
                yield at

    def _ask(self, at: int) -> None:
        self._hole = at
        try:
            self._data = os.lseek(self._fd, at, os.SEEK_DATA)
            self._end = os.lseek(self._fd, self._data, os.SEEK_HOLE)
        except OSError as error:  # ENXIO: a hole up to the end; else a file system that knows no holes
            self._data = sys.maxsize if error.errno == errno.ENXIO else at
            self._end = sys.maxsize
