# SPDX-License-Identifier: MIT
"""AsyncRing: operations as awaitables, completions as an asynchronous iterator, without a thread."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import numpy as np
import pytest

import pynymph
from pynymph import AsyncRing, Copy, Fill, Hash, Nop, batch, digest

KIB = 2**10


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: object, **named: object) -> None:
        async def limited() -> None:
            async with asyncio.timeout(60):
                await test(*arguments, **named)

        asyncio.run(limited())

    return run


@in_loop
async def test_every_operation_can_be_awaited() -> None:
    data, copied, filled = os.urandom(100 * KIB), bytearray(100 * KIB), bytearray(1001)
    async with AsyncRing(8) as ring:
        done = await ring.copy(src=data, dst=copied, verify=True)
        assert done.src_digest == done.dst_digest == digest.payload(data)
        assert copied == data
        await ring.fill(dst=filled, pattern=b"\x01\x02")
        assert filled == (b"\x01\x02" * 501)[:1001]
        assert await ring.digest(src=data) == digest.payload(data)
        copied[70_000] ^= 1
        assert await ring.compare(a=data, b=copied) == 70_000
        assert await ring.compare(a=data[:70_000], b=copied[:70_000]) is None
        assert (await ring.run(Nop())).bytes_done == 0
        with ring.ring.allocate(KIB) as buffer:
            await ring.copy(src=data[:KIB], dst=buffer)
            assert bytes(buffer.view) == data[:KIB]
        assert "AsyncRing of <pynymph.Ring of 8 entries" in repr(ring)


@in_loop
async def test_many_tasks_share_few_entries_without_a_thread() -> None:
    before = threading.active_count()
    data, targets = os.urandom(5000), [bytearray(5000) for _ in range(300)]
    async with AsyncRing(4) as ring:
        done = await asyncio.gather(*(ring.copy(src=data, dst=dst, verify=True) for dst in targets))
        assert threading.active_count() == before
        assert len({each.cookie for each in done}) == 300
    assert all(dst == data for dst in targets)


@in_loop
async def test_loop_runs_while_operations_wait(driver: None) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    async with AsyncRing(8) as ring:
        data = bytes(8 << 20)
        await asyncio.gather(*(ring.digest(src=data) for _ in range(4)))
    ticking.cancel()
    assert ticks > 10


@in_loop
async def test_iterator_yields_uncollected_completions() -> None:
    async with AsyncRing(8) as ring:
        dst = bytearray(KIB)
        first = await ring.submit(Fill(dst=dst, pattern=b"x"))
        others = [await ring.submit(Hash(src=b"abc")) for _ in range(5)]
        assert (await ring.result(first)).bytes_done == KIB
        assert (await ring.result(first)).bytes_done == KIB  # as often as one likes
        found = [done async for done in ring]
        assert [done.cookie for done in found] == [transfer.cookie for transfer in others]
        assert {done.src_digest for done in found} == {digest.payload(b"abc")}
        assert [done async for done in ring] == []


@in_loop
async def test_collecting_makes_room_for_submitting() -> None:
    async with AsyncRing(4) as ring:
        submitted = 0

        async def produce() -> None:
            nonlocal submitted
            while submitted < 100:
                try:
                    await ring.submit(Nop())
                except pynymph.FullError as full:
                    assert "wait for completions()" in str(full)
                    await asyncio.sleep(0)
                else:
                    submitted += 1

        producer, collected = asyncio.create_task(produce()), 0
        while collected < 100:
            async for _ in ring:
                collected += 1
            await asyncio.sleep(0)
        await producer


@in_loop
async def test_arrays_of_entries_run() -> None:
    async with AsyncRing(8) as ring:
        src, dst = ring.ring.allocate(1 << 16), ring.ring.allocate(1 << 16)
        src.view[:] = os.urandom(1 << 16)
        parts = np.arange(256).reshape(4, 64) * 256
        many = [batch.copies(src, dst, src_at=at, dst_at=at, length=256, verify=True) for at in parts]
        found = await asyncio.gather(*map(ring.run_many, many), ring.copy(src=b"abc", dst=bytearray(3)))
        assert [(len(ended), ended["status"].any()) for ended in found[:4]] == [(64, False)] * 4
        assert dst.view == src.view
        assert len(await ring.run_many(many[0][:0])) == 0
        with pytest.raises(pynymph.ArgumentError):
            await ring.run_many([])  # type: ignore[arg-type]


@in_loop
async def test_close_ends_waiting_arrays() -> None:
    async with AsyncRing(8, paused=True) as ring:
        buffer = ring.ring.allocate(64)
        entries = batch.copies(buffer, buffer, src_at=np.zeros(12, int), dst_at=32, length=8)
        waiting = asyncio.create_task(ring.run_many(entries))
        await until(lambda: ring._room is not None)
        waiting.cancel()
        another = asyncio.create_task(ring.run_many(entries[:1]))
        await until(lambda: ring._room is not None)
        ring.close()
        with pytest.raises(pynymph.ClosedError):
            await another
        assert waiting.cancelled()


@in_loop
async def test_refused_operations_leave_the_ring_usable() -> None:
    async with AsyncRing(4) as ring:
        with pytest.raises(pynymph.ArgumentError, match="src has 3 bytes, dst has 2 bytes"):
            await ring.copy(src=b"abc", dst=bytearray(2))
        with pytest.raises(pynymph.ArgumentError, match="is no operation"):
            await ring.run("copy")  # type: ignore[arg-type]
        assert await ring.digest(src=b"abc") == digest.payload(b"abc")
    with pytest.raises(pynymph.ClosedError):
        await ring.digest(src=b"abc")
    ring.close()


@in_loop
async def test_cancelled_tasks_cancel_their_operations() -> None:
    target, other = bytearray(KIB), bytearray(b"?" * KIB)
    async with AsyncRing(2, paused=True) as ring:
        waiting = [asyncio.create_task(ring.fill(dst=dst, pattern=b"x")) for dst in (target, other)]
        late = asyncio.create_task(ring.digest(src=b"abc"))  # the ring is full
        await until(lambda: ring._room is not None)
        assert ring.ring.snapshot().active_descriptors == 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await waiting[1]
        with pytest.raises(BufferError):
            other.clear()  # held until the driver is known to be done with it
        ring.ring.enable()
        assert (await waiting[0]).bytes_done == KIB
        assert await late == digest.payload(b"abc")
        assert other == b"?" * KIB
        other.clear()


@in_loop
async def test_wait_for_room_can_be_cancelled() -> None:
    async with AsyncRing(1, paused=True) as ring:
        first = asyncio.create_task(ring.digest(src=b"1"))
        late = [asyncio.create_task(ring.digest(src=b"2")) for _ in range(2)]
        await until(lambda: ring._room is not None)
        late[0].cancel()
        await asyncio.sleep(0)
        ring.ring.enable()
        assert await first == digest.payload(b"1")
        assert await late[1] == digest.payload(b"2")
        assert late[0].cancelled()


@pytest.mark.parametrize("how", ["reset", "close"])
@in_loop
async def test_reset_and_close_end_every_wait(how: str) -> None:
    ring = AsyncRing(1, paused=True)
    try:
        queued = asyncio.create_task(ring.digest(src=b"1"))
        waits_for_room = asyncio.create_task(ring.digest(src=b"2"))
        await until(lambda: ring._room is not None)
        if how == "close":
            ring.close()
        else:
            ring.ring.reset()
        with pytest.raises(pynymph.NymphError) as ended:
            await queued
        assert ended.value.errno == (errno.EBADF if how == "close" else errno.ECANCELED)
        if how == "close":
            with pytest.raises(pynymph.ClosedError):
                await waits_for_room
        else:
            ring.ring.enable()
            assert await waits_for_room == digest.payload(b"2")
    finally:
        ring.close()


@in_loop
async def test_transfers_can_be_cancelled_and_awaited_by_many() -> None:
    async with AsyncRing(4, paused=True) as ring:
        transfers = [await ring.submit(Copy(src=b"abc", dst=bytearray(3))) for _ in range(2)]
        waits = [asyncio.create_task(ring.result(transfers[0])) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()  # ends its wait, and not the operation
        assert transfers[1].cancel()
        ring.ring.enable()
        assert {(await wait).status for wait in waits[1:]} == {0}
        with pytest.raises(pynymph.CanceledError):
            await ring.result(transfers[1])
        assert waits[0].cancelled()


def test_async_ring_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncRing()
