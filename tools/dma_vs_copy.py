#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Copies by the driver's engines, plain and verified, against memcpy; and whether every byte was right.

PASS is about data: every byte of every copy, the payload digests and the rings' hashes. How fast it was is
reported beside it, and decides only if --min-ratio says so. Writes dist/dma_vs_copy.json.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import pynymph
import report as reports
from report import human, size_argument

COMPLEMENT = bytes(255 - value for value in range(256))
CHANNELS = Path("/sys/class/dma")
IVSHMEM = "1af4:1110"
"""QEMU's ivshmem: a device that a process of the host plays, such as vm/nymph_vm/endpoint.py."""

libc = ctypes.CDLL(None)
libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Way(NamedTuple):
    """How a copy is made: by memcpy, or by the ring of an engine, plain ("driver") or verified."""

    kind: str
    engine: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} copy" + f" on {self.engine}" * (self.engine is not None)


MEMCPY = Way("memcpy")


@dataclass
class Result:
    """What was found at one size. Times are in seconds, one for each repeat."""

    size: int
    seconds: dict[Way, list[float]]
    digests: dict[str, dict[str, str]]
    """By engine."""
    failures: list[str] = field(default_factory=list)
    checked: int = 0
    """Bytes of destinations compared with their source."""

    def ratio(self, way: Way) -> float:
        """Throughput of `way` in terms of memcpy's."""
        return statistics.median(self.seconds[MEMCPY]) / statistics.median(self.seconds[way])

    def figures(self, way: Way) -> dict[str, float]:
        seconds = self.seconds[way]
        median = statistics.median(seconds)
        return {
            "repeats": len(seconds),
            "median_s": median,
            "min_s": min(seconds),
            "max_s": max(seconds),
            "bytes_per_s": self.size / median,
            "ratio_to_memcpy": self.ratio(way),
        }

    def as_json(self) -> dict[str, Any]:
        """What is of no engine; engine_json() has the rest."""
        return {"bytes": self.size, "memcpy": self.figures(MEMCPY), "bytes_checked": self.checked}

    def engine_json(self, engine: str) -> dict[str, Any]:
        ways = {kind: self.figures(Way(kind, engine)) for kind in ("driver", "verified")}
        return {"bytes": self.size, **ways, "payload_blake3": self.digests[engine]}


class Buffers:
    """A source of random bytes, and a destination that `poison` makes wrong in every one of its bytes."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.src, self.dst, self._wrong = (
            mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(3)
        )
        self.src[:] = data
        self._wrong[:] = data.translate(COMPLEMENT)
        self._src_at, self._dst_at, self._wrong_at = (
            ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            for buffer in (self.src, self.dst, self._wrong)
        )

    def poison(self) -> None:
        ctypes.memmove(self._dst_at, self._wrong_at, self.size)

    def memcpy(self) -> None:
        ctypes.memmove(self._dst_at, self._src_at, self.size)

    def first_difference(self) -> int | None:
        """Offset of the first byte of the destination that is not the source's."""
        if not libc.memcmp(self._src_at, self._dst_at, self.size):
            return None
        same, differs = 0, self.size
        while differs - same > 1:
            middle = (same + differs) // 2
            if libc.memcmp(self._src_at + same, self._dst_at + same, middle - same):
                differs = middle
            else:
                same = middle
        return same


def measure(rings: dict[str, pynymph.Ring], data: bytes, repeats: int, step: Callable[[], None]) -> Result:
    """Copy `data` in each way in turn, once to warm up and then `repeats` times, and check every copy."""
    buffers = Buffers(data)
    expected = pynymph.digest.payload(buffers.src)
    ways = [MEMCPY, *(Way(kind, engine) for engine in rings for kind in ("driver", "verified"))]
    result = Result(
        len(data), {way: [] for way in ways}, {engine: {"python": expected.hex()} for engine in rings}
    )

    def copy(way: Way, engine: str) -> pynymph.Completion:
        try:
            return rings[engine].copy(src=buffers.src, dst=buffers.dst, verify=way.kind == "verified")
        except pynymph.NymphError as e:
            message = f"{human(len(data))}: {way}: {e.strerror or e}"
            raise pynymph.NymphError(e.errno or 0, message) from e

    def check_completion(way: Way, engine: str, done: pynymph.Completion) -> Iterator[str]:
        if done.bytes_done != len(data):
            yield f"{way} says {done.bytes_done} bytes were moved"
        if done.engine != engine:
            yield f"{way} was made by engine {done.engine}"
        if way.kind == "verified":
            for side, digest in (("src", done.src_digest), ("dst", done.dst_digest)):
                found = digest.hex() if digest else "none"
                result.digests[engine][f"kernel_{side}"] = found
                if digest != expected:
                    yield f"{way}: {side} digest is {found} from the driver and {expected.hex()} recomputed"

    def once(way: Way) -> float:
        done = None
        buffers.poison()
        start = time.perf_counter()
        if way.engine is None:
            buffers.memcpy()
        else:
            done = copy(way, way.engine)
        seconds = time.perf_counter() - start

        wrong = buffers.first_difference()
        result.checked += len(data)
        if wrong is not None:
            result.failures.append(f"{way}: byte {wrong} and maybe others are wrong")
        if way.engine is not None and done is not None:
            result.failures += check_completion(way, way.engine, done)
        step()
        return seconds

    for repeat in range(1 + repeats):
        for way, seconds in result.seconds.items():
            took = once(way)
            if repeat:
                seconds.append(took)
    return result


def check_ring(ring: pynymph.Ring, moved: int) -> tuple[dict[str, str], list[str]]:
    """The ring's hash, from the driver and recomputed; and what does not agree."""
    snapshot = ring.snapshot()
    recomputed = pynymph.digest.ring_hash(snapshot)
    failures = []
    if snapshot.ring_hash != recomputed:
        failures.append(
            f"ring hash is {snapshot.ring_hash.hex()} from the driver, {recomputed.hex()} recomputed"
        )
    if ring.hash() != snapshot.ring_hash:
        failures.append("ring hash differs between GET_STATUS and SNAPSHOT of an idle ring")
    if snapshot.dma_bytes != moved:
        failures.append(f"the ring counts {snapshot.dma_bytes} bytes, and {moved} were copied")
    return {"kernel": snapshot.ring_hash.hex(), "recomputed": recomputed.hex()}, failures


def resolve(engines: Sequence[str]) -> list[str]:
    """Each engine once, and for `auto` the one that it gets."""
    names = []
    for name in engines:
        if name == "auto":
            with pynymph.Ring() as ring:
                got = ring.snapshot().engine
            if got is None:
                raise pynymph.NymphError(errno.ENODEV, "the engine that auto got has gone")
            name = got
        names.append(name)
    return list(dict.fromkeys(names))


def device_of(engine: str) -> dict[str, str | None] | None:
    """The device behind a DMA channel, as sysfs has it; None if it has none, as for the CPU."""
    device = CHANNELS / engine / "device"
    if not device.exists():
        return None
    ids = None
    if (device / "vendor").exists():  # it is of PCI
        files = (device / name for name in ("vendor", "device"))
        ids = ":".join(file.read_text().strip().removeprefix("0x") for file in files)
    return {"address": device.resolve().name, "ids": ids, "driver": (device / "driver").resolve().name}


def what_ran(engine: str, device: dict[str, str | None] | None, accelerator: str | None) -> str:
    """One sentence: what made the copies, and where."""
    emulated = accelerator == "tcg"
    if engine == "cpu":
        return f"The {'emulated ' * emulated}CPU copies, in the kernel."
    if device is None:
        return "What copies is not known: sysfs has no DMA channel of that name."
    facts = f"{device['ids'] or 'not of PCI'}, driver {device['driver']}"
    said = f"The device {device['address']} ({facts}) copies"
    if device["ids"] != IVSHMEM:
        return f"{said}."
    where = "a process of the host, natively" + ", beside a CPU that is emulated" * emulated
    return f"{said}: {where}, so its ratio to the CPU says nothing about offloading."


def run(
    engines: Sequence[str], sizes: list[int], repeats: int, min_ratio: float | None, console: Console
) -> dict[str, Any]:
    """Measure and check all of it. Returns what goes into the JSON."""
    report = reports.new(min_ratio=min_ratio, sizes=[], engines=[], engines_not_measured=[])
    failures: list[str] = report["failures"]
    results: list[Result] = []
    rings: dict[str, pynymph.Ring] = {}
    try:
        with ExitStack() as stack:
            for engine in resolve(engines):
                rings[engine] = stack.enter_context(pynymph.Ring(engine=engine))
                device = device_of(engine)
                ran = what_ran(engine, device, report["accelerator"])
                report["engines"].append(
                    {"name": engine, "device": device, "ran": ran, "sizes": [], "ring_hash": None}
                )
            report["engines_not_measured"] = [
                name for name in pynymph.query().engines.values() if name not in rings
            ]
            data = os.urandom(max(sizes))
            progress = stack.enter_context(Progress(console=console, transient=True))
            task = progress.add_task("copying", total=(1 + 2 * len(rings)) * (1 + repeats) * sum(sizes))
            for size in sizes:
                progress.update(task, description=f"copying {human(size)}")
                result = measure(rings, data[:size], repeats, partial(progress.advance, task, size))
                results.append(result)
                failures += [f"{human(size)}: {failure}" for failure in result.failures]
                report["sizes"].append(result.as_json())
                for entry in report["engines"]:
                    entry["sizes"].append(result.engine_json(entry["name"]))
            moved = sum(2 * (1 + repeats) * size for size in sizes)
            for entry in report["engines"]:
                entry["ring_hash"], disagreements = check_ring(rings[entry["name"]], moved)
                failures += [f"{entry['name']}: {failure}" for failure in disagreements]
    except pynymph.NymphError as e:
        failures.append(e.strerror or str(e))
    if min_ratio is not None:
        failures += [
            f"{human(result.size)}: driver on {engine} at {ratio:.3f} of memcpy, below {min_ratio}"
            for result in results
            for engine in rings
            if (ratio := result.ratio(Way("driver", engine))) < min_ratio
        ]
    return report


def show(report: dict[str, Any]) -> str:
    engines = report["engines"]
    if report["sizes"]:
        table = Table(title=f"Linux {report['kernel']}", box=SIMPLE, pad_edge=False, collapse_padding=True)
        for heading in ("size", "memcpy\nMB/s"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("engine", no_wrap=True)
        for heading in ("driver\nMB/s", "verified\nMB/s", "driver\n: memcpy", "verified\n: memcpy"):
            table.add_column(heading, justify="right", no_wrap=True)
        for n, row in enumerate(report["sizes"]):
            # What is of no engine is said once for all of them.
            first = (human(row["bytes"]), rate(row["memcpy"]))
            for engine in engines:
                figures = [engine["sizes"][n][kind] for kind in ("driver", "verified")]
                ratios = (f"{of['ratio_to_memcpy']:.3f}" for of in figures)
                table.add_row(*first, engine["name"], *map(rate, figures), *ratios)
                first = ("", "")
        # Where nobody says how wide the output is, rich would cut the table off at 80 columns.
        Console(width=120).print(table)
        print("MB/s: by the median time; ± is how far the slowest and the fastest repeat are apart.")
        print("driver: the CPU fills a bounce buffer, the engine empties it; verified: the CPU also hashes.")
        for engine in engines:
            print(f"{engine['name']}: {engine['ran']}")
        if report["engines_not_measured"]:
            print(f"Not measured: {', '.join(report['engines_not_measured'])}.")
        reports.print_measured_on(report)
    for engine in engines:
        if engine["ring_hash"]:
            print(f"ring hash of {engine['name']}: {engine['ring_hash']['kernel']}")
    checked = sum(row["bytes_checked"] for row in report["sizes"])
    *others, last = ["memcpy", *(engine["name"] for engine in engines)]
    by = f"{', '.join(others)} and {last}"
    return f"all {checked} bytes copied by {by} are right, payload digests and ring hashes agree"


def rate(figures: dict[str, float]) -> str:
    megabytes = figures["bytes_per_s"] / 1e6
    median = f"{megabytes:.4g}" if megabytes < 1000 else f"{megabytes:.0f}"
    if figures["repeats"] == 1:
        return median
    return f"{median} ±{(figures['max_s'] - figures['min_s']) / figures['median_s']:.0%}"


def sizes_argument(text: str) -> list[int]:
    return [size_argument(part) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engine",
        action="append",
        dest="engines",
        metavar="NAME",
        help="an engine to measure, may be repeated (default: cpu, and auto: the one that auto gets)",
    )
    parser.add_argument(
        "--sizes",
        type=sizes_argument,
        default=[4**n * 4096 for n in range(8)],
        metavar="N,...",
        help="bytes of each copy, K, M and G allowed (default: 4K,16K,... to 64M)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="copies timed of each kind and size (default: 5)"
    )
    parser.add_argument(
        "--min-ratio",
        type=float,
        metavar="R",
        help="fail if at any size an engine's plain copy has less than R times the throughput of memcpy",
    )
    parsed = parser.parse_args()
    if parsed.repeats < 1:
        parser.error(f"--repeats {parsed.repeats}: give 1 or more")
    return parsed


def main() -> int:
    chosen = arguments()

    def make() -> dict[str, Any]:
        engines = chosen.engines or ["cpu", "auto"]
        return run(engines, chosen.sizes, chosen.repeats, chosen.min_ratio, Console(stderr=True))

    return reports.finish("dma_vs_copy", make, show)


if __name__ == "__main__":
    sys.exit(main())
