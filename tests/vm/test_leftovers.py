# SPDX-License-Identifier: MIT
"""tests/guest/leftovers.c: a process with transfers queued and running ends in every way, many times."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nymph_vm import build
from nymph_vm.faults import Fault
from nymph_vm.machine import Machine

SOURCE = Path(__file__).parents[1] / "guest" / "leftovers.c"
SKIPPED = 77

# How often each; the second number is for --long.
ROUNDS = {
    "kill": (20, 1000),
    **dict.fromkeys(["exit", "close", "fork", "exec", "pass"], (5, 50)),
    **dict.fromkeys(["unmap", "truncate", "remap", "pageout"], (5, 50)),
    **dict.fromkeys(["userfaultfd", "fuse", "rmmod"], (5, 50)),
    "suspend": (2, 10),
    "takeover": (20, 500),
}

FOR_ROOT = ("userfaultfd", "fuse", "rmmod", "suspend", "takeover")

# Before the scene: the memory cgroup that the program is to live in, and swap for what does not fit.
PREPARE_SWAP = """
modprobe zram num_devices=1 && echo 256M > /sys/block/zram0/disksize &&
mkswap /dev/zram0 > /dev/null && swapon /dev/zram0
"""
PRESSURE = """
set -e
mkdir -p /run/cgroup && mount -t cgroup2 none /run/cgroup
trap 'echo $$ > /run/cgroup/cgroup.procs; rmdir /run/cgroup/small; umount /run/cgroup' EXIT
echo +memory > /run/cgroup/cgroup.subtree_control
mkdir /run/cgroup/small
echo 12M > /run/cgroup/small/memory.high
echo $$ > /run/cgroup/small/cgroup.procs
"$@"
"""


@pytest.fixture(scope="module")
def program(vm: Machine) -> str:
    """Its name, in the home folders of both users."""
    binary = build.program(SOURCE, "-Wno-unused-parameter", arch=vm.arch)
    for user in ("root", "nymph-user"):
        vm.copy_in(str(binary), user=user)
    return f"./{binary.name}"


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[str], int]:
    return lambda scene: ROUNDS[scene][request.config.getoption("long")]


@pytest.fixture
def swap(vm: Machine) -> Iterator[str | None]:
    """Some of it, in compressed memory; or why there is none."""
    made = vm.run(["sh", "-c", PREPARE_SWAP], check=False)
    yield made.stderr.strip() if made.returncode else None
    vm.run(["sh", "-c", "swapoff -a; rmmod zram"], check=False)


def play(vm: Machine, command: list[str], user: str) -> None:
    done = vm.run(command, user=user, check=False)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    if done.returncode or done.stderr:
        pytest.fail(f"exit status {done.returncode}\n{done.stderr}", pytrace=False)


@pytest.mark.parametrize(
    "scene,user",
    [
        (scene, user)
        for scene in ROUNDS
        for user in ("root", "nymph-user")
        if user == "root" or scene not in FOR_ROOT
    ],
)
def test_nothing_is_left_behind(
    vm: Machine, program: str, rounds: Callable[[str], int], scene: str, user: str
) -> None:
    if scene == "fuse":
        vm.run(["modprobe", "fuse"], check=False)
    play(vm, [program, scene, str(rounds(scene))], user)


def test_entry_outlives_the_thread_that_ran_it(
    vm: Machine, program: str, rounds: Callable[[str], int]
) -> None:
    """A thread is killed while a channel, which is slow, is at what the thread gave it."""
    endpoint = vm.endpoints["ep0"]
    endpoint.set_faults(Fault("slow", rate=1))
    try:
        play(vm, [program, "takeover", str(rounds("takeover"))], "root")
    finally:
        endpoint.set_faults()


@pytest.mark.parametrize("scene", ["pageout", "kill", "unmap"])
def test_swapped_memory_leaves_nothing(
    vm: Machine, program: str, rounds: Callable[[str], int], swap: str | None, scene: str
) -> None:
    if swap is not None:
        pytest.skip(f"no swap: {swap}")
    play(vm, [program, scene, str(rounds(scene) // 2)], "root")


@pytest.mark.parametrize("scene", ["exit", "kill", "pageout"])
def test_memory_pressure_leaves_nothing(
    vm: Machine, program: str, rounds: Callable[[str], int], swap: str | None, scene: str
) -> None:
    """Less memory than the work needs, so that all of it is swapped out and in during the work."""
    if swap is not None:
        pytest.skip(f"no swap: {swap}")
    if vm.run(["grep", "-q", "^memory\t", "/proc/cgroups"], check=False).returncode:
        pytest.skip("the kernel has no memory cgroups")
    play(vm, ["sh", "-c", PRESSURE, "sh", program, scene, str(rounds(scene) // 2)], "root")
