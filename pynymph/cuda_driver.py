# SPDX-License-Identifier: MIT
"""The CUDA driver and NVRTC: calls that raise NymphError, devices, and compiled kernels."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from blake3 import blake3

from pynymph import cuda_kernels as kernels
from pynymph.errors import NymphError

try:
    import cuda.core as cuda_core
    from cuda.bindings import driver, nvrtc
except ImportError as missing:
    raise ImportError("pynymph.cuda needs cuda-core: pip install 'pynymph[cuda]'") from missing

__all__ = [
    "cache",
    "check",
    "compile_for",
    "cuda_core",
    "devices",
    "driver",
    "need_device",
    "source_id",
    "store",
]


def check(result: tuple[Any, ...], doing: str) -> Any:
    """Check the result of a call of the driver.

    Args:
        result: the status, and the values that the call returned.
        doing: what the call does, for errors.

    Returns:
        The value, or a list of several.

    Raises:
        NymphError: ENOMEM, the GPU is out of memory. ENODEV, there is no GPU or driver. EIO, all else.
    """
    status, *values = result
    if status:
        name = status.name.removeprefix("CUDA_ERROR_")
        if name == "OUT_OF_MEMORY":
            raise NymphError(
                errno.ENOMEM, f"{doing}: the GPU is out of memory; free some, or digest less at a time"
            )
        if name in ("NO_DEVICE", "NOT_INITIALIZED", "STUB_LIBRARY", "SYSTEM_DRIVER_MISMATCH"):
            message = f"{doing}: {name}; check with nvidia-smi that there is a GPU and its driver"
            raise NymphError(errno.ENODEV, message)
        raise NymphError(
            errno.EIO, f"{doing}: the CUDA driver reports {name}; see NVIDIA's documentation of it"
        )
    return values[0] if len(values) == 1 else values


@functools.cache
def devices() -> int:
    """Return the number of GPUs; 0 without a driver."""
    try:
        check(driver.cuInit(0), "opening the driver")
        return int(check(driver.cuDeviceGetCount(), "counting GPUs"))
    except (NymphError, RuntimeError):
        return 0


def need_device(ordinal: int = 0) -> None:
    """Raise NymphError (ENODEV) if there is no GPU with that number."""
    if ordinal >= devices():
        raise NymphError(
            errno.ENODEV, f"there is no GPU {ordinal}, and NVIDIA's driver shows {devices()}; see nvidia-smi"
        )


def cache() -> Path:
    """Return the folder of compiled kernels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pynymph" / "cuda"


def source_id(arch: str) -> str:
    """Return a name for source, compiler and architecture `arch`, for the cache."""
    version = ".".join(map(str, check(nvrtc.nvrtcVersion(), "asking for NVRTC's version")))
    return hashlib.sha256(f"{version} {arch}\n{kernels.HEADER.read_text()}".encode()).hexdigest()[:24]


def store(path: Path, cubin: bytes) -> None:
    """Write compiled kernels to the cache. A failure is ignored: it only costs time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(blake3(cubin).digest() + cubin)
        os.replace(file.name, path)


def compile_for(arch: str, log: Any = None, **options: Any) -> bytes:
    """Compile the kernels with NVRTC; no GPU is needed.

    Args:
        arch: architecture of the GPU, such as "sm_90".
        log: text stream for the messages of the compiler, or None.
        options: more options of NVRTC.

    Returns:
        The cubin.

    Raises:
        NymphError: ENOEXEC, NVRTC can't compile for `arch`.
    """
    options = cuda_core.ProgramOptions(arch=arch, std="c++17", **options)
    try:
        program = cuda_core.Program(kernels.HEADER.read_text(), "c++", options)
        code = bytes(program.compile("cubin", logs=log).code)
    except Exception as error:
        raise NymphError(errno.ENOEXEC, f"NVRTC can't compile for {arch}: {error}") from error
    if not code:
        raise NymphError(errno.ENOEXEC, f"NVRTC made nothing for {arch}")
    return code
