# SPDX-License-Identifier: MIT
"""Kernels: Debian's own packages, downloaded and unpacked, never installed; and kernels built here."""

import functools
import hashlib
import lzma
import re
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nymph_vm import apt, from_source
from nymph_vm.arch import AMD64, ARM64, UM, Arch
from nymph_vm.host import HarnessError, cache_folder, cached, call, locked, step

XZ, ZSTD = b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"
GUEST = Path(__file__).parent / "guest"

# What the guest needs before it can mount its disk and the host's folders, and to tell the host of a panic.
INITRAMFS_MODULES = (
    *("virtio_pci", "virtio_blk", "squashfs", "overlay", "9pnet_virtio", "9p"),
    *("virtio_console", "virtio_net", "pvpanic-pci"),
)


@dataclass(frozen=True)
class Source:
    """Where a kernel comes from: the package that depends on the newest one, and how its release starts."""

    package: str
    series: str
    flavour: str = "stock"  # else built from its source, see from_source
    arch: Arch = AMD64

    @property
    def built(self) -> bool:
        return self.flavour != "stock"

    @property
    def debug(self) -> bool:
        return self.flavour == "debug"


NEWEST = f"linux-source/{apt.NEWER}"
KERNELS = {
    "debian-6.1": Source("linux-image-amd64", "6.1."),
    "backports-6.12": Source("linux-image-amd64/bookworm-backports", "6.12."),
    "debug-6.1": Source("linux-source", "6.1", "debug"),
    "debug-7": Source(NEWEST, "7.", "debug"),
    "debian-6.1-arm64": Source("linux-image-arm64", "6.1.", arch=ARM64),
    "debug-6.1-arm64": Source("linux-source", "6.1", "debug", ARM64),
    "plain-7-um": Source(NEWEST, "7.", "plain", UM),
    "up-7-um": Source(NEWEST, "7.", "up", UM),
    "debug-7-um": Source(NEWEST, "7.", "debug", UM),
}
DEFAULT = "debian-6.1"
NATIVE = "plain-7-um"


def _key(name: str, arch: str) -> str:
    return name if arch == AMD64.name else f"{name}-{arch}"


def split(key: str) -> tuple[str, str]:
    """The name, and the name of the architecture, of a key in KERNELS: what named() takes."""
    arch = KERNELS[key].arch.name
    return key.removesuffix(f"-{arch}"), arch


# As they are asked for: each of these, for an architecture.
NAMES = list(dict.fromkeys(split(key)[0] for key in KERNELS))


def named(name: str | None, arch: str) -> str:
    """The key in KERNELS of the kernel with that one of NAMES, for that architecture; None is the usual one.

    Raises HarnessError.
    """
    if name is None:
        return NATIVE if arch == UM.name else _key(DEFAULT, arch)
    key = _key(name, arch)
    if key not in KERNELS:
        there = [each for each in NAMES if _key(each, arch) in KERNELS]
        raise HarnessError(f"there is no kernel {name} for {arch}: there are {', '.join(there)}")
    return key


def stock(arch: str = AMD64.name) -> list[str]:
    """The kernels for that architecture that are as Debian ships them."""
    return [name for name, source in KERNELS.items() if source.arch.name == arch and not source.built]


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to boot and to build for."""

    name: str
    folder: Path

    @property
    def debug(self) -> bool:
        return KERNELS[self.name].debug

    @property
    def built(self) -> bool:
        return KERNELS[self.name].built

    @property
    def smp(self) -> bool:
        """Whether it can have more than one CPU."""
        return KERNELS[self.name].flavour != "up"

    @property
    def arch(self) -> Arch:
        return KERNELS[self.name].arch

    @functools.cached_property
    def release(self) -> str:
        return (self.folder / "release").read_text()

    @property
    def image(self) -> Path:
        """What boots: QEMU loads it, or it is a program."""
        return self.folder / (Path(self.arch.boot).name if self.built else self.arch.stock_image)

    @property
    def modules(self) -> Path:
        return self.folder / "root/lib/modules" / self.release

    def initramfs(self) -> Path:
        """The first file system of the guest; made anew whenever its recipe changes."""
        scripts = sorted(GUEST.iterdir())
        recipe = b"".join(script.read_bytes() for script in scripts) + " ".join(INITRAMFS_MODULES).encode()
        path = self.folder / f"initramfs-{hashlib.sha256(recipe).hexdigest()[:16]}"
        with locked(self.folder / "initramfs.lock"):
            if not path.exists():
                for old in self.folder.glob("initramfs-*"):
                    old.unlink()
                self._make_initramfs(path, scripts)
        return path

    def _make_initramfs(self, path: Path, scripts: list[Path]) -> None:
        tree = self.folder / "initramfs.tree"
        shutil.rmtree(tree, ignore_errors=True)
        for folder in ("bin", "dev", "proc", "sys", "modules"):
            (tree / folder).mkdir(parents=True)
        shutil.copy(self.folder / "root/bin/busybox", tree / "bin/busybox")
        for script in scripts:
            name = "init" if script.name == "initramfs-init" else f"guest-{script.name}"
            shutil.copy(script, tree / name)
            (tree / name).chmod(0o755)
        order = load_order((self.modules / "modules.dep").read_text(), INITRAMFS_MODULES)
        with (tree / "modules/order").open("w") as file:
            for module in order:
                name = Path(module).name.removesuffix(".xz")
                (tree / "modules" / name).write_bytes(_unxz((self.modules / module).read_bytes()))
                print(name, file=file)
        names = "\n".join(str(entry.relative_to(tree)) for entry in sorted(tree.rglob("*")))
        new = self.folder / "initramfs.new"
        pack = ["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet"]
        with new.open("wb") as archive:
            call(pack, "packing the initramfs", cwd=tree, input=names, stdout=archive)
        new.rename(path)
        shutil.rmtree(tree)


def prepare(name: str) -> Kernel:
    """The kernel `name` of KERNELS; downloaded and unpacked, or built, if that has not been done."""
    if name not in KERNELS:
        raise HarnessError(f"no kernel {name!r}: there are {', '.join(KERNELS)}")
    source = KERNELS[name]
    if source.built:
        return Kernel(name, from_source.prepare(name, source.flavour, source.arch, source_of(name)))

    def make(folder: Path) -> None:
        with step(f"downloading kernel {name}"):
            release = _download(source, folder / "packages")
        with step(f"unpacking {release}"):
            for package in sorted((folder / "packages").glob("*.deb")):
                call(["dpkg-deb", "-x", package, folder / "root"], "unpacking")
            shutil.rmtree(folder / "packages")
            image = (folder / f"root/boot/vmlinuz-{release}").read_bytes()
            _unpack(image, folder / source.arch.stock_image)
            call(["depmod", "-b", folder / "root", release], "indexing the kernel's modules")
            (folder / "release").write_text(release)

    return Kernel(name, cached(f"kernel-{name}", make))


def cached_release(name: str) -> str | None:
    """The release of a kernel that would not have to be downloaded or built, else None."""
    kernel = KERNELS[name]
    if not kernel.built:
        folder: Path | None = cache_folder() / f"kernel-{name}"
    elif (source := cache_folder() / _source_name(name)).exists():
        folder = from_source.folder(name, kernel.flavour, kernel.arch, source)
    else:
        folder = None
    return (folder / "release").read_text() if folder is not None and folder.exists() else None


def _source_name(name: str) -> str:
    """The folder of the cache with its source; the newest one is the same for all."""
    return f"source-{'debug-7' if KERNELS[name].package == NEWEST else name}"


def source_of(name: str) -> Path:
    """The folder with a kernel's source (linux-source-*.tar.xz), its version, and busybox in root/."""
    source, arch = KERNELS[name], KERNELS[name].arch

    def make(folder: Path) -> None:
        with step(f"downloading the source of kernel {name}"):
            apt.update(arch)
            (package,) = apt.depends(arch, source.package, "linux-source-")
            if not package.removeprefix("linux-source-").startswith(source.series):
                raise HarnessError(f"{source.package} is {package} now: choose another kernel")
            apt.download(arch, [package, "busybox-static"], folder)
            for archive in folder.glob("*.deb"):
                call(["dpkg-deb", "-x", archive, folder / "root"], "unpacking")
                if archive.name.startswith(package):
                    (folder / "version").write_text(archive.name)
                archive.unlink()
            (folder / f"root/usr/src/{package}.tar.xz").rename(folder / f"{package}.tar.xz")
            shutil.rmtree(folder / "root/usr")

    return cached(_source_name(name), make)


def checkpatch() -> Path:
    """The folder with checkpatch.pl, which of Debian's packages only the kernel's source has."""

    def make(folder: Path) -> None:
        (archive,) = source_of("debug-6.1").glob("*.tar.xz")
        with step("unpacking checkpatch.pl"):
            names = ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch")
            wanted = [f"linux-source-6.1/scripts/{name}" for name in names]
            call(["tar", "-C", folder, "--strip-components=2", "-xf", archive, *wanted], "unpacking")

    return cached("checkpatch", make)


def load_order(modules_dep: str, names: Iterable[str]) -> list[str]:
    """The files to load for `names`, each behind what it depends on, from the text of modules.dep."""
    dependencies = {}
    for line in modules_dep.splitlines():
        path, needs = line.split(":")
        dependencies[path] = needs.split()
    by_name = {re.sub(r"\.ko(\.xz)?$", "", Path(path).name).replace("-", "_"): path for path in dependencies}
    order: dict[str, None] = {}
    for name in names:
        found = by_name.get(name.replace("-", "_"))
        if found is not None:  # else it is built in
            # modules.dep names the nearest first, so the last is to be loaded first.
            order.update(dict.fromkeys([*reversed(dependencies[found]), found]))
    return list(order)


def _download(source: Source, folder: Path) -> str:
    """Download a kernel, its headers and what these need, and busybox; returns the kernel's release."""
    folder.mkdir()
    arch = source.arch
    apt.update(arch)
    (image,) = apt.depends(arch, source.package, "linux-image-")
    release = image.removeprefix("linux-image-")
    if not release.startswith(source.series):
        raise HarnessError(f"{source.package} is {release} now, not {source.series}x: choose another kernel")
    headers = f"linux-headers-{release}"
    needed = apt.depends(arch, headers, "linux-headers-")
    # Programs that builds run: the host's.
    tools = [f"{name}:{AMD64.name}" for name in apt.depends(arch, headers, "linux-kbuild-")]
    apt.download(arch, [image, headers, *needed, *tools, "busybox-static"], folder)
    return release


def _unpack(image: bytes, path: Path) -> None:
    """Write what QEMU boots: arm64's Image; or the ELF file in a bzImage, which takes 2 s to unpack itself"""
    if image[0x38:0x3C] == b"ARM\x64":
        path.write_bytes(image)
        return
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length - 4]  # the last 4 bytes are the size unpacked
    if payload.startswith(XZ):
        path.write_bytes(lzma.decompress(payload))
    elif payload.startswith(ZSTD):
        packed = path.with_suffix(".zst")
        packed.write_bytes(payload)
        call(["zstd", "-q", "-d", "--rm", packed, "-o", path], "unpacking the kernel")
    else:
        raise HarnessError("the kernel is packed in a way nymph-vm does not know (it knows xz and zstd)")


def _unxz(data: bytes) -> bytes:
    return lzma.decompress(data) if data.startswith(XZ) else data
