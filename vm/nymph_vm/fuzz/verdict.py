# SPDX-License-Identifier: MIT
"""What a program returned, against the contract: what no kernel log tells."""

import errno
import struct
from collections.abc import Iterator

from nymph_vm.fuzz.generate import (
    BUFFER_ARG,
    DESC,
    ENTER,
    ENTER_ARG,
    ENTRY,
    IOCTL,
    MADVISE,
    MMAP,
    MREMAP,
    MUNMAP,
    READ_FILE,
    USERFAULTFD,
)
from nymph_vm.fuzz.guest import STUCK, TIMED_OUT, UNRUN, Outcome
from nymph_vm.fuzz.program import (
    CALL,
    CLOCK,
    CONTROL,
    DATA,
    HALF_SIZE,
    NOW,
    READ,
    SOURCE,
    Program,
    Step,
)

RECORD = struct.Struct("<QIiQIIQQQ32s32sQ")
MAX_LENGTH = 1 << 30

# A wait that is longer after its deadline is none that a busy host explains.
LATE_NS = 10_000_000_000


def faults(program: Program, outcome: Outcome) -> Iterator[str]:
    """What is wrong with an outcome, if anything is; the same words but for numbers for the same fault."""
    if outcome.end == STUCK:
        yield "a process does not end when it is killed"
    # threads, and what writes there, share the memory of answers
    if any(step.thread or _may_write_answers(step) for step in program):
        return
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


def _may_write_answers(step: Step) -> bool:
    """Whether a step, or what it has the driver do, may change the memory that programs get answers in."""
    if step.kind == CALL:
        return step.arguments[0] in (MMAP, MREMAP, MUNMAP, MADVISE) and step.arguments[1] < SOURCE
    if step.kind != DATA:
        return False
    if len(step.data) % ENTRY.size == 0:
        written = [fields[5] for fields in ENTRY.iter_unpack(step.data)]
    elif len(step.data) == DESC.size:
        written = [DESC.unpack(step.data)[1]]
    elif len(step.data) == BUFFER_ARG.size:
        written = [BUFFER_ARG.unpack(step.data)[4]]
    else:
        return False
    return any(CONTROL - HALF_SIZE < address < SOURCE for address in written)


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
    """Of an ENTER: behind it a CLOCK says when it returned, a READ what, and another READ has its records."""
    call, after = program[at], program[at + 1 : at + 3]
    if [step.kind for step in after] != [CLOCK, READ]:
        return
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
    if at + 3 < len(program) and program[at + 3].kind == READ and outcome.results[at + 3] >= 0:
        start = outcome.results[at + 3]
        for i in range(min(reaped, most)):
            yield from _record_faults(outcome.data[start + i * RECORD.size :][: RECORD.size], now)


def _record_faults(raw: bytes, now: int) -> Iterator[str]:
    """Of a record that was handed out before a time."""
    if len(raw) < RECORD.size:
        return
    _, size, status, done, engine, flags, queued, started, completed, source, target, reserved = (
        RECORD.unpack(raw)
    )
    if size != RECORD.size or reserved or flags & ~3 or not -4096 < status <= 0:
        yield f"a record has size {size}, status {status}, flags {flags:#x}, reserved {reserved:#x}"
    if not 0 < queued <= (started or queued) <= completed <= now or bool(started) > bool(engine):
        times = f"queued at {queued}, started at {started}, completed at {completed}, read at {now}"
        yield f"a record was {times}, by engine {engine}"
    if done > MAX_LENGTH or (any(source) and not flags & 1) or (any(target) and not flags & 2):
        yield f"a record has {done} bytes, or a digest that its flags {flags:#x} do not name"
