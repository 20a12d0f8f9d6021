# SPDX-License-Identifier: MIT
"""Every request in every state, and with bad arguments: the table of docs/reference/requests.md."""

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import abi
import pytest
from abi import PAGE, Context, Memory

# --- the states -------------------------------------------------------------------------------------------

STATES = ["fresh", "idle", "queued", "unread", "reset"]


def bring_to(state: str, context: Context) -> None:
    match state:
        case "idle":
            context.setup(4)
        case "queued":
            context.setup(4, paused=True)
            context.enter([abi.nop(7)])
        case "unread":
            context.setup(4)
            context.enter([abi.nop(7, abi.RECORD)])
            context.drain()
        case "reset":
            context.setup(4)
            context.enter([abi.nop(7, abi.RECORD)])
            context.reset()


# --- what a request does where it is served ---------------------------------------------------------------


def submit(context: Context) -> None:
    memory = Memory(2 * PAGE)
    context.submit(memory.address, memory.address + PAGE, 100)


def submit_works(context: Context) -> None:
    paused = context.snapshot().state & abi.STATE_PAUSED
    before = context.ring()
    src, dst = Memory(PAGE).randomize(), Memory(PAGE)
    context.submit(src.address, dst.address, 100)
    assert context.ring().head == (before.head + 1) % before.ring_size
    if not paused:
        context.drain()
        assert dst.read() == src.read(0, 100) + bytes(PAGE - 100)


def get_status(context: Context) -> None:
    context.status()


def get_status_works(context: Context) -> None:
    status, snapshot = context.status(), context.snapshot()
    assert (status.dma_bytes, bytes(status.ring_hash)) == (snapshot.dma_bytes, snapshot.ring_hash)
    assert (status.ring_size, status.active_descriptors) == (snapshot.ring_size, snapshot.active)
    assert snapshot.ring_hash == snapshot.computed_hash()


def setup_ring(context: Context) -> None:
    context.setup_ring(5)


def setup_ring_works(context: Context) -> None:
    context.setup_ring(5, label=0xFEDCBA9876543210)
    assert bytes(context.ring()) == bytes(abi.RingInfo(5, 0, 0, 0, 0xFEDCBA9876543210))
    assert context.snapshot().state == 0


def setup2(context: Context) -> None:
    context.setup(6)


def setup2_works(context: Context) -> None:
    assert context.setup(6, label=2**64 - 1).records == 12
    assert bytes(context.ring()) == bytes(abi.RingInfo(6, 0, 0, 0, 2**64 - 1))


def get_ring(context: Context) -> None:
    context.ring()


def get_ring_works(context: Context) -> None:
    ring, snapshot = context.ring(), context.snapshot()
    assert bytes(ring) == bytes(
        abi.RingInfo(snapshot.ring_size, snapshot.head, snapshot.tail, 0, snapshot.ring_addr)
    )
    assert (ring.ring_size, ring.ring_addr) == (4, abi.OLD_LABEL)


def reset(context: Context) -> None:
    context.reset()


def reset_works(context: Context) -> None:
    context.reset()
    assert abi.as_after_open(context)
    context.setup(3)


def query(context: Context) -> None:
    context.query()


def query_works(context: Context) -> None:
    before = context.snapshot()
    assert context.query()[0].version == 1
    assert context.snapshot() == before


def enable(context: Context) -> None:
    context.enable()


def enable_works(context: Context) -> None:
    before = context.snapshot()
    context.enable()
    context.drain()
    after = context.snapshot()
    assert (after.state, after.active, after.unread_records) == (0, 0, before.unread_records)


def enter(context: Context) -> None:
    context.enter()


def enter_works(context: Context) -> None:
    before = context.snapshot()
    assert context.enter() == (0, 0, [])
    assert context.snapshot() == before
    assert context.enter([abi.nop()]).submitted == 1
    assert context.snapshot().head == (before.head + 1) % before.ring_size


def snapshot(context: Context) -> None:
    context.snapshot()


def snapshot_works(context: Context) -> None:
    first = context.snapshot()
    assert first == context.snapshot()
    assert first.computed_hash() == first.ring_hash


def snapshot_is_zeros(context: Context) -> None:
    assert context.snapshot() == abi.UNTOUCHED


def status_is_zeros(context: Context) -> None:
    status = context.status()
    assert bytes(status) == bytes(8) + abi.UNTOUCHED.ring_hash + bytes(8)


def cancel(context: Context) -> None:
    context.cancel(7)


def cancel_works(context: Context) -> None:
    before = context.snapshot()
    if before.active:
        assert context.cancel(7) == 1
        assert context.snapshot() == before
        context.enable()
        context.drain()
        after = context.snapshot()
        assert (after.active, after.errors, after.first_error) == (0, 1, -errno.ECANCELED)
    else:
        with context.refuses(errno.ENOENT):
            context.cancel(7)


def buffer(context: Context) -> None:
    context.alloc(PAGE)


def buffer_works(context: Context) -> None:
    before = context.snapshot()
    buffer = context.alloc(PAGE)
    handle = context.register(_WORK)
    assert buffer.handle != handle
    context.free(buffer.handle)
    context.free(handle)
    with context.refuses(errno.ENOENT):
        context.free(handle)
    assert context.snapshot() == before


def eventfd(context: Context) -> None:
    context.eventfd(-1)


def eventfd_works(context: Context) -> None:
    told = os.eventfd(0, os.EFD_NONBLOCK)
    context.eventfd(told)
    with abi.fails(errno.EAGAIN):
        os.eventfd_read(told)
    context.enable()
    context.enter([abi.nop(8, abi.RECORD)])
    context.drain()
    assert os.eventfd_read(told) == 1
    os.close(told)


def latency(context: Context) -> None:
    context.latency()


def latency_works(context: Context) -> None:
    before = context.latency()
    context.enable()
    context.drain()
    after = context.latency()
    assert after.count > before.count
    assert sum(after.buckets) == after.count


def read(context: Context) -> None:
    os.set_blocking(context.fd, False)
    context.read()


def attest(context: Context) -> None:
    context.attest()


def attest_works(context: Context) -> None:
    """Without a key it says so; test_abi_attest.py has the rest."""
    with context.refuses(errno.ENOKEY):
        context.attest()


def read_works(context: Context) -> None:
    os.set_blocking(context.fd, False)
    if context.snapshot().unread_records:
        assert [record.cookie for record in context.read(4)] == [7]
    with context.refuses(errno.EAGAIN):
        context.read()


def map_(context: Context) -> None:
    Memory(PAGE, fd=context.fd, flags=mmap.MAP_SHARED)


def map_works(context: Context) -> None:
    with context.refuses(errno.EINVAL):
        map_(context)
    buffer = context.alloc(PAGE)
    assert context.map(buffer).read() == bytes(PAGE)


def unknown(context: Context) -> None:
    context.ioctl(0xC0404E10, abi.Entry())


Check = Callable[[Context], None]
REQUESTS: dict[Check, dict[str, Check | int]] = {
    # without a ring, with an idle one, with entries queued or records unread
    submit: {"none": errno.EINVAL, "idle": submit_works, "busy": submit_works},
    get_status: {"none": status_is_zeros, "idle": get_status_works, "busy": get_status_works},
    setup_ring: {"none": setup_ring_works, "idle": setup_ring_works, "busy": errno.EBUSY},
    setup2: {"none": setup2_works, "idle": setup2_works, "busy": errno.EBUSY},
    get_ring: {"none": errno.EINVAL, "idle": get_ring_works, "busy": get_ring_works},
    reset: {"none": errno.EINVAL, "idle": reset_works, "busy": reset_works},
    query: {"none": query_works, "idle": query_works, "busy": query_works},
    enable: {"none": errno.EINVAL, "idle": enable_works, "busy": enable_works},
    enter: {"none": errno.EINVAL, "idle": enter_works, "busy": enter_works},
    snapshot: {"none": snapshot_is_zeros, "idle": snapshot_works, "busy": snapshot_works},
    cancel: {"none": errno.EINVAL, "idle": cancel_works, "busy": cancel_works},
    buffer: {"none": errno.EINVAL, "idle": buffer_works, "busy": buffer_works},
    eventfd: {"none": errno.EINVAL, "idle": eventfd_works, "busy": eventfd_works},
    latency: {"none": errno.EINVAL, "idle": latency_works, "busy": latency_works},
    attest: {"none": errno.EINVAL, "idle": attest_works, "busy": attest_works},
    read: {"none": errno.EINVAL, "idle": read_works, "busy": read_works},
    map_: {"none": errno.EINVAL, "idle": map_works, "busy": map_works},
    unknown: dict.fromkeys(["none", "idle", "busy"], errno.ENOTTY),
}
COLUMN = {"fresh": "none", "reset": "none", "idle": "idle", "queued": "busy", "unread": "busy"}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.__name__)
def test_every_request_answers_as_the_table_says(context: Context, request_: Check, state: str) -> None:
    bring_to(state, context)
    expected = REQUESTS[request_][COLUMN[state]]
    if isinstance(expected, int):
        with context.refuses(expected):
            request_(context)
    else:
        expected(context)


# --- set-up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", [False, True], ids=["fresh", "idle"])
def test_setup_refuses_wrong_sizes(context: Context, ring: bool) -> None:
    if ring:
        context.setup(4)
    for size in (0, 4097, 8192, 2**31, 2**32 - 1):
        with context.refuses(errno.EINVAL):
            context.setup_ring(size)
        with context.refuses(errno.EINVAL):
            context.setup(size)


@pytest.mark.parametrize("field", ["head", "tail", "reserved"])
def test_setup_ring_refuses_nonzero_fields(context: Context, field: str) -> None:
    for value in (1, 2**32 - 1):
        with context.refuses(errno.EINVAL):
            context.setup_ring(4, **{field: value})


def test_setup2_refuses_unknown_flags(context: Context) -> None:
    for bit in range(1, 32):
        with context.refuses(errno.EINVAL):
            context.setup(4, flags=1 << bit)


def test_setup2_refuses_name_without_end(context: Context) -> None:
    with context.refuses(errno.EINVAL):
        context.setup(4, engine=b"cpu" + b"x" * 29)


def test_setup2_refuses_unknown_engines(context: Context) -> None:
    for name in (b"no such engine", b"x" * 31, b"AUTO", b"auto ", b"\xff"):
        with context.refuses(errno.ENODEV):
            context.setup(4, engine=name)


def test_setup2_takes_every_engine_by_name(context: Context) -> None:
    """Every engine there is can be asked for by name, and then runs the ring."""
    for engine in context.query(16)[1]:
        context.setup(4, engine=engine.name)
        src, dst = Memory(PAGE).randomize(), Memory(PAGE)
        record = context.run(abi.copy(src.address, dst.address, PAGE))
        assert context.snapshot().engine == record.engine == engine.id
    context.setup(4, engine=b"")
    assert context.snapshot().engine in [engine.id for engine in context.query(16)[1]]


@pytest.fixture
def max_rings() -> Iterator[Path]:
    limit = abi.SYSFS / "limits" / "max_rings"
    before = limit.read_text()
    yield limit
    limit.write_text(before)


@abi.needs_root
def test_setup_refuses_beyond_max_rings(context: Context, max_rings: Path) -> None:
    context.setup(4)
    max_rings.write_text("1")
    with Context() as second:
        with second.refuses(errno.ENFILE):
            second.setup(4)
        with second.refuses(errno.ENFILE):
            second.setup_ring(4)
        context.setup(5)  # a ring in place of its own is no new one
        context.reset()
        second.setup(4)


@abi.needs_root
def test_reset_and_close_give_rings_back(context: Context, max_rings: Path) -> None:
    """By RESET and by close()."""
    max_rings.write_text("2")
    for _ in range(10):
        context.setup(1)
        with Context() as other:
            other.setup(1)
        context.reset()


# --- QUERY ------------------------------------------------------------------------------------------------


def test_query_reports_version_features_and_limits(context: Context) -> None:
    query, engines = context.query(16)
    assert query.version == 1
    assert query.features == 0b111111
    assert query.requests == sum(1 << n for n in range(1, 16))
    assert query.opcodes == 0b11111
    assert query.entry_flags == 0b1111111
    assert query.max_length == 1 << 30
    assert query.max_entries == 4096
    assert query.setup_flags == abi.SETUP_PAUSED
    assert query.num_engines == len(engines) >= 1
    assert {engine.size for engine in engines} == {40}
    assert b"cpu" in [engine.name for engine in engines]
    ids = [engine.id for engine in engines]
    assert min(ids) >= 1 and len(set(ids)) == len(ids)


def test_query_writes_no_more_engines_than_asked(context: Context) -> None:
    engines = (abi.EngineInfo * 2)()
    ctypes.memset(engines, 0xEE, ctypes.sizeof(engines))
    for count in (0, 1):
        query = abi.Query(size=72, engines=abi.address_of(engines), max_engines=count)
        context.ioctl(abi.QUERY, query)
        assert query.num_engines >= 1
        assert bytes(engines)[40 * count :] == b"\xee" * (80 - 40 * count)
    assert engines[0].size == 40


def test_query_refuses_a_bad_engines_array(context: Context) -> None:
    with context.refuses(errno.EFAULT):
        context.ioctl(abi.QUERY, abi.Query(size=72, engines=16, max_engines=1))


# --- arguments --------------------------------------------------------------------------------------------

SIZED: dict[str, tuple[int, Callable[[], ctypes.Structure]]] = {
    "QUERY": (abi.QUERY, lambda: abi.Query(size=72)),
    "SETUP2": (abi.SETUP2, lambda: abi.Setup2(size=56, entries=4)),
    "ENTER": (abi.ENTER, lambda: abi.Enter(size=56)),
    "SNAPSHOT": (abi.SNAPSHOT, lambda: abi.SnapshotArg(size=160, max_entries=0)),
    "CANCEL": (abi.CANCEL, lambda: abi.CancelArg(size=24, cookie=QUEUED)),
    "BUFFER": (abi.BUFFER, lambda: abi.BufferArg(size=48, op=abi.BUFFER_ALLOC, length=PAGE)),
    "EVENTFD": (abi.EVENTFD, lambda: abi.EventfdArg(size=16, fd=-1)),
    "LATENCY": (abi.LATENCY, lambda: abi.LatencyArg(size=40)),
    "ATTEST": (
        abi.ATTEST,
        lambda: abi.AttestArg(size=104, statement=_STATEMENT.address, max_statement=abi.STATEMENT_MAX),
    ),
}
QUEUED = 4711
FIXED: dict[str, tuple[int, Callable[[], ctypes.Structure]]] = {
    "SUBMIT_DMA": (abi.SUBMIT_DMA, lambda: abi.Desc(_WORK.address, _WORK.address + PAGE, 100)),
    "GET_STATUS": (abi.GET_STATUS, abi.Status),
    "SETUP_RING": (abi.SETUP_RING, lambda: abi.RingInfo(4)),
    "GET_RING": (abi.GET_RING, abi.RingInfo),
}
ARGUMENTS = SIZED | FIXED
LEAST = {"BUFFER": 40, "SNAPSHOT": 112, "ATTEST": 88}
"""The size that the struct once had, where it has grown."""
_WORK = Memory(2 * PAGE)
_STATEMENT = Memory(abi.STATEMENT_MAX)


def grown(structure: ctypes.Structure, size: int, tail: bytes) -> Memory:
    """The structure, saying it has this size, with the tail behind it."""
    memory = Memory(2 * PAGE)
    structure.size = size  # type: ignore[attr-defined]
    memory.write(bytes(structure) + tail)
    return memory


@pytest.fixture
def ring(context: Context, request: pytest.FixtureRequest) -> Context:
    """An idle one, but CANCEL finds something to cancel."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("name") == "ATTEST":
        if os.geteuid():
            pytest.skip("only root can give the driver the key that ATTEST needs")
        request.getfixturevalue("attest_key")
    cancel = parameters.get("name") == "CANCEL"
    context.setup(4, paused=cancel)
    if cancel:
        context.enter([abi.nop(QUEUED)])
    return context


@pytest.mark.parametrize("name", SIZED)
def test_longer_struct_with_zeros_is_taken(ring: Context, name: str) -> None:
    number, make = SIZED[name]
    known = ctypes.sizeof(make())
    for growth in (1, 4, 8, 1000):
        memory = grown(make(), known + growth, bytes(growth) + b"\xee" * 64)
        assert abi.ioctl(ring.fd, number, memory.address) == 0
        assert memory.read(known, growth) == bytes(growth)
        assert memory.read(known + growth, 64) == b"\xee" * 64


@pytest.mark.parametrize("name", SIZED)
def test_request_number_grows_with_the_struct(ring: Context, name: str) -> None:
    """A later header's longer struct changes the size in the request's number as well."""
    number, make = SIZED[name]
    known = ctypes.sizeof(make())
    memory = grown(make(), known + 16, bytes(16))
    assert abi.ioctl(ring.fd, number + (16 << 16), memory.address) == 0


@pytest.mark.parametrize("name", SIZED)
def test_longer_struct_with_nonzero_tail_is_refused(ring: Context, name: str) -> None:
    number, make = SIZED[name]
    for where in (0, 7, 8, 999):
        tail = bytearray(1000)
        tail[where] = 1
        memory = grown(make(), ctypes.sizeof(make()) + 1000, bytes(tail))
        with ring.refuses(errno.E2BIG):
            abi.ioctl(ring.fd, number, memory.address)


@pytest.mark.parametrize("name", SIZED)
def test_huge_struct_is_refused(ring: Context, name: str) -> None:
    number, make = SIZED[name]
    memory = grown(make(), 2**32 - 1, b"")
    with ring.refuses(errno.E2BIG, errno.EFAULT):
        abi.ioctl(ring.fd, number, memory.address)


@pytest.mark.parametrize("name", SIZED)
def test_shorter_struct_is_refused(ring: Context, name: str) -> None:
    number, make = SIZED[name]
    least = LEAST.get(name, ctypes.sizeof(make()))
    for size in (0, 1, 3, 4, 8, least - 8, least - 1):
        memory = grown(make(), size, b"")
        with ring.refuses(errno.EINVAL):
            abi.ioctl(ring.fd, number, memory.address)


@pytest.mark.parametrize("name", SIZED)
def test_nothing_is_written_behind_the_struct(ring: Context, name: str) -> None:
    number, make = SIZED[name]
    memory = grown(make(), ctypes.sizeof(make()), b"\xee" * 64)
    assert abi.ioctl(ring.fd, number, memory.address) == 0
    assert memory.read(ctypes.sizeof(make()), 64) == b"\xee" * 64


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_argument_addresses_are_efault(ring: Context, name: str) -> None:
    """NULL, near NULL, the kernel's half, its end, and between the halves."""
    for address in (0, 1, 0x1000, 0xFFFF_8880_0000_0000, 2**64 - 8, 1 << 62):
        with ring.refuses(errno.EFAULT):
            abi.ioctl(ring.fd, ARGUMENTS[name][0], address)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument_may_end_where_its_page_ends(ring: Context, name: str) -> None:
    """It works to its last byte; one byte further and it is EFAULT."""
    number, make = ARGUMENTS[name]
    structure = make()
    memory = Memory(3 * PAGE)
    memory.protect(abi.PROT_NONE, 2 * PAGE)
    start = 2 * PAGE - ctypes.sizeof(structure)
    for shift in (1, 8, ctypes.sizeof(structure) - 8):
        memory.write(bytes(structure)[: ctypes.sizeof(structure) - shift], start + shift)
        with ring.refuses(errno.EFAULT):
            abi.ioctl(ring.fd, number, memory.address + start + shift)
    memory.write(bytes(structure), start)
    assert abi.ioctl(ring.fd, number, memory.address + start) == 0


@pytest.mark.parametrize(
    "name",
    [
        *("QUERY", "SETUP2", "ENTER", "SNAPSHOT", "CANCEL", "BUFFER", "LATENCY", "ATTEST"),
        *("GET_STATUS", "GET_RING"),
    ],
)
def test_answer_into_read_only_memory_is_efault(ring: Context, name: str) -> None:
    number, make = ARGUMENTS[name]
    memory = Memory(PAGE)
    memory.write(bytes(make()))
    memory.protect(mmap.PROT_READ)
    with ring.refuses(errno.EFAULT):
        abi.ioctl(ring.fd, number, memory.address)


def test_enter_with_read_only_argument_submits_nothing(ring: Context) -> None:
    entry = abi.nop(1, abi.RECORD)
    memory = Memory(PAGE)
    memory.write(bytes(abi.Enter(size=56, entries=abi.address_of(entry), to_submit=1)))
    memory.protect(mmap.PROT_READ)
    with ring.refuses(errno.EFAULT):
        abi.ioctl(ring.fd, abi.ENTER, memory.address)


def test_enter_with_read_only_argument_keeps_records(ring: Context) -> None:
    """Records that were handed out nowhere are still there."""
    ring.enter([abi.nop(1, abi.RECORD), abi.nop(2, abi.RECORD)])
    ring.drain()
    records = (abi.Record * 2)()
    memory = Memory(PAGE)
    memory.write(bytes(abi.Enter(size=56, records=abi.address_of(records), max_records=2)))
    memory.protect(mmap.PROT_READ)
    with ring.refuses(errno.EFAULT):
        abi.ioctl(ring.fd, abi.ENTER, memory.address)
    assert [record.cookie for record in ring.reap(2)] == [1, 2]


def test_cancel_with_read_only_argument_cancels_nothing(context: Context) -> None:
    context.setup(4, paused=True)
    context.enter([abi.nop(QUEUED, abi.RECORD)])
    memory = Memory(PAGE)
    memory.write(bytes(abi.CancelArg(size=24, cookie=QUEUED)))
    memory.protect(mmap.PROT_READ)
    with context.refuses(errno.EFAULT):
        abi.ioctl(context.fd, abi.CANCEL, memory.address)
    context.enable()
    assert context.reap(1)[0].status == 0


def test_setup_ring_and_eventfd_take_read_only_arguments() -> None:
    """SETUP_RING and EVENTFD only read: a constant struct is as good as any."""
    memory = Memory(PAGE)
    memory.write(bytes(abi.RingInfo(4)))
    memory.write(bytes(abi.EventfdArg(size=16, fd=-1)), 64)
    memory.protect(mmap.PROT_READ)
    with Context() as context:
        assert abi.ioctl(context.fd, abi.SETUP_RING, memory.address) == 0
        assert context.ring().ring_size == 4
        assert abi.ioctl(context.fd, abi.EVENTFD, memory.address + 64) == 0


@pytest.mark.parametrize("name", ["ENTER", "SNAPSHOT", "CANCEL", "EVENTFD", "LATENCY", "ATTEST"])
def test_unknown_flags_are_refused(ring: Context, name: str) -> None:
    number, make = SIZED[name]
    for bit in range(32):
        if name == "ATTEST" and 1 << bit == abi.ATTEST_SIGN:
            continue
        argument = make()
        argument.flags = 1 << bit  # type: ignore[attr-defined]
        with ring.refuses(errno.EINVAL):
            ring.ioctl(number, argument)


@pytest.mark.parametrize("name", ["CANCEL", "EVENTFD"])
def test_nonzero_reserved_fields_are_refused(ring: Context, name: str) -> None:
    number, make = SIZED[name]
    for value in (1, 1 << 31):
        argument = make()
        argument.reserved = value  # type: ignore[attr-defined]
        with ring.refuses(errno.EINVAL):
            ring.ioctl(number, argument)


def test_latency_refuses_a_bad_buckets_array(ring: Context) -> None:
    """At a made-up address, and at the end of a page; without an array there is the rest."""
    memory = Memory(2 * PAGE)
    memory.protect(abi.PROT_NONE, PAGE)
    last = memory.address + PAGE - 8 * abi.LATENCY_BUCKETS
    for address in (16, 1 << 63, last + 1):
        with ring.refuses(errno.EFAULT):
            ring.ioctl(abi.LATENCY, abi.LatencyArg(size=40, buckets=address))
    for address in (0, last):
        assert ring.ioctl(abi.LATENCY, abi.LatencyArg(size=40, buckets=address)) == 0


@pytest.mark.parametrize(
    "number",
    [
        0x00004E00,
        0xC0404E10,
        0xC0404EFF,  # no such number
        0x00004D05,
        0xC0204F01,  # not our letter
        0xC0184E01,
        0x80204E02,
        0x40104E03,
        0x80284E04,  # the first five have one size each
        0x40204E01,
        0xC0304E02,
        0xC0184E03,
        0xC0184E04,
        0xC0184E05,  # and one direction
        0x40184E0B,
        0x80284E0C,
        0xC0104E0D,
        0x40284E0E,
        0x40584E0F,  # as have the last five
        0x00005401,  # TCGETS: isatty() asks everything
    ],
    ids=hex,
)
def test_unknown_requests_are_enotty(ring: Context, number: int) -> None:
    memory = Memory(PAGE)
    with ring.refuses(errno.ENOTTY):
        abi.ioctl(ring.fd, number, memory.address)


# --- SNAPSHOT ---------------------------------------------------------------------------------------------


def test_snapshot_refuses_too_few_entries(context: Context) -> None:
    context.setup(4, paused=True)
    context.enter([abi.nop(n) for n in range(3)])
    entries = (abi.Entry * 3)()
    for count in (0, 1, 2):
        with context.refuses(errno.ENOSPC):
            context.ioctl(
                abi.SNAPSHOT, abi.SnapshotArg(size=160, entries=ctypes.addressof(entries), max_entries=count)
            )
    assert context.snapshot(3).active == 3


def test_snapshot_refuses_a_bad_entries_array(context: Context) -> None:
    context.setup(4, paused=True)
    context.enter([abi.nop()])
    with context.refuses(errno.EFAULT):
        context.ioctl(abi.SNAPSHOT, abi.SnapshotArg(size=160, entries=16, max_entries=4))


def test_snapshot_works_without_an_entries_array(context: Context) -> None:
    """Without an array there is the rest: whoever only wants the counters needs no room for 4096 entries."""
    context.setup(4, paused=True)
    context.enter([abi.nop(), abi.nop()])
    argument = abi.SnapshotArg(size=160, entries=0, max_entries=0)
    context.ioctl(abi.SNAPSHOT, argument)
    assert argument.active_descriptors == 2
    assert bytes(argument.ring_hash) == context.snapshot().computed_hash()


@pytest.mark.parametrize("number", [abi.SNAPSHOT, abi.OLD_SNAPSHOT])
def test_snapshot_answers_old_programs(context: Context, number: int) -> None:
    """With as much as their struct has; nothing is written behind it."""
    context.setup(4)
    now = context.snapshot()
    transcript = now.transcript + struct.pack("=QQ", now.transcript_count, now.transcript_id)
    memory = Memory(PAGE)
    for size in (112, 120, 152, 160):
        memory.write(bytes(abi.SnapshotArg(size=size))[:size] + b"\xee" * 64)
        assert abi.ioctl(context.fd, number, memory.address) == 0
        assert memory.read(40, 32) == now.ring_hash
        assert memory.read(112, size - 112) == transcript[: size - 112]
        assert memory.read(size, 64) == b"\xee" * 64


def test_write_is_refused(context: Context) -> None:
    context.setup(4)
    with context.refuses(errno.EINVAL):
        os.write(context.fd, bytes(64))


def test_fixed_limits_are_in_sysfs_and_read_only() -> None:
    """What QUERY says, for administrators: not to be changed."""
    limits = abi.SYSFS / "limits"
    assert (limits / "max_entries").read_text() == "4096\n"
    assert (limits / "max_length").read_text() == f"{abi.MAX_LENGTH}\n"
    for name in ("max_entries", "max_length"):
        with pytest.raises(PermissionError), open(limits / name, "w") as file:
            file.write("1\n")
            file.flush()
