# SPDX-License-Identifier: MIT
"""nymphd in a VM, for all tests of a file."""

import os
from collections.abc import Iterator

import pytest
from nymph_vm import nymphd
from nymph_vm.machine import Machine
from nymphd_served import Served


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=float, help="How long test_nymphd_soak.py lasts.")


@pytest.fixture(scope="module")
def served_by() -> Iterator[Served]:
    with Machine(f"pytest-{os.getpid()}-nymphd", image="systemd") as machine:
        yield Served(machine, nymphd.reach(machine))


@pytest.fixture
def served(served_by: Served) -> Iterator[Served]:
    """nymphd under systemd, in a machine for all tests of a file; the kernel may not complain meanwhile."""
    yield served_by
    # Which pytest shows if it failed.
    print(served_by.machine.run(["journalctl", "-o", "cat", "-n", "50", "-u", "nymphd"]).stdout)
    assert (served_by.machine.complaints(), served_by.machine.taint()) == ([], 0)
