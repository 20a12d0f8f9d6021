# SPDX-License-Identifier: MIT
"""pynymph.cuda on a GPU against the official blake3 package: `make gpu`."""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3

from pynymph import cuda, cuda_gpu, cuda_kernels, digest
from pynymph.errors import ArgumentError, NymphError

KEY = b"whats the Elvish word for friend"
MiB = 1 << 20


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    generator = torch.Generator(device="cuda").manual_seed(7)
    return torch.randint(0, 256, (64 * MiB,), dtype=torch.uint8, device="cuda", generator=generator)


@pytest.fixture(scope="module")
def host(data: torch.Tensor) -> bytes:
    return data.cpu().numpy().tobytes()


def official(data: Any, key: bytes | None = None) -> bytes:
    return blake3(data, max_threads=blake3.AUTO, key=key).digest()


def bytes_of(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_digest_agrees_with_official_vectors() -> None:
    vectors = torch.arange(102400, dtype=torch.int64).remainder(251).to(torch.uint8).cuda()
    known = {
        0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
        1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
        102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
    }
    for length, wanted in known.items():
        assert cuda.digest(vectors[:length]).hex() == wanted


def test_every_length_to_16384_is_right(data: torch.Tensor, host: bytes) -> None:
    lengths = range(16385)
    segments = [data[n % 16 : n % 16 + n] for n in lengths]
    wanted = [official(host[n % 16 : n % 16 + n]) for n in lengths]
    assert cuda.digest_many(segments) == wanted
    assert [cuda.digest(segment) for segment in segments[::7]] == wanted[::7]
    assert [cuda.digest_segments([segment]) for segment in segments[::31]] == wanted[::31]


@pytest.mark.parametrize("power", range(10, 27))
def test_lengths_around_powers_of_two_are_right(data: torch.Tensor, host: bytes, power: int) -> None:
    for length in {(1 << power) + d for d in (-1025, -1, 0, 1, 1024, 1025)} & set(range(64 * MiB - 16)):
        for offset in (0, 1, 8, 15):
            view = data[offset : offset + length]
            for key in (None, KEY):
                assert cuda.digest(view, key=key) == official(host[offset : offset + length], key)


@pytest.mark.parametrize("power", range(27, 34))
def test_lengths_around_large_powers_of_two_are_right(power: int) -> None:
    whole = torch.empty((1 << power) + 4096, dtype=torch.uint8, device="cuda")
    whole.view(torch.int64).random_()
    on_host = whole.cpu().numpy()
    for length, offset in (((1 << power) - 1, 0), (1 << power, 0), ((1 << power) + 1025, 3)):
        assert cuda.digest(whole[offset : offset + length]) == official(on_host[offset : offset + length])


def test_every_alignment_is_right(data: torch.Tensor, host: bytes) -> None:
    for length in (5, 1000, 40_000, 17 * MiB + 5):
        for offset in range(16):
            part = data[offset : offset + length]
            wanted = official(host[offset : offset + length])
            assert cuda.digest(part) == cuda.digest_segments([part]) == wanted
            assert cuda.digest_many([part, part]) == [wanted, wanted]


def test_random_views_are_right_alone_joined_and_many(data: torch.Tensor, host: bytes) -> None:
    choose = random.Random(11)
    for most in (3, 100, 2000, 30_000, 3_000_000):
        spans = []
        for _ in range(choose.randrange(300)):
            length = choose.choice([0, 1024, choose.randint(0, most), choose.randint(0, most)])
            begin = choose.randint(0, len(host) - length)
            spans.append((begin, begin + length))
        segments = [data[b:e] for b, e in spans]
        joined = b"".join(host[b:e] for b, e in spans)
        for key in (None, KEY):
            assert cuda.digest_segments(segments, key=key) == official(joined, key)
            assert cuda.digest_many(segments, key=key) == [official(host[b:e], key) for b, e in spans]


def test_digests_are_right_with_little_scratch(
    data: torch.Tensor, host: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_kernels, "SCRATCH", 1 << 20)
    spans = [(n * 777 + 1, n * 777 + 1 + n % 900) for n in range(30_000)]
    segments = [data[b:e] for b, e in spans]
    assert cuda.digest_segments(segments) == official(b"".join(host[b:e] for b, e in spans))
    spans = [(n * 777 + 1, n * 777 + 1 + n * 13 % 9000) for n in range(9_000)]
    assert cuda.digest_many([data[b:e] for b, e in spans]) == [official(host[b:e]) for b, e in spans]


@pytest.mark.parametrize("level", [0, 1, 2, 3, 5, 11, 12, 13, 14, 15, 16])
def test_tree_agrees_with_the_cpu(data: torch.Tensor, host: bytes, level: int) -> None:
    array = data[3 : 3 + 33 * MiB + 17]
    for key in (None, KEY):
        nodes = cuda.tree(array, level, key=key)
        assert nodes == digest.tree(host[3 : 3 + len(array)], level, key=key)
        assert digest.root(nodes, key=key) == official(host[3 : 3 + len(array)], key)
    nodes = cuda.tree(array, level)
    changed = array.clone()
    at, span = 20 * MiB + 5, 1024 << level
    changed[at] ^= 16
    (found,) = digest.differing(cuda.tree(changed, level), nodes, level, len(array))
    assert found == (at // span * span, min(at // span * span + span, len(array)))


def test_flipped_bit_is_found_and_located(data: torch.Tensor) -> None:
    """10,000 of them, each in device memory."""
    array = data[: 24 * MiB + 100].clone()
    before, nodes = cuda.digest(array), cuda.tree(array, 0)
    choose = random.Random(5)
    for turn in range(10_000):
        at = choose.randrange(len(array))
        array[at] ^= 1 << choose.randrange(8)
        if turn % 10 == 0:
            assert cuda.digest(array) != before
        after = cuda.tree(array, 0)
        differ = np.frombuffer(after, "V32") != np.frombuffer(nodes, "V32")
        assert np.flatnonzero(differ).tolist() == [at // 1024]
        nodes = after


DTYPES = [
    *(
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.uint16,
        torch.int16,
        torch.uint32,
        torch.int32,
        torch.uint64,
    ),
    *(
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex32,
        torch.complex64,
    ),
    *(torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu),
    torch.float4_e2m1fn_x2,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_hashed_as_bytes(data: torch.Tensor, host: bytes, dtype: torch.dtype) -> None:
    nbytes = 5 * 7 * dtype.itemsize
    assert cuda.digest(data[:nbytes].view(dtype).reshape(5, 7)) == official(host[:nbytes])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.T,
        lambda t: t[::2],
        lambda t: t[:, 1:-1],
        lambda t: t[3, 5],
        lambda t: t[:0],
        lambda t: t.T[:1].T,
        lambda t: t.expand(3, *t.shape),
        lambda t: torch.nn.Parameter(t),
        lambda t: torch.nn.Parameter(t).T,
        lambda t: t.unfold(0, 4, 2),
        lambda t: torch.complex(t, t).conj(),
        lambda t: torch.complex(t, t).conj().imag,
        lambda t: torch.nn.Linear(5, 1, device="cuda").weight.T,
    ],
)
def test_views_are_hashed_in_c_order(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = change(torch.randn(40, 60, device="cuda"))
    assert cuda.digest(tensor) == official(bytes_of(tensor))


class Interface:
    def __init__(self, tensor: torch.Tensor, **more: Any) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = {**tensor.__cuda_array_interface__, **more}


class DLPack:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__


@pytest.mark.parametrize("wrap", [Interface, DLPack])
def test_arrays_of_other_libraries_are_accepted(wrap: Any) -> None:
    for tensor in (
        torch.randn(7, 9, device="cuda"),
        torch.randn(70, 90, device="cuda").T,
        torch.randn(70, 90, device="cuda")[::3, 1::2],
        torch.randn(70, 90, device="cuda")[:, 2:50],
        torch.randn(0, 3, device="cuda"),
        torch.randn((), device="cuda"),
        torch.randn(1, 5, device="cuda").T,
    ):
        assert cuda.digest(wrap(tensor)) == official(bytes_of(tensor))


def test_pinned_memory_is_read_in_place() -> None:
    pinned = torch.randint(0, 256, (3 * MiB + 1,), dtype=torch.uint8).pin_memory()
    assert cuda.digest(pinned) == official(pinned.numpy().tobytes())


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: torch.zeros(3), "payload"),
        (lambda: torch.zeros(3, device="meta"), "not in the memory"),
        (lambda: torch.eye(3, device="cuda").to_sparse(), "layout"),
        (lambda: np.zeros(3), "payload"),
        (lambda: b"bytes", "device memory"),
        (lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8).cuda(), "int_repr"),
    ],
)
def test_wrong_inputs_are_refused_with_a_reason(make: Callable[[], Any], hint: str) -> None:
    with pytest.raises(ArgumentError, match=hint):
        cuda.digest(make())


def test_wrapper_tensors_are_refused_with_their_parts() -> None:
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner: torch.Tensor) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=inner.device)

        def __tensor_flatten__(self) -> Any:
            return ["inner"], None

        @classmethod
        def __torch_dispatch__(cls, *args: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(ArgumentError, match="inner"):
        cuda.digest(Wrapper(torch.zeros(3, device="cuda")))


def test_freed_memory_is_an_error() -> None:
    from cuda.bindings import driver

    torch.zeros(1, device="cuda")
    address = int(driver.cuMemAlloc(1 << 20)[1])
    driver.cuMemsetD8(address, 0, 1 << 20)
    driver.cuCtxSynchronize()
    interface = dict(data=(address, False), shape=(1 << 20,), typestr="|u1", version=3)
    holder = type("Holder", (), {"__cuda_array_interface__": interface})()
    assert len(cuda.digest(holder)) == 32
    driver.cuMemFree(address)
    with pytest.raises(ArgumentError, match="freed"):
        cuda.digest(holder)


def test_wrong_arguments_are_refused(data: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match="32 bytes"):
        cuda.digest(data, key=b"short")
    with pytest.raises(ArgumentError, match="levels"):
        cuda.tree(data, 54)
    with pytest.raises(ArgumentError, match="no stream"):
        cuda.digest(data, stream="main")
    with pytest.raises(ArgumentError, match="takes 32"):
        cuda.digest_into(data, data[:31])
    assert cuda.digest_many([]) == []
    assert cuda.digest_segments([]) == official(b"")


def test_out_of_memory_is_one_clear_error() -> None:
    """The nodes of 64 GiB, spread over nothing, need more than is left."""
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - (96 << 20), dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(NymphError, match="out of memory"):
            cuda.digest(hog)
    finally:
        del hog
        torch.cuda.empty_cache()


def test_no_byte_outside_is_read() -> None:
    """Inputs that begin and end where a mapping does: a byte outside is an illegal address."""
    from cuda.bindings import driver

    torch.zeros(1, device="cuda")
    prop = driver.CUmemAllocationProp()
    prop.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    prop.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    prop.location.id = 0
    size = 20 * MiB
    base = driver.cuMemAddressReserve(size + 4 * MiB, 2 * MiB, 0, 0)[1]
    start = int(base) + 2 * MiB
    handle = driver.cuMemCreate(size, prop, 0)[1]
    assert driver.cuMemMap(start, size, 0, handle, 0)[0] == 0
    access = driver.CUmemAccessDesc()
    access.location = prop.location
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    assert driver.cuMemSetAccess(start, size, [access], 1)[0] == 0
    content = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    assert driver.cuMemcpyHtoD(start, content.ctypes.data, size)[0] == 0
    torch.cuda.synchronize()

    def view(begin: int, end: int) -> Any:
        interface = dict(data=(start + begin, False), shape=(end - begin,), typestr="|u1", version=3)
        return type("View", (), {"__cuda_array_interface__": interface})()

    for length in (1, 15, 63, 1000, 1025, 40_001, 300_003, 5 * MiB + 7, 18 * MiB + 3, size):
        for begin in {0, size - length}:
            array, wanted = view(begin, begin + length), official(content[begin : begin + length].tobytes())
            assert cuda.digest(array) == wanted
            assert cuda.digest_segments([array, array]) == official(
                content[begin : begin + length].tobytes() * 2
            )
            assert cuda.digest_many([array]) == [wanted]
    torch.cuda.synchronize()
    driver.cuMemUnmap(start, size)
    driver.cuMemRelease(handle)
    driver.cuMemAddressFree(base, size + 4 * MiB)


def test_digest_waits_for_the_stream(data: torch.Tensor) -> None:
    wanted = official(b"\7" * len(data))
    for stream in (torch.cuda.Stream(), None):
        array = data.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            array.fill_(7)
            assert cuda.digest(array, stream=stream) == wanted
    # What is written after digest_into() does not reach it.
    array, out = torch.full_like(data, 7), torch.zeros(32, dtype=torch.uint8, device="cuda")
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(other):
        torch.cuda._sleep(200_000_000)
    cuda.digest_into(array, out, stream=other)
    array.fill_(8)
    torch.cuda.synchronize()
    assert bytes_of(out) == wanted


@pytest.mark.parametrize("nbytes", [70_000, 20 * MiB])
def test_digest_needs_nothing_of_a_busy_default_stream(
    data: torch.Tensor, host: bytes, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    """What a new state is cleared by must not wait there: the launch would not wait for it."""
    monkeypatch.setattr(cuda_gpu.gpu_at(0), "_states", [])
    array, wanted = Interface(data[:nbytes]), official(host[:nbytes])
    torch.cuda.synchronize()
    torch.cuda._sleep(600_000_000)
    assert cuda.digest(array) == wanted
    assert not torch.cuda.default_stream().query()
    torch.cuda.synchronize()
    assert cuda.digest(array) == wanted


def test_digests_are_right_in_many_threads_and_streams(data: torch.Tensor, host: bytes) -> None:
    wrong = []

    def run(seed: int) -> None:
        choose = random.Random(seed)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(60):
                length = choose.choice([choose.randint(0, 3000), choose.randint(0, 30 * MiB)])
                begin = choose.randint(0, len(host) - length)
                if cuda.digest(data[begin : begin + length]) != blake3(host[begin : begin + length]).digest():
                    wrong.append((begin, length))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("nbytes", [0, 1000, MiB, 16 * MiB, 16 * MiB + 1, 40 * MiB + 3])
def test_graph_captures_a_digest(data: torch.Tensor, nbytes: int) -> None:
    array = data[1 : 1 + nbytes].clone()
    out = torch.zeros(32, dtype=torch.uint8, device="cuda")
    cuda.digest(array)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda.digest_into(array, out)
    for value in range(5):
        array.fill_(value)
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert bytes_of(out) == official(bytes([value]) * nbytes)


def test_context_of_the_caller_stays_current(data: torch.Tensor) -> None:
    from cuda.bindings import driver

    contexts = []

    def run() -> None:
        interface = Interface(data[:100])
        for _ in range(2):
            contexts.append(int(driver.cuCtxGetCurrent()[1]))
            cuda.digest(interface)

    run()
    assert contexts[0] == contexts[1] != 0
    contexts.clear()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert contexts == [0, 0]


def test_spoilt_cache_is_compiled_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = cuda_gpu.Gpu(0)
    (cached,) = (tmp_path / "pynymph" / "cuda").iterdir()
    good = cached.read_bytes()
    wrong = good[32:].replace((0x6A09E667).to_bytes(4, "little"), (0x6A09E668).to_bytes(4, "little"))
    assert wrong != good[32:]
    old = b"\x7fELF" + bytes(100)
    for spoilt, why in (
        (good[:1000], "damaged"),
        (b"", "damaged"),
        (blake3(old).digest() + old, "refuses"),
        (blake3(wrong).digest() + wrong, "wrong digest"),
    ):
        cached.write_bytes(spoilt)
        with pytest.warns(RuntimeWarning, match=why):
            again = cuda_gpu.Gpu(0)
        assert cached.read_bytes() == good
    assert again.functions.keys() == fresh.functions.keys()


def test_old_name_of_the_segments_warns() -> None:
    data = torch.arange(100, dtype=torch.uint8, device="cuda")
    with pytest.warns(DeprecationWarning, match="give segments="):
        assert cuda.digest_segments(pieces=[data]) == cuda.digest(data)


def test_digests_of_several_launches_come_in_the_order_of_the_arrays() -> None:
    """digest_many() launches 1 GiB, then 2 GiB, while it still looks at the arrays."""
    whole = torch.empty(5 << 30, dtype=torch.uint8, device="cuda")
    whole.view(torch.int64).random_()
    sizes = [300 << 20, 5, 0, 900 << 20, 70_001, (1 << 30) + 3, 200 << 20, 64, 700 << 20, 1025, 1300 << 20]
    arrays = list(whole[: sum(sizes)].split(sizes))
    arrays[8] = arrays[8].view(-1, 2)[:, 0]  # with gaps
    assert cuda.digest_many(iter(arrays)) == [cuda.digest(array) for array in arrays]
    with pytest.raises(ArgumentError, match="host memory"):
        cuda.digest_many([*arrays, torch.ones(3)])
    assert cuda.digest_many(arrays[:2]) == [cuda.digest(array) for array in arrays[:2]]
