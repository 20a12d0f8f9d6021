# SPDX-License-Identifier: MIT
"""Chunks of files on their way through a ring: where they come from, holes between them, and the ring."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
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
        self._log = log
        self._slots = [(ring.allocate(CHUNK), ring.allocate(CHUNK)) for _ in range(SLOTS)]
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
                    src, dst = slot = free.popleft()
                    if not (nbytes := read(src.view, at)):
                        todo = iter(())
                        break
                    part = src[:nbytes]
                    moved = Copy(src=part, dst=dst[:nbytes], verify=True)
                    transfer = self._ring.submit(Hash(src=part) if hash_only else moved)
                    flying.append((at, nbytes, slot, transfer))
                if not flying:
                    return
                at, nbytes, slot, transfer = flying.popleft()
                self.reached = at + nbytes
                done = self._ended(at, transfer, parts)
                assert done.src_digest is not None
                self.engines.add(done.engine or "")
                yield at, slot[0 if hash_only else 1].view[:nbytes], done.src_digest
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


def data(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of a file that are no holes."""
    while begin < end:
        try:
            start = os.lseek(fd, begin, os.SEEK_DATA)
            stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a file system that knows no holes
                yield begin, end
            return
        if start >= end:
            return
        yield start, stop
        begin = stop


def holds_data(fd: int, begin: int, end: int) -> bool:
    """Tell whether a span of a file is more than a hole."""
    return next(data(fd, begin, end), None) is not None


def offsets_of_data(fd: int, end: int, had: int) -> Iterator[int]:
    """Yield the offsets of chunks that are no holes, and of all below `had`, where the part has some."""
    for at in range(0, end, CHUNK):
        if at < had or holds_data(fd, at, min(at + CHUNK, end)):
            yield at
