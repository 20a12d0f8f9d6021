# SPDX-License-Identifier: MIT
"""The fuzzer in a native guest: it finds bugs that were planted, and nothing where there is none."""

import os

import pytest
from nymph_vm.fuzz import campaign, sources
from nymph_vm.host import CHECKOUT

KERNEL = "plain-7-um"  # with debug-7-um, sanitizers find more: `nymph-vm fuzz --planted`
CORPUS = CHECKOUT / "tests/fuzz/corpus"
MINUTES = 15.0

pytestmark = pytest.mark.native


def test_kept_programs_find_nothing() -> None:
    target = campaign.Target(KERNEL, sources.prepare(KERNEL))
    found = campaign.replay(target, f"test-fuzz-{os.getpid()}", campaign.load(CORPUS))
    assert found is None, found.log


@pytest.mark.parametrize("bug", ["double-put", "early-deadline"])
def test_planted_bug_is_found(request: pytest.FixtureRequest, bug: str) -> None:
    if not request.config.getoption("long"):
        pytest.skip("takes minutes: --long")
    target = campaign.Target(KERNEL, sources.prepare(KERNEL, sources.PATCHES / f"{bug}.patch"))
    run = campaign.Campaign(target, name=f"test-fuzz-{os.getpid()}", seed=1, corpus=campaign.load(CORPUS))
    run.run(MINUTES, stop_at_first=True)
    print(run.counts.executions, run.counts.first_seen)
    assert run.findings
