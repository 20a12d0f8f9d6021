# SPDX-License-Identifier: MIT
"""nymphd as a process, really running on the model."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

STARTS_WITHIN_S = 60
STOPS_WITHIN_S = 30


class Service:
    """A process of `nymphd serve`, in a state folder of its own."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, **settings: Any) -> None:
        self.folder = folder
        given = {"state_dir": folder, "port": 0, "device": "model:", **settings}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        self.log_path = folder.with_suffix(".log")
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pynymph.service", "serve", *options],
                stderr=log,
                env=os.environ | (environment or {}),
            )
        try:
            self.port = self._wait_for_port()
        except BaseException:
            self.process.kill()
            raise
        self.token = (folder / "token").read_text().strip()
        self.tls = ssl.create_default_context(cafile=settings.get("certificate", folder / "certificate.pem"))
        self.url = f"https://localhost:{self.port}"
        self.bearer = {"Authorization": f"Bearer {self.token}"}
        with self.client() as client:
            while not client.get("/readyz").is_success and not settings.get("models_dir"):
                time.sleep(0.05)

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log_path.read_text()
            for entry in self.log():
                if entry["event"] == "serving":
                    return int(entry["port"])
            time.sleep(0.02)
        raise TimeoutError(self.log_path.read_text())

    def log(self) -> list[dict[str, Any]]:
        """All whole lines so far: each is JSON."""
        whole, _, _ = self.log_path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def client(self, **options: Any) -> httpx.Client:
        """With the token, unless there are other headers."""
        options = {"headers": self.bearer, "timeout": 60, **options}
        return httpx.Client(base_url=self.url, verify=self.tls, **options)

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("localhost", self.port), timeout=60)
        return self.tls.wrap_socket(plain, server_hostname="localhost")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOPS_WITHIN_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
