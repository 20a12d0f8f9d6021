# SPDX-License-Identifier: MIT
"""The gates are seen to work: of each bug planted in a debug kernel, they say what it is and where."""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest
from nymph_vm import build, kernels
from nymph_vm.state import LOST

TESTS = """
from nymph_vm import build

def plant(vm):
    vm.load(*build.modules(build.PLANTED, vm.state.kernel))

def commit(vm, bug):
    vm.run(["sh", "-c", f"printf {bug} > /sys/kernel/debug/planted"])
"""

# Two pytests, because each of the last tests here is its machine's end.
HANG = f"""{TESTS}
def test_bugs(vm, run_guest_tests):
    plant(vm)
    run_guest_tests("root", "planted")

def test_hang(vm):
    commit(vm, "hang")
"""
PANIC = f"""{TESTS}
def test_panic(vm):
    plant(vm)
    commit(vm, "panic")
"""

# Which test has to fail, and what has to be said of it.
NAMED = {
    "lock_inversion": r"WARNING: possible circular locking dependency detected.*planted_lock_inversion\+",
    "sleep_under_spinlock": "BUG: sleeping function called from invalid context.*"
    r"planted_sleep_under_spinlock\+",
    "use_after_free": "BUG: KASAN: (slab-)?use-after-free in planted_use_after_free",
    "out_of_bounds": "BUG: KASAN: slab-out-of-bounds in planted_out_of_bounds",
    "double_fetch": "the kernel fetched its argument twice: byte 0 of 12",
    "missing_unpin": r"pages pinned: \d+, and before \d+",
    "bugs": r"memory of a module has leaked.*unreferenced object.*planted_leak\+",
}
ENDS = {
    "hung": (HANG, r"the guest hung.*planted_hang_cpu\+"),
    "panicked": (PANIC, r"the guest's kernel panicked.*planted_panic\+"),
}


@dataclass(frozen=True)
class Outcome:
    """Of one pytest: its exit status, all it wrote, and what its tests failed with ("" if they passed)."""

    status: int
    output: str
    failures: dict[str, str]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    kernel, arch = map(request.config.getoption, ("kernel", "arch"))
    if not kernels.KERNELS[kernels.named(kernel, arch)].debug:
        pytest.skip("needs a kernel with sanitizers: make check, or pytest --kernel debug-6.1")
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(build.PLANTED, folder / "planted")
    return {how: _run(kernel, arch, folder, how, tests) for how, (tests, _) in ENDS.items()}


def _run(kernel: str, arch: str, folder: Path, name: str, tests: str) -> Outcome:
    file, report = folder / f"test_{name}.py", folder / f"{name}.xml"
    file.write_text(tests)
    command = [sys.executable, "-m", "pytest", f"--kernel={kernel}", f"--arch={arch}"]
    command += [f"--junit-xml={report}", str(file)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    failures: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        # The attribute "message" has but the first lines.
        said = [each.text or "" for each in case if each.tag in ("failure", "error")]
        test = case.attrib.get("name", "").removeprefix("test_")  # one that did not come to its end has none
        failures[test] = "\n".join(filter(None, [failures.get(test), *said]))
    return Outcome(done.returncode, done.stdout, failures)


@pytest.mark.parametrize("bug", NAMED)
def test_every_planted_bug_is_named(outcomes: dict[str, Outcome], bug: str) -> None:
    failures = outcomes["hung"].failures
    assert re.search(NAMED[bug], failures[bug], re.DOTALL), failures[bug]


@pytest.mark.parametrize("how", ENDS)
def test_every_end_of_the_guest_is_named(outcomes: dict[str, Outcome], how: str) -> None:
    outcome = outcomes[how]
    assert outcome.status == LOST[how][0]
    assert re.search(ENDS[how][1], outcome.output, re.DOTALL), outcome.output


def test_tests_without_a_bug_pass(outcomes: dict[str, Outcome]) -> None:
    passed = {test for test, said in outcomes["hung"].failures.items() if test and not said}
    assert passed == {"leak", "nothing"}  # and the leak was found when all were done
