# SPDX-License-Identifier: MIT
"""The contract of kernel/pcie_nymph.h as Python sees it: `ffi` has its structs, `lib` its constants.

The request numbers stand here under the names they have in the header, made with ioctl-opt;
tests/unit/kernel/test_header.py holds all of it against the header.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Any

from ioctl_opt import IOC, IOC_NONE, IOC_READ, IOC_WRITE

from pynymph._nymph import ffi as ffi
from pynymph._nymph import lib as lib
from pynymph.integers import INT64_MAX, whole
from pynymph.owner import Owner

if TYPE_CHECKING:
    from typing_extensions import Buffer

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _request(direction: int, number: int, struct: str | None = None) -> int:
    # IOC() takes a size; IOWR() and the others want ctypes types.
    return int(IOC(direction, lib.NYMPH_IOC_MAGIC, number, ffi.sizeof(f"struct {struct}") if struct else 0))


NYMPH_IOC_SUBMIT_DMA = _request(IOC_READ | IOC_WRITE, 1, "nymph_dma_desc")
NYMPH_IOC_GET_STATUS = _request(IOC_READ, 2, "nymph_fabric_status")
NYMPH_IOC_SETUP_RING = _request(IOC_WRITE, 3, "nymph_dma_ring")
NYMPH_IOC_GET_RING = _request(IOC_READ, 4, "nymph_dma_ring")
NYMPH_IOC_RESET = _request(IOC_NONE, 5)
NYMPH_IOC_QUERY = _request(IOC_READ | IOC_WRITE, 6, "nymph_query")
NYMPH_IOC_SETUP2 = _request(IOC_READ | IOC_WRITE, 7, "nymph_setup2")
NYMPH_IOC_ENABLE = _request(IOC_NONE, 8)
NYMPH_IOC_ENTER = _request(IOC_READ | IOC_WRITE, 9, "nymph_enter")
NYMPH_IOC_SNAPSHOT = _request(IOC_READ | IOC_WRITE, 10, "nymph_snapshot")
NYMPH_IOC_CANCEL = _request(IOC_READ | IOC_WRITE, 11, "nymph_cancel")
NYMPH_IOC_BUFFER = _request(IOC_READ | IOC_WRITE, 12, "nymph_buffer")
NYMPH_IOC_EVENTFD = _request(IOC_WRITE, 13, "nymph_eventfd")
NYMPH_IOC_LATENCY = _request(IOC_READ | IOC_WRITE, 14, "nymph_latency")
NYMPH_IOC_ATTEST = _request(IOC_READ | IOC_WRITE, 15, "nymph_attest")


def new(struct: str, **fields: Any) -> Any:
    """Make a zeroed `struct` of the header with `fields` set, and its `size` if it has one."""
    cdata = ffi.new(f"struct {struct} *", fields)
    if "size" in dict(ffi.typeof(f"struct {struct}").fields):
        cdata.size = ffi.sizeof(cdata[0])
    return cdata


def address(cdata: Any) -> int:
    """Return the address that `cdata`, a pointer or an array, points to."""
    return int(ffi.cast("uintptr_t", cdata))


def map_shared(fd: int, length: int, offset: int = 0, *, writable: bool = True) -> Buffer:
    """Map a part of a file. Unlike mmap.mmap(), this does not keep the file open.

    Args:
        fd: its descriptor.
        length: bytes to map.
        offset: of the first byte, whole pages.
        writable: whether the mapping is.

    Returns:
        A buffer. The bytes stay mapped while something has it, or a view of it.

    Raises:
        OSError: the file can't be mapped.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    at = _libc.mmap(None, length, protection, mmap.MAP_SHARED, fd, offset)
    if at == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    owner = os.getpid()

    def unmap(_: Any) -> None:
        # A child made by fork may not have the mapping, and something else may live there.
        if os.getpid() == owner:
            _libc.munmap(at, length)

    mapped: Buffer = ffi.buffer(ffi.gc(ffi.cast("char *", at), unmap), length)
    return mapped


class Device(Owner):
    """Open a file of the driver, and make its requests.

    pynymph.model.Model has the same methods, and no driver behind them.

    Raises:
        OSError: the driver refuses; so do all methods.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor, to poll."""
        return self._fd

    def ioctl(self, request: int, argument: Any = None) -> int:
        """Make a request, and make it again after EINTR: a request that ends so changed nothing.

        Args:
            request: one of the NYMPH_IOC_ numbers.
            argument: a pointer to a struct of `ffi`, which is read and written.

        Returns:
            What the request returns.
        """
        while True:
            try:
                if argument is None:
                    return fcntl.ioctl(self._fd, request)
                return int(fcntl.ioctl(self._fd, request, ffi.buffer(argument), True))
            except InterruptedError:
                continue

    def read(self, size: int) -> bytes:
        """Read completion records: as many as there are and fit in `size` bytes."""
        return os.read(self._fd, whole(size, "size", 0, INT64_MAX))

    def mmap(self, length: int, offset: int) -> Buffer:
        """Map `length` bytes of an allocated buffer. `offset` is its mmap_offset, or whole pages more."""
        length = whole(length, "length", 0, INT64_MAX)
        return map_shared(self._fd, length, whole(offset, "offset", 0, INT64_MAX))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
