# SPDX-License-Identifier: MIT
"""What the rest needs from the host: folders, programs, locks, progress, and errors that say what to do."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

CHECKOUT = Path(__file__).resolve().parents[2]  # of pynymph, if nymph-vm is not a wheel that was installed

console = Console(stderr=True, highlight=False, soft_wrap=True)

# The program, and the Debian package that has it.
PACKAGES = {
    "apt-cache": "apt",
    "apt-config": "apt",
    "apt-get": "apt",
    "cpio": "cpio",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "mmdebstrap": "mmdebstrap",
    "perl": "perl",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "sqfstar": "squashfs-tools",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "patch": "patch",
    "tar": "tar",
    "zstd": "zstd",
}


class HarnessError(Exception):
    """Something the user can put right; the message says what was wrong and what to do."""

    exit_status = 125


def tool(name: str) -> str:
    """The path of a program. Also looks in /sbin, which is not on an ordinary user's PATH."""
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path is None:
        raise HarnessError(f"{name} not found: `sudo apt-get install {PACKAGES[name]}`")
    return path


def call(command: Sequence[str | Path], doing: str, allowed: Sequence[int] = (0,), **kwargs: Any) -> str:
    """Run a program to its end and return its output; if it fails, a HarnessError with what it said last."""
    kwargs.setdefault("stdout", subprocess.PIPE)
    done = subprocess.run([tool(str(command[0])), *command[1:]], stderr=subprocess.PIPE, text=True, **kwargs)
    if done.returncode not in allowed:
        said = "\n".join((done.stderr or "").strip().splitlines()[-15:])
        raise HarnessError(f"{doing} failed: {command[0]} exited with status {done.returncode}\n{said}")
    return done.stdout or ""


def start(command: Sequence[str], **kwargs: Any) -> "subprocess.Popen[bytes]":
    """Start a program, without input, that is killed when this process ends, however it does.

    To the kernel, it is the thread that started it that must not end: the caller's might.
    """
    command = [tool("setpriv"), "--pdeathsig=KILL", *command]

    def run() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **kwargs)

    return _starter.submit(run).result()


_starter = ThreadPoolExecutor(1)


@contextlib.contextmanager
def step(doing: str) -> Iterator[None]:
    """Show what is being done while it lasts, and how long it took."""
    start = time.monotonic()
    if not console.is_terminal:
        console.print(f"nymph-vm: {doing} ...")
    with console.status(f"{doing} ..."):
        yield
    console.print(f"nymph-vm: {doing}: {time.monotonic() - start:.1f} s")


def cache_folder() -> Path:
    """Where what was downloaded and built from it is kept."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nymph-vm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runtime_folder() -> Path:
    """Where each running machine has its folder. Short: paths of sockets may have 107 bytes."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "nymph-vm" if base else Path(f"/tmp/nymph-vm-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise HarnessError(f"{folder} belongs to somebody else: set XDG_RUNTIME_DIR to a folder of yours")
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file `path` as a lock; who comes second waits."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache. If it is not there, make() fills an empty one first, once.

    A folder that make() did not finish is never seen under its name.
    """
    folder = cache_folder() / name
    if folder.exists():
        return folder
    with locked(cache_folder() / f"{name}.lock"):
        if folder.exists():
            return folder
        for stale in cache_folder().glob(f"{name}.new-*"):  # of somebody killed: we hold the lock
            shutil.rmtree(stale)
        new = Path(tempfile.mkdtemp(prefix=f"{name}.new-", dir=cache_folder()))
        new.chmod(0o755)
        try:
            make(new)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return folder
