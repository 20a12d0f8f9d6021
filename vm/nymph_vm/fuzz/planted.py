# SPDX-License-Identifier: MIT
"""How soon the fuzzer finds bugs that were planted in a copy of the module."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from nymph_vm.fuzz import sources
from nymph_vm.fuzz.campaign import Campaign, Target
from nymph_vm.fuzz.program import Program


def show(target: Target, name: str, minutes: float, seed: int, corpus: Sequence[Program]) -> int:
    """Fuzz a module with each of the bugs for at most so long; show a table.

    Returns 0 if all were found, else 1.
    """
    table = Table("bug", "found after", "executions", "as")
    missed = 0
    for patch in sorted(sources.PATCHES.glob("*.patch")):
        planted = replace(target, modules=sources.prepare(target.kernel, patch))
        run = Campaign(planted, name=name, seed=seed, corpus=corpus)
        run.run(minutes, stop_at_first=True)
        missed += not run.findings
        for title, seconds in run.counts.first_seen.items():
            table.add_row(patch.stem, f"{seconds:.0f} s", str(run.counts.executions), title)
        if not run.findings:
            table.add_row(patch.stem, f"not in {minutes:g} min", str(run.counts.executions), "")
    Console().print(table)
    return min(missed, 1)
