# SPDX-License-Identifier: MIT
"""Compute a transcript's digest again from entries and their completion records.

kernel/pcie_nymph.h describes it at struct nymph_transcript_record.
"""

from __future__ import annotations

import errno
import struct

from blake3 import blake3

from pynymph.abi import ffi
from pynymph.errors import ArgumentError

CONTEXT = "pcie_nymph 2026-12 transcript v1"
"""The context of BLAKE3's mode that derives keys."""

RECORD_SIZE: int = ffi.sizeof("struct nymph_transcript_record")

_ENTRY = struct.Struct("=HHIQQQIIQ16x")
_RECORD = struct.Struct("=QIiQII24x32s32s8x")
_PACKED = struct.Struct("<iIHHIQQQIIQQ32s32s")


def pack(entry: bytes, record: bytes) -> bytes:
    """Make what the transcript has of an entry that has retired.

    Args:
        entry: struct nymph_entry as it was submitted, 64 bytes.
        record: its struct nymph_record, 128 bytes; times do not count.

    Returns:
        128 bytes, the same on every machine.

    Raises:
        ArgumentError: EINVAL, one has another size, or their cookies differ.
    """
    if len(entry) != _ENTRY.size or len(record) != _RECORD.size:
        message = f"give 64 bytes of an entry and 128 of its record, not {len(entry)} and {len(record)}"
        raise ArgumentError(errno.EINVAL, message)
    _, opcode, flags, length, src, dst, src_buffer, dst_buffer, cookie = _ENTRY.unpack(entry)
    of, _, status, done, engine, digests, src_digest, dst_digest = _RECORD.unpack(record)
    if of != cookie:
        message = f"the record is of cookie {of}, and the entry has cookie {cookie}; pair them by cookie"
        raise ArgumentError(errno.EINVAL, message)
    return _PACKED.pack(
        *(status, flags, opcode, digests, engine, length, src, dst, src_buffer, dst_buffer),
        *(cookie, done, src_digest, dst_digest),
    )


def digest(stream: bytes) -> bytes:
    """Compute the digest of a transcript.

    Args:
        stream: what pack() makes of each entry, in the order of retirement.

    Returns:
        BLAKE3-256, 32 bytes, as Snapshot.transcript has it when it counts so many entries.

    Raises:
        ArgumentError: EINVAL, `stream` is not whole records of 128 bytes.
    """
    if len(stream) % RECORD_SIZE:
        message = f"{len(stream)} bytes are not whole records of {RECORD_SIZE} bytes; give all of each"
        raise ArgumentError(errno.EINVAL, message)
    return blake3(stream, derive_key_context=CONTEXT).digest()
