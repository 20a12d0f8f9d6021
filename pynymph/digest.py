# SPDX-License-Identifier: MIT
"""Compute the driver's digests again in user space, with the official `blake3` package.

All are BLAKE3-256: 32 bytes.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from blake3 import blake3

from pynymph._tree import ffi, lib
from pynymph.buffer import RingBuffer, octets, with_bytes
from pynymph.errors import ArgumentError
from pynymph.integers import UINT64_MAX, whole

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pynymph.state import Snapshot


# The chaining value that all starts from, and the flag of a keyed digest.
IV = bytes.fromhex("67e6096a85ae67bb72f36e3c3af54fa57f520e518c68059babd9831f19cde05b")
KEYED = 16

_TOGETHER = 256 << 10
"""Bytes from which on a thread of its own is worth it."""


def payload(buffer: Buffer) -> bytes:
    """Digest all bytes of `buffer` as the driver does.

    Args:
        buffer: as `src` of Ring.copy(); it may be empty.

    Returns:
        BLAKE3-256, 32 bytes.

    Raises:
        ArgumentError: EINVAL, its memory can't be used as it is; the message says what can.
    """
    buffer = with_bytes(buffer, "buffer")
    with buffer.view if isinstance(buffer, RingBuffer) else octets(buffer) as view:
        return blake3(view).digest()


def ring_hash(snapshot: Snapshot) -> bytes:
    """Compute the hash of the ring as `snapshot` found it. The driver's own is snapshot.ring_hash.

    Returns:
        BLAKE3-256, 32 bytes.

    Raises:
        NotImplementedError: this machine is not little-endian.
    """
    if sys.byteorder != "little":
        raise NotImplementedError("the ring is hashed in little-endian form, and this machine's is another")
    hasher = blake3(snapshot.ring_bytes)
    hasher.update(snapshot.entry_bytes)
    hasher.update(whole(snapshot.dma_bytes, "dma_bytes", 0, UINT64_MAX).to_bytes(8, "little"))
    return hasher.digest()


def mode(key: bytes | None) -> tuple[tuple[int, ...], int]:
    """Return the eight words that every compression starts from, and its flags.

    Raises:
        ArgumentError: EINVAL, `key` is not None and has not 32 bytes.
    """
    if key is not None and len(key) != 32:
        raise ArgumentError(errno.EINVAL, f"a key has 32 bytes, and this one {len(key)}")
    return struct.unpack("<8I", IV if key is None else key), 0 if key is None else KEYED


def tree(buffer: Buffer, level: int, *, key: bytes | None = None) -> bytes:
    """Make the nodes of one level of a buffer's BLAKE3 tree, with all CPUs.

    Two copies differ exactly in those spans of 2**level KiB whose nodes differ: see differing().

    Args:
        buffer: as for payload().
        level: of nodes that span 2**level KiB each, the last one less; 0 to 53.
        key: 32 bytes for a keyed digest.

    Returns:
        The nodes one after the other, 32 bytes each: their chaining values, or the digest if it is one.

    Raises:
        ArgumentError: EINVAL, no such level or key.
    """
    if not 0 <= level <= 53:
        raise ArgumentError(errno.EINVAL, f"a tree has levels 0 to 53, and not {level}")
    words, flags = mode(key)
    buffer = with_bytes(buffer, "buffer")
    with buffer.view if isinstance(buffer, RingBuffer) else octets(buffer) as view:
        span, nbytes = 1024 << level, len(view)
        count = max(1, -(-nbytes // span))
        if count == 1:
            return (blake3(view) if key is None else blake3(view, key=key)).digest()
        data, out = ffi.from_buffer(view), bytearray(32 * count)
        to = ffi.from_buffer(out)
        start = ffi.new("uint32_t[8]", words)
        each = max(1, _TOGETHER // span)

        def make(first: int) -> None:
            begin = first * span
            length = min(nbytes - begin, each * span)
            lib.nymph_tree_nodes(data + begin, length, begin // 1024, start, flags, level, to + 32 * first)

        if nbytes <= 4 * _TOGETHER:
            for first in range(0, count, each):
                make(first)
        else:
            # The lock is released during this.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(make, range(0, count, each)))
        ffi.release(to)
        ffi.release(data)
        return bytes(out)


def root(nodes: bytes, *, key: bytes | None = None) -> bytes:
    """Make the digest from all nodes of one level.

    Args:
        nodes: 32 bytes each, as tree() returns them.
        key: the 32 bytes that tree() got.

    Returns:
        BLAKE3-256, 32 bytes.
    """
    if len(nodes) <= 32:
        return nodes
    words, flags = mode(key)
    room = ffi.new("uint8_t[]", nodes)
    lib.nymph_tree_root(room, len(nodes) // 32, ffi.new("uint32_t[8]", words), flags)
    return bytes(ffi.buffer(room, 32))


def differing(one: bytes, other: bytes, level: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Find the spans of bytes in which two copies of `nbytes` differ.

    Args:
        one: the nodes of one copy, as tree() returns them.
        other: the nodes of the other copy.
        level: of the nodes.
        nbytes: of each copy.

    Yields:
        (begin, end) of each span in bytes; neighbours are joined.
    """
    span = 1024 << level
    begin = None
    for i in range(max(1, -(-nbytes // span)) + 1):
        same = one[32 * i : 32 * i + 32] == other[32 * i : 32 * i + 32]
        if not same and begin is None:
            begin = i * span
        elif same and begin is not None:
            yield begin, min(i * span, nbytes)
            begin = None
