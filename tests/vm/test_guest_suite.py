# SPDX-License-Identifier: MIT
"""The tests in tests/guest, in the guest: as root, and as an ordinary user in the group nymph."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("user", ["root", "nymph-user"])
def test_guest_suite(run_guest_tests: Callable[..., None], user: str) -> None:
    run_guest_tests(user, "tests/guest")


def test_model_for_long(request: pytest.FixtureRequest, run_guest_tests: Callable[..., None]) -> None:
    if not request.config.getoption("long"):
        pytest.skip("needs --long: make check; the suite above has a short one")
    run_guest_tests("root", "tests/guest", "-k", "driver_and_the_model")
