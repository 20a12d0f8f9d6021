# SPDX-License-Identifier: MIT
"""User-mode Linux: a guest's kernel as a program of the host's, so a guest at the host's own speed.

It needs neither KVM nor root. The agent has the first of its serial lines, SSH the second, see relay.
"""

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nymph_vm import build, kernels, project, root
from nymph_vm.endpoint import CARD_OFFSET, CHANNELS, NATIVE_CARD_SIZE, Endpoint
from nymph_vm.faults import Fault
from nymph_vm.host import HarnessError, start
from nymph_vm.pci import MOST, VIRTIO_ID, Function, load
from nymph_vm.relay import LINE, Relay
from nymph_vm.slots import Slots

SSH = 22
ASK_SECONDS = 5
MCONSOLE = 0xCAFEBABE
MAX_CPUS = 64  # as its configuration has it
PATIENCE_US = 5000000  # with a PCI function, which may be busy, or not get a CPU


def check(slots: Slots, pci: Sequence[str]) -> None:
    """Raise HarnessError if a native guest cannot have these endpoints and PCI functions."""
    if slots.options:
        raise HarnessError("native guests have one bus and no board: leave out --board")
    if len(slots.buses) + len(pci) > MOST:
        raise HarnessError(f"a native guest has at most {MOST} endpoints and other PCI functions")
    for spec in pci:
        load(spec)


class Uml:
    """A user-mode Linux, once start() was called. `agent` leads to the guest's agent."""

    def __init__(
        self,
        kernel: kernels.Kernel,
        disk: root.Root,
        folder: Path,
        size: int,
        append: str,
        slots: Slots,
        faults: Sequence[Fault],
        pci: Sequence[str],
    ) -> None:
        """folder: the machine's. size: of its memory, in bytes. append: for the kernel's command line.

        slots, faults: the endpoints, and what each begins with. pci: more PCI functions, FILE.py:CLASS or
        MODULE:CLASS.
        """
        self._kernel, self._disk = kernel, disk
        self._folder, self._size, self._append = folder, size, append
        self._faults = faults
        self._specs = {f"pci{number}": spec for number, spec in enumerate(pci)}
        # Functions are where they come in the command line, one behind the other.
        self._addresses = {
            name: f"0000:00:{number:02x}.0" for number, name in enumerate([*slots.buses, *self._specs])
        }
        self.endpoints: dict[str, Endpoint] = {}  # plugged in, by name: ep0, ep1, ...
        self.functions: dict[str, Function] = {}  # those of the endpoints, then pci0, pci1, ...
        self.process: subprocess.Popen[bytes] | None = None
        self._relay: Relay | None = None

    def start(self) -> None:
        """Start the PCI functions, and it."""
        for name in self._addresses:
            self._start_slot(name)
        self.agent, agent = socket.socketpair()
        self._link, link = socket.socketpair()
        self._relay = Relay(self._link.fileno(), most=LINE)
        self.port = self._relay.forward(SSH)
        self._relay.start()
        # Its memory would be a file where these say, not in /dev/shm.
        environment = {k: v for k, v in os.environ.items() if k not in ("TMPDIR", "TMP", "TEMP")}
        lines = (agent.fileno(), link.fileno())
        try:
            with (self._folder / "console.log").open("a") as log:
                self.process = start(
                    self._command(*lines), stdout=log, stderr=log, pass_fds=lines, env=environment
                )
        finally:
            agent.close()
            link.close()

    def _command(self, agent: int, link: int) -> list[str]:
        cpus = min(len(os.sched_getaffinity(0)), MAX_CPUS) if self._kernel.smp else 1
        return [
            str(self._kernel.image),
            f"mem={self._size >> 20}M",
            f"ncpus={cpus}",
            "seccomp=on",
            f"virtio_pcidev.max_delay_us={PATIENCE_US}",
            *(f"virtio_uml.device={each.socket}:{VIRTIO_ID}" for each in self.functions.values()),
            f"ubd0rc={self._disk.image}",  # c: a lock of it would keep QEMU out
            f"initrd={self._kernel.initramfs()}",
            "con0=null,fd:1",
            "con=null",
            f"ssl0=fd:{agent}",
            f"ssl1=fd:{link}",
            "ssl=null",
            f"uml_dir={self._folder}",
            "umid=uml",
            f"NYMPH_REPO={project.here().folder}",
            f"NYMPH_KERNEL={self._kernel.modules}",
            *self._append.split(),
        ]

    def _start_function(self, name: str, spec: str, **arguments: Any) -> None:
        library = build.library(Path(__file__).with_name("vhost.c"))
        self.functions[name] = Function(self._folder, f"{name}-pci", spec, library, arguments)

    def _start_slot(self, name: str) -> None:
        if name in self._specs:
            self._start_function(name, self._specs[name])
        else:
            self._start_endpoint(name)

    def _start_endpoint(self, name: str) -> None:
        endpoint = Endpoint(
            self._folder, name, ram=None, ram_map=[], channels=CHANNELS, card_size=NATIVE_CARD_SIZE,
            faults=self._faults,
        )  # fmt: skip
        self.endpoints[name] = endpoint
        self._start_function(
            name, "nymph_vm.native:Ivshmem", path=str(endpoint.socket), channels=CHANNELS,
            bar_size=CARD_OFFSET + NATIVE_CARD_SIZE,
        )  # fmt: skip

    def close(self) -> None:
        """End it, and the PCI functions."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for function in self.functions.values():
            function.close()
        for endpoint in self.endpoints.values():
            endpoint.close()
        if self._relay is not None:
            self._relay.close()
            self._link.close()

    def forward(self, port: int, preferred: int = 0) -> int:
        """Let a port on the host's loopback lead to the guest's; returns its number, `preferred` if free."""
        assert self._relay
        return self._relay.forward(port, preferred)

    def unplug(self, name: str, run: Callable[[Sequence[str]], object]) -> None:
        """Take a function out of its slot, whatever it and its driver are doing. Raises HarnessError.

        run: runs a command in the guest. It has the kernel remove the function, as a slot's driver would.
        """
        if name not in self.functions:
            there = ", ".join(self.functions) or "none"
            raise HarnessError(f"no endpoint {name} is plugged in; those that are: {there}")
        self.functions[name].pull()
        run(["sh", "-c", f"echo 1 > /sys/bus/pci/devices/{self._addresses[name]}/remove"])
        self.functions.pop(name).leave()
        if name in self.endpoints:
            self.endpoints.pop(name).close()

    def plug(self, name: str) -> None:
        """Put a function, a new one, into a slot that unplug() emptied. Raises HarnessError."""
        if name not in self._addresses or name in self.functions:
            empty = ", ".join(self._addresses.keys() - self.functions.keys()) or "none"
            raise HarnessError(f"no slot of an endpoint {name} is empty; those that are: {empty}")
        self._start_slot(name)
        said = self.ask(f"config virtio_uml.device={self.functions[name].socket}:{VIRTIO_ID}")
        if said:
            raise HarnessError(f"the guest's kernel does not take {name}: {said}")

    def ask(self, request: str) -> str:
        """Have the kernel do something, as uml_mconsole does; returns what it says. Raises HarnessError."""
        message = struct.pack("<III512s", MCONSOLE, 2, len(request), request.encode())
        address = self._folder / "asking"
        address.unlink(missing_ok=True)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
                asking.settimeout(ASK_SECONDS)
                asking.bind(str(address))
                asking.sendto(message, str(self._folder / "uml/mconsole"))
                answer = asking.recv(1024)
                _, _, length = struct.unpack_from("<III", answer)
        except (OSError, struct.error) as error:
            raise HarnessError(f"the guest's kernel does not answer {request!r}: {error}") from None
        return answer[12 : 12 + length].decode(errors="replace").strip("\0\n ")

    def ask_where_it_hangs(self) -> None:
        """Have the kernel, if it can, panic and so log what a CPU was doing."""
        assert self.process
        with contextlib.suppress(HarnessError):
            self.ask("sysrq c")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ASK_SECONDS)
