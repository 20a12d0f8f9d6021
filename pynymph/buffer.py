# SPDX-License-Identifier: MIT
"""Memory that a ring knows by a handle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from pynymph.abi import ffi, lib
from pynymph.errors import ArgumentError, error
from pynymph.mutex import Mutex

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Memory:
    """What stands behind a RingBuffer and all its parts.

    `source`: its bytes, or None if only operations reach them. `hold`: it is the user's, who could free it.
    """

    def __init__(
        self, source: Buffer | None, readonly: bool, forget: Callable[[int], None], *, hold: bool
    ) -> None:
        self.source = source
        self.readonly = readonly
        self.handle = 0
        self.gone: str | None = None
        """Why it can't be used any more."""
        self._forget = forget
        held = hold and source is not None
        self._hold = ffi.from_buffer(source, require_writable=not readonly) if held else None
        self._lock = Mutex()
        self._users = set[object]()

    def __del__(self) -> None:
        if self.handle and self.gone is None:
            self._forget(self.handle)

    def check(self) -> None:
        """Raise what says why it can't be used, if it can't."""
        if self.gone is not None:
            raise error(errno.EBADF, f"the buffer can't be used: {self.gone}; make another one")

    def take(self, user: object) -> None:
        """A transfer uses it, until it lets go."""
        self._users.add(user)

    def let_go(self, user: object) -> None:
        """Again does nothing, so that Ctrl-C may come at any point of what calls this."""
        self._users.discard(user)
        if self.gone is not None:
            self._release()

    def end(self, why: str) -> None:
        """The handle is no more. Memory of the driver's goes with the last view, the user's is held until no
        transfer uses it.
        """
        self.gone = why
        self.source = b""
        self._release()

    def _release(self) -> None:
        with self._lock:
            if not self._users and self._hold is not None:
                ffi.release(self._hold)
                self._hold = None


class RingBuffer:
    """Memory of one ring, named by a handle: of its allocate(), register(), import_dmabuf() or
    allocate_on_card().

    It is a src or dst of every operation of that ring, and so is any part of it: `buffer[100:200]` is a
    RingBuffer too, of the same memory. NumPy, DLPack and, from Python 3.12 on, memoryview() and whatever
    takes buffers see its bytes without a copy; `view` does in every Python. Memory on a card is not seen, and
    only operations reach it.

    free(), or the end of a `with`, gives up the handle, for all parts; so do Ring.reset() and Ring.close(),
    and garbage collection. Then using it is a NymphError. Transfers in flight go on, and views stay what they
    are. A child made by fork does not have the memory of Ring.allocate(), nor may it look there.
    """

    def __init__(
        self,
        memory: Memory,
        offset: int,
        nbytes: int,
        owner: object,
        free: Callable[[Memory], None],
        export: Callable[[Memory], int],
    ) -> None:
        self._memory = memory
        self._owner = owner
        self._free = free
        self._export = export
        self._pid = os.getpid()
        self.offset = offset
        """Of its first byte in the memory behind the handle."""
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
        """Some of its bytes, by their offsets: `buffer[first:end]`."""
        if not isinstance(part, slice):
            raise ArgumentError(errno.EINVAL, "a RingBuffer has parts, [first:end]; bytes are in its view")
        first, end, step = part.indices(self.nbytes)
        if step != 1:
            raise ArgumentError(errno.EINVAL, f"a part of a RingBuffer has no gaps, and step is {step}")
        self.check()
        nbytes = max(0, end - first)
        return RingBuffer(self._memory, self.offset + first, nbytes, self._owner, self._free, self._export)

    @property
    def readonly(self) -> bool:
        """Whether it can only be a source."""
        return self._memory.readonly

    @property
    def view(self) -> memoryview:
        """Its bytes, as they are now and will be: not a copy. A NymphError if only operations reach them."""
        self.check()
        if self._memory.source is None:
            message = "memory that only operations reach has no view: copy() brings its bytes here"
            raise ArgumentError(errno.EOPNOTSUPP, message)
        with memoryview(self._memory.source) as whole, whole.cast("B") as octets:
            part = octets[self.offset : self.offset + self.nbytes]
            return part.toreadonly() if self.readonly else part

    def export(self) -> int:
        """Memory of Ring.allocate() as a dma-buf: a new file descriptor, which is the caller's to close.

        Any process that gets it, by socket.send_fds() say, and any driver that imports it, has the same
        bytes: whole pages, and all of the memory, also if this is a part, which then starts at `offset`. They
        live, and count as locked memory of who allocated them, until the last holder has let go.
        """
        self.check()
        return self._export(self._memory)

    def free(self) -> None:
        """Give up the handle. Transfers in flight go on; freeing again does nothing."""
        self._free(self._memory)

    def check(self) -> None:
        """Raise what says why it can't be used, if it can't."""
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


def with_bytes(thing: Any) -> Buffer:
    """`thing`, or an array of its memory if it has no buffer protocol, but DLPack, as tensors have.

    A RingBuffer is as good as one. Raises TypeError if it has neither, and ArgumentError if its memory is not
    the CPU's.
    """
    if isinstance(thing, RingBuffer):
        return thing
    try:
        memoryview(thing).release()
    except TypeError:
        if not hasattr(thing, "__dlpack__"):
            raise
    else:
        return thing  # type: ignore[no-any-return]
    import numpy

    try:
        array: Any = numpy.from_dlpack(thing)
    except (BufferError, RuntimeError, TypeError) as error:
        raise ArgumentError(errno.EINVAL, f"DLPack does not give its memory to the CPU: {error}") from None
    return array  # type: ignore[no-any-return]


def check_length(nbytes: int) -> None:
    if not 1 <= nbytes <= lib.NYMPH_MAX_LENGTH:
        limit = lib.NYMPH_MAX_LENGTH
        raise ArgumentError(errno.EINVAL, f"a buffer has 1 to {limit} bytes, and this one {nbytes}")
