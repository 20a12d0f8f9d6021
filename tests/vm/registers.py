# SPDX-License-Identifier: MIT
"""A PCI function for the module register_access: registers that are known, and memory."""

from typing import ClassVar

from nymph_vm.pci import Device, Memory

SIZE = 1 << 16


class Registers(Device):
    """BAR 0: registers of 4 bytes, of which each reads as its offset, inverted. BAR 2: memory."""

    vendor, device = 0x1234, 0x5679
    bars: ClassVar = {0: SIZE, 2: Memory(SIZE)}

    def read(self, bar: int, offset: int, size: int) -> int:
        return ~offset & (1 << 8 * size) - 1
