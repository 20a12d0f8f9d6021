# SPDX-License-Identifier: MIT
"""What a ring can be asked to do, and what becomes of it on the way."""

from __future__ import annotations

import errno
import os
import resource
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pynymph.abi import address, ffi, lib
from pynymph.buffer import Memory, RingBuffer, with_bytes
from pynymph.errors import ArgumentError, NymphError, error

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ENTRY = ffi.typeof("struct nymph_entry *")
_ENTRY_SIZE = ffi.sizeof("struct nymph_entry")
_FLAGS = {
    "link": lib.NYMPH_DMA_FLAG_LINK,
    "barrier": lib.NYMPH_DMA_FLAG_BARRIER,
    "verify": lib.NYMPH_DMA_FLAG_VERIFY_HASH,
    "digest": lib.NYMPH_DMA_FLAG_DIGEST_ONLY,
    "zero_copy": lib.NYMPH_DMA_FLAG_ZERO_COPY,
}
_BOTH = lib.NYMPH_DMA_FLAG_VERIFY_HASH | lib.NYMPH_DMA_FLAG_DIGEST_ONLY


@dataclass(frozen=True)
class Completion:
    """How an operation ended. Times are CLOCK_MONOTONIC in ns; digests are BLAKE3-256 or None."""

    cookie: int
    status: int
    """0, or why it failed as a negative errno."""
    bytes_done: int
    """Bytes that reached the destination, were hashed, or were found equal, from the start on."""
    engine: str | None
    """Name of the engine that was last at it, None if none was: several can share a large copy."""
    queued_ns: int
    started_ns: int
    """0 if no engine took it."""
    completed_ns: int
    src_digest: bytes | None
    """Of exactly the bytes sent; advisory with zero_copy: another thread may have changed src meanwhile."""
    dst_digest: bytes | None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What Ring.submit() takes: Copy, Hash, Fill, Compare or Nop. Buffers are as Ring.copy() describes them.

    `link`: if this does not succeed, the operation that is queued next ends with a CanceledError instead of
    being started. `barrier`: starts after all before it have ended, and before any behind it.
    """

    link: bool = False
    barrier: bool = False

    # What the entry has, and the names of its sides: what is read, and then what is written, or read too.
    _opcode: ClassVar[int]
    _src: ClassVar[str | None] = None
    _dst: ClassVar[str | None] = None
    _writes: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Copy(Operation):
    """All of `src` to `dst`; see Ring.copy()."""

    src: Buffer
    dst: Buffer
    verify: bool = False
    digest: bool = False
    zero_copy: bool = False

    _opcode = lib.NYMPH_OP_COPY
    _src, _dst, _writes = "src", "dst", True


@dataclass(frozen=True, kw_only=True)
class Hash(Operation):
    """The digest of `src`, in the src_digest of the Completion; see Ring.digest()."""

    src: Buffer
    zero_copy: bool = False

    _opcode = lib.NYMPH_OP_HASH
    _src = "src"


@dataclass(frozen=True, kw_only=True)
class Fill(Operation):
    """`pattern` over and over into `dst`; see Ring.fill()."""

    dst: Buffer
    pattern: bytes = b"\0"
    verify: bool = False
    digest: bool = False
    zero_copy: bool = False

    _opcode = lib.NYMPH_OP_FILL
    _dst, _writes = "dst", True


@dataclass(frozen=True, kw_only=True)
class Compare(Operation):
    """`a` with `b`. If they differ, that is a VerifyError, and bytes_done is where; see Ring.compare()."""

    a: Buffer
    b: Buffer
    zero_copy: bool = False

    _opcode = lib.NYMPH_OP_COMPARE
    _src, _dst = "a", "b"


@dataclass(frozen=True, kw_only=True)
class Nop(Operation):
    """Nothing. It ends in its turn, so it tells that what was queued before has ended."""

    _opcode = lib.NYMPH_OP_NOP


class Job:
    """An operation on its way: its entry, and the hold on its buffers."""

    cookie = 0
    """The ring gives it one, when it is first submitted."""
    outcome: Completion | NymphError | None = None
    on_end: Callable[[], None] | None = None
    """Called once there is an outcome, by whom it is found, with the ring's mutex held."""
    is_memory = True
    """Whether all its bytes are in memory: else a file may have to be read, which nothing interrupts."""

    def __init__(self, operation: Operation, owner: object, *, collectable: bool = False) -> None:
        if not isinstance(operation, Operation):
            raise ArgumentError(errno.EINVAL, f"{operation!r} is no operation such as Copy(src=..., dst=...)")
        self.collectable = collectable
        """Whether Ring.completions() tells of it."""
        self.operation = type(operation)
        flags = lib.NYMPH_DMA_FLAG_RECORD
        for name, flag in _FLAGS.items():
            if getattr(operation, name, False):
                flags |= flag
        if flags & _BOTH == _BOTH:
            raise ArgumentError(errno.EINVAL, "verify makes both digests; leave out digest")
        # First all checks: what fails here has nothing to let go of.
        src = dst = None
        length = nbytes = 0
        if operation._src:
            src = with_bytes(getattr(operation, operation._src))
            length = nbytes = self._check(operation._src, src, False, owner)
        if operation._dst:
            dst = with_bytes(getattr(operation, operation._dst))
            length = self._check(operation._dst, dst, operation._writes, owner)
        if src is not None and length != nbytes:
            raise ArgumentError(
                errno.EINVAL, f"{operation._src} has {nbytes} bytes, {operation._dst} has {length} bytes"
            )
        if not 1 <= length <= lib.NYMPH_MAX_LENGTH and self._names:
            raise ArgumentError(
                errno.EINVAL,
                f"an operation has 1 to {lib.NYMPH_MAX_LENGTH} bytes, and this one {length}; split it",
            )
        self.entry = entry = ffi.new(_ENTRY)
        entry.size = _ENTRY_SIZE
        entry.opcode = operation._opcode
        entry.flags = flags
        entry.length = length
        self._memories: list[Memory] = []
        self._held: list[Any] = []
        try:
            if src is not None:
                entry.src, entry.src_buffer = self._take(src, False)
            if dst is not None:
                entry.dst, entry.dst_buffer = self._take(dst, operation._writes)
            if isinstance(operation, Fill):
                entry.src = _pattern(operation.pattern)
        except BaseException:
            self.let_go()
            raise

    @property
    def _names(self) -> list[str]:
        return [name for name in (self.operation._src, self.operation._dst) if name]

    def _check(self, name: str, buffer: Buffer, writes: bool, owner: object) -> int:
        """Raise if it can't be that. Returns how many bytes it has."""
        if isinstance(buffer, RingBuffer):
            buffer.check()
            if buffer._owner is not owner:
                raise ArgumentError(
                    errno.EINVAL, f"{name} is a buffer of another ring; make one of this ring's"
                )
            nbytes, readonly = buffer.nbytes, buffer.readonly
        else:
            with memoryview(buffer) as view:
                if not view.c_contiguous:
                    raise ArgumentError(
                        errno.EINVAL, f"{name} is not C-contiguous; give a buffer without gaps"
                    )
                nbytes, readonly = view.nbytes, view.readonly
                # An array of NumPy's has its own memory if there is no base.
                own = isinstance(view.obj, (bytes, bytearray, array)) or getattr(view.obj, "base", 0) is None
                self.is_memory = self.is_memory and own
        if writes and readonly:
            raise ArgumentError(
                errno.EINVAL,
                f"{name} is read-only, or its DLPack does not say that it is not; give a writable buffer",
            )
        return nbytes

    def _take(self, buffer: Buffer, writes: bool) -> tuple[int, int]:
        """Hold it. Returns where it is, as the entry has it: an offset and a handle, or an address and 0."""
        if isinstance(buffer, RingBuffer):
            memory = buffer._memory
            self._memories.append(memory)
            memory.take(self)
            return buffer.offset, memory.handle
        held = ffi.from_buffer(buffer, require_writable=writes)
        self._held.append(held)
        return address(held), 0

    def end(self, outcome: Completion | NymphError) -> None:
        """The driver is done with it, and its buffers."""
        self.outcome = outcome
        self.let_go()
        if self.on_end is not None:
            self.on_end()

    def check(self) -> None:
        """Raise if a buffer was freed since: its handle may be another's by now."""
        for memory in self._memories:
            memory.check()

    def let_go(self) -> None:
        """Of the buffers, at once: their owner may want to resize or close them. Again does nothing."""
        for memory in self._memories:
            memory.let_go(self)
        self._memories.clear()
        for held in self._held:
            ffi.release(held)
        self._held.clear()

    def hints(self) -> dict[int, str]:
        """Why the driver can have refused this."""
        names = " and ".join(self._names)
        written = self.operation._dst if self.operation._writes else None
        needs = [
            f"{name} is not mapped {'writable' if name == written else 'readable'}" for name in self._names
        ]
        hints = {
            errno.EINVAL: f"{names} overlap: give separate ones; if not, reset() was cut short: again",
            errno.EFAULT: f"part of {', or of '.join(needs)}",
            errno.EOPNOTSUPP: f"the driver does not serve this kind of {self.operation.__name__}",
            errno.ENOSPC: "the ring is full; collect completions, or open it with more entries",
            errno.ENOENT: "a buffer was freed meanwhile; make another one",
        }
        if self.entry.flags & lib.NYMPH_DMA_FLAG_ZERO_COPY:
            hints[errno.ENOMEM] = (
                f"zero_copy pins {names}, each huge page of them as a whole, and {memlock()} does not allow "
                "it; raise it (ulimit -l), take less at a time, or do it without zero_copy"
            )
            hints[errno.EOPNOTSUPP] = (
                "zero_copy can't write into a shared mapping of a file; do it without, or use other memory"
            )
        return hints

    def failure(self, completion: Completion) -> NymphError:
        """What to raise of a `completion` that is not success."""
        number = -completion.status
        done = f"after {completion.bytes_done} bytes"
        if number == errno.EBADMSG and self.operation is Compare:
            message = f"a and b differ, first at byte {completion.bytes_done}"
        elif number == errno.EBADMSG:
            assert completion.src_digest is not None and completion.dst_digest is not None
            message = (
                f"dst is not what was sent: BLAKE3 {completion.dst_digest.hex()} instead of "
                f"{completion.src_digest.hex()}; if nothing else wrote to the buffers, distrust the engine"
            )
        elif number == errno.EFAULT:
            names = " or ".join(self._names)
            message = f"the memory of {names} went away {done}; keep it mapped until it has ended"
        elif number == errno.ECANCELED:
            message = f"it was canceled {done}: by cancel(), or because what it was linked to failed"
        else:
            message = f"{os.strerror(number)}, {done}"
        return error(number, message, completion)


def memlock() -> str:
    """The limit that pinned memory runs into, and how much it is now."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    allowed = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
    return f"RLIMIT_MEMLOCK ({allowed} for all pinned) or memory"


def _pattern(pattern: bytes) -> int:
    """The 8 bytes that fill, as a number, the lowest first."""
    if len(pattern) not in (1, 2, 4, 8):
        raise ArgumentError(errno.EINVAL, f"a pattern has 1, 2, 4 or 8 bytes, and this one {len(pattern)}")
    return int.from_bytes(bytes(pattern) * (8 // len(pattern)), "little")
