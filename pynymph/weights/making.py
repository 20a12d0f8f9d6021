# SPDX-License-Identifier: MIT
"""Manifests made of files and of tensors in memory, comparisons with them, and digests of files."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from blake3 import blake3

from pynymph.errors import ArgumentError
from pynymph.weights.live import Bytes, bytes_of, differing_in, digests_of, is_plain, parts_of
from pynymph.weights.manifests import File, Manifest, Progress, Report, Tensor, WeightsError, Wrong
from pynymph.weights.safetensors_files import Place, places_of
from pynymph.weights.sources import opened, tensors_of
from pynymph.weights.wrappers import inner_tensors


def manifest(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    saved_as: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Make the manifest of a model.

    Args:
        source: files of safetensors, GGUF, torch.save(), npz, ONNX, or torch.distributed.checkpoint, or a
            folder of them; or tensors by name on GPUs or the CPU (a state_dict). The suffix tells the format.
        saved_as: files that the tensors were saved to; their bytes are compared with the tensors.
        progress: callback with the bytes done and all bytes.

    Returns:
        A Manifest.

    Raises:
        NymphError: a file can't be read, its library is not installed (ENOSYS), or there is no GPU.
        ArgumentError: EINVAL, a file is damaged, two files have one name, or a value is no tensor.
        WeightsError: EBADMSG, the saved bytes differ from the tensors.
    """
    if isinstance(source, Mapping):
        live = {name: bytes_of(name, tensor) for name, tensor in inner_tensors(source.items())}
        made = digests_of(live, nodes=True, progress=progress)
        result = Manifest({n: Tensor(b.dtype, b.shape, b.nbytes, *made[n]) for n, b in live.items()})
        if saved_as is not None:
            saved = {
                name: Bytes(span.dtype, span.shape, span.end - span.begin, host=file.bytes_of(name))
                for file in opened(saved_as)
                for name, span in file.spans.items()
            }
            # Tensors that share memory are saved once, under any one of their names.
            names = result.tensors.keys() & saved.keys()
            compared = Manifest({name: result.tensors[name] for name in names})
            compare(compared, {name: saved[name] for name in names}, "cpu", None)
        return result
    if saved_as is not None:
        raise ArgumentError(errno.EINVAL, "saved_as is for tensors, and source is files; leave out saved_as")
    result = Manifest()
    files = opened(source)
    for file in files:
        if file.header:
            header = bytes(file.header)
            text = header if file.kind == "safetensors" else b""
            result.files[file.name] = File(file.nbytes, len(header), blake3(header).digest(), text)
    where = tensors_of(files)
    made = digests_of_files(where, nodes=True, progress=progress)
    for name, file in where.items():
        span = file.spans[name]
        nbytes = span.end - span.begin
        result.tensors[name] = Tensor(span.dtype, span.shape, nbytes, *made[name], file.name)
    return result


def read(file: Any, name: str) -> Bytes:
    """Read a tensor of a file."""
    span = file.spans[name]
    return Bytes(span.dtype, span.shape, span.end - span.begin, host=file.bytes_of(name))


def digests_of_files(
    where: Mapping[str, Any], *, nodes: bool, progress: Progress | None
) -> dict[str, tuple[bytes, bytes]]:
    """Make digests of tensors of files, one at a time: a library may have to read them."""
    total = sum(file.spans[name].end - file.spans[name].begin for name, file in where.items())
    done = 0
    made: dict[str, tuple[bytes, bytes]] = {}
    for name, file in where.items():
        each = read(file, name)
        made |= digests_of({name: each}, nodes=nodes)
        done += each.nbytes
        if progress is not None:
            progress(done, total)
    return made


def compare(
    wanted: Manifest,
    found: Mapping[str, Bytes],
    where: str,
    progress: Progress | None,
    wrong: Iterable[Wrong] = (),
    files: Mapping[str, Any] | None = None,
) -> Report:
    """Compare tensors, or those of files, with a manifest.

    Args:
        wanted: the manifest.
        found: by name: the tensors; of files, without their bytes.
        where: devices that make the digests.
        progress: as for verify().
        wrong: what is known to be wrong.
        files: by name: the file that has the tensor, if they are in files.
    """
    began = time.monotonic()
    report = Report(where, wrong=list(wrong))
    if files is None:
        made = digests_of(found, nodes=False, progress=progress)
    else:
        made = digests_of_files(files, nodes=False, progress=progress)
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
            here = live if files is None else read(files[name], name)
            report.wrong.append(Wrong(name, "differs", differing_in(here, tensor)))
    report.unexpected = sorted(spare)
    report.seconds = time.monotonic() - began
    if not report.ok:
        raise WeightsError(report)
    return report


@functools.lru_cache(maxsize=16)
def _places(header: bytes) -> Mapping[str, Place]:
    """Read a header, which takes as long as the digest of GiBs, once."""
    return MappingProxyType(places_of("the header's file", header))


def _as_in_file(name: str, tensor: Any, span: Place) -> Bytes:
    each = bytes_of(name, tensor)
    if (each.dtype, each.shape) != (span.dtype, span.shape):
        is_now, should = f"{each.dtype} {list(each.shape)}", f"{span.dtype} {list(span.shape)}"
        raise ArgumentError(
            errno.EINVAL, f"{name} is {is_now} instead of {should}; give it as it is in the file"
        )
    return each


def _on_gpu(spans: Mapping[str, Place], tensors: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the tensors that have bytes, in their order in the file."""
    for name, span in spans.items():
        tensor = tensors[name]
        if not is_plain(tensor, span.dtype, span.shape):
            tensor = _as_in_file(name, tensor, span).device
        if span.end > span.begin:
            if tensor is None:
                raise _on_host(name)
            yield tensor


def _on_host(name: str | None) -> ArgumentError:
    message = f"{name} is in host memory, and others are not; give all from one GPU"
    return ArgumentError(errno.EINVAL, message)


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
    spans = _places(bytes(header))
    if missing := [name for name in spans if name not in tensors]:
        raise ArgumentError(errno.EINVAL, f"{missing[0]} is missing; give all tensors of the header")
    lengths = {name: span.end - span.begin for name, span in spans.items() if span.end > span.begin}
    first = next(iter(lengths), None)
    if algorithm == "blake3" and first is not None and bytes_of(first, tensors[first]).device is not None:
        from pynymph import cuda

        parts = itertools.chain((bytes(header),), _on_gpu(spans, tensors))
        return cuda.digest_parts(parts, [len(header), *lengths.values()])
    live = {name: _as_in_file(name, tensors[name], span) for name, span in spans.items()}
    if algorithm == "blake3" and any(live[name].device is not None for name in lengths):
        raise _on_host(first)
    hasher = blake3(header, max_threads=blake3.AUTO) if algorithm == "blake3" else hashlib.sha256(header)
    for each in live.values():
        for part in parts_of(each):
            hasher.update(part)
    return hasher.digest()
