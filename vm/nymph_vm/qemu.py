# SPDX-License-Identifier: MIT
"""QEMU: a guest's machine, emulated or under KVM, with endpoints behind ivshmem."""

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nymph_vm import kernels, project, root
from nymph_vm.endpoint import CARD_SIZE, CHANNELS, Endpoint
from nymph_vm.faults import Fault
from nymph_vm.host import HarnessError, start, tool
from nymph_vm.slots import Slots
from nymph_vm.state import log_tail

NMI_SECONDS = 10
QMP_SECONDS = 30
UNPLUG_SECONDS = 30

CMDLINE = (
    "maxcpus=1 "  # initramfs-init turns the others on, and says why
    "transparent_hugepage=always "  # as in kernels of Debian; else large memory is slow in a debug kernel
)


class Qemu:
    """A QEMU, once start() was called. `agent` leads to the guest's agent."""

    def __init__(
        self,
        kernel: kernels.Kernel,
        disk: root.Root,
        folder: Path,
        size: int,
        append: str,
        accelerator: str,
        slots: Slots,
        faults: Sequence[Fault],
    ) -> None:
        """folder: the machine's. size: of its memory, in bytes. append: for the kernel's command line.

        accelerator: "tcg" or "kvm". slots, faults: where endpoints are, and what each begins with.
        """
        self.arch = kernel.arch
        self._kernel, self._disk, self._accelerator = kernel, disk, accelerator
        self._folder, self._size, self._append = folder, size, append
        self._slots, self._faults = slots, faults
        self.endpoints: dict[str, Endpoint] = {}  # plugged in, by name: ep0, ep1, ...
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the endpoints, and QEMU."""
        self._ram = os.memfd_create("guest-ram")
        os.ftruncate(self._ram, self._size)
        for name in self._slots.buses:
            self._start_endpoint(name)
        self.agent, agent = socket.socketpair()
        ours, qmp = socket.socketpair()
        ours.settimeout(QMP_SECONDS)
        self._qmp_socket, self._qmp, self._qmp_in_use = ours, ours.makefile("r"), threading.Lock()
        files = {"ram": self._ram, "agent": agent.fileno(), "qmp": qmp.fileno()}
        try:
            with (self._folder / "qemu.log").open("w") as log:
                self.process = start(
                    self._command(**files), stdout=log, stderr=log, pass_fds=tuple(files.values())
                )
        finally:
            agent.close()
            qmp.close()
        most = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (most, most))  # see _occupy()
        self.qmp("qmp_capabilities")

    def close(self) -> None:
        """End it, and the endpoints."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for endpoint in self.endpoints.values():
            endpoint.close()
        if hasattr(self, "_ram"):
            os.close(self._ram)

    def _command(self, *, ram: int, agent: int, qmp: int) -> list[str]:
        """QEMU's command line; `ram`, `agent` and `qmp` are open files it inherits."""
        append = self.arch.append + (self.arch.emulated if self._accelerator == "tcg" else "")
        options = {
            "accel": self._accelerator,
            "cpu": "host" if self._accelerator == "kvm" else self.arch.cpu,
            "smp": "2",
            "m": f"{self._size >> 20}M",
            # In a file, though one without a name, so that a device model can share it.
            "object": f"memory-backend-file,id=ram,size={self._size},mem-path=/proc/self/fd/{ram},share=on",
            "machine": f"{self.arch.machine},memory-backend=ram",
            "display": "none",
            "kernel": str(self._kernel.image),
            "initrd": str(self._kernel.initramfs()),
            "append": f"console={self.arch.console} {CMDLINE} {append}{self._append}",
            "serial": f"file:{self._folder / 'console.log'}",
            "mon": "chardev=qmp,mode=control",
            "action": "panic=exit-failure,reboot=shutdown",
        }
        folder = project.here().folder
        several = [
            ("blockdev", f"driver=file,node-name=disk,filename={self._disk.image},read-only=on"),
            ("device", "virtio-blk-pci,drive=disk"),
            ("chardev", f"socket,id=qmp,fd={qmp}"),
            ("chardev", f"socket,id=agent,fd={agent}"),
            ("device", "virtio-serial-pci"),
            ("device", "virtserialport,chardev=agent"),
            ("netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"),
            ("device", "virtio-net-pci,netdev=net,romfile="),
            ("virtfs", f"local,mount_tag=kernel,path={self._kernel.modules},security_model=none,readonly=on"),
            ("virtfs", f"local,mount_tag=repo,path={folder},security_model=none,readonly=on"),
            ("device", "pvpanic-pci"),
            *self._slots.options,
        ]
        for name, endpoint in self.endpoints.items():
            several += [
                ("chardev", f"socket,id={name},path={endpoint.socket}"),
                ("device", _option(_endpoint_device(name, self._slots.buses[name]))),
            ]
        command = [tool(self.arch.qemu), "-nodefaults"]
        for option, value in [*options.items(), *several]:
            command += [f"-{option}", value]
        return command

    def forward(self, port: int, preferred: int = 0) -> int:
        """Let a port on the host's loopback lead to the guest's; returns its number, `preferred` if free."""
        for ours in dict.fromkeys((preferred, 0)):
            before = self._forwarded()
            rule = f"hostfwd_add net tcp:127.0.0.1:{ours}-:{port}"
            said = self.qmp("human-monitor-command", **{"command-line": rule})
            if new := self._forwarded() - before:
                return new.pop()[0]
        raise HarnessError(f"QEMU does not forward a port: {said}")

    @property
    def port(self) -> int:
        """The port on the host that leads to the guest's sshd. QEMU chose it, so there is no race for it."""
        for port, guest in self._forwarded():
            if guest == 22:
                return port
        raise HarnessError("QEMU does not say which port it forwards")

    def _forwarded(self) -> set[tuple[int, int]]:
        """Ports of the host that lead to the guest, each with the port there."""
        table = self.qmp("human-monitor-command", **{"command-line": "info usernet"})
        found = re.findall(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)", table)
        return {(int(ours), int(guest)) for ours, guest in found}

    def qmp(self, command: str, *files: int, **arguments: Any) -> Any:
        """Have QEMU do something (the QEMU Machine Protocol), with these open files; returns its answer."""
        answer: dict[str, Any] = {}
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        try:
            with self._qmp_in_use:
                if files:
                    socket.send_fds(self._qmp_socket, [line], files)
                else:
                    self._qmp_socket.sendall(line)
                while not answer.keys() & {"return", "error"}:  # else it is the greeting, or an event
                    answer = json.loads(self._qmp.readline())
        except (OSError, ValueError):
            raise HarnessError(f"QEMU did not answer {command}:\n{log_tail(self._folder, 10)}") from None
        if "error" in answer:
            raise HarnessError(f"QEMU refused {command}: {answer['error']['desc']}")
        return answer["return"]

    def unplug(self, name: str) -> None:
        """Take an endpoint out of its slot, as its driver in the guest agrees to. Raises HarnessError."""
        if name not in self.endpoints:
            there = ", ".join(self.endpoints) or "none"
            raise HarnessError(f"no endpoint {name} is plugged in; those that are: {there}")
        endpoint = self.endpoints[name]
        before = self._qemus_files()
        self.qmp("device_del", id=name)
        deadline = time.monotonic() + UNPLUG_SECONDS
        while True:
            try:
                self.qmp("chardev-remove", id=name)
                break
            except HarnessError as refused:  # busy, also for a while after the guest released the device
                if self.process and self.process.poll() is not None:
                    raise
                if time.monotonic() > deadline:
                    message = f"{name} is still in its slot after {UNPLUG_SECONDS} s: {refused}"
                    raise HarnessError(message) from None
            time.sleep(0.002)
        self._occupy(before)
        endpoint.close()
        del self.endpoints[name]

    def _qemus_files(self) -> set[int]:
        assert self.process
        return {int(number) for number in os.listdir(f"/proc/{self.process.pid}/fd")}

    def _occupy(self, numbers: set[int]) -> None:
        """Let no file that QEMU opens from now on have one of these numbers.

        Of an ivshmem that is unplugged, QEMU (7.2, at least) closes the vectors' files but keeps their
        handlers. The next file of such a number calls one, and that is the end of QEMU.
        """
        silent = os.eventfd(0)
        try:
            while not numbers <= self._qemus_files():
                self.qmp("add-fd", silent)
        finally:
            os.close(silent)

    def plug(self, name: str) -> None:
        """Put an endpoint, a new one, into a slot that unplug() emptied. Raises HarnessError."""
        if name not in self._slots.buses or name in self.endpoints:
            empty = ", ".join(self._slots.buses.keys() - self.endpoints.keys()) or "none"
            raise HarnessError(f"no slot of an endpoint {name} is empty; those that are: {empty}")
        endpoint = self._start_endpoint(name)
        address = {"type": "unix", "data": {"path": str(endpoint.socket)}}
        self.qmp(
            "chardev-add", id=name, backend={"type": "socket", "data": {"addr": address, "server": False}}
        )
        self.qmp("device_add", **_endpoint_device(name, self._slots.buses[name]))

    def _start_endpoint(self, name: str) -> Endpoint:
        endpoint = Endpoint(
            self._folder, name, ram=self._ram, ram_map=self.arch.ram(self._size), channels=CHANNELS,
            card_size=CARD_SIZE, faults=self._faults,
        )  # fmt: skip
        self.endpoints[name] = endpoint
        return endpoint

    def ask_where_it_hangs(self) -> None:
        """Have the kernel, if it can, panic and so log what a CPU was doing."""
        assert self.process
        with contextlib.suppress(HarnessError, subprocess.TimeoutExpired):
            # In an NMI, the kernel tells the machine of a panic before it writes its log.
            self.qmp("set-action", panic="none")
            self.qmp("inject-nmi")
            self.process.wait(NMI_SECONDS)


def _endpoint_device(name: str, bus: str) -> dict[str, Any]:
    """QEMU's device for an endpoint, `driver` first."""
    identity = {"driver": "ivshmem-doorbell", "id": name, "chardev": name}
    # As many as either side has doorbells: QEMU 7.2 writes past its array for one that is rung beyond.
    return {**identity, "vectors": CHANNELS + 1, "bus": bus}


def _option(device: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in device.items()).removeprefix("driver=")
