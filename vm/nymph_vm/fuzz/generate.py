# SPDX-License-Identifier: MIT
"""Makes programs for the fuzzer, and mutates them: requests, entries, batches, links, memory of users.

A program sets up a ring and does some things with it, often in threads. What is wrong with an argument
is wrong in one place, most of the time: else the driver looks no further than its first check.

The file is long because the interface is: each thing a user can do is a short method here.
"""

import errno
import random
import struct
from collections.abc import Callable
from dataclasses import replace

from nymph_vm.fuzz.program import (
    CALL,
    CLOCK,
    CONTROL,
    CONTROL_SIZE,
    DATA,
    FIXED,
    FORK,
    HALF_SIZE,
    KILL,
    MAPS,
    MOVE,
    NOW,
    NOWHERE,
    READ,
    SOCKETS,
    SOURCE,
    SYNC,
    TARGET,
    THREADS,
    Program,
    Step,
    fits,
)

PAGE = 4096
CHUNK = 64 << 10  # what the driver moves at a time
BUFFER_SPAN = 0x400000  # where programs map one buffer, and the next

# System calls of x86-64, which is also user-mode Linux's.
READ_FILE, CLOSE, POLL, MMAP, MPROTECT, MUNMAP, IOCTL, READV = 0, 3, 7, 9, 10, 11, 16, 19
SCHED_YIELD, MREMAP, MADVISE, DUP2, SENDMSG, RECVMSG, EXECVE, FCNTL, FTRUNCATE = (
    24,
    25,
    28,
    33,
    46,
    47,
    59,
    72,
    77,
)
OPENAT, EVENTFD2, MEMFD_CREATE, USERFAULTFD = 257, 290, 319, 323
AT_FDCWD = 2**64 - 100
NO_DEADLINE = 2**64 - 1

# The requests, and the layouts of their structs: kernel/pcie_nymph.h.
SUBMIT_DMA, GET_STATUS, SETUP_RING, GET_RING, RESET = 0xC0204E01, 0x80304E02, 0x40184E03, 0x80184E04, 0x4E05
QUERY, SETUP2, ENABLE, ENTER, SNAPSHOT = 0xC0484E06, 0xC0384E07, 0x4E08, 0xC0384E09, 0xC0A04E0A
CANCEL, BUFFER, EVENTFD, LATENCY, ATTEST = 0xC0184E0B, 0xC0304E0C, 0x40104E0D, 0xC0284E0E, 0xC0684E0F
DESC = struct.Struct("<QQIIQ")
ENTRY = struct.Struct("<HHIQQQIIQQQ")
RING = struct.Struct("<IIIIQ")
SETUP2_ARG = struct.Struct("<IIIIQ32s")
ENTER_ARG = struct.Struct("<IIQQIIIIIiQ")
SNAPSHOT_ARG = struct.Struct("<II24sQ32sIIQIiQII32sQQ")
CANCEL_ARG = struct.Struct("<IIQII")
BUFFER_ARG = struct.Struct("<IIIIQQQiI")
BUFFER_FD = 40
EVENTFD_ARG = struct.Struct("<IIiI")
LATENCY_ARG = struct.Struct("<IIQQQQ")
ATTEST_ARG = struct.Struct("<II32sQII32sQII")
QUERY_ARG = struct.Struct("<II40xIIQII")
NOP, COPY, HASH, FILL, COMPARE = range(5)
ZERO_COPY, VERIFY, SYNC_ENTRY, DIGEST, RECORD, LINK, BARRIER = (1 << bit for bit in range(7))
ALLOC, REGISTER, IMPORT, FREE, CARD, EXPORT = range(1, 7)
PAUSED, SIGN = 1, 1
RECORD_SIZE = 128

# What files of a program are.
RINGS, EVENTFDS, MEMFDS, DMABUFS, UFFD, UDMABUF = (32, 33, 34), (40, 41), (44, 45), (48, 49), 52, 53

# Where in CONTROL what is.
PATHS, STRUCTS, ARRAYS, RECORDS = (CONTROL + each for each in (0, 0x1000, 0x10000, 0x80000))
CONTROL_END = CONTROL + CONTROL_SIZE
DEVICE, UDMABUF_PATH, TRUE = PATHS, PATHS + 0x40, PATHS + 0x80

WORDS = [
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    127,
    128,
    4095,
    4096,
    4097,
    65535,
    65536,
    65537,
    2**30,
    2**31 - 1,
    2**31,
    2**32 - 1,
]
WORDS += [2**30 + 1, 2**32, 2**47 - 1, 2**47, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1, NOWHERE, CONTROL_END]
WORDS += [SOURCE, TARGET, FIXED, MAPS, TARGET + HALF_SIZE, SOURCE + HALF_SIZE - 1, -errno.EFAULT & 2**64 - 1]

COPY_STRUCT, WILD = 0.05, 0.04


class Generator:
    """Makes and mutates programs with random numbers of its own: the same ones for the same seed."""

    def __init__(self, seed: int, engines: tuple[bytes, ...] = (b"", b"auto", b"cpu")) -> None:
        self._rng = random.Random(seed)
        self._engines = engines
        self._acts: list[tuple[int, Callable[[], list[Step]]]] = [
            (30, self._enter), (6, self._submit), (5, self._setup), (4, self._enable), (3, self._reset),
            (4, self._snapshot), (4, self._cancel), (10, self._buffer), (5, self._map), (6, self._remap),
            (4, self._eventfd), (4, self._read), (2, self._poll), (3, self._close), (2, self._send),
            (2, self._fork), (3, self._memfd), (2, self._query), (2, self._attest), (2, self._import),
            (1, self._userfault), (1, self._setup_ring), (1, self._wild),
        ]  # fmt: skip

    # Programs

    def program(self) -> Program:
        """A new one."""
        rng = self._rng
        steps = [*self._open(RINGS[0]), *self._setup(RINGS[0], good=True)]
        for _ in range(rng.choice([0, 0, 1, 2, 3])):
            steps += self._make_buffer(RINGS[0])
        if rng.random() < 0.15:
            steps += [*self._open(RINGS[1]), *self._setup(RINGS[1])]
        races = rng.random() < 0.4
        for _ in range(rng.randint(1, 10)):
            thread = rng.randrange(THREADS) if races else 0
            steps += [replace(step, thread=thread) for step in self._act()]
        if races:
            steps.append(Step(SYNC))
            steps += self._snapshot()
        return self._fitting(tuple(steps))

    def mutate(self, program: Program, other: Program) -> Program:
        """Another one that is like it; `other`: what it may get a part of."""
        rng = self._rng
        steps = list(program)
        for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
            at = rng.randrange(len(steps) + 1) if steps else 0
            how = rng.random()
            if how < 0.3 or not steps:
                thread = rng.randrange(THREADS) if rng.random() < 0.3 else 0
                steps[at:at] = [replace(step, thread=thread) for step in self._act()]
            elif how < 0.42:
                del steps[at : at + rng.choice([1, 1, 2, 4])]
            elif how < 0.5:
                part = steps[at : at + rng.randint(1, 6)]
                to = rng.randrange(len(steps) + 1)
                steps[to:to] = part * rng.choice([1, 1, 2, 4])
            elif how < 0.58:
                first = rng.randrange(len(other) + 1)
                steps[at:at] = other[first : first + rng.randint(1, 12)]
            elif how < 0.66:
                thread, span = rng.randrange(THREADS), rng.randint(1, 6)
                steps[at : at + span] = [replace(step, thread=thread) for step in steps[at : at + span]]
            else:
                at = min(at, len(steps) - 1)
                steps[at] = self._twist(steps[at])
        return self._fitting(tuple(steps))

    def _fitting(self, program: Program) -> Program:
        while not fits(program):
            program = program[: len(program) // 2]
        return program

    def _twist(self, step: Step) -> Step:
        """The step with one thing about it changed."""
        rng = self._rng
        if step.kind == CALL and rng.random() < 0.3:
            return replace(step, fail=rng.choice([0, *range(1, 12), rng.randint(1, 60)]))
        if step.data and rng.random() < 0.9:
            size = rng.choice([each for each in (1, 2, 4, 8) if each <= len(step.data)])
            at = rng.randrange(0, len(step.data) - size + 1, size)
            mask = (1 << 8 * size) - 1
            was = int.from_bytes(step.data[at : at + size], "little")
            new = self._word(was) & mask
            return replace(step, data=step.data[:at] + new.to_bytes(size, "little") + step.data[at + size :])
        if (
            step.kind == CALL
            and len(step.arguments) > 1
            and step.arguments[0] != IOCTL
            and rng.random() < 0.8
        ):
            return self._with_argument(step, rng.randrange(1, min(len(step.arguments), 7)))
        if step.kind == CALL and step.arguments[0] == IOCTL and rng.random() < 0.3:
            return self._with_argument(step, rng.choice([1, 3]))
        return replace(step, thread=rng.randrange(THREADS))

    def _with_argument(self, step: Step, which: int) -> Step:
        if which >= len(step.arguments):
            return step
        arguments = list(step.arguments)
        arguments[which] = self._word(arguments[which]) & 2**64 - 1
        return replace(step, arguments=tuple(arguments))

    def _word(self, was: int) -> int:
        rng = self._rng
        how = rng.random()
        if how < 0.35:
            return was ^ 1 << rng.randrange(64)
        if how < 0.6:
            return was + rng.choice([-8, -1, 1, 8, -64, 64, -PAGE, PAGE])
        return rng.choice(WORDS) if how < 0.95 else rng.randrange(2**64)

    # Values

    def _ring(self) -> int:
        return self._rng.choice([RINGS[0]] * 8 + [RINGS[1]] * 2 + [RINGS[2]])

    def _length(self) -> int:
        rng = self._rng
        how = rng.random()
        if how < 0.45:
            return rng.randint(1, rng.choice([1, 8, 64, 300]))
        if how < 0.75:
            return max(1, rng.choice([1024, PAGE, 2 * PAGE, 16384, CHUNK]) + rng.choice([-1, 0, 0, 1, 8]))
        return rng.randint(1, rng.choice([5000, CHUNK, 3 * CHUNK] * 10 + [1 << 20, 1 << 21]))

    def _address(self, length: int, is_target: bool) -> int:
        """Of so many bytes; often at the end or the start of something."""
        rng = self._rng
        how = rng.random()
        if how < WILD:
            return rng.choice(
                [0, NOWHERE, 2**63, 2**64 - PAGE, 2**47 - 8, FIXED, TARGET + HALF_SIZE - 1, PAGE - 1]
            )
        base = rng.choice([TARGET, TARGET, TARGET, SOURCE] if is_target else [SOURCE, SOURCE, FIXED, TARGET])
        if how < 0.12:
            base = MAPS + rng.randrange(4) * BUFFER_SPAN
        room = max(HALF_SIZE - length, 0)
        if how < 0.3:
            return base + rng.choice([0, room, room, max(PAGE - length, 0), PAGE - 1, 1, 63])
        return base + rng.randrange(min(room, 0x20000) + 1)

    def _entry(self, cookie: int, *, buffers: bool) -> bytes:
        rng = self._rng
        opcode = rng.choice([COPY] * 5 + [FILL, FILL, HASH, COMPARE, NOP])
        length = self._length()
        flags = sum({rng.choice([0, VERIFY, SYNC_ENTRY, DIGEST, LINK, BARRIER, ZERO_COPY]) for _ in range(2)})
        if flags & VERIFY and flags & DIGEST:
            flags &= ~DIGEST
        if rng.random() < 0.6 or flags & DIGEST or opcode == HASH:
            flags |= RECORD
        if opcode in (HASH, COMPARE):
            flags &= ~(VERIFY | DIGEST)
        if opcode == NOP:
            flags &= ~(VERIFY | DIGEST | ZERO_COPY)
        source = target = source_buffer = target_buffer = 0
        if opcode in (COPY, HASH, COMPARE):
            source = self._address(length, False)
            if rng.random() < (0.9 if buffers else 0.2):
                source_buffer, source = rng.randint(1, 4), self._offset(length)
        if opcode in (COPY, FILL, COMPARE):
            target = self._address(length, True)
            if rng.random() < (0.9 if buffers else 0.2):
                target_buffer, target = rng.randint(1, 4), self._offset(length)
        if opcode == FILL:
            source = rng.choice([0, 2**64 - 1, 0x0123456789ABCDEF])
        if opcode == NOP:
            length = 0
        entry = [64, opcode, flags, length, source, target, source_buffer, target_buffer, cookie, 0, 0]
        if rng.random() < 0.02:
            at = rng.randrange(len(entry))
            entry[at] = self._word(entry[at]) & (
                0xFFFF if at < 2 else 0xFFFFFFFF if at in (2, 6, 7) else 2**64 - 1
            )
        return ENTRY.pack(*entry)

    def _offset(self, length: int) -> int:
        rng = self._rng
        return rng.choice([0, 0, rng.randrange(300), rng.randrange(CHUNK), max(CHUNK - length, 0), PAGE - 1])

    def _act(self) -> list[Step]:
        weights, acts = zip(*self._acts, strict=True)
        steps: list[Step] = self._rng.choices(acts, weights)[0]()
        if self._rng.random() < 0.06:
            calls = [i for i, step in enumerate(steps) if step.kind == CALL]
            if calls:
                at = self._rng.choice(calls)
                steps[at] = replace(
                    steps[at], fail=self._rng.choice([*range(1, 12), self._rng.randint(1, 60)])
                )
        return steps

    def _request(self, file: int, number: int, data: bytes, *, at: int | None = None) -> list[Step]:
        """An ioctl() with a struct, which sometimes ends where its page does, or does not lie in one."""
        rng = self._rng
        if at is None:
            at = STRUCTS + rng.randrange(16) * 256
            how = rng.random()
            if how < COPY_STRUCT:
                at = CONTROL_END - len(data)
            elif how < 2 * COPY_STRUCT:
                at = CONTROL + 0x3000 - rng.randrange(1, max(len(data), 2))
        where = at
        if rng.random() < WILD / 4:
            where = rng.choice([0, NOWHERE, FIXED, CONTROL_END - 1, 2**63, at + 1])
        return [Step(DATA, (at,), data), Step(CALL, (IOCTL, file, number, where))]

    # Requests

    def _open(self, slot: int) -> list[Step]:
        flags = self._rng.choice([2, 2, 2, 2 | 0o4000])  # O_RDWR, O_NONBLOCK
        return [
            Step(DATA, (DEVICE,), b"/dev/pcie_nymph\0"),
            Step(CALL, (OPENAT, AT_FDCWD, DEVICE, flags, 0, 0, 0, slot)),
        ]

    def _setup(self, file: int | None = None, *, good: bool = False) -> list[Step]:
        rng = self._rng
        entries = rng.choice([1, 2, 3, 4, 8, 16, 64])
        flags = PAUSED * (rng.random() < 0.25)
        engine = rng.choice(self._engines)
        if not good and rng.random() < 0.1:
            entries = rng.choice([0, 1024, 4096, 4097, 2**32 - 1])
        if not good and rng.random() < 0.05:
            engine, flags = rng.choice([(b"warp", flags), (b"x" * 32, flags), (engine, 2)])
        data = SETUP2_ARG.pack(SETUP2_ARG.size, flags, entries, 0, 0x1000000, engine)
        return self._request(file or self._ring(), SETUP2, data)

    def _setup_ring(self) -> list[Step]:
        return self._request(self._ring(), SETUP_RING, RING.pack(self._rng.randint(1, 40), 0, 0, 0, 7))

    def _enable(self) -> list[Step]:
        return [Step(CALL, (IOCTL, self._ring(), ENABLE, 0))]

    def _reset(self) -> list[Step]:
        return [Step(CALL, (IOCTL, self._ring(), RESET, 0))]

    def _submit(self) -> list[Step]:
        rng = self._rng
        length = self._length()
        flags = rng.choice(
            [0, VERIFY, SYNC_ENTRY, SYNC_ENTRY | VERIFY, ZERO_COPY, ZERO_COPY | SYNC_ENTRY, RECORD]
        )
        source, target = self._address(length, False), self._address(length, True)
        return self._request(
            self._ring(), SUBMIT_DMA, DESC.pack(source, target, length, flags, rng.randrange(8))
        )

    def _enter(self) -> list[Step]:
        rng = self._rng
        count = rng.choice([0, 1, 1, 2, 3, 4, 8, 17, 33, 64])
        buffers = rng.random() < 0.5
        entries = b"".join(self._entry(rng.randrange(8), buffers=buffers) for _ in range(count))
        at = ARRAYS + rng.randrange(4) * 0x4000
        if rng.random() < COPY_STRUCT:
            at = CONTROL_END - len(entries)
        steps = [Step(DATA, (at,), entries)] if entries else []
        most = rng.choice([0, 1, 2, count, 64])
        least = rng.choice([0, 0, min(1, most), most])
        records = RECORDS if rng.random() > WILD else rng.choice([0, FIXED, NOWHERE, CONTROL_END - 130])
        deadline = rng.choice([0, 0, 1, NO_DEADLINE]) if rng.random() < 0.5 else None
        arg = ENTER_ARG.pack(
            ENTER_ARG.size, 0, at, records, count + rng.choice([0] * 20 + [1, -count]), most, least, 0, 0, 0,
            deadline or 0,
        )  # fmt: skip
        where = STRUCTS + rng.randrange(16) * 256
        data, call = self._request(self._ring(), ENTER, arg, at=where)
        steps.append(data)
        if deadline is None:
            steps.append(
                Step(NOW, (where + 48, rng.choice([1000, 100_000, 1_000_000, 5_000_000, 20_000_000])))
            )
        steps.append(call)
        if deadline is None:
            steps += [
                Step(CLOCK),
                Step(READ, (where, ENTER_ARG.size)),
                Step(READ, (records, RECORD_SIZE * most)),
            ]
        return steps

    def _snapshot(self) -> list[Step]:
        rng = self._rng
        to, most = rng.choice([(0, 0), (ARRAYS + 0x40000, 64), (ARRAYS + 0x40000, 1), (NOWHERE, 64)])
        arg = SNAPSHOT_ARG.pack(
            SNAPSHOT_ARG.size, 0, bytes(24), 0, bytes(32), 0, 0, to, most, 0, 0, 0, 0, bytes(32), 0, 0
        )  # fmt: skip
        return [
            *self._request(self._ring(), rng.choice([SNAPSHOT] * 4 + [GET_STATUS, GET_RING]), arg),
        ]

    def _cancel(self) -> list[Step]:
        return self._request(
            self._ring(), CANCEL, CANCEL_ARG.pack(CANCEL_ARG.size, 0, self._rng.randrange(8), 0, 0)
        )

    def _query(self) -> list[Step]:
        rng = self._rng
        if rng.random() < 0.5:
            buckets = rng.choice([0, RECORDS, NOWHERE])
            return self._request(
                self._ring(), LATENCY, LATENCY_ARG.pack(LATENCY_ARG.size, 0, 0, 0, 0, buckets)
            )
        engines = rng.choice([0, RECORDS, NOWHERE])
        return self._request(
            self._ring(), QUERY, QUERY_ARG.pack(QUERY_ARG.size, 0, 0, 0, engines, rng.choice([0, 1, 64]), 0)
        )

    def _attest(self) -> list[Step]:
        rng = self._rng
        to, most = rng.choice([(RECORDS, 16384)] * 3 + [(RECORDS, 100), (NOWHERE, 16384)])
        sign, signature, room = rng.choice(
            [(0, 0, 0)] * 3 + [(SIGN, RECORDS + 16384, 512)] * 2 + [(SIGN, NOWHERE, 512), (SIGN, RECORDS, 1)]
        )
        head = ATTEST_ARG.size, sign, rng.randbytes(32), to, most, 0, bytes(32)
        arg = ATTEST_ARG.pack(*head, signature, room, 0)
        return self._request(self._ring(), ATTEST, arg)

    # Buffers, and memory

    def _buffer_request(
        self,
        file: int,
        op: int,
        *,
        flags: int = 0,
        handle: int = 0,
        addr: int = 0,
        length: int = 0,
        fd: int = 0,
    ) -> list[Step]:
        return self._request(
            file, BUFFER, BUFFER_ARG.pack(BUFFER_ARG.size, op, flags, handle, addr, length, 0, fd, 0)
        )

    def _make_buffer(self, file: int) -> list[Step]:
        rng = self._rng
        length = rng.choice([PAGE, CHUNK, CHUNK, 2 * CHUNK, self._length()])
        if rng.random() < 0.5:
            return self._buffer_request(file, ALLOC, length=length)
        addr = self._address(length, rng.random() < 0.7)
        return self._buffer_request(file, REGISTER, addr=addr, length=length, flags=int(rng.random() < 0.3))

    def _buffer(self) -> list[Step]:
        rng = self._rng
        file, how = self._ring(), rng.random()
        if how < 0.45:
            return self._make_buffer(file)
        if how < 0.75:
            return self._buffer_request(file, FREE, handle=rng.randint(0, 4))
        if how < 0.8:
            return self._buffer_request(file, CARD, length=self._length())
        if how < 0.92:
            steps = self._buffer_request(file, EXPORT, handle=rng.randint(1, 4))
            return [*steps, Step(MOVE, (steps[0].arguments[0] + BUFFER_FD, rng.choice(DMABUFS)))]
        return self._buffer_request(
            file, rng.randrange(9), flags=rng.randrange(3), handle=rng.randrange(5), length=self._length()
        )

    def _import(self) -> list[Step]:
        """A dma-buf: an export, or one of a memfd."""
        rng = self._rng
        file = rng.choice([*DMABUFS, *MEMFDS, RINGS[0]])
        steps = self._buffer_request(self._ring(), IMPORT, fd=file, flags=int(rng.random() < 0.3))
        if rng.random() < 0.5:
            return steps
        memfd, size = rng.choice(MEMFDS), rng.choice([PAGE, CHUNK])
        request = struct.pack("<IIQQ", memfd, 1, 0, size)
        return [
            Step(DATA, (PATHS + 0x100,), b"m\0"),
            Step(CALL, (MEMFD_CREATE, PATHS + 0x100, 2, 0, 0, 0, 0, memfd)),
            Step(CALL, (FTRUNCATE, memfd, size)),
            Step(CALL, (FCNTL, memfd, 1033, 2)),  # F_ADD_SEALS, F_SEAL_SHRINK
            Step(DATA, (UDMABUF_PATH,), b"/dev/udmabuf\0"),
            Step(CALL, (OPENAT, AT_FDCWD, UDMABUF_PATH, 2, 0, 0, 0, UDMABUF)),
            Step(DATA, (STRUCTS,), request),
            Step(CALL, (IOCTL, UDMABUF, 0x40187542, STRUCTS, 0, 0, 0, DMABUFS[0])),
            *self._buffer_request(self._ring(), IMPORT, fd=DMABUFS[0], flags=int(rng.random() < 0.3)),
        ]

    def _map(self) -> list[Step]:
        rng = self._rng
        handle = rng.randint(1, 4)
        file, offset = self._ring(), handle << 30
        if rng.random() < 0.2:
            file, offset = rng.choice([*DMABUFS, *MEMFDS]), 0
        offset += PAGE * rng.choice([0, 0, 0, 1, 16])
        flags = 0x11 if rng.random() < 0.95 else 0x12  # MAP_FIXED, and MAP_SHARED or MAP_PRIVATE
        length = rng.choice([PAGE, CHUNK, 2 * CHUNK])
        at = MAPS + (handle - 1) * BUFFER_SPAN
        if rng.random() < 0.1:
            at = rng.choice([TARGET, SOURCE]) + PAGE * rng.randrange(16)
        return [Step(CALL, (MMAP, at, length, rng.choice([3, 3, 3, 1, 0]), flags, file, offset))]

    def _remap(self) -> list[Step]:
        """Games with memory that entries name."""
        rng = self._rng
        base = rng.choice([TARGET, SOURCE, *(MAPS + each * BUFFER_SPAN for each in range(4))])
        at = base + PAGE * rng.choice([0, 0, 1, 2, 15])
        length = PAGE * rng.choice([1, 1, 2, 16])
        how = rng.random()
        if how < 0.25:
            to = rng.choice([TARGET, MAPS + rng.randrange(4) * BUFFER_SPAN, NOWHERE]) + PAGE * rng.choice(
                [0, 1, 16]
            )
            return [Step(CALL, (MREMAP, at, length, rng.choice([length, 2 * length, PAGE]), 3, to))]
        if how < 0.6:
            # DONTNEED, REMOVE, DONTFORK, MERGEABLE, FREE, PAGEOUT, POPULATE_READ, POPULATE_WRITE
            return [Step(CALL, (MADVISE, at, length, rng.choice([4, 4, 4, 9, 10, 12, 8, 21, 22, 23])))]
        if how < 0.8:
            return [Step(CALL, (MPROTECT, at, length, rng.choice([0, 1, 3])))]
        if how < 0.9:
            return [Step(CALL, (MUNMAP, at, length))]
        return [Step(CALL, (MMAP, at, length, 3, 0x32, 2**64 - 1, 0))]

    def _memfd(self) -> list[Step]:
        rng = self._rng
        file = rng.choice(MEMFDS)
        if rng.random() < 0.4:
            return [Step(CALL, (FTRUNCATE, file, rng.choice([0, 1, PAGE, CHUNK])))]
        at = rng.choice([TARGET, SOURCE]) + PAGE * rng.randrange(4)
        return [
            Step(DATA, (PATHS + 0x100,), b"m\0"),
            Step(CALL, (MEMFD_CREATE, PATHS + 0x100, 2, 0, 0, 0, 0, file)),
            Step(CALL, (FTRUNCATE, file, CHUNK)),
            Step(CALL, (MMAP, at, CHUNK, 3, 0x11, file, 0)),
        ]

    def _userfault(self) -> list[Step]:
        """Memory that nobody ever fills: whoever touches it waits until it is killed."""
        at = self._rng.choice([TARGET, MAPS]) + PAGE * self._rng.randrange(4)
        return [
            Step(CALL, (MMAP, at, 4 * PAGE, 3, 0x32, 2**64 - 1, 0)),
            Step(CALL, (USERFAULTFD, 0o2000000, 0, 0, 0, 0, 0, UFFD)),
            Step(DATA, (STRUCTS,), struct.pack("<QQQ", 0xAA, 0, 0)),
            Step(CALL, (IOCTL, UFFD, 0xC018AA3F, STRUCTS)),
            Step(DATA, (STRUCTS,), struct.pack("<QQQQ", at, 4 * PAGE, 1, 0)),
            Step(CALL, (IOCTL, UFFD, 0xC020AA00, STRUCTS)),
        ]

    # Files, and processes

    def _eventfd(self) -> list[Step]:
        rng = self._rng
        file = rng.choice(EVENTFDS)
        if rng.random() < 0.3:
            return [Step(CALL, (READ_FILE, file, STRUCTS, 8))]
        steps = self._request(
            self._ring(),
            EVENTFD,
            EVENTFD_ARG.pack(16, 0, rng.choice([file] * 6 + [-1, -1, RINGS[0], 999]), 0),
        )
        return [Step(CALL, (EVENTFD2, 0, 0o4000, 0, 0, 0, 0, file)), *steps] if rng.random() < 0.7 else steps

    def _read(self) -> list[Step]:
        rng = self._rng
        if rng.random() < 0.3:
            first = rng.choice([1, 128, 200])
            parts = struct.pack("<QQQQ", RECORDS, first, rng.choice([RECORDS + 4096, NOWHERE]), 256)
            return [Step(DATA, (STRUCTS,), parts), Step(CALL, (READV, self._ring(), STRUCTS, 2))]
        to = rng.choice([RECORDS] * 6 + [NOWHERE, CONTROL_END - 100, MAPS])
        return [Step(CALL, (READ_FILE, self._ring(), to, rng.choice([127, 128, 256, 1000, CHUNK])))]

    def _poll(self) -> list[Step]:
        data = struct.pack("<ihh", self._ring(), 7, 0)
        return [Step(DATA, (STRUCTS,), data), Step(CALL, (POLL, STRUCTS, 1, self._rng.choice([0, 1, 5])))]

    def _close(self) -> list[Step]:
        rng = self._rng
        if rng.random() < 0.3:
            return [Step(CALL, (DUP2, rng.choice(RINGS), rng.choice(RINGS)))]
        file = rng.choice([*RINGS, *EVENTFDS, *DMABUFS, *MEMFDS])
        steps = [Step(CALL, (CLOSE, file))]
        if file in RINGS and rng.random() < 0.5:
            steps += [*self._open(file), *self._setup(file)]
        return steps

    def _send(self) -> list[Step]:
        """A ring's file through a socket, and perhaps out of it again."""
        rng = self._rng
        message, control, vector, body = (CONTROL + 0x5000 + each for each in (0, 0x100, 0x200, 0x300))
        data = struct.pack("<QIIQQQQII", 0, 0, 0, vector, 1, control, 24, 0, 0)
        steps = [
            Step(DATA, (control,), struct.pack("<QIIiI", 20, 1, 1, rng.choice([*RINGS, *DMABUFS]), 0)),
            Step(DATA, (vector,), struct.pack("<QQ", body, 1)),
            Step(DATA, (message,), data),
            Step(CALL, (SENDMSG, SOCKETS, message, 0)),
        ]
        if rng.random() < 0.6:
            steps += [Step(CALL, (CLOSE, rng.choice(RINGS)))] * (rng.random() < 0.5)
            steps += [Step(DATA, (message,), data), Step(CALL, (RECVMSG, SOCKETS + 1, message, 0))]
            steps += [Step(MOVE, (control + 16, RINGS[2]))]
        return steps

    def _fork(self) -> list[Step]:
        rng = self._rng
        inside: list[Step] = []
        for _ in range(rng.randint(1, 3)):
            inside += rng.choice(
                [self._enter, self._setup, self._reset, self._close, self._buffer, self._remap]
            )()
        if rng.random() < 0.3:
            inside = [*self._open(RINGS[1]), *self._setup(RINGS[1], good=True), *self._enter(), *inside]
        if rng.random() < 0.3:
            path = Step(DATA, (TRUE,), struct.pack("<QQ16s", TRUE + 16, 0, b"/bin/true"))
            inside += [path, Step(CALL, (EXECVE, TRUE + 16, TRUE, 0))]
        waits = rng.random() < 0.5
        steps = [Step(FORK, (len(inside), int(waits))), *inside]
        if not waits:
            steps += rng.choice([self._enter, self._reset, self._remap])()
            steps += [Step(KILL, (0, rng.choice([9, 9, 19, 18, 15])))] * rng.choice([0, 1, 1])
        return steps

    def _wild(self) -> list[Step]:
        """Any request, with anything."""
        rng = self._rng
        number = rng.choice(
            [rng.randrange(2**32), 0x4E00 | rng.randrange(20), 0xC0004E00 | rng.randrange(2**22)]
        )
        data = rng.randbytes(rng.randrange(1, 128))
        if rng.random() < 0.5:
            data = struct.pack("<I", len(data) + 4) + data
        return self._request(self._ring(), number, data)
