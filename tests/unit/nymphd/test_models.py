# SPDX-License-Identifier: MIT
"""Models of nymphd: what runs of one is what its digest is of; a bad, late or changed one harms no other."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_models
import pytest
from magika import Magika
from nymphd.credentials import Doorkeeper
from nymphd.daemon import Nymphd
from nymphd.models import LOOK_EVERY_S
from nymphd.network import ModelRefused
from nymphd.settings import Settings
from nymphd.tensors import DATATYPES, BadInput, Tensor, pack_bytes
from nymphd_process import Reached, Service
from onnx import TensorProto
from test_answers import infer

import pynymph

Result = TypeVar("Result")
PATIENCE_S = 60
TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16, "BYTES": TensorProto.STRING,
}  # fmt: skip


def config_of_magika() -> bytes:
    return Magika()._model_config_path.read_bytes()


def with_parts(folder: Path, use: Callable[[Nymphd], Awaitable[Result]]) -> Result:
    """What `use` returns of the parts of a nymphd, whose models lie in that folder."""

    async def run() -> Result:
        settings = Settings(state_dir=folder / "state", models_dir=folder / "models", device="model:")
        (folder / "state").mkdir(exist_ok=True)
        nymphd = Nymphd(settings, Doorkeeper("x" * 43))
        try:
            await nymphd.models.look()
            return await use(nymphd)
        finally:
            nymphd.close()

    return asyncio.run(run())


def scale_of(answer: Any) -> float:
    return float(np.frombuffer(answer.outputs[0].data, np.float32)[0])


ONES = Tensor("given", "FP32", (1, 4), np.ones(4, np.float32).tobytes())


def test_model_digest_covers_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from the model's folder through the ring, not from where ONNX Runtime would look."""
    files = onnx_models.scaled()
    folder = onnx_models.put(tmp_path / "models/scaled", files)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights.bin").write_bytes(np.full(16, 9, np.float32).tobytes())
    monkeypatch.chdir(elsewhere)

    async def use(nymphd: Nymphd) -> None:
        first = await nymphd.inference.run("scaled", [ONES])
        assert scale_of(first) == 8
        lines = "".join(f"{pynymph.digest.payload(files[name]).hex()}  {name}\n" for name in sorted(files))
        assert first.model_digest == pynymph.digest.payload(lines.encode()).hex()
        # Written in place: what was verified goes on, until the change is seen and refused.
        with (folder / "weights.bin").open("r+b") as file:
            file.write(np.full(16, 3, np.float32).tobytes())
        again = await nymphd.inference.run("scaled", [ONES])
        assert (scale_of(again), again.model_digest) == (8, first.model_digest)
        await nymphd.models.look()
        with pytest.raises(ModelRefused, match=r"weights\.bin has BLAKE3"):
            await nymphd.inference.run("scaled", [ONES])
        onnx_models.put(folder, onnx_models.scaled(factor=3))
        other = await nymphd.inference.run("scaled", [ONES])
        assert scale_of(other) == 12 and other.model_digest != first.model_digest

    with_parts(tmp_path, use)


@pytest.mark.parametrize("name", ["weights.bin", "../weights.bin", "/etc/hostname", "sub/weights.bin"])
def test_data_files_outside_the_manifest_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    network = onnx_models.scaled(name)["model.onnx"]
    for folder in (tmp_path, tmp_path / "here", tmp_path / "here/sub"):
        folder.mkdir(exist_ok=True)
        (folder / "weights.bin").write_bytes(bytes(64))
    monkeypatch.chdir(tmp_path / "here")
    onnx_models.put(tmp_path / "models/scaled", {"model.onnx": network})

    async def use(nymphd: Nymphd) -> None:
        state = nymphd.models.state("scaled")
        assert (state.ready, state.state, "can't be run" in str(state.reason)) == (False, "refused", True)

    with_parts(tmp_path, use)


def test_files_outside_the_folder_of_the_model_are_refused(tmp_path: Path) -> None:
    """A link to outside of it is refused, and so is what is no file."""
    for kind in ("link", "folder"):
        folder = onnx_models.put(tmp_path / "models" / kind, onnx_models.scaled())
        (folder / "weights.bin").rename(tmp_path / "weights.bin")
        if kind == "link":
            (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
        else:
            (folder / "weights.bin").mkdir()

    async def use(nymphd: Nymphd) -> None:
        assert "a link to outside" in str(nymphd.models.state("link").reason)
        assert "Is a directory" in str(nymphd.models.state("folder").reason) or "no regular file" in str(
            nymphd.models.state("folder").reason
        )
        assert nymphd.readiness().ready

    with_parts(tmp_path, use)


def test_every_tensor_type_is_returned_unchanged(tmp_path: Path) -> None:
    for name, kind in TYPES.items():
        onnx_models.put(tmp_path / "models" / name, {"model.onnx": onnx_models.identity(kind)})

    async def use(nymphd: Nymphd) -> None:
        for name in TYPES:
            data = (
                pack_bytes([b"one", "zwölf".encode(), b""])
                if name == "BYTES"
                else np.arange(3).astype(DATATYPES[name]).tobytes()
            )
            given = Tensor("given", name, (3,), data)
            answer = await nymphd.inference.run(name, [given])
            assert answer.outputs == [Tensor("same", name, (3,), data)], name
            assert answer.input_digests == {"given": pynymph.digest.payload(data).hex()}
            (spec,) = nymphd.models.state(name).inputs
            assert (spec.name, spec.datatype, spec.shape) == ("given", name, (-1,))
            empty = await nymphd.inference.run(name, [Tensor("given", name, (0,), b"")])
            assert empty.outputs == [Tensor("same", name, (0,), b"")]
        wrong = {
            "shape": Tensor("given", "INT32", (3, 1), bytes(12)),
            "datatype INT64": Tensor("given", "INT64", (3,), bytes(24)),
            "11 bytes": Tensor("given", "INT32", (3,), bytes(11)),
            "takes given": Tensor("other", "INT32", (3,), bytes(12)),
        }
        for why, tensor in wrong.items():
            with pytest.raises(BadInput, match=why):
                await nymphd.inference.run("INT32", [tensor])
        for data in (b"\x05\0\0\0abc", b"\x01", b"\x01\0\0\0\xff"):
            with pytest.raises(BadInput, match="input given"):
                await nymphd.inference.run("BYTES", [Tensor("given", "BYTES", (1,), data)])
        assert nymphd.work.in_flight == 0

    with_parts(tmp_path, use)


def test_labels_are_tensors(tmp_path: Path) -> None:
    async def use(nymphd: Nymphd) -> None:
        inputs = [b"import os\n" * 50, b"<!DOCTYPE html><html><body></body></html>\n" * 20]
        given = Tensor("input", "BYTES", (2,), pack_bytes(inputs))
        answer = await nymphd.inference.run("magika", [given], ["label", "score"])
        assert answer.outputs[0] == Tensor("label", "BYTES", (2,), pack_bytes([b"python", b"html"]))
        assert (np.frombuffer(answer.outputs[1].data, np.float32) > 0.5).all()
        with pytest.raises(BadInput, match="output size"):
            await nymphd.inference.run("magika", [given], ["size"])

    with_parts(tmp_path, use)


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (b"import os\n" * 100, None),
        (b"\x55" * 4096, "1 distinct byte,"),
        (b" " * 5000 + b"import os\n" * 1000, "its first 4096 bytes are blank"),
        (b"x", "it has 1 bytes"),
    ],
)
def test_uninformative_input_is_noted(service: Service, data: bytes, note: str | None) -> None:
    with service.client() as client:
        said = infer(client, data).json()["output"]["note"]
    assert (said is None) if note is None else (said.startswith("low information") and note in said)


# --- one model, and the others ---


def add_moody(running: Reached, folder: Path) -> None:
    """Give it onnx_models.like_magika(), and wait until that is ready; made in `folder`."""
    made = onnx_models.put(folder / "moody", onnx_models.like_magika(config_of_magika()), "magika")
    running.put_model(made)
    with running.client() as client:
        wait_for_states(client, {"moody": "ready"})


def states(client: Any) -> dict[str, str]:
    return {each["name"]: each["state"] for each in client.get("/models").json()["models"]}


def wait_for_states(client: Any, wanted: dict[str, str]) -> None:
    until = time.monotonic() + PATIENCE_S * LOOK_EVERY_S
    while states(client).items() & wanted.items() != wanted.items():
        assert time.monotonic() < until, states(client)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """magika, and beside it a model that may never end, or fail, by its input."""
    folder = tmp_path_factory.mktemp("tenants")
    running = Service(folder / "state", infer_timeout_s=2)
    add_moody(running, folder)
    yield running
    assert running.stop() == 0


def in_flight(client: Any) -> int:
    return int(client.get("/status").json()["infer"]["in_flight"])


def test_endless_run_is_a_timeout_and_others_go_on(tenants: Reached) -> None:
    """504 after the deadline, while the other model answers; then all is as before."""
    endless, fine = b"E" + b"x" * 99, b"fine, " * 50
    with tenants.client() as client, ThreadPoolExecutor(16) as threads:
        assert infer(client, fine, model="moody").status_code == 200
        for profile in ("latency", "throughput", "efficient"):
            late = [threads.submit(infer, client, endless, model="moody", profile=profile) for _ in range(6)]
            others = 0
            while not all(each.done() for each in late):
                answer = infer(client, b"import os\n" * 50)
                assert answer.json()["output"]["label"] == "python"
                others += 1
            assert others >= 3
            for each in late:
                answer = each.result()
                assert (answer.status_code, "all it may take" in answer.json()["error"]) == (504, True)
                assert int(answer.headers["retry-after"]) > 0
            assert in_flight(client) == 0
            assert infer(client, fine, model="moody").status_code == 200
        assert states(client)["moody"] == "ready" and client.get("/readyz").status_code == 200


def test_failed_run_is_an_error_and_others_go_on(tenants: Reached) -> None:
    with tenants.client() as client:
        answer = infer(client, b"F" + b"x" * 99, model="moody")
        assert answer.status_code in (422, 500)
        assert "moody" in answer.json()["error"] and "out of" in answer.json()["error"]
        assert infer(client, b"fine, " * 50, model="moody").status_code == 200
        assert in_flight(client) == 0
    assert [entry for entry in tenants.log() if entry["level"] == "error"] == []


def test_stuck_runs_are_limited_to_two_per_model(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    """They keep threads, so a model gets two at most; others go on, and another in its place is good."""
    running = start_service(infer_timeout_s=8)
    add_moody(running, tmp_path)
    with running.client() as client, ThreadPoolExecutor(2) as threads:
        for answer in threads.map(lambda _: infer(client, b"S" * 99, model="moody"), range(2)):
            assert answer.status_code in (503, 504)
        wait_for_states(client, {"moody": "refused"})
        (moody,) = (each for each in client.get("/models").json()["models"] if each["name"] == "moody")
        assert "do not end though told to" in moody["reason"]
        assert infer(client, b"fine, " * 50, model="moody").status_code == 503
        assert infer(client, b"import os\n" * 50).json()["output"]["label"] == "python"
        assert in_flight(client) == 0 and client.get("/readyz").status_code == 200
        running.remove_model("moody")
        files = onnx_models.like_magika(config_of_magika())
        running.put_model(onnx_models.put(tmp_path / "again/moody", files | {"note": b"another"}, "magika"))
        wait_for_states(client, {"moody": "ready"})
        assert infer(client, b"fine, " * 50, model="moody").status_code == 200
    assert running.stop() == 0


def test_changed_models_are_noticed(tenants: Reached, tmp_path: Path) -> None:
    """Within a few seconds, though nobody asks for them; and readiness is none of it."""
    other = onnx_models.put(tmp_path / "other", onnx_models.like_magika(config_of_magika()), "magika")
    with tenants.client() as client:
        tenants.put_model(other)
        wait_for_states(client, {"other": "ready"})
        tenants.damage_model("other")
        wait_for_states(client, {"other": "refused"})
        assert client.get("/readyz").status_code == 200
        tenants.remove_model("other")
        while "other" in states(client):
            time.sleep(0.1)
        assert infer(client, b"x", model="other").status_code == 404
        ready = client.get("/readyz")
        assert (ready.status_code, json.loads(ready.text)["ready"]) == (200, True)
