# SPDX-License-Identifier: MIT
"""A program written for the first driver, 64 and 32 bits wide, against today's module."""

import errno
import struct
import subprocess
from pathlib import Path
from typing import Any

import blake3
import pytest

SOURCE = Path(__file__).parents[1] / "guest" / "legacy_client.c"
LENGTH = 10000

EINVAL, EFAULT = errno.EINVAL, errno.EFAULT


def ring_hash(size: int, head: int, tail: int, label: int, dma_bytes: int) -> str:
    """Of a ring without active entries."""
    return blake3.blake3(struct.pack("<IIIIQQ", size, head, tail, 0, label, dma_bytes)).hexdigest()


def build(tmp_path: Path, bits: str) -> Path:
    client = tmp_path / f"legacy_client{bits}"
    made = subprocess.run(["gcc", f"-m{bits}", "-static", "-Wall", "-o", client, SOURCE], check=False,
                          capture_output=True, text=True)
    if made.returncode and bits == "32":
        pytest.skip(f"no gcc-multilib here to build for 32 bits: {made.stderr.splitlines()[0]}")
    assert made.returncode == 0, made.stderr
    return client


@pytest.mark.parametrize("user", ["root", "nymph-user"])
@pytest.mark.parametrize("bits", ["64", "32"])
def test_legacy_client(vm: Any, tmp_path: Path, bits: str, user: str) -> None:
    client = build(tmp_path, bits)
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
