# SPDX-License-Identifier: MIT
"""Debian bookworm roots, made without root: guests' disks, and the place where builds for them run.

The plain disk has Python with all wheels, sshd and udev; that with systemd has what nymphd needs, too; the
place has compilers. For guests of the host's architecture the plain disk and the place are one root. Nothing
of this checkout is in them.
"""

import hashlib
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nymph_vm import apt
from nymph_vm.arch import AMD64, Arch
from nymph_vm.host import CHECKOUT, HarnessError, cached, call, step, tool

PYTHON = "3.11"
GLIBC = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")  # 2.36 runs all of these

GUEST_PACKAGES = ["python3", "openssh-server", "udev", "kmod", "procps"]
GUEST_PACKAGES += ["keyutils", "tpm2-tools"]  # for what the driver and a TPM attest
BUILD_PACKAGES = ["python3", "gcc", "make", "libc6-dev", "libpython3-dev", "libelf1", "pahole", "sparse"]
BUILD_PACKAGES += ["liburing-dev"]  # for programs with io_uring
BUILD_PACKAGES += ["bc", "bison", "flex", "kmod", "libelf-dev", "xz-utils"]  # for whole kernels
BINFMT = Path("/usr/lib/binfmt.d")  # which programs run those of other architectures
USERS = ("root", "nymph-user", "other-user")
# For tests of any module; and what pynymph depends on, so that all projects share one disk.
WHEELS = ["setuptools>=68", "pytest>=8", "hypothesis>=6", "numpy>=1.26"]
WHEELS += ["cbor2>=6", "cffi>=1.15", "click>=8.1", "ioctl-opt>=1.3", "blake3>=1.0", "rich>=13"]

# Documentation, and what sparse and gcc bring along for jobs they do not have here.
LEFT_OUT = [
    *(f"/usr/share/{folder}/*" for folder in ("doc", "man", "info", "locale")),
    *(f"/usr/lib/*/{library}*" for library in ("libLLVM", "libz3", "libicudata")),
    "/usr/lib/udev/hwdb*",
    "/usr/lib/gcc/*/lto1",
    "/usr/bin/*lto-dump*",
]

SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PasswordAuthentication no
UsePAM no
UseDNS no
MaxSessions 1000
Subsystem sftp internal-sftp
"""

# The user who will be in the group may use the device, the other may not.
SETUP = """\
useradd --create-home --shell /bin/bash --password '*' nymph-user
useradd --create-home --shell /bin/bash --password '*' other-user
python3 -m compileall -q -j 0 /usr/local/lib/python3.11/dist-packages
"""

# Nobody logs in on a console, nothing happens by itself behind a test's back, and no hardware is looked for.
MASKED = (
    *("getty.target", "timers.target", "systemd-logind.service", "e2scrub_reap.service"),
    *("modprobe@.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount"),
    *("sys-kernel-config.mount", "dev-hugepages.mount", "dev-mqueue.mount"),
    *("systemd-random-seed.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
)


@dataclass(frozen=True)
class Image:
    """What makes a kind of root."""

    setup: str
    packages: tuple[str, ...] = ()  # beside those of every guest
    runs: tuple[str, ...] = ()  # folders of the checkout with distributions, whose wheels it has, too
    to_build_in: bool = False


IMAGES = {
    "plain": Image(
        f"{SETUP}groupadd --system nymph\nusermod --append --groups nymph nymph-user\n", to_build_in=True
    ),
    "systemd": Image(
        f"{SETUP}systemctl -q mask {' '.join(MASKED)}\n", packages=("systemd",), runs=("nymphd",)
    ),
}
PLAIN = "plain"


@dataclass(frozen=True)
class Root:
    """A finished root: `image` for guests, `tree` to build in if it is plain, keys to get into a guest."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "root.squashfs"

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"


def prepare(arch: Arch = AMD64, image: str = PLAIN) -> Root:
    """The root of that kind, a key of IMAGES, for guests of that architecture.

    Built first if its recipe changed or there is none.
    """
    kind = IMAGES[image]
    wheels = sorted([*(each for folder in kind.runs for each in _dependencies(folder)), *WHEELS])
    packages = [*GUEST_PACKAGES, *BUILD_PACKAGES, *arch.build_packages]
    recipe = repr((PYTHON, GLIBC, kind, packages, wheels, LEFT_OUT, SSHD_CONFIG))
    name = f"root-{image}-{arch.debian}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    return Root(cached(name, lambda folder: _make(Root(folder), arch, kind, wheels)))


def _dependencies(folder: str) -> list[str]:
    """What the distribution in that folder of the checkout needs, but for pynymph, which is here, too."""
    project = tomllib.loads((CHECKOUT / folder / "pyproject.toml").read_text())["project"]
    return [each for each in project["dependencies"] if not each.startswith("pynymph")]


def _make(root: Root, arch: Arch, kind: Image, wheels: list[str]) -> None:
    _check_subordinate_ids()
    work = root.folder / "work"
    work.mkdir()
    emulate = [] if arch.is_host else [binfmt_hook(arch)]
    with step("downloading the guest's Python packages"):
        for each in {arch.debian: arch, AMD64.debian: AMD64}.values():
            _download_wheels(wheels, each, work / each.debian / "dist-packages")
    _make_keys(root, work)
    (work / "sshd_config").write_text(SSHD_CONFIG)
    (work / "setup").write_text(kind.setup)
    build = [*BUILD_PACKAGES, *arch.build_packages]
    guest = [*GUEST_PACKAGES, *kind.packages, *(build if kind.to_build_in and arch.is_host else [])]
    with step(f"building the guest's disk (Debian bookworm, {arch.debian}; takes the longest, once)"):
        hooks = [*emulate, *_copy_wheels(arch), *_set_up_guest()]
        disk = _mmdebstrap(work, [arch.debian], guest, hooks)
        with disk.open("rb") as file:
            pack = ["sqfstar", "-comp", "lz4", "-quiet", "-no-progress"]
            call([*pack, root.image], "packing the guest's disk", stdin=file)
    if kind.to_build_in:
        _unpack_place(root, arch, disk, build)
    shutil.rmtree(work)


def _unpack_place(root: Root, arch: Arch, place: Path, packages: list[str]) -> None:
    if not arch.is_host:
        with step(f"building the place to build for {arch.debian} in (once)"):
            place = _mmdebstrap(place.parent, [AMD64.debian, arch.debian], packages, _copy_wheels(AMD64))
    with step("unpacking the place to build in"):
        root.tree.mkdir()
        call(
            ["tar", "-C", root.tree, "--no-same-owner", "--exclude=./dev/*", "-xf", place],
            "unpacking the build root",
        )


def binfmt_hook(arch: Arch) -> str:
    """Has mmdebstrap see to it that programs of that architecture run: its host has it, or its namespace."""
    rule = BINFMT / f"qemu-{arch.uname}.conf"
    if not rule.exists():
        raise HarnessError(f"{rule} is missing: `sudo apt-get install qemu-user-static`")
    mounted = Path("/proc/sys/fs/binfmt_misc")
    cannot = f"This kernel runs no programs for {arch.debian}: sudo systemctl restart systemd-binfmt"
    return (
        f"setup-hook=test -e {mounted / rule.stem} || {{ mount -t binfmt_misc binfmt_misc {mounted} && "
        f"cat {rule} > {mounted}/register; }} || {{ echo '{cannot}' >&2; exit 1; }}"
    )


def _check_subordinate_ids() -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    for file in ("/etc/subuid", "/etc/subgid"):
        lines = Path(file).read_text().splitlines() if Path(file).exists() else []
        if os.getuid() and not any(line.startswith(f"{user}:") for line in lines):
            raise HarnessError(
                f"{user} has no line in {file}, and nothing can be built as another user without: "
                f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
            )


def _download_wheels(wheels: list[str], arch: Arch, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    guest = ["--implementation=cp", f"--python-version={PYTHON}"]
    guest += [f"--platform={glibc}_{arch.uname}" for glibc in GLIBC]
    done = subprocess.run([*pip, *guest, "--target", folder, *wheels], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip()[-1500:]
        raise HarnessError(f"pip could not download the guest's Python packages:\n{said}")
    for tests in folder.glob("numpy/**/tests"):
        shutil.rmtree(tests)


def _make_keys(root: Root, work: Path) -> None:
    for key in (root.key, work / "host_key"):
        options = ["-q", "-t", "ed25519", "-N", "", "-C", "nymph-vm"]
        call(["ssh-keygen", *options, "-f", key], "making an SSH key")
    kind, public, _ = (work / "host_key.pub").read_text().split()
    root.known_hosts.write_text(f"nymph {kind} {public}\n")


def _copy_wheels(arch: Arch) -> list[str]:
    return [
        'customize-hook=mkdir -p "$1/usr/local/lib/python3.11"',
        f"customize-hook=copy-in {arch.debian}/dist-packages /usr/local/lib/python3.11",
        'customize-hook=chown -R 0:0 "$1/usr/local"',
    ]


def _set_up_guest() -> list[str]:
    uploads = {
        "sshd_config": "/etc/ssh/sshd_config",
        "host_key": "/etc/ssh/ssh_host_ed25519_key",
        "../id_ed25519.pub": "/etc/ssh/authorized_keys",
        "setup": "/tmp/setup",
    }
    hooks = ['rm "$1"/etc/ssh/ssh_host_*']
    hooks += [f"upload {name} {target}" for name, target in uploads.items()]
    hooks += [
        'chown -R 0:0 "$1/etc/ssh"; chmod 644 "$1/etc/ssh/authorized_keys"',
        'chmod 600 "$1/etc/ssh/ssh_host_ed25519_key"',
        'chroot "$1" sh -e /tmp/setup; rm "$1/tmp/setup"',
    ]
    return [f"customize-hook={hook}" for hook in hooks]


def _mmdebstrap(work: Path, archs: list[str], packages: list[str], hooks: list[str]) -> Path:
    """Have mmdebstrap make a root of Debian packages, of the first of these architectures; returns a tar.

    hooks: what is to be done inside, as its options.
    """
    made = work / f"{archs[0]}.tar"
    with made.open("wb") as archive:
        call(
            [
                "mmdebstrap", "--mode=unshare", "--variant=minbase", f"--include={','.join(packages)}",
                f"--architectures={','.join(archs)}", "--skip=check/qemu",
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
                *(f"--aptopt={option}" for option in apt.host_options()),
                *(f"--{hook}" for hook in hooks),
                "bookworm", "-", "-",
            ],
            "building a Debian root", cwd=work, input=apt.sources(), stdout=archive,
        )  # fmt: skip
    return made


def run_inside(
    root: Root,
    mounts: dict[Path, str],
    script: str,
    sources: IO[bytes],
    results: Path,
    on_line: Callable[[str], None] = lambda line: None,
) -> str:
    """Run a shell script in the build root, without root and without writing to it.

    The archive `sources` (a tar) is unpacked into the script's working directory, on a RAM disk; the folder
    out/ that the script leaves there is unpacked into `results`. `mounts`: folders of the cache, and where
    they are to be seen inside, relative to /. on_line: called with each line the script writes, as it comes.
    Returns what the script wrote, or raises HarnessError with it.
    """
    # The user namespace cannot look into a private home folder, but it can be started in one: hence paths
    # relative to the cache, and --no-canonicalize.
    cache = root.folder.parent
    tree = root.tree.relative_to(cache)
    binds = ""
    for folder, target in mounts.items():
        (root.tree / target).mkdir(parents=True, exist_ok=True)
        binds += f"mount --no-canonicalize --bind '{folder.relative_to(cache)}' '{tree}/{target}'\n"
    enter = f"""set -e
        {binds}
        mount --no-canonicalize --rbind /dev {tree}/dev
        mount --no-canonicalize --rbind /proc {tree}/proc
        mount --no-canonicalize -t tmpfs build {tree}/tmp
        exec /usr/sbin/chroot {tree} /bin/sh -ec "$1"
    """
    inside = f"""
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8
        mkdir /tmp/build; cd /tmp/build; tar -xf -
        {{ {script}
        }} >&2
        tar -cf - -C out .
    """
    with tempfile.TemporaryFile() as archive:
        with subprocess.Popen(
            [tool("mmdebstrap"), "--unshare-helper", "/bin/sh", "-c", enter, "sh", inside],
            cwd=cache,
            stdin=sources,
            stdout=archive,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as shell:
            assert shell.stderr
            lines = []
            for line in shell.stderr:
                lines.append(line)
                on_line(line)
        said = re.sub(
            r"\nE: (system|unshared) .*", "", "".join(lines).strip()
        )  # mmdebstrap's view of a failure
        if shell.returncode:
            raise HarnessError(said)
        archive.seek(0)
        subprocess.run([tool("tar"), "-C", results, "--no-same-owner", "-xf", "-"], stdin=archive, check=True)
    return said
