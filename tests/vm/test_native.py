# SPDX-License-Identifier: MIT
"""A native guest (--arch um): what is its own; the rest of these tests take --arch um, too."""

import os
from collections.abc import Iterator

import pytest
from nymph_vm import kernels
from nymph_vm.arch import UM
from nymph_vm.machine import Machine

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def native() -> Iterator[Machine]:
    with Machine(f"test-native-{os.getpid()}", kernel=kernels.named(None, UM.name)) as machine:
        yield machine


def test_it_is_user_mode_linux_with_our_module(native: Machine) -> None:
    assert native.state.accel == "native"
    release = kernels.prepare(native.state.kernel).release
    assert native.run(["uname", "-r"]).stdout.strip() == release
    assert native.run(["nproc"]).stdout.strip() == str(len(os.sched_getaffinity(0)))
    assert (native.complaints(), native.taint()) == ([], 0)


def test_blake3_has_the_vectors_of_the_host(native: Machine) -> None:
    chosen = native.run(["cat", "/sys/class/misc/pcie_nymph/blake3"]).stdout.strip()
    assert chosen in ("avx512", "avx2", "sse41")


def test_much_goes_both_ways_over_ssh(native: Machine) -> None:
    data = os.urandom(1 << 20).hex()
    assert native.run(["cat"], input=data).stdout == data
