# SPDX-License-Identifier: MIT
"""How long small copies take on a ring alone, and beside another process's ring that is busy with large ones.

PASS is about data: every byte of every copy, small and large. The times are from submit to record, as the
records say, alone and beside the large copies in turn within one run; they decide only if --max-ratio says
so. Writes dist/fairness.json.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import pynymph
import report as reports
from report import UNITS, human, size_argument

SMALL = 4096
PERCENTILES = (50, 95, 99)
LARGE_QUEUED = 4
PATIENCE = 60.0
"""Seconds; nothing takes that long."""


@dataclass
class Times:
    """Times of small copies in seconds, from submit to record, under one condition."""

    seconds: list[float] = field(default_factory=list)

    def percentile(self, percent: int) -> float:
        """A time that so many of all did not exceed."""
        ranked = sorted(self.seconds)
        return ranked[-(-len(ranked) * percent // 100) - 1]

    def as_json(self) -> dict[str, Any]:
        percentiles = {f"p{percent}_s": self.percentile(percent) for percent in PERCENTILES}
        return {"copies": len(self.seconds), **percentiles, "max_s": max(self.seconds)}


def memory(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def large_size() -> int:
    """Of each large copy: 1 GiB, or what a quarter of the free memory holds."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    size = UNITS["G"]
    while size > free // 8:  # two buffers of that size
        size //= 2
    return size


def keep_busy(size: int, orders: Connection) -> None:
    """A process of its own: between "go" and "pause" there are always large copies in its ring."""
    try:
        orders.send(_keep_busy(size, orders))
    except (pynymph.NymphError, OSError, EOFError) as error:
        orders.send([str(error)])


def _keep_busy(size: int, orders: Connection) -> list[str]:
    failures: list[str] = []
    block = random.randbytes(2**20)
    src, dst = memory(size), memory(size)
    for offset in range(0, size, len(block)):
        src[offset : offset + len(block)] = block[: size - offset]
    copy = pynymph.Copy(src=src, dst=dst)
    with pynymph.Ring(2 * LARGE_QUEUED) as ring:
        while orders.recv() == "go":
            ring.submit_all([copy] * LARGE_QUEUED)
            while not ring.snapshot().active_descriptors:
                pass
            orders.send("busy")
            while not orders.poll():
                done = next(ring.completions(timeout=PATIENCE))
                if done.status or done.bytes_done != size:
                    failures.append(f"large copy ended with {done.status} after {done.bytes_done} bytes")
                ring.submit(copy)
            orders.recv()
            # What is in the ring now would disturb the measure that comes next.
            ring.reset()
            orders.send("idle")
        ring.copy(src=src, dst=dst)
    if src[:] != dst[:]:
        failures.append("large copy: the destination is not the source")
    return failures


def small_copies(ring: pynymph.Ring, count: int, times: Times, step: Callable[[], None]) -> list[str]:
    """Make them one by one, take their times, and check them."""
    failures: list[str] = []
    src, dst = memory(SMALL), memory(SMALL)
    for _ in range(count):
        src[:] = random.randbytes(SMALL)
        done = ring.copy(src=src, dst=dst, timeout=PATIENCE)
        times.seconds.append((done.completed_ns - done.queued_ns) / 1e9)
        if dst[:] != src[:]:
            failures.append("small copy: the destination is not the source")
        step()
    return failures


def measure(size: int, copies: int, turns: int, step: Callable[[], None]) -> tuple[Times, Times, list[str]]:
    """Small copies alone and beside large ones in turn. Returns the times of both, and what went wrong."""
    alone, beside, failures = Times(), Times(), []
    ours, theirs = multiprocessing.Pipe()
    # Before there is a ring: it belongs to the process that opens it.
    fork = multiprocessing.get_context("fork")
    neighbour = fork.Process(target=keep_busy, args=(size, theirs), daemon=True)
    neighbour.start()
    theirs.close()

    def expect(word: str) -> None:
        said = ours.recv()
        if said != word:
            raise RuntimeError(f"the ring with the large copies ended: {said}")

    try:
        with pynymph.Ring(8) as ring:
            small_copies(ring, 50, Times(), lambda: None)  # to warm up
            for _ in range(turns):
                failures += small_copies(ring, copies // turns, alone, step)
                ours.send("go")
                expect("busy")
                failures += small_copies(ring, copies // turns, beside, step)
                ours.send("pause")
                expect("idle")
        ours.send("stop")
        failures += ours.recv()
    except (RuntimeError, EOFError) as error:
        failures.append(str(error) or "the ring with the large copies ended without a word")
    finally:
        neighbour.join(1)
        neighbour.kill()
        neighbour.join()
    return alone, beside, failures


def run(size: int, copies: int, turns: int, max_ratio: float | None, console: Console) -> dict[str, Any]:
    """Measure all of it. Returns what goes into the JSON."""
    report = reports.new(
        small_bytes=SMALL, large_bytes=size, max_ratio=max_ratio, alone=None, beside=None, ratio=None
    )
    failures: list[str] = report["failures"]
    try:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("copying 4 KiB", total=2 * copies)
            started = time.monotonic()
            alone, beside, found = measure(size, copies, turns, lambda: progress.advance(task))
            report["seconds"] = time.monotonic() - started
        failures += found
    except pynymph.NymphError as e:
        failures.append(e.strerror or str(e))
        return report
    if alone.seconds and beside.seconds:
        report["alone"], report["beside"] = alone.as_json(), beside.as_json()
        report["ratio"] = {
            f"p{percent}": beside.percentile(percent) / alone.percentile(percent) for percent in PERCENTILES
        }
        if max_ratio is not None and report["ratio"]["p99"] > max_ratio:
            failures.append(f"p99 is {report['ratio']['p99']:.2f} times what it is alone, above {max_ratio}")
    return report


def show(report: dict[str, Any]) -> str:
    if report["ratio"]:
        title = f"{human(report['small_bytes'])} copies, Linux {report['kernel']}"
        table = Table(title=title, box=SIMPLE)
        table.add_column("")
        for heading in ("alone\nµs", f"beside {human(report['large_bytes'])}\nµs", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        for percent in PERCENTILES:
            name = f"p{percent}"
            alone, beside = (report[side][f"{name}_s"] * 1e6 for side in ("alone", "beside"))
            table.add_row(name, f"{alone:.1f}", f"{beside:.1f}", f"{report['ratio'][name]:.2f}")
        Console().print(table)
        print(f"{report['alone']['copies']} copies each, from submit to record.")
        reports.print_measured_on(report)
    return "every byte of every copy is right"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--large",
        type=size_argument,
        metavar="N",
        help="bytes of each large copy, K, M and G allowed (default: 1G, or what fits into memory)",
    )
    parser.add_argument(
        "--copies", type=int, default=2000, help="small copies under each condition (default: 2000)"
    )
    parser.add_argument(
        "--turns", type=int, default=4, help="how often the two conditions take turns (default: 4)"
    )
    parser.add_argument(
        "--max-ratio",
        type=float,
        metavar="R",
        help="fail if the small copies' p99 beside large ones is more than R times what it is alone",
    )
    parsed = parser.parse_args()
    if not 1 <= parsed.turns <= parsed.copies:
        parser.error(f"--copies {parsed.copies} --turns {parsed.turns}: give 1 turn or more, as many copies")
    return parsed


def main() -> int:
    chosen = arguments()

    def make() -> dict[str, Any]:
        size = chosen.large or large_size()
        return run(size, chosen.copies, chosen.turns, chosen.max_ratio, Console(stderr=True))

    return reports.finish("fairness", make, show)


if __name__ == "__main__":
    sys.exit(main())
