# SPDX-License-Identifier: MIT
"""The command pynymph; also python3 -m pynymph."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from pynymph.errors import NymphError
from pynymph.topology import PciFunction, PciLink, topology


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="pynymph", description="What there is for DMA on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("topology", help="show the PCI functions, their drivers and DMA channels")
    command.add_argument("--json", action="store_true", help="as JSON, and all that is known")
    command.add_argument("--root", default="/sys", metavar="PATH", help="where sysfs is (default: /sys)")
    options = parser.parse_args(arguments)
    try:
        functions = topology(options.root)
    except NymphError as error:
        sys.exit(f"pynymph: {error.strerror}")
    if options.json:
        print(json.dumps([asdict(function) for function in functions], indent=2))
    else:
        tree = Tree("PCI")
        _grow(tree, functions)
        # A terminal wraps lines inside the tree; elsewhere each function is one line.
        Console(width=None if sys.stdout.isatty() else 1000).print(tree)


def _grow(tree: Tree, functions: Iterable[PciFunction]) -> None:
    for function in functions:
        _grow(tree.add(_line(function)), function.children)


def _line(function: PciFunction) -> Text:
    kind = f"{function.port} port" if function.port else function.kind
    facts = [
        function.driver or "no driver",
        f"slot {function.slot}" if function.slot else "",
        _link(function.link) if function.link else "",
        f"interrupts {function.interrupts}" if function.interrupts else "",
        " ".join(function.dma_channels),
    ]
    about = f" {kind} {function.id}: {', '.join(filter(None, facts))}"
    return Text.assemble((function.address, "bold"), about)


def _link(link: PciLink) -> str:
    """As in "2.5 GT/s x1 of 16 GT/s x32", with ? for what it does not say."""
    now, most = (
        f"{f'{speed:g}' if speed else '?'} GT/s x{width or '?'}"
        for speed, width in ((link.speed, link.width), (link.max_speed, link.max_width))
    )
    return now if now == most else f"{now} of {most}"


if __name__ == "__main__":
    main()
