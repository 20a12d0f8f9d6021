# SPDX-License-Identifier: MIT
"""The DMA function of a PLX switch (PEX 87xx), for Linux's own driver plx_dma.

    nymph-vm run --arch um --pci nymph_vm.devices.plx:Plx -- modprobe -v plx_dma

- Known: registers, bits and descriptors. The driver of Linux 7.3 uses them (drivers/dma/plx_dma.c).
- Guessed: registers after power-on; that a pause, an abort or an invalid descriptor takes START back; and
  which error missing memory is.
- Not modeled, because the driver does not use it: descriptors on the chip, and block mode.
"""

import time
from random import Random
from threading import Lock
from typing import Any

from nymph_vm.faults import Board, Fault, deliver
from nymph_vm.pci import Device, DmaError

# BAR 0.
RING, COUNT = 0x214, 0x220  # address of the first descriptor, 64 bits; number of descriptors
NEXT = 0x21C  # the low half of the address of the next one
CONTROL, INTERRUPTS, STATUS = 0x238, 0x23C, 0x23E  # 16 bits each

# Of the control register. The last four are events: the device sets them, and writing 1 clears them.
PAUSE, ABORT, START = 1 << 0, 1 << 1, 1 << 3
INVALID, PAUSED, ABORTED, PAUSED_AT_ONCE = 1 << 8, 1 << 9, 1 << 10, 1 << 12
EVENTS = INVALID | PAUSED | ABORTED | PAUSED_AT_ONCE

# Of the interrupt status, where writing 1 clears; and of the register that enables the first two.
FAILED, NO_DESCRIPTOR, DONE = 1 << 0, 1 << 1, 1 << 2

# A descriptor: flags and bytes, upper 16 bits of both addresses, destination, source. The device gives it
# back without VALID, with an outcome, and with the bytes it moved.
DESCRIPTOR = 16
VALID, WANTS_INTERRUPT, SIZE = 1 << 31, 1 << 30, (1 << 27) - 1
SUCCESS, READ_FAILED, WRITE_FAILED = 1 << 30, 1 << 29, 1 << 28

KINDS = {
    "read-failed": "the source cannot be read",
    "write-failed": "the destination cannot be written",
    "flip": "one bit of the payload is flipped",
    "short": "the end of the payload is not written, though the outcome says so",
    "skipped": "nothing is written, though the outcome says so",
    "lost": "the descriptor is not given back",
    "no-interrupt": "the interrupt is lost",
    "pause": "the channel pauses for no reason",
    "abort": "the channel aborts for no reason",
    "invalid": "a valid descriptor is taken for an invalid one",
    "stall": "the channel stops and does not say so",
    "slow": "the copy takes 20 ms more",
}
OUTCOMES = {"read-failed": READ_FAILED, "write-failed": WRITE_FAILED}
STOPS = {"pause": PAUSED, "abort": ABORTED, "invalid": INVALID, "stall": 0}  # and what is said of it

NO_FAULT = "", Random()

SLOW_S = 0.02


class PlxFault(Fault):
    """One kind of fault of this function, see Fault."""

    kinds = KINDS


class Plx(Device):
    """The function: one channel."""

    vendor, device = 0x10B5, 0x87D0
    class_code = 0x088000
    vectors = 1

    def __init__(self) -> None:
        self.bars = {0: 4096}
        self._registers = bytearray(4096)
        self._lock = Lock()  # held while a descriptor is worked on: a channel that says it paused has
        self._running = self._stalled = False
        self.faults = Board(PlxFault)

    def asked(self, request: Any) -> Any:
        """Set the faults of with_faults(...), if it is that; tell how often each kind struck."""
        return self.faults.obey(request)

    def read(self, bar: int, offset: int, size: int) -> int:
        return int.from_bytes(self._registers[offset : offset + size], "little")

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        with self._lock:
            if offset == STATUS:
                value = self.read(0, STATUS, size) & ~value
            elif offset == CONTROL:
                value = self._command(value)
            self._registers[offset : offset + size] = value.to_bytes(size, "little")
            if offset == CONTROL and value & START and not (self._running or self._stalled):
                self._running = True
                self.later(self._run)

    def _command(self, value: int) -> int:
        """What the control register is behind a write of `value`; a pause or an abort is done by then."""
        events = self.read(0, CONTROL, 2) & EVENTS & ~value
        if value & (PAUSE | ABORT):
            self._stalled = False
        if value & PAUSE:
            events |= PAUSED
        if value & ABORT:
            events |= ABORTED
        return value & ~EVENTS & ~(START if value & (PAUSE | ABORT) else 0) | events

    def _set(self, offset: int, size: int, value: int) -> None:
        self._registers[offset : offset + size] = value.to_bytes(size, "little")

    def _run(self) -> None:
        """Work on descriptors until there are none, or it is paused. Its thread runs it."""
        while True:
            with self._lock:
                control = self.read(0, CONTROL, 2)
                self._running = bool(control & START) and self._step()
                if not self._running:
                    if not self._stalled:
                        self._set(CONTROL, 2, self.read(0, CONTROL, 2) & ~START)
                    return

    def _step(self) -> bool:
        """Work on one descriptor; returns whether to go on."""
        start, count = self.read(0, RING, 4), self.read(0, COUNT, 4)
        base = start | self.read(0, RING + 4, 4) << 32
        index = (self.read(0, NEXT, 4) - start) // DESCRIPTOR % max(count, 1)
        descriptor = self.dma(base + DESCRIPTOR * index, DESCRIPTOR).cast("I")
        flags, high, target, source = descriptor
        if not count or not flags & VALID:
            self._stop(INVALID)
            return False
        kind, chance = self.faults.draw(0) or NO_FAULT
        if kind in STOPS:
            self._stalled = kind == "stall"
            self._stop(STOPS[kind])
            return False
        size = flags & SIZE
        addresses = source | high >> 16 << 32, target | (high & 0xFFFF) << 32
        outcome = OUTCOMES.get(kind) or self._copy(*addresses, size, kind, chance)
        if kind != "lost":
            descriptor[0] = outcome | (size if outcome == SUCCESS else 0)
        self._set(NEXT, 4, start + DESCRIPTOR * ((index + 1) % count))
        failed = FAILED & self.read(0, INTERRUPTS, 2) if outcome != SUCCESS else 0
        if kind != "no-interrupt":
            self._raise(failed | (DONE if flags & WANTS_INTERRUPT else 0))
        return True

    def _copy(self, source: int, target: int, size: int, kind: str, chance: Random) -> int:
        """Do what a descriptor says; returns its outcome."""
        if kind == "slow":
            time.sleep(SLOW_S)
        outcome = WRITE_FAILED
        try:
            to = self.dma(target, size)
            outcome = READ_FAILED
            from_ = self.dma(source, size)
        except DmaError:
            return outcome
        deliver(from_, to, kind, chance)
        return SUCCESS

    def _stop(self, event: int) -> None:
        """Say why it stopped, if it says so."""
        self._set(CONTROL, 2, self.read(0, CONTROL, 2) | event)
        if event == INVALID:
            self._raise(NO_DESCRIPTOR & self.read(0, INTERRUPTS, 2))

    def _raise(self, status: int) -> None:
        if status:
            self._set(STATUS, 2, self.read(0, STATUS, 2) | status)
            self.interrupt()


class PlxWithoutMsi(Plx):
    """The same, with the one interrupt of old."""

    vectors = 0
