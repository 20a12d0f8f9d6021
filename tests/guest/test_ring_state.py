# SPDX-License-Identifier: MIT
"""Opening a ring, queueing on it while it is paused, and what it tells about itself."""

import ctypes
import errno
import mmap
import os
import tempfile

import pytest

import pynymph
from pynymph import Copy, digest
from pynymph.abi import lib


def address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def test_query_says_what_there_is() -> None:
    served = pynymph.query()
    assert served.version == lib.NYMPH_ABI_VERSION
    assert served.max_entries == lib.NYMPH_MAX_ENTRIES
    assert served.max_length == lib.NYMPH_MAX_LENGTH
    assert served.features & lib.NYMPH_FEATURE_POLL
    assert served.opcodes & 1 << lib.NYMPH_OP_COPY
    assert not served.opcodes & 1 << lib.NYMPH_OP_FILL
    assert served.setup_flags & lib.NYMPH_SETUP_PAUSED
    assert "cpu" in served.engines.values()
    assert 0 not in served.engines


def test_a_new_ring() -> None:
    with pynymph.Ring(7, engine="cpu", label=2**64 - 1) as ring:
        taken = ring.snapshot()
        assert (taken.ring_size, taken.head, taken.tail, taken.label) == (7, 0, 0, 2**64 - 1)
        assert (taken.dma_bytes, taken.active_descriptors, taken.unread_records) == (0, 0, 0)
        assert (taken.errors, taken.first_error, taken.paused, taken.engine) == (0, 0, False, "cpu")
        assert taken.entries == ()
        assert taken.ring_hash == ring.hash() == ring.status().ring_hash == digest.ring_hash(taken)


def test_an_engine_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(pynymph.NymphError, match=r"no engine 'warp'; there are: .*cpu") as caught:
        pynymph.Ring(engine="warp")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_hash_follows_the_ring(size: int) -> None:
    data = os.urandom(64)
    with pynymph.Ring(size, paused=True, label=size) as ring:
        seen = {ring.hash()}
        for round_ in range(3):
            count = max(1, size * (round_ + 1) // 3)
            buffers = [bytearray(64) for _ in range(count)]
            entered = ring.enter([Copy(data, dst, verify=True) for dst in buffers])
            assert len(entered) == count

            taken = ring.snapshot()
            assert taken.paused
            assert taken.active_descriptors == len(taken.entries) == count
            assert taken.head == (taken.tail + count) % size
            assert [entry.cookie for entry in taken.entries] == entered
            assert [entry.dst for entry in taken.entries] == [address(dst) for dst in buffers]
            assert {entry.length for entry in taken.entries} == {64}
            assert digest.ring_hash(taken) == taken.ring_hash == ring.hash()
            assert taken.ring_hash not in seen
            seen.add(taken.ring_hash)
            assert not any(any(dst) for dst in buffers)
            ring.reset()

        buffers = [bytearray(64) for _ in range(size)]
        ring.enter([Copy(data, dst) for dst in buffers])
        ring.enable()
        completions = ring.collect(size)
        assert [done.status for done in completions] == [0] * size
        assert all(dst == data for dst in buffers)
        taken = ring.snapshot()
        assert (taken.dma_bytes, taken.entries, taken.paused) == (64 * size, (), False)
        assert digest.ring_hash(taken) == taken.ring_hash == ring.hash()
        assert taken.ring_hash not in seen


def test_enter_takes_what_there_is_room_for() -> None:
    buffers = [bytearray(8) for _ in range(6)]
    copies = [Copy(bytes([n]) * 8, dst) for n, dst in enumerate(buffers, 1)]
    with pynymph.Ring(4, paused=True) as ring:
        accepted = ring.enter(copies)
        assert len(accepted) == 4
        # Those refused are not held.
        buffers[4].append(0)
        buffers[4].pop()
        with pytest.raises(pynymph.FullError, match="ring is full") as caught:
            ring.enter(copies[4:])
        assert caught.value.errno == errno.ENOSPC
        assert ring.collect(1, timeout=0.01) == []

        ring.enable()
        completions = ring.collect(4)
        assert [done.cookie for done in completions] == accepted
        accepted += ring.enter(copies[4:])
        completions += ring.collect(2)
        assert [done.cookie for done in completions] == accepted
        assert [done.bytes_done for done in completions] == [8] * 6
    assert buffers == [bytes([n]) * 8 for n in range(1, 7)]


def test_enter_stops_at_a_copy_that_is_refused() -> None:
    buffer = bytearray(100)
    with pynymph.Ring() as ring, memoryview(buffer)[:60] as head, memoryview(buffer)[40:] as tail:
        with pytest.raises(pynymph.ArgumentError, match="overlap"):
            ring.enter([Copy(head, tail)])
        [cookie] = ring.enter([Copy(bytes(100), bytearray(100)), Copy(head, tail)])
        [done] = ring.collect(1)
        assert (done.cookie, done.status) == (cookie, 0)


def test_a_completion_says_how_its_copy_failed() -> None:
    buffers = [bytearray(3 * mmap.PAGESIZE) for _ in range(2)]
    with tempfile.TemporaryFile() as file:
        file.truncate(3 * mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), 3 * mmap.PAGESIZE) as src, pynymph.Ring() as ring:
            file.truncate(mmap.PAGESIZE)
            cookies = ring.enter([Copy(src, buffers[0]), Copy(bytes(3 * mmap.PAGESIZE), buffers[1])])
            failed, done = ring.collect(2)
            assert [failed.cookie, done.cookie] == cookies
            assert (failed.status, failed.bytes_done) == (-errno.EFAULT, mmap.PAGESIZE)
            assert (done.status, done.bytes_done) == (0, 3 * mmap.PAGESIZE)
            assert ring.snapshot().dma_bytes == 4 * mmap.PAGESIZE
            assert ring.snapshot().errors == 0


def test_copy_and_enter_do_not_take_each_others_completions() -> None:
    with pynymph.Ring() as ring:
        entered = ring.enter([Copy(bytes(1000), bytearray(1000)) for _ in range(5)])
        done = ring.copy(src=bytes(10), dst=bytearray(10))
        assert done.cookie not in entered
        assert [done.cookie for done in ring.collect(5)] == entered


def test_reset_starts_again() -> None:
    with pynymph.Ring(4, paused=True, label=9) as ring:
        fresh = ring.snapshot()
        held = bytearray(100)
        ring.enter([Copy(b"x" * 100, held)])
        ring.enable()
        ring.copy(src=bytes(50), dst=bytearray(50))
        assert ring.status().dma_bytes == 150
        ring.reset()
        assert ring.snapshot() == fresh
        assert ring.collect() == []
        held.append(0)


def test_two_rings_share_nothing() -> None:
    with pynymph.Ring(4, paused=True) as one, pynymph.Ring(4) as other:
        before = one.snapshot()
        other.copy(src=bytes(100), dst=bytearray(100))
        assert one.snapshot() == before
        one.enter([Copy(bytes(100), bytearray(100))])
        assert other.status().active_descriptors == 0


def test_a_closed_ring_says_so() -> None:
    ring = pynymph.Ring()
    fd = ring.fileno()
    ring.close()
    ring.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for use in (
        lambda: ring.copy(src=b"1", dst=bytearray(1)),
        lambda: ring.enter([]),
        ring.collect,
        ring.enable,
        ring.reset,
        ring.status,
        ring.hash,
        ring.snapshot,
        ring.fileno,
    ):
        with pytest.raises(pynymph.ClosedError, match="closed; open another") as caught:
            use()
        assert caught.value.errno == errno.EBADF
