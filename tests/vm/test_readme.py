# SPDX-License-Identifier: MIT
"""What the README says to type works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from nymph_vm.host import CHECKOUT
from nymph_vm.machine import Machine

README = (CHECKOUT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", _blocks("python"))
def test_python(vm: Machine, code: str) -> None:
    assert vm.run(["python3", "-c", code], user="nymph-user").stdout


@pytest.mark.parametrize("block", _blocks("sh"))
def test_shell(block: str) -> None:
    """The lines of one block in their order."""
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == ".venv/bin/nymph-vm"
        installed = Path(sys.executable).parent / "nymph-vm"
        done = subprocess.run(
            [installed, *arguments], cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_make_targets() -> None:
    named = set(re.findall(r"`make (\w+)|^    make (\w+)", README, re.MULTILINE))
    targets = {one or other for one, other in named}
    assert {"demo", "test", "help", "vm", "module"} <= targets
    for target in sorted(targets):
        done = subprocess.run(["make", "-n", target], cwd=CHECKOUT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
