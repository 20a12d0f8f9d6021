# SPDX-License-Identifier: MIT
"""nymphd on the driver while an endpoint goes wrong: answers stay right, and say what is wrong."""

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from nymph_vm.endpoint import Endpoint
from nymph_vm.faults import KINDS, Fault
from nymphd_served import Served
from websockets.sync.client import connect

import pynymph

NAME = "ep0"
SOURCE = b"import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n" * 20
PATIENCE_S = 120

# What each fault of a channel makes of one that is asked to prove itself; the others do no harm.
FOUND = ("flip", "short", "misplaced", "skipped")
FATAL = ("lost", "stall", "death")


def client(served: Served) -> httpx.Client:
    trusted = ssl.create_default_context(cadata=served.service.certificate)
    return httpx.Client(
        base_url=served.service.url, headers=served.service.bearer, verify=trusted, timeout=PATIENCE_S
    )


def events(served: Served) -> Any:
    trusted = ssl.create_default_context(cadata=served.service.certificate)
    url = served.service.url.replace("https", "wss") + "/events"
    return connect(url, ssl=trusted, additional_headers=served.service.bearer)


def infer(asking: httpx.Client, data: bytes = SOURCE) -> dict[str, Any]:
    """The answer, whose digest is that of what was sent."""
    body = {"model": "magika", "input": base64.b64encode(data).decode()}
    answer = asking.post("/infer", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["input_digest"] == pynymph.digest.payload(data).hex()
    return found


def verify(asking: httpx.Client, nbytes: int = 4096) -> tuple[bool, dict[str, dict[str, Any]]]:
    """Whether all is well, and each engine by its name."""
    answer = asking.get("/fabric/verify", params={"bytes": nbytes})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["ring_hash"] == found["recomputed_ring_hash"]
    for engine in found["engines"]:
        assert engine["verified"] == (engine["reason"] is None)
        if engine["verified"]:
            assert engine["src_digest"] == engine["dst_digest"]
            assert engine["ring_hash"] == engine["recomputed_ring_hash"]
            assert engine["dma_bytes"] == nbytes
    return found["verified"], {engine["engine"]: engine for engine in found["engines"]}


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.2)


def is_well(asking: httpx.Client) -> bool:
    return verify(asking)[0]


@pytest.fixture(scope="module", autouse=True)
def patient(served_by: Served) -> None:
    """An emulated guest on a busy host is slow, and that is no engine's fault."""
    script = "echo NYMPHD_VERIFY_TIMEOUT_S=60 >> /etc/default/nymphd; systemctl restart nymphd"
    served_by.machine.run(["sh", "-ec", script])


@pytest.fixture
def asking(served: Served) -> Iterator[httpx.Client]:
    with client(served) as it:
        yield it


@pytest.fixture
def endpoint(served: Served, asking: httpx.Client) -> Iterator[Endpoint]:
    """Sound before and after."""
    wait_for(lambda: is_well(asking))
    yield served.machine.endpoints[NAME]
    if NAME in served.machine.endpoints:
        served.machine.endpoints[NAME].set_faults()
    wait_for(lambda: is_well(asking))


@pytest.fixture
def others(served: Served) -> Iterator[None]:
    """Clients of /status during that always get an answer, and never wait for an engine."""
    stop = threading.Event()
    seen: list[dict[str, Any]] = []

    def look() -> None:
        with client(served) as it:
            while not stop.is_set():
                answer = it.get("/status")
                assert answer.status_code == 200, answer.text
                seen.append(answer.json())
                stop.wait(0.1)

    with ThreadPoolExecutor(3) as threads:
        looking = [threads.submit(look) for _ in range(3)]
        yield
        stop.set()
    for each in looking:
        each.result()
    assert len(seen) > 3
    assert all(status["driver"]["name"] == "pcie_nymph" for status in seen)


def test_every_engine_is_verified(served: Served, asking: httpx.Client) -> None:
    wait_for(lambda: is_well(asking))
    verified, engines = verify(asking, 1 << 20)
    listed = served.machine.run(["cat", "/sys/class/misc/pcie_nymph/engines"]).stdout.split()
    assert verified
    assert list(engines) == listed
    assert len(listed) == 1 + served.machine.endpoints[NAME].channels


def test_status_agrees_with_sysfs(served: Served, asking: httpx.Client) -> None:
    infer(asking)
    status = asking.get("/status").json()
    assert (
        status["engine"] in [engine["name"] for engine in status["engines"]] and status["engine"] != "model"
    )
    (function,) = status["functions"]
    assert (function["driver"], len(function["dma_channels"])) == ("nymph_endpoint", 4)
    assert status["board_id_source"] == "dmi" and "QEMU" in status["board_id"]
    counters = served.machine.run(["ls", "/sys/class/misc/pcie_nymph/counters"]).stdout.split()
    assert sorted(status["counters"]) == sorted(counters)
    assert status["counters"]["verified"] > 0
    mine = [ring for ring in status["rings"] if ring["mine"]]
    assert {ring["engine"] for ring in mine} >= {"cpu", status["engine"]}
    assert sum(ring["dma_bytes"] for ring in mine) >= len(SOURCE)


def test_inference_goes_through_the_endpoint(asking: httpx.Client, endpoint: Endpoint) -> None:
    found = infer(asking)
    assert (found["output"]["label"], found["faults"]) == ("python", [])
    assert found["engine"].startswith("dma")
    assert asking.get("/models").json()["models"][0]["model_digest"] == found["model_digest"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_reported_and_inference_stays_right(
    served: Served, asking: httpx.Client, endpoint: Endpoint, others: None, kind: str
) -> None:
    """Of every copy, on every channel: what is not well is said, and inference is right all the same."""
    endpoint.set_faults(Fault(kind))
    verified, engines = verify(asking)
    assert engines["cpu"]["verified"]
    channels = {name: engine for name, engine in engines.items() if name != "cpu"}
    assert len(channels) == 4
    if kind in (*FOUND, *FATAL):
        assert not verified
        assert not any(engine["verified"] for engine in channels.values())
        assert all(engine["reason"] for engine in channels.values())
    if kind in FOUND:
        assert all("dst is not what was sent" in engine["reason"] for engine in channels.values())
    found = infer(asking)
    assert found["output"]["label"] == "python"
    if kind in (*FOUND, *FATAL):
        assert found["engine"] == "cpu" and found["faults"], found
    status = asking.get("/status").json()
    states = {engine["name"]: engine for engine in status["engines"]}
    assert states["cpu"]["verified"]
    if kind in (*FOUND, *FATAL):
        assert not any(states[name]["verified"] for name in channels)


def test_unplugged_engine_is_reported_until_it_is_back(
    served: Served, asking: httpx.Client, endpoint: Endpoint, others: None
) -> None:
    _, before = verify(asking)
    with events(served) as listening:
        assert json.loads(listening.recv(timeout=PATIENCE_S))["type"] == "hello"
        served.machine.unplug(NAME)
        verified, engines = verify(asking)
        assert not verified
        assert set(engines) == set(before)
        assert engines["cpu"]["verified"]
        assert all("unplugged" in each["reason"] for name, each in engines.items() if name != "cpu")
        found = infer(asking)
        assert (found["engine"], found["output"]["label"]) == ("cpu", "python")
        served.machine.plug(NAME)
        wait_for(lambda: is_well(asking))
        assert infer(asking)["output"]["label"] == "python"
        gone: set[str] = set()
        back: set[str] = set()
        while not back >= gone or not gone:
            event = json.loads(listening.recv(timeout=PATIENCE_S))
            if event["type"] == "engine":
                {"gone": gone, "appeared": back}.get(event["what"], set()).add(event["name"])
        assert gone == set(before) - {"cpu"}


def test_inference_stays_right_while_the_endpoint_dies(
    served: Served, asking: httpx.Client, endpoint: Endpoint, others: None
) -> None:
    """Its process dies again and again while eight clients infer; every answer is right."""
    stop = threading.Event()

    def ask(number: int) -> int:
        with client(served) as it:
            count = 0
            while not stop.is_set():
                found = infer(it, SOURCE + b"# %d %d\n" % (number, count))
                assert found["output"]["label"] == "python"
                count += 1
            return count

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, number) for number in range(8)]
        for _ in range(5):
            endpoint.set_faults(Fault("death", count=1))
            time.sleep(2)
        stop.set()
    assert all(each.result() > 0 for each in asked)


def test_faults_become_events(served: Served, asking: httpx.Client, endpoint: Endpoint) -> None:
    with events(served) as listening:
        endpoint.set_faults(Fault("flip"))
        assert infer(asking)["faults"]
        verify(asking)
        sources: set[str] = set()
        while not sources >= {"verify", "infer"}:
            event = json.loads(listening.recv(timeout=PATIENCE_S))
            if event["type"] == "fault":
                assert event["engine"].startswith("dma") and "not what was sent" in event["reason"]
                sources.add(event["source"])
