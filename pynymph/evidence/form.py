# SPDX-License-Identifier: MIT
"""The form of evidence: what a file has, and how it is written and read. evidence.cddl has it, too."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

from blake3 import blake3

from pynymph import signing_keys
from pynymph.abi import lib
from pynymph.errors import ArgumentError, VerifyError
from pynymph.evidence import canonical

FORMAT, VERSION = "pynymph.evidence", 1
MOST_BYTES = 256 << 20
"""Bytes of evidence that is read."""
MOST_RECORDS = 1 << 20
"""Records of evidence that is written: half of the bytes."""
MOST_TEXT = 4096
"""Bytes of a name in UTF-8."""
MAGIC = b"\x66digest\x58\x20"
"""What evidence has from its second byte on."""

RECORD = struct.Struct("<iIHHIQQQIIQQ32s32s")
"""struct nymph_transcript_record."""

_DIGEST, _NONCE, _QUOTE = (
    f"pynymph 2026-12 evidence {of} v1" for of in ("digest", "nonce", "quote")
)  # contexts of BLAKE3's derive-key mode


class EvidenceError(VerifyError):
    """EBADMSG: evidence is damaged, was changed, or is not about these files."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EBADMSG, message)


@dataclass(frozen=True)
class Part:
    """Say that a record is about the bytes of a file from `at` on; `record` is its number, from 0 up."""

    at: int
    record: int


@dataclass(frozen=True)
class Transfer:
    """Describe what was copied from where to where."""

    source: str
    """Name that the caller chose."""
    target: str
    nbytes: int
    status: int = 0
    """0, or a negative errno."""
    source_digest: bytes | None = None
    """BLAKE3 of all bytes that were sent, 32 bytes. None: it was not made."""
    target_digest: bytes | None = None
    """BLAKE3 of all bytes that arrived, or were read again: see `found`."""
    sent: tuple[Part, ...] = ()
    """Records of the bytes of the source, by offset. Bytes that no record is of are zeros, a hole."""
    found: tuple[Part, ...] = ()
    """Records of the bytes of the target, read again, by offset. Empty if the target was not read again."""
    time_ns: int | None = None
    """When it had ended, in ns since 1970."""


@dataclass(frozen=True)
class Quote:
    """Keep the quote of a TPM 2.0."""

    message: bytes
    """TPMS_ATTEST, as `tpm2_quote -m` writes it."""
    signature: bytes
    """In DER, as `tpm2_quote -s ... -f plain` writes it with a key on P-256."""
    pcrs: bytes
    """Values of the PCRs, as `tpm2_quote -o ... -F values` writes them."""


@dataclass(frozen=True)
class Attested:
    """Keep what the driver attests."""

    challenge: bytes
    """The verifier's nonce, up to 64 bytes."""
    statement: bytes
    """struct nymph_statement, and its text."""
    digest: bytes | None
    """BLAKE3 of the statement, keyed with the administrator's key, 32 bytes. None: it was signed instead."""
    quote: Quote | None = None
    signature: bytes | None = None
    """Of the statement, RSASSA-PKCS1-v1_5 with SHA-256, by the administrator's key, 256 to 512 bytes. None:
    it has a digest instead."""

    def __post_init__(self) -> None:
        if (self.digest is None) == (self.signature is None):
            raise ArgumentError(errno.EINVAL, "a statement has either a digest or a signature; give one")

    def to_quote(self) -> bytes:
        """Return what a TPM has to quote: the qualifying data, 32 bytes."""
        of = self.digest or self.signature or b""
        return blake3(self.statement + of, derive_key_context=_QUOTE).digest()


@dataclass(frozen=True)
class Evidence:
    """Keep all that evidence says. check() of pynymph.evidence tells whether it is true."""

    transcript: bytes
    """T of the records, 32 bytes, as the driver had it."""
    count: int
    """How many entries the ring had retired."""
    transcript_id: int
    records: bytes
    """struct nymph_transcript_record of each, in the order in which they retired: 128 bytes each."""
    transfers: tuple[Transfer, ...] = ()
    by: str = ""
    """Who made it: a name that the caller chose."""
    tool: str = ""
    device: str = ""
    """The driver's device; "model:" if there was no driver."""
    engines: Mapping[str, int] = field(default_factory=dict)
    """Numbers of the engines in the records, by their names."""
    attested: Attested | None = None

    def record(self, number: int) -> tuple[Any, ...]:
        """Return the fields of a record."""
        return RECORD.unpack_from(self.records, RECORD.size * number)

    def body(self) -> bytes:
        """Return all but the attestation, which is about it: canonical CBOR."""
        return canonical.encode({
            "by": self.by, "tool": self.tool, "device": self.device, "engines": dict(self.engines),
            "format": FORMAT, "version": VERSION,
            "transcript": {"digest": self.transcript, "count": self.count, "id": self.transcript_id,
                           "records": self.records},
            "transfers": [_transfer(each) for each in self.transfers],
        })  # fmt: skip

    def digest(self) -> bytes:
        """Return the digest of body()."""
        return blake3(self.body(), derive_key_context=_DIGEST).digest()

    def nonce(self, challenge: bytes) -> bytes:
        """Return the nonce that the driver has to attest: that of the verifier, and all that this says."""
        size = len(challenge).to_bytes(1, "little")
        return blake3(size + challenge + self.digest(), derive_key_context=_NONCE).digest()

    def to_bytes(self) -> bytes:
        """Return the evidence as a file has it."""
        file: dict[str, Any] = {"digest": self.digest(), "evidence": self.body()}
        if self.attested is not None:
            told = self.attested
            file["attestation"] = {"challenge": told.challenge, "statement": told.statement}
            if told.digest is not None:
                file["attestation"]["digest"] = told.digest
            if told.signature is not None:
                file["attestation"]["signature"] = told.signature
            if told.quote is not None:
                quote = told.quote
                file["attestation"]["quote"] = {
                    "message": quote.message, "signature": quote.signature, "pcrs": quote.pcrs
                }  # fmt: skip
        return canonical.encode(file)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the evidence") -> Self:
        """Read evidence of others. Whether it is true is not checked, but for its own digest.

        Args:
            data: all bytes of the file.
            name: what they are, for errors.

        Raises:
            EvidenceError: EBADMSG, they are no evidence, damaged, or not in the one form of evidence.
            NymphError: ENOSYS, `cbor2` is not installed.
        """
        shown = signing_keys.shown(name)
        try:
            file = _Map(canonical.decode(data, shown, MOST_BYTES), "the file")
            told = file.digest("digest")
            raw = file.octets("evidence")
            attested = _attested(file.table("attestation")) if "attestation" in file else None
            file.end()
            body = _Map(canonical.decode(raw, shown, MOST_BYTES), "evidence")
            kind = body.text("format"), body.whole("version")
            if kind != (FORMAT, VERSION):
                _refuse(f"it is {kind[0]!r} of version {kind[1]}, and this reads {FORMAT!r} of {VERSION}")
            transcript = body.table("transcript")
            found = cls(
                transcript=transcript.digest("digest"),
                count=transcript.whole("count"),
                transcript_id=transcript.whole("id"),
                records=transcript.octets("records"),
                transfers=tuple(
                    _read_transfer(_Map(each, f"transfer {number}"))
                    for number, each in enumerate(body.array("transfers"))
                ),
                by=body.text("by"),
                tool=body.text("tool"),
                device=body.text("device"),
                engines=body.table("engines").wholes(),
                attested=attested,
            )
            transcript.end()
            body.end()
        except (_FormError, ArgumentError) as error:
            why = str(error) if isinstance(error, _FormError) else error.strerror
            raise EvidenceError(f"{shown} is no evidence, or damaged: {why}; get it again") from None
        if blake3(raw, derive_key_context=_DIGEST).digest() != told:
            raise EvidenceError(f"{shown} was changed, or is damaged: its digest is another; get it again")
        return found


def _transfer(transfer: Transfer) -> dict[str, Any]:
    made: dict[str, Any] = {
        "source": transfer.source, "target": transfer.target, "bytes": transfer.nbytes,
        "status": transfer.status, "sent": [[part.at, part.record] for part in transfer.sent],
        "found": [[part.at, part.record] for part in transfer.found],
    }  # fmt: skip
    for key, value in (
        ("source-digest", transfer.source_digest),
        ("target-digest", transfer.target_digest),
        ("time", transfer.time_ns),
    ):
        if value is not None:
            made[key] = value
    return made


def _read_transfer(given: _Map) -> Transfer:
    found = Transfer(
        source=given.text("source"),
        target=given.text("target"),
        nbytes=given.whole("bytes"),
        status=given.integer("status"),
        source_digest=given.digest("source-digest") if "source-digest" in given else None,
        target_digest=given.digest("target-digest") if "target-digest" in given else None,
        sent=_parts(given, "sent"),
        found=_parts(given, "found"),
        time_ns=given.whole("time") if "time" in given else None,
    )
    given.end()
    return found


def _parts(given: _Map, key: str) -> tuple[Part, ...]:
    found = []
    for each in given.array(key):
        if type(each) is not list or len(each) != 2 or any(type(n) is not int or n < 0 for n in each):
            _refuse(f"{key} of {given.where} has a part that is not two whole numbers")
        found.append(Part(*each))
    return tuple(found)


def _attested(given: _Map) -> Attested:
    quote = None
    if "quote" in given:
        quoted = given.table("quote")
        quote = Quote(quoted.octets("message"), quoted.octets("signature"), quoted.octets("pcrs"))
        quoted.end()
    digest, signature = None, None
    if "signature" in given:
        signature = given.octets("signature")
        if not lib.NYMPH_SIGNATURE_MIN <= len(signature) <= lib.NYMPH_SIGNATURE_MAX:
            _refuse(f"the signature has {len(signature)} bytes instead of 256 to 512")
    else:
        digest = given.digest("digest")
    found = Attested(given.octets("challenge"), given.octets("statement"), digest, quote, signature)
    if len(found.challenge) > 64:
        _refuse("the challenge has more than 64 bytes")
    given.end()
    return found


class _FormError(Exception):
    """Some part of evidence has not its form."""


def _refuse(why: str) -> NoReturn:
    raise _FormError(why)


class _Map:
    """Take the values of a map of others one by one, by their types.

    Args:
        value: what ought to be a map.
        where: its name, for errors.
    """

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            _refuse(f"{where} is no map")
        self._value: dict[str, Any] = dict(value)
        self.where = where

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def _take(self, key: str, kind: type) -> Any:
        if key not in self._value:
            _refuse(f"{self.where} has no {key}")
        value = self._value.pop(key)
        if type(value) is not kind:
            _refuse(f"{key} of {self.where} is of type {type(value).__name__} instead of {kind.__name__}")
        return value

    def octets(self, key: str) -> bytes:
        found: bytes = self._take(key, bytes)
        return found

    def digest(self, key: str) -> bytes:
        found = self.octets(key)
        if len(found) != 32:
            _refuse(f"{key} of {self.where} has {len(found)} bytes instead of 32")
        return found

    def text(self, key: str) -> str:
        found: str = self._take(key, str)
        if len(found.encode()) > MOST_TEXT:
            _refuse(f"{key} of {self.where} has more than {MOST_TEXT} bytes")
        return found

    def integer(self, key: str) -> int:
        found: int = self._take(key, int)
        if not -(1 << 31) <= found <= 0:
            _refuse(f"{key} of {self.where} is {found}, and neither 0 nor a negative errno")
        return found

    def whole(self, key: str) -> int:
        found: int = self._take(key, int)
        if found < 0:
            _refuse(f"{key} of {self.where} is {found}, which is less than 0")
        return found

    def array(self, key: str) -> list[Any]:
        found: list[Any] = self._take(key, list)
        return found

    def table(self, key: str) -> _Map:
        return _Map(self._take(key, dict), key)

    def wholes(self) -> dict[str, int]:
        """Take all: numbers by their names."""
        return {key: self.whole(key) for key in list(self._value)}

    def end(self) -> None:
        """Refuse what nobody has taken."""
        for key in self._value:
            _refuse(f"{self.where} has {signing_keys.shown(key[:40])!r}, which this version does not know")
