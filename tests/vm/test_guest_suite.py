# SPDX-License-Identifier: MIT
"""The tests in tests/guest, in the guest: as root, and as an ordinary user in the group nymph.

On the endpoint's channels, and on the CPU, which is the engine that `auto` takes if there are none.
"""

import subprocess
from collections.abc import Callable, Iterator

import pytest
from nymph_vm import build, kernels
from nymph_vm.machine import Machine
from nymph_vm.pytest_plugin import FOLDER

READING = "/tmp/reading-sysfs"
COMMAND = "tests/guest/test_command.py"


@pytest.fixture
def engine(request: pytest.FixtureRequest, vm: Machine) -> Iterator[str]:
    """What rings get that ask for none: a channel of the endpoint ("dma"), or "cpu"."""
    engine, always = request.param
    if not always and not request.config.getoption("every_engine"):
        pytest.skip("needs --every-engine: make endpoint")
    if engine == "cpu":
        vm.run(["rmmod", "nymph_endpoint"])
    said = vm.run(["python3", "-c", "import pynymph; print(pynymph.Ring().snapshot().engine)"]).stdout.strip()
    assert said.startswith(engine)
    yield engine
    if engine == "cpu":
        vm.load(*(path for path in build.prepare(vm.state.kernel).modules if path.stem == "nymph_endpoint"))


# Once a minute is enough for lockdep, which learns an order of locks from one pass; each takes a debug kernel
# seconds.
READ_SYSFS = f"""
while [ -e {READING} ]; do
    [ $((seconds % 60)) -ne 0 ] || find /sys >/dev/null 2>&1
    seconds=$((seconds + 1))
    sleep 1
done"""


@pytest.fixture
def sysfs_readers(vm: Machine) -> Iterator[None]:
    """Have an ordinary user read all folders of /sys beside a test, where lockdep sees the locks."""
    if not kernels.KERNELS[vm.state.kernel].debug:
        yield
        return
    vm.run(["touch", READING])
    with subprocess.Popen(vm.command(["sh", "-c", READ_SYSFS], user="nymph-user")) as reader:
        yield
        assert reader.poll() is None
        vm.run(["rm", READING])
    assert reader.returncode == 0


@pytest.mark.parametrize(
    "user,engine",
    [
        ("root", ("dma", True)),
        ("nymph-user", ("cpu", True)),
        ("nymph-user", ("dma", False)),
        ("root", ("cpu", False)),
    ],
    indirect=["engine"],
)
@pytest.mark.usefixtures("sysfs_readers")
def test_guest_tests_pass(
    request: pytest.FixtureRequest, vm: Machine, run_guest_tests: Callable[..., None], user: str, engine: str
) -> None:
    vm.copy_in("examples", to=FOLDER)
    chosen = ["-m", "emulated"] if request.config.getoption("after_native") else []
    if user != "root" and kernels.KERNELS[vm.state.kernel].debug and not request.config.getoption("long"):
        # Python's side, which root has run on this kernel, and this user natively, takes long here.
        chosen.append("--ignore-glob=*/test_ring_*")
    run_guest_tests(user, "tests/guest", f"--ignore={COMMAND}", *chosen)


@pytest.mark.parametrize("user", ["root", "nymph-user"])
def test_command_passes(
    request: pytest.FixtureRequest, vm: Machine, run_guest_tests: Callable[..., None], user: str
) -> None:
    """On one kernel: it starts Python dozens of times, and asks of the driver nothing that others do not."""
    if kernels.KERNELS[vm.state.kernel].debug:
        pytest.skip("takes a debug kernel a quarter of an hour: the stock kernel has it")
    if request.config.getoption("after_native"):
        pytest.skip("a native guest has run it")
    vm.copy_in("tests/guest", to=FOLDER)
    run_guest_tests(user, COMMAND)


def test_driver_and_model_agree_for_long(
    request: pytest.FixtureRequest, run_guest_tests: Callable[..., None]
) -> None:
    if not request.config.getoption("long"):
        pytest.skip("needs --long: make check; the suite above has a short one")
    run_guest_tests("root", "tests/guest", "-k", "driver_and_the_model")
