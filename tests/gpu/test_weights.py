# SPDX-License-Identifier: MIT
"""pynymph.weights on a GPU: real loaders, and faults in its memory."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from pynymph import signatures, weights
from pynymph.errors import ArgumentError

MiB = 1 << 20
MODULES = {"runai-model-streamer": "runai_model_streamer", "torch.load": "torch"}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        "embed": torch.randn(9000, 2049, dtype=torch.bfloat16),
        "layer.weight": torch.randn(4097, 4096, dtype=torch.float16),
        "layer.bias": torch.randn(4097),
        "norm": torch.ones(77, dtype=torch.bfloat16),
        "odd": torch.randint(0, 256, (12345,), dtype=torch.uint8),
        "fp8": torch.randn(33, 35).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture(scope="module")
def model(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    names = list(tensors)
    save_file({name: tensors[name] for name in names[:3]}, path / "a.safetensors")
    save_file({name: tensors[name] for name in names[3:]}, path / "b.safetensors")
    torch.save(tensors, path / "model.pt")
    return path


@pytest.fixture(scope="module")
def manifest(model: Path) -> weights.Manifest:
    return weights.manifest(model)


def test_gpu_and_cpu_make_the_same_manifest(
    tensors: dict[str, torch.Tensor], manifest: weights.Manifest, model: Path
) -> None:
    on_gpu = weights.manifest({name: tensor.cuda() for name, tensor in tensors.items()}, saved_as=model)
    on_cpu = weights.manifest(tensors)
    assert on_gpu == on_cpu
    for name, tensor in manifest.tensors.items():
        live = on_gpu.tensors[name]
        assert (live.dtype, live.shape, live.digest, live.nodes) == (
            tensor.dtype,
            tensor.shape,
            tensor.digest,
            tensor.nodes,
        )


@pytest.mark.parametrize("loader", weights.LOADERS)
def test_every_loader_is_verified_in_gpu_memory(
    model: Path, manifest: weights.Manifest, loader: str, tensors: dict[str, torch.Tensor]
) -> None:
    if importlib.util.find_spec(MODULES.get(loader, loader)) is None:
        pytest.skip(f"{loader} is not installed")
    path = model / "model.pt" if loader == "torch.load" else model
    options: dict[str, Any] = {"nogds": True} if loader == "fastsafetensors" else {}
    loaded = weights.load(path, manifest=manifest, loader=loader, device="cuda:0", **options)
    assert loaded.keys() == tensors.keys()
    assert all(tensor.is_cuda for tensor in loaded.values())
    # One bit in the GPU's memory.
    embed = loaded["embed"].view(torch.uint8).view(-1)
    embed[20 * MiB] ^= 8
    with pytest.raises(weights.WeightsError) as caught:
        weights.verify(loaded, manifest)
    assert [(w.name, w.ranges) for w in caught.value.report.wrong] == [("embed", ((16 * MiB, 32 * MiB),))]
    assert caught.value.report.where == "cuda:0"


def test_corrupted_shard_is_named(model: Path, manifest: weights.Manifest, tmp_path: Path) -> None:
    """As in vllm #53537: it loads without a word."""
    for shard in ("a", "b"):
        raw = bytearray((model / f"{shard}.safetensors").read_bytes())
        if shard == "a":
            raw[-100] ^= 1
        (tmp_path / f"{shard}.safetensors").write_bytes(raw)
    with pytest.raises(weights.WeightsError, match="differs in bytes"):
        weights.load(tmp_path, manifest=manifest)


def test_module_parameters_and_wrapper_tensors_are_verified() -> None:
    module = torch.nn.Linear(300, 200, device="cuda", dtype=torch.bfloat16)
    made = weights.manifest(module.state_dict())
    assert weights.verify(dict(module.named_parameters()), made).where == "cuda:0"

    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, data: torch.Tensor, scale: torch.Tensor) -> Any:
            made = torch.Tensor._make_wrapper_subclass(cls, data.shape, device=data.device)
            made.data_, made.scale = data, scale
            return made

        def __tensor_flatten__(self) -> Any:
            return ["data_", "scale"], None

        @classmethod
        def __torch_dispatch__(cls, *args: Any) -> Any:
            raise NotImplementedError

    wrapped = Wrapper(torch.ones(4, dtype=torch.int8, device="cuda"), torch.ones(1, device="cuda"))
    assert list(weights.manifest({"w": wrapped}).tensors) == ["w.data_", "w.scale", "w.__context__"]


def test_command_loads_and_verifies(model: Path, manifest: weights.Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "m.json")
    arguments = [sys.executable, "-m", "pynymph", "weights", "load", str(model), str(tmp_path / "m.json")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0 and "in the memory of cuda:0" in done.stdout, done.stderr


def test_digest_of_a_file_is_made_from_gpu_memory(
    tensors: dict[str, torch.Tensor], manifest: weights.Manifest, model: Path
) -> None:
    live = {name: tensor.cuda() for name, tensor in tensors.items()}
    live["odd"] = torch.stack([live["odd"], live["odd"]], 1)[:, 0]  # with gaps
    for name, file in manifest.files.items():
        raw = (model / name).read_bytes()
        assert weights.file_digest(file.header, live) == blake3(raw).digest()
        assert weights.file_digest(file.header, live, algorithm="sha256") == hashlib.sha256(raw).digest()
    live["fp8"].view(torch.uint8)[7, 7] ^= 1
    assert weights.file_digest(manifest.files["b.safetensors"].header, live) != blake3(raw).digest()
    live["odd"] = live["odd"].cpu()
    with pytest.raises(ArgumentError, match="odd is in host memory"):
        weights.file_digest(manifest.files["b.safetensors"].header, live)


@pytest.mark.parametrize("odd", [0, 1, 8])
def test_digest_of_a_large_file_begins_before_all_tensors_are_found(odd: int) -> None:
    """Above 1 GiB the GPU hashes the first tensors while the others are looked at."""
    whole = torch.empty(3 << 30, dtype=torch.uint8, device="cuda")
    whole.view(torch.int64).random_()
    sizes = [(300 << 20) + odd] * 6 + [0, 7, (200 << 20) + 3 * odd, 1024, 65]
    entries, live, at = {}, {}, 0
    rest = len(whole) - odd - sum(sizes)
    for i, (size, part) in enumerate(zip([*sizes, rest], whole[odd:].split([*sizes, rest]), strict=True)):
        if i == len(sizes):
            break
        entries[f"t{i}"] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        live[f"t{i}"], at = part, at + size
    text = json.dumps(entries).encode()
    header = len(text).to_bytes(8, "little") + text
    hasher = blake3(header, max_threads=blake3.AUTO)
    for part in live.values():
        hasher.update(part.cpu().numpy())
    for _ in range(2):
        assert weights.file_digest(header, live) == hasher.digest()
    live["t2"].view(-1)[77] ^= 1
    assert weights.file_digest(header, live) != hasher.digest()
    live["t2"].view(-1)[77] ^= 1
    with pytest.raises(ArgumentError, match="t9 is in host memory"):
        weights.file_digest(header, live | {"t9": live["t9"].cpu()})
    with pytest.raises(ArgumentError, match=r"t8 is U8 \[5\] instead"):
        weights.file_digest(header, live | {"t8": live["t8"][:5]})
    live["t3"] = torch.stack([live["t3"], live["t3"]], 1)[:, 0]  # with gaps
    assert weights.file_digest(header, live) == hasher.digest()


def test_a_signature_is_verified_in_gpu_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key",
        "pkey -in key -pubout -out public",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True)
    signatures.sign(model, tmp_path / "sig", key=tmp_path / "key")
    loaded, report = signatures.load_and_report(model, tmp_path / "sig", key=tmp_path / "public")
    assert report.ok and report.algorithms == ["blake3"] and all(each.is_cuda for each in loaded.values())

    def flipped(files: list[str], device: str) -> Any:
        loaded["odd"][1] ^= 4
        return loaded.items()

    monkeypatch.setitem(weights.LOADERS, "safetensors", flipped)
    with pytest.raises(signatures.SignatureError, match=r"b\.safetensors: differs in memory"):
        signatures.load(model, tmp_path / "sig", key=tmp_path / "public")
