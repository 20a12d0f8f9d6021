# SPDX-License-Identifier: MIT
"""The module's KUnit tests, which ran in a debug kernel when it was loaded; each shows as one of ours."""

import pytest
from nymph_vm import kernels, kunit
from nymph_vm.machine import Machine


def test_every_kunit_case_passes(request: pytest.FixtureRequest, vm: Machine) -> None:
    if not kernels.KERNELS[vm.state.kernel].debug:
        pytest.skip("needs a kernel with KUnit: nymph-vm matrix, or pytest --kernel debug-6.1")
    cases = kunit.parse((vm.state.folder / "console.log").read_text(errors="replace").replace("\r", ""))
    for case in cases:
        name = f"kunit:{case.suite}::{case.name}"
        said = case.said if case.outcome == "failed" else None
        if case.outcome == "skipped":
            pytest.fail(f"{name} skipped itself: {case.said}", pytrace=False)
        report = pytest.TestReport(
            name, (case.suite, None, case.name), {case.name: 1}, case.outcome, said, when="call"
        )
        request.session.testscollected += 1
        request.config.hook.pytest_runtest_logreport(report=report)
    assert cases, "KUnit ran no test of the module"
