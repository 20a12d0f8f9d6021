# SPDX-License-Identifier: MIT
"""Small models for nymphd, and the folders they lie in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

import pynymph

WIDTH = 2048  # of what Magika's network sees
ENDLESS = ord("E")  # an input of kind magika that starts with it never ends
FAILING = ord("F")  # and one that starts with it fails
STUBBORN = ord("S")  # and with it, one operator takes minutes, and can't be told to stop


def put(folder: Path, files: dict[str, bytes], kind: str = "onnx") -> Path:
    """A model's folder, with its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    digests = {name: pynymph.digest.payload(content).hex() for name, content in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"kind": kind, "files": digests}))
    return folder


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any] | None = None
) -> bytes:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants or [])
    made: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made.SerializeToString()


def value(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def identity(kind: int) -> bytes:
    """Its output is its input, of any length."""
    nodes = [helper.make_node("Identity", ["given"], ["same"])]
    return model(nodes, [value("given", kind, ["n"])], [value("same", kind, ["n"])])


def scaled(file: str = "weights.bin", factor: float = 2) -> dict[str, bytes]:
    """Multiplies by a factor that lies in another file: the files."""
    weights = np.full((4, 4), factor, np.float32)
    constant = numpy_helper.from_array(weights, "weights")
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, told in (("location", file), ("offset", "0"), ("length", str(weights.nbytes))):
        entry = constant.external_data.add()
        entry.key, entry.value = key, told
    nodes = [helper.make_node("MatMul", ["given", "weights"], ["scaled"])]
    inputs, outputs = (
        [value("given", TensorProto.FLOAT, ["n", 4])],
        [value("scaled", TensorProto.FLOAT, ["n", 4])],
    )
    return {"model.onnx": model(nodes, inputs, outputs, [constant]), file: weights.tobytes()}


def like_magika(config: bytes) -> dict[str, bytes]:
    """A network with Magika's inputs and outputs; by its first byte it ends at once, late, or never."""
    labels = len(json.loads(config)["target_labels_space"])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["x"], ["y"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("x", TensorProto.FLOAT, [1]),
        ],
        [value("go_on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [1])],
    )
    constants = [
        numpy_helper.from_array(np.array(content), name)
        for name, content in {
            "zero": np.int64(0), "one": np.int64(1), "ever": np.int64(1 << 62), "far": np.int64(1 << 20),
            "endless": np.int32(ENDLESS), "failing": np.int32(FAILING), "true": np.bool_(True),
            "start": np.zeros(1, np.float32), "scores": np.eye(1, labels, dtype=np.float32),
            "stubborn": np.int32(STUBBORN), "many": np.int64(1 << 20), "most": np.array([1 << 20]),
            "sides": np.array([[0, 0, 0.5, 1]], np.float32), "along": np.array([[1, 0, 1, 0]], np.float32),
            "first_axis": np.array([0]), "second": np.array([1]), "first_two": np.array([0, 1]),
            "half": np.array([0.5], np.float32), "f_zero": np.float32(0),
        }.items()
    ]  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Flatten", ["bytes"], ["rows"], axis=0),
        node("Gather", ["rows", "zero"], ["row"], axis=0),
        node("Gather", ["row", "zero"], ["first"], axis=0),
        node("Equal", ["first", "endless"], ["is_endless"]),
        node("Where", ["is_endless", "ever", "one"], ["turns"]),
        node("Loop", ["turns", "true", "start"], ["looped"], body=body),
        node("Equal", ["first", "failing"], ["is_failing"]),
        node("Where", ["is_failing", "far", "zero"], ["at"]),
        # Of boxes in a row, each is compared with all before it.
        node("Equal", ["first", "stubborn"], ["is_stubborn"]),
        node("Where", ["is_stubborn", "many", "one"], ["count"]),
        node("Range", ["zero", "count", "one"], ["numbers"]),
        node("Cast", ["numbers"], ["places"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["places", "second"], ["column"]),
        node("MatMul", ["column", "along"], ["moved"]),
        node("Add", ["moved", "sides"], ["flat_boxes"]),
        node("Unsqueeze", ["flat_boxes", "first_axis"], ["boxes"]),
        node("Unsqueeze", ["places", "first_two"], ["weights"]),
        node("NonMaxSuppression", ["boxes", "weights", "most", "half"], ["chosen"]),
        node("ReduceSum", ["chosen"], ["sum"], keepdims=0),
        node("Cast", ["sum"], ["sum_f"], to=TensorProto.FLOAT),
        node("Mul", ["sum_f", "f_zero"], ["late"]),
        node("Add", ["looped", "late"], ["all"]),
        node("Gather", ["all", "at"], ["nothing"], axis=0),
        node("Add", ["scores", "nothing"], ["target_label"]),
    ]
    network = model(
        nodes,
        [value("bytes", TensorProto.INT32, ["n", WIDTH])],
        [value("target_label", TensorProto.FLOAT, [1, labels])],
        constants,
    )
    return {"model.onnx": network, "config.min.json": config}
