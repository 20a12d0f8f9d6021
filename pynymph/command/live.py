# SPDX-License-Identifier: MIT
"""`pynymph top`: rings and engines, live, from the driver's counters and the rings' fdinfo."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from pynymph.command import machine
from pynymph.command.terminal import NO_DRIVER, Failure, engine_names, json_option, print_json, size
from pynymph.ring import DEVICE

PROC = Path("/proc")
RATES = (
    "submitted", "completed", "failed", "bytes", "verified", "mismatched", "engine_failures", "fallbacks",
)  # fmt: skip
"""Counters that grow; the others are of now."""


@dataclass(frozen=True)
class RingNow:
    """Tell of one ring. Times are in ns, of all its entries so far."""

    ring: int
    pid: int
    command: str
    engine: str
    entries: int
    active: int
    errors: int
    bytes: int
    locked: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    bytes_per_s: float = 0.0


@dataclass(frozen=True)
class Sample:
    """Tell all that is known at one moment."""

    at: float
    counters: dict[str, int]
    rings: dict[int, RingNow]


def sample() -> Sample:
    """Read counters, and the rings of all processes that may be looked into."""
    return Sample(time.monotonic(), machine.numbers("counters"), {ring.ring: ring for ring in _rings()})


def _rings() -> list[RingNow]:
    found = dict[int, RingNow]()
    for process in PROC.glob("[0-9]*"):
        try:
            files = [fd for fd in os.listdir(process / "fd") if os.readlink(process / "fd" / fd) == DEVICE]
            for fd in files:
                ring = _ring(process, (process / "fdinfo" / fd).read_text())
                if ring is not None:
                    found.setdefault(ring.ring, ring)
        except OSError:
            continue  # it has ended, or is somebody else's
    return sorted(found.values(), key=lambda ring: ring.ring)


def _ring(process: Path, text: str) -> RingNow | None:
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {name.removeprefix("nymph-"): value.strip() for name, value in fields.items()}
    if "ring" not in values:
        return None  # opened, and not set up
    latency = dict(pair.split("=") for pair in values["latency-ns"].split())
    locked = sum(int(values[name]) for name in ("ring-bytes", "pinned-bytes", "buffer-bytes"))
    return RingNow(
        ring=int(values["ring"]), pid=int(process.name), command=(process / "comm").read_text().strip(),
        engine=values["engine"], entries=int(values["entries"]), active=int(values["active"]),
        errors=int(values["errors"]), bytes=int(values["dma-bytes"]), locked=locked,
        p50_ns=int(latency["p50"]), p99_ns=int(latency["p99"]), max_ns=int(latency["max"]),
    )  # fmt: skip


def difference(old: Sample, new: Sample) -> dict[str, Any]:
    """Return counters, rates and rings, as --json prints them."""
    seconds = max(new.at - old.at, 1e-9)
    rates = {
        f"{name}_per_s": (new.counters.get(name, 0) - old.counters.get(name, 0)) / seconds
        for name in RATES
        if name in new.counters
    }
    rings = []
    for number, ring in sorted(new.rings.items()):
        before = old.rings.get(number)
        moved = ring.bytes - (before.bytes if before and before.bytes <= ring.bytes else 0)
        rings.append({**asdict(ring), "bytes_per_s": moved / seconds if before else 0.0})
    engines = {
        name: {
            "rings": sum(ring["engine"] == name for ring in rings),
            "active": sum(ring["active"] for ring in rings if ring["engine"] == name),
            "bytes_per_s": sum(ring["bytes_per_s"] for ring in rings if ring["engine"] == name),
        }
        for name in engine_names(str(machine.SYS))
    }
    return {"seconds": seconds, "counters": new.counters, "rates": rates, "engines": engines, "rings": rings}


def table(found: dict[str, Any]) -> Any:
    """Return what `top` shows."""
    from rich.console import Group
    from rich.table import Table

    counters, rates = found["counters"], found["rates"]
    head = (
        f"{counters.get('rings', 0)} rings, {counters.get('contexts', 0)} open files; "
        f"{size(rates.get('bytes_per_s', 0))}/s, {rates.get('completed_per_s', 0):.4g} entries/s, "
        f"{rates.get('verified_per_s', 0):.4g} verified/s; "
        f"{counters.get('failed', 0)} failed, {counters.get('mismatched', 0)} mismatched, "
        f"{counters.get('fallbacks', 0)} by the CPU instead, {counters.get('quarantined', 0)} in quarantine"
    )
    engines = Table("engine", "rings", "active", "rate", box=None, pad_edge=False)
    for name, each in found["engines"].items():
        engines.add_row(name, str(each["rings"]), str(each["active"]), f"{size(each['bytes_per_s'])}/s")
    rings = Table(
        "ring", "pid", "command", "engine", "active", "rate", "moved", "locked", "p50", "p99", "max",
        "errors", box=None, pad_edge=False,
    )  # fmt: skip
    for ring in found["rings"]:
        times = (_time(ring[name]) for name in ("p50_ns", "p99_ns", "max_ns"))
        rings.add_row(
            str(ring["ring"]), str(ring["pid"]), ring["command"], ring["engine"],
            f"{ring['active']}/{ring['entries']}", f"{size(ring['bytes_per_s'])}/s", size(ring["bytes"]),
            size(ring["locked"]), *times, str(ring["errors"]),
        )  # fmt: skip
    return Group(head, "", engines, "", rings)


def _time(ns: int) -> str:
    for unit in ("ns", "µs", "ms"):
        if ns < 1000:
            return f"{ns:.3g} {unit}"
        ns /= 1000  # type: ignore[assignment]
    return f"{ns:.3g} s"


@click.command(short_help="Show rings and engines live, with rates and latencies.")
@click.option("--once", is_flag=True, help="Print once, and end.")
@click.option(
    "--interval", type=click.FloatRange(0.01, 3600), default=1.0, metavar="SECONDS",
    help="The time that rates are of (default: 1).",
)  # fmt: skip
@json_option
def top(once: bool, interval: float, as_json: bool) -> None:
    """Show rings and engines live, with rates and latencies, until Ctrl-C.

    Everybody sees the sums of all rings. Rings are those of processes that you may look into: yours, or all
    as root. Latencies are of all entries of a ring so far.
    """
    from rich.console import Console
    from rich.live import Live

    if not machine.numbers("counters"):
        raise Failure("there is no driver to watch: sudo modprobe pcie_nymph; see pynymph info", NO_DRIVER)
    console = Console(width=None if sys.stdout.isatty() else 200)
    old = sample()
    if once:
        time.sleep(interval)
        found = difference(old, sample())
        if as_json:
            print_json(found)
        else:
            console.print(table(found))
        return
    try:
        with Live(console=console, screen=console.is_terminal and not as_json, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                new = sample()
                found = difference(old, new)
                old = new
                if as_json:
                    click.echo(json.dumps(found))
                elif console.is_terminal:
                    live.update(table(found), refresh=True)
                else:
                    console.print(table(found))
    except KeyboardInterrupt:
        return
