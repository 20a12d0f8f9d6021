# SPDX-License-Identifier: MIT
"""Configurations of the kernel that modules must build in, though no guest runs them.

Prepared once from the source of Debian's kernel, all for 32 bits, and no further than a module's build needs.
"""

import hashlib
import os
import tarfile
import tempfile
from pathlib import Path

from nymph_vm import root
from nymph_vm.from_source import LEFT_OUT
from nymph_vm.host import cached, step

_COMMON = (
    *("CONFIG_WERROR=y", "CONFIG_MODULES=y", "CONFIG_HIGHMEM4G=y"),
    *("CONFIG_MULTIUSER=y", "CONFIG_SYSFS=y", "CONFIG_PROC_FS=y", "CONFIG_EVENTFD=y", "CONFIG_SHMEM=y"),
    *("CONFIG_PRINTK=y", "CONFIG_TTY=y"),
)
_DEVICES = ("CONFIG_PCI=y", "CONFIG_PCI_MSI=y", "CONFIG_DMADEVICES=y", "CONFIG_PLX_DMA=y", "CONFIG_SRAM=y")

LINES = {
    "one CPU": (*_COMMON, *_DEVICES, "# CONFIG_SMP is not set", "CONFIG_SYNC_FILE=y"),
    "no PCI, no DMA": (
        *(*_COMMON, "# CONFIG_PCI is not set", "CONFIG_SMP=y", "CONFIG_SYNC_FILE=y"),
        *("CONFIG_CGROUPS=y", "CONFIG_MEMCG=y"),
    ),
    "no dma-bufs": (*_COMMON, *_DEVICES, "CONFIG_SMP=y", "# CONFIG_SYNC_FILE is not set"),
}
"""The lines of each that differ from `make allnoconfig`."""

ABSENT = {
    "one CPU": None,
    "no PCI, no DMA": "pci_|dma_request|__dma_request|gen_pool_",
    "no dma-bufs": "dma_buf_|dma_resv_|dma_fence_",
}
"""How symbols start that such a kernel does not have, so that no module may need them."""


def name_of(configuration: str) -> str:
    """The name of its folder."""
    return configuration.replace(" ", "-").replace(",", "")


def _script() -> str:
    left_out = " ".join(f"--exclude=$source/'{pattern}'" for pattern in ("arch/[!x]*/*.[chSd]*", *LEFT_OUT))
    names = " ".join(map(name_of, LINES))
    return f"""
        mkdir -p out linux
        source=$(basename /mnt/linux-source-*.tar.xz .tar.xz)
        tar -C linux --strip-components=1 --anchored {left_out} -xf /mnt/$source.tar.xz
        cd linux
        for name in {names}; do
            out=/tmp/build/out/$name config=/tmp/build/$name.config
            make -s ARCH=i386 O=$out KCONFIG_ALLCONFIG=$config allnoconfig
            if lost=$(grep -vxFf $out/.config $config); then
                echo "the configuration '$name' ignored:" $lost
                exit 1
            fi
            make -s -j{os.cpu_count()} ARCH=i386 O=$out modules_prepare
        done
        mkdir -p ../out/linux
        cp -a --parents -t ../out/linux Makefile scripts include arch/x86/include arch/x86/Makefile*
        chmod -R a+rX ../out
        cd ..
    """


def prepare(source: Path) -> Path:
    """The folder with all of them, and with what is common in linux/; made of the kernel's `source`."""
    made_of = repr(((source / "version").read_text(), LINES, _script()))

    def make(new: Path) -> None:
        with step("preparing small kernels to build for"), tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                for name, lines in LINES.items():
                    config = new / f"{name_of(name)}.config"
                    config.write_text("".join(f"{line}\n" for line in lines))
                    tar.add(config, config.name)
            archive.seek(0)
            root.run_inside(root.prepare(), {source: "mnt"}, _script(), archive, new)

    return cached(f"configurations-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}", make)
