# SPDX-License-Identifier: MIT
"""Evidence for test_evidence*.py: of copies on the model, attested, with a quote as a TPM makes it."""

import functools
import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import pynymph
from pynymph import evidence
from pynymph.evidence import canonical
from pynymph.model import Model

KEY = bytes(range(32))
NONCE = b"a verifier's"
WEIGHTS = b"".join(blake3(bytes([n])).digest() for n in range(200))
PCRS = bytes(range(32))


def quote(
    private: ec.EllipticCurvePrivateKey, extra: bytes, pcrs: bytes = PCRS
) -> tuple[bytes, bytes, bytes]:
    """TPMS_ATTEST of PCR 16, its signature, and the PCR's value."""
    message = struct.pack(">IH", 0xFF544347, 0x8018)
    for part in (b"\0\x0b" + bytes(32), extra):
        message += struct.pack(">H", len(part)) + part
    message += struct.pack(">QIIBQ", 12345, 3, 2, 1, 0x2023_0606)
    message += struct.pack(">IHB3s", 1, 0x000B, 3, b"\0\0\1")
    message += struct.pack(">H", 32) + hashlib.sha256(pcrs).digest()
    return message, private.sign(message, ec.ECDSA(hashes.SHA256())), pcrs


def write_key(folder: Path, name: str) -> ec.EllipticCurvePrivateKey:
    """NAME.pem, and NAME-public.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}-public.pem").write_bytes(public)
    return key


def attesting(monkeypatch: pytest.MonkeyPatch, key: bytes | None = KEY) -> None:
    """Give the model's driver a key to attest with."""
    monkeypatch.setattr(Model, "attest_key", key)


@functools.cache
def signer(bits: int = 2048) -> rsa.RSAPrivateKey:
    """The administrator's key, with which the driver signs."""
    return rsa.generate_private_key(65537, bits)


def as_root_adds_it(key: Any) -> bytes:
    """A private key in the form in which the kernel takes it."""
    der: bytes = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return der


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def signing(monkeypatch: pytest.MonkeyPatch, key: Any = None) -> None:
    """Give the model's driver a key to sign with."""
    monkeypatch.setattr(Model, "sign_key", as_root_adds_it(key or signer()))


def attested_again(statement: bytes, like: evidence.Attested) -> evidence.Attested:
    """What the driver with these keys says of another statement."""
    if like.digest is not None:
        return evidence.Attested(NONCE, statement, blake3(statement, key=KEY).digest())
    signature = signer().sign(statement, padding.PKCS1v15(), hashes.SHA256())
    return evidence.Attested(NONCE, statement, None, signature=signature)


def copies(nonce: bytes | None = NONCE) -> evidence.Evidence:
    """Evidence of a copy that is named, one that failed, one in two parts, and a digest without a name."""
    log = evidence.Log(by="bench 3")
    with pynymph.Ring(device="model:", evidence=log) as ring:
        to = bytearray(len(WEIGHTS))
        log.add(ring.copy(src=WEIGHTS, dst=to, verify=True), source="weights.bin", target="card 0", time_ns=7)
        with pytest.raises(pynymph.VerifyError) as caught:
            ring._core.run(pynymph.Compare(a=b"one", b=b"two"), None)
        assert caught.value.completion
        parts = [(0, 4000), (4000, len(WEIGHTS) - 4000)]
        sent, found = [], []
        for at, nbytes in parts:
            piece = WEIGHTS[at : at + nbytes]
            sent.append(log.part(at, ring.copy(src=piece, dst=bytearray(nbytes), verify=True)))
        for at, nbytes in parts:
            (done,) = [ring.submit(pynymph.Hash(src=WEIGHTS[at : at + nbytes])).result()]
            found.append(log.part(at, done))
        digest = pynymph.digest.payload(WEIGHTS)
        log.add_transfer(evidence.Transfer("weights.bin", "disk/weights", len(WEIGHTS), 0, digest, digest,
                                           tuple(sent), tuple(found)))  # fmt: skip
        log.add_transfer(evidence.Transfer("gone", "nowhere", 5, -5))
        ring.digest(src=b"not named")
        return log.evidence(nonce)


@pytest.fixture(scope="module", params=["keyed", "signed"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[evidence.Evidence, evidence.Trust]:
    """Evidence with a quote, and what its verifier trusts. The driver attests it with either kind of key."""
    return _made(tmp_path_factory.mktemp("evidence"), request.param == "signed")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[evidence.Evidence, evidence.Trust]:
    """The same, signed."""
    return _made(tmp_path_factory.mktemp("signed"), True)


def _made(folder: Path, is_signed: bool) -> tuple[evidence.Evidence, evidence.Trust]:
    with pytest.MonkeyPatch.context() as patch:
        (signing if is_signed else attesting)(patch)
        found = copies()
    (folder / "key").write_bytes(public_pem(signer()) if is_signed else KEY)
    private = write_key(folder, "tpm")
    assert found.attested
    found = evidence.with_quote(found, *quote(private, found.attested.to_quote()))
    return (
        found,
        evidence.Trust(
            nonce=NONCE,
            attest_key=folder / "key",
            tpm_key=folder / "tpm-public.pem",
            pcrs={"sha256:16": PCRS},
        ),
    )


def changes(value: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each part of a value of CBOR, changed: its path, and what makes all of the value with it changed."""
    if isinstance(value, dict):
        for key in value:
            yield f".{key} missing", lambda key=key: {k: v for k, v in value.items() if k != key}
            for path, make in changes(value[key]):
                yield f".{key}{path}", lambda key=key, make=make: value | {key: make()}
        yield ".more", lambda: value | {"more": 1}
    elif isinstance(value, list):
        for at, each in enumerate(value):
            yield f"[{at}] missing", lambda at=at: value[:at] + value[at + 1 :]
            yield f"[{at}] twice", lambda at=at: [*value[: at + 1], *value[at:]]
            for path, make in changes(each):
                yield f"[{at}]{path}", lambda at=at, make=make: [*value[:at], make(), *value[at + 1 :]]
        if len(value) > 1 and value[0] != value[1]:
            yield "[0] and [1] exchanged", lambda: [value[1], value[0], *value[2:]]
        yield " of text", lambda: "text"
    elif isinstance(value, bytes):
        yield " longer", lambda: value + b"\0"
        yield " shorter", lambda: value[:-1]
        for at in sorted({0, len(value) // 2, len(value) - 1} - {-1}):
            yield f" byte {at}", lambda at=at: value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        yield " of text", lambda: "text"
    elif isinstance(value, str):
        yield " longer", lambda: value + "x"
        yield " of bytes", lambda: value.encode()
    else:
        yield " more", lambda: value + 1
        yield " less", lambda: value - 1
        yield " of text", lambda: str(value)


def resealed(file: dict[str, Any], body: Any) -> bytes:
    """Write evidence with this body, and the digest that goes with it, as anybody can."""
    raw = canonical.encode(body)
    told = blake3(raw, derive_key_context="pynymph 2026-12 evidence digest v1").digest()
    return canonical.encode(file | {"evidence": raw, "digest": told})
