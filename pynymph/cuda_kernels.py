# SPDX-License-Identifier: MIT
"""The kernels of cuda_blake3.h: their arguments and tables, and the choice of kernels for a digest.

This module needs no GPU. A Machine runs the kernels: a GPU in pynymph.cuda, the CPU in the unit tests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from cffi import FFI
from numpy.typing import NDArray

from pynymph import digest

HEADER = Path(__file__).with_name("cuda_blake3.h")

THREADS = 256
"""Threads of a block of all kernels but small: as many leaves as a block of leaf and many hashes."""
FEW_THREADS = 128
"""Threads of a block of leaf if it has at most FEW leaves: more of the GPU's multiprocessors get some."""
FEW = 128 * FEW_THREADS
SMALL_THREADS = 128
SMALL_LEAVES = SMALL_THREADS // 4
"""Leaves that a block of the kernel small hashes."""
TOP_NODES = 512
"""Nodes that a block of the kernel top takes."""
MIDDLE = 4
"""Levels that the kernel middle rises."""
MANY_NODES = 1 << 18
"""Lowest number of nodes for which a launch of middle saves time."""
RISE = 9
"""Highest number of levels that a block of top rises."""
LEVELS = 3
"""Levels of the tree that leaf makes above the leaves."""
SMALL = 16 << 20
"""Longest input in bytes for which small is the fastest kernel."""
SMALL_PAIRS = 8 * (SMALL // (1024 * SMALL_LEAVES) + 64)
SCRATCH = 512 << 20
"""Most bytes of copies of leaves at a time. More copies take more launches."""


def _declarations() -> str:
    """Return the structs of the header as C declarations for cffi."""
    text = HEADER.read_text()
    code = re.sub(r"/\*.*?\*/", " ", text[: text.index("/* ---- compression ---- */")], flags=re.DOTALL)
    structs = re.findall(r"^struct \w+ \{.*?^\};", code, flags=re.DOTALL | re.MULTILINE)
    types = "typedef unsigned char u8; typedef unsigned int u32; typedef unsigned long long u64;"
    return types + "".join(structs).replace("\n", " ")


ffi = FFI()
ffi.cdef(_declarations())
# From cuda.h: CUlaunchConfig and CUlaunchAttribute.
ffi.cdef("""
struct launch_attribute { u32 id; u32 pad; u32 value[16]; };
struct launch_config {
    u32 blocks[3]; u32 threads[3]; u32 shared_nbytes;
    u64 stream; struct launch_attribute *attributes; u32 count;
};
""")

_JOB = np.dtype(
    [
        ("length", "<u8"),
        ("first_node", "<u8"),
        ("first_pair", "<u8"),
        ("first_block", "<u4"),
        ("first_top", "<u4"),
        ("first_segment", "<u4"),
        ("segments", "<u4"),
    ]
)
_KIND = np.dtype([("first_block", "<u4"), ("first", "<u4"), ("inputs", "<u4"), ("pitch", "<u4")])
assert _JOB.itemsize == ffi.sizeof("struct job") and _KIND.itemsize == ffi.sizeof("struct kind")

Words = NDArray[np.uint64]


class Machine(Protocol):
    """Run kernels in the order of one stream of a device."""

    def upload(self, *arrays: NDArray[Any]) -> list[int]:
        """Copy arrays to the device. Returns their addresses, multiples of 16."""

    def scratch(self, nbytes: int) -> int:
        """Allocate memory until the launched kernels have ended. Returns its address."""

    def launch(
        self, kernel: str, args: Any, blocks: int, threads: int = THREADS, *, early: bool = False
    ) -> None:
        """Launch `blocks` blocks of a kernel. `early`: it may start before the kernel before it has ended."""


class Mode:
    """Keep the chaining value and the flags that every compression starts from.

    Args:
        key: 32 bytes for keyed digests, or None for plain ones.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self.words, self.flags = digest.mode(key)

    def args(self, kind: str) -> Any:
        args = ffi.new(f"struct {kind}_args *")
        args.mode.key = self.words
        args.mode.flags = self.flags
        args.mode.one = 1
        return args


def leaves(length: int) -> int:
    return max(1, -(-length // 1024))


def _threads_of(count: int) -> int:
    """Choose the threads of a block of leaf."""
    return FEW_THREADS if count <= FEW else THREADS


def pairs_of(blocks: int) -> int:
    """Count the pairs (word, epoch) that `blocks` blocks of one digest pass their nodes through."""
    pairs = 0
    while blocks > 1:
        pairs += 8 * blocks
        blocks = -(-blocks // (32 if blocks > 64 else 64))
    return pairs


def small_args(mode: Mode, state: int, out: int, mailbox: int = 0) -> Any:
    """Make the arguments of the kernel small, without its input: see aim_small().

    Args:
        mode: plain or keyed.
        state: address of u32 epoch, 12 bytes, SMALL_PAIRS pairs; zeroed once, and used by one launch at a
            time.
        out: address of 32 bytes for the digest.
        mailbox: address of 8 pairs (word, epoch) in memory that the host reads, or 0.

    Returns:
        A struct small_args.
    """
    args = mode.args("small")
    args.epoch = ffi.cast("u32 *", state)
    args.pairs = ffi.cast("u64 *", state + 16)
    args.out = ffi.cast("u32 *", out)
    args.mailbox = ffi.cast("u64 *", mailbox)
    return args


def aim_small(args: Any, address: int, length: int) -> int:
    """Set the input of the kernel small, at most SMALL bytes. Returns the number of blocks to launch."""
    args.address = address
    args.length = length
    blocks = (length + 1024 * SMALL_LEAVES - 1) // (1024 * SMALL_LEAVES) or 1
    args.blocks = blocks
    return blocks


def _ceil(values: Words, unit: int) -> Words:
    return (values + np.uint64(unit - 1)) // np.uint64(unit)


def _before(values: Words) -> Words:
    """Return the sum of all values before each."""
    return np.concatenate(([0], np.cumsum(values)[:-1])).astype(np.uint64)


class Leaves:
    """Make digests with the kernels leaf, middle and top.

    Args:
        machine: the device.
        mode: plain or keyed.
        lengths: bytes of each segment.
        addresses: address of each segment.
        joined: whether the segments, one after the other, are one job; else each segment is a job.
        levels: number of levels that leaf makes above the leaves.
    """

    def __init__(
        self,
        machine: Machine,
        mode: Mode,
        lengths: Words | Sequence[int],
        addresses: Words | Sequence[int],
        *,
        joined: bool,
        levels: int = LEVELS,
    ) -> None:
        self._machine, self._mode = machine, mode
        if len(lengths) == 1:
            self._alone(int(lengths[0]), int(addresses[0]), levels)
            return
        lengths, addresses = np.asarray(lengths, np.uint64), np.asarray(addresses, np.uint64)
        if joined:
            addresses, lengths = addresses[lengths > 0], lengths[lengths > 0]
        if joined and len(lengths) <= 1:
            self._alone(int(lengths.sum()), int(addresses.sum()), levels)
        else:
            self._tables(lengths, addresses, joined, levels)

    def _levels(self, least: int, levels: int) -> int:
        """Limit `levels` so that no root is made in leaf. `least`: number of leaves of the smallest job."""
        return min(levels, max(0, (least - 1).bit_length() - 1))

    def _alone(self, length: int, address: int, levels: int) -> None:
        count = leaves(length)
        self.jobs, self.length, self.levels = 1, length, self._levels(count, levels)
        self.threads = _threads_of(count)
        self.blocks, self.nodes = -(-count // self.threads), -(-count // (1 << self.levels))
        self.tops = -(-self.nodes // TOP_NODES)
        self.pairs = pairs_of(self.tops)
        self.aligned = address % 16 == 0
        self._ranges = [(0, self.blocks, 0)]
        self._only = {"length": length, "segments": 1}
        self._table = 0
        self._args = self._new("leaf")
        self._args.address = address
        self._args.levels = self.levels
        # One allocation takes less time than two. Nodes begin at multiples of 32.
        scratch = self._machine.scratch(32 * self.nodes + (64 if self.aligned else 3 << 10))
        self._args.nodes = ffi.cast("u32 *", scratch)
        self._args.scratch = ffi.cast("u8 *", scratch + 32 * self.nodes)

    def _tables(self, lengths: Words, addresses: Words, joined: bool, levels: int) -> None:
        starts = _before(lengths) if joined else np.zeros_like(lengths)
        totals = lengths.sum(keepdims=True) if joined else lengths
        count = np.maximum(_ceil(totals, 1024), np.uint64(1))
        self.levels = self._levels(int(count.min()), levels)
        nodes = _ceil(count, 1 << self.levels)
        tops = _ceil(nodes, TOP_NODES)
        pairs = np.array([pairs_of(n) for n in tops.tolist()], np.uint64)
        self.threads = _threads_of(int(count.sum()))
        blocks = _ceil(count, self.threads)
        jobs = np.zeros(len(totals), _JOB)
        jobs["length"] = totals
        jobs["first_node"] = _before(nodes)
        jobs["first_pair"] = _before(pairs)
        jobs["first_block"] = _before(blocks)
        jobs["first_top"] = _before(tops)
        jobs["first_segment"] = np.arange(len(totals))
        jobs["segments"] = len(lengths) if joined else 1
        self.jobs, self.length = len(jobs), int(totals[0])
        self.blocks, self.nodes = int(blocks.sum()), int(nodes.sum())
        self.tops, self.pairs = int(tops.sum()), int(pairs.sum())
        self._only = {name: int(jobs[0][name]) for name in _JOB.names or ()} if len(jobs) == 1 else {}
        self.aligned = not joined and not (addresses % 16).any()
        # Each segment has copies of up to three of the leaves that start in it.
        begun = np.maximum(
            _ceil(starts + lengths, 1024) - _ceil(starts, 1024), (lengths == 0).astype(np.uint64)
        )
        copies = np.minimum(begun, np.uint64(3))
        slots = _before(copies)
        self._ranges = [(0, self.blocks, 0)]
        scratch = 64 * len(totals) if self.aligned else 1024 * int(copies.sum())
        if not self.aligned and scratch > SCRATCH:
            first_blocks = _ceil(starts, 1024) // np.uint64(self.threads) if joined else jobs["first_block"]
            self._ranges, scratch = self._split(first_blocks.astype(np.uint64), slots, copies)
        self._table, starts_at, addresses_at, slots_at = self._machine.upload(
            jobs, starts, addresses, slots.astype(np.uint32)
        )
        self._args = args = self._new("leaf")
        args.starts = ffi.cast("u64 *", starts_at)
        args.addresses = ffi.cast("u64 *", addresses_at)
        args.slots = ffi.cast("u32 *", slots_at)
        args.levels = self.levels
        args.scratch = ffi.cast("u8 *", self._machine.scratch(scratch))
        args.nodes = ffi.cast("u32 *", self._machine.scratch(32 * self.nodes))

    def _new(self, kind: str) -> Any:
        args = self._mode.args(kind)
        args.njobs = self.jobs
        args.jobs = ffi.cast("struct job *", self._table)
        for name, value in self._only.items():
            setattr(args.only, name, value)
        return args

    def _split(
        self, first_blocks: Words, slots: Words, copies: Words
    ) -> tuple[list[tuple[int, int, int]], int]:
        """Return ranges of blocks (first, end, first slot) whose copies fit into SCRATCH, and their bytes."""
        ranges = []
        most = first = segment = 0
        while first < self.blocks:
            # The first segment whose copies no longer fit, and the block that it starts in.
            fits = int(np.searchsorted(slots + copies, slots[segment] + np.uint64(SCRATCH // 1024), "right"))
            end = self.blocks if fits >= len(slots) else max(int(first_blocks[fits]), first + 1)
            last = int(np.searchsorted(first_blocks, end, "left"))
            ranges.append((first, end, int(slots[segment])))
            most = max(most, int(slots[last - 1] + copies[last - 1] - slots[segment]))
            # Leaves of the segment before can start in the next block.
            segment = max(last - 1, 0)
            first = end
        return ranges, most * 1024

    def move(self, addresses: Words) -> None:
        """Change the addresses of the segments for what is launched from now on."""
        (at,) = self._machine.upload(addresses)
        self._args.addresses = ffi.cast("u64 *", at)

    def leaf(self, epoch: int = 0, blocks: tuple[int, int] | None = None) -> None:
        """Launch the kernel leaf, which makes the nodes of level `levels`.

        Args:
            epoch: address of the state that top() is given, or 0.
            blocks: first and end of the blocks to launch; None for all.
        """
        for first, end, slot in self._ranges if blocks is None else [(*blocks, 0)]:
            self._args.first = first
            self._args.slot0 = slot
            self._args.epoch = ffi.cast("u32 *", 0 if first else epoch)
            kernel = "leaf" if self.aligned else "leaf_any"
            self._machine.launch(kernel, self._args, end - first, self.threads)

    def complete(self, nbytes: int) -> int:
        """Count the blocks of leaf of the only job that need no more than its first bytes, for leaf()."""
        return 0 if len(self._ranges) > 1 else nbytes // (1024 * self.threads)

    def top(self, state: int, out: int, mailbox: int = 0) -> None:
        """Launch the kernels middle and top, which make the digests of the nodes.

        Args:
            state: address of u32 epoch, 12 bytes, and `pairs` pairs; zeroed once, and used by one launch at a
                time.
            out: address of 32 bytes for each job.
            mailbox: as for small_args().
        """
        level, nodes, count, tops = self.levels, self._args.nodes, self.nodes, self.tops
        while self.jobs == 1 and count >= MANY_NODES:
            args = self._mode.args("middle")
            args.nodes = nodes
            args.total = count
            blocks = -(-count // (2 * THREADS))
            level += MIDDLE
            count = -(-count // (1 << MIDDLE))
            tops = -(-count // TOP_NODES)
            nodes = args.out = ffi.cast("u32 *", self._machine.scratch(32 * count))
            self._machine.launch("middle", args, blocks, early=True)
        args = self._new("top")
        args.level = level
        args.nodes = nodes
        args.epoch = ffi.cast("u32 *", state)
        args.pairs = ffi.cast("u64 *", state + 16)
        args.out = ffi.cast("u32 *", out)
        args.mailbox = ffi.cast("u64 *", mailbox)
        self._machine.launch("top", args, tops, early=True)

    def tree(self, level: int) -> tuple[int, int]:
        """Launch the making of a higher level of the only job. Returns address and number of its nodes."""
        assert self.jobs == 1 and level >= self.levels
        now, nodes, count = self.levels, self._args.nodes, self.nodes
        while now < level:
            rise = min(RISE, level - now)
            args = self._new("top")
            args.level = now
            args.levels = rise
            args.nodes = nodes
            blocks = -(-count // TOP_NODES)
            count = -(-count // (1 << rise))
            nodes = args.out = ffi.cast("u32 *", self._machine.scratch(32 * count))
            self._machine.launch("top", args, blocks, early=True)
            now += rise
        return int(ffi.cast("u64", nodes)), count


def many(
    machine: Machine, mode: Mode, lengths: Words, addresses: Words, places: Sequence[int] | Words, out: int
) -> None:
    """Launch the digests of inputs of at most THREADS leaves each.

    Args:
        machine: the device.
        mode: plain or keyed.
        lengths: bytes of each input.
        addresses: address of each input.
        places: index of each input's digest in `out`.
        out: address of 32 bytes for each index.
    """
    count = np.maximum(_ceil(lengths, 1024), np.uint64(1))
    pitch = np.where(count == 1, np.uint64(1), (count + np.uint64(1)) & ~np.uint64(1))
    order = np.argsort(pitch, kind="stable")
    lengths, addresses, pitch, count = lengths[order], addresses[order], pitch[order], count[order]
    aligned = not (addresses % 16).any()
    pitches, first, inputs = np.unique(pitch, return_index=True, return_counts=True)
    each = np.uint64(THREADS) // pitches
    blocks = (inputs.astype(np.uint64) + each - np.uint64(1)) // each
    kinds = np.zeros(len(pitches), _KIND)
    kinds["first_block"] = _before(blocks)
    kinds["first"] = first
    kinds["inputs"] = inputs
    kinds["pitch"] = pitches
    copies = np.minimum(count, np.uint64(3))
    slots = _before(copies)
    args = mode.args("many")
    kinds_at, addresses_at, lengths_at, slots_at, places_at = machine.upload(
        kinds,
        addresses,
        lengths.astype(np.uint32),
        slots.astype(np.uint32),
        np.asarray(places, np.uint32)[order],
    )
    args.kinds = ffi.cast("struct kind *", kinds_at)
    args.addresses = ffi.cast("u64 *", addresses_at)
    args.lengths = ffi.cast("u32 *", lengths_at)
    args.slots = ffi.cast("u32 *", slots_at)
    args.places = ffi.cast("u32 *", places_at)
    args.out = ffi.cast("u32 *", out)
    args.nkinds = len(kinds)
    total = int(blocks.sum())
    if aligned:
        ranges, scratch = [(0, total, 0)], 64 * len(lengths)
    else:
        # No block has more copies than THREADS, so this many blocks surely fit.
        step = max(1, SCRATCH // (1024 * THREADS))
        firsts = np.arange(0, total, step, dtype=np.uint64)
        kind = np.searchsorted(kinds["first_block"], firsts, "right") - 1
        inputs_before = kinds["first"][kind] + (firsts - kinds["first_block"][kind]) * each[kind]
        begins = slots[inputs_before.astype(np.int64)]
        ends = np.append(begins[1:], slots[-1] + copies[-1])
        ranges = [(int(b), min(int(b) + step, total), int(s)) for b, s in zip(firsts, begins, strict=True)]
        scratch = 1024 * int((ends - begins).max())
    args.scratch = ffi.cast("u8 *", machine.scratch(scratch))
    for begin, end, slot in ranges:
        args.first = begin
        args.slot0 = slot
        machine.launch("many" if aligned else "many_any", args, end - begin)
