# SPDX-License-Identifier: MIT
"""`pynymph copy` of a file against `cp`, and against `cp` and then `b3sum` of both files: dist/files.json.

All three end with the same bytes in another file. `pynymph copy` has also proven them, as `cp` and `b3sum` of
both files have. They take turns, and a time is that of the whole command. What is printed are ratios: above
1, `pynymph copy` is faster.

Without the driver this runs itself in a native guest, on a RAM disk, with Debian's b3sum. That must not map
the files: UML maps each page by itself, and has no room for as many.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import report as reports

MIB = 1 << 20
HASHED = "cp, b3sum"
RING = "pynymph copy"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Copy in all ways, in turns."""
    report = reports.new(size=arguments.size * MIB, rounds=arguments.rounds, seconds={}, ratios={})
    report["b3sum"] = arguments.b3sum
    ways: dict[str, list[Sequence[str]]] = {
        "cp": [("cp", "source", "target")],
        HASHED: [("cp", "source", "target"), (*arguments.b3sum.split(), "source", "target")],
        RING: [(sys.executable, "-m", "pynymph", "copy", "source", "target")],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        with open(f"{folder}/source", "wb") as source:
            for _ in range(arguments.size):
                source.write(os.urandom(MIB))
        for _ in range(arguments.rounds):
            said = {}
            for name, commands in ways.items():
                Path(folder, "target").unlink(missing_ok=True)
                began = time.perf_counter()
                said[name] = [_run(command, folder) for command in commands][-1].split()
                seconds[name].append(time.perf_counter() - began)
            # Two lines, with a digest and a name each; and one, which begins with it.
            if len({said[HASHED][0], said[HASHED][2], said[RING][0]}) != 1:
                report["failures"].append(f"the digests differ: {said}")
    report["seconds"] = seconds
    report["ratios"] = {
        name: statistics.median(seconds[name]) / statistics.median(seconds[RING]) for name in ways
    }
    return report


def _run(command: Sequence[str], folder: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def show(report: dict[str, Any]) -> str:
    """Print the figures."""
    reports.print_measured_on(report)
    print(f"{reports.human(report['size'])} of random bytes, {report['rounds']} rounds; {report['b3sum']}")
    for name, seconds in report["seconds"].items():
        median = statistics.median(seconds)
        each = " ".join(f"{one:.2f}" for one in seconds)
        rate = report["size"] / median / 1e9
        print(f"{name:13} {median:6.2f} s ({each}), {rate:.2f} GB/s; {report['ratios'][name]:.2f} times")
    return "all digests are the same"


def in_native_guest(arguments: argparse.Namespace) -> int:
    """Boot one with room for both files, and measure there."""
    from nymph_vm import apt
    from nymph_vm.arch import AMD64
    from nymph_vm.host import cached, call

    def fetch(folder: Path) -> None:
        apt.update(AMD64)
        apt.download(AMD64, ["b3sum"], folder)
        (package,) = folder.glob("*.deb")
        call(["dpkg-deb", "-x", package, folder], "unpacking b3sum")

    script = "mkdir files && mount -t tmpfs -o size=100% files files && exec python3 -m bench.files"
    inside = f"{script} --folder files --size {arguments.size} --rounds {arguments.rounds} --b3sum"
    command = [str(Path(sys.executable).with_name("nymph-vm")), "run", "--arch", "um"]
    # The CPU copies: the endpoint is a process of the host, and no faster.
    command += ["--memory", f"{2 * arguments.size + 2048}M", "--endpoints", "0"]
    command += ["--copy", "tools", "--copy", "bench"]
    command += ["--copy", str(cached("b3sum", fetch) / "usr/bin/b3sum")]
    return subprocess.run([*command, "--", "sh", "-c", f'{inside} "$PWD/b3sum --no-mmap"']).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.files", description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="of the file, in MiB (default: 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="how often they take turns (default: 3)")
    parser.add_argument("--folder", default=".", help="where the files are (default: the working directory)")
    parser.add_argument("--b3sum", default="b3sum", help="the command, with options (default: b3sum)")
    arguments = parser.parse_args()
    if not Path("/dev/pcie_nymph").exists():
        return in_native_guest(arguments)
    return reports.finish("files", partial(measure, arguments), show)


if __name__ == "__main__":
    sys.exit(main())
