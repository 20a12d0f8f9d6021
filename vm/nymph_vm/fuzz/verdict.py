# SPDX-License-Identifier: MIT
"""What a program returned, against the contract: what no kernel log tells."""

import errno
from collections.abc import Iterator

from nymph_vm.fuzz.generate import (
    ENTER,
    ENTER_ARG,
    IOCTL,
    MREMAP,
    READ_FILE,
    USERFAULTFD,
)
from nymph_vm.fuzz.guest import STUCK, TIMED_OUT, UNRUN, Outcome
from nymph_vm.fuzz.program import CALL, CLOCK, NOW, READ, Program, Step

# A wait that is longer after its deadline is none that a busy host explains.
LATE_NS = 10_000_000_000


def faults(program: Program, outcome: Outcome) -> Iterator[str]:
    """What is wrong with an outcome, if anything is; the same words but for numbers for the same fault."""
    if outcome.end == STUCK:
        yield "a process does not end when it is killed"
    for i, step in enumerate(program):
        if _is_enter(step) and outcome.results[i] != UNRUN:
            yield from _enter_faults(program, outcome, i)


def overdue(program: Program, outcome: Outcome) -> bool:
    """Whether an ENTER with a deadline has not returned, though nothing it could wait for keeps it.

    Only that its program is given more time tells whether it will.
    """
    if outcome.end != TIMED_OUT or any(_may_block(step) for step in program):
        return False
    return any(at >= 0 and _is_enter(program[at]) and _has_deadline(program, at) for at in outcome.at)


def _is_enter(step: Step) -> bool:
    return (
        step.kind == CALL
        and step.arguments[0] == IOCTL
        and step.arguments[2] & 0xC000FFFF == ENTER & 0xC000FFFF
    )


def _may_block(step: Step) -> bool:
    return step.kind == CALL and step.arguments[0] in (USERFAULTFD, MREMAP, READ_FILE)


def _has_deadline(program: Program, at: int) -> bool:
    """Whether the step before wrote when this ENTER gives up."""
    before = program[at - 1] if at else program[at]
    where = program[at].arguments[3] + ENTER_ARG.size - 8
    return before.kind == NOW and before.arguments[0] == where


def _enter_faults(program: Program, outcome: Outcome, at: int) -> Iterator[str]:
    """Of an ENTER behind which a CLOCK and a READ say when it returned, and what."""
    call, after = program[at], program[at + 1 : at + 3]
    if [step.kind for step in after] != [CLOCK, READ] or len({step.thread for step in program}) > 1:
        return  # threads share the memory of arguments
    now, start = outcome.results[at + 1 : at + 3]
    raw = outcome.data[start : start + ENTER_ARG.size] if start >= 0 else b""
    if after[1].arguments != (call.arguments[3], ENTER_ARG.size) or len(raw) < ENTER_ARG.size:
        return
    _, _, _, _, to_submit, most, _, submitted, reaped, error, deadline = ENTER_ARG.unpack(raw)
    returned = outcome.results[at]
    if returned < 0 and returned != error:
        return  # refused before it began
    if submitted > to_submit:
        yield f"ENTER accepted more than it was given: {submitted} of {to_submit}"
    if reaped > most:
        yield f"ENTER handed out more records than there is room for: {reaped} of {most}"
    if error == -errno.ETIME and now < deadline:
        yield f"ENTER gave up before its deadline: {deadline - now} ns"
    if error == -errno.ETIME and deadline and now > deadline + LATE_NS and _has_deadline(program, at):
        yield f"ENTER returned long after its deadline: {(now - deadline) / 1e9:.1f} s"
