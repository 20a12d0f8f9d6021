# SPDX-License-Identifier: MIT
"""BUFFER: driver memory and registered memory, in entries and in mappings, from creation to the end.

The file is long because it walks one table of docs/reference/requests.md; dma-bufs and cards are elsewhere.
"""

import contextlib
import errno
import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import abi
import blake3
import pytest
from abi import (
    BUFFER_ALLOC,
    BUFFER_CARD,
    BUFFER_FREE,
    BUFFER_READ_ONLY,
    BUFFER_REGISTER,
    CHUNK,
    GIB,
    MAX_BUFFERS,
    MIB,
    PAGE,
    Child,
    Context,
    Memory,
    Tap,
    count,
    in_buffers,
    ordinary,
    small_pages,
)

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
FLAGS = {
    "default": 0,
    "zero_copy": abi.ZERO_COPY,
    "verify": abi.VERIFY_HASH,
    "digest": abi.DIGEST_ONLY,
    "zero_copy_verify": abi.ZERO_COPY | abi.VERIFY_HASH,
}


@pytest.fixture
def context() -> Iterator[Context]:
    with Context() as context:
        context.setup(8)
        yield context


# --- ALLOC and mmap() -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, PAGE, PAGE + 1, MIB, 3 * MIB - 1])
def test_allocated_buffer_maps_as_zeroed_pages(context: Context, length: int) -> None:
    """Whole pages, all zeros."""
    pages = -(-length // PAGE)
    buffer = context.alloc(length)
    assert buffer.handle >= 1 and buffer.mmap_offset % PAGE == 0
    mapped = context.map(buffer, pages * PAGE)
    assert mapped.read() == bytes(pages * PAGE)
    mapped.randomize()
    again = context.map(buffer, pages * PAGE)
    assert again.equals(mapped, pages * PAGE)


def test_new_buffer_shows_no_old_contents() -> None:
    """What one buffer held is not in the next."""
    for _ in range(5):
        with Context() as context:
            context.setup(1)
            mapped = context.map(context.alloc(MIB))
            assert mapped.read() == bytes(MIB)
            mapped.fill(0xA5)


def test_any_whole_pages_of_a_buffer_can_be_mapped(context: Context) -> None:
    """Any whole pages of it, and no page more."""
    buffer = context.alloc(4 * PAGE)
    whole = context.map(buffer).randomize()
    for first in range(4):
        for pages in range(1, 5 - first):
            part = context.map(buffer, pages * PAGE, first * PAGE)
            assert part.read() == whole.read(first * PAGE, pages * PAGE)
    for first, pages in [(0, 5), (1, 4), (3, 2), (4, 1), (5, 1), (1000, 1), (0, 1000)]:
        with context.refuses(errno.EINVAL):
            context.map(buffer, pages * PAGE, first * PAGE)


def test_mapping_reaches_no_second_buffer(context: Context) -> None:
    """A mapping reaches from no buffer into the next, and there is none where no buffer is."""
    buffers = [context.alloc(PAGE) for _ in range(3)]
    offsets = sorted(buffer.mmap_offset for buffer in buffers)
    assert len(set(offsets)) == 3
    for offset in (
        0,
        PAGE,
        offsets[0] - PAGE,
        offsets[0] + PAGE,
        offsets[-1] + PAGE,
        offsets[-1] + GIB,
        2**62,
        2**63 - PAGE,
    ):
        if offset not in offsets:
            with context.refuses(errno.EINVAL, errno.EOVERFLOW):
                Memory(PAGE, READ_WRITE, mmap.MAP_SHARED, context.fd, offset)
    step = offsets[1] - offsets[0]
    with context.refuses(errno.EINVAL, errno.ENOMEM):
        Memory(step + PAGE, READ_WRITE, mmap.MAP_SHARED, context.fd, offsets[0])


def test_private_mapping_is_refused(context: Context) -> None:
    buffer = context.alloc(PAGE)
    for protection in (mmap.PROT_READ, READ_WRITE):
        with context.refuses(errno.EINVAL):
            context.map(buffer, protection=protection, flags=mmap.MAP_PRIVATE)


def test_registered_memory_cannot_be_mapped(context: Context) -> None:
    memory = Memory(PAGE)
    buffer = context.buffer(BUFFER_REGISTER, addr=memory.address, length=PAGE)
    assert buffer.mmap_offset == 0
    offset = buffer.handle * GIB
    with context.refuses(errno.EINVAL):
        Memory(PAGE, READ_WRITE, mmap.MAP_SHARED, context.fd, offset)


def test_read_only_mapping_refuses_writes(context: Context) -> None:
    buffer = context.alloc(PAGE)
    writable = context.map(buffer)
    mapped = context.map(buffer, protection=mmap.PROT_READ)
    writable.write(b"seen")
    assert mapped.read(0, 4) == b"seen"
    # As a user address it is what its protection says.
    with context.refuses(errno.EFAULT):
        context.enter([abi.fill(0, mapped.address, 8)])


def test_cpu_and_ring_see_the_same_buffer(context: Context) -> None:
    """Written by the CPU, moved by the ring, read by the CPU: one memory."""
    one, two = context.alloc(2 * CHUNK), context.alloc(2 * CHUNK)
    first, second = context.map(one).randomize(), context.map(two)
    entry = in_buffers(abi.copy(0, 0, 2 * CHUNK), one.handle, two.handle)
    assert context.run(entry).status == 0
    assert second.equals(first, 2 * CHUNK)
    second.flip(CHUNK + 5)
    record = context.run(in_buffers(abi.compare(0, 0, 2 * CHUNK), one.handle, two.handle))
    assert (record.status, record.bytes_done) == (-errno.EBADMSG, CHUNK + 5)
    assert context.run(in_buffers(abi.fill(7, 8, 8), dst=one.handle)).status == 0
    assert first.read(8, 8) == bytes([7, 0, 0, 0, 0, 0, 0, 0])
    record = context.run(in_buffers(abi.hash_only(0, 2 * CHUNK), one.handle))
    assert bytes(record.src_digest) == blake3.blake3(first.read()).digest()


@pytest.mark.parametrize("dst_kind", ["alloc", "register", "address"])
@pytest.mark.parametrize("src_kind", ["alloc", "register", "read_only", "address"])
def test_copies_work_between_all_kinds_of_memory(context: Context, src_kind: str, dst_kind: str) -> None:
    """All with all, at odd offsets, and nothing around is touched."""
    length, src_at, dst_at = CHUNK + 777, 4095, 33
    room = CHUNK + 3 * PAGE

    def operand(kind: str) -> tuple[Memory, int, int]:
        """Its memory; what its offsets start from; its handle."""
        if kind == "alloc":
            buffer = context.alloc(room)
            return context.map(buffer), 0, buffer.handle
        memory = small_pages(room)
        if kind == "address":
            return memory, memory.address, 0
        return memory, 0, context.register(memory, BUFFER_READ_ONLY if kind == "read_only" else 0)

    src, src_base, src_handle = operand(src_kind)
    dst, dst_base, dst_handle = operand(dst_kind)
    for n, flags in enumerate(FLAGS.values(), 1):
        src.randomize()
        src.write(bytes([n]) * 64, src_at)  # not what the copy before left there
        dst.fill(0x5A)
        entry = abi.copy(src_base + src_at, dst_base + dst_at, length, flags)
        record = context.run(in_buffers(entry, src_handle, dst_handle))
        assert (record.status, record.bytes_done) == (0, length)
        assert dst.read(dst_at, length) == src.read(src_at, length)
        assert dst.read(0, dst_at) == b"\x5a" * dst_at
        assert dst.read(dst_at + length) == b"\x5a" * (room - dst_at - length)
        expected = blake3.blake3(src.read(src_at, length)).digest()
        if flags & abi.VERIFY_HASH:
            assert bytes(record.src_digest) == expected
        if flags & (abi.VERIFY_HASH | abi.DIGEST_ONLY):
            assert bytes(record.dst_digest) == expected
        assert context.snapshot().dma_bytes == n * length


@pytest.mark.parametrize("engine", [b"auto", b"cpu"])
def test_large_copies_between_buffers_are_exact(engine: bytes) -> None:
    """Some that several CPUs share, and a rest; at any offset."""
    length = 2 * MIB + 5 * CHUNK + 3
    with Context() as context:
        context.setup(engine=engine)
        one, two = context.alloc(3 * MIB), context.alloc(3 * MIB)
        src, dst = context.map(one).randomize(), context.map(two)
        for n, flags in enumerate(FLAGS.values(), 1):
            for src_at, dst_at in ((0, 0), (4095, 33)):
                src.write(bytes([n]) * 64, src_at)
                dst.fill(0x5A)
                entry = in_buffers(abi.copy(src_at, dst_at, length, flags), one.handle, two.handle)
                record = context.run(entry)
                assert (record.status, record.bytes_done) == (0, length)
                assert dst.read(0, dst_at + length) == b"\x5a" * dst_at + src.read(src_at, length)
                assert dst.read(dst_at + length) == b"\x5a" * (3 * MIB - dst_at - length)
                expected = blake3.blake3(src.read(src_at, length)).digest()
                if flags & abi.VERIFY_HASH:
                    assert bytes(record.src_digest) == expected
                if flags & (abi.VERIFY_HASH | abi.DIGEST_ONLY):
                    assert bytes(record.dst_digest) == expected
        record = context.run(in_buffers(abi.hash_only(77, length, abi.ZERO_COPY), one.handle))
        assert bytes(record.src_digest) == blake3.blake3(src.read(77, length)).digest()


def test_offsets_beyond_the_length_are_refused(context: Context) -> None:
    """Not a byte outside the length that was asked for, though its last page is longer."""
    length = PAGE + 100
    buffer, other = context.alloc(length), Memory(4 * PAGE)
    for handle in (buffer.handle, context.register(small_pages(4 * PAGE))):
        size = length if handle == buffer.handle else 4 * PAGE
        assert context.run(in_buffers(abi.hash_only(size - 1, 1), handle)).status == 0
        assert context.run(in_buffers(abi.hash_only(0, size), handle)).status == 0
        outside = [
            (size, 1),
            (size - 1, 2),
            (0, size + 1),
            (1, size),
            (2**64 - 1, 1),
            (2**64 - 8, 16),
            (2**63, 1),
            (buffer.mmap_offset, 1),
        ]
        for at, count_ in outside:
            with context.refuses(errno.EFAULT):
                context.enter([in_buffers(abi.hash_only(at, count_), handle)])
            if count_ <= other.length:
                with context.refuses(errno.EFAULT):
                    context.enter([in_buffers(abi.copy(at, other.address, count_), src=handle)])
                with context.refuses(errno.EFAULT):
                    context.enter([in_buffers(abi.copy(other.address, at, count_), dst=handle)])


def test_overlap_in_one_buffer_is_refused(context: Context) -> None:
    buffer = context.alloc(4 * PAGE)
    for src, dst in [(0, 0), (0, 1), (PAGE - 1, 0), (0, PAGE - 1)]:
        for make in (abi.copy, abi.compare):
            with context.refuses(errno.EINVAL):
                context.enter([in_buffers(make(src, dst, PAGE), buffer.handle, buffer.handle)])
    mapped = context.map(buffer).randomize()
    assert context.run(in_buffers(abi.copy(0, PAGE, PAGE), buffer.handle, buffer.handle)).status == 0
    assert mapped.read(0, PAGE) == mapped.read(PAGE, PAGE)


def test_equal_offsets_in_two_buffers_do_not_overlap(context: Context) -> None:
    one, two = context.alloc(PAGE), context.alloc(PAGE)
    assert context.run(in_buffers(abi.copy(0, 0, PAGE), one.handle, two.handle)).status == 0
    memory = Memory(PAGE)
    assert context.run(in_buffers(abi.copy(memory.address, 0, PAGE), dst=one.handle)).status == 0


def test_copy_between_mapping_and_handle_of_one_buffer_is_harmless(context: Context) -> None:
    """Through its mapping and its handle at once: undefined data and no more."""
    buffer = context.alloc(CHUNK * 2)
    mapped = context.map(buffer).randomize()
    for flags in FLAGS.values():
        record = context.run(in_buffers(abi.copy(mapped.address, 64, CHUNK, flags), dst=buffer.handle))
        assert record.status in (0, -errno.EBADMSG)
    handle = context.register(mapped)  # and pinned a second time, by way of its mapping
    assert context.run(in_buffers(abi.copy(0, 64, CHUNK), handle, buffer.handle)).status == 0


def test_mapped_buffer_works_as_user_memory(context: Context) -> None:
    """A mapped buffer is memory like any other, on every path."""
    src = context.map(context.alloc(CHUNK + PAGE)).randomize()
    dst = context.map(context.alloc(CHUNK + PAGE))
    for flags in FLAGS.values():
        dst.fill(0)
        assert context.run(abi.copy(src.address, dst.address, CHUNK + 5, flags)).status == 0
        assert dst.equals(src, CHUNK + 5)


# --- REGISTER ---------------------------------------------------------------------------------------------


def test_registered_memory_stays_after_munmap(context: Context) -> None:
    """It is pinned: unmapped, it is still what the handle names."""
    fd = os.memfd_create("test")
    os.truncate(fd, 4 * PAGE)
    memory = Memory(4 * PAGE, READ_WRITE, mmap.MAP_SHARED, fd)
    handle = context.register(memory)
    memory.unmap(0, 4 * PAGE)
    assert context.run(in_buffers(abi.fill(0x0101010101010101, PAGE, PAGE), dst=handle)).status == 0
    assert os.pread(fd, 4 * PAGE, 0) == bytes(PAGE) + b"\x01" * PAGE + bytes(2 * PAGE)
    os.close(fd)


def test_register_takes_any_start_address(context: Context) -> None:
    """Offsets count from there."""
    memory = small_pages(4 * PAGE).randomize()
    for start in (1, 63, PAGE - 1):
        handle = context.buffer(BUFFER_REGISTER, addr=memory.address + start, length=2 * PAGE).handle
        record = context.run(in_buffers(abi.hash_only(5, PAGE), handle))
        assert bytes(record.src_digest) == blake3.blake3(memory.read(start + 5, PAGE)).digest()
        context.free(handle)


def test_read_only_buffer_refuses_writes(context: Context) -> None:
    """Whether its mapping could be written or not."""
    memory, other = small_pages(2 * PAGE).randomize(), Memory(2 * PAGE)
    before = memory.read()
    for protection in (READ_WRITE, mmap.PROT_READ):
        memory.protect(protection)
        handle = context.register(memory, BUFFER_READ_ONLY)
        for flags in FLAGS.values():
            with context.refuses(errno.EFAULT):
                context.enter([in_buffers(abi.copy(other.address, 0, PAGE, flags | abi.RECORD), dst=handle)])
        with context.refuses(errno.EFAULT):
            context.enter([in_buffers(abi.fill(0, 0, PAGE), dst=handle)])
        # To be compared with, it need not be written.
        other.write(before)
        record = context.run(in_buffers(abi.compare(other.address, 0, 2 * PAGE), dst=handle))
        assert record.status == 0
        context.free(handle)
    assert memory.read() == before


def test_register_refuses_unmapped_and_read_only_memory(context: Context) -> None:
    memory = Memory(4 * PAGE)
    memory.unmap(2 * PAGE, PAGE)
    for addr, length in [
        (memory.address, 3 * PAGE),
        (memory.address + 2 * PAGE, 1),
        (0, PAGE),
        (16, 8),
        (0xFFFF_8880_0000_0000, PAGE),
        (2**64 - 1, 1),
        (1 << 62, PAGE),
    ]:
        for flags in (0, BUFFER_READ_ONLY):
            with context.refuses(errno.EFAULT):
                context.buffer(BUFFER_REGISTER, addr=addr, length=length, flags=flags)
    memory.protect(mmap.PROT_READ, PAGE, PAGE)
    with context.refuses(errno.EFAULT):
        context.buffer(BUFFER_REGISTER, addr=memory.address, length=2 * PAGE)
    buffer = context.buffer(BUFFER_REGISTER, addr=memory.address, length=2 * PAGE, flags=BUFFER_READ_ONLY)
    context.free(buffer.handle)


@abi.needs_root
@pytest.mark.emulated
def test_register_refuses_writable_shared_disk_files(context: Context, disk: Path) -> None:
    """Writable and shared: refused, as for ZERO_COPY; to read from only, or a private copy: taken."""
    path = disk / "file"
    path.write_bytes(os.urandom(2 * PAGE))
    with open(path, "r+b") as file:
        shared = Memory(2 * PAGE, READ_WRITE, mmap.MAP_SHARED, file.fileno())
        private = Memory(2 * PAGE, READ_WRITE, mmap.MAP_PRIVATE, file.fileno())
    with context.refuses(errno.EOPNOTSUPP):
        context.register(shared)
    read_only, copied = context.register(shared, BUFFER_READ_ONLY), context.register(private)
    assert context.run(in_buffers(abi.compare(0, 0, 2 * PAGE), read_only, copied)).status == 0
    assert context.run(in_buffers(abi.fill(0, 0, 2 * PAGE), dst=copied)).status == 0
    assert private.read() == bytes(2 * PAGE) != path.read_bytes()
    context.free(read_only)


# --- what BUFFER refuses ----------------------------------------------------------------------------------


def test_buffer_refuses_wrong_arguments(context: Context) -> None:
    memory = Memory(PAGE)
    handle = context.alloc(PAGE).handle
    good = {
        BUFFER_ALLOC: {"length": PAGE},
        BUFFER_REGISTER: {"addr": memory.address, "length": PAGE},
        BUFFER_FREE: {"handle": handle},
        BUFFER_CARD: {"length": PAGE},
    }
    bad: list[tuple[int, dict[str, int]]] = [
        *(
            (op, changes)
            for op in (BUFFER_ALLOC, BUFFER_CARD)
            for changes in ({"addr": memory.address}, {"flags": BUFFER_READ_ONLY})
        ),
        (BUFFER_FREE, {"addr": 1}),
        (BUFFER_FREE, {"length": PAGE}),
        (BUFFER_FREE, {"flags": BUFFER_READ_ONLY}),
        *(
            (op, {"length": length})
            for op in (BUFFER_ALLOC, BUFFER_REGISTER, BUFFER_CARD)
            for length in (0, abi.MAX_LENGTH + 1, 1 << 32, 2**64 - 1)
        ),
        *((op, {"flags": 1 << bit}) for op in good for bit in range(1, 32)),
    ]
    for op, changes in bad:
        with context.refuses(errno.EINVAL):
            context.buffer(op, **(good[op] | changes))
    for op in (0, 7, 255, 2**32 - 1):
        with context.refuses(errno.EINVAL):
            context.buffer(op, length=PAGE)
    for number in (0, handle + 1, 4096, 2**31, 2**32 - 1):
        with context.refuses(errno.ENOENT):
            context.free(number)
    context.free(handle)


def test_failed_request_leaves_no_handle(context: Context) -> None:
    """More of them than there are handles: with an answer that cannot be written, without memory."""
    before = count("allocated_pages")
    memory = Memory(PAGE)
    memory.write(bytes(abi.BufferArg(size=48, op=BUFFER_ALLOC, length=PAGE)))
    memory.protect(mmap.PROT_READ)
    for _ in range(MAX_BUFFERS + 10):
        with abi.fails(errno.EFAULT):
            abi.ioctl(context.fd, abi.BUFFER, memory.address)
        with abi.fails(errno.EFAULT):
            context.buffer(BUFFER_REGISTER, addr=16, length=PAGE)
    assert context.alloc(PAGE).handle == 1
    assert count("allocated_pages") == before + 1


@abi.needs_root
def test_buffers_are_limited_to_4095_handles(context: Context) -> None:
    """4095 of them, all different; one more is EMFILE; a free one is had again."""
    handles = [context.alloc(1).handle for _ in range(MAX_BUFFERS)]
    assert len(set(handles)) == MAX_BUFFERS and min(handles) >= 1
    with context.refuses(errno.EMFILE):
        context.alloc(1)
    with context.refuses(errno.EMFILE):
        context.register(small_pages(PAGE))
    context.free(handles[77])
    assert context.alloc(1).handle == handles[77]


def test_handles_belong_to_one_context(context: Context) -> None:
    with Context() as other:
        other.setup(8)
        handle = context.alloc(PAGE).handle
        with other.refuses(errno.ENOENT):
            other.enter([in_buffers(abi.hash_only(0, 8), handle)])
        with other.refuses(errno.ENOENT):
            other.free(handle)
        with other.refuses(errno.EINVAL):
            Memory(PAGE, READ_WRITE, mmap.MAP_SHARED, other.fd, handle * GIB)


# --- FREE and the other ends ------------------------------------------------------------------------------


def test_freed_handle_is_refused(context: Context) -> None:
    buffer = context.alloc(PAGE)
    context.free(buffer.handle)
    with context.refuses(errno.ENOENT):
        context.free(buffer.handle)
    with context.refuses(errno.ENOENT):
        context.enter([in_buffers(abi.hash_only(0, 8), buffer.handle)])
    with context.refuses(errno.EINVAL):
        context.map(buffer)


def test_reused_handle_names_another_buffer(context: Context) -> None:
    """A mapping of the first goes on with the first."""
    first = context.alloc(PAGE)
    mapped = context.map(first)
    mapped.write(b"first")
    context.free(first.handle)
    second = context.alloc(PAGE)
    assert second.handle == first.handle
    assert context.map(second).read() == bytes(PAGE)
    assert context.run(in_buffers(abi.fill(2**64 - 1, 0, PAGE), dst=second.handle)).status == 0
    assert mapped.read(0, 8) == b"first\0\0\0"


@pytest.mark.parametrize("kind", ["alloc", "register"])
def test_queued_entries_finish_after_free(kind: str) -> None:
    """They were accepted with the memory, and end with it."""
    with Context() as context:
        context.setup(8, paused=True)
        if kind == "alloc":
            buffer = context.alloc(2 * PAGE)
            handle, memory = buffer.handle, context.map(buffer)
        else:
            memory = small_pages(2 * PAGE)
            handle = context.register(memory)
        memory.randomize()
        expected = memory.read(0, PAGE)
        context.enter(
            [
                in_buffers(abi.copy(0, PAGE, PAGE, abi.RECORD), handle, handle),
                in_buffers(abi.hash_only(PAGE, PAGE), handle),
            ]
        )
        context.free(handle)
        other = context.alloc(PAGE)
        assert other.handle == handle  # the name is free already
        context.enable()
        copied, hashed = context.reap(2)
        assert (copied.status, hashed.status) == (0, 0)
        assert memory.read(PAGE) == expected
        assert bytes(hashed.src_digest) == blake3.blake3(expected).digest()


@abi.needs_root
def test_running_entry_finishes_after_free(context: Context) -> None:
    tap = Tap(2 * CHUNK)
    before = count("allocated_pages")
    buffer = context.alloc(2 * CHUNK)
    context.enter(
        [
            in_buffers(abi.copy(tap.memory.address, 0, 2 * CHUNK, abi.RECORD), dst=buffer.handle),
            in_buffers(abi.compare(tap.memory.address, 0, 2 * CHUNK, abi.RECORD), dst=buffer.handle),
        ]
    )
    tap.reached()
    context.free(buffer.handle)
    assert count("allocated_pages") == before + 2 * CHUNK // PAGE
    tap.open()
    assert [record.status for record in context.reap(2)] == [0, 0]
    assert count("allocated_pages") == before
    tap.close()


@pytest.mark.parametrize("end", ["free", "reset", "close"])
def test_mapping_outlives_its_handle(end: str) -> None:
    """Its memory goes with the last of its mappings."""
    before = count("allocated_pages")
    context = Context()
    context.setup(4)
    buffer = context.alloc(4 * PAGE)
    mapped, part = context.map(buffer).randomize(), context.map(buffer, PAGE, PAGE)
    expected = mapped.read()
    match end:
        case "free":
            context.free(buffer.handle)
        case "reset":
            context.reset()
        case "close":
            context.close()
    assert mapped.read() == expected
    mapped.unmap(0, PAGE)
    mapped.unmap(2 * PAGE, PAGE)
    assert mapped.read(3 * PAGE) == expected[3 * PAGE :]
    part.write(b"!")
    assert mapped.read(PAGE, 1) == b"!"
    assert count("allocated_pages") == before + 4
    del mapped
    assert count("allocated_pages") == before + 4
    del part
    assert count("allocated_pages") == before
    context.close()


def test_close_ends_the_ring_though_a_mapping_lives() -> None:
    """The mapping holds the memory, not the ring."""
    context = Context()
    context.setup(4)
    mapped = context.map(context.alloc(PAGE))
    before = count("rings")
    context.close()
    end = time.monotonic() + abi.LONG
    while count("rings") != before - 1:
        assert time.monotonic() < end, "the ring lives on"
        time.sleep(0.01)
    mapped.write(b"x")


@pytest.mark.parametrize("exported", [False, True])
def test_dropped_pages_fault_back_with_their_contents(context: Context, exported: bool) -> None:
    """A mapping is as one of a file: what is dropped of it is there at the next touch, with its bytes."""
    buffer = context.alloc(4 * PAGE)
    if exported:
        fd = context.export(buffer.handle)
        mapped = Memory(4 * PAGE, READ_WRITE, mmap.MAP_SHARED, fd)
        os.close(fd)
    else:
        mapped = context.map(buffer)
    expected = mapped.randomize().read()

    def same() -> None:
        assert mapped.read() == expected
        record = context.run(in_buffers(abi.hash_only(0, 4 * PAGE), buffer.handle))
        assert bytes(record.src_digest) == blake3.blake3(expected).digest()

    for advice in (mmap.MADV_DONTNEED, 21, 20):  # MADV_PAGEOUT, MADV_COLD
        mapped.advise(advice)
        same()
    mapped.advise(mmap.MADV_DONTNEED)
    mapped.flip(3 * PAGE)  # the first touch is a write
    expected = mapped.read()
    same()
    for advice in (mmap.MADV_FREE, mmap.MADV_REMOVE):
        with abi.fails(errno.EINVAL, errno.ENODEV):
            mapped.advise(advice)
    mapped.advise(mmap.MADV_DONTNEED)
    for protection in (abi.PROT_NONE, mmap.PROT_READ, READ_WRITE):
        mapped.protect(protection)
    same()
    # Elsewhere, and shorter; never longer.
    mapped.advise(mmap.MADV_DONTNEED)
    to = Memory(4 * PAGE)
    abi.mremap(mapped, 4 * PAGE, to)
    assert to.read() == expected
    abi.mremap(to, PAGE)
    to.advise(mmap.MADV_DONTNEED)
    assert to.read() == expected[:PAGE]
    with abi.fails(errno.EFAULT):
        abi.mremap(to, 4 * PAGE)
    assert to.read() == expected[:PAGE]


def test_child_given_the_mapping_finds_its_pages(context: Context) -> None:
    """fork() leaves it out, unless the process asks for it."""
    mapped = context.map(context.alloc(2 * PAGE)).randomize()
    expected = mapped.read()
    try:
        mapped.advise(mmap.MADV_DOFORK)
    except OSError as error:
        assert error.errno == errno.EINVAL
        pytest.skip("this kernel gives no child such memory")

    def inside() -> str:
        mapped.advise(mmap.MADV_DONTNEED)
        assert mapped.read() == expected
        mapped.write(b"child")
        return ""

    Child(inside).result()
    assert mapped.read(0, 5) == b"child"


def test_buffers_survive_setup_and_end_with_reset(context: Context) -> None:
    buffer = context.alloc(PAGE)
    mapped = context.map(buffer).randomize()
    context.setup(16)
    record = context.run(in_buffers(abi.hash_only(0, PAGE), buffer.handle))
    assert bytes(record.src_digest) == blake3.blake3(mapped.read()).digest()
    context.reset()
    context.setup(4)
    with context.refuses(errno.ENOENT):
        context.free(buffer.handle)


def test_mapping_is_not_inherited(context: Context) -> None:
    """Nor does the child's end take it away from us."""
    mapped = context.map(context.alloc(PAGE))
    mapped.write(b"ours")

    def inside() -> str:
        with open("/proc/self/maps", encoding="ascii") as maps:
            assert f"{mapped.address:x}-" not in maps.read()
        mapped._mapped.clear()  # its destructor must not unmap what is not there
        with abi.fails(errno.EPERM):
            Memory(PAGE, READ_WRITE, mmap.MAP_SHARED, context.fd, GIB)
        return ""

    Child(inside).result()
    assert mapped.read(0, 4) == b"ours"


def test_mremap_moves_and_shrinks_but_never_grows(context: Context) -> None:
    """By mremap(): elsewhere, smaller, never larger."""
    buffer = context.alloc(4 * PAGE)
    mapped = context.map(buffer).randomize()
    expected = mapped.read()
    with abi.fails(errno.EFAULT, errno.EINVAL):
        abi.mremap(mapped, 5 * PAGE)
    elsewhere = Memory(4 * PAGE)
    abi.mremap(mapped, 4 * PAGE, elsewhere)
    assert elsewhere.read() == expected
    context.free(buffer.handle)
    assert elsewhere.read() == expected


# --- what it costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alloc", "register"])
@pytest.mark.parametrize("end", ["free", "reset", "close"])
def test_buffers_are_charged_until_freed(kind: str, end: str) -> None:
    """Buffers count against RLIMIT_MEMLOCK as ZERO_COPY does, and give back what they took."""

    def make(context: Context, length: int) -> int:
        if kind == "alloc":
            return context.alloc(length).handle
        return context.register(small_pages(length))

    def inside() -> None:
        for _ in range(3):
            abi.settle()  # the last turn's rings give back what they were charged when they end
            context = Context()
            context.setup(4)
            rest = 4 * MIB - PAGE - int(context.fdinfo()["ring-bytes"])
            handles = [make(context, 4 * MIB), make(context, rest), make(context, 1)]
            with context.refuses(errno.ENOMEM):
                make(context, 1)
            src, dst = Memory(PAGE), Memory(PAGE)
            with context.refuses(errno.ENOMEM):
                context.submit(src.address, dst.address, 8, abi.ZERO_COPY)
            with Context() as other, other.refuses(errno.ENOMEM):
                other.setup(4)
            context.free(handles[1])
            handles[1] = make(context, rest)
            match end:
                case "free":
                    for handle in handles:
                        context.free(handle)
                case "reset":
                    context.reset()
                case "close":
                    context.close()
            context.close()
            with Context() as other:
                other.setup(4)
                # but for another ring, of which something may still be at work
                make(other, 8 * MIB - 2 * int(other.fdinfo()["ring-bytes"]))

    ordinary(inside)


def test_mapped_buffer_stays_charged_after_free() -> None:
    """What a mapping keeps is still paid for."""

    def inside() -> None:
        with Context() as context:
            context.setup(4)
            rest = 8 * MIB - int(context.fdinfo()["ring-bytes"])
            buffer = context.alloc(rest)
            mapped = context.map(buffer, PAGE, 4 * MIB)
            context.free(buffer.handle)
            with context.refuses(errno.ENOMEM):
                context.alloc(PAGE)
            del mapped
            context.alloc(rest)

    ordinary(inside)


def test_zero_copy_with_buffers_pins_nothing_more() -> None:
    """They are where they are: an entry charges for the other side alone."""
    end = time.monotonic() + abi.LONG
    while count("rings") and time.monotonic() < end:  # those of tests before are charged
        time.sleep(0.01)

    def inside() -> None:
        with Context() as own:
            own.setup(4, paused=True)
            one = own.alloc(4 * MIB)
            two = own.register(small_pages(4 * MIB - int(own.fdinfo()["ring-bytes"])))
            own.enter([in_buffers(abi.copy(0, 0, 3 * MIB, abi.ZERO_COPY | abi.RECORD), one.handle, two)])
            memory = Memory(PAGE)
            with own.refuses(errno.ENOMEM):
                own.enter([in_buffers(abi.copy(memory.address, 0, 8, abi.ZERO_COPY), dst=two)])
            own.enable()
            assert own.reap(1)[0].status == 0

    ordinary(inside)


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    """A group of processes that may have 64 MiB of memory."""
    root = tmp_path / "cgroup"
    root.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "cgroup2", "none", root], check=False).returncode:
        pytest.skip("no root, or the kernel has no cgroups")
    group = root / "nymph"
    try:
        if "memory" not in (root / "cgroup.controllers").read_text().split():
            pytest.skip("the kernel's cgroups don't count memory")
        (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (group / "memory.max").write_text(str(64 * MIB))
        with contextlib.suppress(FileNotFoundError):
            (group / "memory.swap.max").write_text("0")
        yield group
    finally:
        with contextlib.suppress(FileNotFoundError):
            group.rmdir()
        subprocess.run(["umount", root], check=True)


@pytest.mark.parametrize("kind", ["alloc", "rings"])
def test_cgroup_limit_answers_enomem(cgroup: Path, kind: str) -> None:
    """ENOMEM, nobody is killed, and what was had before is as it was."""

    def inside() -> str:
        abi.own_pages()  # at the limit, a write to a page shared with the parent would get this killed
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.ExitStack() as all_of_them:
            context = all_of_them.enter_context(Context())
            context.setup(4)
            mapped = context.map(context.alloc(PAGE)).randomize()
            before = mapped.read()
            if kind == "alloc":
                for _ in range(3):
                    with context.refuses(errno.ENOMEM):
                        context.alloc(256 * MIB)
                context.alloc(16 * MIB)
            else:
                with abi.fails(errno.ENOMEM):
                    for _ in range(200):
                        all_of_them.enter_context(Context()).setup(4096)
            assert mapped.read() == before
        return ""

    Child(inside).result()
    assert "oom_kill 0" in (cgroup / "memory.events").read_text().splitlines()


@abi.needs_root
def test_buffer_of_one_gib_works(context: Context) -> None:
    """The largest there can be, if the machine has it."""
    try:
        buffer = context.alloc(GIB)
    except OSError as error:
        assert error.errno == errno.ENOMEM
        pytest.skip("the machine has no GiB left")
    last = context.map(buffer, PAGE, GIB - PAGE)
    assert context.run(in_buffers(abi.fill(1, GIB - 8, 8), dst=buffer.handle)).status == 0
    assert last.read(PAGE - 8) == b"\x01" + bytes(7)
