#!/bin/sh
# SPDX-License-Identifier: MIT
# Linux 7.3.4 lists sha3-256 in /proc/crypto, and AF_ALG says of it that there is no such algorithm (ENOENT), to
# root, too: AF_ALG serves the algorithms of a list in the kernel. Most of that list, such as sha256, it serves only
# with CAP_NET_ADMIN or CAP_SYS_ADMIN, and others get the same ENOENT; sha1 it serves to all. The sysctl
# crypto.af_alg_restrict, 1 by default, is what does it; with 0, all is as before.
# Boots Debian's kernel in QEMU: needs apt, gcc, cpio, kmod, xz-utils and qemu-system-x86 (seen with 7.2.22).
# Prints the version and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir -p apt/lists/partial apt/archives/partial new/bin new/proc new/tmp
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie-backports main" > apt/sources
echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" >> apt/sources
touch apt/status
apt="-qq -o Dir::Etc::sourcelist=$folder/apt/sources -o Dir::Etc::sourceparts=- -o Dir::State=$folder/apt
	-o Dir::State::status=$folder/apt/status -o Dir::Cache=$folder/apt -o APT::Sandbox::User=root"
apt-get $apt update
release=7.3.4+deb13-amd64
apt-get $apt download linux-binary-$release=7.3.4-1~bpo13+1 linux-modules-$release=7.3.4-1~bpo13+1 busybox-static
for each in *.deb; do dpkg-deb -x "$each" root; done
depmod -b "$folder/root/usr" $release 2> depmod # without the files of linux-base

cat > probe.c << 'END'
#include <errno.h>
#include <linux/if_alg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argv[1][0] == 'u' && setuid(65534))
		return 1;
	for (int i = 2; i < argc; i++) {
		struct sockaddr_alg alg = { .salg_family = AF_ALG, .salg_type = "hash" };
		int fd = socket(AF_ALG, SOCK_SEQPACKET, 0);

		strcpy((char *)alg.salg_name, argv[i]);
		int bad = bind(fd, (void *)&alg, sizeof(alg));
		printf("%s %s: %s\n", argv[1], argv[i], bad ? strerror(errno) : "served");
		close(fd);
	}
	return 0;
}
END
gcc -static -o new/bin/probe probe.c
cp root/usr/bin/busybox new/bin
modules=$(find root -path '*lib/modules' -type d)
for name in algif_hash sha3; do
	modprobe -d "${modules%/lib/modules}" -S $release --show-depends $name
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' > wanted
number=10
while read -r file; do
	number=$((number + 1))
	case $file in *.xz) xz -dc "$file" ;; *) cat "$file" ;; esac > "new/$number.ko"
done < wanted
cat > new/init << 'END'
#!/bin/busybox sh
exec 2>&1
b() { /bin/busybox "$@"; }
b mount -t proc proc /proc
for each in /*.ko; do b insmod $each; done
b uname -r
b grep -q '^name *: sha3-256$' /proc/crypto && echo 'listed sha3-256'
echo "restrict $(b cat /proc/sys/crypto/af_alg_restrict)"
/bin/probe root sha256 sha1 sha3-256
/bin/probe user sha256 sha1 sha3-256
echo 0 > /proc/sys/crypto/af_alg_restrict
echo 'restrict 0'
/bin/probe user sha256 sha3-256
b poweroff -f
END
chmod 755 new/init
(cd new && find . | cpio --quiet -o -H newc) | gzip > initramfs
qemu-system-x86_64 --version | head -1
timeout 300 qemu-system-x86_64 -accel tcg -cpu max -m 512M -nodefaults -display none -no-reboot -serial stdio \
	-kernel "$(find root -name 'vmlinuz*')" -initrd initramfs -append 'console=ttyS0 quiet panic=-1' |
	tr -d '\r' | grep -aE '^(7\.|listed|restrict|root|user) ?' | tee said
cat > expected << END
$release
listed sha3-256
restrict 1
root sha256: served
root sha1: served
root sha3-256: No such file or directory
user sha256: No such file or directory
user sha1: served
user sha3-256: No such file or directory
restrict 0
user sha256: served
user sha3-256: served
END
diff expected said
