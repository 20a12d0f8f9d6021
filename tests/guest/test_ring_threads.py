# SPDX-License-Identifier: MIT
"""Many threads and one ring, that take turns as often as Python lets them; also for Pythons without a GIL."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pynymph
from pynymph import Copy, Hash, Nop, batch, digest
from pynymph.abi import ffi

SIZE = 4096
TURNS = 12
EACH = 2  # threads that do the same


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def ring() -> Iterator[pynymph.Ring]:
    with pynymph.Ring(16) as ring:
        yield ring


def copies(ring: pynymph.Ring) -> None:
    data, dst = os.urandom(SIZE), bytearray(SIZE)
    assert ring.copy(src=data, dst=dst, verify=True, timeout=60).status == 0
    assert dst == data
    dst.append(0)  # nothing holds it any more


def copies_in_buffers(ring: pynymph.Ring) -> None:
    with ring.allocate(2 * SIZE) as buffer:
        buffer.view[:SIZE] = data = os.urandom(SIZE)
        ring.copy(src=buffer[:SIZE], dst=buffer[SIZE:], timeout=60)
        assert buffer.view[SIZE:] == data


def leaves_garbage(ring: pynymph.Ring) -> None:
    """Its handles are given back by whichever thread comes next."""
    buffer = ring.allocate(SIZE)
    buffer.view[:] = data = os.urandom(SIZE)
    assert ring.digest(src=buffer, timeout=60) == digest.payload(data)
    del buffer
    gc.collect(0)


def submits(ring: pynymph.Ring) -> None:
    data, dst = os.urandom(SIZE), bytearray(SIZE)
    while True:
        try:
            copied = ring.submit(Copy(src=data, dst=dst))
            break
        except pynymph.FullError:
            ring.copy(src=b"1", dst=bytearray(1), timeout=60)  # waits for room
    assert copied.result(60).cookie == copied.cookie
    assert dst == data


def runs_arrays(ring: pynymph.Ring) -> None:
    src, dst = ring.allocate(SIZE), ring.allocate(SIZE)
    src.view[:] = os.urandom(SIZE)
    at = np.arange(40) * 100
    entries = batch.copies(src, dst, src_at=at, dst_at=at, length=100)
    for _ in range(2):
        done = ring.run_many(entries, 60)
        assert (done["bytes_done"] == 100).all()
        assert not done["status"].any()
        assert dst.view[:4000] == src.view[:4000]
        src.view[:] = os.urandom(SIZE)


def asks(ring: pynymph.Ring) -> None:
    assert ring.status().ring_size == 16
    shot = ring.snapshot()
    assert digest.ring_hash(shot) == shot.ring_hash
    ring.latency()


KINDS: list[Callable[[pynymph.Ring], None]] = [
    copies, copies_in_buffers, leaves_garbage, submits, runs_arrays, asks
]  # fmt: skip


def test_every_operation_works_in_many_threads(ring: pynymph.Ring) -> None:
    start = threading.Barrier(EACH * len(KINDS))

    def work(kind: Callable[[pynymph.Ring], None]) -> None:
        start.wait()
        for _ in range(TURNS):
            kind(ring)

    with ThreadPoolExecutor(EACH * len(KINDS)) as threads:
        list(threads.map(work, KINDS * EACH))
    ring.copy(src=b"1", dst=bytearray(1), timeout=60)  # gives back the last garbage
    shot = ring.snapshot()
    assert (shot.active_descriptors, shot.unread_records, shot.errors) == (0, 0, 0)
    assert not ring._core.in_flight
    assert not ring._core.batches
    assert not ring._core.wakers
    assert not ring._core.garbage


def test_threads_can_run_the_same_array(ring: pynymph.Ring) -> None:
    src, dst = ring.allocate(SIZE), ring.allocate(SIZE)
    src.view[:] = os.urandom(SIZE)
    at = np.arange(8) * 100
    entries = batch.copies(src, dst, src_at=at, dst_at=at, length=100, verify=True)
    expected = [digest.payload(src.view[i : i + 100]) for i in at]

    def work(_: int) -> None:
        for _ in range(TURNS):
            done = ring.run_many(entries, 60)
            assert [bytes(each) for each in done["dst_digest"]] == expected

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))


def test_every_completion_comes_once(ring: pynymph.Ring) -> None:
    cookies: list[int] = []
    found: list[int] = []

    def submit(_: int) -> None:
        for _ in range(TURNS):
            try:
                cookies.append(ring.submit(Nop()).cookie)
                cookies.append(ring.submit(Hash(src=b"x" * 100)).cookie)
            except pynymph.FullError:
                pass

    def collect(_: int) -> None:
        found.extend(done.cookie for done in ring.completions(timeout=60))

    with ThreadPoolExecutor(6) as threads:
        submitting = threads.map(submit, range(3))
        collecting = threads.map(collect, range(3))
        list(submitting)
        list(collecting)
    found.extend(done.cookie for done in ring.completions(timeout=60))
    assert sorted(found) == sorted(cookies)
    assert len(set(found)) == len(found) > 0


def test_fork_during_use_leaves_the_child_a_clear_answer(ring: pynymph.Ring) -> None:
    """Whatever lock some thread had at that moment, the child has a clear answer, and rings of its own."""
    stop = threading.Event()

    def work(kind: Callable[[pynymph.Ring], None]) -> None:
        while not stop.is_set():
            kind(ring)

    def in_child() -> int:
        try:
            ring.status()
        except pynymph.ForkedError:
            ring.close()
            with pynymph.Ring() as own:
                copies(own)
            return 0
        return 1

    with ThreadPoolExecutor(2) as threads:
        working = [threads.submit(work, kind) for kind in (copies, runs_arrays)]
        try:
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    status = 2
                    try:
                        signal.alarm(60)  # a child that hangs is a failure
                        status = in_child()
                    finally:
                        os._exit(status)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        finally:
            stop.set()
        for each in working:
            each.result(60)


def test_reset_during_use_is_an_exception_or_a_right_result(ring: pynymph.Ring) -> None:
    """Each gets an exception that says so, or a right result; nothing hangs, and the ring goes on."""
    stop = threading.Event()

    def work(kind: Callable[[pynymph.Ring], None]) -> int:
        canceled = 0
        while not stop.is_set():
            try:
                kind(ring)
            except (pynymph.CanceledError, pynymph.ClosedError, pynymph.ArgumentError):
                canceled += 1
        return canceled

    with ThreadPoolExecutor(3) as threads:
        working = [threads.submit(work, kind) for kind in (copies, leaves_garbage, runs_arrays)]
        try:
            for _ in range(20):
                ring.reset()
                ring.copy(src=b"1", dst=bytearray(1), timeout=60)
        finally:
            stop.set()
        for each in working:
            each.result(60)
    copies(ring)


def test_result_leaves_no_buffer_held(ring: pynymph.Ring) -> None:
    """Another thread may have noted that the operation has ended, and not released its buffers yet."""
    dst = bytearray(5)
    transfer = ring.submit(Copy(src=b"bytes", dst=dst))
    transfer.result(60)
    transfer._job._held.append(ffi.from_buffer(dst))
    transfer.result(60)
    dst.append(0)
