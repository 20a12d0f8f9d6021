# SPDX-License-Identifier: MIT
"""What the tests of packages share: the checkout, as those who build it have it."""

import subprocess
from pathlib import Path

import pytest
from nymph_vm.host import CHECKOUT


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as a clone would have it, with what is not committed yet."""
    clone = tmp_path_factory.mktemp("source") / "clone"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=CHECKOUT, check=True, capture_output=True,
    ).stdout  # fmt: skip
    there = b"\0".join(name for name in names.split(b"\0") if name and (CHECKOUT / name.decode()).exists())
    clone.mkdir()
    pack = subprocess.run(
        ["tar", "--null", "-T", "-", "-cf", "-"], cwd=CHECKOUT, input=there, check=True, capture_output=True
    )
    subprocess.run(["tar", "-xf", "-"], cwd=clone, input=pack.stdout, check=True)
    return clone
