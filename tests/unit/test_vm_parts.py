# SPDX-License-Identifier: MIT
"""Parts of the harness that need no machine."""

import lzma
import struct
from pathlib import Path

import pytest
from nymph_vm import kernels
from nymph_vm.kmsg import is_complaint
from nymph_vm.state import LOST, VMLost, log_tail

MODULES_DEP = """\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/fs/netfs/netfs.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
kernel/drivers/misc/pvpanic/pvpanic-pci.ko: kernel/drivers/misc/pvpanic/pvpanic.ko
kernel/drivers/misc/pvpanic/pvpanic.ko:
"""


def test_modules_load_behind_what_they_need() -> None:
    order = kernels.load_order(MODULES_DEP, ["9pnet_virtio", "built_in", "9p", "pvpanic_pci"])
    assert [Path(path).name for path in order] == [
        *("virtio.ko", "9pnet.ko", "9pnet_virtio.ko.xz"),
        *("netfs.ko", "9p.ko"),
        *("pvpanic.ko", "pvpanic-pci.ko"),
    ]


def test_the_kernel_is_taken_out_of_its_image(tmp_path: Path) -> None:
    packed = lzma.compress(b"\x7fELF the kernel") + struct.pack("<I", 15)
    header = bytearray(1024 + 16)
    header[0x1F1] = 1
    struct.pack_into("<II", header, 0x248, 16, len(packed))
    kernels._unpack_elf(bytes(header) + packed + b"rest", tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == b"\x7fELF the kernel"


@pytest.mark.parametrize(
    ("priority", "text", "expected"),
    [
        (4, "a warning", True),
        (5, "a notice", False),
        (0, "an emergency", True),
        (8 + 4, "a warning by a program", True),
        (24 + 6, "a daemon's word", False),
        (4, "pcie_nymph: loading out-of-tree module taints kernel.", False),
        (4, "other: loading out-of-tree module taints kernel. And more", True),
    ],
)
def test_complaints(priority: int, text: str, expected: bool) -> None:
    assert is_complaint(priority, text) is expected


def test_log_tail(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("one\r\ntwo\r\nthree\r\n")
    (tmp_path / "qemu.log").write_text("qemu: gone\n")
    assert log_tail(tmp_path, 3) == "two\nthree\nqemu: gone"


def test_each_loss_has_a_status_of_its_own() -> None:
    statuses = [VMLost(how, "").exit_status for how in LOST]
    assert len({*statuses, 120, 125}) == len(LOST) + 2
