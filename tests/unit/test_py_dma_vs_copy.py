# SPDX-License-Identifier: MIT
"""tools/dma_vs_copy.py against rings that are not as they should be: it passes the right one alone."""

import dataclasses
import json
import struct
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

import dma_vs_copy as tool
import pynymph
from pynymph import Completion, NymphError, Snapshot, VerifyError, digest


class RightRing:
    """Does what a ring does, in Python."""

    moved = 0

    def __enter__(self) -> "RightRing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def copy(self, *, src: Any, dst: Any, verify: bool = False) -> Completion:
        dst[:] = src[:]
        self.moved += len(src)
        hashed = digest.payload(src) if verify else None
        return Completion(1, 0, len(src), "cpu", 1, 2, 3, hashed, hashed)

    def snapshot(self) -> Snapshot:
        ring = struct.pack("<IIIIQ", 256, 0, 0, 0, 0)
        empty = Snapshot(256, 0, 0, 0, self.moved, b"", 0, 0, 0, 0, False, "cpu", ring, b"")
        return dataclasses.replace(empty, ring_hash=digest.ring_hash(empty))

    def hash(self) -> bytes:
        return self.snapshot().ring_hash


class LastByteWrong(RightRing):
    def copy(self, **arguments: Any) -> Completion:
        done = super().copy(**arguments)
        arguments["dst"][-1] ^= 1
        return done


class OneByteNotWritten(RightRing):
    def copy(self, *, src: Any, dst: Any, verify: bool = False) -> Completion:
        before = dst[1000]
        done = super().copy(src=src, dst=dst, verify=verify)
        dst[1000] = before
        return done


class WrongOnce(RightRing):
    copies = 0

    def copy(self, **arguments: Any) -> Completion:
        done = super().copy(**arguments)
        self.copies += 1
        if self.copies == 7:
            arguments["dst"][0] ^= 1
        return done


class Falsified(RightRing):
    change: ClassVar[dict[str, Any]] = {}

    def copy(self, **arguments: Any) -> Completion:
        return dataclasses.replace(super().copy(**arguments), **self.change)


class SourceDigestWrong(Falsified):
    change: ClassVar[dict[str, Any]] = {"src_digest": bytes(32)}


class DestinationDigestWrong(Falsified):
    change: ClassVar[dict[str, Any]] = {"dst_digest": bytes(32)}


class NoDigest(Falsified):
    change: ClassVar[dict[str, Any]] = {"dst_digest": None}


class TooFewBytesSaid(Falsified):
    change: ClassVar[dict[str, Any]] = {"bytes_done": 1}


class AnotherEngine(Falsified):
    change: ClassVar[dict[str, Any]] = {"engine": "other"}


class RingHashWrong(RightRing):
    def snapshot(self) -> Snapshot:
        return dataclasses.replace(super().snapshot(), ring_hash=bytes(32))


class StatusHashWrong(RightRing):
    def hash(self) -> bytes:
        return bytes(32)


class Miscounted(RightRing):
    def snapshot(self) -> Snapshot:
        self.moved += 1
        return super().snapshot()


class Refuses(RightRing):
    def copy(self, *, src: Any, dst: Any, verify: bool = False) -> Completion:
        if verify:
            raise VerifyError(74, "dst is not what was sent")
        return super().copy(src=src, dst=dst)


class Missing(RightRing):
    def __init__(self) -> None:
        raise NymphError(2, "there is no device")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NYMPH_ACCEL", raising=False)

    def run(ring: type, *options: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(pynymph, "Ring", ring)
        monkeypatch.setattr(
            sys, "argv", ["dma_vs_copy.py", "--sizes", "4K,10001", "--repeats", "2", *options]
        )
        status = tool.main()
        report: dict[str, Any] = json.loads(Path("dist/dma_vs_copy.json").read_text())
        return status, report

    return run


def test_pass(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = run(RightRing)
    said = capsys.readouterr()
    assert (status, report["status"], report["failures"]) == (0, "PASS", [])
    assert said.out.splitlines()[-1].startswith("PASS")
    assert [row["bytes"] for row in report["sizes"]] == [4096, 10001]
    for row in report["sizes"]:
        assert row["bytes_checked"] == row["bytes"] * 3 * 3
        assert len(set(row["payload_blake3"].values())) == 1
        assert set(row["payload_blake3"]) == {"python", "kernel_src", "kernel_dst"}
        for way in ("memcpy", "driver", "verified"):
            assert row[way]["repeats"] == 2
            assert 0 < row[way]["min_s"] <= row[way]["median_s"] <= row[way]["max_s"]
            assert row[way]["bytes_per_s"] == row["bytes"] / row[way]["median_s"]
    assert report["ring_hash"]["kernel"] == report["ring_hash"]["recomputed"]
    assert report["engine"] == "cpu"
    assert report["accelerator"] is None
    assert "NYMPH_ACCEL" in report["accelerator_unknown_because"]


@pytest.mark.parametrize(
    ("ring", "words"),
    [
        (LastByteWrong, "byte 4095 and maybe others are wrong"),
        (OneByteNotWritten, "byte 1000 and maybe others are wrong"),
        (WrongOnce, "byte 0 and maybe others are wrong"),
        (SourceDigestWrong, "src digest is 0000"),
        (DestinationDigestWrong, "dst digest is 0000"),
        (NoDigest, "dst digest is none"),
        (TooFewBytesSaid, "says 1 bytes were moved"),
        (AnotherEngine, "made by engine other"),
        (RingHashWrong, "ring hash is 0000"),
        (StatusHashWrong, "between GET_STATUS and SNAPSHOT"),
        (Miscounted, "were copied"),
        (Refuses, "not what was sent"),
        (Missing, "there is no device"),
    ],
)
def test_fail(run: Any, capsys: pytest.CaptureFixture[str], ring: type, words: str) -> None:
    Path("dist").mkdir()
    Path("dist/dma_vs_copy.json").write_text('{"status": "PASS"}')
    status, report = run(ring)
    said = capsys.readouterr()
    assert status != 0
    assert report["status"] == "FAIL"
    assert any(words in failure for failure in report["failures"])
    assert f"FAIL: {report['failures'][0]}" in said.err
    assert "PASS" not in said.out
    assert said.out.splitlines()[-1] == "FAIL"


def test_the_ratio_decides_only_if_asked(run: Any) -> None:
    assert run(RightRing, "--min-ratio", "1e-9")[0] == 0
    status, report = run(RightRing, "--min-ratio", "1e9")
    assert (status, report["status"]) == (1, "FAIL")
    assert all("below 1000000000.0" in failure for failure in report["failures"])
    assert len(report["failures"]) == 2


def test_interrupted_it_leaves_no_result(run: Any, tmp_path: Path) -> None:
    class Interrupted(RightRing):
        def copy(self, **arguments: Any) -> Completion:
            raise KeyboardInterrupt

    assert run(RightRing)[0] == 0
    with pytest.raises(FileNotFoundError):
        run(Interrupted)


@pytest.mark.parametrize("sizes", ["", "0", "2G", "4K,x", "1.5M", "-1"])
def test_sizes_that_cannot_be(run: Any, capsys: pytest.CaptureFixture[str], sizes: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(RightRing, f"--sizes={sizes}")
    assert caught.value.code == 2
    assert "no size from 1 to 1G" in capsys.readouterr().err
