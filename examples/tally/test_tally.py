# SPDX-License-Identifier: MIT
"""Runs in the guest, where the module is loaded: a test also fails if the kernel complains during it."""

from pathlib import Path

TALLY = Path("/dev/tally")


def test_each_write_is_counted() -> None:
    before = int(TALLY.read_text())
    TALLY.write_bytes(bytes(1000))
    TALLY.write_bytes(b"and these")
    assert int(TALLY.read_text()) == before + 1009


def test_the_number_can_be_read_in_parts() -> None:
    with TALLY.open("rb", buffering=0) as file:
        parts = list(iter(lambda: file.read(1), b""))
    assert int(b"".join(parts)) == int(TALLY.read_text())
