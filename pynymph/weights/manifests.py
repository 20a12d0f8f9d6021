# SPDX-License-Identifier: MIT
"""Manifests of a model's tensors: what they are, as JSON, and what differs from them."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from pynymph import digest
from pynymph.errors import ArgumentError, NymphError, VerifyError

VERSION = 1
FORMAT = "pynymph.weights"
LEVEL = 14
"""Level of the nodes in a manifest. Each spans 16 MiB."""
NODE_BYTES = 1024 << LEVEL

Progress = Callable[[int, int], None]
"""Callback with the number of bytes done, and the number of all bytes."""


@dataclass(frozen=True)
class Tensor:
    """Describe a tensor in a manifest."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    digest: bytes
    nodes: bytes = b""
    """Nodes that span 16 MiB each, 32 bytes each; empty if there would be one."""
    file: str | None = None


@dataclass(frozen=True)
class File:
    """Describe a file of safetensors or GGUF in a manifest, beside its tensors."""

    nbytes: int
    header_nbytes: int
    """Bytes of the header, before the tensors."""
    header_digest: bytes
    header: bytes = b""
    """The header itself, for file_digest(); empty for GGUF, or if the manifest does not have it."""


@dataclass(frozen=True)
class Wrong:
    """Describe a tensor, or the header of a file, that differs from the manifest."""

    name: str
    problem: str
    ranges: tuple[tuple[int, int], ...] = ()
    """Ranges of bytes that differ, (first, end), in units of 16 MiB."""


@dataclass
class Report:
    """Keep the result of verify()."""

    where: str
    """Devices that made the digests, such as "cuda:0" or "cpu"."""
    tensors: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    wrong: list[Wrong] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Names of tensors that the manifest does not have. These are no error."""
    renamed: dict[str, str] = field(default_factory=dict)
    """By name in the manifest: the name of the tensor that has the same bytes; of a model, also those that it
    is made of."""
    cast: list[str] = field(default_factory=list)
    """Names of a model's tensors that were proven after a cast."""
    dequantized: list[str] = field(default_factory=list)
    """Names of a model's tensors that were proven to be the files' numbers times their scales."""
    unproven: dict[str, str] = field(default_factory=dict)
    """By name of a model's tensor that could not be proven: why."""
    computed: list[str] = field(default_factory=list)
    """Names of a model's buffers that no file has, such as rotary frequencies. These are no error."""

    @property
    def ok(self) -> bool:
        """Whether no tensor is missing, none differs from the manifest, and all of a model are proven."""
        return not self.wrong and not self.missing and not self.unproven


class WeightsError(VerifyError):
    """EBADMSG: weights are not what the manifest says; `report` has the details.

    Args:
        report: what verify() found.
    """

    def __init__(self, report: Report) -> None:
        lines = [f"{wrong.name}: {wrong.problem}{spans(wrong.ranges)}" for wrong in report.wrong]
        lines += [f"{name}: missing" for name in report.missing]
        faults = {wrong.name for wrong in report.wrong}
        lines += [f"{name}: not proven, {why}" for name, why in report.unproven.items() if name not in faults]
        some = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
        message = f"these weights are not what the manifest says: {some}; do not use them, get them again"
        super().__init__(errno.EBADMSG, message)
        self.report = report


def spans(ranges: Sequence[tuple[int, int]]) -> str:
    return f" in bytes {', '.join(f'{begin} to {end}' for begin, end in ranges)}" if ranges else ""


@dataclass
class Manifest:
    """List the tensors of a model by name, and its files."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest as JSON of weights.schema.json. It replaces an older file atomically.

        Args:
            path: path of the file.

        Raises:
            NymphError: the file can't be written; `errno` is that of the failure.
        """
        replace_file(path, self.json() + "\n")

    def json(self) -> str:
        """Format the manifest as JSON of weights.schema.json."""
        files = {}
        for name, f in self.files.items():
            header: dict[str, Any] = {"nbytes": f.header_nbytes, "digest": f.header_digest.hex()}
            if f.header:
                header["text"] = f.header[8:].decode()
            files[name] = {"nbytes": f.nbytes, "header": header}
        tensors = {}
        for name, tensor in self.tensors.items():
            entry: dict[str, Any] = {"file": tensor.file} if tensor.file is not None else {}
            entry |= {"dtype": tensor.dtype, "shape": list(tensor.shape), "nbytes": tensor.nbytes}
            entry["digest"] = tensor.digest.hex()
            if tensor.nodes:
                entry["nodes"] = [tensor.nodes[i : i + 32].hex() for i in range(0, len(tensor.nodes), 32)]
            tensors[name] = entry
        whole = {
            "format": FORMAT,
            "version": VERSION,
            "node_bytes": NODE_BYTES,
            "files": files,
            "tensors": tensors,
        }
        return json.dumps(whole, indent=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a manifest from a file.

        Args:
            path: path of the file.

        Returns:
            A Manifest.

        Raises:
            NymphError: the file can't be read; `errno` is that of the failure.
            ArgumentError: EINVAL, the file is no manifest, is damaged, or has an unknown version.
        """
        return cls.parse(read_file(path).decode("utf-8", "replace"), str(path))

    @classmethod
    def parse(cls, text: str, name: str = "the manifest") -> Manifest:
        """Read a manifest from JSON.

        Args:
            text: the JSON.
            name: name of the manifest, for errors.

        Returns:
            A Manifest.

        Raises:
            ArgumentError: EINVAL, as load() raises it.
        """
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(
                errno.EINVAL, f"{name} is no JSON ({error}); give a manifest of pynymph weights"
            ) from None
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            message = (
                f'{name} is no manifest: its "format" is not "{FORMAT}"; give a manifest of pynymph weights'
            )
            raise ArgumentError(errno.EINVAL, message)
        if whole.get("version") != VERSION:
            raise ArgumentError(
                errno.EINVAL,
                f"{name} has version {whole.get('version')!r}, and this pynymph reads {VERSION}; upgrade it",
            )
        try:
            if whole["node_bytes"] != NODE_BYTES:
                raise ValueError(f"node_bytes is not {NODE_BYTES}")
            files = {printable(key): _file(key, f) for key, f in whole["files"].items()}
            tensors = {printable(key): _entry(key, entry) for key, entry in whole["tensors"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArgumentError(errno.EINVAL, f"{name} is damaged: {why}; make it again") from None
        return cls(tensors, files)


def _entry(name: str, entry: Any) -> Tensor:
    nodes = b"".join(map(_hex, entry.get("nodes", [])))
    shape = tuple(map(counted, entry["shape"]))
    file = entry.get("file")
    if file is not None and not isinstance(file, str):
        raise ValueError(f"{file!r} is no name of a file")
    tensor = Tensor(str(entry["dtype"]), shape, counted(entry["nbytes"]), _hex(entry["digest"]), nodes, file)
    count = -(-tensor.nbytes // NODE_BYTES)
    if len(nodes) != (32 * count if count > 1 else 0):
        raise ValueError(f"{name} has {len(nodes) // 32} nodes")
    if nodes and digest.root(nodes) != tensor.digest:
        raise ValueError(f"the nodes of {name} do not make its digest")
    return tensor


def _file(name: str, entry: Any) -> File:
    described = entry["header"]
    file = File(counted(entry["nbytes"]), counted(described["nbytes"]), _hex(described["digest"]))
    if "text" not in described:
        return file
    text = described["text"].encode()
    header = len(text).to_bytes(8, "little") + text
    if len(header) != file.header_nbytes or blake3(header).digest() != file.header_digest:
        raise ValueError(f"the header of {name} is not that of its digest")
    return replace(file, header=header)


def printable(name: str) -> str:
    """Return a name. Raises ValueError for half a character, which JSON can have and nothing can print."""
    name.encode()
    return name


def counted(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _hex(value: Any) -> bytes:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{value!r} is no digest")
    return bytes.fromhex(value)


def replace_file(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write a file. It replaces an older file atomically.

    Args:
        path: path of the file.
        data: text, or bytes.

    Raises:
        NymphError: the file can't be written; `errno` is that of the failure.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_bytes(data if isinstance(data, bytes) else data.encode())
        os.replace(beside, target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise NymphError(error.errno or errno.EIO, f"{path} can't be written: {error.strerror}") from error


def read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise NymphError(error.errno or errno.EIO, f"{path} can't be read: {error.strerror}") from error
