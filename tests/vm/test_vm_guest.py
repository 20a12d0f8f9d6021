# SPDX-License-Identifier: MIT
"""What a guest of the harness offers, on every kernel as Debian ships it."""

import os
from collections.abc import Iterator

import pytest
from nymph_vm import build, kernels
from nymph_vm.arch import AMD64
from nymph_vm.machine import Machine

OPEN = "import os; os.open('/dev/pcie_nymph', os.O_RDWR)"
COPY = """
import pynymph
to = bytearray(4)
with pynymph.Ring() as ring:
    ring.copy(src=b"abcd", dst=to, verify=True)
print(to)
"""


def test_udev_gives_the_device_to_the_group_nymph(vm: Machine) -> None:
    assert vm.run(["stat", "-c", "%U %G %a", "/dev/pcie_nymph"]).stdout == "root nymph 660\n"


@pytest.mark.parametrize("user", ["root", "nymph-user"])
def test_group_nymph_may_open_the_device(vm: Machine, user: str) -> None:
    vm.run(["python3", "-c", OPEN], user=user)


def test_other_users_may_not_open_the_device(vm: Machine) -> None:
    done = vm.run(["python3", "-c", OPEN], user="other-user", check=False)
    assert done.returncode == 1
    assert "PermissionError: [Errno 13]" in done.stderr


@pytest.mark.parametrize("user", ["root", "nymph-user", "other-user"])
def test_users_have_home_limits_and_pynymph(vm: Machine, user: str) -> None:
    said = vm.run(["sh", "-c", "id -un; pwd; ulimit -l; touch here; echo $NYMPH_ACCEL"], user=user).stdout
    home = "/root" if user == "root" else f"/home/{user}"
    assert said.splitlines() == [user, home, "8192", vm.state.accel]
    assert vm.run(["python3", "-c", "import pynymph; print(pynymph.__file__)"], user=user).stdout.startswith(
        f"/nymph/repo/build/python/{vm.arch.debian}/"
    )


def test_ordinary_users_can_read_the_kernel_log(vm: Machine) -> None:
    assert "nymph_endpoint" in vm.run(["dmesg"], user="nymph-user").stdout


def test_module_loads_and_unloads(vm: Machine) -> None:
    vm.run(["rmmod", "pcie_nymph", "nymph_endpoint"])
    assert vm.run(["test", "-e", "/dev/pcie_nymph"], check=False).returncode == 1
    vm.load(*build.prepare(vm.state.kernel).modules)
    assert vm.run(["stat", "-c", "%G %a", "/dev/pcie_nymph"]).stdout == "nymph 660\n"


def test_commands_return_output_and_status(vm: Machine) -> None:
    done = vm.run(["sh", "-c", 'cat; echo "$1" >&2; exit 3', "sh", "a b"], check=False, input="in")
    assert (done.stdout, done.stderr, done.returncode) == ("in", "a b\n", 3)
    assert vm.run(["sh", "-c", "exit 255"], check=False).returncode == 255


@pytest.fixture(scope="module", params=[name for name in kernels.stock() if name != kernels.DEFAULT])
def other_kernel(request: pytest.FixtureRequest) -> Iterator[Machine]:
    if request.config.getoption("arch") != AMD64.name:
        pytest.skip("the other kernels are for amd64")
    with Machine(f"{request.param[:20].replace('.', '-')}-{os.getpid()}", kernel=request.param) as machine:
        yield machine


def test_other_kernels_boot_and_copy(other_kernel: Machine) -> None:
    release = kernels.prepare(other_kernel.state.kernel).release
    assert other_kernel.run(["uname", "-r"]).stdout.strip() == release
    assert other_kernel.run(["python3", "-c", COPY]).stdout == "bytearray(b'abcd')\n"
    assert (other_kernel.complaints(), other_kernel.taint()) == ([], 0)
