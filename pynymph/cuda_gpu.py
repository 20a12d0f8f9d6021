# SPDX-License-Identifier: MIT
"""A GPU with the kernels loaded, and launches of kernels into its streams."""

from __future__ import annotations

import contextlib
import errno
import struct
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pynymph import cuda_kernels as kernels
from pynymph.cuda_driver import cache, check, compile_for, cuda_core, driver, need_device, source_id, store
from pynymph.cuda_kernels import Mode, Words, ffi
from pynymph.errors import NymphError

PLAIN = Mode()
_PAIRS, _WORDS = struct.Struct("<16I"), struct.Struct("<8I")
_LENGTHS = (0, 1, 64, 1024, 1025, 70_001, 300_000, 1 << 20)


@dataclass(slots=True)
class Span:
    """Describe bytes in device memory."""

    address: int
    nbytes: int
    device: int
    stream: int | None
    """Stream in whose order the bytes are written; None if they are written already."""
    owner: Any
    """Object that keeps the memory."""
    runs: Words | None = None
    """Addresses of runs of equal length if the bytes are not contiguous, else None."""


class State:
    """Keep the device memory through which a launch passes nodes, and the page of its digest.

    One launch at a time can use a state.

    Args:
        gpu: the GPU.
        pairs: number of pairs (word, epoch).
    """

    def __init__(self, gpu: Gpu, pairs: int) -> None:
        self.pairs = pairs
        self.epoch = 0
        nbytes = 16 + 8 * pairs + 64
        self.address = gpu.allocate(nbytes)
        self.out = self.address + 16 + 8 * pairs
        # Not on the default stream: launches on other streams would not wait for it, and it waits for others.
        check(driver.cuMemsetD8Async(self.address, 0, nbytes, gpu.clearing), "clearing a state")
        check(driver.cuStreamSynchronize(gpu.clearing), "clearing a state")
        page = check(driver.cuMemHostAlloc(4096, driver.CU_MEMHOSTALLOC_DEVICEMAP), "pinning a page")
        self.mailbox = int(page)
        self._pairs = memoryview(ffi.buffer(ffi.cast("u64 *", self.mailbox), 64)).cast("B")
        self._pairs[:] = bytes(64)
        self.small = kernels.small_args(PLAIN, self.address, self.out, self.mailbox)
        self._pointers = ffi.new("u64[]", [int(ffi.cast("u64", self.small))])
        self.small_parameters = int(ffi.cast("u64", self._pointers))

    def digest(self) -> bytes | None:
        """Return the digest of launch `epoch`, 32 bytes, or None if the launch has not ended."""
        if _PAIRS.unpack(self._pairs)[1::2] != (self.epoch,) * 8:
            return None
        # Read again: Python reads a pair byte by byte, so a word can be older than its epoch.
        return _WORDS.pack(*_PAIRS.unpack(self._pairs)[::2])


class Gpu:
    """Open a GPU, and load its kernels.

    Args:
        ordinal: number of the GPU.

    Raises:
        NymphError: EIO, the GPU failed. ENOEXEC, its kernels can't be used.
    """

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.device = cuda_core.Device(ordinal)
        self._context = check(driver.cuDevicePrimaryCtxRetain(ordinal), f"opening GPU {ordinal}")
        self._context_id = int(self._context)
        self._states: list[State] = []
        self._peers: set[int] = set()
        self._kept: list[State] = []
        pushed = self.enter()
        try:
            properties = driver.CUmemPoolProps()
            properties.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
            properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            properties.location.id = ordinal
            self.pool = check(driver.cuMemPoolCreate(properties), "making a pool of memory")
            keep = driver.cuuint64_t(256 << 20)
            attribute = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
            check(driver.cuMemPoolSetAttribute(self.pool, attribute, keep), "setting up a pool of memory")
            self.stream = self._new_stream()
            self.clearing = self._new_stream()
            self._second = 0
            self.functions: dict[str, Any] = {}
            self._load()
        finally:
            if pushed:
                driver.cuCtxPopCurrent()

    def enter(self) -> bool:
        """Make the context of this GPU current. Returns whether the caller has to call cuCtxPopCurrent()."""
        current = driver.cuCtxGetCurrent()[1]
        if current is not None and int(current) == self._context_id:
            return False
        check(driver.cuCtxPushCurrent(self._context), "entering a context")
        return True

    @contextlib.contextmanager
    def relaxed(self) -> Iterator[None]:
        """Allow this thread to allocate while a stream is being captured."""
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        before = check(driver.cuThreadExchangeStreamCaptureMode(relaxed), "changing the mode of capture")
        try:
            yield
        finally:
            check(driver.cuThreadExchangeStreamCaptureMode(before), "changing the mode of capture")

    def _new_stream(self) -> int:
        flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        return int(check(driver.cuStreamCreate(flag), "making a stream"))

    def second_stream(self) -> int:
        """Return another stream, for digests while `stream` copies."""
        self._second = self._second or self._new_stream()
        return self._second

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory. Returns its address."""
        return int(check(driver.cuMemAlloc(nbytes), f"allocating {nbytes} bytes"))

    def take_state(self, pairs: int) -> State:
        """Return an unused state. After a failure do not give it back: kernels may still use it."""
        try:
            state = self._states.pop()
        except IndexError:
            state = None
        if state is None or state.pairs < pairs:
            with self.relaxed():
                state = State(self, max(pairs, kernels.SMALL_PAIRS))
        return state

    def give_state(self, state: State) -> None:
        """Give back a state that no kernel uses."""
        self._states.append(state)

    def reach(self, other: Gpu) -> None:
        """Let this GPU use the memory of another one directly, if it can: copies are ten times as fast."""
        if other is self or other.ordinal in self._peers:
            return
        self._peers.add(other.ordinal)
        if check(driver.cuDeviceCanAccessPeer(self.ordinal, other.ordinal), "asking for peer access"):
            status = driver.cuCtxEnablePeerAccess(other._context, 0)
            if status[0].name != "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED":
                check((*status, None), "enabling peer access")

    def kept_state(self) -> State:
        """Make a state for a graph. It exists until the process ends: nothing tells when a graph is freed."""
        with self.relaxed():
            state = State(self, kernels.SMALL_PAIRS)
        self._kept.append(state)
        return state

    # ---- compiling ----

    def _load(self) -> None:
        """Load the kernels from the cache, or compile them. Kernels that fail the self-test are not used."""
        arch = f"sm_{self.device.arch}"
        path = cache() / f"{arch}-{source_id(arch)}.cubin"
        for cached in (True, False):
            if cached:
                try:
                    stored = path.read_bytes()
                except OSError:
                    continue
                # A truncated cubin crashes the driver.
                cubin = stored[32:]
                why = self._try(cubin) if blake3(cubin).digest() == stored[:32] else "it is damaged"
            else:
                cubin = compile_for(arch)
                why = self._try(cubin)
            if why is None:
                if not cached:
                    store(path, cubin)
                return
            if cached:
                warnings.warn(f"{path} is not used: {why}; compiling again", RuntimeWarning, stacklevel=4)
        raise NymphError(errno.ENOEXEC, f"GPU {self.ordinal} ({arch}): the kernels are not used: {why}")

    def _try(self, cubin: bytes) -> str | None:
        """Load `cubin`, and test it with known digests. Returns why it can't be used, or None."""
        status, module = driver.cuModuleLoadData(cubin)
        if status:
            return f"the driver refuses them ({status.name})"
        names = ("leaf", "leaf_any", "middle", "top", "many", "many_any", "small")
        try:
            for name in names:
                function = check(driver.cuModuleGetFunction(module, name.encode()), f"looking for {name}")
                self.functions[name] = int(function)
            self._self_test()
        except NymphError as error:
            self.functions.clear()
            driver.cuModuleUnload(module)
            return str(error.strerror)
        return None

    def _self_test(self) -> None:
        most = max(_LENGTHS) + 16
        data = np.random.default_rng(0).integers(0, 256, most, dtype=np.uint8)
        memory = self.allocate(most)
        try:
            check(driver.cuMemcpyHtoDAsync(memory, data.ctypes.data, most, self.stream), "copying")
            for key in (None, bytes(range(32))):
                for off in (0, 3):
                    parts = [Span(memory + off, length, self.ordinal, None, None) for length in _LENGTHS]
                    wanted = [_official(data[off : off + n].tobytes(), key) for n in _LENGTHS]
                    with On(self, self.stream) as on:
                        found = [on.one(part, Mode(key)) for part in parts]
                        found += [on.joined([part], Mode(key)) for part in parts]
                        found += on.many(parts, Mode(key))
                    if found != wanted * 3:
                        raise NymphError(errno.EILSEQ, "they made a wrong digest in their self-test")
        finally:
            driver.cuMemFree(memory)


def _official(data: bytes, key: bytes | None) -> bytes:
    return (blake3(data) if key is None else blake3(data, key=key)).digest()


_gpus: dict[int, Gpu] = {}
_gpus_mutex = threading.Lock()


def gpu_at(ordinal: int) -> Gpu:
    """Return the GPU with that number. It is opened once."""
    gpu = _gpus.get(ordinal)
    if gpu is None:
        with _gpus_mutex:
            gpu = _gpus.get(ordinal)
            if gpu is None:
                need_device(ordinal)
                gpu = _gpus[ordinal] = Gpu(ordinal)
    return gpu


class On:
    """Launch kernels into a stream of a GPU: a Machine of cuda_kernels.

    Args:
        gpu: the GPU.
        stream: the CUstream as a number.
    """

    def __init__(self, gpu: Gpu, stream: int) -> None:
        self.gpu = gpu
        self.stream = stream
        self._scratch: list[int] = []
        self._kept: list[Any] = []

    def __enter__(self) -> On:
        self._pushed = self.gpu.enter()
        return self

    def __exit__(self, *exception: Any) -> None:
        for address in self._scratch:
            driver.cuMemFreeAsync(address, self.stream)
        if self._pushed:
            driver.cuCtxPopCurrent()

    def scratch(self, nbytes: int) -> int:
        """Allocate device memory until the launches here have ended. Returns its address."""
        result = driver.cuMemAllocFromPoolAsync(max(nbytes, 16), self.gpu.pool, self.stream)
        address = int(check(result, f"allocating {nbytes} bytes"))
        self._scratch.append(address)
        return address

    def upload(self, *arrays: NDArray[Any]) -> list[int]:
        """Copy arrays to device memory. Returns their addresses."""
        parts = [np.ascontiguousarray(array) for array in arrays]
        offsets = np.cumsum([0, *(-(-part.nbytes // 16) * 16 for part in parts)])
        joined = np.zeros(int(offsets[-1]), np.uint8)
        for part, offset in zip(parts, offsets, strict=False):
            joined[offset : offset + part.nbytes] = part.reshape(-1).view(np.uint8)
        address = self.scratch(len(joined))
        # The memory is pageable, so the driver has copied it on return.
        check(
            driver.cuMemcpyHtoDAsync(address, joined.ctypes.data, len(joined), self.stream), "copying tables"
        )
        self._kept.append(joined)
        return [address + int(offset) for offset in offsets[:-1]]

    def launch(self, kernel: str, args: Any, blocks: int, *, early: bool = False) -> None:
        """Launch a kernel. `early`: it may start before the kernel before it has ended."""
        threads = 128 if kernel == "small" else 256
        pointers = ffi.new("u64[]", [int(ffi.cast("u64", args))])
        parameters = int(ffi.cast("u64", pointers))
        function = self.gpu.functions[kernel]
        if early:
            config = driver.CUlaunchConfig()
            config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
            config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
            config.hStream = self.stream
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
            result = driver.cuLaunchKernelEx(config, function, parameters, 0)
        else:
            result = driver.cuLaunchKernel(
                function, blocks, 1, 1, threads, 1, 1, 0, self.stream, parameters, 0
            )
        check(result, f"launching {kernel}")

    def synchronize(self) -> None:
        """Wait until all launches of the stream have ended."""
        check(driver.cuStreamSynchronize(self.stream), "waiting for the GPU")

    def wait_for(self, producer: int | None) -> None:
        """Make later launches here wait for earlier work of another stream."""
        if producer is not None and producer != self.stream:
            order(producer, self.stream)

    def hold_back(self, producer: int | None) -> None:
        """Make later work of another stream wait for earlier launches here."""
        if producer is not None and producer != self.stream:
            order(self.stream, producer)

    # ---- digests in host memory ----

    def one(self, memory: Span, mode: Mode) -> bytes:
        """Make the digest of one span. Returns 32 bytes."""
        if memory.runs is not None:
            return self.joined([memory], mode)
        if memory.nbytes > kernels.SMALL:
            return self.joined([memory], mode)
        state = self.gpu.take_state(0)
        state.epoch = (state.epoch + 1) & 0xFFFFFFFF
        if mode is PLAIN:
            # The fastest launch: only the arguments that differ from call to call are set.
            blocks = kernels.aim_small(state.small, memory.address, memory.nbytes)
            status = driver.cuLaunchKernel(
                self.gpu.functions["small"],
                blocks,
                1,
                1,
                128,
                1,
                1,
                0,
                self.stream,
                state.small_parameters,
                0,
            )
            if status[0]:
                check(status, "launching small")
        else:
            args = kernels.small_args(mode, state.address, state.out, state.mailbox)
            self.launch("small", args, kernels.aim_small(args, memory.address, memory.nbytes))
        found = self.await_digest(state, 300e-6)
        self.gpu.give_state(state)
        return found

    def joined(self, memories: Sequence[Span], mode: Mode) -> bytes:
        """Make the digest of the concatenation of spans. Returns 32 bytes."""
        lengths, addresses = segments_of(memories)
        made = kernels.Leaves(self, mode, lengths, addresses, joined=True)
        state = self.gpu.take_state(made.pairs)
        state.epoch = (state.epoch + 1) & 0xFFFFFFFF
        made.leaf(state.address)
        made.top(state.address, state.out, state.mailbox)
        found = self.await_digest(state, 0)
        self.gpu.give_state(state)
        return found

    def await_digest(self, state: State, patience: float) -> bytes:
        """Wait for a digest: poll for `patience` seconds, which has less latency, then block."""
        until = time.perf_counter() + patience
        while True:
            found = state.digest()
            if found is not None:
                return found
            if time.perf_counter() >= until:
                break
        self.synchronize()
        found = state.digest()
        if found is None:
            raise NymphError(errno.EIO, "the GPU ended without a digest; check it with nvidia-smi")
        return found

    def tree(self, memory: Span, level: int, mode: Mode) -> bytes:
        """Make the nodes of one level of a span's tree."""
        if kernels.leaves(memory.nbytes) <= 1 << level:
            return self.one(memory, mode)
        segments, levels = segments_of([memory]), min(level, kernels.LEVELS)
        made = kernels.Leaves(self, mode, *segments, joined=True, levels=levels)
        made.leaf()
        nodes, count = made.tree(level)
        return self.download(nodes, 32 * count)

    def download(self, address: int, nbytes: int) -> bytes:
        """Copy device memory to the host."""
        host = np.empty(nbytes, np.uint8)
        check(
            driver.cuMemcpyDtoHAsync(host.ctypes.data, address, nbytes, self.stream), "copying to the host"
        )
        self.synchronize()
        return host.tobytes()

    def many(self, memories: Sequence[Span], mode: Mode) -> list[bytes]:
        """Make the digest of each span."""
        out = self.scratch(32 * len(memories))
        self.many_into(memories, mode, out)
        raw = self.download(out, 32 * len(memories))
        return [raw[i : i + 32] for i in range(0, len(raw), 32)]

    def many_into(self, memories: Sequence[Span], mode: Mode, out: int) -> None:
        """Launch the digests of spans, 32 bytes each, to device memory at `out`."""
        lengths = np.array([memory.nbytes for memory in memories], np.uint64)
        addresses = np.array([memory.address for memory in memories], np.uint64)
        strided = np.array([memory.runs is not None for memory in memories], bool)
        is_small = (lengths <= 1024 * kernels.THREADS) & ~strided
        places = np.arange(len(memories), dtype=np.uint64)
        if is_small.any():
            kernels.many(self, mode, lengths[is_small], addresses[is_small], places[is_small], out)
        is_large = ~is_small & ~strided
        if is_large.any():
            made = kernels.Leaves(self, mode, lengths[is_large], addresses[is_large], joined=False)
            digests = self.scratch(32 * int(is_large.sum()))
            state = self.new_state(made.pairs)
            made.leaf(state)
            made.top(state, digests)
            self._scatter(digests, places[is_large], out)
        for place in places[strided]:
            made = kernels.Leaves(self, mode, *segments_of([memories[int(place)]]), joined=True)
            state = self.new_state(made.pairs)
            made.leaf(state)
            made.top(state, out + 32 * int(place))

    def new_state(self, pairs: int) -> int:
        """Make a cleared state for one launch. Returns its address."""
        state = self.scratch(16 + 8 * pairs)
        check(driver.cuMemsetD8Async(state, 0, 16 + 8 * pairs, self.stream), "clearing a state")
        return state

    def _scatter(self, digests: int, places: Words, out: int) -> None:
        """Copy digests to their places, with one copy for each run of places."""
        ends = np.flatnonzero(np.diff(places) != 1) + 1
        for run in np.split(np.arange(len(places)), ends):
            check(
                driver.cuMemcpyDtoDAsync(
                    out + 32 * int(places[run[0]]), digests + 32 * int(run[0]), 32 * len(run), self.stream
                ),
                "copying digests",
            )


def order(first: int, then: int) -> None:
    """Make stream `then` wait for all work that stream `first` has now."""
    event = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING), "making an event")
    try:
        check(driver.cuEventRecord(event, first), "recording an event")
        check(driver.cuStreamWaitEvent(then, event, 0), "waiting for an event")
    finally:
        driver.cuEventDestroy(event)


def segments_of(memories: Iterable[Span]) -> tuple[Words, Words]:
    """Return the lengths and the addresses of all contiguous segments of spans, each of shape (n,)."""
    lengths: list[Words] = []
    addresses: list[Words] = []
    for memory in memories:
        if memory.runs is None:
            addresses.append(np.array([memory.address], np.uint64))
            lengths.append(np.array([memory.nbytes], np.uint64))
        else:
            addresses.append(memory.runs)
            lengths.append(np.full(len(memory.runs), memory.nbytes // len(memory.runs), np.uint64))
    if not lengths:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    return np.concatenate(lengths), np.concatenate(addresses)
