# SPDX-License-Identifier: MIT
"""Builds a kernel module and tries it in a virtual machine, without root.

- arch: what differs between the guests' architectures
- kernels, from_source: Debian's kernels and headers, unpacked; kernels built from their source
- root: Debian roots: the guest's disk, and the place the builds run in
- build: modules, and this checkout's Python binding
- accel: KVM if a guest really runs under it, else TCG
- machine, state: a running virtual machine
- cli: the command nymph-vm
- pytest_plugin, guest_plugin, kmsg: the fixture `vm` on the host; in the guest, gates for kernel log and pins
- double_fetch: the gate for what the kernel reads twice
"""
