# SPDX-License-Identifier: MIT
"""Every file that the modules have in sysfs is described in kernel/Documentation/ABI, and nothing else is."""

import re
from pathlib import Path

KERNEL = Path(__file__).parents[3] / "kernel"
TEXTS = KERNEL / "Documentation/ABI/testing"
FIELDS = ("Date:", "KernelVersion:", "Contact:", "Description:")


def described(name: str) -> list[str]:
    found = re.findall(r"^What:\t\t(\S+)$", (TEXTS / name).read_text(), re.MULTILINE)
    return sorted(path.rpartition("/")[2] for path in found)


def attributes(source: str, *macros: str) -> list[str]:
    text = (KERNEL / source).read_text()
    return sorted(re.findall(rf"^(?:static )?(?:{'|'.join(macros)})\((\w+)[,)]", text, re.MULTILINE))


def test_every_file_of_the_device_is_described() -> None:
    macros = ("NYMPH_COUNTER_ATTR", "NYMPH_LIMIT_ATTR", "DEVICE_ATTR_RO", "DEVICE_ATTR_RW")
    found = [name for name in attributes("pcie_nymph/sysfs.c", *macros) if name != "_name"]
    assert found and found == described("sysfs-class-misc-pcie_nymph")


def test_every_file_of_the_endpoint_is_described() -> None:
    found = attributes("nymph_endpoint/main.c", "NYMPH_EP_COUNTER_ATTR")
    assert found and found == described("sysfs-bus-pci-drivers-nymph_endpoint")


def test_every_text_has_all_fields() -> None:
    for path in TEXTS.iterdir():
        for text in path.read_text().split("\n\n"):
            assert [field for field in FIELDS if f"\n{field}\t" not in text] == []
