# SPDX-License-Identifier: MIT
"""What POST /infer of nymphd takes: of one that is started for this, with files and a token of its own."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from bench.ways import Tasks, Turn, Turns, Work, WrongError

COMMAND = (sys.executable, "-m", "nymphd")
PATIENCE = 600
"""Seconds to start or to answer in, on a CPU that is emulated."""
MODEL = "magika"
TOKENS = 2048
"""Of an input, as GET /models has it."""


def why_not() -> str | None:
    """Why nymphd can't be started here, if it can't."""
    tried = subprocess.run([*COMMAND, "serve", "--help"], capture_output=True, text=True)
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else None


@contextlib.contextmanager
def steady(work: Work) -> Iterator[Turns]:
    """One request after the other, over one connection."""
    with _Nymphd.started() as nymphd:
        _turn(nymphd, work, 0)
        yield lambda seconds: _turn(nymphd, work, seconds)


@contextlib.contextmanager
def first(work: Work) -> Iterator[Turns]:
    """The first request of a nymphd that just became ready: a start for each."""

    def turn(seconds: float) -> Turn:
        with _Nymphd.started() as nymphd:
            return _turn(nymphd, work, 0)

    yield turn


def _turn(nymphd: _Nymphd, work: Work, seconds: float) -> Turn:
    nymphd.reconnect()
    times: list[int] = []
    tasks = Tasks.now()
    while sum(times) < seconds * 1e9 or not times:
        times.append(nymphd.infer(work))
    return Turn(len(times), sum(times), np.asarray(times, np.uint64), Tasks.now() - tasks)


class _Nymphd:
    def __init__(self, port: int, state: Path) -> None:
        trusted = ssl.create_default_context(cafile=str(state / "certificate.pem"))
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=trusted)
        self._token = (state / "token").read_text().strip()

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator[_Nymphd]:
        with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
            options = ["--port", "0", "--state-dir", f"{folder}/state", "--verify-every-s", "0"]
            for timeout in ("header", "body"):
                options += [f"--{timeout}-timeout-s", str(PATIENCE)]
            ready = Path(folder) / "ready"
            environment = {**os.environ, "NOTIFY_SOCKET": str(ready)}
            with (
                _bound(ready) as notified,
                subprocess.Popen([*COMMAND, "serve", *options], stderr=log, env=environment) as process,
            ):
                try:
                    nymphd = cls(_port(process, notified, Path(log.name)), Path(folder) / "state")
                    with contextlib.closing(nymphd._connection):
                        yield nymphd
                finally:
                    process.terminate()

    def reconnect(self) -> None:
        """While others had their turns, nymphd has closed a connection that nothing came over."""
        self._connection.close()
        self._connection.connect()

    def infer(self, work: Work) -> int:
        """How many ns the answer took. Raises WrongError if it is not one about these bytes."""
        sent = bytes(work.data.view[: work.size])
        body = json.dumps({"model": MODEL, "input": base64.b64encode(sent).decode()})
        head = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        begun = time.perf_counter_ns()
        try:
            self._connection.request("POST", "/infer", body, head)
            answer = self._connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise WrongError(f"nymphd's /infer did not answer: {error!r}") from error
        taken = time.perf_counter_ns() - begun
        if answer.status != 200:
            raise WrongError(f"nymphd's /infer answered {answer.status}: {text.decode(errors='replace')}")
        said: dict[str, Any] = json.loads(text)
        if said["input_digest"] != blake3.blake3(sent).hexdigest() or said["tokens"] != TOKENS:
            raise WrongError(f"nymphd's /infer did not answer about what it was sent, but: {said}")
        if said["engine"] == "model" or said["faults"]:
            raise WrongError(f"nymphd's input did not travel as it should: {said}")
        return taken


def _bound(path: Path) -> socket.socket:
    """What systemd would be told at that it is ready."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(path))
    return made


def _port(process: subprocess.Popen[bytes], notified: socket.socket, log: Path) -> int:
    """Where it serves, once it does."""
    ended = os.pidfd_open(process.pid)
    try:
        happened = select.select([notified.fileno(), ended], [], [], PATIENCE)[0]
    finally:
        os.close(ended)
    if notified.fileno() in happened and b"READY=1" in notified.recv(4096):
        for line in log.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a library's own words
                if (said := json.loads(line)).get("event") == "serving":
                    return int(said["port"])
    raise WrongError(f"nymphd does not start: {log.read_text().strip()}")
