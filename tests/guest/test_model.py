# SPDX-License-Identifier: MIT
"""The driver and pynymph.model, driven by the same random requests, have to agree.

Both work on the same memory, at the same addresses, so that whatever they say can be compared byte for byte:
the driver goes first, and what it did to the memory is kept and undone before it is the model's turn. A ring
that runs is looked at twice: at once, when only its invariants are certain, and when it has run dry.
"""

import ctypes
import errno
import mmap
import multiprocessing
import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import blake3
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pynymph import abi
from pynymph.abi import address, ffi, lib
from pynymph.model import Model

OPERATIONS = 100_000 if os.environ.get("NYMPH_LONG") else 500
STEPS = 30
BATCH = 60
PAGE = mmap.PAGESIZE

# Memory: what both write to, then a page that can only be read, then one that cannot be used at all. (With no
# mapping there, the next small mapping of anybody would lie there.)
HALF = 20 * PAGE
WRITABLE = 2 * HALF
READABLE = WRITABLE + PAGE
END = READABLE + PAGE

_libc = ctypes.CDLL(None, use_errno=True)


def make_memory() -> int:
    """Never unmapped: something else could live there by then."""
    _libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    at: int = _libc.mmap(None, ctypes.c_size_t(END), 3, flags, -1, ctypes.c_long(0))
    # A pin is charged for the whole of a huge page, and the model knows none.
    if os.path.exists("/sys/kernel/mm/transparent_hugepage"):  # else advice on them is refused
        assert _libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(END), mmap.MADV_NOHUGEPAGE) == 0
    ctypes.memmove(at, random.Random(1).randbytes(READABLE), READABLE)
    assert _libc.mprotect(ctypes.c_void_p(at + WRITABLE), ctypes.c_size_t(PAGE), mmap.PROT_READ) == 0
    assert _libc.mprotect(ctypes.c_void_p(at + READABLE), ctypes.c_size_t(PAGE), 0) == 0
    return at


AT = make_memory()
CPU = 1  # the id of that engine, and of the model's
ACTIVE = ffi.new("struct nymph_entry[]", lib.NYMPH_MAX_ENTRIES)
FLAGS = [
    lib.NYMPH_DMA_FLAG_RECORD,
    lib.NYMPH_DMA_FLAG_ZERO_COPY,
    lib.NYMPH_DMA_FLAG_VERIFY_HASH,
    lib.NYMPH_DMA_FLAG_DIGEST_ONLY,
    lib.NYMPH_DMA_FLAG_COMPLETE_SYNC,
    lib.NYMPH_DMA_FLAG_LINK,
    lib.NYMPH_DMA_FLAG_BARRIER,
]

cookies = st.integers(0, 12)
# What draws an entry: hypothesis would take far longer to draw each field.
randoms = st.integers(0, 2**32 - 1).map(random.Random)


def length_of(rng: random.Random) -> int:
    if rng.random() < 0.1:
        return rng.choice([PAGE, 65535, 65536, 65537, 70000])
    return rng.randint(1, rng.choice([16, 300, 5000]))


def spoiled(rng: random.Random) -> dict[str, Any]:
    """One field, and a value that is likely to be wrong for it."""
    side = rng.choice(["src", "dst"])
    return rng.choice(
        [
            {"size": rng.randint(0, 200)},
            {"opcode": rng.choice([5, 6, rng.randrange(2**16)])},
            {"flags": rng.randrange(2**32)},
            {"flags": 1 << rng.randrange(32)},
            {"length": rng.choice([0, 2**30, 2**30 + 1, 2**64 - 1])},
            {side: rng.randrange(2**64)},
            {side: AT + rng.randrange(WRITABLE - 500, END)},
            {side: AT + rng.randrange(WRITABLE)},
            {f"{side}_buffer": rng.choice([6, rng.randrange(2**32)])},
            {"reserved": rng.choice([[1, 0], [0, 1]])},
        ]
    )


def entry_of(rng: random.Random) -> dict[str, Any]:
    """Fields of an entry: mostly a good one, sometimes with something wrong."""
    opcode = rng.choice([lib.NYMPH_OP_COPY, *range(5)])
    length = length_of(rng)
    entry = {
        "size": 64,
        "opcode": opcode,
        "flags": sum(set(rng.sample(FLAGS, rng.randint(0, 2)))),
        "length": length,
        "src": AT + rng.randrange(HALF),
        "dst": AT + HALF + rng.randrange(HALF - length),
        "cookie": rng.randint(0, 12),
    }
    for side in ("src", "dst"):
        if rng.random() < 0.1:
            entry |= {f"{side}_buffer": rng.randint(1, 5), side: rng.randint(0, 6000)}
    if opcode in (lib.NYMPH_OP_FILL, lib.NYMPH_OP_NOP):
        entry |= {"src_buffer": 0, "src": rng.randrange(2**64) if opcode == lib.NYMPH_OP_FILL else 0}
    if opcode in (lib.NYMPH_OP_HASH, lib.NYMPH_OP_NOP):
        entry |= {"dst_buffer": 0, "dst": 0}
    if opcode == lib.NYMPH_OP_NOP:
        entry["length"] = 0
    if opcode == lib.NYMPH_OP_HASH or entry["flags"] & lib.NYMPH_DMA_FLAG_DIGEST_ONLY:
        entry["flags"] |= lib.NYMPH_DMA_FLAG_RECORD * (rng.random() < 0.9)
    if rng.random() < 0.03:
        entry |= spoiled(rng)
    return entry


class Side:
    """The driver, or the model; and its own mappings of the buffers it allocated."""

    def __init__(self, file: Any, is_driver: bool) -> None:
        self.file = file
        self.is_driver = is_driver
        self.maps: dict[int, Any] = {}
        os.set_blocking(file.fileno(), False)
        self.eventfd = -1
        self.by_cpu = True
        """The CPU, whose number the model's engine has, ran all entries: a transcript has those numbers."""

    def request(self, number: int, arg: Any = None) -> tuple[int, int]:
        """What it returned, and errno."""
        try:
            return self.file.ioctl(number, arg), 0
        except OSError as error:
            return -1, error.errno or 0


def snapshot(side: Side) -> tuple[Any, bytes]:
    """All of SNAPSHOT, but for the id of the engine and where the entries were to go."""
    arg = abi.new("nymph_snapshot", entries=address(ACTIVE), max_entries=len(ACTIVE))
    assert side.request(abi.NYMPH_IOC_SNAPSHOT, arg) == (0, 0)
    active = bytes(ffi.buffer(ACTIVE, 64 * arg.active_descriptors))
    ring = bytes(ffi.buffer(ffi.addressof(arg, "ring")))
    expected = blake3.blake3(ring + active + arg.dma_bytes.to_bytes(8, "little")).digest()
    assert bytes(arg.ring_hash) == expected
    assert bool(arg.engine) == bool(arg.transcript_id) == bool(arg.ring.ring_size)
    arg.entries = arg.engine = arg.transcript_id = 0
    if not side.by_cpu:
        arg.transcript = bytes(32)
    return bytes(ffi.buffer(arg)), active


def without_times(record: Any) -> tuple[Any, ...]:
    if record.started_ns:
        assert record.queued_ns <= record.started_ns <= record.completed_ns
        assert record.engine
    return (
        record.cookie, record.size, record.status, record.bytes_done, record.flags, bool(record.started_ns),
        bytes(record.src_digest), bytes(record.dst_digest), record.reserved,
    )  # fmt: skip


class Both(RuleBasedStateMachine):
    """Each rule is one request."""

    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.sides = [Side(abi.Device("/dev/pcie_nymph"), True), Side(Model(), False)]
        self.paused = True
        self.size = 0

    def teardown(self) -> None:
        for side in self.sides:
            side.maps.clear()
            side.file.close()
            if side.eventfd != -1:
                os.close(side.eventfd)

    def both(self, act: Callable[[Side], Any], *, dry: bool = True) -> Any:
        """Let the driver act, then the model, on the same memory; what they return and leave has to agree."""
        Both.operations += 1
        before = ctypes.string_at(AT, WRITABLE)
        results, memories = [], []
        for side in self.sides:
            results.append(act(side))
            if side.is_driver and not self.paused:
                snapshot(side)  # whatever it has come to
                self.run_dry(side) if dry else None
            memories.append(ctypes.string_at(AT, WRITABLE))
            if side.is_driver:
                ctypes.memmove(AT, before, WRITABLE)
        assert results[0] == results[1]
        assert memories[0] == memories[1]
        return results[0]

    @staticmethod
    def run_dry(side: Side) -> None:
        status = abi.new("nymph_fabric_status")
        while side.request(abi.NYMPH_IOC_GET_STATUS, status) == (0, 0) and status.active_descriptors:
            os.sched_yield()

    def active_entries(self) -> int:
        return len(snapshot(self.sides[1])[1]) // 64

    # Setting up and taking away

    @initialize(size=st.integers(1, 40), paused=st.booleans(), engine=st.sampled_from([b"auto", b"cpu"]))
    def first_setup(self, size: int, paused: bool, engine: bytes) -> None:
        self.setup(size, paused, 7, 0, engine)

    def see_engine(self) -> None:
        """Notice which engine the driver's ring has since SETUP."""
        arg = abi.new("nymph_snapshot")
        assert self.sides[0].request(abi.NYMPH_IOC_SNAPSHOT, arg) == (0, 0)
        for side in self.sides:
            side.by_cpu &= arg.engine in (0, CPU)

    @rule(
        size=st.one_of(st.integers(1, 40), st.sampled_from([0, 1, 4096, 4097, 2**32 - 1])),
        paused=st.booleans(),
        label=st.sampled_from([0, 0x1000000, 2**64 - 1]),
        flags=st.sampled_from([0] * 9 + [2]),
        engine=st.sampled_from([b"auto"] * 3 + [b"cpu"] * 2 + [b"", b"warp", b"x" * 32]),
    )
    def setup(self, size: int, paused: bool, label: int, flags: int, engine: bytes) -> None:
        def act(side: Side) -> Any:
            name = engine if side.is_driver or engine != b"cpu" else b"model"
            arg = abi.new("nymph_setup2", entries=size, ring_addr=label, flags=flags | paused, engine=name)
            return side.request(abi.NYMPH_IOC_SETUP2, arg), arg.records

        was, self.paused = self.paused, True  # nothing runs while this is decided
        (result, number), _ = self.both(act)
        self.paused = was
        self.see_engine()
        if (result, number) == (0, 0):
            self.paused, self.size = paused, size

    @rule(size=st.integers(1, 40), field=st.sampled_from([None] * 4 + ["head", "tail", "reserved"]))
    def setup_ring(self, size: int, field: str | None) -> None:
        fields = {"ring_size": size, "ring_addr": 0x1000000} | ({field: 1} if field else {})
        was, self.paused = self.paused, True
        arg = abi.new("nymph_dma_ring", **fields)
        done = self.both(lambda side: side.request(abi.NYMPH_IOC_SETUP_RING, arg))
        self.paused = was
        self.see_engine()
        if done == (0, 0):
            self.paused, self.size = False, size

    @rule(really=st.sampled_from([False] * 3 + [True]))
    def reset(self, really: bool) -> None:
        if not really:
            return
        done = self.both(lambda side: side.request(abi.NYMPH_IOC_RESET))
        if done == (0, 0):
            self.paused, self.size = True, 0
            for side in self.sides:
                side.by_cpu = True

    @rule()
    def enable(self) -> None:
        def act(side: Side) -> Any:
            done = side.request(abi.NYMPH_IOC_ENABLE)
            if side.is_driver and done == (0, 0):
                self.run_dry(side)
            return done

        if self.both(act) == (0, 0):
            self.paused = False

    # Entries

    @rule(rng=randoms, most=st.integers(0, BATCH), go_on=st.booleans())
    def enter(self, rng: random.Random, most: int, go_on: bool) -> None:
        # How many a running ring takes beyond its size is a matter of luck.
        count = most if self.paused else min(most, self.size)
        array = ffi.new("struct nymph_entry[]", [entry_of(rng) for _ in range(count)])
        first = 0
        while True:
            left = count - first

            def act(side: Side, first: int = first, left: int = left) -> Any:
                arg = abi.new("nymph_enter", entries=address(array + first), to_submit=left)
                return side.request(abi.NYMPH_IOC_ENTER, arg), arg.submitted, arg.error

            _, submitted, error = self.both(act)
            Both.operations += submitted
            # Behind one that was refused, unless that was for want of room.
            first += submitted + 1
            if not go_on or first >= count or -error in (0, errno.ENOSPC):
                return

    @rule(rng=randoms, rounds=st.integers(1, 5))
    def enter_and_collect(self, rng: random.Random, rounds: int) -> None:
        for _ in range(rounds):
            self.enter(rng, rng.randint(1, BATCH), True)
            self.collect(2 * BATCH, 0, 0)

    @rule(rng=randoms)
    def submit_dma(self, rng: random.Random) -> None:
        entry = entry_of(rng)
        fields = {
            "src_addr": entry["src"],
            "dst_addr": entry["dst"],
            "length": entry["length"] & 0xFFFFFFFF,
            "flags": entry["flags"],
            "cookie": entry["cookie"],
        }
        arg = abi.new("nymph_dma_desc", **fields)
        self.both(lambda side: side.request(abi.NYMPH_IOC_SUBMIT_DMA, arg))

    @rule(cookie=cookies, flags=st.sampled_from([0] * 9 + [1]))
    def cancel(self, cookie: int, flags: int) -> None:
        def act(side: Side) -> Any:
            arg = abi.new("nymph_cancel", cookie=cookie, flags=flags)
            return side.request(abi.NYMPH_IOC_CANCEL, arg), arg.canceled

        self.both(act)

    @rule(most=st.integers(0, 40), wanted=st.integers(0, 3), hole=st.sampled_from([0] * 9 + [AT + READABLE]))
    def collect(self, most: int, wanted: int, hole: int) -> None:
        def act(side: Side) -> Any:
            records = ffi.new("struct nymph_record[]", max(most, 1))
            # A deadline that has passed: hands out what there is.
            fields = {"max_records": most, "min_records": wanted, "deadline_ns": 1}
            arg = abi.new("nymph_enter", records=hole or address(records), **fields)
            done = side.request(abi.NYMPH_IOC_ENTER, arg)
            return done, arg.reaped, arg.error, [without_times(record) for record in records[0 : arg.reaped]]

        self.both(act)

    @rule(most=st.integers(1, 5), odd=st.integers(0, 127))
    def read(self, most: int, odd: int) -> None:
        def act(side: Side) -> Any:
            try:
                raw = side.file.read(128 * most + odd)
            except OSError as error:
                return error.errno
            return [without_times(record) for record in ffi.from_buffer("struct nymph_record[]", raw)]

        self.both(act)

    # Buffers

    @rule(length=st.sampled_from([1, 100, 5000, 70000]), flags=st.sampled_from([0] * 5 + [1]))
    def allocate(self, length: int, flags: int) -> None:
        def act(side: Side) -> Any:
            arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_ALLOC, length=length, flags=flags)
            done = side.request(abi.NYMPH_IOC_BUFFER, arg)
            if done == (0, 0):
                side.maps[arg.handle] = side.file.mmap(length, arg.mmap_offset)
            return done, arg.handle, arg.mmap_offset

        self.both(act)

    @rule(
        offset=st.one_of(st.integers(0, WRITABLE - 1), st.integers(WRITABLE - 100, END - 1)),
        length=st.one_of(st.integers(1, 20000), st.sampled_from([0, 2**30 + 1])),
        flags=st.sampled_from([0, 0, 1, 2]),
    )
    def register(self, offset: int, length: int, flags: int) -> None:
        def act(side: Side) -> Any:
            arg = abi.new(
                "nymph_buffer", op=lib.NYMPH_BUFFER_REGISTER, addr=AT + offset, length=length, flags=flags
            )
            return side.request(abi.NYMPH_IOC_BUFFER, arg), arg.handle, arg.mmap_offset

        self.both(act)

    @rule(handle=st.integers(0, 6), op=st.sampled_from([lib.NYMPH_BUFFER_FREE] * 5 + [0, 3, 5, 7]))
    def free(self, handle: int, op: int) -> None:
        def act(side: Side) -> Any:
            return side.request(abi.NYMPH_IOC_BUFFER, abi.new("nymph_buffer", op=op, handle=handle))

        if self.both(act) == (0, 0):
            for side in self.sides:
                side.maps.pop(handle, None)

    @rule(
        handle=st.integers(0, 6),
        flags=st.sampled_from([0] * 5 + [1, 2]),
        wrong=st.sampled_from([0] * 9 + [1]),
    )
    def pass_on(self, handle: int, flags: int, wrong: int) -> None:
        """Export a buffer and import that in its place. (Beside it, nobody would see that two overlap.)"""

        def act(side: Side) -> Any:
            arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_EXPORT, handle=handle, flags=wrong)
            done = side.request(abi.NYMPH_IOC_BUFFER, arg)
            if done != (0, 0):
                return done
            fd = arg.fd
            free = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_FREE, handle=handle)
            assert side.request(abi.NYMPH_IOC_BUFFER, free) == (0, 0)
            del side.maps[handle]
            arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_IMPORT, fd=fd, flags=flags)
            done = side.request(abi.NYMPH_IOC_BUFFER, arg)
            if done == (0, 0):
                side.maps[arg.handle] = abi.map_shared(fd, arg.length)
            os.close(fd)
            return done, arg.handle, arg.length, arg.mmap_offset

        self.both(act)

    # What there is to see

    @precondition(lambda self: self.size)
    @rule()
    def set_eventfd(self) -> None:
        def act(side: Side) -> Any:
            if side.eventfd != -1:
                os.close(side.eventfd)
            side.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return side.request(abi.NYMPH_IOC_EVENTFD, abi.new("nymph_eventfd", fd=side.eventfd))

        self.both(act)

    @rule()
    def see_the_rest(self) -> None:
        def act(side: Side) -> Any:
            ring, latency = abi.new("nymph_dma_ring"), abi.new("nymph_latency")
            status = abi.new("nymph_fabric_status")
            seen = [
                side.request(abi.NYMPH_IOC_GET_RING, ring),
                bytes(ffi.buffer(ring)),
                side.request(abi.NYMPH_IOC_GET_STATUS, status),
                bytes(ffi.buffer(status)),
                side.request(abi.NYMPH_IOC_LATENCY, latency),
                latency.count,
            ]
            if side.eventfd != -1:
                try:
                    seen.append(os.eventfd_read(side.eventfd))
                except BlockingIOError:
                    seen.append(0)
            return seen

        self.both(act)

    @invariant()
    def agree(self) -> None:
        driver, model = (snapshot(side) for side in self.sides)
        assert driver == model
        maps = [{handle: bytes(memory) for handle, memory in side.maps.items()} for side in self.sides]
        assert maps[0] == maps[1]


def compare(operations: int, number: int) -> int:
    """At least so many operations, other ones for each number. Returns how many it were."""
    chosen = settings(
        max_examples=20,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    rng = random.Random(number)
    Both.operations = 0
    while Both.operations < operations:
        run_state_machine_as_test(seed(rng.randrange(2**64))(Both), settings=chosen)
    return Both.operations


@pytest.mark.usefixtures("driver")
def test_the_driver_and_the_model_agree() -> None:
    """A process for each CPU; the seed makes a failure come back."""
    first, processes = random.SystemRandom().randrange(2**32), os.cpu_count() or 1
    print(f"numbers from {first} on")
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        numbers = range(first, first + processes)
        counts = list(pool.map(compare, [OPERATIONS // processes] * processes, numbers))
    print(f"{sum(counts)} operations compared")
    assert sum(counts) >= OPERATIONS // processes * processes


@pytest.mark.usefixtures("driver")
def test_difference_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both()
    both.first_setup(3, False, b"cpu")
    both.enter(random.Random(1), 1, False)
    both.agree()
    run = Model._run

    def drop_a_byte(model: Model, ring: Any) -> Any:
        outcome = run(model, ring)
        ring.carried.dma_bytes += 1
        return outcome

    monkeypatch.setattr(Model, "_run", drop_a_byte)
    both.enter(random.Random(1), 1, False)
    with pytest.raises(AssertionError):
        both.agree()
    both.teardown()
