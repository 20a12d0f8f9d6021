# SPDX-License-Identifier: MIT
"""nymphd, running on the model, for the tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nymphd_process import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests that leave it as it was. Nothing in its log may be an error, nor its token."""
    running = Service(tmp_path_factory.mktemp("service") / "state")
    yield running
    assert running.stop() == 0
    text = running.log_path.read_text()
    assert running.token not in text
    assert [entry for entry in running.log() if entry["level"] in ("error", "critical")] == []


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """start_service(**settings) starts another."""
    running: list[Service] = []

    def start(environment: dict[str, str] | None = None, **settings: Any) -> Service:
        running.append(Service(tmp_path / f"state-{len(running)}", environment, **settings))
        return running[-1]

    yield start
    for each in running:
        each.close()
