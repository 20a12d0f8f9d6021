# SPDX-License-Identifier: MIT
"""The models in nymph_vm.devices, without a guest: driven as Linux's drivers do it."""

from collections.abc import Callable
from typing import Any

import pytest
from nymph_vm.devices import plx, switchtec
from nymph_vm.devices.plx import PlxFault
from nymph_vm.devices.switchtec import CONFIGURATIONS, CONTROL_PAGES, STATUSES, SwitchtecFault
from nymph_vm.faults import with_faults
from nymph_vm.pci import Device, DmaError

BASE = 0x600000
SQ, CQ, SOURCE, TARGET = BASE, BASE + 0x1000, BASE + 0x2000, BASE + 0x3000
SIZE = 4  # descriptors of the ring of PLX


class Alone(Device):
    """What a server is to a model: 64 KiB of memory, and interrupts that are counted."""

    def attach(self) -> None:
        self.memory = memoryview(bytearray(0x10000))
        self.raised: list[int] = []
        self.left: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def dma(self, address: int, length: int) -> memoryview:
        if not BASE <= address <= BASE + len(self.memory) - length:
            raise DmaError
        return self.memory[address - BASE : address - BASE + length]

    def interrupt(self, vector: int = 0) -> None:
        self.raised.append(vector)

    def later(self, function: Callable[..., object], *arguments: object) -> None:
        self.left.append((function, arguments))

    def work(self) -> None:
        while self.left:
            function, arguments = self.left.pop(0)
            function(*arguments)


class Switchtec(Alone, switchtec.Switchtec):
    """Its channel 0, with queues of 8 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.attach()
        for register, value in (
            (switchtec.SQ_BASE, SQ),
            (switchtec.CQ_BASE, CQ),
            (switchtec.SQ_SIZE, 8),
            (switchtec.CQ_SIZE, 8),
            (switchtec.ENABLE, switchtec.ENABLED),
        ):
            self.write(0, CONFIGURATIONS + register, 4, value)
        self.control(switchtec.RESET | switchtec.PAUSE_ON_ERROR)
        self.control(switchtec.PAUSE_ON_ERROR)
        self.tail = self.head = 0

    def control(self, value: int) -> None:
        self.write(0, CONTROL_PAGES + switchtec.CONTROL, 4, value)

    def status(self) -> int:
        return self.read(0, CONTROL_PAGES + switchtec.STATUS, 4)

    def submit(self, tag: int, source: int = SOURCE, size: int = 16, opcode: int = switchtec.MEMCPY) -> None:
        entry = opcode, switchtec.INTERRUPT, 0, 0, tag, size, source, TARGET, 0xFFFF, 0xFFFF
        switchtec.ENTRY.pack_into(self.dma(SQ, 256), switchtec.ENTRY_SIZE * self.tail, *entry)
        self.tail = (self.tail + 1) % 8
        self.write(0, CONTROL_PAGES + switchtec.SQ_TAIL, 2, self.tail)

    def completions(self, phase: int) -> list[tuple[int, int]]:
        """Tag and error of each completion with that phase, from the driver's place on; taken by now."""
        self.work()
        found = []
        while True:
            entry = self.dma(CQ + switchtec.ENTRY_SIZE * self.head, switchtec.ENTRY_SIZE)
            if entry[switchtec.PHASE] != phase:
                break
            *_, error, tag = switchtec.COMPLETION.unpack_from(entry)
            found.append((tag, error))
            self.head = (self.head + 1) % 8
            if not self.head:
                break
        self.channels[0].cq_head.memory[0] = self.head
        return found


def test_switchtec_copies_and_its_phase_changes_with_each_round() -> None:
    device = Switchtec()
    tag = 0
    for phase in (1, 0, 1):
        for _ in range(4):
            device.memory[0x2000:0x2010] = bytes([tag]) * 16
            device.submit(tag)
            device.submit(tag + 1)
            assert device.completions(phase) == [(tag, 0), (tag + 1, 0)]
            assert device.memory[0x3000:0x3010] == bytes([tag]) * 16
            tag += 2
    assert device.raised == [0] * 12  # one for two completions


@pytest.mark.parametrize("status", STATUSES)
def test_switchtec_pauses_for_each_status_and_says_why(status: int) -> None:
    device = Switchtec()
    device.asked(with_faults(SwitchtecFault(f"status-{status}", count=1)))
    device.submit(1)
    device.submit(2)
    _, bit = STATUSES[status]
    assert device.completions(1) == ([] if bit is None else [(1, 1 << bit)])
    assert device.status() == switchtec.PAUSED | 1 << status
    assert device.raised[0] == device.channel_count  # the vector of channels that pause
    device.control(0)
    assert device.status() == 0
    assert device.completions(1) == [(2, 0)]


def test_switchtec_waits_for_a_driver_that_takes_no_completions() -> None:
    device = Switchtec()
    for tag in range(7):
        device.submit(tag)
    while device.left and not device.raised:
        function, arguments = device.left.pop(0)
        function(*arguments)
    assert [device.memory[0x1000 + 32 * at + switchtec.PHASE] for at in range(8)] == [1] * 5 + [0] * 3
    device.channels[0].cq_head.memory[0] = 5
    device.head = 5
    assert device.completions(1) == [(5, 0), (6, 0)]


def test_switchtec_starts_anew_behind_a_reset() -> None:
    device = Switchtec()
    device.asked(with_faults(SwitchtecFault("stall", after=1, count=1)))
    device.submit(1)
    device.submit(2)
    assert device.completions(1) == [(1, 0)]
    device.control(switchtec.RESET)
    device.control(switchtec.PAUSE_ON_ERROR)
    device.tail = device.head = 0
    device.memory[0x1000:0x1100] = bytes(0x100)
    device.submit(3)
    assert device.completions(1) == [(3, 0)]


def test_switchtec_refuses_what_it_does_not_know_and_memory_that_is_not_there() -> None:
    device = Switchtec()
    device.submit(1, opcode=6)
    assert device.completions(1) == [(1, 1 << 16)]
    device.control(0)
    device.submit(2, source=0x1000)
    assert device.completions(1) == [(2, 1 << 1)]


def test_switchtec_halts_and_pauses_when_told_to() -> None:
    device = Switchtec()
    for bit, said in ((switchtec.HALT, switchtec.HALTED), (switchtec.PAUSE, switchtec.PAUSED)):
        device.control(bit)
        assert device.status() == said
        device.submit(bit)
        assert device.completions(1) == []
        device.control(0)
        assert device.completions(1) == [(bit, 0)]


def test_switchtec_late_completion_is_overtaken_by_one() -> None:
    device = Switchtec()
    device.asked(with_faults(SwitchtecFault("reordered", count=1)))
    for tag in range(3):
        device.submit(tag)
    assert device.completions(1) == [(1, 0), (0, 0), (2, 0)]


class Plx(Alone, plx.Plx):
    """With a ring of four descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self.attach()
        for register, value in ((plx.RING, SQ), (plx.RING + 4, 0), (plx.NEXT, SQ), (plx.COUNT, SIZE)):
            self.write(0, register, 4, value)

    def descriptor(self, index: int) -> Any:
        return self.dma(SQ + plx.DESCRIPTOR * index, plx.DESCRIPTOR).cast("I")

    def run(self, index: int, source: int = SOURCE) -> int:
        """Have it work on a descriptor; returns what it wrote back."""
        words = self.descriptor(index)
        words[1], words[2], words[3] = 0, TARGET, source
        words[0] = 16 | plx.WANTS_INTERRUPT | plx.VALID
        self.write(0, plx.CONTROL, 2, plx.START | plx.EVENTS)
        self.work()
        return int(words[0])


def test_plx_copies_and_gives_descriptors_back() -> None:
    device = Plx()
    device.memory[0x2000:0x2010] = bytes(range(16))
    for index in (0, 1, 2, 3, 0, 1):
        assert device.run(index) == 16 | plx.SUCCESS
    assert device.memory[0x3000:0x3010] == bytes(range(16))
    assert device.raised == [0] * 6
    assert device.read(0, plx.STATUS, 2) == plx.DONE
    device.write(0, plx.STATUS, 2, plx.DONE)
    assert device.read(0, plx.STATUS, 2) == 0
    assert device.read(0, plx.CONTROL, 2) & plx.INVALID  # it came to a descriptor that is not its own


def test_plx_reports_what_it_could_not_read() -> None:
    device = Plx()
    assert device.run(0, source=0x1000) == plx.READ_FAILED
    assert device.run(1) == 16 | plx.SUCCESS


def test_plx_says_that_it_paused_and_starts_again() -> None:
    device = Plx()
    device.write(0, plx.CONTROL, 4, plx.PAUSE | plx.EVENTS)
    assert device.read(0, plx.CONTROL, 4) == plx.PAUSE | plx.PAUSED
    assert device.run(0) == 16 | plx.SUCCESS


@pytest.mark.parametrize("kind", plx.KINDS)
def test_plx_goes_wrong_once_as_told_and_works_again(kind: str) -> None:
    """Behind a stop: once the driver paused the channel, as it does to stop it."""
    device = Plx()
    device.memory[0x2000:0x2010] = bytes(range(1, 17))
    device.asked(with_faults(PlxFault(kind, count=1)))
    outcome, arrived = device.run(0), bytes(device.memory[0x3000:0x3010])
    assert device.asked({}) == {"injected": {kind: 1}}
    if kind in plx.OUTCOMES:
        assert outcome == plx.OUTCOMES[kind]
    elif kind == "lost" or kind in plx.STOPS:
        assert outcome & plx.VALID
    else:
        assert outcome == 16 | plx.SUCCESS
    assert (arrived == bytes(range(1, 17))) == (kind in ("lost", "no-interrupt", "slow"))
    # The interrupt that tells of no descriptor is off.
    assert (device.raised == []) == (kind == "no-interrupt" or kind in plx.STOPS)
    control = device.read(0, plx.CONTROL, 2)
    if kind in plx.STOPS:
        assert bool(control & plx.START) == (kind == "stall")
        assert control & plx.EVENTS == plx.STOPS[kind]
    device.write(0, plx.CONTROL, 2, plx.PAUSE | plx.EVENTS)
    device.write(0, plx.NEXT, 4, SQ)
    assert device.run(0) == 16 | plx.SUCCESS
    assert device.memory[0x3000:0x3010] == bytes(range(1, 17))
