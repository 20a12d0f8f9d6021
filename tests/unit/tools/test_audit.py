# SPDX-License-Identifier: MIT
"""tools/audit.py says of packages what an advisory service says, and says so where there is none."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import audit

FAULT = {"id": "PYSEC-1", "fix_versions": ["0.16.0"]}
KNOWN = {"name": "h11", "version": "0.14.0", "vulns": [FAULT]}
SOUND = {"name": "h11", "version": "0.16.0", "vulns": []}
UNKNOWN = {"name": "h11", "skip_reason": "Dependency not found on PyPI"}
FAILED = "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed"


def answer(*packages: dict[str, Any]) -> CompletedProcess[str]:
    has_fault = any(package.get("vulns") for package in packages)
    return CompletedProcess([], int(has_fault), json.dumps({"dependencies": packages, "fixes": []}), "")


FAILURE = CompletedProcess([], 1, "", FAILED)


@pytest.mark.parametrize(
    ("known", "locked", "status", "said"),
    [
        (FAILURE, None, 0, "NOT CHECKED, as no advisory service answers: ERROR"),
        (answer(UNKNOWN), None, 0, "NOT CHECKED"),
        (answer(SOUND), None, 0, "NOT CHECKED"),
        (answer(KNOWN), answer(SOUND), 0, "checked 1 packages, 0 faults"),
        (answer(KNOWN), answer(SOUND, KNOWN), 1, "h11 0.14.0: PYSEC-1"),
        (answer(KNOWN), FAILURE, 1, "pip-audit fails:\nERROR"),
    ],
)
def test_audit_reports_what_the_advisory_service_says(
    capsys: pytest.CaptureFixture[str],
    known: CompletedProcess[str],
    locked: CompletedProcess[str] | None,
    status: int,
    said: str,
) -> None:
    def ask(file: Path, *options: str) -> CompletedProcess[str]:
        if file == audit.LOCKED:
            assert locked is not None and options == ("--strict",)
            return locked
        assert "h11==0.14.0" in file.read_text()
        return known

    assert audit.main(ask) == status
    told = capsys.readouterr().out
    assert said in told
    assert ("NOT CHECKED" in told) == (locked is None)
