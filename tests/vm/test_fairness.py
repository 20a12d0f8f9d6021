# SPDX-License-Identifier: MIT
"""bench/fairness.py, short: its data are right and its figures are there, whatever they are."""

import json

import pytest
from nymph_vm.machine import Machine


@pytest.mark.parametrize("ratio", [None, "0.001"], ids=["free", "gated"])
def test_fairness_run_has_all_figures(vm: Machine, ratio: str | None) -> None:
    vm.copy_in("tools")
    vm.copy_in("bench")
    command = ["python3", "-m", "bench.fairness", "--large", "16M", "--copies", "40", "--turns", "2"]
    done = vm.run(command + (["--max-ratio", ratio] if ratio else []), check=False)
    report = json.loads(vm.run(["cat", "dist/fairness.json"]).stdout)
    for side in ("alone", "beside"):
        found = report[side]
        assert found["copies"] == 40
        assert 0 < found["p50_s"] <= found["p95_s"] <= found["p99_s"] <= found["max_s"]
    assert report["ratio"]["p99"] == pytest.approx(report["beside"]["p99_s"] / report["alone"]["p99_s"])
    assert (report["small_bytes"], report["large_bytes"], report["cpus"]) == (4096, 16 << 20, 2)
    assert report["accelerator"] == vm.state.accel
    if ratio:
        assert (done.returncode, report["status"]) == (1, "FAIL")
        assert "times what it is alone, above 0.001" in done.stderr
    else:
        assert (done.returncode, report["status"], report["failures"]) == (0, "PASS", [])
        assert "p99" in done.stdout
