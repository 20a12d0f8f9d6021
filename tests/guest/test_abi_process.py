# SPDX-License-Identifier: MIT
"""Who may use a context, and what happens around it: fork, exec, threads, poll, signals, sudden death."""

import contextlib
import ctypes
import errno
import mmap
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import abi
import pytest
from abi import LONG, MIB, PAGE, Child, Context, Memory, Tap, Thread, small_pages, until_blocked

REQUESTS: dict[str, Callable[[Context], object]] = {
    "SUBMIT_DMA": lambda context: context.submit(_WORK.address, _WORK.address + PAGE, 8),
    "GET_STATUS": lambda context: context.status(),
    "SETUP_RING": lambda context: context.setup_ring(4),
    "GET_RING": lambda context: context.ring(),
    "RESET": lambda context: context.reset(),
    "SETUP2": lambda context: context.setup(4),
    "ENABLE": lambda context: context.enable(),
    "ENTER": lambda context: context.enter([abi.nop()]),
    "SNAPSHOT": lambda context: context.snapshot(),
    "CANCEL": lambda context: context.cancel(1),
    "BUFFER alloc": lambda context: context.alloc(PAGE),
    "BUFFER register": lambda context: context.register(_WORK),
    "BUFFER free": lambda context: context.free(1),
    "EVENTFD": lambda context: context.eventfd(-1),
    "LATENCY": lambda context: context.latency(),
    "ATTEST": lambda context: context.attest(),
    "read": lambda context: context.read(),
    "mmap": lambda context: Memory(PAGE, fd=context.fd, flags=mmap.MAP_SHARED),
}
_WORK = Memory(2 * PAGE)


def check_foreign(context: Context) -> None:
    """Nothing but QUERY is for this process, and poll() says so."""
    for name, request in REQUESTS.items():
        try:
            request(context)
        except OSError as error:
            assert error.errno == errno.EPERM, f"{name}: {error}"
        else:
            pytest.fail(f"{name} worked")
    assert context.query()[0].version == 1
    poll = select.poll()
    poll.register(context.fd, select.POLLIN | select.POLLOUT)
    assert poll.poll(0) == [(context.fd, select.POLLERR)]


# --- whose context it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("paused", [False, True], ids=["idle", "queued"])
def test_forked_child_is_refused(context: Context, paused: bool) -> None:
    context.setup(4, paused=paused)
    if paused:
        context.enter([abi.nop(1, abi.RECORD)])
    before = context.snapshot()
    Child(lambda: check_foreign(context)).result()
    assert context.snapshot() == before
    context.enable()
    if paused:
        assert context.reap(1)[0].cookie == 1
    assert context.run(abi.nop(2)).cookie == 2


def test_receiver_by_scm_rights_is_refused() -> None:
    """The receiver was forked before there was a file."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def receives() -> None:
        context = Context.__new__(Context)
        [context.fd] = socket.recv_fds(theirs, 1, 1)[1]
        check_foreign(context)

    child = Child(receives)
    with Context() as context:
        context.setup(4)
        before = context.snapshot()
        socket.send_fds(ours, [b"x"], [context.fd])
        child.result()
        assert context.snapshot() == before
    ours.close()
    theirs.close()


EXECED = """
import fcntl, sys
fd, *arguments = sys.argv[1:]
answers = []
for request, argument in zip(arguments[::2], arguments[1::2]):
    try:
        answers.append(fcntl.ioctl(int(fd), int(request), bytearray.fromhex(argument)))
    except OSError as error:
        answers.append(error.errno)
print(answers)
"""


def program(fd: int) -> list[str]:
    """A command that tells what each request answers, on this file and with sound arguments."""
    arguments: list[tuple[int, ctypes.Structure]] = [
        (abi.QUERY, abi.Query(size=72)),
        (abi.SUBMIT_DMA, abi.Desc(_WORK.address, _WORK.address + PAGE, 8)),
        (abi.GET_STATUS, abi.Status()),
        (abi.SETUP_RING, abi.RingInfo(4)),
        (abi.GET_RING, abi.RingInfo()),
        (abi.RESET, abi.RingInfo()),
        (abi.SETUP2, abi.Setup2(size=56, entries=4)),
        (abi.ENABLE, abi.RingInfo()),
        (abi.ENTER, abi.Enter(size=56)),
        (abi.SNAPSHOT, abi.SnapshotArg(size=112)),
        (abi.CANCEL, abi.CancelArg(size=24, cookie=1)),
        (abi.BUFFER, abi.BufferArg(size=40, op=abi.BUFFER_ALLOC, length=PAGE)),
        (abi.EVENTFD, abi.EventfdArg(size=16, fd=-1)),
        (abi.LATENCY, abi.LatencyArg(size=40)),
        (abi.ATTEST, abi.AttestArg(size=104)),
    ]
    told = [word for request, argument in arguments for word in (str(request), bytes(argument).hex())]
    return [sys.executable, "-I", "-S", "-c", EXECED, str(fd), *told]


FOREIGN = str([0] + [errno.EPERM] * 14)


def test_executed_child_is_refused(context: Context) -> None:
    context.setup(4)
    before = context.snapshot()
    said = subprocess.run(
        program(context.fd), pass_fds=[context.fd], check=True, stdout=subprocess.PIPE, text=True
    )
    assert said.stdout.strip() == FOREIGN
    assert context.snapshot() == before


def test_exec_of_the_owner_stops_queued_entries() -> None:
    """The same process, another memory: whatever was queued before does not touch the new one."""
    reader, writer = os.pipe()

    def execs() -> None:
        own = Context()
        own.setup(4, paused=True)
        own.enter([abi.nop()])
        os.set_inheritable(own.fd, True)
        os.dup2(writer, 1)
        os.execv(sys.executable, program(own.fd))

    child = Child(execs)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        assert pipe.read().strip() == FOREIGN
    assert child.wait() == 0


def test_context_belongs_to_whoever_sets_it_up(context: Context) -> None:
    """Opened here, set up in a child: ours no longer, and still not when the child is gone."""

    def sets_up() -> None:
        assert abi.as_after_open(context)
        context.setup(4)
        assert context.run(abi.nop(1)).status == 0

    Child(sets_up).result()
    check_foreign(context)


def test_reset_frees_the_context_for_another_process(context: Context) -> None:
    context.setup(4)

    def sets_up() -> None:
        context.setup(4)
        assert context.run(abi.nop(1)).status == 0
        context.reset()

    context.reset()
    Child(sets_up).result()
    context.setup(4)
    assert context.run(abi.nop(1)).status == 0


def test_threads_share_a_context(context: Context) -> None:
    """A context belongs to a memory, not to a thread."""
    thread = Thread(lambda: context.setup(4))
    thread.join()
    assert context.run(abi.nop(5)).cookie == 5


def test_contexts_are_independent() -> None:
    with Context() as first, Context() as second:
        first.setup(4, paused=True)
        second.setup(8)
        first.enter([abi.nop(1, abi.RECORD)])
        frozen = first.snapshot()
        src, dst = Memory(PAGE), Memory(PAGE)
        for n in range(20):
            assert second.run(abi.copy(src.address, dst.address, 10, cookie=n)).cookie == n
        assert first.snapshot() == frozen
        assert second.snapshot().dma_bytes == 200
        second.reset()
        assert first.snapshot() == frozen
        first.enable()
        assert first.reap(1)[0].cookie == 1
        assert abi.as_after_open(second)


@abi.needs_root
def test_contexts_do_not_wait_for_each_other() -> None:
    """One that stands still holds up nobody else."""
    tap = Tap()
    with Context() as still, Context() as other:
        still.setup(1)
        still.submit(tap.memory.address, _WORK.address, PAGE)
        tap.reached()
        other.setup(1)
        assert other.run(abi.nop(1)).status == 0
        tap.open()
        still.drain()
    tap.close()


# --- poll -------------------------------------------------------------------------------------------------


def events(context: Context) -> int:
    poll = select.poll()
    poll.register(context.fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
    return sum(event for _, event in poll.poll(0))


def test_poll_reports_records_and_room(context: Context) -> None:
    """POLLIN: unread records. POLLOUT: room in the ring."""
    context.setup(2, paused=True)
    assert events(context) == select.POLLOUT
    context.enter([abi.nop(1, abi.RECORD)])
    assert events(context) == select.POLLOUT
    context.enter([abi.nop(2)])
    assert events(context) == 0
    context.enable()
    context.drain()
    assert events(context) == select.POLLIN | select.POLLOUT
    context.reap(1)
    assert events(context) == select.POLLOUT
    context.enter([abi.nop(3, abi.RECORD)])
    context.drain()
    assert events(context) & select.POLLIN
    context.reset()
    assert not events(context) & select.POLLIN


@pytest.mark.parametrize("waits_for", [select.POLLIN, select.POLLOUT], ids=["POLLIN", "POLLOUT"])
def test_poll_wakes_for_records_and_room(context: Context, waits_for: int) -> None:
    context.setup(1, paused=True)
    context.enter([abi.nop(1, abi.RECORD)])
    poll = select.poll()
    poll.register(context.fd, waits_for)
    assert poll.poll(0) == []
    threading.Timer(0.05, context.enable).start()
    assert poll.poll(LONG * 1000) == [(context.fd, waits_for)]


def test_each_record_is_an_epoll_edge(context: Context) -> None:
    """Every record is an edge."""
    context.setup(4)
    epoll = select.epoll()
    epoll.register(context.fd, select.EPOLLIN | select.EPOLLET)
    for n in range(5):
        context.enter([abi.nop(n, abi.RECORD)])
        assert epoll.poll(LONG) == [(context.fd, select.EPOLLIN)]
        context.reap(1)
    epoll.close()


# --- threads ----------------------------------------------------------------------------------------------


def test_many_threads_share_one_ring(context: Context) -> None:
    """Every entry runs once, every record reaches one of them once, and all bytes are counted."""
    context.setup(7)
    workers, turns, lock = 6, 60, threading.Lock()
    memory = [(Memory(2 * PAGE).randomize(), Memory(2 * PAGE)) for _ in range(workers)]
    submitted: list[int] = []
    collected: list[int] = []

    def works(number: int) -> None:
        rng = random.Random(number)
        src, dst = memory[number]
        for turn in range(turns):
            entries = []
            for part in range(rng.randrange(1, 4)):
                length = rng.randrange(1, 2 * PAGE)
                cookie = number << 48 | turn << 40 | part << 32 | length
                entries.append(abi.copy(src.address, dst.address, length, abi.RECORD, cookie))
            while entries:
                try:
                    entered = context.enter(entries, max_records=4)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    entered = context.enter(max_records=4)
                with lock:
                    submitted.extend(entry.cookie for entry in entries[: entered.submitted])
                    collected.extend(record.cookie for record in entered.records)
                    assert all(record.status == 0 for record in entered.records)
                entries = entries[entered.submitted :]

    for thread in [Thread(lambda number=number: works(number)) for number in range(workers)]:
        thread.join()
    context.drain()
    left = context.enter(max_records=14)
    collected += [record.cookie for record in left.records]
    assert sorted(collected) == sorted(submitted)
    assert len(set(collected)) == len(collected)
    snapshot = context.snapshot()
    assert (snapshot.active, snapshot.unread_records, snapshot.errors) == (0, 0, 0)
    assert snapshot.dma_bytes == sum(cookie & 0xFFFFFFFF for cookie in submitted)


def test_sync_copies_of_many_threads_get_their_own_results(context: Context) -> None:
    """Each gets its own result."""
    context.setup(3)

    def works(number: int) -> int:
        src, dst = Memory(4 * PAGE).randomize(), Memory(4 * PAGE)
        src.fill(number, 0, PAGE)
        copied = 0
        while copied < 40:
            dst.fill(0)
            try:
                context.submit(src.address, dst.address, 4 * PAGE, abi.COMPLETE_SYNC)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                continue
            assert dst.equals(src, 4 * PAGE)
            with abi.fails(errno.EFAULT):
                context.submit(src.address, 16, PAGE, abi.COMPLETE_SYNC)
            copied += 1
        return copied

    threads = [Thread(lambda number=number: works(number)) for number in range(1, 7)]
    for thread in threads:
        thread.join()
    assert context.snapshot().dma_bytes == 6 * 40 * 4 * PAGE


# --- signals and sudden death -----------------------------------------------------------------------------


@abi.needs_root
def test_sync_copy_waits_through_signals(context: Context) -> None:
    tap = Tap()
    dst = Memory(PAGE)
    context.setup(4)

    def opens() -> None:
        tap.reached()
        pending = 0
        while not pending & 1 << signal.SIGALRM - 1:
            status = Path("/proc/self/status").read_text()
            pending = int(status.split("ShdPnd:")[1].split()[0], 16)
        tap.open()

    opener = Thread(opens)
    with abi.ticking():
        context.submit(tap.memory.address, dst.address, PAGE, abi.COMPLETE_SYNC)
    opener.join()
    assert context.snapshot().dma_bytes == PAGE
    tap.close()


@abi.needs_root
@pytest.mark.parametrize("kind", ["async", "sync", "zero_copy_behind"])
@pytest.mark.parametrize("tap_first", [False, True], ids=["device_closed_first", "tap_closed_first"])
def test_process_dies_while_its_copy_stands_still(kind: str, tap_first: bool) -> None:
    """The process dies although its memory does not come, and takes nothing with it."""
    reader, writer = os.pipe()

    def stands_still() -> None:
        if tap_first:
            tap, context = Tap(), Context()
        else:
            context, tap = Context(), Tap()
        context.setup(4)
        dst = Memory(8 * PAGE)

        def tells() -> None:
            tap.reached()
            os.write(writer, b"x")

        teller = Thread(tells)
        if kind == "sync":
            context.submit(tap.memory.address, dst.address, PAGE, abi.COMPLETE_SYNC)
        context.submit(tap.memory.address, dst.address, PAGE)
        if kind == "zero_copy_behind":
            context.submit(dst.address, dst.address + 4 * PAGE, 4 * PAGE, abi.ZERO_COPY)
        teller.join()
        signal.pause()

    child = Child(stands_still)
    assert select.select([reader], [], [], LONG)[0]
    if kind == "sync":
        until_blocked(child.pid)
    child.kill()
    os.close(reader)
    os.close(writer)
    with Context() as context:
        context.setup(4)
        assert context.run(abi.nop(1)).status == 0


@pytest.mark.parametrize("kind", ["queued", "zero_copy", "running", "sync", "waiting"])
def test_killed_process_leaves_the_device_working(kind: str) -> None:
    reader, writer = os.pipe()

    def works() -> None:
        context = Context()
        memory = small_pages if kind == "zero_copy" else Memory
        src, dst = memory(256 * MIB), memory(256 * MIB)
        context.setup(64, paused=kind in ("queued", "zero_copy", "waiting"))
        match kind:
            case "queued":
                context.enter([abi.copy(src.address, dst.address, 256 * MIB)] * 64)
            case "zero_copy":
                context.enter([abi.copy(src.address, dst.address, 3 * MIB, abi.ZERO_COPY)])
            case "running":
                context.enter([abi.copy(src.address, dst.address, 256 * MIB, abi.VERIFY_HASH)] * 64)
        os.write(writer, b"x")
        match kind:
            case "sync":
                while True:
                    context.submit(src.address, dst.address, 256 * MIB, abi.COMPLETE_SYNC | abi.VERIFY_HASH)
            case "waiting":
                context.enter(max_records=1, min_records=1, deadline_ns=abi.NO_DEADLINE)
        signal.pause()

    child = Child(works)
    assert select.select([reader], [], [], LONG)[0]
    os.close(reader)
    os.close(writer)
    if kind == "waiting":
        until_blocked(child.pid)
    child.kill()
    with Context() as context:
        context.setup(4)
        assert context.run(abi.nop(1)).status == 0
        src, dst = small_pages(3 * MIB), small_pages(3 * MIB)
        # The dead process's charge is gone once its context is: close() itself waits for nothing.
        for _ in range(10000):
            try:
                context.submit(src.address, dst.address, 3 * MIB, abi.ZERO_COPY | abi.COMPLETE_SYNC)
                return
            except OSError as error:
                assert error.errno == errno.ENOMEM
                os.sched_yield()
        pytest.fail("the charge never comes back")


def test_close_ends_the_work_in_the_ring() -> None:
    """Closed with entries queued or running the device goes on for others, and the memory is ours again."""
    src, dst = Memory(64 * MIB), Memory(64 * MIB)
    for paused in (True, False):
        context = Context()
        context.setup(4, paused=paused)
        for _ in range(4):
            context.submit(src.address, dst.address, 64 * MIB)
        context.close()
    with Context() as other:
        other.setup(4)
        assert other.run(abi.nop(1)).status == 0


def test_wait_outlives_close_by_another_thread() -> None:
    """The wait holds the file: it goes on until its deadline, and breaks nothing."""
    context = Context()
    context.setup(4, paused=True)

    def waits() -> int:
        with pytest.raises(OSError, match="expired") as caught:
            context.enter(max_records=1, min_records=1, wait=0.3)
        return caught.value.errno or 0

    waiter = Thread(waits)
    until_blocked(waiter.native_id)
    context.close()
    waiter.join()
    assert waiter.result == errno.ETIME


def test_munmap_against_a_running_copy_is_safe(context: Context) -> None:
    """Unmapping against a running copy: EFAULT or done, and the bytes counted are the bytes moved."""
    context.setup(4)
    for _ in range(10):
        src, dst = Memory(8 * MIB).randomize(), Memory(8 * MIB)
        before = context.snapshot().dma_bytes
        context.submit(src.address, dst.address, 8 * MIB, abi.RECORD)
        src.unmap(4 * MIB, 4 * MIB)
        [record] = context.reap(1)
        assert record.status in (0, -errno.EFAULT)
        assert (record.status == 0) == (record.bytes_done == 8 * MIB)
        assert context.snapshot().dma_bytes - before == record.bytes_done
        shown = min(record.bytes_done, 4 * MIB)
        assert dst.equals(src, shown)


def test_many_contexts_work_at_once() -> None:
    """Not more than an ordinary user may have: rings count as locked memory."""
    with contextlib.ExitStack() as stack:
        contexts = [stack.enter_context(Context()) for _ in range(50)]
        for n, context in enumerate(contexts):
            context.setup(1 + n)
            context.enter([abi.nop(n, abi.RECORD)])
        assert [context.reap(1)[0].cookie for context in contexts] == list(range(50))
