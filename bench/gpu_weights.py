# SPDX-License-Identifier: MIT
"""What pynymph.weights does with an 8B model on this GPU: dist/gpu_weights.json, and a table.

`python -m bench.gpu_weights` measures Checker, file_digest() and match() on one GPU; with `--ranks`, torchrun
starts it on two, and it measures compare_ranks(). Cases take turns, with 40 ms of rest before each; a turn's
figure is the median of three calls, and a case's that of its turns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.gpu import MODEL, GiB, about, smi
from pynymph import cuda, weights


def model() -> torch.nn.Module:
    """Make the 291 tensors of an 8B model in bf16, of random bytes."""
    made = torch.nn.Module()
    generator = torch.Generator("cuda").manual_seed(1)
    for name, shape in MODEL:
        owner = made
        *path, last = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        tensor = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(generator=generator)
        owner.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    return made


def timed(cases: dict[str, tuple[int, Callable[[], object]]], turns: int) -> list[dict[str, Any]]:
    """Run cases by turns."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    states: dict[str, list[str]] = {}
    for turn in range(turns + 1):
        for name, (_, call) in cases.items():
            torch.cuda.synchronize()
            time.sleep(0.04)
            of_turn = []
            for _ in range(3):
                began = time.perf_counter()
                call()
                torch.cuda.synchronize()
                of_turn.append(time.perf_counter() - began)
            if turn:  # the first is to warm up
                taken[name].append(statistics.median(of_turn))
            if turn == turns:
                states[name] = smi("clocks.sm,power.draw.instant").split(", ")
    results = []
    for name, (nbytes, _) in cases.items():
        median = statistics.median(taken[name])
        results.append({"name": name, "bytes": nbytes, "ms": median * 1e3, "GB_per_s": nbytes / median / 1e9,
                        "sm_MHz": float(states[name][0]), "W_after": float(states[name][1]),
                        "ms_all": [each * 1e3 for each in taken[name]]})  # fmt: skip
    return results


def one_gpu(turns: int) -> list[dict[str, Any]]:
    live = model()
    nbytes = sum(each.nbytes for each in live.parameters())
    checker = weights.Checker(live)
    checker.snapshot()
    data = torch.empty(8 * GiB, dtype=torch.uint8, device="cuda")
    data.view(torch.int64).random_()
    # 156 tensors, as a file would have them: one after the other
    parts = {f"t{i:03}": part for i, part in enumerate(data.tensor_split(156))}
    header = _header(parts)
    results = timed(
        {
            "Checker.checksum(), 8B model": (nbytes, checker.checksum),
            "Checker.compare(), 8B model": (nbytes, checker.compare),
            "Checker.snapshot(), 8B model": (nbytes, checker.snapshot),
            "file_digest(), 8 GiB in 156 tensors": (len(data), partial(weights.file_digest, header, parts)),
            "digest() of one buffer of 8 GiB": (len(data), partial(cuda.digest, data)),
        },
        turns,
    )
    by_name = {each["name"]: each for each in results}
    # What vLLM's proposal does, once: cpu() and SHA-256 of each tensor.
    began = time.perf_counter()
    theirs = {
        name: hashlib.sha256(each.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, each in live.named_parameters()
    }
    seconds = time.perf_counter() - began
    assert len(theirs) == len(MODEL)
    ours = by_name["Checker.checksum(), 8B model"]["ms"]
    results.append({"name": "cpu() and SHA-256 of each tensor, 8B model", "bytes": nbytes,
                    "ms": seconds * 1e3, "GB_per_s": nbytes / seconds / 1e9,
                    "to_checksum": seconds * 1e3 / ours})  # fmt: skip
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: each.cpu() for name, each in live.named_parameters()}, path)
        manifest = weights.manifest(path)
        found = timed({"verify() of a model, 8B": (nbytes, lambda: weights.verify(live, manifest))}, 3)
        found[0]["ms_beside_digests"] = found[0]["ms"] - ours
        results += found
    with weights.watch(live, share=0.001) as watch:
        time.sleep(20)
        results.append({"name": "watch(share=0.001) for 20 s, 8B model", "bytes": watch.nbytes,
                        "passes": watch.passes, "busy_share": watch.busy_seconds / 20,
                        "GB_per_s": watch.nbytes / watch.busy_seconds / 1e9})  # fmt: skip
    return results


def _header(tensors: dict[str, torch.Tensor]) -> bytes:
    at, entries = 0, {}
    for name, each in tensors.items():
        entries[name] = {"dtype": "U8", "shape": [len(each)], "data_offsets": [at, at + len(each)]}
        at += len(each)
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def ranks(turns: int) -> list[dict[str, Any]]:
    import torch.distributed as dist

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    live = model()
    nbytes = sum(each.nbytes for each in live.parameters())
    checker = weights.Checker(live)

    def together(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            dist.barrier()
            torch.cuda.synchronize()
            began = time.perf_counter()
            result = call()
            own.append(time.perf_counter() - began)
            return result

        own: list[float] = []
        run.own = own  # type: ignore[attr-defined]
        return run

    check, compare = together(checker.checksum), together(lambda: weights.compare_ranks(live))
    timed({"check": (nbytes, check), "compare": (nbytes, compare)}, turns)
    mine = torch.tensor([check.own[3:], compare.own[3:]], device="cuda")  # type: ignore[attr-defined]
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    medians = [each.median(dim=1).values.tolist() for each in everyone]
    slowest, compared = (max(each[i] for each in medians) for i in (0, 1))
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank:
        return []
    return [{"name": f"compare_ranks(), 8B model on {len(medians)} GPUs, NCCL", "bytes": nbytes,
             "ms": compared * 1e3, "ms_of_slowest_checksum": slowest * 1e3,
             "to_checksum": compared / slowest}]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="dist/gpu_weights.json")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--ranks", action="store_true", help="compare_ranks(), started by torchrun")
    options = parser.parse_args()
    results = (ranks if options.ranks else one_gpu)(options.turns)
    if not results:
        return
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"about": about(options.turns), "results": results}, indent=1) + "\n")
    for each in results:
        print({key: value for key, value in each.items() if key != "ms_all"}, flush=True)


if __name__ == "__main__":
    main()
