# SPDX-License-Identifier: MIT
"""Arrays of entries, for Ring.submit_many() and Ring.run_many().

This module needs NumPy; the rest of a ring does not.
"""

from __future__ import annotations

import errno
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pynymph.abi import address, ffi, lib
from pynymph.buffer import Memory, RingBuffer
from pynymph.errors import ArgumentError, ArgumentTypeError, Hints, NymphError, entry_hints
from pynymph.integers import seconds, shown, whole_array
from pynymph.owner import Owner

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def _dtype(struct: str) -> np.dtype[np.void]:
    """Make the NumPy dtype of a struct of the header."""
    kind = ffi.typeof(f"struct {struct}")
    names, formats, offsets = [], [], []
    for name, field in kind.fields:
        is_array = field.type.kind == "array"
        item = field.type.item if is_array else field.type
        letter = "i" if item.cname in ("int", "long", "long long", "short") else "u"
        code = f"{letter}{ffi.sizeof(item)}"
        names.append(name)
        formats.append((code, field.type.length) if is_array else code)
        offsets.append(field.offset)
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": ffi.sizeof(kind)}
    return np.dtype(layout)  # type: ignore[call-overload,no-any-return]


ENTRY = _dtype("nymph_entry")
"""struct nymph_entry."""
RECORD = _dtype("nymph_record")
"""struct nymph_record."""

_ENTRY_SIZE = ENTRY.itemsize
_RECORD_SIZE = RECORD.itemsize


def _needs(*opcodes: int) -> NDArray[np.bool_]:
    """Make an array of shape (65536,) that is true at each opcode given."""
    table = np.zeros(1 << 16, np.bool_)
    table[list(opcodes)] = True
    return table


_NEEDS_SRC = _needs(lib.NYMPH_OP_COPY, lib.NYMPH_OP_HASH, lib.NYMPH_OP_COMPARE)
_NEEDS_DST = _needs(lib.NYMPH_OP_COPY, lib.NYMPH_OP_FILL, lib.NYMPH_OP_COMPARE)


def copies(
    src: RingBuffer,
    dst: RingBuffer,
    *,
    src_at: ArrayLike,
    dst_at: ArrayLike,
    length: ArrayLike,
    verify: bool = False,
    digest: bool = False,
) -> NDArray[np.void]:
    """Make entries that copy parts of one buffer into parts of another.

    Args:
        src: a RingBuffer.
        dst: a RingBuffer of the same ring.
        src_at: offsets in `src`, in bytes: a whole number, or an array of whole numbers of any type.
        dst_at: offsets in `dst`, in bytes.
        length: bytes of each copy. NumPy broadcasts `src_at`, `dst_at` and `length` to one length, n.
        verify: as for Ring.copy().
        digest: as for Ring.copy().

    Returns:
        An array of ENTRY, of shape (n,).

    Raises:
        ArgumentError: EINVAL, a copy is not inside its buffers, or the buffers are of two rings; the message
            names the first.
        ClosedError: EBADF, a buffer was freed.
    """
    if verify and digest:
        raise ArgumentError(errno.EINVAL, "verify makes both digests; leave out digest")
    for name, buffer in (("src", src), ("dst", dst)):
        if not isinstance(buffer, RingBuffer):
            message = f"{name} is {shown(buffer)}; give a RingBuffer, such as ring.allocate() returns"
            raise ArgumentTypeError(errno.EINVAL, message)
    if src._table is not dst._table:
        raise ArgumentError(errno.EINVAL, "src and dst are buffers of two rings; give two of one ring")
    numbers = {"src_at": src_at, "dst_at": dst_at, "length": length}
    wide = [whole_array(each, name) for name, each in numbers.items()]
    try:
        starts, ends, lengths = np.broadcast_arrays(*(np.atleast_1d(each) for each in wide))
    except ValueError:
        message = "src_at, dst_at and length are not of one length; give one length, or numbers"
        raise ArgumentError(errno.EINVAL, message) from None
    if starts.ndim != 1:
        message = f"src_at, dst_at and length have {starts.ndim} dimensions; give one"
        raise ArgumentError(errno.EINVAL, message)
    for name, at, buffer in (("src_at", starts, src), ("dst_at", ends, dst)):
        buffer.check()
        outside = (lengths < 1) | (lengths > buffer.nbytes)
        outside |= (at < 0) | (at > buffer.nbytes - np.where(outside, 0, lengths))
        if outside.any():
            i = int(outside.argmax())
            raise ArgumentError(
                errno.EINVAL,
                f"{name}[{i}]: {lengths[i]} bytes at {at[i]} are not in a buffer of {buffer.nbytes} "
                "bytes; give a range inside it",
            )
    entries = np.zeros(len(starts), ENTRY)
    entries["size"] = ENTRY.itemsize
    entries["opcode"] = lib.NYMPH_OP_COPY
    if verify:
        entries["flags"] = lib.NYMPH_DMA_FLAG_VERIFY_HASH
    elif digest:
        entries["flags"] = lib.NYMPH_DMA_FLAG_DIGEST_ONLY
    entries["length"] = lengths
    for side, at, buffer in (("src", starts, src), ("dst", ends, dst)):
        entries[side] = at + buffer.offset
        entries[f"{side}_buffer"] = buffer._memory.handle
    return entries


def check(entries: object) -> None:
    """Raise ArgumentError if `entries` is no array of ENTRY with one dimension."""
    if not isinstance(entries, np.ndarray) or entries.dtype != ENTRY or entries.ndim != 1:
        message = "entries is no array of pynymph.batch.ENTRY in NumPy with one dimension; copies() makes one"
        raise ArgumentError(errno.EINVAL, message)


class _Waiter(Protocol):
    """The part of a ring's core that a batch uses."""

    def batch_result(
        self, batch: Batch, timeout: float | None, deadline: float | None
    ) -> NDArray[np.void]: ...


class Checked(Owner):
    """Copy entries for the driver, set their cookies, and look up the memory that they name.

    Args:
        entries: an array of ENTRY, of shape (n,).
        first_cookie: cookie of the first entry; each next entry has one more.
        known: the memory of the ring by handle.

    Raises:
        ArgumentError: EINVAL, an entry names no memory of the ring.
    """

    def __init__(
        self, entries: NDArray[np.void], first_cookie: int, known: dict[int, weakref.ref[Memory]]
    ) -> None:
        check(entries)
        n = len(entries)
        self._given = entries.tobytes()
        # As bytes: NumPy copies structs field by field.
        copy = bytearray(self._given)
        self.address = address(ffi.from_buffer(copy))
        self.entries: NDArray[np.void] = np.ndarray(n, ENTRY, copy)
        self.first_cookie = first_cookie
        self.entries["flags"] |= lib.NYMPH_DMA_FLAG_RECORD
        self.entries["cookie"] = np.arange(first_cookie, first_cookie + n, dtype=np.uint64)
        # Weak references: a batch that is kept for reuse keeps no buffer alive.
        self._memories = {handle: known.get(handle) for handle in sorted(self._handles())}

    def __len__(self) -> int:
        return len(self.entries)

    def is_of(self, entries: NDArray[np.void]) -> bool:
        """Tell whether `entries` equals the array that this was made of."""
        check(entries)
        return entries.tobytes() == self._given

    def memories(self) -> list[Memory]:
        """Return the memory that the entries name.

        While the caller has this list, no other memory gets the handles.

        Raises:
            ArgumentError: EINVAL, a buffer was freed.
        """
        found = []
        for handle, known in self._memories.items():
            memory = None if known is None else known()
            if memory is None or memory.gone is not None:
                raise _no_buffer(handle)
            found.append(memory)
        return found

    def batch(self, core: _Waiter, first: int, end: int) -> Batch:
        """Make a batch of the entries from `first` to `end`."""
        return Batch(core, self, first, end)

    def _handles(self) -> set[int]:
        found = set[int]()
        opcodes = self.entries["opcode"]
        for side, needs in (("src", _NEEDS_SRC), ("dst", _NEEDS_DST)):
            named = self.entries[f"{side}_buffer"]
            if not named.all():
                nameless = needs[opcodes] & (named == 0)
                if nameless.any():
                    raise ArgumentError(
                        errno.EINVAL,
                        f"entry {nameless.argmax()} has no {side}_buffer; give the handle of a RingBuffer",
                    )
            raw = named.tobytes()
            is_one = raw == raw[: named.itemsize] * len(named)
            found.update(named[:1].tolist() if is_one else named.tolist())
        return found - {0}


def _no_buffer(handle: int) -> ArgumentError:
    return ArgumentError(
        errno.EINVAL, f"no buffer of this ring has the handle {handle}; make the entries again"
    )


class Batch(Owner):
    """Wait for entries that Ring.submit_many() has queued. len() is the number of entries accepted."""

    _instead = "it is in flight in one ring; pass on its result(), an array"
    done = False
    """Whether the ring knows that all entries have ended, or that it was closed or reset before."""
    error: NymphError | None = None
    on_end: Callable[[], None] | None = None
    _records: NDArray[np.void] | None = None  # until the first
    _memories: Sequence[Memory] = ()  # that it holds

    def __init__(self, core: _Waiter, many: Checked, first: int, end: int) -> None:
        self._core = core
        self._many = many
        self.first = first
        """Index of the first entry in the array that was given."""
        self.total = len(many.entries)
        """Number of entries in that array."""
        self._len = min(end, self.total) - first
        self._first_cookie = many.first_cookie + first

    def __len__(self) -> int:
        return self._len

    def __repr__(self) -> str:
        return f"<pynymph.batch.Batch of {len(self)} entries, {self.ended} of them ended>"

    @property
    def entries(self) -> NDArray[np.void]:
        """The entries with their cookies: an array of ENTRY, of shape (len(self),)."""
        return self._many.entries[self.first : self.first + self._len]

    @property
    def ended(self) -> int:
        """Number of entries that the ring knows to have ended. Reading this does not ask the driver."""
        return 0 if self._records is None else int(np.count_nonzero(self._records["size"]))

    @property
    def records(self) -> NDArray[np.void]:
        """The records: an array of RECORD, of shape (len(self),), with zeros for entries in flight."""
        return np.zeros(self._len, RECORD) if self._records is None else self._records

    def result(self, timeout: float | None = None) -> NDArray[np.void]:
        """Wait until all entries have ended.

        Args:
            timeout: seconds to wait; None waits for ever. The entries go on after the timeout.

        Returns:
            An array of RECORD, of shape (len(self),), in the order of the entries. `status` is 0 or a
            negative errno.

        Raises:
            RingTimeoutError: ETIMEDOUT, `timeout` seconds have passed.
            ClosedError: EBADF, the ring was closed first.
            CanceledError: ECANCELED, the ring was reset first.
        """
        timeout = seconds(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._core.batch_result(self, timeout, deadline)

    # Only the ring uses everything below, with its mutex held.

    @property
    def address(self) -> int:
        """The address of the first entry."""
        return self._many.address + self.first * _ENTRY_SIZE

    def hold(self, memories: list[Memory]) -> None:
        """Hold the buffers. Raises ArgumentError if one was freed."""
        self._memories = memories
        for memory in memories:
            memory.take(self)
            if memory.gone is not None:
                self._release()
                raise _no_buffer(memory.handle)

    def _release(self) -> None:
        for memory in self._memories:
            memory.release(self)
        self._memories = ()

    def hints(self) -> Hints:
        """Return messages for the errors with which the driver can refuse the first entry."""
        return entry_hints(f"entry {self.first}")

    def cut(self, accepted: int) -> None:
        """Note that the driver took only the first `accepted` entries."""
        self._len = accepted
        if self._records is not None:
            self._records = self._records[:accepted]

    def take_all(self, records: Any, n: int) -> bool:
        """Keep `n` records if they are exactly those of all entries, which is the usual case.

        A ring retires entries in order, so all records between a batch's first and its last belong to it.

        Returns:
            Whether the records were kept.
        """
        first = self._first_cookie
        if n != self._len or records[0].cookie != first or records[n - 1].cookie != first + n - 1:
            return False
        self._records = np.frombuffer(bytearray(ffi.buffer(records, n * _RECORD_SIZE)), RECORD)
        return True

    def take(self, records: NDArray[np.void]) -> NDArray[np.void]:
        """Keep the records of this batch, and return the others."""
        if self._records is None:
            self._records = np.zeros(len(self), RECORD)
        at = records["cookie"] - np.uint64(self._first_cookie)
        own = at < len(self)
        self._records[at[own]] = records[own]
        return records[~own]

    def end(self, error: NymphError | None = None) -> None:
        """Note that the driver does not use the entries and their buffers any more.

        Idempotent, so that a caller can repeat it after Ctrl-C. `error`: what ended the batch, or None.
        """
        self.error = error
        self._release()
        self.done = True
        if self.on_end is not None:
            self.on_end()
