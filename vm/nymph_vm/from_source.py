# SPDX-License-Identifier: MIT
"""Kernels built from Debian's source, in the build root: with sanitizers, or for native guests.

The result looks like a kernel unpacked from Debian's packages.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nymph_vm import root
from nymph_vm.arch import Arch
from nymph_vm.host import HarnessError, cache_folder, cached, console

FOLDER = Path(__file__).parent
PATCHES = FOLDER / "um"  # what native guests need, and why

# Before 6.4, VHOST has ordinary kernel threads.
NO_VHOST_TASK = {"CONFIG_VHOST_MENU=y", "CONFIG_VHOST_NET=m"}

# Only debug-7 has these: debug-6.1 shows that the module needs no namespaces, and reads runs of pages;
# debug-7 maps one page at a time, as kernels with high memory do.
OF_ONE = {"CONFIG_TIME_NS=y", "CONFIG_USER_NS=y", "CONFIG_DEBUG_KMAP_LOCAL_FORCE_MAP=y"}

# User-mode Linux has neither the one's choice nor the others at all; SYSCTL as all newer kernels; the module
# plx_dma.
NATIVE = {
    "CONFIG_PREEMPT=y", "CONFIG_TRANSPARENT_HUGEPAGE=y", "CONFIG_TRANSPARENT_HUGEPAGE_MADVISE=y",
    "CONFIG_PROC_SYSCTL=y", "CONFIG_PLX_DMA=y",
}  # fmt: skip

# Lines of the configuration which these kernels have no name, no choice, or no use for.
UNKNOWN = {
    "debug-6.1": {"CONFIG_KUNIT_AUTORUN_ENABLED=y", "CONFIG_SYSCTL=y", *NO_VHOST_TASK, *OF_ONE},
    "debug-6.1-arm64": {"CONFIG_KUNIT_AUTORUN_ENABLED=y", "CONFIG_SYSCTL=y", *NO_VHOST_TASK, *OF_ONE},
    "debug-7": {"CONFIG_PROC_SYSCTL=y"},
    **{name: NATIVE for name in ("plain-7-um", "up-7-um", "debug-7-um")},
}

# Sources of hardware the guest does not have. Kconfig and make want to see the folders all the same.
LEFT_OUT = [
    *("Documentation/*/*", "tools/perf", "tools/testing", "sound/*.[ch]"),
    *(f"drivers/{name}/*.[ch]" for name in ("gpu", "media", "net/ethernet", "net/wireless", "infiniband")),
]

# About as many lines of progress has a build; for the display alone.
OBJECTS = 1460


def _script(arch: Arch) -> str:
    left_out = [f"arch/{arch.others}/*.[chSd]*", *LEFT_OUT]
    patches = "".join(f"\n    /mnt/root/bin/busybox patch -p1 -i ../{patch.name}" for patch in _patches(arch))
    return f"""
    {arch.kbuild}
    mkdir -p out linux
    source=$(basename /mnt/linux-source-*.tar.xz .tar.xz)
    tar -C linux --strip-components=1 --anchored \\
        {" ".join(f"--exclude=$source/'{pattern}'" for pattern in left_out)} -xf /mnt/$source.tar.xz
    cd linux{patches}
    make -s KCONFIG_ALLCONFIG=../debug.config allnoconfig
    if lost=$(grep -vxFf .config ../debug.config); then
        echo "the kernel's configuration ignored:" $lost
        exit 1
    fi
    make -j{os.cpu_count()} {Path(arch.boot).name} modules
    release=$(make -s kernelrelease)
    make -s INSTALL_MOD_PATH=../out/root modules_install
    cp arch/{arch.folder}/{arch.boot} ../out/
    printf %s "$release" > ../out/release

    # What `make M=` needs; Debian's headers packages have the same.
    find scripts tools/objtool -name '*.o' -delete
    rm -f ../out/root/lib/modules/*/build ../out/root/lib/modules/*/source
    headers=../out/root/usr/src/linux-headers-$release
    mkdir -p $headers
    cp -a --parents -t $headers Makefile .config Module.symvers scripts include \\
        arch/{arch.folder}/include arch/{arch.folder}/Makefile* {arch.build_needs}
    chmod -R a+rX ../out
    cd ..
"""


def folder(name: str, flavour: str, arch: Arch, source: Path) -> Path:
    """Where the kernel `name` is, or will be, if its source is in the folder `source`."""
    patches = [patch.read_text() for patch in _patches(arch)]
    made_of = repr(((source / "version").read_text(), _config(name, flavour, arch), _script(arch), *patches))
    return cache_folder() / f"kernel-{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def prepare(name: str, flavour: str, arch: Arch, source: Path) -> Path:
    """The folder of the kernel `name`; built from what is in the folder `source` if it is not there.

    flavour: "debug" has sanitizers, "up" can have but one CPU.
    """

    def make(new: Path) -> None:
        disk = root.prepare(arch)
        config = new / "debug.config"
        config.write_text(_config(name, flavour, arch))
        with tempfile.TemporaryFile() as archive, _progress(f"building kernel {name}, once") as on_line:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                for each in (config, *_patches(arch)):
                    tar.add(each, each.name)
            archive.seek(0)
            try:
                root.run_inside(disk, {source: "mnt"}, _script(arch), archive, new, on_line)
            except HarnessError as error:
                end = "\n".join(str(error).splitlines()[-30:])
                raise HarnessError(f"building kernel {name} failed:\n{end}") from None
        # Without depmod, make but warns.
        if not list(new.glob("root/lib/modules/*/modules.dep")):
            raise HarnessError(f"building kernel {name} failed: its modules have no index (modules.dep)")
        shutil.copytree(source / "root", new / "root", symlinks=True, dirs_exist_ok=True)

    return cached(folder(name, flavour, arch, source).name, make)


def _patches(arch: Arch) -> list[Path]:
    return sorted(PATCHES.glob("*.patch")) if arch.is_native else []


def _config(name: str, flavour: str, arch: Arch) -> str:
    """The lines of the configuration that the kernel `name` has a name for."""
    debug = ["debug.config"] * (flavour == "debug")
    if arch.is_native:
        files, own = ["um.config", "guest.config", *debug], [f'CONFIG_LOCALVERSION="-um-{flavour}"']
        own += ["CONFIG_SMP=y", "CONFIG_NR_CPUS=64"] * (flavour != "up")
    else:
        files, own = ["qemu.config", "guest.config", *debug, f"debug-{arch.name}.config"], []
    lines = [line for file in files for line in (FOLDER / file).read_text().splitlines()] + own
    wanted = [line for line in lines if line.startswith("CONFIG_") and line not in UNKNOWN.get(name, ())]
    return "".join(f"{line}\n" for line in dict.fromkeys(wanted))


@contextlib.contextmanager
def _progress(doing: str) -> Iterator[Callable[[str], None]]:
    """Show how far a build is; yields what is to be called with each line that make writes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        progress.add_task(doing, total=OBJECTS)
        (task,) = progress.tasks

        def on_line(line: str) -> None:
            if re.match(r" +[A-Z]+ ", line):  # as in "  CC      init/main.o"
                progress.advance(task.id)
                if not console.is_terminal and task.completed % 100 == 0:
                    console.print(f"nymph-vm: {doing}: {task.completed:.0f} of about {OBJECTS} objects")

        yield on_line
