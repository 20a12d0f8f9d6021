# SPDX-License-Identifier: MIT
"""A run of the fuzzer: one guest after the other. What reaches new code is kept, what goes wrong cut down."""

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nymph_vm import build
from nymph_vm.faults import Fault
from nymph_vm.fuzz import verdict
from nymph_vm.fuzz.generate import Generator
from nymph_vm.fuzz.guest import DONE, EXECUTOR, LIMIT_MS, STUCK, Executor, Outcome, describe
from nymph_vm.fuzz.program import MAX_STEPS, Program, Step, parse, text
from nymph_vm.host import HarnessError, console
from nymph_vm.machine import Machine
from nymph_vm.state import VMLost, log_tail

BATCH = 48
LONG_MS = 40_000  # what is overdue gets so long before it is a finding, or a quarter of that if it but waits
PROGRESS_SECONDS = 10
NEW = 0.15  # of the programs are new ones, the others mutated
REPEATS = 30  # a program that is tried again runs so often: what depends on chance gets one
MAX_GUESTS = 30  # that the minimizing of a finding takes
UNBIND_SECONDS = 3.0

_Part = TypeVar("_Part")

# What of a complaint differs from time to time.
VARIABLE = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\+0x\S+|\d+")

# What ends a guest and is no fault of the module's: where it happened, and why.
FOREIGN = {
    "maybe_map": "user-mode Linux copies from memory that another thread unmaps (skas/uaccess.c)",
}

OURS = re.compile(r"\bnymph_\w+(?=\+0x)")

# Whether a line of a log says what went wrong, best first.
TELLING = (
    re.compile(r"BUG: KASAN: .*"),
    re.compile(r"UBSAN: .*"),
    re.compile(r"BUG: .*"),
    re.compile(r"WARNING: .*"),
    re.compile(r"INFO: task .* blocked.*"),
    re.compile(r"watchdog: .*"),
    re.compile(r"refcount_t: .*"),
    re.compile(r"RIP: .*"),
    re.compile(r"Kernel panic - not syncing: .*"),
)


@dataclass(frozen=True)
class Target:
    """What is fuzzed, and how.

    kernel: a key of kernels.KERNELS. modules: the folder with the module's sources. faults: of the endpoint.
    unbind: the endpoint's driver is unbound and bound again now and then. engines: names that rings ask for.
    """

    kernel: str
    modules: Path
    faults: tuple[Fault, ...] = ()
    unbind: bool = False
    engines: tuple[bytes, ...] = (b"", b"auto", b"cpu", b"dma0chan0", b"dma0chan1")

    @contextlib.contextmanager
    def machine(self, name: str, on_complaint: Callable[[str], None]) -> Iterator[Machine]:
        """A machine with the module."""
        with Machine(
            name,
            kernel=self.kernel,
            memory="2G",
            source=self.modules,
            faults=self.faults,
            on_complaint=on_complaint,
        ) as machine:
            yield machine


@dataclass(frozen=True)
class Finding:
    """Something that went wrong. `title`: the same for the same fault. `log`: what was said of it."""

    title: str
    log: str
    programs: tuple[Program, ...]


@dataclass
class Counts:
    """What a run came to so far."""

    executions: int = 0
    guests: int = 0
    started: float = field(default_factory=time.monotonic)
    edges: set[int] = field(default_factory=set)
    first_seen: dict[str, float] = field(default_factory=dict)  # seconds until each finding, by title

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def title_of(log: str) -> str:
    """What a log says went wrong, and in which function of ours, without what differs from time to time."""
    for pattern in TELLING:
        if found := pattern.search(log):
            said = VARIABLE.sub("N", found[0]).strip()[:120]
            ours = OURS.search(log, found.end())
            return said if ours is None or ours[0] in said else f"{said}, {ours[0]}"
    lines = log.strip().splitlines()
    return VARIABLE.sub("N", lines[-1]).strip()[:120] if lines else "nothing was said"


def foreign(finding: Finding) -> str | None:
    """Why a finding is no fault of the module's; None if it may be."""
    return next((why for where, why in FOREIGN.items() if f":{where}+" in finding.log), None)


class Campaign:
    """Fuzzes a target."""

    def __init__(
        self,
        target: Target,
        *,
        name: str,
        seed: int,
        corpus: Sequence[Program] = (),
        keep: Path | None = None,
        on_finding: Callable[[Finding], None] = lambda finding: None,
    ) -> None:
        """name: of its machines. corpus: programs to begin with. keep: a file for the corpus as it grows.

        on_finding: called with each finding as it is, and when it is minimized.
        """
        self._target, self._name, self._keep = target, name, keep
        self._on_finding = on_finding
        self._rng = random.Random(seed)
        self._generator = Generator(seed, target.engines)
        self._seeds = list(corpus)
        self.corpus: list[Program] = []
        self.counts = Counts()
        self.findings: list[Finding] = []

    def run(self, minutes: float, *, stop_at_first: bool = False) -> None:
        """Fuzz for so long, or until the first finding, which is not minimized then."""
        build.prepare(self._target.kernel, self._target.modules)  # which takes none of the time
        build.program(EXECUTOR)
        self.counts.started = time.monotonic()
        end = self.counts.started + 60 * minutes
        while time.monotonic() < end and not (stop_at_first and self.findings):
            finding = self._one_guest(end)
            if finding is not None and (why := foreign(finding)):
                console.print(f"nymph-vm: the guest ended, and that is not the module's: {why}", markup=False)
            elif finding is not None and all(finding.title != old.title for old in self.findings):
                self.counts.first_seen[finding.title] = self.counts.seconds
                console.print(f"nymph-vm: found: {finding.title}", markup=False)
                self._on_finding(finding)
                if not stop_at_first:
                    finding = minimize(self._target, f"{self._name}-min", finding)
                self.findings.append(finding)
                self._on_finding(finding)
            if self._keep is not None:
                self._keep.write_text(text(self.corpus))
        self._progress()

    def _one_guest(self, end: float) -> Finding | None:
        """Fuzz until the time is over or something goes wrong."""
        complaints: list[str] = []
        batch: list[Program] = []
        self.counts.guests += 1
        try:
            with (
                self._target.machine(self._name, complaints.append) as machine,
                Executor(machine) as executor,
            ):
                todo = [*self.corpus, *self._seeds]  # a new guest knows no coverage yet
                said = unbound = time.monotonic()
                while time.monotonic() < end:
                    batch = [todo.pop() for _ in range(min(BATCH, len(todo)))] or self._batch()
                    if found := self._try(executor, batch):
                        return found
                    if complaints:
                        return _complained(machine, complaints, batch)
                    if self._target.unbind and time.monotonic() - unbound > UNBIND_SECONDS:
                        machine.run(["sh", "-c", REBIND])
                        unbound = time.monotonic()
                    if time.monotonic() - said > PROGRESS_SECONDS:
                        self._progress()
                        said = time.monotonic()
        except VMLost as lost:
            return _lost(lost, batch)
        return None

    def _batch(self) -> list[Program]:
        made = []
        for _ in range(BATCH):
            if not self.corpus or self._rng.random() < NEW:
                made.append(self._generator.program())
            else:
                # younger ones more often
                at = len(self.corpus) - 1 - int(len(self.corpus) * self._rng.random() ** 2)
                made.append(self._generator.mutate(self.corpus[at], self._rng.choice(self.corpus)))
        return made

    def _try(self, executor: Executor, batch: Sequence[Program]) -> Finding | None:
        outcomes = executor.run(batch)
        known = set(self.corpus)
        for program, outcome in zip(batch, outcomes, strict=False):
            self.counts.executions += 1
            new = set(outcome.edges) - self.counts.edges
            self.counts.edges |= new
            if new and program not in known:
                self.corpus.append(program)
            if found := judge(executor, program, outcome):
                return found
        return None

    def _progress(self) -> None:
        counts = self.counts
        console.print(
            f"nymph-vm: {counts.seconds:.0f} s, {counts.executions} executions "
            f"({counts.executions / max(counts.seconds, 1):.0f} a second), {len(counts.edges)} edges, "
            f"{len(self.corpus)} programs in the corpus, {len(self.findings)} findings",
            markup=False,
        )


REBIND = """
    cd /sys/bus/pci/drivers/nymph_endpoint || exit 0
    for each in 0000:*; do
        echo "$each" > unbind
        echo "$each" > bind
    done
"""


def _complained(machine: Machine, complaints: Sequence[str], programs: Sequence[Program]) -> Finding:
    return Finding(title_of("\n".join(complaints)), log_tail(machine.state.folder), tuple(programs))


def _lost(lost: VMLost, programs: Sequence[Program]) -> Finding:
    title = title_of(str(lost))
    return Finding(f"hung: {title}" if lost.how == "hung" else title, str(lost), tuple(programs))


def judge(executor: Executor, program: Program, outcome: Outcome) -> Finding | None:
    """What is wrong with what a program returned; one that is overdue is tried again, and waited for."""
    if verdict.overdue(program, outcome):
        again = executor.run([program], LONG_MS)[0]
        if again.end != DONE and verdict.overdue(program, again):
            said = "ENTER does not return at its deadline"
            return Finding(said, describe(program, again), (program,))
        outcome = again
    for fault in verdict.faults(program, outcome):
        title = VARIABLE.sub("N", fault)
        return Finding(title, f"{fault}\n{describe(program, outcome)}", (program,))
    return None


def replay(target: Target, name: str, programs: Sequence[Program], repeats: int = 1) -> Finding | None:
    """Run programs in a new guest, over and over; returns what went wrong first, if anything did."""
    complaints: list[str] = []
    try:
        with target.machine(name, complaints.append) as machine:
            with Executor(machine) as executor:
                for _ in range(repeats):
                    outcomes = executor.run(programs, LIMIT_MS)
                    for program, outcome in zip(programs, outcomes, strict=False):
                        if found := judge(executor, program, outcome):
                            return found
                    if complaints or outcomes[-1].end == STUCK:
                        break
            complaints += machine.complaints()
            if complaints:
                return _complained(machine, complaints, programs)
    except VMLost as lost:
        return _lost(lost, programs)
    return None


def minimize(target: Target, name: str, finding: Finding) -> Finding:
    """The finding with less that causes it, as far as MAX_GUESTS guests tell; or itself, if it stays away."""
    left = MAX_GUESTS

    def is_enough(programs: Sequence[Program]) -> bool:
        nonlocal left
        if left <= 0 or not programs:
            return False
        left -= 1
        try:
            again = replay(target, name, programs, REPEATS)
        except HarnessError:
            return False
        return again is not None and again.title == finding.title

    if not is_enough(finding.programs):
        return finding
    programs = shrink(list(finding.programs), is_enough)
    for i in range(len(programs)):
        rest = programs[:i], programs[i + 1 :]

        def is_enough_of_it(steps: list[Step], rest: tuple[list[Program], list[Program]] = rest) -> bool:
            return is_enough([*rest[0], tuple(steps), *rest[1]])

        programs[i] = tuple(shrink(list(programs[i]), is_enough_of_it))
    return Finding(finding.title, finding.log, tuple(programs))


def shrink(parts: list[_Part], is_enough: Callable[[list[_Part]], bool]) -> list[_Part]:
    """Leave out parts, half of them at first, one at last, as long as what is left is enough."""
    size = min(len(parts), MAX_STEPS) // 2
    while size:
        at = 0
        while at < len(parts):
            fewer = parts[:at] + parts[at + size :]
            if fewer and is_enough(fewer):
                parts = fewer
            else:
                at += size
        size //= 2
    return parts


def write(folder: Path, finding: Finding) -> None:
    """Write a finding into a folder: the programs that cause it to NAME.txt, what was said to NAME.log."""
    name = re.sub(r"[^a-z0-9]+", "-", finding.title.lower()).strip("-")[:60]
    (folder / f"{name}.txt").write_text(text(finding.programs))
    (folder / f"{name}.log").write_text(f"{finding.title}\n\n{finding.log}\n")


def load(*files: Path) -> list[Program]:
    """The programs of files, those of a folder's files among them. Raises HarnessError."""
    found: list[Program] = []
    for file in files:
        for each in sorted(file.glob("*.txt")) if file.is_dir() else [file]:
            try:
                found += parse(each.read_text())
            except (OSError, ValueError) as error:
                raise HarnessError(f"{each} has no programs of the fuzzer: {error}") from None
    return found
