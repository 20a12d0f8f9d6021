# SPDX-License-Identifier: MIT
"""What pytest can be told of these tests, beside what nymph_vm.pytest_plugin adds."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-engine", action="store_true", help="The guest suite: each user on each engine.")
    parser.addoption(
        "--after-native", action="store_true", help="The guest suite: only what a native guest cannot run."
    )
    parser.addoption("--native", action="store_true", help="Run what needs a native guest's kernel.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "native: needs a native guest's kernel, which takes minutes to build")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("native"):
        for item in items:
            if item.get_closest_marker("native"):
                item.add_marker(pytest.mark.skip("needs --native: make native"))
