# SPDX-License-Identifier: MIT
"""What is measured, where the driver is. Statistics come later, and elsewhere: figures.py.

Ways that are to be compared are in one group, and take turns: a round is one turn of each, in an order drawn
anew. Before each turn the yardstick says how fast the machine is just then. All of it is done in several
sessions, for each of which all clients start anew: what differs between them would differ between runs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import dma_vs_copy
import pynymph
import report as reports
from bench import fairness, inference, tracing, ways
from bench.ways import (
    BARRIER,
    DIGEST,
    LINK,
    VERIFY,
    ZERO_COPY,
    Counters,
    Data,
    Turn,
    Turns,
    Work,
    Yardstick,
)
from pynymph.abi import lib
from report import human

LARGEST = 1 << 26
LARGE = 1 << 22
"""From here on there is only one operation at a time, and fewer ways: each has memory of its own."""
# What an operation is compared with that does the same work: its flags, and what memmove comes with.
EQUAL = {
    "copy": (0, "nothing hashed"),
    "digest": (DIGEST, "then blake3"),
    "verify": (VERIFY, "blake3 before and after"),
}
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
KEPT_TIMES = 200_000
RINGS_FOR_MEMORY = 16
SECONDS_TO_START = 20.0
"""Of nymphd, a guess."""
AF_ALG = ("sha256", "blake2b-256")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    mode: str
    sessions: int
    rounds: int
    """Of each session."""
    large_rounds: int
    """Of operations of LARGE bytes and more."""
    seconds: float
    """Of each turn."""
    sizes: tuple[int, ...]
    path_sizes: tuple[int, ...]
    instead_sizes: tuple[int, ...]
    equal_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    counts: tuple[int, ...]
    """Of rings and of processes."""
    infer_rounds: int
    neighbour: int
    """Bytes of the large copies beside small ones, if there is memory for them."""


QUICK = Plan(
    "quick", 2, 3, 2, 0.004,
    sizes=(64, 1024, 4096, 65536, 1 << 20, 1 << 24),
    path_sizes=(64, 4096),
    instead_sizes=(4096, 65536, 1 << 20),
    equal_sizes=(1 << 20,),
    depths=(1, 8, 64, 512, 4096),
    counts=(1, 2, 4),
    infer_rounds=0,
    neighbour=1 << 24,
)  # fmt: skip
FULL = Plan(
    "full", 3, 5, 3, 0.06,
    sizes=tuple(4**n for n in range(3, 14)),
    path_sizes=(64, 4096, 65536),
    instead_sizes=(4096, 65536, 1 << 20, 1 << 24),
    equal_sizes=(1 << 20, 1 << 24, 1 << 26),
    depths=tuple(4**n for n in range(7)),
    counts=(1, 2, 4, 8, 16),
    infer_rounds=2,
    neighbour=1 << 30,
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One row of the results: `parameters` say what it is, `start` makes its turns."""

    group: str
    parameters: dict[str, Any]
    start: Callable[[], AbstractContextManager[Turns]]
    nbytes: int
    """Of each operation."""

    @property
    def id(self) -> str:
        return _id(self.group, self.parameters)


@dataclass
class Suite:
    """All that is measured of a plan, in groups of ways that take turns."""

    plan: Plan
    program: str
    """load.c, compiled."""
    data: Data
    engines: tuple[str, ...]
    """The CPU, and the first channel, if there is one."""
    channels: tuple[str, ...]
    """All, one of each device first."""
    no_infer: str | None
    """Why nymphd is not measured, if it isn't."""
    hashes: tuple[str, ...]
    """What AF_ALG hashes with here."""

    def c(self, group: str, path: str, works: list[Work], **parameters: Any) -> Way:
        work = works[0]
        named = {"client": "C", "path": path, "engine": work.engine, **parameters}
        start = partial(ways.from_c, self.program, path, works)
        return Way(group, {**named, "bytes": work.size, "depth": work.depth}, start, work.size)

    def python(self, group: str, path: str, work: Work, **parameters: Any) -> Way:
        client, _, name = path.rpartition(" ")
        make = {"asyncio": ways.from_asyncio, "": ways.from_python}[client]
        named = {"client": client or "Python", "path": name, "engine": work.engine, **parameters}
        return Way(
            group, {**named, "bytes": work.size, "depth": work.depth}, partial(make, name, work), work.size
        )

    def work(self, size: int, **more: Any) -> Work:
        return Work(self.data, size, **more)

    def groups(self) -> Iterator[tuple[str, list[Way]]]:
        yield "noise", self.noise()
        for size in self.plan.sizes:
            yield f"size {human(size)}", self.by_size(size)
        for size in self.plan.path_sizes:
            for engine in self.engines:
                yield f"path {human(size)} {engine}", self.by_path(size, engine)
        yield "depth", self.by_depth()
        yield "ring size", self.by_ring_size()
        yield "rings", self.by_rings()
        yield "processes", self.by_processes()
        if self.channels:
            yield "channels", self.by_channels()
        yield "fairness", self.by_neighbour()
        for size in self.plan.instead_sizes:
            yield f"instead {human(size)}", self.instead(size)
        for size in self.plan.equal_sizes:
            for kind in EQUAL:
                yield f"equal {human(size)} {kind}", self.equal(size, kind)
        yield "set-up", self.set_up()
        if not self.no_infer:
            yield "infer", self.infer()

    def noise(self) -> list[Way]:
        """The same twice: what differs is the machine."""
        work = self.work(4096, depth=64)
        return [self.c("noise", "enter", [work], which=which) for which in "AB"]

    def by_size(self, size: int) -> list[Way]:
        depth = max(1, min(64, (1 << 18) // size))
        found = []
        for engine in self.engines:
            work = partial(self.work, size, depth=depth, engine=engine)
            kinds = [
                ("copy", work()),
                ("copy, verify", work(flags=VERIFY)),
                ("hash", work(opcode=lib.NYMPH_OP_HASH)),
                ("copy, zero-copy, user memory", work(flags=ZERO_COPY, memory="user")),
                ("copy, digest", work(flags=DIGEST)),
                ("copy, zero-copy", work(flags=ZERO_COPY)),
                ("copy, user memory", work(memory="user")),
            ]
            if size == 4096:
                kinds += [("copy, link", work(flags=LINK)), ("copy, barrier", work(flags=BARRIER))]
            if size >= LARGE:
                kinds = kinds[: 2 if self.plan.mode == "quick" else 4]
            found += [self.c("size", "enter", [each], what=what) for what, each in kinds]
            if size < LARGE or self.plan.mode != "quick":
                found += [self.c("size", "enter-1", [each], what=what) for what, each in kinds[:2]]
        return found

    def by_path(self, size: int, engine: str) -> list[Way]:
        work = self.work(size, depth=64, engine=engine)
        in_user = self.work(size, depth=64, engine=engine, memory="user")
        dma = Way(
            "path",
            {"client": "Python", "path": "SUBMIT_DMA", "engine": engine, "bytes": size, "depth": 64},
            partial(ways.from_python_submit_dma, in_user),
            size,
        )
        return [
            *(self.c("path", path, [in_user]) for path in ("submit", "submit-poll")),
            *(self.c("path", path, [work]) for path in ("enter-1", "enter", "read")),
            dma,
            *(
                self.python("path", path, work)
                for path in ("copy", "submit", "submit_all", "completions", "submit_many", "run_many")
            ),
            *(self.python("path", f"asyncio {path}", work) for path in ("copy", "run_many")),
        ]

    def by_depth(self) -> list[Way]:
        found = []
        for engine in self.engines:
            for depth in self.plan.depths:
                work = self.work(64, depth=depth, engine=engine)
                found += [self.c("depth", "enter", [work]), self.python("depth", "run_many", work)]
        return found

    def by_ring_size(self) -> list[Way]:
        sizes = [entries for entries in self.plan.depths if entries >= 8]
        works = [self.work(4096, depth=8, entries=entries) for entries in sizes]
        return [self.c("ring size", "enter", [work], entries=work.entries) for work in works]

    def by_rings(self) -> list[Way]:
        """Each with a worker of its own in the kernel."""
        return [
            self.c("rings", "enter", [self.work(4096, depth=64, engine=engine, rings=rings)], rings=rings)
            for engine in self.engines
            for rings in self.plan.counts
        ]

    def by_processes(self) -> list[Way]:
        """Each with a ring of its own."""
        found = []
        for engine in self.engines:
            work = self.work(65536, depth=16, engine=engine, flags=VERIFY)
            found += [
                self.c("processes", "enter", [work] * count, what="copy, verify", processes=count)
                for count in self.plan.counts
            ]
        return found

    def by_channels(self) -> list[Way]:
        """Each with a process and a ring of its own; those of different devices first."""
        works = [self.work(65536, depth=16, engine=name) for name in self.channels]
        counts = [count for count in self.plan.counts if count <= len(works)]
        return [self.c("channels", "enter", works[:count], channels=count) for count in counts]

    def by_neighbour(self) -> list[Way]:
        """Small copies alone, and beside large ones of another process."""
        large = fairness.largest(self.plan.neighbour)
        found = []
        for engine in self.engines:
            work, named = (
                self.work(4096, engine=engine),
                {"client": "Python", "path": "copy", "engine": engine},
            )
            for beside, nbytes in (("nothing", 0), (f"copies of {human(large)}", large)):
                start = partial(fairness.small_copies, work, nbytes)
                found.append(Way("fairness", {**named, "beside": beside, "bytes": 4096}, start, 4096))
        return found

    def instead(self, size: int) -> list[Way]:
        """Copies whose digests are known afterwards: with a ring, and as people do without."""
        depth = max(1, min(64, (1 << 20) // size))
        plain = self.work(size, depth=depth)
        found = []
        for engine in self.engines:
            work = partial(self.work, size, depth=depth, engine=engine)
            verify, one = work(flags=VERIFY), work(flags=VERIFY, memory="user")
            found += [
                self.c("instead", "enter", [verify], what="copy, verify"),
                self.c("instead", "enter", [work(flags=DIGEST)], what="copy, digest"),
                self.c("instead", "submit", [one], what="copy, verify"),
                self.python("instead", "run_many", verify, what="copy, verify"),
                self.python("instead", "copy", verify, what="copy, verify"),
            ]

        other = partial(self.without, "instead", plain)
        hashing = partial(partial, ways.memmove_and_hash)
        return [
            *found,
            other("Python", "memmove", "then blake3", hashing("blake3", plain)),
            *(
                other("Python", "memmove", f"then AF_ALG {each}", hashing(each, plain))
                for each in self.hashes
            ),
            other("C", "io_uring", "then blake3", partial(ways.uring_and_hash, self.program, plain)),
            other("C", "memmove", "nothing hashed", partial(ways.from_c, self.program, "memmove", [plain])),
        ]

    def without(
        self, group: str, work: Work, client: str, path: str, what: str, start: Any, **parameters: Any
    ) -> Way:
        """What is done without a ring."""
        named = {"client": client, "path": path, "engine": "none", "what": what, **parameters}
        return Way(group, {**named, "bytes": work.size, "depth": work.depth}, start, work.size)

    def equal(self, size: int, kind: str) -> list[Way]:
        """The same work on both sides, on one CPU: with a ring on each path, and in user space."""
        flags, instead = EQUAL[kind]
        work = partial(self.work, size)
        starts = {
            "nothing hashed": partial(ways.from_c, self.program, "memmove", [work()]),
            "then blake3": partial(ways.memmove_and_hash, "blake3", work()),
            "blake3 before and after": partial(ways.memmove_and_hash, "blake3", work(), both=True),
        }
        client = "C" if instead == "nothing hashed" else "Python"
        paths = {
            "user memory": work(flags=flags, memory="user"),
            "buffers": work(flags=flags),
            "buffers, zero-copy": work(flags=flags | ZERO_COPY),
        }
        return [
            self.without("equal", work(), client, "memmove", instead, starts[instead], kind=kind),
            *(
                self.c("equal", "enter", [each], kind=kind, what=f"{kind}, {path}")
                for path, each in paths.items()
            ),
        ]

    def set_up(self) -> list[Way]:
        found = []
        for engine in self.engines:
            for entries in (1, 256, 4096):
                work = self.work(64, entries=entries, engine=engine)
                found.append(self.c("set-up", "setup", [work], entries=entries))
            start = partial(ways.python_setup, self.work(64, entries=256, engine=engine))
            named = {"client": "Python", "path": "Ring", "engine": engine, "entries": 256}
            found.append(Way("set-up", named, start, 0))
        for path in ("allocate", "register"):
            found += [
                self.c("set-up", path, [self.work(size, memory="user")]) for size in (4096, 1 << 20, 1 << 24)
            ]
        return found

    def infer(self) -> list[Way]:
        work, named = self.work(4096), {"client": "nymphd", "path": "/infer", "tokens": inference.TOKENS}
        return [
            Way(
                "infer",
                {**named, "what": "steady", "bytes": work.size},
                partial(inference.steady, work),
                work.size,
            ),
            Way(
                "infer",
                {**named, "what": "first", "bytes": work.size},
                partial(inference.first, work),
                work.size,
            ),
        ]

    def memory(self) -> Iterator[tuple[dict[str, Any], Work]]:
        for engine in self.engines:
            for entries in (1, 64, 256, 1024, 4096):
                yield {"engine": engine, "entries": entries}, self.work(64, entries=entries, engine=engine)


@dataclass(frozen=True)
class Instruments:
    counters: Counters
    yardstick: Yardstick
    energy: IO[str] | str
    """Or why there is none."""


class Meter:
    """Makes the turns of a way, and keeps what they say."""

    def __init__(self, way: Way, instruments: Instruments) -> None:
        self.way, self._instruments = way, instruments
        self.rounds: list[dict[str, Any]] = []
        self._times: list[Any] = []

    def start(self, stack: ExitStack) -> Turns:
        """What makes the turns of a session, until `stack` ends."""
        turns = stack.enter_context(self.way.start())
        turns(0)  # to warm up
        return turns

    def turn(self, session: int, turns: Turns, seconds: float) -> None:
        yardstick = self._instruments.yardstick.ns()
        before, joules = self._instruments.counters.now(), self._joules()
        done = turns(seconds)
        after, energy = self._instruments.counters.now(), self._joules() - joules
        counts = {name: after[name] - before[name] for name in before}
        self._keep(
            session, done, counts, yardstick, None if isinstance(self._instruments.energy, str) else energy
        )

    def _joules(self) -> float:
        meter = self._instruments.energy
        if isinstance(meter, str):
            return 0
        meter.seek(0)
        return int(meter.read()) / 1e6

    def _keep(
        self, session: int, done: Turn, counts: dict[str, int], yardstick: int, energy: float | None
    ) -> None:
        self.rounds.append(
            {
                "session": session,
                "operations": done.operations,
                "ns": done.ns,
                "yardstick_ns": yardstick,
                "tasks_ns": done.tasks.ran_ns,
                "waited_ns": done.tasks.waited_ns,
                "client_cpu_ns": done.client_cpu_ns,
                "engine_ns": done.engine_ns,
                "energy_j": energy,
                "p50_ns": float(np.median(done.times)) if len(done.times) else None,
                "p99_ns": float(np.quantile(done.times, 0.99)) if len(done.times) >= 100 else None,
                **counts,
            }
        )
        self._times.append(done.times)

    def as_json(self) -> dict[str, Any]:
        way, times = self.way, np.concatenate(self._times)[:KEPT_TIMES]
        latency: dict[str, Any] = {"count": len(times)}
        for name, share in QUANTILES.items():
            # A quantile wants more times than lie beyond it.
            known = len(times) and (share == 1 or len(times) * (1 - share) >= 1)
            latency[f"{name}_ns"] = float(np.quantile(times, share, method="higher")) if known else None
        head = {"id": way.id, "group": way.group, "parameters": way.parameters, "bytes": way.nbytes}
        return {**head, "rounds": self.rounds, "latency": latency}


def run(program: str, plan: Plan, only: tuple[str, ...], console: Console) -> dict[str, Any]:
    """Measure all of the plan, or the groups whose names start with one of `only`."""
    energy = ways.energy_file()
    report = reports.new(
        mode=plan.mode,
        sessions=plan.sessions,
        rounds=plan.sessions * plan.rounds,
        seconds_each=plan.seconds,
        memory_bytes=ways.meminfo("MemTotal"),
        blake3=None,
        engines=[],
        energy_null_because=energy if isinstance(energy, str) else None,
        ways=[],
        memory=[],
        nulls=[],
        measured_s=0.0,
    )
    begun = time.monotonic()
    try:
        with Data.make(LARGEST) as data:
            suite, instruments = _prepare(report, program, plan, data, energy)
            _measure(report, suite, instruments, only, console)
    except (pynymph.NymphError, ways.WrongError, OSError) as error:
        report["failures"].append(str(error) or repr(error))
    report["measured_s"] = time.monotonic() - begun
    return report


def _prepare(
    report: dict[str, Any], program: str, plan: Plan, data: Data, energy: IO[str] | str
) -> tuple[Suite, Instruments]:
    """See what there is to measure, and to measure it with."""
    engines = list(pynymph.query().engines.values())
    drivers = set()
    for engine in engines:
        device = dma_vs_copy.device_of(engine)
        drivers |= {str(device["driver"])} if device else set()
        ran = dma_vs_copy.what_ran(engine, device, report["accelerator"])
        report["engines"].append({"name": engine, "device": device, "ran": ran})
    report["blake3"] = (ways.SYSFS / "blake3").read_text().strip()
    channels = tuple(_one_of_each_device_first(engines[1:]))
    if not channels:
        report["nulls"].append({"id": "channels", "because": "this machine has no DMA channel"})
    no_infer = inference.why_not() if plan.infer_rounds else "left out of the quick suite: it takes minutes"
    if no_infer:
        report["nulls"].append({"id": "infer", "because": no_infer})
    refused = {each: because for each in AF_ALG if (because := ways.why_not_af_alg(each))}
    for each, because in refused.items():
        report["nulls"].append({"id": f"instead: AF_ALG {each}", "because": because})
    hashes = tuple(each for each in AF_ALG if each not in refused)
    suite = Suite(plan, program, data, ("cpu", *channels[:1]), channels, no_infer, hashes)
    return suite, Instruments(Counters(drivers), Yardstick(), energy)


def _measure(
    report: dict[str, Any], suite: Suite, instruments: Instruments, only: tuple[str, ...], console: Console
) -> None:
    plan = suite.plan
    groups = [(name, found) for name, found in suite.groups() if not only or name.startswith(only)]
    rings = [] if only and not "memory".startswith(only) else list(suite.memory())
    if not groups and not rings:
        raise ways.WrongError(f"no group is called {' or '.join(only)}")
    turns = plan.sessions * sum(len(found) * (1 + _rounds(found, plan)) for _, found in groups)
    about = f"{turns} turns in {len(groups)} groups and {plan.sessions} sessions, {_about(groups, plan)}"
    console.print(f"{plan.mode}: {about}", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    meters = [(name, [Meter(way, instruments) for way in found]) for name, found in groups]
    memory: list[dict[str, Any]] = [
        {"id": _id("memory", named), "group": "memory", "parameters": named, "samples": [], "sessions": []}
        for named, _ in rings
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=turns)
        for session in range(plan.sessions):
            for name, those in meters:
                doing = f"session {session + 1}, {name}"
                progress.update(task, description=doing)
                if not console.is_terminal:
                    console.print(f"{doing}: {len(those)} ways", highlight=False)
                _take_turns(those, session, plan, partial(progress.advance, task))
            progress.update(task, description="memory")
            for each, (_, work) in zip(memory, rings, strict=True):
                with ways.memory_of_rings(work, RINGS_FOR_MEMORY) as measure:
                    each["samples"] += [measure() for _ in range(plan.rounds)]
                each["sessions"] += [session] * plan.rounds
    report["ways"] = [meter.as_json() for _, those in meters for meter in those]
    report["memory"] = memory


def trace(report: dict[str, Any]) -> None:
    """Record a trace, or why there is none, into what run() returned."""
    report["trace"] = None
    try:
        report["trace"] = tracing.record()
    except PermissionError as error:
        report["nulls"].append({"id": "trace", "because": f"{error.filename} is not ours to use: be root"})
    except (pynymph.NymphError, ways.WrongError, OSError) as error:
        report["failures"].append(f"trace: {error}")


def _take_turns(meters: list[Meter], session: int, plan: Plan, step: Callable[[], None]) -> None:
    with ExitStack() as stack:
        started = []
        for meter in meters:
            started.append((meter, meter.start(stack)))
            step()
        for number in range(_rounds([meter.way for meter in meters], plan)):
            order = started[:]
            random.Random(session * plan.rounds + number).shuffle(order)
            for meter, turns in order:
                meter.turn(session, turns, plan.seconds)
                step()


def _rounds(found: list[Way], plan: Plan) -> int:
    if found[0].group == "infer":
        return plan.infer_rounds
    return min(plan.rounds, plan.large_rounds) if found[0].nbytes >= LARGE else plan.rounds


def _id(group: str, parameters: dict[str, Any]) -> str:
    return f"{group}: " + ", ".join(f"{key} {value}" for key, value in parameters.items())


def _about(groups: list[tuple[str, list[Way]]], plan: Plan) -> str:
    """How long it will take, as far as can be said before."""
    seconds = 0.0
    for _, found in groups:
        for way in found:
            # a guess, of a CPU that is emulated; the bar corrects it
            least = way.nbytes * way.parameters.get("depth", 1) / 0.1e9
            turn = max(plan.seconds, least) + 0.015
            if way.group == "infer":
                turn += SECONDS_TO_START
            seconds += plan.sessions * (0.1 + (1 + _rounds(found, plan)) * turn)
    return f"about {seconds / 60:.1f} minutes"


def _one_of_each_device_first(channels: list[str]) -> list[str]:
    """Of dma0chan0, dma0chan1, dma1chan0: dma0chan0, dma1chan0, dma0chan1."""
    seen: dict[str, int] = {}
    ranked = []
    for name in channels:
        device = str(dma_vs_copy.device_of(name))
        seen[device] = seen.get(device, 0) + 1
        ranked.append((seen[device], name))
    return [name for _, name in sorted(ranked, key=lambda each: each[0])]
