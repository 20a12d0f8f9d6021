# SPDX-License-Identifier: MIT
"""Slice proofs: show bytes of a file to somebody who has only the BLAKE3 digest of all of it.

The bytes come with the nodes of the BLAKE3 tree beside their path to the root, in the format of Bao, whose
program reads them, too: `bao decode-slice DIGEST BEGIN LENGTH`. Where the file ends is proven if the range
reaches its end, or is behind it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from blake3 import blake3

from pynymph import digest
from pynymph._tree import ffi, lib
from pynymph.buffer import RingBuffer, octets, with_bytes
from pynymph.errors import ArgumentError, VerifyError
from pynymph.evidence import canonical
from pynymph.integers import UINT64_MAX, whole

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT, VERSION = "pynymph.slice", 1
MOST_BYTES = 1 << 30
"""Bytes of a slice's file that is read."""

_LEAF = 1024
_HEADER = 8
_LEVEL = 10
"""Of the nodes that are made of the whole file first: they span 1 MiB each."""


@dataclass(frozen=True)
class Slice:
    """A range of a file, and the proof that its bytes are those of the file.

    It proves something once proven() has checked it, and `digest` is one that you trust.
    """

    digest: bytes
    """BLAKE3 of the whole file, 32 bytes."""
    begin: int
    """First byte of the range."""
    length: int
    """Bytes of the range, of which some or all may be behind the end of the file."""
    proof: bytes
    """A slice in the format of Bao."""

    @classmethod
    def of(cls, buffer: Buffer, begin: int, length: int) -> Self:
        """Prove a range of a buffer.

        Args:
            buffer: as for digest.payload(), such as a file in memory by mmap.
            begin: first byte of the range.
            length: bytes of the range.

        Raises:
            ArgumentError: EINVAL, `begin` or `length` is no whole number of 64 bits.
        """
        found, proof = prove(buffer, begin, length)
        return cls(found, begin, length, proof)

    def proven(self) -> tuple[int, bytes]:
        """Check the proof.

        Returns:
            As check().

        Raises:
            VerifyError: EBADMSG, the proof is not one of this range of a file with this digest.
        """
        return check(self.proof, self.digest, self.begin, self.length)

    def to_bytes(self) -> bytes:
        """Write the slice as a file has it: canonical CBOR, `slice` of evidence.cddl."""
        return canonical.encode({
            "format": FORMAT, "version": VERSION, "digest": self.digest, "begin": self.begin,
            "length": self.length, "proof": self.proof,
        })  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the slice") -> Self:
        """Read what to_bytes() wrote. The proof is not checked.

        Args:
            data: all bytes of the file.
            name: what they are, for errors.

        Raises:
            ArgumentError: EINVAL, they are no slice.
        """
        found = canonical.decode(data, name, MOST_BYTES)
        kinds = {"format": str, "version": int, "digest": bytes, "begin": int, "length": int, "proof": bytes}
        if not isinstance(found, dict) or {key: type(value) for key, value in found.items()} != kinds:
            raise ArgumentError(errno.EINVAL, f"{name} is no slice; `pynymph evidence slice` writes one")
        if (found["format"], found["version"]) != (FORMAT, VERSION):
            kind = f"{found['format'][:40]!r} of version {found['version']}"
            raise ArgumentError(errno.EINVAL, f"{name} is {kind} instead of {FORMAT!r} of {VERSION}")
        if len(found["digest"]) != 32 or min(found["begin"], found["length"]) < 0:
            raise ArgumentError(errno.EINVAL, f"{name} has a digest of another length, or a negative range")
        return cls(found["digest"], found["begin"], found["length"], found["proof"])


def prove(buffer: Buffer, begin: int, length: int) -> tuple[bytes, bytes]:
    """Make the digest of a buffer, and the proof of one range of it. Each byte is hashed once.

    Args:
        buffer: as for digest.payload().
        begin: first byte of the range. If it is behind the end, the last leaf proves where the end is.
        length: bytes of the range; 0 proves the leaf that `begin` is in.

    Returns:
        BLAKE3-256 of the buffer, 32 bytes; and the proof, a slice in the format of Bao.

    Raises:
        ArgumentError: EINVAL, `begin` or `length` is no whole number of 64 bits.
    """
    first, last = _range(begin, length)
    buffer = with_bytes(buffer, "buffer")
    with buffer.view if isinstance(buffer, RingBuffer) else octets(buffer) as view:
        total = len(view)
        first = min(first, max(total - 1, 0))
        out = [total.to_bytes(_HEADER, "little")]
        if total <= _LEAF:
            return blake3(view).digest(), out[0] + bytes(view)
        words, flags = digest.mode(None)
        start, room = ffi.new("uint32_t[8]", words), ffi.new("uint8_t[]", 64)
        nodes, span = digest.tree(view, _LEVEL), _LEAF << _LEVEL
        data = ffi.from_buffer(view)

        def node(at: int, nbytes: int) -> bytes:
            """The chaining value of a subtree."""
            if nbytes > span:  # not all of the file, as the whole file is always in the range
                many = ffi.new("uint8_t[]", nodes[32 * (at // span) : 32 * -(-(at + nbytes) // span)])
                lib.nymph_tree_above(many, len(many) // 32, start, flags)
                return bytes(ffi.buffer(many, 32))
            lib.nymph_tree_nodes(data + at, nbytes, at // _LEAF, start, flags, _LEVEL, room)
            return bytes(ffi.buffer(room, 32))

        def walk(at: int, nbytes: int) -> bytes:
            """Write a subtree, if it is of the range. Returns its chaining value, or the digest of all."""
            if at + nbytes <= first or at >= last:
                return node(at, nbytes)
            if nbytes <= _LEAF:
                out.append(bytes(view[at : at + nbytes]))
                return node(at, nbytes)
            place, left = len(out), _left(nbytes)
            out.append(b"")
            out[place] = pair = walk(at, left) + walk(at + left, nbytes - left)
            room[0:64] = pair
            (lib.nymph_tree_root if nbytes == total else lib.nymph_tree_above)(room, 2, start, flags)
            return bytes(ffi.buffer(room, 32))

        try:
            return walk(0, total), b"".join(out)
        finally:
            ffi.release(data)


def check(proof: bytes, of: bytes, begin: int, length: int) -> tuple[int, bytes]:
    """Check the proof of a range.

    Args:
        proof: a slice in the format of Bao, by anybody.
        of: BLAKE3-256 of the whole file, 32 bytes.
        begin: first byte of the range.
        length: bytes of the range.

    Returns:
        How many bytes the file has by the proof's own word, which is proven only if the range reaches its
        end; and the bytes of the range that the file has, which are proven.

    Raises:
        VerifyError: EBADMSG, the proof is not one of this range of a file with this digest.
        ArgumentError: EINVAL, `begin` or `length` is no whole number of 64 bits.
    """
    first, last = _range(begin, length)
    total, at_proof = int.from_bytes(proof[:_HEADER], "little"), _HEADER
    if len(proof) < _HEADER:
        raise _wrong("it ends in its header")
    sought = min(first, max(total - 1, 0))
    words, flags = digest.mode(None)
    start, room = ffi.new("uint32_t[8]", words), ffi.new("uint8_t[]", 64)
    out: list[bytes] = []

    def take(nbytes: int) -> bytes:
        nonlocal at_proof
        part = proof[at_proof : at_proof + nbytes]
        if len(part) < nbytes:
            raise _wrong("it ends too early")
        at_proof += nbytes
        return part

    def walk(at: int, nbytes: int, expected: bytes) -> None:
        if total and (at + nbytes <= sought or at >= last):
            return
        if nbytes <= _LEAF:
            data = take(nbytes)
            if nbytes == total:
                found = blake3(data).digest()
            else:
                lib.nymph_tree_nodes(ffi.from_buffer(data), nbytes, at // _LEAF, start, flags, 0, room)
                found = bytes(ffi.buffer(room, 32))
            if found != expected:
                raise _wrong(f"bytes {at} to {at + nbytes} are others")
            out.append(data[max(0, first - at) : max(0, begin + length - at)])
            return
        pair, left = take(64), _left(nbytes)
        room[0:64] = pair
        (lib.nymph_tree_root if nbytes == total else lib.nymph_tree_above)(room, 2, start, flags)
        if bytes(ffi.buffer(room, 32)) != expected:
            raise _wrong(f"the node above bytes {at} to {at + nbytes} is another")
        walk(at, left, pair[:32])
        walk(at + left, nbytes - left, pair[32:])

    walk(0, total, of)
    if at_proof != len(proof):
        raise _wrong(f"{len(proof) - at_proof} bytes are behind its end")
    return total, b"".join(out)


def _range(begin: int, length: int) -> tuple[int, int]:
    """Return the range that is proven: at least one byte."""
    begin, length = whole(begin, "begin", 0, UINT64_MAX), whole(length, "length", 0, UINT64_MAX)
    return begin, begin + max(1, length)


def _left(nbytes: int) -> int:
    """Return the bytes of the left one of two subtrees: the most leaves that are a power of two."""
    return int(_LEAF << ((nbytes - 1) // _LEAF).bit_length() - 1)


def _wrong(why: str) -> VerifyError:
    return VerifyError(errno.EBADMSG, f"the slice does not prove its bytes: {why}; get another one")
