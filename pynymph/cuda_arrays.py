# SPDX-License-Identifier: MIT
"""Device memory of arrays: addresses of the bytes, and the stream in whose order they are written."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from pynymph.cuda_driver import cuda_core, driver, need_device
from pynymph.cuda_gpu import Span, gpu_at
from pynymph.cuda_kernels import Words
from pynymph.errors import ArgumentError, NymphError

_MOST_RUNS = 1 << 24


def handle_of(stream: Any) -> int | None:
    """Return the CUstream of a stream.

    Args:
        stream: None, a CUstream as a number, a stream of torch or cuda-core, or an object with
            __cuda_stream__.

    Returns:
        The CUstream as a number, or None.

    Raises:
        ArgumentError: EINVAL, it is no stream.
    """
    if stream is None or isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise ArgumentError(errno.EINVAL, f"{stream!r} is no stream; give torch's, cuda-core's, or its handle")


def _torch_memory(tensor: Any, torch: Any, writes: bool) -> Span:
    kind = type(tensor)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter and hasattr(tensor, "__tensor_flatten__"):
        names = ", ".join(tensor.__tensor_flatten__()[0])
        raise ArgumentError(
            errno.EINVAL, f"a {kind.__name__} only wraps other tensors ({names}); digest each of those"
        )
    if tensor.layout is not torch.strided:
        raise ArgumentError(
            errno.EINVAL, f"a tensor of layout {tensor.layout} has no bytes of its own; digest its parts"
        )
    on_gpu = tensor.is_cuda
    if not on_gpu:
        if tensor.device.type != "cpu":
            raise ArgumentError(
                errno.EINVAL,
                f"a tensor on {tensor.device} is not in the memory of an NVIDIA GPU; move it there",
            )
        if not tensor.is_pinned():
            raise ArgumentError(
                errno.EINVAL, "the tensor is in host memory; pynymph.digest.payload() makes its digest there"
            )
    if tensor.is_quantized:
        raise ArgumentError(
            errno.EINVAL, "a quantized tensor has a scale beside its bytes; digest its int_repr()"
        )
    if writes and (tensor.is_conj() or tensor.is_neg() or not tensor.is_contiguous()):
        raise ArgumentError(errno.EINVAL, "the tensor to write is not C-contiguous; give one that is")
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().resolve_conj().resolve_neg()
    if not tensor.is_contiguous():
        try:
            tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        except torch.cuda.OutOfMemoryError as error:
            message = "a copy without gaps: the GPU is out of memory; free some, or digest a part at a time"
            raise NymphError(errno.ENOMEM, message) from error
    device = tensor.get_device() if on_gpu else torch.cuda.current_device()
    nbytes = tensor.nbytes
    address = tensor.data_ptr()
    if nbytes and not address:
        why = "its memory was freed, as FSDP does it, or it wraps other tensors"
        raise ArgumentError(errno.EINVAL, f"a {kind.__name__} shows no memory: {why}; give what has some")
    return Span(address, nbytes, device, torch._C._cuda_getCurrentRawStream(device), tensor)


def _strided(
    shape: Sequence[int], strides: Sequence[int] | None, itemsize: int, address: int
) -> tuple[int, Words | None]:
    """Compute the size of an array, and its runs.

    Args:
        shape: the shape.
        strides: the strides in bytes; None if the array has no gaps.
        itemsize: bytes of an element.
        address: address of the first element.

    Returns:
        The number of bytes; and None, or the addresses of runs of equal length if the array has gaps.
    """
    nbytes = itemsize
    for n in shape:
        nbytes *= n
    if strides is None or nbytes == 0:
        return nbytes, None
    run, dimensions = itemsize, list(zip(shape, strides, strict=True))
    while dimensions and (dimensions[-1][0] == 1 or dimensions[-1][1] == run):
        run *= dimensions.pop()[0]
    if not dimensions:
        return nbytes, None
    if nbytes // run > _MOST_RUNS:
        raise ArgumentError(
            errno.EINVAL, f"the array lies in {nbytes // run} runs of {run} bytes; make it C-contiguous first"
        )
    at = np.array([address], np.int64)
    for n, stride in dimensions:
        at = (at[:, None] + np.arange(n, dtype=np.int64) * stride).ravel()
    return nbytes, at.astype(np.uint64)


def memory_of(array: Any, stream: int | None, *, writes: bool = False) -> Span:
    """Find the device memory of an array.

    Args:
        array: the array, as for pynymph.cuda.digest().
        stream: stream in whose order the memory is accessed, or None.
        writes: whether the memory will be written.

    Returns:
        A Span.

    Raises:
        ArgumentError: EINVAL, the array is not in device memory, or can't be written. EFAULT, its address is
            not in the memory of a GPU.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _torch_memory(array, torch, writes)
    try:
        interface = array.__cuda_array_interface__
    except Exception:
        interface = None
    if interface is not None:
        address = int(interface["data"][0] or 0)
        itemsize = int(interface["typestr"][2:])
        nbytes, runs = _strided(interface["shape"], interface.get("strides"), itemsize, address)
        memory = Span(address, nbytes, 0, interface.get("stream"), array, runs)
    elif hasattr(array, "__dlpack__"):
        kind, ordinal = array.__dlpack_device__()
        if int(kind) not in (2, 3, 13):
            raise ArgumentError(
                errno.EINVAL, f"{_name(array)} is in host memory; pynymph.digest.payload() makes its digest"
            )
        reader = stream if stream is not None else gpu_at(int(ordinal) if int(kind) == 2 else 0).stream
        try:
            view = cuda_core.utils.StridedMemoryView.from_dlpack(
                array, stream_ptr=reader if int(kind) == 2 else -1
            )
            itemsize = view.dtype.itemsize
        except Exception as error:
            raise ArgumentError(errno.EINVAL, f"{_name(array)} does not show its memory: {error}") from error
        strides = None if view.strides is None else [n * itemsize for n in view.strides]
        nbytes, runs = _strided(view.shape, strides, itemsize, view.ptr)
        memory = Span(view.ptr, nbytes, 0, None, view, runs)
    else:
        raise ArgumentError(
            errno.EINVAL,
            f"{_name(array)} is not in device memory; give a torch tensor, or an object with "
            "__cuda_array_interface__ or __dlpack__",
        )
    if writes and memory.runs is not None:
        raise ArgumentError(errno.EINVAL, f"{_name(array)} has gaps; give C-contiguous memory to be written")
    if memory.nbytes:
        _look_up(memory, array)
    return memory


def _name(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"


def _look_up(memory: Span, array: Any) -> None:
    """Ask the driver for the GPU that has the memory."""
    what = driver.CUpointer_attribute
    need_device()
    status, ordinal = driver.cuPointerGetAttribute(what.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, memory.address)
    if status or ordinal < 0:
        raise ArgumentError(
            errno.EFAULT,
            f"{_name(array)} points to {memory.address:#x}, which is in no GPU's memory; give an array that "
            "was not freed",
        )
    memory.device = int(ordinal)
