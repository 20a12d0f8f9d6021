# SPDX-License-Identifier: MIT
"""tools/dma_vs_copy.py against rings that are not as they should be: it passes the right one alone."""

import dataclasses
import itertools
import json
import struct
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

import dma_vs_copy as tool
import pynymph
from pynymph import Completion, NymphError, Query, Snapshot, VerifyError, digest


class RightRing:
    """Does what a ring does, in Python."""

    engines: ClassVar[tuple[str, ...]] = ("cpu",)
    """Those that there are. As the driver does, auto gets a DMA channel if there is one."""

    moved = 0

    def __init__(self, *, engine: str = "auto") -> None:
        self.engine = self.engines[:2][-1] if engine == "auto" else engine
        if self.engine not in self.engines:
            raise NymphError(19, f"there is no engine {engine!r}")

    def __enter__(self) -> "RightRing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def copy(self, *, src: Any, dst: Any, verify: bool = False) -> Completion:
        dst[:] = src[:]
        self.moved += len(src)
        hashed = digest.payload(src) if verify else None
        return Completion(1, 0, len(src), self.engine, 1, 2, 3, hashed, hashed)

    def snapshot(self) -> Snapshot:
        ring = struct.pack("<IIIIQ", 256, 0, 0, 0, 0)
        empty = Snapshot(
            256, 0, 0, 0, self.moved, b"", 0, 0, 0, 0, False, self.engine, bytes(32), 0, 1, ring, b""
        )
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
    def __init__(self, **_: Any) -> None:
        raise NymphError(2, "there is no device")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NYMPH_ACCEL", raising=False)
    monkeypatch.setattr(tool, "CHANNELS", tmp_path / "dma")

    def run(
        ring: type[RightRing], *options: str, engines: tuple[str, ...] = ("cpu",)
    ) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(RightRing, "engines", engines)
        there_are = Query(1, 0, 0, 0, 0, 0, 0, 0, dict(enumerate(engines, start=1)))
        monkeypatch.setattr(pynymph, "query", lambda: there_are)
        monkeypatch.setattr(pynymph, "Ring", ring)
        monkeypatch.setattr(
            sys, "argv", ["dma_vs_copy.py", "--sizes", "4K,10001", "--repeats", "2", *options]
        )
        status = tool.main()
        report: dict[str, Any] = json.loads(Path("dist/dma_vs_copy.json").read_text())
        return status, report

    return run


def channel(name: str, ids: str | None) -> None:
    """The DMA channel in the sysfs of this test."""
    device = Path("devices/0000:01:00.0").absolute()
    driver = Path("drivers/some_driver").absolute()
    for folder in (device, driver, Path("dma") / name):
        folder.mkdir(parents=True)
    (device / "driver").symlink_to(driver)
    for file, value in zip(("vendor", "device"), ids.split(":") if ids else (), strict=False):
        (device / file).write_text(f"0x{value}\n")
    (Path("dma") / name / "device").symlink_to(device)


def test_right_ring_passes(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = run(RightRing)
    said = capsys.readouterr()
    assert (status, report["status"], report["failures"]) == (0, "PASS", [])
    assert said.out.splitlines()[-1].startswith("PASS")
    assert "memcpy and cpu" in said.out.splitlines()[-1]
    (engine,) = report["engines"]
    for rows, ways in ((report["sizes"], ["memcpy"]), (engine["sizes"], ["driver", "verified"])):
        assert [row["bytes"] for row in rows] == [4096, 10001]
        for row, way in itertools.product(rows, ways):
            assert row[way]["repeats"] == 2
            assert 0 < row[way]["min_s"] <= row[way]["median_s"] <= row[way]["max_s"]
            assert row[way]["bytes_per_s"] == row["bytes"] / row[way]["median_s"]
    assert all(row["bytes_checked"] == row["bytes"] * 3 * 3 for row in report["sizes"])
    for row in engine["sizes"]:
        assert len(set(row["payload_blake3"].values())) == 1
        assert set(row["payload_blake3"]) == {"python", "kernel_src", "kernel_dst"}
    assert engine["ring_hash"]["kernel"] == engine["ring_hash"]["recomputed"]
    assert (engine["name"], engine["device"]) == ("cpu", None)
    assert engine["ran"] == "The CPU copies, in the kernel."
    assert report["engines_not_measured"] == []
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
        (Refuses, "4 KiB: verified copy on cpu: dst is not what was sent"),
        (Missing, "there is no device"),
    ],
)
def test_wrong_ring_fails(run: Any, capsys: pytest.CaptureFixture[str], ring: type, words: str) -> None:
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


def test_ratio_decides_only_if_asked(run: Any) -> None:
    assert run(RightRing, "--min-ratio", "1e-9")[0] == 0
    status, report = run(RightRing, "--min-ratio", "1e9")
    assert (status, report["status"]) == (1, "FAIL")
    assert all("below 1000000000.0" in failure for failure in report["failures"])
    assert len(report["failures"]) == 2


DMA = ("cpu", "dma0chan0", "dma0chan1")


def test_cpu_and_endpoint_are_shown_side_by_side(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NYMPH_ACCEL", "tcg")
    channel("dma0chan0", "1af4:1110")
    status, report = run(RightRing, engines=DMA)
    said = capsys.readouterr().out
    table, lines = said.split("MB/s: by")[0].splitlines(), said.splitlines()
    assert (status, report["status"]) == (0, "PASS")
    cpu, endpoint = report["engines"]
    assert (cpu["name"], endpoint["name"]) == ("cpu", "dma0chan0")
    assert cpu["device"] is None
    assert endpoint["device"] == {"address": "0000:01:00.0", "ids": "1af4:1110", "driver": "some_driver"}
    assert all(row["bytes_checked"] == row["bytes"] * 3 * 5 for row in report["sizes"])
    for engine in report["engines"]:
        assert [row["bytes"] for row in engine["sizes"]] == [4096, 10001]
        assert engine["ring_hash"]["kernel"] == engine["ring_hash"]["recomputed"]
        assert f"{engine['name']}: {engine['ran']}" in lines
        ways = [(row["driver"], row["verified"]) for row in engine["sizes"]]
        assert [line.split()[-2:] for line in table if f" {engine['name']} " in line] == [
            [f"{way['ratio_to_memcpy']:.3f}" for way in row] for row in ways
        ]
    assert report["engines_not_measured"] == ["dma0chan1"]
    assert "Not measured: dma0chan1." in lines
    assert "memcpy, cpu and dma0chan0 are right" in lines[-1]


def test_engines_take_turns_on_the_same_buffers(run: Any) -> None:
    copies = []

    class Recorded(RightRing):
        def copy(self, *, src: Any, dst: Any, verify: bool = False) -> Completion:
            copies.append((self.engine, verify, id(src), id(dst)))
            return super().copy(src=src, dst=dst, verify=verify)

    assert run(Recorded, "--sizes", "4K", engines=DMA)[0] == 0
    turn = [("cpu", False), ("cpu", True), ("dma0chan0", False), ("dma0chan0", True)]
    assert [copy[:2] for copy in copies] == 3 * turn
    assert len({copy[2:] for copy in copies}) == 1


@pytest.mark.parametrize(
    ("options", "engines", "measured"),
    [
        ([], ("cpu",), ["cpu"]),
        (["--engine", "cpu"], DMA, ["cpu"]),
        (["--engine", "dma0chan1", "--engine", "cpu", "--engine", "cpu"], DMA, ["dma0chan1", "cpu"]),
        (["--engine", "auto"], DMA, ["dma0chan0"]),
    ],
)
def test_options_choose_the_engines(
    run: Any, options: list[str], engines: tuple[str, ...], measured: list[str]
) -> None:
    status, report = run(RightRing, *options, engines=engines)
    assert status == 0
    assert [engine["name"] for engine in report["engines"]] == measured
    assert sorted(report["engines_not_measured"] + measured) == sorted(engines)


def test_unknown_engine_is_a_failure(run: Any) -> None:
    status, report = run(RightRing, "--engine", "cpu", "--engine", "dma9chan9", engines=DMA)
    assert (status, report["failures"]) == (1, ["there is no engine 'dma9chan9'"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (LastByteWrong, "driver copy on dma0chan0: byte 4095"),
        (DestinationDigestWrong, "verified copy on dma0chan0: dst digest is 0000"),
        (RingHashWrong, "dma0chan0: ring hash is 0000"),
        (Miscounted, "dma0chan0: the ring counts"),
    ],
)
def test_one_wrong_engine_fails_the_run(run: Any, wrong: type[RightRing], words: str) -> None:
    def ring(*, engine: str = "auto") -> RightRing:
        return (RightRing if engine == "cpu" else wrong)(engine=engine)

    status, report = run(ring, engines=DMA)
    assert status == 1
    assert any(words in failure for failure in report["failures"])
    assert not any("cpu" in failure for failure in report["failures"])


def test_copy_by_the_cpu_does_not_count_for_a_channel(run: Any) -> None:
    class CpuAlone(Falsified):
        change: ClassVar[dict[str, Any]] = {"engine": "cpu"}

    status, report = run(CpuAlone, engines=DMA)
    assert status == 1
    assert "4 KiB: driver copy on dma0chan0 was made by engine cpu" in report["failures"]


def test_ratio_applies_to_every_engine(run: Any) -> None:
    status, report = run(RightRing, "--min-ratio", "1e9", engines=DMA)
    assert status == 1
    assert [failure.split(" at ")[0] for failure in report["failures"]] == [
        f"{size}: driver on {engine}" for size in ("4 KiB", "10001 B") for engine in ("cpu", "dma0chan0")
    ]


def test_ivshmem_is_described_as_a_host_process(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    channel("dma0chan0", "1af4:1110")
    for accelerator in ("tcg", "kvm"):
        monkeypatch.setenv("NYMPH_ACCEL", accelerator)
        cpu, endpoint = (engine["ran"] for engine in run(RightRing, engines=DMA)[1]["engines"])
        assert "a process of the host, natively" in endpoint
        assert "says nothing about offloading" in endpoint
        assert ("emulated" in cpu, "emulated" in endpoint) == (accelerator == "tcg",) * 2


@pytest.mark.parametrize(
    ("ids", "said"),
    [("8086:0b00", "(8086:0b00, driver some_driver)"), (None, "(not of PCI, driver some_driver)")],
)
def test_other_devices_are_described_as_devices(run: Any, ids: str | None, said: str) -> None:
    channel("dma0chan0", ids)
    _, report = run(RightRing, engines=DMA)
    assert report["engines"][1]["ran"] == f"The device 0000:01:00.0 {said} copies."


def test_device_missing_in_sysfs_is_not_known(run: Any) -> None:
    endpoint = run(RightRing, engines=DMA)[1]["engines"][1]
    assert endpoint["device"] is None
    assert "not known" in endpoint["ran"]


@pytest.mark.parametrize("name", ["cpu", "dma15chan15"])
def test_table_fits(capsys: pytest.CaptureFixture[str], name: str) -> None:
    figures = {"repeats": 5, "median_s": 1.0, "min_s": 0.9, "max_s": 1.0, "ratio_to_memcpy": 1.234}
    rate = {**figures, "bytes_per_s": 123.4e6}
    row = {"bytes": 10001, "memcpy": rate, "driver": rate, "verified": rate, "bytes_checked": 1}
    engines = [{"name": name, "ran": "", "sizes": [row], "ring_hash": None}] * 2
    report = {"kernel": "6.1", "accelerator": "kvm", "cpu": "a CPU", "cpus": 2, "sizes": [row]}
    tool.show({**report, "engines": engines, "engines_not_measured": []})
    table = capsys.readouterr().out.split("MB/s: by")[0]
    assert table.count(name) == 2
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80


def test_interrupted_run_leaves_no_result(run: Any, tmp_path: Path) -> None:
    class Interrupted(RightRing):
        def copy(self, **arguments: Any) -> Completion:
            raise KeyboardInterrupt

    assert run(RightRing)[0] == 0
    with pytest.raises(FileNotFoundError):
        run(Interrupted)


@pytest.mark.parametrize("sizes", ["", "0", "2G", "4K,x", "1.5M", "-1"])
def test_wrong_sizes_are_refused(run: Any, capsys: pytest.CaptureFixture[str], sizes: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(RightRing, f"--sizes={sizes}")
    assert caught.value.code == 2
    assert "no size from 1 to 1G" in capsys.readouterr().err
