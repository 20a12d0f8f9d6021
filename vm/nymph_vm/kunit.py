# SPDX-License-Identifier: MIT
"""What KUnit wrote into a kernel log (KTAP)."""

import re
from dataclasses import dataclass

# Cases are one level inside their suite, and what they say of themselves is deeper. 6.1 has a dash in it.
RESULT = re.compile(r"    (not )?ok \d+ (?:- )?([^\s#]+)(.*)")
SUITE = re.compile(r"    # Subtest: (\S+)")
TIME = re.compile(r"^\[ *\d+\.\d+\] ")


@dataclass(frozen=True)
class Case:
    """One test and its outcome: "passed", "failed" or "skipped"; `said`: what it logged."""

    suite: str
    name: str
    outcome: str
    said: str


def parse(log: str) -> list[Case]:
    """All cases with a result in the kernel log `log`, whose lines begin with a time."""
    cases: list[Case] = []
    suite, said = "", list[str]()
    for line in log.splitlines():
        text = TIME.sub("", line)
        if found := SUITE.fullmatch(text):
            suite, said = found[1], []
        elif suite and (found := RESULT.fullmatch(text)):
            outcome = "failed" if found[1] else "skipped" if "# SKIP" in found[3] else "passed"
            cases.append(Case(suite, found[2], outcome, "\n".join(said)))
            said = []
        elif re.match(r"(not )?ok \d+ ", text):  # the suite as a whole
            suite = ""
        else:
            said.append(text)
    return cases
