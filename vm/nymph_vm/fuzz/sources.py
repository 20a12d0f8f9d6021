# SPDX-License-Identifier: MIT
"""The module's sources as the fuzzer has them built: with coverage, and with a bug if one is planted."""

import shutil
from pathlib import Path

from nymph_vm import build, kernels, project
from nymph_vm.host import CHECKOUT, call, tool

PATCHES = CHECKOUT / "tests/fuzz/planted"
KCOV = Path(__file__).with_name("kcov")

# For kernels without KCOV: the module calls nymph_kcov. The rounds of a hash would be most of what it says.
INSTRUMENT = """
obj-m += kcov/
ccflags-y += -fsanitize-coverage=trace-pc
$(foreach each,$(hashes) $(addprefix blake3/,$(hashes)),\\
	$(eval CFLAGS_REMOVE_$(each).o += -fsanitize-coverage=trace-pc))
"""


def prepare(kernel: str, patch: Path | None = None) -> Path:
    """The folder of the sources for a kernel, a key of kernels.KERNELS. Raises HarnessError."""
    ours = project.pynymph()
    has_kcov = kernels.KERNELS[kernel].debug
    if has_kcov and patch is None:
        return ours.source
    copy = ours.build / "fuzz" / ("clean" if patch is None else patch.stem)
    new = copy.with_name(f"{copy.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for path in build.module_sources(ours.source):
        target = new / path.relative_to(ours.source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    if patch is not None:
        call([tool("patch"), "-s", "-p2", "-d", new, "-i", patch], f"planting {patch.name}")
    if not has_kcov:
        shutil.copytree(KCOV, new / "kcov")
        kbuild = new / "Kbuild"
        kbuild.write_text(kbuild.read_text() + INSTRUMENT)
    shutil.rmtree(copy, ignore_errors=True)
    new.rename(copy)
    return copy
