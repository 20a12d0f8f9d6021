# SPDX-License-Identifier: MIT
"""What pytest can be told of these tests, beside what nymph_vm.pytest_plugin adds."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-engine", action="store_true", help="The guest suite: each user on each engine.")
