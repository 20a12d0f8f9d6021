# SPDX-License-Identifier: MIT
"""nymph-vm with a module that is not pynymph's: examples/tally, as its nymph-vm.toml has it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nymph_vm.host import CHECKOUT

NYMPH_VM = Path(sys.executable).with_name("nymph-vm")
PLANTED = "\tatomic64_add(len, &tally);\n"
BUGS = {
    # A bug of the module; the exit status; what is said of it.
    "": (0, "2 passed"),
    "\tWARN_ON(len == 9);\n": (120, "test_tally.py F."),
    "\tBUG_ON(len == 3);\n": (121, "the guest's kernel panicked"),
}


@pytest.fixture
def tally(tmp_path: Path) -> Path:
    folder = tmp_path / "tally"
    shutil.copytree(
        CHECKOUT / "examples/tally", folder, ignore=shutil.ignore_patterns("build", "__pycache__")
    )
    return folder


@pytest.mark.parametrize("bug", BUGS)
def test_another_module_is_tested_and_its_bugs_are_caught(tally: Path, bug: str) -> None:
    """A warning fails the test that makes it and no other; a panic behind all tests is known, too."""
    source = tally / "tally.c"
    source.write_text(source.read_text().replace(PLANTED, PLANTED + bug))
    toml = tally / "nymph-vm.toml"
    toml.write_text(toml.read_text().replace('test_tally.py"', 'test_tally.py && printf bye > /dev/tally"'))
    (tally / "below").mkdir()
    status, said = BUGS[bug]
    done = subprocess.run(
        [NYMPH_VM, "test", "--kernel", "debian-6.1", "--memory", "1G"],
        cwd=tally / "below", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
