# SPDX-License-Identifier: MIT
"""Many entries at once, as NumPy arrays: what Ring.submit_many() takes, and what comes of it.

This module needs NumPy; nothing else of pynymph does.
"""

from __future__ import annotations

import errno
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pynymph.abi import address, ffi, lib
from pynymph.buffer import Memory, RingBuffer
from pynymph.errors import ArgumentError, NymphError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from pynymph.ring import Ring


def _dtype(struct: str) -> np.dtype[np.void]:
    """A struct of the header, field by field."""
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
    """By opcode, for all that there can be."""
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
    """Entries that copy `length` bytes each from `src_at` in `src` to `dst_at` in `dst`.

    The last three are numbers or arrays of one length, as NumPy broadcasts them. `verify`, `digest`: as with
    Ring.copy().
    """
    if verify and digest:
        raise ArgumentError(errno.EINVAL, "verify makes both digests; leave out digest")
    try:
        starts, ends, lengths = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(each)) for each in (src_at, dst_at, length))
        )
    except ValueError:
        raise ArgumentError(errno.EINVAL, "src_at, dst_at and length are not of one length") from None
    for name, numbers in (("src_at", starts), ("dst_at", ends), ("length", lengths)):
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise ArgumentError(errno.EINVAL, f"{name} is no array of integers with one dimension")
    for name, numbers, buffer in (("src_at", starts, src), ("dst_at", ends, dst)):
        buffer.check()
        outside = (lengths < 1) | (lengths > buffer.nbytes)
        outside |= (numbers < 0) | (numbers > buffer.nbytes - np.where(outside, 0, lengths))
        if outside.any():
            i = int(outside.argmax())
            raise ArgumentError(
                errno.EINVAL,
                f"{name}[{i}]: {lengths[i]} bytes at {numbers[i]} are not in a buffer of {buffer.nbytes}",
            )
    entries = np.zeros(len(starts), ENTRY)
    entries["size"] = ENTRY.itemsize
    entries["opcode"] = lib.NYMPH_OP_COPY
    entries["flags"] = lib.NYMPH_DMA_FLAG_VERIFY_HASH * verify | lib.NYMPH_DMA_FLAG_DIGEST_ONLY * digest
    entries["length"] = lengths
    for side, at, buffer in (("src", starts, src), ("dst", ends, dst)):
        entries[side] = at + buffer.offset
        entries[f"{side}_buffer"] = buffer._memory.handle
    return entries


def check(entries: object) -> None:
    """Raise ArgumentError if this is no array of entries."""
    if not isinstance(entries, np.ndarray) or entries.dtype != ENTRY or entries.ndim != 1:
        raise ArgumentError(errno.EINVAL, "entries are one dimension of pynymph.batch.ENTRY, in NumPy")


class Checked:
    """Entries as the driver gets them: a copy, with cookies, of memory that the ring knows.

    `known`: the ring's memory, by handle. Raises ArgumentError for an entry that names any other.
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
        # Weak: one that is kept to be run again is no reason to keep a buffer.
        self._memories = {handle: known.get(handle) for handle in sorted(self._handles())}

    def __len__(self) -> int:
        return len(self.entries)

    def is_of(self, entries: NDArray[np.void]) -> bool:
        """Whether it was made of such entries."""
        check(entries)
        return entries.tobytes() == self._given

    def memories(self) -> list[Memory]:
        """What it needs. As long as somebody has this list, nobody else's memory has one of the handles."""
        found = []
        for handle, known in self._memories.items():
            memory = None if known is None else known()
            if memory is None or memory.gone is not None:
                raise _no_buffer(handle)
            found.append(memory)
        return found

    def batch(self, ring: Ring, first: int, end: int) -> Batch:
        """Those from `first` to `end`, to be queued."""
        return Batch(ring, self, first, end)

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
                        f"entry {nameless.argmax()} has no {side}_buffer, and nothing would hold memory "
                        "without a handle",
                    )
            raw = named.tobytes()
            is_one = raw == raw[: named.itemsize] * len(named)
            found.update(named[:1].tolist() if is_one else named.tolist())
        return found - {0}


def _no_buffer(handle: int) -> ArgumentError:
    return ArgumentError(errno.EINVAL, f"no buffer of this ring has the handle {handle}")


class Batch:
    """Entries that Ring.submit_many() has queued: the first ones, `len()` of them."""

    done = False
    """Whether all have ended, or never will, as far as is known."""
    error: NymphError | None = None
    on_end: Callable[[], None] | None = None
    _records: NDArray[np.void] | None = None  # until the first
    _memories: Sequence[Memory] = ()  # that it holds

    def __init__(self, ring: Ring, many: Checked, first: int, end: int) -> None:
        self._ring = ring
        self._many = many
        self.first = first
        """Number of its first entry among all that were given."""
        self.total = len(many.entries)
        """How many were given."""
        self._len = min(end, self.total) - first
        self._first_cookie = many.first_cookie + first

    def __len__(self) -> int:
        return self._len

    def __repr__(self) -> str:
        return f"<pynymph.batch.Batch of {len(self)} entries, {self.ended} of them ended>"

    @property
    def entries(self) -> NDArray[np.void]:
        """As the driver has them: with their cookies."""
        return self._many.entries[self.first : self.first + self._len]

    @property
    def ended(self) -> int:
        """How many have, as far as is known without asking the driver."""
        return 0 if self._records is None else int(np.count_nonzero(self._records["size"]))

    @property
    def records(self) -> NDArray[np.void]:
        """How they ended, those that have."""
        return np.zeros(self._len, RECORD) if self._records is None else self._records

    def result(self, timeout: float | None = None) -> NDArray[np.void]:
        """Wait until all have ended, and return how: an array of RECORD, in the order of the entries.

        What failed has a negative errno in `status`. Raises RingTimeoutError after `timeout` seconds: they go
        on; and ClosedError or CanceledError if the ring was closed or reset before all had ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._ring._batch_result(self, timeout, deadline)

    # What follows is the ring's, under its mutex.

    @property
    def address(self) -> int:
        """Of its first entry."""
        return self._many.address + self.first * _ENTRY_SIZE

    def hold(self, memories: list[Memory]) -> None:
        """Hold the buffers. Raises ArgumentError if one was freed since."""
        self._memories = memories
        for memory in memories:
            memory.take(self)
            if memory.gone is not None:
                self._let_go()
                raise _no_buffer(memory.handle)

    def _let_go(self) -> None:
        for memory in self._memories:
            memory.let_go(self)
        self._memories = ()

    def hints(self) -> dict[int, str]:
        """Why the driver can have refused its first entry."""
        which = f"entry {self.first}"
        return {
            errno.EINVAL: f"{which} is not well-formed, or its sides overlap; see docs/abi.md",
            errno.EFAULT: f"{which} is not inside its buffers, or writes to one that is read-only",
            errno.ENOSPC: "the ring is full; collect completions, or open it with more entries",
        }

    def cut(self, accepted: int) -> None:
        """The driver took no more than these."""
        self._len = accepted
        if self._records is not None:
            self._records = self._records[:accepted]

    def take_all(self, records: Any, n: int) -> bool:
        """Keep `n` records, if they are just those of all its entries, as they usually are.

        A ring retires in order: what is between a batch's first record and its last is of that batch too.
        """
        first = self._first_cookie
        if n != self._len or records[0].cookie != first or records[n - 1].cookie != first + n - 1:
            return False
        self._records = np.frombuffer(bytearray(ffi.buffer(records, n * _RECORD_SIZE)), RECORD)
        return True

    def take(self, records: NDArray[np.void]) -> NDArray[np.void]:
        """Keep those records that are its own, and return the others."""
        if self._records is None:
            self._records = np.zeros(len(self), RECORD)
        at = records["cookie"] - np.uint64(self._first_cookie)
        own = at < len(self)
        self._records[at[own]] = records[own]
        return records[~own]

    def end(self, error: NymphError | None = None) -> None:
        """The driver is done with it, and its buffers. Again, if Ctrl-C cut it short."""
        self.error = error
        self._let_go()
        self.done = True
        if self.on_end is not None:
            self.on_end()
