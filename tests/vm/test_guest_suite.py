# SPDX-License-Identifier: MIT
"""The tests in tests/guest, in the guest: as root, and as an ordinary user in the group nymph."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("user", ["root", "nymph-user"])
def test_guest_suite(run_guest_tests: Callable[..., None], user: str) -> None:
    run_guest_tests(user, "tests/guest")
