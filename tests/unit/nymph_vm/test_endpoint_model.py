# SPDX-License-Identifier: MIT
"""The endpoint's process: the test is QEMU at its socket, and the driver at its registers."""

import mmap
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nymph_vm import endpoint
from nymph_vm.endpoint import Endpoint, EndpointError, Registers
from nymph_vm.faults import KINDS, Fault
from nymph_vm.host import CHECKOUT

RAM = 4 << 20
CARD = 1 << 20
RING, DONE = 0x10000, 0x20000
SRC, DST = 0x100000, 0x200000
SIZE = 8
CARD_BUS = 0x4000000000
SECONDS = 10.0
BRIEFLY = 0.2  # long enough to see that nothing comes


class Host:
    """A machine with one endpoint, and this test for a driver."""

    def __init__(self, folder: Path, channels: int = 2) -> None:
        ram = os.memfd_create("ram")
        os.ftruncate(ram, RAM)
        self.ram = mmap.mmap(ram, RAM)
        self.folder = folder
        self.endpoint = Endpoint(folder, "ep", ram=ram, ram_map=[(0, RAM)], channels=channels, card_size=CARD)
        os.close(ram)
        self.qemu = socket.socket(socket.AF_UNIX)
        self.qemu.settimeout(SECONDS)
        self.qemu.connect(str(self.endpoint.socket))
        self.said = [self._hear() for _ in range(3 + channels + 1 + channels)]
        bar = self.said[2][1][0]
        size = os.fstat(bar).st_size
        self.bar = memoryview(mmap.mmap(bar, size))
        self.device = Registers(self.bar, 0, endpoint.DEVICE)
        self.doorbells = [files[0] for _, files in self.said[3 : 3 + channels + 1]]
        self.vectors = [files[0] for _, files in self.said[3 + channels + 1 :]]
        self.sequence = self.tail = 0
        self.regs = self.channel(0)

    def _hear(self) -> tuple[int, list[int]]:
        data, files, _, _ = socket.recv_fds(self.qemu, 8, 1)
        assert len(data) == 8
        return int.from_bytes(data, "little", signed=True), files

    def channel(self, number: int) -> Registers:
        return Registers(self.bar, endpoint.CHANNEL_BASE + endpoint.CHANNEL_STRIDE * number, endpoint.CHANNEL)

    def wait(self, regs: Registers, name: str, value: int) -> None:
        deadline = time.monotonic() + SECONDS
        while regs[name] != value:
            assert time.monotonic() < deadline, f"{name} is {regs[name]}, and not {value}"
            time.sleep(0.001)

    def reset(self, number: int) -> None:
        self.regs["reset"] = number
        os.eventfd_write(self.doorbells[-1], 1)
        self.wait(self.regs, "reset_ack", number)

    def enable(self, ring: int = RING, done: int = DONE, size: int = SIZE, control: int = 1) -> None:
        self.device["card_base"] = CARD_BUS
        self.regs["ring_base"], self.regs["done_base"] = ring, done
        self.regs["ring_size"], self.regs["control"] = size, control
        self.sequence = self.tail = 0
        self.ram[DONE : DONE + SIZE * 16] = bytes(SIZE * 16)
        os.eventfd_write(self.doorbells[0], 1)

    def hand_over(self, src: int, dst: int, length: int, flags: int = 1, reserved: int = 0) -> int:
        at = RING + self.tail % SIZE * 32
        identity = 1000 + self.tail
        desc = src.to_bytes(8, "little") + dst.to_bytes(8, "little")
        for word in (length, flags, identity, reserved):
            desc += word.to_bytes(4, "little")
        self.ram[at : at + 32] = desc
        self.tail += 1
        self.regs["tail"] = self.tail
        os.eventfd_write(self.doorbells[0], 1)
        return identity

    def completion(self, seconds: float = SECONDS) -> tuple[int, int, int] | None:
        """The next one's id, status and bytes; None if there is none for so long."""
        at = DONE + self.sequence % SIZE * 16
        deadline = time.monotonic() + seconds
        while int.from_bytes(self.ram[at + 12 : at + 16], "little") != self.sequence + 1:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.001)
        self.sequence += 1
        words = [int.from_bytes(self.ram[at + i : at + i + 4], "little") for i in (0, 4, 8)]
        return words[0], words[1], words[2]

    def interrupted(self, channel: int = 0, seconds: float = SECONDS) -> bool:
        """Whether an interrupt was raised, or is within that time; it is taken."""
        raised = bool(select.select([self.vectors[channel]], [], [], seconds)[0])
        if raised:
            os.eventfd_read(self.vectors[channel])
        return raised


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.endpoint.close()


def test_handshake_hands_out_memory_and_eventfds(host: Host) -> None:
    assert [number for number, _ in host.said] == [0, 1, -1, 0, 0, 0, 1, 1]
    assert [len(files) for _, files in host.said] == [0, 0, 1, 1, 1, 1, 1, 1]
    found = {name: host.device[name] for name in endpoint.DEVICE if name != "beat"}
    assert found == {
        "id": endpoint.ID, "version": 1, "channels": 2, "peer": 0, "card_offset": endpoint.CARD_OFFSET,
        "card_size": CARD, "card_base": 0, "max_length": endpoint.MAX_LENGTH,
    }  # fmt: skip


def test_beat_words_advance(host: Host) -> None:
    for regs in (host.device, host.channel(0), host.channel(1)):
        before = regs["beat"]
        time.sleep(0.25)
        assert regs["beat"] != before


def test_copies_complete_in_order_around_the_ring(host: Host) -> None:
    host.enable()
    host.wait(host.regs, "state", endpoint.RUNNING)
    for i in range(3 * SIZE):
        host.ram[SRC : SRC + 100] = bytes([i + 1]) * 100
        identity = host.hand_over(SRC, DST + i, 100)
        assert host.completion() == (identity, endpoint.OK, 100)
        assert host.ram[DST + i : DST + i + 100] == bytes([i + 1]) * 100
        assert host.interrupted()
    assert host.regs["head"] == 3 * SIZE
    assert not host.interrupted(1, BRIEFLY)


def test_interrupt_comes_only_if_asked_for(host: Host) -> None:
    host.enable()
    host.hand_over(SRC, DST, 8, flags=0)
    assert host.completion()
    assert not host.interrupted(seconds=BRIEFLY)


def test_card_memory_can_be_both_sides(host: Host) -> None:
    host.enable()
    host.ram[SRC : SRC + 64] = bytes(range(64))
    host.hand_over(SRC, CARD_BUS + CARD - 64, 64)
    host.hand_over(CARD_BUS + CARD - 64, DST, 64)
    assert [host.completion() for _ in range(2)] == [(1000, 0, 64), (1001, 0, 64)]
    assert host.ram[DST : DST + 64] == bytes(range(64))
    assert host.bar[-64:] == bytes(range(64))


@pytest.mark.parametrize(
    "src,dst,length,flags,reserved,status",
    [
        (SRC, DST, 0, 1, 0, endpoint.BAD_DESC),
        (0, 0, 8, 3, 0, endpoint.BAD_DESC),
        (SRC, DST, endpoint.MAX_LENGTH + 1, 1, 0, endpoint.BAD_DESC),
        (SRC, DST, 8, 4, 0, endpoint.BAD_DESC),
        (SRC, DST, 8, 1, 1, endpoint.BAD_DESC),
        (RAM - 4, DST, 8, 1, 0, endpoint.BAD_SRC),
        (SRC, RAM, 8, 1, 0, endpoint.BAD_DST),
        (SRC, 2**64 - 4, 8, 1, 0, endpoint.BAD_DST),
        (CARD_BUS - 4, DST, 8, 1, 0, endpoint.BAD_SRC),
        (CARD_BUS + CARD - 4, DST, 8, 1, 0, endpoint.BAD_SRC),
        (0, 0, 0, 3, 0, endpoint.OK),
    ],
)
def test_wrong_descriptors_get_their_status(
    host: Host, src: int, dst: int, length: int, flags: int, reserved: int, status: int
) -> None:
    host.enable()
    before = bytes(host.ram)
    identity = host.hand_over(src, dst, length, flags, reserved)
    assert host.completion() == (identity, status, 0)
    after = bytearray(host.ram)
    for start, size in ((RING, 32), (DONE, 16)):
        after[start : start + size] = before[start : start + size]
    assert after == before, "something was copied"
    # And it goes on.
    host.hand_over(SRC, DST, 8)
    assert host.completion() == (1001, endpoint.OK, 8)


@pytest.mark.parametrize(
    "how",
    [
        {"ring": RAM},
        {"done": RAM - 16},
        {"ring": RING + 8},
        {"size": 3},
        {"size": 1},
        {"size": 8192},
        {"control": 3},
        {"ring": CARD_BUS},
    ],
)
def test_wrong_rings_are_an_error(host: Host, how: dict[str, int]) -> None:
    host.enable(**how)
    host.wait(host.regs, "state", endpoint.ERROR)
    assert host.regs["error"] == endpoint.BAD_RING
    host.reset(7)
    host.enable()
    host.wait(host.regs, "state", endpoint.RUNNING)


def test_wrong_tail_is_an_error(host: Host) -> None:
    host.enable()
    host.regs["tail"] = SIZE + 1
    os.eventfd_write(host.doorbells[0], 1)
    host.wait(host.regs, "state", endpoint.ERROR)
    assert host.regs["error"] == endpoint.BAD_TAIL


def test_reset_ends_the_work_and_clears_the_registers(host: Host) -> None:
    host.endpoint.set_faults(Fault("stall"))
    host.enable()
    host.hand_over(SRC, DST, 8)
    assert host.completion(BRIEFLY) is None
    before = host.regs["beat"]
    time.sleep(0.3)
    assert host.regs["beat"] == before
    host.endpoint.set_faults()
    host.reset(99)
    kept = ("beat", "reset", "reset_ack")
    assert {host.regs[name] for name in endpoint.CHANNEL if name not in kept} == {0}
    host.enable()
    host.hand_over(SRC, DST, 8)
    assert host.completion() == (1000, endpoint.OK, 8)
    assert host.endpoint.resets() == 1


def test_dead_channel_leaves_the_other_alone(host: Host) -> None:
    host.enable()
    host.wait(host.regs, "state", endpoint.RUNNING)
    host.endpoint.kill_channel(0)
    host.wait(host.regs, "state", endpoint.ERROR)
    assert host.regs["error"] == endpoint.DIED
    assert host.channel(1)["state"] == endpoint.DISABLED
    host.reset(1)
    host.enable()
    host.hand_over(SRC, DST, 8)
    assert host.completion() == (1000, endpoint.OK, 8)


def test_endpoint_ends_with_qemu(host: Host) -> None:
    host.qemu.close()
    host.endpoint._process.wait(SECONDS)
    assert host.endpoint._process.returncode == 0
    with pytest.raises(EndpointError, match="does not answer"):
        host.endpoint.injected()


GOOD = bytes(range(1, 65))
FIRST, SECOND, THIRD = ((1000 + i, 0, 64) for i in range(3))
# Completions to be seen of three copies, the second under a fault; None: one that is none of the three.
COMPLETIONS = {
    "lost": [FIRST, THIRD],
    "doubled": [FIRST, SECOND, SECOND, THIRD],
    "unknown": [FIRST, None, THIRD],
    "reordered": [FIRST, THIRD, SECOND],
    "stall": [FIRST],
    "death": [FIRST],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_shows_as_documented(host: Host, kind: str) -> None:
    host.endpoint.set_faults(Fault(kind, after=1, count=1, seed=3))
    host.enable()
    host.ram[SRC : SRC + 64] = GOOD
    host.ram[DST : DST + 256] = bytes(256)
    found: list[tuple[int, int, int] | None] = []
    interrupts = 0
    for i, expected in enumerate((FIRST, SECOND, THIRD)):
        host.hand_over(SRC, DST + 64 * i, 64)
        if kind in COMPLETIONS:
            continue
        # A word that has to be this one's completion may be garbage, for as long as it takes.
        assert kind == "garbage-ring" or host.completion() == expected
        interrupts += host.interrupted(seconds=BRIEFLY if (kind, i) == ("no-interrupt", 1) else SECONDS)
    if kind in COMPLETIONS:
        for due in COMPLETIONS[kind]:
            one = host.completion()
            assert due or one not in (FIRST, SECOND, THIRD)
            found.append(one if due else None)
        assert found == COMPLETIONS[kind]
    else:
        assert interrupts == (2 if kind == "no-interrupt" else 3)
    if kind != "garbage-ring":
        assert host.completion(BRIEFLY) is None
    assert host.endpoint.injected() == {kind: 1}

    data = host.ram[DST + 64 : DST + 128]
    differing = sum((a ^ b).bit_count() for a, b in zip(data, GOOD, strict=True))
    if kind == "flip":
        assert differing == 1
    elif kind in ("short", "misplaced"):
        assert differing
    elif kind in ("skipped", "stall", "death"):
        assert data == bytes(64)
    else:
        assert not differing
    # What is not the transfer's stays as it is.
    assert host.ram[DST + 192 : DST + 256] == bytes(64)


@pytest.mark.parametrize(
    "text,fault",
    [
        ("flip", Fault("flip")),
        ("flip:rate=0.25,seed=7,after=3", Fault("flip", rate=0.25, seed=7, after=3)),
        ("stall:count=1,channel=2", Fault("stall", count=1, channel=2)),
    ],
)
def test_faults_are_parsed_and_printed(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault
    assert Fault.parse(str(fault)) == fault


def test_documented_table_has_every_fault() -> None:
    lines = (CHECKOUT / "docs/reference/faults.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert dict(row[:2] for row in table[2 : 2 + len(KINDS)]) == KINDS
    assert all(int(row[2]) > 0 for row in table[2:])


@pytest.mark.parametrize(
    "text,said",
    [
        ("flop", "no fault 'flop': there are flip,"),
        ("flip:rat=1", "a fault has no 'rat'"),
        ("flip:rate=0", "rate is above 0"),
        ("flip:rate=2", "rate is above 0"),
        ("flip:seed=x", "the seed of a fault is a number"),
    ],
)
def test_wrong_faults_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Fault.parse(text)


def test_wrong_requests_are_refused(host: Host) -> None:
    with pytest.raises(EndpointError, match="no fault 'flop'"):
        endpoint.ask(host.folder, "ep", faults=[{"kind": "flop"}])
    with pytest.raises(EndpointError, match="more than the 16"):
        host.endpoint.set_faults(*[Fault("flip")] * 17)
    with pytest.raises(EndpointError, match="no channel 5 is alive"):
        host.endpoint.kill_channel(5)
    assert host.endpoint.injected() == {}


def test_split_memory_is_found_at_its_bus_addresses() -> None:
    """Parts of the guest's memory, and the card's, each at its bus address."""
    ram, bar = memoryview(bytearray(range(96))), memoryview(bytearray(endpoint.CARD_OFFSET + 16))
    memory = endpoint.BusMemory(ram, [(1 << 30, 64), (4 << 30, 32)], bar)
    memory.map_card(CARD_BUS)
    for address, length, expected in [
        ((1 << 30) + 2, 3, ram[2:5]), (4 << 30, 32, ram[64:]), (CARD_BUS, 16, bar[endpoint.CARD_OFFSET :]),
        (0, 1, None), ((1 << 30) + 60, 8, None), ((4 << 30) + 32, 1, None),
    ]:  # fmt: skip
        assert memory.at(address, length) == expected
