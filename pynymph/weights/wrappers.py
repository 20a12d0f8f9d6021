# SPDX-License-Identifier: MIT
"""Tensors that are made of others: torchao's, DTensor, and whatever else has `__tensor_flatten__`.

Their pointers say nothing: data_ptr() is 0, and DLPack's is null, both without an error. What counts is the
inner tensors, and the context: fields such as a block size, that lie in no tensor and change what it means.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pynymph.errors import ArgumentError

CONTEXT = "__context__"
"""Last part of the name under which a wrapper tensor's context is listed."""


@dataclass(frozen=True)
class Shard:
    """Describe the part of a tensor that this process has of a DTensor."""

    local: Any
    shape: tuple[int, ...]
    """Shape of the whole."""
    slices: tuple[tuple[int, int], ...] | None
    """By dimension: which part of the whole it is, (first, end); None if it is no such part."""
    why: str = ""
    """Why it is none."""

    @property
    def whole(self) -> bool:
        """Whether this process has all of it."""
        return self.slices == tuple((0, size) for size in self.shape)


def is_wrapper(tensor: Any) -> bool:
    return hasattr(type(tensor), "__tensor_flatten__")


def inner_tensors(tensors: Iterable[tuple[str, Any]], *, contexts: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield tensors by name. A wrapper tensor yields its parts under longer names, recursively.

    Args:
        tensors: tensors by name.
        contexts: whether to yield the context of a wrapper tensor, too, as a tensor of bytes.

    Raises:
        ArgumentError: EINVAL, a context has a value of which no digest can be made.
    """
    for name, tensor in tensors:
        if not is_wrapper(tensor):
            yield name, tensor
            continue
        if hasattr(tensor, "trigger_wait"):  # of a collective under way
            yield from inner_tensors([(name, tensor.trigger_wait())], contexts=contexts)
            continue
        parts, _ = tensor.__tensor_flatten__()
        inner = [(part, getattr(tensor, part)) for part in parts]  # DTensor lists its mesh, too
        yield from inner_tensors(
            ((f"{name}.{part}", each) for part, each in inner if hasattr(each, "data_ptr")), contexts=contexts
        )
        if contexts:
            import torch

            text = bytearray(context_of(name, tensor))
            yield f"{name}.{CONTEXT}", torch.frombuffer(text, dtype=torch.uint8)


def context_of(name: str, tensor: Any) -> bytes:
    """Write the context of a wrapper tensor as canonical JSON: class, shape, dtype, and fields.

    Devices and numbers of ranks are left out: where a tensor is does not change what it is.
    """
    shard = shard_of(tensor)
    if shard is not None:
        mesh = tensor.device_mesh
        fields: Any = {
            "mesh": list(mesh.shape),
            "mesh_dim_names": list(mesh.mesh_dim_names or ()),
            "placements": [repr(each) for each in tensor.placements],
            "slices": shard.slices,
        }
    else:
        parts, context = tensor.__tensor_flatten__()
        others = [part for part in parts if not hasattr(getattr(tensor, part), "data_ptr")]
        fields = _plain(name, [context, {part: getattr(tensor, part) for part in others}])
    made = {
        "class": type(tensor).__qualname__,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype),
        "fields": fields,
    }
    return json.dumps(made, sort_keys=True, separators=(",", ":")).encode()


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON has it, the same in each process."""
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        items = {key: _plain(name, getattr(value, key)) for key in names}
        return {"class": type(value).__qualname__, "fields": items}
    if isinstance(value, (list, tuple)):
        return [_plain(name, each) for each in value]
    if isinstance(value, dict):
        pairs = [[_plain(name, key), _plain(name, each)] for key, each in value.items()]
        return {"dict": sorted(pairs, key=json.dumps)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field.name: _plain(name, getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, "fields": items}
    torch = sys.modules["torch"]
    if isinstance(value, torch.device):
        return "device"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if isinstance(value, type):
        return value.__qualname__
    raise ArgumentError(
        errno.EINVAL,
        f"{name} has a {type(value).__qualname__} in its context, of which no digest can be made; give the "
        "tensors that it is made of",
    )


def shard_of(tensor: Any) -> Shard | None:
    """Tell which part of the whole a DTensor has here. Returns None for all other tensors."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not isinstance(tensor, module.DTensor):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local, shape = tensor._local_tensor, tuple(tensor.shape)
    if hasattr(local, "trigger_wait"):
        local = local.trigger_wait()
    for placement in tensor.placements:
        # a _StridedShard is a Shard by its class, and its rows are not in a row
        if type(placement) not in (module.Shard, module.Replicate):
            why = f"it is {placement!r} of the whole; redistribute() it to Shard or Replicate to prove it"
            return Shard(local, shape, None, why)
    sizes, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    if tuple(sizes) != tuple(local.shape):
        return Shard(local, shape, None, f"it has the shape {list(local.shape)} instead of {list(sizes)}")
    slices = tuple((begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
    return Shard(local, shape, slices)
