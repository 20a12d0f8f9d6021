# SPDX-License-Identifier: MIT
"""Guests that boot a clean system as its packages left it: with its own kernel, initramfs and systemd.

Nothing of the harness is in it but two things: the disk is read-only, so its initramfs puts a RAM disk
over it; and a unit runs the check that QEMU hands in, when the system has booted.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import clean_root
from nymph_vm import accel, kernels
from nymph_vm.arch import AMD64
from nymph_vm.host import HarnessError, call, start, tool

SECONDS = 1800  # emulated; the longest are a build of the module, and the guest tests
MEMORY = 3 << 30
PACKAGES = ["linux-image-amd64", "initramfs-tools", "zstd", "systemd-sysv", "udev", "mokutil"]
CMDLINE = "console=ttyS0 root=/dev/disk/by-id/virtio-root ro quiet oops=panic panic=-1"
# Of Debian 13: virt-fw-vars is in no release before.
FIRMWARE = ["ovmf", "python3-virt-firmware", "mtools", "dosfstools", "openssl"]
FIRMWARE += ["shim-signed", "grub-efi-amd64-signed"]
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"  # whose variable it is
MAKE_FIRMWARE = f"""
openssl x509 -inform der -in mok.pub -out mok.pem
cd results
cp /usr/share/OVMF/OVMF_CODE_4M.secboot.fd code.fd
virt-fw-vars --input /usr/share/OVMF/OVMF_VARS_4M.ms.fd --output variables.fd --add-mok {SHIM} ../mok.pem
rm -f boot.img
mkfs.vfat -C boot.img 262144
mmd -i boot.img ::EFI ::EFI/BOOT ::EFI/debian
mcopy -i boot.img /usr/lib/shim/shimx64.efi.signed ::EFI/BOOT/BOOTX64.EFI
mcopy -i boot.img /usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed ::EFI/BOOT/grubx64.efi
mcopy -i boot.img ../grub.cfg ::EFI/debian
mcopy -i boot.img ../vmlinuz ../initrd ::
"""
# The last of what a root's script does.
FINISH = """
cd /etc/initramfs-tools
printf '%s\\n' overlay squashfs >> modules
cat > scripts/init-bottom/overlay << 'END'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
set -e
mkdir -p /run/over
mount -t tmpfs over /run/over
mkdir /run/over/lower /run/over/upper /run/over/work
mount -n -o move "$rootmnt" /run/over/lower
mount -t overlay -o lowerdir=/run/over/lower,upperdir=/run/over/upper,workdir=/run/over/work over "$rootmnt"
END
chmod 755 scripts/init-bottom/overlay
update-initramfs -u
cat > /usr/local/sbin/check << 'END'
#!/bin/sh
modprobe qemu_fw_cfg
bash -ex /sys/firmware/qemu_fw_cfg/by_name/opt/check/raw
echo "exit status $?"
sync
systemctl poweroff --force
END
chmod 755 /usr/local/sbin/check
cat > /etc/systemd/system/check.service << 'END'
[Unit]
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/check
StandardOutput=file:/dev/virtio-ports/check
StandardError=inherit
Environment=LC_ALL=C.UTF-8
[Install]
WantedBy=multi-user.target
END
systemctl enable check.service
cp /boot/vmlinuz-* /root/results/vmlinuz
cp /boot/initrd.img-* /root/results/initrd
cp -r /var/lib/dkms/mok.* /root/results
rm -rf /usr/local/bin/* /root/[!r]* /etc/fstab
"""


@dataclass(frozen=True)
class System:
    """A system that can be booted."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.squashfs"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initrd"

    @property
    def certificate(self) -> Path:
        """DER: of the key that DKMS signs modules with there."""
        return self.folder / "mok.pub"


def make(release: str, packages: list[str], script: str, given: dict[Path, str], folder: Path) -> System:
    """Run a script in a clean system with a kernel, as clean_root.run(), and make a disk of it."""
    system = System(folder)
    made = folder / "root.tar"
    clean_root.run(release, [*packages, *PACKAGES], f"{script}\n{FINISH}", given, folder, keep=made)
    system.disk.unlink(missing_ok=True)
    with made.open("rb") as file:
        pack = ["sqfstar", "-comp", "lz4", "-quiet", "-no-progress", system.disk]
        call(pack, "packing a disk", stdin=file)
    made.unlink()
    return system


def secure_boot(system: System) -> tuple[str, ...]:
    """Make firmware with Secure Boot and Debian's boot chain: shim, GRUB, and the system's kernel.

    The firmware knows the keys that it has on machines people buy, and shim knows that of DKMS: the variable
    is there that MokManager writes when somebody enrols a key.

    Returns:
        Options of QEMU, for check().
    """
    folder = system.folder / "firmware"
    menu = system.folder / "grub.cfg"
    menu.write_text(f"linux /vmlinuz {CMDLINE}\ninitrd /initrd\nboot\n")
    given = {path: "." for path in (menu, system.kernel, system.initramfs, system.certificate)}
    clean_root.run("trixie", FIRMWARE, MAKE_FIRMWARE, given, folder)
    code, variables, boot = (folder / name for name in ("code.fd", "variables.fd", "boot.img"))
    return (
        *("-machine", "smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={variables}"),
        *("-blockdev", f"driver=file,node-name=boot,filename={boot},read-only=on"),
        *("-device", "virtio-blk-pci,drive=boot,bootindex=0"),
    )


def check(system: System, script: str, firmware: tuple[str, ...] = ()) -> str:
    """Boot it, run a check as root once it is up, and power it off.

    Args:
        system: is not changed
        script: for bash, and is echoed
        firmware: options of QEMU for what boots the kernel, from secure_boot(). None: QEMU itself does.

    Returns:
        What the script wrote.

    Raises HarnessError with the last of that and of the console.
    """
    run = system.folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    (run / "check").write_text(script)
    said, console = run / "said.txt", run / "console.txt"
    if not firmware:
        kernel = ("-kernel", system.kernel, "-initrd", system.initramfs, "-append", CMDLINE)
        firmware = tuple(str(each) for each in kernel)
    used = accel.choose(kernels.prepare(kernels.DEFAULT))
    options = {
        "accel": used,
        "cpu": "host" if used == "kvm" else AMD64.cpu,
        "machine": "q35",
        "smp": "2",
        "m": f"{MEMORY >> 20}M",
        "display": "none",
        "serial": f"file:{console}",
        "fw_cfg": f"name=opt/check,file={run / 'check'}",
        "blockdev": f"driver=file,node-name=disk,filename={system.disk},read-only=on",
    }
    command = [tool(AMD64.qemu), "-nodefaults", "-no-reboot", *firmware]
    for name, value in options.items():
        command += [f"-{name}", str(value)]
    command += [
        *("-device", "virtio-blk-pci,drive=disk,serial=root"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"file,id=check,path={said}", "-device", "virtserialport,chardev=check,name=check"),
    ]  # fmt: skip
    ended = _run(command, run / "qemu.txt")
    # QEMU 7.2 crashes at times as it starts, before the guest's first word.
    if "-11" in ended and not (console.exists() and console.stat().st_size):
        ended = _run(command, run / "qemu.txt")
    output = said.read_text(errors="replace") if said.exists() else ""
    if not output.endswith("exit status 0\n"):
        last = "\n".join(
            line
            for path in (run / "qemu.txt", console, said)
            if path.exists()
            for line in (f"-- {path}", *path.read_text(errors="replace").splitlines()[-40:])
        )
        raise HarnessError(f"the check failed, and {ended}:\n{last}")
    return output


def _run(command: list[str], log: Path) -> str:
    """Run QEMU until its end, at most for SECONDS. Returns how it ended."""
    with log.open("w") as file:
        qemu = start(command, stdout=file, stderr=file)
    try:
        qemu.wait(SECONDS)
        return f"QEMU ended with status {qemu.returncode}"
    except subprocess.TimeoutExpired:
        return f"QEMU did not end in {SECONDS} s"
    finally:
        qemu.kill()
        qemu.wait()
