# SPDX-License-Identifier: MIT
"""The command pynymph for test_command_*.py, in a process of its own."""

import subprocess
import sys
from typing import Any

PYNYMPH = [sys.executable, "-m", "pynymph"]


def run(*arguments: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `pynymph ARGUMENTS`, and return its status and what it wrote, as text."""
    options = {"capture_output": True, "text": True, "timeout": 120, "errors": "surrogateescape"} | options
    return subprocess.run([*PYNYMPH, *map(str, arguments)], **options)


def refused(done: "subprocess.CompletedProcess[str]", status: int, *words: str) -> None:
    """Check that it ended with that status, and one line on stderr that has these words."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("pynymph: ") and done.stderr.count("\n") == 1, done.stderr
    for each in words:
        assert each in done.stderr, done.stderr
