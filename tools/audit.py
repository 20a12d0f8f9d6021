# SPDX-License-Identifier: MIT
"""Ask an advisory service whether a package of nymphd/requirements.txt has a known fault: `make audit`.

Exits 1 if one has, or if that can't be found out though a service answers. Where none answers, says that
nothing was checked, and exits 0: a build without a network is no fault of the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOCKED = Path(__file__).parents[1] / "nymphd/requirements.txt"
# It lets requests be smuggled, CVE-2025-43859: who doesn't say so of it, says nothing of the others either.
FAULTY = f"h11==0.14.0 --hash=sha256:{0:064d}\n"

Ask = Callable[..., "subprocess.CompletedProcess[str]"]


def ask_pip_audit(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--progress-spinner=off", "--format=json"]
    return subprocess.run(
        [*command, *options, f"--requirement={file}"], check=False, capture_output=True, text=True
    )


def packages(asked: subprocess.CompletedProcess[str]) -> list[dict[str, Any]] | None:
    """What pip-audit found of each; None if it found out nothing."""
    try:
        found: list[dict[str, Any]] = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    return found


def faults(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"{package['name']} {package['version']}: {fault['id']}, fixed in {fault['fix_versions'] or 'none'}"
        for package in found
        for fault in package.get("vulns", [])
    ]


def main(ask: Ask = ask_pip_audit) -> int:
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "requirements.txt"
        known.write_text(FAULTY)
        tried = ask(known)
    if not faults(packages(tried) or []):
        said = tried.stderr.strip().splitlines() or ["it knows of no fault in a package that has one"]
        print(f"audit: NOT CHECKED, as no advisory service answers: {said[-1]}")
        return 0
    asked = ask(LOCKED, "--strict")
    found = packages(asked)
    if found is None:
        print(f"audit: an advisory service answers, but pip-audit fails:\n{asked.stderr}")
        return 1
    for fault in faults(found):
        print(f"audit: {fault}")
    print(f"audit: checked {len(found)} packages, {len(faults(found))} faults")
    return 1 if faults(found) else 0


if __name__ == "__main__":
    sys.exit(main())
