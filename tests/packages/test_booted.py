# SPDX-License-Identifier: MIT
"""The Debian packages in systems that boot: what a user finds after installation, and a reboot."""

import re
from pathlib import Path

import clean_guest
import clean_root
import doc_blocks
import pytest
from debian_packages import DIST, HEADERS, NEEDED, blocks, built

import pynymph

RELEASES = pytest.mark.parametrize("release", clean_root.RELEASES)
# As root. Nothing here loads the module or starts the service.
CHECK = f"""
uname -r
lsmod | grep -w pcie_nymph
modinfo -F filename pcie_nymph | grep /updates/dkms/
test "$(cat /sys/module/pcie_nymph/version)" = {pynymph.__version__}
test "$(stat -c '%U:%G %a' /dev/pcie_nymph)" = 'root:nymph 660'
useradd --create-home stranger
su - someone -c '
	set -ex
	id -nG
	pynymph info
	head -c 10M /dev/urandom > source
	pynymph copy source target
	cmp source target
	rm target
	pynymph copy --json source target > report.json
	python3 - << "END"
import json, subprocess
report = json.load(open("report.json"))
assert report["engines"] == ["cpu"], report
(file,) = report["files"]
assert (file["bytes"], file["written"], file["reread"]) == (10 << 20, 10 << 20, True), report
said = subprocess.check_output(["pynymph", "hash", "--engine", "cpu", "target"], text=True)
assert said.split()[0] == file["digest"], said
END
	printf x | dd of=target bs=1 seek=5000000 conv=notrunc
	! pynymph verify source target
'
status=0; su - stranger -c 'pynymph copy /etc/passwd copy' > refused 2>&1 || status=$?
cat refused
test $status = 3
grep 'group nymph' refused
"""
SERVE = """
for attempt in $(seq 180); do
	systemctl is-active nymphd && break
	sleep 2
done
systemctl status --no-pager nymphd
test "$(stat -c %U /proc/$(systemctl show -P MainPID nymphd)/fd)" != root
python3 - << 'END'
import json, ssl, urllib.request
trust = ssl.create_default_context(cafile="/var/lib/nymphd/certificate.pem")
with urllib.request.urlopen("https://localhost:8443/readyz", context=trust) as answer:
    print(answer.status, answer.read())
END
journalctl -k -p warning -o cat --no-pager
"""


@RELEASES
def test_installed_packages_work_after_a_boot(release: str, clone: Path) -> None:
    """A user in the group copies, verified; another may not; the service runs; the kernel says nothing."""
    _, install, serve, _ = blocks(doc_blocks.INSTALL)
    script = f"mkdir clone; cd clone\n{install}\n{serve}"
    packages = {path: "." for path in built(release, clone)}
    system = clean_guest.make(release, [*NEEDED, HEADERS], script, packages, DIST / "booted" / release)
    said = clean_guest.check(system, CHECK + SERVE)
    print(said)
    # What every module says that is not the kernel's own.
    complaints = re.findall(".*nymph.*", said.rpartition("journalctl -k")[2])
    assert all("out-of-tree" in line or "module verification failed" in line for line in complaints)
