# SPDX-License-Identifier: MIT
"""kernel/blake3, built for user space, against the official blake3 package."""

import importlib.util
import os
import platform
import random
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import blake3
import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCE = Path(__file__).parents[3] / "kernel" / "blake3"
CDEF = """
    struct nymph_blake3 { ...; };
    void nymph_blake3_init(struct nymph_blake3 *b);
    void nymph_blake3_init_keyed(struct nymph_blake3 *b, const uint8_t key[32]);
    void nymph_blake3_init_derive_key(struct nymph_blake3 *b, const void *context, size_t len);
    void nymph_blake3_update(struct nymph_blake3 *b, const void *data, size_t len);
    void nymph_blake3_update_copy(struct nymph_blake3 *b, void *dst, const void *src, size_t len);
    uint64_t nymph_blake3_len(const struct nymph_blake3 *b);
    void nymph_blake3_fork(struct nymph_blake3 *part, const struct nymph_blake3 *b, uint64_t at);
    void nymph_blake3_join(struct nymph_blake3 *b, struct nymph_blake3 *part);
    void nymph_blake3_final(const struct nymph_blake3 *b, uint8_t out[32]);
    void nymph_blake3_final_xof(const struct nymph_blake3 *b, uint64_t seek, void *out, size_t len);
    struct nymph_blake3_variant { const char *name; ...; };
    void nymph_blake3_use(const struct nymph_blake3_variant *variant);
    struct nymph_blake3_input { const void *data; size_t len; };
    struct nymph_blake3_batch;
    size_t nymph_blake3_batch_size(void);
    void nymph_blake3_hash_many(struct nymph_blake3_batch *batch, const struct nymph_blake3_input *in,
                                size_t n, uint8_t (*out)[32]);
"""

# Of each machine: how a variant is compiled, with kernel/Kbuild's order of instructions, and what of
# /proc/cpuinfo it needs.
VARIANTS = {
    "x86_64": {
        "sse41": (["-msse4.1"], {"sse4_1"}),
        "avx2": (["-mavx2"], {"avx2"}),
        "avx512": (["-mavx512f", "-mavx512vl"], {"avx512f", "avx512vl"}),
    },
    "aarch64": {"neon": ([], {"asimd"})},
}.get(platform.machine(), {})
CPU = set(Path("/proc/cpuinfo").read_text().split())

# Inputs of the official test vectors: byte i is i % 251.
LENGTHS = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    63,
    64,
    65,
    127,
    128,
    129,
    1023,
    1024,
    1025,
    2048,
    2049,
    3072,
    3073,
    4096,
    4097,
    5120,
    5121,
    6144,
    6145,
    7168,
    7169,
    8192,
    8193,
    16384,
    31744,
    102400,
]
KEY = b"whats the Elvish word for friend"
CONTEXT = "BLAKE3 2019-12-27 16:29:52 test vectors context"
INPUT = bytes(i % 251 for i in range(max(LENGTHS))) + random.Random(7).randbytes(200_000)

MODES = ["hash", "keyed", "derive_key"]


def official(mode: str) -> "blake3.blake3":
    match mode:
        case "keyed":
            return blake3.blake3(key=KEY)
        case "derive_key":
            return blake3.blake3(derive_key_context=CONTEXT)
    return blake3.blake3()


class Hasher:
    def __init__(self, built: ModuleType, mode: str) -> None:
        self._built, self._ffi, self._lib = built, built.ffi, built.lib
        # Full of rubbish before init, as kmalloc leaves it.
        self._state = self._ffi.new("struct nymph_blake3 *")
        self._ffi.memmove(
            self._state, b"\xa5" * self._ffi.sizeof(self._state[0]), self._ffi.sizeof(self._state[0])
        )
        match mode:
            case "hash":
                self._lib.nymph_blake3_init(self._state)
            case "keyed":
                self._lib.nymph_blake3_init_keyed(self._state, KEY)
            case "derive_key":
                self._lib.nymph_blake3_init_derive_key(self._state, CONTEXT.encode(), len(CONTEXT))

    def fork(self, at: int) -> "Hasher":
        part = Hasher(self._built, "rubbish")
        self._lib.nymph_blake3_fork(part._state, self._state, at)
        return part

    def join(self, part: "Hasher") -> None:
        self._lib.nymph_blake3_join(self._state, part._state)

    def __len__(self) -> int:
        return int(self._lib.nymph_blake3_len(self._state))

    def update(self, data: bytes, misalign: int = 0) -> None:
        copy = self._ffi.new("uint8_t[]", misalign + len(data))  # ends where its allocation ends
        self._ffi.memmove(copy + misalign, data, len(data))
        self._lib.nymph_blake3_update(self._state, copy + misalign, len(data))

    def update_copy(self, data: bytes, misalign: int = 0) -> bytes:
        """The copy."""
        source = self._ffi.new("uint8_t[]", misalign + len(data))
        self._ffi.memmove(source + misalign, data, len(data))
        copy = self._ffi.new("uint8_t[]", len(data))
        self._lib.nymph_blake3_update_copy(self._state, copy, source + misalign, len(data))
        return bytes(copy)

    def digest(self) -> bytes:
        out = self._ffi.new("uint8_t[32]")
        self._lib.nymph_blake3_final(self._state, out)
        return bytes(out)

    def xof(self, length: int, seek: int = 0) -> bytes:
        out = self._ffi.new("uint8_t[]", length)
        self._lib.nymph_blake3_final_xof(self._state, seek, out, length)
        return bytes(out)


def hash_many(built: ModuleType, inputs: list[bytes]) -> list[bytes]:
    """Each input ends where its allocation ends; what is worked with is full of rubbish."""
    ffi, lib = built.ffi, built.lib
    batch = ffi.new("uint8_t[]", b"\xa5" * lib.nymph_blake3_batch_size())
    array, out = ffi.new("struct nymph_blake3_input[]", len(inputs)), ffi.new("uint8_t[][32]", len(inputs))
    copies = [ffi.new("uint8_t[]", len(data)) if data else ffi.NULL for data in inputs]
    for each, copy, data in zip(array, copies, inputs, strict=True):
        if data:
            ffi.memmove(copy, data, len(data))
        each.data, each.len = copy, len(data)
    lib.nymph_blake3_hash_many(ffi.cast("struct nymph_blake3_batch *", batch), array, len(inputs), out)
    return [bytes(digest) for digest in out]


def build(folder: Path) -> ModuleType:
    """Compile kernel/blake3 with the compiler and CFLAGS of the environment."""
    ffi = FFI()
    declared = [f"extern const struct nymph_blake3_variant nymph_blake3_{name};" for name in VARIANTS]
    ffi.cdef(CDEF + "\n".join(declared))
    objects = []
    flags = os.environ.get("CFLAGS", "-O2").split()
    for name, (needs, _) in VARIANTS.items():
        objects.append(str(folder / f"{name}.o"))
        subprocess.run(
            [
                "gcc",
                "-std=gnu11",
                "-fPIC",
                "-fno-schedule-insns2",
                *flags,
                *needs,
                "-c",
                "-o",
                objects[-1],
                SOURCE / f"{name}.c",
            ],
            check=True,
        )
    ffi.set_source(
        "nymph_blake3",
        '#include "variant.h"',
        sources=[str(SOURCE / "blake3.c"), str(SOURCE / "many.c")],
        include_dirs=[str(SOURCE)],
        extra_compile_args=["-std=gnu11"],
        extra_objects=objects,
    )
    spec = importlib.util.spec_from_file_location("nymph_blake3", ffi.compile(tmpdir=str(folder)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return build(tmp_path_factory.mktemp("blake3"))


@pytest.fixture(scope="session", params=["portable", *VARIANTS])
def built(request: pytest.FixtureRequest, library: ModuleType) -> ModuleType:
    """The library, with each of its variants in use."""
    if request.param == "portable":
        library.lib.nymph_blake3_use(library.ffi.NULL)
        return library
    if missing := VARIANTS[request.param][1] - CPU:
        pytest.skip(f"this CPU has no {', '.join(missing)}")
    variant = library.ffi.addressof(getattr(library.lib, f"nymph_blake3_{request.param}"))
    assert library.ffi.string(variant.name).decode() == request.param
    library.lib.nymph_blake3_use(variant)
    return library


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("source", ["blake3", "many", *VARIANTS])
def test_sources_compile_without_warnings(compiler: str, source: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    needs = VARIANTS[source][0] if source in VARIANTS else []
    subprocess.run(
        [
            compiler,
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wframe-larger-than=2048",
            "-O2",
            *needs,
            "-c",
            "-o",
            os.devnull,
            SOURCE / f"{source}.c",
        ],
        check=True,
    )


def test_empty_input_has_the_known_digest(built: ModuleType) -> None:
    """One constant from the specification, so that the official package is checked as well."""
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert Hasher(built, "hash").digest().hex() == empty
    assert blake3.blake3().hexdigest() == empty


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", LENGTHS)
def test_official_vectors_agree(built: ModuleType, mode: str, length: int) -> None:
    hasher = Hasher(built, mode)
    hasher.update(INPUT[:length])
    expected = official(mode).update(INPUT[:length])
    assert hasher.xof(131) == expected.digest(131)
    assert hasher.digest() == expected.digest()


@given(mode=st.sampled_from(MODES), data=st.data())
@settings(max_examples=150, deadline=None)
def test_random_splits_change_nothing(built: ModuleType, mode: str, data: st.DataObject) -> None:
    """Any split, any alignment; a digest read on the way changes nothing."""
    hasher, expected = Hasher(built, mode), official(mode)
    near = st.sampled_from([64, 1024, 2048, 4096, 16384, 32768, 65536, 131_072, 262_144])
    lengths = st.one_of(st.integers(0, 70000), st.builds(lambda n, d: n + d, near, st.integers(-1, 1)))
    for length in data.draw(st.lists(lengths, max_size=8)):
        start = data.draw(st.integers(0, len(INPUT) - length))
        part = INPUT[start : start + length]
        if data.draw(st.booleans()):
            assert hasher.update_copy(part, misalign=data.draw(st.integers(0, 15))) == part
        else:
            hasher.update(part, misalign=data.draw(st.integers(0, 15)))
        expected.update(part)
        if data.draw(st.booleans()):
            assert hasher.digest() == expected.digest()
    assert hasher.digest() == expected.digest()


@given(
    length=st.integers(0, 3000),
    seek=st.one_of(st.integers(0, 200), st.integers(0, 2**64 - 1000)),
    out=st.integers(0, 300),
)
@settings(deadline=None)
def test_xof_seek_is_right(built: ModuleType, length: int, seek: int, out: int) -> None:
    hasher = Hasher(built, "hash")
    hasher.update(INPUT[:length])
    assert hasher.xof(out, seek) == blake3.blake3(INPUT[:length]).digest(out, seek=seek)


def test_every_length_is_right(built: ModuleType) -> None:
    """Of 0 to 16,384: all that a lane can have too much or too little of."""
    ffi, lib = built.ffi, built.lib
    state, out = ffi.new("struct nymph_blake3 *"), ffi.new("uint8_t[32]")
    data = ffi.from_buffer(INPUT)
    for length in range(16_385):
        lib.nymph_blake3_init(state)
        lib.nymph_blake3_update(state, data + length % 16, length)
        lib.nymph_blake3_final(state, out)
        start = length % 16
        assert bytes(out) == blake3.blake3(INPUT[start : start + length]).digest(), length


def test_every_length_is_right_in_batches(built: ModuleType) -> None:
    """Of 0 to 16,384 and a few more, in an order that mixes them, by batches of any number."""
    lengths = [*range(16_400), 40_000, 131_073]
    random.Random(1).shuffle(lengths)
    number = 0
    while lengths:
        number = number % 300 + 1
        batch, lengths = lengths[:number], lengths[number:]
        inputs = [INPUT[length % 16 : length % 16 + length] for length in batch]
        for length, data, digest in zip(batch, inputs, hash_many(built, inputs), strict=True):
            assert digest == blake3.blake3(data).digest(), (length, batch)


@pytest.mark.parametrize("length", [0, 1, 64, 960, 1024, 1025, 3000, 4096, 16384])
def test_batch_of_one_length_is_right(built: ModuleType, length: int) -> None:
    for number in [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 128, 129, 300]:
        inputs = [INPUT[i : i + length] for i in range(number)]
        assert hash_many(built, inputs) == [blake3.blake3(data).digest() for data in inputs]


@given(lengths=st.lists(st.one_of(st.integers(0, 20_000), st.integers(0, 1100)), max_size=40))
@settings(max_examples=150, deadline=None)
def test_batch_of_any_lengths_is_right(built: ModuleType, lengths: list[int]) -> None:
    inputs = [INPUT[i : i + length] for i, length in enumerate(lengths)]
    assert hash_many(built, inputs) == [blake3.blake3(data).digest() for data in inputs]


@pytest.mark.parametrize("first", [0, 1, 1024, 3 * 1024, 16_384, 48 * 1024, 128 * 1024 + 1])
def test_copy_copies_and_hashes(built: ModuleType, first: int) -> None:
    """Behind so many bytes, and with more to come: copied, hashed, and nothing else written."""
    ffi = built.ffi
    for length in [0, 1, 1023, 1024, 5000, 16_384, 65_536, 131_072, 300_000]:
        data = os.urandom(length)
        hasher, expected = Hasher(built, "keyed"), official("keyed")
        hasher.update(INPUT[:first])
        target = ffi.new("uint8_t[]", b"\xa5" * (length + 32))
        built.lib.nymph_blake3_update_copy(hasher._state, target + 16, ffi.from_buffer(data), length)
        assert bytes(target)[:-1] == b"\xa5" * 16 + data + b"\xa5" * 16
        hasher.update(INPUT[:77])
        expected.update(INPUT[:first]).update(data).update(INPUT[:77])
        assert hasher.digest() == expected.digest()


def test_subtrees_are_cut_right(built: ModuleType) -> None:
    """Of every number of chunks up to 300, behind some: how subtrees are cut, and are made in one go."""
    data = INPUT[: 300 * 1024]
    for chunks in range(1, 301):
        for odd in (0, 1):
            for first in (0, chunks * 7 % 64 % chunks * 1024):
                hasher = Hasher(built, "hash")
                hasher.update(data[:first])
                hasher.update(data[first : chunks * 1024 + odd])
                assert hasher.digest() == blake3.blake3(data[: chunks * 1024 + odd]).digest(), (chunks, first)


@pytest.mark.parametrize("mode", MODES)
def test_parts_of_any_size_are_right_anywhere(built: ModuleType, mode: str) -> None:
    """Of every size up to 128 KiB, everywhere in 300 KiB: with nothing before or behind, and with more."""
    chance = random.Random(3)
    for size in (2048 << n for n in range(7)):
        for at in range(0, len(INPUT) - size, size):
            hasher = Hasher(built, mode)
            part = hasher.fork(at)
            for first in range(0, at, 70_000):
                hasher.update(INPUT[first : min(first + 70_000, at)])
            cuts = sorted(chance.choices(range(size + 1), k=chance.randrange(3)))
            for begin, end in pairwise((at, *(at + cut for cut in cuts), at + size)):
                if begin % 2:
                    part.update(INPUT[begin:end])
                else:
                    part.update_copy(INPUT[begin:end])
            assert len(hasher) == at
            hasher.join(part)
            assert len(hasher) == at + size
            assert hasher.digest() == official(mode).update(INPUT[: at + size]).digest(), (size, at)
            more = chance.randrange(3000)
            hasher.update(INPUT[at + size : at + size + more])
            assert hasher.digest() == official(mode).update(INPUT[: at + size + more]).digest(), (size, at)


@given(mode=st.sampled_from(MODES), size=st.sampled_from([2048 << n for n in range(7)]), data=st.data())
@settings(max_examples=50, deadline=None)
def test_parts_made_side_by_side_are_right(
    built: ModuleType, mode: str, size: int, data: st.DataObject
) -> None:
    """Many at once, begun before what comes before them is there, and made in any order."""
    hasher = Hasher(built, mode)
    before = size * data.draw(st.integers(0, len(INPUT) // size - 1))
    number = data.draw(st.integers(1, (len(INPUT) - before) // size))
    parts = [hasher.fork(before + i * size) for i in range(number)]
    for i in data.draw(st.permutations(range(number))):
        parts[i].update(INPUT[before + i * size : before + (i + 1) * size])
    split = data.draw(st.integers(0, before))
    hasher.update(INPUT[:split])
    hasher.update(INPUT[split:before])
    for part in parts:
        hasher.join(part)
    end = before + number * size
    more = data.draw(st.integers(0, len(INPUT) - end))
    hasher.update(INPUT[end : end + more])
    assert hasher.digest() == official(mode).update(INPUT[: end + more]).digest()


def test_large_input_is_right(built: ModuleType) -> None:
    """64 MiB in one update: a tree of depth 16."""
    data = os.urandom(1 << 20) * 64
    hasher = Hasher(built, "hash")
    hasher.update(data)
    assert hasher.digest() == blake3.blake3(data).digest()


CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"


@pytest.mark.parametrize("variant", ["portable", "neon"])
def test_emulated_arm_agrees(tmp_path: Path, variant: str) -> None:
    """Every length, batches and copies, by a program of 64-bit ARM that QEMU runs."""
    if missing := [name for name in (CROSS, EMULATOR) if shutil.which(name) is None]:
        pytest.skip(f"no {' and no '.join(missing)} here: gcc-aarch64-linux-gnu, qemu-user-static have them")
    sources = [str(SOURCE / f"{name}.c") for name in ("blake3", "many", "neon")]
    program = tmp_path / "blake3_digests"
    use = ["-DNAME=nymph_blake3_neon"] if variant == "neon" else []
    subprocess.run(
        [
            CROSS,
            "-static",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O2",
            "-fno-schedule-insns2",
            "-Wframe-larger-than=2048",
            *use,
            f"-I{SOURCE}",
            "-o",
            program,
            Path(__file__).with_name("blake3_digests.c"),
            *sources,
        ],
        check=True,
    )
    data = INPUT[:300_000]
    made = subprocess.run([EMULATOR, program], input=data, stdout=subprocess.PIPE, check=True).stdout
    each = [blake3.blake3(data[i % 16 : i % 16 + i]).digest() for i in range(16_385)]
    size = 32 * len(each)
    for at in (0, size):
        for i, digest in enumerate(each):
            assert made[at + 32 * i : at + 32 * i + 32] == digest, i
    copies = made[2 * size :]
    assert copies and copies == (blake3.blake3(data).digest() + data) * (len(copies) // (32 + len(data)))


def sanitized(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python so that what it builds is built with ASAN and UBSAN, and can be loaded."""
    libraries = [
        subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "CC": "gcc",
        "CFLAGS": "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # every Python allocation has its own red zones
    }
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        text=True,
        capture_output=True,
        cwd=Path(__file__).parent,
        env=environment,
    )


def test_sanitizers_find_nothing() -> None:
    run = sanitized(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "vectors or splits or seek or batch_of or copy or side_by_side",
        __file__,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_sanitizers_find_a_planted_overread(tmp_path: Path) -> None:
    """The check above can fail: one byte read too many is found."""
    run = sanitized(
        "-c",
        f"""
import test_blake3, pathlib
built = test_blake3.build(pathlib.Path({str(tmp_path)!r}))
state = built.ffi.new("struct nymph_blake3 *")
built.lib.nymph_blake3_init(state)
built.lib.nymph_blake3_update(state, built.ffi.new("uint8_t[5000]"), 5001)
""",
    )
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr and "nymph_blake3_update" in run.stderr
