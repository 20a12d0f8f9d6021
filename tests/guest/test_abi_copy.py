# SPDX-License-Identifier: MIT
"""Bytes: every kind of memory, length and alignment, faults on the way, and the digests of what moved."""

import ctypes
import errno
import mmap
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import abi
import blake3
import numpy as np
import pytest
from abi import GIB, KIB, MIB, PAGE, Context, Memory, Record, small_pages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
POISON = 0xA5

FLAGS = {
    "default": 0,
    "zero_copy": abi.ZERO_COPY,
    "verify": abi.VERIFY_HASH,
    "zero_copy_verify": abi.ZERO_COPY | abi.VERIFY_HASH,
    "digest": abi.DIGEST_ONLY,
    "zero_copy_digest": abi.ZERO_COPY | abi.DIGEST_ONLY,
}


@pytest.fixture
def context() -> Iterator[Context]:
    with Context() as context:
        context.setup(4)
        yield context


def digest_of(memory: Memory, offset: int, length: int) -> bytes:
    return blake3.blake3(memory.read(offset, length)).digest()


def check_record(record: Record, flags: int, length: int, digest: bytes) -> None:
    """A copy that went well, and exactly the digests asked for."""
    assert (record.status, record.bytes_done) == (0, length)
    has = {
        abi.VERIFY_HASH: abi.RECORD_SRC_DIGEST | abi.RECORD_DST_DIGEST,
        abi.DIGEST_ONLY: abi.RECORD_DST_DIGEST,
    }.get(flags & (abi.VERIFY_HASH | abi.DIGEST_ONLY), 0)
    assert record.flags == has
    assert bytes(record.src_digest) == (digest if has & abi.RECORD_SRC_DIGEST else bytes(32))
    assert bytes(record.dst_digest) == (digest if has & abi.RECORD_DST_DIGEST else bytes(32))


def check_copy(
    context: Context,
    src: Memory,
    dst: Memory,
    length: int,
    flags: int = 0,
    src_offset: int = 0,
    dst_offset: int = 0,
) -> None:
    """One asynchronous copy: right bytes, right digests, and nothing else touched on either side."""
    src_before, dst_before = src.read(), dst.read()
    record = context.run(abi.copy(src.address + src_offset, dst.address + dst_offset, length, flags))
    payload = src_before[src_offset : src_offset + length]
    check_record(record, flags, length, blake3.blake3(payload).digest())
    assert src.read() == src_before
    assert dst.read() == dst_before[:dst_offset] + payload + dst_before[dst_offset + length :]


def test_destination_that_has_its_pages_twice(context: Context) -> None:
    """A device's destination is read back as a whole at the end, and the CPU's chunk by chunk."""
    chunk = 64 * KIB
    src, dst = Memory(2 * chunk).randomize(), Memory(2 * chunk)
    fd = os.memfd_create("half")
    os.ftruncate(fd, chunk)
    fixed = mmap.MAP_SHARED | 0x10  # MAP_FIXED
    libc = ctypes.CDLL(None)
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mmap.restype = ctypes.c_void_p
    for at in (0, chunk):
        assert libc.mmap(dst.address + at, chunk, READ_WRITE, fixed, fd, 0) == dst.address + at
    os.close(fd)
    for engine in context.query(64)[1]:
        with Context() as other:
            other.setup(engine=engine.name)
            record = other.run(abi.copy(src.address, dst.address, 2 * chunk, abi.VERIFY_HASH))
            assert dst.read() == 2 * src.read(chunk, chunk)
            if engine.name == b"cpu":
                assert record.status == 0
                assert bytes(record.dst_digest) == digest_of(src, 0, 2 * chunk)
            else:
                assert record.status == -errno.EBADMSG
                assert bytes(record.dst_digest) == digest_of(dst, 0, 2 * chunk)


# --- lengths and alignments -------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", FLAGS)
def test_copy_moves_exactly_its_length(context: Context, flags: str) -> None:
    for length in (
        1,
        2,
        3,
        7,
        63,
        64,
        65,
        1023,
        1025,
        PAGE - 1,
        PAGE,
        PAGE + 1,
        16 * KIB + 1,
        64 * KIB - 1,
        64 * KIB,
        64 * KIB + 1,
        128 * KIB + 7,
        MIB + 3,
    ):
        src, dst = Memory(length + 2 * PAGE).randomize(), Memory(length + 2 * PAGE)
        dst.fill(POISON)
        check_copy(context, src, dst, length, FLAGS[flags], 17, 4091)


@pytest.mark.parametrize("flags", [0, abi.ZERO_COPY], ids=["default", "zero_copy"])
def test_copy_works_at_every_small_alignment(context: Context, flags: int) -> None:
    """Each of 16 by 16, across a page boundary on both sides."""
    src, dst = Memory(2 * PAGE).randomize(), Memory(2 * PAGE)
    for i in range(16):
        for j in range(16):
            dst.fill(POISON)
            start, length = PAGE - 48, 96
            context.submit(
                src.address + start + i, dst.address + start + j, length, flags | abi.COMPLETE_SYNC
            )
            assert dst.read(start, 128) == (
                bytes([POISON]) * j + src.read(start + i, length) + bytes([POISON]) * (32 - j)
            )
    assert not any(byte != POISON for byte in dst.read(0, PAGE - 48) + dst.read(PAGE + 80))


@given(
    length=st.integers(1, 300 * KIB),
    src_offset=st.integers(0, PAGE),
    dst_offset=st.integers(0, PAGE),
    flags=st.sampled_from(list(FLAGS.values())),
)
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
def test_copy_moves_any_range(length: int, src_offset: int, dst_offset: int, flags: int) -> None:
    src, dst = Memory(length + 2 * PAGE).randomize(), Memory(length + 2 * PAGE)
    with Context() as context:
        context.setup(1)
        check_copy(context, src, dst, length, flags, src_offset, dst_offset)


@pytest.mark.parametrize("flags", [0, abi.ZERO_COPY], ids=["default", "zero_copy"])
def test_copy_of_20_mib_is_exact(context: Context, flags: int) -> None:
    if flags and os.geteuid() != 0:
        pytest.skip("more than an ordinary user may lock")
    length = 20 * MIB + 12345
    src, dst = Memory(length + 99).randomize(), Memory(length + 99)
    assert context.run(abi.copy(src.address + 99, dst.address, length, flags)).status == 0
    assert dst.read(length) == bytes(99)
    assert np.array_equal(
        *(
            np.ctypeslib.as_array((abi.c_uint8 * length).from_address(address))
            for address in (src.address + 99, dst.address)
        )
    )


@abi.needs_root
@pytest.mark.emulated
def test_copy_of_one_gib_is_exact(context: Context) -> None:
    """The longest transfer there is: all of its ends compared, and both ends of every page between."""
    available = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * KIB
    if available < 2.25 * GIB:
        pytest.skip(f"needs 2.25 GiB, there are {available / GIB:.1f}")
    src, dst = Memory(GIB).randomize(), Memory(GIB)
    context.submit(src.address, dst.address, GIB, abi.COMPLETE_SYNC)
    assert context.snapshot().dma_bytes == GIB
    assert src.equals(dst, 8 * MIB) and src.equals(dst, 8 * MIB, GIB - 8 * MIB)
    sent, arrived = (
        np.ctypeslib.as_array((abi.c_uint64 * (GIB // 8)).from_address(memory.address))
        for memory in (src, dst)
    )
    words = PAGE // 8
    assert np.array_equal(sent[::words], arrived[::words])
    assert np.array_equal(sent[words - 1 :: words], arrived[words - 1 :: words])


# --- kinds of memory --------------------------------------------------------------------------------------


def anonymous(length: int, folder: Path) -> Memory:
    return Memory(length)


def shared(length: int, folder: Path) -> Memory:
    return Memory(length, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)


def mapped_file(length: int, folder: Path, flags: int) -> Memory:
    with open(folder / f"{os.urandom(8).hex()}", "w+b") as file:
        file.truncate(length)
        return Memory(length, READ_WRITE, flags, file.fileno())


def shared_file(length: int, folder: Path) -> Memory:
    return mapped_file(length, folder, mmap.MAP_SHARED)


def private_file(length: int, folder: Path) -> Memory:
    return mapped_file(length, folder, mmap.MAP_PRIVATE)


def memfd(length: int, folder: Path) -> Memory:
    fd = os.memfd_create("test")
    os.truncate(fd, length)
    memory = Memory(length, READ_WRITE, mmap.MAP_SHARED, fd)
    os.close(fd)
    return memory


def huge_pages(length: int, folder: Path) -> Memory:
    """Transparent ones, where the kernel has them."""
    memory = Memory(length + 4 * MIB)
    if abi.HUGE_PAGES.exists():
        memory.advise(mmap.MADV_HUGEPAGE)
    return memory


def heap(length: int, folder: Path) -> Memory:
    memory = Memory.__new__(Memory)
    memory.heap = bytearray(length)  # type: ignore[attr-defined]
    memory.address = abi.ctypes.addressof((abi.c_char * length).from_buffer(memory.heap))  # type: ignore[attr-defined]
    memory.length = length
    return memory


Kind = Callable[[int, Path], Memory]
KINDS: list[Kind] = [anonymous, shared, shared_file, private_file, memfd, huge_pages, heap]


@pytest.mark.parametrize("dst_kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("src_kind", KINDS, ids=lambda kind: kind.__name__)
def test_copy_works_on_all_kinds_of_memory(
    context: Context, tmp_path: Path, src_kind: Kind, dst_kind: Kind
) -> None:
    length = 100 * KIB
    for flags in (0, abi.ZERO_COPY, abi.VERIFY_HASH):
        src, dst = src_kind(length, tmp_path), dst_kind(length, tmp_path)
        src.randomize()
        check_copy(context, src, dst, length - 200, flags, 100, 77)


@pytest.mark.parametrize("flags", ["default", "zero_copy", "verify"])
def test_copy_works_on_untouched_memory(context: Context, flags: str) -> None:
    """Pages nobody has ever looked at: the source reads as zeros, the destination comes into being."""
    length = 3 * MIB
    src, dst = small_pages(length), small_pages(length)
    record = context.run(abi.copy(src.address, dst.address, length, FLAGS[flags]))
    check_record(record, FLAGS[flags], length, blake3.blake3(bytes(length)).digest())
    assert dst.read() == bytes(length)


def test_copy_reaches_the_file_of_a_shared_mapping(context: Context, tmp_path: Path) -> None:
    """Through a shared mapping yes, through a private one no."""
    path = tmp_path / "file"
    src = Memory(3 * PAGE).randomize()
    for flags, expected in [(mmap.MAP_PRIVATE, bytes(3 * PAGE)), (mmap.MAP_SHARED, src.read())]:
        path.write_bytes(bytes(3 * PAGE))
        with open(path, "r+b") as file:
            dst = Memory(3 * PAGE, READ_WRITE, flags, file.fileno())
        context.submit(src.address, dst.address, 3 * PAGE, abi.COMPLETE_SYNC)
        assert dst.equals(src, 3 * PAGE)
        assert path.read_bytes() == expected


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("mapping", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_read_only_file_can_be_the_source(context: Context, tmp_path: Path, mapping: int, flags: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5 * PAGE))
    with open(path, "rb") as file:
        src = Memory(5 * PAGE, mmap.PROT_READ, mapping, file.fileno())
    check_copy(context, src, Memory(5 * PAGE), 4 * PAGE + 9, FLAGS[flags], 3, 5)


def test_program_text_can_be_the_source(context: Context) -> None:
    """Read-only, private, executable."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    start = next(int(line.split("-")[0], 16) for line in maps if " r-xp " in line and "/" in line)
    dst = Memory(PAGE)
    for flags in FLAGS.values():
        assert context.run(abi.copy(start, dst.address, PAGE, flags)).status == 0
        assert dst.read() == abi.ctypes.string_at(start, PAGE)


@pytest.mark.parametrize("flags", ["default", "zero_copy", "verify"])
def test_copy_on_write_stays_private(flags: str) -> None:
    """After fork the copy lands in the copying process alone."""
    src, dst = Memory(4 * PAGE).randomize(), Memory(4 * PAGE)
    dst.fill(POISON)

    def inside() -> None:
        with Context() as own:
            own.setup(1)
            assert own.run(abi.copy(src.address, dst.address, 4 * PAGE, FLAGS[flags])).status == 0
        assert dst.equals(src, 4 * PAGE)

    abi.Child(inside).result()
    assert dst.read() == bytes([POISON]) * (4 * PAGE)


@abi.needs_root
@pytest.mark.emulated
@pytest.mark.parametrize("flags", FLAGS)
def test_copy_works_on_reserved_huge_pages(context: Context, flags: str) -> None:
    setting = Path("/proc/sys/vm/nr_hugepages")
    if not setting.exists():
        pytest.skip("the kernel has no huge pages")
    before = setting.read_text()
    setting.write_text("4")
    try:
        if int(setting.read_text()) < 4:
            pytest.skip("the kernel has no four huge pages left")
        where = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
        src, dst = Memory(4 * MIB, flags=where).randomize(), Memory(4 * MIB, flags=where)
        check_copy(context, src, dst, 4 * MIB - 99, FLAGS[flags], 98, 1)
        del src, dst
    finally:
        setting.write_text(before)


@pytest.fixture
def restless_khugepaged() -> Iterator[Callable[[], int]]:
    """Have khugepaged make huge pages of all memory without a pause; called, it says how many it has made."""
    if not abi.HUGE_PAGES.exists():
        pytest.skip("the kernel has no transparent huge pages")
    folder = abi.HUGE_PAGES / "khugepaged"
    wanted = {
        abi.HUGE_PAGES / "enabled": "always",
        folder / "scan_sleep_millisecs": "0",
        folder / "alloc_sleep_millisecs": "0",
        folder / "pages_to_scan": "1000000",
    }
    before = {path: path.read_text() for path in wanted}
    for path, value in wanted.items():
        path.write_text(value)
    yield lambda: int((folder / "pages_collapsed").read_text())
    for path, text in before.items():
        chosen = re.search(r"\[(\w+)\]", text)
        path.write_text(chosen[1] if chosen else text)


@abi.needs_root
@pytest.mark.emulated
@pytest.mark.parametrize("flags", FLAGS)
def test_khugepaged_takes_turns_with_copies_and_mappings(
    context: Context, restless_khugepaged: Callable[[], int], flags: str
) -> None:
    """khugepaged, copies and mmap() all want mmap_lock: each has it in time, and no byte is lost.

    A task that waits for 20 s panics the guest's kernel.
    """
    stop = threading.Event()

    def maps() -> None:
        while not stop.is_set():
            memory = small_pages(4 * MIB)
            memory.fill(1)
            memory.advise(mmap.MADV_HUGEPAGE)  # from here on, khugepaged wants it
            stop.wait(0.05)

    mapper = abi.Thread(maps)
    made = restless_khugepaged()
    src, dst = small_pages(4 * MIB).randomize(), small_pages(4 * MIB)
    dst.fill(POISON)
    for memory in (src, dst):
        memory.advise(mmap.MADV_HUGEPAGE)
    end, copies = time.monotonic() + abi.LONG, 0
    try:
        while (copies < 20 or restless_khugepaged() < made + 4) and time.monotonic() < end:
            dst.fill(POISON)
            entry = abi.copy(src.address, dst.address, 4 * MIB, FLAGS[flags] | abi.RECORD)
            assert context.run(entry).status == 0
            assert dst.equals(src, 4 * MIB)
            copies += 1
    finally:
        stop.set()
        mapper.join()
    assert restless_khugepaged() >= made + 4


@abi.needs_root
@pytest.mark.emulated
@pytest.mark.parametrize("flags", FLAGS)
def test_zero_copy_refuses_writable_shared_disk_files(context: Context, disk: Path, flags: str) -> None:
    """Pinned for long it could be written behind the file system's back: ZERO_COPY refuses it."""
    shared, other = shared_file(4 * PAGE, disk), Memory(4 * PAGE).randomize()
    if FLAGS[flags] & abi.ZERO_COPY:
        with context.refuses(errno.EOPNOTSUPP):
            context.enter([abi.copy(other.address, shared.address, 4 * PAGE, FLAGS[flags] | abi.RECORD)])
        # Read from only, or a private copy: nothing is written behind anybody's back.
        check_copy(context, shared, other, 4 * PAGE, FLAGS[flags])
        check_copy(context, other, private_file(4 * PAGE, disk), 4 * PAGE, FLAGS[flags])
    else:
        check_copy(context, other, shared, 4 * PAGE, FLAGS[flags])


@abi.needs_root
@pytest.mark.emulated
def test_read_only_shared_disk_file_can_be_the_source(context: Context, disk: Path) -> None:
    path = disk / "source"
    path.write_bytes(os.urandom(4 * PAGE))
    with open(path, "rb") as file:
        src = Memory(4 * PAGE, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno())
    for flags in FLAGS.values():
        check_copy(context, src, Memory(4 * PAGE), 4 * PAGE, flags)


# --- memory that goes away --------------------------------------------------------------------------------

LARGE = MIB
HOLE = LARGE // 2 + 3 * PAGE
TAKE_AWAY: dict[str, Callable[[Memory], None]] = {
    "unmapped": lambda memory: memory.unmap(HOLE, PAGE),
    "no_access": lambda memory: memory.protect(abi.PROT_NONE, HOLE, PAGE),
}


@pytest.mark.parametrize("flags", ["default", "verify", "digest"])
@pytest.mark.parametrize(
    "side,how",
    [
        ("src", "unmapped"),
        pytest.param("src", "no_access", marks=pytest.mark.emulated),
        ("dst", "unmapped"),
        ("dst", "no_access"),
    ],
)
def test_memory_taken_away_after_submit_is_efault(side: str, how: str, flags: str) -> None:
    """-EFAULT; bytes_done bytes reached the destination, and not one more."""
    src, dst = Memory(LARGE).randomize(), Memory(LARGE)
    dst.fill(POISON)
    with Context() as context:
        context.setup(4, paused=True)
        context.submit(src.address, dst.address, LARGE, FLAGS[flags] | abi.RECORD, 77)
        context.submit(src.address, dst.address, 1, abi.RECORD, 78)
        TAKE_AWAY[how](src if side == "src" else dst)
        context.enable()
        gone, fine = context.reap(2)
        assert (gone.cookie, gone.status) == (77, -errno.EFAULT)
        assert 0 < gone.bytes_done <= HOLE
        assert (fine.cookie, fine.status, fine.bytes_done) == (78, 0, 1)
        snapshot = context.snapshot()
        assert snapshot.dma_bytes == gone.bytes_done + 1
        assert snapshot.errors == 0
    assert dst.equals(src, gone.bytes_done)
    assert dst.read(gone.bytes_done, HOLE - gone.bytes_done) == bytes([POISON]) * (HOLE - gone.bytes_done)
    assert dst.read(HOLE + PAGE) == bytes([POISON]) * (LARGE - HOLE - PAGE)


def test_destination_made_read_only_after_submit_is_efault() -> None:
    src, dst = Memory(LARGE).randomize(), Memory(LARGE)
    with Context() as context:
        context.setup(4, paused=True)
        context.submit(src.address, dst.address, LARGE, abi.RECORD)
        dst.protect(mmap.PROT_READ, HOLE)
        context.enable()
        [record] = context.reap(1)
    assert record.status == -errno.EFAULT
    assert dst.equals(src, record.bytes_done)
    assert dst.read(record.bytes_done) == bytes(LARGE - record.bytes_done)


@pytest.mark.parametrize("sync", [0, abi.COMPLETE_SYNC], ids=["async", "sync"])
@pytest.mark.parametrize("side", ["src", "dst"])
def test_pages_beyond_the_file_are_efault(context: Context, tmp_path: Path, side: str, sync: int) -> None:
    """The mapping is there, the pages behind the file's end are not."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(LARGE // 2))
    with open(path, "r+b") as file:
        mapped = Memory(LARGE, READ_WRITE, mmap.MAP_SHARED, file.fileno())
    other = Memory(LARGE)
    src, dst = (mapped, other) if side == "src" else (other, mapped)
    before = context.snapshot()
    if sync:
        with abi.fails(errno.EFAULT):
            context.submit(src.address, dst.address, LARGE, sync)
    else:
        context.submit(src.address, dst.address, LARGE)
        context.drain()
    after = context.snapshot()
    done = after.dma_bytes - before.dma_bytes
    assert 0 < done <= LARGE // 2
    assert (after.errors, after.first_error) == (1, -errno.EFAULT)
    assert dst.equals(src, done)
    if side == "src":
        assert other.read(done) == bytes(LARGE - done)


def test_zero_copy_pins_at_submit() -> None:
    """What is unmapped afterwards is still moved: the pages are held, whatever maps them."""
    fd = os.memfd_create("test")
    os.truncate(fd, 64 * PAGE)
    src = Memory(64 * PAGE).randomize()
    expected = src.read()
    dst = Memory(64 * PAGE, READ_WRITE, mmap.MAP_SHARED, fd)
    with Context() as context:
        context.setup(4, paused=True)
        context.submit(src.address, dst.address, 64 * PAGE, abi.ZERO_COPY | abi.RECORD)
        src.unmap(0, 64 * PAGE)
        dst.unmap(0, 64 * PAGE)
        context.enable()
        [record] = context.reap(1)
        assert (record.status, record.bytes_done) == (0, 64 * PAGE)
    assert os.pread(fd, 64 * PAGE, 0) == expected
    os.close(fd)


# --- digests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["verify", "zero_copy_verify", "digest", "zero_copy_digest"])
@pytest.mark.parametrize("length", [1, 64, 65, 1024, 1025, 2 * MIB + 1])
def test_digests_match_the_bytes(context: Context, length: int, flags: str) -> None:
    src, dst = Memory(length + 8).randomize(), Memory(length + 8)
    record = context.run(abi.copy(src.address + 5, dst.address + 3, length, FLAGS[flags]))
    check_record(record, FLAGS[flags], length, digest_of(src, 5, length))
    assert digest_of(dst, 3, length) == digest_of(src, 5, length)


@pytest.mark.parametrize("flags", ["verify", "zero_copy_verify"])
def test_legacy_descriptor_makes_a_verified_sync_copy(context: Context, flags: str) -> None:
    """The old driver's way: no record, the result is the return value."""
    src, dst = Memory(MIB).randomize(), Memory(MIB)
    context.submit(src.address, dst.address, MIB, FLAGS[flags] | abi.COMPLETE_SYNC)
    assert dst.equals(src, MIB)
    assert context.snapshot().unread_records == 0


@pytest.mark.parametrize("flags", ["verify", "zero_copy_verify"])
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_verify_detects_a_concurrent_writer(context: Context, flags: str, sync: bool) -> None:
    """-EBADMSG, with both digests, and they differ. Tried until the other thread comes at the right time.

    It writes everywhere: each part of the destination is read again soon after it was written.
    """
    length = 2 * MIB
    src, dst = Memory(length).randomize(), Memory(length)
    stop = threading.Event()

    def scribbles() -> None:
        while not stop.is_set():
            for at in range(0, length, PAGE):
                dst.fill(POISON, at, PAGE)

    scribbler = abi.Thread(scribbles)
    try:
        for _ in range(100):
            refused = False
            if sync:
                try:
                    context.submit(
                        src.address, dst.address, length, FLAGS[flags] | abi.COMPLETE_SYNC | abi.RECORD
                    )
                except OSError as error:
                    assert error.errno == errno.EBADMSG
                    refused = True
                [record] = context.reap(1)
                assert refused == (record.status == -errno.EBADMSG)
            else:
                record = context.run(abi.copy(src.address, dst.address, length, FLAGS[flags]))
            assert record.bytes_done == length
            assert record.flags == abi.RECORD_SRC_DIGEST | abi.RECORD_DST_DIGEST
            assert bytes(record.src_digest) == digest_of(src, 0, length)
            if record.status == -errno.EBADMSG:
                assert bytes(record.dst_digest) != bytes(record.src_digest)
                break
            assert record.status == 0
            assert bytes(record.dst_digest) == bytes(record.src_digest)
        else:
            pytest.fail("never noticed in 100 copies")
    finally:
        stop.set()
        scribbler.join()


def test_source_digest_matches_what_was_sent(context: Context) -> None:
    """Default path, a source that changes all the time: whatever arrived is what the source digest says."""
    length = 256 * KIB
    src, dst = Memory(length).randomize(), Memory(length)
    stop = threading.Event()

    def scribbles() -> None:
        byte = 0
        while not stop.is_set():
            byte = (byte + 1) % 256
            src.fill(byte)

    scribbler = abi.Thread(scribbles)
    try:
        for _ in range(20):
            record = context.run(abi.copy(src.address, dst.address, length, abi.VERIFY_HASH))
            check_record(record, abi.VERIFY_HASH, length, digest_of(dst, 0, length))
    finally:
        stop.set()
        scribbler.join()


# --- tagged addresses -------------------------------------------------------------------------------------

PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE = 55, 1


@pytest.fixture(params=[0, PR_TAGGED_ADDR_ENABLE], ids=["", "the_kernel_knows"])
def tags(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Two different ones; with and without this thread's having told the kernel that it uses them."""
    if os.uname().machine != "aarch64":
        pytest.skip("only arm64 ignores the upper bits of addresses")
    prctl = ctypes.CDLL(None).prctl
    assert prctl(PR_SET_TAGGED_ADDR_CTRL, request.param, 0, 0, 0) == 0
    yield 0x5A << 56, 0xC3 << 56
    assert prctl(PR_SET_TAGGED_ADDR_CTRL, 0, 0, 0, 0) == 0


def test_tagged_addresses_name_the_untagged_memory(context: Context, tags: tuple[int, int]) -> None:
    """They mean the memory that the CPU takes them for: moved by whoever runs the entry, pinned or not."""
    length = 3 * PAGE + 5
    src, dst = Memory(length).randomize(), Memory(length)
    for sync in (0, abi.COMPLETE_SYNC):
        for flags in FLAGS.values():
            dst.fill(POISON)
            entry = abi.copy(src.address | tags[0], dst.address | tags[1], length, flags | sync)
            check_record(context.run(entry), flags, length, digest_of(src, 0, length))
            assert dst.equals(src, length)
    context.enter([abi.copy(src.address | tags[0], dst.address, length, abi.RECORD)])
    assert [record.status for record in context.read()] == [0]  # a worker's, most likely
    assert context.run(abi.compare(src.address | tags[0], dst.address | tags[1], length)).status == 0


def test_overlap_ignores_address_tags(context: Context, tags: tuple[int, int]) -> None:
    memory = Memory(2 * PAGE)
    with context.refuses(errno.EINVAL):
        context.enter([abi.copy(memory.address | tags[0], (memory.address + 1) | tags[1], 2)])
    with context.refuses(errno.EFAULT):
        context.enter([abi.copy(memory.address | tags[0], tags[1], 2)])


def test_register_takes_tagged_addresses(context: Context, tags: tuple[int, int]) -> None:
    memory, dst = Memory(2 * PAGE).randomize(), Memory(2 * PAGE)
    buffer = context.buffer(abi.BUFFER_REGISTER, addr=memory.address | tags[0], length=2 * PAGE)
    entry = abi.in_buffers(abi.copy(0, dst.address | tags[1], 2 * PAGE), src=buffer.handle)
    assert context.run(entry).status == 0
    assert dst.equals(memory, 2 * PAGE)


PR_MTE_TCF_SYNC, PR_MTE_ALL_TAGS, PROT_MTE = 1 << 1, 0xFFFE << 3, 0x20
AT_HWCAP2, HWCAP2_MTE = 26, 1 << 18
STG_X0, RET = 0xD9200800, 0xD65F03C0  # gives 16 bytes of memory the tag of their address


@pytest.fixture
def tagged_memory() -> Iterator[Callable[[int, int], Memory]]:
    """tagged_memory(length, tag): memory that can only be used by way of addresses with that tag."""
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    if os.uname().machine != "aarch64" or not libc.getauxval(AT_HWCAP2) & HWCAP2_MTE:
        pytest.skip("needs arm64 with MTE: tests/vm/test_mte.py")
    checked = PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC | PR_MTE_ALL_TAGS
    assert libc.prctl(PR_SET_TAGGED_ADDR_CTRL, checked, 0, 0, 0) == 0
    code = Memory(PAGE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(struct.pack("<II", STG_X0, RET))
    tag_of = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(code.address)

    def make(length: int, tag: int) -> Memory:
        memory = Memory(length, mmap.PROT_READ | mmap.PROT_WRITE | PROT_MTE)
        for at in range(memory.address, memory.address + length, 16):
            tag_of(at | tag << 56)
        return memory

    yield make
    assert libc.prctl(PR_SET_TAGGED_ADDR_CTRL, 0, 0, 0, 0) == 0


def through_pipe(address: int, length: int, data: bytes | None = None) -> bytes:
    """Have the kernel write to an address, or read it.

    In a guest of QEMU 7.2, libc's memcpy() of 32 bytes and more gets SIGSEGV if they are not at a multiple
    of 32, though all tags are right.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    reader, writer = os.pipe()
    try:
        if data is not None:
            assert os.write(writer, data) == length
            assert libc.read(reader, ctypes.c_void_p(address), ctypes.c_size_t(length)) == length
            return data
        assert libc.write(writer, ctypes.c_void_p(address), ctypes.c_size_t(length)) == length
        return os.read(reader, length)
    finally:
        os.close(reader)
        os.close(writer)


def test_wrong_mte_tag_is_efault(context: Context, tagged_memory: Callable[[int, int], Memory]) -> None:
    """MTE: an address with the right tag is good for every flag and executor, one with another is EFAULT."""
    length = 2 * PAGE
    src, dst = tagged_memory(length, 5), tagged_memory(length, 9)
    good = src.address | 5 << 56, dst.address | 9 << 56
    data = os.urandom(length)
    through_pipe(good[0], length, data)
    for sync in (0, abi.COMPLETE_SYNC):
        for flags in FLAGS.values():
            through_pipe(good[1], length, bytes([POISON]) * length)
            assert context.run(abi.copy(*good, length, flags | sync)).status == 0
            assert through_pipe(good[1], length) == data
    assert context.run(abi.compare(*good, length)).status == 0
    bad = abi.copy(src.address | 6 << 56, good[1], length, abi.COMPLETE_SYNC)
    assert context.run(bad).status == -errno.EFAULT


# --- counting ---------------------------------------------------------------------------------------------


def test_dma_bytes_counts_every_completed_byte(context: Context) -> None:
    """Bytes of every path and length, and none for NOPs and refusals."""
    src, dst = Memory(MIB).randomize(), Memory(MIB)
    total = 0
    for n, flags in enumerate([*FLAGS.values(), abi.COMPLETE_SYNC, abi.COMPLETE_SYNC | abi.ZERO_COPY]):
        length = 10000 * n + 1
        context.run(abi.copy(src.address, dst.address, length, flags))
        context.run(abi.nop())
        with context.refuses(errno.EINVAL):
            context.submit(src.address, src.address, length)
        total += length
        assert context.status().dma_bytes == context.snapshot().dma_bytes == total
