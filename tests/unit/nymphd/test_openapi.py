# SPDX-License-Identifier: MIT
"""nymphd keeps to its own OpenAPI document, whatever it is sent: schemathesis finds nothing."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nymphd_process import Service

# Whether tensors fit a model is no matter of the document: that they do not is 422 there.
CONFIG = """
[[operations]]
include-operation-id = ["model_infer", "model_version_infer"]
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "5xx"]
"""
EXAMPLES, LONG_EXAMPLES = 40, 1000
FEWEST_CASES, FEWEST_LONG_CASES = 200, 3000


def test_schemathesis_finds_nothing(
    start_service: Callable[..., Service], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    is_long = request.config.getoption("long")
    running = start_service(rate_limit="1000000/second", login_limit="1000000/second")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{running.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {running.token}"),
            *("--tls-verify", running.folder / "certificate.pem"),
            *("--checks", "all", "--max-examples", str(LONG_EXAMPLES if is_long else EXAMPLES), "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    found = re.search(r"(\d+) generated", done.stdout)
    assert found and int(found[1]) >= (FEWEST_LONG_CASES if is_long else FEWEST_CASES), done.stdout[-2000:]
    print(f"{found[1]} cases")
    with running.client() as client:
        assert client.get("/status").status_code == 200
    assert running.stop() == 0
    assert [entry for entry in running.log() if entry["level"] == "error"] == []
