# SPDX-License-Identifier: MIT
"""A GPU with the kernels loaded, and launches of kernels into its streams."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
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
_PATIENCE = 300e-6
"""Seconds to poll for a digest before this thread sleeps."""
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


def _config(blocks: int, threads: int, stream: int, early: bool = False) -> Any:
    """Make a struct launch_config. `early`: the kernel may start before the kernel before it has ended."""
    config = ffi.new("struct launch_config *")
    config.blocks = (blocks, 1, 1)
    config.threads = (threads, 1, 1)
    config.stream = stream
    if early:
        config.attributes = _EARLY
        config.count = 1
    return config


_EARLY = ffi.new("struct launch_attribute *")
# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION; the documentation is made without CUDA's names.
_EARLY.id = 6
_EARLY.value[0] = 1


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
        flag = driver.CU_MEMHOSTALLOC_DEVICEMAP
        self.mailbox = int(check(driver.cuMemHostAlloc(4096, flag), "pinning a page"))
        page: memoryview[int] = memoryview(ffi.buffer(ffi.cast("u64 *", self.mailbox), 64)).cast("B")
        page[:] = bytes(64)
        self.words = page.cast("I")
        """The 8 pairs (word, epoch) of the digest."""
        self.chunks_at = self.mailbox + 64
        self.chunks = ffi.cast("u32 *", self.chunks_at)
        """A counter that a GPU can write, for who has the state."""
        self._digest, self._epochs = self.words[::2], self.words[1::2]
        self.small = kernels.small_args(PLAIN, self.address, self.out, self.mailbox)
        self.small_parameters = ffi.new("void *[]", [self.small])
        self.small_config = _config(1, kernels.SMALL_THREADS, 0)

    def digest(self) -> bytes | None:
        """Return the digest of launch `epoch`, 32 bytes, or None if the launch has not ended."""
        if self._epochs.tolist() != [self.epoch] * 8:
            return None
        # The GPU writes a word and its epoch at once, so all words are there.
        return self._digest.tobytes()


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
            self.functions: dict[str, int] = {}
            # Through cffi a call takes a fraction of the time that it takes through cuda-bindings.
            found = check(driver.cuGetProcAddress(b"cuLaunchKernelEx", 12000, 0), "looking for a function")
            kind = "int (*)(struct launch_config *, u64, void **, void **)"
            self.launch_kernel = ffi.cast(kind, int(found[0]))
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

    def launch(
        self, kernel: str, args: Any, blocks: int, threads: int = kernels.THREADS, *, early: bool = False
    ) -> None:
        """Launch a kernel. `early`: it may start before the kernel before it has ended."""
        config = _config(blocks, threads, self.stream, early)
        self._launch(kernel, config, ffi.new("void *[]", [args]))

    def _launch(self, kernel: str, config: Any, parameters: Any) -> None:
        status = self.gpu.launch_kernel(config, self.gpu.functions[kernel], parameters, ffi.NULL)
        if status:
            check((driver.CUresult(status),), f"launching {kernel}")

    def synchronize(self) -> None:
        """Wait until all launches of the stream have ended."""
        check(driver.cuStreamSynchronize(self.stream), "waiting for the GPU")

    def sleep(self) -> None:
        """Wait as synchronize() does, but leave the CPU to other threads meanwhile."""
        flags = driver.CUevent_flags
        flag = int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING)
        event = check(driver.cuEventCreate(flag), "making an event")
        try:
            check(driver.cuEventRecord(event, self.stream), "recording an event")
            check(driver.cuEventSynchronize(event), "waiting for the GPU")
        finally:
            driver.cuEventDestroy(event)

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
        if memory.runs is not None or memory.nbytes > kernels.SMALL:
            return self.joined([memory], mode)
        state = self.gpu.take_state(0)
        state.epoch = (state.epoch + 1) & 0xFFFFFFFF
        if mode is PLAIN:
            # The fastest launch: only the arguments that differ from call to call are set.
            config = state.small_config
            config.blocks[0] = kernels.aim_small(state.small, memory.address, memory.nbytes)
            config.stream = self.stream
            self._launch("small", config, state.small_parameters)
        else:
            args = kernels.small_args(mode, state.address, state.out, state.mailbox)
            blocks = kernels.aim_small(args, memory.address, memory.nbytes)
            self.launch("small", args, blocks, kernels.SMALL_THREADS)
        return self.finish(state)

    def finish(self, state: State) -> bytes:
        """Wait for the digest of a launch, and give back its state."""
        found = self.await_digest(state, _PATIENCE)
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
        return self.finish(state)

    def await_digest(self, state: State, patience: float) -> bytes:
        """Wait for a digest: poll for `patience` seconds, which has less latency, then block."""
        words, epoch = state.words, state.epoch
        until = time.perf_counter() + patience
        while True:
            # One warp writes all words at once: the last one tells of the others.
            if words[15] == epoch:
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
        check(driver.cuMemcpyDtoHAsync(host.ctypes.data, address, nbytes, self.stream), "copying to the host")
        self.synchronize()
        return host.tobytes()

    def many(self, memories: Sequence[Span], mode: Mode) -> list[bytes]:
        """Make the digest of each span."""
        out = self.scratch(32 * len(memories))
        places = self.many_into(memories, mode, out).tolist()
        raw = self.download(out, 32 * len(memories))
        digests = [b""] * len(memories)
        for i, place in enumerate(places):
            digests[place] = raw[32 * i : 32 * i + 32]
        return digests

    def many_into(self, memories: Sequence[Span], mode: Mode, out: int) -> NDArray[Any]:
        """Launch the digests of spans, 32 bytes each, to device memory at `out`.

        Returns:
            The index in `memories` of each digest, in their order in `out`.
        """
        lengths = np.array([memory.nbytes for memory in memories], np.uint64)
        addresses = np.array([memory.address for memory in memories], np.uint64)
        strided = np.array([memory.runs is not None for memory in memories], bool)
        is_small = (lengths <= 1024 * kernels.THREADS) & ~strided
        small, large, rest = (np.flatnonzero(of) for of in (is_small, ~is_small & ~strided, strided))
        if len(small):
            places = np.arange(len(small), dtype=np.uint64)
            kernels.many(self, mode, lengths[small], addresses[small], places, out)
        if len(large):
            made = kernels.Leaves(self, mode, lengths[large], addresses[large], joined=False)
            state = self.new_state(made.pairs)
            made.leaf(state)
            made.top(state, out + 32 * len(small))
        for i, place in enumerate(rest, len(small) + len(large)):
            made = kernels.Leaves(self, mode, *segments_of([memories[int(place)]]), joined=True)
            state = self.new_state(made.pairs)
            made.leaf(state)
            made.top(state, out + 32 * i)
        return np.concatenate((small, large, rest))

    def new_state(self, pairs: int) -> int:
        """Make a cleared state for one launch. Returns its address."""
        state = self.scratch(16 + 8 * pairs)
        check(driver.cuMemsetD8Async(state, 0, 16 + 8 * pairs, self.stream), "clearing a state")
        return state


class Many:
    """Launch the digest of each of many spans on one GPU, and wait for them later.

    Args:
        on: the GPU and the stream.
        memories: the spans.
        numbers: a number for each span, to tell their digests apart.
    """

    def __init__(self, on: On, memories: Sequence[Span], numbers: Sequence[int]) -> None:
        self._on, self._memories, self._numbers = on, memories, numbers
        self._out = 0
        self._places: list[int] = []

    def launch(self, mode: Mode) -> None:
        """Launch the digests. finish() has to follow, also if this fails."""
        on = self._on
        pushed = on.gpu.enter()
        try:
            for producer in {memory.stream for memory in self._memories}:
                on.wait_for(producer)
            self._out = on.scratch(32 * len(self._memories))
            self._places = on.many_into(self._memories, mode, self._out).tolist()
        finally:
            if pushed:
                driver.cuCtxPopCurrent()

    def finish(self) -> dict[int, bytes]:
        """Wait for the digests, and return them by number. Free the scratch memory."""
        with self._on as on:
            if not self._places:
                return {}
            raw = on.download(self._out, 32 * len(self._places))
            return {self._numbers[at]: raw[32 * i : 32 * i + 32] for i, at in enumerate(self._places)}


def order(first: int, then: int) -> None:
    """Make stream `then` wait for all work that stream `first` has now."""
    event = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING), "making an event")
    try:
        check(driver.cuEventRecord(event, first), "recording an event")
        check(driver.cuStreamWaitEvent(then, event, 0), "waiting for an event")
    finally:
        driver.cuEventDestroy(event)


def segments_of(memories: Sequence[Span]) -> tuple[Words | Sequence[int], Words | Sequence[int]]:
    """Return the lengths and the addresses of all contiguous segments of spans."""
    if all(memory.runs is None for memory in memories):
        return [memory.nbytes for memory in memories], [memory.address for memory in memories]
    lengths: list[Words] = []
    addresses: list[Words] = []
    for memory in memories:
        runs = np.array([memory.address], np.uint64) if memory.runs is None else memory.runs
        addresses.append(runs)
        lengths.append(np.full(len(runs), memory.nbytes // len(runs), np.uint64))
    return np.concatenate(lengths), np.concatenate(addresses)
