# SPDX-License-Identifier: MIT
"""bench/rate.py, short: its data are right and its figures are there, whatever they are."""

import json
from pathlib import Path

import pytest
from nymph_vm import build
from nymph_vm.machine import Machine

SOURCE = Path(__file__).parents[2] / "bench/rate.c"


@pytest.fixture(scope="module")
def program(vm: Machine) -> str:
    vm.copy_in("tools")
    vm.copy_in("bench")
    vm.copy_in(str(build.program(SOURCE, arch=vm.arch)))
    return SOURCE.stem


def test_rate_run_has_all_figures(vm: Machine, program: str) -> None:
    done = vm.run(["python3", "-m", "bench.rate", program, "--seconds", "0.001", "--rounds", "1"])
    assert done.stdout.splitlines()[-1] == "PASS: all copies ended well, and those from Python are right"
    report = json.loads(vm.run(["cat", "dist/rate.json"]).stdout)
    assert (report["status"], report["failures"], report["accelerator"]) == ("PASS", [], vm.state.accel)
    assert {row["engine"] for row in report["rows"]} == {"cpu", "dma0chan0"}
    assert len(report["rows"]) == 2 * 4 * 6 + 2 * (6 + 3)
    assert all(row["copies_per_s"] > 0 for row in report["rows"])


def test_wrong_arguments_are_refused(vm: Machine, program: str) -> None:
    for command in (f"./{program} nothing 64 8 enter 0.1", f"./{program} cpu 64 8 sideways 0.1"):
        done = vm.run(command.split(), check=False)
        assert (done.returncode != 0, done.stdout) == (True, "")
    assert vm.run(["python3", "-m", "bench.rate", "no/such"], check=False).stdout.endswith("FAIL\n")
