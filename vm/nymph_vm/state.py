# SPDX-License-Identifier: MIT
"""What every process of this user can know of a machine: its folder, the way in, and how it was lost."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from nymph_vm import root
from nymph_vm.host import HarnessError, runtime_folder, tool

# Exit statuses of nymph-vm. How a machine can be lost: the status, and what to say.
COMPLAINED = 120
LOST = {
    "panicked": (121, "the guest's kernel panicked"),
    "hung": (122, "the guest hung: it does not answer"),
    "died": (123, "QEMU or user-mode Linux ended"),
}


class VMLost(HarnessError):
    """The machine is gone. `how` is a key of LOST; `machine` is the Machine, if this process has it."""

    def __init__(self, how: str, log: str, machine: Any = None) -> None:
        self.exit_status, meaning = LOST[how]
        super().__init__(f"{meaning}; the end of its log:\n{log}\nnymph-vm: {meaning}")
        self.how = how
        self.machine = machine


@dataclass(frozen=True)
class State:
    """state.json in a machine's folder."""

    name: str
    pid: int
    kernel: str
    accel: str
    memory: str
    port: int
    root: str
    state: str  # "running", or a key of LOST

    @classmethod
    def read(cls, name: str) -> Self:
        try:
            return cls(**json.loads((runtime_folder() / name / "state.json").read_text()))
        except FileNotFoundError:
            raise HarnessError(f"there is no machine {name!r}: see nymph-vm status") from None

    def write(self) -> None:
        new = self.folder / "state.json.new"
        new.write_text(json.dumps(asdict(self)))
        new.rename(self.folder / "state.json")

    @property
    def folder(self) -> Path:
        return runtime_folder() / self.name

    def ssh(self, user: str, command: Sequence[str] = (), options: Sequence[str] = ()) -> list[str]:
        """Make the command line that runs a command in the guest, in the user's home; no command: a shell.

        Its exit status is the command's, or 128 + n if signal n ended the command, as shells have it.
        """
        keys = root.Root(Path(self.root))
        settings = {
            "ControlPath": f"{self.folder}/ssh-{user}",  # all of one user's commands share a connection
            "IdentityFile": str(keys.key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(keys.known_hosts),
            "HostKeyAlias": "nymph",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "KexAlgorithms": "curve25519-sha256",  # the default is heavy on an emulated CPU
        }
        how = [f"-o{key}={value}" for key, value in settings.items()]
        # The shell stays: SSH has no status for a command that dies of a signal, and would exit with 255.
        what = ["--", f"{shlex.join(command)}; exit $?"] if command else []
        return [tool("ssh"), "-F", "none", "-p", str(self.port), *how, *options, f"{user}@127.0.0.1", *what]

    def loss(self) -> HarnessError:
        """Wait until the machine is lost, and say how: a VMLost, unless somebody has taken it down."""
        with contextlib.suppress(FileNotFoundError, HarnessError):  # with the machine, its folder goes
            with (self.folder / "running").open() as running:
                fcntl.flock(running, fcntl.LOCK_SH)
            if (now := State.read(self.name).state) in LOST:
                return VMLost(now, log_tail(self.folder))
        return HarnessError(f"the machine {self.name!r} was taken down meanwhile")

    def end(self) -> None:
        """End the machine and the process it belongs to; returns when both are gone."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.kill(self.pid, signal.SIGTERM)
                fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(self.folder, ignore_errors=True)  # still there if its process was killed


def states() -> list[State]:
    """All machines of this user."""
    found = []
    for path in sorted(runtime_folder().glob("*/state.json")):
        with contextlib.suppress(HarnessError):  # taken down meanwhile
            found.append(State.read(path.parent.name))
    return found


def claim(name: str) -> tuple[Path, IO[str]]:
    """The folder of a machine to be, and the open file that keeps it ours for as long as we live."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name):
        raise HarnessError(f"{name!r} cannot be a machine's name: use 1 to 32 of a-z, 0-9 and -")
    folder = runtime_folder() / name
    folder.mkdir(exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HarnessError(
            f"there is a machine {name!r} already: end it (nymph-vm down --name {name}) or use another --name"
        ) from None
    return folder, lock


def log_tail(folder: Path, lines: int = 100) -> str:
    """The end of what the console of the machine with that folder showed, and of what QEMU said."""
    logs = [folder / name for name in ("console.log", "qemu.log")]
    text = "".join(log.read_text(errors="replace") for log in logs if log.exists())
    return "\n".join(text.replace("\r", "").splitlines()[-lines:])
