# SPDX-License-Identifier: MIT
"""Memory behind a handle as a channel's device has it: mapped from its first use until the handle is gone."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import abi
import pytest
from abi import BUFFER_READ_ONLY, MIB, PAGE, PIECE, Context, Memory, in_buffers, small_pages

CHANNELS = [name.encode() for name in (abi.SYSFS / "engines").read_text().split() if name != "cpu"]
pytestmark = pytest.mark.skipif(len(CHANNELS) < 2, reason="there are not two channels")
# With bounce buffers in between, memory is mapped for each transfer.
BOUNCES = "swiotlb=force" in Path("/proc/cmdline").read_text()
SIZE = 3 * PIECE + 5 * PAGE  # some pieces and a rest
FLAGS = {"default": 0, "zero_copy": abi.ZERO_COPY, "verify": abi.VERIFY_HASH,
         "zero_copy_verify": abi.ZERO_COPY | abi.VERIFY_HASH}


def mappings() -> int:
    return int((abi.SYSFS / "counters/mappings").read_text())


def kept(number: int) -> int:
    return 0 if BOUNCES else number


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    assert mappings() == 0
    yield
    assert mappings() == 0


@pytest.fixture
def context() -> Iterator[Context]:
    with Context() as context:
        context.setup(8, engine=CHANNELS[0])
        yield context


def copy(context: Context, src: int, dst: int, length: int, *, src_at: int = 0, dst_at: int = 0,
         flags: int = abi.ZERO_COPY) -> None:
    assert context.run(in_buffers(abi.copy(src_at, dst_at, length, flags), src, dst)).status == 0


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_registered_memory_on_two_channels(context: Context, flags: int) -> None:
    """By turns, and again: what the one wrote the other reads; the device has each buffer once."""
    one, two = small_pages(SIZE), small_pages(SIZE)
    handles = context.register(one), context.register(two)
    assert mappings() == 0
    for engine in CHANNELS[:2] * 3:
        context.setup(8, engine=engine)
        one.randomize()
        copy(context, *handles, SIZE, flags=flags)
        assert two.equals(one, SIZE)
        two.randomize()
        copy(context, *handles[::-1], SIZE, flags=flags)
        assert one.equals(two, SIZE)
        assert mappings() == kept(2)


@pytest.mark.parametrize("end", ["free", "reset", "close"])
def test_goes_with_the_handle(end: str) -> None:
    context = Context()
    context.setup(8, engine=CHANNELS[0])
    memory = small_pages(SIZE)
    handles = context.register(memory), context.alloc(SIZE).handle
    copy(context, *handles, SIZE)
    assert mappings() == kept(2)
    if end == "free":
        for left, handle in zip((1, 0), handles, strict=True):
            context.free(handle)
            assert mappings() == kept(left)
    elif end == "reset":
        context.reset()
        assert mappings() == 0
    context.close()


def test_entries_go_on_with_it() -> None:
    """Freed while an entry waits that has it."""
    with Context() as context:
        context.setup(8, paused=True, engine=CHANNELS[0])
        source, target = small_pages(SIZE).randomize(), small_pages(SIZE)
        handles = context.register(source), context.register(target)
        context.enter([in_buffers(abi.copy(0, 0, SIZE, abi.RECORD | abi.ZERO_COPY), *handles)])
        for handle in handles:
            context.free(handle)
        context.enable()
        assert [record.status for record in context.reap(1)] == [0]
        assert target.equals(source, SIZE)
        assert mappings() == 0


@pytest.mark.parametrize("times", [2, 20])
def test_the_same_memory_many_times(context: Context, times: int) -> None:
    """Each handle is good for all of it, whichever of the others are gone; parts that overlap as well."""
    memory, data = small_pages(2 * PIECE), small_pages(2 * PIECE)
    source = context.register(data)
    handles = [context.register(memory) for _ in range(times)]
    for i, handle in enumerate(handles):
        data.randomize()
        copy(context, source, handle, 2 * PIECE)
        assert memory.equals(data, 2 * PIECE)
        copy(context, handles[i - 1] if i else handle, handle, PIECE, dst_at=PIECE)
        assert memory.read(PIECE, PIECE) == data.read(0, PIECE)
    for handle in handles[: times // 2]:
        context.free(handle)
    for handle in handles[times // 2 :]:
        data.randomize()
        copy(context, source, handle, 2 * PIECE)
        assert memory.equals(data, 2 * PIECE)


def test_parts(context: Context) -> None:
    """Nothing but the bytes that were asked for, wherever they start and end, on either side of pages."""
    length = 20 * PAGE
    memory = [small_pages(length), Memory(length)]
    handles = [context.register(each) for each in memory]
    for at, to, n in ((0, 1, 1), (1, 0, PAGE), (PAGE - 1, 3, 2), (5, PAGE + 7, 3 * PAGE + 1),
                      (PAGE, 2 * PAGE, 8 * PAGE), (3 * PAGE - 5, 5, 17 * PAGE + 5)):
        for src, dst in ((0, 1), (1, 0)):
            memory[src].randomize()
            memory[dst].fill(0xA5)
            copy(context, handles[src], handles[dst], n, src_at=at, dst_at=to)
            expected = bytearray(b"\xa5" * length)
            expected[to : to + n] = memory[src].read(at, n)
            assert memory[dst].read() == expected


def test_memory_that_does_not_start_with_a_page(context: Context) -> None:
    memory = small_pages(4 * PAGE).randomize()
    start, length = 1000, 2 * PAGE
    handle = context.buffer(abi.BUFFER_REGISTER, addr=memory.address + start, length=length).handle
    target = context.alloc(length)
    copy(context, handle, target.handle, length)
    assert context.map(target).read(0, length) == memory.read(start, length)
    copy(context, target.handle, handle, PAGE, src_at=PAGE)
    assert memory.read(start, PAGE) == memory.read(start + PAGE, PAGE)


def test_huge_pages(context: Context) -> None:
    memory = Memory(8 * MIB)
    memory.advise(mmap.MADV_HUGEPAGE)
    memory.randomize()
    handle, target = context.register(memory), context.alloc(8 * MIB)
    copy(context, handle, target.handle, 8 * MIB - 3, src_at=3)
    assert context.map(target).read(0, 8 * MIB - 3) == memory.read(3)


def test_memory_that_is_only_read(context: Context) -> None:
    memory = small_pages(SIZE).randomize()
    handle, target = context.register(memory, BUFFER_READ_ONLY), context.alloc(SIZE)
    mapped = context.map(target)
    for _ in range(2):
        copy(context, handle, target.handle, SIZE)
        assert mapped.equals(memory, SIZE)
        memory.randomize()
    assert mappings() == kept(2)


def test_side_by_side(context: Context) -> None:
    """Many at once, of several buffers, some of them the same memory."""
    memory = [small_pages(PIECE).randomize() for _ in range(4)]
    handles = [context.register(each) for each in memory]
    handles.append(context.register(memory[0]))
    target = context.alloc(PIECE)
    entries = [in_buffers(abi.copy(512 * i, 512 * i, 512, abi.RECORD | abi.ZERO_COPY),
                          handles[i % len(handles)], target.handle) for i in range(64)]
    context.setup(64, engine=CHANNELS[0])
    context.enter(entries)
    assert [record.status for record in context.reap(64)] == [0] * 64
    expected = b"".join(memory[i % len(handles) % 4].read(512 * i, 512) for i in range(64))
    assert context.map(target).read(0, 64 * 512) == expected
    assert mappings() == kept(6)


def test_what_is_not_kept(context: Context) -> None:
    """Memory of one transfer; a buffer on the CPU; a buffer that no channel moved."""
    source, target = small_pages(SIZE).randomize(), small_pages(SIZE)
    assert context.run(abi.copy(source.address, target.address, SIZE, abi.ZERO_COPY)).status == 0
    assert target.equals(source, SIZE)
    handle = context.register(source)
    context.run(in_buffers(abi.hash_only(0, SIZE), handle))
    context.setup(8, engine=b"cpu")
    copy(context, handle, context.alloc(SIZE).handle, SIZE)
    assert mappings() == 0


def test_many_buffers() -> None:
    """A mapping each, and none is left."""
    with Context() as context:
        context.setup(64, engine=CHANNELS[0])
        source, number = context.alloc(PAGE), 500
        data = context.map(source).randomize()
        targets = [context.alloc(PAGE).handle for _ in range(number)]
        for target in targets:
            copy(context, source.handle, target, PAGE)
        assert mappings() == kept(number + 1)
        for target in targets[::50]:
            record = context.run(in_buffers(abi.compare(data.address, 0, PAGE), 0, target))
            assert record.status == 0


def test_a_killed_process_leaves_nothing() -> None:
    reader, writer = os.pipe()

    def inside() -> str:
        with Context() as context:
            context.setup(8, engine=CHANNELS[0])
            memory = small_pages(16 * PIECE)
            handles = context.register(memory), context.register(memory)
            copy(context, *handles, 8 * PIECE, dst_at=8 * PIECE)
            os.write(writer, b"!")
            while True:
                context.enter([in_buffers(abi.copy(0, 8 * PIECE, 8 * PIECE, abi.ZERO_COPY), *handles)])
        return ""

    child = abi.Child(inside)
    os.read(reader, 1)
    child.kill()
    os.close(reader)
    os.close(writer)
