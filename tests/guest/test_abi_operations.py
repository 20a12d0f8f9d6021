# SPDX-License-Identifier: MIT
"""HASH, FILL and COMPARE; LINK, BARRIER and CANCEL: their effects, and the arguments that they refuse.

The file is long because the operations share their lengths, their memory and their chains.
"""

import errno
import itertools
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import abi
import blake3
import pytest
from abi import (
    CHUNK,
    LONG,
    MIB,
    PAGE,
    Context,
    Entry,
    Memory,
    Record,
    Tap,
    Thread,
    small_pages,
    until_blocked,
)

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
POISON = 0x5A

LENGTHS = [
    1,
    2,
    7,
    8,
    9,
    63,
    64,
    65,
    1023,
    1025,
    PAGE - 1,
    PAGE,
    PAGE + 1,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    2 * CHUNK - 1,
    2 * CHUNK,
    2 * CHUNK + 1,
    3 * CHUNK + 5,
]
SHIFTS = [0, 1, 7, 63, PAGE - 1]
PATHS = {"default": 0, "zero_copy": abi.ZERO_COPY}


@pytest.fixture
def context() -> Iterator[Context]:
    with Context() as context:
        context.setup(16)
        yield context


@pytest.fixture
def paused() -> Iterator[Context]:
    with Context() as context:
        context.setup(16, paused=True)
        yield context


@pytest.fixture
def tap() -> Iterator[Tap]:
    tap = Tap(3 * CHUNK)
    yield tap
    tap.close()


def check(record: Record, status: int, bytes_done: int, *digests: bytes) -> None:
    """The record of an entry that was started; digests: the source's, the destination's."""
    assert (record.status, record.bytes_done) == (status, bytes_done)
    assert record.engine != 0 and record.queued_ns <= record.started_ns <= record.completed_ns
    assert record.flags == (1 << len(digests)) - 1
    found = [bytes(record.src_digest), bytes(record.dst_digest)]
    assert found == [*digests, bytes(32), bytes(32)][:2]


def check_canceled(record: Record) -> None:
    """The record of an entry that was never started."""
    assert (record.status, record.bytes_done, record.engine) == (-errno.ECANCELED, 0, 0)
    assert (record.started_ns, record.flags) == (0, 0)
    assert bytes(record.src_digest) == bytes(record.dst_digest) == bytes(32)


def digest(memory: Memory, offset: int, length: int) -> bytes:
    return blake3.blake3(memory.read(offset, length)).digest()


# --- HASH -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_hash_returns_the_source_digest(context: Context, path: str) -> None:
    src = small_pages(4 * CHUNK).randomize()
    for length in LENGTHS:
        for shift in SHIFTS:
            record = context.run(abi.hash_only(src.address + shift, length, PATHS[path], 2**64 - length))
            check(record, 0, length, digest(src, shift, length))
            assert record.cookie == 2**64 - length
    snapshot = context.snapshot()
    assert (snapshot.dma_bytes, snapshot.errors) == (0, 0)  # nothing was moved


def test_sync_hash_returns_its_digest(context: Context) -> None:
    src = Memory(CHUNK + 1).randomize()
    entry = abi.hash_only(src.address, CHUNK + 1, abi.RECORD | abi.COMPLETE_SYNC)
    entered = context.enter([entry], max_records=1)
    check(entered.records[0], 0, CHUNK + 1, digest(src, 0, CHUNK + 1))


@pytest.mark.parametrize("path", PATHS)
def test_hash_needs_no_write_permission(context: Context, path: str) -> None:
    """A mapping without write permission will do, and a file on no disk's account."""
    src = Memory(2 * PAGE).randomize()
    src.protect(mmap.PROT_READ)
    record = context.run(abi.hash_only(src.address, 2 * PAGE, PATHS[path]))
    check(record, 0, 2 * PAGE, digest(src, 0, 2 * PAGE))


# --- FILL -------------------------------------------------------------------------------------------------

PATTERNS = [0, 0x0123456789ABCDEF, 2**64 - 1, 1, 1 << 63]


def filled(pattern: int, length: int) -> bytes:
    return (struct.pack("<Q", pattern) * (length // 8 + 1))[:length]


@pytest.mark.parametrize("path", PATHS)
def test_fill_writes_exactly_its_range(context: Context, path: str) -> None:
    """From the destination's start on, whatever its alignment; not a byte before or behind."""
    dst = small_pages(4 * CHUNK)
    moved = 0
    for n, length in enumerate(LENGTHS):
        for shift in SHIFTS:
            dst.fill(POISON)
            pattern = PATTERNS[n % len(PATTERNS)]
            check(context.run(abi.fill(pattern, dst.address + shift, length, PATHS[path])), 0, length)
            moved += length
            assert dst.read(0, shift) == bytes([POISON]) * shift
            assert dst.read(shift, length) == filled(pattern, length)
            assert dst.read(shift + length) == bytes([POISON]) * (dst.length - shift - length)
    assert context.snapshot().dma_bytes == moved


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", [1, 13, CHUNK, CHUNK + 3])
def test_fill_returns_the_digests_asked_for(context: Context, length: int, path: str) -> None:
    """VERIFY_HASH: of what was written, and of what is there. DIGEST_ONLY: of what is there."""
    dst = Memory(length)
    expected = blake3.blake3(filled(PATTERNS[1], length)).digest()
    record = context.run(abi.fill(PATTERNS[1], dst.address, length, PATHS[path] | abi.VERIFY_HASH))
    check(record, 0, length, expected, expected)
    dst.fill(POISON)
    record = context.run(abi.fill(PATTERNS[1], dst.address, length, PATHS[path] | abi.DIGEST_ONLY))
    assert (record.status, record.bytes_done, record.flags) == (0, length, abi.RECORD_DST_DIGEST)
    assert (bytes(record.src_digest), bytes(record.dst_digest)) == (bytes(32), expected)


def test_pattern_is_never_read_as_an_address(context: Context) -> None:
    """It may be one by chance, of the destination even: nothing is read there, nothing overlaps."""
    dst = Memory(PAGE)
    for pattern in (dst.address, dst.address + 8, 16, 0xFFFF_8880_0000_0000):
        check(context.run(abi.fill(pattern, dst.address, PAGE)), 0, PAGE)
        assert dst.read() == filled(pattern, PAGE)


def test_fill_needs_no_read_permission(context: Context) -> None:
    dst = Memory(PAGE)
    dst.protect(mmap.PROT_WRITE)
    check(context.run(abi.fill(5, dst.address, PAGE)), 0, PAGE)
    dst.protect(READ_WRITE)
    assert dst.read() == filled(5, PAGE)


# --- COMPARE ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_compare_accepts_equal_ranges(context: Context, path: str) -> None:
    src, dst = small_pages(4 * CHUNK).randomize(), small_pages(4 * CHUNK)
    for length in LENGTHS:
        for shift in SHIFTS:
            dst.write(src.read(shift, length), 3)
            # What stands around the two is not looked at.
            dst.write(bytes(3))
            dst.flip(3 + length)
            entry = abi.compare(src.address + shift, dst.address + 3, length, PATHS[path])
            check(context.run(entry), 0, length)
    snapshot = context.snapshot()
    assert (snapshot.dma_bytes, snapshot.errors) == (0, 0)


@pytest.mark.parametrize("path", PATHS)
def test_compare_finds_the_first_difference(context: Context, path: str) -> None:
    """Wherever it is, and whatever differs behind it."""
    length = 2 * CHUNK + 100
    src, dst = small_pages(length + 8).randomize(), small_pages(length + 8)
    places = {
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        9,
        63,
        64,
        65,
        PAGE - 1,
        PAGE,
        PAGE - 4,
        PAGE - 5,
        PAGE + 1,
        CHUNK // 2 - 1,
        CHUNK // 2,
        CHUNK // 2 + 1,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        2 * CHUNK - 1,
        2 * CHUNK,
        length - 2,
        length - 1,
    }
    for src_shift, dst_shift in [(0, 0), (1, 0), (5, 4), (3, 8)]:
        dst.write(src.read(src_shift, length), dst_shift)
        entry = (src.address + src_shift, dst.address + dst_shift, length, PATHS[path])
        for place in sorted(places):
            dst.flip(dst_shift + place)
            check(context.run(abi.compare(*entry)), -errno.EBADMSG, place)
            if place < length - 1:
                dst.flip(dst_shift + length - 1)
                check(context.run(abi.compare(*entry)), -errno.EBADMSG, place)
                dst.flip(dst_shift + length - 1)
            dst.flip(dst_shift + place)
        check(context.run(abi.compare(*entry)), 0, length)


def test_compare_without_a_record_counts_as_an_error(context: Context) -> None:
    src, dst = Memory(PAGE), Memory(PAGE)
    dst.fill(1)
    context.enter([abi.compare(src.address, dst.address, PAGE)])
    context.drain()
    snapshot = context.snapshot()
    assert (snapshot.errors, snapshot.first_error, snapshot.dma_bytes) == (1, -errno.EBADMSG, 0)


@pytest.mark.parametrize("path", PATHS)
def test_compare_needs_no_write_permission(context: Context, path: str) -> None:
    """Neither side needs write permission."""
    src, dst = Memory(2 * PAGE).randomize(), Memory(2 * PAGE)
    dst.write(src.read())
    for memory in (src, dst):
        memory.protect(mmap.PROT_READ)
    check(context.run(abi.compare(src.address, dst.address, 2 * PAGE, PATHS[path])), 0, 2 * PAGE)
    assert dst.equals(src, 2 * PAGE)


# --- what they do not take --------------------------------------------------------------------------------


def entries() -> dict[str, Callable[[Memory], Entry]]:
    def around(memory: Memory) -> tuple[int, int, int]:
        return memory.address, memory.address + 2 * PAGE, PAGE

    return {
        "hash": lambda memory: abi.hash_only(memory.address, PAGE),
        "fill": lambda memory: abi.fill(7, memory.address, PAGE),
        "compare": lambda memory: abi.compare(*around(memory)),
        "copy": lambda memory: abi.copy(*around(memory)),
        "nop": lambda memory: abi.nop(),
    }


ENTRIES = entries()
EXCLUDED: list[tuple[str, dict[str, int]]] = [
    ("hash", {"flags": 0}),
    ("hash", {"flags": abi.COMPLETE_SYNC}),
    ("hash", {"flags": abi.LINK}),
    ("hash", {"flags": abi.RECORD | abi.VERIFY_HASH}),
    ("hash", {"flags": abi.RECORD | abi.DIGEST_ONLY}),
    ("hash", {"dst": 1}),
    ("hash", {"dst": 1 << 63}),
    ("hash", {"dst_buffer": 1}),
    ("fill", {"src_buffer": 1}),
    ("fill", {"src_buffer": 2**32 - 1}),
    ("fill", {"flags": abi.VERIFY_HASH | abi.DIGEST_ONLY | abi.RECORD}),
    ("fill", {"flags": abi.DIGEST_ONLY}),
    ("compare", {"flags": abi.VERIFY_HASH}),
    ("compare", {"flags": abi.DIGEST_ONLY | abi.RECORD}),
    ("compare", {"flags": abi.RECORD | abi.VERIFY_HASH}),
    *(
        (name, {"length": length})
        for name in ("hash", "fill", "compare")
        for length in (0, abi.MAX_LENGTH + 1, 1 << 32, 2**64 - 1)
    ),
    *((name, {"flags": abi.RECORD | 1 << bit}) for name in ENTRIES for bit in (7, 8, 31)),
]


@pytest.mark.parametrize("name", ENTRIES)
def test_excluded_flags_and_fields_are_refused(context: Context, name: str) -> None:
    memory = Memory(4 * PAGE)
    for changes in (changes for operation, changes in EXCLUDED if operation == name):
        entry = ENTRIES[name](memory)
        for field, value in changes.items():
            setattr(entry, field, value)
        with context.refuses(errno.EINVAL):
            context.enter([entry])


@pytest.mark.parametrize("path", PATHS)
def test_compare_refuses_overlap(context: Context, path: str) -> None:
    memory = Memory(2 * PAGE)
    for shift in (0, 1, PAGE - 1):
        for pair in [(0, shift), (shift, 0)]:
            with context.refuses(errno.EINVAL):
                src, dst = (memory.address + offset for offset in pair)
                context.enter([abi.compare(src, dst, PAGE, PATHS[path])])


NEEDS = {
    "hash": (mmap.PROT_READ, None),
    "fill": (None, mmap.PROT_WRITE),
    "compare": (mmap.PROT_READ, mmap.PROT_READ),
}


@pytest.mark.parametrize("name", NEEDS)
def test_operations_refuse_unmapped_memory(context: Context, name: str) -> None:
    """As a whole, in the middle, at the end; or without the permission the operation needs."""
    make = {
        "hash": lambda src, dst, flags: abi.hash_only(src, 3 * PAGE, flags),
        "fill": lambda src, dst, flags: abi.fill(src, dst, 3 * PAGE, flags),
        "compare": lambda src, dst, flags: abi.compare(src, dst, 3 * PAGE, flags),
    }[name]
    for side, needed in zip(("src", "dst"), NEEDS[name], strict=True):
        if needed is None:
            continue
        protections = [abi.PROT_NONE] + [mmap.PROT_READ] * (needed == mmap.PROT_WRITE)
        for hole, protection in itertools.product(range(3), protections):
            good, bad = Memory(3 * PAGE), Memory(3 * PAGE)
            bad.protect(protection, hole * PAGE, PAGE)
            src, dst = (bad, good) if side == "src" else (good, bad)
            for flags in (0, abi.ZERO_COPY, abi.COMPLETE_SYNC):
                with context.refuses(errno.EFAULT):
                    context.enter([make(src.address, dst.address, flags | abi.RECORD)])


def test_hashed_fill_needs_read_permission(context: Context) -> None:
    dst = Memory(PAGE)
    dst.protect(mmap.PROT_WRITE)
    for flags in (abi.VERIFY_HASH, abi.DIGEST_ONLY):
        with context.refuses(errno.EFAULT):
            context.enter([abi.fill(5, dst.address, PAGE, flags | abi.RECORD)])


@pytest.mark.parametrize("name", NEEDS)
def test_memory_taken_away_is_efault_with_its_bytes_done(paused: Context, name: str) -> None:
    """-EFAULT, bytes_done before the hole, and no more was done than it says."""
    src, dst = Memory(4 * CHUNK).randomize(), Memory(4 * CHUNK)
    hole = 2 * CHUNK + 3 * PAGE
    if name == "compare":
        dst.write(src.read())
    entry = {
        "hash": abi.hash_only(src.address, src.length),
        "fill": abi.fill(9, dst.address, dst.length, abi.RECORD),
        "compare": abi.compare(src.address, dst.address, dst.length, abi.RECORD),
    }[name]
    paused.enter([entry])
    (src if name == "hash" else dst).unmap(hole, PAGE)
    paused.enable()
    [record] = paused.reap(1)
    assert record.status == -errno.EFAULT
    assert 0 < record.bytes_done <= hole
    assert record.flags == 0
    if name == "fill":
        assert dst.read(0, record.bytes_done) == filled(9, record.bytes_done)
        assert dst.read(hole + PAGE) == bytes(dst.length - hole - PAGE)
    assert paused.snapshot().dma_bytes == (record.bytes_done if name == "fill" else 0)


def test_compare_stops_at_a_difference_before_a_hole(paused: Context) -> None:
    """In an earlier chunk: what is behind the first difference is of no matter."""
    src, dst = Memory(3 * CHUNK), Memory(3 * CHUNK)
    paused.enter([abi.compare(src.address, dst.address, 3 * CHUNK, abi.RECORD)])
    dst.flip(100)
    dst.unmap(2 * CHUNK, CHUNK)
    paused.enable()
    check(paused.reap(1)[0], -errno.EBADMSG, 100)


@pytest.mark.parametrize("name", ["fill", "compare"])
def test_zero_copy_works_on_shared_tmpfs_files(context: Context, tmp_path: Path, name: str) -> None:
    """tmpfs has no writeback: all of it is served there."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with open(path, "r+b") as file:
        mapped = Memory(PAGE, READ_WRITE, mmap.MAP_SHARED, file.fileno())
    other = Memory(PAGE)
    entry = (
        abi.fill(0, mapped.address, PAGE, abi.ZERO_COPY)
        if name == "fill"
        else abi.compare(other.address, mapped.address, PAGE, abi.ZERO_COPY)
    )
    assert context.run(entry).status == 0


# --- LINK -------------------------------------------------------------------------------------------------


def doomed(cookie: int, flags: int = 0) -> tuple[Entry, Callable[[], None]]:
    """An entry that fails, and what makes it fail."""
    memory = Memory(2 * PAGE)
    entry = abi.copy(memory.address, memory.address + PAGE, PAGE, flags | abi.RECORD, cookie)
    return entry, lambda: memory.unmap(0, PAGE)


@pytest.mark.parametrize("fails_at", [None, 0, 1, 2, 4, 5])
def test_failure_cancels_the_rest_of_its_chain(paused: Context, fails_at: int | None) -> None:
    """Five linked entries and a last: those behind the one that fails are canceled; what comes then runs."""
    batch, spoils = [], []
    dst = Memory(PAGE)
    for n in range(6):
        flags = abi.RECORD | (abi.LINK if n < 5 else 0)
        if n == fails_at:
            entry, spoil = doomed(n, flags)
            spoils.append(spoil)
        else:
            entry = abi.fill(n + 1, dst.address + 8 * n, 8, flags, n)
        batch.append(entry)
    batch += [abi.fill(7, dst.address + 48, 8, abi.RECORD, 6), abi.nop(7, abi.RECORD)]
    assert paused.enter(batch).submitted == 8
    for spoil in spoils:
        spoil()
    paused.enable()
    records = paused.reap(8)
    assert [record.cookie for record in records] == list(range(8))
    end = 6 if fails_at is None else fails_at
    for n, record in enumerate(records):
        if n < end or n > 5:
            assert record.status == 0
        elif n == end:
            assert record.status == -errno.EFAULT
        else:
            check_canceled(record)
    expected = [n + 1 if n < end or n == 6 else 0 for n in range(7)]
    assert dst.read(0, 56) == struct.pack("<7Q", *expected)


def test_link_holds_across_requests(paused: Context) -> None:
    """Whatever request takes the next entry in."""
    src, dst = Memory(PAGE), Memory(PAGE)
    entry, spoil = doomed(1, abi.LINK)
    paused.enter([entry])
    spoil()
    paused.submit(src.address, dst.address, 8, abi.LINK | abi.RECORD, 2)
    paused.enter([abi.nop(3, abi.RECORD)])
    paused.enter([abi.nop(4, abi.RECORD)])
    paused.enable()
    statuses = [record.status for record in paused.reap(4)]
    assert statuses == [-errno.EFAULT, -errno.ECANCELED, -errno.ECANCELED, 0]


def test_failed_link_cancels_an_entry_submitted_later(context: Context) -> None:
    """It has failed, it is retired and its record read: the next is canceled all the same."""
    memory = Memory(PAGE)
    context.enter([abi.compare(memory.address, memory.address + 8, 8, abi.RECORD | abi.LINK)])
    assert context.reap(1)[0].status == 0
    assert context.run(abi.nop(2)).status == 0

    memory.flip(0)
    context.enter([abi.compare(memory.address, memory.address + 8, 8, abi.RECORD | abi.LINK)])
    check(context.reap(1)[0], -errno.EBADMSG, 0)
    with context.refuses(errno.EINVAL):  # refused is not accepted: it is no link of the chain
        context.enter([abi.nop(3, 1 << 31)])
    context.enter([abi.nop(4, abi.RECORD)])
    check_canceled(context.reap(1)[0])
    assert context.run(abi.nop(5)).status == 0


def test_setup_and_reset_end_a_chain(context: Context) -> None:
    """Neither RESET nor another SETUP hands a failed link on."""
    memory = Memory(PAGE)
    memory.flip(0)
    for renew in (lambda: context.setup(16), context.reset):
        context.enter([abi.compare(memory.address, memory.address + 8, 8, abi.RECORD | abi.LINK)])
        assert context.reap(1)[0].status == -errno.EBADMSG
        renew()
        if renew == context.reset:
            context.setup(16)
        assert context.run(abi.nop(5)).status == 0


def test_sync_request_reports_its_canceled_link(context: Context) -> None:
    """The request says why: ECANCELED."""
    memory = Memory(PAGE)
    memory.flip(0)
    context.enter([abi.compare(memory.address, memory.address + 8, 8, abi.RECORD | abi.LINK)])
    context.reap(1)
    before = memory.read()
    with abi.fails(errno.ECANCELED):
        context.submit(memory.address, memory.address + 64, 8, abi.COMPLETE_SYNC)
    assert memory.read() == before
    assert context.snapshot().errors == 1
    context.submit(memory.address, memory.address + 64, 8, abi.COMPLETE_SYNC)


def test_failed_chain_leaves_other_chains_alone(paused: Context) -> None:
    """A link that fails is of no matter to another chain."""
    memory = Memory(PAGE)
    memory.flip(0)
    differs = (memory.address, memory.address + 8, 8)
    equal = (memory.address + 8, memory.address + 16, 8)
    paused.enter(
        [
            abi.compare(*differs, abi.RECORD | abi.LINK),
            abi.compare(*equal, abi.RECORD),
            abi.compare(*equal, abi.RECORD | abi.LINK),
            abi.compare(*differs, abi.RECORD | abi.LINK),
            abi.compare(*equal, abi.RECORD),
            abi.compare(*differs, abi.RECORD),
            abi.nop(0, abi.RECORD),
        ]
    )
    paused.enable()
    differ, canceled = -errno.EBADMSG, -errno.ECANCELED
    assert [record.status for record in paused.reap(7)] == [differ, canceled, 0, differ, canceled, differ, 0]


def test_canceled_links_without_records_count_as_errors(paused: Context) -> None:
    memory = Memory(PAGE)
    memory.flip(0)
    differs = abi.compare(memory.address, memory.address + 8, 8, abi.LINK)
    paused.enter([differs, abi.nop(0, abi.LINK), abi.nop()])
    paused.enable()
    paused.drain()
    snapshot = paused.snapshot()
    assert (snapshot.errors, snapshot.first_error) == (3, -errno.EBADMSG)


# --- BARRIER ----------------------------------------------------------------------------------------------


def test_barrier_keeps_the_order(paused: Context) -> None:
    """Each step reads what the one before the barrier wrote."""
    memory = Memory(8 * PAGE).randomize()
    expected = memory.read(0, PAGE)
    paused.enter(
        [
            abi.copy(
                memory.address + n * PAGE, memory.address + (n + 1) * PAGE, PAGE, abi.BARRIER | abi.RECORD, n
            )
            for n in range(7)
        ]
    )
    paused.enable()
    records = paused.reap(7)
    assert [(record.cookie, record.status) for record in records] == [(n, 0) for n in range(7)]
    for before, after in itertools.pairwise(records):
        assert before.completed_ns <= after.started_ns
    assert memory.read(7 * PAGE) == expected


@pytest.mark.parametrize("flags", [abi.BARRIER, abi.BARRIER | abi.LINK], ids=["barrier", "barrier_link"])
@pytest.mark.parametrize("name", ENTRIES)
def test_every_operation_takes_link_and_barrier(context: Context, name: str, flags: int) -> None:
    memory = Memory(4 * PAGE)
    entry = ENTRIES[name](memory)
    entry.flags |= flags | abi.RECORD
    context.enter([abi.nop(1, abi.RECORD), entry, abi.nop(2, abi.RECORD)])
    assert [record.status for record in context.reap(3)] == [0, 0, 0]


def test_barrier_runs_after_a_failure(paused: Context) -> None:
    """It is an order, not a link."""
    entry, spoil = doomed(1)
    paused.enter([entry, abi.nop(2, abi.RECORD | abi.BARRIER)])
    spoil()
    paused.enable()
    assert [record.status for record in paused.reap(2)] == [-errno.EFAULT, 0]


# --- CANCEL -----------------------------------------------------------------------------------------------


def test_cancel_ends_queued_entries_of_its_cookie(paused: Context) -> None:
    """All with that cookie and no other; they retire in their turn."""
    src, dst = Memory(PAGE).randomize(), Memory(PAGE)
    cookies = [1, 2, 1, 3, 2**64 - 1, 1]
    paused.enter(
        [
            abi.copy(src.address + 8 * n, dst.address + 8 * n, 8, abi.RECORD, cookie)
            for n, cookie in enumerate(cookies)
        ]
    )
    before = paused.snapshot()
    assert paused.cancel(1) == 3
    assert paused.cancel(2**64 - 1) == 1
    with paused.refuses(errno.ENOENT):
        paused.cancel(4)
    assert paused.snapshot() == before  # the queue is as it was, hash and all
    paused.enable()
    records = paused.reap(6)
    assert [record.cookie for record in records] == cookies
    for n, record in enumerate(records):
        if record.cookie in (1, 2**64 - 1):
            check_canceled(record)
            assert dst.read(8 * n, 8) == bytes(8)
        else:
            assert record.status == 0
            assert dst.read(8 * n, 8) == src.read(8 * n, 8)
    assert paused.snapshot().dma_bytes == 16


def test_cancel_refuses_finished_and_unknown_cookies(context: Context) -> None:
    for cookie in (0, 1, 2**64 - 1):
        with context.refuses(errno.ENOENT):
            context.cancel(cookie)
    context.enter([abi.nop(1, abi.RECORD)])
    context.drain()
    with context.refuses(errno.ENOENT):
        context.cancel(1)
    assert context.reap(1)[0].status == 0
    with context.refuses(errno.ENOENT):
        context.cancel(1)


def test_cancel_takes_cookie_zero(paused: Context) -> None:
    paused.enter([abi.nop(0, abi.RECORD), abi.nop(1, abi.RECORD)])
    assert paused.cancel(0) == 1
    paused.enable()
    assert [record.status for record in paused.reap(2)] == [-errno.ECANCELED, 0]


def test_cancel_can_be_repeated_until_retirement(paused: Context) -> None:
    """An entry is active until it has retired, canceled or not, and ends once."""
    paused.enter([abi.nop(1, abi.RECORD)])
    assert paused.cancel(1) == 1
    assert paused.cancel(1) == 1
    paused.enable()
    check_canceled(paused.reap(1)[0])
    assert paused.enter(max_records=1).records == []
    # The slot's next entry has nothing of it.
    for n in range(40):
        assert paused.run(abi.nop(1)).status == 0, n


def test_cancel_reaches_every_entry_of_a_full_ring() -> None:
    with Context() as context:
        context.setup(4096, paused=True)
        context.enter([abi.nop(n % 2, abi.RECORD) for n in range(4096)])
        assert context.cancel(1) == 2048
        context.enable()
        records = context.reap(4096)
        assert [record.status for record in records] == [0, -errno.ECANCELED] * 2048


def test_cancel_breaks_a_chain(paused: Context) -> None:
    paused.enter(
        [
            abi.nop(1, abi.RECORD | abi.LINK),
            abi.nop(2, abi.RECORD | abi.LINK),
            abi.nop(3, abi.RECORD),
            abi.nop(4, abi.RECORD),
        ]
    )
    assert paused.cancel(2) == 1
    paused.enable()
    statuses = [record.status for record in paused.reap(4)]
    assert statuses == [0, -errno.ECANCELED, -errno.ECANCELED, 0]


def test_cancel_without_a_record_counts_as_an_error(paused: Context) -> None:
    paused.enter([abi.nop(1)])
    paused.cancel(1)
    paused.enable()
    paused.drain()
    snapshot = paused.snapshot()
    assert (snapshot.errors, snapshot.first_error) == (1, -errno.ECANCELED)


@abi.needs_root
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize("name", ["copy", "hash", "compare"])
def test_cancel_ends_the_running_entry_early(context: Context, tap: Tap, name: str, sync: bool) -> None:
    """It ends at its next chunk: what had arrived is counted, nothing behind it was touched."""
    dst = Memory(tap.memory.length)
    dst.fill(0 if name == "compare" else POISON)
    flags = abi.RECORD | (abi.COMPLETE_SYNC if sync else 0)
    entry = {
        "copy": abi.copy(tap.memory.address, dst.address, dst.length, flags, 1),
        "hash": abi.hash_only(tap.memory.address, dst.length, flags, 1),
        "compare": abi.compare(tap.memory.address, dst.address, dst.length, flags, 1),
    }[name]
    submitter = Thread(lambda: context.enter([entry]))
    tap.reached()
    context.enter([abi.nop(2, abi.RECORD)])
    canceler = Thread(lambda: context.cancel(1))
    canceler.join()
    assert canceler.result == 1
    tap.open()
    submitter.join()
    first, second = context.reap(2)
    assert (first.cookie, first.status) == (1, -errno.ECANCELED)
    assert first.bytes_done % PAGE == 0 and first.bytes_done <= CHUNK
    assert first.flags == 0
    assert first.engine != 0
    assert (second.cookie, second.status) == (2, 0)
    if name == "copy":
        assert dst.read(0, first.bytes_done) == bytes(first.bytes_done)
        assert dst.read(first.bytes_done) == bytes([POISON]) * (dst.length - first.bytes_done)
        assert context.snapshot().dma_bytes == first.bytes_done


@abi.needs_root
def test_cancel_reaches_entries_behind_a_stalled_one(context: Context, tap: Tap) -> None:
    """What waits behind one that stands still can be canceled, pinned or not; it ends in its turn."""
    src, dst = small_pages(MIB), small_pages(MIB)
    context.submit(tap.memory.address, dst.address, PAGE, abi.RECORD, 1)
    tap.reached()
    context.submit(src.address, dst.address, MIB, abi.RECORD | abi.ZERO_COPY, 2)
    assert context.cancel(2) == 1
    tap.open()
    first, second = context.reap(2)
    assert (first.status, first.bytes_done) == (0, PAGE)
    check_canceled(second)


def test_cancel_is_exact_against_a_running_ring(context: Context) -> None:
    """At any moment: what it says was canceled ends so or is done; the rest is as if nobody had asked."""
    src, dst = Memory(MIB).randomize(), Memory(MIB)
    for turn in range(60):
        length = [64, PAGE, 4 * CHUNK, MIB][turn % 4]
        dst.fill(POISON, 0, length)
        entered = context.enter(
            [abi.copy(src.address, dst.address, length, abi.RECORD, 1), abi.nop(2, abi.RECORD)]
        )
        assert entered.submitted == 2
        for _ in range(turn % 7):
            os.sched_yield()
        try:
            assert context.cancel(1) == 1
            canceled = True
        except OSError as error:
            assert error.errno == errno.ENOENT
            canceled = False
        first, second = context.reap(2)
        assert (second.cookie, second.status) == (2, 0)
        if first.status:
            assert canceled and first.status == -errno.ECANCELED
        else:
            assert first.bytes_done == length
        assert dst.equals(src, first.bytes_done)
        behind = length - first.bytes_done
        assert dst.read(first.bytes_done, behind) == bytes([POISON]) * behind


def test_cancel_ends_a_sync_request(context: Context) -> None:
    """The one who waits is told, and no failure is counted behind the back of who asked for a record."""
    length = 128 * MIB
    src, dst = Memory(length), Memory(length)

    def waits() -> int:
        try:
            flags = abi.COMPLETE_SYNC | abi.VERIFY_HASH | abi.RECORD
            context.submit(src.address, dst.address, length, flags, 1)
        except OSError as error:
            return -(error.errno or 0)
        return 0

    waiter = Thread(waits)
    while waiter.is_alive():
        try:
            context.cancel(1)
            break
        except OSError as error:
            assert error.errno == errno.ENOENT
            os.sched_yield()
    waiter.join()
    [record] = context.reap(1)
    assert waiter.result == record.status
    assert record.status in (0, -errno.ECANCELED)
    assert context.snapshot().dma_bytes == record.bytes_done


def test_cancel_from_another_thread_wakes_the_wait(paused: Context) -> None:
    paused.enter([abi.nop(1, abi.RECORD)])
    waiter = Thread(lambda: paused.enter(max_records=1, min_records=1, wait=LONG))
    until_blocked(waiter.native_id)
    paused.cancel(1)
    assert waiter.is_alive()  # it retires in its turn, and the ring is paused
    paused.enable()
    waiter.join()
    check_canceled(waiter.result.records[0])
