# SPDX-License-Identifier: MIT
"""Check and run entries, as the driver does."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from pynymph.abi import ffi, lib
from pynymph.model.addresses import fail, load, store
from pynymph.model.ring_state import Outcome, Slot

_PIECE = 64 * 1024

_ALWAYS = (
    lib.NYMPH_DMA_FLAG_COMPLETE_SYNC
    | lib.NYMPH_DMA_FLAG_RECORD
    | lib.NYMPH_DMA_FLAG_LINK
    | lib.NYMPH_DMA_FLAG_BARRIER
)
SERVED = _ALWAYS | (
    lib.NYMPH_DMA_FLAG_ZERO_COPY | lib.NYMPH_DMA_FLAG_VERIFY_HASH | lib.NYMPH_DMA_FLAG_DIGEST_ONLY
)


@dataclass(frozen=True)
class Opcode:
    """What there is to know of an opcode: the flags it takes, whether it has sides, and writes."""

    flags: int
    src: bool = False
    dst: bool = False
    moves: bool = False


OPERATIONS = {
    lib.NYMPH_OP_NOP: Opcode(_ALWAYS),
    lib.NYMPH_OP_COPY: Opcode(SERVED, src=True, dst=True, moves=True),
    lib.NYMPH_OP_HASH: Opcode(_ALWAYS | lib.NYMPH_DMA_FLAG_ZERO_COPY, src=True),
    lib.NYMPH_OP_FILL: Opcode(SERVED, dst=True, moves=True),
    lib.NYMPH_OP_COMPARE: Opcode(_ALWAYS | lib.NYMPH_DMA_FLAG_ZERO_COPY, src=True, dst=True),
}


def _overlap(entry: Any) -> bool:
    return bool(entry.src_buffer == entry.dst_buffer and abs(entry.src - entry.dst) < entry.length)


def check_entry(entry: Any) -> None:
    """Refuse an entry that is not well formed with -EINVAL."""
    operation = OPERATIONS.get(entry.opcode)
    wrong = (
        operation is None
        or entry.size != ffi.sizeof("struct nymph_entry")
        or any(entry.reserved)
        or entry.flags & ~operation.flags
    )
    if wrong or operation is None:
        fail(errno.EINVAL)
    has_length = operation.src or operation.dst
    digest_only = entry.flags & lib.NYMPH_DMA_FLAG_DIGEST_ONLY
    record = entry.flags & lib.NYMPH_DMA_FLAG_RECORD
    if (
        (not 1 <= entry.length <= lib.NYMPH_MAX_LENGTH if has_length else entry.length)
        or (not operation.src and (entry.src_buffer or (entry.src and entry.opcode != lib.NYMPH_OP_FILL)))
        or (not operation.dst and (entry.dst_buffer or entry.dst))
        or (operation.src and operation.dst and _overlap(entry))
        or (not record and (digest_only or entry.opcode == lib.NYMPH_OP_HASH))
        or (digest_only and entry.flags & lib.NYMPH_DMA_FLAG_VERIFY_HASH)
    ):
        fail(errno.EINVAL)


def _move(slot: Slot, outcome: Outcome) -> None:
    """A COPY or FILL."""
    entry, flags = slot.entry, slot.entry.flags
    pattern = entry.src.to_bytes(8, "little") * (_PIECE // 8) if entry.opcode == lib.NYMPH_OP_FILL else None
    sent, back = blake3(), blake3()
    while outcome.done < entry.length and not outcome.status:
        at, length = outcome.done, min(entry.length - outcome.done, _PIECE)
        data = pattern[:length] if pattern is not None else load(slot.src + at, length)
        moved = store(slot.dst + at, data)
        if moved < length:
            outcome.status = -errno.EFAULT
        sent.update(data[:moved])
        if flags & lib.NYMPH_DMA_FLAG_DIGEST_ONLY:
            back.update(load(slot.dst + at, moved))
        outcome.done += moved
    if outcome.status:
        return
    if flags & lib.NYMPH_DMA_FLAG_VERIFY_HASH:
        for at in range(0, entry.length, _PIECE):
            length = min(entry.length - at, _PIECE)
            data = load(slot.dst + at, length)
            if len(data) < length:
                outcome.status = -errno.EFAULT
                return
            back.update(data)
        outcome.src_digest, outcome.dst_digest = sent.digest(), back.digest()
        if outcome.src_digest != outcome.dst_digest:
            outcome.status = -errno.EBADMSG
    elif flags & lib.NYMPH_DMA_FLAG_DIGEST_ONLY:
        outcome.dst_digest = back.digest()


def _hash(slot: Slot, outcome: Outcome) -> None:
    hasher = blake3()
    while outcome.done < slot.entry.length:
        length = min(slot.entry.length - outcome.done, _PIECE)
        data = load(slot.src + outcome.done, length)
        hasher.update(data)
        outcome.done += len(data)
        if len(data) < length:
            outcome.status = -errno.EFAULT
            return
    outcome.src_digest = hasher.digest()


def _compare(slot: Slot, outcome: Outcome) -> None:
    while outcome.done < slot.entry.length and not outcome.status:
        length = min(slot.entry.length - outcome.done, _PIECE // 2)
        one, other = load(slot.src + outcome.done, length), load(slot.dst + outcome.done, length)
        common = min(len(one), len(other))
        if one[:common] != other[:common]:
            outcome.status = -errno.EBADMSG
            outcome.done += next(i for i in range(common) if one[i] != other[i])
            return
        outcome.done += common
        if common < length:
            outcome.status = -errno.EFAULT


RUN = {
    lib.NYMPH_OP_NOP: lambda slot, outcome: None,
    lib.NYMPH_OP_COPY: _move,
    lib.NYMPH_OP_FILL: _move,
    lib.NYMPH_OP_HASH: _hash,
    lib.NYMPH_OP_COMPARE: _compare,
}
