# SPDX-License-Identifier: MIT
"""What all commands share: exit statuses, one-line errors, --engine, --json, names, and a progress bar."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from pynymph.errors import NymphError
from pynymph.ring import DEVICE, MODEL, Ring

if TYPE_CHECKING:
    from pynymph.evidence import Log

DIFFERS, TROUBLE, NO_DRIVER, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses: the answer is no; the work could not be done; no driver can do it; Ctrl-C."""

MODEL_ENGINE = "model"
USERSPACE = "userspace"

_ENGINES = "class/misc/pcie_nymph/engines"
_HINTS = {
    errno.ENOENT: f"there is no {DEVICE}: load the module (sudo modprobe pcie_nymph)",
    errno.EACCES: f"{DEVICE} belongs to group nymph: sudo usermod -aG nymph $USER, then log in again",
}
_HINTS[errno.ENXIO] = _HINTS[errno.ENOENT]


class Failure(click.ClickException):
    """End the command with one line on stderr, and an exit status."""

    def __init__(self, message: str, status: int = TROUBLE) -> None:
        super().__init__(message)
        self.status = status


def named(path: str | bytes) -> str:
    """Return a file's name as a terminal may show it: quoted if it has control characters or odd bytes."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)


def explain(error: OSError) -> str:
    """Return one line about an error, with the name of the file that it is about."""
    reason = error.strerror or str(error)
    if isinstance(error, NymphError) or error.filename is None:
        return reason
    return f"{named(error.filename)}: {reason}"


def print_json(report: Any, *, err: bool = False) -> None:
    """Print a report as JSON."""
    click.echo(json.dumps(report, indent=2), err=err)


def engine_names(root: str = "/sys") -> list[str]:
    """Return the names of the driver's engines, or nothing without a driver."""
    try:
        return (Path(root) / _ENGINES).read_text().split()
    except OSError:
        return []


def engine_option(*more: str, default: str | None, help: str) -> Callable[[Any], Any]:
    """Make --engine. `more`: names beside those of the driver's engines."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
        return [name for name in (*more, *engine_names()) if name.startswith(begun)]

    return click.option("--engine", metavar="NAME", default=default, shell_complete=complete, help=help)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def open_ring(engine: str, entries: int, log: Log | None = None) -> Ring:
    """Open the ring that --engine names: of the driver, or of the model if it is "model".

    Args:
        engine: the name.
        entries: of the ring.
        log: what records it, or None.

    Raises:
        Failure: there is none; the message says what to do.
    """
    try:
        if engine == MODEL_ENGINE:
            return Ring(entries, device=MODEL, evidence=log)
        return Ring(entries, engine=engine, evidence=log)
    except NymphError as error:
        number = error.errno or 0
        absent = number in (errno.ENODEV, errno.EIO, *_HINTS)
        message = _HINTS.get(number, error.strerror or str(error))
        if number in (errno.ENOENT, errno.ENXIO):
            message += f"; --engine {MODEL_ENGINE} uses a model of the driver in Python instead"
        raise Failure(message, NO_DRIVER if absent else TROUBLE) from None


def open_hashing_ring(engine: str | None, entries: int) -> Ring | None:
    """Open a ring for a command that can do without: None stands for this process's own BLAKE3.

    Args:
        engine: as for open_ring(), or "userspace". None: a ring of the driver, if the driver is there.
        entries: of the ring.

    Raises:
        Failure: as open_ring() raises it.
    """
    if engine == USERSPACE or (engine is None and not Path(DEVICE).exists()):
        return None
    return open_ring(engine or "auto", entries)


class Advance(Protocol):
    """Note bytes that were done since the last call, and how many there are if that is known only now."""

    def __call__(self, nbytes: int, total: int | None = None) -> None: ...


@contextlib.contextmanager
def bar(what: str, total: int | None) -> Iterator[Advance]:
    """Show a progress bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda nbytes, total=None: None
        return
    from rich import progress
    from rich.console import Console

    columns = (*progress.Progress.get_default_columns(), progress.TransferSpeedColumn())
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda nbytes, total=total: shown.update(task, advance=nbytes, total=total)


def say(message: str) -> None:
    """Print a line on stderr."""
    click.echo(f"pynymph: {message}", err=True)


def size(nbytes: float) -> str:
    """Return bytes in a unit that people read, as in "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} TiB"
