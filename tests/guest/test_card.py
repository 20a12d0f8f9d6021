# SPDX-License-Identifier: MIT
"""Memory of a card: Ring.allocate_on_card() on a channel of the endpoint, and what the CPU does with it."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import abi
import numpy as np
import pytest
from abi import BUFFER_CARD, MIB, PAGE, RECORD, VERIFY_HASH, ZERO_COPY, Context, Memory, in_buffers

import pynymph
from pynymph import digest

CHANNELS = [engine for engine in pynymph.query().engines.values() if engine != "cpu"]
pytestmark = pytest.mark.skipif(not CHANNELS, reason="there is no engine but the CPU")
RACES = 10
CARD_BYTES = Path("/sys/class/misc/pcie_nymph/counters/card_bytes")
IN_USE = Path("/sys/class/dma", CHANNELS[0] if CHANNELS else "", "in_use")
SIZE = 200_001  # some chunks, and an odd rest


@pytest.fixture
def ring() -> Iterator[pynymph.Ring]:
    with pynymph.Ring(8, engine=CHANNELS[0]) as ring:
        yield ring
    assert CARD_BYTES.read_text() == "0\n"


@pytest.mark.parametrize("zero_copy", [False, True])
def test_copies_to_and_from_card_memory_are_exact(ring: pynymph.Ring, zero_copy: bool) -> None:
    data, back = os.urandom(SIZE), bytearray(SIZE)
    one, other = ring.allocate_on_card(SIZE), ring.allocate_on_card(SIZE)
    for src, dst in ((data, one), (one, other), (other, back)):
        done = ring.copy(src=src, dst=dst, verify=True, zero_copy=zero_copy)
        assert (done.engine, done.bytes_done) == (CHANNELS[0], SIZE)
        assert done.src_digest == done.dst_digest == digest.payload(data)
    assert back == data


def test_every_operation_works_on_card_memory(ring: pynymph.Ring) -> None:
    data = bytearray(os.urandom(SIZE))
    card = ring.allocate_on_card(SIZE)
    ring.copy(src=data, dst=card)
    for zero_copy in (False, True):
        assert ring.digest(src=card, zero_copy=zero_copy) == digest.payload(data)
        assert ring.compare(a=card, b=data, zero_copy=zero_copy) is None
    data[70_000] ^= 1
    assert ring.compare(a=card, b=data) == 70_000
    ring.fill(dst=card[3:1003], pattern=b"\x5a" * 8)
    data[3:1003], data[70_000] = b"\x5a" * 1000, data[70_000] ^ 1
    assert ring.digest(src=card) == digest.payload(data)


def test_parts_of_card_memory_can_be_copied(ring: pynymph.Ring) -> None:
    """Offsets and lengths that are multiples of nothing."""
    card, data, back = ring.allocate_on_card(SIZE), os.urandom(SIZE), bytearray(SIZE)
    expected = bytearray(SIZE)
    for at, n in ((0, 1), (1, 4095), (4095, 2), (4097, 70_001), (SIZE - 1, 1)):
        ring.copy(src=data[:n], dst=card[at : at + n], verify=True)
        expected[at : at + n] = data[:n]
    ring.copy(src=card, dst=back, verify=True)
    assert back == expected


def test_card_memory_has_no_view(ring: pynymph.Ring) -> None:
    card = ring.allocate_on_card(PAGE)
    assert (len(card), card.readonly) == (PAGE, False)
    for look in (lambda: card.view, lambda: np.asarray(card)):
        with pytest.raises(pynymph.NymphError, match="no view: copy") as refused:
            look()
        assert refused.value.errno == errno.EOPNOTSUPP


def test_next_owner_of_card_memory_finds_zeros(ring: pynymph.Ring) -> None:
    with ring.allocate_on_card(SIZE) as card:
        ring.copy(src=b"\xff" * SIZE, dst=card)
    assert ring.digest(src=ring.allocate_on_card(SIZE)) == digest.payload(bytes(SIZE))


def test_card_memory_is_counted_and_given_back(ring: pynymph.Ring) -> None:
    """Taken, refused, counted, shown, and given back by free(), reset() and close()."""
    with pynymph.Ring(8, engine=CHANNELS[-1]) as other:
        for by_free in (True, False):
            parts = [ring.allocate_on_card(MIB)]
            with pytest.raises(pynymph.NymphError, match="card's memory") as refused:
                while True:
                    parts.append((other if len(parts) % 2 else ring).allocate_on_card(MIB))
            # an ordinary user has half of it at most
            assert refused.value.errno == (errno.EDQUOT if os.geteuid() else errno.ENOMEM)
            assert len(parts) > 4
            assert CARD_BYTES.read_text() == f"{len(parts) * MIB}\n"
            for part in parts if by_free else []:
                part.free()
            ring.reset()
            other.reset()
        # In one piece; in a native guest the card is RAM, of which 4 MiB are in one.
        most = 4 if abi.IS_NATIVE else len(parts)
        sizes = [min(most, len(parts) - at) * MIB for at in range(0, len(parts), most)]
        assert [each.nbytes for each in [ring.allocate_on_card(size) for size in sizes]] == sizes


def test_card_refuses_more_than_it_has(ring: pynymph.Ring) -> None:
    with pytest.raises(pynymph.NymphError) as refused:
        ring.allocate_on_card(abi.MAX_LENGTH)
    assert refused.value.errno == (errno.EDQUOT if os.geteuid() else errno.ENOMEM)
    with pytest.raises(pynymph.NymphError) as refused:
        ring.allocate_on_card(0)
    assert refused.value.errno == errno.EINVAL


@abi.needs_root
def test_one_user_cannot_take_all_card_memory() -> None:
    """Half, or what root says, whichever of its rings; root has all. Given back, it can be had again."""
    percent = abi.SYSFS / "limits/max_user_card_percent"
    engine = CHANNELS[0].encode()

    def takes() -> int:
        with Context() as one, Context() as other:
            one.setup(engine=engine)
            other.setup(engine=engine)
            taken = 0
            while taken < 64:
                try:
                    (other if taken % 2 else one).buffer(BUFFER_CARD, length=MIB)
                except OSError as error:
                    assert error.errno == (errno.EDQUOT if os.geteuid() else errno.ENOMEM)
                    break
                taken += 1
            return taken

    all_of_it = takes()
    for user in (65534, 65533):
        for _ in range(2):
            half = int(abi.ordinary(lambda: str(takes()), user))
            assert all_of_it // 2 <= half <= all_of_it // 2 + 1
    percent.write_text("25")
    try:
        quarter = int(abi.ordinary(lambda: str(takes())))
    finally:
        percent.write_text("50")
    assert all_of_it // 4 <= quarter <= all_of_it // 4 + 1


def test_card_buffer_is_counted_and_refuses_mapping_and_excess() -> None:
    with Context() as context:
        with context.refuses(errno.EINVAL):  # no ring, so no engine
            context.buffer(BUFFER_CARD, length=PAGE)
        context.setup(engine=CHANNELS[0].encode())
        made = context.buffer(BUFFER_CARD, length=SIZE)
        assert made.mmap_offset == 0
        assert context.fdinfo()["card-bytes"] == str(SIZE)
        memory = Memory(2 * SIZE)
        for at, length in ((0, SIZE + 1), (SIZE, 1), (2**63, 1), (2**64 - 1, 2)):
            entry = in_buffers(abi.copy(memory.address, at, length), dst=made.handle)
            with context.refuses(errno.EFAULT):
                context.enter([entry])


@pytest.mark.skipif(not IN_USE.exists(), reason="the channel is not the endpoint's")
def test_card_memory_takes_no_channel_for_a_ring_that_ended() -> None:
    """RESET can overtake BUFFER; which of them comes first is up to chance."""
    with Context() as context:

        def ask() -> None:
            with contextlib.suppress(OSError):  # there is no ring any more
                while True:
                    context.free(context.buffer(BUFFER_CARD, length=1).handle)

        for _ in range(RACES):
            context.setup(engine=CHANNELS[0].encode())
            asking = [threading.Thread(target=ask) for _ in range(8)]
            for thread in asking:
                thread.start()
            context.reset()
            for thread in asking:
                thread.join()
            end = time.monotonic() + abi.LONG
            while IN_USE.read_text() != "0\n":
                assert time.monotonic() < end, "no ring has the channel, and nobody gives it back"
                os.sched_yield()


def test_cpu_moves_card_memory_for_another_engine() -> None:
    """Handles outlive SETUP, and the next ring may have an engine that is no part of the card."""
    data, back = Memory(SIZE).randomize(), Memory(SIZE)
    with Context() as context:
        context.setup(engine=CHANNELS[0].encode())
        card = context.buffer(BUFFER_CARD, length=SIZE).handle
        kept = context.register(back)
        context.setup(engine=b"cpu")
        for flags in (RECORD | VERIFY_HASH, RECORD | VERIFY_HASH | ZERO_COPY):
            back.fill(0)
            there = in_buffers(abi.copy(data.address, 0, SIZE, flags), dst=card)
            again = in_buffers(abi.copy(0, 0, SIZE, flags), src=card, dst=kept)
            for entry in (there, again):
                record = context.run(entry)
                assert (record.status, record.engine) == (0, 1)
            assert back.equals(data, SIZE)
        with context.refuses(errno.EOPNOTSUPP):
            context.buffer(BUFFER_CARD, length=PAGE)
    assert CARD_BYTES.read_text() == "0\n"
