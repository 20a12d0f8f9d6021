# SPDX-License-Identifier: MIT
"""Memory tags of arm64 (MTE), which no CPU of the board has: on the largest CPU that QEMU can emulate."""

import os
from dataclasses import replace

import pytest
from nymph_vm import kernels, slots
from nymph_vm.arch import ARM64
from nymph_vm.machine import Machine
from nymph_vm.pytest_plugin import FOLDER

# Of two options of one name, QEMU takes the last, or joins them.
CPU_WITH_TAGS = ("cpu", "max,pauth-impdef=on"), ("machine", "mte=on")


def test_addresses_with_wrong_tags_are_refused(request: pytest.FixtureRequest) -> None:
    kernel, arch = map(request.config.getoption, ("kernel", "arch"))
    if arch != ARM64.name:
        pytest.skip("needs --arch arm64: make arm64")
    there = slots.usual(ARM64, 1)
    there = replace(there, options=(*there.options, *CPU_WITH_TAGS))
    name = f"test-mte-{os.getpid()}"
    with Machine(name, kernel=kernels.named(kernel, arch), slots=there) as machine:
        machine.copy_in("tests/guest", to=FOLDER)
        tests = ["tests/guest/test_abi_copy.py", "-k", "mte or tag"]
        done = machine.run(
            ["sh", "-ec", f'cd {FOLDER}; python3 -m pytest -p no:cacheprovider -q "$@"', "sh", *tests]
        )
        assert " passed" in done.stdout
        assert " skipped" not in done.stdout
