# SPDX-License-Identifier: MIT
"""Readers of what others write, on damaged bytes; `make fuzz-readers` damages them for longer."""

import random
import runpy
from pathlib import Path

import pytest

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "fuzz/readers.py"))
TRIES = 300


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The bytes with a few of them changed, taken away, or there again."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, end = sorted(rng.randrange(len(found) + 1) for _ in range(2))
        how = rng.randrange(4)
        if how == 0 and found:
            found[rng.randrange(len(found))] = rng.choice(b'\0\xff[]{}"0129-.e,:\\u')
        elif how == 1:
            del found[at : min(end, at + 8)]
        elif how == 2:
            found[at:at] = found[at:end]
        else:
            found[at:end] = rng.choice(
                [b"null", b"1e999", b"-1", b"[[", b'"\\ud800"', b"9" * 400, b"true", b"{}"]
            )
    return bytes(found)


@pytest.mark.parametrize("name", FUZZ["READERS"])
def test_reader_takes_bytes_or_raises_its_own_error(name: str) -> None:
    rng = random.Random(name)
    for seed in FUZZ["SEEDS"][name]:
        FUZZ["READERS"][name][0](seed)
        for _ in range(TRIES):
            FUZZ["read"](name, damaged(rng, seed))


@pytest.mark.parametrize("name", FUZZ["READERS"])
def test_reader_takes_what_is_nested_deeply(name: str) -> None:
    FUZZ["read"](name, b"[" * 200_000)
    FUZZ["read"](name, b'{"a":' * 100_000)
