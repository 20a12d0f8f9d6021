# SPDX-License-Identifier: MIT
"""nymphd/deploy/: Prometheus takes it, scrapes a nymphd with it, and knows all that it asks for."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from nymphd_process import Service
from onnx_models import put
from prometheus_programs import prometheus, promtool

CHECKOUT = Path(__file__).parents[3]
DEPLOY = CHECKOUT / "nymphd/deploy"
SECONDS = 60


def test_alert_rules_fire_as_their_tests_say(tmp_path: Path) -> None:
    """Each alert fires for what it is about, and none while all is well."""
    shutil.copy(DEPLOY / "nymphd-alerts.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("nymphd-alerts-test.yml"), tmp_path)
    for what in (["check", "rules", "nymphd-alerts.yml"], ["test", "rules", "nymphd-alerts-test.yml"]):
        done = subprocess.run([promtool(), *what], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("scraped") / "state")
    yield running
    running.close()


@pytest.fixture(scope="module")
def scraping(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus, with nymphd/deploy/prometheus.yml, but for port and intervals; a client of its API."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(DEPLOY / "nymphd-alerts.yml", folder)
    shutil.copy(service.folder / "token", folder / "nymphd-token")
    shutil.copy(service.folder / "certificate.pem", folder / "nymphd-certificate.pem")
    config = (DEPLOY / "prometheus.yml").read_text().replace("localhost:8443", f"localhost:{service.port}")
    often = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
    (folder / "prometheus.yml").write_text(often + config)
    done = subprocess.run([promtool(), "check", "config", "prometheus.yml"], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([prometheus(), *options], cwd=folder, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1/", timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def eventually(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            if found := look():
                return found
        except httpx.TransportError:
            found = None  # it is still starting
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def ask(client: httpx.Client, query: str) -> list[Any]:
    found = client.get("query", params={"query": query})
    if found.status_code == 503:
        return []  # it is still starting
    answer = found.json()
    assert answer["status"] == "success", (query, answer)
    return list(answer["data"]["result"])


def test_prometheus_scrapes_and_alerts(scraping: httpx.Client, service: Service) -> None:
    eventually(lambda: ask(scraping, 'up{job="nymphd"} == 1'))
    groups = scraping.get("rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == (DEPLOY / "nymphd-alerts.yml").read_text().count("- alert:")
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    eventually(lambda: ask(scraping, 'nymphd_faults_total{source="model", kind="refused"} == 0'))
    put(service.folder / "models/junk", {"model.onnx": b"junk"})
    eventually(lambda: ask(scraping, 'ALERTS{alertname="NymphFaults", kind="refused", alertstate="firing"}'))
    eventually(lambda: ask(scraping, 'ALERTS{alertname="NymphModelNotReady", model="junk"}'))
    assert not ask(scraping, 'ALERTS{alertname="NymphdDown"}')


def test_dashboard_queries_have_answers(scraping: httpx.Client, service: Service) -> None:
    eventually(lambda: ask(scraping, 'up{job="nymphd"} == 1'))
    dashboard = json.loads((DEPLOY / "nymphd-dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) and all(panel["targets"] for panel in panels)
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    given = {"$job": "nymphd", "$instance": ".*", "$__rate_interval": "30s", "$__range": "5m"}
    as_bytes = {"Content-Type": "application/octet-stream"}
    with service.client() as client:
        client.get("/fabric/verify")
        for _ in range(3):
            client.post("/infer", content=b"import os\n" * 50, headers=as_bytes)
            time.sleep(1.5)
    for query in queries:
        for name, text in given.items():
            query = query.replace(name, text)
        assert "$" not in query, query
        if query.endswith("> 0"):  # of what went wrong
            ask(scraping, query)
        else:
            eventually(lambda query=query: ask(scraping, query))


def test_every_metric_asked_for_exists(service: Service) -> None:
    """The model has fewer counters than the driver, whose own source has the others."""
    asked = set(re.findall(r"\b(?:pcie_nymph|nymphd)_\w+\b", (DEPLOY / "nymphd-dashboard.json").read_text()))
    rules = re.sub(r"description: .*", "", (DEPLOY / "nymphd-alerts.yml").read_text())
    asked |= set(re.findall(r"\b(?:pcie_nymph|nymphd)_\w+\b", rules))
    with service.client() as client:
        while "pcie_nymph_ring_active" not in (text := client.get("/metrics").text):
            time.sleep(0.2)
    there = set(re.findall(r"^(\w+)[ {]", text, re.MULTILINE))
    driver = set(re.findall(r"\w+", (CHECKOUT / "kernel/pcie_nymph/sysfs.c").read_text()))
    missing = asked - there
    known = {name for name in missing if name.removeprefix("pcie_nymph_").removesuffix("_total") in driver}
    assert missing == known
