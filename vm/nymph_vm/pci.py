# SPDX-License-Identifier: MIT
"""PCI functions in Python, for the drivers of native guests.

A function is a class derived from Device, and lives in a process of its own:

    class Adder(Device):
        vendor, device = 0x1234, 0x5678
        bars = {0: 4096}
        vectors = 1

        def write(self, bar, offset, size, value):
            data = self.dma(value, 8)
            data[0] = (data[0] + 1) % 256
            self.interrupt(0)

    nymph-vm run --arch um --pci adder.py:Adder -- COMMAND

The guest's kernel has its virtio PCI device lead to that process, over vhost-user. vhost.c does what has to
be fast. Function is the handle of the process that has the machine.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

from nymph_vm.host import HarnessError, start

VIRTIO_ID = 1234  # as um.config has it: no number is assigned
MOST = 8  # functions that a guest can have
MOST_VECTORS = 32  # of all of a guest's functions
BAR_MOST = 16 << 20  # what the guest's kernel maps of a BAR
CONTROL_SECONDS = 10
SWITCH_SECONDS = 50e-6

MSIX_CAP, PCIE_CAP = 0x40, 0x60
COMMAND, BUS_MASTER = 4, 4
COMMAND_BITS = 0x0546

# vhost-user: requests, and bits.
GET_FEATURES, SET_MEM_TABLE = 1, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 8, 9, 10
SET_VRING_KICK, SET_VRING_CALL, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_BACKEND_REQ_FD = 12, 13, 15, 17, 21
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
MQ, REPLY_ACK, BACKEND_REQ = 1 << 0, 1 << 3, 1 << 5
REPLY, NEED_REPLY = 1 | 4, 8

READ = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint32)
WRITE = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64)


class DmaError(Exception):
    """The guest's memory is not there, or the function may not reach it."""


@dataclass(frozen=True)
class Memory:
    """A BAR that is memory: reads and writes of it are no calls. It is 64 bits wide, so has two numbers."""

    size: int
    file: int | None = None  # an open file with it, which other processes may share


class Kept:
    """Registers that only keep what is written: reads and writes of them are no calls."""

    def __init__(self, bar: int, offset: int, size: int) -> None:
        self.bar, self.offset = bar, offset
        self.memory = memoryview(bytearray(size))


class Device:
    """One PCI function. Its class says what it is; read(), write() and start() what it does."""

    vendor, device = 0xFFFF, 0xFFFF
    subsystem = 0, 0  # vendor, device
    class_code = 0xFF0000
    revision = 0
    bars: Mapping[int, int | Memory] = {}  # by number: the size, a power of two of at least 16
    kept: Sequence[Kept] = ()  # of BARs that are no Memory
    vectors = 0  # of MSI-X, whose table has a BAR of its own; none: an INTx

    _server: "Server"

    def start(self) -> None:
        """Do something once the guest's kernel has the function, before it reads or writes any of it."""

    def read(self, bar: int, offset: int, size: int) -> int:
        """Return what 1, 2, 4 or 8 bytes of a BAR are. The guest's CPU waits: leave long work to later()."""
        return (1 << 8 * size) - 1

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Take 1, 2, 4 or 8 bytes for a BAR."""

    def dma(self, address: int, length: int) -> memoryview:
        """Return bytes of the guest's memory, which can be read and written. Raises DmaError.

        address: on the bus, as dma_map_single() gave it to the driver.
        """
        return self._server.dma(address, length)

    def interrupt(self, vector: int = 0) -> None:
        """Raise an interrupt. Any thread may."""
        self._server.lib.vhost_interrupt(self._server.function, vector)

    def interrupt_on(self, file: int, vector: int) -> None:
        """Raise that interrupt of MSI-X whenever an eventfd is written. For start()."""
        self._server.lib.vhost_file(self._server.function, vector, file)

    def ram(self) -> list[tuple[int, int, int, int]]:
        """Return the parts of the guest's memory: open file, offset in it, address on the bus, and size."""
        return self._server.ram

    def later(self, function: Callable[..., object], *arguments: object) -> None:
        """Have a thread call a function: all that was left to it, one after the other."""
        self._server.left.put((function, arguments))

    def asked(self, request: Any) -> Any:
        """Answer Function.ask(): both are what JSON can say. Called in a thread of its own."""
        raise ValueError(f"{type(self).__name__} has no answers")


def _loudly(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()


@dataclass(frozen=True)
class Config:
    """What a function's process is told: open files it inherits, and where the rest is."""

    spec: str  # FILE.py:CLASS or MODULE:CLASS
    arguments: dict[str, Any]  # for the class
    library: str  # vhost.c, compiled
    listening: int  # socket for the guest
    control: int  # socket for Function


class Server:
    """Serves one function to one guest, until that goes."""

    def __init__(self, config: Config) -> None:
        self.device = load(config.spec)(**config.arguments)
        self.device._server = self
        self.left: SimpleQueue[tuple[Callable[..., object], tuple[object, ...]]] = SimpleQueue()
        self.lib = ctypes.CDLL(config.library)
        self.lib.vhost_new.restype = ctypes.c_void_p
        self.lib.vhost_configuration.restype = ctypes.POINTER(ctypes.c_uint8)
        self._calls = READ(self._read), WRITE(self._write)  # which have to live as long as the library
        self.function = ctypes.c_void_p(self.lib.vhost_new(*self._calls))
        self._space = self.lib.vhost_configuration(self.function)
        self._memory: list[memoryview] = []  # of BARs
        self._regions: list[tuple[int, memoryview]] = []
        self.ram: list[tuple[int, int, int, int]] = []  # of each region: file, offset, address, size
        self._rings: dict[int, tuple[int, int]] = {}
        self._listening = socket.socket(fileno=config.listening)
        self._control = socket.socket(fileno=config.control)
        self._started = False
        self._to_guest = -1
        self._configure()

    def run(self) -> None:
        """Serve until the guest is gone."""
        guest, _ = self._listening.accept()
        # A register's reader waits for the model's thread to let the interpreter go.
        sys.setswitchinterval(SWITCH_SECONDS)
        for body in (self._obey, self._work):
            threading.Thread(target=body, daemon=True).start()
        while self.lib.vhost_serve(self.function, guest.fileno()) == 0 and self._hear(guest):
            pass

    def dma(self, address: int, length: int) -> memoryview:
        if not self._space[COMMAND] & BUS_MASTER:
            raise self._refused(address, length, "the driver did not let the function be a bus master")
        for base, memory in self._regions:
            if base <= address and address + length <= base + len(memory) and length >= 0:
                return memory[address - base : address - base + length]
        raise self._refused(address, length, "no memory of the guest's is there")

    def _refused(self, address: int, length: int, why: str) -> DmaError:
        error = DmaError(f"DMA of {length} bytes at {address:#x} is refused: {why}")
        print(f"nymph-vm: {error}", file=sys.stderr, flush=True)
        return error

    def _read(self, bar: int, offset: int, size: int) -> int:
        try:
            return self.device.read(bar, offset, size)
        except Exception:
            traceback.print_exc()
            return (1 << 8 * size) - 1

    def _write(self, bar: int, offset: int, size: int, value: int) -> None:
        _loudly(self.device.write, bar, offset, size, value)

    def _configure(self) -> None:
        """Lay out the configuration space, and the BARs."""
        device = self.device

        def put(offset: int, size: int, value: int, writable: int = 0) -> None:
            self.lib.vhost_config(
                self.function, offset, size, ctypes.c_uint64(value), ctypes.c_uint64(writable)
            )

        put(0x00, 4, device.vendor | device.device << 16)
        put(COMMAND, 2, 0, COMMAND_BITS)
        put(0x06, 2, 0x0010)  # there are capabilities
        put(0x08, 4, device.revision | device.class_code << 8)
        put(0x2C, 4, device.subsystem[0] | device.subsystem[1] << 16)
        put(0x3C, 1, 0, 0xFF)
        put(0x3D, 1, 0 if device.vectors else 1)
        put(0x34, 1, MSIX_CAP if device.vectors else PCIE_CAP)
        put(PCIE_CAP, 4, 0x00020010)  # an endpoint's, version 2
        put(PCIE_CAP + 4, 4, 0x00008000)
        put(PCIE_CAP + 8, 2, 0, 0xFFFF)
        taken = set()
        for number, bar in device.bars.items():
            size = bar.size if isinstance(bar, Memory) else bar
            if size < 16 or size & (size - 1) or size > BAR_MOST:
                raise HarnessError(f"BAR {number} of {size} bytes: a power of two, from 16 to {BAR_MOST}")
            taken |= {number, number + 1} if isinstance(bar, Memory) else {number}
            at = 0x10 + 4 * number
            address: ctypes.c_void_p | None = None
            if isinstance(bar, Memory):
                file = os.memfd_create("bar") if bar.file is None else bar.file
                if bar.file is None:
                    os.ftruncate(file, size)
                self._memory.append(memoryview(mmap.mmap(file, size)))
                address = _address(self._memory[-1])
                put(at + 4, 4, 0, 0xFFFFFFFF)
            put(at, 4, 0xC if isinstance(bar, Memory) else 0, 0x100000000 - size)
            self.lib.vhost_bar(self.function, number, ctypes.c_uint64(size), address)
        for kept in device.kept:
            where = kept.bar, ctypes.c_uint64(kept.offset), ctypes.c_uint64(len(kept.memory))
            if self.lib.vhost_keep(self.function, *where, _address(kept.memory)):
                raise HarnessError(f"{len(device.kept)} kept registers are too many")
        if device.vectors:
            free = [number for number in range(6) if number not in taken]
            if not free or device.vectors > MOST_VECTORS:
                raise HarnessError(f"MSI-X wants a free BAR, and has at most {MOST_VECTORS} vectors")
            put(MSIX_CAP, 4, 0x11 | PCIE_CAP << 8 | (device.vectors - 1) << 16, 0xC0000000)
            put(MSIX_CAP + 4, 4, free[0])
            put(MSIX_CAP + 8, 4, 0x800 | free[0])
            put(0x10 + 4 * free[0], 4, 0, 0xFFFFF000)
            self.lib.vhost_msix(self.function, free[0], device.vectors, MSIX_CAP)

    def _hear(self, guest: socket.socket) -> bool:
        """Answer one vhost-user message; returns whether there was one."""
        try:
            head, files, _, _ = socket.recv_fds(guest, 12, 8)
            if len(head) < 12:
                return False
            request, flags, size = memoryview(head).cast("I")
            body = b""
            while len(body) < size:
                more = guest.recv(size - len(body))
                if not more:
                    return False
                body += more
            answer = self._answer(request, body, files)
            if answer is not None or flags & NEED_REPLY:
                reply = (request, REPLY, 8)
                guest.sendall(b"".join(each.to_bytes(4, "little") for each in reply))
                guest.sendall((answer or 0).to_bytes(8, "little"))
        except ConnectionError:
            return False
        return True

    def _answer(self, request: int, body: bytes, files: list[int]) -> int | None:
        words = memoryview(body[: len(body) // 8 * 8]).cast("Q")
        index, number = memoryview(body[:8].ljust(8, b"\0")).cast("I")
        if request == GET_FEATURES:
            return VERSION_1 | PROTOCOL_FEATURES
        if request == GET_PROTOCOL_FEATURES:
            return MQ | REPLY_ACK | BACKEND_REQ
        if request == GET_QUEUE_NUM:
            return 2
        if request == SET_MEM_TABLE:
            for i, file in enumerate(files):
                base, size, _, offset = words[1 + 4 * i : 5 + 4 * i]
                memory = memoryview(mmap.mmap(file, size, offset=offset))
                self.ram.append((file, offset, base, size))
                self._regions.append((base, memory))
                self.lib.vhost_region(
                    self.function, ctypes.c_uint64(base), ctypes.c_uint64(size), _address(memory)
                )
        elif request == SET_BACKEND_REQ_FD and files:
            self._to_guest = files[0]
        elif request == SET_VRING_NUM:
            self._rings[index] = number, 0
        elif request == SET_VRING_BASE:
            self._rings[index] = self._rings[index][0], number
        elif request == SET_VRING_ADDR and index < 2:
            if not self._started:
                self._started = True
                self.device.start()
            desc, used, avail = (ctypes.c_uint64(each) for each in words[1:4])
            ring = *self._rings[index], desc, avail, used
            return -self.lib.vhost_ring(self.function, index, *ring) or None
        elif request in (SET_VRING_KICK, SET_VRING_CALL) and files and words[0] < 2:
            kick, call = (files[0], -1) if request == SET_VRING_KICK else (-1, files[0])
            self.lib.vhost_notify(self.function, words[0] & 1, kick, call)
        return None

    def _work(self) -> NoReturn:
        """Call what was left for later. Runs in a thread."""
        while True:
            function, arguments = self.left.get()
            _loudly(function, *arguments)

    def _obey(self) -> NoReturn:
        """Answer Function: a line of JSON each. Runs in a thread."""
        while True:
            asked, _ = self._control.accept()
            with contextlib.suppress(OSError), asked, asked.makefile("rw") as file:
                try:
                    told = json.loads(file.readline())
                    answer: dict[str, Any] = {}
                    if "asked" in told:
                        answer["said"] = self.device.asked(told["asked"])
                    elif told["leave"]:
                        os.close(self._to_guest)  # the guest's kernel takes that for the end of the function
                    else:
                        self.lib.vhost_fault(self.function, told["late_us"], told["lose"], told["gone"])
                except (ValueError, TypeError, KeyError, OSError, ctypes.ArgumentError) as error:
                    answer = {"error": repr(error)}
                print(json.dumps(answer), file=file, flush=True)


def _address(memory: memoryview) -> ctypes.c_void_p:
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))


def load(spec: str) -> type[Device]:
    """The class that FILE.py:CLASS or MODULE:CLASS names. Raises HarnessError."""
    where, _, name = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert found and found.loader
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        device = getattr(module, name)
    except Exception as error:  # whatever its file raises
        raise HarnessError(f"{spec!r} names no PCI function: say FILE.py:CLASS ({error})") from None
    if not (isinstance(device, type) and issubclass(device, Device)):
        raise HarnessError(f"{spec!r} is no class derived from nymph_vm.pci.Device")
    return device


class Function:
    """A function's process, as the machine's owner sees it."""

    def __init__(
        self, folder: Path, name: str, spec: str, library: Path, arguments: dict[str, Any] | None = None,
        files: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """Start it; it waits for the guest at `socket`.

        library: vhost.c, compiled. arguments: for the class. files: open ones that it gets.
        """
        self.socket, self._control = folder / f"{name}.sock", folder / f"{name}.pci"
        self.name, self._log = name, folder / f"{name}.pci.log"
        listening = []
        for path in (self.socket, self._control):
            path.unlink(missing_ok=True)
            listening.append(socket.socket(socket.AF_UNIX))
            listening[-1].bind(str(path))
            listening[-1].listen()
        guest, control = (each.fileno() for each in listening)
        config = {
            "spec": spec, "arguments": arguments or {}, "library": str(library), "listening": guest,
            "control": control,
        }  # fmt: skip
        command = [sys.executable, "-m", "nymph_vm.pci", json.dumps(config)]
        try:
            with self._log.open("w") as log:
                self.process = start(command, stdout=log, stderr=log, pass_fds=(guest, control, *files))
        finally:
            for each in listening:
                each.close()

    def log(self) -> str:
        """What the function printed; DMA that was refused is in it."""
        return self._log.read_text(errors="replace")

    def set_faults(self, *, late_us: int = 0, lose: int = 0) -> None:
        """From now on answer reads of BARs so much later, and lose the next so many interrupts."""
        self._tell(late_us=late_us, lose=lose)

    def ask(self, request: Any) -> Any:
        """Have the model's asked() answer: both are what JSON can say. Raises HarnessError."""
        return self._send({"asked": request}).get("said")

    def pull(self) -> None:
        """Take it out of its slot: reads are ones, writes have no effect, and there are no interrupts."""
        self._tell(gone=True)

    def leave(self) -> None:
        """Have the guest's kernel forget it, after its driver let go of it; and end."""
        self._tell(leave=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CONTROL_SECONDS)
        self.close()

    def _tell(self, late_us: int = 0, lose: int = 0, gone: bool = False, leave: bool = False) -> None:
        self._send({"late_us": late_us, "lose": lose, "gone": gone, "leave": leave})

    def _send(self, told: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(CONTROL_SECONDS)
            asking.connect(str(self._control))
            with asking.makefile("rw") as file:
                print(json.dumps(told), file=file, flush=True)
                answer: dict[str, Any] = json.loads(file.readline())
        if "error" in answer:
            raise HarnessError(answer["error"])
        return answer

    def freeze(self) -> None:
        """It answers nothing, until thaw()."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it stopped."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, in the midst of whatever it does."""
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    from nymph_vm import pci  # whose Device classes derive from, and not that of this module

    pci.Server(pci.Config(**json.loads(sys.argv[1]))).run()
