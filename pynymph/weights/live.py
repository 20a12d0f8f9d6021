# SPDX-License-Identifier: MIT
"""The bytes of tensors in memory, and their digests by the device that has them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pynymph import digest
from pynymph.errors import ArgumentError, NymphError
from pynymph.weights.manifests import LEVEL, NODE_BYTES, Progress, Tensor
from pynymph.weights.wrappers import inner_tensors, is_wrapper

_PART = 64 << 20
"""Bytes of a tensor that are in host memory at once if the CPU hashes it."""
_NAMES = {
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{"bool": "BOOL", "bfloat16": "BF16", "complex64": "C64", "float4_e2m1fn_x2": "F4"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"},
    **{"float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ"},
}
"""Names in safetensors of the dtypes of torch and NumPy."""
_OF_TORCH = {name: of_torch for of_torch, name in _NAMES.items()}


@dataclass(slots=True)
class Bytes:
    """Keep a tensor's dtype, shape, and bytes in C order, in host memory or as an array for pynymph.cuda."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    host: Any = None
    device: Any = None


def _modules_of(model: Any) -> list[tuple[str, Any]]:
    """Return a torch module and those in it, under all of their names, each with what goes before a name."""
    named = model.named_modules(remove_duplicate=False)
    return [(f"{path}." if path else "", module) for path, module in named]


def transient_buffers(model: Any, modules: list[tuple[str, Any]] | None = None) -> set[str]:
    """Return the names of a torch module's buffers that its state_dict does not have."""
    found = _modules_of(model) if modules is None else modules
    return {prefix + name for prefix, module in found for name in module._non_persistent_buffers_set}


def state_of(model: Any) -> Iterator[tuple[str, Bytes]]:
    """Yield the tensors by name that a weight update has to bring: those of vLLM's and SGLang's checkers.

    Args:
        model: a torch module: its parameters and persistent buffers, each once, less those with the mark
            `_skip_weight_check`, and what its modules save beside them. Or tensors by name.
    """
    for name, each in inner_tensors(_state_of(model)):
        yield name, bytes_of(name, each)


def state_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield what state_of() yields, as tensors, without the contexts of wrapper tensors."""
    yield from inner_tensors(_state_of(model), contexts=False)


def _state_of(model: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(model, Mapping):
        yield from list(model.items())  # which another thread may change
        return
    for name, each in model.named_parameters():
        if not getattr(each, "_skip_weight_check", False):
            yield name, each
    modules = _modules_of(model)
    transient = transient_buffers(model, modules)
    for name, each in model.named_buffers():
        if name not in transient and not getattr(each, "_skip_weight_check", False):
            yield name, each
    yield from saved_beside(model, modules)


def saved_beside(model: Any, modules: list[tuple[str, Any]] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield tensors that modules save and that are no parameters or buffers, such as bitsandbytes' scales."""
    import torch

    plain = torch.nn.Module._save_to_state_dict
    seen = set()
    for prefix, module in _modules_of(model) if modules is None else modules:
        if type(module)._save_to_state_dict is plain or id(module) in seen:
            continue
        seen.add(id(module))
        saved: dict[str, Any] = {}
        module._save_to_state_dict(saved, prefix, True)  # of this module alone, and without hooks
        known = {prefix + name for name in (*module._parameters, *module._buffers)}
        for name, each in saved.items():
            if name not in known and isinstance(each, torch.Tensor):
                yield name, each


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that torch found no memory on a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


@contextlib.contextmanager
def enough_memory(doing: str) -> Iterator[None]:
    """Turn torch's error of a GPU without memory into a NymphError (ENOMEM)."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = f"{doing}: the GPU is out of memory; free some, and do it again"
        raise NymphError(errno.ENOMEM, message) from error


def is_plain(tensor: Any, dtype: str, shape: tuple[int, ...]) -> bool:
    """Tell whether this is a tensor of torch itself on a GPU, of a shape, and of a dtype of safetensors."""
    torch = sys.modules.get("torch")
    return (
        torch is not None
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_cuda
        and tensor.shape == shape
        and tensor.dtype is _dtype_of(dtype)
    )


def bytes_of(name: str, tensor: Any) -> Bytes:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        if is_wrapper(tensor):  # whose pointer is 0
            raise ArgumentError(
                errno.EINVAL, f"{name} is made of other tensors; give those that it is made of"
            )
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ArgumentError(
                errno.EINVAL, f"{name} is sparse or quantized; give the tensors that it is made of"
            )
        dtype = _name_of(tensor.dtype)
        shape = tuple(tensor.shape)
        if dtype == "F4" and shape:
            shape = (*shape[:-1], 2 * shape[-1])
        nbytes = tensor.nbytes
        if nbytes and not tensor.data_ptr() and not tensor.is_meta:
            raise ArgumentError(
                errno.EINVAL, f"the memory of {name} was freed, as FSDP does it; give it while it has some"
            )
        if tensor.is_cuda:
            return Bytes(dtype, shape, nbytes, device=tensor)
        if tensor.device.type != "cpu":
            raise ArgumentError(
                errno.EINVAL, f"{name} is on {tensor.device}; give weights on a GPU of NVIDIA or the CPU"
            )
        plain = tensor.detach().resolve_conj().resolve_neg()
        if not plain.is_contiguous():
            plain = plain.clone(memory_format=torch.contiguous_format)
        octets = (ctypes.c_ubyte * nbytes).from_address(plain.data_ptr()) if nbytes else b""
        # The view keeps the array, and the array keeps the tensor.
        if nbytes:
            octets.tensor = plain  # type: ignore[union-attr]
        return Bytes(dtype, shape, nbytes, host=memoryview(octets).cast("B"))
    if hasattr(tensor, "__array_interface__"):
        import numpy as np

        array = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        dtype = _NAMES.get(str(tensor.dtype), str(tensor.dtype))
        return Bytes(dtype, tuple(tensor.shape), array.nbytes, host=memoryview(array.data))
    if hasattr(tensor, "__cuda_array_interface__"):
        interface = tensor.__cuda_array_interface__
        shape = tuple(interface["shape"])
        nbytes = math.prod(shape) * int(interface["typestr"][2:])
        dtype = str(getattr(tensor, "dtype", interface["typestr"]))
        return Bytes(_NAMES.get(dtype, dtype), shape, nbytes, device=tensor)
    raise ArgumentError(
        errno.EINVAL, f"{name} is a {type(tensor).__qualname__}; give torch tensors or arrays"
    )


def digests_of(
    found: Mapping[str, Bytes], *, nodes: bool, progress: Progress | None = None
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


@functools.cache
def _dtype_of(name: str) -> Any:
    return torch_dtype(name)


@functools.cache
def _name_of(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return _NAMES.get(name, name)


def torch_dtype(name: str) -> Any:
    """Return torch's dtype of a name in safetensors, or None."""
    import torch

    return getattr(torch, _OF_TORCH.get(name, "none"), None)


def digests_as_found(found: Iterable[tuple[str, Bytes]]) -> tuple[dict[str, Bytes], dict[str, bytes]]:
    """Make digests while tensors are still being found, so that the GPU does not wait for that.

    Args:
        found: tensors by name.

    Returns:
        The tensors, and the digests of 32 bytes, by name.
    """
    live: dict[str, Bytes] = {}
    made: dict[str, bytes] = {}
    on_gpu: list[str] = []

    def devices() -> Iterator[Any]:
        for name, each in found:
            live[name] = each
            if each.device is None:
                made[name] = digest.root(digest.tree(each.host, LEVEL))
            else:
                on_gpu.append(name)
                yield each.device

    arrays = devices()
    for first in arrays:
        from pynymph import cuda

        digests = cuda.digest_many(itertools.chain((first,), arrays))
        made |= zip(on_gpu, digests, strict=True)
    return live, {name: made[name] for name in live}


def nodes_of(each: Bytes) -> bytes:
    """Make the nodes of a tensor that span 16 MiB each, or its digest if there would be one."""
    if each.device is None:
        return digest.tree(each.host, LEVEL)
    from pynymph import cuda

    return cuda.tree(each.device, LEVEL)


def differing_in(live: Bytes, tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Find the ranges of bytes in which a tensor differs from what a manifest says."""
    if not tensor.nodes:
        return ((0, tensor.nbytes),)
    return tuple(digest.differing(nodes_of(live), tensor.nodes, LEVEL, tensor.nbytes))


def device_of(each: Bytes) -> str:
    return "cpu" if each.device is None else str(getattr(each.device, "device", "cuda"))


def parts_of(each: Bytes) -> Iterator[Any]:
    """Yield a tensor's bytes, part by part, in host memory."""
    if each.device is None:
        yield each.host
        return
    import torch

    plain = torch.as_tensor(each.device).detach().resolve_conj().resolve_neg().reshape(-1)
    if plain.numel() and plain.stride() != (1,):  # a lone element may say so, and can't be viewed as bytes
        plain = plain.clone(memory_format=torch.contiguous_format)
    for part in plain.view(torch.uint8).split(_PART):
        yield part.cpu().numpy()
