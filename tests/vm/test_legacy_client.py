# SPDX-License-Identifier: MIT
"""A program written for the first driver, 64 and 32 bits wide, against today's module."""

import errno
import struct
from pathlib import Path

import blake3
import pytest
from nymph_vm import build
from nymph_vm.machine import Machine

SOURCE = Path(__file__).parents[1] / "guest" / "legacy_client.c"
LENGTH = 10000

EINVAL, EFAULT = errno.EINVAL, errno.EFAULT


def ring_hash(size: int, head: int, tail: int, label: int, dma_bytes: int) -> str:
    """Of a ring without active entries."""
    return blake3.blake3(struct.pack("<IIIIQQ", size, head, tail, 0, label, dma_bytes)).hexdigest()


@pytest.mark.parametrize("user", ["root", "nymph-user"])
@pytest.mark.parametrize("bits", [64, 32])
def test_legacy_client_gets_the_old_answers(vm: Machine, bits: int, user: str) -> None:
    client = build.program(SOURCE, arch=vm.arch, bits=bits)
    vm.copy_in(str(client), user=user)
    output = vm.run([f"./{client.name}"], user=user).stdout
    said = dict(line.split(" ", 1) for line in output.splitlines())

    def check_status(name: str, dma_bytes: int, size: int, digest: str) -> None:
        assert said[name] == "0 0"
        assert said[f"{name}.dma_bytes"] == str(dma_bytes)
        assert said[f"{name}.ring_size"] == str(size)
        assert said[f"{name}.active"] == "0"
        assert said[f"{name}.hash"] == digest

    zeros = ring_hash(0, 0, 0, 0, 0)
    fresh = ring_hash(256, 0, 0, 0x1000000, 0)
    check_status("status_before", 0, 0, zeros)
    assert said["submit_before"] == f"-1 {EINVAL}"
    assert said["setup"] == "0 0"
    assert said["ring"] == "0 0"
    assert said["ring.fields"] == "256 0 0 0 0x1000000"
    check_status("status", 0, 256, fresh)
    for name in ("made_up", "made_up_sync", "made_up_zero_copy"):
        assert said[name] == f"-1 {EFAULT}"
    check_status("status_unchanged", 0, 256, fresh)
    assert said["copy"] == "0 0"
    assert said["copy.same"] == said["copy.desc_unchanged"] == "1"
    assert said["ring_after.fields"] == "256 1 1 0 0x1000000"
    check_status("status_after", LENGTH, 256, ring_hash(256, 1, 1, 0x1000000, LENGTH))
    assert said["reset"] == "0 0"
    check_status("status_reset", 0, 0, zeros)
