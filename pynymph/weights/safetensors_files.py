# SPDX-License-Identifier: MIT
"""safetensors files: which a model has, their headers, and their tensors' bytes."""

from __future__ import annotations

import errno
import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynymph.errors import ArgumentError, NymphError
from pynymph.weights.manifests import counted, printable, read_file

_MOST_HEADER = 100_000_000
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class Place:
    """Describe a tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def damaged(name: str, why: str, kind: str = "safetensors") -> ArgumentError:
    return ArgumentError(errno.EINVAL, f"{name} is no {kind} file, or damaged: {why}; get the file again")


def places_of(file: str, header: bytes) -> dict[str, Place]:
    """Read the header of a safetensors file. The tensors lie one after the other, in the order returned."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("its header has a key twice")
        return found

    try:
        if len(header) - 8 != int.from_bytes(header[:8], "little"):
            raise ValueError(f"its header would have {int.from_bytes(header[:8], 'little')} bytes")
        entries = json.loads(header[8:].decode(), object_pairs_hook=once)
        entries.pop("__metadata__", None)
        spans = {}
        for name, entry in entries.items():
            begin, end = map(counted, entry["data_offsets"])
            span = Place(str(entry["dtype"]), tuple(map(counted, entry["shape"])), begin, end)
            bits = _BITS.get(span.dtype)
            if bits is not None and not _is_of_shape(span, bits):
                raise ValueError(f"{name} is not of its shape")
            spans[printable(name)] = span
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise damaged(file, str(error)) from None
    spans = dict(sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = 0
    for name, span in spans.items():
        if span.begin != at or span.end < at:
            raise damaged(file, f"{name} does not begin where the tensor before it ends")
        at = span.end
    return spans


def _is_of_shape(place: Place, bits: int) -> bool:
    """Tell whether a tensor has as many bytes as its shape makes of elements of so many bits."""
    wanted, found = 8 * (place.end - place.begin), bits
    if 0 in place.shape:
        return wanted == 0
    for size in place.shape:
        found *= size
        if found > wanted:  # a header may have millions of sizes, and their product takes hours
            return False
    return found == wanted


class File:
    """Map a file of tensors. A subclass reads its header.

    Args:
        path: path of the file.
        kind: what it should be, for errors.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.name, self.kind = path.name, kind
        try:
            with path.open("rb") as file:
                self.nbytes = os.fstat(file.fileno()).st_size
                if self.nbytes < 8:
                    raise self.damaged(f"it has {self.nbytes} bytes")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if isinstance(error, NymphError):
                raise
            raise NymphError(error.errno or errno.EIO, f"{path} can't be read: {error.strerror}") from error
        self.view = memoryview(self._map)
        self.header = self.view[:0]
        """The first bytes of the file, before the tensors."""
        self.spans: dict[str, Place] = {}
        """By name of a tensor: where it is, counted from the end of the header."""

    def damaged(self, why: str) -> ArgumentError:
        return damaged(self.name, why, self.kind)

    def bytes_of(self, name: str) -> Any:
        """Return the bytes of a tensor in C order."""
        span = self.spans[name]
        return self.view[len(self.header) + span.begin : len(self.header) + span.end]


class Mapped(File):
    """Map a safetensors file, and check its header."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "safetensors")
        length = int.from_bytes(self.view[:8], "little")
        if length > min(_MOST_HEADER, self.nbytes - 8):
            raise self.damaged(f"its header would have {length} bytes")
        self.header = self.view[: 8 + length]
        self.spans = places_of(self.name, bytes(self.header))
        at = max((span.end for span in self.spans.values()), default=0)
        if at != self.nbytes - len(self.header):
            raise self.damaged(f"its tensors have {at} bytes instead of {self.nbytes - len(self.header)}")


def read_header(path: str | os.PathLike[str]) -> bytes:
    """Read the header of a safetensors file: 8 bytes of length, and the JSON.

    Args:
        path: path of the file.

    Returns:
        The header, for file_digest().

    Raises:
        NymphError: the file can't be read; `errno` is that of the failure.
        ArgumentError: EINVAL, the file is damaged.
    """
    return bytes(Mapped(Path(path)).header)


def shards(path: str | os.PathLike[str]) -> list[Path]:
    """Find the safetensors files of a model.

    Args:
        path: a file, or a folder of files, possibly with an index.

    Returns:
        The paths, sorted.

    Raises:
        NymphError: ENOENT, there is no file, or a file that the index names is missing.
        ArgumentError: EINVAL, the index is damaged.
    """
    folder = Path(path)
    if not folder.exists():
        raise NymphError(errno.ENOENT, f"{path} does not exist; give a safetensors file or a folder of them")
    if not folder.is_dir():
        return [folder]
    found = sorted(folder.glob("*.safetensors"))
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            wanted = sorted(
                {folder / str(name) for name in json.loads(read_file(index))["weight_map"].values()}
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            message = f"{index} is no index of shards, or damaged; get the file again"
            raise ArgumentError(errno.EINVAL, message) from None
        for shard in wanted:
            if shard not in found:
                raise NymphError(errno.ENOENT, f"{shard} is missing, which {index.name} names; get the file")
        return wanted
    if not found:
        raise NymphError(errno.ENOENT, f"{path} has no *.safetensors file; give a folder that has some")
    return found
