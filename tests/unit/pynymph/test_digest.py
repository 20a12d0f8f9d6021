# SPDX-License-Identifier: MIT
"""pynymph.digest against the contract's words, packed by hand here."""

import array
import random
import struct
import threading
import time

import numpy as np
import pytest
from blake3 import blake3

from pynymph import ArgumentError, Entry, Snapshot, digest
from pynymph._tree import ffi, lib

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
        transcript=bytes(32),
        transcript_count=0,
        transcript_id=1,
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


@pytest.mark.parametrize("nbytes", [0, 1, 1024, 40_000, 40_001, 300_000])
def test_threads_digest_what_has_arrived_and_wait_for_the_rest(nbytes: int) -> None:
    data, level, chunk = random.Random(nbytes).randbytes(nbytes), 2, 16384
    count = -(-nbytes // (1024 << level))
    source, nodes, arrived = ffi.from_buffer(data), ffi.new("uint8_t[]", 32 * count), ffi.new("uint32_t *")
    key, flags = digest.mode(None)
    arrival = ffi.new(
        "struct nymph_arrival *",
        {
            "data": source,
            "nbytes": nbytes,
            "nodes": nodes,
            "arrived": arrived,
            "chunk": chunk,
            "level": level,
        },
    )
    arrival.key, arrival.flags = key, flags
    thread = threading.Thread(target=lib.nymph_tree_arriving, args=(arrival, 3), daemon=True)
    thread.start()
    for chunks in range(-(-nbytes // chunk) + 1):
        time.sleep(0.002)
        # Nothing is read before it is there: no node is made of the chunks behind.
        made = -(-min(arrived[0] * chunk, nbytes) // (1024 << level))
        assert not any(ffi.buffer(nodes)[32 * made :])
        arrived[0] = chunks
    thread.join()
    made = ffi.buffer(nodes)[:]
    assert made == (b"" if count == 0 else digest.tree(data, level) if count > 1 else made)
    if count > 1:
        assert digest.root(made) == blake3(data).digest()


def test_threads_that_wait_for_bytes_can_be_stopped() -> None:
    data, nodes, arrived = bytes(10_000), ffi.new("uint8_t[]", 320), ffi.new("uint32_t *")
    source = ffi.from_buffer(data)
    arrival = ffi.new(
        "struct nymph_arrival *",
        {"data": source, "nbytes": 10_000, "nodes": nodes, "arrived": arrived, "chunk": 4096},
    )
    thread = threading.Thread(target=lib.nymph_tree_arriving, args=(arrival, 3), daemon=True)
    thread.start()
    arrival.stop = 1
    thread.join()
    assert ffi.buffer(nodes)[:] == bytes(320)
