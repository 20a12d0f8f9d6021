# SPDX-License-Identifier: MIT
"""What today's clients of inference servers get of nymphd: tritonclient's and kserve's, unmodified."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nymphd.tensors import DATATYPES
from nymphd_process import Service
from onnx import TensorProto, helper
from onnx_models import identity, model, put, value

import nymphd
import pynymph

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[2] / "build/oip_clients"
ONNX = {
    "FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BF16": "BFLOAT16", "BYTES": "STRING"
}  # fmt: skip


def given(datatype: str, data: Any, shape: list[int] | None = None) -> Any:
    """A request for identity-TYPE."""
    shape = [len(data)] if shape is None else shape
    return {"inputs": [{"name": "given", "datatype": datatype, "shape": shape, "data": data}]}


@pytest.fixture(scope="session")
def clients(request: pytest.FixtureRequest) -> Path:
    """The folder of programs of an environment with the clients, which is kept for the next time."""
    if not request.config.getoption("long"):
        pytest.skip("installs the clients, which takes minutes: --long, or make service")
    wanted = HERE / "oip_clients.txt"
    stamp = ENVIRONMENT / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        pip = [ENVIRONMENT / "bin/pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", wanted], check=True)
        stamp.write_text(wanted.read_text())
    return ENVIRONMENT / "bin"


def pair() -> bytes:
    nodes = [helper.make_node("Identity", [name], [f"{name}_same"]) for name in "ab"]
    kinds = {"a": (TensorProto.INT32, ["n", 3]), "b": (TensorProto.STRING, ["n", "m"])}
    outputs = [value(f"{name}_same", *kinds[name]) for name in "ba"]  # not in the order of the inputs
    return model(nodes, [value(name, *kinds[name]) for name in "ab"], outputs)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("clients")
    for name in DATATYPES:
        kind = getattr(TensorProto, ONNX.get(name, name))
        put(folder / f"models/identity-{name}", {"model.onnx": identity(kind)})
    put(folder / "models/pair", {"model.onnx": pair()})
    running = Service(folder / "state", models_dir=folder / "models")
    yield running
    running.close()


@pytest.fixture(scope="module")
def found(served: Service, clients: Path) -> Any:
    program = [clients / "python", HERE / "oip_clients.py", served.url, served.folder / "certificate.pem"]
    done = subprocess.run([*program, served.token], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("client", ["triton", "kserve"])
def test_clients_see_health(found: Any, client: str) -> None:
    of = found[client]
    assert (of["live"], of["ready"], of["model_ready"], of["unknown_ready"]) == (True, True, True, False)


def test_clients_see_metadata(found: Any) -> None:
    assert found["triton"]["server"]["name"] == "nymphd"
    assert found["triton"]["server"]["version"] == nymphd.__version__
    assert "binary_tensor_data" in found["triton"]["server"]["extensions"]
    about = found["triton"]["model"]
    assert (about["name"], len(about["versions"][0])) == ("identity-FP32", 64)
    assert about["inputs"] == [{"name": "given", "datatype": "FP32", "shape": [-1]}]
    assert about["outputs"] == [{"name": "same", "datatype": "FP32", "shape": [-1]}]


@pytest.mark.parametrize("client", ["triton", "kserve"])
def test_every_type_arrives_unchanged(found: Any, client: str) -> None:
    """In JSON and as bytes; and the answer names the input's digest, and the model's."""
    types = found[client]["types"]
    # Neither can say BF16 in JSON; kserve's has no BF16 at all, and FP16 as bytes alone.
    lacks = {"BF16 JSON"} | ({"BF16 binary", "FP16 JSON"} if client == "kserve" else set())
    assert types.keys() == {f"{name} {how}" for name in DATATYPES for how in ("binary", "JSON")} - lacks
    for name, one in types.items():
        assert one["same"], name
        assert one["input_digest.given"] == pynymph.digest.payload(bytes.fromhex(one["bytes"])).hex(), name
        assert len(one["model_digest"]) == 64
        assert (one["engine"], one["profile"]) == ("model", "latency")


def test_several_tensors_keep_their_order_and_id(found: Any) -> None:
    assert found["triton"]["pair"] == {"same": [True, True], "id": "number 7"}


def test_version_is_the_model_digest(found: Any, served: Service) -> None:
    with served.client() as client:
        states = {each["name"]: each for each in client.get("/models").json()["models"]}
    assert found["triton"]["version"] == states["identity-FP32"]["model_digest"]


@pytest.mark.parametrize(
    ("what", "status", "why"),
    [
        ("version", "404", "its version is its digest"),
        ("datatype", "422", "the model takes INT8"),
        ("output", "422", "has same"),
        ("sequence", "422", "sequence_id"),
        ("gzip", "415", "Content-Encoding"),
        ("profile", "422", "latency, throughput or efficient"),
    ],
)
def test_wrong_requests_of_clients_are_refused_with_a_reason(
    found: Any, what: str, status: str, why: str
) -> None:
    assert found["triton"]["wrong"][what][0] == status
    assert why in found["triton"]["wrong"][what][1]


def test_files_are_sent_as_bytes_tensors(found: Any) -> None:
    magika = found["triton"]["magika"]
    assert magika["label"][0] == "python" and magika["scores"][0] > 0.9 and len(magika["label"]) == 2
    assert magika["input_digest.input"] == pynymph.digest.payload(bytes.fromhex(magika["bytes"])).hex()
    assert magika["profile"] == "throughput"


# --- a client made of the OpenAPI document ---


def test_generated_client_is_clean_and_typed(served: Service, clients: Path, tmp_path: Path) -> None:
    """openapi-python-client has nothing to warn of, and what it makes does all that its functions say."""
    with served.client() as client:
        document = client.get("/openapi.json").json()
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    generate = [clients / "openapi-python-client", "generate", "--path", "openapi.json"]
    done = subprocess.run(
        [*generate, "--output-path", "generated"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{clients}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "WARNING" in done.stdout + done.stderr) == (0, False), done.stdout + done.stderr
    operations = [one for path in document["paths"].values() for one in path.values()]
    made = {path.stem for path in tmp_path.glob("generated/*/api/*/*.py") if path.stem != "__init__"}
    assert made == {each["operationId"] for each in operations}
    program = [clients / "python", HERE / "generated_client.py", tmp_path / "generated"]
    arguments = [served.url, served.folder / "certificate.pem", served.token]
    ran = subprocess.run([*program, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    found = json.loads(ran.stdout)
    assert {name: kind for name, (kind, _) in found.items()} == {
        "status": "Status", "verification": "Verification", "history": "History", "models": "Models",
        "in_json": "Inference", "as_bytes": "Inference", "unknown": "Error", "refused": "Error",
        "readiness": "Readiness", "metadata": "ModelMetadata", "tensors": "InferenceResponse",
        "metrics": "str",
    }  # fmt: skip
    assert found["in_json"][1]["output"] == found["as_bytes"][1]["output"]
    assert found["as_bytes"][1]["output"]["label"] == "python"
    assert found["as_bytes"][1]["profile"] == "efficient"
    assert found["tensors"][1]["outputs"][0]["data"] == [1, -2]
    assert found["readiness"][1]["ready"] and found["verification"][1]["verified"]
    assert "nymphd_ready 1.0" in found["metrics"][1]


def test_openapi_document_has_security_and_retry_headers(service: Service) -> None:
    with service.client() as client:
        document = client.get("/openapi.json").json()
        assert client.get("/v1/status").json()["engine"] == client.get("/status").json()["engine"]
        asked = ("/v1/status", "/infer", "/v2/models/magika", "/static/dashboard.js")
        allowed = [client.delete(path).headers["allow"] for path in asked]
    assert allowed == ["GET, HEAD", "POST", "GET, HEAD", "GET, HEAD"]
    schemes = document["components"]["securitySchemes"]
    assert {name: each["type"] for name, each in schemes.items()} == {"token": "http", "session": "apiKey"}
    operations = {
        (path, method): one for path, methods in document["paths"].items() for method, one in methods.items()
    }
    tags = {each["name"] for each in document["tags"]}
    assert document["servers"]
    for (path, _), one in operations.items():
        assert len(one["tags"]) == 1 and set(one["tags"]) <= tags, path
        is_open = (one["tags"] in (["session"], ["operation"]) and path != "/metrics") or "/health/" in path
        assert is_open == ("security" not in one), path
        if not is_open:
            assert one["security"] == [{"token": []}, {"session": []}], path
        for status in one["responses"].keys() & {"429", "504"}:
            assert "Retry-After" in one["responses"][status]["headers"], path
    versioned = {path.split("/")[1] for path, _ in operations}
    assert versioned == {"v1", "v2", "healthz", "livez", "readyz", "metrics", "session"}


# --- what no client sends ---


def post(service: Service, name: str, body: Any, **headers: str) -> Any:
    path = f"/v2/models/{name}/infer"
    with service.client(headers=service.bearer | headers) as client:
        return client.post(path, content=body) if isinstance(body, bytes) else client.post(path, json=body)


@pytest.mark.parametrize(
    ("datatype", "data", "why"),
    [
        ("INT8", [300], "too large for INT8"),
        ("UINT64", [-1], "too large for UINT64"),
        ("INT32", [1.5], "element 0 is not an integer"),
        ("INT32", [True], "element 0 is not an integer"),
        ("BOOL", [1], "element 0 is not true or false"),
        ("FP16", [1, 70000], "too large for FP16"),
        ("BF16", [3.4e38], "too large for BF16"),
        ("FP32", ["1"], "element 0 is not a number"),
        ("FP32", [None], "element 0 is not a number"),
        ("BYTES", [1], "element 0 is not a string"),
    ],
)
def test_wrong_elements_are_refused(served: Service, datatype: str, data: Any, why: str) -> None:
    answer = post(served, f"identity-{datatype}", given(datatype, data))
    assert (answer.status_code, why in answer.json()["error"]) == (422, True), answer.text


@pytest.mark.parametrize(
    ("data", "bits"), [([1.0, 1.00390625, 1.01171875], [0x3F80, 0x3F80, 0x3F82]), ([-0.0], [0x8000])]
)
def test_bf16_in_json_is_rounded_to_even(served: Service, data: Any, bits: Any) -> None:
    answer = post(served, "identity-BF16", given("BF16", data)).json()
    (out,) = answer["outputs"]
    assert (np.array(out["data"], "<f4").view("<u4") >> 16).tolist() == bits
    digest = pynymph.digest.payload(np.array(bits, "<u2").tobytes()).hex()
    assert answer["parameters"]["input_digest.given"] == digest


def test_nested_data_and_raw_requests_are_accepted(served: Service) -> None:
    nested = {"name": "a", "datatype": "INT32", "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]}
    text = {"name": "b", "datatype": "BYTES", "shape": [2, 1], "data": [["x"], ["yz"]]}
    answer = post(served, "pair", {"inputs": [nested, text]}).json()
    outputs = {each["name"]: each for each in answer["outputs"]}
    assert outputs["a_same"]["data"] == [1, 2, 3, 4, 5, 6] and outputs["a_same"]["shape"] == [2, 3]
    assert outputs["b_same"]["data"] == ["x", "yz"]
    raw = post(served, "identity-INT32", bytes(range(8)), **{"Inference-Header-Content-Length": "0"})
    at = int(raw.headers["inference-header-content-length"])
    binary = {"Inference-Header-Content-Length": "0", "Content-Type": "application/json"}
    assert post(served, "identity-INT32", bytes(range(8)), **binary).status_code == 422
    assert raw.content[at:] == bytes(range(8)) and json.loads(raw.content[:at])["outputs"][0]["shape"] == [2]


@pytest.mark.parametrize(
    ("length", "body", "why"),
    [
        ("x", b"{}", "Inference-Header-Content-Length"),
        ("9", b"{}", "Inference-Header-Content-Length"),
        ("9" * 5000, b"{}", "Inference-Header-Content-Length"),  # Python makes no number of it
        ("2", b"{}", "inputs: Field required"),
        ("1", b"{}", "no JSON"),
        (None, json.dumps(given("INT8", None, [1])).encode(), "has to have data"),
        (None, json.dumps(given("INT9", [1])).encode(), "datatype"),
        (None, json.dumps(given("INT8", [1], [2])).encode(), "1 elements"),
        (None, json.dumps(given("INT8", [], [-1])).encode(), "shape"),
        (None, b'{"inputs": [], "surplus": 1}', "surplus"),
        (None, b'{"inputs": [], "model_name": "other"}', "the path says 'identity-INT8'"),
        (None, b'{"inputs": []}', "takes given"),
    ],
)
def test_malformed_requests_are_refused(served: Service, length: str | None, body: bytes, why: str) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    answer = post(served, "identity-INT8", body, **headers)
    assert (answer.status_code, why in answer.json()["error"]) == (422, True), answer.text


@pytest.mark.parametrize("size", [0, 2, 4, -1, 1 << 40])
def test_wrong_binary_sizes_are_refused(served: Service, size: int) -> None:
    tensor = {"name": "given", "datatype": "INT8", "shape": [3], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    answer = post(served, "identity-INT8", text + b"abc", **headers)
    assert (answer.status_code, "bytes" in answer.json()["error"]) == (422, True), answer.text


def test_infinity_in_json_is_refused(served: Service) -> None:
    tensor = {"name": "given", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    answer = post(served, "identity-FP32", text + np.full(1, np.inf, "<f4").tobytes(), **headers)
    assert (answer.status_code, "binary_data" in answer.json()["error"]) == (422, True), answer.text


def test_oversized_tensors_are_refused(served: Service) -> None:
    size = (8 << 20) + 1
    tensor = {"name": "given", "datatype": "INT8", "shape": [size], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    answer = post(served, "identity-INT8", text + bytes(size), **headers)
    assert (answer.status_code, "8388608 are the most" in answer.json()["error"]) == (413, True)


def test_broken_model_is_not_ready(served: Service) -> None:
    folder = put(served.folder.parent / "models/broken", {"model.onnx": b"junk"})
    try:
        with served.client() as client:
            answer = client.get("/v2/models/broken/ready")
            assert (answer.status_code, "can't be run" in answer.json()["error"]) == (503, True)
            assert client.get("/v2/models/nothing/ready").status_code == 404
            assert client.get("/v2/models/nothing").status_code == 404
        assert post(served, "broken", given("INT8", [1])).status_code == 409
    finally:
        for path in folder.iterdir():
            os.unlink(path)
        folder.rmdir()
