# SPDX-License-Identifier: MIT
"""What the driver and a TPM attest: how it is read, and checked with keys."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from blake3 import blake3

from pynymph import signing_keys
from pynymph.errors import ArgumentError
from pynymph.evidence.form import Attested, EvidenceError, Quote

KEY_BYTES = 32

_MAGIC = b"nymph attest v1\0"
_STATEMENT = struct.Struct("<16s32sIIQ32sQQQ32s24sIIQiIII")
_MOST_STATEMENT = 1 << 16
_MOST_KEY = 1 << 16


@dataclass(frozen=True)
class Statement:
    """Tell what the driver attests: struct nymph_statement, and its text."""

    nonce: bytes
    realtime_ns: int
    transcript: bytes
    transcript_count: int
    transcript_id: int
    dma_bytes: int
    ring_hash: bytes
    ring: bytes
    """struct nymph_dma_ring, 24 bytes."""
    active_descriptors: int
    unread_records: int
    errors: int
    first_error: int
    state: int
    engine: int
    uid: int
    text: Mapping[str, str]
    """Versions, kernel, engines and parameters by their names."""

    @classmethod
    def parse(cls, statement: bytes) -> Self:
        """Read a statement.

        Raises:
            EvidenceError: EBADMSG, it is none.
        """
        if not _STATEMENT.size <= len(statement) <= _MOST_STATEMENT:
            raise EvidenceError(f"the statement of the driver has {len(statement)} bytes; get it again")
        magic, nonce, size, text_offset, *fields = _STATEMENT.unpack_from(statement)
        if magic != _MAGIC or size != len(statement) or not _STATEMENT.size <= text_offset <= size:
            raise EvidenceError("the statement of the driver is none, or of another version; get it again")
        text: dict[str, str] = {}
        try:
            *lines, rest = statement[text_offset:].decode().split("\n")
            if rest:
                raise ValueError("its last line has no end")
            for line in lines:
                name, equals, value = line.partition("=")
                if not equals or name in text:
                    raise ValueError(f"{line[:40]!r} is no name and value, or is there twice")
                text[name] = value
        except ValueError as error:
            raise EvidenceError(f"the text of the driver's statement is damaged: {error}") from None
        return cls(nonce, *fields, text=text)  # type: ignore[misc]

    @property
    def engines(self) -> dict[str, int]:
        """Numbers of the engines by their names."""
        return {
            value: int(name[7:])
            for name, value in self.text.items()
            if name.startswith("engine.") and name[7:].isdecimal() and len(name) < 20
        }


def check_key(attested: Attested, path: str | os.PathLike[str]) -> str:
    """Check the keyed digest of a statement, or its signature.

    Args:
        attested: what has the statement.
        path: file of the administrator's key: 32 bytes, or a public RSA key in PEM.

    Returns:
        What the key has shown the statement to be by: "key" or "signature".

    Raises:
        EvidenceError: EBADMSG, it was not made with this key or one of this kind, or the statement was
            changed.
        ArgumentError: EINVAL, the file has neither kind of key.
        NymphError: it can't be read. ENOSYS, `cryptography` is not installed.
    """
    raw = signing_keys.read_file(path, _MOST_KEY)
    if len(raw) == KEY_BYTES:
        if attested.digest is None:
            raise EvidenceError("the driver has signed its statement; give the public key, in PEM, to verify")
        if not hmac.compare_digest(blake3(attested.statement, key=raw).digest(), attested.digest):
            raise EvidenceError("the driver's statement was not attested with this key, or was changed")
        return "key"
    if not raw.lstrip().startswith(b"-----BEGIN "):
        message = f"{path} has neither {KEY_BYTES} bytes nor PEM; give the key that the driver attests with"
        raise ArgumentError(errno.EINVAL, message)
    public = signing_keys.rsa_public_key(path, raw)
    if attested.signature is None:
        raise EvidenceError("the driver has not signed its statement; give the key of 32 bytes to verify")
    if not signing_keys.is_signed_by_rsa(public, attested.signature, attested.statement):
        raise EvidenceError("the driver's statement was not signed with this key, or was changed")
    return "signature"


# --- TPM 2.0 ---

_GENERATED, _QUOTE = 0xFF544347, 0x8018
_BANKS = {0x0004: ("sha1", 20), 0x000B: ("sha256", 32), 0x000C: ("sha384", 48), 0x000D: ("sha512", 64)}


@dataclass(frozen=True)
class Quoted:
    """Tell what a TPM's quote says."""

    extra: bytes
    """The qualifying data."""
    clock_ms: int
    resets: int
    restarts: int
    safe: bool
    firmware: int
    pcrs: Mapping[str, bytes]
    """Values by bank and number, such as "sha256:16"."""

    @classmethod
    def parse(cls, quote: Quote) -> Self:
        """Read TPMS_ATTEST, and the values of PCRs that it has the digest of.

        Raises:
            EvidenceError: EBADMSG, it is no quote, or the values are others.
        """
        reader = _Reader(quote.message)
        if (reader.number(4), reader.number(2)) != (_GENERATED, _QUOTE):
            raise EvidenceError("the TPM's message is no quote; get it again")
        reader.sized()  # the signer's qualified name; check_quote() has the key itself
        extra, clock, resets, restarts = reader.sized(), reader.number(8), reader.number(4), reader.number(4)
        safe, firmware = reader.number(1), reader.number(8)
        names: list[tuple[str, int]] = []
        for _ in range(min(reader.number(4), 16)):
            bank, mask = reader.number(2), int.from_bytes(reader.take(reader.number(1)), "little")
            if bank not in _BANKS:
                raise EvidenceError(f"the TPM's quote is of bank 0x{bank:x}, which is not known here")
            of, size = _BANKS[bank]
            names += [(f"{of}:{pcr}", size) for pcr in range(mask.bit_length()) if mask >> pcr & 1]
        digest = reader.sized()
        reader.end()
        values = _Reader(quote.pcrs)
        pcrs = {name: values.take(size) for name, size in names}
        values.end()
        if hashlib.sha256(quote.pcrs).digest() != digest:
            raise EvidenceError("the values of PCRs are not those that the TPM has quoted")
        return cls(extra, clock, resets, restarts, bool(safe), firmware, pcrs)


class _Reader:
    """Read numbers and bytes of a TPM's structure: big-endian."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, nbytes: int) -> bytes:
        part = self._data[self._at : self._at + nbytes]
        if len(part) < nbytes:
            raise EvidenceError("the TPM's quote ends too early; get it again")
        self._at += nbytes
        return part

    def number(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def end(self) -> None:
        if self._at != len(self._data):
            raise EvidenceError("the TPM's quote has bytes behind its end, or too many PCRs; get it again")


def check_quote(attested: Attested, key: str | os.PathLike[str], pcrs: Mapping[str, bytes]) -> None:
    """Check the quote of a TPM.

    Args:
        attested: what has the quote.
        key: PEM file of the TPM's attestation key, on the curve P-256, P-384 or P-521.
        pcrs: the values that PCRs must have, by bank and number, such as "sha256:16".

    Raises:
        EvidenceError: EBADMSG, the quote is not by this key, of other values, or of another statement.
        ArgumentError: EINVAL, the key can't be used.
        NymphError: the key can't be read. ENOSYS, `cryptography` is not installed.
    """
    if attested.quote is None:
        raise EvidenceError("it has no quote of a TPM, and one was asked for")
    if not signing_keys.is_signed(
        signing_keys.public_key(key), attested.quote.signature, attested.quote.message
    ):
        raise EvidenceError("the TPM's quote is not by this key, or was changed")
    found = Quoted.parse(attested.quote)
    for name, value in pcrs.items():
        if name not in found.pcrs:
            raise EvidenceError(
                f"the TPM's quote has no PCR {name}; it has {', '.join(found.pcrs) or 'none'}"
            )
        if found.pcrs[name] != value:
            raise EvidenceError(f"PCR {name} was {found.pcrs[name].hex()} instead of {value.hex()}")
