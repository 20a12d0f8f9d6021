# SPDX-License-Identifier: MIT
"""The DMA function of a Microchip Switchtec switch (PFX, PSX), for Linux's own driver switchtec_dma.

    nymph-vm run --arch um --pci nymph_vm.devices.switchtec:Switchtec -- modprobe -v switchtec_dma

The data sheet of the function is not public. Where each part of this model comes from:

- Known: ids, registers, entries, the order of a reset, and what each status means. The driver of Linux 7.3
  uses them (drivers/dma/switchtec_dma.c).
- Guessed: registers after power-on; which status goes with which bit of a completion; that a resumed channel
  goes on behind the entry that failed; that a reset leaves the memory of the queues as it is; that a channel
  starts at index 0 and phase 1; and that one interrupt tells of several completions, of at most BURST.
- Not modeled, because the driver does not use it: immediate data, remote interrupts, functions of other
  hosts, and the settings for performance. Opcodes other than MEMCPY and NOP fail with status 28.
"""

import time
from collections.abc import Mapping
from random import Random
from struct import Struct
from threading import Lock
from typing import Any

from nymph_vm.faults import Board, Fault, deliver
from nymph_vm.pci import Device, DmaError, Kept

# BAR 0: the function's registers, then a page for each channel, then 128 bytes for each channel.
CAPABILITY, CHANNEL_COUNT, TAG_LIMIT = 0x80, 0x84, 0x90
STATUS_VECTOR, BUFFER_COUNT, BUFFER_BASE = 0x94, 0x98, 0x9A  # 16 bits each
CONTROL_PAGES, CONTROL_PAGE = 0x1000, 0x1000
CONFIGURATIONS, CONFIGURATION = 0x160000, 0x80

# In a channel's page. Head and tail are indices of entries.
CQ_HEAD, SQ_TAIL, CONTROL, STATUS = 0x00, 0x04, 0x08, 0x0C
PAUSE, HALT, RESET, PAUSE_ON_ERROR = 1 << 0, 1 << 1, 1 << 2, 1 << 3  # of the control register
PAUSED, HALTED = 1 << 9, 1 << 10  # of the status register; bits 13 to 29 say why it paused

# In a channel's configuration. Sizes are in entries.
ENABLE, CQ_BASE, CQ_SIZE, SQ_BASE, SQ_SIZE, VECTOR = 0x00, 0x04, 0x0C, 0x10, 0x18, 0x1C
FETCHED, MOVED = 0x2C, 0x34  # counters of 64 bits: entries, bytes
SQ_CURRENT, SQ_PHASE, CQ_CURRENT, CQ_PHASE = 0x54, 0x56, 0x58, 0x5A
ENABLED = 1 << 1

# A submission entry: opcode, flags, TLP settings, 0, tag, bytes, source, destination, functions of both.
ENTRY = Struct("<BBHHHIQQHH")
MEMCPY, NOP = 0, 7
INTERRUPT = 1 << 6  # a flag: raise the channel's vector

# A completion entry: data read, 0, bytes moved, the channel's place in the submissions, 0, error, tag. Behind
# it is the phase: 1 in the first round through the queue, 0 in the next.
COMPLETION = Struct("<QIIHHIIH")
PHASE = 30
ENTRY_SIZE = 32

# What a channel pauses for: number of the status, and the bit of the completion's error. Without such a bit
# the channel did not get the entry, so there is no completion.
STATUSES: Mapping[int, tuple[str, int | None]] = {
    13: ("a message with a wrong length", 0),
    14: ("a completion with Unsupported Request", 1),
    15: ("a completion with Completer Abort", 2),
    16: ("a message with an ECRC error", 4),
    17: ("a poisoned message", 5),
    18: ("a message with a reserved status", 3),
    19: ("a part of a submission entry", None),
    20: ("a completion timeout", 8),
    21: ("Unsupported Request for a read", 9),
    22: ("Completer Abort for a read", 10),
    23: ("a reserved status for a read", 11),
    24: ("an ECRC error", 12),
    25: ("a poisoned packet", 13),
    26: ("an invalid connection", 14),
    27: ("an invalid remote interrupt", 15),
    28: ("a reserved opcode", 16),
    29: ("an error for a read of a submission entry", None),
}
UNSUPPORTED, RESERVED_OPCODE = 14, 28

KINDS = {
    **{f"status-{number}": f"the entry fails: {text}" for number, (text, _) in STATUSES.items()},
    "flip": "one bit of the payload is flipped",
    "short": "the end of the payload is not written, though the completion says so",
    "skipped": "nothing is written, though the completion says so",
    "lost": "there is no completion",
    "doubled": "there are two completions",
    "wrong-tag": "the completion has the tag of another entry",
    "reordered": "the completion comes after that of the next entry",
    "no-interrupt": "the interrupt is lost",
    "pause": "the channel pauses for no reason",
    "halt": "the channel halts",
    "stall": "the channel stops and does not say so",
    "slow": "the copy takes 20 ms more",
}

NO_FAULT = "", Random()

BURST = 32  # completions that one interrupt tells of, at most
TURN = 64  # entries of a channel before it is the next one's turn; one at a time if there are faults
SLOW_S = 0.02


class SwitchtecFault(Fault):
    """One kind of fault of this function, see Fault."""

    kinds = KINDS


class Switchtec(Device):
    """The function: four channels of a PFX 100XG4."""

    vendor, device = 0x11F8, 0x4000
    class_code = 0x088000
    channel_count = 4

    def __init__(self) -> None:
        self.bars = {0: 2 << 20}
        self.vectors = self.channel_count + 1  # the last is for channels that pause
        self.faults = Board(SwitchtecFault)
        self.channels = [Channel(self, index) for index in range(self.channel_count)]
        self.kept = [channel.cq_head for channel in self.channels]  # written for each completion
        self._registers = bytearray(CONTROL_PAGES)
        for offset, size, value in (
            (CHANNEL_COUNT, 4, self.channel_count),
            (TAG_LIMIT, 4, 0xFFFF),
            (STATUS_VECTOR, 2, self.channel_count),
            (BUFFER_COUNT, 2, 64 * self.channel_count),
        ):
            self._registers[offset : offset + size] = value.to_bytes(size, "little")

    def read(self, bar: int, offset: int, size: int) -> int:
        channel, at = self._channel(offset)
        if channel:
            return channel.read(at, size)
        return int.from_bytes(self._registers[offset : offset + size], "little")

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        channel, at = self._channel(offset)
        if channel:
            channel.write(at, size, value)

    def asked(self, request: Any) -> Any:
        """Set the faults of with_faults(...), if it is that; tell how often each kind struck."""
        return {**self.faults.obey(request), "bytes": [each.moved for each in self.channels]}

    def _channel(self, offset: int) -> tuple["Channel | None", int]:
        """Whose register it is; the configuration's are behind those of the control page."""
        if offset >= CONFIGURATIONS:
            index, at = divmod(offset - CONFIGURATIONS, CONFIGURATION)
            at += CONTROL_PAGE
        else:
            index, at = divmod(offset - CONTROL_PAGES, CONTROL_PAGE)
        return (self.channels[index] if 0 <= index < self.channel_count else None), at


class Channel:
    """One channel: its registers, and its places in the two queues."""

    def __init__(self, function: Switchtec, index: int) -> None:
        self._function, self._index = function, index
        self.cq_head = Kept(0, CONTROL_PAGES + CONTROL_PAGE * index + CQ_HEAD, 4)
        self._taken = self.cq_head.memory.cast("I")  # the place of the driver in the completions
        self._configuration = bytearray(CONFIGURATION)
        self._put(VECTOR, 4, index)
        self._put(ENABLE, 4, 64 << 12 | (64 * index & 0x1FF) << 2)  # its entries in the function's buffer
        self._lock = Lock()  # held while an entry is worked on: a channel that says it stopped has
        self._running = False  # the function's thread is at it, or will be
        self.fetched = self.moved = 0
        self._reset()

    def _reset(self) -> None:
        self._control = self._status = 0
        self._sq_head = self._sq_tail = self._cq_tail = self._taken[0] = 0
        self._sq_phase = self._cq_phase = 1
        self._queues: tuple[memoryview, int, memoryview, int] | None = None
        self._stalled = False
        self._late: tuple[int, int, int] | None = None  # a completion that the next one overtakes
        self._untold = 0  # completions since the last interrupt

    def read(self, at: int, size: int) -> int:
        """Return what a register holds."""
        if at < CONTROL_PAGE:
            return {SQ_TAIL: self._sq_tail, CONTROL: self._control, STATUS: self._status}.get(at, 0)
        at -= CONTROL_PAGE
        self._put(FETCHED, 8, self.fetched)
        self._put(MOVED, 8, self.moved)
        for where, value in ((SQ_CURRENT, self._sq_head), (SQ_PHASE, self._sq_phase),
                             (CQ_CURRENT, self._cq_tail), (CQ_PHASE, self._cq_phase)):  # fmt: skip
            self._put(where, 2, value)
        return self._get(at, size)

    def write(self, at: int, size: int, value: int) -> None:
        """Take a register's new value; have the function's thread go on if there is something to do."""
        with self._lock:
            if at >= CONTROL_PAGE:
                self._put(at - CONTROL_PAGE, size, value)
                self._queues = None
            elif at == SQ_TAIL:
                self._sq_tail = value
            elif at == CONTROL:
                self._command(value)
            if not self._running and self._is_ready():
                self._running = True
                self._function.later(self._run)

    def _command(self, value: int) -> None:
        """Obey a new value of the control register."""
        if value & RESET:
            self._reset()
        self._control = value
        self._status = PAUSED * bool(value & PAUSE) | HALTED * bool(value & HALT)

    def _get(self, at: int, size: int) -> int:
        return int.from_bytes(self._configuration[at : at + size], "little")

    def _put(self, at: int, size: int, value: int) -> None:
        self._configuration[at : at + size] = value.to_bytes(size, "little")

    def _is_ready(self) -> bool:
        """Whether there is an entry, and it may be taken."""
        if self._sq_head == self._sq_tail or self._stalled or self._status or self._control & RESET:
            return False
        if self._queues is None:
            sq_size, cq_size = self._get(SQ_SIZE, 2), self._get(CQ_SIZE, 2)
            if not (self._configuration[ENABLE] & ENABLED and sq_size and cq_size):
                return False
            dma = self._function.dma
            self._queues = (
                *(dma(self._get(SQ_BASE, 8), ENTRY_SIZE * sq_size), sq_size),
                *(dma(self._get(CQ_BASE, 8), ENTRY_SIZE * cq_size), cq_size),
            )
        return True

    def _run(self) -> None:
        """Work on entries until there are none, or for a turn. The function's thread runs it."""
        with self._lock:
            for _ in range(1 if self._function.faults.faults() else TURN):
                self._running = self._is_ready()
                if not self._running:
                    if self._late:
                        self._complete(*self._late)
                    if self._untold:
                        self._tell()
                    return
                if not self._has_room():
                    self._tell()
                    break
                self._step()
        self._function.later(self._run)

    def _has_room(self) -> bool:
        """Whether the driver took enough completions: an entry has at most three, with that of a late one."""
        assert self._queues
        return (self._taken[0] - self._cq_tail - 1) % self._queues[3] >= 3

    def _step(self) -> None:
        assert self._queues
        sq, sq_size, _, _ = self._queues
        kind, chance = self._function.faults.draw(self._index) or NO_FAULT
        if kind in ("pause", "halt", "stall"):
            self._stalled = kind == "stall"
            self._status = {"pause": PAUSED, "halt": HALTED}.get(kind, 0)
            return
        opcode, flags, _, _, tag, size, source, target, _, _ = ENTRY.unpack_from(
            sq, ENTRY_SIZE * self._sq_head
        )
        self._sq_head += 1
        if self._sq_head == sq_size:
            self._sq_head, self._sq_phase = 0, 1 - self._sq_phase
        self.fetched += 1
        failed = int(kind.removeprefix("status-")) if kind.startswith("status-") else 0
        if not failed:
            failed = self._copy(opcode, size, source, target, kind, chance)
        _, bit = STATUSES[failed] if failed else ("", 0)
        completion = tag, 0 if failed else size, 1 << bit if failed and bit is not None else 0
        if kind == "wrong-tag":
            completion = tag ^ chance.randrange(1, 0x8000), *completion[1:]
        if kind == "reordered" and not self._late:
            self._late = completion
        elif kind != "lost" and bit is not None:
            self._complete(*completion)
        if kind == "doubled":
            self._complete(*completion)
        if flags & INTERRUPT and kind != "no-interrupt":
            self._untold += 1
        if failed:
            self._pause(failed)
        elif self._untold == BURST:
            self._tell()

    def _copy(self, opcode: int, size: int, source: int, target: int, kind: str, chance: Random) -> int:
        """Do what the entry says; returns the status it fails with, or 0."""
        if opcode == NOP:
            return 0
        if opcode != MEMCPY:
            return RESERVED_OPCODE
        try:
            from_, to = self._function.dma(source, size), self._function.dma(target, size)
        except DmaError:
            return UNSUPPORTED
        if kind == "slow":
            time.sleep(SLOW_S)
        deliver(from_, to, kind, chance)
        self.moved += size
        return 0

    def _complete(self, tag: int, moved: int, error: int) -> None:
        """Write a completion, and behind it one that it overtook."""
        assert self._queues
        _, _, cq, cq_size = self._queues
        late, self._late = self._late, None
        at = ENTRY_SIZE * self._cq_tail
        COMPLETION.pack_into(cq, at, 0, 0, moved, self._sq_head, 0, 0, error, tag)
        cq[at + PHASE] = self._cq_phase  # last, for that is what the driver looks at
        self._cq_tail += 1
        if self._cq_tail == cq_size:
            self._cq_tail, self._cq_phase = 0, 1 - self._cq_phase
        if late and late != (tag, moved, error):
            self._complete(*late)

    def _pause(self, status: int) -> None:
        """Stop behind an entry that failed, if told to, and say why."""
        if self._late:
            self._complete(*self._late)
        if self._control & PAUSE_ON_ERROR or STATUSES[status][1] is None:
            self._status |= PAUSED | 1 << status
            self._function.interrupt(self._function.channel_count)

    def _tell(self) -> None:
        self._untold = 0
        self._function.interrupt(self._index)
