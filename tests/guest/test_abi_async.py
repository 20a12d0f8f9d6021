# SPDX-License-Identifier: MIT
"""How completion records reach who wants them: read(), eventfd; and how long entries took: LATENCY."""

import ctypes
import errno
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import abi
import pytest
from abi import (
    LONG,
    MIB,
    PAGE,
    SYS_READ,
    Context,
    Memory,
    Tap,
    Thread,
    address_of,
    small_pages,
    until_blocked,
)

RECORD = 128


@pytest.fixture
def told() -> Iterator[int]:
    """An eventfd that read() does not wait for."""
    told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield told
    os.close(told)


def ready(context: Context, count: int, first: int = 0) -> None:
    """So many records are unread, their cookies counting from first on."""
    for n in range(first, first + count):
        context.enter([abi.nop(n, abi.RECORD | abi.COMPLETE_SYNC)])


# --- read() -----------------------------------------------------------------------------------------------


def test_read_hands_out_what_fits(context: Context) -> None:
    context.setup(8)
    ready(context, 7)
    assert [record.cookie for record in context.read(3)] == [0, 1, 2]
    # Less than two records' room is one record's.
    memory = Memory(PAGE)
    memory.fill(0xEE)
    assert abi.read(context.fd, memory.address, 2 * RECORD - 1) == RECORD
    assert int.from_bytes(memory.read(0, 8), "little") == 3
    assert memory.read(RECORD) == b"\xee" * (PAGE - RECORD)
    assert [record.cookie for record in context.read(100)] == [4, 5, 6]
    assert context.snapshot().unread_records == 0


def test_read_gives_the_records_enter_gives(context: Context) -> None:
    context.setup(8)
    src, dst = Memory(PAGE).randomize(), Memory(PAGE)
    entry = abi.copy(src.address, dst.address, 100, abi.RECORD | abi.VERIFY_HASH, 2**64 - 1)
    context.enter([entry, entry])
    [first] = context.read(1)
    [second] = context.reap(1)
    for record in (first, second):
        assert (record.size, record.cookie, record.status, record.bytes_done) == (128, 2**64 - 1, 0, 100)
    assert bytes(first.src_digest) == bytes(second.dst_digest) != bytes(32)


@pytest.mark.parametrize("length", [0, 1, 127])
def test_read_refuses_less_than_a_record(context: Context, length: int) -> None:
    context.setup(8)
    ready(context, 1)
    memory = Memory(PAGE)
    with context.refuses(errno.EINVAL):
        abi.read(context.fd, memory.address, length)


def test_read_accepts_a_huge_length(context: Context) -> None:
    """However much room is promised: what is written is what there is."""
    context.setup(8)
    ready(context, 2)
    memory = Memory(PAGE)
    # mappings can be as near as that to where user space ends
    assert abi.read(context.fd, memory.address, 64 * MIB) == 2 * RECORD
    ready(context, 1)
    with pytest.raises(OSError):
        abi.read(context.fd, memory.address, 2**63)
    assert len(context.read(1)) == 1


def test_nonblocking_read_answers_eagain(context: Context) -> None:
    context.setup(4, paused=True)
    os.set_blocking(context.fd, False)
    context.enter([abi.nop(1, abi.RECORD)])
    with context.refuses(errno.EAGAIN):
        context.read()
    context.enable()
    context.drain()
    assert context.read()[0].cookie == 1
    with context.refuses(errno.EAGAIN):
        context.read()
    os.set_blocking(context.fd, True)
    context.enter([abi.nop(2, abi.RECORD)])
    assert context.read()[0].cookie == 2


def test_read_waits_for_the_first_record(context: Context) -> None:
    """And for no more than that."""
    context.setup(4, paused=True)
    context.enter([abi.nop(1, abi.RECORD)])
    reader = Thread(lambda: context.read(4))
    until_blocked(reader.native_id, SYS_READ)
    context.enable()
    reader.join()
    assert [record.cookie for record in reader.result] == [1]


def test_read_waits_for_a_record_submitted_later(context: Context) -> None:
    context.setup(4)
    reader = Thread(lambda: context.read(4))
    until_blocked(reader.native_id, SYS_READ)
    context.enter([abi.nop(1)])
    context.enter([abi.nop(2, abi.RECORD)])
    reader.join()
    assert [record.cookie for record in reader.result] == [2]


def test_reset_ends_a_read(context: Context) -> None:
    """With ECANCELED, or with the canceled entry's record if it is quick."""
    context.setup(4, paused=True)
    context.enter([abi.nop(1, abi.RECORD)])

    def reads() -> int:
        try:
            return context.read()[0].status
        except OSError as error:
            return -(error.errno or 0)

    reader = Thread(reads)
    until_blocked(reader.native_id, SYS_READ)
    context.reset()
    reader.join()
    assert reader.result == -errno.ECANCELED
    assert abi.as_after_open(context)


def test_signal_ends_a_read(context: Context) -> None:
    """A handler that does not restart calls gets EINTR; no record is lost by it."""
    context.setup(4, paused=True)
    context.enter([abi.nop(1, abi.RECORD)])
    with abi.ticking():
        for _ in range(3):
            with context.refuses(errno.EINTR):
                context.read()
    context.enable()
    assert context.read()[0].cookie == 1


def test_python_read_resumes_after_signals(context: Context) -> None:
    """What restarts a read() gets its record at last."""
    context.setup(4, paused=True)
    context.enter([abi.nop(1, abi.RECORD)])
    threading.Timer(0.1, context.enable).start()
    with abi.ticking():
        data = os.read(context.fd, 1000)
    assert len(data) == RECORD and data[0] == 1


def test_faulting_buffer_loses_nothing(context: Context) -> None:
    context.setup(4)
    ready(context, 4)
    for address in (0, 16, 1 << 63, 2**64 - RECORD):
        with context.refuses(errno.EFAULT):
            abi.read(context.fd, address, 4 * RECORD)

    memory = Memory(2 * PAGE)
    memory.protect(mmap.PROT_READ, PAGE)
    start = PAGE - 2 * RECORD - 60  # two whole records fit
    got = abi.read(context.fd, memory.address + start, 4 * RECORD)
    assert got % RECORD == 0 and got <= 2 * RECORD
    cookies = [int.from_bytes(memory.read(start + at, 8), "little") for at in range(0, got, RECORD)]
    cookies += [record.cookie for record in context.read(4)]
    assert cookies == [0, 1, 2, 3]


def test_one_read_crosses_the_end_of_the_queue(context: Context) -> None:
    """Records that do not stand side by side in the driver come in one read() all the same."""
    context.setup(3)
    ready(context, 5)
    assert len(context.read(4)) == 4
    ready(context, 5, first=5)
    assert [record.cookie for record in context.read(100)] == [4, 5, 6, 7, 8, 9]


def test_read_frees_the_room_it_took(context: Context) -> None:
    context.setup(1)
    ready(context, 2)
    with context.refuses(errno.ENOSPC):
        context.enter([abi.nop(2, abi.RECORD)])
    context.read(1)
    assert context.enter([abi.nop(2, abi.RECORD)]).submitted == 1
    context.drain()
    assert [record.cookie for record in context.read(2)] == [1, 2]


@pytest.mark.parametrize("parts", [[100, 28, 128], [1, 254, 1, 127], [128, 128, 1], [0, 256]])
def test_readv_fills_parts_of_any_size(context: Context, parts: list[int]) -> None:
    """Where the memory is split does not matter, inside a record or between two."""
    context.setup(8)
    ready(context, 3)
    buffers = [bytearray(part) for part in parts]
    assert os.readv(context.fd, buffers) == 2 * RECORD
    said = b"".join(buffers)
    assert [int.from_bytes(said[at : at + 8], "little") for at in (0, RECORD)] == [0, 1]
    assert said[2 * RECORD :] == bytes(sum(parts) - 2 * RECORD)
    assert [record.cookie for record in context.read(3)] == [2]


def test_readv_refuses_less_than_a_record(context: Context) -> None:
    context.setup(8)
    ready(context, 1)
    with context.refuses(errno.EINVAL):
        os.readv(context.fd, [bytearray(100), bytearray(27)])


def test_readv_that_faults_loses_nothing(context: Context) -> None:
    """The second record is cut short in the second part: it stays, whole."""
    context.setup(8)
    ready(context, 3)
    memory, first = Memory(2 * PAGE), bytearray(RECORD + 50)
    memory.unmap(PAGE, PAGE)
    parts = struct.pack(
        "=QQQQ",
        address_of((ctypes.c_char * len(first)).from_buffer(first)),
        len(first),
        memory.address + PAGE - 20,
        2 * RECORD,
    )
    assert abi.readv(context.fd, parts) == RECORD
    assert [record.cookie for record in context.read(3)] == [1, 2]


def test_each_record_reaches_one_of_many_readers(context: Context) -> None:
    """Every record reaches one of them, once, and nobody is left waiting while there are some."""
    context.setup(16)
    total, readers, got, lock = 400, 4, [], threading.Lock()

    def reads() -> None:
        while True:
            records = context.read(3)
            with lock:
                got.extend(record.cookie for record in records)
            if any(record.cookie == 2**64 - 1 for record in records):
                return

    threads = [Thread(reads) for _ in range(readers)]
    sent = 0
    while sent < total + readers:
        entries = [abi.nop(n, abi.RECORD) for n in range(sent, min(sent + 8, total))]
        # One last record for each, and one at a time: nobody can take two of them.
        entries = entries or [abi.nop(2**64 - 1, abi.RECORD)]
        if sent >= total:
            while context.snapshot().unread_records:
                os.sched_yield()
        try:
            sent += context.enter(entries).submitted
        except OSError as error:
            assert error.errno == errno.ENOSPC
            os.sched_yield()
        if sent > total:
            end = time.monotonic() + LONG
            while got.count(2**64 - 1) < sent - total and time.monotonic() < end:
                os.sched_yield()
    for thread in threads:
        thread.join()
    assert sorted(got) == [*range(total), *[2**64 - 1] * readers]


def test_read_and_enter_share_the_records(context: Context) -> None:
    context.setup(8)
    ready(context, 6)
    assert context.read(1)[0].cookie == 0
    assert context.reap(2)[0].cookie == 1
    assert [record.cookie for record in context.read(3)] == [3, 4, 5]


def test_read_outlives_close_by_another_thread() -> None:
    """The call holds the file: it waits on, until its record comes."""
    context = Context()
    context.setup(4, paused=True)
    other = Context.__new__(Context)
    other.fd = os.dup(context.fd)
    reader = Thread(lambda: context.read())
    until_blocked(reader.native_id, SYS_READ)
    context.close()
    other.enable()
    other.enter([abi.nop(5, abi.RECORD)])
    reader.join()
    assert reader.result[0].cookie == 5
    other.close()


@abi.needs_root
def test_stalled_copy_does_not_block_read_and_poll(context: Context) -> None:
    """What waits for records waits for no memory: poll() and read() go on telling what there is."""
    tap = Tap()
    context.setup(4)
    dst = Memory(PAGE)
    context.enter([abi.nop(1, abi.RECORD)])
    context.submit(tap.memory.address, dst.address, PAGE, abi.RECORD, 2)
    tap.reached()
    assert context.read(4)[0].cookie == 1
    os.set_blocking(context.fd, False)
    with context.refuses(errno.EAGAIN):
        context.read()
    tap.open()
    assert select.select([context.fd], [], [], LONG)[0]
    assert context.read(4)[0].cookie == 2
    tap.close()


# --- eventfd ----------------------------------------------------------------------------------------------


def test_eventfd_counts_records(context: Context, told: int) -> None:
    """By 1 for each, whatever its status; entries without a record do not count, nor did those before."""
    context.setup(8)
    ready(context, 3)
    context.eventfd(told)
    with abi.fails(errno.EAGAIN):
        os.eventfd_read(told)
    memory = Memory(2 * PAGE)
    pair = (memory.address, memory.address + PAGE, 8)
    context.enter([abi.nop(1, abi.RECORD), abi.nop(2), abi.compare(*pair, abi.RECORD)])
    memory.flip(0)
    context.enter([abi.compare(*pair, abi.RECORD | abi.LINK), abi.nop(4, abi.RECORD)])
    context.drain()
    assert os.eventfd_read(told) == 4
    assert context.snapshot().unread_records == 7
    context.reap(7)
    with abi.fails(errno.EAGAIN):
        os.eventfd_read(told)


def test_eventfd_is_raised_when_the_record_is_there(context: Context) -> None:
    """Who reads the eventfd and then the records finds as many as it said."""
    told = os.eventfd(0, os.EFD_SEMAPHORE)
    context.setup(16)
    context.eventfd(told)
    os.set_blocking(context.fd, False)
    for turn in range(50):
        context.enter([abi.nop(turn, abi.RECORD), abi.nop(turn, abi.RECORD)])
        for _ in range(2):
            os.eventfd_read(told)
            assert context.read(1)[0].cookie == turn
    os.close(told)


def test_eventfd_wakes_poll(context: Context, told: int) -> None:
    context.setup(4, paused=True)
    context.eventfd(told)
    context.enter([abi.nop(1, abi.RECORD)])
    assert not select.select([told], [], [], 0)[0]
    threading.Timer(0.05, context.enable).start()
    assert select.select([told], [], [], LONG)[0]
    assert os.eventfd_read(told) == 1


def test_eventfd_is_replaced_and_removed(context: Context, told: int) -> None:
    other = os.eventfd(0, os.EFD_NONBLOCK)
    context.setup(4)
    context.eventfd(told)
    ready(context, 1)
    context.eventfd(other)
    ready(context, 2)
    context.eventfd(other)  # again: it is raised once for each, not twice
    ready(context, 1)
    context.eventfd(-1)
    ready(context, 1)
    context.eventfd(-1)  # there is none, and that is as asked
    assert os.eventfd_read(told) == 1
    assert os.eventfd_read(other) == 3
    os.close(other)


def test_rings_share_an_eventfd(context: Context, told: int) -> None:
    with Context() as other:
        for ring in (context, other):
            ring.setup(4)
            ring.eventfd(told)
            ready(ring, 2)
        assert os.eventfd_read(told) == 4


def test_eventfd_survives_setup_and_ends_with_reset(context: Context, told: int) -> None:
    context.setup(4)
    context.eventfd(told)
    context.setup(5)
    ready(context, 1)
    assert os.eventfd_read(told) == 1
    context.reap(1)
    context.reset()
    context.setup(4)
    ready(context, 1)
    with abi.fails(errno.EAGAIN):
        os.eventfd_read(told)


def test_other_files_are_refused_as_eventfd(context: Context, told: int) -> None:
    """Refused, and the one there was stays."""
    context.setup(8)
    context.eventfd(told)
    reader, writer = os.pipe()
    left, right = socket.socketpair()
    for fd in (reader, writer, left.fileno(), context.fd):
        with context.refuses(errno.EINVAL):
            context.eventfd(fd)
    closed = os.dup(reader)
    os.close(closed)
    for fd in (closed, -2, 2**31 - 1, -(2**31)):
        with context.refuses(errno.EBADF):
            context.eventfd(fd)
    ready(context, 1)
    assert os.eventfd_read(told) == 1
    for fd in (reader, writer):
        os.close(fd)
    left.close()
    right.close()


def test_ring_runs_with_a_closed_eventfd(context: Context) -> None:
    """The ring goes on raising what nobody can read any more."""
    told = os.eventfd(0)
    context.setup(4)
    context.eventfd(told)
    os.close(told)
    ready(context, 3)
    assert len(context.reap(3)) == 3


def test_full_eventfd_loses_no_record(context: Context, told: int) -> None:
    """Its counter stops where it cannot grow; no record is lost for that, and nobody waits."""
    context.setup(4)
    os.eventfd_write(told, 2**64 - 2)
    context.eventfd(told)
    ready(context, 3)
    assert len(context.reap(3)) == 3


def number_of(eventfd: int) -> int:
    """The kernel numbers eventfds: the lowest number that is free."""
    with open(f"/proc/self/fdinfo/{eventfd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("eventfd-id:"))


@pytest.mark.parametrize("end", ["close", "reset", "replace", "remove"])
def test_ring_releases_its_eventfd(end: str) -> None:
    """By numbers: they would grow with every one the driver kept."""
    probe = os.eventfd(0)
    before = number_of(probe)
    os.close(probe)
    context = Context()
    for _ in range(64):
        if context.fd < 0:
            context = Context()
        if context.snapshot().ring_size == 0:
            context.setup(4)
        told = os.eventfd(0)
        context.eventfd(told)
        os.close(told)
        match end:
            case "close":
                context.close()
            case "reset":
                context.reset()
            case "remove":
                context.eventfd(-1)
    context.close()
    probe = os.eventfd(0)
    assert number_of(probe) < before + 32
    os.close(probe)


# --- LATENCY ----------------------------------------------------------------------------------------------


def test_latency_matches_the_records(context: Context) -> None:
    """Every time in its bucket, their sum, and the longest."""
    context.setup(16)
    assert context.latency() == (0, 0, 0, (0,) * abi.LATENCY_BUCKETS)
    src, dst = small_pages(MIB), small_pages(MIB)
    times = []
    for length in (1, PAGE, MIB):
        for flags in (0, abi.ZERO_COPY, abi.VERIFY_HASH):
            copy = abi.copy(src.address, dst.address, length, flags | abi.RECORD)
            context.enter([copy, abi.nop(0, abi.RECORD)] * 3)
            times += [record.completed_ns - record.queued_ns for record in context.reap(6)]
    latency = context.latency()
    assert latency.count == len(times) == sum(latency.buckets)
    assert latency.sum_ns == sum(times)
    assert latency.max_ns == max(times)
    expected = [0] * abi.LATENCY_BUCKETS
    for took in times:
        expected[abi.bucket_of(took)] += 1
    assert latency.buckets == tuple(expected)


def test_latency_counts_entries_without_a_record(context: Context) -> None:
    context.setup(8)
    src, dst = Memory(PAGE), Memory(PAGE)
    context.submit(src.address, dst.address, PAGE)
    context.submit(src.address, dst.address, PAGE, abi.COMPLETE_SYNC)
    latency = context.latency()
    assert latency.count == 2 == sum(latency.buckets)
    assert latency.max_ns <= latency.sum_ns


def test_latency_counts_only_entries_that_ran(context: Context) -> None:
    """With whatever result; what was refused, or canceled, is no measure of anything."""
    context.setup(8, paused=True)
    memory = Memory(2 * PAGE)
    memory.flip(0)
    differs = abi.compare(memory.address, memory.address + PAGE, 8, abi.RECORD | abi.LINK)
    context.enter([abi.nop(1, abi.RECORD), abi.nop(2, abi.RECORD), differs, abi.nop(3, abi.RECORD)])
    with context.refuses(errno.EINVAL):
        context.enter([abi.nop(0, 1 << 31)])
    context.cancel(2)
    assert context.latency().count == 0
    context.enable()
    statuses = [record.status for record in context.reap(4)]
    assert statuses == [0, -errno.ECANCELED, -errno.EBADMSG, -errno.ECANCELED]
    assert context.latency().count == 2


def test_latency_survives_setup_and_ends_with_reset(context: Context) -> None:
    context.setup(4)
    ready(context, 3)
    context.reap(3)
    before = context.latency()
    assert before.count == 3
    context.setup(5)
    assert context.latency() == before
    context.reset()
    context.setup(4)
    assert context.latency().count == 0


def test_latency_is_consistent_while_the_ring_runs(context: Context) -> None:
    """While the ring runs, what the buckets hold is what was counted."""
    context.setup(64)
    stop = threading.Event()

    def works() -> None:
        while not stop.is_set():
            context.enter([abi.nop()] * 16)
            context.drain()

    worker = Thread(works)
    counts = []
    for _ in range(200):
        latency = context.latency()
        counts.append(latency.count)
        assert sum(latency.buckets) == latency.count
        highest = max((n for n, count in enumerate(latency.buckets) if count), default=0)
        assert abi.bucket_of(latency.max_ns) == highest
    stop.set()
    worker.join()
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    "nanoseconds,bucket",
    [
        (0, 0),
        (7, 7),
        (8, 8),
        (9, 9),
        (15, 15),
        (16, 16),
        (17, 16),
        (18, 17),
        (31, 23),
        (32, 24),
        (1000, 63),
        (2**63, 488),
        (2**64 - 1, abi.LATENCY_BUCKETS - 1),
    ],
)
def test_bucket_of_follows_the_header(nanoseconds: int, bucket: int) -> None:
    """Of the helper above, so that the tests stand on something."""
    assert abi.bucket_of(nanoseconds) == bucket


# --- AIO --------------------------------------------------------------------------------------------------


AIO = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}[os.uname().machine]


class Aio:
    """A context of the kernel's own AIO: io_submit() and io_getevents()."""

    _SETUP, _DESTROY, _GETEVENTS, _SUBMIT = AIO
    PREAD, POLL = 0, 5

    def __init__(self) -> None:
        self._context = ctypes.c_uint64()
        self._call(self._SETUP, 8, ctypes.byref(self._context))

    def _call(self, number: int, *arguments: object) -> int:
        result: int = abi._libc.syscall(number, *arguments)
        if result < 0:
            raise abi.failed()
        return result

    def submit(self, fd: int, operation: int, address: int = 0, length: int = 0, data: int = 7) -> None:
        iocb = struct.pack("=QIiHhIQQqQII", data, 0, 0, operation, 0, fd, address, length, 0, 0, 0, 0)
        control = ctypes.create_string_buffer(iocb, len(iocb))
        pointer = ctypes.c_void_p(ctypes.addressof(control))
        assert self._call(self._SUBMIT, self._context, ctypes.c_long(1), ctypes.byref(pointer)) == 1

    def events(self) -> list[int]:
        """Results, once there is one."""
        events, timeout = ctypes.create_string_buffer(8 * 32), struct.pack("=qq", int(LONG), 0)
        got = self._call(self._GETEVENTS, self._context, ctypes.c_long(1), ctypes.c_long(8), events, timeout)
        return [result for _, _, result, _ in struct.iter_unpack("=QQqq", events.raw[: 32 * got])]

    def close(self) -> None:
        self._call(self._DESTROY, self._context)


@pytest.fixture
def aio() -> Iterator[Aio]:
    aio = Aio()
    yield aio
    aio.close()


def test_aio_poll_agrees_with_poll(context: Context, aio: Aio) -> None:
    """It asks from a thread of the kernel's, which has nobody's memory."""
    context.setup(8)
    for _ in range(3):
        aio.submit(context.fd, Aio.POLL, select.POLLIN)
        context.enter([abi.nop(1, abi.RECORD)])
        assert aio.events() == [select.POLLIN]
        context.reap(1)
    context.enter([abi.nop(1, abi.RECORD | abi.COMPLETE_SYNC)])
    aio.submit(context.fd, Aio.POLL, select.POLLIN | select.POLLOUT)
    assert aio.events() == [select.POLLIN | select.POLLOUT]


def test_aio_poll_reports_reset_as_pollhup(context: Context, aio: Aio) -> None:
    context.setup(8, paused=True)
    aio.submit(context.fd, Aio.POLL, select.POLLIN)
    context.reset()
    assert aio.events() == [select.POLLHUP]


def test_aio_reads_records(context: Context, aio: Aio) -> None:
    context.setup(8)
    ready(context, 2)
    memory = Memory(PAGE)
    aio.submit(context.fd, Aio.PREAD, memory.address, PAGE)
    assert aio.events() == [2 * RECORD]
    assert memory.read(0, 8) == bytes(8)
