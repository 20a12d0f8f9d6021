# SPDX-License-Identifier: MIT
"""Who runs what no caller waits for: a worker that is a part of its process, and that holds up nobody."""

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import abi
import pytest
from abi import LONG, MIB, PAGE, Child, Context, Memory, Tap, Thread, count

_libc = ctypes.CDLL(None, use_errno=True)
SYS_GETDENTS64 = {"x86_64": 217, "aarch64": 61}[os.uname().machine]


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LONG / 2  # a parent waits for longer
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.01)


def worker_of(context: Context) -> int:
    """The task that is the worker of the file's ring."""
    name = f"nymph/{context.fdinfo()['ring']}\n"
    for comm in [*Path("/proc").glob("[0-9]*/comm"), *Path("/proc/").glob("[0-9]*/task/[0-9]*/comm")]:
        with contextlib.suppress(OSError):
            if comm.read_text() == name:
                return int(comm.parent.name)
    pytest.fail(f"there is no {name}")


def is_thread(context: Context) -> bool:
    """Whether the worker is a thread of this process, as from Linux 6.10 on."""
    return Path(f"/proc/self/task/{worker_of(context)}").exists()


def work_for_long(context: Context, memory: Memory, entries: int = 512) -> None:
    """Queue what takes far longer than any of these tests."""
    half = memory.length // 2
    entry = abi.copy(memory.address, memory.address + half, half, abi.VERIFY_HASH)
    assert context.enter([entry] * entries).submitted == entries


def bytes_of(context: Context) -> int:
    return int(context.fdinfo()["dma-bytes"])


# --- it is as its process ---------------------------------------------------------------------------------


def test_worker_has_the_priority_and_cpus_of_its_process(context: Context) -> None:
    def inside() -> None:
        cpus = {min(os.sched_getaffinity(0))}
        os.nice(7)
        os.sched_setaffinity(0, cpus)
        context.setup(512, engine=b"cpu")
        memory = Memory(16 * MIB)
        work_for_long(context, memory)
        worker = worker_of(context)

        def is_alike() -> bool:
            nice = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[16]
            return nice == "7" and os.sched_getaffinity(worker) == cpus

        until(is_alike, f"the worker's priority and CPUs: {os.sched_getaffinity(worker)}")

    Child(inside).result()


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    """A cgroup of version 2, with no task in it."""
    root = tmp_path / "cgroup2"
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "cgroup2", "none", root], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no cgroups of version 2 here: {mounted.stderr.decode().strip()}")
    cgroup = root / f"nymph-test-{os.getpid()}"
    cgroup.mkdir()
    yield cgroup
    until(lambda: "populated 0" in (cgroup / "cgroup.events").read_text(), "the cgroup empties")
    cgroup.rmdir()
    subprocess.run(["umount", root], check=True)


@abi.needs_root
def test_worker_time_counts_for_the_cgroup_of_its_process(
    request: pytest.FixtureRequest, context: Context, cgroup: Path
) -> None:
    """So that cpu.max holds. A kernel thread joins after a while, and where version 1 freezes processes."""
    context.setup(4)
    if not is_thread(context):
        # A kernel without a freezer warns if somebody mounts it.
        if "\nfreezer\t" not in Path("/proc/cgroups").read_text():
            pytest.skip("workers are kernel threads before Linux 6.10, and no freezer of version 1 is here")
        first = cgroup.parent.parent / "freezer1"
        first.mkdir()
        subprocess.run(["mount", "-t", "cgroup", "-o", "freezer", "none", first], check=True)
        request.addfinalizer(lambda: subprocess.run(["umount", first], check=True))
    context.reset()

    def used() -> int:
        return int((cgroup / "cpu.stat").read_text().split()[1]) * 1000

    def inside() -> None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        context.setup(512, engine=b"cpu")
        worker = worker_of(context)

        def ran() -> int:
            stat = Path(f"/proc/{worker}/task/{worker}/stat").read_text().rpartition(")")[2].split()
            return sum(map(int, stat[11:13])) * 10**9 // os.sysconf("SC_CLK_TCK")

        memory = Memory(16 * MIB)
        work_for_long(context, memory)
        until(lambda: ran() > 500_000_000, "the worker runs")
        began, before = ran(), used()
        until(lambda: ran() - began > 400_000_000, "the worker runs on")
        assert used() - before > (ran() - began) // 2

    Child(inside).result()


@abi.needs_root
def test_frozen_process_is_not_written_to(context: Context, cgroup: Path) -> None:
    shared = Memory(32 * MIB, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    reader, writer = os.pipe()

    def inside() -> None:
        context.setup(512, engine=b"cpu")
        work_for_long(context, shared)
        os.write(writer, b"x")
        signal.pause()

    child = Child(inside)
    os.read(reader, 1)
    (cgroup / "cgroup.procs").write_text(str(child.pid))
    until(lambda: bytes_of(context) > 0, "the copies")
    (cgroup / "cgroup.freeze").write_text("1")
    until(lambda: "frozen 1" in (cgroup / "cgroup.events").read_text(), "the process is frozen")
    # The chunk under way when it was frozen may still end.
    with Context() as other:
        other.setup(4, engine=b"cpu")
        src, dst = Memory(4 * MIB), Memory(4 * MIB)
        assert other.run(abi.copy(src.address, dst.address, 4 * MIB)).status == 0
        shared.fill(0x77)
        moved = bytes_of(context)
        for _ in range(8):
            assert other.run(abi.copy(src.address, dst.address, 4 * MIB)).status == 0
    assert shared.read() == b"\x77" * shared.length
    assert bytes_of(context) == moved
    (cgroup / "cgroup.freeze").write_text("0")
    until(lambda: bytes_of(context) > moved, "the copies go on")
    child.kill()
    os.close(reader)
    os.close(writer)


@abi.needs_root
def test_setup_fails_if_no_worker_can_start(context: Context, cgroup: Path) -> None:
    context.setup(4)
    if not is_thread(context):
        pytest.skip("workers are kernel threads before Linux 6.10")
    context.reset()
    (cgroup.parent / "cgroup.subtree_control").write_text("+pids")

    def inside() -> None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        (cgroup / "pids.max").write_text("1")
        with abi.fails(errno.EAGAIN):
            context.setup(4)
        assert abi.as_after_open(context)
        (cgroup / "pids.max").write_text("2")
        context.setup(4)
        assert context.run(abi.nop(1)).status == 0

    Child(inside).result()


@pytest.mark.emulated
def test_worker_obeys_protection_keys_of_the_submitter(context: Context) -> None:
    """Inline or by the worker, and whatever the thread that happens to run it may reach."""
    key = _libc.pkey_alloc(0, 0)
    if key < 0:
        pytest.skip("the CPU has no protection keys")
    allow, deny = 0, 1  # PKEY_DISABLE_ACCESS
    src, dst = Memory(PAGE).randomize(), Memory(PAGE)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    assert _libc.pkey_mprotect(ctypes.c_void_p(src.address), ctypes.c_size_t(PAGE), protection, key) == 0
    entry = abi.copy(src.address, dst.address, PAGE, abi.RECORD)
    sync = abi.copy(src.address, dst.address, PAGE, abi.RECORD | abi.COMPLETE_SYNC)

    def by_worker() -> int:
        context.enter([entry])
        while context.status().active_descriptors:
            os.sched_yield()
        return context.reap(1)[0].status

    context.setup(8, engine=b"cpu")
    for rights, status in [(allow, 0), (deny, -errno.EFAULT), (allow, 0)]:
        assert _libc.pkey_set(key, rights) == 0
        assert by_worker() == status
        context.enter([sync])
        assert context.reap(1)[0].status == status

    # Queued by one who may, run by one who may not; and the other way round.
    context.reset()
    context.setup(8, engine=b"cpu", paused=True)
    context.enter([entry])
    assert _libc.pkey_set(key, deny) == 0
    context.enter([entry])
    context.enable()
    assert [record.status for record in context.reap(2)] == [0, -errno.EFAULT]
    assert _libc.pkey_set(key, allow) == 0
    assert dst.equals(src, PAGE)
    assert _libc.pkey_mprotect(ctypes.c_void_p(src.address), ctypes.c_size_t(PAGE), protection, 0) == 0
    assert _libc.pkey_free(key) == 0


# --- it ends with its process -----------------------------------------------------------------------------


@contextlib.contextmanager
def process_that_ended(end: str, function: Callable[[], None]) -> Iterator[None]:
    """Have another process run a function and end: by exit, a kill, or exec of a program that goes on."""
    reader, writer = os.pipe()

    def inside() -> None:
        function()
        os.write(writer, b"x")
        if end == "exec":
            os.execv("/bin/sleep", ["sleep", str(10 * LONG)])
        if end == "kill":
            signal.pause()

    child = Child(inside)
    os.read(reader, 1)
    if end == "kill":
        child.kill()
    elif end == "exit":
        assert child.wait() == 0
    yield
    if end == "exec":
        child.kill()
    os.close(reader)
    os.close(writer)


@abi.needs_root  # for more locked memory than an ordinary user has
@pytest.mark.parametrize("end", ["exit", "kill", "exec"])
def test_nothing_is_copied_for_a_dead_process(end: str) -> None:
    """Though its files live on in another, and though it had two rings."""
    before = count("pinned_pages")
    memory = Memory(32 * MIB)  # mapped to the child's end
    with Context() as first, Context() as second:

        def inside() -> None:
            for context in (first, second):
                context.setup(512, engine=b"cpu")
                context.register(memory)
                work_for_long(context, memory)

        with process_that_ended(end, inside):
            for context in (first, second):
                until(lambda context=context: context.fdinfo()["active"] == "0", "its entries are canceled")
                assert bytes_of(context) < 512 * 16 * MIB
            until(lambda: count("pinned_pages") == before, "its memory is given back")
            for context in (first, second):
                with abi.fails(errno.EPERM):
                    context.status()


@pytest.mark.parametrize("paused", [False, True], ids=["idle", "paused"])
@pytest.mark.parametrize("end", ["exit", "kill", "exec"])
def test_idle_ring_ends_with_its_process(end: str, paused: bool) -> None:
    """What it took is given back, though its file lives on in another and nothing is left to run."""
    before = count("pinned_pages"), count("rings")
    memory = Memory(MIB)
    with Context() as context:

        def inside() -> None:
            context.setup(4, paused=paused)
            context.register(memory)
            if paused:
                context.enter([abi.nop(1)])

        with process_that_ended(end, inside):
            until(lambda: (count("pinned_pages"), count("rings")) == before, "its memory is given back")
            with abi.fails(errno.EPERM):
                context.status()


@abi.needs_root
def test_close_waits_for_no_page_fault() -> None:
    """What stands still is canceled once it goes on, or its process ends."""
    before = count("rings")
    taps, contexts, dst = [], [], Memory(PAGE)
    for _ in range(12):
        tap, context = Tap(), Context()
        context.setup(4, engine=b"cpu")
        context.submit(tap.memory.address, dst.address, PAGE)
        tap.reached()
        taps.append(tap)
        contexts.append(context)
    closer = Thread(lambda: [context.close() for context in contexts])
    closer.join()
    for tap in taps:
        tap.open()
    until(lambda: count("rings") == before, "the rings end")
    for tap in taps:
        tap.close()


# --- it holds up nobody -----------------------------------------------------------------------------------


@abi.needs_root
def test_setup_does_not_wait_for_sysfs_readers(context: Context) -> None:
    """From 7.3 on, who reads a directory there holds a lock over its own page faults."""
    tap = Tap()
    folder = os.open(abi.SYSFS, os.O_RDONLY | os.O_DIRECTORY)

    def reads() -> int:
        return _libc.syscall(SYS_GETDENTS64, folder, ctypes.c_void_p(tap.memory.address), PAGE)

    reader = Thread(reads)
    tap.reached()
    setter = Thread(lambda: context.setup(4))
    try:
        setter.join()
        buffer = context.alloc(PAGE)
        mapped = context.map(buffer)
        mapped.unmap(0, PAGE)
        context.reset()
    finally:
        tap.open()
    reader.join()
    assert reader.result > 0
    os.close(folder)
    tap.close()


def test_mmap_setup_and_sysfs_reads_do_not_deadlock(context: Context) -> None:
    """Each takes its locks in its own order: what lockdep sees when they meet."""
    stop = threading.Event()

    def reads() -> None:
        while not stop.is_set():
            for path, _, files in os.walk(abi.SYSFS):
                for name in files:
                    with contextlib.suppress(OSError):
                        (Path(path) / name).read_bytes()

    def maps() -> None:
        while not stop.is_set():
            # between two rings, there is none, or not this buffer any more
            with contextlib.suppress(OSError):
                mapped = context.map(context.alloc(PAGE))
                mapped.fill(1)
                mapped.unmap(0, PAGE)

    threads = [Thread(reads), Thread(maps)]
    for n in range(60):
        context.setup(4)
        if n % 3 == 0:
            context.reset()
    stop.set()
    for thread in threads:
        thread.join()
