# SPDX-License-Identifier: MIT
"""Prometheus and promtool: those of the machine, or taken out of its distribution's package, without root."""

import functools
import shutil
import subprocess
from pathlib import Path

_FOLDER = Path(__file__).parents[3] / "build/prometheus"


@functools.cache
def _program(name: str) -> Path:
    found = shutil.which(name)
    if found:
        return Path(found)
    program = _FOLDER / "usr/bin" / name
    if not program.exists():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        # Not installed: that would start a server, which nobody asked for.
        subprocess.run(["apt-get", "download", "prometheus"], cwd=_FOLDER, check=True)
        (package,) = _FOLDER.glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, _FOLDER], check=True)
    return program


def promtool() -> Path:
    return _program("promtool")


def prometheus() -> Path:
    return _program("prometheus")
