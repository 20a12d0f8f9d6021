# SPDX-License-Identifier: MIT
"""How bytes get from one place to another, with a ring and without: each way is measured turn by turn.

A way is made by a function that is a context manager; what it yields makes one turn of so many seconds.
Every turn checks its data, and its digests where it makes any, and raises WrongError.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import blake3
import numpy as np
from numpy.typing import NDArray

import pynymph
from pynymph import Copy, abi, batch
from pynymph.abi import lib

SYSFS = Path("/sys/class/misc/pcie_nymph")
PATIENCE = 60.0
"""Seconds; nothing takes that long."""
POISON = 0x5A
LONGEST_PIPE = 1 << 20
MOST_TIMES = 1 << 16

VERIFY = lib.NYMPH_DMA_FLAG_VERIFY_HASH
DIGEST = lib.NYMPH_DMA_FLAG_DIGEST_ONLY
ZERO_COPY = lib.NYMPH_DMA_FLAG_ZERO_COPY
LINK = lib.NYMPH_DMA_FLAG_LINK
BARRIER = lib.NYMPH_DMA_FLAG_BARRIER


class WrongError(Exception):
    """Bytes or digests are not what they have to be."""


@dataclass(frozen=True)
class Tasks:
    """So long all of the machine's tasks ran on its CPUs, or waited for one."""

    ran_ns: int
    waited_ns: int

    @classmethod
    def now(cls) -> Tasks:
        """Since the machine booted."""
        time.sleep(5e-4)  # a CPU only counts what it has changed over from: now also this task
        lines = Path("/proc/schedstat").read_text().splitlines()
        cpus = [line.split() for line in lines if line.startswith("cpu")]
        return cls(sum(int(words[7]) for words in cpus), sum(int(words[8]) for words in cpus))

    def __sub__(self, earlier: Tasks) -> Tasks:
        return Tasks(self.ran_ns - earlier.ran_ns, self.waited_ns - earlier.waited_ns)


@dataclass(frozen=True)
class Turn:
    """What was done in one turn. `times`: of single operations in ns, as many as were kept."""

    operations: int
    ns: int
    times: NDArray[np.uint64]
    tasks: Tasks
    client_cpu_ns: int | None = None
    """Of each client."""
    engine_ns: int | None = None
    """So long the engine of each client was at its work."""


Turns = Callable[[float], Turn]


@dataclass(frozen=True)
class Data:
    """The bytes that all ways have for a source: random, in a file that every process can map."""

    file: Path
    view: memoryview
    digests: dict[tuple[str, int, int], list[bytes]]
    """Of inputs: by algorithm, bytes and number."""

    @classmethod
    @contextlib.contextmanager
    def make(cls, size: int) -> Iterator[Data]:
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="nymph-bench-") as file:
            file.write(os.urandom(size))
            file.flush()
            view = memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))
            yield cls(Path(file.name), view, {})

    def expected(self, algorithm: str, size: int, number: int) -> list[bytes]:
        """Digests of the first `number` inputs of `size` bytes, made in user space."""
        key = (algorithm, size, number)
        if key not in self.digests:
            inputs = (self.view[i * size : (i + 1) * size] for i in range(number))
            self.digests[key] = [DIGESTS[algorithm](data) for data in inputs]
        return self.digests[key]


DIGESTS: dict[str, Callable[[Any], bytes]] = {
    "blake3": lambda data: blake3.blake3(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "blake2b-256": lambda data: hashlib.blake2b(data, digest_size=32).digest(),
}


@dataclass(frozen=True)
class Work:
    """What is to be done: `depth` operations of `size` bytes, over and over."""

    data: Data
    size: int
    depth: int = 1
    engine: str = "cpu"
    opcode: int = lib.NYMPH_OP_COPY
    flags: int = 0
    memory: str = "buffer"
    entries: int | None = None
    rings: int = 1

    @property
    def total(self) -> int:
        return self.size * self.depth

    def check(self, found: Any, what: str) -> None:
        if found[: self.total] != self.data.view[: self.total]:
            raise WrongError(f"{what}: the destinations are not the sources")

    def check_digests(self, found: Sequence[bytes], what: str, algorithm: str = "blake3") -> None:
        if list(found) != self.data.expected(algorithm, self.size, len(found)):
            raise WrongError(f"{what}: {algorithm} digests differ from those made in user space")


# --- clients in C ---


class Client:
    """load.c, running."""

    _ANSWER = np.dtype(
        [
            (name, "u8")
            for name in (
                "operations",
                "ns",
                "client_cpu_ns",
                "tasks_ns",
                "waited_ns",
                "engine_ns",
                "times",
                "digests",
            )
        ]
    )

    def __init__(self, program: str, path: str, work: Work) -> None:
        self._what, self._work = f"C {path}", work
        numbers = (work.opcode, work.flags, work.memory, work.size, work.depth)
        more = (work.entries or work.depth, work.rings, work.data.file)
        command = [program, path, work.engine, *map(str, (*numbers, *more))]
        self._running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=-1
        )

    def copied(self) -> memoryview:
        """What paths without a ring have copied so far: a file of theirs, mapped."""
        for each in Path(f"/proc/{self._running.pid}/fd").iterdir():
            if os.readlink(each).startswith("/memfd:copy"):
                with each.open("rb") as file:
                    return memoryview(mmap.mmap(file.fileno(), self._work.total, prot=mmap.PROT_READ))
        raise WrongError(f"{self._what}: it has no copy")

    def begin(self, seconds: float) -> None:
        assert self._running.stdin
        with contextlib.suppress(BrokenPipeError):  # end() says why
            self._running.stdin.write(f"{int(seconds * 1e9)}\n".encode())
            self._running.stdin.flush()

    def end(self) -> Turn:
        head = np.frombuffer(self._read(self._ANSWER.itemsize), self._ANSWER)[0]
        times = np.frombuffer(self._read(8 * int(head["times"])), np.uint64)
        found = self._read(32 * int(head["digests"]))
        self._work.check_digests([found[i : i + 32] for i in range(0, len(found), 32)], self._what)
        return Turn(
            int(head["operations"]),
            int(head["ns"]),
            times,
            Tasks(int(head["tasks_ns"]), int(head["waited_ns"])),
            int(head["client_cpu_ns"]),
            int(head["engine_ns"]) or None,
        )

    def _read(self, size: int) -> bytes:
        assert self._running.stdout and self._running.stderr
        found = self._running.stdout.read(size)
        if len(found) < size:
            said = self._running.stderr.read().decode().strip()
            raise WrongError(f"{self._what}: {said or 'it ended without a word'}")
        return found

    def close(self) -> None:
        # What it still says was told by then.
        with contextlib.suppress(BrokenPipeError):
            self._running.communicate()


@contextlib.contextmanager
def from_c(program: str, path: str, works: Sequence[Work]) -> Iterator[Turns]:
    """A client for each of `works`, all at once."""
    with ExitStack() as stack:
        clients = [Client(program, path, work) for work in works]
        for client in clients:
            stack.callback(client.close)

        def turn(seconds: float) -> Turn:
            for client in clients:
                client.begin(seconds)
            turns = [client.end() for client in clients]
            if len(turns) == 1:
                return turns[0]
            operations = sum(each.operations for each in turns)
            # each checks its data outside of its time, so what counts is how fast they were together
            ns = int(operations / sum(each.operations / each.ns for each in turns))

            def mean(of: Callable[[Turn], int | None]) -> int:
                return int(ns * np.mean([(of(each) or 0) / each.ns for each in turns]))

            return Turn(
                operations,
                ns,
                np.concatenate([each.times for each in turns]),
                Tasks(mean(lambda each: each.tasks.ran_ns), mean(lambda each: each.tasks.waited_ns)),
                mean(lambda each: each.client_cpu_ns),
                mean(lambda each: each.engine_ns) or None,
            )

        yield turn


# --- clients in Python ---


def _repeat(once: Callable[[list[int]], int], check: Callable[[], None], poison: Callable[[], None]) -> Turns:
    """Turns of `once`, which appends times of operations to what it is given, and says how many they were."""

    def turn(seconds: float) -> Turn:
        poison()
        times: list[int] = []
        tasks = Tasks.now()
        operations, cpu, begun = 0, time.process_time_ns(), time.perf_counter_ns()
        while (now := time.perf_counter_ns()) < begun + seconds * 1e9 or not operations:
            operations += once(times)
            del times[MOST_TIMES:]
        cpu = time.process_time_ns() - cpu
        tasks = Tasks.now() - tasks
        check()
        return Turn(operations, now - begun, np.asarray(times, np.uint64), tasks, cpu)

    return turn


@contextlib.contextmanager
def from_python(path: str, work: Work) -> Iterator[Turns]:
    """All that pynymph.Ring offers for copies, and the first driver's request."""
    size, depth = work.size, work.depth
    verify, digest = bool(work.flags & VERIFY), bool(work.flags & DIGEST)
    with pynymph.Ring(work.entries or depth, engine=work.engine) as ring:
        src, dst = ring.allocate(work.total), ring.allocate(work.total)
        src.view[:] = work.data.view[: work.total]
        at = np.arange(depth) * size
        entries = batch.copies(src, dst, src_at=at, dst_at=at, length=size, verify=verify, digest=digest)
        parts = [slice(i, i + size) for i in range(0, work.total, size)]
        copies = [Copy(src=src[part], dst=dst[part], verify=verify, digest=digest) for part in parts]
        digests: list[bytes | None] = []

        def recorded(times: list[int], done: Sequence[pynymph.Completion]) -> int:
            times += [each.completed_ns - each.queued_ns for each in done]
            digests[:] = [each.dst_digest for each in done]
            return depth

        def copy(times: list[int]) -> int:
            done = []
            for each in copies:
                begun = time.perf_counter_ns()
                done.append(
                    ring.copy(src=each.src, dst=each.dst, verify=verify, digest=digest, timeout=PATIENCE)
                )
                times.append(time.perf_counter_ns() - begun)
            digests[:] = [each.dst_digest for each in done]
            return depth

        def submit(times: list[int]) -> int:
            return recorded(times, [each.result(PATIENCE) for each in [ring.submit(copy) for copy in copies]])

        def submit_all(times: list[int]) -> int:
            return recorded(times, [each.result(PATIENCE) for each in ring.submit_all(copies)])

        def completions(times: list[int]) -> int:
            ring.submit_all(copies)
            return recorded(times, sorted(ring.completions(PATIENCE), key=lambda each: each.cookie))

        def arrays(done: Any, times: list[int]) -> int:
            if done["status"].any():
                failed = sorted({os.strerror(-int(status)) for status in done["status"] if status})
                raise WrongError(
                    f"Python {path} on {work.engine}, {size} bytes, depth {depth}: {', '.join(failed)}"
                )
            times += (done["completed_ns"] - done["queued_ns"]).tolist()
            if verify or digest:
                digests[:] = [bytes(each) for each in done["dst_digest"]]
            return depth

        def run_many(times: list[int]) -> int:
            return arrays(ring.run_many(entries, PATIENCE), times)

        def submit_many(times: list[int]) -> int:
            return arrays(ring.submit_many(entries).result(PATIENCE), times)

        def check() -> None:
            work.check(dst.view, f"Python {path}")
            if verify or digest:
                work.check_digests([each or b"" for each in digests], f"Python {path}")

        once = {"copy": copy, "submit": submit, "submit_all": submit_all, "completions": completions,
                "run_many": run_many, "submit_many": submit_many}[path]  # fmt: skip
        yield _repeat(once, check, lambda: _poison(dst.view))


@contextlib.contextmanager
def from_asyncio(path: str, work: Work) -> Iterator[Turns]:
    """The same with pynymph.AsyncRing: all copies are awaited at once."""
    loop = asyncio.new_event_loop()
    run = loop.run_until_complete

    async def make() -> pynymph.AsyncRing:
        return pynymph.AsyncRing(work.entries or work.depth, engine=work.engine)

    ring = run(make())
    try:
        src, dst = ring.ring.allocate(work.total), ring.ring.allocate(work.total)
        src.view[:] = work.data.view[: work.total]
        at = np.arange(work.depth) * work.size
        entries = batch.copies(src, dst, src_at=at, dst_at=at, length=work.size)
        parts = [slice(i, i + work.size) for i in range(0, work.total, work.size)]
        pairs = [(src[part], dst[part]) for part in parts]

        async def copies() -> list[pynymph.Completion]:
            return await asyncio.gather(*(ring.copy(src=src, dst=dst) for src, dst in pairs))

        def copy(times: list[int]) -> int:
            times += [each.completed_ns - each.queued_ns for each in run(copies())]
            return work.depth

        def run_many(times: list[int]) -> int:
            done = run(ring.run_many(entries))
            times += (done["completed_ns"] - done["queued_ns"]).tolist()
            return work.depth

        once = {"copy": copy, "run_many": run_many}[path]
        yield _repeat(once, lambda: work.check(dst.view, f"asyncio {path}"), lambda: _poison(dst.view))
    finally:
        ring.close()
        loop.close()


@contextlib.contextmanager
def from_python_submit_dma(work: Work) -> Iterator[Turns]:
    """The first driver's requests from Python, as its clients made them: fcntl.ioctl, one for each copy."""
    src, dst = (mmap.mmap(-1, work.total, flags=mmap.MAP_PRIVATE) for _ in range(2))
    src[:] = work.data.view[: work.total]
    src_at, dst_at = _address(src), _address(dst)
    with open(pynymph.ring.DEVICE, "r+b", buffering=0) as device:
        name = work.engine.encode()
        setup = abi.new("nymph_setup2", entries=work.entries or work.depth, engine=name)
        fcntl.ioctl(device, abi.NYMPH_IOC_SETUP2, abi.ffi.buffer(setup))
        descriptors = [
            abi.ffi.buffer(
                abi.new(
                    "nymph_dma_desc",
                    src_addr=src_at + i * work.size,
                    dst_addr=dst_at + i * work.size,
                    length=work.size,
                    flags=work.flags | lib.NYMPH_DMA_FLAG_COMPLETE_SYNC,
                    cookie=i,
                )
            )
            for i in range(work.depth)
        ]

        def once(times: list[int]) -> int:
            for each in descriptors:
                begun = time.perf_counter_ns()
                fcntl.ioctl(device, abi.NYMPH_IOC_SUBMIT_DMA, each)
                times.append(time.perf_counter_ns() - begun)
            return work.depth

        yield _repeat(once, lambda: work.check(memoryview(dst), "Python SUBMIT_DMA"), lambda: _poison(dst))


@contextlib.contextmanager
def python_setup(work: Work) -> Iterator[Turns]:
    """Open a pynymph.Ring, and close it."""

    def once(times: list[int]) -> int:
        begun = time.perf_counter_ns()
        pynymph.Ring(work.entries or 1, engine=work.engine).close()
        times.append(time.perf_counter_ns() - begun)
        return 1

    yield _repeat(once, lambda: None, lambda: None)


# --- what people would use instead ---


@contextlib.contextmanager
def memmove_and_hash(algorithm: str, work: Work, *, both: bool = False) -> Iterator[Turns]:
    """memmove, then hash the copy: with a library, or by AF_ALG with splice if it is not BLAKE3.

    `both`: hash the source before that, as *verify* does.
    """
    with ExitStack() as stack:
        file = os.memfd_create("copy")
        stack.callback(os.close, file)
        os.ftruncate(file, work.total)
        dst = mmap.mmap(file, work.total)
        digests: list[bytes] = []
        view, to, source = memoryview(dst), _address(dst), _address_of_view(work.data.view)
        digest = stack.enter_context(_splicer(algorithm, file)) if algorithm != "blake3" else None

        def once(times: list[int]) -> int:
            digests.clear()
            for at in range(0, work.total, work.size):
                begun = time.perf_counter_ns()
                if both:
                    DIGESTS[algorithm](work.data.view[at : at + work.size])
                ctypes.memmove(to + at, source + at, work.size)
                if digest is None:
                    digests.append(blake3.blake3(view[at : at + work.size]).digest())
                else:
                    digests.append(digest(at, work.size))
                times.append(time.perf_counter_ns() - begun)
            return work.depth

        def check() -> None:
            work.check(view, f"memmove and {algorithm}")
            work.check_digests(digests, f"memmove and {algorithm}", algorithm)

        yield _repeat(once, check, lambda: _poison(dst))


def why_not_af_alg(algorithm: str) -> str | None:
    """Why AF_ALG does not hash with that algorithm here; None: it does."""
    try:
        with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as listener:
            listener.bind(("hash", algorithm))
    except OSError as error:
        # From Linux 7.3 at the latest, it serves a list of algorithms: findings/af-alg-allowlist.sh.
        return (
            f"AF_ALG does not serve it ({error.strerror}), as the sysctl crypto.af_alg_restrict can have it"
        )
    return None


@contextlib.contextmanager
def _splicer(algorithm: str, file: int) -> Iterator[Callable[[int, int], bytes]]:
    """What hashes a range of a file in the kernel, without its bytes coming to user space."""
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as listener, ExitStack() as stack:
        listener.bind(("hash", algorithm))
        operation, _ = listener.accept()
        stack.enter_context(operation)
        into, out = os.pipe()
        stack.callback(os.close, into)
        stack.callback(os.close, out)
        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, LONGEST_PIPE)

        def digest(at: int, size: int) -> bytes:
            end = at + size
            while at < end:
                in_pipe = os.splice(file, out, min(end - at, LONGEST_PIPE // 2), offset_src=at)
                at += in_pipe
                while in_pipe:
                    in_pipe -= os.splice(into, operation.fileno(), in_pipe, flags=os.SPLICE_F_MORE)
            return operation.recv(64)

        yield digest


@contextlib.contextmanager
def uring_and_hash(program: str, work: Work) -> Iterator[Turns]:
    """A file copied into another with io_uring, from C; then the copy is hashed with the official BLAKE3.

    Each part takes its own time, so what passes between the two processes costs nothing.
    """
    client = Client(program, "uring", work)
    try:
        client.begin(0)
        client.end()
        copied = client.copied()

        def turn(seconds: float) -> Turn:
            client.begin(seconds / 2)
            copying = client.end()
            rounds = copying.operations // work.depth
            tasks, cpu, begun = Tasks.now(), time.process_time_ns(), time.perf_counter_ns()
            for _ in range(rounds):
                digests = [
                    blake3.blake3(copied[at : at + work.size]).digest()
                    for at in range(0, work.total, work.size)
                ]
            hashed, cpu = time.perf_counter_ns() - begun, time.process_time_ns() - cpu
            hashing = Tasks.now() - tasks
            work.check_digests(digests, "io_uring and blake3")
            return Turn(
                copying.operations,
                copying.ns + hashed,
                copying.times + np.uint64(hashed // copying.operations),
                Tasks(copying.tasks.ran_ns + hashing.ran_ns, copying.tasks.waited_ns + hashing.waited_ns),
                (copying.client_cpu_ns or 0) + cpu,
            )

        yield turn
    finally:
        client.close()


# --- the rest ---


@contextlib.contextmanager
def memory_of_rings(work: Work, number: int) -> Iterator[Callable[[], float]]:
    """What yields bytes of kernel memory that a ring of so many entries takes."""

    def measure() -> float:
        before = meminfo("MemFree")
        with ExitStack() as stack:
            for _ in range(number):
                fd = os.open(pynymph.ring.DEVICE, os.O_RDWR)
                stack.callback(os.close, fd)
                setup = abi.new("nymph_setup2", entries=work.entries, engine=work.engine.encode())
                fcntl.ioctl(fd, abi.NYMPH_IOC_SETUP2, abi.ffi.buffer(setup))
            return (before - meminfo("MemFree")) / number

    measure()  # what is kept for the next ones is not theirs
    yield measure


def meminfo(name: str) -> int:
    """Bytes, of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {name}")


def _poison(buffer: Any) -> None:
    ctypes.memset(_address(buffer), POISON, len(buffer))


def _address(buffer: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _address_of_view(view: memoryview) -> int:
    """Also of one that is read-only."""
    return np.frombuffer(view, np.uint8).ctypes.data


class Yardstick:
    """A fixed amount of work of the CPU alone, which says how fast the machine is at the moment."""

    def __init__(self) -> None:
        self._bytes = bytes(1 << 14)

    def ns(self) -> int:
        """The median of three."""
        found = []
        for _ in range(3):
            begun = time.perf_counter_ns()
            hashlib.sha256(self._bytes).digest()
            found.append(time.perf_counter_ns() - begun)
        return sorted(found)[1]


class Counters:
    """What the machine counts, to be compared before and after a turn."""

    def __init__(self, drivers: set[str]) -> None:
        """`drivers`: whose interrupts count, those of the engines."""
        self._endings = tuple(f" {driver}" for driver in drivers)
        self._cpus = os.cpu_count() or 1

    def now(self) -> dict[str, int]:
        return {
            "interrupts": self._interrupts(),
            **{
                name: int((SYSFS / "counters" / name).read_text())
                for name in ("fallbacks", "engine_failures")
            },
        }

    def _interrupts(self) -> int:
        lines = Path("/proc/interrupts").read_text().splitlines()
        counts = [line.split()[1 : 1 + self._cpus] for line in lines if line.endswith(self._endings)]
        return sum(int(count) for each in counts for count in each)


def energy_file(sys: Path = Path("/sys")) -> IO[str] | str:
    """What counts the machine's energy in µJ, of RAPL or of a board's sensor; else why there is none."""
    found = [*sys.glob("class/powercap/*/energy_uj"), *sys.glob("class/hwmon/*/energy*_input")]
    if not found:
        return "neither /sys/class/powercap (RAPL) nor /sys/class/hwmon has a meter of energy"
    try:
        return sorted(found)[0].open()
    except PermissionError as error:
        return f"{error.filename} may not be read: be root"
