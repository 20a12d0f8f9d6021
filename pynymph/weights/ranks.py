# SPDX-License-Identifier: MIT
"""Comparison of the replicas of a model that torch.distributed connects."""

from __future__ import annotations

import errno
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from pynymph import digest
from pynymph.errors import ArgumentError
from pynymph.weights.live import digests_as_found, nodes_of, state_of
from pynymph.weights.manifests import LEVEL

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RankDifference:
    """Describe a tensor that is not the same on all ranks."""

    name: str
    majority: tuple[int, ...]
    """Ranks that agree, and are more than half of all; empty if no such ranks exist."""
    ranges: dict[int, tuple[tuple[int, int], ...]]
    """By rank that is not in the majority: ranges of bytes, (first, end), in units of 16 MiB, in which it
    differs from the majority; without a majority, from the first rank of the group."""


@dataclass(frozen=True)
class RanksReport:
    """Keep the result of compare_ranks() or compare_actors().

    That of compare_ranks() is the same on all ranks, except for `seconds`.
    """

    ranks: tuple[int, ...]
    """All ranks of the group, as numbered in the default group; or the places of the actors."""
    tensors: int
    nbytes: int
    seconds: float
    differences: tuple[RankDifference, ...]

    @property
    def ok(self) -> bool:
        """Whether all ranks have the same bytes in all tensors."""
        return not self.differences


def compare_ranks(model: Any, group: Any = None) -> RanksReport:
    """Compare the tensors of a model on all ranks of a group, without sending them.

    All ranks of the group have to call it. They exchange 32 bytes a tensor in one collective, after one of 40
    bytes that proves that all have the same tensors. If some differ, one more has the nodes that say where.

    Args:
        model: a torch module (its parameters and persistent buffers), or tensors by name. All ranks must hold
            the same slice of the model: give the data-parallel group.
        group: a group of torch.distributed, or None for the default group.

    Returns:
        A RanksReport.

    Raises:
        ArgumentError: EINVAL, torch.distributed is not initialized, this process is not in the group, or
            ranks have other names, dtypes or shapes; the message names those ranks.
        NymphError: there is no GPU, or it failed.
    """
    import numpy as np
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(errno.EINVAL, "torch.distributed has no group; call init_process_group() first")
    if dist.get_rank(group) < 0:
        raise ArgumentError(
            errno.EINVAL, "this process is not in the group; call compare_ranks() in its members"
        )
    began = time.monotonic()
    ranks = tuple(dist.get_process_group_ranks(group or dist.group.WORLD))
    live, made = digests_as_found(state_of(model))
    layout = json.dumps([[name, each.dtype, each.shape] for name, each in sorted(live.items())])
    layouts = _exchange(len(live).to_bytes(8, "little") + blake3(layout.encode()).digest(), group)
    same_layout(ranks, layouts, "ranks", lambda layout: int.from_bytes(layout[:8], "little"))
    names = sorted(live)
    # by rank, tensor and byte
    all_digests = np.frombuffer(
        b"".join(_exchange(b"".join(made[name] for name in names), group)), np.uint8
    ).reshape(len(ranks), len(names), 32)
    different = [names[i] for i in np.flatnonzero((all_digests != all_digests[0]).any(axis=(0, 2)))]
    differences = []
    if different:
        trees = {name: nodes_of(live[name]) for name in different}
        everywhere = _exchange(b"".join(trees.values()), group)
        at = 0
        for name, tree in trees.items():
            of_ranks = [nodes[at : at + len(tree)] for nodes in everywhere]
            differences.append(difference(name, live[name].nbytes, ranks, of_ranks))
            at += len(tree)
    nbytes = sum(each.nbytes for each in live.values())
    return RanksReport(ranks, len(names), nbytes, time.monotonic() - began, tuple(differences))


def _exchange(mine: bytes, group: Any) -> list[bytes]:
    """Send the same number of bytes to all ranks. Returns what each rank sent."""
    import numpy as np
    import torch
    import torch.distributed as dist

    device = "cuda" if "nccl" in dist.get_backend(group) else "cpu"
    here: NDArray[Any] = np.frombuffer(mine, np.uint8).copy()
    to = torch.empty((dist.get_world_size(group), len(mine)), dtype=torch.uint8, device=device)
    dist.all_gather_into_tensor(to.view(-1), torch.from_numpy(here).to(device), group=group)
    return [bytes(row.numpy().data) for row in to.cpu()]


def same_layout(
    ranks: tuple[int, ...], layouts: list[Any], who: str, count: Callable[[Any], int] = len
) -> None:
    """Raise ArgumentError if some have other tensors than most.

    Args:
        ranks: numbers of those that are compared.
        layouts: what they say of their tensors, in the same order.
        who: what they are, for the message.
        count: a function that tells how many tensors a layout has.
    """
    usual = max(layouts, key=layouts.count)
    others = [rank for rank, layout in zip(ranks, layouts, strict=True) if layout != usual]
    if others:
        counts = {count(layout) for layout in layouts}
        numbers = f" ({' and '.join(map(str, sorted(counts)))} tensors)" if len(counts) > 1 else ""
        raise ArgumentError(
            errno.EINVAL,
            f"{who} {others} have other names, dtypes or shapes than the others{numbers}; give {who} that "
            "hold the same slice of the model",
        )


def difference(name: str, nbytes: int, ranks: tuple[int, ...], nodes: list[bytes]) -> RankDifference:
    """Say which ranks differ from most in a tensor, and where."""
    usual, count = Counter(nodes).most_common(1)[0]
    agree = count * 2 > len(ranks)
    against = usual if agree else nodes[0]
    ranges = {
        rank: tuple(digest.differing(here, against, LEVEL, nbytes))
        for rank, here in zip(ranks, nodes, strict=True)
        if here != against
    }
    majority = tuple(rank for rank in ranks if rank not in ranges) if agree else ()
    return RankDifference(name, majority, ranges)
