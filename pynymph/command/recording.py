# SPDX-License-Identifier: MIT
"""`pynymph trace`: what the driver's tracepoints say, in a file for ui.perfetto.dev."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import click

from pynymph.command.terminal import (
    NO_DRIVER,
    TROUBLE,
    Failure,
    explain,
    json_option,
    named,
    print_json,
)
from pynymph.errors import NymphError
from pynymph.openfile import query

TRACEFS = Path("/sys/kernel/tracing")
# "python3-812   [001] .....   103.204018: nymph_start: ring=3 cookie=0x1 engine=1 length=64 ns=103204017512"
LINE = re.compile(r"-(?P<thread>\d+)\s+\[\d+\].*?: nymph_(?P<event>\w+): (?P<fields>.*)")


class Tracer:
    """The driver's events, in a tracefs instance of our own, so that nobody's settings are changed."""

    def __init__(self) -> None:
        self._folder = TRACEFS / f"instances/pynymph-{os.getpid()}"

    def __enter__(self) -> Tracer:
        if not (TRACEFS / "events/pcie_nymph").exists():
            message = f"{TRACEFS} has no events of pcie_nymph that you may see: load the module, and be root"
            raise NymphError(errno.ENODEV, message)
        self._folder.mkdir()
        self._write("buffer_size_kb", "8192")
        self._write("trace_clock", "mono")
        self._write("events/pcie_nymph/enable", "1")
        return self

    def __exit__(self, *_: object) -> None:
        self._write("events/pcie_nymph/enable", "0")
        self._folder.rmdir()

    def _write(self, name: str, value: str) -> None:
        (self._folder / name).write_text(value)

    def events(self) -> list[dict[str, Any]]:
        """Return all there were, in the order of their times. Raises NymphError if some were lost."""
        for each in self._folder.glob("per_cpu/cpu*/stats"):
            for line in each.read_text().splitlines():
                name, _, value = line.partition(": ")
                if name in ("overrun", "dropped events", "commit overrun") and int(value):
                    message = f"the trace lost {value} events ({name}); record for a shorter time"
                    raise NymphError(errno.EOVERFLOW, message)
        found = []
        for line in (self._folder / "trace").read_text().splitlines():
            if match := LINE.search(line):
                pairs = (field.split("=") for field in match["fields"].split())
                fields = {name: int(value, 0) for name, value in pairs}
                found.append({"event": match["event"], "thread": int(match["thread"]), **fields})
        return sorted(found, key=lambda event: event["ns"])


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Record what rings do, for ui.perfetto.dev.",
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after so long.")
@json_option
@click.argument("output", metavar="FILE", type=click.Path(dir_okay=False))
@click.argument("command", metavar="[COMMAND]...", nargs=-1, type=click.UNPROCESSED)
def trace(output: str, command: tuple[str, ...], seconds: float | None, as_json: bool) -> None:
    """Record the driver's tracepoints of all rings into FILE, for ui.perfetto.dev.

    It ends when COMMAND does, after --seconds, or by Ctrl-C. Only root may record. The exit status is that of
    COMMAND, if it is not 0.
    """
    try:
        from pynymph.command import story
    except ModuleNotFoundError as missing:
        raise Failure(f"there is no {missing.name}: pip install 'pynymph[trace]'") from None
    try:
        with Tracer() as tracer:
            status = _wait(command, seconds)
            events = tracer.events()
    except PermissionError:
        raise Failure(f"{TRACEFS} is root's: sudo pynymph trace") from None
    except NymphError as error:
        raise Failure(explain(error), NO_DRIVER if error.errno == errno.ENODEV else TROUBLE) from None
    recorded = whole(events, query().engines)
    try:
        made = story.build(recorded, partial=True)
    except story.TraceError as error:
        raise Failure(f"the events make no sense together: {error}") from None
    Path(output).write_bytes(made)
    told = {"file": output, "events": len(events), "rings": len(recorded["rings"]), "bytes": len(made)}
    if as_json:
        print_json(told)
    else:
        click.echo(
            f"{named(output)}: {told['events']} events of {told['rings']} rings, for https://ui.perfetto.dev"
        )
    click.get_current_context().exit(status)


def whole(events: list[dict[str, Any]], engines: dict[int, str]) -> dict[str, Any]:
    """Return what story.build() takes, of events alone."""
    of_rings = {event["ring"]: "no engine" for event in events if "ring" in event}
    for event in events:
        if event["event"] == "start":
            of_rings[event["ring"]] = engines.get(event["engine"], str(event["engine"]))
    rings = [{"ring": ring, "name": "", "engine": engine} for ring, engine in sorted(of_rings.items())]
    names = {str(id): name for id, name in engines.items()}
    return {"engines": names, "rings": rings, "spans": [], "events": events, "pid": os.getpid()}


def _wait(command: tuple[str, ...], seconds: float | None) -> int:
    """Wait until it is time to end; returns the exit status."""
    if not command:
        with contextlib.suppress(KeyboardInterrupt):
            while seconds is None:
                time.sleep(3600)
            time.sleep(seconds)
        return 0
    with subprocess.Popen(command) as running:
        try:
            status = running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.terminate()
            running.wait()
            return 0
        except KeyboardInterrupt:
            status = running.wait()
    return status if status >= 0 else 128 - status
