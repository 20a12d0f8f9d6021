# SPDX-License-Identifier: MIT
"""Clean systems for packages: Debian's smallest, in a root without this checkout, that is gone afterwards.

No kernel of such a root runs. So `uname -r` says there the release of the headers that are installed,
modprobe looks only whether the module is there for it, and `sudo` is there without a password.
"""

import hashlib
import os
import shlex
import subprocess
from pathlib import Path

from nymph_vm import apt, root
from nymph_vm.arch import AMD64, Arch
from nymph_vm.host import CHECKOUT, HarnessError, cached, call, step, tool

RELEASES = ("bookworm", "trixie")
LOGS = CHECKOUT / "dist/packages/logs"
INSIDE = """\
chroot "$1" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=someone \
	LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive"""
# Debian's installer writes that file, and mmdebstrap does not.
BEGIN = """\
printf '127.0.0.1 localhost\\n' > /etc/hosts
apt-get update --quiet
cd /root
"""
# DKMS leaves a `sleep 3` behind, which keeps the terminal that apt gave it: nothing can be unmounted then.
WAIT = """\
status=$?
for attempt in $(seq 20); do
	ls -l /proc/[0-9]*/root 2> /dev/null | grep -q -F -e "-> $1" || break
	sleep 0.5
done
exit $status"""
SET_UP = """\
set -e
cd /usr/local/bin
cat > sudo << 'END'
#!/bin/sh
exec "$@"
END
cat > uname << 'END'
#!/bin/sh
[ "$*" != -r ] && exec /bin/uname "$@"
ls -v /lib/modules | head -n 1
END
cat > modprobe << 'END'
#!/bin/sh
exec modinfo -k "$(uname -r)" -F version "$1"
END
chmod 755 *
useradd --create-home someone
"""


def run(
    release: str,
    packages: list[str],
    script: str,
    given: dict[Path, str],
    results: Path | None = None,
    keep: Path | None = None,
    arch: Arch = AMD64,
) -> None:
    """Unpack a root, and run a shell script in it, as root.

    Args:
        release: of Debian, one of RELEASES, or "sid"
        packages: what is installed in it before
        script: starts in /root, and is echoed
        given: files and folders of the host, and the folders below /root where they will be
        results: gets what the script leaves in /root/results
        keep: gets the root as the script left it, a tar; no root is kept if it is None
        arch: whose programs run in it; those of another than the host's are emulated

    Raises HarnessError with what was said last, and the name of the file in LOGS that has all of it.
    """
    inside = INSIDE
    hooks = []
    # pip trusts what the host's pip trusts.
    if certificates := os.environ.get("PIP_CERT"):
        hooks.append(f"upload {certificates} /root/certificates.pem")
        inside += " PIP_CERT=/root/certificates.pem"
    for path, folder in given.items():
        hooks += [f'mkdir -p "$1/root/{folder}"', f"copy-in {shlex.quote(str(path))} /root/{folder}"]
    hooks.append('chown -R 0:0 "$1/root"; mkdir "$1/root/results"')
    # From the environment: mmdebstrap repeats a hook that failed, behind what that said last.
    environment = os.environ | {"SCRIPT": f"{BEGIN}{script}"}
    hooks.append(f'{inside} sh -exc "$SCRIPT" >&2\n{WAIT}')
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        hooks.append(f"sync-out /root/results {shlex.quote(str(results))}")
    command = [
        tool("mmdebstrap"), "--variant=custom", f"--format={'tar' if keep else 'null'}",
        "--skip=update,cleanup/apt/lists", *_architecture(arch),
        f"--setup-hook=tar-in {_made(release, packages, arch)} /",
        *(f"--customize-hook={hook}" for hook in hooks),
        *(f"--aptopt={option}" for option in apt.host_options()),
        release, str(keep or "-"), "-",
    ]  # fmt: skip
    test = os.environ.get("PYTEST_CURRENT_TEST", release).split(" ")[0].rpartition("::")[2]
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{test}.log"
    with log.open("w") as file:
        done = subprocess.run(
            command, env=environment, input=apt.sources(release=release), text=True, stdout=file, stderr=file
        )
    if done.returncode:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise HarnessError(f"the script in {release} failed; {log} has all of what it said:\n{said}")


def _architecture(arch: Arch) -> list[str]:
    """mmdebstrap's options for it."""
    emulate = [] if arch.is_host else [f"--{root.binfmt_hook(arch)}", "--skip=check/qemu"]
    return [f"--architectures={arch.debian}", *emulate]


def _made(release: str, packages: list[str], arch: Arch) -> Path:
    """The root with these packages, a tar; made once, and kept."""
    recipe = repr((packages, SET_UP, INSIDE))
    name = f"root-clean-{release}-{arch.debian}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"

    def make(folder: Path) -> None:
        command = [
            "mmdebstrap", "--variant=apt", *_architecture(arch),
            f"--include={','.join(['passwd', *packages])}",
            f"--customize-hook={INSIDE} sh -c {shlex.quote(SET_UP)}",
            *(f"--aptopt={option}" for option in apt.host_options()),
            release, str(folder / "all.tar"), "-",
        ]  # fmt: skip
        with step(f"building a clean system ({release}, {arch.debian}; once)"):
            call(command, f"building a clean {release}", input=apt.sources(release=release))
            # Devices cannot be made without being root, and mmdebstrap has its own.
            with (folder / "all.tar").open("rb") as all_of_it, (folder / "root.tar").open("wb") as made:
                call(["mmtarfilter", "--path-exclude=/dev/*"], "packing it", stdin=all_of_it, stdout=made)
        (folder / "all.tar").unlink()

    return cached(name, make) / "root.tar"
