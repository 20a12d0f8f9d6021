# SPDX-License-Identifier: MIT
"""One virtual machine: QEMU, the agent in the guest, and SSH.

The agent (guest/init) is at the other end of a virtio-serial port. It says when the guest is ready, answers
pings, and sends every record of the kernel log. A thread reads it, so that a panic, a hang and a complaint of
the kernel are known at once.

Nothing outlives the process that made a Machine: QEMU gets SIGKILL when the thread that started it ends (so
make Machines in the main thread), SSH ends when QEMU does, and a shell with a pipe to us removes the folder.
"""

import contextlib
import fcntl
import json
import os
import re
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

from nymph_vm import accel, build, kernels, root, slots
from nymph_vm.arch import Arch
from nymph_vm.endpoint import Endpoint
from nymph_vm.faults import Fault
from nymph_vm.host import CHECKOUT, HarnessError, start, tool
from nymph_vm.kmsg import is_complaint, parse
from nymph_vm.slots import Slots
from nymph_vm.state import State, VMLost, claim, log_tail

BOOT_SECONDS = 120  # a sanitizer kernel under TCG on a busy host needs most of it
PING_SECONDS = 2
HANG_SECONDS = 30  # more than the 22 s after which a kernel finds itself locked up, and panics
NMI_SECONDS = 10
QMP_SECONDS = 30
UNPLUG_SECONDS = 30

# Of each endpoint.
CHANNELS = 4
CARD_SIZE = 31 << 20

CMDLINE = (
    "quiet net.ifnames=0 printk.devkmsg=on oops=panic panic=-1 softlockup_panic=1 "
    "cryptomgr.notests "
    "maxcpus=1 "  # initramfs-init turns the others on, and says why
    "transparent_hugepage=always "  # as in kernels of Debian; else large memory is slow in a debug kernel
    "kasan_multi_shot "  # else only the first bug is reported, and hides those of all tests behind it
    "sysctl.kernel.hung_task_panic=1 sysctl.kernel.hung_task_timeout_secs=20 "
    "sysctl.kernel.hung_task_check_interval_secs=5 "
    "sysctl.kernel.watchdog_thresh=20"  # soft lockups are twice that: emulated CPUs are slow
)

# Bits of /proc/sys/kernel/tainted that say no more than that our module is out of tree, and unsigned, and has
# had its KUnit tests run.
OUR_TAINT = 1 << 12 | 1 << 13 | 1 << 18

LOAD = """
    insmod "$1" $(tr ' ' '\\n' < /proc/cmdline | sed -n "s/^$2\\.//p") && udevadm settle"""

# The kernel has the files, with size 0, so tar could not read them there.
GCOV = """
    cd "$(mktemp -d)"
    files=$(cd /sys/kernel/debug/gcov/tmp/build; find kernel -name '*.gcda')
    for file in $files; do
        mkdir -p "${file%/*}"
        cat "/sys/kernel/debug/gcov/tmp/build/$file" > "$file"
    done
    tar -cf - kernel"""

# Objects younger than 5 s are no leaks yet. A leak is known for certain once a second scan finds it, too.
KMEMLEAK = """
    cd /sys/kernel/debug
    echo scan > kmemleak
    sleep 6
    echo scan > kmemleak
    cat kmemleak"""


class Machine:
    """A running guest with the module loaded. Use it in a with statement, or call close().

    All its methods raise VMLost once the guest is lost.
    """

    def __init__(
        self,
        name: str,
        *,
        kernel: str = kernels.DEFAULT,
        memory: str = "4G",
        image: str = root.PLAIN,
        slots: Slots = slots.DEFAULT,
        faults: Sequence[Fault] = (),
        append: str = "",
        hang_seconds: float = HANG_SECONDS,
        on_complaint: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Build what is missing, boot, and load the module. Raises HarnessError if that fails.

        memory: "512M" or "4G". image: a key of root.IMAGES; in that with systemd, nymphd runs. slots: where
        endpoints are. faults: those that each begins with. append: more for the kernel's command line.
        hang_seconds: how long the guest may be silent. on_complaint: called with each complaint of the
        guest's kernel as it comes, in a thread.
        """
        size = _bytes(memory)
        arch = kernels.KERNELS[kernel].arch
        tool(arch.qemu)  # before anything that takes long
        built = build.prepare(kernel)
        disk = root.prepare(arch, image)
        accelerator = accel.choose(built.kernel)
        self.arch: Arch = arch
        self.lost: VMLost | None = None
        self._hang_seconds = hang_seconds
        self._on_complaint = on_complaint
        self._complaints: list[str] = []
        self._changed = threading.Condition()  # guards what the watcher writes
        self._ready = self._closing = False
        self._marks = self._marks_seen = 0
        self._record = -1  # the last one's number
        self._connected: set[str] = set()
        self._loaded: list[str] = []  # modules
        self.endpoints: dict[str, Endpoint] = {}  # plugged in, by name: ep0, ep1, ...
        self._slots, self._faults = slots, faults
        modules = _in_guest(built.modules[0].parent)
        self._append = f"NYMPH_IMAGE={image} NYMPH_MODULES={modules} {append}"
        self._folder, self._lock = claim(name)
        self._ram, self._size = os.memfd_create("guest-ram"), size
        os.ftruncate(self._ram, size)
        (self._folder / "console.log").touch()
        self._running = (self._folder / "running").open("w")  # locked as long as the guest runs
        fcntl.flock(self._running, fcntl.LOCK_EX)
        self._tidy = subprocess.Popen(
            ["sh", "-c", 'read -r _; rm -rf "$1"', "tidy", self._folder],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            started = time.monotonic()
            self._start(built.kernel, disk, accelerator)
            self.qmp("qmp_capabilities")
            self._wait_for(lambda: self._ready)
            self.boot_seconds = time.monotonic() - started
            self.state = State(
                name, os.getpid(), kernel, accelerator, memory, self._ask_port(), str(disk.folder), "running"
            )
            self.state.write()
            self.sync()  # complaints count from here on
            for module in slots.modules:
                self.run(["modprobe", module], check=False)  # a debug kernel may have no such driver
            if image == "systemd":  # which loaded them as it booted
                self._loaded = [module.stem for module in built.modules]
            else:
                self.load(*built.modules)
        except BaseException:
            self.close()
            raise

    def _start(self, kernel: kernels.Kernel, disk: root.Root, accelerator: str) -> None:
        """Start the endpoints, QEMU, and the thread that watches it."""
        for name in self._slots.buses:
            self._start_endpoint(name)
        self._agent, agent = socket.socketpair()
        ours, qmp = socket.socketpair()
        ours.settimeout(QMP_SECONDS)
        self._qmp_socket, self._qmp, self._qmp_in_use = ours, ours.makefile("r"), threading.Lock()
        files = {"ram": self._ram, "agent": agent.fileno(), "qmp": qmp.fileno()}
        try:
            with (self._folder / "qemu.log").open("w") as log:
                self._qemu = start(
                    self._qemu_command(kernel, disk, accelerator, **files),
                    stdout=log,
                    stderr=log,
                    pass_fds=tuple(files.values()),
                )
        finally:
            agent.close()
            qmp.close()
        most = resource.prlimit(self._qemu.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(self._qemu.pid, resource.RLIMIT_NOFILE, (most, most))  # see _occupy()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _qemu_command(
        self, kernel: kernels.Kernel, disk: root.Root, accelerator: str, *, ram: int, agent: int, qmp: int
    ) -> list[str]:
        """QEMU's command line; `ram`, `agent` and `qmp` are open files it inherits."""
        append = self.arch.append + (self.arch.emulated if accelerator == "tcg" else "")
        options = {
            "accel": accelerator,
            "cpu": "host" if accelerator == "kvm" else self.arch.cpu,
            "smp": "2",
            "m": f"{self._size >> 20}M",
            # In a file, though one without a name, so that a device model can share it.
            "object": f"memory-backend-file,id=ram,size={self._size},mem-path=/proc/self/fd/{ram},share=on",
            "machine": f"{self.arch.machine},memory-backend=ram",
            "display": "none",
            "kernel": str(kernel.image),
            "initrd": str(kernel.initramfs()),
            "append": f"console={self.arch.console} {CMDLINE} {append}"
            f"NYMPH_ACCEL={accelerator} NYMPH_ARCH={self.arch.name} {self._append}",
            "serial": f"file:{self._folder / 'console.log'}",
            "mon": "chardev=qmp,mode=control",
            "action": "panic=exit-failure,reboot=shutdown",
        }
        several = [
            ("blockdev", f"driver=file,node-name=disk,filename={disk.image},read-only=on"),
            ("device", "virtio-blk-pci,drive=disk"),
            ("chardev", f"socket,id=qmp,fd={qmp}"),
            ("chardev", f"socket,id=agent,fd={agent}"),
            ("device", "virtio-serial-pci"),
            ("device", "virtserialport,chardev=agent"),
            ("netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"),
            ("device", "virtio-net-pci,netdev=net,romfile="),
            ("virtfs", f"local,mount_tag=kernel,path={kernel.modules},security_model=none,readonly=on"),
            ("virtfs", f"local,mount_tag=repo,path={CHECKOUT},security_model=none,readonly=on"),
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine and leave nothing of it."""
        self._closing = True
        if hasattr(self, "_qemu"):
            self._qemu.kill()
            self._qemu.wait()
            self._watcher.join()
        for endpoint in self.endpoints.values():
            endpoint.close()
        os.close(self._ram)
        assert self._tidy.stdin
        self._tidy.stdin.close()
        self._tidy.wait()
        self._lock.close()

    def load(self, *modules: Path) -> None:
        """Load modules that build.modules() built for the guest's kernel.

        They get the parameters that the kernel's command line has for them, as pcie_nymph.blake3=portable.
        """
        for module in modules:
            insert = ["sh", "-c", LOAD, "load", _in_guest(module), module.stem]
            done = self.run(insert, check=False)
            if done.returncode:
                log = log_tail(self._folder, 10)
                raise HarnessError(f"the guest's kernel refused {module.name}: {done.stderr.strip()}\n{log}")
            self._loaded.append(module.stem)

    def run(
        self,
        command: Sequence[str],
        *,
        user: str = "root",
        check: bool = True,
        tty: bool = False,
        **kwargs: Any,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in the guest, in the user's home folder, as subprocess.run does.

        tty: the command is to have a terminal. kwargs go to subprocess.run, which captures the output as text
        if they do not say otherwise. Raises CalledProcessError if check and the command fails.
        """
        if not {"stdout", "stderr", "capture_output"} & kwargs.keys():
            kwargs["capture_output"] = True
        done = subprocess.run(self.command(command, user, tty), text=True, **kwargs)
        if done.returncode == 255:  # the command's own, or ssh's because the guest is gone
            self.sync()
        if check:
            done.check_returncode()
        return done

    def command(self, command: Sequence[str], user: str = "root", tty: bool = False) -> list[str]:
        """The command line that runs a command in the guest, over a connection that is open by now."""
        if user not in self._connected:
            connect = self.state.ssh(user, options=("-f", "-N", "-M"))
            with (self._folder / "ssh.log").open("a") as log:  # no pipe: ssh keeps it open in the background
                done = subprocess.run(connect, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            if done.returncode:
                self.sync()
                said = (self._folder / "ssh.log").read_text().strip()
                raise HarnessError(f"SSH into the guest as {user} failed: {said}")
            self._connected.add(user)
        return self.state.ssh(user, command, ["-t"] * tty)

    def forward(self, port: int, preferred: int = 0) -> int:
        """Let a port on the host's loopback lead to the guest's; returns its number, `preferred` if free."""
        for ours in dict.fromkeys((preferred, 0)):
            before = self._forwarded()
            rule = f"hostfwd_add net tcp:127.0.0.1:{ours}-:{port}"
            said = self.qmp("human-monitor-command", **{"command-line": rule})
            if new := self._forwarded() - before:
                return new.pop()[0]
        raise HarnessError(f"QEMU does not forward a port: {said}")

    def copy_in(self, path: str, user: str = "root", to: str = ".") -> None:
        """Copy a file or folder into a folder, or the user's home: a/b to a/b, but ../a/b and /a/b to b."""
        inside = not (os.path.isabs(path) or ".." in Path(path).parts)
        parent, name = (".", path) if inside else os.path.split(os.path.abspath(path))
        pack = [tool("tar"), "-C", parent, "--exclude=__pycache__", "-cf", "-", name]
        unpack = self.command(["tar", "-C", to, "--no-same-owner", "-xf", "-"], user)
        self._pipe(pack, unpack, f"copying {path} to the guest")

    def copy_out(self, path: str, user: str = "root") -> None:
        """Copy a folder below the user's home, if it is there, to the same path on the host."""
        if self.run(["test", "-d", path], user=user, check=False).returncode == 0:
            pack = self.command(["tar", "-cf", "-", path], user)
            self._pipe(pack, [tool("tar"), "--no-same-owner", "-xf", "-"], f"copying {path} from the guest")

    def _pipe(self, pack: list[str], unpack: list[str], doing: str) -> None:
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as packer:
            unpacked = subprocess.run(unpack, stdin=packer.stdout)
        if packer.returncode or unpacked.returncode:
            self.sync()
            raise HarnessError(f"{doing} failed")

    def wait(self) -> NoReturn:
        """Wait until the machine is lost, and raise VMLost."""
        self._wait_for(lambda: False)
        raise AssertionError

    def sync(self) -> None:
        """Return once the agent has sent all that the guest's kernel logged so far."""
        with self._changed:
            self._marks += 1
            mark = self._marks
        with contextlib.suppress(OSError):  # then the watcher knows more
            self._agent.sendall(f"mark {mark}\n".encode())
        self._wait_for(lambda: self._marks_seen >= mark)

    def complaints(self) -> list[str]:
        """What the guest's kernel logged at level warning or worse since the last call."""
        self.sync()
        with self._changed:
            complaints, self._complaints = self._complaints, []
        return complaints

    def taint(self) -> int:
        """What taints the guest's kernel, apart from our module's being out of tree and unsigned."""
        return int(self.run(["cat", "/proc/sys/kernel/tainted"]).stdout) & ~OUR_TAINT

    def leaks(self) -> list[str]:
        """What of loaded modules' memory nobody points to any more, as a debug kernel's kmemleak has it."""
        found = re.split(r"^(?=unreferenced)", self.run(["sh", "-ec", KMEMLEAK]).stdout, flags=re.MULTILINE)
        # In a stack trace, the names of a module's functions end with its own.
        return [leak for leak in found if any(f"[{module}]" in leak for module in self._loaded)]

    def gcov(self) -> bytes:
        """A tar with the .gcda files of our module: how often its code ran. Debug kernels only."""
        return subprocess.run(self.command(["sh", "-ec", GCOV]), stdout=subprocess.PIPE, check=True).stdout

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
            except HarnessError as refused:  # as busy, also for a while after the guest let go of the device
                if self.lost:
                    raise self.lost from None
                if time.monotonic() > deadline:
                    message = f"{name} is still in its slot after {UNPLUG_SECONDS} s: {refused}"
                    raise HarnessError(message) from None
            time.sleep(0.002)
        self._occupy(before)
        endpoint.close()
        del self.endpoints[name]

    def _qemus_files(self) -> set[int]:
        try:
            return {int(number) for number in os.listdir(f"/proc/{self._qemu.pid}/fd")}
        except OSError:
            self.sync()  # which says how it was lost
            raise

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

    def _ask_port(self) -> int:
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

    def _wait_for(self, happened: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.lost or happened())
            if self.lost:
                raise self.lost

    def _watch(self) -> None:
        """Read what the agent sends until it or the guest is gone. Runs in a thread."""
        heard = time.monotonic()
        rest = b""
        self._agent.settimeout(PING_SECONDS)
        while True:
            try:
                data = self._agent.recv(1 << 16)
            except TimeoutError:
                if time.monotonic() - heard > (self._hang_seconds if self._ready else BOOT_SECONDS):
                    self._ask_where_it_hangs()
                    return self._lose("hung")
                with contextlib.suppress(OSError):  # then recv is next to know
                    self._agent.sendall(b"ping\n")
                continue
            except ConnectionError:
                data = b""
            if not data:
                self._qemu.wait()
                panic = b"Kernel panic - not syncing" in (self._folder / "console.log").read_bytes()
                return self._lose("panicked" if panic else "died")
            heard = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            with self._changed:
                for line in lines:
                    self._hear(line.decode(errors="replace"))
                self._changed.notify_all()

    def _hear(self, line: str) -> None:
        if line == "ready":
            self._ready = True
        elif (record := parse(line)) and record[1] > self._record:
            priority, self._record, text = record
            if mark := re.fullmatch(r"nymph-vm: mark (\d+)", text):
                self._marks_seen = int(mark[1])
            elif self._marks_seen and is_complaint(priority, text):
                self._complaints.append(text)
                self._on_complaint(text)

    def _ask_where_it_hangs(self) -> None:
        """Have the kernel, if it can, panic and so log what a CPU was doing."""
        with contextlib.suppress(HarnessError, subprocess.TimeoutExpired):
            # In an NMI, the kernel tells the machine of a panic before it writes its log.
            self.qmp("set-action", panic="none")
            self.qmp("inject-nmi")
            self._qemu.wait(NMI_SECONDS)

    def _lose(self, how: str) -> None:
        """The machine is gone: see that it is, and tell whoever waits or asks."""
        self._qemu.kill()
        self._qemu.wait()
        with self._changed:
            self.lost = VMLost(how, log_tail(self._folder), self)
            if hasattr(self, "state") and not self._closing:
                self.state = replace(self.state, state=how)
                self.state.write()
            self._running.close()
            self._changed.notify_all()


def _bytes(memory: str) -> int:
    found = re.fullmatch(r"([1-9]\d*)([MG])", memory)
    if not found:
        raise HarnessError(f"{memory!r} is no amount of memory: say 512M or 4G")
    return int(found[1]) << {"M": 20, "G": 30}[found[2]]


def _in_guest(path: Path) -> str:
    """Where the guest has a file or folder of this checkout."""
    return f"/nymph/repo/{path.relative_to(CHECKOUT)}"


def _endpoint_device(name: str, bus: str) -> dict[str, Any]:
    """QEMU's device for an endpoint, `driver` first."""
    identity = {"driver": "ivshmem-doorbell", "id": name, "chardev": name}
    # As many as either side has doorbells: QEMU 7.2 writes past its array for one that is rung beyond.
    return {**identity, "vectors": CHANNELS + 1, "bus": bus}


def _option(device: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in device.items()).removeprefix("driver=")
