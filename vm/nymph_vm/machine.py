# SPDX-License-Identifier: MIT
"""One virtual machine: QEMU or user-mode Linux, the agent in the guest, and SSH.

The agent (guest/init) is at the other end of a serial port. It says when the guest is ready, answers pings,
and sends every record of the kernel log. A thread reads it, so that a panic, a hang and a complaint of the
kernel are known at once.

Nothing outlives the process that made a Machine: QEMU gets SIGKILL when the thread that started it ends (so
make Machines in the main thread), SSH ends when QEMU does, and a shell with a pipe to us removes the folder.
"""

import contextlib
import fcntl
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

from nymph_vm import accel, build, kernels, project, root, uml
from nymph_vm.arch import Arch
from nymph_vm.endpoint import Endpoint
from nymph_vm.faults import Fault
from nymph_vm.host import HarnessError, tool
from nymph_vm.kmsg import is_complaint, parse
from nymph_vm.qemu import Qemu
from nymph_vm.slots import Slots, usual
from nymph_vm.state import State, VMLost, claim, log_tail

BOOT_SECONDS = 120  # a sanitizer kernel under TCG on a busy host needs most of it
PING_SECONDS = 2
HANG_SECONDS = 30  # more than the 22 s after which a kernel finds itself locked up, and panics

CMDLINE = (
    "quiet net.ifnames=0 printk.devkmsg=on oops=panic panic=-1 softlockup_panic=1 "
    "cryptomgr.notests "
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
    """A running guest with the project's modules loaded. Use it in a with statement, or call close().

    All its methods raise VMLost once the guest is lost.
    """

    def __init__(
        self,
        name: str,
        *,
        kernel: str = kernels.DEFAULT,
        memory: str = "4G",
        image: str = root.PLAIN,
        source: Path | None = None,
        slots: Slots | None = None,
        faults: Sequence[Fault] = (),
        pci: Sequence[str] = (),
        append: str = "",
        hang_seconds: float = HANG_SECONDS,
        on_complaint: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Build what is missing, boot, and load the module. Raises HarnessError if that fails.

        memory: "512M" or "4G". image: a key of root.IMAGES; in that with systemd, nymphd runs. source: see
        build.prepare(). slots: where endpoints are; None: where they usually are. faults:
        those that each begins with. pci: PCI functions of a native guest, see nymph_vm.pci. append:
        more for the kernel's command line. hang_seconds: how long the guest may be silent. on_complaint:
        called with each complaint of the guest's kernel as it comes, in a thread.
        """
        size = _bytes(memory)
        arch = kernels.KERNELS[kernel].arch
        # Before anything that takes long.
        ours = project.here()
        if slots is None:
            slots = usual(arch, ours.endpoints)
        if arch.is_native:
            uml.check(slots, pci)
        elif pci:
            raise HarnessError("PCI functions in Python are for native guests: say --arch um")
        else:
            tool(arch.qemu)
        built = build.prepare(kernel, source)
        disk = root.prepare(arch, image)
        accelerator = accel.choose(built.kernel)
        self.arch: Arch = arch
        self._project = ours
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
        self._folder, self._lock = claim(name)
        modules = ours.in_guest(built.modules[0].parent)
        # What runs the guest.
        append = (
            f"{CMDLINE} NYMPH_ACCEL={accelerator} NYMPH_ARCH={arch.debian} NYMPH_IMAGE={image} "
            f"NYMPH_MODULES={modules} {append}"
        )
        self.vmm: Qemu | uml.Uml
        if arch.is_native:
            self.vmm = uml.Uml(built.kernel, disk, self._folder, size, append, slots, faults, pci)
        else:
            self.vmm = Qemu(built.kernel, disk, self._folder, size, append, accelerator, slots, faults)
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
            self.vmm.start()
            self._watcher = threading.Thread(target=self._watch)
            self._watcher.start()
            self._wait_for(lambda: self._ready)
            self.boot_seconds = time.monotonic() - started
            self.state = State(
                name, os.getpid(), kernel, accelerator, memory, self.vmm.port, str(disk.folder), "running"
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine and leave nothing of it."""
        self._closing = True
        self.vmm.close()
        if hasattr(self, "_watcher"):
            self._watcher.join()
        assert self._tidy.stdin
        self._tidy.stdin.close()
        self._tidy.wait()
        self._lock.close()

    def load(self, *modules: Path) -> None:
        """Load modules that build.modules() built for the guest's kernel.

        They get the parameters that the kernel's command line has for them, as pcie_nymph.blake3=portable.
        """
        for module in modules:
            insert = ["sh", "-c", LOAD, "load", self._project.in_guest(module), module.stem]
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

    def copy_in(self, path: str, user: str = "root", to: str = ".") -> None:
        """Copy a file or folder into a folder, or the user's home: a/b to a/b, but ../a/b and /a/b to b.

        If it is a link, what is behind that is copied, under the link's name; links in a folder stay links.
        """
        inside = not (os.path.isabs(path) or ".." in Path(path).parts)
        parent, name = (".", path) if inside else os.path.split(os.path.abspath(path))
        pack = [tool("tar"), "-C", parent, "--exclude=__pycache__", "-cf", "-"]
        pack += [f"{name}/."] if os.path.isdir(path) else ["--dereference", name]
        unpack = self.command(["tar", "-C", to, "--no-same-owner", "-xf", "-"], user)
        self._pipe(pack, unpack, f"copying {path} to the guest")

    def copy_out(self, path: str, user: str = "root") -> None:
        """Copy a folder below the user's home, if it is there, to the same path on the host."""
        if self.run(["test", "-d", path], user=user, check=False).returncode == 0:
            pack = self.command(["tar", "-cf", "-", f"{path}/."], user)
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
            self.vmm.agent.sendall(f"mark {mark}\n".encode())
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

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """Those that are plugged in, by name: ep0, ep1, ..."""
        return self.vmm.endpoints

    def plug(self, name: str) -> None:
        """Put an endpoint, a new one, into a slot that unplug() emptied. Raises HarnessError."""
        with self._unless_lost():
            self.vmm.plug(name)

    def unplug(self, name: str) -> None:
        """Take an endpoint out of its slot, as its driver in the guest agrees to. Raises HarnessError."""
        with self._unless_lost():
            if isinstance(self.vmm, uml.Uml):
                self.vmm.unplug(name, self.run)
            else:
                self.vmm.unplug(name)

    def forward(self, port: int, preferred: int = 0) -> int:
        """Let a port on the host's loopback lead to the guest's; returns its number, `preferred` if free."""
        with self._unless_lost():
            return self.vmm.forward(port, preferred)

    @contextlib.contextmanager
    def _unless_lost(self) -> Iterator[None]:
        """An error there is VMLost, if the machine is."""
        try:
            yield
        except (HarnessError, OSError):
            assert self.vmm.process
            if self.vmm.process.poll() is not None:
                self.sync()  # which says how it was lost
            raise

    def _wait_for(self, happened: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.lost or happened())
            if self.lost:
                raise self.lost

    def _watch(self) -> None:
        """Read what the agent sends until it or the guest is gone. Runs in a thread."""
        heard = time.monotonic()
        rest = b""
        self.vmm.agent.settimeout(PING_SECONDS)
        while True:
            try:
                data = self.vmm.agent.recv(1 << 16)
            except TimeoutError:
                if time.monotonic() - heard > (self._hang_seconds if self._ready else BOOT_SECONDS):
                    self.vmm.ask_where_it_hangs()
                    return self._lose("hung")
                with contextlib.suppress(OSError):  # then recv is next to know
                    self.vmm.agent.sendall(b"ping\n")
                continue
            except ConnectionError:
                data = b""
            if not data:
                assert self.vmm.process
                self.vmm.process.wait()
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

    def _lose(self, how: str) -> None:
        """The machine is gone: see that it is, and tell whoever waits or asks."""
        assert self.vmm.process
        self.vmm.process.kill()
        self.vmm.process.wait()
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
