# SPDX-License-Identifier: MIT
"""Programs run in a machine, and what they came to."""

import contextlib
import errno
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nymph_vm import build, project
from nymph_vm.fuzz.program import THREADS, Program, encode
from nymph_vm.host import HarnessError
from nymph_vm.machine import Machine

# How a program ended, as executor.c says it: STUCK is one that SIGKILL does not end.
DONE, TIMED_OUT, ENDED, STUCK = range(4)
ENDS = ("done", "timed out", "ended early", "stuck")

EXECUTOR = Path(__file__).with_name("executor.c")
LIMIT_MS = 250  # a program that waits for what never comes takes so long
UNRUN = 0x8080808080808080 - 2**64  # the result of a step that did not come to its end

# Users may use the memory that dma-bufs are made of, and userfaultfd, as on a desktop; then the executor.
START = """
    chmod 666 /dev/udmabuf /dev/dma_heap/* 2>/dev/null
    echo 1 > /proc/sys/vm/unprivileged_userfaultfd 2>/dev/null
    exec "$0" "$(id -u nymph-user)" "$(getent group nymph | cut -d: -f3)"
"""

REPLY = struct.Struct("<IIII")


@dataclass(frozen=True)
class Outcome:
    """What a program came to.

    end: one of DONE and its like. at: the step that each thread was in when it ended, or -1. results: of each
    step; negative errnos, and UNRUN. edges: pairs of places in the module's code, reached by none before.
    data: what its READs read, each at the offset that is its result.
    """

    end: int
    at: tuple[int, ...]
    results: tuple[int, ...]
    edges: tuple[int, ...]
    data: bytes


class Executor:
    """Runs programs in a machine. Use it in a with statement.

    Its methods raise VMLost if the machine is lost, and HarnessError if the executor does not work there.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        program = build.program(EXECUTOR)
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            machine.command(["sh", "-c", START, project.pynymph().in_guest(program)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(OSError):  # what was to be sent is of no use any more
                pipe.close()
        self._said.close()

    def run(self, programs: Sequence[Program], limit_ms: int = LIMIT_MS) -> list[Outcome]:
        """Run programs, one after the other. A program that is stuck is the last one."""
        self.send(programs, limit_ms)
        return self.receive(len(programs))

    def send(self, programs: Sequence[Program], limit_ms: int = LIMIT_MS) -> None:
        """Have programs run; receive() waits for them."""
        assert self._process.stdin
        try:
            self._process.stdin.write(struct.pack("<I", len(programs)))
            self._process.stdin.write(b"".join(encode(program, limit_ms) for program in programs))
            self._process.stdin.flush()
        except BrokenPipeError:
            self._ended()

    def receive(self, count: int) -> list[Outcome]:
        """Wait for so many programs."""
        found: list[Outcome] = []
        while len(found) < count:
            end, nr_steps, nr_edges, nr_bytes = REPLY.unpack(self._read(REPLY.size))
            at = struct.unpack(f"<{THREADS}i", self._read(4 * THREADS))
            results = struct.unpack(f"<{nr_steps}q", self._read(8 * nr_steps))
            edges = struct.unpack(f"<{nr_edges}I", self._read(4 * nr_edges))
            found.append(Outcome(end, at, results, edges, self._read(nr_bytes)))
            if end == STUCK:
                break
        return found

    def _read(self, size: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(size)
        if len(data) < size:
            self._ended()
        return data

    def _ended(self) -> None:
        self._machine.sync()  # raises VMLost, if that is why
        self._said.seek(0)
        raise HarnessError(f"the fuzzer's executor ended in the guest: {self._said.read().strip()}")


def describe(program: Program, outcome: Outcome) -> str:
    """The program with what its steps returned, for people."""
    lines = [f"# {ENDS[outcome.end]}"]
    for i, (step, result) in enumerate(zip(program, outcome.results, strict=True)):
        name = errno.errorcode.get(-result, "") if -4096 < result < 0 else ""
        said = "did not return" if result == UNRUN else name or str(result)
        lines.append(f"# {said}{' <- thread is here' if i in outcome.at else ''}\n{step}")
    return "\n".join(lines) + "\n"
