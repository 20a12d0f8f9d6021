# SPDX-License-Identifier: MIT
"""pynymph.digest against the contract's words, packed by hand here."""

import array
import struct

import numpy as np
import pytest
from blake3 import blake3

from pynymph import ArgumentError, Entry, Snapshot, digest

EMPTY = bytes.fromhex("af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262")


def snapshot(entries: list[Entry], dma_bytes: int, label: int) -> Snapshot:
    head, tail = len(entries) % 8, 0
    return Snapshot(
        ring_size=8,
        head=head,
        tail=tail,
        label=label,
        dma_bytes=dma_bytes,
        ring_hash=b"",
        active_descriptors=len(entries),
        unread_records=0,
        errors=0,
        first_error=0,
        paused=True,
        engine="cpu",
        ring_bytes=struct.pack("<IIIIQ", 8, head, tail, 0, label),
        entry_bytes=b"".join(
            struct.pack("<HHIQQQIIQQQ", 64, e.opcode, e.flags, e.length, e.src, e.dst, 0, 0, e.cookie, 0, 0)
            for e in entries
        ),
    )


ENTRIES = [Entry(1, 16, 4096 * n, 0x7F00_0000_0000 + n, 0x7F11_0000_0000, 2**64 - n) for n in (1, 2, 3)]


def test_snapshot_entries_match_its_bytes() -> None:
    assert snapshot(ENTRIES, 0, 0).entries == tuple(ENTRIES)
    assert snapshot([], 0, 0).entries == ()


def test_ring_hash_is_of_ring_entries_and_bytes_in_order() -> None:
    taken = snapshot(ENTRIES, 12345, 0x1000000)
    assert len(taken.ring_bytes) == 24
    assert len(taken.entry_bytes) == 3 * 64
    plain = taken.ring_bytes + taken.entry_bytes + struct.pack("<Q", 12345)
    assert digest.ring_hash(taken) == blake3(plain).digest()


def test_ring_hash_changes_with_each_of_its_parts() -> None:
    hashes = {
        digest.ring_hash(snapshot(entries, dma_bytes, label))
        for entries in ([], ENTRIES, ENTRIES[::-1])
        for dma_bytes in (0, 1)
        for label in (0, 1)
    }
    assert len(hashes) == 3 * 2 * 2


@pytest.mark.parametrize(
    "buffer",
    [
        b"\1\2\3\4" * 1000,
        bytearray(b"\1\2\3\4" * 1000),
        memoryview(b"\1\2\3\4" * 1000),
        array.array("I", [0x04030201] * 1000),
        np.full((10, 100), 0x04030201, dtype="<u4"),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_payload_hashes_the_bytes_of_any_buffer(buffer: bytes) -> None:
    assert digest.payload(buffer) == blake3(b"\1\2\3\4" * 1000).digest()


def test_payload_of_nothing_is_the_empty_hash() -> None:
    assert digest.payload(b"") == EMPTY


def test_payload_refuses_gaps() -> None:
    with pytest.raises(ArgumentError, match="contiguous"):
        digest.payload(memoryview(bytes(16))[::2])
