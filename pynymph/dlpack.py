# SPDX-License-Identifier: MIT
"""Memory of tensors, by DLPack: of every dtype, as bytes.

numpy.from_dlpack() refuses dtypes that NumPy has not (bfloat16, float8, complex32), though their memory is as
good as any. Here the dtype only says how many bytes there are.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING, Any

from pynymph.abi import ffi
from pynymph.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# enum DLDeviceType, of memory that the CPU can reach: its own, CUDA's and ROCm's pinned, CUDA's managed.
_REACHABLE = (1, 3, 11, 13)
_ELSE = "give a dense array of it, such as numpy.asarray() makes"
_READ_ONLY, _IS_COPIED, _PADDED = 1, 2, 4


class _Tensor(ctypes.Structure):
    """struct DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """struct DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p


def octets(thing: Any, name: str) -> Buffer:
    """Return all bytes of a tensor in memory of the CPU, without a copy, as a flat buffer that holds it.

    Args:
        thing: a tensor.
        name: what the caller calls it, for the error.

    Returns:
        A buffer. It is read-only if the tensor is, or if its DLPack is too old to say.

    Raises:
        ArgumentError: EINVAL, the tensor does not give its memory; the message has the producer's words.
    """
    try:
        device = int(thing.__dlpack_device__()[0])
        capsule = _export(thing) if device in _REACHABLE else None
    except Exception as error:  # whatever a library raises when it refuses
        message = f"{name} does not give its memory by DLPack: {error}; {_ELSE}"
        raise ArgumentError(errno.EINVAL, message) from None
    if capsule is None:
        message = f"{name} is on a device (DLPack's type {device}), not the CPU's; bring it to the CPU first"
        raise ArgumentError(errno.EINVAL, message)
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        if managed.major != 1:
            raise ArgumentError(errno.EINVAL, f"{name} has DLPack {managed.major}, and 1 is known here")
        tensor, flags = managed.tensor, managed.flags
    elif _is_valid(capsule, b"dltensor"):
        tensor, flags = _Tensor.from_address(_pointer(capsule, b"dltensor")), _READ_ONLY
    else:
        raise ArgumentError(errno.EINVAL, f"{name} gives no DLPack capsule, or one that was used before")
    if tensor.device_type not in _REACHABLE:
        raise ArgumentError(errno.EINVAL, f"{name} says that it is on the CPU, and its DLPack that it is not")
    length = _length(tensor, flags, name)
    if length and not tensor.data:  # torch exports tensors that wrap others so, without an error
        raise ArgumentError(errno.EINVAL, f"{name} shows no memory; give the tensors that it wraps")
    at = (tensor.data or 0) + tensor.byte_offset
    # Nobody takes the tensor out of the capsule, so that it ends with the capsule, which this closure holds.
    memory = ffi.gc(ffi.cast("char *", at), lambda _, capsule=capsule: None) if length else ffi.new("char[1]")
    view = memoryview(ffi.buffer(memory, length))
    return view.toreadonly() if flags & (_READ_ONLY | _IS_COPIED) else view


def _export(thing: Any) -> object:
    try:
        return thing.__dlpack__(max_version=(1, 1))
    except TypeError:  # from before there were versions
        return thing.__dlpack__()


def _length(tensor: Any, flags: int, name: str) -> int:
    """How many bytes it has. Raises ArgumentError if they are not C-contiguous."""
    shape: list[int] = tensor.shape[: tensor.ndim] if tensor.ndim else []
    strides: list[int] | None = tensor.strides[: tensor.ndim] if tensor.ndim and tensor.strides else None
    items = 1
    for dimension in shape:
        items *= dimension
    bits: int = tensor.bits * tensor.lanes
    if flags & _PADDED:
        bits = -(-bits // 8) * 8
    if items and strides is not None and not _is_contiguous(shape, strides):
        turned = _is_contiguous(shape[::-1], strides[::-1])
        raise ArgumentError(errno.EINVAL, f"{name} is {gaps(turned)}")
    return -(-items * bits // 8)  # rounded up: some types have less than 8 bits


def _is_contiguous(shape: list[int], strides: list[int]) -> bool:
    expected = 1
    for dimension, stride in zip(reversed(shape), reversed(strides), strict=True):
        if dimension != 1 and stride != expected:
            return False
        expected *= dimension
    return True


def gaps(turned: bool) -> str:
    """Say that memory is not C-contiguous, for a message. `turned`: it is F-contiguous."""
    if turned:
        return "not C-contiguous but F-ordered; give its transpose, .T, which is the same memory in order"
    return "not C-contiguous; give a buffer without gaps, numpy.ascontiguousarray() or .contiguous() make one"
