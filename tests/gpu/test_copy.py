# SPDX-License-Identifier: MIT
"""pynymph.cuda.copy() on a GPU: every pair of memories, and faults that it locates."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from cuda.bindings import driver

from pynymph import cuda, cuda_copy, cuda_gpu
from pynymph.errors import ArgumentError, VerifyError

MiB = 1 << 20
SIZES = [0, 1, 1000, MiB + 3, 13 * MiB + 5, 64 * MiB, 150 * MiB + 77]

Make = Callable[[int], Any]
MEMORIES: dict[str, Make] = {
    "gpu": lambda n: torch.zeros(n + 1, dtype=torch.uint8, device="cuda")[1:],
    "pinned": lambda n: torch.zeros(n, dtype=torch.uint8).pin_memory(),
    "array": lambda n: np.zeros(n, np.uint8),
    "bytearray": bytearray,
}


def fill(memory: Any, data: bytes) -> None:
    if isinstance(memory, torch.Tensor):
        memory.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else memory)
    else:
        memoryview(memory).cast("B")[:] = data


def content(memory: Any) -> bytes:
    return memory.cpu().numpy().tobytes() if isinstance(memory, torch.Tensor) else bytes(memory)


@pytest.mark.parametrize("src_kind", MEMORIES)
@pytest.mark.parametrize("dst_kind", MEMORIES)
def test_copy_works_between_every_pair_of_memories(src_kind: str, dst_kind: str) -> None:
    if "gpu" not in (src_kind, dst_kind):
        with pytest.raises(ArgumentError, match=r"Ring\.copy"):
            cuda.copy(src=MEMORIES[src_kind](5), dst=MEMORIES[dst_kind](5))
        return
    for nbytes in SIZES:
        data = random.Random(nbytes).randbytes(nbytes)
        src, dst = MEMORIES[src_kind](nbytes), MEMORIES[dst_kind](nbytes)
        fill(src, data)
        done = cuda.copy(src=src, dst=dst)
        assert content(dst) == data
        assert done.src_digest == done.dst_digest == blake3(data).digest()
        assert (done.status, done.bytes_done, done.engine) == (0, nbytes, "cuda:0")
        assert done.queued_ns <= done.started_ns <= done.completed_ns
    plain = cuda.copy(src=src, dst=dst, verify=False)
    assert (plain.src_digest, plain.dst_digest) == (None, None)


@pytest.mark.parametrize("nbytes", [1000, 5 * MiB, 150 * MiB])
@pytest.mark.parametrize("kinds", [("pinned", "gpu"), ("array", "gpu"), ("gpu", "array"), ("gpu", "gpu")])
def test_fault_is_located(nbytes: int, kinds: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A real fault can't be had: a byte is changed as soon as it is copied."""
    transfer = cuda_copy._transfer
    src, dst = MEMORIES[kinds[0]](nbytes), MEMORIES[kinds[1]](nbytes)
    fill(src, random.Random(1).randbytes(nbytes))
    at = nbytes * 2 // 3

    def faulty(on: Any, source: Any, target: Any, launched: Any) -> None:
        def spoil(begin: int, end: int) -> None:
            if begin <= at < end:
                torch.cuda.synchronize()
                dst[at] ^= 4
                torch.cuda.synchronize()
            launched(begin, end)

        transfer(on, source, target, spoil)

    monkeypatch.setattr(cuda_copy, "_transfer", faulty)
    with pytest.raises(VerifyError, match=f"first at byte {at},") as caught:
        cuda.copy(src=src, dst=dst)
    done = caught.value.completion
    assert done is not None
    assert done.src_digest == blake3(content(src)).digest() != done.dst_digest
    assert done.dst_digest == blake3(content(dst)).digest()


def test_wrong_operands_are_refused_with_a_reason() -> None:
    gpu = torch.zeros(100, dtype=torch.uint8, device="cuda")
    for src, dst, hint in (
        (gpu, bytearray(99), "100 bytes"),
        (gpu, bytes(100), "read-only"),
        (gpu[:50], gpu[49:99], "overlap"),
        (bytes(50), gpu[::2], "contiguous"),
    ):
        with pytest.raises(ArgumentError, match=hint):
            cuda.copy(src=src, dst=dst)
    # A source with gaps is read in C order.
    assert cuda.copy(src=gpu[::2], dst=bytearray(50)).status == 0


def test_copy_runs_in_stream_order() -> None:
    src = torch.zeros(20 * MiB, dtype=torch.uint8, device="cuda")
    dst = torch.empty_like(src)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        src.fill_(9)
        assert cuda.copy(src=src, dst=dst).dst_digest == blake3(b"\x09" * (20 * MiB)).digest()


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")


@two_gpus
@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 0)])
def test_copy_works_from_one_gpu_to_another(one: int, other: int) -> None:
    for nbytes in (1000, 200 * MiB + 1):
        src = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=f"cuda:{one}")
        dst = torch.zeros(nbytes, dtype=torch.uint8, device=f"cuda:{other}")
        done = cuda.copy(src=src, dst=dst)
        assert done.engine == f"cuda:{other}"
        assert done.src_digest == done.dst_digest == blake3(src.cpu().numpy()).digest()
        assert torch.equal(src.cpu(), dst.cpu())
    assert cuda.digest_many([src, dst, src[1:]])[:2] == [done.src_digest] * 2


@two_gpus
def test_peer_access_is_enabled_where_the_gpus_have_it() -> None:
    src, dst = (torch.ones(MiB, dtype=torch.uint8, device=f"cuda:{i}") for i in range(2))
    cuda.copy(src=src, dst=dst)
    gpu = cuda_gpu.gpu_at(1)
    pushed = gpu.enter()
    status = driver.cuCtxEnablePeerAccess(cuda_gpu.gpu_at(0)._context, 0)[0].name
    if pushed:
        driver.cuCtxPopCurrent()
    if driver.cuDeviceCanAccessPeer(1, 0)[1]:
        assert status == "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED"


@two_gpus
@pytest.mark.parametrize("own_stream", [False, True])
def test_copy_between_gpus_waits_for_both_of_their_streams(own_stream: bool) -> None:
    src = torch.zeros(20 * MiB, dtype=torch.uint8, device="cuda:0")
    dst = torch.zeros(20 * MiB, dtype=torch.uint8, device="cuda:1")
    torch.cuda.synchronize(0)
    with torch.cuda.stream(torch.cuda.Stream(0) if own_stream else torch.cuda.default_stream(0)):
        torch.cuda._sleep(200_000_000)
        src.fill_(9)
        with torch.cuda.device(1):
            torch.cuda._sleep(100_000_000)
            dst.fill_(7)
        assert cuda.copy(src=src, dst=dst).dst_digest == blake3(b"\x09" * (20 * MiB)).digest()
    assert bytes(dst.cpu().numpy()) == b"\x09" * (20 * MiB)


@two_gpus
def test_fault_between_gpus_is_located(monkeypatch: pytest.MonkeyPatch) -> None:
    src = torch.randint(0, 256, (100 * MiB,), dtype=torch.uint8, device="cuda:0")
    dst = torch.zeros(100 * MiB, dtype=torch.uint8, device="cuda:1")
    transfer, at = cuda_copy._transfer, 70 * MiB + 3

    def faulty(on: Any, source: Any, target: Any, launched: Any) -> None:
        def spoil(begin: int, end: int) -> None:
            if begin <= at < end:
                torch.cuda.synchronize(1)
                dst[at] ^= 4
                torch.cuda.synchronize(1)
            launched(begin, end)

        transfer(on, source, target, spoil)

    monkeypatch.setattr(cuda_copy, "_transfer", faulty)
    with pytest.raises(VerifyError, match=f"first at byte {at},"):
        cuda.copy(src=src, dst=dst)


def test_copies_in_many_threads_are_right() -> None:
    wrong = []

    def run(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(12):
            nbytes = choose.choice([1000, 3 * MiB + 5, 40 * MiB + 1])
            src = torch.from_numpy(np.frombuffer(choose.randbytes(nbytes), np.uint8).copy()).pin_memory()
            middle = torch.zeros(nbytes, dtype=torch.uint8, device="cuda")
            back = torch.zeros(nbytes, dtype=torch.uint8).pin_memory()
            there, again = cuda.copy(src=src, dst=middle), cuda.copy(src=middle, dst=back)
            wanted = blake3(src.numpy()).digest()
            if {there.src_digest, there.dst_digest, again.src_digest, again.dst_digest} != {wanted}:
                wrong.append(nbytes)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_copy_works_in_a_forked_child_of_a_process_that_copied() -> None:
    """The threads that digest are the parent's; CUDA itself refuses a forked child."""
    code = """
import os, numpy, torch
from pynymph import cuda, cuda_copy
host = numpy.zeros(8 << 20, numpy.uint8)
assert cuda.copy(src=host, dst=torch.zeros(8 << 20, dtype=torch.uint8, device="cuda")).status == 0
child = os.fork()
if not child:
    with cuda_copy._HostDigest(memoryview(host)) as digesting:
        os._exit(digesting.digest() != __import__("blake3").blake3(host).digest())
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
