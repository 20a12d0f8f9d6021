# SPDX-License-Identifier: MIT
"""Calls that wait, and what ends them; threads, fork, garbage collection."""

import contextlib
import errno
import gc
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

import pynymph
from pynymph import Copy, Nop, abi, batch
from pynymph.abi import ffi, lib
from pynymph.operation import Job


def until(condition: Callable[[], bool]) -> None:
    """Wait for what sends no event."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        os.sched_yield()


def queued(ring: pynymph.Ring, count: int) -> Callable[[], bool]:
    return lambda: ring.status().active_descriptors == count


def assert_held(buffer: bytearray) -> None:
    with pytest.raises(BufferError):
        buffer.append(0)


def test_timeout_leaves_the_transfer_in_flight_with_its_buffers() -> None:
    src, dst = bytearray(b"x" * 5000), bytearray(5000)
    with pynymph.Ring(paused=True) as ring:
        with pytest.raises(pynymph.RingTimeoutError, match="goes on") as caught:
            ring.copy(src=src, dst=dst, timeout=0.01)
        assert caught.value.errno == errno.ETIMEDOUT
        assert isinstance(caught.value, TimeoutError)
        assert_held(src)
        assert_held(dst)
        ring.enable()
        # They run in order, so this one comes after that.
        ring.copy(src=bytes(10), dst=bytearray(10))
        assert dst == src
        src.append(0)
        dst.append(0)


def test_timeout_0_does_not_wait() -> None:
    with pynymph.Ring(paused=True) as ring, pytest.raises(pynymph.RingTimeoutError):
        ring.copy(src=b"1", dst=bytearray(1), timeout=0)


def test_copy_waits_for_room_in_a_full_ring() -> None:
    with pynymph.Ring(1, paused=True) as ring, ThreadPoolExecutor() as threads:
        ring.submit(Copy(src=b"1", dst=bytearray(1)))
        refused = bytearray(1)
        with pytest.raises(pynymph.RingTimeoutError, match="no room") as caught:
            ring.copy(src=b"2", dst=refused, timeout=0.01)
        assert caught.value.errno == errno.ETIMEDOUT
        refused.append(0)

        dst = bytearray(1)
        copied = threads.submit(ring.copy, src=b"3", dst=dst)
        ring.enable()
        assert copied.result().bytes_done == 1
        assert dst == b"3"


def test_uncollected_records_do_not_block_copies() -> None:
    nobodys = {"size": 64, "opcode": lib.NYMPH_OP_NOP, "flags": lib.NYMPH_DMA_FLAG_RECORD, "cookie": 1 << 62}
    entries = ffi.new("struct nymph_entry[]", [nobodys] * 2)
    with pynymph.Ring(2) as ring:
        # Room for records is twice that for entries.
        for _ in range(2):
            arg = abi.new("nymph_enter", entries=abi.address(entries), to_submit=2)
            ring._core.request(abi.NYMPH_IOC_ENTER, arg)
            until(queued(ring, 0))
        assert ring.snapshot().unread_records == 4
        assert ring.copy(src=b"2", dst=bytearray(1)).status == 0


def test_handler_ends_a_driver_call_but_cannot_use_its_ring() -> None:
    """Those of RingBuffers wait there, with the ring's mutex held."""
    found: list[BaseException] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not ring._core.mutex.is_mine:
            return  # it came between two waits; the next one may not
        with pytest.raises(pynymph.NymphError) as refused:
            ring.status()
        found.append(refused.value)
        raise TimeoutError("enough")

    with pynymph.Ring(4, paused=True) as ring:
        src, dst = ring.allocate(8), ring.allocate(8)
        entries = batch.copies(src, dst, src_at=0, dst_at=0, length=8)
        previous = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            with pytest.raises(TimeoutError, match="enough"):
                ring.run_many(entries)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert isinstance(found[0], pynymph.NymphError)
        assert found[0].errno == errno.EDEADLK
        with pytest.raises(pynymph.RingTimeoutError):
            ring.copy(src=src, dst=dst, timeout=0.001)
        ring.enable()
        assert ring.copy(src=src, dst=dst, timeout=float("inf")).status == 0
        assert not ring.run_many(entries, float("inf"))["status"].any()


@pytest.mark.parametrize("entries", [1, 2, 64])
def test_threads_share_a_ring(entries: int) -> None:
    def work(seed: int) -> list[int]:
        rng = random.Random(seed)
        cookies = []
        for _ in range(10):
            data = rng.randbytes(rng.choice((1, 100, 5000, 200_000)))
            dst = bytearray(len(data))
            cookies.append(ring.copy(src=data, dst=dst, verify=rng.random() < 0.3).cookie)
            assert dst == data
            dst.append(0)
        return cookies

    with pynymph.Ring(entries) as ring, ThreadPoolExecutor(8) as threads:
        cookies = [cookie for cookies in threads.map(work, range(8)) for cookie in cookies]
        assert len(set(cookies)) == 8 * 10
        assert ring.status().active_descriptors == 0
        assert ring.snapshot().unread_records == 0


@pytest.mark.usefixtures("driver")
def test_a_small_copy_does_not_wait_for_a_large_one_behind_it() -> None:
    with pynymph.Ring(paused=True) as ring, ThreadPoolExecutor() as threads:
        small = threads.submit(ring.copy, src=b"1", dst=bytearray(1))
        until(queued(ring, 1))
        large = threads.submit(ring.copy, src=bytes(2**26), dst=bytearray(2**26))
        until(queued(ring, 2))
        ring.enable()
        small.result()
        assert not large.done()
        large.result()


class Interrupted(Exception):
    pass


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def test_ctrl_c_ends_a_waiting_copy() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore it
    src, dst = bytearray(b"x" * 5000), bytearray(5000)
    with pynymph.Ring(paused=True) as ring, ThreadPoolExecutor() as threads:

        def press() -> None:
            until(queued(ring, 1))
            os.kill(os.getpid(), signal.SIGINT)

        pressed = threads.submit(press)
        with pytest.raises(KeyboardInterrupt):
            ring.copy(src=src, dst=dst)
        pressed.result()
        assert_held(src)
        assert_held(dst)
        ring.enable()
        ring.copy(src=bytes(10), dst=bytearray(10))
        assert dst == src
        dst.append(0)


def test_returning_handler_does_not_end_a_waiting_copy() -> None:
    called = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: called.set())
    try:
        with pynymph.Ring(paused=True) as ring, ThreadPoolExecutor() as threads:

            def disturb() -> None:
                until(queued(ring, 1))
                os.kill(os.getpid(), signal.SIGUSR1)
                assert called.wait(20)
                ring.enable()

            disturbed = threads.submit(disturb)
            assert ring.copy(src=b"1", dst=bytearray(1)).status == 0
            disturbed.result()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("driver")
def test_interrupts_at_random_places_lose_nothing() -> None:
    """One thread is interrupted at random places, over and over, while another uses the same ring."""
    rng = random.Random(1)
    stop = threading.Event()
    interrupts = 0
    buffers = []

    def neighbour() -> int:
        copies = 0
        while not stop.is_set():
            data, dst = bytes([copies % 256]) * 3000, bytearray(3000)
            ring.copy(src=data, dst=dst, timeout=20)
            assert dst == data
            copies += 1
        return copies

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pynymph.Ring(4) as ring, ThreadPoolExecutor() as threads:
            beside = threads.submit(neighbour)
            try:
                for _ in range(200):
                    dst = bytearray(3000)
                    buffers.append(dst)
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
                        ring.copy(src=b"y" * 3000, dst=dst, timeout=20)
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except Interrupted:
                        interrupts += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                stop.set()
            assert beside.result() > 0
            ring.copy(src=b"1", dst=bytearray(1), timeout=20)
            until(queued(ring, 0))
            ring.copy(src=b"1", dst=bytearray(1), timeout=20)
            assert ring.snapshot().unread_records == 0
            for dst in buffers:
                dst.append(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 0


def interrupted_at(point: int, call: Callable[[], object]) -> bool:
    """Have Interrupted raised at that one of the points of `call` at which a signal's handler could raise it.

    Those are where a function begins, and where one written in C has returned. Whether `call` has so many.
    """
    left = point

    def look(frame: FrameType, event: str, of: object) -> None:
        nonlocal left
        if event not in ("call", "c_return"):
            return
        inside: FrameType | None = frame
        while inside is not None:
            if inside.f_globals.get("__name__", "").startswith("pynymph.model"):
                return  # no signal cuts a driver's request in two
            inside = inside.f_back
        left -= 1
        if left < 0:
            sys.setprofile(None)
            raise Interrupted

    sys.setprofile(look)
    try:
        call()
    except (Interrupted, pynymph.NymphError):
        pass
    finally:
        sys.setprofile(None)
    return left < 0


def refused_copy(ring: pynymph.Ring, dst: bytearray) -> None:
    ring.copy(src=bytes(8), dst=dst, timeout=0)


def copies_half_refused(ring: pynymph.Ring, dst: bytearray) -> None:
    ring.submit_all([Copy(src=bytes(8), dst=memoryview(dst)[at : at + 8]) for at in (0, 8, 16)])


@pytest.mark.parametrize(
    "queued_before,call", [(2, refused_copy), (1, copies_half_refused), (2, copies_half_refused)]
)
def test_interrupt_at_any_point_leaves_nothing_behind(
    queued_before: int, call: Callable[[pynymph.Ring, bytearray], None]
) -> None:
    """Of an operation that there is no room for, too."""
    point, more = 0, True
    with pynymph.Ring(2, paused=True) as ring:
        while more:
            ring.submit_all([Nop()] * queued_before)
            dst = bytearray(24 if call is copies_half_refused else 8)
            more = interrupted_at(point, lambda: call(ring, dst))  # noqa: B023
            ring.enable()
            list(ring.completions(timeout=20))
            assert not ring._core.in_flight, point
            assert not ring._core.wakers, point
            dst.append(0)
            ring.reset()
            point += 1
    assert point > 50


@pytest.mark.parametrize("queued_before", [0, 1, 2])
def test_interrupt_at_any_point_leaves_no_batch_behind(queued_before: int) -> None:
    point, more = 0, True
    with pynymph.Ring(2, paused=True) as ring:
        while more:
            src, dst = ring.allocate(8), ring.allocate(8)
            entries = batch.copies(src, dst, src_at=[0, 1, 2], dst_at=[0, 1, 2], length=1)
            ring.submit_all([Nop()] * queued_before)
            more = interrupted_at(point, lambda: ring.submit_many(entries))  # noqa: B023
            ring.enable()
            list(ring.completions(timeout=20))
            until(queued(ring, 0))
            ring.copy(src=b"1", dst=bytearray(1))
            assert not ring._core.batches, point
            ring.reset()
            point += 1
    assert point > 50


def test_reset_cancels_waiting_copies() -> None:
    buffers = [bytearray(100) for _ in range(3)]
    with pynymph.Ring(2, paused=True) as ring, ThreadPoolExecutor() as threads:
        waiting = [threads.submit(ring.copy, src=b"x" * 100, dst=dst) for dst in buffers[:2]]
        until(queued(ring, 2))
        ring.reset()
        for copy in waiting:
            with pytest.raises(pynymph.CanceledError) as caught:
                copy.result()
            assert caught.value.errno == errno.ECANCELED
        assert not any(any(dst) for dst in buffers)
        ring.enable()
        ring.copy(src=b"x" * 100, dst=buffers[2])
    for dst in buffers:
        dst.append(0)


@pytest.mark.usefixtures("driver")
def test_reset_ends_a_running_copy() -> None:
    with pynymph.Ring() as ring, ThreadPoolExecutor() as threads:
        src, dst = bytes(2**26), bytearray(2**26)
        running = threads.submit(ring.copy, src=src, dst=dst, verify=True)
        until(queued(ring, 1))
        ring.reset()
        with pytest.raises(pynymph.CanceledError):
            running.result()
        dst.append(0)
        assert ring.status().dma_bytes == 0


def test_close_ends_waiting_copies() -> None:
    dst = bytearray(100)
    with ThreadPoolExecutor() as threads:
        ring = pynymph.Ring(1, paused=True)
        queued_one = threads.submit(ring.copy, src=b"x" * 100, dst=dst)
        until(queued(ring, 1))
        without_room = threads.submit(ring.copy, src=b"x", dst=bytearray(1))
        submitted = pynymph.Ring(1, paused=True)
        handle = submitted.submit(Copy(src=b"x", dst=bytearray(1)))
        waiting = threads.submit(handle.result)
        collecting = threads.submit(lambda: list(submitted.completions()))
        until(lambda: len(ring._core.wakers) == 2 and len(submitted._core.wakers) == 2)
        ring.close()
        submitted.close()
        for call in (queued_one, without_room, waiting):
            with pytest.raises(pynymph.ClosedError):
                call.result()
        assert collecting.result() == []
    dst.append(0)


def in_child(use: Callable[[], object]) -> int:
    """Exit status of a forked child: 0 if `use` raised a ForkedError that explains, and close() worked."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            use()
        except pynymph.ForkedError as e:
            status = 0 if e.errno == errno.EPERM and "open a Ring of your own" in str(e) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_forked_child_is_refused_and_harms_nothing() -> None:
    held = bytearray(100)
    with pynymph.Ring(paused=True) as ring:
        submitted = ring.submit(Copy(src=b"x" * 100, dst=held))
        buffer = ring.allocate(100)
        uses: list[Callable[[], object]] = [
            lambda: ring.copy(src=b"1", dst=bytearray(1)),
            lambda: ring.submit_all([]),
            lambda: list(ring.completions()),
            submitted.result,
            submitted.cancel,
            lambda: buffer.view,
            buffer.free,
            ring.enable,
            ring.reset,
            ring.status,
            ring.snapshot,
        ]
        for use in uses:
            assert in_child(use) == 0

        def close_then_use() -> None:
            ring.close()
            with pynymph.Ring() as own:
                own.copy(src=b"1", dst=bytearray(1))
            ring.hash()

        assert in_child(close_then_use) == 0
        assert ring.status().active_descriptors == 1
        ring.enable()
        assert submitted.result().status == 0
        assert bytes(buffer.view) == bytes(100)
    assert held == b"x" * 100


def test_close_stops_transfers_even_if_a_child_has_the_file() -> None:
    """Else the driver would go on writing to memory that is free to be used for something else."""
    src, dst = b"x" * 2**24, bytearray(2**24)
    release, hold = os.pipe()
    ring = pynymph.Ring()
    ring.submit(Copy(src=src, dst=dst))
    pid = os.fork()
    if pid == 0:
        os.close(hold)
        os.read(release, 1)
        os._exit(0)
    try:
        os.close(release)
        ring.close()
        seen = bytes(dst)
        assert dst == seen
        # A ring of this process that does as much work as was left: nothing arrives here any more by then.
        with pynymph.Ring() as other:
            other.copy(src=src, dst=bytearray(2**24))
        assert dst == seen
    finally:
        os.close(hold)
        os.waitpid(pid, 0)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_garbage_collection_closes_the_file_before_releasing_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    open_at_release = []
    release = Job.release

    def watch(job: Job) -> None:
        open_at_release.append(is_open(fd))
        release(job)

    dst = bytearray(100)
    ring = pynymph.Ring(paused=True)
    fd = ring.fileno()
    ring.submit(Copy(src=b"x" * 100, dst=dst))
    ring.myself = ring  # type: ignore[attr-defined]
    monkeypatch.setattr(Job, "release", watch)
    del ring
    assert_held(dst)
    gc.collect()
    dst.append(0)
    assert open_at_release == [False]


def test_copies_leave_no_file_open() -> None:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    with pynymph.Ring() as ring:
        for _ in range(20):
            ring.copy(src=b"1", dst=bytearray(1))
    assert os.listdir("/proc/self/fd") == before


def test_eventfd_is_raised_for_every_operation() -> None:
    told = os.eventfd(0, os.EFD_NONBLOCK)
    with pynymph.Ring() as ring:
        ring.notify(told)
        for transfer in ring.submit_all([pynymph.Nop()] * 3):
            transfer.result()
        assert os.eventfd_read(told) == 3
        ring.notify(None)
        ring.copy(src=b"1", dst=bytearray(1))
        with pytest.raises(BlockingIOError):
            os.eventfd_read(told)
        with open("/dev/null") as file, pytest.raises(pynymph.ArgumentError, match="is no eventfd"):
            ring.notify(file.fileno())
        os.close(told)
        with pytest.raises(pynymph.NymphError, match="there is no open file"):
            ring.notify(told)


def test_eventfd_is_raised_for_operations_that_reset_cancels() -> None:
    told = os.eventfd(0, os.EFD_NONBLOCK)
    with pynymph.Ring(paused=True) as ring:
        ring.notify(told)
        ring.submit_all([pynymph.Nop()] * 3)
        ring.reset()
        assert os.eventfd_read(told) == 3
    os.close(told)


def test_each_result_raises_an_exception_of_its_own() -> None:
    with pynymph.Ring(paused=True) as ring:
        transfer = ring.submit(pynymph.Nop())
        ring.reset()
        raised = []
        for _ in range(2):
            with pytest.raises(pynymph.CanceledError) as caught:
                transfer.result()
            raised.append(caught.value)
        assert raised[0] is not raised[1]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """As in a process that has as many open files as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def test_wait_needs_no_descriptor() -> None:
    """A bare OSError (EMFILE) left the copy in flight."""
    src, dst = b"x" * 5000, [bytearray(5000) for _ in range(3)]
    with pynymph.Ring(paused=True) as ring, ThreadPoolExecutor() as threads:
        transfers = ring.submit_all([Copy(src=src, dst=each) for each in dst])
        with no_descriptors():
            with pytest.raises(pynymph.RingTimeoutError):
                transfers[0].result(0.02)
            assert list(ring.completions(0.02)) == []
            waiting = [threads.submit(transfer.result) for transfer in transfers]
            ring.enable()
            # Whoever reaps, the others notice.
            assert [each.result(60).status for each in waiting] == [0, 0, 0]
        assert dst == [src] * 3
        assert ring._core.wakers == set()


def test_ring_without_a_free_descriptor_is_emfile() -> None:
    with no_descriptors():
        for use in (pynymph.Ring, pynymph.query):
            with pytest.raises(pynymph.NymphError, match="no more open files; close some") as refused:
                use()
            assert refused.value.errno == errno.EMFILE


@pytest.mark.parametrize("device", [5.5, None, "nul\0", [], b"\0"])
def test_wrong_device_names_are_refused(device: object) -> None:
    for use in (pynymph.Ring, pynymph.query):
        with pytest.raises(pynymph.ArgumentError, match=r"device is .*; give '/dev/pcie_nymph' or 'model:'"):
            use(device=device)  # type: ignore[operator]
