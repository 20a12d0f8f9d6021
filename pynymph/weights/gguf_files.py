# SPDX-License-Identifier: MIT
"""GGUF files: their header and their tensors' bytes.

The library `gguf` reads them, too. It believes the lengths in a header: one that is beyond the file's end
keeps it busy until memory is full. So this is a reader of our own, which believes nothing.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from pynymph.weights.manifests import printable
from pynymph.weights.safetensors_files import File, Place

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type."""
_DEEPEST = 8
"""Arrays in arrays. llama.cpp reads none."""
_MOST_DIMENSIONS = 4
TYPES = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4)},
    **{27: ("I64", 1, 8), 28: ("F64", 1, 8), 30: ("BF16", 1, 2)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110)},
    **{12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292)},
    **{16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50)},
    **{20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136)},
    **{29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17)},
    **{40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18)},
}
"""By number of a tensor's type: its name, elements of a block, and bytes of a block."""


@dataclass
class _Reader:
    """Read a header, and never beyond the end of the file."""

    view: memoryview
    at: int = 0
    order: str = "<"

    def take(self, nbytes: int) -> memoryview:
        if nbytes > len(self.view) - self.at:
            raise ValueError(f"a length of {nbytes} at byte {self.at} is beyond its end")
        self.at += nbytes
        return self.view[self.at - nbytes : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack(self.order + code, self.take(struct.calcsize(code)))[0])

    def string(self) -> str:
        return printable(bytes(self.take(self.number("Q"))).decode())

    def skip(self, kind: int, depth: int = 0) -> None:
        """Go beyond a value."""
        if kind == _STRING:
            self.take(self.number("Q"))
        elif kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if depth == _DEEPEST:
                raise ValueError(f"it has arrays in arrays, {depth} deep")
            if inner in _SIZES:
                self.take(_SIZES[inner] * count)
                return
            if count > (len(self.view) - self.at) // 8:  # each has a length, at least
                raise ValueError(f"an array of {count} at byte {self.at} is beyond its end")
            for _ in range(count):
                self.skip(inner, depth + 1)
        else:
            if kind not in _SIZES:
                raise ValueError(f"it has a value of type {kind}")
            self.take(_SIZES[kind])


class Gguf(File):
    """Map a GGUF file, and check its header. Shapes are those of arrays in C order, as torch has them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "GGUF")
        try:
            self._read()
        except (ValueError, struct.error, OverflowError) as error:
            raise self.damaged(str(error)) from None

    def _read(self) -> None:
        reader = _Reader(self.view)
        if bytes(reader.take(4)) != _MAGIC:
            raise ValueError(f"it does not begin with {_MAGIC.decode()}")
        version = reader.number("I")
        if version and version & 0xFFFF == 0:
            reader.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, and this pynymph reads 2 and 3")
        tensors, keys = reader.number("Q"), reader.number("Q")
        alignment = 32
        for _ in range(keys):
            name, kind = reader.string(), reader.number("I")
            begin = reader.at
            reader.skip(kind)
            if name == "general.alignment":
                if kind != 4:
                    raise ValueError("its alignment is no 32-bit number")
                alignment = int(struct.unpack_from(reader.order + "I", self.view, begin)[0])
        if not alignment or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}")
        found: list[tuple[str, str, tuple[int, ...], int, int]] = []
        names = set()
        for _ in range(tensors):
            name = reader.string()
            if name in names:
                raise ValueError(f"it has {name} twice")
            names.add(name)
            dimensions = reader.number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"{name} has {dimensions} dimensions")
            shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
            kind, offset = reader.number("I"), reader.number("Q")
            if kind not in TYPES:
                raise ValueError(f"{name} is of type {kind}, which this pynymph does not know")
            dtype, elements, nbytes = TYPES[kind]
            count = math.prod(shape)
            if count % elements or (shape and shape[-1] % elements):
                raise ValueError(f"{name} has rows that are no blocks of {dtype}")
            if offset % alignment:
                raise ValueError(f"{name} is not aligned to {alignment} bytes")
            found.append((name, dtype, shape, offset, count // elements * nbytes))
        length = -(-reader.at // alignment) * alignment if found else reader.at
        if length > self.nbytes:
            raise ValueError("it ends in its header")
        self.header = self.view[:length]
        at, before = 0, ""
        for name, dtype, shape, offset, nbytes in sorted(found, key=lambda each: (each[3], each[4])):
            if offset < at:
                raise ValueError(f"{name} begins before the end of {before}")
            if offset + nbytes > self.nbytes - length:
                raise ValueError(
                    f"{name} ends {offset + nbytes - (self.nbytes - length)} bytes beyond its end"
                )
            at, before = offset + nbytes, name
            self.spans[name] = Place(dtype, shape, offset, offset + nbytes)
