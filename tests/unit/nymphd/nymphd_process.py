# SPDX-License-Identifier: MIT
"""nymphd as a process, really running on the model; and what tests want of one, wherever it runs."""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

STARTS_WITHIN_S = 60
STOPS_WITHIN_S = 30


class Reached(ABC):
    """A nymphd, and what its clients know of it."""

    url: str
    port: int
    """Of localhost, where this process reaches it."""
    token: str
    tls: ssl.SSLContext
    address: tuple[str, int]
    """Where programs beside it reach it."""
    hostname: str
    slowness = 1.0
    """How much slower its machine is than this one."""
    patience_s = 60.0

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def client(self, **options: Any) -> httpx.Client:
        """With the token, unless there are other headers."""
        options = {"headers": self.bearer, "timeout": self.patience_s, **options}
        return httpx.Client(base_url=self.url, verify=self.tls, **options)

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("localhost", self.port), timeout=self.patience_s)
        return self.tls.wrap_socket(plain, server_hostname="localhost")

    @contextlib.contextmanager
    def beside(self, script: str, *arguments: str) -> Iterator[None]:
        """A Python program, with the standard library alone, on its machine.

        Begins once the program has said something; its standard input then ends, and it has to end well.
        """
        command = self._command(["-c", script, *arguments])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
            assert running.stdin and running.stdout
            assert running.stdout.readline()
            yield
            running.stdin.close()
        assert running.returncode == 0

    @abstractmethod
    def _command(self, arguments: Sequence[str]) -> Sequence[str]:
        """That runs Python there."""

    @abstractmethod
    def log(self) -> list[dict[str, Any]]:
        """All whole lines so far: each is JSON."""

    @abstractmethod
    def rss_mib(self) -> float: ...

    @abstractmethod
    def kill(self, number: int) -> None: ...

    @abstractmethod
    def change_token(self, token: str) -> None:
        """Write another, and have it read."""

    @abstractmethod
    def put_model(self, folder: Path) -> None:
        """A copy, of the folder's name."""

    @abstractmethod
    def damage_model(self, name: str) -> None: ...

    @abstractmethod
    def remove_model(self, name: str) -> None: ...

    @abstractmethod
    def stop(self) -> int:
        """By SIGTERM: the exit status."""


class Service(Reached):
    """A process of `nymphd serve`, in a state folder of its own."""

    hostname = socket.gethostname().lower()

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, **settings: Any) -> None:
        self.folder = folder
        self.models = Path(settings.get("models_dir") or folder / "models")
        given = {"state_dir": folder, "port": 0, "device": "model:", **settings}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        self.log_path = folder.with_suffix(".log")
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nymphd", "serve", *options],
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
        self.address = ("127.0.0.1", self.port)
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
        whole, _, _ = self.log_path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def _command(self, arguments: Sequence[str]) -> Sequence[str]:
        return [sys.executable, *arguments]

    def rss_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / (1 << 20))

    def kill(self, number: int) -> None:
        self.process.send_signal(number)

    def change_token(self, token: str) -> None:
        (self.folder / "token").write_text(token)
        self.kill(signal.SIGHUP)
        self.token = token

    def put_model(self, folder: Path) -> None:
        shutil.copytree(folder, self.models / folder.name)

    def damage_model(self, name: str) -> None:
        (self.models / name / "model.onnx").write_bytes(b"junk")

    def remove_model(self, name: str) -> None:
        shutil.rmtree(self.models / name)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.kill(number)
        return self.process.wait(STOPS_WITHIN_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
