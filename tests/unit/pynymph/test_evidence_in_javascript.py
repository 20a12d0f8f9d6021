# SPDX-License-Identifier: MIT
"""A verifier of evidence in JavaScript, written from docs/reference/evidence.md, agrees with pynymph's own.

It reads CBOR by itself, and has BLAKE3 of noble-hashes, which nymphd's dashboard has, too.
"""

import json
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
from evidence_files import KEY, NONCE, WEIGHTS, changes, made, public_pem, resealed, signer

from pynymph import evidence, transcript
from pynymph.errors import NymphError

__all__ = ["made"]

HERE = Path(__file__).parent
NOBLE = HERE.parents[2] / "nymphd/nymphd/static/vendor/noble-hashes"

Made = tuple[evidence.Evidence, evidence.Trust]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The verifier, with noble-hashes beside it as modules."""
    if shutil.which("node") is None:
        pytest.skip("there is no node: sudo apt-get install nodejs")
    folder = tmp_path_factory.mktemp("javascript")
    shutil.copytree(NOBLE, folder / "noble-hashes")
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(HERE / "evidence_in_javascript/verify.mjs", folder)
    return folder / "verify.mjs"


def in_javascript(program: Path, calls: list[list[str]]) -> list[str]:
    """The verdict of each call."""
    listed = program.with_name("calls.json")
    listed.write_text(json.dumps(calls))
    command = ["node", program, "--many", listed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls)
    return lines


def here(data: bytes, trust: evidence.Trust, slices: list[bytes], files: list[str]) -> str | None:
    """What is wrong by pynymph, or None."""
    try:
        found, _ = evidence.verify(data, "e", trust)
        for each in slices:
            evidence.check_slice(found, each, "s")
        for name in files:
            evidence.check_file(found, name)
    except NymphError as error:
        return error.strerror
    return None


def agree(
    program: Path,
    folder: Path,
    cases: list[tuple[bytes, list[str], evidence.Trust, list[bytes], list[str]]],
) -> int:
    """Check that both say the same of each. Returns how many are right."""
    calls, expected = [], []
    for number, (data, arguments, trust, slices, files) in enumerate(cases):
        path = folder / f"{number}.cbor"
        path.write_bytes(data)
        call = [str(path), *arguments, *files]
        for each, slice_ in enumerate(slices):
            of = folder / f"{number}-{each}.slice"
            of.write_bytes(slice_)
            call += ["--slice", str(of)]
        calls.append(call)
        expected.append(here(data, trust, slices, files))
    right = 0
    for line, said, case in zip(in_javascript(program, calls), expected, cases, strict=True):
        assert line.startswith("wrong: ") == (said is not None), f"{line!r}, {said!r}: {case[0].hex()}"
        right += said is None
    return right


def test_both_agree_on_good_and_changed_evidence(made: Made, program: Path, tmp_path: Path) -> None:
    found, trust = made
    assert found.attested
    plain = replace(found, attested=replace(found.attested, quote=None))  # the verifier here knows no TPM
    trust = evidence.Trust(nonce=NONCE, attest_key=trust.attest_key)
    keyed = ["--key", str(trust.attest_key), "--nonce", NONCE.hex()]
    nobody = evidence.Trust()
    good = plain.to_bytes()
    unsigned = replace(plain, attested=None)
    cases: list[Any] = [
        (good, keyed, trust, [], []),
        (good, [], nobody, [], []),
        (unsigned.to_bytes(), [], nobody, [], []),
        (unsigned.to_bytes(), keyed, trust, [], []),
        (replace(unsigned, transfers=()).to_bytes(), [], nobody, [], []),
    ]
    # The right key of the other kind, and other keys of either kind.
    for key in (KEY, bytes(32), public_pem(signer()), public_pem(signer(3072))):
        if key == Path(str(trust.attest_key)).read_bytes():
            continue
        path = tmp_path / f"other-{len(cases)}"
        path.write_bytes(key)
        cases.append((good, ["--key", str(path)], evidence.Trust(attest_key=path), [], []))
    rng = random.Random(7)
    for at in range(len(good)):
        changed = good[:at] + bytes([good[at] ^ rng.randrange(1, 256)]) + good[at + 1 :]
        cases.append((changed, keyed, trust, [], []))
    cases += [(good[:end], keyed, trust, [], []) for end in range(0, len(good), 50)]
    assert agree(program, tmp_path, cases) == 4
    # Whoever changes evidence that nobody attests can make its digest again: both find contradictions alone.
    file = cbor2.loads(unsigned.to_bytes())
    body = cbor2.loads(file["evidence"])
    cases = [(resealed(file, make()), [], nobody, [], []) for _, make in changes(body)]
    for _, make in changes(body["transcript"]["records"]):
        stream = make()
        if isinstance(stream, bytes) and len(stream) % 128 == 0:
            told = body["transcript"] | {"records": stream, "digest": transcript.digest(stream)}
            cases.append((resealed(file, body | {"transcript": told}), [], nobody, [], []))
    right = agree(program, tmp_path, cases)
    assert 0 < right < len(cases) / 2


def test_both_agree_on_forms_of_cbor(made: Made, program: Path, tmp_path: Path) -> None:
    good = replace(made[0], attested=None).to_bytes()
    file = cbor2.loads(good)
    digest, raw = b"\x58\x20" + file["digest"], cbor2.dumps(file["evidence"])
    one, two = b"\x66digest", b"\x68evidence"
    forms = [
        good,
        b"\xa2" + two + raw + one + digest,
        b"\xbf" + one + digest + two + raw + b"\xff",
        b"\xb8\x02" + one + digest + two + raw,
        b"\xa2\x78\x06digest" + digest + two + raw,
        b"\xa2" + one + b"\x59\x00\x20" + digest[2:] + two + raw,
        b"\xa3" + one + digest + one + digest + two + raw,
        b"\xd9\xd9\xf7" + good,
        b"\xa2" + one + b"\xd8\x40" + digest + two + raw,
        b"\xa3" + one + digest + two + raw + b"\x6battestation\xf6",
        good + b"\xa0",
        b"\x81" * 5000,
    ]
    cases = [(form, [], evidence.Trust(), [], []) for form in forms]
    assert agree(program, tmp_path, cases) == 1


def test_both_agree_on_files_and_slices(made: Made, program: Path, tmp_path: Path) -> None:
    found = replace(made[0], attested=None)
    nobody, data, rng = evidence.Trust(), replace(made[0], attested=None).to_bytes(), random.Random(3)
    for name, contents in (("right", WEIGHTS), ("short", WEIGHTS[:-1]), ("wrong", b"x" + WEIGHTS[1:])):
        (tmp_path / name).write_bytes(contents)
    cases: list[Any] = [
        (data, [], nobody, [], [str(tmp_path / name)]) for name in ("right", "short", "wrong")
    ]
    empty = evidence.Transfer("a", "b", 0, 0, *[evidence.Slice.of(b"", 0, 0).digest] * 2)
    both = replace(found, transfers=(*found.transfers, empty)).to_bytes()
    for begin, length in ((0, 1), (1024, 1024), (3000, 3000), (0, 6400), (6400, 1), (1 << 60, 5)):
        made_slice = evidence.Slice.of(WEIGHTS, begin, length).to_bytes()
        cases.append((both, [], nobody, [made_slice], []))
        for _ in range(40):
            at = rng.randrange(len(made_slice))
            changed = made_slice[:at] + bytes([made_slice[at] ^ rng.randrange(1, 256)]) + made_slice[at + 1 :]
            cases.append((both, [], nobody, [changed], []))
    cases.append((both, [], nobody, [evidence.Slice.of(b"", 0, 0).to_bytes()], []))
    cases.append((both, [], nobody, [evidence.Slice.of(b"other", 0, 0).to_bytes()], []))
    assert agree(program, tmp_path, cases) >= 8
