# SPDX-License-Identifier: MIT
"""Checks that a weight update arrives: snapshot, reset, update, compare.

vLLM's and SGLang's weight checkers have the same actions, and copy each tensor to the host for SHA-256.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pynymph.errors import ArgumentError
from pynymph.weights.live import Bytes, differing_in, digests_as_found, digests_of, state_of, state_tensors
from pynymph.weights.manifests import Manifest, Tensor, Wrong


@dataclass(frozen=True)
class Comparison:
    """Keep the result of Checker.compare()."""

    tensors: int
    """Number of tensors compared."""
    nbytes: int
    seconds: float
    mismatches: tuple[Wrong, ...]
    """Tensors that differ, are missing or are new, by their keys. Ranges of bytes are in units of 16 MiB."""

    @property
    def match(self) -> bool:
        """Whether all tensors have the bytes of the snapshot."""
        return not self.mismatches


class Checker:
    """Check the tensors of a model before and after a weight update.

    >>> checker = weights.Checker(model, tp=rank)
    >>> checker.snapshot()
    >>> checker.reset()          # tensors that the update does not bring are noticed
    >>> update_the_weights()
    >>> checker.compare().mismatches
    ()

    Digests are BLAKE3 of a tensor's bytes in C order, made by the device that has them. Keys have the form
    `dp=0/pp=0/tp=0/ep=0:name`, so that those of all ranks can be in one dict. Parameters and persistent
    buffers are checked, except those with the mark `_skip_weight_check`, and what modules save beside them,
    such as the scales of bitsandbytes. A wrapper tensor is checked by its inner tensors and its context.

    Args:
        model: a torch module, or tensors by name.
        dp: data-parallel rank of this process.
        pp: pipeline-parallel rank.
        tp: tensor-parallel rank.
        ep: expert-parallel rank.
    """

    def __init__(self, model: Any, *, dp: int = 0, pp: int = 0, tp: int = 0, ep: int = 0) -> None:
        self._model = model
        self._prefix = f"dp={dp}/pp={pp}/tp={tp}/ep={ep}:"
        self._snapshot: Manifest | None = None

    def _live(self) -> Iterator[tuple[str, Bytes]]:
        """Find the tensors anew: an update may replace them."""
        return ((self._prefix + name, each) for name, each in state_of(self._model))

    def snapshot(self) -> None:
        """Keep the digests of all tensors, and the nodes that locate faults: 2 KiB of host memory a GiB.

        Raises:
            ArgumentError: EINVAL, a tensor can't be read; the message says why.
            NymphError: there is no GPU, or it failed.
        """
        live = dict(self._live())
        made = digests_of(live, nodes=True)
        self._snapshot = Manifest({n: Tensor(b.dtype, b.shape, b.nbytes, *made[n]) for n, b in live.items()})

    def checksum(self) -> dict[str, str]:
        """Make the digests of all tensors.

        Returns:
            Digests by key, 64 hexadecimal digits each.

        Raises:
            ArgumentError: as snapshot() raises it.
            NymphError: as snapshot() raises it.
        """
        return {name: made.hex() for name, made in digests_as_found(self._live())[1].items()}

    def reset(self) -> None:
        """Overwrite all tensors with random numbers. Each tensor that has bytes changes.

        The snapshot is not touched, also where tensors are on the CPU.
        """
        import torch

        with torch.no_grad():
            for _, tensor in state_tensors(self._model):
                _randomize(tensor.detach(), torch)

    def compare(self, checksums: Mapping[str, str] | None = None) -> Comparison:
        """Compare all tensors with the snapshot, or with checksums of another process.

        Args:
            checksums: what checksum() of a process with the same ranks returned; None for the snapshot.
                They tell which tensors differ, and not where.

        Returns:
            A Comparison.

        Raises:
            ArgumentError: as snapshot() raises it; EINVAL also if there is no snapshot.
            NymphError: as snapshot() raises it.
        """
        if checksums is None and self._snapshot is None:
            raise ArgumentError(errno.EINVAL, "there is no snapshot to compare with; call snapshot() first")
        began = time.monotonic()
        live, made = digests_as_found(self._live())
        mismatches = []
        if checksums is not None:
            expected: Mapping[str, Any] = checksums
            known = made.keys() & checksums.keys()
            mismatches = [
                Wrong(name, "differs") for name in sorted(known) if made[name].hex() != checksums[name]
            ]
        else:
            assert self._snapshot is not None
            expected = self._snapshot.tensors
            for name, before in self._snapshot.tensors.items():
                now = live.get(name)
                if now is None:
                    continue
                if (now.dtype, now.shape) != (before.dtype, before.shape):
                    is_now, was = f"{now.dtype} {list(now.shape)}", f"{before.dtype} {list(before.shape)}"
                    mismatches.append(Wrong(name, f"is {is_now} instead of {was}"))
                elif made[name] != before.digest:
                    mismatches.append(Wrong(name, "differs", differing_in(now, before)))
        mismatches += [Wrong(name, "is missing") for name in expected if name not in live]
        mismatches += [Wrong(name, "is new") for name in live if name not in expected]
        nbytes = sum(each.nbytes for each in live.values())
        return Comparison(len(live), nbytes, time.monotonic() - began, tuple(mismatches))


def _randomize(tensor: Any, torch: Any) -> None:
    """Overwrite a tensor with finite random numbers. If a small one stays as it is, change it."""
    before = tensor.clone() if tensor.numel() <= 64 else None
    one_byte = tensor.element_size() == 1 and tensor.dtype != torch.bool
    if one_byte:
        tensor.view(torch.uint8).random_(0, 64)  # finite in each of the formats of 8 bits
    elif tensor.dtype == torch.bool:
        tensor.random_(0, 2)
    elif tensor.is_floating_point() or tensor.is_complex():
        tensor.normal_()
    else:
        tensor.random_(0, 128)
    if before is not None and torch.equal(_octets(before, torch), _octets(tensor, torch)):
        if tensor.dtype == torch.bool:
            tensor.logical_not_()
        elif one_byte:
            tensor.view(torch.uint8).bitwise_xor_(1)
        else:
            tensor.add_(1)


def _octets(tensor: Any, torch: Any) -> Any:
    flat = tensor.reshape(-1)
    return flat.clone(memory_format=torch.contiguous_format).view(torch.uint8)
