# SPDX-License-Identifier: MIT
"""What the tests of nymphd in a VM are given."""

import contextlib
import json
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nymph_vm import nymphd
from nymph_vm.machine import Machine
from nymphd_process import Reached

SETTINGS = "/etc/default/nymphd"
SPEED = """
import time

began = time.perf_counter()
sum(i % 7 for i in range(1_000_000))
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Served:
    """A machine in which systemd runs nymphd, and the way there."""

    machine: Machine
    service: nymphd.Service


class InGuest(Reached):
    """nymphd in a VM, with more settings than it has there, for the tests that also run without one."""

    patience_s = 180.0

    def __init__(self, served: Served, **settings: Any) -> None:
        self.machine = served.machine
        lines = "".join(f"NYMPHD_{name.upper()}={value}\n" for name, value in settings.items())
        self._run('cp $1 $1.kept; printf %s "$2" >> $1; systemctl restart nymphd', SETTINGS, lines)
        self.url, self.token = served.service.url, served.service.token
        self.port = int(self.url.rpartition(":")[2])
        self.tls = ssl.create_default_context(cadata=served.service.certificate)
        self.address = ("10.0.2.15", nymphd.PORT)
        self.hostname = self._run("uname -n").strip().lower()
        here = subprocess.run(
            [sys.executable, "-c", SPEED], capture_output=True, text=True, check=True
        ).stdout
        there = self.machine.run(["python3", "-c", SPEED]).stdout
        self.slowness = max(1.0, float(there) / float(here))
        self._first_token = self.token
        self._began = self._shown("ExecMainStartTimestamp")
        self._wait_until_ready()

    def close(self) -> None:
        """As it was before."""
        self._write_token(self._first_token)
        self._run("mv $1.kept $1; systemctl restart nymphd", SETTINGS)

    def log(self) -> list[dict[str, Any]]:
        said = self._run('journalctl -o cat -u nymphd --since "$1"', self._began.partition(" ")[2])
        found = []
        for line in said.splitlines():
            with contextlib.suppress(ValueError):  # systemd's own
                found.append(json.loads(line))
        return found

    def rss_mib(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+) kB", self._run("cat /proc/$1/status", self._shown("MainPID")))
        assert found
        return int(found[1]) / 1024

    def kill(self, number: int) -> None:
        self._run("kill -$1 $2", str(int(number)), self._shown("MainPID"))

    def change_token(self, token: str) -> None:
        self._write_token(token)
        self._run("systemctl reload nymphd")
        self.token = token

    def put_model(self, folder: Path) -> None:
        self.machine.copy_in(str(folder), to=f"{nymphd.STATE}/models")
        self._run("cd $1/models && chown -R --reference=. $2", nymphd.STATE, folder.name)

    def damage_model(self, name: str) -> None:
        self._run("echo junk > $1/models/$2/model.onnx", nymphd.STATE, name)

    def remove_model(self, name: str) -> None:
        self._run("rm -r $1/models/$2", nymphd.STATE, name)

    def stop(self) -> int:
        self._run("systemctl stop nymphd")
        return int(self._shown("ExecMainStatus"))

    def start(self) -> None:
        self._run("systemctl start nymphd")
        self._wait_until_ready()

    def restarts(self) -> int:
        """That nobody asked for."""
        return int(self._shown("NRestarts"))

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + self.patience_s
        with self.client() as client:
            while not client.get("/readyz").is_success:
                assert time.monotonic() < until
                time.sleep(0.2)

    def _command(self, arguments: Sequence[str]) -> Sequence[str]:
        return self.machine.command(["python3", *arguments])

    def _write_token(self, token: str) -> None:
        script = 'umask 077; cd "$1"; echo "$2" > new; chown --reference=token new; mv new token'
        self._run(script, nymphd.STATE, token)

    def _shown(self, what: str) -> str:
        return self._run("systemctl show --value -p $1 nymphd", what).strip()

    def _run(self, script: str, *arguments: str) -> str:
        return self.machine.run(["sh", "-ec", script, "sh", *arguments]).stdout
