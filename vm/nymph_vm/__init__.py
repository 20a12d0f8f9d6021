# SPDX-License-Identifier: MIT
"""Builds a kernel module and tries it in a virtual machine, without root.

- kernels, debug_kernel: Debian's kernels and headers, unpacked; sanitizer kernels, built from their source
- root: one Debian root: the guest's disk, and the place the builds run in
- build: the module and the Python binding, from this checkout
- accel: KVM if a guest really runs under it, else TCG
- machine, state: a running virtual machine
- cli: the command nymph-vm
- pytest_plugin, guest_plugin, kmsg: the fixture `vm` on the host; the kernel log gate in the guest
"""
