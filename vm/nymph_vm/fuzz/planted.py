# SPDX-License-Identifier: MIT
"""How soon the fuzzer finds bugs that were planted in a copy of the module."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nymph_vm import build
from nymph_vm.fuzz.campaign import Campaign, Target
from nymph_vm.fuzz.program import Program
from nymph_vm.host import CHECKOUT, call, tool

PATCHES = CHECKOUT / "tests/fuzz/planted"


def sources_with(patch: Path) -> Path:
    """A copy of the modules' sources with the bug of a patch. Raises HarnessError."""
    copy = build.BUILD / "planted" / patch.stem
    shutil.rmtree(copy, ignore_errors=True)
    for path in build.module_sources():
        target = copy / path.relative_to(build.MODULES)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    call([tool("patch"), "-s", "-p2", "-d", copy, "-i", patch], f"planting {patch.name}")
    return copy


def show(target: Target, name: str, minutes: float, seed: int, corpus: Sequence[Program]) -> int:
    """Fuzz a module with each of the bugs for at most so long; show a table.

    Returns 0 if all were found, else 1.
    """
    table = Table("bug", "found after", "executions", "as")
    missed = 0
    for patch in sorted(PATCHES.glob("*.patch")):
        run = Campaign(replace(target, modules=sources_with(patch)), name=name, seed=seed, corpus=corpus)
        run.run(minutes, stop_at_first=True)
        missed += not run.findings
        for title, seconds in run.counts.first_seen.items():
            table.add_row(patch.stem, f"{seconds:.0f} s", str(run.counts.executions), title)
        if not run.findings:
            table.add_row(patch.stem, f"not in {minutes:g} min", str(run.counts.executions), "")
    Console().print(table)
    return min(missed, 1)
