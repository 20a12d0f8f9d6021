# SPDX-License-Identifier: MIT
"""The contract of kernel/pcie_nymph.h as Python sees it: `ffi` has its structs, `lib` its constants.

The request numbers stand here under the names they have in the header, made with ioctl-opt;
tests/unit/test_header.py holds all of it against the header.
"""

from __future__ import annotations

import fcntl
from typing import Any

from ioctl_opt import IOC, IOC_NONE, IOC_READ, IOC_WRITE

from pynymph._nymph import ffi as ffi
from pynymph._nymph import lib as lib


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


def new(struct: str, **fields: Any) -> Any:
    """A zeroed `struct` from the header with `fields` set, and its `size` if it has one."""
    cdata = ffi.new(f"struct {struct} *", fields)
    if "size" in dict(ffi.typeof(f"struct {struct}").fields):
        cdata.size = ffi.sizeof(cdata[0])
    return cdata


def ioctl(fd: int, request: int, argument: Any = None) -> int:
    """Make `request` of the driver. `argument` is a struct of `ffi`, read and written. Raises OSError.

    Made again after EINTR: a request that ends so has changed nothing, and the signal has had its handler.
    """
    while True:
        try:
            if argument is None:
                return fcntl.ioctl(fd, request)
            return int(fcntl.ioctl(fd, request, ffi.buffer(argument), True))
        except InterruptedError:
            continue
