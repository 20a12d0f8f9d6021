# SPDX-License-Identifier: MIT
"""Results of KUnit, out of kernel logs as 6.1 and as later kernels write them."""

import pytest
from nymph_vm.kunit import Case, parse

OLD = """\
[    5.100000] pcie_nymph: loading
[    5.200000]     # Subtest: pcie_nymph
[    5.200001]     1..3
[    5.300000]     ok 1 - first_test
[    5.400000]     # second_test: EXPECTATION FAILED at kunit_ring.c:9
[    5.400001]     Expected a == b
[    5.400002]     not ok 2 - second_test
[    5.500000]     ok 3 - third_test # SKIP no reason
[    5.500001] # pcie_nymph: pass:1 fail:1 skip:1 total:3
[    5.500002] not ok 1 - pcie_nymph
[    6.000000]     ok 1 - not_of_kunit
"""
NEW = OLD.replace("]     # Sub", "]     KTAP version 1\n[    5.2]     # Sub").replace(" - ", " ")


@pytest.mark.parametrize("log", [OLD, NEW], ids=["6.1", "later"])
def test_cases_have_outcome_and_output(log: str) -> None:
    first, second, third = parse(log)
    assert first.outcome == "passed"
    assert third == Case("pcie_nymph", "third_test", "skipped", "")
    assert (second.suite, second.name, second.outcome) == ("pcie_nymph", "second_test", "failed")
    assert "EXPECTATION FAILED" in second.said and "Expected a == b" in second.said


def test_log_without_kunit_has_no_cases() -> None:
    assert parse("[    1.000000] hello\n[    1.0]     ok 1 - stray\n") == []
