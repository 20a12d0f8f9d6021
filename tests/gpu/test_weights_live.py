# SPDX-License-Identifier: MIT
"""weights.Checker, watch(), match() and compare_ranks() on GPUs."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pynymph import weights

MiB = 1 << 20


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    made = torch.nn.Sequential(
        torch.nn.Embedding(9000, 2050, dtype=torch.bfloat16, device="cuda"),
        torch.nn.Linear(2050, 33, dtype=torch.float16, device="cuda"),
        torch.nn.BatchNorm1d(33, device="cuda"),
    )
    made.register_buffer("fp8", torch.ones(3, 5, device="cuda").to(torch.float8_e4m3fn))
    made.register_buffer("strided", torch.ones(30, 7, device="cuda").T)
    return made


def test_the_gpu_and_the_cpu_make_the_same_checksums() -> None:
    live = model()
    made = weights.Checker(live).checksum()
    assert made == weights.Checker(live.cpu()).checksum()


def test_reset_and_update_are_noticed_in_gpu_memory() -> None:
    live = model()
    right = {name: each.cpu() for name, each in live.state_dict().items()}
    checker = weights.Checker(live)
    checker.snapshot()
    checker.reset()
    assert len(checker.compare().mismatches) == len(right)
    live.load_state_dict(right)
    assert checker.compare().match
    live[0].weight.detach().view(torch.uint8).view(-1)[20 * MiB] ^= 1
    (wrong,) = checker.compare().mismatches
    assert (wrong.name, wrong.ranges) == ("dp=0/pp=0/tp=0/ep=0:0.weight", ((16 * MiB, 32 * MiB),))


def test_a_bit_that_flips_while_the_gpu_computes_is_found_and_named() -> None:
    live, told, news = model(), [], threading.Event()

    def tell(fault: weights.Fault) -> None:
        told.append(fault)
        news.set()

    with weights.watch(live, share=0.5, on_fault=tell) as watch:
        busy = torch.randn(2048, 2048, device="cuda")
        while watch.passes < 3:
            busy = busy @ busy.T / 2048
        assert not told
        live[0].weight.detach().view(torch.uint8).view(-1)[33 * MiB] ^= 4
        torch.cuda.synchronize()
        assert news.wait(60)
    nbytes = 9000 * 2050 * 2
    assert [(each.name, each.ranges, each.lasting) for each in told] == [
        ("0.weight", ((32 * MiB, nbytes),), True)
    ]


def test_casts_are_proven_on_the_gpu(tmp_path: Path) -> None:
    made = torch.nn.ModuleDict({"a": torch.nn.Linear(4096, 4099), "b": torch.nn.Linear(5, 3)})
    save_file(
        {name: each.detach() for name, each in made.state_dict().items()}, tmp_path / "model.safetensors"
    )
    live = made.to("cuda", torch.bfloat16)
    found = weights.match(live, tmp_path)
    assert found.ok and found.where == "cuda:0" and len(found.of("cast")) == 4
    live["a"].weight.detach().view(torch.int16)[4000, 7] ^= 1
    (wrong,) = weights.match(live, tmp_path).wrong
    assert wrong.name == "a.weight" and wrong.ranges == ((16 * MiB, 32 * MiB),)


RANK = """
import sys, json, torch, torch.distributed as dist
from pynymph import weights
rank = int(sys.argv[1])
torch.cuda.set_device(rank)
dist.init_process_group("nccl", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(3)
model = {"large": torch.arange(20 << 20, dtype=torch.int16).cuda(), "norm": torch.ones(5).cuda()}
assert weights.compare_ranks(model).ok
if rank == 1:
    model["large"].view(torch.uint8)[17 << 20] ^= 1
report = weights.compare_ranks(model)
print(json.dumps([[d.name, d.majority, d.ranges] for d in report.differences]))
dist.destroy_process_group()
"""


def test_a_replica_that_differs_is_named_by_nccl_on_two_gpus(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("it needs two GPUs")
    commands = [[sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")] for rank in (0, 1)]
    processes = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in commands]
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert json.loads(out) == [["large", [], {"1": [[16 * MiB, 32 * MiB]]}]]
