# SPDX-License-Identifier: MIT
"""pynymph.weights on the CPU: manifests of real safetensors files, verification, and the command."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from blake3 import blake3

import pynymph
from pynymph import digest, weights
from pynymph.errors import ArgumentError, NymphError

MiB = 1 << 20
SCHEMA = Path(pynymph.__file__).with_name("weights.schema.json")
KEY = bytes(range(32))


@pytest.mark.parametrize("key", [None, KEY])
def test_tree_of_the_cpu_has_the_official_root(key: bytes | None) -> None:
    data = random.Random(1).randbytes(MiB + 5)
    for nbytes in (0, 1, 1024, 1025, 5000, 16385, 262144, 262145, 300_000, len(data)):
        part = data[:nbytes]
        official = blake3(part, key=key).digest() if key else blake3(part).digest()
        for level in (0, 1, 4, 5, 8, 9, 14, 53):
            nodes = digest.tree(part, level, key=key)
            assert len(nodes) == 32 * max(1, -(-nbytes // (1024 << level)))
            assert digest.root(nodes, key=key) == official


def test_nodes_locate_every_fault() -> None:
    choose = random.Random(2)
    data = choose.randbytes(300_000)
    nodes = {level: digest.tree(data, level) for level in (0, 3, 7)}
    for _ in range(12):
        changed = bytearray(data)
        at = choose.randrange(len(data))
        changed[at] ^= 1 << choose.randrange(8)
        for level, before in nodes.items():
            span = 1024 << level
            found = list(digest.differing(digest.tree(changed, level), before, level, len(data)))
            assert found == [(at // span * span, min(at // span * span + span, len(data)))]


def test_tree_refuses_wrong_arguments() -> None:
    with pytest.raises(ArgumentError, match="levels"):
        digest.tree(b"", 54)
    with pytest.raises(ArgumentError, match="32 bytes"):
        digest.tree(b"", 1, key=b"short")


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], metadata: Any = None) -> None:
    """A safetensors file, by its specification."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())
    )


LARGE = random.Random(3).randbytes(40 * MiB)
TENSORS = {
    "large": ("BF16", [20, MiB], LARGE),
    "bias": ("F32", [3], b"abcdefghijkl"),
    "empty": ("F16", [0, 4], b""),
    "scalar": ("I64", [], b"12345678"),
    "half": ("F4", [2, 4], b"wxyz"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write(path, TENSORS, {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def manifest_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write(path, TENSORS, {"format": "pt"})
    return weights.manifest(path).json()


def test_manifest_describes_the_file(model: Path) -> None:
    made = weights.manifest(model)
    assert {n: (t.dtype, list(t.shape), t.digest) for n, t in made.tensors.items()} == {
        name: (dtype, shape, blake3(data).digest()) for name, (dtype, shape, data) in TENSORS.items()
    }
    assert made.tensors["large"].nodes == digest.tree(LARGE, 14)
    assert len(made.tensors["large"].nodes) == 32 * 3
    assert made.tensors["bias"].nodes == b""
    raw = model.read_bytes()
    header = raw[: 8 + int.from_bytes(raw[:8], "little")]
    assert made.files == {model.name: weights.File(len(raw), len(header), blake3(header).digest(), header)}


def test_manifest_follows_the_schema_and_loads_again(model: Path, tmp_path: Path) -> None:
    made = weights.manifest(model)
    made.save(tmp_path / "m.json")
    jsonschema.validate(json.loads((tmp_path / "m.json").read_text()), json.loads(SCHEMA.read_text()))
    assert weights.Manifest.load(tmp_path / "m.json") == made
    assert weights.verify(model, tmp_path / "m.json").ok


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda m: "no json", "no JSON"),
        (lambda m: "[" * 100_000, "no JSON"),
        (lambda m: [], "no manifest"),
        (lambda m: m | {"format": "other"}, "no manifest"),
        (lambda m: m | {"version": 2}, "version 2"),
        (lambda m: m | {"node_bytes": 1024}, "node_bytes"),
        (lambda m: {k: v for k, v in m.items() if k != "tensors"}, "'tensors' is missing"),
        (lambda m: m["tensors"]["bias"].update(digest="00") or m, "no digest"),
        (lambda m: m["tensors"]["bias"].update(nbytes=-1) or m, "no count"),
        (lambda m: m["tensors"]["bias"].update(shape=3) or m, "damaged"),
        (lambda m: m["tensors"]["bias"].update(file=[1]) or m, "no name of a file"),
        (lambda m: m["tensors"].update({"\ud800": m["tensors"]["bias"]}) or m, "damaged"),
        (lambda m: m["tensors"]["large"]["nodes"].pop() and m, "2 nodes"),
        (lambda m: m["tensors"]["large"]["nodes"].reverse() or m, "do not make its digest"),
    ],
)
def test_damaged_manifest_is_refused(manifest_json: str, change: Any, hint: str) -> None:
    whole = json.loads(manifest_json)
    changed = change(whole)
    with pytest.raises(ArgumentError, match=hint):
        weights.Manifest.parse(changed if isinstance(changed, str) else json.dumps(changed))


def test_flipped_bit_is_named_with_its_range(model: Path) -> None:
    made = weights.manifest(model)
    raw = bytearray(model.read_bytes())
    begin = made.files[model.name].header_nbytes
    raw[begin + 17 * MiB] ^= 4
    raw[begin + len(LARGE) + 1] ^= 1
    model.write_bytes(raw)
    with pytest.raises(weights.WeightsError) as caught:
        weights.verify(model, made)
    assert {wrong.name: wrong.ranges for wrong in caught.value.report.wrong} == {
        "large": ((16 * MiB, 32 * MiB),),
        "bias": ((0, 12),),
    }
    assert "large: differs in bytes 16777216 to 33554432" in str(caught.value)


def test_missing_renamed_and_new_tensors_are_reported(model: Path) -> None:
    made = weights.manifest(model)
    kept = {name: tensor for name, tensor in TENSORS.items() if name not in ("bias", "scalar")}
    write(model, {"other": TENSORS["bias"], **kept, "new": ("U8", [1], b"n")})
    with pytest.raises(weights.WeightsError) as caught:
        weights.verify(model, made)
    report = caught.value.report
    assert (report.missing, report.renamed, report.unexpected) == (["scalar"], {"bias": "other"}, ["new"])
    assert [wrong.problem for wrong in report.wrong] == ["its header differs"]


def test_other_dtype_or_shape_is_reported(model: Path) -> None:
    made = weights.manifest(model)
    write(
        model,
        TENSORS | {"bias": ("I32", [3], TENSORS["bias"][2]), "half": ("F4", [8], b"wxyz")},
        {"format": "pt"},
    )
    with pytest.raises(weights.WeightsError) as caught:
        weights.verify(model, made)
    assert [(w.name, w.problem) for w in caught.value.report.wrong[1:]] == [
        ("bias", "is I32 [3] instead of F32 [3]"),
        ("half", "is F4 [8] instead of F4 [2, 4]"),
    ]


def spoilt(raw: bytes, **changes: Any) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, entry in changes.items():
        header[name].update(entry)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda raw: b"", "0 bytes"),
        (lambda raw: raw[:7], "7 bytes"),
        (lambda raw: (1 << 60).to_bytes(8, "little") + raw[8:], "header would have"),
        (lambda raw: raw[:8] + b"\xff" + raw[9:], "damaged"),
        (lambda raw: raw[:-1], "its tensors have"),
        (lambda raw: raw + b"\0", "its tensors have"),
        (lambda raw: spoilt(raw, bias={"shape": [4]}), "not of its shape"),
        (lambda raw: spoilt(raw, bias={"shape": [-3]}), "no count"),
        (lambda raw: spoilt(raw, bias={"shape": [0, 10**400]}), "not of its shape"),
        # their product would take minutes
        (lambda raw: spoilt(raw, bias={"shape": [10**18] * 200_000}), "not of its shape"),
        (lambda raw: raw.replace(b'"bias"', b'"\\ud8"', 1), "damaged"),
        (lambda raw: spoilt(raw, scalar={"data_offsets": [0, 8]}), "does not begin"),
        (lambda raw: spoilt(raw, bias={"data_offsets": "ab"}), "no count"),
        (lambda raw: raw.replace(b'"empty"', b'"bias" '), "damaged"),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, change: Any, hint: str) -> None:
    path = tmp_path / "model.safetensors"
    write(path, {name: tensor for name, tensor in TENSORS.items() if name != "large"})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArgumentError, match=hint):
        weights.manifest(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"weight_map": 1}'])
def test_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ArgumentError, match="no index of shards"):
        weights.shards(tmp_path)


def test_manifest_of_a_folder_covers_its_shards(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"one": ("U8", [3], b"abc")})
    write(tmp_path / "b.safetensors", {"two": ("U8", [1], b"d")})
    made = weights.manifest(tmp_path)
    assert {n: t.file for n, t in made.tensors.items()} == {"one": "a.safetensors", "two": "b.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"one": "a.safetensors", "three": "c.safetensors"}}))
    with pytest.raises(NymphError, match=r"c\.safetensors is missing"):
        weights.manifest(tmp_path)
    index.write_text("{}")
    with pytest.raises(ArgumentError, match="no index"):
        weights.manifest(tmp_path)
    index.unlink()
    write(tmp_path / "b.safetensors", {"one": ("U8", [1], b"d")})
    with pytest.raises(ArgumentError, match="one stands in both"):
        weights.manifest(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NymphError, match="has no"):
        weights.manifest(tmp_path / "empty")
    with pytest.raises(NymphError, match="does not exist"):
        weights.manifest(tmp_path / "nothing")


def test_live_arrays_are_verified(model: Path) -> None:
    made = weights.manifest(model)
    arrays = {
        "bias": np.frombuffer(TENSORS["bias"][2], np.float32),
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.frombuffer(b"12345678", np.int64).reshape(()),
    }
    subset = weights.Manifest({name: made.tensors[name] for name in arrays})
    assert weights.verify(arrays, subset).ok
    # Whatever the strides are, the bytes are those in C order.
    matrix = np.arange(12, dtype=np.int16).reshape(3, 4)
    plain = weights.manifest({"m": matrix})
    assert weights.verify({"m": np.asfortranarray(matrix)}, plain).ok
    with pytest.raises(weights.WeightsError):
        weights.verify({"m": matrix + np.int16(1)}, plain)
    with pytest.raises(ArgumentError, match="give torch tensors"):
        weights.verify({"m": [1, 2]}, plain)


def test_wrongly_saved_tensors_are_reported(tmp_path: Path) -> None:
    """A library may write other bytes than the tensors have: safetensors 0.8.0 does of transposed arrays."""
    matrix = np.arange(6, dtype=np.int16).reshape(2, 3).T
    right, wrong = np.ascontiguousarray(matrix).tobytes(), matrix.T.tobytes()
    path = tmp_path / "saved.safetensors"
    write(path, {"m": ("I16", [3, 2], right)})
    assert weights.manifest({"m": matrix}, saved_as=path).tensors["m"].digest == blake3(right).digest()
    write(path, {"m": ("I16", [3, 2], wrong)})
    with pytest.raises(weights.WeightsError, match="m: differs"):
        weights.manifest({"m": matrix}, saved_as=path)


def test_load_names_missing_loaders(model: Path) -> None:
    made = weights.manifest(model)
    with pytest.raises(ArgumentError, match="known: safetensors, instanttensor"):
        weights.load(model, manifest=made, loader="guess")
    with pytest.raises(NymphError, match="fastsafetensors is not installed"):
        weights.load(model, manifest=made, loader="fastsafetensors")


def test_load_verifies_what_the_loader_returned(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
    arrays = {
        name: np.frombuffer(data, kinds[dtype]).reshape(shape).copy()
        for name, (dtype, shape, data) in TENSORS.items()
        if dtype in kinds
    }
    made = weights.manifest(model)
    made = weights.Manifest({name: made.tensors[name] for name in arrays})
    monkeypatch.setitem(weights.LOADERS, "torch.load", lambda files, device: iter(arrays.items()))
    assert weights.load(model, manifest=made, loader="torch.load") == arrays
    arrays["bias"].view(np.uint8)[5] ^= 1
    with pytest.raises(weights.WeightsError, match="bias"):
        weights.load(model, manifest=made, loader="torch.load")


def command(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pynymph", "weights", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_command_makes_and_verifies_a_manifest(model: Path, tmp_path: Path) -> None:
    made = command("manifest", model)
    assert made.returncode == 0 and "5 tensors" in made.stdout and "by the CPU" in made.stdout
    manifest = f"{model}.weights.json"
    done = command("verify", model, manifest)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(
        "as the manifest says: 5 tensors"
    )
    as_json = json.loads(command("verify", model, manifest, "--json").stdout)
    assert as_json["ok"] and as_json["where"] == "cpu" and as_json["tensors"] == 5

    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    wrong = command("verify", model, manifest)
    assert wrong.returncode == 1 and "half: differs in bytes 0 to 4\nNOT what" in wrong.stdout
    assert json.loads(command("verify", model, manifest, "--json").stdout)["wrong"][0]["name"] == "half"

    for arguments in (
        ("verify", model, tmp_path / "none.json"),
        ("manifest", tmp_path / "none"),
        ("manifest", model, "-o", tmp_path / "no" / "folder.json"),
        ("load", model, manifest, "--loader", "fastsafetensors"),
    ):
        failed = command(*arguments)
        assert failed.returncode == 2
        assert failed.stderr.startswith("pynymph: ") and failed.stderr.count("\n") == 1 and not failed.stdout
