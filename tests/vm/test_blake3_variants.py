# SPDX-License-Identifier: MIT
"""What makes the kernel's hashes: every variant that an emulated CPU has, and what can be asked for."""

import re
from collections.abc import Iterator

import pytest
from nymph_vm import build
from nymph_vm.host import CHECKOUT
from nymph_vm.machine import Machine

# What the CPU has to have for each, as /proc/cpuinfo has it.
VARIANTS = {"portable": "", "sse41": "sse4_1", "avx2": "avx2", "avx512": "avx512vl", "neon": "asimd"}
SHOWN = "/sys/class/misc/pcie_nymph/blake3"
# Many threads, because a variant's registers are the CPU's, and belong to whoever runs on it.
HASHES = """
import os, threading, pynymph
from pynymph import digest

def hashes(seed):
    with pynymph.Ring(engine="cpu") as ring:
        for length in [*range(1 + seed, 6000, 397), 16384, 65536, 65537, 300_000 + seed]:
            data = os.urandom(length)
            for zero_copy in (False, True):
                assert ring.digest(src=data, zero_copy=zero_copy) == digest.payload(data), length
        right.append(seed)

right = []
threads = [threading.Thread(target=hashes, args=[seed]) for seed in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(right))
"""


@pytest.fixture
def module(vm: Machine) -> Iterator[str]:
    """Its path in the guest; it is loaded again as it was in the end."""
    (path,) = (path for path in build.prepare(vm.state.kernel).modules if path.stem == "pcie_nymph")
    vm.run(["rmmod", "pcie_nymph"])
    yield f"/nymph/repo/{path.relative_to(CHECKOUT)}"
    vm.run(["rmmod", "pcie_nymph"], check=False)
    vm.load(path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_hashes_right(vm: Machine, module: str, variant: str) -> None:
    flag = VARIANTS[variant]
    if flag and flag not in vm.run(["cat", "/proc/cpuinfo"]).stdout.split():
        pytest.skip(f"the guest's CPU has no {flag}")
    vm.run(["sh", "-c", f"insmod {module} blake3={variant} && udevadm settle"])
    assert vm.run(["cat", SHOWN]).stdout == f"{variant}\n"
    assert vm.run(["python3", "-c", HASHES]).stdout == "4\n"


def test_unknown_variant_means_portable(vm: Machine, module: str) -> None:
    vm.run(["sh", "-c", f"insmod {module} blake3=abacus && udevadm settle"])
    assert vm.run(["cat", SHOWN]).stdout == "portable\n"
    said = vm.run(["dmesg"]).stdout
    assert "pcie_nymph: no BLAKE3 with abacus here: portable C is used" in said


def test_asked_variant_is_chosen(vm: Machine) -> None:
    """The one that the kernel's command line asks for, if it does."""
    asked = re.search(r"\bpcie_nymph\.blake3=(\S+)", vm.run(["cat", "/proc/cmdline"]).stdout)
    chosen = vm.run(["cat", SHOWN]).stdout.strip()
    assert chosen in ([asked[1]] if asked else VARIANTS)
