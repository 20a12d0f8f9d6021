# SPDX-License-Identifier: MIT
"""The Debian packages, built as docs/how-to/install.md says, and what they need."""

from pathlib import Path

import clean_root
import doc_blocks
from nymph_vm.host import CHECKOUT

import pynymph

DIST = CHECKOUT / "dist/packages"
# What packages need, but for themselves: so that what they leave behind can be told from what these bring.
NEEDED = [
    "dkms",
    "python3-cffi-backend",
    "python3-click",
    "python3-rich",
    "systemd",
    "openssl",
    "procps",
    "zlib1g",
    "libstdc++6",
]
HEADERS = "linux-headers-amd64"
OLD, NEW = pynymph.__version__, "99.1.0"


def make_newer(package: str) -> str:
    """Shell commands that make new.deb of that file: pynymph-dkms as it is, but for its version, NEW."""
    return f"""
dpkg-deb -R {package} new
mv new/usr/src/pynymph-{OLD} new/usr/src/pynymph-{NEW}
grep -rl --null -F {OLD} new | xargs -0 sed -i 's/{OLD}/{NEW}/'
dpkg-deb --build new new.deb
"""


def blocks(test: str) -> list[str]:
    """The blocks of the documentation that the test of that name runs."""
    return [block.text for block in doc_blocks.run_by(test)]


_built: set[tuple[str, Path]] = set()


def built(release: str, clone: Path) -> list[Path]:
    """The packages for that release, of `clone`; built once in a session."""
    folder = DIST / release
    if (release, clone) not in _built:
        for old in folder.glob("*"):
            old.unlink()
        build = blocks(doc_blocks.INSTALL)[0]
        script = f"""
cd clone
{build}
lintian --allow-root --tag-display-limit 0 --fail-on error,warning ../pynymph_*.changes
mkdir first; mv ../*.deb first
cp -r . /var/elsewhere; cd /var/elsewhere; umask 027; export TZ=Asia/Tokyo
dpkg-buildpackage --build=binary --no-sign
for each in /root/clone/first/*.deb; do
	case $each in *dbgsym*) ;; *) cmp $each /var/${{each##*/}} ;; esac
done
cp /root/clone/first/*.deb /root/results
"""
        clean_root.run(release, ["lintian"], script, {clone: "."}, folder)
        _built.add((release, clone))
    return sorted(path for path in folder.glob("*.deb") if "dbgsym" not in path.name)
