# SPDX-License-Identifier: MIT
"""Every number that a public function takes, in every type, against exact integer arithmetic."""

import asyncio
import dataclasses
import errno
import inspect
import itertools
import math
import os
import re
import struct
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import pynymph
from pynymph import abi, batch, buffer, digest, evidence, fabric, integers
from pynymph.abi import address, ffi, lib

try:
    import ml_dtypes

    EXTRA = [
        getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e5m2", "int4", "uint4", "float8_e4m3fn")
    ]
except ImportError:  # the guest has none
    EXTRA = []

SIZE = 200_000  # more than 16 bits can say
PART = 10_000
MEMORY = 1 << 20  # more is only asked for where it has to be refused
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
TYPES = [*INTEGERS, np.float16, np.float32, np.float64, np.longdouble, *EXTRA]


class Index:
    """An operator.index type, and nothing else."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


class Derived(int):
    """Whose arithmetic is not that of an int."""

    def __add__(self, other: int) -> int:
        return 4464

    __radd__ = __add__


def in_type(kind: Any, number: int) -> Any:
    """The scalar of NumPy's that is just that number, or None if it has none."""
    try:
        with np.errstate(all="ignore"):
            scalar = kind(number)
            return scalar if math.isfinite(scalar) and int(scalar) == number else None
    except (OverflowError, TypeError, ValueError):  # TypeError: ml_dtypes, of more than 64 bits
        return None


def forms(number: int) -> list[Any]:
    """All ways to say a number."""
    scalars = [scalar for kind in TYPES if (scalar := in_type(kind, number)) is not None]
    exact = [float(number)] if abs(number) < 2**53 else []
    arrays = [np.array(scalar) for scalar in scalars]
    exact += [Derived(number), Index(number), Decimal(number), Fraction(number), np.array(number, object)]
    return [number, *exact, *scalars, *arrays]


NO_NUMBERS = [
    True, np.True_, np.array(False), "5", b"5", np.str_("5"), np.bytes_(b"5"), np.void(b"5"), 1.5, 5j,
    math.nan, np.float16(0.5), np.float32("nan"), np.longdouble(2) ** -60 + 1, np.complex64(5),
    Decimal("NaN"), Decimal("sNaN"), Decimal("0.5"), Fraction(1, 2), np.datetime64(5, "ns"),
    np.timedelta64(5, "ns"), [5], (5,), np.array([5]), object(),
]  # fmt: skip
TOO_LARGE = [10**5000, -(10**5000), Decimal("1e999999999"), Decimal("-1e999999999"), math.inf, -math.inf]


@pytest.fixture(scope="module")
def ring() -> Iterator[pynymph.Ring]:
    with pynymph.Ring(64) as ring:
        yield ring


class Call(NamedTuple):
    """A parameter: what it takes, where a test goes beyond that, and what was made of a number."""

    low: int
    high: int
    most: int
    make: Callable[[pynymph.Ring, Any], int | None]


def opened(ring: pynymph.Ring) -> pynymph.Snapshot:
    with ring:
        return ring.snapshot()


def opened_async(entries: Any) -> int:
    async def run() -> int:
        async with pynymph.AsyncRing(entries) as ring:
            return ring.ring.entries

    return asyncio.run(run())


def or_refused_by_the_driver(call: Callable[[], Any]) -> None:
    """What the driver refuses was passed on to it."""
    try:
        result = call()
        if isinstance(result, pynymph.RingBuffer):
            result.free()
    except pynymph.NymphError as refused:
        if "give a whole number" in str(refused):
            raise


def allocated(ring: pynymph.Ring, nbytes: Any) -> int:
    with ring.allocate(nbytes) as memory:
        assert type(memory.nbytes) is int
        return len(memory.view)


def ring_of_fabric(size: Any) -> int:
    with fabric.ZLTA2Fabric() as opened:
        opened.initialize(size)
        return opened.get_status().ring_size


def described(field: str, number: Any) -> int | None:
    """A descriptor of the fabric's, and what of it can be seen in the ring."""
    src, dst = ffi.new("char[]", 64), ffi.new("char[]", 64)
    good = {"src_addr": address(src), "dst_addr": address(dst), "length": 64, field: number}
    ring = pynymph.Ring(4, paused=True)
    with ring, fabric.ZLTA2Fabric() as opened:
        opened._ring = ring
        try:
            opened.submit_dma(fabric.DMADescriptor(**good))
        except pynymph.NymphError as refused:
            if "give a whole number" in str(refused):
                raise
            return None  # no such memory, or flags
        (entry,) = ring.snapshot().entries
        seen = {"src_addr": entry.src, "dst_addr": entry.dst, "length": entry.length, "cookie": entry.cookie}
        return seen.get(field)


def hashed(ring: pynymph.Ring, dma_bytes: Any) -> None:
    """As with bytes packed here: the last eight of what is hashed."""
    found = dataclasses.replace(ring.snapshot(), entry_bytes=b"", dma_bytes=dma_bytes)
    said = digest.ring_hash(found)
    assert said == blake3(found.ring_bytes + struct.pack("<Q", int(dma_bytes))).digest()


def in_log(ring: pynymph.Ring, n: Any, field: str) -> int | None:
    """What a Log of another ring has of an offset, or of a time."""
    log = evidence.Log()
    with pynymph.Ring(1, evidence=log) as other:
        done = other.copy(src=b"x", dst=bytearray(1))
    if field == "at":
        return log.part(done=done, at=n).at
    log.add(done, source="", target="", time_ns=n)
    return log._transfers[-1].time_ns


INT32 = (-(2**31), 2**31 - 1)
CALLS = {
    "Ring.entries": Call(1, 4096, 4096, lambda ring, n: opened(pynymph.Ring(n)).ring_size),
    "Ring.label": Call(0, 2**64 - 1, 2**64, lambda ring, n: opened(pynymph.Ring(1, label=n)).label),
    "AsyncRing.entries": Call(1, 4096, 4096, lambda ring, n: opened_async(n)),
    "Ring.allocate.nbytes": Call(1, 2**30, MEMORY, allocated),
    "Ring.allocate_on_card.nbytes": Call(
        1, 2**30, MEMORY, lambda ring, n: or_refused_by_the_driver(lambda: ring.allocate_on_card(n))
    ),
    "Ring.import_dmabuf.fd": Call(
        *INT32, 2**32, lambda ring, n: or_refused_by_the_driver(lambda: ring.import_dmabuf(n))
    ),
    "Ring.notify.eventfd": Call(
        0, INT32[1], 2**32, lambda ring, n: or_refused_by_the_driver(lambda: ring.notify(n))
    ),
    "ZLTA2Fabric.initialize.ring_size": Call(1, 4096, 4096, lambda ring, n: ring_of_fabric(n)),
    "DMADescriptor.src_addr": Call(0, 2**64 - 1, 2**64, lambda ring, n: described("src_addr", n)),
    "DMADescriptor.dst_addr": Call(0, 2**64 - 1, 2**64, lambda ring, n: described("dst_addr", n)),
    "DMADescriptor.length": Call(0, 2**32 - 1, 64, lambda ring, n: described("length", n)),
    "DMADescriptor.flags": Call(0, 2**32 - 1, 2**33, lambda ring, n: described("flags", n)),
    "DMADescriptor.cookie": Call(0, 2**64 - 1, 2**64, lambda ring, n: described("cookie", n)),
    "verify_engine.nbytes": Call(
        1,
        2**30,
        MEMORY,
        lambda ring, n: fabric.verify_engine(engine_of(ring), device=ring._core.device, nbytes=n).dma_bytes,
    ),
    "ZLTA2Fabric.get_fabric_verify_status.nbytes": Call(1, 2**30, 4096, lambda ring, n: fabric_bytes(n)),
    "Snapshot.dma_bytes": Call(0, 2**64 - 1, 2**64, hashed),
    "Log.part.at": Call(0, 2**64 - 1, 2**64, lambda ring, n: in_log(ring, n, "at")),
    "Log.add.time_ns": Call(0, 2**64 - 1, 2**64, lambda ring, n: in_log(ring, n, "time_ns")),
}
SECONDS = {
    *(f"Ring.{each}.timeout" for each in ("copy", "fill", "digest", "compare", "run_many", "completions")),
    "Transfer.result.timeout",
    "Batch.result.timeout",
    "verify_engine.timeout",
    "ZLTA2Fabric.get_fabric_verify_status.timeout",
}
ARRAYS = {"copies.src_at", "copies.dst_at", "copies.length"}


def engine_of(ring: pynymph.Ring) -> str:
    engine = ring.snapshot().engine
    assert engine is not None
    return engine


def fabric_bytes(nbytes: Any) -> int | None:
    with fabric.ZLTA2Fabric() as opened:
        opened.initialize()
        found = opened.get_fabric_verify_status(nbytes)
        assert found.verified
        return found.engines[0].dma_bytes


# What these have is what comes out, or what the ring itself gives.
NOT_FROM_OUTSIDE = re.compile(
    "Completion|Entry|Latency|Query|Status|Snapshot|Pci|EngineVerification|Fabric(Status|Verification)|Memory|"
    r"Checked|RingBuffer\.(offset|nbytes)|Batch\.(first|end|cut|take_all)|whole|seconds|checked_length|error|.*Error"
)


def functions_of(module: Any) -> Iterator[tuple[str, Any]]:
    """Those of a module that are public and pynymph's, with those of its classes; a class is its __init__."""
    for name, thing in vars(module).items():
        if name.startswith("_") or not getattr(thing, "__module__", "").startswith("pynymph"):
            continue
        yield name, vars(thing).get("__init__") if inspect.isclass(thing) else thing
        if inspect.isclass(thing):
            methods = {key: each for key, each in vars(thing).items() if not key.startswith("_")}
            yield from ((f"{name}.{key}", each) for key, each in methods.items())


def test_every_number_parameter_is_tested_here() -> None:
    found = set[str]()
    for module in (pynymph, batch, fabric):
        for name, function in filter(lambda each: inspect.isfunction(each[1]), functions_of(module)):
            for parameter in inspect.signature(function).parameters.values():
                words = str(parameter.annotation).replace("|", " ").split()
                if {"int", "float", "ArrayLike"} & set(words):
                    found.add(f"{name}.{parameter.name}")
    found = {each for each in found if not NOT_FROM_OUTSIDE.match(each)}
    assert found == {*CALLS, *SECONDS, *ARRAYS} - {"Snapshot.dma_bytes"}


# The arithmetic is the same on the model, and there is more time for it.
OFTEN = 1 if Path("/dev/pcie_nymph").exists() and not os.environ.get("NYMPH_LONG") else 4
usual = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
quick, more = settings(usual, max_examples=6 * OFTEN), settings(usual, max_examples=25 * OFTEN)


def edges(low: int, high: int) -> st.SearchStrategy[int]:
    """Numbers on all sides of where something could wrap."""
    powers = [
        sign * 2**bits + more
        for bits in (0, 7, 8, 15, 16, 31, 32, 63, 64)
        for sign in (1, -1)
        for more in (-1, 0, 1)
    ]
    return st.one_of(
        st.integers(low, high),
        st.sampled_from([*powers, low - 1, low, high, high + 1]),
        st.integers(-(2**70), 2**70),
    )


@pytest.mark.parametrize("name", CALLS)
def test_number_of_any_type_is_exact(ring: pynymph.Ring, name: str) -> None:
    call = CALLS[name]

    @quick
    @given(number=edges(call.low, min(call.high, call.most)), data=st.data())
    def check(number: int, data: st.DataObject) -> None:
        assume(not call.most < number <= call.high)
        form = data.draw(st.sampled_from(forms(number)))
        if call.low <= number <= call.high:
            assert call.make(ring, form) in (number, None)
        else:
            with pytest.raises(pynymph.ArgumentError, match="give a whole number"):
                call.make(ring, form)

    check()
    for wrong in [*NO_NUMBERS, *TOO_LARGE]:
        with pytest.raises(pynymph.ArgumentError, match="give a whole"):
            call.make(ring, wrong)


@pytest.fixture(scope="module")
def sides(ring: pynymph.Ring) -> tuple[pynymph.RingBuffer, pynymph.RingBuffer]:
    src, dst = ring.allocate(SIZE), ring.allocate(SIZE)
    src.view[:] = os.urandom(SIZE)
    return src, dst


def arrays(numbers: list[int]) -> list[Any]:
    """All ways to say several."""
    made = []
    for kind in TYPES:
        scalars = [in_type(kind, number) for number in numbers]
        if all(scalar is not None for scalar in scalars):
            made += [np.array(scalars, kind), np.array(scalars, kind).astype(np.dtype(kind).newbyteorder("S"))
                     if np.dtype(kind).kind in "iuf" else scalars]  # fmt: skip
    return [
        numbers,
        tuple(numbers),
        np.array(numbers, object),
        [forms(number)[-2] for number in numbers],
        *made,
    ]


@more
@given(data=st.data())
def test_copies_go_where_exact_integers_say(
    ring: pynymph.Ring, sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, PART))
    src, dst = (side[start : SIZE - start] for side in sides)
    n = data.draw(st.integers(1, 3))
    inside = st.one_of(
        st.integers(0, len(src)), st.sampled_from([127, 128, 255, 256, 32767, 32768, 60000, 65535, 65536])
    )
    offsets = data.draw(st.lists(st.one_of(inside, edges(0, len(src))), min_size=2 * n, max_size=2 * n))
    lengths = data.draw(st.lists(st.one_of(st.integers(1, 300), edges(1, len(src))), min_size=n, max_size=n))
    src_at, dst_at = offsets[:n], offsets[n:]
    drawn = {"src_at": src_at, "dst_at": dst_at, "length": lengths}
    given_as = {name: data.draw(st.sampled_from(arrays(numbers))) for name, numbers in drawn.items()}
    ranges = sorted(zip(dst_at, lengths, strict=True))
    assume(all(at + length <= after for (at, length), (after, _) in itertools.pairwise(ranges)))
    fine = all(length >= 1 and at >= 0 and at + length <= len(src)
               for ats in (src_at, dst_at) for at, length in zip(ats, lengths, strict=True))  # fmt: skip
    if not fine:
        with pytest.raises(pynymph.ArgumentError):
            batch.copies(src, dst, **given_as)
        return
    sides[1].view[:] = bytes(SIZE)
    expected = bytearray(SIZE)
    for at, to, length in zip(src_at, dst_at, lengths, strict=True):
        sent = sides[0].view[start + at : start + at + length]
        expected[start + to : start + to + length] = sent
    entries = batch.copies(src, dst, **given_as)
    assert entries["src"].tolist() == [start + at for at in src_at]
    assert not ring.run_many(entries, 60)["status"].any()
    assert sides[1].view == expected


def test_narrow_integers_do_not_overflow(ring: pynymph.Ring) -> None:
    with ring.allocate(100_000) as memory:
        part = memory[10_000:]
        entries = batch.copies(
            part, part, src_at=np.array([60_000], np.uint16), dst_at=0, length=np.uint8(100)
        )
        assert entries["src"].tolist() == [70_000]
        short = np.array([30_000], np.int16)
        entries = batch.copies(part, part, src_at=short, dst_at=0, length=1, verify=2)  # type: ignore[arg-type]
        assert (entries["src"][0], entries["flags"][0]) == (40_000, lib.NYMPH_DMA_FLAG_VERIFY_HASH)


@pytest.mark.parametrize("name", ["src_at", "dst_at", "length"])
def test_arrays_of_other_types_are_refused(
    sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer], name: str
) -> None:
    wrong: list[Any] = [[each] for each in (*NO_NUMBERS[3:-4], object())]
    wrong += [np.array([True]), np.zeros(1, "m8[s]"), np.zeros(1, "M8[ns]"), np.array([[1]]), np.array(["1"]),
              np.zeros(1, "V4"), np.zeros(1, "i4,i4"), np.array([2**63], np.uint64), [2**62 + 1, 0.0],
              [[1], [1, 2]], None, "5", {5}]  # fmt: skip
    for each in wrong:
        with pytest.raises(pynymph.ArgumentError):
            batch.copies(*sides, **{"src_at": 0, "dst_at": 0, "length": 1, name: each})


def test_copies_refuses_buffers_of_two_rings(sides: tuple[pynymph.RingBuffer, pynymph.RingBuffer]) -> None:
    """Handles count from 1 up in each: it would have been some other memory."""
    with pynymph.Ring(4) as other:
        stranger = other.allocate(100)
        with pytest.raises(pynymph.ArgumentError, match="of two rings"):
            batch.copies(sides[0], stranger, src_at=0, dst_at=0, length=1)
    with pytest.raises(pynymph.ArgumentTypeError, match="give a RingBuffer"):
        batch.copies(sides[0], bytearray(100), src_at=0, dst_at=0, length=1)  # type: ignore[arg-type]


@quick
@given(data=st.data())
def test_parts_agree_with_slices(ring: pynymph.Ring, data: st.DataObject) -> None:
    with ring.allocate(70_000) as memory:
        bound = st.none() | edges(-70_000, 70_000)
        first, end = data.draw(bound), data.draw(bound)
        said = [None if each is None else data.draw(st.sampled_from(forms(each))) for each in (first, end)]
        drawn = list(zip(said, (first, end), strict=True))
        exact = range(70_000)[slice(first, end)]
        if any(
            type(each) is not int and abs(number) >= 2**64 for each, number in drawn if number is not None
        ):
            return  # only of ints are those taken
        part = memory[said[0] : said[1]]
        assert (part.nbytes, part.offset) == (len(exact), exact.start)
        for wrong in ("1", 1.5, math.nan, True, [1]):
            with pytest.raises(pynymph.ArgumentError, match="give a whole"):
                memory[wrong:]  # type: ignore[misc]


def waits(
    ring: pynymph.Ring, paused: pynymph.Ring, transfer: pynymph.Transfer
) -> dict[str, Callable[[Any], Any]]:
    """All that waits: on a ring that does nothing, so that only a timeout ends it."""
    memory = paused.allocate(64)
    entries = batch.copies(memory, memory, src_at=0, dst_at=32, length=8)
    many = paused.submit_many(entries)
    return {
        "Ring.copy.timeout": lambda timeout: paused.copy(src=b"1", dst=bytearray(1), timeout=timeout),
        "Ring.fill.timeout": lambda timeout: paused.fill(dst=bytearray(1), timeout=timeout),
        "Ring.digest.timeout": lambda timeout: paused.digest(src=b"1", timeout=timeout),
        "Ring.compare.timeout": lambda timeout: paused.compare(a=b"1", b=b"2", timeout=timeout),
        "Ring.run_many.timeout": lambda timeout: paused.run_many(entries, timeout),
        "Ring.completions.timeout": lambda timeout: list(paused.completions(timeout)),
        "Transfer.result.timeout": transfer.result,
        "Batch.result.timeout": many.result,
    }


def test_timeout_takes_any_number(ring: pynymph.Ring) -> None:
    with pynymph.Ring(2, paused=True) as paused:
        calls = waits(ring, paused, paused.submit(pynymph.Nop()))
        engine = engine_of(ring)
        assert {*calls, "verify_engine.timeout", "ZLTA2Fabric.get_fabric_verify_status.timeout"} == SECONDS
        soon = [0, -1, -math.inf, 0.001, np.float16(0.001), np.float32(-3e38), np.int8(-128), np.uint8(0),
                Fraction(1, 900), Decimal("0.001"), np.array(0.001), -(10**300), Index(0),
                np.array(-1, object)]  # fmt: skip
        for name, call in calls.items():
            for timeout in soon:
                if name == "Ring.completions.timeout":
                    assert call(timeout) == []
                    continue
                with pytest.raises(pynymph.RingTimeoutError):
                    call(timeout)
            for wrong in (True, "5", b"5", 5j, math.nan, np.float16("nan"), Decimal("sNaN"), [5],
                          np.timedelta64(5, "ns"), np.array([5.0]), 10**400, object()):  # fmt: skip
                with pytest.raises(pynymph.ArgumentError, match="give seconds, or None"):
                    call(wrong)
        for timeout in (
            math.inf,
            np.float64("inf"),
            10**300,
            np.uint64(2**64 - 1),
            np.float16(60000),
            2**1000,
        ):
            ring.copy(src=b"1", dst=bytearray(1), timeout=timeout)
            assert ring.submit(pynymph.Nop()).result(timeout).status == 0
            assert fabric.verify_engine(engine, device=ring._core.device, nbytes=10, timeout=timeout).verified
        for wrong in ("5", math.nan, True):
            with pytest.raises(pynymph.ArgumentError, match="give seconds"):
                fabric.verify_engine(engine, device=ring._core.device, timeout=wrong)


def test_float16_timeout_is_not_rounded_to_infinity(ring: pynymph.Ring) -> None:
    """A clock of more than 65504 s is infinity there: who waited a millisecond would have waited for ever."""
    now = time.monotonic
    with pynymph.Ring(2, paused=True) as paused, pytest.MonkeyPatch.context() as patch:
        transfer = paused.submit(pynymph.Nop())
        patch.setattr(time, "monotonic", lambda: now() + 100_000)
        with pytest.raises(pynymph.RingTimeoutError):
            transfer.result(np.float16(0.001))  # type: ignore[arg-type]


def test_pattern_takes_any_bytes(ring: pynymph.Ring) -> None:
    for pattern, octets in [
        (b"\1\2", b"\1\2"), (bytearray(b"\1"), b"\1"), (np.uint16(0x0201), b"\1\2"),
        (np.int64(-1), b"\xff" * 8), (np.array([1, 2], np.uint16), b"\1\0\2\0"),
        (np.float32(1), b"\0\0\x80\x3f"),
        (memoryview(b"1234")[::2], b"13"),
    ]:  # fmt: skip
        dst = bytearray(16)
        ring.fill(dst=dst, pattern=pattern)  # type: ignore[arg-type]
        assert dst == octets * (16 // len(octets))
    for wrong in (
        5,
        0,
        1.5,
        None,
        "12",
        [1, 2],
        True,
        object(),
        b"",
        b"123",
        np.zeros(2, np.uint64),
        range(4),
    ):
        dst = bytearray(16)
        with pytest.raises(pynymph.ArgumentError, match="pattern"):
            ring.fill(dst=dst, pattern=wrong)  # type: ignore[arg-type]
        assert not any(dst)


@pytest.mark.parametrize(
    "engine", [None, 5, b"cpu", "cpu\0", "\0", "auto\0x", "x" * 32, "\ud800", "ü" * 16, "a\nb"]
)
def test_wrong_engine_names_are_refused(engine: Any) -> None:
    """A NUL cut it off: "cpu\\0x" was "cpu"."""
    with pytest.raises(pynymph.ArgumentError, match="name"):
        pynymph.Ring(engine=engine)


def test_file_mmap_takes_exact_integers_only(ring: pynymph.Ring) -> None:
    arg = abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_ALLOC, length=8192)
    file = ring._core.file
    assert file is not None
    file.ioctl(abi.NYMPH_IOC_BUFFER, arg)
    for length, offset in [(np.uint16(8192), np.uint64(arg.mmap_offset)), (8192.0, Index(arg.mmap_offset))]:
        with memoryview(file.mmap(length, offset)) as view:  # type: ignore[arg-type]
            assert view.nbytes == 8192
    for wrong in [*NO_NUMBERS, -1, 2**64, 10**5000]:
        with pytest.raises(pynymph.ArgumentError, match="give a whole"):
            file.mmap(wrong, arg.mmap_offset)
        with pytest.raises(pynymph.ArgumentError, match="give a whole"):
            file.mmap(8192, wrong)
        with pytest.raises(pynymph.ArgumentError, match="give a whole"):
            file.read(wrong)
    with pytest.raises(OSError) as refused:
        file.read(np.int8(1))  # type: ignore[arg-type]
    assert refused.value.errno == errno.EINVAL
    file.ioctl(abi.NYMPH_IOC_BUFFER, abi.new("nymph_buffer", op=lib.NYMPH_BUFFER_FREE, handle=arg.handle))


@more
@given(numbers=st.lists(edges(-(2**63), 2**63 - 1), min_size=1, max_size=4), data=st.data())
def test_whole_array_is_exact(numbers: list[int], data: st.DataObject) -> None:
    said = data.draw(st.sampled_from(arrays(numbers)))
    if all(-(2**63) <= number < 2**63 for number in numbers):
        found = integers.whole_array(said, "them")
        assert (found.tolist(), found.dtype) == (numbers, np.int64)
    else:
        with pytest.raises(pynymph.ArgumentError, match="give a whole"):
            integers.whole_array(said, "them")
    form = data.draw(st.sampled_from(forms(numbers[0])))
    if type(form) is int or abs(numbers[0]) <= 2**64 - 1:
        assert integers.whole(form, "it") == numbers[0]
        assert type(integers.whole(form, "it")) is int
    assert buffer.checked_length(in_type(np.float16, 5)) == 5
