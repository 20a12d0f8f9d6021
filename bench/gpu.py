# SPDX-License-Identifier: MIT
"""What pynymph.cuda does on this GPU: dist/gpu.json, and a table.

Cases take turns, with 40 ms of rest before each; figures are medians. Device times are of CUDA events, and
the GPU is kept busy until all is launched. Clock and power are read right after each case.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from cuda.bindings import nvrtc

from pynymph import cuda, cuda_copy, cuda_driver, cuda_gpu, cuda_kernels
from pynymph.cuda_kernels import Leaves, Mode, ffi

GiB, MiB, KiB = 1 << 30, 1 << 20, 1 << 10
MODEL = [
    ("embed", (128256, 4096)),
    *(
        (f"{layer}.{name}", shape)
        for layer in range(32)
        for name, shape in (
            ("q", (4096, 4096)),
            ("k", (1024, 4096)),
            ("v", (1024, 4096)),
            ("o", (4096, 4096)),
            ("gate", (14336, 4096)),
            ("up", (14336, 4096)),
            ("down", (4096, 14336)),
            ("norm1", (4096,)),
            ("norm2", (4096,)),
        )
    ),
    ("norm", (4096,)),
    ("head", (128256, 4096)),
]
"""The 291 tensors of an 8B model in bf16."""


def smi(what: str) -> str:
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "-i", "0"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def about(turns: int) -> dict[str, Any]:
    """Say on what figures were measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": smi("name"),
        "driver": smi("driver_version"),
        "power_limit_W": float(smi("power.limit")),
        "nvrtc": ".".join(map(str, cuda_driver.check(nvrtc.nvrtcVersion(), "NVRTC"))),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "turns": turns,
    }


class Bench:
    def __init__(self, output: Path, turns: int, rest: float) -> None:
        self.output, self.turns, self.rest = output, turns, rest
        self.about = about(turns)
        self.results: list[dict[str, Any]] = []
        self.stream = torch.cuda.current_stream().cuda_stream
        self.gpu = cuda_gpu.gpu_at(0)
        self.busy = torch.empty(1 * GiB, dtype=torch.uint8, device="cuda")
        self.cases: list[tuple[str, int, Callable[[], float], dict[str, Any]]] = []
        self.kept: list[Any] = []
        self.shown = 0

    def case(self, name: str, nbytes: int, run: Callable[[], float], **about: Any) -> None:
        """`run` returns the seconds that it took."""
        self.cases.append((name, nbytes, run, about))

    def on_device(self, launch: Callable[[], None]) -> Callable[[], float]:
        """The seconds between events around what `launch` launches."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def run() -> float:
            self.busy.zero_()
            begin.record()
            launch()
            end.record()
            torch.cuda.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        return run

    def run(self) -> None:
        times: list[list[float]] = [[] for _ in self.cases]
        states: list[tuple[str, str]] = [("", "")] * len(self.cases)
        for turn in range(-1, self.turns):
            for i, (_, _, run, _) in enumerate(self.cases):
                time.sleep(self.rest)
                seconds = run()
                if turn >= 0:
                    times[i].append(seconds)
                if turn == self.turns - 1:
                    clock, power = smi("clocks.sm,power.draw.instant").split(", ")
                    states[i] = clock, power
        for (name, nbytes, _, about), taken, (clock, power) in zip(self.cases, times, states, strict=True):
            median = statistics.median(taken)
            result = {"name": name, "bytes": nbytes, "us": median * 1e6, "us_all": [t * 1e6 for t in taken]}
            result |= {
                "GB_per_s": nbytes / median / 1e9,
                "sm_MHz": float(clock),
                "W_after": float(power),
                **about,
            }
            self.results.append(result)
        self.cases.clear()
        self.show()

    def show(self) -> None:
        """Print what has come since."""
        for result in self.results[self.shown :]:
            took, rate, clock = result.get("us", 0), result["GB_per_s"], result.get("sm_MHz", "")
            print(f"{result['name']:60} {took:12.1f} us {rate:10.1f} GB/s {clock}", flush=True)
        self.shown = len(self.results)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps({"about": self.about, "results": self.results}, indent=1) + "\n")


def memories(parts: list[tuple[int, int]]) -> list[cuda_gpu.Span]:
    return [cuda_gpu.Span(address, nbytes, 0, None, None) for address, nbytes in parts]


def joined(bench: Bench, parts: list[tuple[int, int]]) -> tuple[Callable[[], None], cuda_gpu.On]:
    """One digest of all parts, with its tables ready."""
    on = cuda_gpu.On(bench.gpu, bench.stream)
    made = Leaves(on, Mode(), *cuda_gpu.segments_of(memories(parts)), joined=True)
    state = bench.gpu.take_state(made.pairs)

    def launch() -> None:
        made.leaf(state.address)
        made.top(state.address, state.out, state.mailbox)

    return launch, on


def captured(launch: Callable[[], None]) -> Callable[[], None]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    replay: Callable[[], None] = graph.replay
    return replay


def together(bench: Bench, parts: list[tuple[int, int]]) -> Callable[[], None]:
    """A digest of each part, with the tables ready: all launches of digest_many(), recorded and repeated."""
    on = cuda_gpu.On(bench.gpu, bench.stream)
    calls: list[tuple[Any, ...]] = []
    direct = on.launch

    def record(
        kernel: str, args: Any, blocks: int, threads: int = cuda_kernels.THREADS, *, early: bool = False
    ) -> None:
        calls.append((kernel, args, blocks, threads, early))
        direct(kernel, args, blocks, threads, early=early)

    on.launch = record  # type: ignore[method-assign]
    out = on.scratch(32 * len(parts))
    on.many_into(memories(parts), Mode(), out)
    torch.cuda.synchronize()
    on.launch = direct  # type: ignore[method-assign]
    bench.kept.append(on)

    def launch() -> None:
        for kernel, args, blocks, threads, early in calls:
            on.launch(kernel, args, blocks, threads, early=early)

    return launch


def wall(call: Callable[[], Any], count: int = 100) -> Callable[[], float]:
    def run() -> float:
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    return run


def all_at_once(bench: Bench) -> None:
    whole = torch.empty(100 * GiB, dtype=torch.uint8, device="cuda")
    whole.view(torch.int64).random_()
    launch, on = joined(bench, [(whole.data_ptr(), 100 * GiB)])
    bench.case("digest, 100 GiB once", 100 * GiB, bench.on_device(launch))
    bench.rest, rest = 1.0, bench.rest
    bench.run()
    bench.rest = rest
    on.__enter__().__exit__()
    del whole
    torch.cuda.empty_cache()


def loaders(bench: Bench) -> None:
    """Each loader alone, and the same with verification, of a 2 GiB model in the page cache."""
    from safetensors.torch import save_file

    from pynymph import weights

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        generator = torch.Generator().manual_seed(1)
        for shard in range(4):
            tensors = {f"{shard}.{i}": torch.empty(4096, 4096, dtype=torch.bfloat16) for i in range(16)}
            for tensor in tensors.values():
                tensor.view(torch.int64).random_(generator=generator)
            save_file(tensors, f"{folder}/{shard}.safetensors")
            torch.save(tensors, f"{folder}/{shard}.pt")
        del tensors
        began = time.perf_counter()
        manifest = weights.manifest(folder)
        seconds = time.perf_counter() - began
        about = {
            "name": "weights.manifest() of 2 GiB by the CPU",
            "bytes": manifest.nbytes,
            "us": seconds * 1e6,
        }
        bench.results.append({**about, "GB_per_s": manifest.nbytes / seconds / 1e9})
        files = [str(path) for path in weights.shards(folder)]
        known: dict[str, dict[str, Any]] = {"safetensors": {}, "fastsafetensors": {"nogds": True}}
        known |= {"runai-model-streamer": {}, "instanttensor": {}, "torch.load": {}}
        for name, options in known.items():
            paths = [file.replace(".safetensors", ".pt") for file in files] if name == "torch.load" else files
            load = partial(weights.LOADERS[name], paths, "cuda:0", **options)
            try:
                dict(load())
            except Exception as error:
                print(f"{name}: {error}")
                continue
            taken: dict[str, list[float]] = {"alone": [], "its verification": []}
            # A load and its verification are timed apart: loads vary by more than a verification takes.
            for _ in range(7):
                torch.cuda.empty_cache()
                torch.cuda.synchronize()
                began = time.perf_counter()
                loaded = dict(load())
                torch.cuda.synchronize()
                taken["alone"].append(time.perf_counter() - began)
                began = time.perf_counter()
                weights.verify(loaded, manifest)
                taken["its verification"].append(time.perf_counter() - began)
                del loaded
            alone, verified = (statistics.median(taken[how]) for how in taken)
            for how, median in (("alone", alone), ("its verification", verified)):
                about = {"name": f"load, 2 GiB, {name}, {how}", "bytes": manifest.nbytes, "us": median * 1e6}
                about["us_all"] = [seconds * 1e6 for seconds in taken[how]]
                bench.results.append({**about, "GB_per_s": manifest.nbytes / median / 1e9})
            bench.results[-1]["verified_to_alone"] = (alone + verified) / alone
            bench.show()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="dist/gpu.json")
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    bench = Bench(Path(options.output), options.turns, 0.04)
    all_at_once(bench)
    data = torch.empty(20 * GiB, dtype=torch.uint8, device="cuda")
    data.view(torch.int64).random_()
    base = data.data_ptr()
    kept = []
    in_python: list[tuple[str, torch.Tensor, int]] = []

    # One input.
    for label, nbytes in (("8 GiB", 8 * GiB), ("1 GiB", GiB), ("256 MiB", 256 * MiB), ("64 MiB", 64 * MiB)):
        for offset in (0, 1):
            launch, on = joined(bench, [(base + offset, nbytes)])
            kept.append(on)
            bench.case(f"digest, {label}, offset {offset}", nbytes, bench.on_device(launch))
    for label, nbytes in (("16 MiB", 16 * MiB), ("1 MiB", MiB), ("4 KiB", 4 * KiB)):
        for offset in (0, 1):
            state = bench.gpu.take_state(0)
            cuda_kernels.aim_small(state.small, base + offset, nbytes)

            def launch(state: Any = state, blocks: int = state.small.blocks) -> None:
                state.small_config.blocks[0] = blocks
                state.small_config.stream = bench.stream
                function = bench.gpu.functions["small"]
                bench.gpu.launch_kernel(state.small_config, function, state.small_parameters, ffi.NULL)

            bench.case(f"digest, {label}, offset {offset}, launch", nbytes, bench.on_device(launch))
            array = data[offset : offset + nbytes]
            out = torch.zeros(32, dtype=torch.uint8, device="cuda")
            replay = captured(partial(cuda.digest_into, array, out))
            bench.case(f"digest, {label}, offset {offset}, graph", nbytes, bench.on_device(replay))
            in_python.append((f"digest() from Python, {label}, offset {offset}", array, 1000))
            if nbytes == MiB and not offset:

                def host_time(replay: Any = replay) -> float:
                    taken = []
                    for _ in range(100):
                        torch.cuda.synchronize()
                        began = time.perf_counter()
                        replay()
                        taken.append(time.perf_counter() - began)
                    return statistics.median(taken)

                bench.case("graph replay, host time", nbytes, host_time)
    bench.run()

    # Joined.
    generator = np.random.default_rng(1)
    sizes = [2 * int(np.prod(shape)) for _, shape in MODEL]
    for header in (23456, 23461):
        spread, at = [(base + 256, header)], 64 * KiB
        for size in sizes:
            spread.append((base + at, size))
            at += -(-size // 512) * 512
        launch, on = joined(bench, spread)
        kept.append(on)
        bench.case(
            f"digest_segments, model of 291 tensors, header {header}",
            header + sum(sizes),
            bench.on_device(launch),
        )
    launch, on = joined(bench, [(base, sum(sizes))])
    kept.append(on)
    bench.case("digest, one buffer of the model's size", sum(sizes), bench.on_device(launch))
    for label, count, most in (
        ("10,000 odd segments", 10_000, 3 * MiB),
        ("average 8,000 bytes", 134_218, 16_000),
        ("average 1,000 bytes", 1_073_742, 2_000),
    ):
        lengths = generator.integers(1, most, count)
        order = generator.permutation(count)
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        parts = [(base + int(starts[i]), int(lengths[i])) for i in order]
        launch, on = joined(bench, parts)
        kept.append(on)
        bench.case(f"digest_segments, {label}", int(lengths.sum()), bench.on_device(launch))
    # Many.
    for label, count, size in (
        ("65,536 x 16 KiB", 65_536, 16 * KiB),
        ("1,000,000 x 4 KiB", 1_000_000, 4 * KiB),
        ("1,000 x 1 MiB", 1_000, MiB),
    ):
        order = generator.permutation(count)
        parts = [(base + int(i) * size, size) for i in order]
        bench.case(f"digest_many, {label}", count * size, bench.on_device(together(bench, parts)))
    bench.case(
        "digest_many, 291 tensors of the model", sum(sizes), bench.on_device(together(bench, spread[1:]))
    )
    bench.run()

    # From Python, everything included. Tables that stay would fill the pool that scratch memory is of.
    for on in [*kept, *bench.kept]:
        on.__enter__().__exit__()
    kept.clear()
    bench.kept.clear()
    in_python += [(f"digest() from Python, {n} MiB", data[: n * MiB], 20) for n in (17, 64, 1024)]
    in_python.append(("digest() from Python, 8 GiB", data[: 8 * GiB], 3))
    for name, array, count in in_python:
        bench.case(name, array.numel(), wall(partial(cuda.digest, array), count))
    tensors = [data[a - base : a - base + n] for a, n in spread[1:]]
    many = partial(cuda.digest_many, tensors)
    bench.case("digest_many() from Python, 291 tensors", sum(sizes), wall(many, 3))
    bench.run()

    # Copies of pinned memory, with proof and without.
    pinned = torch.empty(GiB, dtype=torch.uint8, pin_memory=True)
    pinned.view(torch.int64).random_()
    for label, source, target in (
        ("pinned to GPU", pinned, data[:GiB]),
        ("GPU to pinned", data[:GiB], pinned),
    ):
        for verify in (False, True):
            call = partial(cuda.copy, src=source, dst=target, verify=verify)
            bench.case(f"copy, 1 GiB, {label}, {'verified' if verify else 'plain'}", GiB, wall(call, 1))
    bench.case(
        "copy, 1 GiB, within the GPU, verified",
        GiB,
        wall(partial(cuda.copy, src=data[:GiB], dst=data[GiB : 2 * GiB]), 1),
    )
    pageable = np.frombuffer(bytearray(GiB), np.uint8)
    for verify in (False, True):
        how = "verified" if verify else "plain"
        call = partial(cuda.copy, src=pageable, dst=data[:GiB], verify=verify)
        bench.case(f"copy, 1 GiB, pageable to GPU, {how}", GiB, wall(call, 1))
        call = partial(cuda.copy, src=data[:GiB], dst=pageable, verify=verify)
        bench.case(f"copy, 1 GiB, GPU to pageable, {how}", GiB, wall(call, 1))
    digest_here = partial(blake3, pinned.numpy(), max_threads=blake3.AUTO)
    bench.case("BLAKE3 of 1 GiB on all CPUs, the official package", GiB, wall(digest_here, 1))

    def digest_ours() -> None:
        with cuda_copy._HostDigest(memoryview(pinned.numpy())) as here:
            here.digest()

    bench.case("BLAKE3 of 1 GiB on all CPUs, as a copy does", GiB, wall(digest_ours, 1))
    bench.run()

    # Against what people do today.
    part = data[: 256 * MiB]
    began = time.perf_counter()
    hashlib.sha256(part.cpu().numpy()).digest()
    bench.results.append(
        {
            "name": "tensor.cpu() and SHA-256",
            "bytes": len(part),
            "GB_per_s": len(part) / (time.perf_counter() - began) / 1e9,
        }
    )

    # For ten seconds, and all at once.
    launch, on = joined(bench, [(base, 8 * GiB)])
    kept.append(on)
    query = [
        "nvidia-smi",
        "--query-gpu=clocks.sm,power.draw.instant",
        "--format=csv,noheader,nounits",
        "-lms",
        "250",
    ]
    torch.cuda.synchronize()
    with subprocess.Popen([*query, "-i", "0"], stdout=subprocess.PIPE, text=True) as sampling:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < 10:
            for _ in range(50):
                launch()
            torch.cuda.synchronize()
            count += 50
        seconds = time.perf_counter() - began
        sampling.terminate()
        assert sampling.stdout is not None
        samples = [tuple(map(float, line.split(","))) for line in sampling.stdout if line.count(",") == 1]
    clocks, watts = zip(*samples[4:], strict=True)
    bench.results.append(
        {
            "name": "digest, 8 GiB for ten seconds",
            "bytes": 8 * GiB,
            "GB_per_s": count * 8 * GiB / seconds / 1e9,
            "sm_MHz": statistics.median(clocks),
            "W": statistics.median(watts),
            "GB_per_joule": count * 8 * GiB / seconds / 1e9 / statistics.median(watts),
        }
    )
    bench.run()
    bench.show()
    loaders(bench)
    bench.show()
    print(bench.about)


if __name__ == "__main__":
    main()
