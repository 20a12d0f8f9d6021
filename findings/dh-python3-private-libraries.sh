#!/bin/sh
# SPDX-License-Identifier: MIT
# dh_python3, told of a private folder with wheels in it, gives shared libraries there the name of a Python extension:
# numpy.libs/libscipy_openblas64_-32a4b2a6.so becomes ...cpython-311-x86_64-linux-gnu.so, and NumPy no longer finds
# it. Libraries with a version behind .so keep their names. Seen with dh-python 5.20230130+deb12u1 of Debian 12.
# Prints version and output; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder" # apt's own user downloads
cd "$folder"
apt-get download -qq dh-python=5.20230130+deb12u1
dpkg-deb -x dh-python_*.deb root
mkdir -p debian/served/usr/lib/served/numpy.libs
cat > debian/control << 'END'
Source: served
Maintainer: Nobody <nobody@example.org>
Build-Depends: debhelper-compat (= 13), dh-python

Package: served
Architecture: any
Depends: ${python3:Depends}
Description: none
END
echo 'int nothing;' | gcc -shared -x c - -o debian/served/usr/lib/served/numpy.libs/libscipy_openblas64_-32a4b2a6.so
cp debian/served/usr/lib/served/numpy.libs/libscipy_openblas64_-32a4b2a6.so debian/served/usr/lib/served/numpy.libs/libother-1.so.5
PATH="$folder/root/usr/bin:$PATH" PYTHONPATH="$folder/root/usr/share/dh-python" DEB_HOST_MULTIARCH=x86_64-linux-gnu \
	/usr/bin/python3 root/usr/share/dh-python/dh_python3 -pserved --no-guessing-deps /usr/lib/served || true
ls debian/served/usr/lib/served/numpy.libs
ls debian/served/usr/lib/served/numpy.libs | grep -q '^libscipy_openblas64_-32a4b2a6.cpython-.*\.so$'
test -e debian/served/usr/lib/served/numpy.libs/libother-1.so.5
