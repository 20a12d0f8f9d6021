# SPDX-License-Identifier: MIT
"""Copies from and to device memory. Each side's digest is made by the device that has its bytes."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from pynymph import cuda_kernels as kernels
from pynymph import digest as on_cpu
from pynymph._tree import ffi as tree_ffi
from pynymph._tree import lib as tree_lib
from pynymph.buffer import octets, with_bytes
from pynymph.cuda_arrays import handle_of, memory_of
from pynymph.cuda_driver import check, driver, need_device
from pynymph.cuda_gpu import PLAIN, Gpu, On, Span, gpu_at, order, segments_of
from pynymph.cuda_kernels import ffi
from pynymph.errors import ArgumentError, VerifyError
from pynymph.state import Completion

_CHUNK = 64 << 20
"""Bytes that are hashed while the next ones are copied; a multiple of a block of the kernel leaf."""
_CHUNK_TO_HOST = 8 << 20
"""The same, where CPUs hash what arrives."""
_SPAN_LEVEL = 9
_SPAN = 1024 << _SPAN_LEVEL
"""Bytes that a CPU hashes at a time; chunks are multiples of it."""
_STAGE = 8 << 20
"""Bytes of each pinned buffer that pageable memory is copied through."""
_STAGES = 6
_MOST_NODES = 1 << 16


@dataclass(slots=True)
class _Side:
    """Describe a source or a destination, in device memory or in host memory."""

    address: int
    nbytes: int
    gpu: Gpu | None
    memory: Span
    view: memoryview | None = None
    pinned: bool = False

    def digest(self, on: On) -> bytes:
        if self.view is not None:
            return blake3(self.view, max_threads=blake3.AUTO).digest()
        return on.one(self.memory, PLAIN)

    def tree(self, on: On, level: int) -> bytes:
        return on.tree(self.memory, level, PLAIN) if self.view is None else on_cpu.tree(self.view, level)

    def read(self, on: On, begin: int, end: int) -> bytes:
        return (
            on.download(self.address + begin, end - begin)
            if self.view is None
            else bytes(self.view[begin:end])
        )


def _is_on_device(array: Any) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return bool(array.device.type != "cpu")
    try:
        return array.__cuda_array_interface__ is not None
    except Exception:
        return hasattr(array, "__dlpack_device__") and int(array.__dlpack_device__()[0]) in (2, 13)


def _side(array: Any, name: str, stream: int | None, writes: bool) -> _Side:
    if _is_on_device(array):
        memory = memory_of(array, stream, writes=writes)
        if memory.runs is not None:
            raise ArgumentError(errno.EINVAL, f"{name} has gaps; give C-contiguous memory")
        return _Side(memory.address, memory.nbytes, gpu_at(memory.device), memory)
    view = octets(with_bytes(array, name))
    if writes and view.readonly:
        raise ArgumentError(errno.EINVAL, f"{name} is read-only; give a writable buffer")
    address = int(ffi.cast("u64", ffi.from_buffer(view))) if len(view) else 0
    need_device()
    kind = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    pinned = bool(address) and not driver.cuPointerGetAttribute(kind, address)[0]
    return _Side(address, len(view), None, Span(address, len(view), -1, None, view), view, pinned)


def copy(*, src: Any, dst: Any, verify: bool = True, stream: Any = None) -> Completion:
    """Copy all of `src` to `dst`, at least one of them in device memory, and verify that it arrived.

    The GPU hashes the side in its memory, and the CPU the side in host memory.

    Args:
        src: C-contiguous bytes: device memory as digest() takes it, or host memory as Ring.copy() takes it.
            Pinned host memory is the fastest.
        dst: writable memory of as many bytes, of the same kinds.
        verify: make both digests, and compare them.
        stream: stream in whose order device memory is read and written, as for digest(). The copy has ended
            on return.

    Returns:
        A Completion with both digests, 32 bytes each, if `verify`. Its engine is the GPU, such as "cuda:0".

    Raises:
        VerifyError: EBADMSG, `dst` differs from `src`; the message says where, `completion` has both digests.
        ArgumentError: EINVAL, the sides can't be copied; the message says what to give.
        NymphError: as digest() raises it.
    """
    handle = None if stream is None else handle_of(stream)
    queued = time.monotonic_ns()
    source, target = _side(src, "src", handle, False), _side(dst, "dst", handle, True)
    gpu = target.gpu or source.gpu
    if gpu is None:
        raise ArgumentError(errno.EINVAL, "src and dst are both in host memory; use Ring.copy()")
    if source.nbytes != target.nbytes:
        sizes = f"src has {source.nbytes} bytes, dst has {target.nbytes} bytes"
        raise ArgumentError(errno.EINVAL, f"{sizes}; give memory of one size")
    begin, end = max(source.address, target.address), min(source.address, target.address) + source.nbytes
    if source.gpu is target.gpu and begin < end:
        raise ArgumentError(errno.EINVAL, "src and dst overlap; give separate ones")
    with On(gpu, gpu.stream) as on:
        for side in (source, target):
            producer = side.memory.stream if handle is None else handle
            if side.gpu in (None, gpu) or producer is None:
                on.wait_for(producer)
            else:
                # A stream can be 0, which is another stream on each GPU.
                with On(side.gpu, producer):
                    order(producer, on.stream)
        started = time.monotonic_ns()
        digests: tuple[bytes | None, bytes | None] = None, None
        if not source.nbytes:
            digests = (blake3().digest(),) * 2 if verify else digests
        elif verify:
            digests = _verified(on, source, target)
        else:
            _transfer(on, source, target, lambda begin, end: None)
            on.synchronize()
        done = Completion(
            cookie=0,
            status=0 if digests[0] == digests[1] else -errno.EBADMSG,
            bytes_done=source.nbytes,
            engine=f"cuda:{gpu.ordinal}",
            queued_ns=queued,
            started_ns=started,
            completed_ns=time.monotonic_ns(),
            src_digest=digests[0],
            dst_digest=digests[1],
        )
        if done.status:
            raise VerifyError(errno.EBADMSG, _difference(on, source, target, done), done)
        return done


class _HostDigest:
    """Digest host memory with all CPUs while its bytes arrive.

    Use it as a context manager.

    Args:
        view: the memory.
        arrived: address of a u32 that counts the chunks that have arrived; None if all are there.
        chunk: bytes of a chunk, a multiple of _SPAN.
    """

    def __init__(self, view: memoryview, arrived: int | None = None, chunk: int = 1 << 62) -> None:
        self._view = view
        self._count = -(-len(view) // _SPAN)
        self._all = tree_ffi.new("uint32_t *", 1)
        self._data, self._nodes = tree_ffi.from_buffer(view), tree_ffi.new("uint8_t[]", 32 * self._count)
        self._arrival = tree_ffi.new("struct nymph_arrival *")
        self._arrival.data, self._arrival.nbytes = self._data, len(view)
        self._arrival.nodes, self._arrival.level = self._nodes, _SPAN_LEVEL
        self._arrival.key, self._arrival.flags = on_cpu.mode(None)
        self._arrival.arrived = self._all if arrived is None else tree_ffi.cast("uint32_t *", arrived)
        self._arrival.chunk = chunk
        threads = min(len(os.sched_getaffinity(0)), self._count)
        arguments = self._arrival, threads
        self._thread = threading.Thread(target=tree_lib.nymph_tree_arriving, args=arguments)

    def __enter__(self) -> _HostDigest:
        if self._count > 1:
            self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._arrival.stop = 1
        if self._count > 1:
            self._thread.join()
        tree_ffi.release(self._data)

    def digest(self) -> bytes:
        """Wait for the digest. All bytes must have arrived, or arrive meanwhile."""
        if self._count <= 1:
            return blake3(self._view).digest()
        self._thread.join()
        return on_cpu.root(tree_ffi.buffer(self._nodes)[:])


def _verified(on: On, source: _Side, target: _Side) -> tuple[bytes, bytes]:
    """Copy, and at the same time make both digests: of the source, and of the bytes that arrived."""
    if target.view is not None:
        return _to_host(on, source, target, target.view)
    if source.view is not None:
        with _HostDigest(source.view) as host:
            arrived = _to_device(on, source, target)
            return host.digest(), arrived
    arrived = _to_device(on, source, target)
    assert source.gpu is not None
    with On(source.gpu, source.gpu.stream) as there:
        return source.digest(there), arrived


def _to_host(on: On, source: _Side, target: _Side, view: memoryview) -> tuple[bytes, bytes]:
    """Copy to the host, and digest what has arrived, and the source, while the rest is copied."""
    chunks, state = 0, on.gpu.take_state(0)
    state.chunks[0] = 0

    def launched(begin: int, end: int) -> None:
        nonlocal chunks
        chunks += 1
        # The GPU itself tells the threads that digest.
        result = driver.cuStreamWriteValue32(on.stream, state.chunks_at, chunks, 0)
        check(result, "counting what has been copied")

    with On(on.gpu, on.gpu.second_stream()) as second:
        order(on.stream, second.stream)
        with _HostDigest(view, state.chunks_at, _CHUNK_TO_HOST) as host:
            _transfer(on, source, target, launched)
            src = source.digest(second)
            # This thread sleeps, as those that digest need its CPU.
            on.sleep()
            dst = host.digest()
    on.gpu.give_state(state)
    return src, dst


def _to_device(on: On, source: _Side, target: _Side) -> bytes:
    if target.nbytes > kernels.SMALL:
        return _arriving(on, source, target)
    _transfer(on, source, target, lambda begin, end: None)
    return target.digest(on)


def _arriving(on: On, source: _Side, target: _Side) -> bytes:
    """Copy to a GPU, and digest there what has arrived while the rest is copied."""
    gpu, at = on.gpu, 0
    with On(gpu, gpu.second_stream()) as second:
        order(on.stream, second.stream)
        lengths, addresses = segments_of([target.memory])
        made = kernels.Leaves(second, PLAIN, lengths, addresses, joined=True)
        unit = 1024 * made.threads
        state = gpu.take_state(made.pairs)
        state.epoch = (state.epoch + 1) & 0xFFFFFFFF

        def digest_blocks(begin: int, end: int) -> None:
            """Those that are there as a whole once all that was launched until now has been copied."""
            nonlocal at
            until = made.blocks if end == target.nbytes else end // unit
            if until > at:
                order(on.stream, second.stream)
                made.leaf(state.address, (at, until))
                at = until

        _transfer(on, source, target, digest_blocks)
        made.top(state.address, state.out, state.mailbox)
        # The thread sleeps, as those that digest the source need its CPU.
        second.sleep()
        found = second.await_digest(state, 0)
        gpu.give_state(state)
        return found


def _transfer(on: On, source: _Side, target: _Side, launched: Callable[[int, int], None]) -> None:
    """Launch the copy chunk by chunk. Calls `launched(begin, end)` for each, in order."""
    if source.view is not None and not source.pinned and source.nbytes > 4 * _STAGE:
        _stage(on, source, target, launched)
        return
    chunk = _CHUNK if target.view is None else _CHUNK_TO_HOST
    for begin in range(0, source.nbytes, chunk):
        end = min(begin + chunk, source.nbytes)
        from_, to, nbytes = source.address + begin, target.address + begin, end - begin
        if source.view is not None:
            result = driver.cuMemcpyHtoDAsync(to, from_, nbytes, on.stream)
        elif target.view is not None:
            result = driver.cuMemcpyDtoHAsync(to, from_, nbytes, on.stream)
        else:
            assert source.gpu is not None and target.gpu is not None
            target.gpu.reach(source.gpu)
            result = driver.cuMemcpyAsync(to, from_, nbytes, on.stream)
        check((*result, None), "copying")
        launched(begin, end)


def _stage(on: On, source: _Side, target: _Side, launched: Callable[[int, int], None]) -> None:
    """Copy from pageable memory: threads copy into pinned buffers, which the GPU reads."""
    pinned = int(check(driver.cuMemHostAlloc(_STAGES * _STAGE, 0), "pinning memory to copy through"))
    flag = driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
    events = [check(driver.cuEventCreate(flag), "making an event") for _ in range(_STAGES)]
    count = -(-source.nbytes // _STAGE)

    def fill(i: int) -> int:
        begin = i * _STAGE
        nbytes = min(_STAGE, source.nbytes - begin)
        ctypes.memmove(pinned + i % _STAGES * _STAGE, source.address + begin, nbytes)
        return nbytes

    try:
        with ThreadPoolExecutor(_STAGES) as pool:
            filled = [pool.submit(fill, i) for i in range(min(_STAGES, count))]
            for i in range(count):
                nbytes, at = filled[i].result(), i * _STAGE
                stage = pinned + i % _STAGES * _STAGE
                check(
                    (*driver.cuMemcpyHtoDAsync(target.address + at, stage, nbytes, on.stream), None),
                    "copying",
                )
                check((*driver.cuEventRecord(events[i % _STAGES], on.stream), None), "recording an event")
                launched(at, at + nbytes)
                # The buffer of the chunk before is filled again once the GPU has read it.
                if i and i - 1 + _STAGES < count:
                    result = driver.cuEventSynchronize(events[(i - 1) % _STAGES])
                    check((*result, None), "waiting for the GPU")
                    filled.append(pool.submit(fill, i - 1 + _STAGES))
    finally:
        driver.cuStreamSynchronize(on.stream)
        for event in events:
            driver.cuEventDestroy(event)
        driver.cuMemFreeHost(pinned)


def _difference(on: On, source: _Side, target: _Side, done: Completion) -> str:
    """Describe where the sides differ, by their trees and by the bytes of the first difference."""
    assert done.src_digest is not None and done.dst_digest is not None
    level = max(0, (kernels.leaves(source.nbytes) - 1).bit_length() - _MOST_NODES.bit_length() + 1)
    trees = []
    for side in (source, target):
        gpu = side.gpu or on.gpu
        with On(gpu, gpu.stream) as there:
            trees.append(side.tree(there, level))
    message = f"dst is not what src is: BLAKE3 {done.dst_digest.hex()} instead of {done.src_digest.hex()}"
    found = list(on_cpu.differing(trees[0], trees[1], level, source.nbytes))
    if not found:
        return f"{message}; read again, they are equal: something else writes to them, or reading is at fault"
    begin, end = found[0][0], min(found[0][1], found[0][0] + (1024 << level))
    one, other = source.read(on, begin, end), target.read(on, begin, end)
    first = next((begin + i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), begin)
    spans = ", ".join(f"{b} to {e}" for b, e in found[:5]) + (" and more" if len(found) > 5 else "")
    return f"{message}; they differ first at byte {first}, in bytes {spans}"
