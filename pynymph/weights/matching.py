# SPDX-License-Identifier: MIT
"""Where the tensors of a running model come from, and the proof of it.

A live tensor is brought into the form that the files have, by views where that is possible, and compared
with the digest of the file's tensor. Names say what belongs together; a digest alone never does, as equal
tensors are many.
"""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from pynymph.errors import ArgumentError
from pynymph.weights import dequantized, making
from pynymph.weights.live import (
    Bytes,
    bytes_of,
    device_of,
    differing_in,
    digests_of,
    enough_memory,
    is_out_of_memory,
    saved_beside,
    torch_dtype,
    transient_buffers,
)
from pynymph.weights.manifests import Manifest, Progress, Tensor, Wrong
from pynymph.weights.sources import opened, tensors_of
from pynymph.weights.wrappers import CONTEXT, Shard, inner_tensors, is_wrapper, shard_of

_TOGETHER = 256 << 20
"""Bytes of tensors that may be copied at once to bring them into the form of the files."""
_PIECE = 32 << 20
"""Bytes of a file's tensor that are cast at once."""

_SCALES = "_scale_inv"
"""What is behind the name of a tensor for its scales in files of FP8."""
_BLOCKS, _BLOCK_SCALES = "_blocks", "_scales"
"""What is behind the name of a tensor for its numbers and its scales in files of MXFP4."""


@dataclass(frozen=True)
class Origin:
    """Say where a live tensor comes from, and what proves it."""

    how: str
    """"same name"; "other name"; "merged" of several; "split" off a larger one; "converted", if its bytes are
    in another order than in the files; "tied" to another live tensor; a "shard", a slice of a tensor of the
    files; the "context" of a wrapper tensor; "computed", a buffer that no file has; or "unknown"."""
    proof: str
    """"bytes", if it has the bytes of the files; "cast", if it has them after a cast; "dequantized", if
    its numbers times their scales make it; else ""."""
    nbytes: int
    sources: tuple[str, ...] = ()
    """Tensors of the files; for a tied tensor, those of the tensor that it is tied to."""
    ranges: tuple[tuple[int, int], ...] = ()
    """For a merged tensor: the ranges of its bytes, (first, end), that its sources are, if they are such. For
    a shard: the range of bytes that it is of its source, if it is one."""
    slices: tuple[tuple[int, int], ...] = ()
    """For a shard, by dimension: what it is of its source, (first, end)."""
    why: str = ""
    """Why there is no proof."""


@dataclass
class Match:
    """Keep the result of match()."""

    where: str = "cpu"
    """Devices that made the digests, such as "cuda:0" or "cpu"."""
    origins: dict[str, Origin] = field(default_factory=dict)
    """By name of a live tensor: where it comes from."""
    holders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By name of a file's tensor: the live tensors that are made of it; empty if none is."""
    wrong: list[Wrong] = field(default_factory=list)
    """Tensors, by their names in the files, whose live bytes differ."""
    seconds: float = 0.0

    def of(self, proof: str) -> list[str]:
        """Return the names of live tensors with this proof: one of Origin.proof, "" for none."""
        return [name for name, origin in self.origins.items() if origin.proof == proof]

    @property
    def computed(self) -> list[str]:
        """Names of buffers that no file has, such as rotary frequencies: the configuration makes them."""
        return [name for name, origin in self.origins.items() if origin.how == "computed"]

    @property
    def unproven(self) -> dict[str, str]:
        """By name of a live tensor that is neither proven nor computed: why."""
        return {n: o.why for n, o in self.origins.items() if not o.proof and o.how != "computed"}

    @property
    def missing(self) -> list[str]:
        """Names of tensors of the files that no live tensor is made of."""
        return [name for name, live in self.holders.items() if not live]

    @property
    def ok(self) -> bool:
        """Whether all parameters and persistent buffers are proven, and no tensor of the files is missing."""
        return not self.wrong and not self.missing and not self.unproven


@dataclass(frozen=True)
class _Part:
    """A tensor in the form and under the name of the files, and the live tensors that it was made of."""

    source: str
    tensor: Any
    live: tuple[str, ...]
    slices: tuple[tuple[int, int], ...] | None = None
    """By dimension: what it is of the file's tensor, if it is not the whole."""
    scales: str = ""
    """Name of the file's tensor of scales, if it was dequantized."""


@dataclass(frozen=True)
class _Verdict:
    """A part's range of bytes in the live tensor, if it is one; and its proof, or why there is none."""

    source: str
    live: tuple[str, ...]
    range: tuple[int, int] | None
    proof: str
    why: str
    slices: tuple[tuple[int, int], ...] | None = None


def match(
    model: Any,
    files: str | os.PathLike[str] | None,
    manifest: Manifest | str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Match:
    """Find out where each tensor of a model comes from, and prove it.

    Names belong together if they are equal, or differ by a prefix; if the conversion mapping of transformers
    says so of its models; or if `packed_modules_mapping` does, which vLLM's and SGLang's models have.
    A tensor that was cast is proven by the cast of the file's tensor, 32 MiB at a time on the device of the
    live one, and one that was dequantized from FP8 blocks or MXFP4 by numbers times scales. A DTensor, as of
    FSDP2 or tensor parallelism, is proven to be a slice of the file's tensor. The parts of other wrapper
    tensors are those that torchao writes to files.

    Args:
        model: a torch module, or tensors by name.
        files: files, as for manifest(); None, with a manifest, proves nothing that was
            cast, dequantized or cut.
        manifest: a Manifest that the files have to agree with, or the path of one. Without one, the CPU makes
            that of the files.
        progress: callback with the bytes of live tensors done, and all bytes.

    Returns:
        A Match. It tells of faults, too.

    Raises:
        ArgumentError: EINVAL, neither files nor a manifest are given, a file is damaged, or a tensor can't be
            read.
        NymphError: a file can't be read, or there is no GPU.
    """
    if manifest is None and files is None:
        raise ArgumentError(errno.EINVAL, "there is nothing to compare with; give files, or a manifest")
    if manifest is not None:
        wanted = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    else:
        assert files is not None
        wanted = making.manifest(files)
    began = time.monotonic()
    with enough_memory("proving the tensors of a model"):
        made = _Matching(model, wanted, files, progress).run()
    made.seconds = time.monotonic() - began
    return made


class _Matching:
    """Match the tensors of a model, some at a time, so that few are copied at once."""

    def __init__(
        self, model: Any, wanted: Manifest, files: str | os.PathLike[str] | None, progress: Progress | None
    ) -> None:
        self.manifest, self.wanted = wanted, wanted.tensors
        mapped = [] if files is None else opened(files)
        self.files = tensors_of(mapped)
        self.progress = progress
        self.transient: set[str] = set()
        if isinstance(model, Mapping):
            named = dict(model)
        else:
            named = {
                **dict(model.named_parameters(remove_duplicate=False)),
                **dict(model.named_buffers(remove_duplicate=False)),
            }
            self.transient = transient_buffers(model)
            named = {**dict(saved_beside(model)), **named}
        self.live: dict[str, Any] = {}
        self.shards: dict[str, Shard] = {}
        self.wrappers: dict[str, Any] = {}
        """By name of the context of a wrapper tensor: that tensor."""
        for name, each in named.items():
            shard = shard_of(each)
            if shard is not None and not is_wrapper(shard.local):
                self.live[name] = shard.local
                if not shard.whole:
                    self.shards[name] = shard
            else:
                self.live |= inner_tensors([(name, each)])
                if is_wrapper(each):
                    self.wrappers[f"{name}.{CONTEXT}"] = each
        self.tied = _tied(self.live)
        self.total, self.done = sum(_nbytes(self.live[names[0]]) for names in self.tied), 0
        self.forms = _Forms(model, self.live, self.wanted, self.shards)
        self.waiting: list[_Part] = []
        self.copied = 0
        self.verdicts: dict[str, list[_Verdict]] = defaultdict(list)
        """By live name."""
        self.result = Match(holders=dict.fromkeys(self.wanted, ()))
        self.places: set[str] = set()

    def run(self) -> Match:
        for names in self.tied:
            for name in names:
                if name in self.wrappers and name not in self.wanted:
                    why = _context_differs(name, self.wrappers[name], self.manifest)
                    self.verdicts[name].append(_Verdict("", (name,), None, "" if why else "bytes", why))
                    continue
                for part in self.forms.of(name):
                    self._add(part)
        for group in self.forms.joint():
            for part in group:
                self._add(part)
        self._flush()
        for names in self.tied:
            self._explain(names)
        self.result.where = " and ".join(sorted(self.places)) or "cpu"
        return self.result

    def _add(self, part: _Part) -> None:
        if not part.tensor.is_contiguous() or not _shares(part.tensor, self.live[part.live[0]]):
            self.copied += _nbytes(part.tensor)
        self.waiting.append(part)
        if self.copied >= _TOGETHER:
            self._flush()

    def _flush(self) -> None:
        """Compare the parts that wait, and forget them."""
        parts, self.waiting, self.copied = self.waiting, [], 0
        found = {str(i): bytes_of(part.source, part.tensor) for i, part in enumerate(parts)}
        made = digests_of(found, nodes=False)
        self.places |= {device_of(each) for each in found.values()}
        for i, part in enumerate(parts):
            each, file = found[str(i)], self.wanted[part.source]
            proof, why = self._compare(part, each, file, made[str(i)][0])
            for name in part.live:
                place = _range(self.live[name], part.tensor)
                self.verdicts[name].append(_Verdict(part.source, part.live, place, proof, why, part.slices))
            for source in filter(None, (part.source, part.scales)):
                self.result.holders[source] += part.live
            self.done += each.nbytes
            if self.progress is not None:
                self.progress(min(self.done, self.total), self.total)

    def _compare(self, part: _Part, each: Bytes, file: Tensor, made: bytes) -> tuple[str, str]:
        """Returns the proof, or why there is none."""
        shown = f"differs, as {part.live[0]}" if part.live != (part.source,) else "differs"
        if part.scales:
            return self._compare_dequantized(part, each, file, shown)
        floats = "F" in each.dtype and "F" in file.dtype and torch_dtype(file.dtype) is not None
        if "F4" in (each.dtype, file.dtype) and (part.slices is not None or each.dtype != file.dtype):
            return "", "it is a cast or a part of a tensor with two elements in a byte"
        if part.slices is not None:
            whole = self.shards[part.live[0]].shape
            if whole != file.shape:
                problem = f"is of {each.dtype} {list(whole)} instead of {file.dtype} {list(file.shape)}"
            elif each.dtype == file.dtype or floats:
                return self._compare_with_file(part, each, file, f"{shown}, in the part that is here")
            else:
                problem = f"is {each.dtype} instead of {file.dtype}"
        elif each.shape != file.shape:
            problem = f"is {each.dtype} {list(each.shape)} instead of {file.dtype} {list(file.shape)}"
        elif each.dtype == file.dtype:
            if made == file.digest:
                return "bytes", ""
            self.result.wrong.append(Wrong(part.source, shown, differing_in(each, file)))
            return "", "its bytes differ from the files"
        elif floats:
            return self._compare_with_file(part, each, file, shown)
        else:
            problem = f"is {each.dtype} instead of {file.dtype}"
        self.result.wrong.append(Wrong(part.source, problem))
        return "", problem

    def _compare_with_file(self, part: _Part, each: Bytes, file: Tensor, shown: str) -> tuple[str, str]:
        """Compare with the bytes of the file, where a digest is not enough. Returns as _compare() does."""
        cast = each.dtype != file.dtype
        what = f"{each.dtype}, perhaps a cast of {file.dtype}" if cast else f"a part of {part.source}"
        if not self.files:
            return "", f"it is {what}; give the files to find out"
        ranges = self._differ_from_file(part, file)
        if not ranges:
            return "cast" if cast else "bytes", ""
        after = f", after a cast of {file.dtype} to {each.dtype}" if cast else ""
        self.result.wrong.append(Wrong(part.source, f"{shown}{after}," if after else shown, ranges))
        return "", f"its bytes differ from the files{', after a cast' if cast else ''}"

    def _compare_dequantized(self, part: _Part, each: Bytes, file: Tensor, shown: str) -> tuple[str, str]:
        scales = self.wanted[part.scales]
        if problem := dequantized.mismatch(each.shape, file, scales):
            self.result.wrong.append(Wrong(part.source, problem))
            return "", problem
        if not self.files:
            return (
                "",
                f"it is {each.dtype}, perhaps made of {file.dtype} and scales; give the files to find out",
            )
        if missing := [name for name in (part.source, part.scales) if name not in self.files]:
            message = f"{missing[0]} is not in the files; give the files of the manifest"
            raise ArgumentError(errno.EINVAL, message)
        raw, raw_scales = (self.files[name].bytes_of(name) for name in (part.source, part.scales))
        pieces = dequantized.Pieces(file, scales, raw, raw_scales, part.tensor.detach())
        ranges = tuple(pieces.differing())
        if not pieces.right:
            message = f"{part.source} or its scales in the files differ from the manifest"
            raise ArgumentError(errno.EINVAL, f"{message}; give the files of the manifest")
        if not ranges:
            return "dequantized", ""
        self.result.wrong.append(Wrong(part.source, f"{shown}, dequantized to {each.dtype},", ranges))
        return "", "its bytes differ from the files, dequantized"

    def _differ_from_file(self, part: _Part, file: Tensor) -> tuple[tuple[int, int], ...]:
        """Cut and cast the file's tensor, on the device of the live one. Returns live bytes that differ."""
        import torch

        if part.source not in self.files:
            message = f"{part.source} is not in the files; give the files of the manifest"
            raise ArgumentError(errno.EINVAL, message)
        raw, dtype = self.files[part.source].bytes_of(part.source), torch_dtype(file.dtype)
        hasher = blake3(max_threads=blake3.AUTO)
        live = part.tensor.detach()
        if part.slices is None or not live.ndim:
            shape: tuple[int, ...] = (len(raw) // dtype.itemsize,)
            slices: tuple[tuple[int, int], ...] = ((0, shape[0]),)
            live = live.reshape(-1)
        else:
            shape, slices = file.shape, part.slices
        row = len(raw) // shape[0] if shape[0] else 0
        (begin, end), inner = slices[0], tuple(slice(*each) for each in slices[1:])
        live_row = _nbytes(live) // len(live) if len(live) else 0
        ranges: list[tuple[int, int]] = []
        rows = max(1, _PIECE // max(1, row))
        for first in range(0, shape[0] if row else 0, rows):
            last = min(first + rows, shape[0])
            piece = bytearray(raw[first * row : last * row])  # what is hashed is what is compared
            hasher.update(piece)
            low, high = max(first, begin), min(last, end)
            if low >= high or not live.numel():
                continue
            whole = torch.frombuffer(piece, dtype=dtype).reshape(last - first, *shape[1:])
            cut = whole[(slice(low - first, high - first), *inner)]
            cast = cut.to(live.device).to(live.dtype).reshape(-1)
            here = live[low - begin : high - begin].reshape(-1)
            if not torch.equal(_octets(cast), _octets(here)):
                ranges.append(((low - begin) * live_row, (high - begin) * live_row))
        if hasher.digest() != file.digest:
            message = f"{part.source} in the files differs from the manifest; give the files of the manifest"
            raise ArgumentError(errno.EINVAL, message)
        return tuple(ranges)

    def _explain(self, names: tuple[str, ...]) -> None:
        """Say where a live tensor, under all of its names, comes from."""
        nbytes = _nbytes(self.live[names[0]])
        of = {name: self.verdicts.get(name, []) for name in names}
        failed = [each.why for name in names for each in of[name] if each.why]
        others = next((verdicts for verdicts in of.values() if verdicts), [])
        for name in names:
            verdicts = of[name] or others
            if not verdicts:
                how = "computed" if self.transient.issuperset(names) else "unknown"
                why = self.forms.why.get(name, "no tensor of the files has its name")
                self.result.origins[name] = Origin(how, "", nbytes, why=why)
                continue
            sources = tuple(each.source for each in verdicts if each.source)
            ranges = tuple(each.range for each in verdicts if each.range is not None)
            whole = len(ranges) == len(verdicts)
            slices = verdicts[0].slices
            if name in self.wrappers and not sources:
                how = "context"
            elif not of[name]:
                how = "tied"
            elif slices is not None:
                how = "shard"
            elif any(len(each.live) > 1 for each in verdicts):
                how = "split" if len(verdicts) == 1 else "converted"
            elif len(verdicts) > 1:
                how = "merged"
            elif not whole:
                how = "converted"
            else:
                how = "same name" if sources == (name,) else "other name"
            proofs = {each.proof for each in verdicts}
            proof = "" if failed else next((p for p in ("dequantized", "cast") if p in proofs), "bytes")
            shown = ranges if whole and how == "merged" else ()
            if slices is not None:
                shown = _range_of_slices(slices, self.wanted[sources[0]])
            why = failed[0] if failed else ""
            self.result.origins[name] = Origin(how, proof, nbytes, sources, shown, slices or (), why)


class _Forms:
    """Bring live tensors into the form that the files have, by the names of tensors in them."""

    def __init__(
        self,
        model: Any,
        live: Mapping[str, Any],
        wanted: Mapping[str, Tensor],
        sharded: Mapping[str, Shard],
    ) -> None:
        self.live, self.wanted, self.sharded = live, wanted, sharded
        self.revert = _conversion_of(model)
        self.model = model if self.revert is None else _reversible(model)
        self.turned = None if self.revert is None else _turned(self.model)
        self.packed = dict(getattr(model, "packed_modules_mapping", None) or {})
        self.why: dict[str, str] = {}
        self.targets: dict[str, set[str]] = defaultdict(set)
        """By name in the files: live tensors of which it consists, if there are several."""
        self.together: dict[str, set[str]] = defaultdict(set)
        """By name in transformers' conversion: live tensors that can only be converted back together."""
        self.has_mxfp4 = any(name.endswith(_BLOCKS) for name in wanted)
        self.by_suffix: dict[str, list[str]] = defaultdict(list)
        for name in wanted:
            parts = name.split(".")
            for i in range(1, len(parts)):
                self.by_suffix[".".join(parts[i:])].append(name)

    def of(self, name: str) -> list[_Part]:
        """Return the parts of a live tensor that can be told from it alone."""
        tensor = self.live[name]
        if name in self.sharded:
            return self._slice(name, self.sharded[name])
        if packed := self._packed_numbers(name, tensor):
            return packed
        raised = False
        if self.revert is not None:
            try:
                reverted = self.revert(self.model, {name: tensor})
            except Exception as error:  # what a conversion raises that needs other tensors, too
                if is_out_of_memory(error):
                    raise
                reverted = {}
                self.why[name] = f"transformers can't convert it back: {error}"
                raised = True
            found = {self._known(key): each for key, each in reverted.items()}
            if self.turned is not None and not all(self._fits(key, each) for key, each in found.items()):
                turned = self.revert(self.turned, {name: tensor})
                turned = {self._known(key): each for key, each in turned.items()}
                if all(self._fits(key, each) for key, each in turned.items()):
                    found = turned
            if all(self._fits(key, each) for key, each in found.items()):
                if found and sum(each.numel() for each in found.values()) == tensor.numel():
                    return [self._part(key, each, name) for key, each in found.items()]
                if found:
                    self.why[name] = (
                        f"transformers makes {', '.join(found)} of it with other numbers of elements"
                    )
            elif len(found) == 1 and found.keys() <= self.wanted.keys() and name not in self.wanted:
                self.targets[next(iter(found))].add(name)
                return []
        for each in (name, _as_torchao_saves(name)):
            if (known := self._known(each)) in self.wanted:
                return [self._part(known, tensor, name)]
        parts = self._unpacked(name, tensor)
        if raised and not parts:
            self.together[_converted_with(self.model, name)].add(name)
        return parts

    def _slice(self, name: str, shard: Shard) -> list[_Part]:
        """Return a shard as a part of the file's tensor that has its name, or is renamed and no more."""
        if shard.slices is None:
            self.why[name] = shard.why
            return []
        known = self._renamed(name, shard.shape, shard.local.dtype)
        if known is None:
            return []
        if known not in self.wanted:
            return []
        return [_Part(known, shard.local.detach(), (name,), shard.slices)]

    def _renamed(self, name: str, shape: tuple[int, ...], dtype: Any) -> str | None:
        """Return the name in the files of a live tensor that is only renamed, or None if it is converted."""
        if self.revert is None:
            return self._known(name)
        import torch

        stands = torch.empty(shape, dtype=dtype, device="meta")
        try:
            (renamed, made), *others = self.revert(self.model, {name: stands}).items()
        except Exception as error:  # what a conversion raises that needs other tensors, too
            self.why[name] = f"transformers can't convert it back: {error}"
            return None
        if others or made is not stands:
            self.why[name] = "it is a part of what transformers converted"
            return None
        return self._known(renamed)

    def _part(self, source: str, tensor: Any, name: str) -> _Part:
        """Return a part of the live tensor `name`: dequantized, if the files have FP8 and scales of it."""
        scales = f"{source}{_SCALES}"
        made = self.wanted[source].dtype.startswith("F8_") and scales in self.wanted and _is_wide(tensor)
        return _Part(source, tensor.detach(), (name,), scales=scales if made else "")

    def _packed_numbers(self, name: str, tensor: Any) -> list[_Part]:
        """Return the numbers and scales of which a tensor was dequantized, if they are MXFP4 in the files."""
        if not self.has_mxfp4 or not _is_wide(tensor):
            return []
        known = self._renamed(f"{name}{_BLOCKS}", tuple(tensor.shape), tensor.dtype)
        scales = f"{(known or '').removesuffix(_BLOCKS)}{_BLOCK_SCALES}"
        if known is None or known not in self.wanted or scales not in self.wanted:
            return []
        return [_Part(known, tensor.detach(), (name,), scales=scales)]

    def _fits(self, name: str, tensor: Any) -> bool:
        return name in self.wanted and tuple(tensor.shape) == self.wanted[name].shape

    def _known(self, name: str) -> str:
        """Return the name in the files: this one, or the only one that differs by a prefix."""
        if name in self.wanted:
            return name
        longer = self.by_suffix.get(name, [])
        parts = name.split(".")
        shorter = [rest for i in range(1, len(parts)) if (rest := ".".join(parts[i:])) in self.wanted]
        found = longer + shorter
        # A name of one part, such as "weight", is no evidence.
        return found[0] if len(found) == 1 and "." in name and "." in found[0] else name

    def _unpacked(self, name: str, tensor: Any) -> list[_Part]:
        """Split a tensor that packed_modules_mapping says is several, one after the other."""
        path = name.split(".")
        for at, module in enumerate(path[:-1]):
            packed = [".".join((*path[:at], each, *path[at + 1 :])) for each in self.packed.get(module, ())]
            sources = [self._known(each) for each in packed]
            if not sources or not all(source in self.wanted for source in sources):
                continue
            rows = [self.wanted[source].shape[0] if self.wanted[source].shape else 0 for source in sources]
            if not tensor.ndim or sum(rows) != tensor.shape[0]:
                self.why[name] = f"it has other rows than {', '.join(sources)}"
                return []
            split = tensor.detach().split(rows)
            return [self._part(source, part, name) for source, part in zip(sources, split, strict=True)]
        return []

    def _reverted(self, names: Iterable[str]) -> dict[str, Any] | None:
        """Return what the files have for these live tensors together; None, and why, if it can't be made."""
        assert self.revert is not None
        try:
            reverted = self.revert(self.model, {name: self.live[name] for name in names})
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.why |= dict.fromkeys(names, f"transformers can't convert it back: {error}")
            return None
        return {self._known(key): each for key, each in reverted.items()}

    def joint(self) -> Iterable[list[_Part]]:
        """Yield the parts that consist of several live tensors, such as a fused one of the files."""
        assert self.revert is not None or not self.targets
        for target, names in self.targets.items():
            found = self._reverted(names)
            if found is None:
                continue
            made = found.get(target)
            whole = made is not None and made.numel() == sum(self.live[name].numel() for name in names)
            if made is None or not whole or not self._fits(target, made):
                self.why |= dict.fromkeys(names, f"it does not make {target} of the files")
                continue
            yield [_Part(target, made.detach(), tuple(sorted(names)))]
        for names in self.together.values():
            if len(names) == 1:  # of() tried that
                continue
            found = self._reverted(names)
            if found is None:
                continue
            whole = sum(each.numel() for each in found.values()) == sum(self.live[n].numel() for n in names)
            if not whole or not all(self._fits(key, each) for key, each in found.items()):
                self.why |= dict.fromkeys(names, f"it does not make {', '.join(found)} of the files")
                continue
            live = tuple(sorted(names))
            yield [_Part(key, each.detach(), live) for key, each in found.items()]


def _conversion_of(model: Any) -> Any:
    """Return transformers' function that gives tensors the form of its files, or None."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 the tensors are in the files as they are in the model
        return None
    return revert_weight_conversion


def _as_torchao_saves(name: str) -> str:
    """Return the name in files of torchao for a part of a wrapper tensor, such as "weight.qdata"."""
    path, _, part = name.rpartition(".")
    module, _, leaf = path.rpartition(".")
    return f"{module}._{leaf}_{part}" if module else f"_{leaf}_{part}" if leaf else name


def _context_differs(name: str, wrapper: Any, manifest: Manifest) -> str:
    """Compare a wrapper tensor's context with the metadata that torchao wrote to the files.

    Returns:
        "" if they are the same, or why that is not proven.
    """
    wanted = name.removesuffix(f".{CONTEXT}")
    saved: dict[str, str] = {}
    for file in manifest.files.values():
        try:
            saved |= json.loads(file.header[8:] or b"{}").get("__metadata__") or {}
        except (ValueError, TypeError, AttributeError, RecursionError):
            return "the header of the files has no metadata that can be read"
    found = [wanted] if wanted in saved else [key for key in saved if _same_but_prefix(key, wanted)]
    if len(found) != 1:
        return "the files say nothing of the fields of this wrapper tensor"
    try:
        from torchao.prototype.safetensors.safetensors_utils import TensorSubclassAttributeJSONEncoder
    except ImportError:
        return "the installed torchao does not tell how it writes the fields of this wrapper tensor"
    try:
        here = json.loads(json.dumps(wrapper, cls=TensorSubclassAttributeJSONEncoder))
        there = json.loads(saved[found[0]])
    except (TypeError, ValueError, RecursionError) as error:
        return f"the fields of this wrapper tensor can't be compared: {error}"
    for each in (here, there):
        if isinstance(each, dict) and isinstance(each.get("_tensor_data_names"), list):
            each["_tensor_data_names"].sort(key=str)  # no two writings have them in one order
    return "" if here == there else "the fields of this wrapper tensor differ from those in the files"


def _same_but_prefix(one: str, other: str) -> bool:
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def _octets(flat: Any) -> Any:
    """View a flat tensor as bytes."""
    import torch

    if flat.stride() != (1,):  # a lone element may say so, and can't be viewed as bytes
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


def _range_of_slices(slices: tuple[tuple[int, int], ...], whole: Tensor) -> tuple[tuple[int, int], ...]:
    """Return the range of bytes that a slice is of a file's tensor, or nothing if it is none."""
    if not math.prod(whole.shape):
        return ()
    item = whole.nbytes // math.prod(whole.shape)
    at, nbytes, whole_inside = 0, item, True
    for (begin, end), size in zip(reversed(slices), reversed(whole.shape), strict=True):
        if not whole_inside and end - begin != 1:
            return ()
        at += begin * item
        if whole_inside:
            nbytes = (end - begin) * item
            whole_inside = (begin, end) == (0, size)
        item *= size
    return ((at, at + nbytes),)


def _converted_with(model: Any, name: str) -> str:
    """Return what all live tensors have in common that transformers converts back together with this one."""
    try:
        from transformers.core_model_loading import WeightConverter, apply_converters
    except ImportError:  # before transformers 5.2x each tensor is converted back alone
        return name
    reversals = [
        each.reverse_transform() for each in reversed(getattr(model, "_weight_conversions", None) or [])
    ]
    return str(apply_converters(name, [each for each in reversals if isinstance(each, WeightConverter)])[0])


class _Stand:
    """Stand for a model of transformers with other conversions than the model has."""

    def __init__(self, model: Any, conversions: list[Any] | None) -> None:
        self._model, self._weight_conversions = model, conversions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _reversible(model: Any) -> Any:
    """Return the model, or what stands for it without conversions that can't be reversed, or quantize."""
    conversions = list(getattr(model, "_weight_conversions", None) or ())
    operations = [operation for each in conversions for operation in getattr(each, "operations", ())]
    if any(hasattr(operation, "hf_quantizer") for operation in operations):
        return _Stand(model, None)  # for which transformers takes the conversions of the class
    kept = []
    for each in conversions:
        try:
            each.reverse_transform()
        except NotImplementedError:
            continue
        kept.append(each)
    return model if len(kept) == len(conversions) else _Stand(model, kept)


def _turned(model: Any) -> _Stand | None:
    """Return what stands for a model whose files have tensors transposed, or None if shapes decide nothing.

    Transpose with `check_dims` looks at the file's shape on loading. Its reversal looks at that of the model,
    and so transposes nothing.
    """
    conversions = []
    found = False
    for each in getattr(model, "_weight_conversions", None) or ():
        if any(getattr(operation, "check_dims", False) for operation in getattr(each, "operations", ())):
            each, found = copy.deepcopy(each), True
            for operation in each.operations:
                if getattr(operation, "check_dims", False):
                    operation.check_dims = False
        conversions.append(each)
    return _Stand(model, conversions) if found else None


def _tied(live: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Group the names of tensors that are the same memory, seen in the same way."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, each in live.items():
        same = (each.data_ptr(), each.shape, each.stride(), each.dtype, each.device) if each.numel() else name
        groups[same].append(name)
    return [tuple(names) for names in groups.values()]


def _shares(part: Any, live: Any) -> bool:
    return bool(part.untyped_storage().data_ptr() == live.untyped_storage().data_ptr())


def _is_wide(tensor: Any) -> bool:
    """Tell whether numbers of 8 bits and less can have been dequantized to this tensor's dtype."""
    return bool(tensor.is_floating_point() and tensor.element_size() > 1)


def _nbytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _range(live: Any, part: Any) -> tuple[int, int] | None:
    """Return the range of bytes that a part is of a live tensor, or None if it is none."""
    if not (live.is_contiguous() and part.is_contiguous()):
        return (0, _nbytes(live)) if part.data_ptr() == live.data_ptr() and part.shape == live.shape else None
    begin = part.data_ptr() - live.data_ptr()
    inside = _shares(part, live) and begin >= 0 and begin + _nbytes(part) <= _nbytes(live)
    return (begin, begin + _nbytes(part)) if inside else None
