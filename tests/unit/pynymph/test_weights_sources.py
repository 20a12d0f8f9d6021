# SPDX-License-Identifier: MIT
"""Manifests of files that are no safetensors: GGUF, torch.save(), npz, ONNX, and torch's DCP."""

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from blake3 import blake3
from pynymph_command import refused, run

import pynymph
from pynymph import weights
from pynymph.errors import ArgumentError, NymphError
from pynymph.weights.gguf_files import TYPES


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]],
    keys: bytes = b"",
    count: int = 0,
    alignment: int = 32,
    offsets: dict[str, int] | None = None,
) -> bytes:
    """A GGUF file, by its specification: type, shape as in C, and bytes of each tensor."""
    header, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + keys, b""
    for name, (kind, shape, raw) in tensors.items():
        at = (offsets or {}).get(name, len(data))
        header += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, at)
        data += raw + bytes(-len(raw) % alignment)
    return header + bytes(-len(header) % alignment) + data


RAW = random.Random(5).randbytes(4096)
TENSORS = {
    "token_embd.weight": (30, (3, 8), RAW[:48]),
    "blk.0.attn_q.weight": (2, (2, 64), RAW[:72]),
    "norm": (0, (5,), RAW[:20]),
    "scalar": (27, (), RAW[:8]),
}
KEYS = (
    string("general.name") + struct.pack("<I", 8) + string("tiny")
    + string("rope.theta") + struct.pack("<If", 6, 10000.0)
    + string("tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc")
    + string("scores") + struct.pack("<IIQ2f", 9, 6, 2, 1.0, 2.0)
)  # fmt: skip


def test_gguf_has_dtypes_shapes_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf(TENSORS, KEYS, 4))
    made = weights.manifest(path)
    assert {n: (t.dtype, t.shape, t.digest) for n, t in made.tensors.items()} == {
        "token_embd.weight": ("BF16", (3, 8), blake3(RAW[:48]).digest()),
        "blk.0.attn_q.weight": ("Q4_0", (2, 64), blake3(RAW[:72]).digest()),
        "norm": ("F32", (5,), blake3(RAW[:20]).digest()),
        "scalar": ("I64", (), blake3(RAW[:8]).digest()),
    }
    assert weights.verify(path, weights.Manifest.parse(made.json())).ok
    schema = Path(pynymph.__file__).with_name("weights.schema.json")
    jsonschema.validate(json.loads(made.json()), json.loads(schema.read_text()))
    path.write_bytes(gguf(TENSORS, KEYS.replace(struct.pack("<f", 10000.0), struct.pack("<f", 10001.0)), 4))
    with pytest.raises(weights.WeightsError, match=r"a\.gguf: its header differs"):
        weights.verify(path, made)
    flipped = bytearray(gguf(TENSORS, KEYS, 4))
    flipped[-1 - 24] ^= 1  # behind it is what fills up to the alignment
    path.write_bytes(flipped)
    with pytest.raises(weights.WeightsError, match="scalar: differs"):
        weights.verify(path, made)


def test_gguf_of_the_library_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    library = pytest.importorskip("gguf")
    sizes = {int(kind): (kind.name, *size) for kind, size in library.GGML_QUANT_SIZES.items()}
    assert sizes == TYPES
    path = tmp_path / "all.gguf"
    writer = library.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_custom_alignment(64)
    for name, (kind, elements, nbytes) in TYPES.items():
        del kind
        raw = np.frombuffer(RAW[: 3 * nbytes], np.uint8).reshape(3, nbytes)
        writer.add_tensor(str(name), raw, raw_shape=(3, nbytes), raw_dtype=library.GGMLQuantizationType(name))
        assert elements
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made = weights.manifest(path).tensors
    for tensor in library.GGUFReader(path).tensors:
        ours = made[tensor.name]
        assert ours.dtype == tensor.tensor_type.name
        assert ours.shape == tuple(int(size) for size in tensor.shape[::-1])
        assert (ours.nbytes, ours.digest) == (tensor.n_bytes, blake3(tensor.data.tobytes()).digest())
    assert len(made) == len(TYPES)


def test_a_gguf_tensor_is_that_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.randn(3, 8).bfloat16()
    raw = tensor.view(torch.uint8).numpy().tobytes()
    (tmp_path / "a.gguf").write_bytes(gguf({"w.weight": (30, (3, 8), raw)}))
    assert weights.match({"w.weight": tensor}, tmp_path / "a.gguf").ok
    assert weights.match({"w.weight": tensor.float()}, tmp_path / "a.gguf").of("cast") == ["w.weight"]


def test_damaged_gguf_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    whole = gguf(TENSORS, KEYS, 4)
    end = len(whole) - 24
    for length in (*range(8, 400, 7), *range(end - 60, end, 5)):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ArgumentError, match=r"a\.gguf is no GGUF file, or damaged: .*; get the file again"
        ):
            weights.manifest(path)
    huge = struct.pack("<Q", 1 << 60)
    one = (0, (5,), RAW[:20])
    cases = {
        "beyond its end": gguf({}, string("k") + struct.pack("<II", 9, 0) + huge, 1),
        "an array of": gguf({}, string("k") + struct.pack("<II", 9, 8) + huge, 1),
        "deep": gguf({}, string("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20, 1),
        "of type 99": gguf({"a": (99, (5,), b"")}),
        "value of type 77": gguf({}, string("k") + struct.pack("<I", 77), 1),
        "begins before the end of a": gguf({"a": one, "b": one}, offsets={"b": 0}),
        "bytes beyond its end": gguf({"a": one}, offsets={"a": 1 << 40}),
        "is not aligned": gguf({"a": one}, offsets={"a": 8}),
        "no blocks of Q4_0": gguf({"a": (2, (3, 16), RAW[:27])}),
        "5 dimensions": gguf({"a": (0, (1, 1, 1, 1, 1), RAW[:4])}),
        "its alignment is 0": gguf({}, string("general.alignment") + struct.pack("<II", 4, 0), 1),
        "its version is 9": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        "does not begin with GGUF": b"GGML" + bytes(40),
        "it has a twice": gguf({"a": one, "b": one}).replace(string("b"), string("a")),
    }
    for words, raw in cases.items():
        path.write_bytes(raw + bytes(64))
        with pytest.raises(ArgumentError, match=words):
            weights.manifest(path)


def test_a_name_in_two_files_is_no_model(tmp_path: Path) -> None:
    """A loader may take either, and one of them may be wrong."""
    one = {"a": (0, (5,), RAW[:20])}
    (tmp_path / "1.gguf").write_bytes(gguf(one))
    made = weights.manifest(tmp_path)
    (tmp_path / "0.gguf").write_bytes(gguf({"a": (0, (5,), RAW[20:40])}))
    with pytest.raises(ArgumentError, match=r"a stands in both 0\.gguf and 1\.gguf; give files of one"):
        weights.manifest(tmp_path)
    with pytest.raises(ArgumentError, match="a stands in both"):
        weights.verify(tmp_path, made)
    with pytest.raises(ArgumentError, match="a stands in both"):
        weights.match({}, tmp_path, made)


def test_the_command_takes_gguf(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for i in (1, 2):
        one = {f"{name}.{i}": each for name, each in TENSORS.items()}
        (tmp_path / f"model/m-0000{i}-of-00002.gguf").write_bytes(gguf(one))
    done = run("weights", "manifest", tmp_path / "model")
    assert done.returncode == 0 and "8 tensors" in done.stdout
    assert run("weights", "verify", tmp_path / "model", tmp_path / "model.weights.json").returncode == 0
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"")
    done = run("weights", "manifest", tmp_path / "model")
    refused(done, 2, "files of several kinds (*.gguf and pytorch_model*.bin); give those of one")


def test_torch_files_have_the_tensors_of_nested_dicts(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"a.weight": whole[:, 1:3], "b": torch.ones(2).bfloat16(), "turned": whole.T}
    for name, options in {"a.pt": {}, "b.bin": {"_use_new_zipfile_serialization": False}}.items():
        torch.save({"model": state, "steps": [torch.tensor(3)], "lr": 0.1}, tmp_path / name, **options)
        made = weights.manifest(tmp_path / name)
        assert set(made.tensors) == {"model.a.weight", "model.b", "model.turned", "steps.0"}
        assert made.tensors["model.a.weight"].digest == blake3(whole[:, 1:3].numpy().tobytes()).digest()
        live = {f"model.{key}": each for key, each in state.items()} | {"steps.0": torch.tensor(3)}
        assert weights.match(live, tmp_path / name).ok
        assert weights.verify(tmp_path / name, made).ok


class Run:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(1), "x": Run()}, "a.pt")
    np.savez("a.npz", x=np.array([Run()], object))
    Path("checkpoint").mkdir()
    Path("checkpoint/.metadata").write_bytes(pickle.dumps(Run()))
    for name in ("a.pt", "a.npz", "checkpoint"):
        with pytest.raises(ArgumentError, match="or damaged"):
            weights.manifest(name)
    dotted = b"\x80\x04\x8c,torch.distributed.checkpoint.metadata\x8c\x09os.system\x93\x8c\x09touch ran\x85R."
    dotted = dotted.replace(b"\x8c,", bytes([0x8C, len("torch.distributed.checkpoint.metadata")]))
    Path("checkpoint/.metadata").write_bytes(dotted)
    with pytest.raises(ArgumentError, match=r"names torch\.distributed\.checkpoint\.metadata\.os\.system"):
        weights.manifest("checkpoint")
    changes = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\nN}X\x01\0\0\0xK\x01s\x86b."
    Path("checkpoint/.metadata").write_bytes(changes)
    with pytest.raises(ArgumentError, match="its metadata changes a class"):
        weights.manifest("checkpoint")
    assert not Path("ran").exists() and not hasattr(torch.distributed.checkpoint.metadata.Metadata, "x")


def test_damaged_torch_files_are_one_error(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(100)}, path)
    whole = path.read_bytes()
    for raw in (b"", b"PK", whole[:-30], whole[:200], b"\x80\x02}q\x00.", RAW):
        path.write_bytes(raw)
        with pytest.raises(ArgumentError, match=r"a\.pt is no torch\.save file, or damaged: "):
            weights.manifest(path)
    torch.save({"lr": 0.1}, path)
    with pytest.raises(ArgumentError, match="it has no tensors"):
        weights.manifest(path)


def test_shards_of_torch_files_have_to_be_there(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    torch.save({"a": torch.ones(1)}, tmp_path / names[0])
    torch.save({}, tmp_path / "optimizer.pt")  # no weights
    with pytest.raises(NymphError, match=r"00002-of-00002\.bin is missing, which pytorch_model\.bin\.index"):
        weights.manifest(tmp_path)
    torch.save({"b": torch.ones(1)}, tmp_path / names[1])
    assert list(weights.manifest(tmp_path).tensors) == ["a", "b"]
    torch.save({"a": torch.ones(1)}, tmp_path / names[1])
    with pytest.raises(ArgumentError, match="a stands in both pytorch_model-00001"):
        weights.manifest(tmp_path)
    index.write_text("[]")
    with pytest.raises(ArgumentError, match="is no index of shards"):
        weights.manifest(tmp_path)


def test_what_is_not_installed_is_named_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library, name in {"torch": "a.pt", "onnx": "a.onnx", "numpy": "a.npz"}.items():
        (tmp_path / name).write_bytes(RAW)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(
            NymphError, match=rf"{name} can't be read without {library}: .*install it with pip"
        ):
            weights.manifest(tmp_path / name)
        monkeypatch.undo()


def test_npz_is_in_c_order_whatever_its_order_is(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "a.npz"
    np.savez(path, c=matrix, fortran=np.asfortranarray(matrix), scalar=np.int64(3), empty=np.zeros((0, 2)))
    made = weights.manifest(path)
    assert made.tensors["c"].digest == made.tensors["fortran"].digest == blake3(matrix.tobytes()).digest()
    assert {n: (t.dtype, t.shape) for n, t in made.tensors.items()} == {
        "c": ("F32", (3, 4)), "fortran": ("F32", (3, 4)), "scalar": ("I64", ()), "empty": ("F64", (0, 2)),
    }  # fmt: skip
    assert weights.verify({"c": matrix}, weights.Manifest({"c": made.tensors["c"]})).ok
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[0].header_offset + 200
    whole[at] ^= 1
    for raw in (whole, whole[:100], b"", RAW):
        path.write_bytes(raw)
        with pytest.raises(ArgumentError, match=r"a\.npz is no npz file, or damaged"):
            weights.manifest(path)


def test_onnx_has_initializers_constants_and_external_data(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper, proto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    matrix = np.arange(600, dtype=np.float32).reshape(20, 30)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", proto.INT64, [2], [3, 4])),
        helper.make_node("Identity", ["w"], ["y"]),
    ]
    typed = helper.make_tensor("typed", proto.FLOAT16, [2], [1.0, 2.0])
    raw = helper.make_tensor("half", proto.BFLOAT16, [2], b"abcd", raw=True)
    graph = helper.make_graph(
        nodes, "g", [], [helper.make_tensor_value_info("y", proto.FLOAT, [20, 30])],
        [numpy_helper.from_array(matrix, "w"), typed, raw],
    )  # fmt: skip
    path = tmp_path / "a.onnx"
    onnx.save_model(helper.make_model(graph), path, save_as_external_data=True, location="a.data")
    assert (tmp_path / "a.data").stat().st_size >= 2400
    made = weights.manifest(path)
    assert {n: (t.dtype, t.shape, t.digest) for n, t in made.tensors.items()} == {
        "w": ("F32", (20, 30), blake3(matrix.tobytes()).digest()),
        "typed": ("F16", (2,), blake3(np.array([1, 2], np.float16).tobytes()).digest()),
        "half": ("BF16", (2,), blake3(b"abcd").digest()),
        "c": ("I64", (2,), blake3(np.array([3, 4]).tobytes()).digest()),
    }
    data = bytearray((tmp_path / "a.data").read_bytes())
    data[5] ^= 1
    (tmp_path / "a.data").write_bytes(data)
    with pytest.raises(weights.WeightsError, match="w: differs"):
        weights.verify(path, made)
    for raw in (None, data[:100]):
        (tmp_path / "a.data").unlink(missing_ok=True)
        if raw is not None:
            (tmp_path / "a.data").write_bytes(raw)
        with pytest.raises(NymphError, match=r"a\.onnx"):
            weights.manifest(path)
    (tmp_path / "a.data").write_bytes(data)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a.data", b"/a.dat"))
    with pytest.raises(ArgumentError, match=r"a\.onnx is no ONNX file, or damaged"):
        weights.manifest(path)
    path.write_bytes(whole[:-20])
    with pytest.raises(ArgumentError, match=r"a\.onnx is no ONNX file, or damaged"):
        weights.manifest(path)
    names = helper.make_tensor("names", proto.STRING, [1], [b"a"])
    onnx.save_model(helper.make_model(helper.make_graph([], "g", [], [], [names])), path)
    with pytest.raises(ArgumentError, match="has strings as names"):
        weights.manifest(path)


SAVE = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, Replicate, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + folder + "/store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).reshape(5, 7)
state = {"rows": distribute_tensor(whole, mesh, [Shard(0)])}
state |= {"columns": distribute_tensor(whole, mesh, [Shard(1)])}
state |= {"half": distribute_tensor(whole.bfloat16(), mesh, [Replicate()]), "plain": torch.ones(3)}
dcp.save({"model": state, "step": 3}, checkpoint_id=folder + "/saved")
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # else torch's threads sometimes call std::terminate() at the end of the interpreter
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks."""
    pytest.importorskip("torch.distributed.tensor")
    folder = tmp_path_factory.mktemp("dcp")
    commands = [[sys.executable, "-c", SAVE, str(rank), str(folder)] for rank in range(2)]
    processes = [subprocess.Popen(each, stderr=subprocess.PIPE) for each in commands]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), errors
    return folder / "saved"


def test_a_checkpoint_of_two_ranks_has_whole_tensors(checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(35.0).reshape(5, 7)
    live = {f"model.{name}": whole for name in ("rows", "columns")}
    live |= {"model.half": whole.bfloat16(), "model.plain": torch.ones(3)}
    made = weights.manifest(checkpoint)
    assert {n: t.digest for n, t in made.tensors.items()} == {
        n: t.digest for n, t in weights.manifest(live).tensors.items()
    }
    assert weights.verify(checkpoint, made).ok and weights.match(live, checkpoint).ok
    assert weights.match({n: t.bfloat16() for n, t in live.items()}, checkpoint).ok


def test_damaged_checkpoints_are_one_error(checkpoint: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import metadata

    right = (checkpoint / ".metadata").read_bytes()
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    made = weights.manifest(checkpoint)
    for name in files:
        for raw in (None, b"", files[name][: len(files[name]) // 2]):
            for each, whole in files.items():
                (tmp_path / each).write_bytes(whole)
            (tmp_path / name).unlink() if raw is None else (tmp_path / name).write_bytes(raw)
            with pytest.raises(NymphError):
                weights.verify(tmp_path, made)
    for each, whole in files.items():
        (tmp_path / each).write_bytes(whole)

    def changed(change: Any) -> None:
        found = pickle.loads(right)
        change(found)
        stream = io.BytesIO()
        pickle.dump(found, stream)
        (tmp_path / ".metadata").write_bytes(stream.getvalue())

    changed(lambda found: found.state_dict_metadata["model.rows"].chunks.pop())
    with pytest.raises(ArgumentError, match=r"the parts of model\.rows have"):
        weights.manifest(tmp_path)

    def elsewhere(found: metadata.Metadata) -> None:
        next(iter(found.storage_data.values())).relative_path = "../x"

    changed(elsewhere)
    with pytest.raises(ArgumentError, match=r"names \.\./x, which is outside of the folder"):
        weights.manifest(tmp_path)
