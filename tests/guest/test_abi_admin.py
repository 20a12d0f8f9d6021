# SPDX-License-Identifier: MIT
"""What an administrator sees, fdinfo and sysfs, and what one can set: max_user_rings."""

import errno
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import abi
import pytest
from abi import PAGE, Child, Context, Memory, in_buffers, ring_directory, small_pages


@pytest.fixture
def context() -> Iterator[Context]:
    with Context() as context:
        yield context


def seen(context: Context) -> dict[str, str]:
    """What fdinfo and sysfs both say, under the names of sysfs."""
    told = context.fdinfo()
    folder = ring_directory(told.pop("ring"))
    latency = dict(pair.split("=") for pair in told.pop("latency-ns").split())
    for name in ("50", "95", "99", "99.9"):
        told[f"latency_p{name.replace('.', '')}_ns"] = latency[f"p{name}"]
    shown = {path.name: path.read_text().rstrip("\n") for path in folder.iterdir()}
    assert shown.pop("uid") == str(os.geteuid())
    told = {name.replace("-", "_"): value for name, value in told.items()}
    assert told == shown
    return shown


def test_no_ring_nothing_to_see(context: Context) -> None:
    assert context.fdinfo() == {}
    context.setup(4)
    folder = ring_directory(context.fdinfo()["ring"])
    assert folder.is_dir()
    context.reset()
    assert context.fdinfo() == {}
    assert not folder.exists()


def test_everything_is_as_the_ring_says(context: Context) -> None:
    context.setup(9, paused=True)
    told = seen(context)
    [engine] = [e.name.decode() for e in context.query(16)[1] if e.id == context.snapshot().engine]
    assert (told["owner"], told["engine"], told["entries"]) == (str(os.getpid()), engine, "9")
    quiet = ["active", "unread", "errors", "dma_bytes", "pinned_bytes", "buffer_bytes", "latency_p50_ns",
             "latency_p95_ns", "latency_p99_ns", "latency_p999_ns"]
    assert all(told[name] == "0" for name in quiet)

    src, dst = small_pages(4 * PAGE), small_pages(4 * PAGE)
    gone = Memory(PAGE)
    buffer = context.alloc(PAGE + 1)
    handle = context.register(src)
    context.enter([
        abi.copy(src.address, dst.address + 1, PAGE, abi.RECORD | abi.ZERO_COPY),  # pins one page and two
        in_buffers(abi.copy(0, 0, PAGE, abi.ZERO_COPY), handle, buffer.handle),  # pins nothing more
        abi.copy(gone.address, dst.address, 8),
    ])
    told = seen(context)
    assert (told["active"], told["unread"], told["pinned_bytes"]) == ("3", "0", str(3 * PAGE))
    assert told["buffer_bytes"] == str(2 * PAGE + 4 * PAGE)

    gone.unmap(0, PAGE)
    context.enable()
    context.drain()
    told = seen(context)
    assert (told["active"], told["unread"], told["errors"]) == ("0", "1", "1")
    assert (told["dma_bytes"], told["pinned_bytes"]) == (str(2 * PAGE), "0")
    context.free(handle)
    context.free(buffer.handle)
    assert seen(context)["buffer_bytes"] == "0"


def test_quantiles_are_of_the_histogram(context: Context) -> None:
    """A time in the bucket the histogram has the quantile in."""
    context.setup(64)
    src, dst = Memory(16 * PAGE), Memory(16 * PAGE)
    for n in range(20):
        context.enter([abi.copy(src.address, dst.address, (n % 16 + 1) * PAGE)] * 10)
        context.drain()
    latency, told = context.latency(), seen(context)
    for permille, name in [(500, "p50"), (950, "p95"), (990, "p99"), (999, "p999")]:
        rank = -(-latency.count * permille // 1000)
        bucket = next(n for n, below in enumerate(accumulate(latency.buckets)) if below >= rank)
        assert abi.bucket_of(int(told[f"latency_{name}_ns"])) == bucket
        assert int(told[f"latency_{name}_ns"]) <= latency.max_ns


def test_others_rings_show(context: Context) -> None:
    """Whoever looks: sysfs is for all, and names the owner."""
    context.setup(5)
    number, owner = context.fdinfo()["ring"], os.getpid()

    def inside() -> str:
        folder = ring_directory(number)
        assert (folder / "owner").read_text() == f"{owner}\n"
        assert (folder / "entries").read_text() == "5\n"
        with pytest.raises(OSError):
            (folder / "entries").write_text("6")
        # By inheritance the file is ours as well, and says whose its ring is.
        assert context.fdinfo()["owner"] == str(owner)
        return ""

    Child(inside).result()


def test_looking_while_rings_come_and_go() -> None:
    """Readers find a ring, or they don't; nobody falls over nobody."""
    stop = False

    def looks() -> int:
        found = 0
        while not stop:
            for folder in abi.SYSFS.glob("ring*"):
                try:
                    found += len([path.read_text() for path in folder.iterdir()])
                except OSError as error:
                    assert error.errno in (errno.ENOENT, errno.ENODEV)
        return found

    threads = [abi.Thread(looks) for _ in range(2)]
    for n in range(100):
        with Context() as context:
            context.setup(4)
            context.enter([abi.nop(n)])
            context.fdinfo()
            if n % 2:
                context.reset()
    stop = True
    for thread in threads:
        thread.join()


# --- max_user_rings ---------------------------------------------------------------------------------------


@pytest.fixture
def max_user_rings() -> Iterator[Path]:
    limit = abi.SYSFS / "limits" / "max_user_rings"
    before = limit.read_text()
    yield limit
    limit.write_text(before)


def test_limits_are_the_administrator_s() -> None:
    for name in ("max_rings", "max_user_rings"):
        path = abi.SYSFS / "limits" / name
        assert int(path.read_text()) >= 1
        if os.geteuid() != 0:
            with pytest.raises(PermissionError):
                path.write_text("5\n")


@abi.needs_root
def test_limits_are_numbers(max_user_rings: Path) -> None:
    for text in ("\n", "x", "-1", "4294967296", "1 2"):
        with pytest.raises(OSError):
            max_user_rings.write_text(text)
    max_user_rings.write_text("0x10\n")
    assert max_user_rings.read_text() == "16\n"


@abi.needs_root
def test_rings_count_per_user(max_user_rings: Path) -> None:
    """Each user has so many, root as many as it likes; RESET and close() give back; SETUP again is none."""
    max_user_rings.write_text("3")
    kept = [Context() for _ in range(5)]
    for context in kept:
        context.setup(1)

    def inside() -> str:
        for _ in range(3):
            contexts = [Context() for _ in range(4)]
            for context in contexts[:3]:
                context.setup(1)
            for setup in (contexts[3].setup, contexts[3].setup_ring):
                with contexts[3].refuses(errno.EMFILE):
                    setup(1)
            contexts[1].setup(2)
            contexts[0].reset()
            contexts[3].setup(1)
            contexts[2].close()
            contexts[0].setup(1)
            for context in contexts:
                context.close()
        return ""

    for user in (65534, 65533):
        abi.ordinary(inside, user)
    for context in kept:
        context.close()
