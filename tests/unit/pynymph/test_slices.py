# SPDX-License-Identifier: MIT
"""pynymph.evidence.slices: every range of files of many sizes, and that nothing else is proven."""

import random
from typing import Any

import pytest
from blake3 import blake3

from pynymph.errors import ArgumentError, VerifyError
from pynymph.evidence import Slice, canonical
from pynymph.evidence.slices import check, prove

SIZES = (
    0,
    1,
    63,
    64,
    65,
    1023,
    1024,
    1025,
    2048,
    2049,
    3072,
    3073,
    5120,
    8193,
    31_744,
    100_000,
    (1 << 20) + 1,
)
# Of data(): size, begin, length; BLAKE3 of the slice. Bao's own implementation makes the same slices.
KNOWN = {
    (0, 0, 0): "71e0a99173564931",
    (1, 0, 1): "8f31f022d3a5acfd",
    (1024, 1023, 1): "99729563c4a407ba",
    (1025, 1024, 1): "a7e35678e54a71ea",
    (3073, 5000, 1): "93d86b88cdd7de68",
    (5120, 1024, 2049): "1147eb8d372d32f0",
    (100_000, 50_000, 1): "ff957d73b86ebd8a",
    (100_000, 99_999, 10_000): "9b86f899ed709051",
}


def data(size: int) -> bytes:
    """Bytes of which no two leaves are the same."""
    return b"".join(blake3(number.to_bytes(4, "little")).digest() for number in range(-(-size // 32)))[:size]


def ranges(size: int, rng: random.Random) -> list[tuple[int, int]]:
    """Ranges at the ends of leaves, of the file, behind it, and anywhere."""
    begins = {0, 1, 1023, 1024, 2048, size // 2, max(0, size - 1), size, size + 1, size + 9999, 1 << 63}
    lengths = (0, 1, 1024, 1025, size, (1 << 64) - 1, rng.randrange(size + 2))
    return [(begin, length) for begin in sorted(begins) for length in lengths]


@pytest.mark.parametrize("size", SIZES)
def test_every_range_is_proven_to_who_has_the_digest(size: int) -> None:
    whole, rng = data(size), random.Random(size)
    wanted = ranges(size, rng) if size < 50_000 else rng.sample(ranges(size, rng), 8)
    for begin, length in wanted:
        digest, proof = prove(whole, begin, length)
        assert digest == blake3(whole).digest()
        assert check(proof, digest, begin, length) == (size, whole[begin : begin + length])


@pytest.mark.parametrize("of", KNOWN)
def test_slices_are_those_of_bao(of: tuple[int, int, int]) -> None:
    size, begin, length = of
    assert blake3(prove(data(size), begin, length)[1]).hexdigest()[:16] == KNOWN[of]


def test_a_slice_has_no_more_than_its_leaves_and_the_nodes_beside_them() -> None:
    _, proof = prove(data(100_000), 50_000, 100)
    assert len(proof) == 8 + 64 * 7 + 1024


@pytest.mark.parametrize("of", [(0, 0, 1), (1, 0, 1), (1025, 1024, 1), (3500, 1024, 10), (3500, 9000, 1)])
def test_no_changed_byte_is_proven(of: tuple[int, int, int]) -> None:
    size, begin, length = of
    digest, proof = prove(data(size), begin, length)
    for at in range(len(proof)):
        for change in (1, 0x80, 0xFF):
            changed = bytearray(proof)
            changed[at] ^= change
            if (
                at < 8
                and begin + length < size
                and -(-int.from_bytes(changed[:8], "little") // 1024) == -(-size // 1024)
            ):
                # Where the last leaf ends is not proven by another one, and the bytes are all the same.
                assert check(bytes(changed), digest, begin, length)[1] == data(size)[begin : begin + length]
                continue
            with pytest.raises(VerifyError, match="does not prove its bytes"):
                check(bytes(changed), digest, begin, length)
    for end in range(len(proof)):
        with pytest.raises(VerifyError):
            check(proof[:end], digest, begin, length)
    for more in (b"\0", proof):
        with pytest.raises(VerifyError, match="behind its end"):
            check(proof + more, digest, begin, length)


def test_a_slice_of_another_file_or_range_proves_nothing() -> None:
    whole = data(5000)
    digest, proof = prove(whole, 1024, 1024)
    with pytest.raises(VerifyError):
        check(proof, blake3(b"another").digest(), 1024, 1024)
    for begin, length in ((0, 1024), (1023, 2), (1024, 1025), (2048, 1), (4999, 1), (1 << 63, 1)):
        with pytest.raises(VerifyError):
            check(proof, digest, begin, length)
    # Of the same leaf: these bytes are proven, too.
    assert check(proof, digest, 1500, 7) == (5000, whole[1500:1507])


def test_a_length_that_is_made_up_is_refused() -> None:
    """A file of one leaf more, or of 2**64 bytes: the node of the root is another's."""
    digest, proof = prove(data(3000), 0, 3000)
    for total in (0, 1, 1024, 2999, 3001, 4096, 5000, (1 << 64) - 1):
        with pytest.raises(VerifyError):
            check(total.to_bytes(8, "little") + proof[8:], digest, 0, 3000)


@pytest.mark.parametrize("bad", [-1, 1 << 64, 1.5, "1"])
def test_a_range_is_of_whole_numbers(bad: Any) -> None:
    for arguments in ((bad, 1), (1, bad)):
        with pytest.raises(ArgumentError):
            prove(b"x", *arguments)


def test_a_file_of_a_slice_reads_back() -> None:
    made = Slice.of(data(3000), 1000, 100)
    found = Slice.from_bytes(made.to_bytes())
    assert found == made and found.proven() == (3000, data(3000)[1000:1100])


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"format": "pynymph.other"}, "instead of 'pynymph.slice'"),
        ({"version": 2}, "of version 2"),
        ({"digest": b"short"}, "another length"),
        ({"begin": -1}, "negative range"),
        ({"begin": "1"}, "is no slice"),
        ({"more": 1}, "is no slice"),
    ],
)
def test_what_is_no_slice_is_refused(change: dict[str, Any], hint: str) -> None:
    value = canonical.decode(Slice.of(b"x", 0, 1).to_bytes(), "x", 1000) | change
    with pytest.raises(ArgumentError, match=hint):
        Slice.from_bytes(canonical.encode(value))


def test_no_range_of_others_crashes() -> None:
    whole = data(3000)
    made = Slice.of(whole, 0, 10)
    for begin, length in ((1 << 70, 1), (0, 1 << 70)):
        with pytest.raises(ArgumentError):
            Slice(made.digest, begin, length, made.proof).proven()
