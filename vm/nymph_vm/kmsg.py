# SPDX-License-Identifier: MIT
"""Which records of a kernel log are complaints. Used on the host and in the guest."""

import re
from typing import NamedTuple

WARNING = 4  # the syslog level; lower is worse


class Expected(NamedTuple):
    """A complaint that is no fault of a module's and cannot be avoided."""

    pattern: re.Pattern[str]
    reason: str
    source: str  # in Linux 6.1.192; newer kernels may put it a little otherwise


EXPECTED = (
    Expected(
        re.compile(r"hrtimer: interrupt took \d+ ns"),
        "a host that was busy did not let the emulated CPU run in time",
        "kernel/time/hrtimer.c:1935, hrtimer_interrupt()",
    ),
    Expected(
        re.compile(r"\w+: loading out-of-tree module taints kernel\."),
        "said once, of the first module that did not come with the kernel",
        "kernel/module/main.c:1989, check_modinfo()",
    ),
    Expected(
        re.compile(r"(kobject: )?kobject_add_internal failed for ring\d+ \(error: -12 parent: pcie_nymph\)"),
        "tests make memory run out, a ring's directory is refused, and of a directory the kernel says so",
        "lib/kobject.c:242, kobject_add_internal()",
    ),
    Expected(
        re.compile(r"kobject: can not set name properly!"),
        "the same, for its name",
        "lib/kobject.c:362, kobject_add_varg()",
    ),
    Expected(
        re.compile(r"kmemleak: Cannot allocate a scan area, scanning the full object"),
        "tests make memory run out when something is mapped for the kernel, and kmemleak does without",
        "mm/kmemleak.c:892, add_scan_area()",
    ),
    Expected(
        re.compile(r"DMA-API: cacheline tracking ENOMEM, dma-debug disabled"),
        "tests make memory run out when something is mapped for a device, and DMA_API_DEBUG stops",
        "kernel/dma/debug.c:568, add_dma_entry()",
    ),
)


RECORD = re.compile(r"(\d+),(\d+),[^;]*;(.*)")  # as /dev/kmsg has it


def parse(line: str) -> tuple[int, int, str] | None:
    """Priority, sequence number and text of a record's first line; None for any other line."""
    found = RECORD.match(line)
    return (int(found[1]), int(found[2]), found[3]) if found else None


def is_complaint(priority: int, text: str) -> bool:
    """Whether a record is at level warning or worse. `priority` is its number: facility * 8 + level."""
    return priority % 8 <= WARNING and not any(expected.pattern.fullmatch(text) for expected in EXPECTED)
