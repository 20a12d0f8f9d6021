# SPDX-License-Identifier: MIT
"""Parts of the harness that need no machine."""

import ctypes
import lzma
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from nymph_vm import from_source, kernels
from nymph_vm.arch import AMD64, ARM64, UM, Arch
from nymph_vm.host import HarnessError
from nymph_vm.kmsg import EXPECTED, is_complaint
from nymph_vm.state import LOST, VMLost, log_tail

PR_SET_CHILD_SUBREAPER = 36

MODULES_DEP = """\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/fs/netfs/netfs.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
kernel/drivers/misc/pvpanic/pvpanic-pci.ko: kernel/drivers/misc/pvpanic/pvpanic.ko
kernel/drivers/misc/pvpanic/pvpanic.ko:
"""


def test_modules_load_after_their_dependencies() -> None:
    order = kernels.load_order(MODULES_DEP, ["9pnet_virtio", "built_in", "9p", "pvpanic_pci"])
    assert [Path(path).name for path in order] == [
        *("virtio.ko", "9pnet.ko", "9pnet_virtio.ko.xz"),
        *("netfs.ko", "9p.ko"),
        *("pvpanic.ko", "pvpanic-pci.ko"),
    ]


def test_child_lives_as_long_as_its_process() -> None:
    """Longer than the thread, so that any thread may plug an endpoint; no longer than the process."""
    code = """
import os, subprocess, threading
from nymph_vm import host
started = []
def start():
    started.append(host.start(["sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE))
    started[0].stdout.readline()
thread = threading.Thread(target=start)
thread.start()
thread.join()
try:
    raise SystemExit(f"it ended with status {started[0].wait(0.5)}")
except subprocess.TimeoutExpired:
    print(started[0].pid, flush=True)
    os._exit(0)
"""
    # as its parent, we are told when it ends
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        _, status = os.waitpid(int(done.stdout), 0)
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_kernel_is_unpacked_from_its_image(tmp_path: Path) -> None:
    packed = lzma.compress(b"\x7fELF the kernel") + struct.pack("<I", 15)
    header = bytearray(1024 + 16)
    header[0x1F1] = 1
    struct.pack_into("<II", header, 0x248, 16, len(packed))
    kernels._unpack(bytes(header) + packed + b"rest", tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == b"\x7fELF the kernel"


def test_arm64_image_stays_packed(tmp_path: Path) -> None:
    image = bytes(0x38) + b"ARM\x64" + bytes(100)
    kernels._unpack(image, tmp_path / "Image")
    assert (tmp_path / "Image").read_bytes() == image


def test_kernels_are_named_for_an_architecture() -> None:
    for name in ("debian-6.1", "debug-7"):
        assert kernels.named(name, "amd64") == name
    for arch in ("amd64", "arm64", "um"):
        assert kernels.KERNELS[kernels.named(None, arch)].arch.name == arch
    assert kernels.named("debug-7", "um") == "debug-7-um"
    for name in ("debian-6.1", "debug-6.1"):
        assert kernels.KERNELS[kernels.named(name, "arm64")].arch is ARM64
    with pytest.raises(HarnessError, match=r"no kernel debug-7 for arm64: there are debian-6\.1, debug-6\.1"):
        kernels.named("debug-7", "arm64")
    assert kernels.stock() == ["debian-6.1", "backports-6.12"]
    assert kernels.stock("arm64") == ["debian-6.1-arm64"]


@pytest.mark.parametrize(
    ("arch", "mib", "expected"),
    [
        (AMD64, 512, [(0, 512 << 20)]),
        (AMD64, 0xAFF, [(0, 0xAFF << 20)]),
        (AMD64, 0xB00, [(0, 2 << 30), (4 << 30, 0x300 << 20)]),
        (AMD64, 4096, [(0, 2 << 30), (4 << 30, 2 << 30)]),
        (ARM64, 512, [(1 << 30, 512 << 20)]),
        (ARM64, 4096, [(1 << 30, 4 << 30)]),
    ],
)
def test_guest_memory_is_at_its_addresses(arch: Arch, mib: int, expected: list[tuple[int, int]]) -> None:
    assert arch.ram(mib << 20) == expected


def test_debug_kernel_needs_a_module_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which make leaves out, and ends well, where there is no depmod."""
    source = tmp_path / "source"
    (source / "root/bin").mkdir(parents=True)
    (source / "version").write_text("1")
    index = "root/lib/modules/6.1.0/modules.dep"
    made: list[str] = []

    def build(disk: object, mounts: object, script: str, sources: object, new: Path, *more: object) -> None:
        for name in made:
            (new / name).parent.mkdir(parents=True)
            (new / name).touch()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(from_source.root, "prepare", lambda arch: None)
    monkeypatch.setattr(from_source.root, "run_inside", build)
    with pytest.raises(HarnessError, match="no index"):
        from_source.prepare("debug-6.1-arm64", "debug", ARM64, source)
    made.append(index)
    assert (from_source.prepare("debug-6.1-arm64", "debug", ARM64, source) / index).exists()


def test_debug_configuration_has_common_and_own_lines() -> None:
    """The lines for all architectures, and those of one."""
    both = [set(from_source._config("debug-6.1", "debug", arch).splitlines()) for arch in (AMD64, ARM64)]
    assert "CONFIG_KASAN=y" in both[0] & both[1]
    assert "CONFIG_SERIAL_8250=y" in both[0] - both[1]
    assert "CONFIG_SERIAL_AMBA_PL011=y" in both[1] - both[0]


def test_a_native_kernel_s_configuration() -> None:
    plain, up, debug = (
        set(from_source._config(f"{flavour}-7-um", flavour, UM).splitlines())
        for flavour in ("plain", "up", "debug")
    )
    assert {"CONFIG_VIRTIO_UML=y", "CONFIG_PRINTK=y"} <= plain & up & debug
    assert "CONFIG_SMP=y" in plain & debug - up
    assert "CONFIG_KASAN=y" in debug - plain
    assert not {line for line in debug if line.startswith(("CONFIG_VIRTIO_PCI", "CONFIG_TRANSPARENT"))}


@pytest.mark.parametrize(
    ("priority", "expected"), [(0, True), (4, True), (5, False), (7, False), (8 + 4, True), (24 + 6, False)]
)
def test_warnings_of_any_facility_are_complaints(priority: int, expected: bool) -> None:
    assert is_complaint(priority, "anything") is expected


# Each message that is excused, as the kernel says it, and one that looks like it and is not.
EXCUSED = {
    "hrtimer: interrupt took 10406251 ns": "hrtimer: interrupt took too long",
    "pcie_nymph: loading out-of-tree module taints kernel.": "planted: module license taints kernel.",
    "kobject_add_internal failed for ring7 (error: -12 parent: pcie_nymph)": (
        "kobject_add_internal failed for ring7 (error: -17 parent: pcie_nymph)"
    ),
    "kobject: can not set name properly!": "kobject: is not initialized, yet kobject_put() is called.",
    "kmemleak: Cannot allocate a scan area, scanning the full object": (
        "kmemleak: Cannot allocate a kmemleak_object structure"
    ),
    "DMA-API: cacheline tracking ENOMEM, dma-debug disabled": (
        "DMA-API: exceeded 7 overlapping mappings of cacheline 0x0000000000001000"
    ),
}


@pytest.mark.parametrize(("excused", "other"), EXCUSED.items())
def test_excused_lines_are_no_complaints(excused: str, other: str) -> None:
    assert not is_complaint(4, excused)
    for complaint in (other, f"{excused} And more", f"BUG: {excused}"):
        assert is_complaint(4, complaint)


def test_each_excuse_is_needed_and_explained() -> None:
    for expected in EXPECTED:
        assert [bool(expected.pattern.fullmatch(text)) for text in EXCUSED].count(True) == 1
        assert expected.reason
        assert re.fullmatch(r"[\w/]+\.c:\d+, \w+\(\)", expected.source)
    assert len(EXPECTED) == len(EXCUSED)


def test_log_tail_ends_with_the_newest_lines(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("one\r\ntwo\r\nthree\r\n")
    (tmp_path / "qemu.log").write_text("qemu: gone\n")
    assert log_tail(tmp_path, 3) == "two\nthree\nqemu: gone"


def test_each_loss_has_a_status_of_its_own() -> None:
    statuses = [VMLost(how, "").exit_status for how in LOST]
    assert len({*statuses, 120, 125}) == len(LOST) + 2
