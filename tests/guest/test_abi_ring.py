# SPDX-License-Identifier: MIT
"""The ring as a ring: indices, room, order, records, waits, the hash, and RESET at any moment."""

import errno
import mmap
import os
import random
import time
from collections.abc import Iterator

import abi
import pytest
from abi import LONG, MIB, PAGE, Context, Memory, Tap, Thread, until_blocked

SIZES = [1, 2, 3, 255, 4096]


@pytest.fixture
def tap() -> Iterator[Tap]:
    tap = Tap()
    yield tap
    tap.close()  # whoever still stands at it goes on


# --- size, indices, room ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_paused_ring_fills_and_loses_nothing(context: Context, size: int) -> None:
    context.setup(size, paused=True)
    entries = [abi.nop(1000 + n) for n in range(size)]
    assert context.enter(entries[: size // 2]).submitted == size // 2
    assert (context.ring().head, context.ring().tail) == (size // 2, 0)
    assert context.status().active_descriptors == size // 2

    # As much of the rest as fits is taken, and more is not.
    assert context.enter([*entries[size // 2 :], abi.nop(1)])[:2] == (size - size // 2, -errno.ENOSPC)
    ring = context.ring()
    assert (ring.ring_size, ring.head, ring.tail) == (size, 0, 0)
    assert context.status().active_descriptors == size
    src, dst = Memory(PAGE), Memory(PAGE)
    for _ in range(3):
        with context.refuses(errno.ENOSPC):
            context.enter([abi.nop(1)])
        with context.refuses(errno.ENOSPC):
            context.submit(src.address, dst.address, 1)

    assert context.snapshot().entries == tuple(bytes(entry) for entry in entries)
    context.enable()
    context.drain()
    ring, snapshot = context.ring(), context.snapshot()
    assert ring.head == ring.tail == (size + 1) % size  # one more was the NOP of drain()
    assert (snapshot.active, snapshot.dma_bytes, snapshot.errors) == (0, 0, 0)


@pytest.mark.parametrize("size", SIZES)
def test_indices_wrap(context: Context, size: int) -> None:
    """Head and tail count modulo the size, whatever the size; every entry runs once and in order."""
    context.setup(size)
    total = 2 * size + 5
    cookies: list[int] = []
    sent = 0
    while len(cookies) < total:
        batch = [abi.nop(n, abi.RECORD) for n in range(sent, min(sent + size, total))]
        wanted = 1 if len(batch) == 0 or sent > len(cookies) else 0
        try:
            entered = context.enter(batch, max_records=size, min_records=wanted, wait=LONG)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            continue
        sent += entered.submitted
        cookies += [record.cookie for record in entered.records]
        ring = context.ring()
        assert ring.head == sent % size and ring.tail < size
    assert cookies == list(range(total))
    ring = context.ring()
    assert ring.head == ring.tail == total % size


@pytest.mark.parametrize("size", SIZES)
def test_legacy_indices_wrap(context: Context, size: int) -> None:
    context.setup_ring(size)
    src, dst = Memory(PAGE).randomize(), Memory(PAGE)
    total = min(2 * size + 5, 600)
    for n in range(total):
        context.submit(src.address + n, dst.address + n, 1, abi.COMPLETE_SYNC, n)
        ring = context.ring()
        assert ring.head == ring.tail == (n + 1) % size
    assert dst.read(0, total) == src.read(0, total)
    assert context.status().dma_bytes == total


@abi.needs_root
@pytest.mark.parametrize("size", [1, 2, 3, 255])
def test_running_ring_counts_and_hashes_at_every_fill(context: Context, tap: Tap, size: int) -> None:
    """With the engine held at one entry: room, counters, hash at every fill, around the end of the ring."""
    context.setup(size)
    for _ in range(size - 1):
        context.enter([abi.nop(flags=abi.COMPLETE_SYNC)])
    start = context.ring().tail
    assert start == size - 1
    dst = Memory(PAGE)
    context.submit(tap.memory.address, dst.address, PAGE)
    tap.reached()
    for n in range(size):
        snapshot = context.snapshot()
        assert (snapshot.tail, snapshot.head, snapshot.active) == (start, (start + n + 1) % size, n + 1)
        assert snapshot.computed_hash() == snapshot.ring_hash == bytes(context.status().ring_hash)
        if n < size - 1:
            assert context.enter([abi.nop(n)]).submitted == 1
    with context.refuses(errno.ENOSPC):
        context.enter([abi.nop()])
    with context.refuses(errno.EBUSY):
        context.setup(size)
    tap.open()
    context.drain()
    assert context.snapshot().dma_bytes == PAGE


def test_setup_replaces_an_idle_ring(context: Context) -> None:
    """Indices start again; what was counted goes on."""
    src, dst = Memory(3 * PAGE), Memory(PAGE)
    context.setup(5, label=1, paused=True)
    context.enter([abi.copy(src.address, dst.address, 100), abi.copy(src.address + PAGE, dst.address, 50)])
    src.unmap(PAGE, PAGE)
    context.enable()
    context.drain()
    before = context.snapshot()
    assert (before.head, before.tail, before.dma_bytes, before.errors) == (3, 3, 100, 1)
    context.setup_ring(7, label=2)
    after = context.snapshot()
    assert (after.ring_size, after.head, after.tail, after.ring_addr) == (7, 0, 0, 2)
    assert (after.dma_bytes, after.errors, after.first_error) == (100, 1, -errno.EFAULT)
    assert after.ring_hash == after.computed_hash() != before.ring_hash
    context.setup(3, paused=True)
    assert context.snapshot().state == abi.STATE_PAUSED
    context.setup_ring(3)
    assert context.snapshot().state == 0


# --- the hash ---------------------------------------------------------------------------------------------


def test_hash_before_setup_is_of_zeros(context: Context) -> None:
    """The hash of zeros: 24 bytes of ring and 8 of dma_bytes."""
    assert context.snapshot().computed_hash() == bytes(context.status().ring_hash)
    assert context.snapshot() == abi.UNTOUCHED


@pytest.mark.parametrize("size", [1, 2, 3, 17, 255])
def test_hash_matches_the_snapshot_at_every_fill(context: Context, size: int) -> None:
    context.setup(size, paused=True, label=0x0123456789ABCDEF)
    memory = Memory(2 * PAGE)
    rng = random.Random(size)
    expected: list[bytes] = []
    hashes = set()
    for n in range(size + 1):
        snapshot = context.snapshot()
        assert snapshot.entries == tuple(expected)
        assert snapshot.computed_hash() == snapshot.ring_hash == bytes(context.status().ring_hash)
        hashes.add(snapshot.ring_hash)
        if n < size:
            cookie, offset, length = rng.getrandbits(64), rng.randrange(PAGE), rng.randrange(1, PAGE)
            src, dst = memory.address + offset // 2, memory.address + PAGE + offset // 2
            length = min(length, PAGE // 2)
            flags = rng.choice([0, abi.RECORD, abi.VERIFY_HASH, abi.DIGEST_ONLY | abi.RECORD])
            if n % 2:
                context.submit(src, dst, length, flags, cookie)
            else:
                context.enter([abi.copy(src, dst, length, flags, cookie)])
            expected.append(bytes(abi.copy(src, dst, length, flags, cookie)))
    assert len(hashes) == size + 1
    context.enable()
    context.drain()
    snapshot = context.snapshot()
    assert snapshot.active == 0 and snapshot.dma_bytes > 0
    assert snapshot.computed_hash() == snapshot.ring_hash == bytes(context.status().ring_hash)


def test_hash_matches_on_the_largest_ring(context: Context) -> None:
    context.setup(4096, paused=True)
    context.enter([abi.nop(n) for n in range(4096)])
    snapshot = context.snapshot()
    assert snapshot.active == 4096
    assert snapshot.computed_hash() == snapshot.ring_hash == bytes(context.status().ring_hash)


def test_hash_binds_everything(context: Context) -> None:
    """Another size, label, cookie or count makes another hash."""
    hashes = []
    src, dst = Memory(PAGE), Memory(PAGE)
    for size, label, cookie, copies in [
        (4, 0, 0, 0),
        (5, 0, 0, 0),
        (4, 1 << 63, 0, 0),
        (4, 0, 1 << 63, 0),
        (4, 0, 0, 1),
    ]:
        with Context() as other:
            other.setup(size, label=label)
            for _ in range(copies * size):  # round to index 0 again, so that dma_bytes alone differs
                other.submit(src.address, dst.address, 1, abi.COMPLETE_SYNC)
            hashes.append(other.snapshot().ring_hash)
            other.reset()
            other.setup(size, label=label, paused=True)
            other.enter([abi.nop(cookie)])
            hashes.append(other.snapshot().ring_hash)
    # After RESET the fifth case is the first again, and cookies do not show in an empty ring.
    assert len(set(hashes)) == len(hashes) - 2


def test_snapshots_of_a_running_ring_are_consistent(context: Context) -> None:
    """Every snapshot has the hash that it reports, whatever runs during it."""
    context.setup(16)
    src, dst = Memory(16 * PAGE), Memory(16 * PAGE)
    counts = []
    for n in range(300):
        try:
            context.enter([abi.copy(src.address, dst.address, 16 * PAGE, 0, n), abi.nop(n)])
        except OSError as error:
            assert error.errno == errno.ENOSPC
        snapshot = context.snapshot(16)
        assert snapshot.computed_hash() == snapshot.ring_hash
        assert (snapshot.head - snapshot.tail) % 16 == snapshot.active % 16
        assert snapshot.dma_bytes % (16 * PAGE) == 0
        counts.append(snapshot.dma_bytes)
    assert counts == sorted(counts)


# --- records ----------------------------------------------------------------------------------------------


def test_records_come_in_order_with_their_cookies(context: Context) -> None:
    cookies = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 1, 0]
    context.setup(8)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    context.enter([abi.nop(cookie, abi.RECORD) for cookie in cookies])
    records = context.reap(8)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert [record.cookie for record in records] == cookies
    completed = [record.completed_ns for record in records]
    assert completed == sorted(completed)
    for record in records:
        assert (record.size, record.status, record.bytes_done) == (128, 0, 0)
        assert (record.flags, record.reserved) == (0, 0)
        assert before <= record.queued_ns <= record.completed_ns <= after
        assert bytes(record.src_digest) == bytes(record.dst_digest) == bytes(32)


def test_record_describes_its_copy(context: Context) -> None:
    context.setup(8)
    src, dst = Memory(PAGE).randomize(), Memory(PAGE)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    record = context.run(abi.copy(src.address, dst.address, 1000, cookie=2**64 - 1))
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert (record.cookie, record.status, record.bytes_done, record.flags) == (2**64 - 1, 0, 1000, 0)
    assert record.engine == context.snapshot().engine != 0
    assert before <= record.queued_ns <= record.started_ns <= record.completed_ns <= after
    assert context.snapshot().dma_bytes == 1000


def test_legacy_descriptor_leaves_a_record_too(context: Context) -> None:
    """And its cookie comes back unchanged in the descriptor as well."""
    context.setup(8)
    src, dst = Memory(PAGE), Memory(PAGE)
    arguments = (src.address, dst.address, 10, abi.RECORD | abi.COMPLETE_SYNC, 2**63 + 1)
    assert bytes(context.submit(*arguments)) == bytes(abi.Desc(*arguments))
    [record] = context.reap(1)
    assert (record.cookie, record.bytes_done) == (2**63 + 1, 10)


@pytest.mark.parametrize("size", [1, 2, 3, 255])
def test_room_for_records_is_reserved_at_submit(context: Context, size: int) -> None:
    """Twice the entries may be reserved or unread; beyond that only entries without a record are taken."""
    assert context.setup(size).records == 2 * size
    for n in range(2 * size):
        context.enter([abi.nop(n, abi.RECORD)])
        context.drain()
    assert context.snapshot().unread_records == 2 * size
    src, dst = Memory(PAGE), Memory(PAGE)
    with context.refuses(errno.ENOSPC):
        context.enter([abi.nop(1, abi.RECORD)])
    with context.refuses(errno.ENOSPC):
        context.submit(src.address, dst.address, 1, abi.RECORD | abi.COMPLETE_SYNC)
    context.submit(src.address, dst.address, 1, abi.COMPLETE_SYNC)
    # One read makes room for one.
    assert context.reap(1)[0].cookie == 0
    assert context.enter([abi.nop(2 * size, abi.RECORD)]).submitted == 1
    context.drain()
    with context.refuses(errno.ENOSPC):
        context.enter([abi.nop(1, abi.RECORD)])
    assert [record.cookie for record in context.reap(2 * size)] == list(range(1, 2 * size + 1))
    assert context.enter(max_records=1).records == []
    assert context.enter([abi.nop(1, abi.RECORD)]).submitted == 1


def test_refused_entries_keep_no_reservation(context: Context) -> None:
    """Entries refused for whatever reason leave the room for records as it was."""
    context.setup(2)
    bad = abi.copy(0, PAGE * 16, 8, abi.RECORD)
    for _ in range(10):
        with context.refuses(errno.EFAULT):
            context.enter([bad])
    for n in range(4):
        assert context.enter([abi.nop(n, abi.RECORD)]).submitted == 1
        context.drain()
    with context.refuses(errno.ENOSPC):
        context.enter([abi.nop(4, abi.RECORD)])


def test_missing_record_room_ends_a_batch(context: Context) -> None:
    """The first entry refused ends the batch, although a later one would fit."""
    context.setup(4)
    for n in range(7):
        context.enter([abi.nop(n, abi.RECORD)])
        context.drain()
    entered = context.enter([abi.nop(7, abi.RECORD), abi.nop(8, abi.RECORD), abi.nop(9)])
    assert entered[:2] == (1, -errno.ENOSPC)


def test_faulting_records_pointer_loses_no_record(context: Context) -> None:
    context.setup(4)
    context.enter([abi.nop(n, abi.RECORD) for n in range(4)])
    context.drain()
    for address in (16, 0, 1 << 63):
        with context.refuses(errno.EFAULT):
            context.ioctl(abi.ENTER, abi.Enter(size=56, records=address, max_records=4))

    memory = Memory(2 * PAGE)
    memory.protect(mmap.PROT_READ, PAGE)
    start = PAGE - 128 * 2 - 60  # two whole records fit
    argument = abi.Enter(size=56, records=memory.address + start, max_records=4)
    context.ioctl(abi.ENTER, argument)
    assert argument.error == -errno.EFAULT
    got = [int.from_bytes(memory.read(start + 128 * n, 8), "little") for n in range(argument.reaped)]
    got += [record.cookie for record in context.reap(4 - argument.reaped)]
    assert got == [0, 1, 2, 3]


# --- ENTER ------------------------------------------------------------------------------------------------


def test_enter_submits_and_collects_in_one_request(context: Context) -> None:
    """Submit and collect in one request; records of earlier entries come first."""
    context.setup(8)
    context.enter([abi.nop(1, abi.RECORD), abi.nop(2, abi.RECORD)])
    context.drain()
    entered = context.enter(
        [abi.nop(3, abi.RECORD), abi.nop(4, abi.RECORD)], max_records=8, min_records=4, wait=LONG
    )
    assert (entered.submitted, entered.error) == (2, 0)
    assert [record.cookie for record in entered.records] == [1, 2, 3, 4]


def test_enter_hands_out_no_more_than_asked(context: Context) -> None:
    context.setup(8)
    context.enter([abi.nop(n, abi.RECORD) for n in range(8)])
    context.drain()
    assert [record.cookie for record in context.enter(max_records=3).records] == [0, 1, 2]
    assert context.snapshot().unread_records == 5
    assert [record.cookie for record in context.enter(max_records=100).records] == [3, 4, 5, 6, 7]


def test_enter_takes_huge_counts(context: Context) -> None:
    """Counts are not believed for allocations: 2^32 - 1 of each is fine."""
    context.setup(4)
    records = (abi.Record * 4)()
    entries = (abi.Entry * 4)(*(abi.nop(n, abi.RECORD) for n in range(4)))
    argument = abi.Enter(
        size=56,
        entries=abi.address_of(entries),
        to_submit=4,
        records=abi.address_of(records),
        max_records=2**32 - 1,
    )
    assert context.ioctl(abi.ENTER, argument) == 4
    context.drain()
    argument.to_submit = 0
    reaped = argument.reaped
    context.ioctl(abi.ENTER, argument)
    assert reaped + argument.reaped == 4

    memory = Memory(PAGE)
    memory.write(bytes(abi.nop()) * 64)
    context.setup(16, paused=True)
    argument = abi.Enter(size=56, entries=memory.address, to_submit=2**32 - 1)
    assert context.ioctl(abi.ENTER, argument) == 16
    assert argument.error == -errno.ENOSPC


def test_enter_refuses_min_records_over_max_records(context: Context) -> None:
    context.setup(4)
    with context.refuses(errno.EINVAL):
        context.enter([abi.nop()], max_records=1, min_records=2)
    with context.refuses(errno.EINVAL):
        context.enter(max_records=0, min_records=1)


def test_deadline_zero_never_waits(context: Context) -> None:
    context.setup(4, paused=True)
    assert context.enter([abi.nop(1, abi.RECORD)], max_records=1, min_records=1)[:2] == (1, -errno.ETIME)
    with context.refuses(errno.ETIME):
        context.enter(max_records=1, min_records=1)


def test_passed_deadline_is_etime(context: Context) -> None:
    context.setup(4, paused=True)
    deadline = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 50_000_000
    entered = context.enter([abi.nop(1, abi.RECORD)], max_records=1, min_records=1, deadline_ns=deadline)
    assert entered == (1, -errno.ETIME, [])
    assert time.clock_gettime_ns(time.CLOCK_MONOTONIC) >= deadline
    with context.refuses(errno.ETIME):
        context.enter(max_records=1, min_records=1, deadline_ns=1)  # long ago


def test_passed_deadline_hands_out_fewer_records(context: Context) -> None:
    """Fewer records than waited for are handed out all the same."""
    context.setup(4)
    context.enter([abi.nop(1, abi.RECORD), abi.nop(2, abi.RECORD)])
    context.drain()
    entered = context.enter(max_records=4, min_records=3, wait=0.05)
    assert (entered.submitted, entered.error) == (0, -errno.ETIME)
    assert [record.cookie for record in entered.records] == [1, 2]


def test_signal_ends_the_wait(context: Context) -> None:
    context.setup(4, paused=True)
    with abi.ticking():
        entered = context.enter(
            [abi.nop(1, abi.RECORD)], max_records=1, min_records=1, deadline_ns=abi.NO_DEADLINE
        )
        assert entered == (1, -errno.EINTR, [])
        with context.refuses(errno.EINTR):
            context.enter(max_records=1, min_records=1, deadline_ns=abi.NO_DEADLINE)
    context.enable()
    assert context.reap(1)[0].cookie == 1


def test_enable_wakes_the_wait(context: Context) -> None:
    """One thread waits for what another lets run."""
    context.setup(4, paused=True)
    context.enter([abi.nop(n, abi.RECORD) for n in range(3)])
    waiter = Thread(lambda: context.reap(3))
    until_blocked(waiter.native_id)
    context.enable()
    waiter.join()
    assert [record.cookie for record in waiter.result] == [0, 1, 2]


def test_submission_wakes_the_wait(context: Context) -> None:
    """A wait may begin before there is anything to wait for."""
    context.setup(4)
    waiter = Thread(lambda: context.reap(2))
    until_blocked(waiter.native_id)
    context.enter([abi.nop(1, abi.RECORD)])
    context.enter([abi.nop(2, abi.RECORD)])
    waiter.join()
    assert [record.cookie for record in waiter.result] == [1, 2]


def test_refused_entry_ends_the_request_without_waiting(context: Context) -> None:
    """Waiting for records that were never accepted would be for ever."""
    context.setup(4)
    with context.refuses(errno.EINVAL):
        context.enter([abi.nop(1, 1 << 31)], max_records=1, min_records=1, wait=LONG)


def test_batch_returns_when_its_sync_entries_are_done(context: Context) -> None:
    """A batch returns when its COMPLETE_SYNC entries are done."""
    context.setup(8)
    src, dst = Memory(4 * PAGE).randomize(), Memory(4 * PAGE)
    assert context.enter(
        [abi.copy(src.address + n * PAGE, dst.address + n * PAGE, PAGE, abi.COMPLETE_SYNC) for n in range(4)]
    )[:2] == (4, 0)
    assert context.snapshot().active == 0
    assert src.equals(dst, 4 * PAGE)


# --- paused and ENABLE ------------------------------------------------------------------------------------


def test_paused_ring_moves_nothing(context: Context) -> None:
    context.setup(4, paused=True)
    src, dst = Memory(PAGE).randomize(), Memory(PAGE)
    context.submit(src.address, dst.address, PAGE)
    with pytest.raises(OSError, match="expired"):
        context.enter(max_records=1, min_records=1, wait=0.05)
    snapshot = context.snapshot()
    assert (snapshot.state, snapshot.active, snapshot.dma_bytes) == (abi.STATE_PAUSED, 1, 0)
    assert dst.read() == bytes(PAGE)
    context.enable()
    context.drain()
    assert context.snapshot().state == 0
    assert dst.equals(src, PAGE)
    context.enable()
    assert context.snapshot().state == 0


def test_legacy_setup_starts_the_ring(context: Context) -> None:
    context.setup_ring(4)
    assert context.snapshot().state == 0
    assert context.run(abi.nop(1)).status == 0


# --- failures nobody asked a record for -------------------------------------------------------------------


def test_errors_without_records_are_counted(context: Context) -> None:
    """Only those without a record; the first status stays; RESET clears them."""
    context.setup(8, paused=True)
    src, dst = Memory(3 * PAGE), Memory(PAGE)
    gone = src.address + PAGE
    context.enter(
        [
            abi.copy(src.address, dst.address, 10),
            abi.copy(gone, dst.address, 10, abi.RECORD),
            abi.copy(gone, dst.address, 10),
            abi.copy(gone, dst.address, 10, abi.VERIFY_HASH),
            abi.nop(),
        ]
    )
    src.unmap(PAGE, PAGE)
    context.enable()
    context.drain()
    snapshot = context.snapshot()
    assert (snapshot.errors, snapshot.first_error, snapshot.dma_bytes) == (2, -errno.EFAULT, 10)
    [record] = context.reap(1)
    assert (record.status, record.bytes_done) == (-errno.EFAULT, 0)
    context.reset()
    assert abi.as_after_open(context)


# --- RESET ------------------------------------------------------------------------------------------------


def test_reset_empties_a_full_paused_ring(context: Context) -> None:
    context.setup(4, paused=True)
    src, dst = Memory(4 * PAGE).randomize(), Memory(4 * PAGE)
    for n in range(4):
        flags = [0, abi.RECORD, abi.ZERO_COPY, abi.ZERO_COPY | abi.RECORD][n]
        context.submit(src.address + n * PAGE, dst.address + n * PAGE, PAGE, flags)
    context.reset()
    assert abi.as_after_open(context)
    assert dst.read() == bytes(4 * PAGE)
    with context.refuses(errno.EINVAL):
        context.reset()
    # Nothing of it comes back with the next ring.
    context.setup(4)
    assert context.run(abi.nop(9)).cookie == 9
    assert context.snapshot().dma_bytes == 0
    assert dst.read() == bytes(4 * PAGE)


def test_reset_drops_unread_records(context: Context) -> None:
    context.setup(4)
    for n in range(8):
        context.enter([abi.nop(n, abi.RECORD)])
        context.drain()
    context.reset()
    assert abi.as_after_open(context)
    context.setup(4)
    assert context.enter(max_records=8).records == []
    for n in range(8):
        assert context.enter([abi.nop(n, abi.RECORD)]).submitted == 1
        context.drain()


def test_reset_ends_a_running_copy(context: Context) -> None:
    """After RESET nothing writes the destination any more, and the next ring starts from nothing."""
    length = 256 * MIB
    src, dst = Memory(length), Memory(length)
    context.setup(4)
    context.submit(src.address, dst.address, length)
    context.submit(src.address, dst.address, length)
    context.reset()
    assert abi.as_after_open(context)
    dst.fill(0x5A, 0, 16 * MIB)
    context.setup(4)
    context.run(abi.nop())
    assert dst.read(0, 16 * MIB) == b"\x5a" * (16 * MIB)
    assert context.snapshot().dma_bytes == 0


@pytest.mark.parametrize("flags", [0, abi.VERIFY_HASH], ids=["default", "verify"])
def test_reset_ends_a_sync_wait(context: Context, flags: int) -> None:
    """It gets its result or ECANCELED, and does not stay."""
    length = 256 * MIB
    src, dst = Memory(length), Memory(length)

    def waits() -> int:
        try:
            context.submit(src.address, dst.address, length, flags | abi.COMPLETE_SYNC)
        except OSError as error:
            return error.errno
        return 0

    context.setup(4)
    waiter = Thread(waits)
    while context.snapshot().active == 0 and waiter.is_alive():
        os.sched_yield()
    context.reset()
    waiter.join()
    assert waiter.result in (0, errno.ECANCELED)
    assert abi.as_after_open(context)


def test_reset_ends_a_wait_for_records(context: Context) -> None:
    """With ECANCELED, or with the record of the entry that RESET cancelled if the waiter is quick."""

    def waits() -> int:
        try:
            entered = context.enter(max_records=1, min_records=1, wait=LONG)
        except OSError as error:
            return error.errno or 0
        assert entered.error == 0
        return -entered.records[0].status

    context.setup(4, paused=True)
    context.enter([abi.nop(1, abi.RECORD)])
    waiter = Thread(waits)
    until_blocked(waiter.native_id)
    context.reset()
    waiter.join()
    assert waiter.result == errno.ECANCELED
    assert abi.as_after_open(context)


@abi.needs_root
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_reset_ends_a_stalled_copy_or_can_be_interrupted(context: Context, tap: Tap, sync: bool) -> None:
    """RESET cuts it short, or waits for it until a signal comes and can be called again."""
    context.setup(4)
    dst = Memory(PAGE)
    dst.fill(0x5A)

    def submits() -> int:
        try:
            context.submit(tap.memory.address, dst.address, PAGE, abi.COMPLETE_SYNC if sync else 0)
        except OSError as error:
            return error.errno or 0
        return 0

    submitter = Thread(submits)
    tap.reached()
    with abi.ticking():
        try:
            context.reset()
            ended = True
        except OSError as error:
            assert error.errno == errno.EINTR
            ended = False
    if ended:
        tap.open()
        assert dst.read() == b"\x5a" * PAGE
    else:
        with abi.fails(errno.EBUSY):
            context.setup(4)
        resetter = Thread(context.reset)
        until_blocked(resetter.native_id)
        tap.open()
        resetter.join()
    submitter.join()
    assert submitter.result in ((0, errno.ECANCELED) if sync else (0,))
    assert abi.as_after_open(context)
    context.setup(4)
    assert context.run(abi.nop(1)).status == 0


def test_reset_from_many_threads_keeps_to_the_table(context: Context) -> None:
    """Against set-up, submission and each other: only the errnos of the table, and all is well at the end."""
    src, dst = Memory(4 * PAGE), Memory(4 * PAGE)
    allowed = {errno.EINVAL, errno.EBUSY, errno.ENOSPC, errno.ECANCELED, errno.ETIME}

    def attempt(function: object, *arguments: object, **options: object) -> None:
        try:
            function(*arguments, **options)  # type: ignore[operator]
        except OSError as error:
            assert error.errno in allowed, errno.errorcode.get(error.errno or 0)

    def resets() -> None:
        for _ in range(150):
            attempt(context.reset)

    def sets_up() -> None:
        for _ in range(150):
            attempt(context.setup, 3)

    def submits() -> None:
        for n in range(150):
            flags = [0, abi.RECORD, abi.COMPLETE_SYNC, abi.ZERO_COPY][n % 4]
            attempt(context.submit, src.address, dst.address, 4 * PAGE, flags)
            attempt(context.enter, [abi.nop(1, abi.RECORD)], max_records=2, min_records=1, wait=0.005)

    for thread in [Thread(function) for function in (resets, sets_up, submits, submits)]:
        thread.join()
    if context.snapshot().ring_size:
        context.reset()
    assert abi.as_after_open(context)
    context.setup(4)
    assert context.run(abi.nop(1)).status == 0
