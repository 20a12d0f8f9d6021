# SPDX-License-Identifier: MIT
"""Tensors: conversion between the Open Inference Protocol, NumPy and ONNX Runtime."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

# By the protocol's name: NumPy's (of BF16, which NumPy has not, the bits), and ONNX Runtime's.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
    "BYTES": np.dtype(object),
}
_LARGEST_DIMENSION = 1 << 31
_ONNX = {
    "bool": "BOOL", "float16": "FP16", "float": "FP32", "double": "FP64", "bfloat16": "BF16",
    "string": "BYTES",
    **{f"{kind.lower()}{bits}": f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}  # fmt: skip


class BadInput(Exception):
    """The request does not fit the model. The message names the input, and says what to give."""


@dataclass(frozen=True)
class Tensor:
    """Keep a tensor in the packing of the protocol.

    Attributes:
        datatype: name in the protocol, one of DATATYPES.
        data: bytes, little-endian and row-major. Each element of BYTES follows its length in 4 bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any

    def check_size(self) -> None:
        """Raise BadInput unless the number of bytes fits shape and datatype; BYTES can have any."""
        if self.datatype != "BYTES":
            wanted = math.prod(self.shape) * DATATYPES[self.datatype].itemsize
            _check(self.name, memoryview(self.data).nbytes, wanted, "bytes")

    def array(self) -> np.ndarray[Any, Any]:
        """View the data as a NumPy array; BYTES become an array of bytes. Raises BadInput."""
        self.check_size()
        if self.datatype == "BYTES":
            elements = unpack_bytes(self.name, self.data)
            _check(self.name, len(elements), math.prod(self.shape), "elements")
            array = np.empty(len(elements), object)
            array[:] = elements
            return array.reshape(self.shape)
        return np.frombuffer(self.data or b"", DATATYPES[self.datatype]).reshape(self.shape)


@dataclass(frozen=True)
class TensorSpec:
    """Describe an input or output of a model. A dimension of -1 can have any size."""

    name: str
    datatype: Annotated[str, Field(description="as the Open Inference Protocol calls it")]
    shape: Annotated[tuple[int, ...], Field(description="-1: any size")]

    @classmethod
    def of(cls, told: Any) -> TensorSpec:
        """Make a spec from ONNX Runtime's. Raises ValueError if the protocol has no name for the type."""
        kind = told.type.removeprefix("tensor(").removesuffix(")")
        if kind not in _ONNX:
            raise ValueError(f"{told.name} is a {told.type}, for which the protocol has no name")
        shape = tuple(each if isinstance(each, int) else -1 for each in told.shape)
        return cls(told.name, _ONNX[kind], shape)

    def check(self, given: Tensor) -> None:
        """Raise BadInput unless `given` fits."""
        if given.datatype != self.datatype:
            raise BadInput(f"input {self.name}: datatype {given.datatype}; the model takes {self.datatype}")
        fits = len(given.shape) == len(self.shape) and all(
            0 <= size <= _LARGEST_DIMENSION and wanted in (-1, size)
            for wanted, size in zip(self.shape, given.shape, strict=True)
        )
        if not fits:
            raise BadInput(
                f"input {self.name}: shape {list(given.shape)}; the model takes {list(self.shape)} (-1: any)"
            )


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """Pack elements of BYTES, each behind its length."""
    return b"".join(part for each in elements for part in (struct.pack("<I", len(each)), each))


def unpack_bytes(name: str, data: Any) -> list[bytes]:
    """Unpack elements of BYTES. Raises BadInput, which names the input."""
    with memoryview(data) as view:
        found, at = [], 0
        while at < len(view):
            if at + 4 > len(view):
                raise BadInput(f"input {name}: {len(view) - at} bytes are left where a length should be")
            (length,) = struct.unpack_from("<I", view, at)
            at += 4
            if at + length > len(view):
                raise BadInput(f"input {name}: an element of {length} bytes ends behind the data")
            found.append(bytes(view[at : at + length]))
            at += length
    return found


def packed(spec: TensorSpec, array: Any) -> Tensor:
    """Make a Tensor of a NumPy array that a network returned."""
    array = np.asarray(array)
    if spec.datatype == "BYTES":
        data = pack_bytes(
            [each if isinstance(each, bytes) else str(each).encode() for each in array.reshape(-1).tolist()]
        )
    else:
        data = np.ascontiguousarray(array, DATATYPES[spec.datatype]).tobytes()
    return Tensor(spec.name, spec.datatype, array.shape, data)


def _check(name: str, found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise BadInput(f"input {name}: {found} {what}; its shape and datatype make {wanted}")
