# SPDX-License-Identifier: MIT
"""The benchmarks' quick suite, with one short round: its data are right, and its results whole."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nymph_vm import build
from nymph_vm.faults import Fault
from nymph_vm.machine import Machine

from bench import page

ROOT = Path(__file__).parents[2]
SHORT = ("--seconds", "0.0001")
# Each names its plot.
SECTIONS = {"sizes", "latency", "equal", "instead", "paths", "depth", "parallel", "set-up"}


@pytest.fixture(scope="module")
def program(vm: Machine) -> str:
    os.chdir(ROOT)
    vm.copy_in("tools")
    vm.copy_in("bench")
    built = build.program(ROOT / "bench/load.c", "-luring")
    vm.copy_in(str(built))
    return built.name


def bench(*arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def measure(vm: Machine, program: str, folder: Path, *options: str) -> dict[str, Any]:
    """Measured there, published here, in a folder."""
    vm.run(["python3", "-m", "bench", "measure", f"./{program}", "--quick", *SHORT, *options])
    (folder / "dist").mkdir(parents=True)
    (folder / "dist/bench-raw.json").write_text(vm.run(["cat", "dist/bench-raw.json"]).stdout)
    done = bench("publish", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((folder / "dist/bench.json").read_text())
    return report


def test_quick_suite_passes_with_all_figures(vm: Machine, program: str, tmp_path: Path) -> None:
    report = measure(vm, program, tmp_path, "--rounds", "1")
    assert (report["status"], report["failures"]) == ("PASS", [])
    assert report["machine"]["accelerator"] == vm.state.accel
    figures = [each for each in report["figures"] if each["value"] is not None]
    groups = {
        "noise",
        "size",
        "path",
        "depth",
        "ring size",
        "rings",
        "processes",
        "channels",
        "fairness",
        "equal",
        "instead",
        "set-up",
        "memory",
    }
    assert {each["group"] for each in figures} == groups
    assert {each["parameters"]["engine"] for each in figures} == {"cpu", "dma0chan0", "none"}
    assert len({each["id"] for each in report["figures"]}) == len(report["figures"])
    assert all(each["value"] > 0 for each in figures if each["group"] != "memory")
    beside = [each["parameters"]["beside"] for each in figures if each["group"] == "fairness"]
    assert beside == 2 * ["nothing", "copies of 16 MiB"]
    by_channel = [
        each for each in figures if each["parameters"]["engine"] == "dma0chan0" and each.get("bytes_per_s")
    ]
    assert any(each["interrupts_per_operation"] > 0 for each in by_channel)
    for each in report["figures"]:
        assert each["value"] is not None or each["because"]
    assert [each["because"].partition(":")[0] for each in report["figures"] if each["group"] == "infer"] == [
        "left out of the quick suite"
    ]

    dist = tmp_path / "dist"
    html = (dist / "report.html").read_text()
    assert html.count("<svg") == len(SECTIONS)
    for section in SECTIONS:
        assert page.SECTIONS[section]["title"] in html
    # publish checked it against the records; this is that there was something to be checked
    recorded = json.loads((dist / "bench-raw.json").read_text())["trace"]
    trace = (dist / "trace.perfetto").read_bytes()
    statuses = [record["status"] for ring in recorded["rings"] for record in ring["records"]]
    assert len(statuses) > 100 and {0, -14, -74, -125} == set(statuses)
    for track in (
        b"engine dma0chan0",
        b"engine cpu",
        b"occupancy",
        b"throughput",
        b"Python client",
        b"EFAULT",
    ):
        assert track in trace


def test_slower_endpoint_is_a_regression(vm: Machine, program: str, tmp_path: Path) -> None:
    """Some copies take 20 ms more: of the endpoint's figures most become worse, and no other."""
    only = ("--only", "path 64 B", "--rounds", "5")
    measure(vm, program, tmp_path / "old", *only)
    vm.endpoints["ep0"].set_faults(Fault("slow", rate=0.2))
    try:
        measure(vm, program, tmp_path / "new", *only)
    finally:
        vm.endpoints["ep0"].set_faults()
    old, new = (tmp_path / name / "dist/bench.json" for name in ("old", "new"))
    done = bench("compare", old, new, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "engine dma0chan0" in done.stdout
    assert bench("compare", old, old, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("group", ["path 64 B dma", "fairness"])
def test_wrong_data_is_a_failure(vm: Machine, program: str, group: str) -> None:
    """An endpoint that flips bits, and rings that are not asked to look; also of the process beside."""
    options = ("--quick", *SHORT, "--only", group)
    vm.endpoints["ep0"].set_faults(Fault("flip", rate=1))
    try:
        done = vm.run(["python3", "-m", "bench", "measure", f"./{program}", *options], check=False)
    finally:
        vm.endpoints["ep0"].set_faults()
    assert done.returncode == 1
    assert done.stdout.endswith("FAIL\n")
    assert re.search("is wrong|are not the sources|is not the source", done.stderr)
