# SPDX-License-Identifier: MIT
"""Operations of a ring: their descriptions, and jobs that the driver runs."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pynymph.abi import address, ffi, lib
from pynymph.buffer import Memory, RingBuffer, with_bytes
from pynymph.errors import ArgumentError, ArgumentTypeError, Hints, NymphError, failure, operation_hints
from pynymph.integers import shown
from pynymph.owner import Owner
from pynymph.state import Completion

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


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Describe one operation for Ring.submit(): a Copy, Hash, Fill, Compare or Nop.

    Buffers and flags are those of the Ring method of the same name.

    Args:
        link: if this operation fails, end the next queued one with a CanceledError.
        barrier: start after all operations queued before have ended, and before any queued later.
    """

    link: bool = False
    barrier: bool = False

    # The opcode of the entry, the names of its sides, and whether `_dst` is written.
    _opcode: ClassVar[int]
    _src: ClassVar[str | None] = None
    _dst: ClassVar[str | None] = None
    _writes: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Copy(Operation):
    """Copy all of `src` to `dst`; see Ring.copy()."""

    src: Buffer
    dst: Buffer
    verify: bool = False
    digest: bool = False
    zero_copy: bool = False

    _opcode = lib.NYMPH_OP_COPY
    _src, _dst, _writes = "src", "dst", True


@dataclass(frozen=True, kw_only=True)
class Hash(Operation):
    """Hash all of `src`, into the src_digest of the Completion; see Ring.digest()."""

    src: Buffer
    zero_copy: bool = False

    _opcode = lib.NYMPH_OP_HASH
    _src = "src"


@dataclass(frozen=True, kw_only=True)
class Fill(Operation):
    """Write `pattern` into `dst` over and over; see Ring.fill()."""

    dst: Buffer
    pattern: bytes = b"\0"
    verify: bool = False
    digest: bool = False
    zero_copy: bool = False

    _opcode = lib.NYMPH_OP_FILL
    _dst, _writes = "dst", True


@dataclass(frozen=True, kw_only=True)
class Compare(Operation):
    """Compare `a` with `b`.

    A difference is a VerifyError whose bytes_done is its offset; see Ring.compare().
    """

    a: Buffer
    b: Buffer
    zero_copy: bool = False

    _opcode = lib.NYMPH_OP_COMPARE
    _src, _dst = "a", "b"


@dataclass(frozen=True, kw_only=True)
class Nop(Operation):
    """Do nothing. A Nop ends after all operations that were queued before it."""

    _opcode = lib.NYMPH_OP_NOP


class Job(Owner):
    """Make the entry of an operation, and hold its buffers until the driver is done with them.

    Args:
        operation: the operation.
        table: the buffer table of the ring that will run it.
        collectable: whether Ring.completions() returns it.

    Raises:
        ArgumentError: EINVAL, the operation can't be served; the message says why.
    """

    cookie = 0
    """Number that the ring sets when it first submits the job."""
    outcome: Completion | NymphError | None = None
    on_end: Callable[[], None] | None = None
    """Callback for the outcome, called with the ring's mutex held."""
    is_memory = True
    """Whether all bytes are in memory. Else the driver may read a file, which no signal interrupts."""

    def __init__(self, operation: Operation, table: object, *, collectable: bool = False) -> None:
        if not isinstance(operation, Operation):
            message = f"{operation!r} is no operation; give one, such as Copy(src=..., dst=...)"
            raise ArgumentError(errno.EINVAL, message)
        self.collectable = collectable
        """Whether Ring.completions() returns it."""
        self.operation = type(operation)
        flags = lib.NYMPH_DMA_FLAG_RECORD
        for name, flag in _FLAGS.items():
            if getattr(operation, name, False):
                flags |= flag
        if flags & _BOTH == _BOTH:
            raise ArgumentError(errno.EINVAL, "verify makes both digests; leave out digest")
        # All checks come first: if one fails, there is nothing to release.
        src = dst = None
        length = nbytes = 0
        if operation._src:
            src = with_bytes(getattr(operation, operation._src), operation._src)
            length = nbytes = self._check(operation._src, src, False, table)
        if operation._dst:
            dst = with_bytes(getattr(operation, operation._dst), operation._dst)
            length = self._check(operation._dst, dst, operation._writes, table)
        if src is not None and length != nbytes:
            sizes = f"{operation._src} has {nbytes} bytes, {operation._dst} has {length} bytes"
            raise ArgumentError(errno.EINVAL, f"{sizes}; give buffers of one size")
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
            self.release()
            raise

    @property
    def _names(self) -> list[str]:
        return [name for name in (self.operation._src, self.operation._dst) if name]

    def _check(self, name: str, buffer: Buffer, writes: bool, table: object) -> int:
        """Check one side of the operation.

        Args:
            name: name of the side, for errors.
            buffer: its buffer.
            writes: whether the operation writes to it.
            table: the ring's buffer table.

        Returns:
            The number of bytes.

        Raises:
            ArgumentError: EINVAL, the buffer can't be that side.
            ClosedError: EBADF, the buffer was freed.
        """
        if isinstance(buffer, RingBuffer):
            buffer.check()
            if buffer._table is not table:
                raise ArgumentError(
                    errno.EINVAL, f"{name} is a buffer of another ring; make one with this ring"
                )
            nbytes, readonly = buffer.nbytes, buffer.readonly
        else:
            with memoryview(buffer) as view:
                nbytes, readonly = view.nbytes, view.readonly
                # A NumPy array without a base has its own memory.
                own = isinstance(view.obj, (bytes, bytearray, array)) or getattr(view.obj, "base", 0) is None
                self.is_memory = self.is_memory and own
        if writes and readonly:
            raise ArgumentError(
                errno.EINVAL,
                f"{name} is read-only, or its DLPack does not say that it is not; give a writable buffer",
            )
        return nbytes

    def _take(self, buffer: Buffer, writes: bool) -> tuple[int, int]:
        """Hold a buffer. Returns its offset and its handle, or its address and 0, for the entry."""
        if isinstance(buffer, RingBuffer):
            memory = buffer._memory
            self._memories.append(memory)
            memory.take(self)
            return buffer.offset, memory.handle
        held = ffi.from_buffer(buffer, require_writable=writes)
        self._held.append(held)
        return address(held), 0

    def end(self, outcome: Completion | NymphError) -> None:
        """Note how the operation ended. The driver does not use its buffers any more."""
        self.outcome = outcome
        self.release()
        if self.on_end is not None:
            self.on_end()

    def check(self) -> None:
        """Raise ClosedError if a buffer was freed: its handle may be another buffer's by now."""
        for memory in self._memories:
            memory.check()

    @property
    def holds_buffers(self) -> bool:
        """Whether not all of them are released yet."""
        return bool(self._memories or self._held)

    def release(self) -> None:
        """Release the buffers, so that their owner can resize or close them. Idempotent."""
        for memory in self._memories:
            memory.release(self)
        self._memories.clear()
        for held in self._held:
            ffi.release(held)
        self._held.clear()

    def hints(self) -> Hints:
        """Return messages for the errors with which the driver can refuse the operation."""
        written = self.operation._dst if self.operation._writes else None
        zero_copy = bool(self.entry.flags & lib.NYMPH_DMA_FLAG_ZERO_COPY)
        return operation_hints(self.operation.__name__, self._names, written, zero_copy)

    def failure(self, completion: Completion) -> NymphError:
        """Make the error of a `completion` whose status is not 0."""
        return failure(self.operation.__name__, self._names, completion)


def _pattern(pattern: Buffer) -> int:
    """Repeat a pattern to 8 bytes, and return them as a little-endian number.

    `pattern`: a buffer of 1, 2, 4 or 8 bytes, such as bytes or a NumPy number.
    """
    try:
        with memoryview(pattern) as view:
            octets = bytes(view)
    except TypeError:
        message = f"pattern is {shown(pattern)}; give 1, 2, 4 or 8 bytes, such as (7).to_bytes(4, 'little')"
        raise ArgumentTypeError(errno.EINVAL, message) from None
    if len(octets) not in (1, 2, 4, 8):
        raise ArgumentError(
            errno.EINVAL, f"a pattern has 1, 2, 4 or 8 bytes; give so many, not {len(octets)}"
        )
    return int.from_bytes(octets * (8 // len(octets)), "little")
