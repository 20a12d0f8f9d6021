#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Copies through the driver, plain and verified, against memcpy; and whether every byte and digest was right.

PASS is about data: every byte of every copy, the payload digests and the ring's hash. How fast it was is
reported beside it, and decides only if --min-ratio says so. Writes dist/dma_vs_copy.json.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import pynymph
import report as reports
from report import human, size_argument

COMPLEMENT = bytes(255 - value for value in range(256))

libc = ctypes.CDLL(None)
libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


@dataclass
class Result:
    """What was found at one size. Times are in seconds, one for each repeat."""

    size: int
    seconds: dict[str, list[float]]
    digests: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    checked: int = 0
    """Bytes of destinations compared with their source."""

    def ratio(self, way: str) -> float:
        """Throughput of `way` in terms of memcpy's."""
        return statistics.median(self.seconds["memcpy"]) / statistics.median(self.seconds[way])

    def as_json(self) -> dict[str, Any]:
        ways = {}
        for way, seconds in self.seconds.items():
            median = statistics.median(seconds)
            ways[way] = {
                "repeats": len(seconds),
                "median_s": median,
                "min_s": min(seconds),
                "max_s": max(seconds),
                "bytes_per_s": self.size / median,
                "ratio_to_memcpy": self.ratio(way),
            }
        return {"bytes": self.size, **ways, "payload_blake3": self.digests, "bytes_checked": self.checked}


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


def measure(ring: pynymph.Ring, data: bytes, repeats: int, step: Callable[[], None]) -> Result:
    """Copy `data` in each way in turn, once to warm up and then `repeats` times, and check every copy."""
    buffers = Buffers(data)
    expected = pynymph.digest.payload(buffers.src)
    engine = ring.snapshot().engine
    result = Result(len(data), {"memcpy": [], "driver": [], "verified": []})
    result.digests = {"python": expected.hex()}

    def check_completion(way: str, done: pynymph.Completion) -> Iterator[str]:
        if done.bytes_done != len(data):
            yield f"{way} copy says {done.bytes_done} bytes were moved"
        if done.engine != engine:
            yield f"{way} copy was made by engine {done.engine}, the ring's is {engine}"
        if way == "verified":
            for side, digest in (("src", done.src_digest), ("dst", done.dst_digest)):
                found = digest.hex() if digest else "none"
                result.digests[f"kernel_{side}"] = found
                if digest != expected:
                    yield f"{side} digest is {found} from the driver and {expected.hex()} recomputed"

    def once(way: str) -> float:
        done = None
        buffers.poison()
        start = time.perf_counter()
        if way == "memcpy":
            buffers.memcpy()
        else:
            done = ring.copy(src=buffers.src, dst=buffers.dst, verify=way == "verified")
        seconds = time.perf_counter() - start

        wrong = buffers.first_difference()
        result.checked += len(data)
        if wrong is not None:
            result.failures.append(f"{way} copy: byte {wrong} and maybe others are wrong")
        if done is not None:
            result.failures += check_completion(way, done)
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


def run(sizes: list[int], repeats: int, min_ratio: float | None, console: Console) -> dict[str, Any]:
    """Measure and check all of it. Returns what goes into the JSON."""
    report = reports.new(engine=None, min_ratio=min_ratio, sizes=[], ring_hash=None)
    failures: list[str] = report["failures"]
    results: list[Result] = []
    try:
        data = os.urandom(max(sizes))
        with pynymph.Ring() as ring, Progress(console=console, transient=True) as progress:
            report["engine"] = ring.snapshot().engine
            task = progress.add_task("copying", total=3 * (1 + repeats) * sum(sizes))
            for size in sizes:
                progress.update(task, description=f"copying {human(size)}")
                result = measure(ring, data[:size], repeats, partial(progress.advance, task, size))
                results.append(result)
                failures += [f"{human(size)}: {failure}" for failure in result.failures]
                report["sizes"].append(result.as_json())
            moved = sum(2 * (1 + repeats) * size for size in sizes)
            report["ring_hash"], disagreements = check_ring(ring, moved)
            failures += disagreements
    except pynymph.NymphError as e:
        failures.append(e.strerror or str(e))
    if min_ratio is not None:
        failures += [
            f"{human(result.size)}: driver at {result.ratio('driver'):.3f} of memcpy, below {min_ratio}"
            for result in results
            if result.ratio("driver") < min_ratio
        ]
    return report


def show(report: dict[str, Any]) -> str:
    if report["sizes"]:
        table = Table(title=f"engine {report['engine']} on Linux {report['kernel']}", box=SIMPLE)
        rates = ("memcpy\nMB/s", "driver\nMB/s", "verified\nMB/s")
        for heading in ("size", *rates, "driver\n: memcpy", "verified\n: memcpy"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in report["sizes"]:
            table.add_row(
                human(row["bytes"]),
                *(rate(row[way]) for way in ("memcpy", "driver", "verified")),
                *(f"{row[way]['ratio_to_memcpy']:.3f}" for way in ("driver", "verified")),
            )
        Console().print(table)
        print("MB/s: by the median time; ± is how far the slowest and the fastest repeat are apart.")
        reports.print_measured_on(report)
    if report["ring_hash"]:
        print(f"ring hash: {report['ring_hash']['kernel']}")
    checked = sum(row["bytes_checked"] for row in report["sizes"])
    return f"all {checked} bytes copied are right, payload digests and ring hash agree"


def rate(figures: dict[str, float]) -> str:
    median = f"{figures['bytes_per_s'] / 1e6:.4g}"
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
        help="fail if at any size the driver's copy has less than R times the throughput of memcpy",
    )
    parsed = parser.parse_args()
    if parsed.repeats < 1:
        parser.error(f"--repeats {parsed.repeats}: give 1 or more")
    return parsed


def main() -> int:
    chosen = arguments()

    def make() -> dict[str, Any]:
        return run(chosen.sizes, chosen.repeats, chosen.min_ratio, Console(stderr=True))

    return reports.finish("dma_vs_copy", make, show)


if __name__ == "__main__":
    sys.exit(main())
