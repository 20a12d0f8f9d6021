# SPDX-License-Identifier: MIT
"""Ring.copy(): what arrives, what the completion says of it, and what is refused."""

import array
import contextlib
import ctypes
import errno
import gc
import mmap
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from abi import HUGE_PAGES

import pynymph
from pynymph import digest

KIB, MIB = 2**10, 2**20


@pytest.fixture(scope="module")
def ring() -> Iterator[pynymph.Ring]:
    with pynymph.Ring() as ring:
        yield ring


def filled(buffer: Any, data: bytes) -> Any:
    with memoryview(buffer) as view, view.cast("B") as octets:
        octets[:] = data
    return buffer


def file_mapping(data: bytes, **options: int) -> mmap.mmap:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return mmap.mmap(file.fileno(), len(data), **options)


WRITABLE: dict[str, Callable[[bytes], Any]] = {
    "bytearray": bytearray,
    "memoryview": lambda data: filled(memoryview(bytearray(len(data) + 5))[3:-2], data),
    "mmap, private": lambda data: filled(
        mmap.mmap(-1, len(data), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), data
    ),
    "mmap, shared": lambda data: filled(mmap.mmap(-1, len(data)), data),
    "mmap, private file": lambda data: file_mapping(data, flags=mmap.MAP_PRIVATE),
    "mmap, shared file": file_mapping,
    "array": lambda data: array.array("H", data),
    "ctypes": lambda data: (ctypes.c_uint16 * (len(data) // 2)).from_buffer_copy(data),
    "NumPy": lambda data: np.frombuffer(data, dtype="u2").reshape(-1, 2).copy(),
}
READABLE: dict[str, Callable[[bytes], Any]] = WRITABLE | {
    "bytes": bytes,
    "memoryview, read-only": lambda data: memoryview(data),
    "mmap, read-only file": lambda data: file_mapping(data, prot=mmap.PROT_READ),
    "NumPy, read-only": lambda data: np.frombuffer(data, dtype="u1"),
}


@pytest.mark.parametrize("kind", READABLE)
def test_copy_takes_every_kind_of_source(ring: pynymph.Ring, kind: str) -> None:
    data = os.urandom(100 * KIB)
    dst = bytearray(len(data))
    done = ring.copy(src=READABLE[kind](data), dst=dst, verify=True)
    assert dst == data
    assert done.src_digest == done.dst_digest == digest.payload(data)


@pytest.mark.parametrize("kind", WRITABLE)
def test_copy_takes_every_kind_of_destination(ring: pynymph.Ring, kind: str) -> None:
    data = os.urandom(100 * KIB)
    dst = WRITABLE[kind](bytes(len(data)))
    done = ring.copy(src=data, dst=dst, verify=True)
    assert bytes(dst) == data if not isinstance(dst, mmap.mmap) else dst[:] == data
    assert done.src_digest == done.dst_digest == digest.payload(dst)


def in_small_pages(content: bytes) -> mmap.mmap:
    """Huge pages are pinned as a whole: beside a ring, an ordinary user may not lock four of them."""
    memory = mmap.mmap(-1, len(content), flags=mmap.MAP_PRIVATE)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[:] = content
    return memory


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4095, 4096, 4097, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB + 1])
def test_copy_writes_nothing_beside_its_destination(ring: pynymph.Ring, size: int, zero_copy: bool) -> None:
    data, around = in_small_pages(os.urandom(size)), in_small_pages(b"\xaa" * (size + 14))
    with memoryview(around)[7:-7] as dst:
        done = ring.copy(src=data, dst=dst, zero_copy=zero_copy)
    assert around[:] == b"\xaa" * 7 + data[:] + b"\xaa" * 7
    assert done.bytes_done == size


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize(("verify", "only"), [(False, False), (True, False), (False, True)])
def test_completion_has_the_digests_asked_for(
    ring: pynymph.Ring, verify: bool, only: bool, zero_copy: bool
) -> None:
    data = os.urandom(200_003)
    done = ring.copy(src=data, dst=bytearray(len(data)), verify=verify, digest=only, zero_copy=zero_copy)
    assert done.src_digest == (digest.payload(data) if verify else None)
    assert done.dst_digest == (digest.payload(data) if verify or only else None)


def test_completion_describes_its_copy(ring: pynymph.Ring) -> None:
    src, dst = bytes(5000), bytearray(5000)
    first, second = ring.copy(src=src, dst=dst), ring.copy(src=src, dst=dst)
    assert first.cookie != second.cookie
    assert first.status == second.status == 0
    assert first.engine in pynymph.query().engines.values()
    assert 0 < first.queued_ns <= first.started_ns <= first.completed_ns <= second.queued_ns


def test_buffers_are_released_after_a_copy(ring: pynymph.Ring) -> None:
    src, dst = bytearray(b"x" * 5000), bytearray(5000)
    ring.copy(src=src, dst=dst)
    src.append(0)
    dst.append(0)
    mapping = mmap.mmap(-1, 5000)
    ring.copy(src=bytes(5000), dst=mapping)
    mapping.close()


def test_overlap_is_refused_and_releases_the_buffers(ring: pynymph.Ring) -> None:
    buffer = bytearray(range(200))
    before = ring.status()
    with (
        memoryview(buffer)[:100] as src,
        memoryview(buffer)[50:150] as dst,
        pytest.raises(pynymph.ArgumentError, match="overlap") as caught,
    ):
        ring.copy(src=src, dst=dst)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.completion is None
    assert ring.status() == before
    assert buffer == bytes(range(200))
    # Even while the exception is kept.
    buffer.append(0)


def test_inaccessible_memory_is_refused(ring: pynymph.Ring) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, 3 * mmap.PAGESIZE) as memory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        page = ctypes.c_void_p(start + mmap.PAGESIZE)
        assert libc.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ) == 0
        ring.copy(src=memory, dst=bytearray(3 * mmap.PAGESIZE))
        with pytest.raises(pynymph.NymphError, match="dst is not mapped writable") as caught:
            ring.copy(src=bytes(3 * mmap.PAGESIZE), dst=memory)
        assert caught.value.errno == errno.EFAULT
        assert libc.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        with pytest.raises(pynymph.NymphError, match="src is not mapped readable") as caught:
            ring.copy(src=memory, dst=bytearray(3 * mmap.PAGESIZE))
        assert caught.value.errno == errno.EFAULT
        gc.collect()


def test_memory_taken_away_reports_the_bytes_that_arrived(ring: pynymph.Ring) -> None:
    data = os.urandom(4 * MIB)
    dst = bytearray(len(data))
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with mmap.mmap(file.fileno(), len(data)) as src:
            # Still mapped, so it is accepted; but behind the end of the file there is nothing to read.
            file.truncate(1 * MIB)
            with pytest.raises(pynymph.NymphError, match="went away after 1048576 bytes") as caught:
                ring.copy(src=src, dst=dst)
    assert caught.value.errno == errno.EFAULT
    assert caught.value.completion is not None
    assert caught.value.completion.bytes_done == MIB
    assert dst == data[:MIB] + bytes(3 * MIB)


@pytest.mark.usefixtures("driver")
def test_verify_detects_a_concurrent_writer(ring: pynymph.Ring) -> None:
    src, dst = os.urandom(16 * MIB), bytearray(16 * MIB)
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            for at in range(0, len(dst), mmap.PAGESIZE):
                dst[at] ^= 0xFF

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        with pytest.raises(pynymph.VerifyError) as caught:
            # Now and then the scribbling thread may not run during a whole copy.
            for _ in range(20):
                ring.copy(src=src, dst=dst, verify=True)
    finally:
        stop.set()
        thread.join()
    assert caught.value.errno == errno.EBADMSG
    failed = caught.value.completion
    assert failed is not None
    assert failed.bytes_done == len(src)
    assert failed.src_digest == digest.payload(src)
    assert failed.dst_digest not in (None, failed.src_digest)
    assert failed.src_digest.hex() in str(caught.value)


@pytest.mark.skipif(os.getuid() == 0, reason="RLIMIT_MEMLOCK is no limit for root")
def test_zero_copy_beyond_the_limit_names_it(ring: pynymph.Ring) -> None:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    assert 0 < limit <= 8 * MIB
    src, dst = (mmap.mmap(-1, limit, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
    if HUGE_PAGES.exists():
        for memory in (src, dst):  # a pin is charged for all of each huge page, and their number is chance
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    for _ in range(3):
        with pytest.raises(pynymph.NymphError, match=f"RLIMIT_MEMLOCK .{limit} bytes") as caught:
            ring.copy(src=src, dst=dst, zero_copy=True)
        assert caught.value.errno == errno.ENOMEM
    # What was charged for half of it was given back; and without pinning there is no such limit.
    quarter = limit // 4
    for _ in range(5):
        ring.copy(src=memoryview(src)[:quarter], dst=memoryview(dst)[:quarter], zero_copy=True)
    ring.copy(src=src, dst=dst)


def test_positional_arguments_are_refused(ring: pynymph.Ring) -> None:
    with pytest.raises(TypeError):
        ring.copy(b"12", bytearray(2))  # type: ignore[call-arg]


def test_wrong_arguments_do_not_reach_the_driver(ring: pynymph.Ring) -> None:
    before = ring.status()
    for src, dst in ((b"1", bytearray(2)), (b"", b""), (b"1", b"2"), (b"12", memoryview(bytearray(4))[::2])):
        with pytest.raises(pynymph.ArgumentError):
            ring.copy(src=src, dst=dst)
    with pytest.raises(TypeError):
        ring.copy(src="text", dst=bytearray(4))  # type: ignore[arg-type]
    assert ring.status() == before
