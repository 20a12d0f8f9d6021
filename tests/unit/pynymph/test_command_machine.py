# SPDX-License-Identifier: MIT
"""`pynymph info`, `top`, `trace`, `reset`, `bench` and `serve`, on a made-up sysfs; help and completion."""

import importlib
import json
import os
import resource
import subprocess
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace
from pynymph_command import PYNYMPH, refused, run

import pynymph
from pynymph.command import cli, live, machine, main, recording
from pynymph.command.machine import CLASS
from pynymph.command.story import build
from pynymph.ring import DEVICE

no_driver = pytest.mark.skipif(Path(DEVICE).exists(), reason="there is a driver here")
COMMANDS = ["bench", "copy", "evidence", "hash", "info", "reset", "serve", "top", "topology", "trace"]
COMMANDS += ["verify", "weights"]


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sysfs with the driver, the CPU, and a channel of an endpoint."""
    root = tmp_path / "sys"
    files = {
        f"{CLASS}/engines": "cpu dma0chan0", f"{CLASS}/blake3": "avx2", f"{CLASS}/limits/max_rings": "1024",
        f"{CLASS}/limits/max_user_rings": "256", f"{CLASS}/limits/max_entries": "4096",
        f"{CLASS}/limits/max_length": "1073741824", f"{CLASS}/counters/rings": "1",
        f"{CLASS}/counters/bytes": "1000", f"{CLASS}/counters/quarantined": "0",
        f"{CLASS}/counters/engine_failures": "0", "module/pcie_nymph/refcnt": "1",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    device = root / "devices/pci0000:00/0000:00:04.0"
    driver = root / "bus/pci/drivers/nymph_endpoint"
    for folder in (device, driver, root / "class/dma/dma0chan0", root / "class/iommu"):
        folder.mkdir(parents=True)
    (device / "driver").symlink_to(driver)
    (root / "class/dma/dma0chan0/device").symlink_to(device)
    (driver / "unbind").touch()
    (driver / "bind").touch()
    monkeypatch.setattr(machine, "SYS", root)
    return root


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device that this user may open."""
    path = tmp_path / "pcie_nymph"
    path.touch()
    monkeypatch.setattr(machine, "DEVICE", str(path))
    return path


def info() -> tuple[int, Any]:
    result = CliRunner().invoke(cli, ["info", "--json"])
    return result.exit_code, json.loads(result.stdout)


def wrong(found: Any) -> list[str]:
    return [each["what"] for each in found["findings"] if each["wrong"]]


# --- info ---


def test_info_on_a_machine_where_all_is_well(sysfs: Path, device: Path) -> None:
    status, found = info()
    assert (status, found["ok"], wrong(found)) == (0, True, [])
    assert found["engines"] == [
        {"name": "cpu", "device": None, "driver": None, "iommu": None},
        {"name": "dma0chan0", "device": "0000:00:04.0", "driver": "nymph_endpoint", "iommu": "none"},
    ]
    assert found["limits"]["max_rings"] == 1024
    text = CliRunner().invoke(cli, ["info"]).stdout
    assert "rings work here" in text and "dma0chan0" in text and "BLAKE3 by avx2" in text


def test_info_says_that_no_iommu_translates(sysfs: Path, device: Path) -> None:
    (note,) = info()[1]["findings"]
    assert "no IOMMU translates for 0000:00:04.0" in note["what"] and "iommu" in note["fix"]
    assert not note["wrong"]
    group = sysfs / "devices/pci0000:00/0000:00:04.0/iommu_group"
    group.mkdir()
    (group / "type").write_text("DMA-FQ\n")
    assert info()[1]["findings"] == []


def test_info_says_that_there_is_no_channel(sysfs: Path, device: Path) -> None:
    (sysfs / CLASS / "engines").write_text("cpu\n")
    (note,) = info()[1]["findings"]
    assert "rings may use no DMA channel; the machine has dma0chan0" in note["what"]
    assert "dma_channels" in note["fix"]


@no_driver
def test_info_without_the_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "SYS", tmp_path)
    status, found = info()
    assert (status, found["ok"], found["engines"]) == (1, False, [])
    assert "is not installed for Linux" in wrong(found)[0]
    assert f"pynymph-dkms and linux-headers-{os.uname().release}" in found["findings"][0]["fix"]
    monkeypatch.setattr(machine, "_installed", lambda release: True)
    assert info()[1]["findings"][0] == {
        "what": "module pcie_nymph is not loaded", "fix": "sudo modprobe pcie_nymph", "wrong": True,
    }  # fmt: skip
    assert run("info").returncode == 1


def test_info_without_the_device(sysfs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "DEVICE", str(tmp_path / "none"))
    status, found = info()
    assert status == 1 and "the module is loaded, and there is no" in wrong(found)[0]


@pytest.mark.parametrize(
    ("group", "what", "fix"),
    [
        (None, "there is no group nymph", "sysusers.d"),
        ([], "is not in group nymph", "sudo usermod -aG nymph"),
        (["me"], "this login session is older than me's group nymph", "log in again"),
    ],
)
def test_info_without_the_right_to_open_it(
    sysfs: Path, device: Path, monkeypatch: pytest.MonkeyPatch, group: list[str] | None, what: str, fix: str
) -> None:
    import grp
    import pwd

    def getgrnam(name: str) -> Any:
        if group is None:
            raise KeyError(name)
        return grp.struct_group((name, "x", 4_000_000, group))

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(grp, "getgrnam", getgrnam)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("me", "x", 1, 1, "", "/", "/bin/sh")))
    status, found = info()
    (finding,) = [each for each in found["findings"] if each["wrong"]]
    assert status == 1 and what in finding["what"] and fix in finding["fix"]


def test_info_under_a_low_limit(sysfs: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, 65536))
    monkeypatch.setattr(machine, "_unlimited", lambda: False)
    status, found = info()
    assert (status, found["limits"]["memlock"]) == (1, 65536)
    assert wrong(found) == ["RLIMIT_MEMLOCK lets this process lock 64 KiB, and rings need up to 8 MiB"]


def test_info_compares_versions(
    sysfs: Path, device: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "header.h").write_text("#define NYMPH_ABI_VERSION\t9\n")
    monkeypatch.setattr(machine, "HEADER", tmp_path / "header.h")
    (sysfs / "module/pcie_nymph/version").write_text("0.0.9\n")
    found = info()[1]
    assert found["versions"]["package"] == pynymph.__version__ and found["versions"]["module"] == "0.0.9"
    notes = " ".join(each["what"] for each in found["findings"])
    assert "header.h has version 9 of the interface, and this package has 1" in notes
    assert f"the loaded module is 0.0.9, and this package is {pynymph.__version__}" in notes


def test_info_tells_of_quarantine_and_failures(sysfs: Path, device: Path) -> None:
    (sysfs / CLASS / "counters/quarantined").write_text("3\n")
    (sysfs / CLASS / "counters/engine_failures").write_text("7\n")
    status, found = info()
    assert status == 1 and wrong(found)[0].startswith("3 operations are in quarantine")
    assert any("failed 7 times" in each["what"] for each in found["findings"])


# --- reset ---


def test_reset_unbinds_and_binds_and_says_so(sysfs: Path) -> None:
    result = CliRunner().invoke(cli, ["reset"])
    assert result.exit_code == 0
    assert result.stdout == (
        "0000:00:04.0: unbound from nymph_endpoint and bound again: dma0chan0\n"
        "operations in quarantine: 0 before, 0 now\n"
    )
    for name in ("unbind", "bind"):
        assert (sysfs / "bus/pci/drivers/nymph_endpoint" / name).read_text() == "0000:00:04.0"
    found = json.loads(CliRunner().invoke(cli, ["reset", "dma0chan0", "--json"]).stdout)
    assert found["reset"][0]["engines"] == ["dma0chan0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dma9chan9"], "there is no engine 'dma9chan9'; there are: cpu, dma0chan0"),
        (["cpu"], "engine cpu has no device to reset"),
    ],
)
def test_reset_of_what_has_no_device(sysfs: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["reset", *arguments])
    assert (result.exit_code, result.stderr) == (2, f"pynymph: {words}\n")
    assert (sysfs / "bus/pci/drivers/nymph_endpoint/unbind").read_text() == ""


def test_reset_says_what_did_not_come_back(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_write", lambda path, text: (sysfs / CLASS / "engines").write_text("cpu\n"))
    result = CliRunner().invoke(cli, ["reset", "--timeout", "0.1"])
    assert (result.exit_code, result.stderr) == (1, "pynymph: dma0chan0 did not come back within 0.1 s\n")


# --- top ---

FDINFO = """\
pos:	0
flags:	02
nymph-ring:	7
nymph-owner:	{pid}
nymph-engine:	dma0chan0
nymph-entries:	256
nymph-active:	3
nymph-unread:	0
nymph-errors:	1
nymph-dma-bytes:	{nbytes}
nymph-ring-bytes:	4096
nymph-pinned-bytes:	0
nymph-buffer-bytes:	8192
nymph-card-bytes:	0
nymph-imported-bytes:	0
nymph-latency-ns:	p50=1500 p95=2000 p99=2500 p99.9=3000 max=4000000 count=9
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc with a process that has a ring, one that has none yet, and one that is somebody else's."""
    root = tmp_path / "proc"
    for pid in ("12", "13"):
        (root / pid / "fd").mkdir(parents=True)
        (root / pid / "fdinfo").mkdir()
        (root / pid / "fd/4").symlink_to(DEVICE)
        (root / pid / "comm").write_text("trainer\n")
    (root / "12/fdinfo/4").write_text(FDINFO.format(pid=12, nbytes=1000))
    (root / "13/fdinfo/4").write_text("pos:\t0\n")
    (root / "14").mkdir()
    monkeypatch.setattr(live, "PROC", root)
    return root


def test_top_has_rates_and_latencies(sysfs: Path, proc: Path) -> None:
    def work() -> None:
        (sysfs / CLASS / "counters/bytes").write_text("3000\n")
        (proc / "12/fdinfo/4").write_text(FDINFO.format(pid=12, nbytes=3000))

    timer = threading.Timer(0.1, work)
    timer.start()
    result = CliRunner().invoke(cli, ["top", "--once", "--json", "--interval", "0.4"])
    timer.join()
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    (ring,) = found["rings"]
    assert (ring["ring"], ring["pid"], ring["command"], ring["locked"]) == (7, 12, "trainer", 12288)
    assert (ring["p50_ns"], ring["p99_ns"], ring["max_ns"], ring["errors"]) == (1500, 2500, 4000000, 1)
    assert ring["bytes_per_s"] == pytest.approx(2000 / found["seconds"])
    assert found["rates"]["bytes_per_s"] == pytest.approx(2000 / found["seconds"])
    assert found["engines"]["dma0chan0"] == {"rings": 1, "active": 3, "bytes_per_s": ring["bytes_per_s"]}
    assert found["engines"]["cpu"]["rings"] == 0


def test_top_for_people(sysfs: Path, proc: Path) -> None:
    result = CliRunner().invoke(cli, ["top", "--once", "--interval", "0.01"])
    assert result.exit_code == 0
    for each in ("trainer", "dma0chan0", "3/256", "1.5 µs", "4 ms", "12 KiB", "1 rings"):
        assert each in result.stdout, result.stdout


@no_driver
def test_top_and_reset_and_trace_without_a_driver_say_so(tmp_path: Path) -> None:
    refused(run("top", "--once"), 3, "modprobe")
    refused(run("reset"), 3, "there is no driver")
    refused(run("trace", tmp_path / "out"), 3, "no events of pcie_nymph")


# --- trace ---


def events() -> list[dict[str, int | str]]:
    """A copy that was under way before the recording, one that is whole, and one that has not ended."""
    clock = iter(range(1000, 10**6, 10))

    def event(kind: str, **fields: int) -> dict[str, int | str]:
        return {"event": kind, "thread": 5, "ns": next(clock), **fields}

    def copy(cookie: int, active: int) -> list[dict[str, int | str]]:
        of = {"ring": 3, "cookie": cookie}
        return [
            event("pin", **of), event("pinned", **of),
            event("submit", **of, opcode=1, flags=2, length=4096, active=active),
            event("start", **of, engine=1, length=4096), event("move", ring=3, engine=1, n=1),
            event("moved", ring=3, engine=1, n=1), event("landed", ring=3, n=1),
            event("complete", **of, bytes_done=4096, status=0),
        ]  # fmt: skip

    return [*copy(1, 1)[5:], *copy(2, 2), *copy(3, 1), *copy(4, 1)[:5]]


def test_a_trace_of_rings_that_are_in_use_has_what_is_whole() -> None:
    recorded = recording.whole(events(), {1: "cpu"})
    assert recorded["rings"] == [{"ring": 3, "name": "", "engine": "cpu"}]
    parsed = Trace()
    parsed.ParseFromString(build(recorded, partial=True))
    cookies = [
        note.uint_value
        for packet in parsed.packet
        for note in packet.track_event.debug_annotations
        if note.name == "cookie"
    ]
    assert cookies == [3]
    names = {packet.track_descriptor.name for packet in parsed.packet}
    assert {"ring 3 on cpu", "engine cpu", "occupancy", "throughput"} <= names
    assert "Python client" not in names


class FakeTracer:
    def __enter__(self) -> "FakeTracer":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def events(self) -> Any:
        return events()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--seconds", "0.01", "{}"], 0), (["{}", "true"], 0), (["{}", "sh", "-c", "exit 5"], 5),
     (["--seconds", "0.1", "{}", "sleep", "60"], 0)],
)  # fmt: skip
def test_trace_writes_a_file_and_has_the_status_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int
) -> None:
    monkeypatch.setattr(recording, "Tracer", FakeTracer)
    monkeypatch.setattr(recording, "query", lambda: pynymph.query("model:"))
    out = tmp_path / "out.perfetto"
    result = CliRunner().invoke(cli, ["trace", "--json", *(each.format(out) for each in arguments)])
    assert result.exit_code == status
    assert json.loads(result.stdout)["bytes"] == out.stat().st_size > 0
    parsed = Trace()
    parsed.ParseFromString(out.read_bytes())


def test_trace_of_a_command_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "Tracer", FakeTracer)
    result = CliRunner().invoke(cli, ["trace", str(tmp_path / "out"), "no-such-command"])
    assert (result.exit_code, result.stderr) == (2, "pynymph: no-such-command: No such file or directory\n")


# --- what exists elsewhere ---


def test_bench_calls_the_benchmark() -> None:
    done = run("bench", "--help")
    assert done.returncode == 0 and "--min-ratio" in done.stdout and "dma_vs_copy" in done.stdout


def test_bench_prints_no_result_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/dma_vs_copy.json").write_text("of another run")
    command = [*PYNYMPH, "bench", "--json", "--no-such-option"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--no-such-option" in done.stderr


def test_serve_calls_nymphd() -> None:
    done = run("serve", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nymphd serve" in done.stdout


# --- all ---


def test_there_are_these_commands() -> None:
    assert sorted(cli.commands) == COMMANDS
    done = run("--help")
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    assert "Exit status: 0" in done.stdout
    assert run("--version").stdout == f"pynymph {pynymph.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_reports_has_json(name: str) -> None:
    command = cli.commands[name]
    options = {spelled for each in command.params for spelled in each.opts}
    assert "--json" in options or name in ("evidence", "serve", "weights")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["guess"], "No such command 'guess'"), (["--guess"], "No such option"),
     (["info", "more"], "unexpected extra")],
)  # fmt: skip
def test_wrong_commands(arguments: list[str], words: str) -> None:
    refused(run(*arguments), 2, words, "--help")


def test_a_reader_that_goes_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    command = [*PYNYMPH, "hash", *[str(tmp_path / "file")] * 3000]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout and running.stderr
        running.stdout.close()
        assert (running.wait(60), running.stderr.read()) == (2, "pynymph: nobody reads the output any more\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str) -> None:
    """Bash asks itself for its version; where it is missing or old, click says so on stderr."""
    done = subprocess.run(
        PYNYMPH, env={**os.environ, "_PYNYMPH_COMPLETE": f"{shell}_source"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "_PYNYMPH_COMPLETE" in done.stdout
    asked = {"COMP_WORDS": "pynymph copy --engine m", "COMP_CWORD": "m" if shell == "fish" else "3"}
    environment = {**os.environ, **asked, "_PYNYMPH_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(PYNYMPH, env=environment, capture_output=True, text=True)
    assert "model" in done.stdout


def test_the_entry_point_is_there() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["pynymph"].partition(":")
    assert getattr(importlib.import_module(module), name) is main
