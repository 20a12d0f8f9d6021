# SPDX-License-Identifier: MIT
"""pynymph.topology() on a made-up sysfs, and the command that prints it."""

import errno
import json
import re
from pathlib import Path

import pytest

import pynymph
from pynymph.__main__ import main
from pynymph.topology import PciFunction, PciLink

ROOT, UPSTREAM, DOWNSTREAM, EMPTY = "0000:00:07.0", "0000:01:00.0", "0000:02:02.0", "0000:02:03.0"
ENDPOINT = "0000:05:00.0"


def config(kind: int) -> bytes:
    """A configuration space whose list of capabilities is MSI, then PCI Express of that type."""
    space = bytearray(256)
    space[0x06], space[0x34] = 0x10, 0x40
    space[0x40:0x42] = 0x05, 0x60
    space[0x60:0x63] = 0x10, 0x00, kind << 4 | 2
    return bytes(space)


class Sysfs:
    """A sysfs with what topology() looks at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bus/pci/devices").mkdir(parents=True)
        self.places: dict[str, Path] = {}

    def add(self, address: str, code: str, *, under: str | None = None, **attributes: str | bytes) -> Path:
        """A function, in the folder of the one it is below."""
        folder = (self.places[under] if under else self.path / "devices/pci0000:00") / address
        folder.mkdir(parents=True)
        self.places[address] = folder
        (self.path / "bus/pci/devices" / address).symlink_to(folder)
        attributes |= {"vendor": "0x1af4", "device": "0x1110", "class": f"0x{code}"}
        for name, value in attributes.items():
            (folder / name).write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode())
        return folder

    def link(self, address: str, speed: str, width: str, max_speed: str, max_width: str) -> None:
        values = {"current_link_speed": speed, "current_link_width": width}
        values |= {"max_link_speed": max_speed, "max_link_width": max_width}
        for name, value in values.items():
            (self.places[address] / name).write_text(f"{value}\n")


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    """A switch with an endpoint below one port and nothing below the other; a host bridge beside it."""
    made = Sysfs(tmp_path)
    made.add("0000:00:00.0", "060000")
    for address, under, kind in ((ROOT, None, 4), (UPSTREAM, ROOT, 5), (DOWNSTREAM, UPSTREAM, 6)):
        made.add(address, "060400", under=under, config=config(kind))
    made.add(EMPTY, "060400", under=UPSTREAM, config=config(6))
    endpoint = made.add(ENDPOINT, "050000", under=DOWNSTREAM)
    made.link(ROOT, "2.5 GT/s PCIe", "1", "16.0 GT/s PCIe", "32")
    made.link(DOWNSTREAM, "8.0 GT/s PCIe", "4", "Unknown", "255")
    (tmp_path / "bus/pci/drivers/nymph_endpoint").mkdir(parents=True)
    (endpoint / "driver").symlink_to(tmp_path / "bus/pci/drivers/nymph_endpoint")
    (endpoint / "msi_irqs").mkdir()
    for number in ("30", "31"):
        (endpoint / "msi_irqs" / number).touch()
    for name, device in (("dma0chan10", endpoint), ("dma0chan9", endpoint), ("dma1chan0", tmp_path)):
        (tmp_path / "class/dma" / name).mkdir(parents=True)
        (tmp_path / "class/dma" / name / "device").symlink_to(device)
    (tmp_path / "bus/pci/slots/7").mkdir(parents=True)
    (tmp_path / "bus/pci/slots/7/address").write_text("0000:05:00\n")
    return made


def by_address(sysfs: Sysfs) -> dict[str, PciFunction]:
    return {found.address: found for top in pynymph.topology(sysfs.path) for found in top.walk()}


def test_tree_follows_the_bridges(sysfs: Sysfs) -> None:
    tops = pynymph.topology(sysfs.path)
    assert [top.address for top in tops] == ["0000:00:00.0", ROOT]
    assert [found.address for found in tops[1].walk()] == [ROOT, UPSTREAM, DOWNSTREAM, ENDPOINT, EMPTY]
    assert [found.port for found in tops[1].walk()] == ["root", "upstream", "downstream", None, "downstream"]
    assert [found.address for found in tops[1].children[0].children] == [DOWNSTREAM, EMPTY]


def test_function_has_all_its_facts(sysfs: Sysfs) -> None:
    assert by_address(sysfs)[ENDPOINT] == PciFunction(
        address=ENDPOINT,
        id="1af4:1110",
        kind="memory",
        class_code="050000",
        driver="nymph_endpoint",
        port=None,
        link=None,
        slot="7",
        interrupts=2,
        dma_channels=("dma0chan9", "dma0chan10"),
        children=(),
    )


def test_links_have_speed_and_width(sysfs: Sysfs) -> None:
    found = by_address(sysfs)
    assert found[ROOT].link == PciLink(2.5, 1, 16.0, 32)
    assert found[DOWNSTREAM].link == PciLink(8.0, 4, None, None)
    assert found[UPSTREAM].link is None


@pytest.mark.parametrize(
    ("code", "kind"), [("010802", "nvme"), ("010600", "sata"), ("010000", "storage"), ("ff0001", "ff0001")]
)
def test_classes_have_names(sysfs: Sysfs, code: str, kind: str) -> None:
    sysfs.add("0000:00:01.0", code)
    assert by_address(sysfs)["0000:00:01.0"].kind == kind


@pytest.mark.parametrize(
    "space",
    [config(4)[:64], b"", bytes(256), config(7), config(4)[:0x41] + b"\x40" + bytes(190)],
    ids=["not root", "empty", "no capabilities", "bridge to PCI", "list runs in circles"],
)
def test_bridge_with_unknown_capability_is_no_port(sysfs: Sysfs, space: bytes) -> None:
    sysfs.add("0000:00:01.0", "060400", config=space)
    found = by_address(sysfs)["0000:00:01.0"]
    assert (found.kind, found.port) == ("bridge", None)


def test_vanished_function_is_left_out(sysfs: Sysfs) -> None:
    (sysfs.places[DOWNSTREAM] / "vendor").unlink()
    (sysfs.path / "bus/pci/devices/0000:00:01.0").symlink_to(sysfs.path / "gone")
    assert list(by_address(sysfs)) == ["0000:00:00.0", ROOT, UPSTREAM, EMPTY]


def test_other_domain_behind_a_function_is_a_tree_of_its_own(sysfs: Sysfs) -> None:
    """As with a VMD: its root bus is in the folder of a function, though no child of it."""
    folder = sysfs.places["0000:00:00.0"] / "pci10000:e0/10000:e0:00.0"
    folder.mkdir(parents=True)
    for name in ("vendor", "device", "class"):
        (folder / name).write_text("0x010802\n")
    (sysfs.path / "bus/pci/devices" / folder.name).symlink_to(folder)
    assert [top.address for top in pynymph.topology(sysfs.path)] == ["0000:00:00.0", ROOT, folder.name]


def test_missing_sysfs_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(pynymph.NymphError, match="this machine has no PCI") as caught:
        pynymph.topology(tmp_path)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(SystemExit) as ended:
        main(["topology", "--root", str(tmp_path)])
    assert ended.value.code == 2
    assert re.match(r"pynymph: .*/bus/pci/devices cannot be read", capsys.readouterr().err)


def test_command_prints_the_tree(sysfs: Sysfs, capsys: pytest.CaptureFixture[str]) -> None:
    main(["topology", "--root", str(sysfs.path)])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "PCI",
        "├── 0000:00:00.0 host 1af4:1110: no driver",
        "└── 0000:00:07.0 root port 1af4:1110: no driver, 2.5 GT/s x1 of 16 GT/s x32",
        "    └── 0000:01:00.0 upstream port 1af4:1110: no driver",
        "        ├── 0000:02:02.0 downstream port 1af4:1110: no driver, 8 GT/s x4 of ? GT/s x?",
        "        │   └── 0000:05:00.0 memory 1af4:1110: "
        "nymph_endpoint, slot 7, interrupts 2, dma0chan9 dma0chan10",
        "        └── 0000:02:03.0 downstream port 1af4:1110: no driver",
    ]


def test_command_prints_json(sysfs: Sysfs, capsys: pytest.CaptureFixture[str]) -> None:
    main(["topology", "--json", "--root", str(sysfs.path)])
    host, root = json.loads(capsys.readouterr().out)
    assert (host["address"], host["driver"], host["children"]) == ("0000:00:00.0", None, [])
    assert root["link"] == {"speed": 2.5, "width": 1, "max_speed": 16.0, "max_width": 32}
    endpoint = root["children"][0]["children"][0]["children"][0]
    assert endpoint["dma_channels"] == ["dma0chan9", "dma0chan10"]
