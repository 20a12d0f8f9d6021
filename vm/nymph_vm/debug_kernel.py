# SPDX-License-Identifier: MIT
"""Debug kernels: Debian's source, debug.config and debug-ARCH.config, built in the build root.

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

# Lines of the configuration which these kernels have no name, or no choice, for.
UNKNOWN = {
    "debug-6.1": {"CONFIG_KUNIT_AUTORUN_ENABLED=y", "CONFIG_SYSCTL=y"},
    "debug-6.1-arm64": {"CONFIG_KUNIT_AUTORUN_ENABLED=y", "CONFIG_SYSCTL=y"},
    "debug-7": {"CONFIG_PROC_SYSCTL=y"},
}

# Sources of hardware the guest does not have. Kconfig and make want to see the folders all the same.
LEFT_OUT = [
    *("Documentation/*/*", "tools/perf", "tools/testing", "sound/*.[ch]"),
    *(f"drivers/{name}/*.[ch]" for name in ("gpu", "media", "net/ethernet", "net/wireless", "infiniband")),
]

OBJECTS = 1460  # about as many lines of progress has a build; for the display alone

def _script(arch: Arch) -> str:
    left_out = [f"arch/[!{arch.folder[0]}]*/*.[chSd]*", *LEFT_OUT]
    return f"""
    {arch.kbuild}
    mkdir -p out linux
    source=$(basename /mnt/linux-source-*.tar.xz .tar.xz)
    tar -C linux --strip-components=1 --anchored \\
        {" ".join(f"--exclude=$source/'{pattern}'" for pattern in left_out)} -xf /mnt/$source.tar.xz
    cd linux
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


def folder(name: str, arch: Arch, source: Path) -> Path:
    """Where the debug kernel `name` is, or will be, if its source is in the folder `source`."""
    made_of = repr(((source / "version").read_text(), _config(name, arch), _script(arch)))
    return cache_folder() / f"kernel-{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def prepare(name: str, arch: Arch, source: Path) -> Path:
    """The folder of the debug kernel `name`; built from what is in the folder `source` if it is not there."""

    def make(new: Path) -> None:
        disk = root.prepare(arch)
        config = new / "debug.config"
        config.write_text(_config(name, arch))
        with tempfile.TemporaryFile() as archive, _progress(f"building kernel {name}, once") as on_line:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                tar.add(config, config.name)
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

    return cached(folder(name, arch, source).name, make)


def _config(name: str, arch: Arch) -> str:
    """The lines of debug.config and the architecture's own that the kernel `name` has a name for."""
    files = [Path(__file__).with_name(each) for each in ("debug.config", f"debug-{arch.name}.config")]
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("CONFIG_")]
    return "".join(f"{line}\n" for line in lines if line not in UNKNOWN.get(name, ()))


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
