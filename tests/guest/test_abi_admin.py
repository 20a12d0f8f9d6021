# SPDX-License-Identifier: MIT
"""What fdinfo tells a ring's owner, what sysfs tells anybody, and what an administrator can set."""

import contextlib
import ctypes
import errno
import os
import select
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import abi
import pytest
from abi import PAGE, Child, Context, Memory, in_buffers, small_pages


def seen(context: Context) -> dict[str, str]:
    """What fdinfo says, each quantile of the latency under a name of its own."""
    told = context.fdinfo()
    pairs = (pair.split("=") for pair in told.pop("latency-ns").split())
    return {name.replace("-", "_"): value for name, value in told.items()} | {
        f"latency_{name}": value for name, value in pairs
    }


def test_fdinfo_is_empty_without_a_ring(context: Context) -> None:
    assert context.fdinfo() == {}
    context.setup(4)
    assert context.fdinfo()["entries"] == "4"
    context.reset()
    assert context.fdinfo() == {}


def test_fdinfo_agrees_with_the_ring(context: Context) -> None:
    context.setup(9, paused=True)
    told = seen(context)
    [engine] = [e.name.decode() for e in context.query(16)[1] if e.id == context.snapshot().engine]
    assert (told["owner"], told["engine"], told["entries"]) == (str(os.getpid()), engine, "9")
    quiet = [
        "active",
        "unread",
        "errors",
        "dma_bytes",
        "pinned_bytes",
        "buffer_bytes",
        "latency_p50",
        "latency_p95",
        "latency_p99",
        "latency_p99.9",
        "latency_max",
        "latency_count",
    ]
    assert all(told[name] == "0" for name in quiet)

    src, dst = small_pages(4 * PAGE), small_pages(4 * PAGE)
    gone = Memory(PAGE)
    buffer = context.alloc(PAGE + 1)
    handle = context.register(src)
    context.enter(
        [
            abi.copy(src.address, dst.address + 1, PAGE, abi.RECORD | abi.ZERO_COPY),  # pins one page and two
            in_buffers(abi.copy(0, 0, PAGE, abi.ZERO_COPY), handle, buffer.handle),  # pins nothing more
            abi.copy(gone.address, dst.address, 8),
        ]
    )
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


def test_fdinfo_quantiles_match_the_histogram(context: Context) -> None:
    """A time in the bucket the histogram has the quantile in."""
    context.setup(64)
    src, dst = Memory(16 * PAGE), Memory(16 * PAGE)
    for n in range(20):
        context.enter([abi.copy(src.address, dst.address, (n % 16 + 1) * PAGE)] * 10)
        context.drain()
    latency, told = context.latency(), seen(context)
    for permille, name in [(500, "p50"), (950, "p95"), (990, "p99"), (999, "p99.9")]:
        rank = -(-latency.count * permille // 1000)
        bucket = next(n for n, below in enumerate(accumulate(latency.buckets)) if below >= rank)
        assert abi.bucket_of(int(told[f"latency_{name}"])) == bucket
        assert int(told[f"latency_{name}"]) <= latency.max_ns


def test_sysfs_shows_no_single_ring(context: Context) -> None:
    """sysfs, which is for all, has totals alone; fdinfo is for who may look into the process."""
    folders = {path.name for path in abi.SYSFS.iterdir() if path.is_dir() and not path.is_symlink()}
    context.setup(5)
    assert {path.name for path in abi.SYSFS.iterdir() if path.is_dir() and not path.is_symlink()} == folders
    assert folders <= {"counters", "limits", "power"}
    owner = os.getpid()

    def inherits() -> str:
        # By inheritance the file is ours as well, and says whose its ring is.
        assert context.fdinfo()["owner"] == str(owner)
        return ""

    def stranger() -> str:
        with pytest.raises(PermissionError):
            Path(f"/proc/{owner}/fdinfo/{context.fd}").read_text()
        return ""

    Child(inherits).result()
    if os.geteuid() == 0:
        abi.ordinary(stranger)


def test_readers_survive_rings_that_come_and_go() -> None:
    """Readers find a ring, or they don't; nobody falls over nobody."""
    stop = False

    def looks() -> int:
        found = 0
        while not stop:
            for path in Path("/proc/self/fdinfo").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    found += "nymph-ring" in path.read_text()
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


def test_only_root_changes_limits() -> None:
    for name in ("max_rings", "max_user_rings"):
        path = abi.SYSFS / "limits" / name
        assert int(path.read_text()) >= 1
        if os.geteuid() != 0:
            with pytest.raises(PermissionError):
                path.write_text("5\n")


@abi.needs_root
def test_limits_accept_only_numbers(max_user_rings: Path) -> None:
    for text in ("\n", "x", "-1", "4294967296", "1 2"):
        with pytest.raises(OSError):
            max_user_rings.write_text(text)
    max_user_rings.write_text("0x10\n")
    assert max_user_rings.read_text() == "16\n"


@abi.needs_root
def test_rings_are_limited_per_user(max_user_rings: Path) -> None:
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


@abi.needs_root
def test_subordinate_users_count_as_their_owner(max_user_rings: Path) -> None:
    """A user namespace gives a user other users' numbers, and no more rings."""
    if not Path("/proc/self/ns/user").exists():
        pytest.skip("the kernel has no user namespaces")
    max_user_rings.write_text("3")
    libc = ctypes.CDLL(None, use_errno=True)

    def inside() -> str:
        def second() -> str:
            os.setresuid(1, 1, 1)
            with Context() as one, Context() as other:
                one.setup(1)
                with other.refuses(errno.EMFILE):
                    other.setup(1)
                # SETUP again is none more
                one.setup(2)
            return ""

        def third() -> str:
            os.setresuid(2, 2, 2)
            with Context() as context, context.refuses(errno.EMFILE):
                context.setup(1)
            return ""

        assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWUSER
        os.write(ready[1], b"x")
        os.read(mapped[0], 1)
        kept = [Context() for _ in range(3)]
        for context in kept[:2]:
            context.setup(1)
        Child(second).result()
        kept[2].setup(1)
        Child(third).result()
        return ""

    ready, mapped = os.pipe(), os.pipe()
    reader = abi.Thread(lambda: os.read(ready[0], 1))
    child = Child(lambda: abi.as_ordinary(inside))
    reader.join()
    Path(f"/proc/{child.pid}/uid_map").write_text("0 65534 1\n1 100000 10\n")
    os.write(mapped[1], b"x")
    child.result()
    for end in (*ready, *mapped):
        os.close(end)


@abi.needs_root
def test_last_rings_are_reserved_for_root() -> None:
    """However many users there are, and though each has few."""
    limit, rings = abi.SYSFS / "limits/max_rings", abi.SYSFS / "counters/rings"
    before = limit.read_text()
    limit.write_text("64")
    try:
        with contextlib.ExitStack() as kept:
            while int(rings.read_text()) < 50:
                kept.enter_context(Context()).setup(1)

            def inside() -> str:
                contexts = [Context() for _ in range(13)]
                for context in contexts[:12]:
                    context.setup(1)
                with contexts[12].refuses(errno.ENFILE):
                    contexts[12].setup(1)
                contexts[0].setup(2)  # takes its own place
                os.write(told[1], b"x")
                os.read(go_on[0], 1)
                return ""

            told, go_on = os.pipe(), os.pipe()
            child = Child(lambda: abi.as_ordinary(inside))
            assert select.select([told[0]], [], [], abi.LONG)[0], "the user got too many, or too few"
            for _ in range(2):
                kept.enter_context(Context()).setup(1)
            with Context() as context, context.refuses(errno.ENFILE):
                context.setup(1)
            os.write(go_on[1], b"x")
            child.result()
    finally:
        limit.write_text(before)


def test_ring_memory_counts_as_locked_memory() -> None:
    """The largest ring is for everybody; as many of them as they like are not."""

    def inside() -> str:
        with contextlib.ExitStack() as kept:
            context = kept.enter_context(Context())
            context.setup(4096)
            each = int(context.fdinfo()["ring-bytes"])
            # its records and entries at least
            assert 4096 * 64 + 8192 * 128 < each < 2 * abi.MIB
            for _ in range(8 * abi.MIB // each - 1):
                kept.enter_context(Context()).setup(4096)
            last = kept.enter_context(Context())
            with last.refuses(errno.ENOMEM):
                last.setup(4096)
            with last.refuses(errno.ENOMEM):
                last.setup_ring(4096)
            context.setup(4096)  # takes its own place
            context.reset()
            last.setup(4096)
        return ""

    abi.ordinary(inside)


def test_ordinary_user_can_open_many_small_rings() -> None:
    def inside() -> str:
        with contextlib.ExitStack() as kept:
            for _ in range(64):
                kept.enter_context(Context()).setup(16)
        return ""

    abi.ordinary(inside)
