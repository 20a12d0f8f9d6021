# SPDX-License-Identifier: MIT
"""kernel/Kbuild, read by make as the kernel's build does: what is in the module for an architecture."""

import subprocess
from pathlib import Path

import pytest
from nymph_vm.host import CHECKOUT

TAKES = "void kernel_neon_begin(struct user_fpsimd_state *);"
HAS = "void kernel_neon_begin(void);"


def flags_and_objects(tree: Path, *configuration: str) -> tuple[set[str], set[str]]:
    asked = tree / "asked"
    asked.write_text(
        f"include {CHECKOUT}/kernel/Kbuild\nall:\n\t@echo $(ccflags-y)\n\t@echo $(pcie_nymph-y)\n"
    )
    command = ["make", "-s", "-f", asked, f"srctree={tree}", f"src={CHECKOUT}/kernel", *configuration]
    flags, objects = subprocess.check_output(command, text=True).splitlines()
    return set(flags.split()), set(objects.split())


@pytest.mark.parametrize(("header", "takes"), [(TAKES, True), (HAS, False)], ids=["takes_state", "has_state"])
def test_arm64_hashes_with_neon(tmp_path: Path, header: str, takes: bool) -> None:
    """From 6.19 on kernel_neon_begin() takes memory for the registers."""
    neon = tmp_path / "arch/arm64/include/asm/neon.h"
    neon.parent.mkdir(parents=True)
    neon.write_text(header)
    flags, objects = flags_and_objects(tmp_path, "CONFIG_ARM64=y", "CONFIG_KERNEL_MODE_NEON=y")
    assert "blake3/neon.o" in objects
    assert "-DNYMPH_BLAKE3_NEON" in flags
    assert ("-DNYMPH_NEON_TAKES_STATE" in flags) == takes


def test_others_have_no_neon(tmp_path: Path) -> None:
    flags, objects = flags_and_objects(tmp_path, "CONFIG_X86=y", "CONFIG_X86_64=y")
    assert "blake3/neon.o" not in objects
    assert "-DNYMPH_BLAKE3_NEON" not in flags
