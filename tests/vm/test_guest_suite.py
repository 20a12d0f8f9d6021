# SPDX-License-Identifier: MIT
"""The tests in tests/guest, in the guest: as root, and as an ordinary user in the group nymph.

On the endpoint's channels, and on the CPU, which is the engine that `auto` takes if there are none.
"""

from collections.abc import Callable, Iterator

import pytest
from nymph_vm import build
from nymph_vm.machine import Machine
from nymph_vm.pytest_plugin import FOLDER


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
def test_guest_suite(vm: Machine, run_guest_tests: Callable[..., None], user: str, engine: str) -> None:
    vm.copy_in("examples", to=FOLDER)
    run_guest_tests(user, "tests/guest")


def test_model_for_long(request: pytest.FixtureRequest, run_guest_tests: Callable[..., None]) -> None:
    if not request.config.getoption("long"):
        pytest.skip("needs --long: make check; the suite above has a short one")
    run_guest_tests("root", "tests/guest", "-k", "driver_and_the_model")
