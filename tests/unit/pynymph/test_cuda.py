# SPDX-License-Identifier: MIT
"""pynymph/cuda_blake3.h without a GPU: its kernels on the host, and NVRTC. `make gpu` has the rest."""

import ctypes
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from numpy.typing import NDArray

from pynymph import cuda_kernels as kernels
from pynymph import digest
from pynymph.cuda_kernels import Leaves, Mode

HERE = Path(__file__).parent
KEY = b"whats the Elvish word for friend"
DATA = np.frombuffer(random.Random(4).randbytes(1 << 21), np.uint8)
# The address of the first byte is 0 mod 16.
DATA = DATA[-DATA.ctypes.data % 16 :]
ADDRESS = DATA.ctypes.data


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("cuda") / "cuda_host.so"
    # A jump between coroutines is no fault, which _FORTIFY_SOURCE takes it for.
    options = [
        "-std=c++17",
        "-O2",
        "-U_FORTIFY_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function",
    ]
    options += ["-Wno-unknown-pragmas", "-shared", "-fPIC", f"-I{kernels.HEADER.parent}"]
    subprocess.run(["g++", *options, "-o", built, HERE / "cuda_host.cpp"], check=True)
    return ctypes.CDLL(str(built))


class Host:
    """The Machine that the kernels run on here: scratch is full of rubbish, as on a GPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.kept: list[Any] = []
        self.launched: list[str] = []

    def upload(self, *arrays: NDArray[Any]) -> list[int]:
        self.kept += (copies := [np.ascontiguousarray(array) for array in arrays])
        return [copy.ctypes.data for copy in copies]

    def memory(self, nbytes: int, value: int) -> int:
        self.kept.append(np.full(nbytes + 16, value, np.uint8))
        return int(-(-self.kept[-1].ctypes.data // 16) * 16)

    def scratch(self, nbytes: int) -> int:
        return self.memory(nbytes, 0xA5)

    def launch(
        self, kernel: str, args: Any, blocks: int, threads: int = kernels.THREADS, *, early: bool = False
    ) -> None:
        self.launched.append(kernel)
        getattr(self.library, f"launch_{kernel}")(
            ctypes.c_void_p(int(kernels.ffi.cast("uintptr_t", args))), ctypes.c_uint(blocks), threads
        )


@pytest.fixture
def host(library: ctypes.CDLL) -> Host:
    return Host(library)


def official(data: Any, key: bytes | None = None) -> bytes:
    raw = bytes(data)
    return (blake3(raw, key=key) if key else blake3(raw)).digest()


def read(address: int, nbytes: int) -> bytes:
    return ctypes.string_at(address, nbytes)


def words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


class Small:
    """small(), again and again with one state, as on a GPU."""

    def __init__(self, host: Host, key: bytes | None = None) -> None:
        self.host, self.epoch = host, 0
        self.mailbox, self.out = host.memory(64, 0), host.scratch(32)
        self.args = kernels.small_args(
            Mode(key), host.memory(16 + 8 * kernels.SMALL_PAIRS, 0), self.out, self.mailbox
        )

    def digest(self, offset: int, length: int) -> bytes:
        blocks = kernels.aim_small(self.args, ADDRESS + offset, length)
        self.host.launch("small", self.args, blocks, kernels.SMALL_THREADS)
        self.epoch += 1
        pairs = np.frombuffer(read(self.mailbox, 64), np.uint64)
        assert (pairs >> np.uint64(32) == self.epoch).all()
        assert pairs.astype(np.uint32).tobytes() == read(self.out, 32)
        return read(self.out, 32)


def joined(host: Host, segments: list[tuple[int, int]], key: bytes | None = None) -> bytes:
    lengths, addresses = words(*(n for _, n in segments)), words(*(ADDRESS + at for at, _ in segments))
    made = Leaves(host, Mode(key), lengths, addresses, joined=True)
    state, out = host.memory(16 + 8 * made.pairs, 0), host.scratch(32)
    made.leaf(state)
    made.top(state, out)
    return read(out, 32)


def many(host: Host, parts: list[tuple[int, int]], key: bytes | None = None) -> list[bytes]:
    out = host.scratch(32 * len(parts))
    lengths, addresses = words(*(n for _, n in parts)), words(*(ADDRESS + at for at, _ in parts))
    kernels.many(host, Mode(key), lengths, addresses, range(len(parts)), out)
    return [read(out + 32 * i, 32) for i in range(len(parts))]


def test_official_vectors_agree(host: Host) -> None:
    """Byte i is i % 251."""
    vectors = np.arange(102400, dtype=np.uint64).astype(np.uint64) % np.uint64(251)
    data = vectors.astype(np.uint8)
    known = {
        0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
        1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
        102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
    }
    small = Small(host)
    for length, wanted in known.items():
        at = data.ctypes.data - ADDRESS
        assert small.digest(at, length).hex() == wanted
        assert joined(host, [(at, length)]).hex() == wanted
        assert many(host, [(at, length)])[0].hex() == wanted


def lengths() -> Iterator[int]:
    """Around all borders of blocks and leaves, and some between, up to 16,384."""
    yield from range(0, 140)
    for leaf in range(1024, 16385, 1024):
        yield from range(leaf - 2, leaf + 3)
    yield from range(150, 16384, 419)


def test_every_kernel_is_right_at_all_lengths(host: Host) -> None:
    all_lengths = sorted(set(lengths()))
    for off in (0, 5):
        parts = [(off, n) for n in all_lengths]
        wanted = [official(DATA[off : off + n]) for n in all_lengths]
        assert many(host, parts) == wanted
        small = Small(host)
        assert [small.digest(*part) for part in parts[::9]] == wanted[::9]
        assert [joined(host, [part]) for part in parts[::9]] == wanted[::9]
    assert {"leaf", "leaf_any", "top", "many", "many_any", "small"} == set(host.launched)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "keyed"])
def test_large_and_keyed_inputs_are_right(host: Host, key: bytes | None) -> None:
    small = Small(host, key)
    for length in (32768, 32769, 262144, 262145, 300_001, (1 << 20) - 1, 1_900_000):
        for offset in (0, 3):
            wanted = official(DATA[offset : offset + length], key)
            assert joined(host, [(offset, length)], key) == wanted
            if length < 400_000:
                assert small.digest(offset, length) == wanted


def test_every_alignment_is_right(host: Host) -> None:
    small = Small(host)
    for offset in range(16):
        for length in (1, 17, 1100, 3333):
            wanted = official(DATA[offset : offset + length])
            assert small.digest(offset, length) == wanted
            assert joined(host, [(offset, length)]) == wanted
            assert many(host, [(offset, length)]) == [wanted]


def test_large_trees_use_the_middle_kernel(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MANY_NODES", 64)
    for length in (600_000, 1_048_576, 1_700_001):
        assert joined(host, [(0, length)]) == official(DATA[:length])
    assert "middle" in host.launched


def random_parts(seed: int, most: int, count: int) -> list[tuple[int, int]]:
    choose = random.Random(seed)
    parts = []
    for _ in range(count):
        length = choose.choice([0, 1024, choose.randint(0, most), choose.randint(0, most)])
        parts.append((choose.randrange(len(DATA) - length), length))
    return parts


@pytest.mark.parametrize("most", [1, 60, 1500, 20_000])
def test_joined_inputs_are_right(host: Host, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        parts = random_parts(seed, most, 60)
        data = b"".join(bytes(DATA[at : at + n]) for at, n in parts)
        assert joined(host, parts) == official(data)
        # The same with room for few copies at a time.
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "SCRATCH", 20 << 10)
            assert joined(host, parts, KEY) == official(data, KEY)
    assert joined(host, []) == official(b"")


def test_many_inputs_of_all_sizes_are_right(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, step in ((3000, 1), (262_144, 1), (262_144, 16)):
        parts = [(at // step * step, min(n, 262_144)) for at, n in random_parts(most + step, most, 70)]
        wanted = [official(DATA[at : at + n]) for at, n in parts]
        assert many(host, parts) == wanted
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "SCRATCH", 300 << 10)
            assert many(host, parts) == wanted


@pytest.mark.parametrize("step", [1, 16])
def test_jobs_can_be_repeated(host: Host, step: int) -> None:
    choose = random.Random(8)
    parts = [(choose.randrange(0, 1000, step), choose.randint(262_145, 900_000)) for _ in range(5)]
    made = Leaves(
        host, Mode(), words(*(n for _, n in parts)), words(*(ADDRESS + at for at, _ in parts)), joined=False
    )
    state, out = host.memory(16 + 8 * made.pairs, 0), host.scratch(32 * len(parts))
    for _ in range(2):
        made.leaf(state)
        made.top(state, out)
        wanted = b"".join(official(DATA[at : at + n]) for at, n in parts)
        assert read(out, 32 * len(parts)) == wanted


@pytest.mark.parametrize("length", [1025, 20_000, 1_000_001])
def test_trees_agree_with_the_cpu(host: Host, length: int) -> None:
    for level in range((kernels.leaves(length) - 1).bit_length()):
        made = Leaves(
            host, Mode(), words(length), words(ADDRESS + 1), joined=True, levels=min(level, kernels.LEVELS)
        )
        made.leaf()
        nodes, count = made.tree(level)
        assert read(nodes, 32 * count) == digest.tree(DATA[1 : 1 + length], level)


def test_leaves_can_be_hashed_in_any_order(host: Host) -> None:
    made = Leaves(host, Mode(), words(1_500_000), words(ADDRESS), joined=True)
    state, out = host.memory(16 + 8 * made.pairs, 0), host.scratch(32)
    for part in ((3, made.blocks), (0, 2), (2, 3)):
        made.leaf(state, part)
    made.top(state, out)
    assert read(out, 32) == official(DATA[:1_500_000])


COMPILE = """
import io, sys
from pynymph import cuda
log = io.StringIO()
cubin = cuda.compile_for(sys.argv[1], log, ptxas_options=["-v", "--warn-on-spills"])
print(len(cubin))
print(log.getvalue())
"""


def test_nvrtc_compiles_without_a_spill() -> None:
    """In a child process, which a fault of the compiler's ends."""
    pytest.importorskip("cuda.bindings", reason="pynymph[cuda] is not installed")

    def compile_for(arch: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, arch], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        for arch, text in zip(
            archs := ("sm_80", "sm_90", "sm_100", "sm_120"), pool.map(compile_for, archs), strict=True
        ):
            size, log = text.split("\n", 1)
            assert int(size) > 100_000
            assert log.count("Compiling entry function") == 7 and f"'{arch}'" in log
            assert "warning" not in log and "spilled" not in log
            assert log.count("0 bytes spill stores, 0 bytes spill loads") == log.count("spill stores")


def test_missing_gpu_is_a_clear_error() -> None:
    cuda = pytest.importorskip("pynymph.cuda", reason="pynymph[cuda] is not installed")
    if cuda.devices():
        pytest.skip("there is a GPU")
    interface = {"data": (4096, False), "shape": (5,), "typestr": "|u1", "version": 3}
    array = type("Array", (), {"__cuda_array_interface__": interface})()
    with pytest.raises(kernels.digest.ArgumentError, match="host memory"):
        cuda.digest(np.zeros(3))
    for call in (lambda: cuda.digest(array), lambda: cuda.digest_many([array]), lambda: cuda.tree(array, 3)):
        with pytest.raises(OSError, match="no GPU 0"):
            call()


def test_bytes_among_segments_are_copied_to_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from pynymph import cuda

    class Uploads:
        """A stand-in for a stream, whose device memory is that of the host."""

        gpu = type("Gpu", (), {"ordinal": 0})
        kept: tuple[NDArray[Any], ...] = ()

        def __enter__(self) -> "Uploads":
            return self

        def __exit__(self, *exception: Any) -> None: ...

        def wait_for(self, producer: int | None) -> None: ...

        def upload(self, *arrays: NDArray[Any]) -> list[int]:
            self.kept = arrays
            return [array.ctypes.data for array in arrays]

        def joined(self, memories: list[cuda.Span], mode: Mode) -> bytes:
            return blake3(b"".join(ctypes.string_at(each.address, each.nbytes) for each in memories)).digest()

    monkeypatch.setattr(cuda, "on_stream_of", lambda memories, stream: Uploads())
    monkeypatch.setattr(cuda, "memory_of", lambda array, stream: cuda.Span(ADDRESS, array, 0, None, None))
    parts = [b"header", 5000, b"", 77, b"end"]
    joined = b"".join(part if isinstance(part, bytes) else DATA[:part].tobytes() for part in parts)
    assert cuda.digest_segments(parts) == blake3(joined).digest()
