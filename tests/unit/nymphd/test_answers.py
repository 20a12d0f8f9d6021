# SPDX-License-Identifier: MIT
"""What nymphd answers, over TLS, on the model: status, verification, inference, events, figures."""

import base64
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from magika import Magika
from nymphd_process import Service
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

import pynymph
from pynymph import evidence

SOURCES = sorted(Path(pynymph.__file__).parent.glob("*.py"))


def infer(client: Any, data: bytes, **fields: Any) -> Any:
    body = {"model": "magika", "input": base64.b64encode(data).decode(), **fields}
    return client.post("/infer", json=body)


def events(service: Service, **options: Any) -> Any:
    url = f"wss://localhost:{service.port}/events"
    return connect(url, ssl=service.tls, additional_headers=service.bearer, open_timeout=60, **options)


def test_status_says_that_the_driver_is_a_model(service: Service) -> None:
    with service.client() as client:
        status = client.get("/status").json()
    assert (status["engine"], status["driver"]["name"], status["driver"]["device"]) == (
        "model",
        "model",
        "model:",
    )
    assert [engine["name"] for engine in status["engines"]] == ["model"]
    assert status["rings"][0]["engine"] == "model" and status["rings"][0]["mine"]
    assert status["uptime_s"] > 0
    assert (status["temp_c"] is None) != (status["temp_reason"] is None)


def test_verification_recomputes_hashes_and_digests(service: Service) -> None:
    with service.client() as client:
        found = client.get("/fabric/verify", params={"bytes": 100_000}).json()
        again = client.get("/fabric/verify").json()
    assert found["verified"] and found["reason"] is None
    assert found["ring_hash"] == found["recomputed_ring_hash"]
    (engine,) = found["engines"]
    assert engine["verified"] and engine["engine"] == "model"
    assert engine["dma_bytes"] == 100_000
    assert engine["src_digest"] == engine["dst_digest"]
    assert engine["ring_hash"] == engine["recomputed_ring_hash"]
    assert again["engines"][0]["src_digest"] != engine["src_digest"], "other bytes each time"
    assert again["dma_bytes"] >= found["dma_bytes"] + 65536


def test_answers_have_evidence_for_those_who_ask(service: Service) -> None:
    data = SOURCES[0].read_bytes()
    with service.client() as client:
        verified = client.get("/fabric/verify", params={"evidence": True, "bytes": 5000}).json()
        answers = [
            infer(client, data, evidence=True).json(),
            client.post("/infer", params={"evidence": True}, content=data,
                        headers={"Content-Type": "application/octet-stream"}).json(),
        ]  # fmt: skip
        plain = infer(client, data).json()
        refused = [
            infer(client, data, evidence=True, nonce="5eed"),
            client.get("/fabric/verify", params={"evidence": True, "nonce": "5eed"}),
            client.get("/fabric/verify", params={"nonce": "5eed"}),
            infer(client, data, evidence=True, nonce="xyz"),
        ]
        again = client.get("/fabric/verify").json()
    assert plain["evidence"] is None and again["engines"][0]["evidence"] is None
    assert [each.status_code for each in refused] == [409, 409, 409, 422]
    assert "no key to attest with" in refused[0].json()["error"]
    (engine,) = verified["engines"]
    found, _ = evidence.verify(base64.b64decode(engine["evidence"]), "verified")
    (copied,) = found.transfers
    assert (found.by, found.count, copied.nbytes, copied.status) == ("nymphd", 1, 5000, 0)
    assert copied.target_digest and copied.target_digest.hex() == engine["dst_digest"]
    for answer in answers:
        found, _ = evidence.verify(base64.b64decode(answer["evidence"]), "inferred")
        (copied,) = found.transfers
        assert copied.target == f"model magika, {answer['model_digest']}" and found.device == "model:"
        assert copied.source_digest == pynymph.digest.payload(data)
        assert answer["input_digest"] == copied.source_digest.hex()


def test_inference_agrees_with_magika(service: Service) -> None:
    """The same answers as the package gives by itself, and the digests of what was sent."""
    magika = Magika()
    inputs = [path.read_bytes() for path in SOURCES] + [
        b"x",
        b"\xff\xfe\x00",
        b" " * 5000,
        bytes(range(256)) * 40,
    ]
    with service.client() as client:
        for data in inputs:
            answer = infer(client, data).json()
            wanted = magika.identify_bytes(data)
            assert answer["output"]["label"] == wanted.output.label
            assert answer["output"]["score"] == pytest.approx(wanted.score, abs=1e-4)
            assert answer["input_digest"] == pynymph.digest.payload(data).hex()
            assert answer["input_bytes"] == len(data)
            assert answer["tokens"] == (0 if wanted.dl.label == "undefined" else 2048)
            assert (answer["engine"], answer["faults"]) == ("model", [])
            assert (answer["energy_wh"] is None) == (answer["energy_reason"] is not None)


def test_inference_names_the_model_that_ran(service: Service) -> None:
    with service.client() as client:
        answer = infer(client, SOURCES[0].read_bytes()).json()
        (model,) = client.get("/models").json()["models"]
    folder = service.folder / "models/magika"
    files = {name: pynymph.digest.payload((folder / name).read_bytes()).hex() for name in model["files"]}
    assert files == model["files"] and sorted(files) == ["config.min.json", "model.onnx"]
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))  # as b3sum prints them
    assert answer["model_digest"] == pynymph.digest.payload(lines.encode()).hex()
    assert model["ready"] and model["model_digest"] == answer["model_digest"]


@pytest.mark.parametrize("profile", ["latency", "throughput", "efficient"])
def test_concurrent_inputs_are_batched_and_never_mixed_up(service: Service, profile: str) -> None:
    inputs = [path.read_bytes() for path in SOURCES] * 2 + [
        b"%PDF-1.7\n" + bytes([i]) * 3000 for i in range(8)
    ]
    with service.client() as client, ThreadPoolExecutor(len(inputs)) as threads:
        found = list(threads.map(lambda data: infer(client, data, profile=profile).json(), inputs))
    digests = [pynymph.digest.payload(data).hex() for data in inputs]
    assert [answer["input_digest"] for answer in found] == digests
    magika = Magika()
    for data, answer in zip(inputs, found, strict=True):
        assert answer["profile"] == profile
        assert answer["output"]["model_label"] == magika.identify_bytes(data).dl.label
    assert (max(answer["batch"] for answer in found) > 1) == (profile != "latency")


@pytest.mark.parametrize("data", [SOURCES[0].read_bytes(), bytes(range(256)) * 100])
def test_raw_bytes_and_base64_give_the_same_answer(service: Service, data: bytes) -> None:
    """The body as it is, model and profile in the query."""
    headers = {"Content-Type": "application/octet-stream"}
    with service.client() as client:
        plain = client.post("/infer", params={"profile": "efficient"}, content=data, headers=headers).json()
        in_json = infer(client, data, profile="efficient").json()
        nothing = client.post("/infer", content=b"", headers=headers)
        unknown = client.post("/infer", params={"model": "nothing"}, content=data, headers=headers)
        text = client.post("/infer", content=data, headers={"Content-Type": "text/plain"})
    assert plain["input_digest"] == in_json["input_digest"] == pynymph.digest.payload(data).hex()
    assert plain["output"] == in_json["output"] and plain["profile"] == "efficient"
    assert (nothing.status_code, unknown.status_code, text.status_code) == (422, 404, 415)
    assert "application/json or application/octet-stream" in text.json()["error"]


@pytest.mark.parametrize(
    ("fields", "status", "why"),
    [
        ({"model": "nothing"}, 404, "no model of that name; there are: magika"),
        ({"model": "../magika"}, 404, "no model of that name"),
        ({"input": "a"}, 422, "it is not base64"),
        ({"input": "aG!k"}, 422, "it is not base64"),
        ({"input": "aGk=\n"}, 422, "it is not base64"),
        ({"input": 7}, 422, "no string of base64"),
        ({"input": ""}, 422, "input: it is empty"),
        ({"profile": "fast"}, 422, "profile"),
        ({"surplus": 1}, 422, "surplus"),
    ],
)
def test_wrong_inputs_are_refused_with_a_reason(service: Service, fields: Any, status: int, why: str) -> None:
    with service.client() as client:
        answer = client.post("/infer", json={"model": "magika", "input": "aGVsbG8gd29ybGQ=", **fields})
    assert answer.status_code == status
    assert why in answer.json()["error"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_corrupted_model_is_refused_before_it_runs(
    service: Service, start_service: Callable[..., Service], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(service.folder / "models", models)
    shutil.copytree(models / "magika", models / "other")
    content = bytearray((models / "magika/model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (models / "magika/model.onnx").write_bytes(content)
    running = start_service(models_dir=models)
    with running.client() as client:
        answer = infer(client, b"import os\n" * 100)
        assert answer.status_code == 409
        assert pynymph.digest.payload(content).hex() in answer.json()["error"]
        assert client.get("/readyz").status_code == 200, "one bad model does not make it unready"
        states = {model["name"]: model for model in client.get("/models").json()["models"]}
        assert not states["magika"]["ready"] and states["magika"]["reason"] == answer.json()["error"]
        assert infer(client, b"import os\n" * 100, model="other").json()["output"]["label"] == "python"
        # Mended, it is as good as any.
        shutil.copy(models / "other/model.onnx", models / "magika/model.onnx")
        assert infer(client, b"import os\n" * 100).json()["output"]["label"] == "python"
        assert client.get("/readyz").status_code == 200
    faults = [entry for entry in running.log() if entry["event"] == "fault"]
    assert [fault["source"] for fault in faults] == ["model"]


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (b"{", "not as it should be"),
        (b'{"kind": "magika", "files": {}}', "does not name config.min.json, model.onnx"),
        (b'{"kind": "magika", "files": {"../../token": "' + b"0" * 64 + b'"}}', "not as it should be"),
    ],
)
def test_wrong_manifest_is_refused(
    start_service: Callable[..., Service], tmp_path: Path, manifest: bytes, why: str
) -> None:
    folder = tmp_path / "models/bad"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(manifest)
    running = start_service(models_dir=tmp_path / "models")
    with running.client() as client:
        answer = infer(client, b"hello", model="bad")
        assert (answer.status_code, why in answer.json()["error"]) == (409, True)
        assert infer(client, b"hello world").status_code == 200


def test_model_that_cannot_run_is_refused(start_service: Callable[..., Service], tmp_path: Path) -> None:
    """Its digests are right, and it is none; and a folder whose name no request can have is no model."""
    folder = tmp_path / "models/bad"
    folder.mkdir(parents=True)
    files = {"model.onnx": b"junk", "config.min.json": b"{}"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    digests = {name: pynymph.digest.payload(content).hex() for name, content in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"kind": "magika", "files": digests}))
    shutil.copytree(folder, tmp_path / "models/bad (copy)")
    running = start_service(models_dir=tmp_path / "models")
    with running.client() as client:
        answer = infer(client, b"hello", model="bad")
        assert (answer.status_code, "can't be run" in answer.json()["error"]) == (409, True)
        assert {model["name"] for model in client.get("/models").json()["models"]} == {"bad", "magika"}
        assert infer(client, b"hello world").status_code == 200
    with events(running) as socket:
        while json.loads(socket.recv(timeout=10))["type"] != "telemetry":
            pass
    assert running.stop() == 0


def test_events_report_telemetry_verification_and_inference(service: Service) -> None:
    with events(service) as socket, service.client() as client:
        hello = json.loads(socket.recv(timeout=10))
        assert (hello["type"], hello["engine"]) == ("hello", "model")
        client.get("/fabric/verify")
        digest = infer(client, b"import os\n" * 50).json()["input_digest"]
        wanted = {"telemetry", "verify", "infer"}
        seen = []
        while wanted - {event["type"] for event in seen}:
            seen.append(json.loads(socket.recv(timeout=10)))
    assert [event["seq"] for event in seen] == sorted(event["seq"] for event in seen)
    by_type = {event["type"]: event for event in seen}
    assert by_type["verify"]["verified"] and by_type["verify"]["engines"][0]["engine"] == "model"
    assert (by_type["infer"]["input_digest"], by_type["infer"]["label"]) == (digest, "python")
    assert by_type["telemetry"]["status"]["engine"] == "model"
    with events(service) as socket:
        recent = json.loads(socket.recv(timeout=10))["recent"]
    assert "telemetry" not in {event["type"] for event in recent}
    assert {"engine", "ring", "verify", "infer"} <= {event["type"] for event in recent}


def test_metrics_report_the_work_done(service: Service) -> None:
    with service.client() as client:
        answer = infer(client, b"import os\n" * 50).json()
        families = {each.name: each for each in text_string_to_metric_families(client.get("/metrics").text)}
    latency = families["nymphd_http_request_duration_seconds"]
    assert latency.type == "histogram"
    assert any(sample.labels.get("path") == "/infer" for sample in latency.samples)
    assert families["nymphd_infer_tokens"].samples[0].value >= answer["tokens"]
    assert families["nymphd_engine_verified"].samples[0].labels == {"engine": "model"}
    assert families["pcie_nymph_bytes"].samples[0].value >= answer["input_bytes"]
    assert families["process_resident_memory_bytes"].samples[0].value > 0


def test_pages_are_served_with_security_headers(service: Service) -> None:
    with service.client() as client:
        for path in ("/", "/login", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui-bundle.js"):
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert "unsafe-inline" not in client.get("/").headers["content-security-policy"]
        assert client.get("/nothing").status_code == 404
        assert client.delete("/status").status_code == 405
