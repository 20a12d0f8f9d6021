# SPDX-License-Identifier: MIT
"""A process in a time namespace: deadlines and times are its own CLOCK_MONOTONIC's.

Containers and restored processes (CRIU) have such a clock.
"""

import ctypes
import errno
import time
from collections.abc import Callable
from pathlib import Path

import abi
import numpy as np
import pytest
from abi import Child, Context, Memory

import pynymph
from pynymph import batch

CLONE_NEWTIME = 0x80

pytestmark = [
    abi.needs_root,
    pytest.mark.skipif(not Path("/proc/self/ns/time").exists(), reason="the kernel has no time namespaces"),
]

WAYS = "ahead", "behind"


def shift_of(way: str) -> int:
    """Seconds: a day ahead; or back to the first seconds, as a namespace's clock may not begin earlier."""
    if way == "ahead":
        return 86400
    while time.monotonic() < 10:  # a native guest has just booted
        time.sleep(0.1)
    return -int(time.monotonic() - 5)


def in_namespace(way: str, function: Callable[[], str | None]) -> str:
    """What a function returns to a process whose clock is ahead, or behind."""
    shift = shift_of(way)

    def inside() -> str:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWTIME):
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/timens_offsets").write_text(f"monotonic {shift} 0\n")
        before = time.monotonic()

        def shifted() -> str | None:
            assert abs(time.monotonic() - before - shift) < abs(shift) / 2
            return function()

        return Child(shifted).result()

    return Child(inside).result()


@pytest.mark.parametrize("way", WAYS)
def test_deadline_is_in_the_time_of_the_caller(way: str) -> None:
    def inside() -> str:
        with Context() as context:
            context.setup(4, paused=True)
            context.enter([abi.nop(1, abi.RECORD)])
            begun = time.monotonic()
            with abi.fails(errno.ETIME):
                context.enter(max_records=1, min_records=1, wait=0.2)
            assert time.monotonic() - begun >= 0.2
            for moment in (0, 1, time.monotonic_ns() - 1):
                with abi.fails(errno.ETIME):
                    context.enter(max_records=1, min_records=1, deadline_ns=moment)
            context.enable()
            for moment in (2**63, abi.NO_DEADLINE - 1, abi.NO_DEADLINE):
                context.enter([abi.nop(2, abi.RECORD)])
                assert context.enter(max_records=1, min_records=1, deadline_ns=moment).records
        return ""

    in_namespace(way, inside)


@pytest.mark.parametrize("way", WAYS)
def test_records_have_times_of_the_caller(way: str) -> None:
    def inside() -> str:
        memory = Memory(abi.PAGE)
        with Context() as context:
            context.setup(8)
            begun = time.monotonic_ns()
            context.enter([abi.hash_only(memory.address, abi.PAGE)] * 4)
            [first] = context.reap(1)
            for record in [first, *context.reap(2), *context.read()]:
                assert begun <= record.queued_ns <= record.started_ns <= record.completed_ns
                assert record.completed_ns <= time.monotonic_ns()
        return ""

    in_namespace(way, inside)


def test_canceled_entry_has_no_start_time() -> None:
    def inside() -> str:
        with Context() as context:
            context.setup(4, paused=True)
            context.enter([abi.nop(7, abi.RECORD)])
            assert context.cancel(7) == 1
            context.enable()
            [record] = context.reap(1)
            assert record.status == -errno.ECANCELED
            assert (record.started_ns, record.queued_ns > 0) == (0, True)
        return ""

    in_namespace("ahead", inside)


def test_undelivered_records_are_kept() -> None:
    """Their times are changed on the way, one by one: as little is lost as without."""

    def inside() -> str:
        with Context() as context:
            context.setup(8)
            context.enter([abi.nop(n, abi.RECORD | abi.COMPLETE_SYNC) for n in range(4)])
            memory = Memory(2 * abi.PAGE)
            memory.unmap(abi.PAGE, abi.PAGE)
            at = memory.address + abi.PAGE - 2 * 128 - 64
            assert abi.read(context.fd, at, 4 * 128) == 2 * 128
            assert [record.cookie for record in context.read(4)] == [2, 3]
        return ""

    in_namespace("ahead", inside)


@pytest.mark.parametrize("way", WAYS)
def test_pynymph_timeouts_end_in_any_namespace(way: str) -> None:
    """They are relative, and end; and the ring can be used during them and afterwards."""

    def inside() -> str:
        with pynymph.Ring(paused=True) as ring:
            src, dst = ring.allocate(100), ring.allocate(100)
            many = batch.copies(src, dst, src_at=0, dst_at=50, length=np.full(2, 50))
            begun = time.monotonic()
            with pytest.raises(pynymph.RingTimeoutError):
                ring.copy(src=src, dst=dst, timeout=0.5)
            with pytest.raises(pynymph.RingTimeoutError):
                ring.run_many(many, timeout=0.5)
            assert time.monotonic() - begun >= 1
            assert ring.status().active_descriptors == 3
            ring.enable()
            done = ring.copy(src=src, dst=dst, timeout=abi.LONG)
            assert begun * 1e9 < done.queued_ns <= done.completed_ns <= time.monotonic_ns()
        return ""

    in_namespace(way, inside)
