# SPDX-License-Identifier: MIT
"""The endpoint: the device of docs/reference/endpoint.md, as a process that QEMU's ivshmem-doorbell leads to.

In native guests, native.py is what QEMU is elsewhere.
`python -m nymph_vm.endpoint CONFIG` is one endpoint, from the moment QEMU connects until it disconnects. It
is a supervisor, which holds what must not die (the connection, doorbells, vectors, registers, the card's
memory), and a worker process for each channel, which the supervisor kills and replaces for a reset: then
nothing of before can write any more. `Endpoint` is its handle in the process that has the machine.

Registers and rings are written a word at a time, in the order of the program; that is enough for the guest as
long as host CPUs keep stores in order, as x86 does.
"""

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from nymph_vm.faults import Board, Fault, deliver
from nymph_vm.host import HarnessError, start

ID, VERSION = 0x48504D4E, 1
CHANNELS = 4
CARD_SIZE = 31 << 20
NATIVE_CARD_SIZE = 15 << 20  # a native guest maps no more of a BAR
MAX_LENGTH = 16 << 20
CARD_OFFSET = 1 << 20
BEAT_MS = 100
CONTROL_SECONDS = 10

# Registers, as docs/reference/endpoint.md has them: offset and bits.
DEVICE = {
    "id": (0x00, 32), "version": (0x04, 32), "channels": (0x08, 32), "peer": (0x0C, 32),
    "card_offset": (0x10, 64), "card_size": (0x18, 64), "card_base": (0x20, 64),
    "max_length": (0x28, 32), "beat": (0x2C, 32),
}  # fmt: skip
CHANNEL_BASE = CHANNEL_STRIDE = 0x1000
CHANNEL = {
    "control": (0x00, 32), "state": (0x04, 32), "error": (0x08, 32), "beat": (0x0C, 32),
    "ring_base": (0x10, 64), "done_base": (0x18, 64), "ring_size": (0x20, 32), "tail": (0x24, 32),
    "head": (0x28, 32), "reserved": (0x2C, 32), "reset": (0x30, 32), "reset_ack": (0x34, 32),
}  # fmt: skip
DESC = {
    "src": (0x00, 64), "dst": (0x08, 64), "length": (0x10, 32), "flags": (0x14, 32), "id": (0x18, 32),
    "reserved": (0x1C, 32),
}  # fmt: skip
DONE = {"id": (0x00, 32), "status": (0x04, 32), "bytes": (0x08, 32), "sequence": (0x0C, 32)}
DESC_SIZE, DONE_SIZE = 32, 16

ENABLE = 1
DISABLED, RUNNING, ERROR = 0, 1, 2
BAD_RING, BAD_TAIL, DIED = 1, 2, 3
INTERRUPT, NOP = 1, 2
OK, BAD_DESC, BAD_SRC, BAD_DST = 0, 1, 2, 3

# What garbage can strike: what the device owns of a channel's registers.
OWNED = ("state", "error", "beat", "head")

GREETING = 8  # bytes of each of its numbers
FROM_PEER = struct.Struct("<QQQ")  # the guest's memory: offset in the file that comes along, address, size

# What strikes most descriptors. Made once: it takes as long as all else about a small one.
SOUND = ("", Random())


@dataclass(frozen=True)
class Config:
    """What an endpoint is told: open files it inherits, and sizes in bytes."""

    qemu: int  # listening socket for QEMU
    control: int  # listening socket for Endpoint.ask()
    ram: int | None  # the guest's memory; None: who connects sends it after the greeting, see FROM_PEER
    ram_map: list[tuple[int, int]]  # bus address and size of each part of it, in the file's order
    bar_size: int
    channels: int
    faults: list[dict[str, Any]]


class Registers:
    """A block of registers in BAR 2. Each is read and written as one word."""

    def __init__(self, bar: memoryview, base: int, layout: dict[str, tuple[int, int]]) -> None:
        self._words = {
            name: bar[base + offset : base + offset + bits // 8].cast("I" if bits == 32 else "Q")
            for name, (offset, bits) in layout.items()
        }

    def __getitem__(self, name: str) -> int:
        return self._words[name][0]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[name][0] = value


class BusMemory:
    """What a bus address leads to: the guest's RAM, whose parts Config has, or the card's memory."""

    def __init__(self, ram: memoryview, ram_map: list[tuple[int, int]], bar: memoryview) -> None:
        self._ranges: list[tuple[int, memoryview]] = []
        for base, size in ram_map:
            self._ranges.append((base, ram[:size]))
            ram = ram[size:]
        self._host = tuple(self._ranges)
        self._card = bar[CARD_OFFSET:]

    def map_card(self, base: int) -> None:
        """Let the card's memory be at this bus address; 0 is nowhere."""
        self._ranges = [*self._host, (base, self._card)] if base else list(self._host)

    def at(self, address: int, length: int, *, host: bool = False) -> memoryview | None:
        """The bytes there, if all of them are in one place; `host`: only in the guest's RAM."""
        for base, memory in self._host if host else self._ranges:
            if base <= address and address + length <= base + len(memory):
                return memory[address - base : address - base + length]
        return None


class Worker:
    """One channel, in a process of its own that may be killed at any moment."""

    def __init__(
        self, number: int, device: Registers, regs: Registers, memory: BusMemory, board: Board, doorbell: int,
        vector: int,
    ) -> None:  # fmt: skip
        self._number, self._device, self._regs = number, device, regs
        self._memory, self._board = memory, board
        self._doorbell, self._vector = doorbell, vector
        self._size = self._head = self._sequence = 0
        self._ring: memoryview | None = None
        self._done: memoryview | None = None
        self._held: list[tuple[int, int, int]] = []  # completions that come later

    def run(self) -> NoReturn:
        poll = select.poll()
        poll.register(self._doorbell, select.POLLIN)
        while True:
            rung = poll.poll(BEAT_MS)
            self._regs["beat"] = (self._regs["beat"] + 1) & 0xFFFFFFFF
            if rung:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._doorbell)
                self._work()

    def _work(self) -> None:
        if self._ring is None and not (self._regs["control"] and self._enable()):
            return
        while (tail := self._regs["tail"]) != self._head:
            if (tail - self._head) & 0xFFFFFFFF > self._size:
                return self._fail(BAD_TAIL)
            self._take()

    def _enable(self) -> bool:
        control, size = self._regs["control"], self._regs["ring_size"]
        bases = self._regs["ring_base"], self._regs["done_base"]
        power_of_two = 2 <= size <= 4096 and size & (size - 1) == 0
        if control == ENABLE and power_of_two and not (bases[0] | bases[1]) % 64:
            ring = self._memory.at(bases[0], size * DESC_SIZE, host=True)
            done = self._memory.at(bases[1], size * DONE_SIZE, host=True)
            if ring is not None and done is not None:
                self._memory.map_card(self._device["card_base"])
                self._size, self._ring, self._done = size, ring.cast("I"), done.cast("I")
                self._regs["state"] = RUNNING
                return True
        self._fail(BAD_RING)
        return False

    def _fail(self, error: int) -> None:
        self._regs["error"] = error
        self._regs["state"] = ERROR
        while True:  # a reset is the way out
            time.sleep(BEAT_MS / 1000)
            self._regs["beat"] = (self._regs["beat"] + 1) & 0xFFFFFFFF

    def _take(self) -> None:
        """Do the next descriptor."""
        assert self._ring is not None
        words = self._ring[self._head % self._size * 8 :][:8].tolist()
        self._head = (self._head + 1) & 0xFFFFFFFF
        self._regs["head"] = self._head
        src, dst = words[0] | words[1] << 32, words[2] | words[3] << 32
        length, flags, number, reserved = words[4:]
        kind, chance = self._board.draw(self._number) or SOUND
        if kind:
            self._strike_before(kind, chance)

        status = OK
        unknown = reserved or flags & ~(INTERRUPT | NOP)
        if unknown or (length == 0) != bool(flags & NOP) or length > MAX_LENGTH:
            status = BAD_DESC
        elif length:
            source, target = self._memory.at(src, length), self._memory.at(dst, length)
            if source is None:
                status = BAD_SRC
            elif target is None:
                status = BAD_DST
            else:
                deliver(source, target, kind, chance)
        self._complete(number, status, 0 if status else length, kind, chance)
        if flags & INTERRUPT and kind != "no-interrupt":
            os.eventfd_write(self._vector, 1)

    def _strike_before(self, kind: str, chance: Random) -> None:
        if kind == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stall":
            signal.pause()
        elif kind == "slow":
            time.sleep(0.02)
        elif kind == "garbage-register":
            self._regs[chance.choice(OWNED)] = chance.getrandbits(32)
        elif kind == "garbage-ring":
            assert self._done is not None
            self._done[chance.randrange(len(self._done))] = chance.getrandbits(32)

    def _complete(self, number: int, status: int, done: int, kind: str, chance: Random) -> None:
        if kind == "lost":
            return
        if kind == "reordered":
            self._held.append((number, status, done))
            return
        if kind == "unknown":
            number = chance.getrandbits(32)
        self._write_completion(number, status, done)
        if kind == "doubled":
            self._write_completion(number, status, done)
        for late in self._held:
            self._write_completion(*late)
        self._held.clear()

    def _write_completion(self, number: int, status: int, done: int) -> None:
        assert self._done is not None
        at = self._sequence % self._size * 4
        self._done[at], self._done[at + 1], self._done[at + 2] = number, status, done
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        self._done[at + 3] = self._sequence


class Supervisor:
    """The device, as long as QEMU is connected."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._board = Board()
        self._board.set([Fault(**fault) for fault in config.faults])
        self._bar_file = os.memfd_create("endpoint-bar")
        os.ftruncate(self._bar_file, config.bar_size)
        self._bar = memoryview(mmap.mmap(self._bar_file, config.bar_size))
        self._regs = Registers(self._bar, 0, DEVICE)
        self._channels = [
            Registers(self._bar, CHANNEL_BASE + CHANNEL_STRIDE * n, CHANNEL) for n in range(config.channels)
        ]
        how = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self._doorbells = [os.eventfd(0, how) for _ in range(config.channels + 1)]
        self._vectors = [os.eventfd(0, how) for _ in range(config.channels)]
        self._workers: dict[int, tuple[int, int]] = {}  # channel: pid, pidfd
        self._restarts = 0

        values = {
            "version": VERSION, "channels": config.channels, "card_offset": CARD_OFFSET,
            "card_size": config.bar_size - CARD_OFFSET, "max_length": MAX_LENGTH, "id": ID,
        }  # fmt: skip
        for name, value in values.items():
            self._regs[name] = value

    def run(self) -> None:
        """Serve until QEMU disconnects."""
        with socket.socket(fileno=self._config.qemu) as listening:
            qemu, _ = listening.accept()
        self._greet(qemu)
        self._memory = BusMemory(*self._find_ram(qemu), self._bar)
        for channel in range(self._config.channels):
            self._start(channel)
        control = socket.socket(fileno=self._config.control)
        poll = select.poll()
        for file in (qemu.fileno(), control.fileno(), self._doorbells[-1]):
            poll.register(file, select.POLLIN)
        while True:
            ready = [file for file, _ in poll.poll(BEAT_MS)]
            self._regs["beat"] = (self._regs["beat"] + 1) & 0xFFFFFFFF
            if qemu.fileno() in ready and not qemu.recv(64):
                return self._end()
            if control.fileno() in ready:
                self._answer(control)
            if self._doorbells[-1] in ready:
                os.eventfd_read(self._doorbells[-1])
            self._bury()
            for channel, regs in enumerate(self._channels):
                if (wanted := regs["reset"]) != regs["reset_ack"]:
                    self._reset(channel, wanted)

    def _greet(self, qemu: socket.socket) -> None:
        """ivshmem's handshake: version, QEMU's id, memory, then each peer's vectors, ours and QEMU's."""
        ours, qemus = 0, 1
        self._regs["peer"] = ours

        def say(number: int, *files: int) -> None:
            socket.send_fds(qemu, [number.to_bytes(GREETING, "little", signed=True)], files)

        say(0)
        say(qemus)
        say(-1, self._bar_file)
        for doorbell in self._doorbells:
            say(ours, doorbell)
        for vector in self._vectors:
            say(qemus, vector)

    def _find_ram(self, qemu: socket.socket) -> tuple[memoryview, list[tuple[int, int]]]:
        """The guest's memory, and the bus address and size of each part of it."""
        if self._config.ram is not None:
            size = sum(size for _, size in self._config.ram_map)
            return memoryview(mmap.mmap(self._config.ram, size)), self._config.ram_map
        place, files, _, _ = socket.recv_fds(qemu, FROM_PEER.size, 1)
        if len(place) < FROM_PEER.size:  # the guest did not boot
            sys.exit()
        offset, address, size = FROM_PEER.unpack(place)
        return memoryview(mmap.mmap(files[0], size, offset=offset)), [(address, size)]

    def _start(self, channel: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _die_with_parent(parent)
            parts = self._regs, self._channels[channel], self._memory, self._board
            try:
                Worker(channel, *parts, self._doorbells[channel], self._vectors[channel]).run()
            finally:
                os._exit(1)
        self._workers[channel] = pid, os.pidfd_open(pid)

    def _stop(self, channel: int) -> None:
        """Kill and reap the worker: from then on it writes nothing."""
        if channel in self._workers:
            pid, pidfd = self._workers.pop(channel)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)

    def _bury(self) -> None:
        """See to workers that died by themselves."""
        for channel, (_, pidfd) in list(self._workers.items()):
            if select.select([pidfd], [], [], 0)[0]:
                self._stop(channel)
                self._channels[channel]["error"] = DIED
                self._channels[channel]["state"] = ERROR

    def _reset(self, channel: int, number: int) -> None:
        self._stop(channel)
        regs = self._channels[channel]
        for name in ("control", "ring_base", "done_base", "ring_size", "tail", "head", "error", "state"):
            regs[name] = 0
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._doorbells[channel])
        self._start(channel)
        self._restarts += 1
        regs["reset_ack"] = number

    def _kill(self, channel: int) -> None:
        if channel not in self._workers:
            raise ValueError(f"no channel {channel} is alive")
        os.kill(self._workers[channel][0], signal.SIGKILL)

    def _answer(self, control: socket.socket) -> None:
        """One question, one answer, both a line of JSON."""
        asked, _ = control.accept()
        with asked, asked.makefile("rw") as file:
            asked.settimeout(CONTROL_SECONDS)
            answer: dict[str, Any] = {}
            try:
                question = json.loads(file.readline())
                if "faults" in question:
                    self._board.set([Fault(**fault) for fault in question["faults"]])
                if "kill" in question:
                    self._kill(question["kill"])
                faults = [asdict(fault) for fault in self._board.faults()]
                injected, resets = self._board.injected(), self._restarts
                answer = {"faults": faults, "injected": injected, "resets": resets}
            except (OSError, ValueError, TypeError) as error:
                answer = {"error": str(error)}
            with contextlib.suppress(OSError):
                print(json.dumps(answer), file=file, flush=True)

    def _end(self) -> None:
        for channel in list(self._workers):
            self._stop(channel)


class EndpointError(HarnessError):
    """The endpoint refused, or did not answer."""


def ask(folder: Path, name: str, **question: Any) -> Any:
    """Make the supervisor of an endpoint do something, from any process. Raises EndpointError."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(CONTROL_SECONDS)
            asking.connect(str(_control(folder, name)))
            with asking.makefile("rw") as file:
                print(json.dumps(question), file=file, flush=True)
                answer = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise EndpointError(f"the endpoint {name} does not answer: {error}") from None
    if "error" in answer:
        raise EndpointError(answer["error"])
    return answer


def _control(folder: Path, name: str) -> Path:
    return folder / f"{name}.ctl"


class Endpoint:
    """An endpoint's process, as the machine's owner sees it. One life of the device: from plug to unplug."""

    def __init__(
        self, folder: Path, name: str, *, ram: int | None, ram_map: list[tuple[int, int]], channels: int,
        card_size: int, faults: Sequence[Fault] = (),
    ) -> None:  # fmt: skip
        """Start it. It waits for QEMU at `socket`.

        ram, ram_map: the guest's memory, and where on the bus its parts are, see Config. card_size: bytes of
        the card's memory; with 1 MiB more, a power of two.
        """
        self.socket = folder / f"{name}.sock"
        self._folder, self._name = folder, name
        self.channels = channels
        listening = []
        for path in (self.socket, _control(folder, name)):
            path.unlink(missing_ok=True)
            listening.append(socket.socket(socket.AF_UNIX))
            listening[-1].bind(str(path))
            listening[-1].listen()
        qemu, control = (each.fileno() for each in listening)
        config = Config(
            qemu, control, ram, ram_map, CARD_OFFSET + card_size, channels, [asdict(each) for each in faults]
        )
        command = [sys.executable, "-m", "nymph_vm.endpoint", json.dumps(asdict(config))]
        files = (qemu, control) if ram is None else (qemu, control, ram)
        try:
            with (folder / f"{name}.log").open("w") as log:
                self._process = start(command, stdout=log, stderr=log, pass_fds=files)
        finally:
            for each in listening:
                each.close()

    def set_faults(self, *faults: Fault) -> None:
        """These faults from now on, and no others; without any, the device is sound again."""
        self._ask(faults=[asdict(fault) for fault in faults])

    def injected(self) -> dict[str, int]:
        """How often each fault struck since set_faults()."""
        return dict(self._ask()["injected"])

    def resets(self) -> int:
        """How many resets of channels there were."""
        return int(self._ask()["resets"])

    def kill_channel(self, channel: int) -> None:
        """Have a channel die, as if it had crashed. Raises EndpointError if it is dead already."""
        self._ask(kill=channel)

    def _ask(self, **question: Any) -> Any:
        return ask(self._folder, self._name, **question)

    def freeze(self) -> None:
        """All of it stops, as if it were dead: it copies nothing and acknowledges no reset, until thaw()."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it stopped."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, if QEMU has not by disconnecting."""
        self._process.kill()
        self._process.wait()


def _die_with_parent(parent: int) -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    Supervisor(Config(**json.loads(sys.argv[1]))).run()
