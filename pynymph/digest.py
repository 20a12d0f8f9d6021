# SPDX-License-Identifier: MIT
"""The driver's digests, computed again in user space with the official `blake3` package.

All are BLAKE3-256: 32 bytes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pynymph.state import Snapshot


def payload(buffer: Buffer) -> bytes:
    """The digest of all bytes of a C-contiguous `buffer`, as src_digest and dst_digest of a Completion."""
    with memoryview(buffer) as view, view.cast("B") as octets:
        return blake3(octets).digest()


def ring_hash(snapshot: Snapshot) -> bytes:
    """The hash of the ring as `snapshot` found it: the driver's own is in snapshot.ring_hash."""
    if sys.byteorder != "little":
        raise NotImplementedError("the ring is hashed in little-endian form, and this machine's is another")
    hasher = blake3(snapshot.ring_bytes)
    hasher.update(snapshot.entry_bytes)
    hasher.update(snapshot.dma_bytes.to_bytes(8, "little"))
    return hasher.digest()
