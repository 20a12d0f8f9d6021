# SPDX-License-Identifier: MIT
"""All that differs between the guests' architectures.

The host is amd64. Guests for `um` are native ones: user-mode Linux, a kernel that is a program of the host's.
Others are QEMU's.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

GIB = 1 << 30


@dataclass(frozen=True)
class Arch:
    """A guest's architecture, and QEMU's machine for it."""

    name: str  # as users say it
    debian: str  # as Debian has it
    uname: str  # as kernels name it to programs, and QEMU and wheels do
    qemu: str  # QEMU's program
    machine: str
    cpu: str  # what is emulated
    console: str
    append: str  # more for the kernel's command line
    emulated: str  # and more if the CPU is emulated
    ram: Callable[[int], list[tuple[int, int]]]  # of that many bytes, each part's bus address and size
    kbuild: str  # shell commands, before any `make` in a kernel's source or headers
    folder: str  # below arch/ in a kernel's source
    others: str  # what the names of other architectures' folders there begin with, as a glob
    boot: str  # below that folder: what a build of a whole kernel makes to boot
    stock_image: str  # what QEMU boots of a kernel of Debian's
    build_needs: str  # files of a kernel's source that building a module takes, beside common ones
    compilers: dict[int, str]  # for programs, by their width
    build_packages: tuple[str, ...]  # for all that is built

    @property
    def is_native(self) -> bool:
        return self.name == "um"

    @property
    def is_host(self) -> bool:
        return self.uname == os.uname().machine


def _q35(size: int) -> list[tuple[int, int]]:
    low = min(size, 2 * GIB if size >= 0xB0000000 else 0xB0000000)
    return [(0, low), (4 * GIB, size - low)] if size > low else [(0, low)]


AMD64 = Arch(
    name="amd64",
    debian="amd64",
    uname="x86_64",
    qemu="qemu-system-x86_64",
    machine="q35",
    # TCG emulates the `rep movsb` that ERMS and FSRM recommend byte by byte, many times slower; and a fused
    # multiply-add bit by bit: ONNX Runtime takes eight times as long with them as with its kernels for AVX.
    cpu="max,-erms,-fsrm,-fma",
    console="ttyS0",
    append="noreplace-smp "  # initramfs-init turns on all CPUs but one, and says why
    "unknown_nmi_panic ",  # how a silent kernel is asked where it hangs
    # Else the guest takes the HPET, and to read that costs more than to copy a small payload.
    emulated="tsc=reliable ",
    ram=_q35,
    kbuild="",
    folder="x86",
    others="[!x]*",
    # The ELF file will not do: the entry for it (PVH) runs C code with KASAN's checks before KASAN can work.
    boot="boot/bzImage",
    stock_image="vmlinux",
    build_needs="tools/objtool/objtool",
    compilers={64: "gcc -m64", 32: "gcc -m32"},
    build_packages=("gcc-multilib",),  # for 32-bit programs
)

ARM64 = Arch(
    name="arm64",
    debian="arm64",
    uname="aarch64",
    qemu="qemu-system-aarch64",
    machine="virt,gic-version=3",
    cpu="cortex-a76",  # of the RK3588's two kinds, the one that QEMU has
    console="ttyAMA0",
    # No firmware has reserved room for a device that comes later, as slots.root_ports() asks of one.
    append="pci=hpmmioprefsize=64M ",
    emulated="",
    ram=lambda size: [(GIB, size)],
    kbuild="export ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-",
    folder="arm64",
    others="[!a]*",
    boot="boot/Image",
    stock_image="Image",
    build_needs="",
    compilers={64: "aarch64-linux-gnu-gcc", 32: "arm-linux-gnueabihf-gcc"},
    build_packages=(
        *("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "libpython3-dev:arm64"),
        *("gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross"),
    ),
)

# Programs, disks and builds are those of amd64. What QEMU would be told is of no use here.
UM = replace(
    AMD64,
    name="um",
    kbuild="export ARCH=um SUBARCH=x86_64",
    folder="um",
    others="[!ux]*",
    boot="../../linux",
    stock_image="",  # Debian's has neither DMA nor PCI
    build_needs="arch/x86/include arch/x86/um arch/x86/Makefile*",
)

ARCHS = {arch.name: arch for arch in (AMD64, ARM64, UM)}
