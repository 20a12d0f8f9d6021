# SPDX-License-Identifier: MIT
"""In the guest, run by tests/vm/test_planted.py: each test commits a bug, and is to be failed for it.

Lockdep turns itself off with the first report of its own or of KASAN: so its bug comes first.
"""

import ctypes
import os
from pathlib import Path

from nymph_vm.double_fetch import WORD, Argument

PLANTED = Path("/sys/kernel/debug/planted")


def test_lock_inversion() -> None:
    PLANTED.write_text("lock_inversion")


def test_sleep_under_spinlock() -> None:
    PLANTED.write_text("sleep_under_spinlock")


def test_use_after_free() -> None:
    PLANTED.write_text("use_after_free")


def test_out_of_bounds() -> None:
    PLANTED.write_text("out_of_bounds")


def test_double_fetch() -> None:
    name = b"double_fetch"
    libc = ctypes.CDLL(None)
    libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    file = os.open(PLANTED, os.O_WRONLY)
    with Argument(name, WORD) as argument:
        assert libc.write(file, argument.address, len(name)) == len(name)


def test_missing_unpin() -> None:
    PLANTED.write_text("missing_unpin")


def test_leak() -> None:
    """What the host is to find, when the tests are done."""
    PLANTED.write_text("leak")


def test_nothing() -> None:
    """No bug: the one test that is to pass."""
