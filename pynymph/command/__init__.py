# SPDX-License-Identifier: MIT
"""The command pynymph: one file for each group of commands, and `terminal` for what they share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

import pynymph
from pynymph.command.copying import copy
from pynymph.command.live import top
from pynymph.command.machine import info, reset, show_topology
from pynymph.command.model_weights import weights
from pynymph.command.proofs import evidence_group, verify
from pynymph.command.recording import trace
from pynymph.command.sums import hash_files
from pynymph.command.terminal import DIFFERS, INTERRUPTED, TROUBLE, Failure, explain, say
from pynymph.errors import VerifyError

_PASSED_ON: dict[str, Any] = {
    "ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []
}  # fmt: skip


class _Group(click.Group):
    def main(self, args: Any = None, prog_name: Any = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run as click does, with our exit statuses, and one line for each error."""
        if extra.pop("standalone_mode", True):
            sys.exit(self.run(args))
        return super().main(args, prog_name, standalone_mode=False, **extra)

    def run(self, arguments: list[str] | None) -> int:
        """Run a command, and return its exit status."""
        try:
            return self.main(arguments, "pynymph", standalone_mode=False) or 0
        except click.UsageError as error:
            about = error.ctx.command_path if error.ctx else "pynymph"
            say(f"{error.format_message()} See: {about} --help")
        except Failure as error:
            say(error.message)
            return error.status
        except click.ClickException as error:
            say(error.format_message())
        return TROUBLE

    def invoke(self, context: click.Context) -> Any:
        """Run a command, and tell what its errors mean."""
        try:
            return super().invoke(context)
        except VerifyError as error:
            raise Failure(explain(error), DIFFERS) from None
        except BrokenPipeError:  # nobody reads stdout any more, and nothing more goes there
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise Failure("nobody reads the output any more") from None
        except OSError as error:  # a NymphError is one, too
            raise Failure(explain(error)) from None
        except KeyboardInterrupt as error:
            raise Failure(str(error) or "interrupted", INTERRUPTED) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pynymph.__version__, message="pynymph %(version)s")
def cli() -> None:
    """DMA rings on this machine, and proof of bytes.

    Exit status: 0, done, and all that was checked is right; 1, the answer is no; 2, it could not be done, or
    wrong usage; 3, no driver or engine can do it; 130, Ctrl-C.
    """


for _command in (info, show_topology, copy, hash_files, verify, top, trace, reset, weights, evidence_group):
    cli.add_command(_command)


@cli.command(context_settings=_PASSED_ON, short_help="Measure engines against memcpy.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...], as_json: bool) -> None:
    """Measure verified copies by the driver's engines against memcpy: tools/dma_vs_copy.py of the checkout.

    Arguments are those of that program.
    """
    program = Path(pynymph.__file__).parents[1] / "tools/dma_vs_copy.py"
    if not program.exists():
        raise Failure("the benchmark is in the project's checkout, and this package is not one")
    called = [sys.executable, str(program), *arguments]
    if not as_json:
        click.get_current_context().exit(subprocess.run(called).returncode)
    result = Path("dist/dma_vs_copy.json")
    before = result.stat().st_mtime_ns if result.exists() else None
    done = subprocess.run(called, stdout=sys.stderr)
    if result.exists() and result.stat().st_mtime_ns != before:  # else it is of another run
        click.echo(result.read_text())
    click.get_current_context().exit(done.returncode)


@cli.command(context_settings=_PASSED_ON, short_help="Serve rings over HTTPS: nymphd.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> None:
    """Serve the fabric over HTTPS: `nymphd serve`, whose arguments these are."""
    for entry in entry_points(group="console_scripts", name="nymphd"):
        sys.argv[0] = "nymphd"
        entry.load()(["serve", *arguments])
        return
    if program := shutil.which("nymphd"):  # of the Debian package, which keeps its modules to itself
        os.execv(program, [program, "serve", *arguments])
    raise Failure("nymphd is not installed; docs/how-to/nymphd.md installs it")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with its status, if that is not 0."""
    if status := cli.run(None if arguments is None else list(arguments)):
        sys.exit(status)
