# SPDX-License-Identifier: MIT
"""Clean systems for packages: Debian's smallest, in a root without this checkout, that is gone afterwards.

No kernel of such a root runs. So `uname -r` says there the release of the headers that are installed,
modprobe looks only whether the module is there for it, and `sudo` is there without a password.
"""

import os
import shlex
from pathlib import Path

from nymph_vm import apt
from nymph_vm.host import call

RELEASES = ("bookworm", "trixie")

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
    release: str, packages: list[str], script: str, given: dict[Path, str], results: Path | None = None
) -> None:
    """Make a root, and run a shell script in it, as root.

    Args:
        release: of Debian, one of RELEASES
        packages: what is installed in it before
        script: starts in /root, and is echoed
        given: files and folders of the host, and the folders below /root where they will be
        results: gets what the script leaves in /root/results

    Raises HarnessError with what was said last.
    """
    inside = 'chroot "$1" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=someone'
    inside += " LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive"
    hooks = [f"{inside} sh -c {shlex.quote(SET_UP)}"]
    # pip trusts what the host's pip trusts.
    if certificates := os.environ.get("PIP_CERT"):
        hooks.append(f"upload {certificates} /root/certificates.pem")
        inside += " PIP_CERT=/root/certificates.pem"
    for path, folder in given.items():
        hooks += [f'mkdir -p "$1/root/{folder}"', f"copy-in {shlex.quote(str(path))} /root/{folder}"]
    hooks.append('chown -R 0:0 "$1/root"; mkdir "$1/root/results"')
    # From the environment: mmdebstrap repeats a hook that failed, behind what that said last.
    environment = os.environ | {"SCRIPT": f"cd /root\n{script}"}
    hooks.append(f'{inside} sh -exc "$SCRIPT" >&2')
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        hooks.append(f"sync-out /root/results {shlex.quote(str(results))}")
    command = ["mmdebstrap", "--variant=apt", "--format=null", "--skip=cleanup/apt/lists", release, "-", "-"]
    command[1:1] = [
        f"--include={','.join(['passwd', *packages])}",
        *(f"--customize-hook={hook}" for hook in hooks),
    ]
    command[1:1] = [f"--aptopt={option}" for option in apt.host_options()]
    call(command, f"the script in {release}", env=environment, input=apt.sources(release=release))
