# SPDX-License-Identifier: MIT
"""Transcripts and attestations of the model: entries and records alone say what the digest is."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from evidence_files import as_root_adds_it, signer, signing

import pynymph
from pynymph import abi, transcript
from pynymph.abi import address, ffi, lib
from pynymph.model import Model

HEADER = Path(__file__).parents[3] / "kernel" / "pcie_nymph.h"


@pytest.fixture
def ring() -> Iterator[pynymph.Ring]:
    with pynymph.Ring(8, device="model:") as ring:
        yield ring


def test_context_is_the_headers() -> None:
    [there] = re.findall(r'^#define NYMPH_TRANSCRIPT_CONTEXT "(.*)"$', HEADER.read_text(), re.MULTILINE)
    assert there == transcript.CONTEXT


def run_some(model: Model) -> tuple[list[bytes], list[bytes]]:
    """Entries that end in different ways, and their records."""
    setup = abi.new("nymph_setup2", entries=8, flags=lib.NYMPH_SETUP_PAUSED)
    model.ioctl(abi.NYMPH_IOC_SETUP2, setup)
    source, target = ffi.new("char[]", b"x" * 64), ffi.new("char[]", 64)
    record, verify = lib.NYMPH_DMA_FLAG_RECORD, lib.NYMPH_DMA_FLAG_VERIFY_HASH
    at = {"size": 64, "src": address(source), "dst": address(target), "length": 64}
    array = ffi.new(
        "struct nymph_entry[]",
        [
            {**at, "opcode": lib.NYMPH_OP_COPY, "flags": record | verify, "cookie": 1},
            {"size": 64, "opcode": lib.NYMPH_OP_NOP, "flags": record, "cookie": 2},
            {**at, "opcode": lib.NYMPH_OP_COPY, "flags": record, "cookie": 3},
        ],
    )
    model.ioctl(abi.NYMPH_IOC_ENTER, abi.new("nymph_enter", entries=address(array), to_submit=3))
    model.ioctl(abi.NYMPH_IOC_CANCEL, abi.new("nymph_cancel", cookie=3))
    model.ioctl(abi.NYMPH_IOC_ENABLE)
    raw = model.read(3 * 128)
    return [bytes(ffi.buffer(array + i, 64)) for i in range(3)], [
        raw[128 * i : 128 * i + 128] for i in range(3)
    ]


def seen(model: Model) -> tuple[bytes, int]:
    snapshot = abi.new("nymph_snapshot")
    model.ioctl(abi.NYMPH_IOC_SNAPSHOT, snapshot)
    return bytes(snapshot.transcript), snapshot.transcript_count


def test_digest_is_computed_from_entries_and_records() -> None:
    model = Model()
    packed = list(map(transcript.pack, *run_some(model)))
    assert seen(model) == (transcript.digest(b"".join(packed)), 3)
    model.close()


def test_anything_else_has_another_digest() -> None:
    """Another order, one less, one more, and every bit of the last and of the first."""
    model = Model()
    packed = list(map(transcript.pack, *run_some(model)))
    digest, _ = seen(model)
    for wrong in (packed[::-1], packed[:2], [*packed, packed[2]], [packed[0], *packed[2:]], []):
        assert transcript.digest(b"".join(wrong)) != digest
    stream = b"".join(packed)
    for bit in [*range(8 * 128), *range(8 * 256, 8 * 384)]:
        flipped = bytearray(stream)
        flipped[bit // 8] ^= 1 << bit % 8
        assert transcript.digest(bytes(flipped)) != digest
    model.close()


def test_what_does_not_fit_is_refused() -> None:
    model = Model()
    entries, records = run_some(model)
    for entry, record in ((entries[0][:63], records[0]), (entries[0], records[0] + b"\0")):
        with pytest.raises(pynymph.ArgumentError, match="give 64 bytes"):
            transcript.pack(entry, record)
    with pytest.raises(pynymph.ArgumentError, match="pair them by cookie"):
        transcript.pack(entries[0], records[1])
    with pytest.raises(pynymph.ArgumentError, match="127 bytes are not whole records"):
        transcript.digest(bytes(127))
    model.close()


def test_reset_begins_another_transcript(ring: pynymph.Ring) -> None:
    ring.copy(src=b"x", dst=bytearray(1))
    before = ring.snapshot()
    ring.reset()
    after = ring.snapshot()
    assert (before.transcript_count, after.transcript_count) == (1, 0)
    assert after.transcript == transcript.digest(b"")
    assert after.transcript_id > before.transcript_id


def test_attestation_is_keyed(ring: pynymph.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    key, nonce = os.urandom(32), os.urandom(32)
    with pytest.raises(pynymph.NymphError, match="the driver has no key to attest with"):
        ring.attest(nonce)
    monkeypatch.setattr(Model, "attest_key", key)
    made = ring.attest(nonce)
    assert made.digest == blake3(made.statement, key=key).digest()
    statement = ffi.from_buffer("struct nymph_statement *", made.statement)
    now = ring.snapshot()
    assert bytes(statement.magic) == b"nymph attest v1\0"
    assert bytes(statement.nonce) == nonce
    assert statement.size == len(made.statement)
    assert bytes(statement.transcript) == now.transcript
    assert bytes(statement.ring_hash) == now.ring_hash
    text = made.statement[statement.text_offset :].decode()
    assert dict(line.split("=", 1) for line in text.splitlines())["engine.1"] == "model"


def test_attestation_is_signed(ring: pynymph.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    nonce = os.urandom(32)
    with pytest.raises(pynymph.NymphError, match="no key to sign with"):
        ring.attest(nonce, sign=True)
    signing(monkeypatch)
    for sign in (None, True):
        made = ring.attest(nonce, sign=sign)
        assert made.digest is None and made.signature and len(made.signature) == 256
        verify = signer().public_key().verify
        verify(made.signature, made.statement, padding.PKCS1v15(), hashes.SHA256())
        assert made.statement[16:48] == nonce
        for changed in (made.statement[:-1], made.statement + b"\0", b"N" + made.statement[1:]):
            with pytest.raises(InvalidSignature):
                verify(made.signature, changed, padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(pynymph.NymphError, match="no key to attest with"):
        ring.attest(nonce, sign=False)
    monkeypatch.setattr(Model, "attest_key", bytes(32))
    assert ring.attest(nonce, sign=False).signature is None
    assert ring.attest(nonce).digest is None
    monkeypatch.setattr(Model, "sign_key", None)
    assert ring.attest(nonce).signature is None


def test_keys_that_cannot_sign_are_refused(ring: pynymph.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the keyed digest does not stand in for them."""
    monkeypatch.setattr(Model, "attest_key", bytes(32))
    public = signer().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    of_other_kinds = map(
        as_root_adds_it, (signer(1024), signer(2560), ec.generate_private_key(ec.SECP256R1()))
    )
    for key in (b"", b"no key", public, *of_other_kinds):
        monkeypatch.setattr(Model, "sign_key", key)
        for sign in (None, True):
            with pytest.raises(pynymph.NymphError, match="no private RSA key of 2048") as caught:
                ring.attest(bytes(32), sign=sign)
            assert caught.value.errno == errno.EKEYREJECTED


def test_the_model_says_what_it_needs_to_sign(ring: pynymph.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    signing(monkeypatch)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.rsa", None)
    with pytest.raises(pynymph.NymphError, match=r"pip install 'pynymph\[signatures\]'") as caught:
        ring.attest(bytes(32), sign=True)
    assert caught.value.errno == errno.EOPNOTSUPP
    monkeypatch.setattr(Model, "attest_key", bytes(32))
    assert ring.attest(bytes(32)).digest


def test_the_model_refuses_what_the_driver_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/guest/test_abi_attest.py asks the driver the same."""
    signing(monkeypatch)
    monkeypatch.setattr(Model, "attest_key", bytes(32))
    model = Model()
    setup = abi.new("nymph_setup2", entries=4)
    model.ioctl(abi.NYMPH_IOC_SETUP2, setup)
    statement, signature = ffi.new("char[]", 16384), ffi.new("char[]", 512)
    whole = ffi.sizeof("struct nymph_attest")
    good = {"flags": 1, "statement": abi.address(statement), "max_statement": 16384,
            "signature": abi.address(signature), "max_signature": 512}  # fmt: skip

    def asked(size: int = whole, **changed: int) -> Any:
        argument = abi.new("nymph_attest", **good | changed)
        argument.size = size
        assert model.ioctl(abi.NYMPH_IOC_ATTEST, argument) == 0
        return argument

    assert asked().signature_size == asked(max_signature=256).signature_size == 256
    assert not any(asked().digest)
    keyed = {"flags": 0, "signature": 0, "max_signature": 0}
    for size in (88, 96, whole):
        answer = asked(size, **keyed, signature_size=7)
        assert any(answer.digest) and answer.signature_size == (0 if size == whole else 7)
    for number, size, changed in (
        (errno.EINVAL, whole, {"flags": 2}),
        (errno.EINVAL, whole, {"flags": 3}),
        (errno.EINVAL, whole, {"flags": 0}),
        (errno.EINVAL, whole, keyed | {"signature": 1}),
        (errno.EINVAL, whole, keyed | {"max_signature": 1}),
        (errno.EINVAL, 96, keyed | {"signature": 1}),
        (errno.EINVAL, whole - 1, {}),
        (errno.EINVAL, 88, {}),
        (errno.EINVAL, 87, keyed),
        (errno.ENOSPC, whole, {"max_signature": 255}),
        (errno.ENOSPC, whole, {"max_signature": 0}),
        (errno.ENOSPC, whole, {"max_statement": 208}),
        (errno.EFAULT, whole, {"signature": 16}),
        (errno.EFAULT, whole, {"statement": 16}),
    ):
        with pytest.raises(OSError) as caught:
            asked(size, **changed)
        assert caught.value.errno == number, (size, changed)
    model.close()


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33), bytearray(32), "x" * 32, None])
def test_nonce_is_32_bytes(ring: pynymph.Ring, nonce: object) -> None:
    with pytest.raises(pynymph.ArgumentError, match="give 32 bytes"):
        ring.attest(nonce)  # type: ignore[arg-type]
