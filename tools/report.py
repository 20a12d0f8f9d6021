# SPDX-License-Identifier: MIT
"""What the tools here share: sizes to type and to read, what was measured on, and the verdict."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def human(size: int) -> str:
    for unit, factor in reversed(UNITS.items()):
        if size % factor == 0:
            return f"{size // factor} {unit}iB"
    return f"{size} B"


def size_argument(text: str) -> int:
    """For argparse: 4096, 4K, 64M, 1G."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in UNITS else (text, "")
    size = int(number) * UNITS.get(unit, 1) if number.isdecimal() else 0
    if not 1 <= size <= UNITS["G"]:
        raise argparse.ArgumentTypeError(f"{text!r} is no size from 1 to 1G; give one like 4K or 256M")
    return size


def new(**fields: Any) -> dict[str, Any]:
    """A report without failures so far, with what the figures to come are measured on."""
    accelerator = os.environ.get("NYMPH_ACCEL")
    unknown = None if accelerator else "NYMPH_ACCEL is not set: nymph-vm did not start this"
    return {
        "status": None,  # finish() says
        "failures": [],
        "kernel": platform.release(),
        "accelerator": accelerator,
        "accelerator_unknown_because": unknown,
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        **fields,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def add_turns(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """--rounds and --seconds, with these defaults, of a tool whose ways take turns."""

    def at_least_one(given: str) -> int:
        if (value := int(given)) < 1:
            raise argparse.ArgumentTypeError(f"{given} is below 1")
        return value

    def above_zero(given: str) -> float:
        if not (value := float(given)) > 0:
            raise argparse.ArgumentTypeError(f"{given} is not above 0")
        return value

    parser.add_argument(
        "--rounds", type=at_least_one, default=rounds, help=f"how often ways take turns (default: {rounds})"
    )
    parser.add_argument(
        "--seconds", type=above_zero, default=seconds, help=f"for each way and round (default: {seconds})"
    )


def print_measured_on(report: dict[str, Any]) -> None:
    print(f"CPU: {report['cpus']} of {report['cpu']}, {report['accelerator'] or 'accelerator unknown'}.")
    if report["accelerator"] == "tcg":
        print("The CPU is emulated: these figures and ratios say nothing about hardware.")


def finish(name: str, make: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], str]) -> int:
    """Make the report, write it to dist/<name>.json, and show it: the tool's exit status.

    `show` prints the figures and returns what it is that passed.
    """
    result = Path("dist") / f"{name}.json"
    try:
        result.parent.mkdir(exist_ok=True)
        # A result of an earlier run is not to be taken for this one's.
        result.unlink(missing_ok=True)
        report = make()
        report["status"] = "FAIL" if report["failures"] else "PASS"
        result.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as e:
        print(f"{name}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    passed = show(report)
    for failure in report["failures"]:
        print(f"FAIL: {failure}", file=sys.stderr)
    if report["failures"]:
        print("FAIL")
        return 1
    print(f"PASS: {passed}")
    return 0
