# SPDX-License-Identifier: MIT
"""Ranks of torch.distributed, each a process of its own."""

import subprocess
import sys

SECONDS = 600


def run_ranks(program: str, number: int, *arguments: str) -> list[str]:
    """Run a program once for each rank, which it gets before its arguments. Returns what each prints."""
    commands = [[sys.executable, "-c", program, str(rank), *arguments] for rank in range(number)]
    processes = [
        subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in commands
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs
    return [out for out, _ in outputs]
