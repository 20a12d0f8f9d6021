# SPDX-License-Identifier: MIT
"""Verification of files, of tensors by name, and of a running model, against a manifest."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from pynymph import digest
from pynymph.errors import ArgumentError
from pynymph.weights.live import Bytes, bytes_of, device_of
from pynymph.weights.making import compare
from pynymph.weights.manifests import Manifest, Progress, Report, WeightsError, Wrong
from pynymph.weights.matching import match
from pynymph.weights.sources import opened, tensors_of
from pynymph.weights.wrappers import inner_tensors


def verify(
    source: Any,
    manifest: Manifest | str | os.PathLike[str],
    *,
    files: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Verify a model, tensors in memory, or files, against a manifest.

    A tensor by name that has another name than in the manifest is found by its digest. Those of a model are
    matched as match() does it: nothing unmatched counts as proven, and buffers that no file has are listed.

    Args:
        source: a torch module; or tensors by name; or files, as for manifest().
        manifest: a Manifest, or the path of one.
        files: for a torch module, the files of the manifest: proves tensors that were cast or dequantized on
            loading, and shards.
        progress: callback with the bytes done and all bytes.

    Returns:
        A Report without faults.

    Raises:
        WeightsError: EBADMSG, tensors are missing, differ, or can't be proven; `report` says which and where.
        ArgumentError: as manifest() and match() raise it; EINVAL also if files are given, and no model.
        NymphError: as manifest() raises it.
    """
    wanted = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    if hasattr(source, "named_parameters"):
        return _model(source, wanted, files, progress)
    if files is not None:
        raise ArgumentError(errno.EINVAL, "files is for a torch module, and source is none; leave out files")
    if isinstance(source, Mapping):
        found = {name: bytes_of(name, tensor) for name, tensor in inner_tensors(source.items())}
        places = sorted({device_of(each) for each in found.values()})
        return compare(wanted, found, " and ".join(places) or "cpu", progress)
    mapped = opened(source)
    where = tensors_of(mapped)
    spans = {name: file.spans[name] for name, file in where.items()}
    found = {name: Bytes(each.dtype, each.shape, each.end - each.begin) for name, each in spans.items()}
    headers = []
    for file in mapped:
        expected = wanted.files.get(file.name)
        if expected is not None and digest.payload(file.header) != expected.header_digest:
            headers.append(Wrong(file.name, "its header differs"))
    return compare(wanted, found, "cpu", progress, headers, where)


def _model(
    model: Any, wanted: Manifest, files: str | os.PathLike[str] | None, progress: Progress | None
) -> Report:
    found = match(model, files, wanted, progress=progress)
    report = Report(
        found.where,
        tensors=len(wanted.tensors),
        nbytes=wanted.nbytes,
        seconds=found.seconds,
        wrong=found.wrong,
        missing=found.missing,
        renamed={name: live[0] for name, live in found.holders.items() if live and name not in live},
        cast=found.of("cast"),
        dequantized=found.of("dequantized"),
        unproven=found.unproven,
        computed=found.computed,
    )
    if not report.ok:
        raise WeightsError(report)
    return report
