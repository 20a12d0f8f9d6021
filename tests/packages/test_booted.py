# SPDX-License-Identifier: MIT
"""The Debian packages in systems that boot: what a user finds after installation, and a reboot."""

import re
from pathlib import Path

import clean_guest
import clean_root
import doc_blocks
import pytest
from debian_packages import DIST, HEADERS, NEW, OLD, blocks, built, make_newer
from nymph_vm.host import CHECKOUT

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
	pynymph copy --evidence evidence.cbor source shown
	pynymph verify evidence.cbor source shown
	! pynymph verify evidence.cbor target
'
status=0; su - stranger -c 'pynymph copy /etc/passwd copy' > refused 2>&1 || status=$?
cat refused
test $status = 3
grep 'group nymph' refused
"""
SERVING = """
for attempt in $(seq 180); do
	systemctl is-active nymphd && break
	sleep 2
done
"""
SERVE = f"""{SERVING}
systemctl status --no-pager nymphd
test "$(stat -c %u /proc/$(systemctl show -P MainPID nymphd))" != 0
python3 - << 'END'
import ssl, time, urllib.error, urllib.request
trust = ssl.create_default_context(cafile="/var/lib/nymphd/certificate.pem")
for attempt in range(120):
    try:
        print(urllib.request.urlopen("https://localhost:8443/readyz", context=trust).read())
        break
    except urllib.error.HTTPError as error:  # it loads its models
        print(error)
        time.sleep(1)
else:
    raise SystemExit("nymphd does not get ready")
END
systemctl reload nymphd
systemctl is-active nymphd
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
# Until its standard input ends.
RING = """
import os, select, sys
import pynymph
source, count = os.urandom(1 << 20), 0
with pynymph.Ring(16) as ring:
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        target = bytearray(len(source))
        ring.copy(src=source, dst=target, verify=True)
        assert target == source
        count += 1
        print(count, file=open("/tmp/count", "w"))
"""
# A user's program has a ring open, and copies, from BEGIN to END.
BEGIN = f"""
cat > /tmp/ring.py << 'END'
{RING}
END
mkfifo /tmp/more
su - someone -c 'python3 /tmp/ring.py < /tmp/more' & ring=$!
exec 3> /tmp/more
until test -s /tmp/count; do sleep 1; done
"""
END = """
before=$(cat /tmp/count)
sleep 5
test "$(cat /tmp/count)" -gt "$before"
exec 3>&-
wait $ring
"""
PURGE = """
service=$(systemctl show -P MainPID nymphd)
{begin}
sudo() { "$@"; }
{purge}
{end}
! test -e /proc/$service || exit 1
! test -e /var/lib/nymphd || exit 1
! test -e /var/lib/private/nymphd || exit 1
! systemctl cat nymphd || exit 1
! modinfo pcie_nymph || exit 1
! find /etc /lib /usr /var -xdev -name '*nymph*' ! -path '/var/lib/apt/*' \
	! -path '/var/lib/dpkg/*' ! -path '/var/log/*' | grep . || exit 1
# As documented: until the next boot.
lsmod | grep -w pcie_nymph
rmmod pcie_nymph
! test -e /dev/pcie_nymph || exit 1
"""
# The initramfs of the next boot has neither version, so that boot loads the new one.
UPGRADE = f"""
{BEGIN}
loaded() {{ cat /sys/module/pcie_nymph/version; }}
apt-get install -y /opt/new.deb
test "$(loaded)" = {OLD}
test "$(modinfo -F version pcie_nymph)" = {NEW}
test "$(dkms status | grep -c 'pynymph/.*: installed')" = 1
systemctl stop nymphd
! modprobe -r pcie_nymph 2> refused || exit 1
grep 'Module pcie_nymph is in use' refused
{END}
su - someone -c 'pynymph copy /etc/passwd copy && cmp /etc/passwd copy'
! lsinitramfs /boot/initrd.img-$(uname -r) | grep nymph || exit 1
sudo() {{ "$@"; }}
RELOAD
test "$(loaded)" = {NEW}
su - someone -c 'rm copy; pynymph copy /etc/passwd copy && cmp /etc/passwd copy'
"""
# Examples are the checkout's, and what reads twice is found by the harness.
SUITE = """
systemctl stop nymphd
status=0
su - someone -c '
	cd /opt/guest
	python3 -m pytest -q -rfE -p no:cacheprovider --ignore=test_ring_examples.py --ignore=test_double_fetch.py
' || status=$?
dmesg --level=emerg,alert,crit,err,warn > said
! grep -v -e out-of-tree -e verification said | grep -e nymph -e Call.Trace || exit 1
exit $status
"""
TESTING = ["python3-pytest", "python3-hypothesis", "python3-numpy"]


@pytest.fixture(scope="session", params=clean_root.RELEASES)
def system(request: pytest.FixtureRequest, clone: Path) -> clean_guest.System:
    """The packages installed as documented, in a system that has nothing yet of what they need."""
    release = request.param
    _, install, serve, _ = blocks(doc_blocks.INSTALL)
    packages = built(release, clone)
    (module,) = [path.name for path in packages if "dkms" in path.name]
    script = f"""
mkdir clone; cd clone
{install}
{serve}
cd /root
{make_newer(module)}
mv new.deb guest /opt
"""
    given = {path: "." for path in (*packages, CHECKOUT / "tests/guest")}
    return clean_guest.make(release, [HEADERS, *TESTING], script, given, DIST / "booted" / release)


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


def test_purge_with_a_ring_open_leaves_the_ring_and_nothing_else(system: clean_guest.System) -> None:
    """A program goes on with the module that is loaded; the service ends, and all files are gone."""
    *_, purge = blocks(doc_blocks.INSTALL)
    script = SERVING + PURGE.replace("{begin}", BEGIN).replace("{purge}", purge).replace("{end}", END)
    print(clean_guest.check(system, script))


def test_upgrade_with_a_ring_open_leaves_the_old_module_to_it(system: clean_guest.System) -> None:
    """A program goes on with the old module, which stays loaded; when it is loaded again, the new one is."""
    (reload,) = blocks(doc_blocks.UPGRADE)
    print(clean_guest.check(system, UPGRADE.replace("RELOAD", reload)))


def test_suite_passes_for_a_member_of_the_group(system: clean_guest.System) -> None:
    """The guest's tests, with the distribution's pytest, and nothing else of the checkout."""
    said = clean_guest.check(system, SUITE)
    print(said)
    (passed,) = re.findall(r"(\d+) passed", said)
    assert int(passed) > 300
