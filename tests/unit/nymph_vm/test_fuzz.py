# SPDX-License-Identifier: MIT
"""The fuzzer's parts that need no guest: its programs, its verdicts, and how it cuts a finding down."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from nymph_vm.fuzz import campaign, verdict
from nymph_vm.fuzz.generate import ENTER, ENTER_ARG, ENTRY, IOCTL, RINGS, Generator
from nymph_vm.fuzz.guest import DONE, STUCK, TIMED_OUT, UNRUN, Outcome
from nymph_vm.fuzz.program import (
    CALL,
    CLOCK,
    CONTROL,
    DATA,
    NOW,
    READ,
    TARGET,
    Program,
    Step,
    fits,
    parse,
    text,
)
from nymph_vm.host import HarnessError

PROGRAMS = 200


def test_programs_are_the_same_for_the_same_seed_and_survive_their_text() -> None:
    first, second = Generator(7), Generator(7)
    programs = [first.program() for _ in range(PROGRAMS)]
    programs += [first.mutate(program, programs[0]) for program in programs]
    again = [second.program() for _ in range(PROGRAMS)]
    again += [second.mutate(program, again[0]) for program in again]
    assert programs == again
    assert all(fits(program) for program in programs)
    assert list(parse("# a remark\n" + text(programs))) == [program for program in programs if program]


def test_kept_corpus_can_be_read() -> None:
    assert campaign.load(Path(__file__).parents[2] / "fuzz/corpus")


def test_file_without_programs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("0 fly 0x1\n")
    with pytest.raises(HarnessError, match=r"other\.txt has no programs"):
        campaign.load(tmp_path)


ENTERED: Program = (
    Step(NOW, (CONTROL + ENTER_ARG.size - 8, 1000)),
    Step(CALL, (IOCTL, RINGS[0], ENTER, CONTROL)),
    Step(CLOCK),
    Step(READ, (CONTROL, ENTER_ARG.size)),
)


def entered(error: int, now: int, submitted: int = 1, reaped: int = 0, *, deadline: int = 5000) -> Outcome:
    """Of an ENTER with one entry and room for one record."""
    raw = ENTER_ARG.pack(ENTER_ARG.size, 0, 0, 0, 1, 1, 1, submitted, reaped, error, deadline)
    return Outcome(DONE, (-1,) * 4, (deadline, submitted or error, now, 0), (), raw)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (entered(0, 4000, reaped=1), None),
        (entered(-errno.ETIME, 5000), None),
        (entered(-errno.ETIME, 4999), "gave up before its deadline"),
        (entered(-errno.ETIME, 5001 + verdict.LATE_NS), "long after its deadline"),
        (entered(0, 4000, submitted=2), "accepted more"),
        (entered(0, 4000, reaped=2), "more records"),
        (entered(-errno.EINVAL, 4000, submitted=0), None),
        (
            Outcome(STUCK, (1, -1, -1, -1), (UNRUN,) * 4, (), b""),
            "does not end when it is killed",
        ),
    ],
)
def test_outcome_is_held_against_the_contract(outcome: Outcome, said: str | None) -> None:
    found = list(verdict.faults(ENTERED, outcome))
    assert (said is None and not found) or (said is not None and said in found[0]), found


def record(**changes: int) -> bytes:
    """Of a COPY that was verified, with some fields changed."""
    fields = {
        "cookie": 1, "size": 128, "status": 0, "bytes": 5, "engine": 1, "flags": 3,
        "queued": 10, "started": 20, "completed": 30,
    }  # fmt: skip
    return verdict.RECORD.pack(*(fields | changes).values(), b"s" * 32, b"d" * 32, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"status": -errno.EBADMSG}, None),
        ({"size": 64}, "size 64"),
        ({"status": 1}, "status 1"),
        ({"flags": 1}, "do not name"),
        ({"started": 5}, "started at 5"),
        ({"completed": 9000}, "completed at 9000"),
        ({"engine": 0}, "by engine 0"),
        ({"bytes": 2**30 + 1}, "bytes"),
    ],
)
def test_record_is_held_against_the_contract(changes: dict[str, int], said: str | None) -> None:
    program = (*ENTERED, Step(READ, (CONTROL + 4096, 128)))
    whole = entered(0, 4000, reaped=1)
    outcome = Outcome(DONE, whole.at, (*whole.results, len(whole.data)), (), whole.data + record(**changes))
    found = list(verdict.faults(program, outcome))
    assert (said is None and not found) or (said is not None and said in found[0]), found


def test_answers_that_a_program_may_have_written_itself_are_not_judged() -> None:
    early = entered(-errno.ETIME, 4999)
    over = Step(DATA, (CONTROL + 8192,), ENTRY.pack(64, 1, 0, 8, TARGET, CONTROL, 0, 0, 0, 0, 0))
    for program in ((*ENTERED, over), tuple(replace(step, thread=1) for step in ENTERED)):
        outcome = Outcome(early.end, early.at, (*early.results, 64), (), early.data)
        assert not list(verdict.faults(program, outcome))


def test_only_a_wait_with_a_deadline_is_overdue() -> None:
    waiting = Outcome(TIMED_OUT, (1, -1, -1, -1), (5000, UNRUN, UNRUN, UNRUN), (), b"")
    assert verdict.overdue(ENTERED, waiting)
    assert not verdict.overdue(ENTERED[1:], Outcome(TIMED_OUT, (0, -1, -1, -1), (UNRUN,) * 3, (), b""))


def test_what_is_left_of_a_finding_is_all_needed() -> None:
    assert campaign.shrink(list(range(100)), lambda parts: {3, 50, 99} <= set(parts)) == [3, 50, 99]


def test_same_complaint_has_the_same_title() -> None:
    first = (
        "x\nBUG: KASAN: slab-use-after-free in nymph_ring_put+0x3f/0x60\nWrite of size 4 at addr 00000000aa"
    )
    second = first.replace("0x3f", "0x40").replace("aa", "bb")
    assert campaign.title_of(first) == campaign.title_of(second)
    assert campaign.title_of(first).startswith("BUG: KASAN: slab-use-after-free in nymph_ring_put")
