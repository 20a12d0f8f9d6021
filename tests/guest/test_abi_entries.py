# SPDX-License-Identifier: MIT
"""What entries are refused, with which errno, in which order, and that refusing leaves no trace."""

import errno
import mmap
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import abi
import pytest
from abi import MIB, PAGE, Context, Entry, Memory, ordinary, small_pages

LENGTH = 2 * PAGE


class Buffers:
    """A source and a destination with room around, and entries between them."""

    def __init__(self) -> None:
        self.src = Memory(4 * PAGE).randomize()
        self.dst = Memory(4 * PAGE)

    def entry(self, **changes: int) -> Entry:
        entry = abi.copy(self.src.address, self.dst.address, LENGTH, cookie=5)
        for name, value in changes.items():
            if name.startswith("reserved"):
                entry.reserved[int(name[-1])] = value
            else:
                setattr(entry, name, value)
        return entry


@pytest.fixture
def buffers() -> Buffers:
    return Buffers()


@pytest.fixture
def context() -> Iterator[Context]:
    with Context() as context:
        context.setup(4)
        yield context


@pytest.fixture
def paused() -> Iterator[Context]:
    with Context() as context:
        context.setup(4, paused=True)
        yield context


def refused(context: Context, entry: Entry, *numbers: int) -> None:
    """By ENTER alone, by ENTER behind a good entry, and by SUBMIT_DMA if a descriptor can say it."""
    with context.refuses(*numbers):
        context.enter([entry])

    before = context.snapshot()
    entered = context.enter([abi.nop(1), entry, abi.nop(2)])
    assert (entered.submitted, -entered.error) in [(1, number) for number in numbers]
    after = context.snapshot()
    assert after.head == (before.head + 1) % before.ring_size
    assert after.errors == before.errors and after.dma_bytes == before.dma_bytes
    if not after.state & abi.STATE_PAUSED:
        context.drain()  # or the first of the three retires while somebody compares

    as_copy = (entry.size, entry.opcode, entry.src_buffer, entry.dst_buffer, *entry.reserved)
    if as_copy == (64, abi.OP_COPY, 0, 0, 0, 0) and entry.length < 2**32:
        with context.refuses(*numbers):
            context.submit(entry.src, entry.dst, entry.length, entry.flags, entry.cookie)


# --- EINVAL -----------------------------------------------------------------------------------------------

INVALID: dict[str, dict[str, int]] = {
    "size_0": {"size": 0},
    "size_63": {"size": 63},
    "size_65": {"size": 65},
    "size_128": {"size": 128},
    "opcode_5": {"opcode": 5},
    "opcode_255": {"opcode": 255},
    "opcode_65535": {"opcode": 65535},
    "reserved_0": {"reserved_0": 1},
    "reserved_1": {"reserved_1": 1 << 63},
    "length_0": {"length": 0},
    "length_over": {"length": abi.MAX_LENGTH + 1},
    "length_4g": {"length": 1 << 32},
    "length_4g_and_some": {"length": (1 << 32) + LENGTH},
    "length_top": {"length": 2**64 - 1},
    "both_digests": {"flags": abi.VERIFY_HASH | abi.DIGEST_ONLY | abi.RECORD},
    "digest_nobody_sees": {"flags": abi.DIGEST_ONLY},
    "digest_nobody_sees_sync": {"flags": abi.DIGEST_ONLY | abi.COMPLETE_SYNC},
} | {f"flag_{bit}": {"flags": 1 << bit} for bit in range(7, 32)}


@pytest.mark.parametrize("case", INVALID)
def test_malformed_entries_are_refused(context: Context, buffers: Buffers, case: str) -> None:
    refused(context, buffers.entry(**INVALID[case]), errno.EINVAL)


@pytest.mark.parametrize("flags", [0, abi.ZERO_COPY], ids=["default", "zero_copy"])
def test_overlap_is_refused(context: Context, buffers: Buffers, flags: int) -> None:
    base = buffers.src.address
    for shift in (0, 1, PAGE, LENGTH - 1):
        refused(context, buffers.entry(src=base, dst=base + shift, flags=flags), errno.EINVAL)
        refused(context, buffers.entry(src=base + shift, dst=base, flags=flags), errno.EINVAL)


@pytest.mark.parametrize("order", [(0, LENGTH), (LENGTH, 0)], ids=["up", "down"])
def test_adjacent_ranges_do_not_overlap(context: Context, buffers: Buffers, order: tuple[int, int]) -> None:
    src, dst = (buffers.src.address + offset for offset in order)
    expected = buffers.src.read(order[0], LENGTH)
    context.submit(src, dst, LENGTH, abi.COMPLETE_SYNC)
    assert buffers.src.read(order[1], LENGTH) == expected


@pytest.mark.parametrize(
    "field", ["length", "src", "dst", "src_buffer", "dst_buffer", "reserved_0", "reserved_1"]
)
def test_nop_refuses_other_fields(context: Context, field: str) -> None:
    entry = abi.nop(3)
    if field.startswith("reserved"):
        entry.reserved[int(field[-1])] = 1
    else:
        setattr(entry, field, 1)
    refused(context, entry, errno.EINVAL)


@pytest.mark.parametrize(
    "flag", [abi.ZERO_COPY, abi.VERIFY_HASH, abi.DIGEST_ONLY, abi.DIGEST_ONLY | abi.RECORD, 1 << 7]
)
def test_nop_refuses_copy_flags(context: Context, flag: int) -> None:
    refused(context, abi.nop(3, flag), errno.EINVAL)


# --- ENOENT -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["src_buffer", "dst_buffer"])
def test_unknown_handles_are_refused(context: Context, buffers: Buffers, field: str) -> None:
    for handle in (1, 2, 4096, 2**31, 2**32 - 1):
        refused(context, buffers.entry(**{field: handle}), errno.ENOENT)


# --- EAGAIN -----------------------------------------------------------------------------------------------


def test_paused_ring_refuses_sync_entries(paused: Context, buffers: Buffers) -> None:
    refused(paused, buffers.entry(flags=abi.COMPLETE_SYNC), errno.EAGAIN)
    refused(paused, abi.nop(1, abi.COMPLETE_SYNC), errno.EAGAIN)


# --- EFAULT -----------------------------------------------------------------------------------------------

Spoil = Callable[[Memory], None]
HOLES: dict[str, Spoil] = {
    "first": lambda memory: memory.unmap(0, PAGE),
    "middle": lambda memory: memory.unmap(PAGE, PAGE),
    "last": lambda memory: memory.unmap(3 * PAGE, PAGE),
    "none_first": lambda memory: memory.protect(abi.PROT_NONE, 0, PAGE),
    "none_middle": lambda memory: memory.protect(abi.PROT_NONE, PAGE, PAGE),
    "none_last": lambda memory: memory.protect(abi.PROT_NONE, 3 * PAGE, PAGE),
}
EDGE = 5  # every copy below reaches so many bytes into its first and its last page

# Memory is looked at on every path.
PATHS = [0, abi.COMPLETE_SYNC, abi.ZERO_COPY, abi.ZERO_COPY | abi.COMPLETE_SYNC, abi.VERIFY_HASH]


def across(buffers: Buffers, flags: int) -> Entry:
    src, dst = (memory.address + PAGE - EDGE for memory in (buffers.src, buffers.dst))
    return abi.copy(src, dst, 2 * PAGE + 2 * EDGE, flags)


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("side", ["src", "dst"])
def test_ranges_with_a_hole_are_refused(context: Context, buffers: Buffers, side: str, hole: str) -> None:
    """The whole range is looked at before anything moves."""
    HOLES[hole](getattr(buffers, side))
    for flags in PATHS:
        refused(context, across(buffers, flags), errno.EFAULT)
    if side == "src":
        assert buffers.dst.read() == bytes(4 * PAGE)


@pytest.mark.parametrize("page", [0, 1, 3])
def test_read_only_destination_is_refused(context: Context, buffers: Buffers, page: int) -> None:
    buffers.dst.protect(mmap.PROT_READ, page * PAGE, PAGE)
    for flags in PATHS:
        refused(context, across(buffers, flags), errno.EFAULT)
    assert buffers.dst.read() == bytes(4 * PAGE)


def test_write_only_source_is_refused(context: Context, buffers: Buffers) -> None:
    """No memory is write-only on x86, but the mapping says what its owner meant."""
    buffers.src.protect(mmap.PROT_WRITE)
    for flags in PATHS:
        refused(context, across(buffers, flags), errno.EFAULT)


def test_read_only_file_is_refused_as_destination(context: Context, buffers: Buffers, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * PAGE))
    with open(path, "rb") as file:
        mapped = Memory(4 * PAGE, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno())
    for flags in PATHS:
        refused(context, abi.copy(buffers.src.address, mapped.address, LENGTH, flags), errno.EFAULT)
    assert path.read_bytes() == bytes(4 * PAGE)


MADE_UP = {
    "null": 0,
    "page_zero": 0x800,
    "kernel": 0xFFFF_8880_0000_1000,
    "non_canonical": 1 << 60,
    "wraps": 2**64 - PAGE,
    "last": 2**64 - 1,
    "end_of_user": 0x7FFF_FFFF_F000 - PAGE,
    "vsyscall": 0xFFFF_FFFF_FF60_0000,
}


@pytest.mark.parametrize("where", MADE_UP)
@pytest.mark.parametrize("side", ["src", "dst"])
def test_made_up_addresses_are_refused(context: Context, buffers: Buffers, side: str, where: str) -> None:
    for flags in PATHS:
        refused(context, buffers.entry(flags=flags, **{side: MADE_UP[where]}), errno.EFAULT)


def test_range_that_leaves_its_mapping_is_refused(context: Context) -> None:
    memory = Memory(2 * abi.MAX_LENGTH + 2 * PAGE)
    memory.unmap(abi.MAX_LENGTH + PAGE, PAGE)
    leaves = memory.address + abi.MAX_LENGTH
    for length in (PAGE + 1, 2 * PAGE, MIB, abi.MAX_LENGTH):
        refused(context, abi.copy(leaves, memory.address, length), errno.EFAULT)
        refused(context, abi.copy(memory.address, leaves, length), errno.EFAULT)


def test_fault_in_the_entries_array_keeps_those_before_it(context: Context) -> None:
    """The entries before the fault are accepted; none before it is EFAULT."""
    memory = Memory(2 * PAGE)
    memory.protect(abi.PROT_NONE, PAGE)
    for fit in (0, 1, 3):
        start = PAGE - 64 * fit - 8
        memory.write(b"".join(bytes(abi.nop(n)) for n in range(fit)), start)
        argument = abi.Enter(size=56, entries=memory.address + start, to_submit=fit + 1)
        if fit == 0:
            with context.refuses(errno.EFAULT):
                context.ioctl(abi.ENTER, argument)
        else:
            assert context.ioctl(abi.ENTER, argument) == fit
            assert (argument.submitted, argument.error) == (fit, -errno.EFAULT)
            context.drain()


# --- the order of the checks ------------------------------------------------------------------------------


def full(context: Context) -> None:
    context.enter([abi.nop(), abi.nop(), abi.nop(), abi.nop()])


ORDER: dict[str, tuple[dict[str, int], int]] = {
    "invalid_before_again": ({"length": 0, "flags": abi.COMPLETE_SYNC}, errno.EINVAL),
    "invalid_before_fault": ({"src": 0, "reserved_0": 1}, errno.EINVAL),
    "invalid_before_no_buffer": ({"opcode": abi.OP_FILL, "src_buffer": 9}, errno.EINVAL),
    "again_before_no_buffer": ({"src_buffer": 9, "flags": abi.COMPLETE_SYNC}, errno.EAGAIN),
    "no_buffer_before_fault": ({"src": 0, "dst_buffer": 9}, errno.ENOENT),
    "again_before_fault": ({"src": 0, "flags": abi.COMPLETE_SYNC}, errno.EAGAIN),
    "fault_before_full": ({"src": 0}, errno.EFAULT),
    "full": ({}, errno.ENOSPC),
}


@pytest.mark.parametrize("case", ORDER)
def test_checks_run_in_order_on_a_full_ring(paused: Context, buffers: Buffers, case: str) -> None:
    full(paused)
    changes, number = ORDER[case]
    entry = buffers.entry(**changes)
    with paused.refuses(number):
        paused.enter([entry])


# --- ZERO_COPY and locked memory --------------------------------------------------------------------------


def test_zero_copy_is_charged_and_given_back() -> None:
    """3 MiB + 3 MiB fit under 8 MiB once, not twice; retirement, RESET and close() give them back."""

    def inside() -> None:
        src, dst = small_pages(6 * MIB).randomize(), small_pages(6 * MIB).randomize()
        first = abi.copy(src.address, dst.address, 3 * MIB, abi.ZERO_COPY)
        second = abi.copy(src.address + 3 * MIB, dst.address + 3 * MIB, 3 * MIB, abi.ZERO_COPY)
        for end in ["retire", "RESET", "close", "retire"]:
            context = Context()
            context.setup(4, paused=True)
            assert context.enter([first, second])[:2] == (1, -errno.ENOMEM)
            with context.refuses(errno.ENOMEM):
                context.submit(src.address + 3 * MIB, dst.address + 3 * MIB, 3 * MIB, abi.ZERO_COPY)
            # The limit is the user's, not the context's.
            with Context() as other:
                other.setup(4, paused=True)
                with other.refuses(errno.ENOMEM):
                    other.enter([second])
            # The default path pins nothing, and is still open.
            default = abi.copy(src.address + 3 * MIB, dst.address + 3 * MIB, 3 * MIB)
            assert context.enter([default]).submitted == 1
            if end == "retire":
                context.enable()
                context.drain()
                assert src.equals(dst, 6 * MIB)
            elif end == "RESET":
                context.reset()
            context.close()

    ordinary(inside)


def test_zero_copy_may_reach_the_limit_exactly() -> None:
    def inside() -> None:
        src, dst = small_pages(4 * MIB + PAGE).randomize(), small_pages(4 * MIB + PAGE).randomize()
        with Context() as context:
            context.setup(4, paused=True)
            left = (8 * MIB - int(context.fdinfo()["ring-bytes"])) // PAGE
            if left % 2:
                context.alloc(PAGE)
            half = left // 2 * PAGE
            with context.refuses(errno.ENOMEM):
                context.enter([abi.copy(src.address, dst.address, half + 1, abi.ZERO_COPY)])
            # By whole pages, however few bytes of them are used.
            with context.refuses(errno.ENOMEM):
                context.enter([abi.copy(src.address + PAGE - 1, dst.address, half, abi.ZERO_COPY)])
            assert context.enter([abi.copy(src.address, dst.address, half, abi.ZERO_COPY)]).submitted == 1
            with context.refuses(errno.ENOMEM):
                context.enter([abi.copy(src.address, dst.address, 1, abi.ZERO_COPY)])

    ordinary(inside)


def huge_kib(memory: Memory) -> int:
    """How much of the mapping at the memory's end is in huge pages."""
    smaps = Path("/proc/self/smaps").read_text()
    mappings = re.split(r"^([0-9a-f]+)-([0-9a-f]+) ", smaps, flags=re.MULTILINE)[1:]
    end = memory.address + memory.length
    return sum(
        int(re.search(r"AnonHugePages: *(\d+)", text)[1])  # type: ignore[index]
        for first, last, text in zip(mappings[::3], mappings[1::3], mappings[2::3], strict=True)
        if int(first, 16) < end <= int(last, 16)
    )


@pytest.mark.emulated
@abi.needs_huge_pages
def test_zero_copy_charges_whole_folios() -> None:
    """One byte of a huge page holds all of it: beside the ring, the fourth does not fit."""

    def inside() -> str:
        memory = Memory(12 * MIB)
        memory.advise(mmap.MADV_HUGEPAGE)
        memory.fill(1)
        if huge_kib(memory) < 10 * 1024:
            return "no huge pages to be had"
        start = -memory.address % (2 * MIB)
        with Context() as context:
            context.setup(8, paused=True)
            here = memory.address + start
            assert context.enter(
                [
                    abi.copy(here, here + 2 * MIB, 1, abi.ZERO_COPY),
                    abi.copy(here + 4 * MIB, here + 6 * MIB, 1, abi.ZERO_COPY),
                ]
            )[:2] == (1, -errno.ENOMEM)
        return ""

    if said := ordinary(inside):
        pytest.skip(said)


def test_repeated_zero_copy_is_not_charged_twice() -> None:
    """Far more than the limit in turn: every charge comes back."""

    def inside() -> None:
        src, dst = small_pages(2 * MIB).randomize(), small_pages(2 * MIB).randomize()
        with Context() as context:
            context.setup(4)
            for turn in range(20):
                flags = abi.ZERO_COPY | (abi.COMPLETE_SYNC if turn % 2 else abi.RECORD)
                if turn % 2:
                    context.submit(src.address, dst.address, 2 * MIB, flags)
                else:
                    assert context.run(abi.copy(src.address, dst.address, 2 * MIB, flags)).status == 0

    ordinary(inside)


def test_refused_zero_copy_returns_its_charge() -> None:
    """Entries refused for ENOSPC, or for the destination only, keep nothing locked."""

    def inside() -> None:
        src, dst, shut = (small_pages(3 * MIB).randomize() for _ in range(3))
        shut.protect(mmap.PROT_READ, 3 * MIB - PAGE, PAGE)
        with Context() as context:
            context.setup(1, paused=True)
            assert context.enter([abi.nop()]).submitted == 1
            for _ in range(4):
                with context.refuses(errno.ENOSPC):
                    context.enter([abi.copy(src.address, dst.address, 3 * MIB, abi.ZERO_COPY)])
                with context.refuses(errno.EFAULT):
                    context.enter([abi.copy(src.address, shut.address, 3 * MIB, abi.ZERO_COPY)])
            context.enable()
            context.drain()
            assert context.run(abi.copy(src.address, dst.address, 3 * MIB, abi.ZERO_COPY)).status == 0

    ordinary(inside)


@abi.needs_root
def test_cap_ipc_lock_lifts_the_zero_copy_limit() -> None:
    src, dst = small_pages(16 * MIB).randomize(), small_pages(16 * MIB).randomize()
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * MIB, before[1]))
    try:
        with Context() as context:
            context.setup(4)
            dst.fill(0)
            assert context.run(abi.copy(src.address, dst.address, 16 * MIB, abi.ZERO_COPY)).status == 0
            assert src.equals(dst, 16 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
