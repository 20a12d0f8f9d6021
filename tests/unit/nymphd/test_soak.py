# SPDX-License-Identifier: MIT
"""nymphd among strangers, tenants whose models fail, and reloads, for half an hour: all is flat at the end.

With --long alone. tests/service/test_nymphd_soak.py has it in the VM, with faults of an endpoint.
"""

import contextlib
import json
import random
import secrets
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import onnx_models
import psutil
import pytest
from nymphd_process import Reached, Service
from test_answers import infer
from test_attacks import strangers
from test_models import add_moody, config_of_magika
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

import pynymph

SECONDS = 30 * 60
GROWTH = 1.2  # of memory, threads and open files, from after the warm-up to the end
INPUTS = {"python": b"import os\n" * 60, "html": b"<!DOCTYPE html><html><body>hello</body></html>\n" * 30}
WANTED = {"inferred 200", "moody 504", "guest 200", "listened", "reloads", "strangers", "large 413"}


def add_models(running: Reached, folder: Path) -> Path:
    """Give it one that may never end, or fail; and make one, in `folder`, that may come and go."""
    add_moody(running, folder)
    return onnx_models.put(folder / "guest", onnx_models.like_magika(config_of_magika()), "magika")


class Soak:
    """Everybody who uses nymphd, or should not, and what they saw."""

    def __init__(self, running: Reached, guest: Path) -> None:
        """guest: a model that comes and goes."""
        self.running, self.guest = running, guest
        self.stop = threading.Event()
        self.seen: Counter[str] = Counter()

    def everybody(self) -> list[Callable[[], None]]:
        """Each is for a thread, and ends after `stop`."""
        return [
            *(self.tenant, self.tenant, self.bad_tenant, self.look, self.listen),
            *(self.strangers, self.operate),
        ]

    def count(self, what: str, answer: httpx.Response, *statuses: int) -> None:
        """A token that was changed is 401, and no other surprise is allowed."""
        assert answer.status_code in (*statuses, 401, 429), (what, answer.status_code, answer.text[:300])
        self.seen[f"{what} {answer.status_code}"] += 1

    def tenant(self) -> None:
        with self.running.client(headers={}) as client:
            while not self.stop.is_set():
                client.headers = self.running.bearer
                label, data = random.choice(list(INPUTS.items()))
                answer = infer(client, data, profile=random.choice(["latency", "throughput", "efficient"]))
                self.count("inferred", answer, 200, 503, 504)
                if answer.is_success:
                    assert answer.json()["output"]["label"] == label
                    assert answer.json()["input_digest"] == pynymph.digest.payload(data).hex()
                    self.seen["inferred after a fault"] += bool(answer.json()["faults"])

    def bad_tenant(self) -> None:
        """Runs that never end, fail, or are of a model that comes and goes."""
        with self.running.client(headers={}) as client:
            while not self.stop.wait(0.5):
                client.headers = self.running.bearer
                start = random.choice([b"E", b"F", b"x"])
                self.count("moody", infer(client, start + b"x" * 99, model="moody"), 200, 422, 500, 503, 504)
                self.count("guest", infer(client, b"x" * 99, model="guest"), 200, 404, 409, 503)

    def look(self) -> None:
        with self.running.client(headers={}) as client:
            while not self.stop.wait(0.05):
                client.headers = self.running.bearer
                for path in ("/status", "/metrics", "/models", "/fabric/verify?bytes=1000"):
                    self.count(path.partition("?")[0], client.get(path), 200)
                for path in ("/healthz", "/readyz"):
                    self.count(path, client.get(path, headers={"Authorization": ""}), 200)

    def listen(self) -> None:
        url = f"wss://localhost:{self.running.port}/events"
        while not self.stop.is_set():
            try:
                with connect(url, ssl=self.running.tls, additional_headers=self.running.bearer) as listening:
                    last = json.loads(listening.recv(timeout=60))["seq"]
                    for _ in range(20):
                        seq = json.loads(listening.recv(timeout=60))["seq"]
                        assert seq == last + 1
                        last = seq
                self.seen["listened"] += 1
            except (WebSocketException, OSError):
                self.seen["not listened"] += 1
                time.sleep(1)

    def strangers(self) -> None:
        """Bare sockets, TLS that says nothing, wrong tokens, and large JSON with the right one."""
        while not self.stop.wait(2):
            with contextlib.ExitStack() as stack:
                stack.enter_context(strangers(self.running, 200))
                for _ in range(20):
                    try:
                        stack.enter_context(self.running.connect())
                    except OSError:
                        self.seen["turned away"] += 1
                self._strange_requests()
                self.stop.wait(2)
            self.seen["strangers"] += 220

    def _strange_requests(self) -> None:
        with self.running.client(headers={"Authorization": "Bearer wrong"}) as client:
            assert client.get("/status").status_code in (401, 429)
        with self.running.client() as client:
            body = b"{" + b",".join(b'"%d":0' % i for i in range(200_000)) + b"}"
            given = {"Content-Type": "application/json"}
            self.count("large", client.post("/infer", content=body, headers=given), 413)

    def operate(self) -> None:
        """Reload with another token, have a model come, be damaged, and go."""
        for turn in range(100_000):
            if self.stop.wait(5):
                return
            if turn % 3 == 0:
                self.running.put_model(self.guest)
            elif turn % 3 == 1:
                self.running.damage_model(self.guest.name)
            else:
                self.running.remove_model(self.guest.name)
            self.running.change_token(secrets.token_urlsafe(32))
            self.seen["reloads"] += 1


def test_service_stays_flat_for_half_an_hour(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if not request.config.getoption("long"):
        pytest.skip("half an hour: --long")
    running = Service(tmp_path / "state", infer_timeout_s=3, login_limit="100000/minute")
    soak = Soak(running, add_models(running, tmp_path))
    process = psutil.Process(running.process.pid)
    memory: list[tuple[float, int, int, int]] = []
    started = time.monotonic()
    users = soak.everybody()
    with ThreadPoolExecutor(len(users)) as threads:
        using = [threads.submit(each) for each in users]
        while time.monotonic() - started < SECONDS and not any(each.done() for each in using):
            with process.oneshot():
                now = time.monotonic() - started
                rss, count = process.memory_info().rss >> 10, process.num_threads()
            memory.append((now, rss, count, process.num_fds()))
            time.sleep(5)
        soak.stop.set()
    rest = [each for each in memory if each[0] > SECONDS / 4]
    quarter = max(1, len(rest) // 4)
    found = {
        name: [statistics.median(each[column] for each in some) for some in (rest[:quarter], rest[-quarter:])]
        for column, name in ((1, "rss_kb"), (2, "threads"), (3, "files"))
    }
    seconds = round(time.monotonic() - started)
    report = {"seconds": seconds, "seen": dict(soak.seen), "after warm-up, end": found}
    Path("dist").mkdir(exist_ok=True)
    text = json.dumps({**report, "samples": memory}, indent=1)
    Path("dist/nymphd_host_soak.json").write_text(text + "\n")
    print(report)
    for each in using:
        each.result()
    with running.client() as client:
        status = client.get("/status").json()
        assert status["infer"]["in_flight"] == 0 and client.get("/readyz").status_code == 200
        assert infer(client, INPUTS["python"]).json()["output"]["label"] == "python"
    assert running.stop() == 0
    errors = [entry for entry in running.log() if entry["level"] == "error"]
    assert errors == [], errors[:3]
    for name, (before, after) in found.items():
        assert after <= before * GROWTH, (name, before, after)
    assert soak.seen.keys() >= WANTED, soak.seen
