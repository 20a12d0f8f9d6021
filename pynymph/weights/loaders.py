# SPDX-License-Identifier: MIT
"""Loaders of other projects, and verification of what they loaded."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from pynymph.errors import ArgumentError, NymphError
from pynymph.weights.manifests import Manifest, Progress
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
