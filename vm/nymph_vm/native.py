# SPDX-License-Identifier: MIT
"""The endpoint in a native guest: the PCI function that QEMU's ivshmem-doorbell is elsewhere.

It has the endpoint's shared memory for a BAR, writes the endpoint's eventfds when the driver rings a
doorbell, and makes interrupts of the eventfds of the endpoint's vectors. It goes on while the endpoint hangs
or is dead, as a bus does.
"""

import os
import socket

from nymph_vm.endpoint import FROM_PEER, GREETING
from nymph_vm.pci import Device, Memory

DOORBELL = 12  # a register of BAR 0: the peer's number in the upper half, the vector in the lower


class Ivshmem(Device):
    """QEMU's ivshmem-doorbell, for one endpoint."""

    vendor, device = 0x1AF4, 0x1110
    subsystem = 0x1AF4, 0x1100
    class_code, revision = 0x050000, 1

    def __init__(self, path: str, channels: int, bar_size: int) -> None:
        """path: of the endpoint's socket. channels: how many it has. bar_size: bytes of its shared memory."""
        self._endpoint = socket.socket(socket.AF_UNIX)
        self._endpoint.connect(path)
        said = [self._hear() for _ in range(3 + channels + 1 + channels)]
        files = [file for _, file in said[2:]]
        memory, self._doorbells, self._raised = files[0], files[1 : channels + 2], files[channels + 2 :]
        self.bars = {0: 256, 2: Memory(bar_size, memory)}
        self.vectors = channels

    def _hear(self) -> tuple[int, int]:
        """A number of the endpoint's greeting, and the file that comes with it, or -1."""
        number, files, _, _ = socket.recv_fds(self._endpoint, GREETING, 1)
        return int.from_bytes(number, "little", signed=True), files[0] if files else -1

    def start(self) -> None:
        (file, offset, address, size) = self.ram()[0]
        socket.send_fds(self._endpoint, [FROM_PEER.pack(offset, address, size)], [file])
        for vector, raised in enumerate(self._raised):
            self.interrupt_on(raised, vector)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        vector = value & 0xFFFF
        if (bar, offset, size) == (0, DOORBELL, 4) and vector < len(self._doorbells):
            os.eventfd_write(self._doorbells[vector], 1)

    def read(self, bar: int, offset: int, size: int) -> int:
        return 0
