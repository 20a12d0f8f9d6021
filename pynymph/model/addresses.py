# SPDX-License-Identifier: MIT
"""Reach the memory of this process by its address, and know what the kernel knows of it."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import re
import resource
from bisect import bisect_right
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from pynymph import abi
from pynymph.abi import ffi

PAGE = mmap.PAGESIZE
_USER_END = 1 << 48 if os.uname().machine == "aarch64" else (1 << 47) - PAGE
_CAP_IPC_LOCK = 14
_CHUNK = 256  # pages to load or store at once: what can't be, is found page by page


def fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _of_this_process(name: str) -> str:
    """Read a file in /proc/self. ENOSYS, which the driver never says, is for machines that lack it."""
    try:
        return Path("/proc/self", name).read_text(errors="surrogateescape")
    except OSError:
        fail(errno.ENOSYS)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong]


def _transfer(call: Any, local: int, at: int, length: int) -> int:
    """Move memory from or to `at`; a fault there ends it, and no process. Returns the bytes moved."""
    done = 0
    while done < length:
        # Each page of its own: the kernel does not split one of these.
        starts = [at + done]
        while len(starts) < _CHUNK and (following := (starts[-1] | (PAGE - 1)) + 1) < at + length:
            starts.append(following)
        end = min(at + length, (starts[-1] | (PAGE - 1)) + 1)
        ends = [*starts[1:], end]
        remote = (_Iovec * len(starts))(*(_Iovec(a, b - a) for a, b in zip(starts, ends, strict=True)))
        here = _Iovec(local + done, end - at - done)
        moved = call(os.getpid(), ctypes.byref(here), 1, remote, len(starts), 0)
        if moved < 0 and ctypes.get_errno() != errno.EFAULT:  # no CROSS_MEMORY_ATTACH, say
            fail(errno.ENOSYS)
        done += max(moved, 0)
        if moved < here.length:
            break
    return done


def load(at: int, length: int) -> bytes:
    """Read what is at address `at`, as far as it can be read."""
    buffer = ctypes.create_string_buffer(length)
    loaded = _transfer(_libc.process_vm_readv, ctypes.addressof(buffer), at, length)
    return buffer.raw[:loaded]


def store(at: int, data: bytes) -> int:
    """Write `data` to address `at`. Returns how many bytes could be."""
    source = ffi.from_buffer(data)
    return _transfer(_libc.process_vm_writev, abi.address(source), at, len(data))


def _is_written_back(device: str) -> bool:
    """Whether the file system of that device has a disk behind it."""
    major, minor = (int(part, 16) for part in device.split(":"))
    mounts = _of_this_process("mountinfo")
    found = re.search(rf"^\d+ \d+ {major}:{minor} .* - (\S+) ", mounts, re.MULTILINE)
    return found is not None and found[1] not in ("tmpfs", "devtmpfs", "ramfs", "hugetlbfs")


def _span(line: str) -> tuple[int, int]:
    """Where the mapping of a line of maps starts, and where it has ended."""
    start, end = line.split(" ", 1)[0].split("-")
    return int(start, 16), int(end, 16)


def pages(at: int, length: int) -> int:
    return (at + length - 1) // PAGE - at // PAGE + 1


class Process:
    """Look up what the kernel knows of this process: once, so one of these is good for one request."""

    # Not cached_property: until Python 3.11 that has a lock, which fork can catch in another thread's hands.
    _mappings: list[str] | None = None
    _lockable_pages: float | None = None

    @property
    def mappings(self) -> list[str]:
        """The lines of proc_pid_maps(5), by address. There are hundreds, and few are looked at."""
        if self._mappings is None:
            self._mappings = _of_this_process("maps").splitlines()
        return self._mappings

    def check_mapped(self, at: int, length: int, access: str, long_term: bool) -> None:
        """Refuse with -EFAULT unless all of it is mapped with `access`, such as "rw".

        docs/reference/requests.md says when it is -EOPNOTSUPP.
        """
        end = at + length
        if end > _USER_END:
            fail(errno.EFAULT)
        refused = False
        first = bisect_right(self.mappings, at, key=lambda line: _span(line)[1])
        for line in islice(self.mappings, first, None):
            start, behind = _span(line)
            _, allowed, _, device, inode, *_ = line.split()
            if at >= end or start > at or not set(access) <= set(allowed):
                break
            if long_term and "w" in access and "s" in allowed and inode != "0":
                refused = refused or _is_written_back(device)
            at = behind
        if at < end:
            fail(errno.EFAULT)
        if refused:
            fail(errno.EOPNOTSUPP)

    @property
    def lockable_pages(self) -> float:
        """How many pages the process may lock in all."""
        if self._lockable_pages is None:
            self._lockable_pages = self._find_lockable_pages()
        return self._lockable_pages

    def _find_lockable_pages(self) -> float:
        status = _of_this_process("status")
        found = re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)
        if found is not None and int(found[1], 16) >> _CAP_IPC_LOCK & 1:
            return math.inf
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return math.inf if limit == resource.RLIM_INFINITY else limit // PAGE
