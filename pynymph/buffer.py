# SPDX-License-Identifier: MIT
"""Memory that a ring names by a handle, and buffers of arrays and tensors."""

from __future__ import annotations

import errno
import os
import re
import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol, Self

from pynymph import dlpack
from pynymph.abi import ffi, lib
from pynymph.errors import ArgumentError, ArgumentTypeError, error
from pynymph.integers import shown, whole
from pynymph.mutex import Mutex
from pynymph.owner import Owner

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Attributes of tensors, such as torch's, whose memory is not their values. DLPack of torch 2.13 refuses all
# but the first. It ignores that one: 2.0 would be copied, and verified, instead of -2.0.
_FIXES = {
    "is_neg": ("is negated lazily", "resolve_neg"),
    "is_conj": ("is conjugated lazily", "resolve_conj"),
    "requires_grad": ("requires a gradient", "detach"),
    "is_sparse": ("is sparse", "to_dense"),
    "is_quantized": ("is quantized", "int_repr"),
}
_OBJECTS = "holds Python objects, that is pointers; give their values in an array of another dtype"


class Table(Protocol):
    """The buffers of a ring by handle: see pynymph.table."""

    def export(self, memory: Memory) -> int: ...

    def free(self, memory: Memory) -> None: ...

    def free_later(self, handle: int) -> None: ...


class Memory(Owner):
    """Keep the memory behind a RingBuffer and all its parts.

    Args:
        source: the bytes, or None if only operations reach them.
        readonly: whether the memory can only be a source.
        table: the table that has the handle.
        hold: whether to keep the user from freeing the memory.
    """

    # Class attributes, so that they exist if __init__ fails early.
    handle = 0
    gone: str | None = None
    """Why the memory can't be used any more, or None."""

    def __init__(self, source: Buffer | None, readonly: bool, table: Table, *, hold: bool) -> None:
        self.source = source
        self.readonly = readonly
        self._table = weakref.ref(table)  # memory is no reason to keep a ring
        held = hold and source is not None
        self._hold = ffi.from_buffer(source, require_writable=not readonly) if held else None
        self._lock = Mutex()
        self._users = set[object]()

    def __del__(self) -> None:
        if self.handle and self.gone is None and (table := self._table()) is not None:
            table.free_later(self.handle)

    def check(self) -> None:
        """Raise ClosedError (EBADF) if the memory can't be used any more; the message says why."""
        if self.gone is not None:
            raise error(errno.EBADF, f"the buffer can't be used: {self.gone}; make another one")

    def take(self, user: object) -> None:
        """Note that `user`, a transfer, uses the memory until release()."""
        self._users.add(user)

    def release(self, user: object) -> None:
        """Note that `user` has ended. Idempotent, so that a caller can repeat it after Ctrl-C."""
        self._users.discard(user)
        if self.gone is not None:
            self._unhold()

    def end(self, why: str) -> None:
        """Note that the handle is gone. `why`: the reason, for errors.

        Driver memory is freed with its last view. User memory is held until no transfer uses it.
        """
        self.gone = why
        self.source = b""
        self._unhold()

    def _unhold(self) -> None:
        with self._lock:
            if not self._users and self._hold is not None:
                ffi.release(self._hold)
                self._hold = None


class RingBuffer(Owner):
    """Name memory of one ring by a handle.

    Ring.allocate(), register(), import_dmabuf() and allocate_on_card() return RingBuffers. A RingBuffer is a
    source or a destination of any operation of its ring. Each part of it is, too: `buffer[100:200]` is a
    RingBuffer of the same memory.

    NumPy and DLPack use the bytes without a copy. So do memoryview() and every function that takes buffers,
    from Python 3.12 on; `view` works in every Python. Only operations reach memory on a card. torch 2.13
    ignores that memory is read-only: writing to a tensor of torch.from_dlpack(buffer) changes the memory of a
    buffer that is registered read_only.

    free(), or the end of a `with`, frees the handle for all parts. So do Ring.reset(), Ring.close() and
    garbage collection. Using the buffer then raises ClosedError. Transfers in flight go on, and views stay
    valid. A child made by fork does not have the memory of Ring.allocate(), and must not access it.
    """

    _instead = "it is memory of one ring; bytes(buffer.view) copies it, and export() passes it on"

    def __init__(self, memory: Memory, offset: int, nbytes: int, table: Table) -> None:
        self._memory = memory
        self._table = table
        self._pid = os.getpid()
        self.offset = offset
        """Offset of the first byte in the memory behind the handle."""
        self.nbytes = nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.free()

    def __repr__(self) -> str:
        state = "freed" if self._memory.gone is not None else f"handle {self._memory.handle}"
        return f"<pynymph.RingBuffer of {self.nbytes} bytes, {state}>"

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, part: slice) -> RingBuffer:
        """Return a part of the memory, by offsets in bytes: `buffer[first:end]`.

        Raises:
            ArgumentError: EINVAL, `part` is no slice of whole numbers, or has a step other than 1.
            ClosedError: EBADF, the buffer was freed.
        """
        if not isinstance(part, slice):
            raise ArgumentError(
                errno.EINVAL, "a RingBuffer has parts and no elements; take [first:end], or its view"
            )
        parts = ((part.start, "first"), (part.stop, "end"), (part.step, "step"))
        given = [None if value is None else whole(value, name) for value, name in parts]
        if given[2] == 0:
            raise ArgumentError(
                errno.EINVAL, "a part of a RingBuffer has no gaps, and step is 0; leave it out"
            )
        first, end, step = slice(*given).indices(self.nbytes)
        if step != 1:
            message = f"a part of a RingBuffer has no gaps, and step is {step}; leave it out"
            raise ArgumentError(errno.EINVAL, message)
        self.check()
        nbytes = max(0, end - first)
        return RingBuffer(self._memory, self.offset + first, nbytes, self._table)

    @property
    def readonly(self) -> bool:
        """Whether the memory can only be a source."""
        return self._memory.readonly

    @property
    def view(self) -> memoryview:
        """A memoryview of the memory: unsigned bytes, of shape (nbytes,), without a copy.

        Raises:
            ClosedError: EBADF, the buffer was freed.
            ArgumentError: EOPNOTSUPP, only operations reach the memory.
        """
        self.check()
        if self._memory.source is None:
            message = (
                "memory that only operations reach has no view: copy() its bytes to a buffer that has one"
            )
            raise ArgumentError(errno.EOPNOTSUPP, message)
        with octets(self._memory.source) as all_bytes:
            part = all_bytes[self.offset : self.offset + self.nbytes]
            return part.toreadonly() if self.readonly else part

    def export(self) -> int:
        """Export memory of Ring.allocate() as a dma-buf.

        Any process that gets the file, for example by socket.send_fds(), and any driver that imports it,
        shares the bytes. The dma-buf has all pages of the memory; a part starts at `offset` in it. The memory
        is freed, and stops counting as locked memory of the process that allocated it, with its last user.

        Returns:
            A new file descriptor, which the caller closes.

        Raises:
            ClosedError: EBADF, the buffer was freed.
            NymphError: EINVAL, the memory is not of Ring.allocate(). EMFILE, there are too many open files.
        """
        self.check()
        return self._table.export(self._memory)

    def free(self) -> None:
        """Free the handle. Transfers in flight go on. Idempotent."""
        self._table.free(self._memory)

    def check(self) -> None:
        """Raise ClosedError or ForkedError if the buffer can't be used; the message says why."""
        if os.getpid() != self._pid:
            raise error(errno.EPERM, "this buffer is another process's; after fork, open a Ring of your own")
        self._memory.check()

    # From Python 3.12 on this makes it a buffer.
    def __buffer__(self, flags: int) -> memoryview:
        return self.view.__buffer__(flags)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": self.view}

    def __dlpack__(self, **wanted: Any) -> Any:
        import numpy

        return numpy.asarray(self).__dlpack__(**wanted)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU


def with_bytes(thing: Any, name: str) -> Buffer:
    """Return `thing` if it is a buffer, else a flat buffer of its memory, without a copy.

    Args:
        thing: a RingBuffer, or C-contiguous memory of the CPU: an object with the buffer protocol, a NumPy
            array of any dtype but objects, or an object with DLPack or __array_interface__, such as a tensor.
        name: the caller's name for it, for errors.

    Returns:
        A RingBuffer or a buffer.

    Raises:
        ArgumentError: EINVAL, its memory can't be used; the message says what to give instead.
        ArgumentTypeError: EINVAL, it has no memory.
    """
    if isinstance(thing, RingBuffer):
        return thing
    try:
        with memoryview(thing) as view:
            _check_layout(view, name)
        return thing  # type: ignore[no-any-return]
    except ArgumentError:
        raise
    except (TypeError, ValueError, BufferError) as error:
        # No buffer; one that is closed; or one with a dtype that the protocol has no letter for.
        refused = str(error)  # and not its traceback, which would hold all of this
    if (numpy := sys.modules.get("numpy")) is not None:
        if isinstance(thing, numpy.ndarray):
            return _octets_of_array(thing, name)
        if isinstance(thing, numpy.generic):
            return bytes(thing.tobytes())  # it can't be written to
    for attribute, (state, fix) in _FIXES.items():
        found = getattr(thing, attribute, False)
        if found() if callable(found) else found is True:
            raise ArgumentError(errno.EINVAL, f"{name} is a tensor that {state}; give tensor.{fix}()")
    if hasattr(thing, "__dlpack__"):
        return dlpack.octets(thing, name)
    if hasattr(thing, "__array_interface__"):
        import numpy as np

        return with_bytes(np.asarray(thing), name)
    message = f"{name} is {shown(thing)}; give bytes, an array or a tensor: {refused}"
    raise ArgumentTypeError(errno.EINVAL, message)


def _octets_of_array(array: Any, name: str) -> Buffer:
    """Return the memory of an array whose dtype has no letter in the buffer protocol: bfloat16 has none."""
    import numpy

    if array.dtype.hasobject:
        raise ArgumentError(errno.EINVAL, f"{name} {_OBJECTS}")
    if not array.flags.c_contiguous:
        raise ArgumentError(errno.EINVAL, f"{name} is {dlpack.gaps(array.flags.f_contiguous)}")
    flat: Buffer = array.view(numpy.ndarray).reshape(-1).view(numpy.uint8)
    return flat


def _check_layout(view: memoryview, name: str) -> None:
    """Raise ArgumentError if a buffer has gaps, or Python's objects."""
    if not view.c_contiguous:
        raise ArgumentError(errno.EINVAL, f"{name} is {dlpack.gaps(view.f_contiguous)}")
    # In a struct, names stand between colons.
    if "O" in view.format and "O" in re.sub(":[^:]*:", "", view.format):
        raise ArgumentError(errno.EINVAL, f"{name} {_OBJECTS}")


def octets(buffer: Buffer) -> memoryview:
    """View all bytes of a C-contiguous buffer, whatever its format is, as flat unsigned bytes."""
    with memoryview(buffer) as view:
        readonly = view.readonly
    flat = memoryview(ffi.buffer(ffi.from_buffer(buffer)))
    return flat.toreadonly() if readonly else flat


def checked_length(nbytes: int) -> int:
    """Convert the length of a buffer, in bytes, to an int. Raises ArgumentError if no buffer can have it."""
    return whole(nbytes, "nbytes", 1, lib.NYMPH_MAX_LENGTH)
