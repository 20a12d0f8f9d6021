# SPDX-License-Identifier: MIT
"""Programs of system calls: what generate makes, executor.c runs, and a corpus keeps, a line for each step.

All memory is at fixed addresses and all files have fixed numbers, so a program is nothing but its steps.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

# What executor.c runs, and its arguments:
# CALL    a system call's number, its six arguments, and the file number that its result gets
# DATA    the address that the data goes to
# NOW     an address, and what is added to the time that is written there
# CLOCK   none: its result is the time
# READ    address and length, for the reply
# MOVE    the address of a file number, and what that becomes
# FORK    how many of the next steps a child runs, those of this thread; and whether it is waited for
# KILL    which child, and a signal
# SYNC    none: what comes later waits for all threads
KINDS = ("call", "data", "now", "clock", "read", "move", "fork", "kill", "sync")
CALL, DATA, NOW, CLOCK, READ, MOVE, FORK, KILL, SYNC = range(len(KINDS))

# As in executor.c.
ARENA, ARENA_SIZE = 0x1000000000, 0x10000000
CONTROL, SOURCE, TARGET, FIXED = (ARENA + each * 0x1000000 for each in range(4))
CONTROL_SIZE, HALF_SIZE = 0x100000, 0x200000
MAPS = ARENA + 0x4000000  # what programs map themselves
NOWHERE = ARENA + 0xE000000  # never mapped
THREADS, MAX_STEPS, MAX_BYTES = 4, 512, 1 << 20
SOCKETS = 60

HEAD = struct.Struct("<BBBBI")


@dataclass(frozen=True)
class Step:
    """One step. `fail`: the nth allocation or copy of a CALL that fails, 0 for none."""

    kind: int
    arguments: tuple[int, ...] = ()
    data: bytes = b""
    thread: int = 0
    fail: int = 0

    def encode(self) -> bytes:
        """As executor.c reads it."""
        head = HEAD.pack(self.kind, self.thread, self.fail, len(self.arguments), len(self.data))
        arguments = struct.pack(f"<{len(self.arguments)}Q", *self.arguments)
        return head + arguments + self.data + bytes(-len(self.data) % 8)

    def __str__(self) -> str:
        words = [f"{self.thread}", KINDS[self.kind], *(f"{each:#x}" for each in self.arguments)]
        if self.fail:
            words.append(f"fail={self.fail}")
        return " ".join([*words, *([f":{self.data.hex()}"] if self.data else [])])

    @classmethod
    def parse(cls, line: str) -> "Step":
        """The step of a line as str() makes it. Raises ValueError."""
        thread, kind, *words = line.split()
        arguments: list[int] = []
        data, fail = b"", 0
        for word in words:
            if word.startswith(":"):
                data = bytes.fromhex(word[1:])
            elif word.startswith("fail="):
                fail = int(word[5:])
            else:
                arguments.append(int(word, 0))
        return cls(KINDS.index(kind), tuple(arguments), data, int(thread), fail)


Program = tuple[Step, ...]


def encode(program: Program, limit_ms: int) -> bytes:
    """As executor.c reads it: it gets so long to run."""
    steps = b"".join(step.encode() for step in program)
    return struct.pack("<III", len(steps), len(program), limit_ms) + steps


def fits(program: Program) -> bool:
    """Whether executor.c takes it."""
    return len(program) <= MAX_STEPS and sum(16 + 72 + len(step.data) for step in program) < MAX_BYTES


def text(programs: Iterable[Program]) -> str:
    """Programs as a file of a corpus has them: a line for each step, an empty line between two."""
    return "\n".join("".join(f"{step}\n" for step in program) for program in programs)


def parse(content: str) -> Iterator[Program]:
    """The programs of such a file; lines that start with # are remarks. Raises ValueError."""
    for block in content.split("\n\n"):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        if lines:
            yield tuple(map(Step.parse, lines))


def on_thread(program: Program, thread: int) -> Program:
    """The program with all its steps in that thread."""
    return tuple(replace(step, thread=thread) for step in program)
