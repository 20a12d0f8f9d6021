# SPDX-License-Identifier: MIT
"""The DMA engine of a PLX switch, for Linux's own driver plx_dma: an example of nymph_vm.pci.

nymph-vm run --arch um --pci tests/vm/plx.py:Plx -- ls /sys/class/dma
"""

from threading import Lock
from typing import ClassVar

from nymph_vm.pci import Device, DmaError

# Registers, and bits of them.
RING_LOW, RING_HIGH, RING_COUNT, CONTROL, STATUS = 0x214, 0x218, 0x220, 0x238, 0x23E
PAUSE, START, DESCRIPTOR_DONE = 1 << 0, 1 << 3, 1 << 2
# Of a descriptor's first word.
VALID, WANTS_INTERRUPT, SUCCESS, READ_FAILED, SIZE = 1 << 31, 1 << 30, 1 << 30, 1 << 29, (1 << 27) - 1


class Plx(Device):
    """One channel, with descriptors in the guest's memory."""

    vendor, device = 0x10B5, 0x87D0
    class_code = 0x088000
    bars: ClassVar = {0: 4096}
    vectors = 1

    def __init__(self) -> None:
        self._registers = bytearray(4096)
        self._next = 0
        self._lock = Lock()  # of the status: _run() has a thread of its own

    def read(self, bar: int, offset: int, size: int) -> int:
        return int.from_bytes(self._registers[offset : offset + size], "little")

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        with self._lock:
            if offset == STATUS:  # which bits to clear
                value = self.read(0, STATUS, size) & ~value
            self._registers[offset : offset + size] = value.to_bytes(size, "little")
        if offset == RING_LOW:
            self._next = 0
        if offset == CONTROL and value & START:
            self.later(self._run)

    def _run(self) -> None:
        count = self.read(0, RING_COUNT, 4)
        ring = self.dma(self.read(0, RING_LOW, 8), 16 * count).cast("I")
        while not self.read(0, CONTROL, 2) & PAUSE:
            flags, high, target, source = ring[4 * self._next : 4 * self._next + 4]
            if not flags & VALID:
                return
            size, outcome = flags & SIZE, SUCCESS
            try:
                to = self.dma(target | (high & 0xFFFF) << 32, size)
                to[:] = self.dma(source | (high >> 16) << 32, size)
            except DmaError:
                outcome = READ_FAILED
            ring[4 * self._next] = size | outcome
            self._next = (self._next + 1) % count
            if flags & WANTS_INTERRUPT:
                with self._lock:
                    self._registers[STATUS] |= DESCRIPTOR_DONE
                self.interrupt()


class PlxWithoutMsi(Plx):
    """The same, with the one interrupt of old."""

    vectors = 0
