# SPDX-License-Identifier: MIT
"""The gates: a hang is noticed, and pytest is told what the guest's kernel thinks."""

import os

import pytest
from nymph_vm import kernels
from nymph_vm.host import cache_folder
from nymph_vm.machine import Machine
from nymph_vm.state import VMLost


@pytest.mark.parametrize("arch", ["amd64", pytest.param("um", marks=pytest.mark.native)])
def test_hang_is_detected(arch: str) -> None:
    kernel = kernels.named(None, arch)
    with Machine(f"test-hang-{os.getpid()}", kernel=kernel, memory="1G", hang_seconds=5) as machine:
        machine.run(["pkill", "-STOP", "-P", "1", "-x", "guest-init"])  # nobody answers the pings any more
        with pytest.raises(VMLost, match="the guest hung") as lost:
            machine.run(["sleep", "1000"])
    assert lost.value.exit_status == 122
    assert "nymph-vm: mark" in str(lost.value)  # the kernel log
    if arch == "um":
        assert "sysrq triggered crash" in str(lost.value)  # it was asked where it hangs


HOST = """
def complain(vm):
    vm.run(["sh", "-c", "echo '<3>planted by the host' > /dev/kmsg"])

def test_clean(vm):
    vm.run(["true"])

def test_complaint(vm):
    complain(vm)

def test_guests(run_guest_tests):
    run_guest_tests("root", "guest")

def test_panic(vm):
    vm.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"])

def test_never_run():
    pass
"""

GUEST = """
import pytest

def complain(level):
    with open("/dev/kmsg", "w") as log:
        log.write(f"<{level}>planted in the guest\\n")

def test_clean():
    complain(5)

def test_complaint():
    complain(4)

@pytest.fixture
def untidy():
    yield
    complain(4)

def test_tear_down(untidy):
    pass

def test_wrong():
    assert 1 == 2
"""


CACHE = cache_folder().parent  # found now: pytester moves the home folder


def test_complaints_fail_their_tests(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    pytester.makepyfile(test_host=HOST)
    (pytester.path / "guest").mkdir()
    (pytester.path / "guest/test_inner.py").write_text(GUEST)
    result = pytester.runpytest_subprocess("-v", "-rA", "-p", "no:cacheprovider", "test_host.py")
    assert result.ret == 121
    result.stdout.fnmatch_lines(
        [
            "PASSED test_host.py::test_clean",
            "PASSED root:guest/test_inner.py::test_clean",
            "PASSED root:guest/test_inner.py::test_tear_down",
            "ERROR root:guest/test_inner.py::test_tear_down - Failed: the kernel complained:*",
            "FAILED test_host.py::test_complaint - Failed: the guest's kernel complained:*",
            "FAILED root:guest/test_inner.py::test_complaint - Failed: the kernel complained:*",
            "FAILED root:guest/test_inner.py::test_wrong - assert 1 == 2",
            "FAILED test_host.py::test_guests - Failed: the guest's kernel complained:*",
            "*no virtual machine: the guest's kernel panicked*",
        ],
    )
    result.assert_outcomes(passed=3, failed=4, errors=1)
