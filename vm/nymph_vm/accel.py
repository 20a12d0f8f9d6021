# SPDX-License-Identifier: MIT
"""What runs a guest: the host itself (native), KVM or TCG.

That /dev/kvm opens says little: there are machines where guests hang then. So one is tried.
"""

import json
import os
import subprocess

from nymph_vm.host import cache_folder, call, step, tool
from nymph_vm.kernels import Kernel

KVM_DEVICE = "/dev/kvm"
PROBE_SECONDS = 15


def choose(kernel: Kernel) -> str:
    """Say "native" of user-mode Linux, else "kvm" if a guest runs under it, else "tcg".

    KVM is tried once per QEMU, host and access to /dev/kvm.
    """
    if kernel.arch.is_native:
        return "native"
    if not kernel.arch.is_host:
        return "tcg"
    may_open = os.access(KVM_DEVICE, os.R_OK | os.W_OK)
    known_by = {
        "qemu": call([kernel.arch.qemu, "--version"], "asking QEMU for its version").splitlines()[0],
        "host": os.uname().release,
        "may_open": may_open,
    }
    memory = cache_folder() / "accel.json"
    if memory.exists():
        known = json.loads(memory.read_text())
        if known["known_by"] == known_by:
            return str(known["accel"])
    accel = "kvm" if may_open and _guest_runs(kernel) else "tcg"
    new = memory.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps({"accel": accel, "known_by": known_by}))
    new.rename(memory)
    return accel


def _guest_runs(kernel: Kernel) -> bool:
    """Boot a kernel without a disk under KVM: it panics, and -no-reboot ends QEMU, in a second or never."""
    command = [tool("setpriv"), "--pdeathsig=KILL", tool(kernel.arch.qemu), "-accel", "kvm"]
    command += ["-cpu", "host", "-smp", "2", "-m", "256M", "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(kernel.image), "-append", "panic=-1"]
    with step("trying whether a guest runs under KVM"):
        try:
            return subprocess.run(command, timeout=PROBE_SECONDS, capture_output=True).returncode == 0
        except subprocess.TimeoutExpired:
            return False
