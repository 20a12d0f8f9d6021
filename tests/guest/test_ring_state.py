# SPDX-License-Identifier: MIT
"""Opening a ring, queueing on it while it is paused, and what it tells about itself."""

import copy
import ctypes
import errno
import itertools
import mmap
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pynymph
from pynymph import Compare, Copy, Hash, Nop, abi, buffer, core, digest, model, mutex, operation
from pynymph.abi import lib
from pynymph.model import ring_state


def address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def collect(ring: pynymph.Ring, count: int) -> list[pynymph.Completion]:
    found = list(itertools.islice(ring.completions(), count))
    assert len(found) == count
    return found


def test_query_reports_limits_and_engines() -> None:
    served = pynymph.query()
    assert served.version == lib.NYMPH_ABI_VERSION
    assert served.max_entries == lib.NYMPH_MAX_ENTRIES
    assert served.max_length == lib.NYMPH_MAX_LENGTH
    assert served.features & lib.NYMPH_FEATURE_POLL
    for opcode in ("NOP", "COPY", "HASH", "FILL", "COMPARE"):
        assert served.opcodes & 1 << getattr(lib, f"NYMPH_OP_{opcode}")
    assert served.setup_flags & lib.NYMPH_SETUP_PAUSED
    assert served.engines
    assert 0 not in served.engines


def test_new_ring_is_empty() -> None:
    engine = next(iter(pynymph.query().engines.values()))
    with pynymph.Ring(7, engine=engine, label=2**64 - 1) as ring:
        taken = ring.snapshot()
        assert (taken.ring_size, taken.head, taken.tail, taken.label) == (7, 0, 0, 2**64 - 1)
        assert (taken.dma_bytes, taken.active_descriptors, taken.unread_records) == (0, 0, 0)
        assert (taken.errors, taken.first_error, taken.paused, taken.engine) == (0, 0, False, engine)
        assert taken.entries == ()
        assert taken.ring_hash == ring.hash() == ring.status().ring_hash == digest.ring_hash(taken)


def test_unknown_engine_error_lists_the_engines() -> None:
    there_are = ", ".join(pynymph.query().engines.values())
    with pytest.raises(pynymph.NymphError, match=f"no engine 'warp'; there are: {there_are}") as caught:
        pynymph.Ring(engine="warp")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_hash_follows_the_ring(size: int) -> None:
    data = os.urandom(64)
    with pynymph.Ring(size, paused=True, label=size) as ring:
        seen = {ring.hash()}
        for round_ in range(3):
            count = max(1, size * (round_ + 1) // 3)
            buffers = [bytearray(64) for _ in range(count)]
            transfers = ring.submit_all([Copy(src=data, dst=dst, verify=True) for dst in buffers])
            assert len(transfers) == count

            taken = ring.snapshot()
            assert taken.paused
            assert taken.active_descriptors == len(taken.entries) == count
            assert taken.head == (taken.tail + count) % size
            assert [entry.cookie for entry in taken.entries] == [transfer.cookie for transfer in transfers]
            assert [entry.dst for entry in taken.entries] == [address(dst) for dst in buffers]
            assert {entry.length for entry in taken.entries} == {64}
            assert digest.ring_hash(taken) == taken.ring_hash == ring.hash()
            assert taken.ring_hash not in seen
            seen.add(taken.ring_hash)
            assert not any(any(dst) for dst in buffers)
            ring.reset()

        buffers = [bytearray(64) for _ in range(size)]
        ring.submit_all([Copy(src=data, dst=dst) for dst in buffers])
        ring.enable()
        completions = list(ring.completions())
        assert [done.status for done in completions] == [0] * size
        assert all(dst == data for dst in buffers)
        taken = ring.snapshot()
        assert (taken.dma_bytes, taken.entries, taken.paused) == (64 * size, (), False)
        assert digest.ring_hash(taken) == taken.ring_hash == ring.hash()
        assert taken.ring_hash not in seen


def test_submit_all_takes_what_fits() -> None:
    buffers = [bytearray(8) for _ in range(6)]
    copies = [Copy(src=bytes([n]) * 8, dst=dst) for n, dst in enumerate(buffers, 1)]
    with pynymph.Ring(4, paused=True) as ring:
        accepted = ring.submit_all(copies)
        assert len(accepted) == 4
        # Those refused are not held.
        buffers[4].append(0)
        buffers[4].pop()
        with pytest.raises(pynymph.FullError, match="ring is full") as caught:
            ring.submit(copies[4])
        assert caught.value.errno == errno.ENOSPC
        assert list(ring.completions(timeout=0.01)) == []

        ring.enable()
        completions = collect(ring, 4)
        assert [done.cookie for done in completions] == [transfer.cookie for transfer in accepted]
        accepted += ring.submit_all(copies[4:])
        completions += ring.completions()
        assert [done.cookie for done in completions] == [transfer.cookie for transfer in accepted]
        assert [done.bytes_done for done in completions] == [8] * 6
    assert buffers == [bytes([n]) * 8 for n in range(1, 7)]


def test_submit_all_stops_at_a_refused_operation() -> None:
    buffer = bytearray(100)
    with pynymph.Ring() as ring, memoryview(buffer)[:60] as head, memoryview(buffer)[40:] as tail:
        overlapping = Copy(src=head, dst=tail)
        with pytest.raises(pynymph.ArgumentError, match="overlap"):
            ring.submit(overlapping)
        [transfer] = ring.submit_all([Copy(src=bytes(100), dst=bytearray(100)), overlapping])
        [done] = ring.completions()
        assert (done.cookie, done.status) == (transfer.cookie, 0)


def test_completion_says_how_its_copy_failed() -> None:
    buffers = [bytearray(3 * mmap.PAGESIZE) for _ in range(2)]
    with tempfile.TemporaryFile() as file:
        file.truncate(3 * mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), 3 * mmap.PAGESIZE) as src, pynymph.Ring() as ring:
            file.truncate(mmap.PAGESIZE)
            transfers = ring.submit_all(
                [Copy(src=src, dst=buffers[0]), Copy(src=bytes(3 * mmap.PAGESIZE), dst=buffers[1])]
            )
            failed, done = ring.completions()
            assert [failed.cookie, done.cookie] == [transfer.cookie for transfer in transfers]
            assert failed.status == -errno.EFAULT
            # arm64's kernel reads up to 64 bytes ahead of what it writes, and leaves behind what it had read
            ahead = 63 if os.uname().machine == "aarch64" else 0
            assert mmap.PAGESIZE - ahead <= failed.bytes_done <= mmap.PAGESIZE
            assert not any(buffers[0][failed.bytes_done :])
            assert (done.status, done.bytes_done) == (0, 3 * mmap.PAGESIZE)
            assert ring.snapshot().dma_bytes == failed.bytes_done + 3 * mmap.PAGESIZE
            assert ring.snapshot().errors == 0
            said = f"went away after {failed.bytes_done} bytes;"
            with pytest.raises(pynymph.NymphError, match=said) as caught:
                transfers[0].result()
            assert caught.value.completion == failed


def test_copy_and_submit_do_not_take_each_others_completions() -> None:
    with pynymph.Ring() as ring:
        transfers = ring.submit_all([Copy(src=bytes(1000), dst=bytearray(1000)) for _ in range(5)])
        done = ring.copy(src=bytes(10), dst=bytearray(10))
        cookies = [transfer.cookie for transfer in transfers]
        assert done.cookie not in cookies
        assert [done.cookie for done in ring.completions()] == cookies


def test_result_can_be_awaited_repeatedly() -> None:
    src, dst = os.urandom(100_000), bytearray(100_000)
    with pynymph.Ring(paused=True) as ring:
        transfer = ring.submit(Copy(src=src, dst=dst, verify=True))
        assert not transfer.done
        assert "in flight" in repr(transfer)
        with pytest.raises(pynymph.RingTimeoutError, match="goes on"):
            transfer.result(timeout=0.01)
        ring.enable()
        done = transfer.result()
        assert done == transfer.result()
        assert transfer.done
        assert (done.cookie, done.src_digest) == (transfer.cookie, digest.payload(src))
        assert not transfer.cancel()
        # Whose result was taken is not told of again.
        assert list(ring.completions()) == []


def test_cancel_ends_a_queued_copy() -> None:
    buffers = [bytearray(8) for _ in range(3)]
    with pynymph.Ring(paused=True) as ring:
        transfers = ring.submit_all([Copy(src=b"12345678", dst=dst) for dst in buffers])
        assert transfers[1].cancel()
        ring.enable()
        with pytest.raises(pynymph.CanceledError) as caught:
            transfers[1].result()
        assert caught.value.completion is not None
        assert caught.value.completion.bytes_done == 0
        assert [transfers[n].result().status for n in (0, 2)] == [0, 0]
    assert buffers == [b"12345678", bytes(8), b"12345678"]


def test_uncollected_completions_are_bounded() -> None:
    with pynymph.Ring(2) as ring:
        for _ in range(4):
            ring.submit(Nop())
            ring.copy(src=b"1", dst=bytearray(1))  # they run in order: now that one has ended
        with pytest.raises(pynymph.FullError, match=r"4 completions wait for completions\(\)"):
            ring.submit(Nop())
        assert len(list(ring.completions())) == 4
        assert ring.submit(Nop()).result().status == 0


def test_each_operation_returns_its_result() -> None:
    data = os.urandom(200_001)
    with pynymph.Ring() as ring:
        assert ring.digest(src=data) == digest.payload(data)
        dst = bytearray(len(data))
        done = ring.fill(dst=dst, pattern=b"\x01\x02", verify=True)
        assert dst == b"\x01\x02" * 100_000 + b"\x01"
        assert done.src_digest == done.dst_digest == digest.payload(dst)
        assert ring.compare(a=data, b=bytearray(data)) is None
        other = bytearray(data)
        other[123_456] ^= 1
        assert ring.compare(a=data, b=other) == 123_456
        with pytest.raises(pynymph.VerifyError, match="first at byte 123456"):
            ring.submit(Compare(a=data, b=other)).result()
        with pytest.raises(pynymph.ArgumentError, match="a pattern has 1, 2, 4 or 8 bytes"):
            ring.fill(dst=dst, pattern=b"123")
        assert ring.status().dma_bytes == len(dst)


def test_links_cancel_what_follows_a_failure() -> None:
    dst = bytearray(4)
    with pynymph.Ring() as ring:
        one, two, three = ring.submit_all(
            [
                Compare(a=b"1234", b=b"1235", link=True),
                Copy(src=b"abcd", dst=dst),
                Hash(src=b"x", barrier=True),
            ]
        )
        with pytest.raises(pynymph.VerifyError):
            one.result()
        with pytest.raises(pynymph.CanceledError, match="linked"):
            two.result()
        assert three.result().src_digest == digest.payload(b"x")
        assert dst == bytes(4)


def test_latency_counts_finished_operations() -> None:
    with pynymph.Ring() as ring:
        assert ring.latency().count == 0
        for _ in range(20):
            ring.copy(src=b"1", dst=bytearray(1))
        latency = ring.latency()
        assert latency.count == sum(n for _, n in latency.histogram) == 20
        assert 0 < latency.p50 <= latency.p95 <= latency.p99 <= latency.p999 <= latency.max
        assert 0 < latency.mean <= latency.max
        ring.reset()
        assert ring.latency().count == 0


def test_reset_returns_to_a_new_ring() -> None:
    with pynymph.Ring(4, paused=True, label=9) as ring:
        fresh = ring.snapshot()
        held = bytearray(100)
        ring.submit(Copy(src=b"x" * 100, dst=held))
        ring.enable()
        ring.copy(src=bytes(50), dst=bytearray(50))
        assert ring.status().dma_bytes == 150
        ring.reset()
        again = ring.snapshot()
        assert again.transcript_id > fresh.transcript_id  # a new transcript, as empty as the first
        assert replace(again, transcript_id=fresh.transcript_id) == fresh
        assert list(ring.completions()) == []
        held.append(0)


@pytest.mark.usefixtures("driver")
def test_reset_beside_the_worker_counts_no_failure() -> None:
    """A ring that died, and was empty, just when the worker looked, retired four billion entries."""
    counter = Path("/sys/class/misc/pcie_nymph/counters/failed")
    before, times = int(counter.read_text()), 400
    with pynymph.Ring(4, paused=True) as ring:
        for _ in range(times):
            ring.submit_all([Nop()] * 2)
            ring.enable()
            ring.reset()
        assert ring.status().active_descriptors == 0
    assert int(counter.read_text()) - before <= 2 * times


def test_two_rings_share_nothing() -> None:
    with pynymph.Ring(4, paused=True) as one, pynymph.Ring(4) as other:
        before = one.snapshot()
        other.copy(src=bytes(100), dst=bytearray(100))
        assert one.snapshot() == before
        one.submit(Copy(src=bytes(100), dst=bytearray(100)))
        assert other.status().active_descriptors == 0


def test_closed_ring_refuses_use() -> None:
    ring = pynymph.Ring()
    fd = ring.fileno()
    ring.close()
    ring.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for use in (
        lambda: ring.copy(src=b"1", dst=bytearray(1)),
        lambda: ring.submit_all([]),
        lambda: list(ring.completions()),
        lambda: ring.allocate(1),
        ring.latency,
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


@pytest.mark.parametrize(
    "way", [copy.copy, copy.deepcopy, pickle.dumps, lambda thing: copy.deepcopy([thing])]
)
def test_owners_refuse_to_be_copied(way: Callable[[Any], object]) -> None:
    """The copy of a ring closed the file under the first, and then whatever had its number."""
    from pynymph import batch, fabric

    with pynymph.Ring(4, paused=True) as ring, fabric.ZLTA2Fabric() as opened:
        opened.initialize()
        memory = ring.allocate(100)
        transfer = ring.submit(Nop())
        entries = batch.copies(memory, memory, src_at=0, dst_at=8, length=8)
        many = ring.submit_many(entries)
        core = ring._core
        owners: list[object] = [ring, core, core.file, core.mutex, memory, memory._memory, memory[:10]]
        owners += [transfer, transfer._job, many, many._many, opened]
        if isinstance(core.file, model.Model):
            state = core.file._get_ring_state()
            assert state is not None
            owners += [state.carried, state.carried.regions[1], state.carried.regions[1].charge]
        for owner in owners:
            with pytest.raises(TypeError, match=f"cannot copy or pickle a {type(owner).__name__}: "):
                way(owner)
        ring.enable()
        assert not many.result()["status"].any()  # by the same file
        assert os.readlink(f"/proc/self/fd/{ring.fileno()}")


def test_plain_values_can_be_copied() -> None:
    with pynymph.Ring() as ring:
        done = ring.copy(src=b"1", dst=bytearray(1), verify=True)
        with pytest.raises(pynymph.VerifyError) as differs:
            ring.submit(Compare(a=b"1", b=b"2")).result()
        for plain in (
            done,
            ring.snapshot(),
            ring.status(),
            ring.latency(),
            pynymph.query(),
            Copy(src=b"1", dst=bytearray(1)),
        ):
            assert copy.copy(plain) == copy.deepcopy(plain) == pickle.loads(pickle.dumps(plain)) == plain
        for error in (copy.copy(differs.value), pickle.loads(pickle.dumps(differs.value))):
            assert (type(error), error.errno, error.strerror) == (
                pynymph.VerifyError,
                errno.EBADMSG,
                differs.value.strerror,
            )
            assert error.completion == differs.value.completion


def test_half_made_objects_are_collected_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: said.append(it.exc_value))
    inner = [abi.Device, model.Model, mutex.Mutex, ring_state.Charge, ring_state.Region, ring_state.Carried]
    inner += [buffer.Memory, operation.Job]
    for kind in [pynymph.Ring, core.Core, pynymph.AsyncRing, pynymph.RingBuffer, pynymph.Transfer, *inner]:
        made = kind.__new__(kind)
        del made
    with pytest.raises(pynymph.NymphError):
        pynymph.Ring(0)
    with pytest.raises(TypeError):
        pynymph.Ring(nothing_like=1)  # type: ignore[call-arg]
    assert said == []
