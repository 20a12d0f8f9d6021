# SPDX-License-Identifier: MIT
"""The benchmarks, step by step: bench/run.sh takes them all. `compare` tells two runs apart."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import report as reports

DIST = Path("dist")
RAW = "bench-raw"


def measure(chosen: argparse.Namespace) -> int:
    """Where the driver is."""
    from bench import suite

    plan = suite.QUICK if chosen.quick else suite.FULL
    plan = replace(plan, rounds=chosen.rounds or plan.rounds, seconds=chosen.seconds or plan.seconds)
    console = Console(stderr=True)

    def make() -> dict[str, Any]:
        report = suite.run(os.path.abspath(chosen.program), plan, tuple(chosen.only), console)
        if not report["failures"]:
            suite.trace(report)
        return report

    def show(report: dict[str, Any]) -> str:
        return f"{len(report['ways'])} ways in {report['measured_s']:.0f} s, all data and digests are right"

    return reports.finish(RAW, make, show)


def publish(chosen: argparse.Namespace) -> int:
    """Anywhere: all that is made of what was measured."""
    from bench import figures, page, perfetto_trace
    from pynymph.command import story

    raw = json.loads((DIST / f"{RAW}.json").read_text())
    trace = DIST / "trace.perfetto"

    def make() -> dict[str, Any]:
        trace.unlink(missing_ok=True)
        if recorded := raw.pop("trace", None):
            try:
                made = story.build(recorded)
                raw["failures"] += [f"trace: {what}" for what in perfetto_trace.validate(made, recorded)]
                trace.write_bytes(made)
            except story.TraceError as error:
                raw["failures"].append(f"trace: {error}")
        report = figures.make(raw)
        blake3 = DIST / "blake3.json"
        page.write(report, json.loads(blake3.read_text()) if blake3.exists() else None, DIST)
        return report

    def show(report: dict[str, Any]) -> str:
        summary(report)
        made = [
            "bench.json",
            "report.html",
            "performance.md",
            *(["trace.perfetto"] if trace.exists() else []),
        ]
        return f"all data and digests are right; see {', '.join(made)} in {DIST}/"

    return reports.finish("bench", make, show)


def summary(report: dict[str, Any]) -> None:
    """The machine's noise, and what people would use instead."""
    from bench import page

    table = Table(title="times as fast as memmove, then the official blake3", box=SIMPLE)
    found = page.ratios(report, "instead", ("bytes",))
    table.add_column("")
    for (size,) in found:
        table.add_column(reports.human(size), justify="right")
    for name, cells in page.by_way(found).items():
        table.add_row(name, *(page.times(cells[size]) if size in cells else "-" for size in found))
    if found:
        Console(width=120).print(table)
    if report["noise"]:
        again = page.times(report["noise"]["same_twice"])
        print(f"The same way measured twice: {again} times as fast as itself.")
    wide, known = page.wide(report["figures"])
    load = report["load_average"]
    print(f"{wide} of {known} figures have an interval too wide to rely on (?); the load was {load:.1f}.")
    for each in report["figures"]:
        if each["value"] is None:
            print(f"Not measured: {each['id']}: {each['because']}.")
    reports.print_measured_on({**report["machine"]})


def compare(chosen: argparse.Namespace) -> int:
    from bench import comparison, figures

    try:
        old, new = (figures.read(path) for path in (chosen.old, chosen.new))
        verdict = comparison.compare(old, new)
    except (OSError, ValueError, comparison.IncomparableError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    for title, changes in (("slower", verdict.regressions), ("faster", verdict.improvements)):
        if changes:
            table = Table(title=title, box=SIMPLE)
            for heading in ("", "cost, new : old", "95 %"):
                table.add_column(heading, justify="right" if heading else "left")
            for each in changes:
                table.add_row(each.id, f"{each.ratio:.2f}", f"{each.low:.2f} to {each.high:.2f}")
            Console(width=150).print(table)
    for name in verdict.gone:
        print(f"Not in the new run: {name}")
    tolerance = f"{verdict.tolerance - 1:.0%}"
    print(f"{verdict.compared} figures compared; a change of up to {tolerance} is the machine's.")
    print(f"{len(verdict.untold)} may have become worse by more than that, and the samples do not tell.")
    if verdict.regressions:
        print(f"REGRESSION: {len(verdict.regressions)} figures")
        return 1
    print("no regression")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure", help=f"measure, where the driver is: dist/{RAW}.json")
    command.add_argument("program", help="bench/load.c, compiled")
    command.add_argument("--quick", action="store_true", help="less of everything")
    command.add_argument("--only", action="append", default=[], metavar="GROUP", help="groups so called")
    reports.add_turns(command, rounds=0, seconds=0)
    command.set_defaults(run=measure)
    command = commands.add_parser("publish", help="make bench.json, the trace and the pages of that")
    command.set_defaults(run=publish)
    command = commands.add_parser(
        "compare", help="regressions between two bench.json", description="Exit status: 1 if there are any."
    )
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)
    command.set_defaults(run=compare)
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    return int(chosen.run(chosen))


if __name__ == "__main__":
    sys.exit(main())
