# SPDX-License-Identifier: MIT
"""How fast kernel/blake3 is, natively and on one thread, against the official implementation.

The official C and assembly, held to one instruction set at a time when it is built, runs in the same process:
both take turns, and what is printed are ratios, above 1 where kernel/blake3 is faster. Its source is that of
--official, a checkout's folder c, or else of Debian's package librust-blake3-dev, which is downloaded and not
installed. The package blake3 from PyPI cannot be held to an instruction set: it is compared with the best
variant of ours, both called from Python, with what each takes for an empty input subtracted.

Then many small inputs side by side against one by one; copy and hash in one pass, as the driver does it
between buffers and, by way of a bounce buffer, with memory that it borrows, against memmove and then the
official hash; and two threads that share a tree, in wall time. PASS is about digests: all agree. Writes
dist/blake3.json.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import blake3
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import report as reports
from report import human

TOP = Path(__file__).parents[1]
OURS = TOP / "kernel" / "blake3"
PACKAGE = "librust-blake3-dev"
# Of each variant, slowest first: how it is compiled, what of /proc/cpuinfo it needs, and what the official
# one has beside slower ones. What faster ones have is left out of it by BLAKE3_NO_....
VARIANTS: dict[str, tuple[list[str], set[str], list[str]]] = {"portable": ([], set(), [])}
if platform.machine() == "x86_64":
    VARIANTS |= {
        "sse41": (["-msse4.1"], {"sse4_1"}, ["SSE2", "SSE41"]),
        "avx2": (["-mavx2"], {"avx2"}, ["AVX2"]),
        "avx512": (["-mavx512f", "-mavx512vl"], {"avx512f", "avx512vl"}, ["AVX512"]),
    }
SIZES = tuple(2**n for n in (6, 8, 10, 11, 12, 13, 14, 16, 18, 20, 24, 26))
ODD_SIZES = (3 * 1024, 7 * 1024, 31 * 1024)
BATCHES = (64, 1024, 2048, 4096, 16384)
MIXED = "mixed"
CPUS = len(os.sched_getaffinity(0))


class Official(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("init", "update", "finalize")]


def compile_c(target: Path, *arguments: str | Path) -> None:
    command = ["gcc", "-std=gnu11", "-fPIC", *map(str, arguments), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def build_ours(folder: Path) -> ctypes.CDLL:
    objects = []
    for name, (flags, _, _) in VARIANTS.items():
        if flags:
            objects.append(folder / f"{name}.o")
            compile_c(objects[-1], "-O2", "-fno-schedule-insns2", *flags, "-c", OURS / f"{name}.c")
    sources = (TOP / "bench" / "native_blake3.c", OURS / "blake3.c", OURS / "many.c")
    target = folder / "ours.so"
    compile_c(target, "-O2", "-pthread", "-shared", "-Wl,-Bsymbolic", f"-I{OURS}", *sources, *objects)
    library = ctypes.CDLL(str(target))
    for name in ("ours", "official", "batch", "one_by_one", "copy", "bounce", "copy_official"):
        getattr(library, f"bench_{name}").restype = ctypes.c_uint64
    library.bench_digest.restype = None
    return library


def official_source(given: str | None, folder: Path) -> Path:
    """The folder of the official C; of a package, unpacked into `folder`, if none is given."""
    if given:
        return Path(given)
    done = subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=folder, capture_output=True, text=True)
    package = next(folder.glob(f"{PACKAGE}_*.deb"), None)
    if done.returncode or not package:
        raise OSError(f"apt-get download {PACKAGE}: {done.stderr.strip() or 'nothing came'}")
    subprocess.run(["dpkg", "-x", package, folder], check=True, capture_output=True)
    found = list(folder.glob("usr/share/cargo/registry/blake3-*/c/blake3.c"))
    if not found:
        raise OSError(f"{package.name} has no C in it")
    return found[0].parent


def build_official(source: Path, name: str, folder: Path) -> Official:
    """Of -O3, as its own build has it."""
    names = list(VARIANTS)
    faster = [part for later in names[names.index(name) + 1 :] for part in VARIANTS[later][2]]
    parts = [part for upto in names[: names.index(name) + 1] for part in VARIANTS[upto][2]]
    assembly = [source / f"blake3_{part.lower()}_x86-64_unix.S" for part in parts]
    sources = [source / f"{stem}.c" for stem in ("blake3", "blake3_dispatch", "blake3_portable")]
    compile_c(
        folder / f"official-{name}.so", "-O3", "-shared", "-Wl,-Bsymbolic", f"-I{source}",
        *(f"-DBLAKE3_NO_{part}" for part in faster), *sources, *assembly,
    )  # fmt: skip
    library = ctypes.CDLL(str(folder / f"official-{name}.so"))
    functions = (library.blake3_hasher_init, library.blake3_hasher_update, library.blake3_hasher_finalize)
    return Official(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))


def version_of(source: Path) -> str:
    found = re.search(r'BLAKE3_VERSION_STRING "(.*?)"', (source / "blake3.h").read_text())
    return found[1] if found else "unknown"


class Bench:
    def __init__(self, library: ctypes.CDLL, official: dict[str, Official], rounds: int, seconds: float,
                 largest: int, step: Callable[[], None]) -> None:  # fmt: skip
        self.library, self.official = library, official
        self.rounds, self.seconds, self.largest, self.step = rounds, seconds, largest, step
        block = random.Random(1).randbytes(1 << 20)
        self.data = bytearray(block * (max(largest, 1 << 22) // len(block) + 1))
        self.view = memoryview(self.data).toreadonly()
        self.source = (ctypes.c_char * len(self.data)).from_buffer(self.data)
        self.failures: list[str] = []

    def times(self, length: int, least: int = 1) -> int:
        """How often such an input is hashed at a time, at some 2 GB/s."""
        return max(least, int(self.seconds / (50e-9 + length / 2e9)))

    def use(self, variant: str) -> None:
        chosen = None
        if variant != "portable":
            chosen = ctypes.byref(ctypes.c_char.in_dll(self.library, f"nymph_blake3_{variant}"))
        self.library.nymph_blake3_use(chosen)

    def expect(self, what: str, got: bytes, expected: bytes) -> None:
        if got != expected:
            self.failures.append(f"{what}: digest {got[:32].hex()}, not {expected[:32].hex()}")

    def take_turns(self, ways: dict[str, Callable[[], int]], of: str = "ours") -> dict[str, Any]:
        """Nanoseconds of each way, and as ratios what others take of what `of` takes, round by round."""
        for way in ways.values():
            way()
        rounds = [{name: way() for name, way in ways.items()} for _ in range(self.rounds)]
        self.step()
        ratios = {
            name: statistics.median(taken[name] / max(taken[of], 1) for taken in rounds)
            for name in ways if name != of
        }  # fmt: skip
        return {"ns": {name: min(taken[name] for taken in rounds) for name in ways}, "ratio": ratios,
                "rounds": rounds}  # fmt: skip

    def hashes(self, variant: str, length: int) -> dict[str, Any]:
        out, times = (ctypes.c_char * 32)(), self.times(length)
        rest = (self.source, ctypes.c_size_t(length), ctypes.c_size_t(times), out)
        self.use(variant)

        def ours() -> int:
            return int(self.library.bench_ours(*rest))

        def official() -> int:
            return int(self.library.bench_official(ctypes.byref(self.official[variant]), *rest))

        expected = blake3.blake3(self.view[:length]).digest()
        ways = {"ours": ours} | ({"official": official} if variant in self.official else {})
        for name, way in ways.items():
            way()
            self.expect(f"{name}, {variant}, {length} bytes", out.raw, expected)
        return {"series": "hash", "variant": variant, "bytes": length, "times": times} | self.take_turns(ways)

    def from_python(self, variant: str, length: int) -> dict[str, Any]:
        out, times = (ctypes.c_char * 32)(), self.times(length, least=2)
        self.use(variant)
        view, digest, size = self.view[:length], self.library.bench_digest, ctypes.c_size_t(length)
        zero = ctypes.c_size_t(0)

        def timed(call: Callable[[], object]) -> int:
            begun = time.thread_time_ns()
            for _ in range(times):
                call()
            return time.thread_time_ns() - begun

        def ours() -> int:
            empty = timed(lambda: digest(self.source, zero, out))
            return timed(lambda: digest(self.source, size, out)) - empty

        def pypi() -> int:
            empty = timed(lambda: blake3.blake3(b"").digest())
            return timed(lambda: blake3.blake3(view).digest()) - empty

        digest(self.source, size, out)
        self.expect(f"ours from Python, {length} bytes", out.raw, blake3.blake3(view).digest())
        found = self.take_turns({"ours": ours, "pypi": pypi})
        return {"series": "python", "variant": variant, "bytes": length, "times": times} | found

    def batches(self, variant: str, length: int | str, number: int) -> dict[str, Any]:
        chance = random.Random(2)
        lengths = [chance.randint(1, 16384) if isinstance(length, str) else length for _ in range(number)]
        distance, total = 16384 + 64, sum(lengths)
        array, out = (ctypes.c_size_t * number)(*lengths), (ctypes.c_char * (32 * number))()
        times = self.times(total)
        self.use(variant)
        size = ctypes.c_size_t
        rest = (self.source, size(distance), array, size(number), size(times), out)

        def one_by_one(official: Official | None) -> int:
            pointer = ctypes.pointer(official) if official else None
            return int(self.library.bench_one_by_one(pointer, *rest))

        ways: dict[str, Callable[[], int]] = {
            "ours": lambda: int(self.library.bench_batch(*rest)),
            "one by one": lambda: one_by_one(None),
        }
        if variant in self.official:
            ways["official"] = lambda: one_by_one(self.official[variant])
        inputs = (self.view[at * distance : at * distance + each] for at, each in enumerate(lengths))
        expected = b"".join(blake3.blake3(data).digest() for data in inputs)
        for name, way in ways.items():
            way()
            self.expect(f"batch, {name}, {variant}, {length} bytes", out.raw, expected)
        head = {"series": "batch", "variant": variant, "bytes": length, "number": number, "times": times}
        return head | self.take_turns(ways)

    def copies(self, variant: str, length: int) -> dict[str, Any]:
        out, copied, size = (ctypes.c_char * 32)(), bytearray(length), ctypes.c_size_t(length)
        target = (ctypes.c_char * length).from_buffer(copied)
        self.use(variant)
        once = ctypes.c_size_t(1)

        def official() -> int:
            pointer = ctypes.byref(self.official[variant])
            return int(self.library.bench_copy_official(pointer, target, self.source, size, out))

        ways: dict[str, Callable[[], int]] = {
            "ours": lambda: int(self.library.bench_copy(target, self.source, size, out)),
            "bounce": lambda: int(self.library.bench_bounce(target, self.source, size, out)),
            "hash alone": lambda: int(self.library.bench_ours(self.source, size, once, out)),
        }
        if variant in self.official:
            ways["official"] = official
        expected = blake3.blake3(self.view[:length]).digest()
        for name, way in ways.items():
            ctypes.memset(target, 0, length)
            way()
            self.expect(f"copy, {name}, {variant}", out.raw, expected)
            if name != "hash alone" and copied != self.data[:length]:
                self.failures.append(f"copy, {name}, {variant}: the copy is not the source")
        return {"series": "copy", "variant": variant, "bytes": length} | self.take_turns(ways)

    def threads(self, variant: str, length: int) -> dict[str, Any]:
        out, size, once = (ctypes.c_char * 32)(), ctypes.c_size_t(length), ctypes.c_size_t(1)
        self.use(variant)

        def timed(call: Callable[[], object]) -> int:
            begun = time.monotonic_ns()
            call()
            return time.monotonic_ns() - begun

        def two() -> None:
            if not self.library.bench_two_threads(self.source, size, out):
                raise OSError("no thread can be started")

        ways: dict[str, Callable[[], int]] = {
            "ours": lambda: timed(two),
            "one thread": lambda: timed(lambda: self.library.bench_digest(self.source, size, out)),
        }
        if variant in self.official:
            pointer = ctypes.byref(self.official[variant])
            ways["official"] = lambda: timed(
                lambda: self.library.bench_official(pointer, self.source, size, once, out)
            )
        expected = blake3.blake3(self.view[:length]).digest()
        for name, way in ways.items():
            way()
            self.expect(f"threads, {name}, {variant}", out.raw, expected)
        return {"series": "threads", "variant": variant, "bytes": length} | self.take_turns(ways)


def points(bench: Bench, variants: list[str]) -> Iterator[Callable[[], dict[str, Any]]]:
    sizes = sorted(size for size in SIZES + ODD_SIZES if size <= bench.largest)
    for variant in variants:
        for length in sizes:
            yield partial(bench.hashes, variant, length)
        for batch in (*BATCHES, MIXED):
            yield partial(bench.batches, variant, batch, 64)
        yield partial(bench.copies, variant, bench.largest)
        if CPUS > 1:
            yield partial(bench.threads, variant, bench.largest)
    for length in (size for size in sizes if size >= 1024):
        yield partial(bench.from_python, variants[-1], length)


def run(given: str | None, rounds: int, seconds: float, largest: int, console: Console) -> dict[str, Any]:
    gcc = subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    cpu = set(Path("/proc/cpuinfo").read_text().split())
    variants = [name for name, (_, needs, _) in VARIANTS.items() if needs <= cpu]
    report = reports.new(
        compiler=gcc, rounds=rounds, seconds_each=seconds, variants=variants, rows=[],
        official=None, official_missing_because=None, pypi=blake3.__version__,
    )  # fmt: skip
    if report["accelerator"] is None:
        report |= {"accelerator": "native", "accelerator_unknown_because": None}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            library = build_ours(folder)
            official: dict[str, Official] = {}
            try:
                source = official_source(given, folder)
                official = {each: build_official(source, each, folder) for each in variants}
                report["official"] = version_of(source)
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                if given:
                    raise
                report["official_missing_because"] = str(error)
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task("hashing", total=None)
                bench = Bench(library, official, rounds, seconds, largest, lambda: progress.advance(task))
                todo = list(points(bench, variants))
                progress.update(task, total=len(todo))
                report["rows"] = [point() for point in todo]
            report["failures"] = bench.failures
        except (OSError, RuntimeError) as error:
            report["failures"].append(str(error))
    return report


def speed(row: dict[str, Any], way: str = "ours") -> float:
    return float(row["bytes"] * row.get("times", 1) / max(row["ns"][way], 1))


def table_of(title: str, rows: list[dict[str, Any]], columns: list[str],
             cells: Callable[[dict[str, Any]], list[str]]) -> Table:  # fmt: skip
    table = Table(title=title, box=SIMPLE)
    for column in ("bytes", *columns):
        table.add_column(column, justify="right")
    for length in dict.fromkeys(row["bytes"] for row in rows):
        found = [cell for row in rows if row["bytes"] == length for cell in cells(row)]
        table.add_row(human(length) if isinstance(length, int) else length, *found)
    return table


def show(report: dict[str, Any]) -> str:
    console, variants = Console(), report["variants"]

    def series(name: str) -> list[dict[str, Any]]:
        return [row for row in report["rows"] if row["series"] == name]

    def ratio(row: dict[str, Any], way: str) -> str:
        return f"{row['ratio'][way]:.2f}" if way in row["ratio"] else "-"

    def bounced(row: dict[str, Any]) -> str:
        return f"{row['ratio']['official'] / row['ratio']['bounce']:.2f}" if report["official"] else "-"

    if report["rows"]:
        official = f"official C {report['official']}" if report["official"] else "official C (not here)"
        console.print(table_of(
            f"kernel/blake3 in GB/s, and its ratio to {official} of the same instruction set", series("hash"),
            [head for name in variants for head in (f"{name}\nGB/s", "\nratio")],
            lambda row: [f"{speed(row):.2f}", ratio(row, "official")],
        ))  # fmt: skip
        console.print(table_of(
            f"ratio of {variants[-1]} to blake3 {report['pypi']} from PyPI, from Python, less an empty call",
            series("python"), ["ratio"], lambda row: [ratio(row, "pypi")],
        ))  # fmt: skip
        console.print(table_of(
            "64 inputs side by side, as ratios to the same one by one, by ours and by the official C",
            series("batch"), [head for name in variants for head in (f"{name}\nours", "\nofficial")],
            lambda row: [ratio(row, "one by one"), ratio(row, "official")],
        ))  # fmt: skip
        console.print(table_of(
            "copy and hash: cost, hashing alone being 1, and how much faster than memmove, then official C",
            series("copy"), [head for name in variants for head in (f"{name}\ncost", "\nfaster")],
            lambda row: [f"{1 / row['ratio']['hash alone']:.2f}", ratio(row, "official")],
        ))  # fmt: skip
        console.print(table_of(
            "the same by way of a bounce buffer of 16 KiB",
            series("copy"), [head for name in variants for head in (f"{name}\ncost", "\nfaster")],
            lambda row: [f"{row['ratio']['bounce'] / row['ratio']['hash alone']:.2f}", bounced(row)],
        ))  # fmt: skip
        if series("threads"):
            console.print(table_of(
                f"two threads on {CPUS} CPUs, wall time: ratio to one, and to one of official C",
                series("threads"), [head for name in variants for head in (f"{name}\nours", "\nofficial")],
                lambda row: [ratio(row, "one thread"), ratio(row, "official")],
            ))  # fmt: skip
        else:
            console.print("Two threads: not measured, there is one CPU.")
    if report["official_missing_because"]:
        print(f"No official C: {report['official_missing_because']}")
    print(f"Linux {report['kernel']}, {report['compiler']}.")
    reports.print_measured_on(report)
    return "all digests agree with the official ones"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", help="folder c of a checkout of the official BLAKE3")
    reports.add_turns(parser, rounds=11, seconds=0.002)
    parser.add_argument("--largest", type=reports.size_argument, default=1 << 26, help="input (default: 64M)")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    return reports.finish(
        "blake3",
        lambda: run(chosen.official and os.path.abspath(chosen.official), chosen.rounds, chosen.seconds,
                    chosen.largest, Console(stderr=True)),
        show,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
