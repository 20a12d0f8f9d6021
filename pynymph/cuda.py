# SPDX-License-Identifier: MIT
"""BLAKE3 digests of arrays in the memory of a GPU, which the GPU makes itself.

>>> pynymph.cuda.digest(tensor) == pynymph.digest.payload(tensor.cpu().numpy())
True

An array is a torch tensor or parameter of any dtype, or an object with `__cuda_array_interface__` or
`__dlpack__`. A digest is of the array's bytes in C order, at any strides. The module needs the extra
`pynymph[cuda]`, and NVIDIA's driver.
"""

from __future__ import annotations

import errno
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pynymph import cuda_kernels as kernels
from pynymph.cuda_arrays import handle_of, memory_of
from pynymph.cuda_copy import copy
from pynymph.cuda_driver import check, devices, driver
from pynymph.cuda_driver import compile_for as compile_for
from pynymph.cuda_gpu import PLAIN, Many, On, Span, gpu_at, segments_of
from pynymph.cuda_kernels import Mode
from pynymph.errors import ArgumentError

__all__ = ["copy", "devices", "digest", "digest_into", "digest_many", "digest_segments", "tree"]


_FIRST = 1 << 28
"""Bytes of arrays whose digests digest_many() launches first. Each later launch has twice as many."""


_FIRST_PARTS = 1 << 30
"""Bytes of parts whose leaves digest_parts() launches before it looks at the others."""


def on_stream_of(memories: Sequence[Span], stream: int | None) -> On:
    """Choose the stream that reads all of `memories`. The caller enters the result."""
    if len(memories) == 1:
        (memory,) = memories
        gpu = gpu_at(memory.device)
        if stream is None:
            stream = gpu.stream if memory.stream is None else memory.stream
        return On(gpu, stream)
    ordinals = {memory.device for memory in memories if memory.nbytes}
    if len(ordinals) > 1:
        raise ArgumentError(
            errno.EINVAL, f"the arrays are on GPUs {sorted(ordinals)}; digest those of each by themselves"
        )
    gpu = gpu_at(ordinals.pop() if ordinals else 0)
    streams = {memory.stream for memory in memories if memory.stream is not None}
    if stream is None:
        stream = streams.pop() if len(streams) == 1 else gpu.stream
    return On(gpu, stream)


def _mode(key: bytes | None) -> Mode:
    return PLAIN if key is None else Mode(key)


def digest(array: Any, *, stream: Any = None, key: bytes | None = None) -> bytes:
    """Make the BLAKE3 digest of an array in device memory.

    Args:
        array: an array of any shape and strides. The digest is of its bytes in C order.
        stream: stream in whose order the array is read: torch's, cuda-core's, or a handle. Without one, it is
            the stream that the array names (torch: the current stream), else a stream of pynymph's.
        key: 32 bytes for a keyed digest, or None.

    Returns:
        BLAKE3-256, 32 bytes, equal to that of the official implementation.

    Raises:
        ArgumentError: EINVAL, `array` has no device memory; the message says what to give. EFAULT, its
            address is not in the memory of a GPU.
        NymphError: ENODEV, there is no GPU or no driver. ENOMEM, the GPU is out of memory. EIO, the GPU
            failed.
    """
    mode = PLAIN if key is None else Mode(key)
    handle = None if stream is None else handle_of(stream)
    memory = memory_of(array, handle)
    with on_stream_of((memory,), handle) as on:
        on.wait_for(memory.stream)
        return on.one(memory, mode)


def digest_segments(
    segments: Iterable[Any] = (),
    *,
    stream: Any = None,
    key: bytes | None = None,
    pieces: Iterable[Any] | None = None,
) -> bytes:
    """Make the digest of the concatenation of arrays on one GPU, without joining them.

    Args:
        segments: arrays as for digest(), of any length and alignment; `bytes` among them, such as a header,
            are copied to the GPU.
        stream: as for digest().
        key: as for digest().
        pieces: deprecated name of `segments`.

    Returns:
        BLAKE3-256, 32 bytes, equal to that of the official implementation.

    Raises:
        ArgumentError: as digest() raises it; EINVAL also if the arrays are on several GPUs.
        NymphError: as digest() raises it.
    """
    mode = _mode(key)
    handle = handle_of(stream)
    if pieces is not None:
        warnings.warn(
            "digest_segments(pieces=) is deprecated; give segments=", DeprecationWarning, stacklevel=2
        )
        segments = pieces
    parts = [part if isinstance(part, bytes) else memory_of(part, handle) for part in segments]
    memories = [part for part in parts if isinstance(part, Span)]
    with on_stream_of(memories, handle) as on:
        for producer in {memory.stream for memory in memories}:
            on.wait_for(producer)
        host = [part for part in parts if isinstance(part, bytes)]
        copied = iter(on.upload(*(np.frombuffer(part, np.uint8) for part in host)) if host else [])
        return on.joined(
            [
                Span(next(copied), len(part), on.gpu.ordinal, None, part) if isinstance(part, bytes) else part
                for part in parts
            ],
            mode,
        )


def digest_parts(parts: Iterable[Any], lengths: Sequence[int]) -> bytes:
    """Make the digest of the concatenation of parts, and begin before all of them are found.

    Args:
        parts: `bytes`, then arrays on one GPU, as for digest_segments().
        lengths: bytes of each of the parts, all above 0.

    Returns:
        As digest_segments() does.

    Raises:
        As digest_segments() does, or iterating over `parts`.
    """
    found = ((part, None) if isinstance(part, bytes) else (None, memory_of(part, None)) for part in parts)
    header, _ = next(found)
    assert header is not None
    _, first = next(found)
    assert first is not None
    with on_stream_of((first,), None) as on:
        (at,) = on.upload(np.frombuffer(header, np.uint8))
        spans, nbytes = [Span(at, len(header), on.gpu.ordinal, None, header)], len(header)
        addresses = np.zeros(len(lengths), np.uint64)
        addresses[0] = at
        made = state = None
        begun = 0
        for span in itertools.chain((first,), (span for _, span in found if span is not None)):
            if span.device != on.gpu.ordinal:
                raise ArgumentError(errno.EINVAL, f"parts are on GPUs {on.gpu.ordinal} and {span.device}")
            on.wait_for(span.stream)
            spans.append(span)
            nbytes += span.nbytes
            if made is None and nbytes >= _FIRST_PARTS:
                addresses[: len(spans)] = [each.address for each in spans]
                made = kernels.Leaves(on, PLAIN, lengths, addresses, joined=True)
                begun = min(made.complete(nbytes), made.blocks - 1)
                state = on.gpu.take_state(made.pairs)
                state.epoch = (state.epoch + 1) & 0xFFFFFFFF
                if begun:
                    made.leaf(state.address, (0, begun))
        if made is None or state is None or any(span.runs is not None for span in spans):
            return on.joined(spans, PLAIN)  # what was begun ends unused
        addresses[:] = [each.address for each in spans]
        made.move(addresses)
        made.leaf(state.address, (begun, made.blocks) if begun else None)
        made.top(state.address, state.out, state.mailbox)
        return on.finish(state)


def digest_many(arrays: Iterable[Any], *, stream: Any = None, key: bytes | None = None) -> list[bytes]:
    """Make the digest of each of many arrays in few launches.

    Args:
        arrays: arrays as for digest(), of any sizes and on any GPUs.
        stream: as for digest().
        key: as for digest().

    Returns:
        A list of digests of 32 bytes, in the order of the arrays.

    Raises:
        ArgumentError: as digest() raises it.
        NymphError: as digest() raises it.
    """
    mode = _mode(key)
    handle = handle_of(stream)
    digests: dict[int, bytes] = {}
    launched: list[Many] = []
    waiting: list[Span] = []
    first = nbytes = 0
    together = _FIRST

    def launch() -> None:
        for ordinal in sorted({memory.device for memory in waiting}):
            places = [i for i, memory in enumerate(waiting) if memory.device == ordinal]
            here = [waiting[i] for i in places]
            on = on_stream_of(here, handle)
            launched.append(Many(on, here, [first + i for i in places]))
            launched[-1].launch(mode)

    try:
        for array in arrays:
            memory = memory_of(array, handle)
            waiting.append(memory)
            nbytes += memory.nbytes
            if nbytes >= together:
                launch()  # and the GPU works while the next arrays are found
                first, nbytes, together = first + len(waiting), 0, 2 * together
                waiting.clear()
        launch()
    finally:
        for many in launched:
            digests |= many.finish()
    return [digests[i] for i in range(len(digests))]


def digest_into(array: Any, out: Any, *, stream: Any = None, key: bytes | None = None) -> None:
    """Launch the digest of an array into device memory, and do not wait. A CUDA graph can capture it.

    Each captured call takes 37 KiB of device memory until the process ends.

    Args:
        array: as for digest(). It must not be freed before the launch has ended.
        out: 32 bytes, C-contiguous, on the array's GPU. It must outlive the launch, or the graph.
        stream: as for digest().
        key: as for digest().

    Raises:
        ArgumentError: as digest() raises it; EINVAL also if `out` does not have 32 bytes.
        NymphError: as digest() raises it.
    """
    mode = _mode(key)
    handle = handle_of(stream)
    memory, to = memory_of(array, handle), memory_of(out, handle, writes=True)
    if to.nbytes != 32:
        raise ArgumentError(errno.EINVAL, f"out has {to.nbytes} bytes; a digest takes 32: give 32 bytes")
    with on_stream_of([memory, to], handle) as on:
        status = check(driver.cuStreamIsCapturing(on.stream), "asking for the stream")
        captured = status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        if not captured:
            on.wait_for(memory.stream)
            on.wait_for(to.stream)
        if captured and memory.runs is not None:
            raise ArgumentError(
                errno.EINVAL, "a graph can't capture an array with gaps; make it C-contiguous first"
            )
        if memory.runs is None and memory.nbytes <= kernels.SMALL:
            address = on.gpu.kept_state().address if captured else on.new_state(kernels.SMALL_PAIRS)
            args = kernels.small_args(mode, address, to.address)
            blocks = kernels.aim_small(args, memory.address, memory.nbytes)
            on.launch("small", args, blocks, kernels.SMALL_THREADS)
        else:
            made = kernels.Leaves(on, mode, *segments_of([memory]), joined=True)
            state = on.new_state(made.pairs)
            made.leaf(state)
            made.top(state, to.address)
        if not captured:
            on.hold_back(memory.stream)
            on.hold_back(to.stream)


def tree(array: Any, level: int, *, stream: Any = None, key: bytes | None = None) -> bytes:
    """Make the nodes of one level of an array's BLAKE3 tree.

    Two copies of an array differ exactly in the spans of 2**level KiB whose nodes differ; see
    pynymph.digest.differing(). pynymph.digest.tree() makes the same nodes for bytes in host memory.

    Args:
        array: as for digest().
        level: level of the nodes, 0 to 53. A node spans 2**level KiB; the last node can span less.
        stream: as for digest().
        key: as for digest().

    Returns:
        The chaining values of the nodes one after the other, 32 bytes each; the digest if there is one node.

    Raises:
        ArgumentError: as digest() raises it; EINVAL also if there is no such level.
        NymphError: as digest() raises it.
    """
    if not 0 <= level <= 53:
        raise ArgumentError(errno.EINVAL, f"a tree has levels 0 to 53; level is {level}")
    mode = _mode(key)
    handle = handle_of(stream)
    memory = memory_of(array, handle)
    with on_stream_of([memory], handle) as on:
        on.wait_for(memory.stream)
        return on.tree(memory, level, mode)
