# SPDX-License-Identifier: MIT
"""Builds modules, and Python packages, for the guest: in the build root, when they changed.

Results are in the project's build/: build/KERNEL/FOLDER/NAME.ko, build/python/ARCH/, build/programs/ARCH/.
A running guest sees that folder, so rename only.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nymph_vm import configurations, kernels, project, root
from nymph_vm.arch import AMD64, Arch
from nymph_vm.host import CHECKOUT, HarnessError, call, console, locked, step

HEADER = CHECKOUT / "kernel/pcie_nymph.h"
PLANTED = CHECKOUT / "tests/planted"
TEST_MODULES = CHECKOUT / "tests/modules"  # what else a DMA channel can have about it

KDIR = "/usr/src/linux-headers-{release}"
MAKE = f'{{kbuild}}\nmake -s -j{os.cpu_count()} -C {KDIR} M="$PWD/{{folder}}" {{flags}} modules'

BUILD_MODULES = f"{MAKE}\nmkdir out\nfind {{folder}} -name '*.ko' -exec cp -t out {{{{}}}} +"

# For a debug kernel: with what the kernel as a whole is spared. The .gcno files are gcov's half of the build.
DEBUG_FLAGS = "NYMPH_KUNIT=y GCOV_PROFILE=y KCOV_INSTRUMENT=y UBSAN_SANITIZE=y"
KEEP_GCNO = "\nfind {folder} -name '*.gcno' -exec cp --parents -t out {{}} +"

PADDING = re.compile(r"XXX|/\* (bit_)?(padding|holes?)\b|holes: ")  # as pahole remarks on it

BUILD_PYNYMPH = """
    touch README.md  # pyproject.toml names it
    CC='{compiler}' python3 setup.py -q build --build-lib out
    cp -r nymphd/nymphd out/"""
BUILD_PYTHON = """
    mkdir -p out
    cp -r nymph_vm out/
    python3 -m compileall -q out"""


@dataclass(frozen=True)
class Built:
    """What a guest needs of the project."""

    kernel: kernels.Kernel
    modules: list[Path]  # in the order in which they are loaded


def prepare(kernel_name: str, source: Path | None = None) -> Built:
    """The project's modules for a kernel, and the Python packages; built if their sources changed.

    source: a copy of the project's, with changes. What it makes beside the project's modules is loaded first.
    Raises HarnessError, also if a module that nymph-vm.toml names is not among those that its source makes.
    """
    ours = project.here()
    there = {path.stem: path for path in modules(source or ours.source, kernel_name)}
    if missing := [name for name in ours.modules if name not in there]:
        makes = ", ".join(there) or "no module"
        raise HarnessError(
            f"{source or ours.source} makes {makes}, and {project.NAME} names {', '.join(missing)}"
        )
    first = [name for name in there if source and name not in ours.modules]
    built = Built(kernels.prepare(kernel_name), [there[name] for name in (*first, *ours.modules)])
    arch = built.kernel.arch
    script, sources = BUILD_PYTHON, _from(Path(__file__).parents[1], _guest_sources())
    if ours.is_pynymph:
        script = BUILD_PYNYMPH.format(compiler=arch.compilers[64]) + script
        sources |= _from(CHECKOUT, _python_sources())
    doing = "building Python packages for the guest"
    _build(doing, ours.build / "python" / arch.debian, sources, script, arch)
    return built


def modules(folder: Path, kernel_name: str) -> list[Path]:
    """The modules that the Kbuild in a folder makes, for a kernel; built if their sources changed."""
    kernel = kernels.prepare(kernel_name)
    target = project.here().build / kernel.name / folder.name
    script = BUILD_MODULES + KEEP_GCNO * kernel.debug
    script = script.format(
        kbuild=kernel.arch.kbuild,
        release=kernel.release,
        folder=folder.name,
        flags=DEBUG_FLAGS if kernel.debug else "",
    )
    doing = f"building the modules in {folder.name}/ for {kernel.release}"
    _build(doing, target, _from(folder.parent, module_sources(folder)), script, kernel.arch, kernel)
    return sorted(target.glob("*.ko"))


def program(source: Path, *options: str, arch: Arch = AMD64, bits: int = 64) -> Path:
    """A C program for guests of that architecture, 64 or 32 bits wide; built if anything of it changed.

    options: more for the compiler. The program needs no library there: with -luring, liburing is in it. One
    of pynymph can include pcie_nymph.h.
    """
    name = source.stem + ("" if bits == 64 else f"-{bits}") + "".join(options)
    compiler = f"{arch.compilers[bits]} -static -pthread -O1 -Wall -Wextra -Werror"
    script = f"mkdir out\n{compiler} -o out/{name} {source.name} {' '.join(options)}"
    ours = project.here()
    target = ours.build / "programs" / arch.debian / name
    header = {HEADER.name: HEADER} if ours.is_pynymph else {}
    _build(f"building {name}", target, {source.name: source, **header}, script, arch)
    return target / name


def library(source: Path) -> Path:
    """A C library for the harness itself; built if its source changed."""
    name = f"{source.stem}.so"
    script = f"mkdir out\ngcc -shared -fPIC -O2 -pthread -Wall -Wextra -Werror -o out/{name} {source.name}"
    target = project.here().build / "host" / source.stem
    _build(f"building {name}", target, {source.name: source}, script, AMD64)
    return target / name


def lint(folder: Path, kernel_name: str) -> list[str]:
    """What the compiler with W=1 and sparse say of a folder's module: nothing, if it is clean."""
    kernel = kernels.prepare(kernel_name)
    script = MAKE.format(
        kbuild=kernel.arch.kbuild, release=kernel.release, folder=folder.name, flags="W=1 C=2"
    )
    script += "\nmkdir out"
    disk = root.prepare(kernel.arch)
    doing = f"W=1 and sparse for {folder.name}/ and {kernel.release}"
    with step(doing), tempfile.TemporaryDirectory() as nothing:
        said = _run(disk, _from(folder.parent, module_sources(folder)), script, Path(nothing), kernel)
    return [line for line in said.splitlines() if re.search(r"warning:|error:", line)]


def lint_configurations(folder: Path) -> list[str]:
    """What is wrong with a folder's modules in kernels that have little: nothing, if they build for all.

    They are not linked to such a kernel, of which nobody builds the rest; so beside what the compiler says,
    it is what they need and the kernel cannot have.
    """
    ready = configurations.prepare(kernels.source_of("debug-6.1"))
    script = "mkdir out\n"
    for name in configurations.LINES:
        at = configurations.name_of(name)
        # The kernel's own build takes for granted that it is where it was prepared, and may write there.
        script += f"""
            rm -rf linux work {at}
            cp -a /mnt/linux linux
            mkdir -p out
            cp -a /mnt/{at} out/{at}
            cp -a {folder.name} work
            make -s -j{os.cpu_count()} -C linux ARCH=i386 O="$PWD/out/{at}" M="$PWD/work" \
                KBUILD_MODPOST_WARN=1 modules || echo "error: {folder.name}/ does not build: {name}"
            find work -name '*.ko' | sed 's/^/{at}: built /'
            find work -name '*.ko' -exec nm -u {{}} + | sed 's/^ *U /{at}: needs /'
            rm -rf out/{at}"""
    disk = root.prepare()
    doing = f"{folder.name}/ for kernels of 32 bits, with one CPU, without PCI, without dma-bufs"
    sources = _from(folder.parent, module_sources(folder))
    with step(doing), tempfile.TemporaryDirectory() as nothing, _archive(sources) as archive:
        said = root.run_inside(disk, {ready: "mnt"}, script, archive, Path(nothing)).splitlines()
    found = [line for line in said if re.search(r"warning:|error:", line)]
    for name, absent in configurations.ABSENT.items():
        at = configurations.name_of(name)
        if not any(line.startswith(f"{at}: built ") for line in said):
            found.append(f"{folder.name}/: nothing was built: {name}")
        if absent is not None:
            needs = re.compile(rf"{at}: needs ({absent})")
            found += [f"{folder.name}/: {line}" for line in sorted(set(said)) if needs.match(line)]
    return found


def structs() -> list[str]:
    """Structs of pcie_nymph.h with padding the header does not spell out: none, if it is right."""
    names = re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE)
    script = """
        mkdir out
        gcc -g -fno-eliminate-unused-debug-types -x c -c -o structs.o pcie_nymph.h
        pahole structs.o > out/layouts"""
    with step("the layout of the header's structs"), tempfile.TemporaryDirectory() as folder:
        _run(root.prepare(), {HEADER.name: HEADER}, script, Path(folder), None)
        layouts = (Path(folder) / "layouts").read_text()
    found = []
    for name in names:
        layout = re.search(rf"^struct {name} \{{.*?^\}}", layouts, re.MULTILINE | re.DOTALL)
        if layout is None:
            raise HarnessError(f"pahole does not know struct {name} of {HEADER.name}")
        found += [f"struct {name}: {line.strip()}" for line in layout[0].splitlines() if PADDING.search(line)]
    return found


def checkpatch(*folders: Path) -> list[str]:
    """What checkpatch.pl --strict says of modules' sources: nothing, if they are clean."""
    script = kernels.checkpatch() / "checkpatch.pl"
    sources = [path for each in folders for path in module_sources(each) if path.suffix in (".c", ".h")]
    with step("checkpatch.pl --strict"):
        options = ["--no-tree", "--strict", "--terse", "--no-summary", "--file"]
        # There, because it leaves a file where it runs.
        command: list[str | Path] = ["perl", script, *options, *sources]
        return call(command, "checkpatch.pl", allowed=(0, 1), cwd=script.parent).splitlines()


def module_sources(folder: Path) -> list[Path]:
    """The files of a folder with modules that a build needs."""
    names = {"Kbuild", "Makefile"}
    found = folder.rglob("*")
    return sorted(path for path in found if path.name in names or path.suffix in {".c", ".h", ".S"})


def _guest_sources() -> list[Path]:
    """Of nymph-vm itself, what runs in guests."""
    names = ("__init__", "double_fetch", "guest_plugin", "kmsg", "relay")
    return [Path(__file__).with_name(f"{name}.py") for name in names]


def _python_sources() -> list[Path]:
    pages = {".html", ".css", ".js", ".svg", ".woff2"}  # of nymphd
    package = [
        path
        for folder in ("pynymph", "nymphd/nymphd")
        for path in (CHECKOUT / folder).rglob("*")
        if path.suffix in {".c", ".h", ".json", ".py", ".pyi", ".typed", *pages}
    ]
    single = ("setup.py", "pyproject.toml", "kernel/pcie_nymph.h")
    return sorted([*package, *(CHECKOUT / name for name in single)])


def _from(base: Path, sources: Iterable[Path]) -> dict[str, Path]:
    """Sources by their names below `base`."""
    return {str(path.relative_to(base)): path for path in sources}


def _build(
    doing: str,
    target: Path,
    sources: dict[str, Path],
    script: str,
    arch: Arch,
    kernel: kernels.Kernel | None = None,
) -> None:
    """Have `script` build `sources`, under the names given, into `target`, unless it did so before."""
    made_of = hashlib.sha256(script.encode())
    for name, path in sources.items():
        made_of.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    if kernel is not None:
        made_of.update(kernel.folder.name.encode())
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp = target / "made-of"
    with locked(target.with_name(f"{target.name}.lock")):
        if stamp.exists() and stamp.read_text() == made_of.hexdigest():
            return
        disk = root.prepare(arch)
        new = target.with_name(f"{target.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        with step(doing):
            said = _run(disk, sources, script, new, kernel)
        if kernel is not None and "warning:" in said:
            console.print(said, markup=False)
        (new / stamp.name).write_text(made_of.hexdigest())
        old = target.with_name(f"{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _run(
    disk: root.Root, sources: dict[str, Path], script: str, results: Path, kernel: kernels.Kernel | None
) -> str:
    mounts = {}
    if kernel is not None:
        files = kernel.folder / "root"
        for folder in (files / "usr/src", *(files / "usr/lib").glob("linux-kbuild-*")):
            mounts[folder] = str(folder.relative_to(files))
    with _archive(sources) as archive:
        return root.run_inside(disk, mounts, script, archive, results)


@contextlib.contextmanager
def _archive(sources: dict[str, Path]) -> Iterator[IO[bytes]]:
    """The sources, under the names given, as a tar."""
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, path in sources.items():
                tar.add(path, name)
        archive.seek(0)
        yield archive
