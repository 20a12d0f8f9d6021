# SPDX-License-Identifier: MIT
"""Manifests of a model's weights, and verification where the weights are used.

>>> manifest = weights.manifest("model/")                      # once, of files that are known to be right
>>> manifest.save("model.weights.json")
>>> tensors = weights.load("model/", manifest="model.weights.json", device="cuda:0")   # or a WeightsError

A manifest has the dtype, the shape and the BLAKE3 digest of each tensor, and the nodes of its BLAKE3 tree
that span 16 MiB each, which locate a fault. The GPU hashes tensors in its memory, and the CPU all others.

The module is long because manifests, files and live tensors are compared with each other by private types.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import mmap
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

_MOST_HEADER = 100_000_000
_PART = 64 << 20
"""Bytes of a tensor that are in host memory at once if the CPU hashes it."""
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_NAMES = {
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{"bool": "BOOL", "bfloat16": "BF16", "complex64": "C64", "float4_e2m1fn_x2": "F4"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"},
    **{"float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ"},
}
"""Names in safetensors of the dtypes of torch and NumPy."""

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
    """Describe a safetensors file in a manifest, beside its tensors."""

    nbytes: int
    header_nbytes: int
    """Bytes of the header, with the 8 bytes of its length."""
    header_digest: bytes
    header: bytes = b""
    """The header itself, for file_digest(); empty if the manifest does not have it."""


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
    """By name in the manifest: the name of the tensor that has the same bytes."""

    @property
    def ok(self) -> bool:
        """Whether no tensor is missing, and none differs from the manifest."""
        return not self.wrong and not self.missing


class WeightsError(VerifyError):
    """EBADMSG: weights are not what the manifest says; `report` has the details.

    Args:
        report: what verify() found.
    """

    def __init__(self, report: Report) -> None:
        lines = [f"{wrong.name}: {wrong.problem}{spans(wrong.ranges)}" for wrong in report.wrong]
        lines += [f"{name}: missing" for name in report.missing]
        some = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
        message = f"these weights are not what the manifest says: {some}; do not use them, get them again"
        super().__init__(errno.EBADMSG, message)
        self.report = report


def spans(ranges: Sequence[tuple[int, int]]) -> str:
    return f" in bytes {', '.join(f'{begin} to {end}' for begin, end in ranges)}" if ranges else ""


# ---- manifests ----


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
        return cls.parse(_read(path).decode("utf-8", "replace"), str(path))

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
            files = {_name(key): _file(key, f) for key, f in whole["files"].items()}
            tensors = {_name(key): _entry(key, entry) for key, entry in whole["tensors"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArgumentError(errno.EINVAL, f"{name} is damaged: {why}; make it again") from None
        return cls(tensors, files)


def _entry(name: str, entry: Any) -> Tensor:
    nodes = b"".join(map(_hex, entry.get("nodes", [])))
    shape = tuple(map(_count, entry["shape"]))
    file = entry.get("file")
    if file is not None and not isinstance(file, str):
        raise ValueError(f"{file!r} is no name of a file")
    tensor = Tensor(
        str(entry["dtype"]), shape, _count(entry["nbytes"]), _hex(entry["digest"]), nodes, file
    )
    count = -(-tensor.nbytes // NODE_BYTES)
    if len(nodes) != (32 * count if count > 1 else 0):
        raise ValueError(f"{name} has {len(nodes) // 32} nodes")
    if nodes and digest.root(nodes) != tensor.digest:
        raise ValueError(f"the nodes of {name} do not make its digest")
    return tensor


def _file(name: str, entry: Any) -> File:
    described = entry["header"]
    file = File(_count(entry["nbytes"]), _count(described["nbytes"]), _hex(described["digest"]))
    if "text" not in described:
        return file
    text = described["text"].encode()
    header = len(text).to_bytes(8, "little") + text
    if len(header) != file.header_nbytes or blake3(header).digest() != file.header_digest:
        raise ValueError(f"the header of {name} is not that of its digest")
    return replace(file, header=header)


def _name(value: str) -> str:
    value.encode()  # JSON can have halves of characters, which nothing can print: a ValueError
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _hex(value: Any) -> bytes:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{value!r} is no digest")
    return bytes.fromhex(value)


def replace_file(path: str | os.PathLike[str], text: str) -> None:
    """Write a file. It replaces an older file atomically.

    Args:
        path: path of the file.
        text: the text.

    Raises:
        NymphError: the file can't be written; `errno` is that of the failure.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise NymphError(error.errno or errno.EIO, f"{path} can't be written: {error.strerror}") from error


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise NymphError(error.errno or errno.EIO, f"{path} can't be read: {error.strerror}") from error


# ---- safetensors files ----


@dataclass(frozen=True)
class _Span:
    """Describe a tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _bad(name: str, why: str) -> ArgumentError:
    return ArgumentError(
        errno.EINVAL, f"{name} is no safetensors file, or damaged: {why}; get the file again"
    )


def _spans_of(file: str, header: bytes) -> dict[str, _Span]:
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
            begin, end = map(_count, entry["data_offsets"])
            span = _Span(str(entry["dtype"]), tuple(map(_count, entry["shape"])), begin, end)
            bits = _BITS.get(span.dtype)
            if bits is not None and not _is_of_shape(span, bits):
                raise ValueError(f"{name} is not of its shape")
            spans[_name(name)] = span
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _bad(file, str(error)) from None
    spans = dict(sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = 0
    for name, span in spans.items():
        if span.begin != at or span.end < at:
            raise _bad(file, f"{name} does not begin where the tensor before it ends")
        at = span.end
    return spans


def _is_of_shape(span: _Span, bits: int) -> bool:
    """Tell whether a tensor has as many bytes as its shape makes of elements of so many bits."""
    wanted, found = 8 * (span.end - span.begin), bits
    if 0 in span.shape:
        return wanted == 0
    for size in span.shape:
        found *= size
        if found > wanted:  # a header may have millions of sizes, and their product takes hours
            return False
    return found == wanted


class _Mapped:
    """Map a safetensors file, and check its header."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            with path.open("rb") as file:
                self.nbytes = os.fstat(file.fileno()).st_size
                if self.nbytes < 8:
                    raise self._bad(f"it has {self.nbytes} bytes")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if isinstance(error, NymphError):
                raise
            raise NymphError(error.errno or errno.EIO, f"{path} can't be read: {error.strerror}") from error
        self.view = memoryview(self._map)
        length = int.from_bytes(self.view[:8], "little")
        if length > min(_MOST_HEADER, self.nbytes - 8):
            raise self._bad(f"its header would have {length} bytes")
        self.header = self.view[: 8 + length]
        self.spans = _spans_of(self.name, bytes(self.header))
        at = max((span.end for span in self.spans.values()), default=0)
        if at != self.nbytes - len(self.header):
            raise self._bad(f"its tensors have {at} bytes instead of {self.nbytes - len(self.header)}")

    def _bad(self, why: str) -> ArgumentError:
        return _bad(self.name, why)

    def bytes_of(self, name: str) -> memoryview:
        span = self.spans[name]
        return self.view[len(self.header) + span.begin : len(self.header) + span.end]


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
    return bytes(_Mapped(Path(path)).header)


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
            wanted = sorted({folder / str(name) for name in json.loads(_read(index))["weight_map"].values()})
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


# ---- bytes of tensors ----


@dataclass(frozen=True)
class _Bytes:
    """Keep a tensor's dtype, shape, and bytes in C order, in host memory or as an array for pynymph.cuda."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    host: Any = None
    device: Any = None


def _inner(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield tensors by name. A wrapper tensor, such as torchao's, yields its parts under longer names."""
    for name, tensor in tensors.items():
        if hasattr(type(tensor), "__tensor_flatten__"):
            parts, _ = tensor.__tensor_flatten__()
            yield from _inner({f"{name}.{part}": getattr(tensor, part) for part in parts})
        else:
            yield name, tensor


def _bytes_of(name: str, tensor: Any) -> _Bytes:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        plain = tensor.detach()
        if plain.layout is not torch.strided or plain.is_quantized:
            raise ArgumentError(
                errno.EINVAL, f"{name} is sparse or quantized; give the tensors that it is made of"
            )
        dtype = _NAMES.get(str(plain.dtype).removeprefix("torch."), str(plain.dtype).removeprefix("torch."))
        shape = tuple(plain.shape)
        if dtype == "F4" and shape:
            shape = (*shape[:-1], 2 * shape[-1])
        nbytes = plain.numel() * plain.element_size()
        if plain.device.type == "cuda":
            return _Bytes(dtype, shape, nbytes, device=plain)
        if plain.device.type != "cpu":
            raise ArgumentError(
                errno.EINVAL, f"{name} is on {plain.device}; give weights on a GPU of NVIDIA or the CPU"
            )
        plain = plain.resolve_conj().resolve_neg()
        if not plain.is_contiguous():
            plain = plain.clone(memory_format=torch.contiguous_format)
        octets = (ctypes.c_ubyte * nbytes).from_address(plain.data_ptr()) if nbytes else b""
        # The view keeps the array, and the array keeps the tensor.
        if nbytes:
            octets.tensor = plain  # type: ignore[union-attr]
        return _Bytes(dtype, shape, nbytes, host=memoryview(octets).cast("B"))
    if hasattr(tensor, "__array_interface__"):
        import numpy as np

        array = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        dtype = _NAMES.get(str(tensor.dtype), str(tensor.dtype))
        return _Bytes(dtype, tuple(tensor.shape), array.nbytes, host=memoryview(array.data))
    if hasattr(tensor, "__cuda_array_interface__"):
        interface = tensor.__cuda_array_interface__
        shape = tuple(interface["shape"])
        nbytes = math.prod(shape) * int(interface["typestr"][2:])
        dtype = str(getattr(tensor, "dtype", interface["typestr"]))
        return _Bytes(_NAMES.get(dtype, dtype), shape, nbytes, device=tensor)
    raise ArgumentError(
        errno.EINVAL, f"{name} is a {type(tensor).__qualname__}; give torch tensors or arrays"
    )


def _digests(
    found: Mapping[str, _Bytes], *, nodes: bool, progress: Progress | None = None
) -> dict[str, tuple[bytes, bytes]]:
    """Make the digest and the nodes of each tensor on the device that has its bytes."""
    total, done = sum(each.nbytes for each in found.values()), 0

    def tell(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    made = {}
    on_gpu = {name: each for name, each in found.items() if each.device is not None}
    if on_gpu:
        from pynymph import cuda

        at_once = {name: each for name, each in on_gpu.items() if not nodes or each.nbytes <= NODE_BYTES}
        digests = cuda.digest_many([each.device for each in at_once.values()])
        made = {name: (value, b"") for name, value in zip(at_once, digests, strict=True)}
        tell(sum(each.nbytes for each in at_once.values()))
        for name in on_gpu.keys() - at_once.keys():
            tree = cuda.tree(on_gpu[name].device, LEVEL)
            made[name] = digest.root(tree), tree
            tell(on_gpu[name].nbytes)
    for name, each in found.items():
        if each.device is None:
            tree = digest.tree(each.host, LEVEL)
            made[name] = digest.root(tree), tree if len(tree) > 32 else b""
            tell(each.nbytes)
    return made


# ---- public functions ----


def manifest(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    saved_as: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Make the manifest of a model.

    Args:
        source: a safetensors file, a folder of them, or tensors by name on GPUs or the CPU (a state_dict).
        saved_as: files that the tensors were saved to; their bytes are compared with the tensors.
        progress: callback with the bytes done and all bytes.

    Returns:
        A Manifest.

    Raises:
        NymphError: a file can't be read, or there is no GPU.
        ArgumentError: EINVAL, a file is damaged, two files have one name, or a value is no tensor.
        WeightsError: EBADMSG, the saved bytes differ from the tensors.
    """
    if isinstance(source, Mapping):
        live = {name: _bytes_of(name, tensor) for name, tensor in _inner(source)}
        made = _digests(live, nodes=True, progress=progress)
        result = Manifest({n: Tensor(b.dtype, b.shape, b.nbytes, *made[n]) for n, b in live.items()})
        if saved_as is not None:
            saved = {
                name: _Bytes(span.dtype, span.shape, span.end - span.begin, host=file.bytes_of(name))
                for file in map(_Mapped, shards(saved_as))
                for name, span in file.spans.items()
            }
            # Tensors that share memory are saved once, under any one of their names.
            names = result.tensors.keys() & saved.keys()
            compared = Manifest({name: result.tensors[name] for name in names})
            _compare(compared, {name: saved[name] for name in names}, "cpu", None)
        return result
    if saved_as is not None:
        raise ArgumentError(errno.EINVAL, "saved_as is for tensors, and source is files; leave out saved_as")
    result = Manifest()
    files = [_Mapped(path) for path in shards(source)]
    found: dict[str, _Bytes] = {}
    where: dict[str, str] = {}
    for file in files:
        header = bytes(file.header)
        result.files[file.name] = File(file.nbytes, len(header), blake3(header).digest(), header)
        for name, span in file.spans.items():
            if name in found:
                message = f"{name} stands in both {where[name]} and {file.name}; give files of one model"
                raise ArgumentError(errno.EINVAL, message)
            found[name] = _Bytes(span.dtype, span.shape, span.end - span.begin, host=file.bytes_of(name))
            where[name] = file.name
    made = _digests(found, nodes=True, progress=progress)
    result.tensors = {n: Tensor(b.dtype, b.shape, b.nbytes, *made[n], where[n]) for n, b in found.items()}
    return result


def verify(
    source: str | os.PathLike[str] | Mapping[str, Any],
    manifest: Manifest | str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Report:
    """Verify tensors in memory, or files, against a manifest.

    A tensor that has another name than in the manifest is found by its digest.

    Args:
        source: tensors by name, or a safetensors file or a folder of them.
        manifest: a Manifest, or the path of one.
        progress: callback with the bytes done and all bytes.

    Returns:
        A Report without faults.

    Raises:
        WeightsError: EBADMSG, tensors are missing or differ; `report` says which and where.
        ArgumentError: as manifest() raises it.
        NymphError: as manifest() raises it.
    """
    wanted = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    if isinstance(source, Mapping):
        found = {name: _bytes_of(name, tensor) for name, tensor in _inner(source)}
        places = sorted({_place(each) for each in found.values()})
        return _compare(wanted, found, " and ".join(places) or "cpu", progress)
    files = [_Mapped(path) for path in shards(source)]
    found = {
        name: _Bytes(span.dtype, span.shape, span.end - span.begin, host=file.bytes_of(name))
        for file in files
        for name, span in file.spans.items()
    }
    headers = []
    for file in files:
        expected = wanted.files.get(file.name)
        if expected is not None and digest.payload(file.header) != expected.header_digest:
            headers.append(Wrong(file.name, "its header differs"))
    return _compare(wanted, found, "cpu", progress, headers)


def _place(each: _Bytes) -> str:
    return "cpu" if each.device is None else str(getattr(each.device, "device", "cuda"))


def _compare(
    wanted: Manifest,
    found: Mapping[str, _Bytes],
    where: str,
    progress: Progress | None,
    wrong: Iterable[Wrong] = (),
) -> Report:
    began = time.monotonic()
    report = Report(where, wrong=list(wrong))
    made = _digests(found, nodes=False, progress=progress)
    spare = {name for name in found if name not in wanted.tensors}
    by_digest = {(found[name].nbytes, made[name][0]): name for name in sorted(spare, reverse=True)}
    for name, tensor in wanted.tensors.items():
        report.tensors += 1
        report.nbytes += tensor.nbytes
        live = found.get(name)
        if live is None:
            other = by_digest.get((tensor.nbytes, tensor.digest))
            if other is None:
                report.missing.append(name)
            else:
                report.renamed[name] = other
                spare.discard(other)
        elif (live.dtype, live.shape) != (tensor.dtype, tensor.shape):
            is_now, should = f"{live.dtype} {list(live.shape)}", f"{tensor.dtype} {list(tensor.shape)}"
            report.wrong.append(Wrong(name, f"is {is_now} instead of {should}"))
        elif made[name][0] != tensor.digest:
            report.wrong.append(Wrong(name, "differs", _where(live, tensor)))
    report.unexpected = sorted(spare)
    report.seconds = time.monotonic() - began
    if not report.ok:
        raise WeightsError(report)
    return report


def _where(live: _Bytes, tensor: Tensor) -> tuple[tuple[int, int], ...]:
    if not tensor.nodes:
        return ((0, tensor.nbytes),)
    if live.device is not None:
        from pynymph import cuda

        nodes = cuda.tree(live.device, LEVEL)
    else:
        nodes = digest.tree(live.host, LEVEL)
    return tuple(digest.differing(nodes, tensor.nodes, LEVEL, tensor.nbytes))


def file_digest(header: bytes, tensors: Mapping[str, Any], *, algorithm: str = "blake3") -> bytes:
    """Make the digest of a whole safetensors file from its header, and from tensors in memory.

    The file is not read. The result proves the tensors in memory if somebody published or signed the file's
    digest: it is that of `b3sum`, or of `sha256sum`.

    Args:
        header: the file's first bytes: 8 of length, and the JSON; `Manifest.files[name].header` has them.
        tensors: tensors by name, on one GPU or on the CPU. They may have more names than the file.
        algorithm: "blake3", made by the GPU of tensors in its memory; or "sha256", made by the CPU, of bytes
            that are copied back from a GPU.

    Returns:
        The digest, 32 bytes.

    Raises:
        ArgumentError: EINVAL, the header is damaged, a tensor of it is missing, or is of another dtype or
            shape.
        NymphError: there is no GPU.
    """
    if algorithm not in ("blake3", "sha256"):
        raise ArgumentError(errno.EINVAL, f"there is no {algorithm!r} of a file; give blake3 or sha256")
    spans = _spans_of("the header's file", header)
    if missing := [name for name in spans if name not in tensors]:
        raise ArgumentError(errno.EINVAL, f"{missing[0]} is missing; give all tensors of the header")
    live = {name: _bytes_of(name, tensors[name]) for name in spans}
    for name, span in spans.items():
        if (live[name].dtype, live[name].shape) != (span.dtype, span.shape):
            is_now, should = (
                f"{live[name].dtype} {list(live[name].shape)}",
                f"{span.dtype} {list(span.shape)}",
            )
            raise ArgumentError(
                errno.EINVAL, f"{name} is {is_now} instead of {should}; give it as it is in the file"
            )
    if algorithm == "blake3" and any(each.device is not None for each in live.values()):
        from pynymph import cuda

        if name := next((name for name, each in live.items() if each.device is None and each.nbytes), ""):
            raise ArgumentError(
                errno.EINVAL, f"{name} is in host memory, and others are not; give all from one GPU"
            )
        return cuda.digest_segments([header, *(each.device for each in live.values() if each.nbytes)])
    hasher = blake3(header, max_threads=blake3.AUTO) if algorithm == "blake3" else hashlib.sha256(header)
    for each in live.values():
        for part in _parts(each):
            hasher.update(part)
    return hasher.digest()


def _parts(each: _Bytes) -> Iterator[Any]:
    """Yield a tensor's bytes, part by part, in host memory."""
    if each.device is None:
        yield each.host
        return
    import torch

    plain = torch.as_tensor(each.device).resolve_conj().resolve_neg().reshape(-1)
    if plain.numel() and plain.stride() != (1,):  # a lone element may say so, and can't be viewed as bytes
        plain = plain.clone(memory_format=torch.contiguous_format)
    for part in plain.view(torch.uint8).split(_PART):
        yield part.cpu().numpy()


def load(
    path: str | os.PathLike[str],
    *,
    manifest: Manifest | str | os.PathLike[str],
    device: str = "cuda:0",
    loader: str = "safetensors",
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Load a model with a loader of your choice, and verify it in the memory that it was loaded to.

    Args:
        path: a safetensors file or a folder of them; for "torch.load", a file of torch.save().
        manifest: a Manifest, or the path of one.
        device: name of the device in torch.
        loader: "safetensors", "instanttensor", "fastsafetensors", "runai-model-streamer" or "torch.load".
        progress: callback with the bytes verified and all bytes.
        options: options of the loader.

    Returns:
        Tensors by name.

    Raises:
        WeightsError: EBADMSG, the tensors in memory differ from the manifest.
        ArgumentError: EINVAL, there is no such loader.
        NymphError: ENOENT, a file is missing; ENOSYS, the loader is not installed; EIO, the loader failed.
    """
    wanted = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    tensors = loaded(path, device, loader, **options)
    verify(tensors, wanted, progress=progress)
    return tensors


def loaded(path: str | os.PathLike[str], device: str, loader: str, **options: Any) -> dict[str, Any]:
    """Load a model, and verify nothing. Arguments, result and errors are those of load()."""
    if loader not in LOADERS:
        raise ArgumentError(errno.EINVAL, f"there is no loader {loader!r}; known: {', '.join(LOADERS)}")
    files = [str(file) for file in shards(path)]
    try:
        return dict(LOADERS[loader](files, device, **options))
    except ImportError as error:
        raise NymphError(errno.ENOSYS, f"{loader} is not installed: {error}; install it with pip") from error
    except Exception as error:
        raise NymphError(errno.EIO, f"{loader} can't load {path}: {error}") from error


def _safetensors(files: list[str], device: str, **options: Any) -> Iterator[tuple[str, Any]]:
    from safetensors.torch import load_file

    for file in files:
        yield from load_file(file, device=device, **options).items()


def _instanttensor(files: list[str], device: str, **options: Any) -> Iterator[tuple[str, Any]]:
    from instanttensor import safe_open

    with safe_open(files, framework="pt", device=device, **options) as opened:
        yield from opened.tensors()


def _fastsafetensors(files: list[str], device: str, **options: Any) -> Iterator[tuple[str, Any]]:
    from fastsafetensors import fastsafe_open

    with fastsafe_open(files, framework="pt", device=device, **options) as opened:
        for name in opened.keys():  # noqa: SIM118
            yield name, opened.get_tensor(name)


def _runai(files: list[str], device: str, **options: Any) -> Iterator[tuple[str, Any]]:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(files, device=device, **options)
        yield from streamer.get_tensors()


def _torch(files: list[str], device: str, **options: Any) -> Iterator[tuple[str, Any]]:
    import torch

    for file in files:
        yield from torch.load(file, map_location=device, **{"weights_only": True, **options}).items()


LOADERS: dict[str, Callable[..., Iterator[tuple[str, Any]]]] = {
    "safetensors": _safetensors,
    "instanttensor": _instanttensor,
    "fastsafetensors": _fastsafetensors,
    "runai-model-streamer": _runai,
    "torch.load": _torch,
}
