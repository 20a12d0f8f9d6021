# SPDX-License-Identifier: MIT
"""The command pynymph on the driver, as root and as an ordinary user."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import pynymph

NBYTES = (5 << 20) + 321
LOOP_CTL_GET_FREE, LOOP_SET_FD, LOOP_CLR_FD = 0x4C82, 0x4C00, 0x4C01


def pynymph_command(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pynymph", *map(str, arguments)]
    return subprocess.run(command, **{"capture_output": True, "text": True, "timeout": 120} | options)


def report(*arguments: Any) -> Any:
    done = pynymph_command(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """What --engine gets."""
    return "model" if request.config.getoption("--model") else "auto"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(NBYTES))
    return path


def test_a_copy_is_verified_by_the_engine_of_the_ring(tmp_path: Path, source: Path, engine: str) -> None:
    made = report("copy", "--json", "--engine", engine, source, tmp_path / "target")
    (file,) = made["files"]
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert file["digest"] == blake3(source.read_bytes()).hexdigest()
    assert (file["state"], file["reread"]) == ("copied", True)
    known = {*pynymph.query().engines.values()}
    assert set(made["engines"]) <= known


def test_every_engine_copies(tmp_path: Path, source: Path, driver: None) -> None:
    for name in pynymph.query().engines.values():
        made = report("copy", "--json", "--engine", name, source, tmp_path / name)
        assert name in made["engines"]
        assert (tmp_path / name).read_bytes() == source.read_bytes()


def test_an_engine_that_is_not_there_is_status_3(tmp_path: Path, source: Path, driver: None) -> None:
    done = pynymph_command("copy", "--engine", "dma99chan9", source, tmp_path / "target")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no engine 'dma99chan9'; there are: cpu" in done.stderr


def test_a_folder_through_one_ring(tmp_path: Path, engine: str) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    for number in range(5):
        (tmp_path / f"tree/deep/{number}").write_bytes(os.urandom(number * 300_000))
    made = report("copy", "--json", "--engine", engine, "-r", tmp_path / "tree", tmp_path / "copy")
    assert len(made["files"]) == 5
    for number in range(5):
        one, other = (tmp_path / f"{folder}/deep/{number}" for folder in ("tree", "copy"))
        assert one.read_bytes() == other.read_bytes()


def test_a_digest_is_that_of_b3sum(tmp_path: Path, source: Path, engine: str) -> None:
    done = pynymph_command("hash", "--engine", engine, source)
    assert (done.returncode, done.stdout) == (0, f"{blake3(source.read_bytes()).hexdigest()}  {source}\n")
    (tmp_path / "sums").write_text(done.stdout)
    checked = pynymph_command("hash", "--engine", engine, "--check", tmp_path / "sums")
    assert (checked.returncode, checked.stdout) == (0, f"{source}: OK\n")


def test_the_driver_hashes_where_there_is_one(source: Path, driver: None) -> None:
    (found,) = report("hash", "--json", source)
    assert found["engine"] in pynymph.query().engines.values()


def test_files_are_compared_by_the_ring(tmp_path: Path, source: Path, engine: str) -> None:
    (tmp_path / "other").write_bytes(source.read_bytes())
    assert report("verify", "--json", "--engine", engine, source, tmp_path / "other")["same"]
    with (tmp_path / "other").open("r+b") as file:
        file.seek(4_000_000)
        byte = file.read(1)
        file.seek(4_000_000)
        file.write(bytes([byte[0] ^ 1]))
    done = pynymph_command("verify", "--json", "--engine", engine, source, tmp_path / "other")
    found = json.loads(done.stdout)
    assert (done.returncode, found["same"], found["first_difference"]) == (1, False, 4_000_000)


def test_info_finds_nothing_wrong(driver: None) -> None:
    done = pynymph_command("info", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (0, True), found["findings"]
    assert found["device"] == {"path": "/dev/pcie_nymph", "loaded": True, "usable": True}
    assert [each["name"] for each in found["engines"]] == [*pynymph.query().engines.values()]
    assert found["versions"]["abi_of_driver"] == found["versions"]["abi_of_package"]
    assert "rings work here" in pynymph_command("info").stdout


def test_top_shows_a_ring_with_what_it_did(driver: None) -> None:
    with pynymph.Ring(8) as ring:
        ring.copy(src=bytes(100_000), dst=bytearray(100_000), verify=True)
        found = report("top", "--once", "--json", "--interval", "0.1")
        mine = [each for each in found["rings"] if each["pid"] == os.getpid()]
        assert [(each["bytes"], each["entries"]) for each in mine] == [(100_000, 8)]
        assert 0 < mine[0]["p50_ns"] <= mine[0]["max_ns"]
        assert found["counters"]["rings"] >= 1
        assert found["engines"][mine[0]["engine"]]["rings"] >= 1
        assert str(os.getpid()) in pynymph_command("top", "--once", "--interval", "0.1").stdout


def test_tracepoints_are_recorded_for_root(driver: None) -> None:
    from pynymph.command.recording import TRACEFS, Tracer, whole

    if os.geteuid():
        pytest.skip("only root may record")
    if not (TRACEFS / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACEFS], check=True)
    with Tracer() as tracer:
        with pynymph.Ring(4) as ring:
            ring.copy(src=bytes(4096), dst=bytearray(4096), verify=True)
        events = tracer.events()
    recorded = whole(events, pynymph.query().engines)
    assert {"submit", "start", "complete"} <= {event["event"] for event in recorded["events"]}
    assert {ring["engine"] for ring in recorded["rings"]} <= {*pynymph.query().engines.values()}


def test_reset_gives_the_channels_back(driver: None) -> None:
    engines = {*pynymph.query().engines.values()}
    done = pynymph_command("reset", "--json")
    if os.geteuid() or engines == {"cpu"}:
        assert done.returncode == 2 and done.stdout == ""
        expected = "root's to write" if os.geteuid() and engines != {"cpu"} else "the only engine is cpu"
        assert expected in done.stderr
        return
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert {name for each in found["reset"] for name in each["engines"]} == engines - {"cpu"}
    assert {*pynymph.query().engines.values()} == engines


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 8 MiB."""
    if os.geteuid():
        pytest.skip("only root has block devices")
    subprocess.run(["modprobe", "loop"], capture_output=True)
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(8 << 20)
    try:
        with open("/dev/loop-control", "rb") as control:
            path = Path(f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}")
        with backing.open("r+b") as file, path.open("r+b", buffering=0) as loop:
            fcntl.ioctl(loop, LOOP_SET_FD, file.fileno())
    except OSError as error:
        pytest.skip(f"no loop device here: {error}")
    yield path
    with path.open("rb") as loop:
        fcntl.ioctl(loop, LOOP_CLR_FD)


def test_a_block_device_is_written_and_read(
    tmp_path: Path, source: Path, block_device: Path, engine: str
) -> None:
    (file,) = report("copy", "--json", "--engine", engine, source, block_device)["files"]
    assert (file["bytes"], file["reread"]) == (NBYTES, True)
    (back,) = report("copy", "--json", "--engine", engine, block_device, tmp_path / "back")["files"]
    assert back["bytes"] == 8 << 20
    assert (tmp_path / "back").read_bytes()[:NBYTES] == source.read_bytes()
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate((8 << 20) + 1)
    done = pynymph_command("copy", "--engine", engine, large, block_device)
    assert done.returncode == 2 and f"has {8 << 20} bytes" in done.stderr
