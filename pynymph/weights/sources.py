# SPDX-License-Identifier: MIT
"""Files of which manifests are made: safetensors, GGUF, torch.save, npz, ONNX, and DCP.

safetensors and GGUF are read here. The others are read by their own libraries, which have to be installed:
torch, NumPy, onnx. No code in a file is run.
"""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pynymph.errors import ArgumentError, NymphError
from pynymph.weights.gguf_files import Gguf
from pynymph.weights.live import bytes_of
from pynymph.weights.manifests import printable, read_file
from pynymph.weights.safetensors_files import File, Mapped, Place, shards
from pynymph.weights.wrappers import inner_tensors


class Read(File):
    """Keep the tensors that a library read from a file, or reads when they are asked for."""

    def __init__(self, path: Path, kind: str, library: str) -> None:
        self.name, self.kind = path.name, kind
        self.header, self.spans = memoryview(b""), {}
        self._path = path
        try:
            self.nbytes = path.stat().st_size
        except OSError as error:
            raise NymphError(error.errno or errno.EIO, f"{path} can't be read: {error.strerror}") from error
        try:
            self._library = importlib.import_module(library)
        except ImportError as error:
            message = f"{path.name} can't be read without {library}: {error}; install it with pip"
            raise NymphError(errno.ENOSYS, message) from error
        self._tensors: dict[str, Any] = {}
        try:
            self._read()
        except NymphError:
            raise
        except MemoryError as error:
            message = f"{path} does not fit into memory; free some, or give smaller files"
            raise NymphError(errno.ENOMEM, message) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise NymphError(error.errno or errno.EIO, f"{path} can't be read: {why}") from error
        except Exception as error:  # whatever the library raises of a damaged file
            raise self.damaged(_shown(error)) from error

    def _read(self) -> None:
        raise NotImplementedError

    def _add(self, name: str, tensor: Any) -> None:
        printable(name)
        found = bytes_of(name, tensor)
        self._place(name, found.dtype, found.shape, found.nbytes)
        self._tensors[name] = found.host

    def _place(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        if name in self.spans:
            raise self.damaged(f"it has {name} twice")
        self.spans[name] = Place(dtype, shape, 0, nbytes)

    def bytes_of(self, name: str) -> Any:
        return self._tensors[name]


class Torch(Read):
    """Read a file of torch.save(). The tensors of nested dicts and lists have names with dots."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "torch.save", "torch")

    def _read(self) -> None:
        # Files from before torch 1.6 can't be mapped, and are read.
        found = self._library.load(
            self._path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self._path)
        )
        for name, tensor in inner_tensors(_flat("", found, self._library.Tensor)):
            self._add(name, tensor)
        if not self.spans:
            raise ValueError("it has no tensors")


def _flat(name: str, value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    prefix = f"{name}." if name else ""
    if isinstance(value, kind):
        yield name or "tensor", value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(f"{prefix}{key}", each, kind)
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            yield from _flat(f"{prefix}{i}", each, kind)


class Npz(Read):
    """Read a file of numpy.savez(). It is read into memory as a whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "npz", "numpy")

    def _read(self) -> None:
        with self._library.load(self._path, allow_pickle=False) as archive:
            for name in archive.files:
                self._add(name, archive[name])


_OF_ONNX = {
    **{"FLOAT": "F32", "DOUBLE": "F64", "FLOAT16": "F16", "BFLOAT16": "BF16", "BOOL": "BOOL"},
    **{
        f"{sign}INT{bits}": f"{short}{bits}"
        for sign, short in (("", "I"), ("U", "U"))
        for bits in (8, 16, 32, 64)
    },
    **{"FLOAT8E4M3FN": "F8_E4M3", "FLOAT8E5M2": "F8_E5M2", "FLOAT8E8M0": "F8_E8M0", "COMPLEX64": "C64"},
    **{"FLOAT8E4M3FNUZ": "F8_E4M3FNUZ", "FLOAT8E5M2FNUZ": "F8_E5M2FNUZ"},
}
"""Names in safetensors of ONNX's types. Others keep their names."""


class Onnx(Read):
    """Read the initializers and constants of an ONNX file, and their external data."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "ONNX", "onnx")

    def _read(self) -> None:
        model = self._library.load(str(self._path), load_external_data=False)
        self._protos: dict[str, Any] = {}
        self._graph(model.graph)
        for function in model.functions:
            for node in function.node:
                self._node(node, f"{function.name}.")

    def _graph(self, graph: Any) -> None:
        for tensor in graph.initializer:
            self._initializer(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            self._initializer(sparse.values.name, sparse.values)
            self._initializer(f"{sparse.values.name}.indices", sparse.indices)
        for node in graph.node:
            self._node(node, "")

    def _node(self, node: Any, prefix: str) -> None:
        for attribute in node.attribute:
            if attribute.HasField("t") and node.output:
                self._initializer(f"{prefix}{node.output[0]}", attribute.t)
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                self._graph(graph)

    def _initializer(self, name: str, tensor: Any) -> None:
        kind = self._library.TensorProto.DataType.Name(tensor.data_type)
        if kind == "STRING":
            raise ArgumentError(
                errno.EINVAL, f"{self.name} has strings as {name}; a manifest has numbers only, take them out"
            )
        nbytes = len(self._bytes(tensor))  # external data has to be there, and within its file
        self._place(name, _OF_ONNX.get(kind, kind), tuple(tensor.dims), nbytes)
        self._protos[printable(name)] = tensor

    def _bytes(self, tensor: Any) -> bytes:
        if self._library.external_data_helper.uses_external_data(tensor):
            copied = type(tensor)()
            copied.CopyFrom(tensor)
            self._library.external_data_helper.load_external_data_for_tensor(copied, str(self._path.parent))
            tensor = copied
        if tensor.HasField("raw_data"):
            return bytes(tensor.raw_data)
        return bytes(self._library.numpy_helper.to_array(tensor).tobytes())

    def bytes_of(self, name: str) -> Any:
        return self._bytes(self._protos[name])


_DCP_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "StorageMeta"),
        *("BytesStorageMetadata", "MetadataIndex", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
}
"""What the metadata of a checkpoint may name, by module."""


class _Restricted(pickle._Unpickler):
    """Unpickle a checkpoint's metadata. torch unpickles it without limits, and so runs whatever it says."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def _build(self) -> None:
        if callable(self.stack[-2]):  # which would change a class for all of this process
            raise ValueError("its metadata changes a class, which no checkpoint does")
        usual: Callable[[Any], None] = pickle._Unpickler.dispatch[pickle.BUILD[0]]
        usual(self)

    dispatch[pickle.BUILD[0]] = _build

    def find_class(self, module: str, name: str) -> Any:
        import torch

        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype) or name in _DCP_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise ValueError(f"its metadata names {module}.{name}, which no checkpoint needs")


class Dcp(Read):
    """Read a folder of torch.distributed.checkpoint, tensor by tensor, whatever ranks saved it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "torch.distributed.checkpoint", "torch.distributed.checkpoint")

    def _read(self) -> None:
        import torch
        from torch.distributed.checkpoint import metadata

        found = _Restricted(io.BytesIO(read_file(self._path / ".metadata"))).load()
        if not isinstance(found, metadata.Metadata):
            raise ValueError("its metadata is none")
        inside = self._path.resolve()
        for stored in (found.storage_data or {}).values():
            if not (inside / stored.relative_path).resolve().is_relative_to(inside):
                raise ValueError(f"its metadata names {stored.relative_path}, which is outside of the folder")

        class Reader(self._library.FileSystemReader):  # type: ignore[misc,name-defined]
            def read_metadata(self, *arguments: Any, **named: Any) -> Any:
                return found

        self._reader, self._made = Reader, {}
        for name, each in found.state_dict_metadata.items():
            if not isinstance(each, metadata.TensorStorageMetadata):
                continue
            chunks = sum(torch.Size(chunk.sizes).numel() for chunk in each.chunks)
            if chunks != torch.Size(each.size).numel():
                raise ValueError(f"the parts of {name} have {chunks} elements instead of {list(each.size)}")
            stands = torch.empty(each.size, dtype=each.properties.dtype, device="meta")
            self._made[name] = (each.size, each.properties.dtype)
            dtype = bytes_of(name, torch.empty(0, dtype=stands.dtype)).dtype
            shape = tuple(each.size)
            if dtype == "F4" and shape:
                shape = (*shape[:-1], 2 * shape[-1])
            self._place(printable(name), dtype, shape, stands.numel() * stands.element_size())

    def bytes_of(self, name: str) -> Any:
        import torch
        from torch.distributed.checkpoint.api import CheckpointException

        size, dtype = self._made[name]
        tensor = torch.zeros(size, dtype=dtype)
        try:
            with warnings.catch_warnings():  # that there is one process, which no_dist says
                warnings.simplefilter("ignore", UserWarning)
                self._library.load({name: tensor}, storage_reader=self._reader(self._path), no_dist=True)
        except CheckpointException as error:  # which is no Exception
            raise self.damaged(_shown(next(iter(error.failures.values()), (error, None))[0])) from error
        except Exception as error:  # whatever torch raises of a damaged file
            raise self.damaged(_shown(error)) from error
        return bytes_of(name, tensor).host


def _shown(error: BaseException) -> str:
    """Return the first line of an error, with its class."""
    return f"{type(error).__qualname__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")


_BY_SUFFIX: dict[str, Callable[[Path], File]] = {
    ".gguf": Gguf,
    ".npz": Npz,
    ".onnx": Onnx,
    **dict.fromkeys((".bin", ".ckpt", ".pt", ".pth"), Torch),
}
_IN_FOLDERS = ("*.gguf", "pytorch_model*.bin")
"""Files of a folder that has no safetensors files, one kind in a folder."""


def opened(path: str | os.PathLike[str]) -> list[File]:
    """Open the files of a model, whatever their format is.

    Args:
        path: a file, by its suffix: .gguf, .npz, .onnx, and .pt, .pth, .bin or .ckpt of torch.save(); any
            other is a safetensors file. Or a folder of safetensors, GGUF or pytorch_model*.bin files, or of
            torch.distributed.checkpoint.

    Returns:
        The files, sorted by name.

    Raises:
        NymphError: ENOENT, a file is missing; ENOSYS, its library is not installed; or it can't be read.
        ArgumentError: EINVAL, a file is damaged, or a folder has files of several kinds.
    """
    folder = Path(path)
    if not folder.is_dir():
        if (kind := _BY_SUFFIX.get(folder.suffix.lower())) is not None and folder.exists():
            return [kind(folder)]
        return [Mapped(each) for each in shards(folder)]
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return [Mapped(each) for each in shards(folder)]
    found = {pattern: sorted(folder.glob(pattern)) for pattern in _IN_FOLDERS}
    if (folder / ".metadata").exists():
        found[".metadata"] = [folder]
    kinds = [pattern for pattern, files in found.items() if files]
    if len(kinds) > 1:
        message = f"{path} has files of several kinds ({' and '.join(kinds)}); give those of one"
        raise ArgumentError(errno.EINVAL, message)
    if not kinds:
        return [Mapped(each) for each in shards(folder)]
    if kinds == [".metadata"]:
        return [Dcp(folder)]
    _index(folder, found[kinds[0]])
    return [_BY_SUFFIX[each.suffix](each) for each in found[kinds[0]]]


def tensors_of(files: list[File]) -> dict[str, File]:
    """Return by name of a tensor: the file that has it.

    Raises:
        ArgumentError: EINVAL, two files have a tensor of one name: a loader may take any of them.
    """
    found: dict[str, File] = {}
    for file in files:
        for name in file.spans:
            if name in found:
                message = f"{name} stands in both {found[name].name} and {file.name}; give files of one model"
                raise ArgumentError(errno.EINVAL, message)
            found[name] = file
    return found


def _index(folder: Path, files: list[Path]) -> None:
    """Check that all files are there that an index names."""
    for index in sorted(folder.glob("pytorch_model*.bin.index.json")):
        try:
            wanted = sorted({str(name) for name in json.loads(read_file(index))["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            message = f"{index} is no index of shards, or damaged; get the file again"
            raise ArgumentError(errno.EINVAL, message) from None
        if missing := [name for name in wanted if folder / name not in files]:
            message = f"{folder / missing[0]} is missing, which {index.name} names; get the file"
            raise NymphError(errno.ENOENT, message)
