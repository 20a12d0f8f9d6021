# SPDX-License-Identifier: MIT
"""Check evidence: against itself, with keys, and against files and slices of them. No driver is needed."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from blake3 import blake3

from pynymph import bundles, signing_keys, transcript
from pynymph.abi import lib
from pynymph.errors import ArgumentError, NymphError
from pynymph.evidence.attesting import Quoted, Statement, check_key, check_quote
from pynymph.evidence.form import MOST_BYTES, RECORD, Evidence, EvidenceError, Part, Quote, Transfer
from pynymph.evidence.slices import Slice
from pynymph.weights.manifests import replace_file

PREDICATE = "https://pynymph/evidence/v1"
"""Type of the in-toto predicate of sign()."""

_BLOCK = 8 << 20
_NOTHING = blake3(b"").digest()

Path_ = str | os.PathLike[str]
Progress = Callable[[int], None]
"""Gets the bytes that were hashed since the last call."""


@dataclass(frozen=True)
class Record:
    """Name the fields of a record that checks look at."""

    status: int
    opcode: int
    length: int
    nbytes: int
    """Bytes done."""
    src_digest: bytes | None
    dst_digest: bytes | None

    @classmethod
    def of(cls, evidence: Evidence, number: int) -> Record:
        """Return a record by its number."""
        status, _, opcode, digests, _, length, _, _, _, _, _, nbytes, src, dst = evidence.record(number)
        return cls(
            status,
            opcode,
            length,
            nbytes,
            src if digests & lib.NYMPH_RECORD_SRC_DIGEST else None,
            dst if digests & lib.NYMPH_RECORD_DST_DIGEST else None,
        )


def check(evidence: Evidence) -> None:
    """Check evidence against itself: its records, its transfers, and what the driver attests.

    Keys, files and slices are not looked at: an author could have made up all that is right here.

    Raises:
        EvidenceError: EBADMSG, something in it contradicts something else; the message names the first.
    """
    _check_transcript(evidence)
    taken: set[int] = set()
    for number, transfer in enumerate(evidence.transfers):
        _check_transfer(evidence, number, transfer, taken)
    if evidence.attested is not None:
        _check_statement(evidence, Statement.parse(evidence.attested.statement))
        if evidence.attested.quote is not None:
            quoted = Quoted.parse(evidence.attested.quote)
            if quoted.extra != evidence.attested.to_quote():
                raise EvidenceError("the TPM's quote is of another statement of the driver")


def with_quote(evidence: Evidence, message: bytes, signature: bytes, pcrs: bytes) -> Evidence:
    """Return evidence with the quote of a TPM, in place of an older one.

    Args:
        evidence: what the driver attests; evidence.attested.to_quote() is what the TPM had to quote.
        message: TPMS_ATTEST, as `tpm2_quote -m` writes it.
        signature: in DER, as `tpm2_quote -s ... -f plain` writes it.
        pcrs: values of the PCRs, as `tpm2_quote -o ... -F values` writes them.

    Raises:
        EvidenceError: EBADMSG, they are no quote of this, or the driver attests nothing of it.
    """
    if evidence.attested is None:
        raise EvidenceError("the driver attests nothing of it; make evidence with a nonce")
    made = replace(evidence, attested=replace(evidence.attested, quote=Quote(message, signature, pcrs)))
    check(made)
    return made


def _check_transcript(evidence: Evidence) -> None:
    if len(evidence.records) != RECORD.size * evidence.count:
        has = f"{len(evidence.records)} bytes of records"
        raise EvidenceError(f"it has {has}, and {RECORD.size * evidence.count} belong to {evidence.count}")
    if transcript.digest(evidence.records) != evidence.transcript:
        raise EvidenceError("the transcript is not that of the records: one was changed, lost or moved")
    known = {0, *evidence.engines.values()}
    if len(known) <= len(evidence.engines):
        raise EvidenceError("two engines have one number")
    for number, record in enumerate(RECORD.iter_unpack(evidence.records)):
        if record[4] not in known:
            raise EvidenceError(f"record {number} is of engine {record[4]}, which has no name")
        for digest, bit in ((12, lib.NYMPH_RECORD_SRC_DIGEST), (13, lib.NYMPH_RECORD_DST_DIGEST)):
            if not record[3] & bit and any(record[digest]):
                raise EvidenceError(f"record {number} has a digest, and says that it has none")


def _check_transfer(evidence: Evidence, number: int, transfer: Transfer, taken: set[int]) -> None:
    """Check a transfer against its records. `taken`: records of earlier transfers."""

    def wrong(why: str) -> EvidenceError:
        return EvidenceError(f"transfer {number}, {signing_keys.shown(transfer.target)}: {why}")

    done = transfer.status == 0
    sides: list[dict[tuple[int, int], Record]] = []
    for name, parts, opcodes in (
        ("sent", transfer.sent, (lib.NYMPH_OP_COPY, lib.NYMPH_OP_HASH, lib.NYMPH_OP_FILL)),
        ("found", transfer.found, (lib.NYMPH_OP_HASH,)),
    ):
        side: dict[tuple[int, int], Record] = {}
        end = 0
        for part in parts:
            if part.record >= evidence.count:
                raise wrong(f"there is no record {part.record}")
            if part.record in taken:
                raise wrong(f"record {part.record} is there twice")
            taken.add(part.record)
            record = Record.of(evidence, part.record)
            if record.opcode not in opcodes:
                raise wrong(f"record {part.record} is not one of bytes that were {name}")
            if part.at < end or part.at + record.length > transfer.nbytes:
                raise wrong(f"record {part.record} is of bytes that are another's, or behind the end")
            end = part.at + record.length
            if done and (record.status or record.nbytes != record.length):
                raise wrong(f"record {part.record} failed, and the transfer says that all went well")
            if done and record.dst_digest is not None and record.src_digest not in (None, record.dst_digest):
                raise wrong(f"record {part.record} has two digests, and no error")
            side[part.at, record.length] = record
        sides.append(side)
    if not done:
        return
    sent, found = sides
    if found and sent.keys() != found.keys():
        raise wrong("what was read again is not all that was sent")
    for span, record in found.items():
        if record.src_digest != sent[span].src_digest:
            raise wrong(f"bytes {span[0]} to {sum(span)}, read again, are not those sent")
    if None not in (ours := (transfer.source_digest, transfer.target_digest)) and ours[0] != ours[1]:
        raise wrong("its two digests differ, and it says that all went well")
    if transfer.nbytes == 0 and any(each not in (None, _NOTHING) for each in ours):
        raise wrong("it is of no bytes, and has a digest of some")
    whole = sent.get((0, transfer.nbytes))
    if whole is not None:
        again = found.get((0, transfer.nbytes))
        arrived = whole.dst_digest if again is None else again.src_digest
        for name, told, recorded in (
            ("source", transfer.source_digest, whole.src_digest),
            ("target", transfer.target_digest, arrived),
        ):
            if None not in (told, recorded) and told != recorded:
                raise wrong(f"the digest of its {name} is not that of its record")


def _check_statement(evidence: Evidence, statement: Statement) -> None:
    """Check what the driver attests against all else."""
    assert evidence.attested is not None
    if statement.nonce != evidence.nonce(evidence.attested.challenge):
        raise EvidenceError("the driver attests other evidence, or in answer to another nonce")
    for name, told, ours in (
        ("transcript", statement.transcript, evidence.transcript),
        ("number of entries", statement.transcript_count, evidence.count),
        ("number of the transcript", statement.transcript_id, evidence.transcript_id),
    ):
        if told != ours:
            raise EvidenceError(f"the driver attests another {name}")
    for name, number in evidence.engines.items():
        if statement.engines.get(name) != number:
            raise EvidenceError(f"the driver attests no engine {signing_keys.shown(name)} of number {number}")
    moves = (lib.NYMPH_OP_COPY, lib.NYMPH_OP_FILL)
    moved = sum(record[11] for record in RECORD.iter_unpack(evidence.records) if record[2] in moves)
    if moved != statement.dma_bytes:
        raise EvidenceError(f"the driver attests {statement.dma_bytes} bytes moved, and the records {moved}")
    counted = statement.dma_bytes.to_bytes(8, "little")
    if not statement.active_descriptors and blake3(statement.ring + counted).digest() != statement.ring_hash:
        raise EvidenceError("the driver attests a hash of the ring that is not that of its state")


# --- all that a verifier has ---


@dataclass(frozen=True)
class Trust:
    """Keep what a verifier has from elsewhere, and asks for. What is None is not asked for.

    Args:
        nonce: that which the driver had to attest the evidence in answer to.
        attest_key: file of the 32 bytes that the driver attests with, or of the public RSA key, in PEM, of
            the key that it signs with.
        tpm_key: PEM file of the TPM's attestation key.
        pcrs: values that PCRs had to have, by bank and number, such as "sha256:16".
        signature: file of a signature by sign().
        key: PEM file of the signer's public key.
        ca: PEM file of root certificates of the signer.
    """

    nonce: bytes | None = None
    attest_key: Path_ | None = None
    tpm_key: Path_ | None = None
    pcrs: Mapping[str, bytes] | None = None
    signature: Path_ | None = None
    key: Path_ | None = None
    ca: Path_ | None = None


def verify(data: bytes, name: str, trust: Trust = Trust()) -> tuple[Evidence, list[str]]:
    """Check evidence, and who vouches for it.

    Args:
        data: the file's bytes.
        name: the file's name, for errors.
        trust: what is known of those who vouch for it.

    Returns:
        The evidence; and who vouches for it, in words: nobody, if no key was given.

    Raises:
        EvidenceError: EBADMSG, something is wrong; the message names the first.
        VerifyError: EBADMSG, the signature is not by its signer.
        ArgumentError: EINVAL, a key or the signature is of no known kind; a nonce or PCRs came without a key.
        NymphError: a file can't be read; `errno` is that of the failure. ENOSYS, a package is missing.
    """
    if trust.nonce is not None and trust.attest_key is None:
        raise ArgumentError(
            errno.EINVAL, "a nonce proves nothing without the key that the driver attests with"
        )
    if trust.pcrs and trust.tpm_key is None:
        raise ArgumentError(errno.EINVAL, "values of PCRs prove nothing without the TPM's attestation key")
    if (trust.signature is None) != (trust.key is None and trust.ca is None):
        raise ArgumentError(errno.EINVAL, "give a signature together with its signer's key or roots")
    found = Evidence.from_bytes(data, name)
    shown, vouchers = signing_keys.shown(name), list[str]()
    try:
        check(found)
        if trust.attest_key is not None:
            if found.attested is None:
                raise EvidenceError("the driver attests nothing of it, and that was asked for")
            by = check_key(found.attested, trust.attest_key)
            if trust.nonce is not None and found.attested.challenge != trust.nonce:
                raise EvidenceError("the driver attests it in answer to another nonce: it may be an old one")
            version = Statement.parse(found.attested.statement).text.get("version", "of no version")
            vouchers.append(f"driver {signing_keys.shown(version)}, by its {by}")
        if trust.tpm_key is not None:
            if found.attested is None:
                raise EvidenceError("it has no quote of a TPM, and one was asked for")
            check_quote(found.attested, trust.tpm_key, trust.pcrs or {})
            vouchers.append("a TPM, by its key")
    except EvidenceError as error:
        raise EvidenceError(f"{shown}: {error.strerror}") from None
    if trust.signature is not None:
        vouchers.append(_check_signature(data, shown, trust))
    return found, vouchers


def sign(evidence: Path_, signature: Path_, *, key: Path_, certificates: Path_ | None = None) -> str:
    """Sign a file of evidence as an in-toto statement in a DSSE envelope, in a bundle of Sigstore.

    The statement has the SHA-256 of the file as its subject, as programs of Sigstore want it, and its BLAKE3,
    its transcript and its transfers in the predicate.

    Args:
        evidence: the file.
        signature: path of the signature to write; an older signature is replaced.
        key: PEM file of a private key on the curve P-256, P-384 or P-521.
        certificates: PEM file of the key's certificate, and then of those between it and the root.

    Returns:
        Who signed it, in words.

    Raises:
        EvidenceError: EBADMSG, the file is no evidence, or wrong.
        ArgumentError: EINVAL, a key or certificate can't be used, or `signature` is another file.
        NymphError: a file can't be read or written. ENOSYS, a package is missing.
    """
    signer = bundles.Signer(key, certificates)
    bundles.keep_other_files(signature)
    data = read_evidence(evidence)
    found, _ = verify(data, str(evidence))
    name = os.path.basename(os.fspath(evidence))
    replace_file(signature, signer.sign(_statement(data, name, found)))
    return signer.name


def _statement(data: bytes, name: str, evidence: Evidence) -> bytes:
    """Return the in-toto statement of a file of evidence, in canonical JSON."""
    return bundles.canonical_json({
        "_type": bundles.STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}],
        "predicateType": PREDICATE,
        "predicate": {
            "blake3": blake3(data).hexdigest(),
            "by": evidence.by,
            "transcript": evidence.transcript.hex(),
            "transfers": [
                {"source": each.source, "target": each.target, "bytes": str(each.nbytes),
                 "status": str(each.status)} | ({} if each.target_digest is None
                                               else {"blake3": each.target_digest.hex()})
                for each in evidence.transfers
            ],
        },
    })  # fmt: skip


def _check_signature(data: bytes, name: str, trust: Trust) -> str:
    assert trust.signature is not None
    payload, signer = bundles.read(trust.signature, key=trust.key, ca=trust.ca)
    try:
        statement = json.loads(payload)
        kind = statement["_type"], statement["predicateType"]
        subjects = [subject["digest"]["sha256"] for subject in statement["subject"]]
        told = statement["predicate"]["blake3"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise bundles.damaged(str(trust.signature), bundles.why(error)) from None
    if kind != (bundles.STATEMENT, PREDICATE):
        raise EvidenceError(f"{signing_keys.shown(str(trust.signature))} is a signature, but not of evidence")
    if subjects != [hashlib.sha256(data).hexdigest()] or told != blake3(data).hexdigest():
        raise EvidenceError(f"{name}: {signer} has signed another file")
    return signer


def read_evidence(path: Path_) -> bytes:
    """Read a file of evidence.

    Raises:
        ArgumentError: EINVAL, it is too long to be one.
        NymphError: it can't be read.
    """
    return signing_keys.read_file(path, MOST_BYTES)


# --- files and slices ---


def check_file(evidence: Evidence, path: str, tell: Progress = lambda nbytes: None) -> Transfer:
    """Check that a file has the bytes of a transfer: all of them, and those of each of its records.

    The transfer is the one whose target or source has the file's name, or else any with its bytes.

    Args:
        evidence: checked evidence.
        path: the file. A block device may have more bytes than the transfer.
        tell: as Progress.

    Returns:
        The transfer.

    Raises:
        EvidenceError: EBADMSG, it has other bytes; the message names the first that a record knows.
        NymphError: it can't be read.
    """
    shown = signing_keys.shown(path)
    named = _named(evidence, path)
    try:
        with open(path, "rb", buffering=0) as file:
            if len(named) == 1:
                _compare(evidence, named[0], file.fileno(), shown, tell)
                return named[0]
            return _any(evidence, named or list(evidence.transfers), file.fileno(), shown, tell)
    except (OSError, ValueError) as error:
        if isinstance(error, NymphError) or not isinstance(error, OSError):
            raise
        raise signing_keys.unreadable(path, error) from error


def _named(evidence: Evidence, path: str) -> list[Transfer]:
    """Return the transfers whose names have most folders, from the last one up, in common with a path."""
    wanted = [part for part in os.path.normpath(path).split("/") if part != ".."]
    best, found = 0, list[Transfer]()
    for transfer in evidence.transfers:
        common = 0
        for name in (transfer.target, transfer.source):
            parts = os.path.normpath(name).split("/")
            same = 0
            while same < min(len(parts), len(wanted)) and parts[-1 - same] == wanted[-1 - same]:
                same += 1
            common = max(common, same)
        if common > best:
            best, found = common, []
        if common and common == best:
            found.append(transfer)
    return found


def _any(evidence: Evidence, transfers: list[Transfer], fd: int, shown: str, tell: Progress) -> Transfer:
    """Find the transfer that has the bytes of a file."""
    first: EvidenceError | None = None
    for transfer in transfers:
        try:
            _compare(evidence, transfer, fd, shown, tell)
            return transfer
        except EvidenceError as error:
            first = first or error
    if first is not None and len(transfers) == 1:
        raise first
    raise EvidenceError(f"{shown}: none of {len(transfers)} transfers has its bytes")


def _compare(evidence: Evidence, transfer: Transfer, fd: int, shown: str, tell: Progress) -> None:
    """Compare a file with a transfer."""
    if transfer.status:
        raise EvidenceError(f"{shown}: its transfer failed: {os.strerror(-transfer.status)}")
    digest = transfer.target_digest or transfer.source_digest
    if digest is None:
        raise EvidenceError(f"{shown}: its transfer has no digest")
    nbytes = os.lseek(fd, 0, os.SEEK_END)
    if nbytes != transfer.nbytes and not (nbytes > transfer.nbytes and stat.S_ISBLK(os.fstat(fd).st_mode)):
        raise EvidenceError(f"{shown}: it has {nbytes} bytes instead of {transfer.nbytes}")
    if not transfer.nbytes:
        return
    with mmap.mmap(fd, transfer.nbytes, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        for part, record in _parts(evidence, transfer):
            end = part.at + record.length
            if _hash(view[part.at : end], tell) != record.src_digest:
                raise EvidenceError(
                    f"{shown}: bytes {part.at} to {end} are not those of record {part.record}"
                )
        if _hash(view, tell) != digest:
            raise EvidenceError(f"{shown}: it has another digest")


def _parts(evidence: Evidence, transfer: Transfer) -> Iterator[tuple[Part, Record]]:
    for part in transfer.sent:
        record = Record.of(evidence, part.record)
        if record.src_digest is not None:
            yield part, record


def _hash(view: memoryview, tell: Progress) -> bytes:
    hasher = blake3(max_threads=blake3.AUTO)
    for at in range(0, len(view), _BLOCK):
        block = view[at : at + _BLOCK]
        hasher.update(block)
        tell(len(block))
    return hasher.digest()


def check_slice(evidence: Evidence, data: bytes, name: str) -> tuple[Transfer, Slice, bytes]:
    """Check a slice: that its bytes are of a file that was transferred, and of each record that is within it.

    Args:
        evidence: checked evidence.
        data: bytes of the slice's file.
        name: its name, for errors.

    Returns:
        The transfer, the slice, and the bytes.

    Raises:
        EvidenceError: EBADMSG, it is no slice, or of no transfer, or does not prove its bytes.
    """
    shown = signing_keys.shown(name)
    try:
        found = Slice.from_bytes(data, shown)
        total, part_of = found.proven()
    except NymphError as error:
        if error.errno == errno.ENOSYS:
            raise
        named = "" if isinstance(error, ArgumentError) else f"{shown}: "
        raise EvidenceError(f"{named}{error.strerror}") from None
    for transfer in evidence.transfers:
        if found.digest in (transfer.target_digest, transfer.source_digest) and not transfer.status:
            break
    else:
        raise EvidenceError(f"{shown}: it is of a file that no transfer has")
    if total != transfer.nbytes:
        raise EvidenceError(f"{shown}: its file has {total} bytes, and the transfer {transfer.nbytes}")
    for part, record in _parts(evidence, transfer):
        at = part.at - found.begin
        within = at >= 0 and at + record.length <= len(part_of)
        if within and blake3(part_of[at : at + record.length]).digest() != record.src_digest:
            raise EvidenceError(f"{shown}: record {part.record} is of other bytes")
    return transfer, found, part_of


def summary(evidence: Evidence) -> dict[str, Any]:
    """Return what evidence says, without its records, for JSON."""
    made: dict[str, Any] = {
        "by": evidence.by, "tool": evidence.tool, "device": evidence.device,
        "engines": sorted(evidence.engines), "entries": evidence.count,
        "transcript": evidence.transcript.hex(),
        "transfers": [
            {"source": each.source, "target": each.target, "bytes": each.nbytes, "status": each.status,
             "source_digest": _hex(each.source_digest), "target_digest": _hex(each.target_digest),
             "read_again": bool(each.found), "time_ns": each.time_ns}
            for each in evidence.transfers
        ],
        "attested": None,
    }  # fmt: skip
    if evidence.attested is not None:
        statement = Statement.parse(evidence.attested.statement)
        made["attested"] = {
            "nonce": evidence.attested.challenge.hex(), "time_ns": statement.realtime_ns,
            "uid": statement.uid, "dma_bytes": statement.dma_bytes, "errors": statement.errors,
            "driver": dict(statement.text), "signed": evidence.attested.signature is not None, "quote": None,
        }  # fmt: skip
        if evidence.attested.quote is not None:
            quoted = Quoted.parse(evidence.attested.quote)
            made["attested"]["quote"] = {
                "pcrs": {name: value.hex() for name, value in quoted.pcrs.items()},
                "clock_ms": quoted.clock_ms, "resets": quoted.resets, "restarts": quoted.restarts,
                "firmware": quoted.firmware,
            }  # fmt: skip
    return made


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()
