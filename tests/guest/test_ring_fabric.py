# SPDX-License-Identifier: MIT
"""pynymph.fabric: NYMPH's names for what a ring does, and engines that prove themselves."""

import ctypes
import errno

import pytest

import pynymph
from pynymph import digest, fabric
from pynymph.abi import lib
from pynymph.fabric import DMADescriptor, ZLTA2Fabric

DEVICE = pynymph.Ring.__init__.__kwdefaults__["device"]  # type: ignore[index]  # the model's, with --model


def address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def test_old_names_copy_and_verify() -> None:
    src, dst = bytearray(b"every byte" * 1000), bytearray(10_000)
    with ZLTA2Fabric(DEVICE) as it:
        assert not it.is_initialized()
        assert it.initialize(ring_size=8)
        assert it.is_initialized() and it.initialize()
        flags = lib.NYMPH_DMA_FLAG_COMPLETE_SYNC | lib.NYMPH_DMA_FLAG_VERIFY_HASH
        assert it.submit_dma(DMADescriptor(address(src), address(dst), 10_000, flags, cookie=7))
        assert dst == src
        status = it.get_status()
        assert (status.dma_bytes, status.ring_size, status.active_descriptors) == (10_000, 8, 0)
        assert (status.engine == "model") == (DEVICE == "model:")
        assert it.reset()
        status = it.get_status()
        assert (status.dma_bytes, status.ring_size) == (0, 8)
    assert not it.is_initialized()


def test_fabric_says_why_it_refuses() -> None:
    it = ZLTA2Fabric(DEVICE)
    for use in (it.get_status, it.reset, it.get_fabric_verify_status):
        with pytest.raises(pynymph.ClosedError, match="initialize"):
            use()
    with pytest.raises(pynymph.ArgumentError, match="entries is 5000; give a whole number from 1 to 4096"):
        it.initialize(5000)
    assert not it.is_initialized()
    it.initialize()
    with pytest.raises(pynymph.NymphError, match="not mapped") as refused:
        it.submit_dma(DMADescriptor(0x1000, 0x2000, 16))
    assert refused.value.errno == errno.EFAULT
    with pytest.raises(pynymph.ArgumentError, match="not well-formed"):
        it.submit_dma(DMADescriptor(0, 0, 0))
    with pytest.raises(pynymph.ArgumentError, match="src_addr is -1; give a whole number"):
        it.submit_dma(DMADescriptor(-1, 0, 4096))
    with pytest.raises(pynymph.ArgumentError, match="nbytes is 0; give a whole number"):
        fabric.verify_engine("cpu", device=DEVICE, nbytes=0)
    it.close()
    it.close()


def test_every_engine_is_verified() -> None:
    found = fabric.get_fabric_verify_status(DEVICE)
    assert found.verified
    assert [each.engine for each in found.engines] == list(pynymph.query().engines.values())
    assert found.status.ring_hash == found.recomputed_ring_hash
    for each in found.engines:
        assert each.verified and each.reason is None
        assert each.dma_bytes == 64 * 1024
        assert each.ring_hash == each.recomputed_ring_hash is not None
        assert each.src_digest == each.dst_digest is not None
    assert len({each.src_digest for each in found.engines}) == len(found.engines)


@pytest.mark.parametrize("nbytes", [1, 4095, 1 << 20])
def test_engine_is_verified_with_any_number_of_bytes(nbytes: int) -> None:
    engine = next(iter(pynymph.query().engines.values()))
    found = fabric.verify_engine(engine, device=DEVICE, nbytes=nbytes)
    assert (found.verified, found.dma_bytes) == (True, nbytes)


def test_unknown_engine_is_not_verified() -> None:
    found = fabric.verify_engine("warp", device=DEVICE)
    assert not found.verified
    assert found.reason is not None and "no engine 'warp'" in found.reason
    assert found.ring_hash is found.src_digest is None


def test_verification_finds_every_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver lies on demand: what is said of one that does is seen by having user space lie."""
    engine = next(iter(pynymph.query().engines.values()))
    monkeypatch.setattr(digest, "ring_hash", lambda snapshot: bytes(32))
    found = fabric.verify_engine(engine, device=DEVICE)
    assert not found.verified and found.reason is not None and "with the copy queued" in found.reason
    monkeypatch.undo()
    monkeypatch.setattr(digest, "payload", lambda buffer: bytes(32))
    found = fabric.verify_engine(engine, device=DEVICE)
    assert not found.verified and found.reason is not None and "what was sent" in found.reason
