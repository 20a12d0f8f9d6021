# SPDX-License-Identifier: MIT
"""Memory behind a handle as a channel's device has it: mapped from its first use until the handle is gone."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import abi
import pytest
from abi import BUFFER_READ_ONLY, CHUNK, MIB, PAGE, Context, Memory, in_buffers, small_pages

CHANNELS = [name.encode() for name in (abi.SYSFS / "engines").read_text().split() if name != "cpu"]
pytestmark = pytest.mark.skipif(len(CHANNELS) < 2, reason="there are not two channels")
# With bounce buffers in between, memory is mapped for each transfer.
BOUNCES = "swiotlb=force" in Path("/proc/cmdline").read_text()
SIZE = 3 * CHUNK + 5 * PAGE  # some chunks and a rest
FLAGS = {
    "default": 0,
    "zero_copy": abi.ZERO_COPY,
    "verify": abi.VERIFY_HASH,
    "zero_copy_verify": abi.ZERO_COPY | abi.VERIFY_HASH,
}


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


def copy(
    context: Context,
    src: int,
    dst: int,
    length: int,
    *,
    src_at: int = 0,
    dst_at: int = 0,
    flags: int = abi.ZERO_COPY,
) -> None:
    assert context.run(in_buffers(abi.copy(src_at, dst_at, length, flags), src, dst)).status == 0


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_registered_memory_works_on_two_channels(context: Context, flags: int) -> None:
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
def test_mapping_ends_with_the_handle(end: str) -> None:
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


def test_queued_entry_keeps_the_mapping_after_free() -> None:
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
def test_memory_registered_many_times_works_through_each_handle(context: Context, times: int) -> None:
    """Each handle is good for all of it, whichever of the others are gone; parts that overlap as well."""
    memory, data = small_pages(2 * CHUNK), small_pages(2 * CHUNK)
    source = context.register(data)
    handles = [context.register(memory) for _ in range(times)]
    for i, handle in enumerate(handles):
        data.randomize()
        copy(context, source, handle, 2 * CHUNK)
        assert memory.equals(data, 2 * CHUNK)
        copy(context, handles[i - 1] if i else handle, handle, CHUNK, dst_at=CHUNK)
        assert memory.read(CHUNK, CHUNK) == data.read(0, CHUNK)
    for handle in handles[: times // 2]:
        context.free(handle)
    for handle in handles[times // 2 :]:
        data.randomize()
        copy(context, source, handle, 2 * CHUNK)
        assert memory.equals(data, 2 * CHUNK)


def test_copies_of_parts_touch_nothing_else(context: Context) -> None:
    """Nothing but the bytes that were asked for, wherever they start and end, on either side of pages."""
    length = 20 * PAGE
    memory = [small_pages(length), Memory(length)]
    handles = [context.register(each) for each in memory]
    for at, to, n in (
        (0, 1, 1),
        (1, 0, PAGE),
        (PAGE - 1, 3, 2),
        (5, PAGE + 7, 3 * PAGE + 1),
        (PAGE, 2 * PAGE, 8 * PAGE),
        (3 * PAGE - 5, 5, 17 * PAGE + 5),
    ):
        for src, dst in ((0, 1), (1, 0)):
            memory[src].randomize()
            memory[dst].fill(0xA5)
            copy(context, handles[src], handles[dst], n, src_at=at, dst_at=to)
            expected = bytearray(b"\xa5" * length)
            expected[to : to + n] = memory[src].read(at, n)
            assert memory[dst].read() == expected


def test_unaligned_memory_is_mapped_from_its_start(context: Context) -> None:
    memory = small_pages(4 * PAGE).randomize()
    start, length = 1000, 2 * PAGE
    handle = context.buffer(abi.BUFFER_REGISTER, addr=memory.address + start, length=length).handle
    target = context.alloc(length)
    copy(context, handle, target.handle, length)
    assert context.map(target).read(0, length) == memory.read(start, length)
    copy(context, target.handle, handle, PAGE, src_at=PAGE)
    assert memory.read(start, PAGE) == memory.read(start + PAGE, PAGE)


@pytest.mark.emulated
@abi.needs_huge_pages
def test_registered_huge_pages_work_on_a_channel(context: Context) -> None:
    memory = Memory(8 * MIB)
    memory.advise(mmap.MADV_HUGEPAGE)
    memory.randomize()
    handle, target = context.register(memory), context.alloc(8 * MIB)
    copy(context, handle, target.handle, 8 * MIB - 3, src_at=3)
    assert context.map(target).read(0, 8 * MIB - 3) == memory.read(3)


def test_read_only_registration_follows_the_memory(context: Context) -> None:
    memory = small_pages(SIZE).randomize()
    handle, target = context.register(memory, BUFFER_READ_ONLY), context.alloc(SIZE)
    mapped = context.map(target)
    for _ in range(2):
        copy(context, handle, target.handle, SIZE)
        assert mapped.equals(memory, SIZE)
        memory.randomize()
    assert mappings() == kept(2)


def test_copies_of_several_buffers_run_side_by_side(context: Context) -> None:
    """Many at once, of several buffers, some of them the same memory."""
    memory = [small_pages(CHUNK).randomize() for _ in range(4)]
    handles = [context.register(each) for each in memory]
    handles.append(context.register(memory[0]))
    target = context.alloc(CHUNK)
    entries = [
        in_buffers(
            abi.copy(512 * i, 512 * i, 512, abi.RECORD | abi.ZERO_COPY),
            handles[i % len(handles)],
            target.handle,
        )
        for i in range(64)
    ]
    context.setup(64, engine=CHANNELS[0])
    context.enter(entries)
    assert [record.status for record in context.reap(64)] == [0] * 64
    expected = b"".join(memory[i % len(handles) % 4].read(512 * i, 512) for i in range(64))
    assert context.map(target).read(0, 64 * 512) == expected
    assert mappings() == kept(6)


def test_mappings_are_kept_only_for_buffers_of_a_channel(context: Context) -> None:
    """Memory of one transfer; a buffer on the CPU; a buffer that no channel moved."""
    source, target = small_pages(SIZE).randomize(), small_pages(SIZE)
    assert context.run(abi.copy(source.address, target.address, SIZE, abi.ZERO_COPY)).status == 0
    assert target.equals(source, SIZE)
    handle = context.register(source)
    context.run(in_buffers(abi.hash_only(0, SIZE), handle))
    context.setup(8, engine=b"cpu")
    copy(context, handle, context.alloc(SIZE).handle, SIZE)
    assert mappings() == 0


def test_each_buffer_has_one_mapping_and_none_stays() -> None:
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


def test_killed_process_leaves_no_mapping() -> None:
    reader, writer = os.pipe()

    def inside() -> str:
        with Context() as context:
            context.setup(8, engine=CHANNELS[0])
            memory = small_pages(16 * CHUNK)
            handles = context.register(memory), context.register(memory)
            copy(context, *handles, 8 * CHUNK, dst_at=8 * CHUNK)
            os.write(writer, b"!")
            while True:
                with abi.may_fail(errno.ENOSPC):  # the ring is full
                    context.enter([in_buffers(abi.copy(0, 8 * CHUNK, 8 * CHUNK, abi.ZERO_COPY), *handles)])
        return ""

    child = abi.Child(inside)
    os.read(reader, 1)
    child.kill()
    os.close(reader)
    os.close(writer)
