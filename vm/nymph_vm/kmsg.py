# SPDX-License-Identifier: MIT
"""Which records of a kernel log are complaints. Used on the host and in the guest."""

import re

WARNING = 4  # the syslog level; lower is worse

# Complaints that are no fault of ours, each with its reason.
EXPECTED = (
    # A host that was busy did not let the emulated CPU run in time.
    re.compile(r"\bhrtimer: interrupt took \d+ ns$"),
    # Said once, of the first module that did not come with the kernel.
    re.compile(r"\bloading out-of-tree module taints kernel\.$"),
)


RECORD = re.compile(r"(\d+),(\d+),[^;]*;(.*)")  # as /dev/kmsg has it


def parse(line: str) -> tuple[int, int, str] | None:
    """Priority, sequence number and text of a record's first line; None for any other line."""
    found = RECORD.match(line)
    return (int(found[1]), int(found[2]), found[3]) if found else None


def is_complaint(priority: int, text: str) -> bool:
    """Whether a record is at level warning or worse. `priority` is its number: facility * 8 + level."""
    return priority % 8 <= WARNING and not any(expected.search(text) for expected in EXPECTED)
