# SPDX-License-Identifier: MIT
"""Evidence of what the driver did: recorded, attested by it, and verified without it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from abi import AttestKey, needs_root
from rsa_keys import RSAKey

import pynymph
from pynymph import evidence
from pynymph.batch import copies

pytest.importorskip("cbor2")

NONCE = bytes.fromhex("5eed01")


@needs_root
def test_driver_attests_evidence(attest_key: bytes, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(attest_key)
    data, to = os.urandom(1 << 20), bytearray(1 << 20)
    log = evidence.Log(by="guest")
    with pynymph.Ring(evidence=log) as ring:
        log.add(ring.copy(src=data, dst=to, verify=True), source="random", target="memory")
        buffers = ring.allocate(4096), ring.allocate(4096)
        at = np.arange(64) * 64
        for _ in range(20):
            ring.run_many(copies(*buffers, src_at=at, dst_at=at, length=64, verify=True))
        with pytest.raises(pynymph.VerifyError):
            ring.submit(pynymph.Compare(a=b"one", b=b"two")).result()
        ring.fill(dst=to, pattern=b"\1")
        ring.submit(pynymph.Nop()).result()
        made = log.evidence(NONCE)
        later = log.evidence(b"another")
    assert made.count == 1 + 20 * 64 + 3
    trust = evidence.Trust(nonce=NONCE, attest_key=key)
    found, vouched = evidence.verify(made.to_bytes(), "e", trust)
    assert found == made and len(vouched) == 1 and vouched[0].startswith("driver ")
    assert made.attested and later.attested
    said = evidence.Statement.parse(made.attested.statement)
    if not ring.is_model:
        assert said.text["kernel"] == platform.release() and said.text["version"] == pynymph.__version__
        assert any(name.startswith("parameter.") for name in said.text)
    assert said.dma_bytes == (1 << 20) * 2 + 20 * 64 * 64 and said.uid == os.geteuid()
    for bad in (replace(made, attested=later.attested), replace(made, by="somebody else"), later):
        with pytest.raises(evidence.EvidenceError):
            evidence.verify(bad.to_bytes(), "e", trust)
    key.write_bytes(bytes(32))
    with pytest.raises(evidence.EvidenceError, match="not attested with this key"):
        evidence.verify(made.to_bytes(), "e", trust)


@needs_root
def test_driver_signs_evidence(attest_key: bytes, sign_key: RSAKey) -> None:
    """Whoever has the public key can verify it: evidence on the host does, in tests/unit/pynymph."""
    log = evidence.Log()
    with pynymph.Ring(evidence=log) as ring:
        log.add(ring.copy(src=b"1", dst=bytearray(1), verify=True), source="a", target="b")
        made = log.evidence(NONCE)
        keyed, signed = ring.attest(bytes(32), sign=False), ring.attest(bytes(32))
    assert made.attested and made.attested.signature and made.attested.digest is None
    assert sign_key.has_signed(made.attested.signature, made.attested.statement)
    assert signed.signature and sign_key.has_signed(signed.signature, signed.statement)
    assert keyed.digest and keyed.signature is None
    assert evidence.verify(made.to_bytes(), "e") == (made, [])
    AttestKey.replace(attest_key)
    with pynymph.Ring() as ring:
        assert ring.attest(bytes(32)).digest
        with pytest.raises(pynymph.NymphError, match="no key to sign with"):
            ring.attest(bytes(32), sign=True)


def test_every_engine_has_evidence() -> None:
    for engine in pynymph.query().engines.values():
        log = evidence.Log()
        with pynymph.Ring(engine=engine, evidence=log) as ring:
            done = ring.copy(src=bytes(100_000), dst=bytearray(100_000), verify=True)
            log.add(done, source="zeros", target=engine)
            found, _ = evidence.verify(log.evidence().to_bytes(), "e")
        assert set(found.engines) == {done.engine}


@needs_root
def test_command_makes_evidence_that_the_driver_attests(attest_key: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(attest_key)
    (tmp_path / "film").write_bytes(os.urandom(3_000_001))

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "pynymph", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run("copy", "--evidence", "e.cbor", "--nonce", "5eed", "film", "copy")
    said = run("verify", "e.cbor", "--nonce", "5eed", "--attest-key", "key", "film", "copy")
    assert "12 entries, by " in said and f"vouched for by driver {pynymph.__version__}, by its key" in said
    assert said.count("has the bytes") == 2
