# SPDX-License-Identifier: MIT
"""pynymph.evidence: what a ring retires becomes a file, and no other file passes for it."""

import errno
import hashlib
import random
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pycddl
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from evidence_files import (
    KEY,
    NONCE,
    PCRS,
    WEIGHTS,
    attested_again,
    attesting,
    changes,
    copies,
    made,
    public_pem,
    quote,
    resealed,
    signed,
    signer,
    signing,
    write_key,
)

import pynymph
from pynymph import evidence, transcript
from pynymph.batch import copies as batch_of
from pynymph.errors import ArgumentError, NymphError, VerifyError
from pynymph.evidence import EvidenceError, Trust, canonical
from pynymph.fabric import DMADescriptor
from pynymph.model import Model

__all__ = ["made", "signed"]

Made = tuple[evidence.Evidence, Trust]
CDDL = Path(evidence.__file__).with_name("evidence.cddl")


NOBODY = Trust()


def wrong(data: bytes, trust: Trust = NOBODY) -> str:
    """Check that evidence is refused. Returns why."""
    with pytest.raises(VerifyError) as caught:
        evidence.verify(data, "e.cbor", trust)
    assert "\n" not in str(caught.value) and caught.value.errno == errno.EBADMSG
    return caught.value.strerror or ""


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The map of a file, and that of its body."""
    file = cbor2.loads(data)
    return file, cbor2.loads(file["evidence"])


# --- what is right ---


def test_evidence_is_of_all_that_the_ring_has_retired(made: Made) -> None:
    found, trust = made
    data = found.to_bytes()
    read, vouched = evidence.verify(data, "e.cbor", trust)
    assert read == found and read.to_bytes() == data
    assert found.attested
    by = "key" if found.attested.signature is None else "signature"
    assert vouched == [f"driver model, by its {by}", "a TPM, by its key"]
    assert (found.count, len(found.records), len(found.transfers)) == (7, 7 * 128, 3)
    assert found.transcript == transcript.digest(found.records)
    assert (found.by, found.device, dict(found.engines)) == ("bench 3", "model:", {"model": 1})
    first = found.transfers[0]
    assert (first.source, first.target, first.nbytes) == ("weights.bin", "card 0", len(WEIGHTS))
    assert first.source_digest == first.target_digest == blake3(WEIGHTS).digest()
    assert found.record(1)[0] == -errno.EBADMSG
    # Nobody vouches where no key is given.
    assert evidence.verify(data, "e.cbor")[1] == []
    said = evidence.summary(found)
    assert said["attested"]["nonce"] == NONCE.hex() and said["attested"]["driver"]["engine.1"] == "model"
    assert said["attested"]["quote"]["pcrs"] == {"sha256:16": PCRS.hex()}
    assert said["attested"]["signed"] == (by == "signature")


def test_a_small_copy_has_small_evidence(made: Made) -> None:
    assert len(replace(made[0], attested=None).to_bytes()) < 7 * 128 + 800


def test_the_schema_is_of_what_is_written(made: Made) -> None:
    schema = pycddl.Schema(CDDL.read_text())
    schema.validate_cbor(made[0].to_bytes())
    schema.validate_cbor(evidence.Slice.of(WEIGHTS, 3, 4).to_bytes())
    schema.validate_cbor(replace(made[0], attested=None, transfers=()).to_bytes())
    for bad in ({"digest": b""}, {"more": 1}):
        with pytest.raises(pycddl.ValidationError):
            schema.validate_cbor(canonical.encode(parts(made[0].to_bytes())[0] | bad))


def test_a_log_has_batches_queues_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    log = evidence.Log()
    with pynymph.Ring(device="model:", entries=64, evidence=log) as ring:
        src, dst = ring.allocate(4096), ring.allocate(4096)
        entries = batch_of(src, dst, src_at=np.arange(200) * 8, dst_at=np.arange(200) * 8, length=8)
        ring.run_many(entries)
        queued = ring.submit_all([pynymph.Hash(src=src), pynymph.Nop()])
        batch = ring.submit_many(entries[:5])
        assert [each.status for each in ring.completions()] == [0, 0]
        batch.result()
        ring.fill(dst=dst, pattern=b"\1", verify=True)
        found = log.evidence()
        assert found.count == 200 + 2 + 5 + 1 and queued[0].result().status == 0
        evidence.check(found)
        again = log.evidence()
        assert again == found
        ring.reset()
        assert log.evidence().count == 0
        log.add(ring.copy(src=b"new", dst=bytearray(3)), source="a", target="b")
        assert [each.source_digest for each in log.evidence().transfers] == [None]


def test_each_ring_has_a_log_of_its_own() -> None:
    log = evidence.Log()
    with pytest.raises(ArgumentError, match="has no ring"):
        log.evidence()
    with pynymph.Ring(device="model:", evidence=log) as ring:
        done = ring.copy(src=b"1", dst=bytearray(1), verify=True)
        with pytest.raises(ArgumentError, match="has a ring already"):
            pynymph.Ring(device="model:", evidence=log)
        with pytest.raises(ArgumentError, match="no record of it"):
            log.add(replace(done, cookie=99), source="a", target="b")
        for source in ("x" * 4097, "\udcff"):
            with pytest.raises(ArgumentError, match=r"be brief|UTF-8"):
                log.add(done, source=source, target="b")
        for nonce in (b"", bytes(65)):
            with pytest.raises(ArgumentError, match="1 to 64 bytes"):
                log.evidence(nonce)
        with pytest.raises(NymphError) as caught:
            log.evidence(b"nonce")
        assert caught.value.errno == errno.ENOKEY


def test_an_operation_that_left_no_record_is_not_hidden() -> None:
    log = evidence.Log()
    with pynymph.Ring(device="model:", evidence=log) as ring:
        ring.copy(src=b"1", dst=bytearray(1))
        src, dst = bytearray(8), bytearray(8)
        where = [pynymph.abi.address(pynymph.abi.ffi.from_buffer(each)) for each in (src, dst)]
        given = DMADescriptor(where[0], where[1], 8)
        ring._core.submit_dma(pynymph.abi.new("nymph_dma_desc", **vars(given)))
        with pytest.raises(NymphError, match="2 entries have ended, and 1 of them left a record") as caught:
            log.evidence()
        assert caught.value.errno == errno.EPROTO


# --- what is changed ---


def test_no_changed_byte_passes(made: Made) -> None:
    """Of evidence with all keys; and of evidence that nobody vouches for, as it has its own digest."""
    found, trust = made
    for data, given in ((found.to_bytes(), trust), (replace(found, attested=None).to_bytes(), Trust())):
        for at in range(len(data)):
            for change in (0x01, 0xFF) if given is trust else (0x20,):
                wrong(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :], given)


def test_no_truncated_or_longer_file_passes(made: Made) -> None:
    data = made[0].to_bytes()
    for end in [*range(0, len(data), 7), len(data) - 1]:
        wrong(data[:end], made[1])
    for more in (b"\0", b"\xf6", data):
        wrong(data + more, made[1])


def test_no_changed_field_passes_even_if_its_digest_is_made_again(made: Made) -> None:
    """Whoever changes evidence can make its digest again, but not what the driver or the TPM attests."""
    found, trust = made
    file, body = parts(found.to_bytes())
    tried = 0
    for path, make in changes(body):
        with pytest.raises(VerifyError):
            evidence.verify(resealed(file, make()), path, trust)
            pytest.fail(f"evidence with {path} passes")
        tried += 1
    plain = {key: file[key] for key in ("digest", "evidence")}
    for path, make in changes({"attestation": file["attestation"]}):
        with pytest.raises(VerifyError):
            evidence.verify(canonical.encode(plain | make()), path, trust)
            pytest.fail(f"evidence with {path} passes")
        tried += 1
    assert tried > 150


def test_no_record_is_lost_moved_or_changed_even_if_the_transcript_is_made_again(made: Made) -> None:
    found, trust = made
    file, body = parts(found.to_bytes())
    records = [found.records[at : at + 128] for at in range(0, len(found.records), 128)]
    others = [records[:-1], records[1:], [records[1], records[0], *records[2:]], [*records, records[0]]]
    for number in range(len(records)):
        for at in (0, 8, 16, 24, 48, 56, 64, 96):
            changed = bytearray(records[number])
            changed[at] ^= 1
            others.append([*records[:number], bytes(changed), *records[number + 1 :]])
    for other in others:
        stream = b"".join(other)
        told = body["transcript"] | {
            "records": stream,
            "count": len(other),
            "digest": transcript.digest(stream),
        }
        wrong(resealed(file, body | {"transcript": told}), trust)


def test_without_a_key_evidence_can_be_made_up(made: Made) -> None:
    """An unkeyed digest authenticates nothing: this is why somebody has to vouch."""
    file, body = parts(replace(made[0], attested=None).to_bytes())
    forged = resealed(file, body | {"by": "somebody else"})
    found, vouched = evidence.verify(forged, "forged.cbor")
    assert (found.by, vouched) == ("somebody else", [])
    assert "attests nothing" in wrong(forged, made[1])


def test_no_other_nonce_or_key_passes(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, trust = made
    data = found.to_bytes()
    for nonce in (b"another", NONCE + b"\0", NONCE[:-1]):
        assert "another nonce: it may be an old one" in wrong(data, replace(trust, nonce=nonce))
    assert found.attested
    is_signed = found.attested.signature is not None
    (tmp_path / "key").write_bytes(public_pem(signer(3072)) if is_signed else bytes(32))
    assert "with this key" in wrong(data, replace(trust, attest_key=tmp_path / "key"))
    # A key of the other kind, the right one too: nothing is vouched for by a digest, of those who trust a
    # signature alone.
    for other_kind in (KEY, bytes(32)) if is_signed else (public_pem(signer()),):
        (tmp_path / "key").write_bytes(other_kind)
        hint = "has signed its statement" if is_signed else "has not signed its statement"
        assert hint in wrong(data, replace(trust, attest_key=tmp_path / "key"))
    write_key(tmp_path, "other")
    assert "not by this key" in wrong(data, replace(trust, tpm_key=tmp_path / "other-public.pem"))
    assert "PCR sha256:16 was" in wrong(data, replace(trust, pcrs={"sha256:16": bytes(32)}))
    assert "no PCR sha256:7" in wrong(data, replace(trust, pcrs={"sha256:7": bytes(32)}))
    # What was attested elsewhere, or before, does not go with this.
    (signing if is_signed else attesting)(monkeypatch)
    other = copies()
    assert other.attested
    assert "attests other evidence" in wrong(replace(found, attested=other.attested).to_bytes(), trust)
    swapped = replace(other.attested, quote=found.attested.quote)
    assert "of another statement" in wrong(replace(other, attested=swapped).to_bytes(), trust)
    # The verifier's own nonce, put in its place, is not what the driver answered.
    replayed = replace(found.attested, challenge=b"a new one")
    assert "another nonce" in wrong(
        replace(found, attested=replayed).to_bytes(), replace(trust, nonce=b"a new one")
    )
    assert "no quote" in wrong(other.to_bytes(), replace(trust, nonce=None))


@pytest.mark.parametrize(
    ("trust", "hint"),
    [
        ({"nonce": b"1"}, "proves nothing without the key"),
        ({"pcrs": {"sha256:16": b""}}, "without the TPM's attestation key"),
        ({"signature": "x"}, "together with its signer's key"),
        ({"key": "x"}, "together with its signer's key"),
        ({"attest_key": __file__}, "neither 32 bytes nor PEM"),
    ],
)
def test_trust_that_proves_nothing_is_refused(made: Made, trust: dict[str, Any], hint: str) -> None:
    with pytest.raises(ArgumentError, match=hint):
        evidence.verify(made[0].to_bytes(), "e.cbor", Trust(**trust))


def _written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_keys_of_other_kinds_are_refused(made: Made, tmp_path: Path) -> None:
    """Those that the driver cannot sign with, private ones, and what is no key."""
    data = made[0].to_bytes()
    curve, edwards = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    for pem, hint in (
        (public_pem(curve), "no RSA key of 2048"),
        (public_pem(edwards), "no RSA key of 2048"),
        (public_pem(signer(1024)), "no RSA key of 2048"),
        (signer().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "no public key in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\n", "no public key in PEM"),
        (public_pem(signer())[:-40], "no public key in PEM"),
        (public_pem(signer())[:32], "neither|no public key|has (not )?signed|with this key"),
        (KEY + b"\n", "neither 32 bytes nor PEM"),
        (KEY[:31], "neither 32 bytes nor PEM"),
        (b"", "neither 32 bytes nor PEM"),
        (bytes(1 << 17), "more than 65536"),
    ):
        with pytest.raises(NymphError, match=hint):
            evidence.verify(data, "e", Trust(attest_key=_written(tmp_path, "key", pem)))


def test_a_statement_has_a_digest_or_a_signature(made: Made) -> None:
    found, trust = made
    assert found.attested
    for both in ((None, None), (bytes(32), bytes(256))):
        with pytest.raises(ArgumentError, match="either a digest or a signature"):
            replace(found.attested, digest=both[0], signature=both[1])
    file, _ = parts(found.to_bytes())
    told = {key: file["attestation"][key] for key in ("challenge", "statement")}
    for other in (
        {},
        {"digest": bytes(32), "signature": bytes(256)},
        *({"signature": bytes(size)} for size in (0, 32, 255, 513)),
        {"signature": "text"},
    ):
        forged = canonical.encode(file | {"attestation": told | other})
        assert "is no evidence, or damaged" in wrong(forged, Trust())
        with pytest.raises(pycddl.ValidationError):
            pycddl.Schema(CDDL.read_text()).validate_cbor(forged)
        wrong(forged, trust)


def test_a_signature_is_of_sha256_and_pkcs1(signed: Made) -> None:
    """The right key, in another scheme or of another digest, shows nothing."""
    found, trust = signed
    assert found.attested and found.attested.signature
    statement, scheme = found.attested.statement, padding.PKCS1v15()
    sign, digest = signer().sign, hashlib.sha256(statement).digest()
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    for signature in (
        sign(statement, scheme, hashes.SHA384()),
        sign(statement, scheme, hashes.SHA512()),
        sign(statement, pss, hashes.SHA256()),
        sign(digest, scheme, hashes.SHA256()),
        sign(statement[:-1], scheme, hashes.SHA256()),
        signer(3072).sign(statement, scheme, hashes.SHA256()),
        b"\0" + found.attested.signature,
        bytes(256),
        b"\xff" * 256,
    ):
        forged = replace(found.attested, signature=signature, quote=None)
        bare = replace(trust, tpm_key=None, pcrs=None)
        assert "not signed with this key" in wrong(replace(found, attested=forged).to_bytes(), bare)
    good = replace(found.attested, signature=sign(digest, scheme, Prehashed(hashes.SHA256())))
    evidence.verify(replace(found, attested=good).to_bytes(), "e", trust)


def test_evidence_is_signed_where_the_driver_can(monkeypatch: pytest.MonkeyPatch) -> None:
    attesting(monkeypatch)
    signing(monkeypatch)
    found = copies()
    assert found.attested and found.attested.signature and found.attested.digest is None
    monkeypatch.setattr(Model, "sign_key", None)
    found = copies()
    assert found.attested and found.attested.digest and found.attested.signature is None
    # A key that can't sign is an error, and no reason to go on with the other one.
    monkeypatch.setattr(Model, "sign_key", b"no key")
    with pytest.raises(NymphError, match="no private RSA key") as caught:
        copies()
    assert caught.value.errno == errno.EKEYREJECTED


def test_openssl_verifies_the_signature(signed: Made, tmp_path: Path) -> None:
    found, trust = signed
    assert found.attested and found.attested.signature and trust.attest_key
    signature = _written(tmp_path, "signature", found.attested.signature)
    for statement, said in (
        (found.attested.statement, "Verified OK"),
        (found.attested.statement + b"\n", "Verification failure"),
    ):
        command = ["openssl", "dgst", "-sha256", "-verify", trust.attest_key, "-signature", signature]
        command.append(_written(tmp_path, "statement", statement))
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert said in done.stdout


def test_a_quote_has_one_form(made: Made, tmp_path: Path) -> None:
    found, _ = made
    assert found.attested and found.attested.quote
    private = write_key(tmp_path, "tpm")
    message, signature, pcrs = quote(private, found.attested.to_quote())
    trust = Trust(tpm_key=tmp_path / "tpm-public.pem")
    evidence.verify(evidence.with_quote(found, message, signature, pcrs).to_bytes(), "e", trust)
    for bad, hint in (
        ((message + b"\0", signature, pcrs), "behind its end"),
        ((message[:-1], signature, pcrs), "too early"),
        ((b"\0" + message[1:], signature, pcrs), "no quote"),
        ((message, signature, bytes(32)), "not those that the TPM has quoted"),
        ((message, signature, pcrs + b"\0"), "behind its end"),
        (quote(private, bytes(32)), "of another statement"),
    ):
        with pytest.raises(EvidenceError, match=hint):
            evidence.with_quote(found, *bad)
    with pytest.raises(EvidenceError, match="attests nothing"):
        evidence.with_quote(replace(found, attested=None), message, signature, pcrs)


# --- contradictions that an author could write ---


def transfer(of: evidence.Evidence, number: int = 0, **change: Any) -> bytes:
    """Evidence in which a transfer says something else; nobody attests it."""
    transfers = list(of.transfers)
    transfers[number] = replace(transfers[number], **change)
    return replace(of, transfers=tuple(transfers), attested=None).to_bytes()


def test_transfers_agree_with_their_records(made: Made) -> None:
    found = made[0]
    one, two = found.transfers[0].sent[0], found.transfers[1].sent
    for change, hint in (
        ({"nbytes": 5}, "behind the end"),
        ({"source_digest": bytes(32), "target_digest": bytes(32)}, "digest of its source is not"),
        ({"target_digest": bytes(32)}, "two digests differ"),
        ({"sent": (replace(one, record=99),)}, "no record 99"),
        ({"sent": (replace(one, record=1),)}, "record 1 is not one of bytes that were sent"),
        ({"sent": (one, one)}, "there twice"),
        ({"sent": two}, "there twice"),
        ({"found": (replace(one, record=6),)}, "not all that was sent"),
        ({"sent": (replace(one, at=1),)}, "behind the end"),
    ):
        assert hint in wrong(transfer(found, **change)), change
    lying = bytearray(found.records)
    lying[128 * 4 + 64] ^= 1
    records = bytes(lying)
    told = replace(found, records=records, transcript=transcript.digest(records), attested=None)
    assert "bytes 0 to 4000, read again, are not those sent" in wrong(told.to_bytes())
    assert "not all that was sent" in wrong(transfer(found, 1, found=found.transfers[1].found[:1]))
    assert "another's" in wrong(transfer(found, 1, sent=(two[1], two[0])))
    empty = replace(found.transfers[2], nbytes=0, status=0, source_digest=bytes(32))
    assert "of no bytes" in wrong(replace(found, transfers=(empty,), attested=None).to_bytes())


def test_records_agree_with_the_transcript(made: Made) -> None:
    found = replace(made[0], attested=None)
    assert "transcript is not that of the records" in wrong(replace(found, transcript=bytes(32)).to_bytes())
    assert "bytes of records" in wrong(replace(found, count=6).to_bytes())
    assert "has no name" in wrong(replace(found, engines={}).to_bytes())
    assert "two engines" in wrong(replace(found, engines={"a": 1, "b": 1}).to_bytes())
    assert "the driver attests" in wrong(replace(made[0], engines={"cpu": 1}).to_bytes())
    lying = bytearray(found.records)
    lying[128 * 6 + 96] = 1  # a digest that a record says it has not
    records = bytes(lying)
    told = replace(found, records=records, transcript=transcript.digest(records))
    part = evidence.Part(0, 6)
    named = replace(told, transfers=(evidence.Transfer("a", "b", 9, sent=(part,)),))
    assert "says that it has none" in wrong(named.to_bytes())


# --- the form ---


def test_other_forms_of_the_same_values_are_refused(made: Made) -> None:
    """Canonical CBOR alone: other widths, orders, lengths, tags and types are no evidence."""
    file, body = parts(made[0].to_bytes())
    good = made[0].to_bytes()
    digest = file["digest"]

    def as_map(*pairs: bytes) -> bytes:
        return bytes([0xA0 + len(pairs)]) + b"".join(pairs)

    key, raw = b"\x66digest", b"\x68evidence" + cbor2.dumps(file["evidence"])
    attested = b"\x6battestation" + cbor2.dumps(file["attestation"], canonical=True)
    told = key + b"\x58\x20" + digest
    assert as_map(told, raw, attested) == good
    for bad in (
        as_map(raw, told, attested),  # another order
        as_map(told, told, raw),  # twice
        as_map(key + b"\x59\x00\x20" + digest, raw, attested),  # a longer length
        b"\xbf" + told + raw + attested + b"\xff",  # no definite length
        as_map(key + b"\x5f\x58\x20" + digest + b"\xff", raw, attested),
        b"\xd9\xd9\xf7" + good,  # tags
        as_map(key + b"\xd8\x40\x58\x20" + digest, raw, attested),
        as_map(key + b"\xd8\x1c\x58\x20" + digest, raw, attested),
        as_map(told, raw, attested, b"\x00\x00"),  # a key that is no text
        as_map(told, raw, attested, b"\x61\xff\x00"),
        as_map(told, raw, b"\x6battestation\xf6"),
        as_map(told, raw, b"\x6battestation\xf9\x00\x00"),
    ):
        wrong(bad)
    for change in (
        {"version": 2},
        {"format": "pynymph.other"},
        {"by": "x" * 4097},
        {"transfers": {}},
        {"engines": {"x": -1}},
        {"transfers": [1]},
        {"transcript": body["transcript"] | {"id": -1}},
        {"transcript": body["transcript"] | {"count": 1 << 64}},
    ):
        with pytest.raises(VerifyError):
            evidence.verify(resealed_anyhow(file, body | change), "x")
    assert "version 2" in wrong(resealed_anyhow(file, body | {"version": 2}))


def resealed_anyhow(file: dict[str, Any], body: Any) -> bytes:
    """As resealed(), of what canonical.encode() would refuse, too."""
    raw = cbor2.dumps(body, canonical=True)
    told = blake3(raw, derive_key_context="pynymph 2026-12 evidence digest v1").digest()
    return cbor2.dumps(file | {"evidence": raw, "digest": told}, canonical=True)


def test_no_bytes_take_long_or_much_memory() -> None:
    shared = b"\xd8\x1c\x81\x00"  # a list that may be named again
    for _ in range(12):
        shared = b"\xd8\x1c\x8a" + shared + b"\xd8\x1d\x00" * 9
    for bad in (
        b"",
        b"\x81" * 100_000,
        b"\xa1\x61a" * 100_000,
        b"\x9b\x00\x00\xff\xff\xff\xff\xff\xff",
        b"\x5b\x00\x00\xff\xff\xff\xff\xff\xff",
        b"\xba\xff\xff\xff\xff",
        shared,
        b"\xc2\x5a\x00\x01\x00\x00" + b"\xff" * 65536,
        b"\xd8\x23\x78\x20" + b"(a+)+" * 6 + b"$$",
    ):
        wrong(bad)
    with pytest.raises(VerifyError, match="bytes, and 268435456 are the most"):
        evidence.verify(bytes((256 << 20) + 1), "large")


@pytest.mark.parametrize("value", [1.5, True, None, {1: 2}, {"a": {"b": None}}, 1 << 64, "\ud800", (1,)])
def test_only_values_of_evidence_are_encoded(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical.encode(value)


def test_canonical_cbor_is_that_of_rfc_8949() -> None:
    rng = random.Random(5)
    for value, expected in (
        (0, "00"), (23, "17"), (24, "1818"), (255, "18ff"), (256, "190100"), (65536, "1a00010000"),
        (2**64 - 1, "1bffffffffffffffff"), (-1, "20"), (-(2**64), "3bffffffffffffffff"), (b"\1\2", "420102"),
        ("\u00fc", "62c3bc"), ([], "80"), ({"b": 1, "aa": 2, "a": 3}, "a3616103616201626161" "02"),
    ):  # fmt: skip
        assert canonical.encode(value).hex() == expected
        assert canonical.decode(bytes.fromhex(expected), "x", 99) == value
    for _ in range(200):
        value = {rng.randbytes(rng.randrange(9)).hex(): rng.randrange(-(2**64), 2**64) for _ in range(9)}
        found = canonical.encode(value)
        assert canonical.decode(found, "x", 999) == value
        keys = [cbor2.dumps(key) for key in cbor2.loads(found)]
        assert keys == sorted(keys)


def test_a_statement_has_one_form(made: Made) -> None:
    assert made[0].attested
    statement = made[0].attested.statement
    read = evidence.Statement.parse(statement)
    assert read.transcript == made[0].transcript and read.engines == {"model": 1}
    for bad, hint in (
        (statement[:207], "207 bytes"),
        (statement + b"\n", "another version"),
        (b"x" + statement[1:], "another version"),
        (statement[:52] + struct.pack("<I", 0) + statement[56:], "another version"),
        (statement[:-1] + b"x", "no end"),
    ):
        with pytest.raises(EvidenceError, match=hint):
            evidence.Statement.parse(bad)
    for text in (b"novalue\n", b"a=1\na=2\n", b"\xff=1\n"):
        size = 208 + len(text)
        bad = statement[:48] + struct.pack("<I", size) + statement[52:208] + text
        with pytest.raises(EvidenceError, match="text of the driver's statement"):
            evidence.Statement.parse(bad)


# --- files and slices ---


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(WEIGHTS)
    return path


def test_files_have_the_bytes_of_their_transfers(made: Made, weights: Path) -> None:
    found = made[0]
    assert evidence.check_file(found, str(weights)).source == "weights.bin"
    other = weights.with_name("renamed")
    weights.rename(other)
    assert evidence.check_file(found, str(other)).target == "card 0"  # by its bytes
    place = weights.parent / "disk/weights"
    place.parent.mkdir()
    place.write_bytes(WEIGHTS)
    assert evidence.check_file(found, str(place)).target == "disk/weights"
    for at in (0, 3999, 4000, len(WEIGHTS) - 1):
        changed = bytearray(WEIGHTS)
        changed[at] ^= 1
        place.write_bytes(changed)
        span = "bytes 0 to 4000" if at < 4000 else f"bytes 4000 to {len(WEIGHTS)}"
        with pytest.raises(EvidenceError, match=f"disk/weights: {span} are not those of record"):
            evidence.check_file(found, str(place))
    place.write_bytes(WEIGHTS + b"x")
    with pytest.raises(EvidenceError, match=f"{len(WEIGHTS) + 1} bytes instead of {len(WEIGHTS)}"):
        evidence.check_file(found, str(place))
    other.write_bytes(b"others")
    with pytest.raises(EvidenceError, match="none of 3 transfers has its bytes"):
        evidence.check_file(found, str(other))
    (place.parent / "nowhere").write_bytes(b"12345")
    with pytest.raises(EvidenceError, match="its transfer failed: Input/output error"):
        evidence.check_file(found, str(place.parent / "nowhere"))
    with pytest.raises(NymphError, match="can't be read"):
        evidence.check_file(found, str(place.parent / "missing"))


def test_an_empty_file_and_a_hole_have_evidence(tmp_path: Path) -> None:
    empty = pynymph.digest.payload(b"")
    hole = pynymph.digest.payload(bytes(5000))
    log = evidence.Log()
    with pynymph.Ring(device="model:", evidence=log):
        log.add_transfer(evidence.Transfer("a", "empty", 0, 0, empty, empty))
        log.add_transfer(evidence.Transfer("b", "hole", 5000, 0, hole, hole))
        found, _ = evidence.verify(log.evidence().to_bytes(), "e")
    for name, data in (("empty", b""), ("hole", bytes(5000))):
        (tmp_path / name).write_bytes(data)
        assert evidence.check_file(found, str(tmp_path / name)).target == name
    (tmp_path / "hole").write_bytes(bytes(4999) + b"x")
    with pytest.raises(EvidenceError, match="another digest"):
        evidence.check_file(found, str(tmp_path / "hole"))


def test_slices_prove_parts_to_those_who_have_the_evidence(made: Made) -> None:
    found = made[0]
    for begin, length in ((0, 10), (1000, 100), (0, len(WEIGHTS)), (len(WEIGHTS), 5)):
        data = evidence.Slice.of(WEIGHTS, begin, length).to_bytes()
        transfer_of, _, shown = evidence.check_slice(found, data, "s")
        assert shown == WEIGHTS[begin : begin + length] and transfer_of.target == "card 0"
        for at in range(0, len(data), 5):
            changed = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
            try:
                _, other, shown = evidence.check_slice(found, changed, "s")
            except EvidenceError:
                continue
            # Another range of the same leaves, of which the same bytes are proven.
            assert (other.begin, other.length) != (begin, length) and other.proof in data
            assert shown == WEIGHTS[other.begin : other.begin + other.length]
    with pytest.raises(EvidenceError, match="of a file that no transfer has"):
        evidence.check_slice(found, evidence.Slice.of(b"other", 0, 1).to_bytes(), "s")
    longer = replace(found.transfers[0], nbytes=len(WEIGHTS) + 1, sent=())
    with pytest.raises(EvidenceError, match="its file has 6400 bytes, and the transfer 6401"):
        evidence.check_slice(
            replace(found, transfers=(longer,)), evidence.Slice.of(WEIGHTS, 0, 1).to_bytes(), "s"
        )
    # A record of other bytes than those of the file, in a transfer that claims both.
    claimed = replace(found.transfers[1], sent=(replace(found.transfers[1].sent[1], at=0),))
    with pytest.raises(EvidenceError, match="is of other bytes"):
        evidence.check_slice(
            replace(found, transfers=(claimed,)), evidence.Slice.of(WEIGHTS, 0, 6400).to_bytes(), "s"
        )


def test_attesting_takes_the_key_that_the_administrator_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    attesting(monkeypatch)
    found = copies()
    assert found.attested and found.attested.digest == blake3(found.attested.statement, key=KEY).digest()
    assert found.attested.challenge == NONCE
    assert evidence.Statement.parse(found.attested.statement).nonce == found.nonce(NONCE)


def test_a_statement_agrees_with_the_records_whoever_has_the_key(made: Made) -> None:
    assert made[0].attested
    statement = made[0].attested.statement
    for at, hint in (
        (16, "attests other evidence"),
        (64, "another transcript"),
        (96, "another number of entries"),
        (104, "another number of the transcript"),
        (112, "bytes moved, and the records"),
        (120, "hash of the ring"),
        (152, "hash of the ring"),
    ):
        other = statement[:at] + bytes([statement[at] ^ 1]) + statement[at + 1 :]
        keyed = attested_again(other, made[0].attested)
        assert hint in wrong(
            replace(made[0], attested=keyed).to_bytes(), replace(made[1], tpm_key=None, pcrs=None)
        )
