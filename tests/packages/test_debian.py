# SPDX-License-Identifier: MIT
"""The Debian packages: docs/how-to/install.md works in clean systems; so do other versions and kernels."""

from pathlib import Path

import clean_root
import doc_blocks
import pytest
from debian_packages import HEADERS, NEEDED, NEW, OLD, blocks, built, make_newer

import pynymph

RELEASES = pytest.mark.parametrize("release", clean_root.RELEASES)
SNAPSHOT = """
snapshot() {
	find / -xdev -type d \\( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /root \\
		-o -path /run -o -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg \\
		-o -name __pycache__ \\) -prune -o ! -type d ! -name 'mok.*' ! -name '*-' \\
		! -path '/lib/modules/*/modules.*' \\
		! -path '/usr/lib/modules/*/modules.*' -print | sort
	cut -d: -f1 /etc/group
}
"""


@RELEASES
def test_packages_are_clean_and_the_same_when_built_again_elsewhere(release: str, clone: Path) -> None:
    """lintian has no error or warning; another folder, umask, time and time zone change no byte."""
    names = [path.name.split("_")[0] for path in built(release, clone)]
    assert names == ["nymphd", "pynymph-dkms", "python3-pynymph"]


# What a member of the group then does; there is no device here, and the model needs none.
USE = f"""
dkms status | grep 'pynymph/{pynymph.__version__}.*: installed'
modinfo -k $(uname -r) -F signer pcie_nymph | grep .
test "$(modinfo -k $(uname -r) -F version nymph_endpoint)" = {pynymph.__version__}
test -f /usr/include/linux/pcie_nymph.h
id -nG someone | grep -w nymph
su someone -c '
	set -ex
	cd
	echo some bytes > source
	pynymph copy --engine model source target
	cmp source target
	pynymph hash source > sums
	pynymph hash --check sums
	pynymph info | grep "not loaded"
	rm source target sums
'
man -w pynymph 2> /dev/null || test -f /usr/share/man/man1/pynymph.1.gz
"""
SERVE = """
systemctl is-enabled nymphd
systemd-analyze verify nymphd.service
mkdir -m 700 /tmp/state
nymphd serve --state-dir=/tmp/state --port=8443 & nymphd=$!
python3 - << 'END'
import ssl, time, urllib.request
for attempt in range(120):
    time.sleep(1)
    try:
        trust = ssl.create_default_context(cafile="/tmp/state/certificate.pem")
        print(urllib.request.urlopen("https://localhost:8443/readyz", context=trust).read())
        break
    except OSError as error:
        print(error)
else:
    raise SystemExit("nymphd does not answer")
END
kill $nymphd
wait $nymphd
"""


@RELEASES
def test_packages_install_as_documented(release: str, clone: Path) -> None:
    """Built for the headers that are there, used by a member of the group, purged: only the group is left."""
    _, install, serve, purge = blocks(doc_blocks.INSTALL)
    script = f"""{SNAPSHOT}
snapshot > before
mkdir clone; cd clone
{install}
{USE}
{serve}
{SERVE}
{purge}
groupdel nymph
cd; snapshot > after
diff before after
"""
    clean_root.run(release, [*NEEDED, HEADERS], script, {path: "." for path in built(release, clone)})


@RELEASES
def test_module_is_built_for_new_kernels_and_changes_version_both_ways(release: str, clone: Path) -> None:
    """A kernel that comes later, an upgrade and a downgrade: always one version, for every kernel."""
    (module,) = [path for path in built(release, clone) if "dkms" in path.name]
    script = f"""
{make_newer(module.name)}
apt-get install -y ./{module.name}
dkms status
test $(dkms status | grep -c 'pynymph/{OLD}.*: installed') = 1
apt-get install -y -t {release}-backports {HEADERS}
dkms status
test $(dkms status | grep -c 'pynymph/{OLD}.*: installed') = 2
apt-get install -y ./new.deb
test $(dkms status | grep -c 'pynymph/{NEW}.*: installed') = 2
! dkms status | grep 'pynymph/{OLD}' || exit 1
apt-get install -y --allow-downgrades ./{module.name}
test $(dkms status | grep -c 'pynymph/{OLD}.*: installed') = 2
! dkms status | grep 'pynymph/{NEW}' || exit 1
"""
    clean_root.run(release, [*NEEDED, HEADERS], script, {module: "."})


@RELEASES
def test_install_by_hand_as_documented(release: str, clone: Path) -> None:
    """`dkms add` and `make install` of a clone, and what removes them; pip in a virtual environment."""
    sign, install, dkms, python, remove = blocks(doc_blocks.BY_HAND)
    script = f"""{SNAPSHOT}
cp -r clone pristine
snapshot > before
cd clone
{dkms}
test "$(modinfo -k $(uname -r) -F version pcie_nymph)" = {pynymph.__version__}
dkms remove pynymph/{pynymph.__version__} --all
rm -r /usr/src/pynymph-{pynymph.__version__}
{install}
modinfo -k $(uname -r) -F filename pcie_nymph nymph_endpoint
( {sign} )
for each in pcie_nymph nymph_endpoint; do modinfo -k $(uname -r) -F signer $each | grep .; done
{python}
cd; ~/pynymph/bin/pynymph --version; cd clone
{remove}
cd; snapshot > after
diff before after
"""
    include = [*NEEDED, HEADERS, "python3-venv", "python3-dev", "gcc", "make", "udev"]
    clean_root.run(release, include, script, {clone: "."})
