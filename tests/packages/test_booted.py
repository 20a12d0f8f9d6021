# SPDX-License-Identifier: MIT
"""The Debian packages in systems that boot: what a user finds after installation, and a reboot."""

import re
from pathlib import Path

import clean_guest
import clean_root
import doc_blocks
import pytest
from debian_packages import DIST, HEADERS, blocks, built

import pynymph

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
test "$(stat -c %u /proc/$(systemctl show -P MainPID nymphd))" != 0
python3 - << 'END'
import json, ssl, urllib.request
trust = ssl.create_default_context(cafile="/var/lib/nymphd/certificate.pem")
with urllib.request.urlopen("https://localhost:8443/readyz", context=trust) as answer:
    print(answer.status, answer.read())
END
journalctl -k -p warning -o cat --no-pager
"""


SECURE = """
mokutil --sb-state | grep 'SecureBoot enabled'
grep -F '[integrity]' /sys/kernel/security/lockdown
mokutil --test-key /var/lib/dkms/mok.pub | grep 'already enrolled'
# Out of the kernel's tree, and not unsigned.
test "$(cat /sys/module/pcie_nymph/taint)" = O
su - someone -c 'pynymph copy /etc/passwd copy && cmp /etc/passwd copy'
systemctl stop nymphd
modprobe -r pcie_nymph
cd /root
module=$(modinfo -F filename pcie_nymph)
case $module in *.xz) xz -dc $module ;; *) cat $module ;; esac > signed.ko
objcopy signed.ko unsigned.ko
openssl req -new -x509 -newkey rsa:2048 -noenc -subj /CN=other -outform DER -keyout other.key -out other.pub
sign=/lib/modules/$(uname -r)/build/scripts/sign-file
$sign sha256 other.key other.pub unsigned.ko other.ko
$sign sha256 /var/lib/dkms/mok.key /var/lib/dkms/mok.pub unsigned.ko again.ko
for each in unsigned other; do
	! insmod $each.ko 2> refused || exit 1
	cat refused
	grep 'Key was rejected by service' refused
	! test -e /dev/pcie_nymph || exit 1
done
# Of the same file, so the signature made the difference.
insmod again.ko
test -e /dev/pcie_nymph
"""


@pytest.fixture(scope="session", params=clean_root.RELEASES)
def system(request: pytest.FixtureRequest, clone: Path) -> clean_guest.System:
    """The packages installed as documented, in a system that has nothing yet of what they need."""
    release = request.param
    _, install, serve, _ = blocks(doc_blocks.INSTALL)
    script = f"mkdir clone; cd clone\n{install}\n{serve}"
    given = {path: "." for path in built(release, clone)}
    return clean_guest.make(release, [HEADERS], script, given, DIST / "booted" / release)


def test_installed_packages_work_after_a_boot(system: clean_guest.System) -> None:
    """A user in the group copies, verified; another may not; the service runs; the kernel says nothing."""
    said = clean_guest.check(system, CHECK + SERVE)
    print(said)
    complaints = re.findall(".*nymph.*", said.rpartition("journalctl -k")[2])
    # What the kernel says of every module that is not its own.
    assert complaints
    assert all("out-of-tree" in line or "module verification failed" in line for line in complaints)


def test_secure_boot_loads_what_dkms_signed_and_nothing_else(system: clean_guest.System) -> None:
    """With DKMS's key enrolled; a module without a signature, or with that of another key, is refused."""
    print(clean_guest.check(system, SECURE, clean_guest.secure_boot(system)))
