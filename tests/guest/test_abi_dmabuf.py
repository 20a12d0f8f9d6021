# SPDX-License-Identifier: MIT
"""BUFFER: dma-bufs. Exports of driver memory, and imports of others' dma-bufs and of the module's own.

The file is long because exports and imports test each other, with the same helpers.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import gc
import mmap
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import abi
import blake3
import pytest
from abi import (
    BUFFER_ALLOC,
    BUFFER_CARD,
    BUFFER_EXPORT,
    BUFFER_FREE,
    BUFFER_IMPORT,
    BUFFER_READ_ONLY,
    BUFFER_REGISTER,
    CHUNK,
    MAX_BUFFERS,
    MIB,
    PAGE,
    BufferArg,
    Child,
    Context,
    Memory,
    count,
    in_buffers,
    ordinary,
    small_pages,
)

FEATURE_DMABUF = 0x20
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
SIZE = 3 * CHUNK + 5 * PAGE  # some chunks and a rest
FLAGS = {
    "default": 0,
    "zero_copy": abi.ZERO_COPY,
    "verify": abi.VERIFY_HASH,
    "digest": abi.DIGEST_ONLY,
    "zero_copy_verify": abi.ZERO_COPY | abi.VERIFY_HASH,
    "zero_copy_digest": abi.ZERO_COPY | abi.DIGEST_ONLY,
}
ENGINES = (abi.SYSFS / "engines").read_text().split()
KINDS = ["cpu", *(["channel"] if len(ENGINES) > 1 else [])]

SYNC = 0x40086200
SYNC_READ, SYNC_WRITE, SYNC_END = 1, 2, 4

UDMABUF = Path("/dev/udmabuf")
UDMABUF_CREATE = 0x40187542
HEAP = Path("/dev/dma_heap/system")
HEAP_ALLOC = 0xC0184800


def counts() -> list[int]:
    return [count(name) for name in ("imported_bytes", "exports", "allocated_pages", "pinned_pages")]


def on_card(context: Context, length: int) -> int | None:
    """The handle of so much memory of the channel's card, or None if that has none."""
    try:
        return context.buffer(BUFFER_CARD, length=length).handle
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return None


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = counts()
    yield
    gc.collect()  # what is left of mappings
    end = time.monotonic() + abi.LONG
    while counts() != before:  # the last reference may be a worker's, and files close later
        assert time.monotonic() < end, f"{counts()}, and it was {before}"
        time.sleep(0.01)


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest) -> bytes:
    kind: str = request.param
    return next(name for name in ENGINES if (name == "cpu") == (kind == "cpu")).encode()


@pytest.fixture
def context(engine: bytes) -> Iterator[Context]:
    with Context() as context:
        context.setup(8, engine=engine)
        yield context


@pytest.fixture
def owner() -> Iterator[Context]:
    """Another ring, whose buffers are exported."""
    with Context() as context:
        context.setup(8)
        yield context


class Synced:
    """Memory of a dma-buf, looked at as those want it: a device may have it elsewhere, in a cache say."""

    def __init__(self, memory: Memory, fd: int) -> None:
        self._memory = memory
        self._fd = fd

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._memory, name)
        if name not in ("read", "write", "flip", "fill", "randomize"):
            return found

        def look(*arguments: Any) -> Any:
            with contextlib.suppress(OSError):  # some tests look on when it is closed
                sync(self._fd, SYNC_READ | SYNC_WRITE)
            seen = found(*arguments)
            with contextlib.suppress(OSError):
                sync(self._fd, SYNC_READ | SYNC_WRITE | SYNC_END)
            return seen

        return look


@contextlib.contextmanager
def exported(owner: Context, length: int) -> Iterator[tuple[int, Synced]]:
    """A dma-buf, and its memory as the ring has it that it is of."""
    buffer = owner.alloc(length)
    fd = owner.export(buffer.handle)
    try:
        yield fd, Synced(owner.map(buffer), fd)
    finally:
        os.close(fd)
        owner.free(buffer.handle)


def heap(length: int, flags: int = os.O_RDWR) -> int:
    """A dma-buf of the kernel's own."""
    with open(HEAP, "rb", buffering=0) as device:
        argument = bytearray(struct.pack("=QIIQ", length, 0, flags | os.O_CLOEXEC, 0))
        fcntl.ioctl(device, HEAP_ALLOC, argument)
    fd: int = struct.unpack("=QIIQ", argument)[1]
    return fd


def udmabuf(length: int) -> tuple[int, Memory]:
    """A dma-buf of user memory, and the memory."""
    memfd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(memfd, length)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with open(UDMABUF, "rb", buffering=0) as device:
        argument = bytearray(struct.pack("=IIQQ", memfd, 1, 0, length))
        fd = fcntl.ioctl(device, UDMABUF_CREATE, argument)
    memory = Memory(length, READ_WRITE, mmap.MAP_SHARED, memfd)
    os.close(memfd)
    return fd, memory


def sync(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, SYNC, struct.pack("=Q", flags))


# --- what it is good for ----------------------------------------------------------------------------------


def test_query_reports_dmabuf_support(owner: Context) -> None:
    assert owner.query()[0].features & FEATURE_DMABUF


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_copies_with_an_import_are_exact(context: Context, owner: Context, engine: bytes, flags: int) -> None:
    """By the ring's engine, at offsets that are multiples of nothing, and nothing around is touched."""
    data, back = small_pages(SIZE).randomize(), small_pages(SIZE)
    with exported(owner, SIZE) as (fd, memory):
        handle = context.import_(fd).handle
        kept = context.register(data)
        for at, length in ((0, SIZE), (1, 1), (PAGE - 1, 2), (4097, CHUNK + 70_001 % CHUNK), (SIZE - 1, 1)):
            memory.fill(0x5A)
            back.fill(0)
            for src in ((data.address, 0), (0, kept)):
                there = abi.copy(src[0], at, length, flags)
                record = context.run(in_buffers(there, src[1], handle))
                assert (record.status, record.bytes_done) == (0, length)
                assert memory.read(at, length) == data.read(0, length)
                assert memory.read(0, at) == b"\x5a" * at
                assert memory.read(at + length) == b"\x5a" * (SIZE - at - length)
                expected = blake3.blake3(data.read(0, length)).digest()
                if flags & abi.VERIFY_HASH:
                    assert bytes(record.src_digest) == expected
                if flags & (abi.VERIFY_HASH | abi.DIGEST_ONLY):
                    assert bytes(record.dst_digest) == expected
            record = context.run(in_buffers(abi.copy(at, back.address, length, flags), handle))
            assert (record.status, record.bytes_done) == (0, length)
            assert back.read(0, length) == data.read(0, length)
            names = {info.id: info.name for info in context.query(len(ENGINES))[1]}
            assert names[record.engine] == engine


def test_every_operation_works_on_an_import(context: Context, owner: Context) -> None:
    with exported(owner, SIZE) as (fd, memory):
        made = context.import_(fd)
        assert (made.length, made.mmap_offset) == (SIZE, 0)
        handle, data = made.handle, small_pages(SIZE).randomize()
        memory.write(data.read())
        for flags in (abi.RECORD, abi.RECORD | abi.ZERO_COPY):
            record = context.run(in_buffers(abi.hash_only(0, SIZE, flags), handle))
            assert bytes(record.src_digest) == blake3.blake3(data.read()).digest()
            record = context.run(in_buffers(abi.hash_only(77, CHUNK, flags), handle))
            assert bytes(record.src_digest) == blake3.blake3(data.read(77, CHUNK)).digest()
            assert context.run(in_buffers(abi.compare(0, data.address, SIZE, flags), handle)).status == 0
            memory.flip(CHUNK + 3)
            record = context.run(in_buffers(abi.compare(data.address, 0, SIZE, flags), dst=handle))
            assert (record.status, record.bytes_done) == (-errno.EBADMSG, CHUNK + 3)
            memory.flip(CHUNK + 3)
        for flags in FLAGS.values():
            memory.fill(0)
            assert context.run(in_buffers(abi.fill(2**64 - 1, 5, CHUNK, flags), dst=handle)).status == 0
            assert memory.read() == bytes(5) + b"\xff" * CHUNK + bytes(SIZE - 5 - CHUNK)


def test_copies_work_between_and_within_dmabufs(context: Context, owner: Context) -> None:
    """And within one, and by two handles of the same, where one entry has both of them mapped."""
    with exported(owner, SIZE) as (one, first), exported(owner, SIZE) as (two, second):
        handles = [context.import_(fd).handle for fd in (one, two, one)]
        for flags in FLAGS.values():
            first.randomize()
            second.fill(0)
            record = context.run(in_buffers(abi.copy(0, 0, SIZE, flags), handles[0], handles[1]))
            assert (record.status, record.bytes_done) == (0, SIZE)
            assert second.read(0, SIZE) == first.read(0, SIZE)
            for dst in (handles[0], handles[2]):
                first.fill(1, CHUNK, CHUNK)
                entry = in_buffers(abi.copy(3, CHUNK + 9, 5000, flags), handles[0], dst)
                assert context.run(entry).status == 0
                assert first.read(CHUNK + 9, 5000) == first.read(3, 5000)
    with context.refuses(errno.EINVAL):
        context.enter([in_buffers(abi.copy(0, 10, 100), handles[0], handles[0])])


def test_ring_can_import_its_own_export(context: Context) -> None:
    """One memory by three names."""
    buffer = context.alloc(SIZE)
    fd = context.export(buffer.handle)
    try:
        mapped = Synced(context.map(buffer), fd)
        handle = context.import_(fd).handle
        assert context.run(in_buffers(abi.compare(0, 0, SIZE), buffer.handle, handle)).status == 0
        for flags in FLAGS.values():
            mapped.randomize()
            copied = in_buffers(abi.copy(0, CHUNK, 5000, flags), buffer.handle, handle)
            assert context.run(copied).status == 0
            assert mapped.read(CHUNK, 5000) == mapped.read(0, 5000)
            aliased = context.run(in_buffers(abi.copy(0, 64, CHUNK, flags), buffer.handle, handle))
            assert aliased.status in (0, -errno.EBADMSG)  # undefined data and no more
    finally:
        os.close(fd)


@pytest.mark.skipif(len(KINDS) == 1, reason="there is no engine but the CPU")
def test_copies_work_between_card_memory_and_a_dmabuf(owner: Context) -> None:
    with Context() as context:
        context.setup(8, engine=next(name for name in ENGINES if name != "cpu").encode())
        card = on_card(context, SIZE)
        if card is None:
            pytest.skip("the channel's card has no memory")
        with exported(owner, SIZE) as (fd, memory):
            handle, data = context.import_(fd).handle, memory.randomize().read()
            for setup in range(2):
                for flags in FLAGS.values():
                    memory.write(data)
                    assert context.run(in_buffers(abi.copy(0, 0, SIZE, flags), handle, card)).status == 0
                    memory.fill(0)
                    assert context.run(in_buffers(abi.copy(0, 0, SIZE, flags), card, handle)).status == 0
                    assert memory.read() == data
                if not setup:
                    context.setup(8, engine=b"cpu")  # handles go on, and the CPU moves them


@pytest.mark.skipif(len(KINDS) == 1, reason="there is no engine but the CPU")
def test_concurrent_imports_share_a_mapping(owner: Context) -> None:
    """A device has a dma-buf once, or two bounce buffers would overwrite each other."""
    channel = next(name for name in ENGINES if name != "cpu").encode()
    length = 16 * MIB
    start = threading.Barrier(2)
    with Context() as one, Context() as other:
        targets = {}
        for context in (one, other):
            context.setup(8, engine=channel)
            targets[context] = context.alloc(PAGE).handle
            context.run(in_buffers(abi.copy(0, 100, 100), targets[context], targets[context]))
        before = count("mappings")

        def imports(context: Context, fd: int) -> abi.Thread:
            def inside() -> int:
                start.wait()
                return context.import_(fd).handle

            return abi.Thread(inside)

        for _ in range(20):
            slow = os.access(HEAP, os.R_OK)  # the longer it takes to have it, the more there can be
            fd = heap(length) if slow else owner.export(owner.alloc(PAGE).handle)
            threads = [(context, imports(context, fd)) for context in targets]
            for _, thread in threads:
                thread.join()
            for context, thread in threads:
                entry = abi.copy(0, 0, PAGE, abi.ZERO_COPY)  # read by the device, too
                entry = in_buffers(entry, thread.result, targets[context])
                assert context.run(entry).status == 0
            assert count("mappings") == before + 1
            for context, thread in threads:
                context.free(thread.result)
            assert count("mappings") == before
            os.close(fd)


def test_dmabuf_passes_between_processes(context: Context, owner: Context) -> None:
    """The producer's, over a UNIX socket: the consumer's own ring sees it, and answers in it."""
    ours, theirs = socket.socketpair()
    data = os.urandom(SIZE)

    def consume() -> str:
        message, ancillary, *_ = theirs.recvmsg(32, socket.CMSG_SPACE(4))
        (fd,) = array.array("i", ancillary[0][2])
        with Context() as consumer:
            consumer.setup(4)
            made = consumer.import_(fd)
            os.close(fd)
            record = consumer.run(in_buffers(abi.hash_only(0, made.length), made.handle))
            assert bytes(record.src_digest) == message
            assert consumer.run(in_buffers(abi.fill(0, 0, PAGE), dst=made.handle)).status == 0
        theirs.send(b"done")
        return ""

    child = Child(consume)
    with exported(owner, SIZE) as (fd, memory):
        memory.write(data)
        handle = context.import_(fd).handle  # here, too
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        ours.sendmsg([blake3.blake3(data).digest()], [rights])
        child.result()
        assert ours.recv(4) == b"done"
        record = context.run(in_buffers(abi.hash_only(0, SIZE), handle))
        assert bytes(record.src_digest) == blake3.blake3(bytes(PAGE) + data[PAGE:]).digest()
    ours.close()
    theirs.close()


def test_dmabuf_file_can_be_mapped(owner: Context) -> None:
    """mmap() of the dma-buf itself: all of it or some pages, shared, also in a child; and to synchronize."""
    length = 4 * PAGE
    with exported(owner, length - 100) as (fd, memory):
        assert os.lseek(fd, 0, os.SEEK_END) == length
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        sync(fd, SYNC_READ | SYNC_WRITE)
        mapped = Memory(length, READ_WRITE, mmap.MAP_SHARED, fd)
        part = Memory(PAGE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 2 * PAGE)
        mapped.randomize()
        sync(fd, SYNC_READ | SYNC_WRITE | SYNC_END)
        assert memory.read() == mapped.read(0, length - 100)
        assert part.read() == mapped.read(2 * PAGE, PAGE)

        def inside() -> str:
            mapped.write(b"child")
            mapped._mapped.clear()
            return ""

        Child(inside).result()
        assert mapped.read(0, 5) == memory.read(0, 5) == b"child"
        for size, offset, flags in (
            (5 * PAGE, 0, mmap.MAP_SHARED),
            (PAGE, length, mmap.MAP_SHARED),
            (PAGE, 0, mmap.MAP_PRIVATE),
        ):
            with abi.fails(errno.EINVAL):
                Memory(size, READ_WRITE, flags, fd, offset)


def test_mapped_dmabuf_works_as_user_memory(context: Context, owner: Context) -> None:
    """Mapped, it is memory like any other, also to be pinned."""
    with exported(owner, SIZE) as (fd, memory):
        mapped = Memory(SIZE, READ_WRITE, mmap.MAP_SHARED, fd)
        data = small_pages(SIZE).randomize()
        handle = context.import_(fd).handle
        for flags in FLAGS.values():
            memory.fill(0)
            assert context.run(abi.copy(data.address, mapped.address, SIZE, flags)).status == 0
            assert memory.equals(data, SIZE)
            record = context.run(in_buffers(abi.compare(data.address, 0, SIZE), dst=handle))
            assert record.status == 0


def test_repeated_imports_leave_nothing(context: Context, owner: Context) -> None:
    """Attached and mapped, and both undone."""
    with exported(owner, CHUNK) as (fd, memory):
        memory.randomize()
        expected = blake3.blake3(memory.read()).digest()
        for _ in range(20):
            handle = context.import_(fd).handle
            entry = in_buffers(abi.copy(0, CHUNK // 2, 4096, abi.ZERO_COPY), handle, handle)
            assert context.run(entry).status == 0
            memory.randomize()
            assert bytes(context.run(in_buffers(abi.hash_only(0, CHUNK), handle)).src_digest) == expected
            context.free(handle)


# --- what is refused --------------------------------------------------------------------------------------


def test_import_refuses_other_files(context: Context) -> None:
    with context.refuses(errno.EBADF):
        context.import_(-1)
    with context.refuses(errno.EBADF):
        context.import_(2**31 - 1)
    memfd = os.memfd_create("test")
    os.truncate(memfd, PAGE)
    for fd in (memfd, context.fd):
        with context.refuses(errno.EINVAL):
            context.import_(fd)
    os.close(memfd)


def test_import_and_export_refuse_wrong_arguments(context: Context, owner: Context) -> None:
    own = context.alloc(PAGE).handle
    with exported(owner, PAGE) as (fd, _):
        good = {
            BUFFER_IMPORT: {"fd": fd},
            BUFFER_EXPORT: {"handle": own},
            BUFFER_ALLOC: {"length": PAGE},
            BUFFER_CARD: {"length": PAGE},
            BUFFER_FREE: {"handle": own},
            BUFFER_REGISTER: {"addr": small_pages(PAGE).address, "length": PAGE},
        }
        bad: list[tuple[int, dict[str, int]]] = [
            *(
                (op, changes)
                for op in (BUFFER_IMPORT, BUFFER_EXPORT)
                for changes in ({"addr": 1}, {"length": PAGE}, {"length": 2**64 - 1})
            ),
            *((BUFFER_IMPORT, {"flags": 1 << bit}) for bit in range(1, 32)),
            *((BUFFER_EXPORT, {"flags": 1 << bit}) for bit in range(32)),
            *(
                (op, {"fd": number})
                for op in good
                if op not in (BUFFER_IMPORT, BUFFER_EXPORT)
                for number in (fd, -1)
            ),
        ]
        for op, changes in bad:
            with context.refuses(errno.EINVAL):
                context.buffer(op, **(good[op] | changes))
        for op, fields in good.items():
            argument = BufferArg(size=48, op=op, reserved=1, **fields)
            with context.refuses(errno.EINVAL):
                context.ioctl(abi.BUFFER, argument)
    context.free(own)


def test_only_allocated_memory_is_exported(context: Context, owner: Context) -> None:
    """Memory of an ALLOC, and nothing else."""
    with exported(owner, PAGE) as (fd, _):
        others = [context.import_(fd).handle, context.register(small_pages(PAGE))]
        if len(KINDS) > 1 and context.fdinfo()["engine"] != "cpu":
            others.append(on_card(context, PAGE))
        for handle in filter(None, others):
            with context.refuses(errno.EINVAL):
                context.export(handle)
    for handle in (0, 100, 4096, 2**32 - 1):
        with context.refuses(errno.ENOENT):
            context.export(handle)
    context.reset()
    with abi.fails(errno.EINVAL):  # no ring
        context.export(1)
    with abi.fails(errno.EINVAL):
        context.import_(0)


def test_read_only_import_refuses_writes(context: Context, owner: Context) -> None:
    with exported(owner, CHUNK) as (fd, memory):
        handle, other = context.import_(fd, BUFFER_READ_ONLY).handle, small_pages(CHUNK)
        expected = memory.randomize().read()
        for flags in FLAGS.values():
            with context.refuses(errno.EFAULT):
                context.enter([in_buffers(abi.copy(other.address, 0, 8, flags | abi.RECORD), dst=handle)])
            assert context.run(in_buffers(abi.copy(0, other.address, CHUNK, flags), handle)).status == 0
            assert other.read() == expected
        with context.refuses(errno.EFAULT):
            context.enter([in_buffers(abi.fill(0, 0, PAGE), dst=handle)])
        assert context.run(in_buffers(abi.compare(other.address, 0, CHUNK), dst=handle)).status == 0
        assert memory.read() == expected


def test_offsets_beyond_an_import_are_refused(context: Context, owner: Context) -> None:
    with exported(owner, 2 * PAGE) as (fd, _):
        handle, other = context.import_(fd).handle, Memory(4 * PAGE)
        for at, length in (
            (2 * PAGE, 1),
            (2 * PAGE - 1, 2),
            (0, 2 * PAGE + 1),
            (1, 2 * PAGE),
            (2**64 - 1, 1),
            (2**64 - 8, 16),
            (2**63, 1),
        ):
            for entry in (
                in_buffers(abi.copy(at, other.address, length), src=handle),
                in_buffers(abi.copy(other.address, at, length), dst=handle),
            ):
                with context.refuses(errno.EFAULT):
                    context.enter([entry])


def test_import_cannot_be_mapped_through_the_device(context: Context, owner: Context) -> None:
    with exported(owner, PAGE) as (fd, _):
        handle = context.import_(fd).handle
        with context.refuses(errno.EINVAL):
            Memory(PAGE, READ_WRITE, mmap.MAP_SHARED, context.fd, handle << 30)


def test_old_40_byte_struct_still_works(context: Context) -> None:
    """Its 40 bytes are enough for what there was then; nothing is read or written behind them."""
    room = Memory(PAGE)

    def old(op: int, number: int = abi.OLD_BUFFER, size: int = 40, **fields: int) -> BufferArg:
        room.write(bytes(BufferArg(size=size, op=op, **fields))[:40] + b"\xee" * 8)
        assert abi.ioctl(context.fd, number, room.address) == 0
        assert room.read(40, 8) == b"\xee" * 8
        return BufferArg.from_buffer_copy(room.read(0, 40) + bytes(8))

    for number in (abi.OLD_BUFFER, abi.BUFFER):
        made = old(BUFFER_ALLOC, number, length=PAGE)
        assert context.map(made).read() == bytes(PAGE)
        for op in (BUFFER_IMPORT, BUFFER_EXPORT):
            for size in (40, 44, 47):
                with context.refuses(errno.EINVAL):
                    old(op, number, size, handle=made.handle if op == BUFFER_EXPORT else 0)
        old(BUFFER_FREE, number, handle=made.handle)


def test_export_without_a_free_descriptor_is_emfile(context: Context) -> None:
    """EMFILE, and nothing of the dma-buf stays."""
    handle = context.alloc(PAGE).handle
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = os.dup(0)
    os.close(last)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last, hard))
    try:
        with abi.fails(errno.EMFILE):
            context.export(handle)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert count("exports") == 0
    os.close(context.export(handle))


def test_unwritable_answer_leaves_no_handle_and_no_file(context: Context, owner: Context) -> None:
    """No handle is made, and no file."""
    memory = Memory(PAGE)
    handle = context.alloc(PAGE).handle
    with exported(owner, PAGE) as (fd, _):
        before = sorted(os.listdir("/proc/self/fd"))
        for argument in (
            BufferArg(size=48, op=BUFFER_IMPORT, fd=fd),
            BufferArg(size=48, op=BUFFER_EXPORT, handle=handle),
        ):
            memory.protect(READ_WRITE)
            memory.write(bytes(argument))
            memory.protect(mmap.PROT_READ)
            for _ in range(10):
                with context.refuses(errno.EFAULT):
                    abi.ioctl(context.fd, abi.BUFFER, memory.address)
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert context.import_(fd).handle == handle + 1


@abi.needs_root
def test_imports_are_limited_to_4095_handles(owner: Context) -> None:
    with Context() as context, exported(owner, PAGE) as (fd, _):
        context.setup(1, engine=b"cpu")
        for _ in range(MAX_BUFFERS):
            context.import_(fd)
        with context.refuses(errno.EMFILE):
            context.import_(fd)
        assert count("imported_bytes") == MAX_BUFFERS * PAGE


# --- how long it lives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["free", "reset", "close"])
def test_export_outlives_its_ring(context: Context, end: str) -> None:
    """By its file, then by a mapping of it, then by an import."""
    before = counts()
    other = Context()
    other.setup(4)
    buffer = other.alloc(SIZE)
    other.map(buffer).randomize()
    fd = other.export(buffer.handle)
    {"free": lambda: other.free(buffer.handle), "reset": other.reset, "close": other.close}[end]()
    mapped = Memory(SIZE, READ_WRITE, mmap.MAP_SHARED, fd)
    expected = blake3.blake3(mapped.read()).digest()
    assert counts() == [0, 1, before[2] + SIZE // PAGE, before[3]]
    os.close(fd)
    fd = -1
    assert counts() == [0, 1, before[2] + SIZE // PAGE, before[3]]
    del mapped
    assert counts() == before
    if end != "close":
        other.close()

    with Context() as third:
        third.setup(4)
        buffer = third.alloc(SIZE)
        third.map(buffer).randomize()
        fd = third.export(buffer.handle)
        handle = context.import_(fd).handle
        os.close(fd)
    assert context.fdinfo()["imported-bytes"] == str(SIZE)
    assert counts()[:3] == [SIZE, 1, before[2] + SIZE // PAGE]
    record = context.run(in_buffers(abi.hash_only(0, SIZE), handle))
    assert bytes(record.src_digest) == expected
    assert context.run(in_buffers(abi.copy(0, CHUNK, CHUNK, abi.ZERO_COPY), handle, handle)).status == 0
    context.free(handle)
    assert counts() == before


def test_queued_entries_finish_after_free_of_an_import(owner: Context, engine: bytes) -> None:
    """As with any memory: accepted before the handle is freed."""
    with Context() as context, exported(owner, 2 * CHUNK) as (fd, memory):
        context.setup(8, paused=True, engine=engine)
        handle = context.import_(fd).handle
        context.enter(
            [
                in_buffers(abi.fill(7, 0, 2 * CHUNK, abi.RECORD), dst=handle),
                in_buffers(abi.copy(0, CHUNK, CHUNK, abi.RECORD | abi.ZERO_COPY), handle, handle),
            ]
        )
        context.free(handle)
        assert count("imported_bytes") == 2 * CHUNK
        context.enable()
        assert [record.status for record in context.reap(2)] == [0, 0]
        assert count("imported_bytes") == 0
        assert memory.read() == (7).to_bytes(8, "little") * (2 * CHUNK // 8)


def test_imports_survive_setup(context: Context, owner: Context) -> None:
    """Whatever its engine is."""
    with exported(owner, CHUNK) as (fd, memory):
        handle = context.import_(fd).handle
        for engine in [*ENGINES, *ENGINES]:
            context.setup(4, engine=engine.encode())
            memory.randomize()
            entry = in_buffers(abi.copy(0, CHUNK // 2, 999, abi.ZERO_COPY), handle, handle)
            assert context.run(entry).status == 0
            assert memory.read(CHUNK // 2, 999) == memory.read(0, 999)


def test_allocator_is_charged_until_the_last_holder_ends() -> None:
    """The memory counts for the user who allocated it until its last user is gone, and for no importer."""

    def inside() -> None:
        with Context() as consumer:
            consumer.setup(4)
            rest = 8 * MIB - 2 * int(consumer.fdinfo()["ring-bytes"])
            for holder in ("file", "mapping", "import"):
                with Context() as producer:
                    producer.setup(4)
                    fd = producer.export(producer.alloc(rest).handle)
                mapped = Memory(PAGE, READ_WRITE, mmap.MAP_SHARED, fd) if holder == "mapping" else None
                handle = consumer.import_(fd).handle if holder == "import" else 0
                if holder != "file":
                    os.close(fd)
                with consumer.refuses(errno.ENOMEM):
                    consumer.alloc(8 * MIB - rest)
                if holder == "file":
                    os.close(fd)
                del mapped
                if handle:
                    consumer.free(handle)
                consumer.free(consumer.alloc(rest).handle)

    ordinary(inside)


def test_killed_process_leaves_no_dmabuf(engine: bytes) -> None:
    before = counts()
    reader, writer = os.pipe()

    def inside() -> str:
        with Context() as one, Context() as other:
            one.setup(8, engine=engine)
            other.setup(8)
            handle = one.import_(other.export(other.alloc(16 * CHUNK).handle)).handle
            other.import_(other.export(1))
            one.run(in_buffers(abi.copy(0, CHUNK, CHUNK, abi.ZERO_COPY), handle, handle))
            os.write(writer, b"!")
            while True:
                with abi.may_fail(errno.ENOSPC):  # the ring is full
                    one.enter([in_buffers(abi.copy(0, 8 * CHUNK, 8 * CHUNK, abi.ZERO_COPY), handle, handle)])
        return ""

    child = Child(inside)
    os.read(reader, 1)
    child.kill()
    os.close(reader)
    os.close(writer)
    assert counts() == before


# --- others' dma-bufs -------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.access(HEAP, os.R_OK), reason="needs /dev/dma_heap/system: a debug kernel")
def test_dma_heap_memory_can_be_imported(context: Context) -> None:
    fd = heap(SIZE)
    handle = context.import_(fd).handle
    mapped = Memory(SIZE, READ_WRITE, mmap.MAP_SHARED, fd)
    data, back = small_pages(SIZE).randomize(), small_pages(SIZE)
    for flags in FLAGS.values():
        back.fill(0)
        assert context.run(in_buffers(abi.copy(data.address, 0, SIZE, flags), dst=handle)).status == 0
        sync(fd, SYNC_READ)
        assert mapped.equals(data, SIZE)
        sync(fd, SYNC_READ | SYNC_END)
        assert context.run(in_buffers(abi.copy(5, back.address, SIZE - 5, flags), handle)).status == 0
        assert back.read(0, SIZE - 5) == data.read(5)
    del mapped
    os.close(fd)
    record = context.run(in_buffers(abi.hash_only(0, SIZE), handle))
    assert bytes(record.src_digest) == blake3.blake3(data.read()).digest()


@pytest.mark.skipif(not os.access(HEAP, os.R_OK), reason="needs /dev/dma_heap/system: a debug kernel")
def test_import_needs_a_file_open_for_writing(owner: Context) -> None:
    fd = heap(CHUNK, os.O_RDONLY)
    with owner.refuses(errno.EACCES):
        owner.import_(fd)
    handle = owner.import_(fd, BUFFER_READ_ONLY).handle
    record = owner.run(in_buffers(abi.hash_only(0, CHUNK), handle))
    assert bytes(record.src_digest) == blake3.blake3(bytes(CHUNK)).digest()
    os.close(fd)
    fd = heap(CHUNK, os.O_WRONLY)
    for flags in (0, BUFFER_READ_ONLY):
        with owner.refuses(errno.EACCES):
            owner.import_(fd, flags)
    os.close(fd)


@pytest.mark.skipif(not os.access(HEAP, os.R_OK), reason="needs /dev/dma_heap/system: a debug kernel")
@abi.needs_root
def test_import_refuses_more_than_a_transfer_moves(owner: Context) -> None:
    fd = heap(abi.MAX_LENGTH + PAGE)
    with owner.refuses(errno.EINVAL):
        owner.import_(fd)
    os.close(fd)


@pytest.mark.skipif(not UDMABUF.exists(), reason="needs /dev/udmabuf: a debug kernel")
@abi.needs_root
def test_udmabuf_memory_can_be_imported(context: Context) -> None:
    fd, memory = udmabuf(SIZE)
    handle = context.import_(fd).handle
    os.close(fd)
    data, kept = small_pages(SIZE).randomize(), context.alloc(SIZE)
    context.map(kept).write(data.read())
    record = context.run(in_buffers(abi.copy(0, 0, SIZE, abi.ZERO_COPY), kept.handle, handle))
    if context.fdinfo()["engine"] == "cpu" and record.status == -errno.EFAULT:
        pytest.skip("this kernel's udmabuf lets no CPU at it")
    assert record.status == 0
    assert memory.equals(data, SIZE)


def test_buffer_struct_ends_with_the_file() -> None:
    assert ctypes.sizeof(BufferArg) == 48
    assert (BufferArg.fd.offset, BufferArg.reserved.offset) == (40, 44)
