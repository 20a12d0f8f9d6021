# SPDX-License-Identifier: MIT
"""Every allocation and every user copy of every request fails once.

The first one fails, then the second, and so on, until a request gets through without meeting a failure.
"""

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import pytest
from abi import (
    BUFFER_CARD,
    CHUNK,
    COMPLETE_SYNC,
    DIGEST_ONLY,
    LONG,
    MIB,
    PAGE,
    RECORD,
    SYSFS,
    VERIFY_HASH,
    ZERO_COPY,
    Context,
    Entry,
    Memory,
    compare,
    copy,
    fill,
    hash_only,
    in_buffers,
    needs_root,
    nop,
    small_pages,
)

FAIL_NTH = Path("/proc/thread-self/fail-nth")
DEBUG = Path("/sys/kernel/debug")
POINTS = ("failslab", "fail_page_alloc", "fail_usercopy")

pytestmark = [
    needs_root,
    pytest.mark.usefixtures("attest_key", "sign_key"),
    pytest.mark.skipif(not FAIL_NTH.exists(), reason="needs a kernel with FAULT_INJECTION: a debug one"),
]

# Some chunks: each has its allocations, and so the runs of a request are as many.
LENGTH = 2 * CHUNK + PAGE

SOURCE = Memory(2 * LENGTH).randomize()
TWIN = Memory(2 * LENGTH)
TWIN.write(SOURCE.read())
DESTINATION = Memory(2 * LENGTH, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)


@pytest.fixture(autouse=True)
def injection() -> Iterator[None]:
    """Let also those allocations fail that may wait, and let failures be silent."""
    kept = {}
    for point in POINTS:
        for name, value in (("ignore-gfp-wait", "N"), ("min-order", "0"), ("verbose", "0")):
            path = DEBUG / point / name
            if path.exists():
                kept[path] = path.read_text()
                path.write_text(value)
    yield
    for path, text in kept.items():
        path.write_text(text)


def _counters() -> dict[str, int]:
    names = (
        "contexts",
        "rings",
        "pinned_pages",
        "allocated_pages",
        "card_bytes",
        "imported_bytes",
        "exports",
        "mappings",
    )
    return {name: int((SYSFS / "counters" / name).read_text()) for name in names}


def _assert_given_back(before: dict[str, int]) -> None:
    """Fail unless all counters return to `before`: a worker may still end its ring."""
    end = time.monotonic() + LONG
    while (now := _counters()) != before and time.monotonic() < end:
        time.sleep(0.01)
    assert now == before


def _was_met(switch: int) -> bool:
    """Whether the failure was met so far; switches it off."""
    met = False
    with contextlib.suppress(OSError):  # then it is met only now, by the asking
        met = os.pread(switch, 16, 0).strip() == b"0"
        os.pwrite(switch, b"0", 0)
    return met


def _transfer(flags: int) -> Callable[[Context], None]:
    def submit(context: Context) -> None:
        context.submit(SOURCE.address, DESTINATION.address, LENGTH, flags)

    return submit


def _enter(flags: int) -> Callable[[Context], None]:
    return _entries(
        copy(SOURCE.address + i, DESTINATION.address + i * 2 * PAGE, PAGE, flags | RECORD) for i in range(3)
    )


def _entries(wanted: Iterable[Entry]) -> Callable[[Context], None]:
    entries = list(wanted)

    def enter(context: Context) -> None:
        entered = context.enter(entries, max_records=8, min_records=len(entries), wait=60)
        if entered.error:
            raise OSError(-entered.error, os.strerror(-entered.error))
        failed = [record.status for record in entered.records if record.status]
        if failed:
            raise OSError(-failed[0], os.strerror(-failed[0]))

    return enter


def _one(entry: Entry) -> Callable[[Context], None]:
    entry.flags |= RECORD
    return _entries([entry])


def _cancel(context: Context) -> None:
    """Of nothing that is there: that alone is no failure."""
    try:
        context.cancel(1)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _read(context: Context) -> None:
    context.enter([nop(1, RECORD | COMPLETE_SYNC)])
    context.read()


def _eventfd(context: Context) -> None:
    context.eventfd(EVENTFD)
    context.eventfd(-1)


def _card(context: Context) -> None:
    card = context.buffer(BUFFER_CARD, length=LENGTH).handle
    _one(in_buffers(copy(SOURCE.address, 0, LENGTH, VERIFY_HASH), dst=card))(context)


def _export(context: Context) -> None:
    os.close(context.export(context.alloc(PAGE).handle))


def _dmabuf(context: Context) -> None:
    """One of our own, the way of any: exported, imported, and each side of an entry."""
    buffer = context.alloc(LENGTH)
    fd = context.export(buffer.handle)
    try:
        handle = context.import_(fd).handle
    finally:
        os.close(fd)
    _one(in_buffers(copy(SOURCE.address, 0, LENGTH, VERIFY_HASH), dst=handle))(context)
    _one(in_buffers(copy(0, CHUNK, PAGE, ZERO_COPY), handle, handle))(context)
    context.free(handle)
    context.free(buffer.handle)


def _map(context: Context) -> None:
    # Unmapping can fail as well: it is for later, when nothing does.
    MAPPED.append(context.map(context.alloc(LENGTH)))


def _buffers(context: Context) -> None:
    """An entry in buffers of both kinds, each side."""
    one, two = context.alloc(PAGE).handle, context.register(REGISTERED)
    _one(in_buffers(copy(0, 0, PAGE, VERIFY_HASH), one, two))(context)
    _one(in_buffers(copy(0, 0, PAGE, ZERO_COPY), two, one))(context)
    context.free(one)
    context.free(two)


def _large(context: Context) -> None:
    """An entry that several channels share."""
    length = MIB + PAGE
    one, two = context.alloc(length).handle, context.alloc(length).handle
    _one(in_buffers(copy(0, 0, length, ZERO_COPY), one, two))(context)
    context.free(one)
    context.free(two)


def _many(context: Context) -> None:
    """Entries that a channel is given all at once."""
    one, two = context.alloc(PAGE).handle, context.alloc(PAGE).handle
    many = [in_buffers(copy(i, 64 * i, 32, VERIFY_HASH | RECORD), one, two) for i in range(8)]
    _entries(many)(context)
    context.free(one)
    context.free(two)


MAPPED: list[Memory] = []
EVENTFD = os.eventfd(0, os.EFD_NONBLOCK)
REGISTERED = small_pages(4 * PAGE)


def _sign_up_to_the_signature(context: Context) -> None:
    """All but the RSA of Linux 6.1, whose mpi_sub() does not look whether it has got memory."""
    try:
        context.sign(room=0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


REQUESTS: dict[str, tuple[bool, Callable[[Context], object]]] = {
    "SETUP_RING": (False, lambda c: c.setup_ring(8)),
    "SETUP2": (False, lambda c: c.setup(8)),
    "SETUP2 again": (True, lambda c: c.setup(4096)),
    "QUERY": (False, lambda c: c.query(4)),
    "GET_STATUS before": (False, lambda c: c.status()),
    "GET_STATUS": (True, lambda c: c.status()),
    "GET_RING": (True, lambda c: c.ring()),
    "SNAPSHOT": (True, lambda c: c.snapshot()),
    "SUBMIT_DMA": (True, _transfer(0)),
    "SUBMIT_DMA sync": (True, _transfer(COMPLETE_SYNC)),
    "SUBMIT_DMA sync verified": (True, _transfer(COMPLETE_SYNC | VERIFY_HASH)),
    "SUBMIT_DMA zero-copy": (True, _transfer(COMPLETE_SYNC | ZERO_COPY | VERIFY_HASH)),
    "ENTER": (True, _enter(0)),
    "ENTER verified": (True, _enter(VERIFY_HASH)),
    "ENTER digest": (True, _enter(DIGEST_ONLY)),
    "ENTER zero-copy": (True, _enter(ZERO_COPY | VERIFY_HASH)),
    "ENTER sync no-op": (True, lambda c: c.enter([nop(flags=COMPLETE_SYNC)])),
    "ENTER hash": (True, _one(hash_only(SOURCE.address, LENGTH))),
    "ENTER hash zero-copy": (True, _one(hash_only(SOURCE.address, LENGTH, ZERO_COPY))),
    "ENTER fill": (True, _one(fill(7, DESTINATION.address, LENGTH, VERIFY_HASH))),
    "ENTER fill zero-copy": (True, _one(fill(7, DESTINATION.address, LENGTH, ZERO_COPY | DIGEST_ONLY))),
    "ENTER compare": (True, _one(compare(SOURCE.address, TWIN.address, LENGTH))),
    "ENTER compare zero-copy": (True, _one(compare(SOURCE.address, TWIN.address, LENGTH, ZERO_COPY))),
    "ENTER buffers": (True, _buffers),
    "ENTER many": (True, _many),
    "ENTER large": (True, _large),
    "ENTER and read": (True, _read),
    "CANCEL": (True, _cancel),
    "BUFFER alloc": (True, lambda c: c.alloc(LENGTH)),
    "BUFFER register": (True, lambda c: c.register(REGISTERED)),
    **({"ENTER card": (True, _card)} if len((SYSFS / "engines").read_text().split()) > 1 else {}),
    "BUFFER export": (True, _export),
    "ENTER dma-buf": (True, _dmabuf),
    "BUFFER map": (True, _map),
    "BUFFER free": (True, lambda c: c.free(c.alloc(PAGE).handle)),
    "EVENTFD": (True, _eventfd),
    "LATENCY": (True, lambda c: c.latency()),
    "ATTEST": (True, lambda c: c.attest()),
    "ATTEST signed": (True, _sign_up_to_the_signature),
    "engines": (False, lambda c: (SYSFS / "engines").read_text()),
    "fdinfo": (True, lambda c: c.fdinfo()),
    "ENABLE": (True, lambda c: c.enable()),
    "RESET": (True, lambda c: c.reset()),
}

# What can run in the caller, and so be cut short while it runs: then it was accepted, and has retired.
RUNS = {name for name in REQUESTS if name.startswith(("SUBMIT_DMA", "ENTER"))}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_failure_is_an_error_and_nothing_more(name: str) -> None:
    needs_ring, request = REQUESTS[name]
    before = _counters()
    switch = os.open(FAIL_NTH, os.O_RDWR)
    failures = 0
    try:
        for nth in count(1):
            with Context() as context:
                if needs_ring:
                    context.setup(8)
                state = context.snapshot()
                error = None
                os.pwrite(switch, b"%d" % nth, 0)
                try:
                    request(context)
                except OSError as caught:
                    error = caught.errno
                finally:
                    met = _was_met(switch)
                MAPPED.clear()
                if not met:
                    assert error is None
                    break
                if error is not None:
                    failures += 1
                    assert error in (errno.ENOMEM, errno.EFAULT), errno.errorcode[error]
                    if name not in RUNS:
                        assert context.snapshot() == state
                if needs_ring and name != "RESET":
                    context.drain()
                    assert context.snapshot().active == 0
                    while context.enter(max_records=8).records:
                        pass
                    request(context)
                MAPPED.clear()
    finally:
        os.close(switch)
    _assert_given_back(before)
    if name not in ("ENABLE", "RESET"):
        assert failures, "nothing could fail: is the injection at work?"


def test_failed_open_leaves_nothing() -> None:
    before = _counters()
    switch = os.open(FAIL_NTH, os.O_RDWR)
    failures = 0
    try:
        for nth in count(1):
            os.pwrite(switch, b"%d" % nth, 0)
            try:
                Context().close()
            except OSError as caught:
                assert caught.errno in (errno.ENOMEM, errno.EFAULT, errno.ENFILE)
                failures += 1
            finally:
                met = _was_met(switch)
            if not met:
                break
    finally:
        os.close(switch)
    assert failures
    _assert_given_back(before)
