# SPDX-License-Identifier: MIT
"""Where the tensors of a running model come from, and the proof of it.

A live tensor is brought into the form that the files have, by views where that is possible, and compared
with the digest of the file's tensor. Names say what belongs together; a digest alone never does, as equal
tensors are many.
"""

from __future__ import annotations

import copy
import errno
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from pynymph.errors import ArgumentError
from pynymph.weights import making
from pynymph.weights.live import (
    Bytes,
    bytes_of,
    device_of,
    differing_in,
    digests_of,
    inner_tensors,
    torch_dtype,
    transient_buffers,
)
from pynymph.weights.manifests import Manifest, Progress, Tensor, Wrong
from pynymph.weights.safetensors_files import Mapped, shards

_TOGETHER = 256 << 20
"""Bytes of tensors that may be copied at once to bring them into the form of the files."""
_PIECE = 32 << 20
"""Bytes of a file's tensor that are cast at once."""


@dataclass(frozen=True)
class Origin:
    """Say where a live tensor comes from, and what proves it."""

    how: str
    """"same name"; "other name"; "merged" of several; "split" off a larger one; "converted", if its bytes are
    in another order than in the files; "tied" to another live tensor; "computed", a buffer that no file has;
    or "unknown"."""
    proof: str
    """"bytes", if it has the bytes of the files; "cast", if it has them after a cast; else ""."""
    nbytes: int
    sources: tuple[str, ...] = ()
    """Tensors of the files; for a tied tensor, those of the tensor that it is tied to."""
    ranges: tuple[tuple[int, int], ...] = ()
    """For a merged tensor: the ranges of its bytes, (first, end), that its sources are, if they are such."""
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
        """Return the names of live tensors with this proof: "bytes", "cast", or "" for none."""
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


@dataclass(frozen=True)
class _Verdict:
    """A part's range of bytes in the live tensor, if it is one; and its proof, or why there is none."""

    source: str
    live: tuple[str, ...]
    range: tuple[int, int] | None
    proof: str
    why: str


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
    live one.

    Args:
        model: a torch module, or tensors by name.
        files: a safetensors file, or a folder of them; None, with a manifest, proves no casts.
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
    made = _Matching(model, wanted, files, progress).run()
    made.seconds = time.monotonic() - began
    return made


class _Matching:
    """Match the tensors of a model, some at a time, so that few are copied at once."""

    def __init__(
        self, model: Any, wanted: Manifest, files: str | os.PathLike[str] | None, progress: Progress | None
    ) -> None:
        self.wanted = wanted.tensors
        mapped = [] if files is None else [Mapped(path) for path in shards(files)]
        self.files = {name: file for file in mapped for name in file.spans}
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
        self.live = dict(inner_tensors(named.items()))
        self.tied = _tied(self.live)
        self.total, self.done = sum(_nbytes(self.live[names[0]]) for names in self.tied), 0
        self.forms = _Forms(model, self.live, self.wanted)
        self.waiting: list[_Part] = []
        self.copied = 0
        self.verdicts: dict[str, list[_Verdict]] = defaultdict(list)
        """By live name."""
        self.result = Match(holders=dict.fromkeys(self.wanted, ()))
        self.places: set[str] = set()

    def run(self) -> Match:
        for names in self.tied:
            for name in names:
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
                self.verdicts[name].append(_Verdict(part.source, part.live, place, proof, why))
            self.result.holders[part.source] += part.live
            self.done += each.nbytes
            if self.progress is not None:
                self.progress(min(self.done, self.total), self.total)

    def _compare(self, part: _Part, each: Bytes, file: Tensor, made: bytes) -> tuple[str, str]:
        """Returns the proof, or why there is none."""
        shown = f"differs, as {part.live[0]}" if part.live != (part.source,) else "differs"
        if each.shape != file.shape:
            problem = f"is {each.dtype} {list(each.shape)} instead of {file.dtype} {list(file.shape)}"
        elif each.dtype == file.dtype:
            if made == file.digest:
                return "bytes", ""
            self.result.wrong.append(Wrong(part.source, shown, differing_in(each, file)))
            return "", "its bytes differ from the files"
        elif "F" in each.dtype and "F" in file.dtype and torch_dtype(file.dtype) is not None:
            if not self.files:
                return "", f"it is {each.dtype}, perhaps a cast of {file.dtype}; give the files to find out"
            ranges = self._differ_after_cast(part, file)
            if not ranges:
                return "cast", ""
            problem = f"{shown}, after a cast of {file.dtype} to {each.dtype},"
            self.result.wrong.append(Wrong(part.source, problem, ranges))
            return "", "its bytes differ from the files, after a cast"
        else:
            problem = f"is {each.dtype} instead of {file.dtype}"
        self.result.wrong.append(Wrong(part.source, problem))
        return "", problem

    def _differ_after_cast(self, part: _Part, file: Tensor) -> tuple[tuple[int, int], ...]:
        """Cast the file's tensor on the device of the live one. Returns the live bytes that differ."""
        import torch

        if part.source not in self.files:
            message = f"{part.source} is not in the files; give the files of the manifest"
            raise ArgumentError(errno.EINVAL, message)
        raw, dtype = self.files[part.source].bytes_of(part.source), torch_dtype(file.dtype)
        hasher = blake3(max_threads=blake3.AUTO)
        live = part.tensor.detach().reshape(-1)
        ranges: list[tuple[int, int]] = []
        for begin in range(0, len(raw), _PIECE):
            piece = bytearray(raw[begin : begin + _PIECE])  # what is hashed is what is cast
            hasher.update(piece)
            cast = torch.frombuffer(piece, dtype=dtype).to(live.device).to(live.dtype)
            first = begin // dtype.itemsize
            here = live[first : first + len(cast)]
            if not torch.equal(cast.view(torch.uint8), here.view(torch.uint8)):
                ranges.append((first * live.element_size(), (first + len(cast)) * live.element_size()))
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
            sources = tuple(each.source for each in verdicts)
            ranges = tuple(each.range for each in verdicts if each.range is not None)
            whole = len(ranges) == len(verdicts)
            if not of[name]:
                how = "tied"
            elif any(len(each.live) > 1 for each in verdicts):
                how = "split" if len(verdicts) == 1 else "converted"
            elif len(verdicts) > 1:
                how = "merged"
            elif not whole:
                how = "converted"
            else:
                how = "same name" if sources == (name,) else "other name"
            cast = any(each.proof == "cast" for each in verdicts)
            proof = "" if failed else "cast" if cast else "bytes"
            shown = ranges if whole and how == "merged" else ()
            why = failed[0] if failed else ""
            self.result.origins[name] = Origin(how, proof, nbytes, sources, shown, why)


class _Forms:
    """Bring live tensors into the form that the files have, by the names of tensors in them."""

    def __init__(self, model: Any, live: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
        self.model, self.live, self.wanted = model, live, wanted
        self.revert = _conversion_of(model)
        self.turned = _Turned.of(model) if self.revert is not None else None
        self.packed = dict(getattr(model, "packed_modules_mapping", None) or {})
        self.why: dict[str, str] = {}
        self.targets: dict[str, set[str]] = defaultdict(set)
        """By name in the files: live tensors of which it consists, if there are several."""
        self.together: dict[str, set[str]] = defaultdict(set)
        """By name in transformers' conversion: live tensors that can only be converted back together."""
        self.by_suffix: dict[str, list[str]] = defaultdict(list)
        for name in wanted:
            parts = name.split(".")
            for i in range(1, len(parts)):
                self.by_suffix[".".join(parts[i:])].append(name)

    def of(self, name: str) -> list[_Part]:
        """Return the parts of a live tensor that can be told from it alone."""
        tensor = self.live[name]
        if self.revert is not None:
            try:
                reverted = self.revert(self.model, {name: tensor})
            except Exception as error:  # what a conversion raises that needs other tensors, too
                reverted = {}
                self.why[name] = f"transformers can't convert it back: {error}"
                if name not in self.wanted:
                    self.together[_converted_with(self.model, name)].add(name)
                    return []
            found = {self._known(key): each for key, each in reverted.items()}
            if self.turned is not None and not all(self._fits(key, each) for key, each in found.items()):
                turned = self.revert(self.turned, {name: tensor})
                turned = {self._known(key): each for key, each in turned.items()}
                if all(self._fits(key, each) for key, each in turned.items()):
                    found = turned
            if all(self._fits(key, each) for key, each in found.items()):
                if found and sum(each.numel() for each in found.values()) == tensor.numel():
                    return [_Part(key, each.detach(), (name,)) for key, each in found.items()]
                if found:
                    self.why[name] = (
                        f"transformers makes {', '.join(found)} of it with other numbers of elements"
                    )
            elif len(found) == 1 and found.keys() <= self.wanted.keys() and name not in self.wanted:
                self.targets[next(iter(found))].add(name)
                return []
        if (known := self._known(name)) in self.wanted:
            return [_Part(known, tensor.detach(), (name,))]
        return self._unpacked(name, tensor)

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
            return [_Part(source, part, (name,)) for source, part in zip(sources, split, strict=True)]
        return []

    def joint(self) -> Iterable[list[_Part]]:
        """Yield the parts that consist of several live tensors, such as a fused one of the files."""
        assert self.revert is not None or not self.targets
        for target, names in self.targets.items():
            assert self.revert is not None
            try:
                reverted = self.revert(self.model, {name: self.live[name] for name in names})
            except Exception as error:
                self.why |= dict.fromkeys(names, f"transformers can't convert it back: {error}")
                continue
            found = {self._known(key): each for key, each in reverted.items()}
            made = found.get(target)
            whole = made is not None and made.numel() == sum(self.live[name].numel() for name in names)
            if made is None or not whole or not self._fits(target, made):
                self.why |= dict.fromkeys(names, f"it does not make {target} of the files")
                continue
            yield [_Part(target, made.detach(), tuple(sorted(names)))]
        for names in self.together.values():
            if len(names) == 1:  # of() tried that
                continue
            assert self.revert is not None
            try:
                reverted = self.revert(self.model, {name: self.live[name] for name in names})
            except Exception as error:
                self.why |= dict.fromkeys(names, f"transformers can't convert it back: {error}")
                continue
            found = {self._known(key): each for key, each in reverted.items()}
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


def _converted_with(model: Any, name: str) -> str:
    """Return what all live tensors have in common that transformers converts back together with this one."""
    from transformers.core_model_loading import WeightConverter, apply_converters

    reversals = [
        each.reverse_transform() for each in reversed(getattr(model, "_weight_conversions", None) or [])
    ]
    return str(apply_converters(name, [each for each in reversals if isinstance(each, WeightConverter)])[0])


class _Turned:
    """Stand for a model of transformers whose files have some tensors transposed, as their shapes tell.

    Transpose with `check_dims` looks at the file's shape on loading. Its reversal looks at that of the model,
    and so transposes nothing.
    """

    def __init__(self, model: Any, conversions: list[Any]) -> None:
        self._model, self._weight_conversions = model, conversions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @classmethod
    def of(cls, model: Any) -> _Turned | None:
        """Return what stands for the model, or None if no conversion depends on shapes."""
        conversions = []
        found = False
        for each in getattr(model, "_weight_conversions", None) or ():
            if any(getattr(operation, "check_dims", False) for operation in getattr(each, "operations", ())):
                each, found = copy.deepcopy(each), True
                for operation in each.operations:
                    if getattr(operation, "check_dims", False):
                        operation.check_dims = False
            conversions.append(each)
        return cls(model, conversions) if found else None


def _tied(live: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Group the names of tensors that are the same memory, seen in the same way."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, each in live.items():
        same = (each.data_ptr(), each.shape, each.stride(), each.dtype, each.device) if each.numel() else name
        groups[same].append(name)
    return [tuple(names) for names in groups.values()]


def _shares(part: Any, live: Any) -> bool:
    return bool(part.untyped_storage().data_ptr() == live.untyped_storage().data_ptr())


def _nbytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _range(live: Any, part: Any) -> tuple[int, int] | None:
    """Return the range of bytes that a part is of a live tensor, or None if it is none."""
    if not (live.is_contiguous() and part.is_contiguous()):
        return (0, _nbytes(live)) if part.data_ptr() == live.data_ptr() and part.shape == live.shape else None
    begin = part.data_ptr() - live.data_ptr()
    inside = _shares(part, live) and begin >= 0 and begin + _nbytes(part) <= _nbytes(live)
    return (begin, begin + _nbytes(part)) if inside else None
