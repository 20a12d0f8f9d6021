# SPDX-License-Identifier: MIT
"""How many copies per second a ring makes: one request each against batches, from C and from Python.

All paths of one size take turns within one run, and what is printed are ratios to the first: one request of
the first driver for each copy, from C. Then the cost of a copy by depth, and with other rings open. PASS is
about data: all copies ended well, and those from Python are compared. Writes dist/rate.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import pynymph
import report as reports
from pynymph import Copy, batch
from report import human

SIZES = (64, 512, 4096, 65536)
DEPTH = 256
DEPTHS = (1, 16, 64, 256, 1024, 4096)
RINGS = (1, 16, 256)
PATHS: tuple[str, ...] = (
    "C submit",
    "C enter-1",
    "C enter",
    "Python copy",
    "Python submit_all",
    "Python run_many",
)
BATCH_PATHS: tuple[str, ...] = ("C enter", "Python run_many")
PATIENCE = 60.0


def rate_from_c(program: str, engine: str, size: int, depth: int, path: str, seconds: float) -> float:
    command = [program, engine, str(size), str(depth), path, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    copies, nanoseconds = map(int, done.stdout.split())
    return copies / nanoseconds * 1e9


def rate_from_python(engine: str, size: int, depth: int, path: str, seconds: float) -> float:
    with pynymph.Ring(depth, engine=engine) as ring:
        src, dst = ring.allocate(depth * size), ring.allocate(depth * size)
        src.view[:] = os.urandom(depth * size)
        at = np.arange(depth) * size
        entries = batch.copies(src, dst, src_at=at, dst_at=at, length=size)
        copies = [Copy(src=src[i : i + size], dst=dst[i : i + size]) for i in range(0, depth * size, size)]

        def one_each() -> None:
            for each in copies:
                ring.copy(src=each.src, dst=each.dst, timeout=PATIENCE)

        def all_at_once() -> None:
            for transfer in ring.submit_all(copies):
                transfer.result(PATIENCE)

        def as_array() -> None:
            if ring.run_many(entries, PATIENCE)["status"].any():
                raise RuntimeError("a copy of run_many failed")

        turn = {"copy": one_each, "submit_all": all_at_once, "run_many": as_array}[path]
        turn()
        if src.view != dst.view:
            raise RuntimeError(f"{path}: the destinations are not the sources")
        begun, made = time.monotonic(), 0
        while (now := time.monotonic()) < begun + seconds or not made:
            turn()
            made += depth
        return made / (now - begun)


def rate(program: str, engine: str, size: int, depth: int, path: str, seconds: float) -> float:
    """Copies per second."""
    language, how = path.split()
    if language == "C":
        return rate_from_c(program, engine, size, depth, how, seconds)
    return rate_from_python(engine, size, depth, how, seconds)


def measure(
    program: str, engines: list[str], seconds: float, rounds: int, step: Callable[[], None]
) -> list[dict[str, Any]]:
    """One row for each engine, size, depth, number of rings and path: the median of the rounds."""
    points = [("bytes", engine, size, DEPTH, 1, PATHS) for engine in engines for size in SIZES]
    points += [("depth", engines[0], SIZES[0], depth, 1, BATCH_PATHS) for depth in DEPTHS]
    points += [("rings", engines[0], SIZES[0], DEPTH, rings, BATCH_PATHS) for rings in RINGS]
    rows = []
    for series, engine, size, depth, rings, paths in points:
        found: dict[str, list[float]] = {path: [] for path in paths}
        with contextlib.ExitStack() as others:
            for _ in range(rings - 1):
                others.enter_context(pynymph.Ring(1, engine=engine))
            for _ in range(rounds):
                for path in paths:
                    found[path].append(rate(program, engine, size, depth, path, seconds))
        rows += [
            {"series": series, "engine": engine, "bytes": size, "depth": depth, "rings": rings, "path": path,
             "copies_per_s": statistics.median(rates), "rounds": rates}
            for path, rates in found.items()
        ]  # fmt: skip
        step()
    return rows


def run(program: str, seconds: float, rounds: int, console: Console) -> dict[str, Any]:
    report = reports.new(seconds_each=seconds, rounds=rounds, rows=[])
    try:
        engines = list(pynymph.query().engines.values())[:2]  # the CPU, and one channel
        total = len(engines) * len(SIZES) + len(DEPTHS) + len(RINGS)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("copying", total=total)
            report["rows"] = measure(program, engines, seconds, rounds, lambda: progress.advance(task))
    except (pynymph.NymphError, RuntimeError, OSError) as error:
        report["failures"].append(str(error))
    return report


def batch_ratios(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Rows of Python's batches at one depth, and how many times as many copies as C's they make."""
    made = {(row["engine"], row["bytes"], row["path"]): row for row in rows if row["series"] == "bytes"}
    c, python = BATCH_PATHS
    return [
        (row, row["copies_per_s"] / made[engine, size, c]["copies_per_s"])
        for (engine, size, path), row in made.items() if path == python
    ]  # fmt: skip


def show(report: dict[str, Any]) -> str:
    rows = report["rows"]
    for engine in dict.fromkeys(row["engine"] for row in rows):
        table = Table(title=f"copies per second on {engine}, as ratios, depth {DEPTH}", box=SIMPLE)
        table.add_column("bytes", justify="right")
        table.add_column("C submit\nper second", justify="right")
        for path in PATHS[1:]:
            table.add_column(path.replace(" ", "\n"), justify="right")
        for size in SIZES:
            found = {
                row["path"]: row["copies_per_s"] for row in rows
                if (row["series"], row["engine"], row["bytes"]) == ("bytes", engine, size)
            }  # fmt: skip
            base = found[PATHS[0]]
            ratios = (f"{found[path] / base:.2f}" for path in PATHS[1:])
            table.add_row(human(size), f"{base:.0f}", *ratios)
        Console().print(table)
    if rows:
        for row, ratio in batch_ratios(rows):
            what = f"{DEPTH} copies of {human(row['bytes'])} on {row['engine']}"
            print(f"{what}: run_many takes {1 / ratio:.2f} times as long as C.")
        for series, base in (("depth", DEPTH), ("rings", 1)):
            table = Table(title=f"cost of a copy of {human(SIZES[0])} by {series}, as ratios", box=SIMPLE)
            costs: dict[str, dict[int, float]] = {path: {} for path in BATCH_PATHS}
            for row in rows:
                if row["series"] == series:
                    costs[row["path"]][row[series]] = 1 / row["copies_per_s"]
            table.add_column("")
            for value in costs[BATCH_PATHS[0]]:
                table.add_column(str(value), justify="right")
            for path, by_value in costs.items():
                table.add_row(path, *(f"{cost / by_value[base]:.2f}" for cost in by_value.values()))
            Console().print(table)
        print(f"Linux {report['kernel']}.")
        reports.print_measured_on(report)
    return "all copies ended well, and those from Python are right"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", help="rate.c, compiled")
    reports.add_turns(parser, rounds=3, seconds=0.3)
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    program = os.path.abspath(chosen.program)
    return reports.finish(
        "rate", lambda: run(program, chosen.seconds, chosen.rounds, Console(stderr=True)), show
    )


if __name__ == "__main__":
    sys.exit(main())
