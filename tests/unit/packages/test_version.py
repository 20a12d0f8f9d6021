# SPDX-License-Identifier: MIT
"""All parts of one release say the same version."""

import re
from pathlib import Path

import pytest

import pynymph

CHECKOUT = Path(__file__).parents[3]

PLACES = {
    "pynymph/__init__.py": r'^__version__ = "(.*)"$',
    "nymphd/nymphd/__init__.py": r'^__version__ = "(.*)"$',
    "nymphd/pyproject.toml": r'"pynymph>=(.*?)"',
    "vm/pyproject.toml": r'^version = "(.*)"$',
    "kernel/pcie_nymph.h": r'^#define NYMPH_VERSION\t+"(.*?)"',
    "kernel/dkms.conf": r'^PACKAGE_VERSION="(.*)"$',
    "debian/changelog": r"^pynymph \((.*?)\)",
    "CHANGELOG.md": r"^## \[(\d.*?)\]",
}
"""Where the version stands, and the expression that finds it; a new release changes all of these."""


@pytest.mark.parametrize("place", PLACES)
def test_every_place_has_the_version_of_pynymph(place: str) -> None:
    found = re.search(PLACES[place], (CHECKOUT / place).read_text(), re.MULTILINE)
    assert found and found[1] == pynymph.__version__


def test_both_modules_take_their_version_from_the_header() -> None:
    for module in ("pcie_nymph", "nymph_endpoint"):
        text = (CHECKOUT / "kernel" / module / "main.c").read_text()
        assert re.findall(r"MODULE_VERSION\((.*)\)", text) == ["NYMPH_VERSION"]
