# SPDX-License-Identifier: MIT
"""Loaders of other projects, and verification of what they loaded."""

from __future__ import annotations

import errno
import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pynymph.errors import ArgumentError, NymphError
from pynymph.weights.manifests import Manifest, Progress, read_file
from pynymph.weights.safetensors_files import shards
from pynymph.weights.verification import verify


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


def loaded_model(
    path: str | os.PathLike[str],
    *,
    device: str = "cuda:0",
    dtype: str = "auto",
    build: str | Callable[[str], Any] | None = None,
) -> Any:
    """Load a model as the program that uses it does, for match(), and verify nothing.

    Without `build`, transformers loads it with the class that its config.json names. No code that comes with
    the model is run.

    Args:
        path: the model's folder.
        device: name of the device in torch, to which the model is moved.
        dtype: name of a dtype in torch, to which transformers casts, or "auto" for that of the files.
        build: a function that gets the path and returns a torch module, or its name as "MODULE:FUNCTION".

    Returns:
        The torch module.

    Raises:
        ArgumentError: EINVAL, config.json names no class of transformers, there is no such dtype or function,
            a dtype is given with `build`, or `build` returned no torch module.
        NymphError: config.json can't be read; ENOSYS, torch or transformers is not installed; EIO, the model
            can't be loaded or moved.
    """
    if build is not None and dtype != "auto":
        message = f"dtype is {dtype}, and build makes the model; leave out dtype, or have build cast"
        raise ArgumentError(errno.EINVAL, message)
    function = _function(build) if isinstance(build, str) else build
    config = Path(path) / "config.json"
    named, quantized = _architecture(config) if function is None else ("", False)
    torch = _installed("torch")
    cast = "auto" if dtype == "auto" else getattr(torch, dtype, None)
    if cast != "auto" and not isinstance(cast, torch.dtype):
        raise ArgumentError(errno.EINVAL, f"torch has no dtype {dtype!r}; give one such as bfloat16")
    try:
        to = torch.device(device)
    except RuntimeError as error:
        raise ArgumentError(errno.EINVAL, f"torch has no device {device!r}: {_first(error)}") from None
    if function is None:
        kind: Any = getattr(_installed("transformers"), named, None)
        if not hasattr(kind, "from_pretrained"):
            message = (
                f"{config} names {named!r}, which this transformers does not have; upgrade it, or give build"
            )
            raise ArgumentError(errno.EINVAL, message)

        def function(path: str) -> Any:
            # Quantized models can't be moved later. This needs accelerate.
            placed = {"device_map": {"": device}} if quantized else {}
            return kind.from_pretrained(path, dtype=cast, local_files_only=True, **placed)

    try:
        model = function(str(path))
        if not isinstance(model, torch.nn.Module):
            message = f"build returned a {type(model).__qualname__}; return a torch module"
            raise ArgumentError(errno.EINVAL, message)
        model.eval()
        tensors = (*model.parameters(), *model.buffers())
        if all(each.device.type == to.type and to.index in (None, each.device.index) for each in tensors):
            return model
        return model.to(to)
    except ArgumentError:
        raise
    except Exception as error:
        raise NymphError(errno.EIO, f"{path} can't be loaded: {_first(error)}") from error


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"{name} is not installed: {_first(error)}; pip install torch transformers"
        raise NymphError(errno.ENOSYS, message) from error


def _first(error: BaseException) -> str:
    """Return the first line of an error, or its name."""
    return next(iter(str(error).splitlines()), type(error).__qualname__)


def _architecture(config: Path) -> tuple[str, bool]:
    """Return the name of the class that config.json names, and whether the model is quantized."""
    named, whole = None, {}
    try:
        whole = json.loads(read_file(config))
        named = whole["architectures"][0]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        pass
    if not isinstance(named, str):
        message = f'{config} names no class under "architectures"; give the folder of a model, or build'
        raise ArgumentError(errno.EINVAL, message)
    return named, "quantization_config" in whole


def _function(name: str) -> Callable[[str], Any]:
    module, _, attribute = name.partition(":")
    message = f"build is {name!r}; give MODULE:FUNCTION, of a module that Python can import"
    if not module or not attribute:
        raise ArgumentError(errno.EINVAL, message)
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ArgumentError(errno.EINVAL, f"{message}: {error}") from None
    if not callable(found):
        raise ArgumentError(errno.EINVAL, f"{module} has no function {attribute!r}; give MODULE:FUNCTION")
    function: Callable[[str], Any] = found
    return function


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
