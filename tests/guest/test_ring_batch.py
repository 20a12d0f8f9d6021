# SPDX-License-Identifier: MIT
"""Ring.submit_many(): NumPy arrays of entries, and of how they ended."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pynymph
from pynymph import batch, digest
from pynymph.abi import lib

SIZE = 1 << 16


@pytest.fixture
def ring() -> Iterator[pynymph.Ring]:
    with pynymph.Ring(64) as ring:
        yield ring


@pytest.fixture
def sides(ring: pynymph.Ring) -> tuple[pynymph.RingBuffer, pynymph.RingBuffer]:
    src, dst = ring.allocate(SIZE), ring.allocate(SIZE)
    src.view[:] = os.urandom(SIZE)
    return src, dst


def test_dtypes_have_the_layout_of_the_header() -> None:
    for struct, dtype in (("nymph_entry", batch.ENTRY), ("nymph_record", batch.RECORD)):
        kind = pynymph.abi.ffi.typeof(f"struct {struct}")
        assert dtype.itemsize == pynymph.abi.ffi.sizeof(kind)
        for name, field in kind.fields:
            assert dtype.fields is not None
            assert dtype.fields[name][1] == field.offset
            assert dtype.fields[name][0].itemsize == pynymph.abi.ffi.sizeof(field.type)
    assert batch.RECORD["status"] == np.int32


def test_batch_copies_ranges_of_any_length(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    """Here and there, of all lengths, in one request."""
    src, dst = sides
    lengths = np.arange(1, 65) * 15
    src_at, dst_at = np.cumsum(lengths) - lengths, np.arange(64) * 1000
    many = ring.submit_many(batch.copies(src, dst, src_at=src_at, dst_at=dst_at, length=lengths, verify=True))
    assert len(many) == 64
    ended = many.result(60)
    assert (many.ended, ended["status"].any()) == (64, False)
    assert (ended["bytes_done"] == lengths).all()
    assert (ended["cookie"] == many.entries["cookie"]).all()
    for record, at, to, length in zip(ended, src_at, dst_at, lengths, strict=True):
        sent = bytes(src.view[at : at + length])
        assert bytes(dst.view[to : to + length]) == sent
        assert bytes(record["src_digest"]) == bytes(record["dst_digest"]) == digest.payload(sent)


def test_rest_of_a_large_array_can_be_submitted_later(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    src, dst = sides
    left = batch.copies(src, dst, src_at=np.arange(1000) * 64, dst_at=np.arange(1000) * 64, length=64)
    batches = []
    while len(left):
        try:
            batches.append(ring.submit_many(left))
        except pynymph.FullError:
            batches[-1].result(60)
        else:
            left = left[len(batches[-1]) :]
    ended = np.concatenate([each.result(60) for each in batches])
    assert (len(ended), ended["status"].any()) == (1000, False)
    assert dst.view[:64000] == src.view[:64000]


def test_run_many_runs_more_entries_than_fit(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    src, dst = sides
    at = np.arange(1000) * 64
    entries = batch.copies(src, dst, src_at=at, dst_at=at, length=64, verify=True)
    ended = ring.run_many(entries)
    assert (len(ended), ended["status"].any()) == (1000, False)
    assert dst.view[:64000] == src.view[:64000]
    assert [bytes(each) for each in ended["src_digest"]] == [digest.payload(src.view[i : i + 64]) for i in at]
    assert len(ring.run_many(entries[:0])) == 0
    entries["reserved"][70, 0] = 1
    with pytest.raises(pynymph.ArgumentError, match="not well-formed"):
        ring.run_many(entries)


def test_run_many_works_in_many_threads(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    src, dst = sides

    def work(number: int) -> None:
        part = slice(number * SIZE // 4, (number + 1) * SIZE // 4)
        at = np.arange(part.start, part.stop, 100)[:-1]
        for _ in range(5):
            dst[part].view[:] = bytes(SIZE // 4)
            entries = batch.copies(src, dst, src_at=at, dst_at=at, length=100)
            assert not ring.run_many(entries, 60)["status"].any()
            assert ring.digest(src=src[part], timeout=60) == digest.payload(src[part].view)
            end = int(at[-1]) + 100
            assert dst.view[part.start : end] == src.view[part.start : end]

    with ThreadPoolExecutor() as threads:
        list(threads.map(work, range(4)))


def test_run_many_times_out_and_can_be_repeated(ring: pynymph.Ring) -> None:
    with pynymph.Ring(4, paused=True) as paused:
        buffer = paused.allocate(64)
        entries = batch.copies(buffer, buffer, src_at=0, dst_at=[8, 16, 24, 32], length=8)
        with pytest.raises(pynymph.RingTimeoutError, match="0 of 4 done"):
            paused.run_many(entries, 0.02)
        with pytest.raises(pynymph.RingTimeoutError, match="no room within"):
            paused.run_many(entries, 0.02)
        paused.enable()
        assert not paused.run_many(entries, 60)["status"].any()


def test_waiting_batch_does_not_use_a_reused_handle(ring: pynymph.Ring) -> None:
    with pynymph.Ring(4, paused=True) as paused, ThreadPoolExecutor() as threads:
        src, dst = paused.allocate(64), paused.allocate(64)
        src.view[:] = b"S" * 64
        at = np.arange(8) * 8
        entries = batch.copies(src, dst, src_at=at, dst_at=at, length=8)
        running = threads.submit(paused.run_many, entries, 60)
        while paused.snapshot().active_descriptors < 4:
            pass
        dst.free()
        other = paused.allocate(64)
        assert other._memory.handle == entries["dst_buffer"][0]
        paused.enable()
        with pytest.raises(pynymph.ArgumentError, match="no buffer of this ring has the handle"):
            running.result()
        assert bytes(other.view) == bytes(64)


def test_a_refusal_names_the_entry(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    at = np.arange(200) * 64
    entries = batch.copies(*sides, src_at=at, dst_at=at, length=64)
    entries["reserved"][133, 1] = 1
    with pytest.raises(pynymph.ArgumentError, match="entry 133 is not well-formed"):
        ring.run_many(entries)
    entries["dst_buffer"][70] = 0
    with pytest.raises(pynymph.ArgumentError, match="entry 70 has no dst_buffer"):
        ring.run_many(entries)
    with pytest.raises(pynymph.ArgumentError, match="in NumPy"):
        ring.run_many(None)  # type: ignore[arg-type]


def test_batches_run_beside_other_operations(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    src, dst = sides
    jobs, batches = [], []
    for i in range(8):
        jobs.append(ring.submit(pynymph.Hash(src=src[i : i + 100])))
        at = np.arange(4) * 8 + i * 1000
        batches.append(ring.submit_many(batch.copies(src, dst, src_at=at, dst_at=at, length=8)))
    assert [job.result(60).src_digest for job in jobs] == [
        digest.payload(src.view[i : i + 100]) for i in range(8)
    ]
    assert [list(each.result(60)["bytes_done"]) for each in batches] == [[8] * 4] * 8
    assert len({*np.concatenate([each.entries["cookie"] for each in batches]).tolist()}) == 32


@pytest.mark.parametrize("verify", [False, True])
def test_entries_of_one_request_run_in_order(ring: pynymph.Ring, verify: bool) -> None:
    """Entries of one request that read and write each other's bytes, as if run one after the other."""
    random, size = np.random.default_rng(1), 4096
    with ring.allocate(size) as buffer, ring.allocate(size) as other:
        for memory in (buffer, other):
            memory.view[:] = os.urandom(size)
        now = [np.array(memory) for memory in (buffer, other)]
        memories = [buffer, other]
        for _ in range(40):
            lengths = random.integers(1, 200, 64)
            ends = [random.integers(0, size - 200, 64) for _ in range(2)]
            sides = random.integers(0, 2, (2, 64))
            same = sides[0] == sides[1]
            near = same & (abs(ends[0] - ends[1]) < 200)
            ends[1] = np.where(near, (ends[0] + 1000) % (size - 200), ends[1])
            entries = np.concatenate(
                [
                    batch.copies(
                        memories[sides[0][i]], memories[sides[1][i]],
                        src_at=ends[0][i], dst_at=ends[1][i], length=lengths[i], verify=verify,
                    )
                    for i in range(64)
                ]
            )  # fmt: skip
            fills = random.integers(0, 8, 64) == 0
            entries["opcode"][fills] = lib.NYMPH_OP_FILL
            entries["src_buffer"][fills], entries["src"][fills] = 0, 0x0101010101010101 * 7
            entries["flags"][random.integers(0, 4, 64) == 0] |= lib.NYMPH_DMA_FLAG_LINK
            assert not ring.submit_many(entries).result(60)["status"].any()
            for i in range(64):
                at, to, length = ends[0][i], ends[1][i], lengths[i]
                what = 7 if fills[i] else now[sides[0][i]][at : at + length].copy()
                now[sides[1][i]][to : to + length] = what
            assert [bytes(memory.view) for memory in memories] == [each.tobytes() for each in now]


def test_failure_cancels_only_its_own_chain(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    src, dst = sides
    at = np.arange(12) * 100
    entries = batch.copies(src, dst, src_at=at, dst_at=at, length=100)
    entries["flags"][2:6] |= lib.NYMPH_DMA_FLAG_LINK
    entries["opcode"][4] = lib.NYMPH_OP_COMPARE
    entries["dst"][4] = 1 << 15  # zeros
    ended = ring.submit_many(entries).result(60)["status"]
    assert list(ended) == [0] * 4 + [-errno.EBADMSG] + [-errno.ECANCELED] * 2 + [0] * 5
    copied = bytes(src.view[:400]) + bytes(300) + bytes(src.view[700:1200])
    assert bytes(dst.view[:1200]) == copied


def test_batch_takes_any_operation(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    src, dst = sides
    entries = batch.copies(src, dst[100:], src_at=[0, 0, 0], dst_at=[0, 0, 0], length=[50, 50, 50])
    entries["opcode"] = [lib.NYMPH_OP_COPY, lib.NYMPH_OP_FILL, lib.NYMPH_OP_COMPARE]
    entries["src_buffer"][1], entries["src"][1] = 0, 0x2A
    ended = ring.submit_many(entries).result(60)
    assert list(ended["status"][:2]) == [0, 0]
    assert bytes(dst.view[100:108]) == b"\x2a" + bytes(7)
    assert ended["status"][2] == -errno.EBADMSG
    assert not entries["cookie"].any()  # the caller's stay as they are


def test_copies_refuses_wrong_arguments(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    src, dst = sides
    for arguments, said in [
        ({"src_at": SIZE, "dst_at": 0, "length": 1}, f"src_at[0]: 1 bytes at {SIZE} are not in a buffer"),
        ({"src_at": 0, "dst_at": [0, -1], "length": 1}, "dst_at[1]: 1 bytes at -1 are not in a buffer"),
        ({"src_at": 0, "dst_at": 0, "length": 0}, "src_at[0]: 0 bytes at 0"),
        ({"src_at": [0, 0], "dst_at": [0, 0, 0], "length": 1}, "are not of one length"),
        ({"src_at": 0, "dst_at": 0, "length": 1.5}, "length is 1.5; give a whole number"),
        ({"src_at": 2**63 - 1, "dst_at": 0, "length": 1}, "are not in a buffer"),
        ({"src_at": 0, "dst_at": 0, "length": 2**63 - 1}, "are not in a buffer"),
        ({"src_at": 0.5, "dst_at": 0, "length": 1}, "src_at is 0.5; give a whole number"),
    ]:
        with pytest.raises(pynymph.ArgumentError) as refused:
            batch.copies(src, dst, **arguments)
        assert said in str(refused.value)
    good = batch.copies(src, dst, src_at=[0, 8], dst_at=[0, 8], length=8)
    stray, unknown = good.copy(), good.copy()
    stray["dst_buffer"][1] = 0
    unknown["src_buffer"][0] = 4000
    for entries, said in [
        (stray, "entry 1 has no dst_buffer"),
        (unknown, "no buffer of this ring has the handle 4000"),
        (good["src"], "of pynymph.batch.ENTRY"),
        (list(good), "of pynymph.batch.ENTRY"),
    ]:
        with pytest.raises(pynymph.ArgumentError, match=said):
            ring.submit_many(entries)  # type: ignore[arg-type]
    bad = good.copy()
    bad["reserved"][1] = 1
    assert len(ring.submit_many(bad)) == 1  # what is in front of it was taken
    with pytest.raises(pynymph.ArgumentError, match="not well-formed"):
        ring.submit_many(bad[1:])
    assert len(ring.submit_many(good[:0]).result(0)) == 0
    assert not ring.submit_many(good).result(60)["status"].any()


def test_batch_holds_its_buffers_and_reports_its_end(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]
) -> None:
    memory = bytearray(SIZE)
    with pynymph.Ring(4, paused=True) as paused:
        registered, own = paused.register(memory), paused.allocate(SIZE)
        many = paused.submit_many(batch.copies(own, registered, src_at=0, dst_at=[0, 9, 99, 999], length=1))
        with pytest.raises(pynymph.RingTimeoutError, match="0 of 4 done"):
            many.result(0.01)
        with pytest.raises(pynymph.FullError):
            paused.submit_many(many.entries)
        registered.free()
        with pytest.raises(BufferError):
            memory.clear()
        paused.reset()
        with pytest.raises(pynymph.CanceledError, match="reset before this ended"):
            many.result()
        memory.clear()
        assert "Batch of 4 entries, 0 of them ended" in repr(many)
    with pytest.raises(pynymph.ClosedError):
        paused.submit_many(many.entries)
